//! The private Postgres cluster: made, started, adopted and stopped without being asked for more
//! than a directory.
//!
//! One daemon has it for as long as it runs (`daemon.lock`). Commands use the running server, or
//! start it for themselves; whoever uses it holds `users.lock` shared, and the last one to leave
//! stops it. Starting and stopping hold `start.lock`.

mod layout;
mod make;
mod owner;
mod programs;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use spcd_core::secret::Secret;
use tokio_postgres::error::SqlState;

use crate::hub::connect::{ConnectError, Endpoint};
use crate::settings::Settings;
use layout::Layout;
use owner::Owner;
use programs::Programs;
use server::Server;

/// The superuser that `initdb` makes.
const USER: &str = "spcd";

/// The database that holds the schemas.
const DATABASE: &str = "spcd";

/// How long a fast shutdown may take before it becomes an immediate one: all in all a service is to
/// end within five seconds, and nothing is lost by recovery from the log.
const FAST: Duration = Duration::from_secs(3);

/// How long a daemon waits for commands that start or stop the server.
const TURN: Duration = Duration::from_secs(60);

/// Between two looks at something that has no event.
const TICK: Duration = Duration::from_millis(20);

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
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A program of Postgres failed; its last words, and what is known about why.
    #[error("{what}: {said}")]
    Failed {
        /// What was tried.
        what: String,
        /// The end of what it printed.
        said: String,
    },
    /// The server is there and no session can be had.
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

/// Makes the cluster if there is none, starts its server or takes over a running one, and keeps
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

/// As root on the state directory of somebody else (the package's, whose service runs as a user of
/// its own): goes on as that user, so that all files stay theirs, no link of theirs leads root
/// astray, and the hub knows them as it knows the service. To be called before anything was done.
///
/// # Errors
/// When the user has no name, or cannot be changed to.
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

/// What a private cluster needs of this machine.
#[derive(Debug)]
pub struct Machine {
    /// Whom its server runs as.
    pub user: Result<String, ClusterError>,
    /// The major version of the programs that it has, or would be made with.
    pub programs: Result<u32, ClusterError>,
    /// What is free on its disk, in MB; `None` where its directory is not there yet.
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

/// Whether there is a private cluster.
pub fn is_made(settings: &Settings) -> bool {
    Layout::of(settings).data.exists()
}

/// Waits until there is a private cluster, which a daemon that has just been started makes, or until
/// the time is up.
pub async fn until_made(settings: &Settings, time: Duration) {
    let until = tokio::time::Instant::now() + time;
    while !is_made(settings) && tokio::time::Instant::now() < until {
        tokio::time::sleep(TICK * 5).await;
    }
}

/// Removes the cluster's files, unless somebody uses them.
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
    let _start = take(&layout, layout::START, exclusive, TURN).await?;
    if let Some(mut server) = Server::adopt(&layout, &owner).await {
        server.stop(FAST).await;
    }
    std::fs::remove_dir_all(&layout.dir).map_err(layout::failed("remove", &layout.dir))
}

/// Waits for a server that was asked to stop when [`ensure`] was given up half-way.
pub async fn gone(settings: &Settings) {
    let layout = Layout::of(settings);
    let deadline = tokio::time::Instant::now() + FAST;
    while server::runs(&layout) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(TICK).await;
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

/// Where sessions with the running server are had.
///
/// # Errors
/// When there is no cluster yet.
pub fn endpoint(settings: &Settings) -> Result<Endpoint, ClusterError> {
    let layout = Layout::of(settings).left();
    endpoint_of(&layout, port(&layout)?)
}

/// The hub's URL for other programs, without starting anything. The password is in the file that
/// it names.
///
/// # Errors
/// When there is no cluster yet.
pub fn url(settings: &Settings) -> Result<String, ClusterError> {
    let layout = Layout::of(settings).left();
    let port = port(&layout)?;
    let passfile = percent_encode(&layout.passfile().display().to_string());
    Ok(format!(
        "postgresql://{USER}@127.0.0.1:{port}/{}?passfile={passfile}",
        layout.database()
    ))
}

/// Like [`url`], with the password in it. A driver that does not use libpq, such as node-postgres,
/// knows no `passfile`.
///
/// # Errors
/// When there is no cluster yet, or its password cannot be read.
pub fn url_with_password(settings: &Settings) -> Result<String, ClusterError> {
    let layout = Layout::of(settings).left();
    let port = port(&layout)?;
    let password = layout.password()?;
    Ok(format!(
        "postgresql://{USER}:{}@127.0.0.1:{port}/{}",
        percent_encode(password.expose()),
        layout.database()
    ))
}

/// How often in a row a server that is gone may fail to start before the daemon gives up.
const MOST_FAILURES: u32 = 5;

impl Running {
    /// Starts the server again whenever it is gone. It returns only when that fails.
    pub async fn keep(&mut self) -> ClusterError {
        let mut failures = 0;
        loop {
            tokio::time::sleep(TICK * 10).await;
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
                // What killed it may have killed it again while it started.
                Err(error @ ClusterError::Failed { .. }) if failures < MOST_FAILURES => {
                    failures += 1;
                    tracing::error!("{error}; trying again");
                }
                Err(error) => return error,
            }
            // A server that falls over again and again must not fill the processor and the log.
            tokio::time::sleep(TICK * 50).await;
        }
    }

    /// Stops the server if this is the daemon's, or if no other command uses it. Sessions are ended.
    pub async fn stop(mut self) {
        self.using = None;
        // Held until the server is gone: a command that comes meanwhile waits, and starts it again.
        let last = self.last();
        if last.is_some()
            && let Ok(Some(_start)) = take(
                &self.layout,
                layout::START,
                FlockArg::LockExclusiveNonblock,
                FAST,
            )
            .await
        {
            self.server.stop(FAST).await;
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
    let using = take(&layout, layout::USERS, FlockArg::LockSharedNonblock, TURN).await?;
    let began = tokio::time::Instant::now();
    let server = loop {
        let mut server = start(&layout, &owner).await?;
        let error = match accepts_sessions(&layout, server.port).await {
            Ok(()) => break server,
            Err(error) => error,
        };
        if !error.may_pass() || began.elapsed() > TURN {
            // Others may use it: who leaves last stops it.
            drop(Running {
                layout,
                owner,
                server,
                daemon,
                using,
            });
            return Err(error);
        }
        // It died just now, or one that was taken over was dying: look again.
        tracing::warn!("{:#}; trying again", anyhow::Error::from(error));
        server.leave();
        tokio::time::sleep(TICK * 5).await;
    };
    Ok(Running {
        layout,
        owner,
        server,
        daemon,
        using,
    })
}

/// The server, running and ready: the one that is there, or a new one. One process at a time.
async fn start(layout: &Layout, owner: &Owner) -> Result<Server, ClusterError> {
    let Some(_start) = take(layout, layout::START, FlockArg::LockExclusiveNonblock, TURN).await?
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
        tokio::time::sleep(TICK).await;
    }
}

fn port(layout: &Layout) -> Result<u16, ClusterError> {
    layout
        .port()
        .filter(|_| layout.passfile().exists())
        .ok_or_else(|| {
            ClusterError::Programs(format!(
                "there is no private cluster in {} yet; `spcd run` makes it, or give --database",
                layout.shown()
            ))
        })
}

/// By the socket where its path is short enough, else by TCP.
fn endpoint_of(layout: &Layout, port: u16) -> Result<Endpoint, ClusterError> {
    let host = layout
        .usable_socket_dir()
        .unwrap_or_else(|| PathBuf::from("127.0.0.1"));
    Ok(Endpoint::local(
        &host,
        port,
        USER,
        layout.database(),
        layout.password()?,
    ))
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
        Err(error) if error.is_no_such_database() => {}
        Err(error) => return Err(failed(error)),
    }
    let session = endpoint
        .clone()
        .with_database("postgres")
        .connect("start")
        .await
        .map_err(failed)?;
    let (name, other) = (layout.database(), layout.other_database());
    // What people have made in it moves along.
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

/// Everything but letters, digits and what is harmless in a path.
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
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
