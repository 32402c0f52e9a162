//! The cluster's files. As root, all of them but the data and the socket are root's own: the
//! server's user must not be able to lead root astray.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};
use spcd_core::config::{Compat, GatewayListen};
use spcd_core::secret::Secret;

use super::owner::Owner;
use super::{ClusterError, Lock};
use crate::settings::Settings;

/// Held by a daemon as long as it runs.
pub const DAEMON: &str = "daemon.lock";
/// Lock file that each process that uses the server holds shared.
pub const USERS: &str = "users.lock";
/// Held while the server is started or stopped.
pub const START: &str = "start.lock";

/// A Unix socket's path may have 107 bytes; this much comes after the directory.
const SOCKET_NAME: usize = "/.s.PGSQL.65535.lock".len();

/// How much of a log's end is read: the last start is in it.
const LOG_TAIL: u64 = 64 << 10;

/// Where everything of one private cluster is.
#[derive(Debug, Clone)]
pub struct Layout {
    /// All of it.
    pub dir: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// Where clients of Steampipe look for it.
    steampipe: bool,
    /// Whether it is the gateway's.
    pub is_gateway: bool,
    /// Where it also listens, for a hub on another machine.
    pub listen: Option<GatewayListen>,
}

/// Port and database that clients of Steampipe look for.
const STEAMPIPE: (u16, &str) = (9193, "steampipe");

impl Layout {
    /// Of the cluster in the state directory, as it is to be.
    pub fn of(settings: &Settings) -> Self {
        let dir = settings.state_dir.join("cluster");
        Self {
            data: dir.join("data"),
            dir,
            steampipe: settings.compat == Compat::Steampipe,
            is_gateway: settings.is_gateway,
            listen: (settings.gateway_listen.clone()).filter(|_| settings.is_gateway),
        }
    }

    /// The same as it was left: only a daemon moves what others use.
    pub fn left(mut self) -> Self {
        if let Some(name) = self.text("database") {
            self.steampipe = name == STEAMPIPE.1;
        }
        self
    }

    /// The database that holds the schemas.
    pub fn database(&self) -> &'static str {
        if self.steampipe {
            STEAMPIPE.1
        } else {
            super::DATABASE
        }
    }

    /// What it is called where the settings are the others.
    pub fn other_database(&self) -> &'static str {
        if self.steampipe {
            super::DATABASE
        } else {
            STEAMPIPE.1
        }
    }

    /// Keeps the database's name, for commands that are run with other settings.
    pub fn remember_database(&self) -> Result<(), ClusterError> {
        self.write("database", &format!("{}\n", self.database()), 0o644)
    }

    fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir.join(name)).ok()?;
        Some(text.trim().to_owned())
    }

    /// For messages.
    pub fn shown(&self) -> String {
        self.dir.display().to_string()
    }

    /// Makes the directories.
    pub fn make(&self, owner: &Owner) -> Result<(), ClusterError> {
        let builder = |mode| {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(mode);
            builder
        };
        // The server's user and clients of its socket pass through it.
        builder(0o755)
            .create(&self.dir)
            .map_err(failed("create the directory", &self.dir))?;
        let socket = self.socket_dir();
        if !socket.exists() {
            builder(0o700)
                .create(&socket)
                .map_err(failed("create the directory", &socket))?;
            owner
                .give(&socket)
                .map_err(failed("give to the server's user", &socket))?;
        }
        if let Some(closed) = owner.first_closed(&self.dir) {
            return Err(ClusterError::User(format!(
                "the user {} that runs the private cluster may not pass through {}; give --state-dir a directory that it can reach, or chmod o+x {}",
                owner.name,
                closed.display(),
                closed.display()
            )));
        }
        Ok(())
    }

    /// The lock, or `None` if someone else has it.
    pub fn lock(&self, name: &str, how: FlockArg) -> Result<Option<Lock>, ClusterError> {
        let path = self.dir.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        match Flock::lock(file, how) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(failed("lock", &path)(error.into())),
        }
    }

    /// Writes this process into its lock, for the message that another daemon gives.
    pub fn remember_daemon(&self, lock: &Lock) -> Result<(), ClusterError> {
        let mut file: &File = lock;
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("write", &self.dir.join(DAEMON)))
    }

    /// The daemon that has the cluster.
    pub fn daemon_pid(&self) -> Option<i32> {
        fs::read_to_string(self.dir.join(DAEMON))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// The port that was chosen.
    pub fn port(&self) -> Option<u16> {
        self.text("port")?.parse().ok()
    }

    /// The port that it is to have; `None`: any.
    pub fn preferred_port(&self) -> Option<u16> {
        match &self.listen {
            _ if self.steampipe => Some(STEAMPIPE.0),
            Some(listen) => Some(listen.address.port()),
            None => self.port(),
        }
    }

    /// Keeps a port for the next start, so that the configuration of clients stays valid.
    pub fn remember_port(&self, port: u16) -> Result<(), ClusterError> {
        self.write("port", &format!("{port}\n"), 0o644)
    }

    /// Where the socket is.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// `None` if its path is too long for a socket.
    pub fn usable_socket_dir(&self) -> Option<PathBuf> {
        let dir = self.socket_dir();
        (dir.as_os_str().len() + SOCKET_NAME <= 107).then_some(dir)
    }

    /// In the form that libpq reads. Only its owner may.
    pub fn passfile(&self) -> PathBuf {
        self.dir.join("passfile")
    }

    /// The copies of the certificate and its key that the server's user can read.
    pub fn tls_files(&self) -> [PathBuf; 2] {
        ["server.crt", "server.key"].map(|name| self.dir.join(name))
    }

    /// The file that says who may connect.
    pub fn hba_file(&self) -> PathBuf {
        match self.listen {
            Some(_) => self.dir.join("pg_hba.conf"),
            None => self.data.join("pg_hba.conf"),
        }
    }

    /// The superuser's password.
    pub fn password(&self) -> Result<Secret, ClusterError> {
        let path = self.passfile();
        let what = "read the password (stop the server, and the next start sets a new one) in";
        let text = fs::read_to_string(&path).map_err(failed(what, &path))?;
        let password = text
            .lines()
            .next()
            .and_then(|line| line.rsplit(':').next())
            .unwrap_or_default();
        Ok(Secret::new(password))
    }

    /// Keeps the superuser's password.
    pub fn remember_password(&self, password: &Secret) -> Result<(), ClusterError> {
        self.write(
            "passfile",
            &format!("*:*:*:{}:{}\n", super::USER, password.expose()),
            0o600,
        )
    }

    /// Writes a file atomically, also across a power cut.
    pub fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), ClusterError> {
        let path = self.dir.join(name);
        // Nothing to write: also where the disk is full.
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        // A name of its own: two commands may write the same at the same time.
        let new = self.dir.join(format!("{name}.{}.new", std::process::id()));
        let write = || -> io::Result<()> {
            let _ = fs::remove_file(&new);
            let mut file = File::options()
                .create_new(true)
                .write(true)
                .mode(mode)
                .open(&new)?;
            // Whatever the umask is: the server's user must be able to read its configuration.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// The last lines of what the server said when it was started last.
    pub fn startup_log(&self) -> String {
        let startup = self.dir.join("startup.log");
        let mut text = tail(&startup).unwrap_or_default();
        // Once its own log is open, what it says is there: then that one is the newer.
        let changed = |path: &Path| fs::metadata(path)?.modified();
        let newest = fs::read_dir(self.data.join("log"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((changed(&entry.path()).ok()?, entry.path())))
            .max()
            .filter(|(when, _)| changed(&startup).is_ok_and(|startup| *when >= startup));
        if let Some(log) = newest.and_then(|(_, path)| tail(&path)) {
            let start = log.rfind("starting PostgreSQL");
            text.push_str(&log[start.unwrap_or_default()..]);
        }
        last_lines(&text)
    }

    /// What to add to a failure whose reason may be a full disk.
    pub fn disk(&self) -> String {
        match free_mb(&self.dir) {
            Some(free) if free < 100 => {
                format!(" (only {free} MB are free there: make room and try again)")
            }
            _ => String::new(),
        }
    }
}

/// The end of a log that another user may write: no link is followed.
fn tail(path: &Path) -> Option<String> {
    let mut file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
        .ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LOG_TAIL)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is free for this user on a path's disk, in MB.
pub fn free_mb(path: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    let bytes = u128::from(found.blocks_available()) * u128::from(found.fragment_size());
    u64::try_from(bytes >> 20).ok()
}

/// An error about one path.
pub fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> ClusterError + 'a {
    move |source| ClusterError::Files {
        what: format!("{what} {}", path.display()),
        source,
    }
}

/// The end of a program's output, on one line each.
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines
        .get(lines.len().saturating_sub(6)..)
        .unwrap_or_default()
        .join("\n")
}
