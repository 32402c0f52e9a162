//! Tunnels through ssh to sources that cannot be reached directly.
//!
//! Each ends at a port of this machine, which stays reserved while the tunnel is closed, so that the
//! servers in the database keep their options. Connections are forwarded to a socket of the system's
//! `ssh`, which is restarted when it ends.

mod ssh;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use spcd_core::config::{DesiredState, ForeignSource, Tunnel};
use spcd_core::health::TUNNEL_CLOSED_SQLSTATE;
use spcd_protocol::Backoff;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;

use spcd_postgres::HubError;
use spcd_postgres::connection::Endpoint;

/// Deadline for a tunnel to open: longer than ssh takes to give up.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Deadline for the ssh server to report that it does not reach the source.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum pause between two attempts to open a tunnel.
const MIN_OPEN_PAUSE: Duration = Duration::from_millis(200);
/// Pause before another attempt to bind the port of a tunnel.
const PORT_PAUSE: Duration = Duration::from_secs(30);
/// Pauses between attempts to open a tunnel, unless a client needs it.
const BACKOFF: Backoff = Backoff::new(200, 30_000);
/// Number of attempts to bind a port that a previous daemon may still hold.
const BIND_ATTEMPTS: u16 = 20;
/// Number of other ports to try.
const MAX_OTHER_PORTS: u16 = 100;

/// The tunnels of a daemon. Dropping them closes all.
pub struct Tunnels {
    state_dir: PathBuf,
    /// Name of the machine of the database, if it is another one: its servers cannot reach the local ports.
    elsewhere: Option<String>,
    open: Mutex<BTreeMap<String, Open>>,
    moved: Arc<Notify>,
}

struct Open {
    link: Arc<Link>,
    task: AbortHandle,
}

/// A tunnel that is opened for a test only.
pub struct TestTunnel {
    passage: ssh::OpenTunnel,
}

/// State of one tunnel, shared by its tasks.
struct Link {
    tunnel: Tunnel,
    status: watch::Sender<Status>,
    /// Wakes the task: a client needs the tunnel now.
    retry_request: Notify,
}

#[derive(Debug, Clone)]
struct Status {
    /// Number of attempts that have ended.
    attempts: u64,
    /// The local port, once it is bound.
    port: Option<u16>,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Opening,
    /// The socket that ssh forwards.
    Open(PathBuf),
    Failed(String),
}

impl Tunnels {
    /// Returns a value without tunnels, for the database of an endpoint.
    pub fn new(state_dir: &Path, endpoint: &Endpoint) -> Arc<Self> {
        Arc::new(Self {
            state_dir: state_dir.to_owned(),
            elsewhere: endpoint.remote_host(),
            open: Mutex::default(),
            moved: Arc::default(),
        })
    }

    /// Keeps the tunnels of the desired state and closes all others.
    pub fn keep(&self, desired: &DesiredState) {
        let mut desired_keys = BTreeSet::new();
        for connection in desired.connections.values() {
            if let Ok(target) = &connection.target
                && let Some(tunnel) = &target.tunnel
                && desired_keys.insert(tunnel.key())
                && self.elsewhere.is_none()
            {
                self.link(tunnel, target.tunnel_port());
            }
        }
        // A tunnel whose file cannot be read now is opened again when it is needed.
        self.open.lock().retain(|key, _| desired_keys.contains(key));
    }

    /// Waits until a target's tunnel is open, if it has one.
    ///
    /// # Errors
    /// The reason, for the user; [`HubError::NoSession`] if its port has changed, so that another pass is
    /// needed.
    pub async fn ready(&self, target: &ForeignSource) -> Result<(), HubError> {
        let Some(tunnel) = &target.tunnel else {
            return Ok(());
        };
        let refused = |why: &str| not_open(tunnel, why);
        self.check_place(tunnel)?;
        let link = self.link(tunnel, target.tunnel_port());
        let status = match timeout(OPEN_TIMEOUT, link.settled()).await {
            Ok(status) => status,
            Err(_) => return Err(refused("ssh does not answer")),
        };
        match status.state {
            State::Open(_) if status.port == target.tunnel_port() => Ok(()),
            State::Open(_) => Err(HubError::NoSession),
            State::Failed(why) => Err(refused(&why)),
            State::Opening => Err(refused("ssh does not answer")),
        }
    }

    /// As [`Tunnels::ready`], for a command beside a daemon: the daemon's open tunnel is used, whose port
    /// must not change.
    ///
    /// # Errors
    /// As [`Tunnels::ready`].
    pub async fn ready_unless_kept(&self, target: &ForeignSource) -> Result<(), HubError> {
        if let Some(port) = target.tunnel_port()
            && TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        {
            return Ok(());
        }
        self.ready(target).await
    }

    /// Opens another tunnel to a target's source, beside the daemon's, whose port accepts connections even
    /// if ssh fails and does not show the reason.
    ///
    /// # Errors
    /// As [`Tunnels::ready`].
    pub async fn trial(&self, target: &ForeignSource) -> Result<Option<TestTunnel>, HubError> {
        let Some(tunnel) = &target.tunnel else {
            return Ok(None);
        };
        self.check_place(tunnel)?;
        let opened = timeout(OPEN_TIMEOUT, ssh::open(tunnel, &self.state_dir)).await;
        let passage = opened
            .unwrap_or_else(|_| Err("ssh does not answer".into()))
            .map_err(|why| not_open(tunnel, &why))?;
        Ok(Some(TestTunnel { passage }))
    }

    fn check_place(&self, tunnel: &Tunnel) -> Result<(), HubError> {
        match &self.elsewhere {
            None => Ok(()),
            Some(host) => {
                let why = format!(
                    "it ends on this machine, and the database is on {host}: run spcd there"
                );
                Err(not_open(tunnel, &why))
            }
        }
    }

    /// Waits until a tunnel is bound to another port than expected. The servers' options must then change.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    fn link(&self, tunnel: &Tunnel, port: Option<u16>) -> Arc<Link> {
        let mut open = self.open.lock();
        let open = open.entry(tunnel.key()).or_insert_with(|| {
            let link = Arc::new(Link {
                tunnel: tunnel.clone(),
                status: watch::Sender::new(Status {
                    attempts: 0,
                    port: None,
                    state: State::Opening,
                }),
                retry_request: Notify::new(),
            });
            let dir = self.state_dir.clone();
            let work = run(link.clone(), dir, port, self.moved.clone());
            let task = tokio::spawn(work).abort_handle();
            Open { link, task }
        });
        open.link.clone()
    }
}

impl TestTunnel {
    /// Whether no source listens at the other end.
    pub async fn is_dead_end(&self) -> bool {
        let Ok(mut source) = UnixStream::connect(self.passage.socket()).await else {
            return true;
        };
        // A source that listens waits for the client to speak, or speaks first.
        let mut first = [0];
        let heard = timeout(REACH_TIMEOUT, source.read(&mut first)).await;
        matches!(heard, Ok(Ok(0) | Err(_)))
    }

    /// Closes the tunnel.
    pub async fn close(self) {
        self.passage.close().await;
    }
}

fn not_open(tunnel: &Tunnel, why: &str) -> HubError {
    HubError::StatementFailed {
        text: format!("the ssh tunnel through {tunnel} is not open: {why}"),
        code: SqlState::from_code(TUNNEL_CLOSED_SQLSTATE),
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Waits until the tunnel is open, or until an attempt fails that ends after the call.
    async fn settled(&self) -> Status {
        let mut status = self.status.subscribe();
        let before = status.borrow().attempts;
        self.retry_request.notify_one();
        let settled = |status: &Status| match status.state {
            State::Open(_) => status.port.is_some(),
            State::Failed(_) => status.attempts > before,
            State::Opening => false,
        };
        let settled = status
            .wait_for(settled)
            .await
            .ok()
            .map(|status| status.clone());
        match settled {
            Some(status) => status,
            // The sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }

    fn set(&self, state: State) {
        self.status.send_modify(|status| {
            status.attempts += u64::from(!matches!(state, State::Opening));
            status.state = state;
        });
    }
}

/// Keeps a tunnel open and its port bound until the task is aborted.
async fn run(link: Arc<Link>, state_dir: PathBuf, port: Option<u16>, moved: Arc<Notify>) {
    let keep = keep_open(&link, &state_dir);
    let accept = async {
        let listener = loop {
            match bind(&link.tunnel, port).await {
                Ok(listener) => break listener,
                Err(error) => {
                    link.set(State::Failed(format!("no port is free for it: {error}")));
                    sleep(PORT_PAUSE).await;
                }
            }
        };
        let ours = listener.local_addr().map(|address| address.port()).ok();
        if ours != port
            && let Some(ours) = ours
        {
            tracing::warn!(
                tunnel = %link.tunnel,
                port = ours,
                "the port where the tunnel ended is taken; it ends at another one now"
            );
            if let Err(error) = remember(&state_dir, &link.tunnel, ours) {
                tracing::warn!(%error, "cannot record the port of the tunnel");
            }
            moved.notify_one();
        }
        link.status.send_modify(|status| status.port = ours);
        accept(&link, listener).await;
    };
    tokio::join!(keep, accept);
}

/// Opens the tunnel, and reopens it when it ends.
async fn keep_open(link: &Link, state_dir: &Path) {
    let mut times = 0;
    loop {
        let why = match ssh::open(&link.tunnel, state_dir).await {
            Ok(mut passage) => {
                tracing::info!(tunnel = %link.tunnel, "the ssh tunnel is open");
                link.set(State::Open(passage.socket().to_owned()));
                times = 0;
                passage.closed().await;
                link.set(State::Opening);
                tracing::warn!(tunnel = %link.tunnel, "the ssh tunnel dropped; opening it again");
                passage.close().await;
                continue;
            }
            Err(why) => why,
        };
        tracing::warn!(tunnel = %link.tunnel, error = why, "cannot open the ssh tunnel");
        link.set(State::Failed(why));
        // A client that needs the tunnel ends the wait, but not before the minimum pause.
        times += 1;
        sleep(MIN_OPEN_PAUSE).await;
        tokio::select! {
            () = sleep(Duration::from_millis(BACKOFF.pause(times))) => {}
            () = link.retry_request.notified() => {}
        }
    }
}

/// Forwards every connection to the local port.
async fn accept(link: &Arc<Link>, listener: TcpListener) {
    let mut passing = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                while passing.try_join_next().is_some() {}
                passing.spawn(pass_on(link.clone(), client));
            }
            // Possibly too many open files, which is transient.
            Err(error) => {
                tracing::warn!(tunnel = %link.tunnel, %error, "cannot accept a connection");
                sleep(MIN_OPEN_PAUSE).await;
            }
        }
    }
}

async fn pass_on(link: Arc<Link>, mut client: TcpStream) {
    // Without a tunnel the connection is closed: no other answer fits all protocols.
    let Ok(status) = timeout(OPEN_TIMEOUT, link.settled()).await else {
        return;
    };
    let State::Open(socket) = status.state else {
        return;
    };
    let Ok(mut source) = UnixStream::connect(&socket).await else {
        return;
    };
    // Either side may close the connection at any time.
    let _ = client.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut client, &mut source).await;
}

/// Binds the expected port, or another one if it is in use.
async fn bind(tunnel: &Tunnel, port: Option<u16>) -> std::io::Result<TcpListener> {
    let mut error = None;
    if let Some(port) = port {
        for _ in 0..BIND_ATTEMPTS {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => return Ok(listener),
                Err(other) => error = Some(other),
            }
            sleep(Duration::from_millis(25)).await;
        }
    }
    for times in 0..MAX_OTHER_PORTS {
        match TcpListener::bind(("127.0.0.1", tunnel.default_port(times))).await {
            Ok(listener) => return Ok(listener),
            Err(other) => error = Some(other),
        }
    }
    Err(error.unwrap_or_else(|| std::io::Error::other("no port is free")))
}

/// Returns the file that records ports other than the default ones.
fn ports_file(state_dir: &Path) -> PathBuf {
    state_dir.join("ssh").join("ports.json")
}

/// Returns the ports of tunnels that differ from the default ones, by key.
pub fn ports(state_dir: &Path) -> BTreeMap<String, u16> {
    let text = std::fs::read(ports_file(state_dir)).unwrap_or_default();
    // An unreadable file counts as empty: another port is chosen again.
    serde_json::from_slice(&text).unwrap_or_default()
}

fn remember(state_dir: &Path, tunnel: &Tunnel, port: u16) -> std::io::Result<()> {
    static WRITE_LOCK: Mutex<()> = Mutex::new(());
    let _turn = WRITE_LOCK.lock();
    let mut ports = ports(state_dir);
    ports.insert(tunnel.key(), port);
    let path = ports_file(state_dir);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(&ports)?)?;
    std::fs::rename(new, path)
}

/// Waits until the other side closes a stream, and ignores what it sends.
async fn ended(stream: &mut UnixStream) {
    let mut ignored = [0; 256];
    while let Ok(1..) = stream.read(&mut ignored).await {}
}
