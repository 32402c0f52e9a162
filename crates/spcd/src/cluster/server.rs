//! The server's programs and its process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use super::layout::{Layout, failed, last_lines};
use super::{ClusterError, TICK, USER, new_password};

/// What spcd uses of Postgres is in every version from here on.
const OLDEST: u32 = 14;

/// The ports of new clusters: below those that the kernel gives to outgoing connections, so that
/// one is still free after a restart.
const PORTS: std::ops::Range<u16> = 15432..17432;

/// Who runs the server.
#[derive(Debug, Clone)]
pub struct Owner {
    /// For messages.
    pub name: String,
    /// The user and group to change to: only as root, which Postgres refuses.
    pub change_to: Option<(u32, u32)>,
    uid: u32,
    home: PathBuf,
}

/// The programs of one version.
#[derive(Debug, Clone)]
pub struct Programs {
    /// 15 for 15.8.
    pub major: u32,
    bindir: PathBuf,
}

/// A server process.
#[derive(Debug)]
pub struct Server {
    /// Where it listens, on the loopback address.
    pub port: u16,
    pid: i32,
    data: PathBuf,
    uid: u32,
    /// `None` if it was adopted: then it is init's child.
    child: Option<Child>,
    /// Whether it is to be left alone from now on.
    left: bool,
}

/// What `postmaster.pid` says.
struct PidFile {
    pid: i32,
    port: u16,
    status: String,
}

impl Owner {
    /// The owner of the data if there is any; else this process's user; as root, the package's user
    /// or the one of Debian's Postgres.
    pub fn find(data: &Path) -> Result<Self, ClusterError> {
        let me = nix::unistd::geteuid();
        let user = if me.is_root() {
            let of_data = fs::metadata(data)
                .ok()
                .map(|found| found.uid())
                .filter(|uid| *uid != 0);
            of_data
                .and_then(|uid| User::from_uid(uid.into()).ok().flatten())
                .or_else(|| ["spcd", "postgres"].into_iter().find_map(|name| User::from_name(name).ok().flatten()))
                .ok_or_else(|| {
                    ClusterError::User(
                        "Postgres does not run as root, and there is neither a user spcd nor postgres to run the private cluster as; add one (adduser --system --group spcd), or start spcd as another user"
                            .to_owned(),
                    )
                })?
        } else {
            User::from_uid(me).ok().flatten().ok_or_else(|| {
                ClusterError::User(format!(
                    "the user with the number {me} has no entry in /etc/passwd, and Postgres does not make a cluster for it; add the entry, or give --database"
                ))
            })?
        };
        Ok(Self {
            change_to: me.is_root().then(|| (user.uid.as_raw(), user.gid.as_raw())),
            uid: user.uid.as_raw(),
            home: user.dir,
            name: user.name,
        })
    }

    /// The first directory on the way to `path` that the user may not pass through.
    pub fn first_closed(&self, path: &Path) -> Option<PathBuf> {
        let (uid, gid) = self.change_to?;
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.into_iter()
            .find(|dir| {
                fs::metadata(dir).is_ok_and(|found| {
                    let bit = if found.uid() == uid {
                        0o100
                    } else if found.gid() == gid {
                        0o010
                    } else {
                        0o001
                    };
                    found.mode() & bit == 0
                })
            })
            .map(Path::to_owned)
    }

    /// A command that runs as this user, in the environment that wrappers may need (a cloud's
    /// credentials, a proxy) but without what is meant for spcd or for clients of Postgres.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let private = ["PG", "SPCD_", "WATCHDOG_", "LISTEN_"]
                .iter()
                .any(|prefix| text.starts_with(prefix));
            if private
                || text == "NOTIFY_SOCKET"
                || text.starts_with("LC_")
                || text == "LANG"
                || text == "LANGUAGE"
            {
                command.env_remove(&name);
            }
        }
        if let Some((uid, gid)) = self.change_to {
            command
                .uid(uid)
                .gid(gid)
                .env("HOME", &self.home)
                .env("USER", &self.name)
                .env("LOGNAME", &self.name);
        }
        command.stdin(Stdio::null()).current_dir("/");
        command
    }
}

impl Programs {
    /// Those that the data needs, or for a new cluster the best there are.
    pub fn find(layout: &Layout) -> Result<Self, ClusterError> {
        let version_file = layout.data.join("PG_VERSION");
        let wanted = match fs::read_to_string(&version_file) {
            Ok(text) => Some(text.trim().parse::<u32>().map_err(|_| {
                ClusterError::Programs(format!(
                    "{} does not hold a version; the cluster is damaged",
                    version_file.display()
                ))
            })?),
            Err(_) if !layout.data.exists() => None,
            Err(error) => return Err(failed("read", &version_file)(error)),
        };
        let found = installed();
        let versions = |found: &[Self]| {
            found
                .iter()
                .map(|found| found.major.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        };
        match wanted {
            Some(major) => found.iter().find(|programs| programs.major == major).cloned().ok_or_else(|| {
                ClusterError::Programs(format!(
                    "the private cluster in {} belongs to Postgres {major}, whose server is not installed (installed: {}); install it (apt-get install postgresql-{major})",
                    layout.shown(),
                    if found.is_empty() { "none".to_owned() } else { versions(&found) }
                ))
            }),
            None => found.iter().find(|programs| programs.major >= OLDEST).cloned().ok_or_else(|| {
                ClusterError::Programs(format!(
                    "no Postgres server from {OLDEST} on is installed, which the private cluster needs; install it (apt-get install postgresql), or give --database"
                ))
            }),
        }
    }
}

/// Every server there is, the preferred one first: that of `pg_config`, then Debian's from the
/// newest on, then the one in `PATH`.
fn installed() -> Vec<Programs> {
    let of_config = Command::new("pg_config")
        .arg("--bindir")
        .stderr(Stdio::null())
        .output()
        .ok();
    let of_config =
        of_config.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let debian: BTreeMap<u32, PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs: Vec<Programs> = Vec::new();
    for bindir in of_config
        .into_iter()
        .chain(debian.into_values().rev())
        .chain(std::env::split_paths(&path))
    {
        if !bindir.join("initdb").exists() || programs.iter().any(|known| known.bindir == bindir) {
            continue;
        }
        if let Some(major) = major_version(&bindir.join("postgres")) {
            programs.push(Programs { major, bindir });
        }
    }
    programs
}

/// From `postgres (PostgreSQL) 15.8 (Debian …)`.
fn major_version(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// Makes the data directory, whole or not at all.
pub async fn init(layout: &Layout, owner: &Owner, programs: &Programs) -> Result<(), ClusterError> {
    let new = layout.dir.join("data.new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(failed("remove the half-made", &new))?;
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&new)
        .map_err(failed("create the directory", &new))?;
    owner
        .give(&new)
        .map_err(failed("give to the server's user", &new))?;
    let password = new_password().map_err(failed("read", Path::new("/dev/urandom")))?;
    // Before the data gets its name: data without a password would be of no use.
    layout.remember_password(&password)?;
    let pwfile = layout.dir.join("initdb.password");
    let _ = fs::remove_file(&pwfile);
    let written = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&pwfile)
        .and_then(|mut file| std::io::Write::write_all(&mut file, password.expose().as_bytes()))
        .and_then(|()| owner.give(&pwfile));
    let mut command = owner.command(&programs.bindir.join("initdb"));
    command
        .arg(format!("--username={USER}"))
        .arg("--pwfile")
        .arg(&pwfile)
        .args([
            "--auth=scram-sha-256",
            "--data-checksums",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-instructions",
        ])
        .arg("--pgdata")
        .arg(&new);
    let output = match written {
        Ok(()) => tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap_or_else(|error| Err(error.into())),
        Err(error) => Err(error),
    };
    let _ = fs::remove_file(&pwfile);
    let output = output.map_err(failed("run initdb for", &layout.dir))?;
    if !output.status.success() {
        let said = last_lines(&String::from_utf8_lossy(&output.stderr));
        let _ = fs::remove_dir_all(&new);
        return Err(ClusterError::Failed {
            what: format!(
                "initdb cannot make a private cluster in {}{}",
                layout.shown(),
                layout.disk()
            ),
            said,
        });
    }
    fs::rename(&new, &layout.data)
        .and_then(|()| File::open(&layout.dir)?.sync_all())
        .map_err(failed("put in place", &layout.data))
}

/// Gives the superuser another password, while no server runs.
pub async fn renew_password(
    layout: &Layout,
    owner: &Owner,
    programs: &Programs,
) -> Result<(), ClusterError> {
    let password = new_password().map_err(failed("read", Path::new("/dev/urandom")))?;
    layout.write("postgresql.conf", &configuration(layout), 0o644)?;
    let mut command = owner.command(&programs.bindir.join("postgres"));
    command
        .arg("--single")
        .arg("-D")
        .arg(&layout.data)
        // The statement holds the password: it goes to no log.
        .args([
            "-c",
            "log_statement=none",
            "-c",
            "log_min_error_statement=panic",
            "-c",
            "logging_collector=off",
            "-c",
        ])
        .arg(format!(
            "config_file={}",
            layout.dir.join("postgresql.conf").display()
        ))
        .arg("postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let sql = format!("ALTER ROLE {USER} PASSWORD '{}';\n", password.expose());
    let run = move || {
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            std::io::Write::write_all(&mut input, sql.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = tokio::task::spawn_blocking(run)
        .await
        .unwrap_or_else(|error| Err(error.into()))
        .map_err(failed("run postgres --single for", &layout.dir))?;
    if !output.status.success() {
        return Err(ClusterError::Failed {
            what: format!(
                "the private cluster in {} cannot be given a new password{}",
                layout.shown(),
                layout.disk()
            ),
            said: last_lines(&String::from_utf8_lossy(&output.stderr)),
        });
    }
    layout.remember_password(&password)
}

/// What suits many foreign tables. `ALTER SYSTEM` beats it.
fn configuration(layout: &Layout) -> String {
    format!(
        "\
# Written by spcd at each start; change settings with ALTER SYSTEM.
max_connections = 100
# A transaction over thousands of foreign tables locks each of them.
max_locks_per_transaction = 512
# Foreign scans gain nothing from it, and plans over many tables lose seconds.
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
password_encryption = 'scram-sha-256'
unix_socket_permissions = 0700
hba_file = '{data}/pg_hba.conf'
ident_file = '{data}/pg_ident.conf'
# One file a weekday, so that a week is kept and the disk does not fill.
logging_collector = on
log_directory = 'log'
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on
log_rotation_age = 1d
log_rotation_size = 0
log_line_prefix = '%m [%p] %q%u@%d %a '
",
        data = layout.data.display().to_string().replace('\'', "''")
    )
}

impl Server {
    /// The server that runs on this data already, once it is ready. One that is stopping is waited
    /// for, and then there is none. What dead servers left behind is removed.
    pub async fn adopt(layout: &Layout, owner: &Owner) -> Option<Self> {
        let mut turns: u32 = 0;
        loop {
            turns += 1;
            if turns.is_multiple_of(500) {
                tracing::warn!(directory = %layout.shown(), "waiting for the private cluster's old processes to end");
            }
            let found = PidFile::read(&layout.data);
            if let Some(found) = &found
                && is_server(found.pid, &layout.data, owner.uid)
            {
                if found.status == "ready" {
                    tracing::info!(pid = found.pid, "the private cluster's server runs already");
                    let (pid, port) = (found.pid, found.port);
                    return Some(Self {
                        port,
                        pid,
                        data: layout.data.clone(),
                        uid: owner.uid,
                        child: None,
                        left: false,
                    });
                }
            } else if orphans(&layout.data, owner.uid).is_empty() {
                // Another process may have been given the number in the file; the server would then
                // refuse to start because it takes that one for a server.
                let _ = fs::remove_file(layout.data.join("postmaster.pid"));
                if let Ok(entries) = fs::read_dir(layout.socket_dir()) {
                    for entry in entries.flatten() {
                        let _ = fs::remove_file(entry.path());
                    }
                }
                return None;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Starts it and waits until it accepts sessions, however long recovery takes.
    pub async fn start(
        layout: &Layout,
        owner: &Owner,
        programs: &Programs,
    ) -> Result<Self, ClusterError> {
        layout.write("postgresql.conf", &configuration(layout), 0o644)?;
        let mut port = layout.port().unwrap_or_else(|| first_port(&layout.data));
        // Someone may take the port between the look and the start.
        for _ in 0..5 {
            let wanted = port;
            port = free_port(wanted).ok_or_else(|| ClusterError::Failed {
                what: "the private cluster needs a port on 127.0.0.1".to_owned(),
                said: format!("every port from {wanted} on is taken"),
            })?;
            if layout.port() != Some(port) {
                if layout.port().is_some() {
                    tracing::warn!(
                        old = wanted,
                        new = port,
                        "the private cluster's port is taken by another program; it moves"
                    );
                }
                layout.remember_port(port)?;
            }
            if let Some(server) = Self::try_start(layout, owner, programs, port).await? {
                return Ok(server);
            }
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                break;
            }
        }
        Err(ClusterError::Failed {
            what: format!(
                "the private cluster's server in {} does not start{}",
                layout.shown(),
                layout.disk()
            ),
            said: layout.startup_log(),
        })
    }

    async fn try_start(
        layout: &Layout,
        owner: &Owner,
        programs: &Programs,
        port: u16,
    ) -> Result<Option<Self>, ClusterError> {
        let log_path = layout.dir.join("startup.log");
        let _ = fs::remove_file(&log_path);
        let log = File::options()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(failed("write", &log_path))?;
        let sockets = layout
            .usable_socket_dir()
            .map_or_else(String::new, |dir| dir.display().to_string());
        let mut command = owner.command(&programs.bindir.join("postgres"));
        command
            .arg("-D")
            .arg(&layout.data)
            .arg("-p")
            .arg(port.to_string())
            .args(["-c", "listen_addresses=127.0.0.1", "-c"])
            .arg(format!(
                "unix_socket_directories={}",
                quote_list_entry(&sockets)
            ))
            .arg("-c")
            .arg(format!(
                "config_file={}",
                layout.dir.join("postgresql.conf").display()
            ))
            .stdout(log.try_clone().map_err(failed("write", &log_path))?)
            .stderr(log)
            // A Ctrl-C at the terminal is for the daemon, which then stops the server in order.
            .process_group(0);
        let child = command
            .spawn()
            .map_err(failed("start", &programs.bindir.join("postgres")))?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let mut server = Self {
            port,
            pid,
            data: layout.data.clone(),
            uid: owner.uid,
            child: Some(child),
            left: false,
        };
        let mut waited = Duration::ZERO;
        loop {
            if !server.is_alive() {
                return Ok(None);
            }
            match PidFile::read(&layout.data) {
                Some(found) if found.pid == pid && found.status == "ready" => {
                    return Ok(Some(server));
                }
                _ => {}
            }
            crate::service::alive();
            tokio::time::sleep(TICK).await;
            waited += TICK;
            if waited.as_secs() >= 10 {
                tracing::info!(
                    "the private cluster's server is still starting; after a power cut it recovers first"
                );
                waited = Duration::ZERO;
            }
        }
    }

    /// Whether its process runs.
    pub fn is_alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => is_server(self.pid, &self.data, self.uid),
        }
    }

    /// Ends its sessions and stops it; after `fast` at once.
    pub async fn stop(&mut self, fast: Duration) {
        self.signal(Signal::SIGINT);
        let started = tokio::time::Instant::now();
        let mut hurried = false;
        while self.is_alive() {
            tokio::time::sleep(TICK).await;
            if !hurried && started.elapsed() > fast {
                tracing::warn!(
                    "the private cluster's server takes long to stop; it will recover at the next start"
                );
                self.signal(Signal::SIGQUIT);
                hurried = true;
            }
        }
        self.left = true;
    }

    /// Leaves it running, for whoever uses it.
    pub fn leave(&mut self) {
        self.left = true;
    }

    fn signal(&mut self, signal: Signal) {
        if self.is_alive() {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Asks it to stop and does not wait, unless it was stopped or left.
impl Drop for Server {
    fn drop(&mut self) {
        if !self.left {
            self.signal(Signal::SIGINT);
        }
    }
}

impl PidFile {
    /// `None` if there is none, or it is not complete yet.
    fn read(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        Some(Self {
            pid: lines.first()?.trim().parse().ok().filter(|pid| *pid > 1)?,
            port: lines
                .get(3)
                .and_then(|line| line.trim().parse().ok())
                .unwrap_or(0),
            status: lines
                .get(7)
                .map(|line| line.trim().to_owned())
                .unwrap_or_default(),
        })
    }
}

/// Whether a process is a server on this data: it works in that directory, as that user. A number
/// in a file proves nothing, and signalling a stranger would be worse than not starting.
fn is_server(pid: i32, data: &Path, uid: u32) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let works_there = match (fs::read_link(process.join("cwd")), fs::canonicalize(data)) {
        (Ok(cwd), Ok(data)) => cwd == data,
        _ => false,
    };
    // Someone may have changed into it with a shell.
    let postgres =
        fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("postgres"));
    works_there && postgres && fs::metadata(process).is_ok_and(|found| found.uid() == uid)
}

/// Whether a server runs on the cluster's data.
pub fn runs(layout: &Layout) -> bool {
    match (PidFile::read(&layout.data), fs::metadata(&layout.data)) {
        (Some(found), Ok(data)) => is_server(found.pid, &layout.data, data.uid()),
        _ => false,
    }
}

/// Every process that still works on this data: those of a server that was killed end by
/// themselves soon, and until then their shared memory is in use.
fn orphans(data: &Path, uid: u32) -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_server(*pid, data, uid))
        .collect()
}

/// Where the search for a new cluster's port begins: elsewhere for each cluster, so that one that is
/// down now finds its port free later.
fn first_port(data: &Path) -> u16 {
    let sum = data
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0_u16, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add((*byte).into())
        });
    PORTS.start + sum % (PORTS.end - PORTS.start)
}

/// The first free port from `first` on.
fn free_port(first: u16) -> Option<u16> {
    (first..=first.saturating_add(500)).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// An entry of a list setting: quoted, because a path may hold commas and spaces.
fn quote_list_entry(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("\"{}\"", path.replace('"', "\"\""))
    }
}
