//! The operating-system user that runs the server.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::User;

use super::ClusterError;
use crate::settings::Settings;

/// The user that runs the server.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Its name, for messages.
    pub name: String,
    /// User and group to change to, if this process runs as root, as which Postgres does not run.
    pub change_to: Option<(u32, u32)>,
    /// User id.
    pub uid: u32,
    home: PathBuf,
}

impl Owner {
    /// Returns the owner of the data if it exists, otherwise this process's user. For root, returns the
    /// package's user or that of Debian's Postgres.
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
                    "the user id {me} has no entry in /etc/passwd, and Postgres cannot create a cluster without one; add the entry, or give --database"
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

    /// Replaces this process by the same program, run as the user with its environment. Requires root.
    /// Returns only on failure.
    pub fn go_on_as(&self, settings: &Settings) -> ClusterError {
        let change = || -> std::io::Result<()> {
            let name = std::ffi::CString::new(self.name.as_str())?;
            let (uid, gid) = self.change_to.unwrap_or_default();
            nix::unistd::initgroups(&name, gid.into())?;
            nix::unistd::setgid(gid.into())?;
            Ok(nix::unistd::setuid(uid.into())?)
        };
        let error = match change() {
            Err(error) => error,
            Ok(()) => {
                let mut args = std::env::args_os();
                let mut command = Command::new("/proc/self/exe");
                command
                    .arg0(args.next().unwrap_or_else(|| "spcd".into()))
                    .args(args)
                    .env("HOME", &self.home)
                    .env("USER", &self.name)
                    .env("LOGNAME", &self.name)
                    // The default for root differs from the user's.
                    .env("SPCD_STATE_DIR", &settings.state_dir);
                // systemd's credentials exist while the service runs.
                let credentials = Path::new("/run/credentials/spcd.service");
                if settings.state_dir == Path::new("/var/lib/spcd")
                    && std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
                    && credentials.exists()
                {
                    command.env("CREDENTIALS_DIRECTORY", credentials);
                }
                if let Ok(dirs) = std::env::join_paths(&settings.config_dirs) {
                    command.env("SPCD_CONFIG", dirs);
                }
                if settings.file.exists() {
                    command.env("SPCD_SETTINGS", &settings.file);
                }
                command.exec()
            }
        };
        ClusterError::User(format!(
            "cannot run as the user {}, who owns the state directory: {error}",
            self.name
        ))
    }

    /// Returns the first directory above `path` to which the user has no access.
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

    /// Returns a command that runs as this user. Its environment keeps what wrappers may need, such as a
    /// cloud's credentials or a proxy, but no variable of spcd or libpq.
    pub fn command(&self, program: &Path) -> Command {
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

    /// Changes the owner of a file or directory to the server's user.
    pub fn give(&self, path: &Path) -> io::Result<()> {
        match self.change_to {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }
}
