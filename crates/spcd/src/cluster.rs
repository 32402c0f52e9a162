//! Creates, starts, adopts and stops the private Postgres cluster. It needs only a directory.
//!
//! One daemon owns it while it runs (`daemon.lock`). Commands use the running server or start it
//! temporarily. Each user holds `users.lock` shared, and the last one stops the server. Starting and
//! stopping hold `start.lock`.

mod address;
mod layout;
mod make;
mod owner;
mod programs;
mod server;

use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use spcd_core::secret::Secret;
use tokio_postgres::error::SqlState;

use crate::settings::Settings;
use address::endpoint_of;
pub use address::{endpoint, tcp_options, url, url_with_password};
use layout::Layout;
use owner::Owner;
use programs::Programs;
use server::Server;
use spcd_postgres::connection::ConnectError;

/// Superuser that `initdb` creates.
const USER: &str = "spcd";

/// Database that holds the schemas.
const DATABASE: &str = "spcd";

/// Maximum time of a fast shutdown, after which an immediate one follows. A service must end within
/// five seconds, and recovery from the write-ahead log loses nothing.
const FAST_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum time to wait for another process that starts or stops the server.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);

/// Interval of polling where there is no event to wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A private cluster whose server accepts sessions. [`stop`] it: dropping it only requests the
/// shutdown, and only if no other process uses the server.
///
/// [`stop`]: Running::stop
#[derive(Debug)]
pub struct Running {
    layout: Layout,
    owner: Owner,
    server: Server,
    /// Lock of the daemon; `None` for a command.
    daemon: Option<Lock>,
    /// Shared lock of each process that uses the server. Released first when stopping.
    using: Option<Lock>,
}

type Lock = Flock<std::fs::File>;

/// Why a process may stop the server.
enum StopRight {
    /// No other process uses the server, and the lock keeps others from starting to use it.
    LastUser { _lock: Lock },
    /// It is the daemon, which stops the server although commands use it.
    Daemon,
}

/// Why the private cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The server's programs are not installed, or not in the cluster's major version.
    #[error("{0}")]
    Programs(String),
    /// There is no unprivileged user for the server, or the user has no name.
    #[error("{0}")]
    User(String),
    /// Another daemon uses the cluster.
    #[error("another spcd{pid} uses the private cluster in {dir}; stop it, or give --state-dir another directory", pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})")))]
    Taken {
        /// The cluster's directory.
        dir: String,
        /// Process id of the daemon, if it is known.
        pid: Option<i32>,
    },
    /// A file or directory of the cluster cannot be used.
    #[error("cannot {what}")]
    Files {
        /// The operation and the path, such as `write /var/lib/…`.
        what: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// A program of Postgres failed.
    #[error("{what}: {output}")]
    Failed {
        /// The failed operation.
        what: String,
        /// The end of its output, and what is known about the cause.
        output: String,
    },
    /// The server rejects the password.
    #[error(
        "the private cluster in {dir} rejects the password in {passfile}; stop its server, remove that file, and start spcd: it sets a new one"
    )]
    Password {
        /// The cluster's directory.
        dir: String,
        /// Password file.
        passfile: String,
    },
    /// The server runs but accepts no session.
    #[error("the private cluster in {dir} accepts no session")]
    Session {
        /// The cluster's directory.
        dir: String,
        /// Error of the attempt to connect.
        #[source]
        source: ConnectError,
    },
}

impl ClusterError {
    /// Whether another attempt may succeed: the server may be starting or stopping.
    fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Session {
                source: ConnectError::Unreachable { .. },
                ..
            }
        )
    }
}

/// Creates the cluster if it does not exist, starts its server or adopts a running one, and locks out
/// other daemons.
///
/// # Errors
/// See [`ClusterError`].
pub async fn ensure(settings: &Settings) -> Result<Running, ClusterError> {
    let (layout, owner) = prepare(settings)?;
    let daemon = match layout.lock(layout::DAEMON, FlockArg::LockExclusiveNonblock)? {
        Some(lock) => lock,
        None => {
            return Err(ClusterError::Taken {
                dir: layout.shown(),
                pid: layout.daemon_pid(),
            });
        }
    };
    layout.remember_daemon(&daemon)?;
    open(layout, owner, Some(daemon)).await
}

/// If root uses the state directory of another user, such as that of the package's service, runs the
/// program again as that user. New files then belong to the user, root follows none of the user's
/// symlinks, and the hub accepts the user like the service. Must be called first.
///
/// # Errors
/// The user has no name, or the change of the user fails.
pub fn become_its_user(settings: &Settings) -> Result<(), ClusterError> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = std::fs::metadata(&settings.state_dir).map_or(0, |found| found.uid());
    if owner == 0 || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let user = Owner::find(&settings.state_dir)?;
    if user.uid != owner {
        return Err(ClusterError::User(format!(
            "{} belongs to the user id {owner}, which has no entry in /etc/passwd; add it, or give the directory to another user",
            settings.state_dir.display()
        )));
    }
    Err(user.go_on_as(settings))
}

/// Prerequisites of a private cluster on this machine.
#[derive(Debug)]
pub struct Machine {
    /// User of the server.
    pub user: Result<String, ClusterError>,
    /// Major version of the server's programs; for a new cluster, of those that would create it.
    pub programs: Result<u32, ClusterError>,
    /// Free space on the disk, in MB; `None` if the directory does not exist.
    pub free_mb: Option<u64>,
}

/// Inspects the machine. Changes nothing.
pub fn inspect(settings: &Settings) -> Machine {
    let layout = Layout::of(settings);
    Machine {
        user: Owner::find(&layout.data).map(|owner| owner.name),
        programs: Programs::find(&layout).map(|programs| programs.major),
        free_mb: layout::free_mb(&settings.state_dir),
    }
}

/// Whether the programs of any server are installed.
pub fn has_programs() -> bool {
    programs::are_installed()
}

/// Whether the private cluster exists.
pub fn exists(settings: &Settings) -> bool {
    Layout::of(settings).data.exists()
}

/// Waits until a daemon that has just been started has created the cluster, at most for `time`.
pub async fn wait_until_created(settings: &Settings, time: Duration) {
    let until = tokio::time::Instant::now() + time;
    while !exists(settings) && tokio::time::Instant::now() < until {
        tokio::time::sleep(POLL_INTERVAL * 5).await;
    }
}

/// Removes the cluster's files. Fails if another process uses them.
///
/// # Errors
/// See [`ClusterError`].
pub async fn remove(settings: &Settings) -> Result<(), ClusterError> {
    let (layout, owner) = prepare(settings)?;
    let taken = || ClusterError::Taken {
        dir: layout.shown(),
        pid: layout.daemon_pid(),
    };
    let exclusive = FlockArg::LockExclusiveNonblock;
    let _daemon = layout.lock(layout::DAEMON, exclusive)?.ok_or_else(taken)?;
    let _using = layout.lock(layout::USERS, exclusive)?.ok_or_else(taken)?;
    let _start = take(&layout, layout::START, exclusive, TURN_TIMEOUT).await?;
    if let Some(mut server) = Server::adopt(&layout, &owner).await {
        server.stop(FAST_SHUTDOWN_TIMEOUT).await;
    }
    std::fs::remove_dir_all(&layout.dir).map_err(layout::failed("remove", &layout.dir))
}

/// Waits for the shutdown that a cancelled [`ensure`] requested.
pub async fn wait_until_stopped(settings: &Settings) {
    let layout = Layout::of(settings);
    let deadline = tokio::time::Instant::now() + FAST_SHUTDOWN_TIMEOUT;
    while server::runs(&layout) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// For commands: uses the server of the running daemon, or starts one temporarily.
///
/// # Errors
/// See [`ClusterError`].
pub async fn join(settings: &Settings) -> Result<Running, ClusterError> {
    let (layout, owner) = prepare(settings)?;
    open(layout.left(), owner, None).await
}

/// Maximum number of failed starts in a row before the daemon gives up.
const MAX_FAILED_STARTS: u32 = 5;

impl Running {
    /// Restarts the server whenever it ends. Returns the error if that fails.
    pub async fn keep(&mut self) -> ClusterError {
        let mut failures = 0;
        loop {
            tokio::time::sleep(POLL_INTERVAL * 10).await;
            if self.server.is_alive() {
                failures = 0;
                continue;
            }
            tracing::error!("the private cluster's server has ended; restarting it");
            match start(&self.layout, &self.owner).await {
                Ok(server) if server.port == self.server.port => self.server = server,
                Ok(_) => {
                    return ClusterError::Failed {
                        what: format!(
                            "the private cluster in {} must move to another port",
                            self.layout.shown()
                        ),
                        output: "another program took its port while it was down; start spcd again"
                            .to_owned(),
                    };
                }
                // The cause that ended the server may end it again during the start.
                Err(error @ ClusterError::Failed { .. }) if failures < MAX_FAILED_STARTS => {
                    failures += 1;
                    tracing::error!(%error, "cannot start the private cluster; trying again");
                }
                Err(error) => return error,
            }
            // Limits CPU use and log output of a server that ends repeatedly.
            tokio::time::sleep(POLL_INTERVAL * 50).await;
        }
    }

    /// Whether the server runs.
    pub fn is_alive(&mut self) -> bool {
        self.server.is_alive()
    }

    /// Stops the server if this is the daemon, or if no other command uses it. Ends its sessions.
    pub async fn stop(mut self) {
        self.using = None;
        // Held until the server has ended: a command that starts in the meantime waits and restarts it.
        let right = self.stop_right();
        if right.is_some()
            && let Ok(Some(_start)) = take(
                &self.layout,
                layout::START,
                FlockArg::LockExclusiveNonblock,
                FAST_SHUTDOWN_TIMEOUT,
            )
            .await
        {
            self.server.stop(FAST_SHUTDOWN_TIMEOUT).await;
        }
        self.server.leave();
    }

    /// Returns the right to stop the server, if this process has it.
    fn stop_right(&self) -> Option<StopRight> {
        match self
            .layout
            .lock(layout::USERS, FlockArg::LockExclusiveNonblock)
        {
            Ok(Some(lock)) => Some(StopRight::LastUser { _lock: lock }),
            _ => self.daemon.is_some().then_some(StopRight::Daemon),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.using = None;
        if self.stop_right().is_none() {
            self.server.leave();
        }
    }
}

fn prepare(settings: &Settings) -> Result<(Layout, Owner), ClusterError> {
    let layout = Layout::of(settings);
    let owner = Owner::find(&layout.data)?;
    layout.make(&owner)?;
    Ok((layout, owner))
}

async fn open(layout: Layout, owner: Owner, daemon: Option<Lock>) -> Result<Running, ClusterError> {
    let using = take(
        &layout,
        layout::USERS,
        FlockArg::LockSharedNonblock,
        TURN_TIMEOUT,
    )
    .await?;
    let began = tokio::time::Instant::now();
    let server = loop {
        let mut server = start(&layout, &owner).await?;
        let error = match accepts_sessions(&layout, server.port).await {
            Ok(()) => break server,
            Err(error) => error,
        };
        if !error.is_transient() || began.elapsed() > TURN_TIMEOUT {
            // The last process that uses the server stops it.
            drop(Running {
                layout,
                owner,
                server,
                daemon,
                using,
            });
            return Err(error);
        }
        // The server has just ended, or was stopping when it was adopted.
        let error = format!("{:#}", anyhow::Error::from(error));
        tracing::warn!(error, "cannot use the private cluster; trying again");
        server.leave();
        tokio::time::sleep(POLL_INTERVAL * 5).await;
    };
    Ok(Running {
        layout,
        owner,
        server,
        daemon,
        using,
    })
}

/// Returns the running server, or starts it. A lock admits one process at a time.
async fn start(layout: &Layout, owner: &Owner) -> Result<Server, ClusterError> {
    let Some(_start) = take(
        layout,
        layout::START,
        FlockArg::LockExclusiveNonblock,
        TURN_TIMEOUT,
    )
    .await?
    else {
        return Err(ClusterError::Taken {
            dir: layout.shown(),
            pid: layout.daemon_pid(),
        });
    };
    if let Some(server) = Server::adopt(layout, owner).await {
        return Ok(server);
    }
    let programs = Programs::find(layout)?;
    if !layout.data.exists() {
        tracing::info!(directory = %layout.shown(), version = programs.major, "creating a private cluster");
        make::init(layout, owner, &programs).await?;
    } else if !layout.passfile().exists() {
        tracing::warn!(file = %layout.passfile().display(), "the private cluster's password file is missing; setting a new password");
        make::renew_password(layout, owner, &programs).await?;
    }
    let server = Server::start(layout, owner, &programs).await?;
    tracing::info!(port = server.port, directory = %layout.shown(), "started the private cluster's server");
    Ok(server)
}

/// Acquires a lock; `None` if another process still holds it after `time`.
async fn take(
    layout: &Layout,
    name: &str,
    how: FlockArg,
    time: Duration,
) -> Result<Option<Lock>, ClusterError> {
    let start = tokio::time::Instant::now();
    let mut is_logged = false;
    loop {
        if let Some(lock) = layout.lock(name, how)? {
            return Ok(Some(lock));
        }
        if start.elapsed() >= time {
            return Ok(None);
        }
        if start.elapsed().as_secs() >= 2 && !is_logged {
            tracing::info!(lock = name, directory = %layout.shown(), "waiting for another spcd that starts or stops the private cluster");
            is_logged = true;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Checks that the server accepts sessions. Creates or renames the database if it does not exist.
async fn accepts_sessions(layout: &Layout, port: u16) -> Result<(), ClusterError> {
    let endpoint = endpoint_of(layout, port)?;
    let failed = |source| ClusterError::Session {
        dir: layout.shown(),
        source,
    };
    match endpoint.connect("start").await {
        Ok(_) => return layout.remember_database(),
        Err(error) if error.is_missing_database() => {}
        Err(error) if error.is_wrong_password() => {
            return Err(ClusterError::Password {
                dir: layout.shown(),
                passfile: layout.passfile().display().to_string(),
            });
        }
        Err(error) => return Err(failed(error)),
    }
    let session = endpoint
        .clone()
        .with_database("postgres")
        .connect("start")
        .await
        .map_err(failed)?;
    let (name, other) = (layout.database(), layout.other_database());
    // Renaming keeps the objects of other roles.
    let found = session
        .client
        .query_opt(
            "SELECT FROM pg_catalog.pg_database WHERE datname = $1",
            &[&other],
        )
        .await;
    let sql = match found {
        Ok(Some(_)) => format!("ALTER DATABASE {other} RENAME TO {name}"),
        _ => format!("CREATE DATABASE {name}"),
    };
    match session.client.batch_execute(&sql).await {
        Ok(()) => layout.remember_database(),
        // Another command was faster.
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_DATABASE) => Ok(()),
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Ok(()),
        Err(error) if error.code().is_none_or(is_restart) => {
            Err(failed(ConnectError::Unreachable {
                target: layout.shown(),
                source: error.into(),
            }))
        }
        Err(error) => Err(ClusterError::Failed {
            what: format!("cannot create the database {name} in {}", layout.shown()),
            output: error
                .as_db_error()
                .map_or_else(|| error.to_string(), ToString::to_string),
        }),
    }
}

/// Whether the server is stopping, was killed, or is still starting.
fn is_restart(code: &SqlState) -> bool {
    [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
    ]
    .contains(code)
}

/// Returns a random password: 192 bits as hexadecimal digits, which never need quoting.
fn new_password() -> std::io::Result<Secret> {
    use std::io::Read;
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Secret::new(
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>(),
    ))
}
