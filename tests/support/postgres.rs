//! Postgres servers for tests, from the installed binaries.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::run::{as_server_user, fresh_dir, give_to_server};
use super::{eventually_now, query, role};

/// Small, and careless about power cuts: a test's data is gone after it anyway.
const CONF: &str = "\
listen_addresses = '127.0.0.1'
fsync = off
synchronous_commit = off
full_page_writes = off
shared_buffers = 16MB
max_connections = 60
max_wal_size = 256MB
timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d %a '
";

/// A server with its own data directory, port and socket directory. The role `postgres` is its
/// superuser and needs no password, unless `pg_hba.conf` is rewritten. Dropping it stops it.
pub struct Cluster {
    dir: PathBuf,
    port: u16,
    server: Option<Child>,
    databases: AtomicU32,
    env: Vec<(&'static str, String)>,
    /// Whether its directory is a file system of its own.
    is_mounted: bool,
}

/// A database of its own in a cluster.
pub struct Database {
    /// Its name.
    pub name: String,
    /// For the superuser, over TCP.
    pub url: String,
}

/// The server for tests that only need a database of their own. Roles and settings are the
/// cluster's: a test that touches those starts its own.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| {
        Cluster::start(&["max_connections = 300", "max_locks_per_transaction = 256"])
    })
}

/// Directory of the server programs: `SPCD_TEST_BINDIR`, else the newest that is installed.
pub fn bindir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("SPCD_TEST_BINDIR") {
            return dir.into();
        }
        let mut debian: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .filter(|dir| dir.join("initdb").exists())
            .collect();
        debian.sort();
        debian
            .pop()
            .or_else(|| {
                let path = std::env::var_os("PATH")?;
                std::env::split_paths(&path).find(|dir| dir.join("initdb").exists())
            })
            .expect("Postgres server binaries (apt-get install postgresql)")
    })
}

impl Cluster {
    /// Starts a server whose `postgresql.conf` ends with these lines.
    pub fn start(conf: &[&str]) -> Self {
        let mut cluster = Self::stopped(conf);
        // The port was free a moment ago; if another program took it since, take another one.
        for _ in 0..20 {
            if cluster.try_start() {
                return cluster;
            }
            cluster.port = free_port();
            cluster.write_port();
        }
        panic!("the server does not start: {}", cluster.log());
    }

    /// The same before its first start, for tests that change its files first.
    pub fn stopped(conf: &[&str]) -> Self {
        let dir = fresh_dir("pg");
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"])
            .arg(template())
            .arg(dir.join("data"));
        assert!(as_server_user(&mut copy).status().unwrap().success());
        let cluster = Self {
            dir,
            port: free_port(),
            server: None,
            databases: AtomicU32::new(0),
            env: Vec::new(),
            is_mounted: false,
        };
        let sockets = format!("unix_socket_directories = '{}'\n", cluster.dir.display());
        let lines: String = conf.iter().map(|line| format!("{line}\n")).collect();
        cluster.write("postgresql.conf", &[CONF, &sockets, &lines].concat());
        cluster.write_port();
        cluster
    }

    /// Starts a server with these variables in its environment.
    pub fn with_env(env: &[(&'static str, String)], conf: &[&str]) -> Self {
        let mut cluster = Self::stopped(conf);
        cluster.env = env.to_vec();
        cluster.start_again();
        cluster
    }

    /// Starts a server whose directory is a disk of this size; `None` where none can be mounted, which it
    /// says.
    pub fn on_small_disk(size: &str, conf: &[&str]) -> Option<Self> {
        let mut cluster = Self::stopped(conf);
        let moved = cluster.dir.with_extension("moved");
        fs::rename(&cluster.dir, &moved).unwrap();
        fs::create_dir(&cluster.dir).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "spcd-tests"]);
        let mounted = mount.arg(&cluster.dir).stderr(Stdio::null()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no file system can be mounted here");
            return None;
        }
        cluster.is_mounted = true;
        give_to_server(&cluster.dir);
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(moved.join("data")).arg(&cluster.dir);
        assert!(copy.status().unwrap().success());
        fs::remove_dir_all(&moved).unwrap();
        cluster.start_again();
        Some(cluster)
    }

    /// Starts it again, on the same port.
    pub fn start_again(&mut self) {
        eventually_now("the server starts again", || self.try_start().then_some(()));
    }

    /// Stops it in order, disconnecting its clients.
    pub fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Stops it without disconnecting its clients in order: `pg_ctl stop --mode=immediate`.
    pub fn stop_immediately(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Stops it as a power cut would.
    pub fn kill9(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Stops all of its processes by SIGSTOP, or lets them go on.
    pub fn freeze(&self, is_frozen: bool) {
        let signal = match is_frozen {
            true => Signal::SIGSTOP,
            false => Signal::SIGCONT,
        };
        // The postmaster first, so that it starts no process meanwhile.
        self.signal(signal);
        let postmaster = self
            .server
            .as_ref()
            .expect("a running server")
            .id()
            .to_string();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // `pid (name) state ppid …`
            let after_name = stat.rsplit(')').next().unwrap_or_default();
            if after_name.split_whitespace().nth(1) == Some(postmaster.as_str())
                && let Ok(pid) = entry.file_name().to_string_lossy().parse()
            {
                // It may have ended.
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
    }

    /// Lets it reread its configuration files.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Writes a file into the data directory, as the server's user.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.data().join(name);
        fs::write(&path, text).unwrap();
        give_to_server(&path);
        path
    }

    /// Adds lines to its `postgresql.conf`.
    pub fn configure(&self, conf: &[&str]) {
        let text = fs::read_to_string(self.data().join("postgresql.conf")).unwrap();
        self.write("postgresql.conf", &format!("{text}\n{}\n", conf.join("\n")));
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// The TCP port, also the socket's number.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Everything the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The superuser's URL of a database.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// Some role's URL of a database; `user` may be `user:password`.
    pub fn url_as(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// A new, empty database.
    pub async fn database(&self) -> Database {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        for statement in role::create_database(&name) {
            query(&self.url("postgres"), &statement).await;
        }
        Database {
            url: self.url(&name),
            name,
        }
    }

    fn write_port(&self) {
        self.write("postgresql.auto.conf", &format!("port = {}\n", self.port));
    }

    /// Whether the server came up; if not, it is gone.
    fn try_start(&mut self) -> bool {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        // A server with a logging collector appends to it itself.
        give_to_server(&self.dir.join("log"));
        let mut command = Command::new(bindir().join("postgres"));
        command
            .arg("-D")
            .arg(self.data())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(self.env.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut server = as_server_user(&mut command).spawn().unwrap();
        let pid_file = self.data().join("postmaster.pid");
        let pid = server.id().to_string();
        let up = eventually_now("the server starts or fails", || {
            if server.try_wait().unwrap().is_some() {
                return Some(false);
            }
            // Its eighth line is the state; an old file has another pid in its first.
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            let mut lines = text.lines();
            let own = lines.next() == Some(pid.as_str());
            let is_up = |state: &str| ["ready", "standby"].contains(&state.trim());
            (own && lines.nth(6).is_some_and(is_up)).then_some(true)
        });
        if up {
            self.server = Some(server);
        }
        up
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), signal).unwrap();
            server.wait().unwrap();
        }
    }

    fn signal(&self, signal: Signal) {
        let server = self.server.as_ref().expect("a running server");
        kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!(
                "--- the end of the server's log ({})\n{}",
                self.dir.display(),
                tail.join("\n")
            );
        }
        self.end(Signal::SIGQUIT);
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A data directory made once a run, and copied for each server.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = fresh_dir("template").join("data");
        let mut initdb = Command::new(bindir().join("initdb"));
        initdb
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ])
            .args(["--no-sync", "--no-instructions", "-D"])
            .arg(&dir)
            .stdin(Stdio::null());
        let output = as_server_user(&mut initdb).output().unwrap();
        assert!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        role::prepare(&dir);
        dir
    })
}

/// A port on which no process listens. Below the range from which the kernel takes the ports of
/// outgoing connections, so that it stays free over a restart of the server.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap();
    let given = given.get_or_insert_with(HashSet::new);
    // Runs of other processes begin elsewhere.
    let start = std::process::id() % 12_000;
    (0..12_000)
        .map(|step| u16::try_from(20_000 + (start + step * 7) % 12_000).unwrap())
        .find(|port| {
            !given.contains(port)
                && TcpListener::bind(("127.0.0.1", *port)).is_ok()
                && given.insert(*port)
        })
        .expect("a free port")
}
