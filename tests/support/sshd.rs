//! An ssh server on the loopback, run by an unprivileged user with a host key of its own.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::postgres::free_port;
use super::run::{MARK, as_server_user, fresh_dir, give_to_server, mark, server_user_name};
use super::{eventually_now, finish};

/// Lets one user in with one key. Dropping it ends it and its connections.
pub struct Sshd {
    dir: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Sshd {
    /// Makes keys, and starts a server.
    pub fn start() -> Self {
        let dir = fresh_dir("sshd");
        for name in ["host", "client", "stranger"] {
            keygen(&dir.join(name));
        }
        give_to_server(&dir.join("host"));
        let key = fs::read_to_string(dir.join("client.pub")).unwrap();
        fs::write(dir.join("authorized_keys"), key).unwrap();
        let mut sshd = Self {
            dir,
            port: free_port(),
            server: None,
        };
        for _ in 0..20 {
            if sshd.try_start() {
                sshd.know("known_hosts", "host");
                return sshd;
            }
            sshd.port = free_port();
        }
        panic!("sshd does not start: {}", sshd.log());
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file that it or a client uses.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Writes a file that says that the server has the host key of that name.
    pub fn know(&self, file: &str, key: &str) {
        let key = fs::read_to_string(self.dir.join(format!("{key}.pub"))).unwrap();
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(self.dir.join(file), line).unwrap();
    }

    /// The block `ssh` of a connection, with these files.
    pub fn block_with(&self, key: &str, known_hosts: &str) -> String {
        format!(
            "  ssh {{\n    host = \"127.0.0.1\"\n    port = {}\n    user = \"{}\"\n    \
             key = \"{}\"\n    known_hosts = \"{}\"\n  }}\n",
            self.port,
            server_user_name(),
            self.path(key),
            self.path(known_hosts),
        )
    }

    /// One that works.
    pub fn block(&self) -> String {
        self.block_with("client", "known_hosts")
    }

    /// Cuts all connections; returns how many there were.
    pub fn cut(&self) -> usize {
        let server = self.server.as_ref().expect("a running server").id();
        // Each has a process that watches over another.
        let connections = children(server);
        let sessions = connections.iter().flat_map(|pid| children(*pid));
        for pid in sessions.chain(connections.iter().copied()) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
        connections.len()
    }

    /// Ends it and its connections.
    pub fn stop(&mut self) {
        if self.server.is_some() {
            self.cut();
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Starts it again, on the same port.
    pub fn start_again(&mut self) {
        eventually_now("sshd starts again", || self.try_start().then_some(()));
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn try_start(&mut self) -> bool {
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nPidFile none\n",
            self.port,
            self.path("host"),
            self.path("authorized_keys")
        );
        fs::write(self.dir.join("config"), config).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let (program, libraries) = program();
        let mut command = Command::new(program);
        command
            .args(["-D", "-e", "-f"])
            .arg(self.dir.join("config"));
        if let Some(libraries) = libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
            .env(MARK, mark())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut server = as_server_user(&mut command)
            .spawn()
            .expect("sshd (scripts/lib.sh: need_sshd)");
        let up = eventually_now("sshd starts or fails", || {
            if server.try_wait().unwrap().is_some() {
                return Some(false);
            }
            TcpStream::connect(("127.0.0.1", self.port))
                .ok()
                .map(|_| true)
        });
        if up {
            self.server = Some(server);
        }
        up
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of sshd\n{}", self.log());
        }
        self.stop();
    }
}

/// The processes that a process has started and that have not ended.
fn children(parent: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name in parentheses: the state, then the parent.
        let Some((before, after)) = stat.rsplit_once(") ") else {
            continue;
        };
        let mut after = after.split(' ');
        let ended = after.next() == Some("Z");
        if after.next() == Some(parent.to_string().as_str()) && !ended {
            children.push(before.split(' ').next().unwrap().parse().unwrap());
        }
    }
    children
}

fn keygen(path: &Path) {
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path);
    let made = finish(command);
    assert_eq!(made.code, 0, "{made:?}");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Debian's, or the one that scripts/lib.sh unpacked, with the place of its libraries.
fn program() -> (PathBuf, Option<PathBuf>) {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/sshd");
    match unpacked.canonicalize() {
        Ok(unpacked) => {
            let libraries = fs::read_dir(unpacked.join("usr/lib"))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.join("libwrap.so.0").exists());
            (unpacked.join("usr/sbin/sshd"), libraries)
        }
        Err(_) => ("/usr/sbin/sshd".into(), None),
    }
}
