//! The private Postgres cluster: created, started, adopted and stopped. It needs only a directory.
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

/// The superuser that `initdb` makes.
const USER: &str = "spcd";

/// The database that holds the schemas.
const DATABASE: &str = "spcd";

/// Time for a fast shutdown, after which an immediate one follows. A service must
/// end within five seconds, and recovery from the write-ahead log loses nothing.
const FAST_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Time that a daemon waits for another process that starts or stops the server.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);

/// Interval of polling for something that has no event.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A private cluster whose server accepts sessions, for as long as this is held. [`stop`] it:
/// dropping it only asks the server to stop, if no one else uses it.
///
/// [`stop`]: Running::stop
#[derive(Debug)]
pub struct Running {
    layout: Layout,
    owner: Owner,
    server: Server,
    /// Held by the daemon only.
    daemon: Option<Lock>,
    /// Shared; given up first of all when stopping.
    using: Option<Lock>,
}

type Lock = Flock<std::fs::File>;

/// Why there is no private cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No server programs, or not those of the cluster's major version.
    #[error("{0}")]
    Programs(String),
    /// As root, and no unprivileged user to change to; or a user without a name.
    #[error("{0}")]
    User(String),
    /// Another daemon has it.
    #[error("another spcd{pid} has the private cluster in {dir}; stop it, or give --state-dir another directory", pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})")))]
    Taken {
        /// The cluster's directory.
        dir: String,
        /// The daemon, if it is known.
        pid: Option<i32>,
    },
    /// A file or directory of the cluster cannot be used.
    #[error("cannot {what}")]
    Files {
        /// `write /var/lib/…`
        what: String,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
    /// A program of Postgres failed; its last words, and what is known about why.
    #[error("{what}: {said}")]
    Failed {
        /// The failed operation.
        what: String,
        /// The end of what it printed.
        said: String,
    },
    /// The server runs and rejects the password.
    #[error(
        "the private cluster in {dir} rejects the password in {passfile}; stop its server, remove that file, and start spcd: it sets a new one"
    )]
    Password {
        /// The cluster's directory.
        dir: String,
        /// The file.
        passfile: String,
    },
    /// The server runs and refuses sessions.
    #[error("the private cluster in {dir} accepts no session")]
    Session {
        /// The cluster's directory.
        dir: String,
        /// Why.
        #[source]
        source: ConnectError,
    },
}

impl ClusterError {
    /// Whether a server that is starting or ending may be the reason.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Session {
                source: ConnectError::Unreachable { .. },
                ..
            }
        )
    }
}

/// Creates the cluster if it does not exist, starts its server or takes over a running one, and keeps
/// other daemons out.
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

/// If root uses the state directory of another user (as that of the package's service), changes to that
/// user. All files then stay the user's, root follows none of the user's symlinks, and the hub accepts
/// the user as it accepts the service. Call it first.
///
/// # Errors
/// If the user has no name, or the change is refused.
pub fn become_its_user(settings: &Settings) -> Result<(), ClusterError> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = std::fs::metadata(&settings.state_dir).map_or(0, |found| found.uid());
    if owner == 0 || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let user = Owner::find(&settings.state_dir)?;
    if user.uid != owner {
        return Err(ClusterError::User(format!(
            "{} belongs to the user with the number {owner}, who has no entry in /etc/passwd; add it, or give the directory to another user",
            settings.state_dir.display()
        )));
    }
    Err(user.go_on_as(settings))
}

/// What a private cluster needs from this machine.
#[derive(Debug)]
pub struct Machine {
    /// The user that its server runs as.
    pub user: Result<String, ClusterError>,
    /// Major version of its programs, or of those with which it would be created.
    pub programs: Result<u32, ClusterError>,
    /// Free space on its disk, in MB; `None` without its directory.
    pub free_mb: Option<u64>,
}

/// Looks at the machine, and changes nothing.
pub fn inspect(settings: &Settings) -> Machine {
    let layout = Layout::of(settings);
    Machine {
        user: Owner::find(&layout.data).map(|owner| owner.name),
        programs: Programs::find(&layout).map(|programs| programs.major),
        free_mb: layout::free_mb(&settings.state_dir),
    }
}

/// Whether the programs of a server are installed.
pub fn has_programs() -> bool {
    programs::are_installed()
}

/// Whether there is a private cluster.
pub fn is_made(settings: &Settings) -> bool {
    Layout::of(settings).data.exists()
}

/// Waits until there is a private cluster, which a daemon that has just been started makes, or until
/// the time is up.
pub async fn until_made(settings: &Settings, time: Duration) {
    let until = tokio::time::Instant::now() + time;
    while !is_made(settings) && tokio::time::Instant::now() < until {
        tokio::time::sleep(POLL_INTERVAL * 5).await;
    }
}

/// Removes the cluster's files, unless another process uses them.
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

/// Waits for a server that was asked to stop when [`ensure`] was given up half-way.
pub async fn gone(settings: &Settings) {
    let layout = Layout::of(settings);
    let deadline = tokio::time::Instant::now() + FAST_SHUTDOWN_TIMEOUT;
    while server::runs(&layout) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// For commands: uses the cluster of the running daemon, or starts the server for the time being.
///
/// # Errors
/// See [`ClusterError`].
pub async fn join(settings: &Settings) -> Result<Running, ClusterError> {
    let (layout, owner) = prepare(settings)?;
    open(layout.left(), owner, None).await
}

/// Maximum number of failed starts in a row before the daemon gives up.
const MOST_FAILURES: u32 = 5;

impl Running {
    /// Restarts the server whenever it ends. Returns only if that fails.
    pub async fn keep(&mut self) -> ClusterError {
        let mut failures = 0;
        loop {
            tokio::time::sleep(POLL_INTERVAL * 10).await;
            if self.server.is_alive() {
                failures = 0;
                continue;
            }
            tracing::error!("the private cluster's server is gone; starting it again");
            match start(&self.layout, &self.owner).await {
                Ok(server) if server.port == self.server.port => self.server = server,
                Ok(_) => {
                    return ClusterError::Failed {
                        what: format!(
                            "the private cluster in {} has to move to another port",
                            self.layout.shown()
                        ),
                        said: "another program took its port while it was down; start spcd again"
                            .to_owned(),
                    };
                }
                // The cause of its end may have ended it again during the start.
                Err(error @ ClusterError::Failed { .. }) if failures < MOST_FAILURES => {
                    failures += 1;
                    tracing::error!(%error, "cannot start the private cluster; trying again");
                }
                Err(error) => return error,
            }
            // A server that falls over again and again must not fill the processor and the log.
            tokio::time::sleep(POLL_INTERVAL * 50).await;
        }
    }

    /// Whether the server runs.
    pub fn is_alive(&mut self) -> bool {
        self.server.is_alive()
    }

    /// Stops the server if this is the daemon's, or if no other command uses it. Sessions are ended.
    pub async fn stop(mut self) {
        self.using = None;
        // Held until the server has ended: a command that starts meanwhile waits, and restarts it.
        let last = self.last();
        if last.is_some()
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

    /// Whether the server is this process's to stop, with what keeps others away meanwhile.
    fn last(&self) -> Option<Option<Lock>> {
        match self
            .layout
            .lock(layout::USERS, FlockArg::LockExclusiveNonblock)
        {
            Ok(Some(lock)) => Some(Some(lock)),
            _ => self.daemon.is_some().then_some(None),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.using = None;
        if self.last().is_none() {
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
        if !error.may_pass() || began.elapsed() > TURN_TIMEOUT {
            // Other processes may use it: the last one stops it.
            drop(Running {
                layout,
                owner,
                server,
                daemon,
                using,
            });
            return Err(error);
        }
        // It has just ended, or an adopted server was ending: check again.
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

/// Returns the running server, or starts one, one process at a time.
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
        tracing::info!(directory = %layout.shown(), version = programs.major, "making a private cluster");
        make::init(layout, owner, &programs).await?;
    } else if !layout.passfile().exists() {
        tracing::warn!(file = %layout.passfile().display(), "the private cluster's password file is gone; setting a new password");
        make::renew_password(layout, owner, &programs).await?;
    }
    let server = Server::start(layout, owner, &programs).await?;
    tracing::info!(port = server.port, directory = %layout.shown(), "the private cluster's server is up");
    Ok(server)
}

/// Tries for a lock until the time is up.
async fn take(
    layout: &Layout,
    name: &str,
    how: FlockArg,
    time: Duration,
) -> Result<Option<Lock>, ClusterError> {
    let start = tokio::time::Instant::now();
    let mut said = false;
    loop {
        if let Some(lock) = layout.lock(name, how)? {
            return Ok(Some(lock));
        }
        if start.elapsed() >= time {
            return Ok(None);
        }
        if start.elapsed().as_secs() >= 2 && !said {
            tracing::info!(lock = name, directory = %layout.shown(), "waiting for another spcd that starts or stops the private cluster");
            said = true;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Opens a session, in the database that is made for it if it is not there yet.
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
    // Objects of other roles in it move along.
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
        Err(error) if error.code().is_none_or(says_goodbye) => {
            Err(failed(ConnectError::Unreachable {
                target: layout.shown(),
                source: error.into(),
            }))
        }
        Err(error) => Err(ClusterError::Failed {
            what: format!("cannot make the database {name} in {}", layout.shown()),
            said: error
                .as_db_error()
                .map_or_else(|| error.to_string(), ToString::to_string),
        }),
    }
}

/// The server is ending, was killed, or is still starting.
fn says_goodbye(code: &SqlState) -> bool {
    [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
    ]
    .contains(code)
}

/// A random password: 192 bits in letters that need no quoting anywhere.
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
