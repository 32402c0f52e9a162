//! The cluster's files. If root created them, all but the data and the socket belong to root: the
//! server's user must not be able to redirect root's writes.

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

/// Lock file that a daemon holds while it runs.
pub const DAEMON: &str = "daemon.lock";
/// Lock file that each process that uses the server holds shared.
pub const USERS: &str = "users.lock";
/// Lock file that is held while the server is started or stopped.
pub const START: &str = "start.lock";

/// Length of a socket's path after the directory. The whole path may have 107 bytes.
const SOCKET_NAME: usize = "/.s.PGSQL.65535.lock".len();

/// Number of bytes read from the end of a log: they contain the last start.
const LOG_TAIL: u64 = 64 << 10;

/// Paths of a private cluster, and the settings that determine them.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Directory of all files.
    pub dir: PathBuf,
    /// Data directory.
    pub data: PathBuf,
    /// Whether it uses the port and database that Steampipe's clients expect.
    steampipe: bool,
    /// Whether it is the gateway's.
    pub is_gateway: bool,
    /// Address at which it also listens, for a hub on another machine.
    pub listen: Option<GatewayListen>,
}

/// Port and database that Steampipe's clients expect.
const STEAMPIPE: (u16, &str) = (9193, "steampipe");

impl Layout {
    /// Returns the layout that the settings describe.
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

    /// Returns the layout as the last daemon left it: a command must not rename the database.
    pub fn left(mut self) -> Self {
        if let Some(name) = self.text("database") {
            self.steampipe = name == STEAMPIPE.1;
        }
        self
    }

    /// Returns the name of the database.
    pub fn database(&self) -> &'static str {
        if self.steampipe {
            STEAMPIPE.1
        } else {
            super::DATABASE
        }
    }

    /// Returns its name with the opposite setting of `compat`.
    pub fn other_database(&self) -> &'static str {
        if self.steampipe {
            super::DATABASE
        } else {
            STEAMPIPE.1
        }
    }

    /// Records the database's name, for commands that run with other settings.
    pub fn remember_database(&self) -> Result<(), ClusterError> {
        self.write("database", &format!("{}\n", self.database()), 0o644)
    }

    fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir.join(name)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Returns the directory for messages.
    pub fn shown(&self) -> String {
        self.dir.display().to_string()
    }

    /// Creates the directories.
    pub fn make(&self, owner: &Owner) -> Result<(), ClusterError> {
        let builder = |mode| {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(mode);
            builder
        };
        // The server's user and clients of the socket need access.
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
                "the user {} that runs the private cluster has no access to {}; give --state-dir a directory that it can reach, or chmod o+x {}",
                owner.name,
                closed.display(),
                closed.display()
            )));
        }
        Ok(())
    }

    /// Acquires a lock; `None` if another process holds it.
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

    /// Writes this process's id into its lock file, for the error message of another daemon.
    pub fn remember_daemon(&self, lock: &Lock) -> Result<(), ClusterError> {
        let mut file: &File = lock;
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("write", &self.dir.join(DAEMON)))
    }

    /// Returns the process id of the daemon that holds the lock.
    pub fn daemon_pid(&self) -> Option<i32> {
        fs::read_to_string(self.dir.join(DAEMON))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Returns the recorded port.
    pub fn port(&self) -> Option<u16> {
        self.text("port")?.parse().ok()
    }

    /// Returns the port to use; `None` if any will do.
    pub fn preferred_port(&self) -> Option<u16> {
        match &self.listen {
            _ if self.steampipe => Some(STEAMPIPE.0),
            Some(listen) => Some(listen.address.port()),
            None => self.port(),
        }
    }

    /// Records the port for the next start: clients are configured with it.
    pub fn remember_port(&self, port: u16) -> Result<(), ClusterError> {
        self.write("port", &format!("{port}\n"), 0o644)
    }

    /// Returns the directory of the socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// Returns the directory of the socket; `None` if its path is too long for one.
    pub fn usable_socket_dir(&self) -> Option<PathBuf> {
        let dir = self.socket_dir();
        (dir.as_os_str().len() + SOCKET_NAME <= 107).then_some(dir)
    }

    /// Returns the path of the password file, in libpq's format. Only its owner can read it.
    pub fn passfile(&self) -> PathBuf {
        self.dir.join("passfile")
    }

    /// Returns the paths of the certificate and its key that the server's user can read.
    pub fn tls_files(&self) -> [PathBuf; 2] {
        ["server.crt", "server.key"].map(|name| self.dir.join(name))
    }

    /// Returns the path of `pg_hba.conf`.
    pub fn hba_file(&self) -> PathBuf {
        match self.listen {
            Some(_) => self.dir.join("pg_hba.conf"),
            None => self.data.join("pg_hba.conf"),
        }
    }

    /// Reads the superuser's password.
    pub fn password(&self) -> Result<Secret, ClusterError> {
        let path = self.passfile();
        let what =
            "read the password (the next start after the server is stopped sets a new one) in";
        let text = fs::read_to_string(&path).map_err(failed(what, &path))?;
        let password = text
            .lines()
            .next()
            .and_then(|line| line.rsplit(':').next())
            .unwrap_or_default();
        Ok(Secret::new(password))
    }

    /// Records the superuser's password.
    pub fn remember_password(&self, password: &Secret) -> Result<(), ClusterError> {
        self.write(
            "passfile",
            &format!("*:*:*:{}:{}\n", super::USER, password.expose()),
            0o600,
        )
    }

    /// Writes a file atomically and durably.
    pub fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), ClusterError> {
        let path = self.dir.join(name);
        // Unchanged: no write, which could fail on a full disk.
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        // The name is unique: two commands may write the file at the same time.
        let new = self.dir.join(format!("{name}.{}.new", std::process::id()));
        let write = || -> io::Result<()> {
            let _ = fs::remove_file(&new);
            let mut file = File::options()
                .create_new(true)
                .write(true)
                .mode(mode)
                .open(&new)?;
            // Overrides the umask: the server's user must be able to read its configuration.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// Returns the last lines that the server logged during its last start.
    pub fn startup_log(&self) -> String {
        let startup = self.dir.join("startup.log");
        let mut text = tail(&startup).unwrap_or_default();
        // Once the server has opened its own log, it writes there: that file is then newer.
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

    /// Returns the addition to an error message if the disk is nearly full.
    pub fn disk(&self) -> String {
        match free_mb(&self.dir) {
            Some(free) if free < 100 => {
                format!(" (only {free} MB are free there: make room and try again)")
            }
            _ => String::new(),
        }
    }
}

/// Returns the end of a log. Follows no symlink: another user can write to the directory.
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

/// Returns the free space for this user on a path's disk, in MB.
pub fn free_mb(path: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    let bytes = u128::from(found.blocks_available()) * u128::from(found.fragment_size());
    u64::try_from(bytes >> 20).ok()
}

/// Returns a function that makes an error about a path.
pub fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> ClusterError + 'a {
    move |source| ClusterError::Files {
        what: format!("{what} {}", path.display()),
        source,
    }
}

/// Returns the last lines of a program's output.
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
