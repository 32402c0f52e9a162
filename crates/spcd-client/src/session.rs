//! Sessions with the database, and reconnecting.

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher as _, Hasher as _};
use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::error::DbError;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Config, Connection, NoTls, Notification, Socket};

use spcd_protocol::Backoff;

use crate::error::{Cause, Error, is_unavailable};

/// Pauses between attempts to connect, in milliseconds. The ceiling is short enough to notice soon
/// that the database is back.
const RECONNECT_BACKOFF: Backoff = Backoff::new(20, 2_000);

/// Opens sessions, the first one and those after a loss.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let connector = spcd_client::Connector::new("postgres://me@localhost/hub")?;
/// let client = spcd_client::Client::new(connector);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Connector {
    open: Arc<dyn Fn() -> OpenFuture + Send + Sync>,
}

type OpenFuture = Pin<Box<dyn Future<Output = Result<Session, Cause>> + Send>>;

/// A session and the notifications that arrive on it.
///
/// ```no_run
/// # async fn example() -> Result<(), tokio_postgres::Error> {
/// use tokio_postgres::NoTls;
/// let (client, connection) = tokio_postgres::connect("host=localhost", NoTls).await?;
/// let session = spcd_client::Session::new(client, connection);
/// # Ok(()) }
/// ```
pub struct Session {
    pub(crate) client: tokio_postgres::Client,
    pub(crate) notifications: mpsc::UnboundedReceiver<Notification>,
    /// Whether a wait reads `notifications`. Others are dropped, so that they do not pile up.
    pub(crate) listening: Arc<AtomicBool>,
}

impl Connector {
    /// Opens sessions at a URL or keyword string, without TLS.
    ///
    /// ```
    /// assert!(spcd_client::Connector::new("host=localhost user=me").is_ok());
    /// assert!(spcd_client::Connector::new("port=none").is_err());
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`] when the text cannot be read.
    pub fn new(url: &str) -> Result<Self, Error> {
        let config = parse_url(url).map_err(Error::Connect)?;
        Ok(Self::with_tls(config, NoTls))
    }

    /// Opens sessions with any TLS that `tokio-postgres` can use.
    ///
    /// ```no_run
    /// # use tokio_postgres::NoTls;
    /// let mut config = tokio_postgres::Config::new();
    /// config.host("db.example.org").user("me");
    /// let connector = spcd_client::Connector::with_tls(config, NoTls);
    /// ```
    #[must_use]
    pub fn with_tls<T>(config: Config, tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send + 'static,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Self::from_fn(move || {
            let (config, tls) = (config.clone(), tls.clone());
            async move {
                let (client, connection) = config.connect(tls).await?;
                Ok(Session::new(client, connection))
            }
        })
    }

    /// Opens sessions by the caller's function.
    ///
    /// ```no_run
    /// # use spcd_client::{Connector, Session};
    /// let connector = Connector::from_fn(|| async {
    ///     let url = std::fs::read_to_string("/run/secrets/url")?;
    ///     let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    ///     client.batch_execute("SET statement_timeout = '5min'").await?;
    ///     Ok(Session::new(client, connection))
    /// });
    /// ```
    #[must_use]
    pub fn from_fn<F, O>(open: F) -> Self
    where
        F: Fn() -> O + Send + Sync + 'static,
        O: Future<Output = Result<Session, Cause>> + Send + 'static,
    {
        Self {
            open: Arc::new(move || Box::pin(open())),
        }
    }
}

impl Session {
    /// Creates a session from a client and its connection, which a task polls from now on. Notices
    /// are dropped.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), tokio_postgres::Error> {
    /// # use tokio_postgres::NoTls;
    /// let (client, connection) = tokio_postgres::connect("host=localhost", NoTls).await?;
    /// let session = spcd_client::Session::new(client, connection);
    /// # Ok(()) }
    /// ```
    pub fn new<S, T>(client: tokio_postgres::Client, mut connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (session, sender) = Self::parts(client);
        let listening = session.listening.clone();
        tokio::spawn(async move {
            // An error ends the connection; the client reports it.
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                forward_notification(message, &listening, &sender);
            }
        });
        session
    }

    /// Creates a session from a client whose connection the caller polls, and the messages that
    /// arrive on it. The messages must end when the connection does.
    ///
    /// ```no_run
    /// # async fn example(client: tokio_postgres::Client) {
    /// let (sender, messages) = tokio::sync::mpsc::unbounded_channel();
    /// let session = spcd_client::Session::from_messages(client, messages);
    /// # drop(sender); }
    /// ```
    #[must_use]
    pub fn from_messages(
        client: tokio_postgres::Client,
        mut messages: mpsc::UnboundedReceiver<AsyncMessage>,
    ) -> Self {
        let (session, sender) = Self::parts(client);
        let listening = session.listening.clone();
        tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                forward_notification(message, &listening, &sender);
            }
        });
        session
    }

    fn parts(client: tokio_postgres::Client) -> (Self, mpsc::UnboundedSender<Notification>) {
        let (sender, heard) = mpsc::unbounded_channel();
        let listening = Arc::new(AtomicBool::new(false));
        let session = Self {
            client,
            notifications: heard,
            listening,
        };
        (session, sender)
    }
}

fn forward_notification(
    message: AsyncMessage,
    listening: &AtomicBool,
    to: &mpsc::UnboundedSender<Notification>,
) {
    if let AsyncMessage::Notification(message) = message
        && listening.load(Ordering::Acquire)
    {
        // The receiver may be gone; the connection is still needed.
        let _ = to.send(message);
    }
}

/// The session in use, if any, and how to open the next one.
pub(crate) struct SessionSlot {
    connector: Connector,
    live: Option<LiveSession>,
    opened: u64,
    /// Statement that every session begins with.
    pub(crate) setup: Option<String>,
}

/// A session with its bookkeeping.
pub(crate) struct LiveSession {
    pub(crate) session: Session,
    /// Number of the session, to tell it from earlier ones.
    pub(crate) id: u64,
    /// Time before the session was opened.
    pub(crate) opening_since: Instant,
    /// Whether a LISTEN was sent and no UNLISTEN.
    pub(crate) has_listen: bool,
}

impl SessionSlot {
    pub(crate) fn new(connector: Connector) -> Self {
        Self {
            connector,
            live: None,
            opened: 0,
            setup: None,
        }
    }

    /// Returns the session, opening one if there is none. Retries until `until` while the database
    /// cannot be reached, and returns at once if it rejects the session.
    pub(crate) async fn get(&mut self, until: Instant) -> Result<&mut LiveSession, Error> {
        if self
            .live
            .as_ref()
            .is_some_and(|live| live.session.client.is_closed())
        {
            self.live = None;
        }
        let mut failures = 0;
        while self.live.is_none() {
            let error = match timeout_at(until, self.open()).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error,
                Err(_) => {
                    let (waiting, source) = (Vec::new(), None);
                    return Err(Error::TimedOut { waiting, source });
                }
            };
            failures += 1;
            let next = Instant::now() + reconnect_pause(failures);
            if next >= until || !is_transient(&error) {
                return Err(Error::Connect(error));
            }
            sleep(next - Instant::now()).await;
        }
        // The loop ends with a session.
        self.live
            .as_mut()
            .ok_or_else(|| Error::Connect("no session".into()))
    }

    /// Opens a session with one attempt.
    pub(crate) async fn open(&mut self) -> Result<(), Cause> {
        let begun = Instant::now();
        let session = (self.connector.open)().await?;
        if let Some(setup) = &self.setup {
            session.client.batch_execute(setup).await?;
        }
        self.opened += 1;
        self.live = Some(LiveSession {
            session,
            id: self.opened,
            opening_since: begun,
            has_listen: false,
        });
        Ok(())
    }

    /// Returns the session, if one is open.
    pub(crate) fn live(&mut self) -> Option<&mut LiveSession> {
        self.live.as_mut()
    }

    /// Closes the session: it is lost, or its state is unknown.
    pub(crate) fn drop_session(&mut self) {
        self.live = None;
    }
}

/// Returns whether connecting again may succeed: the server cannot be reached, is starting, is
/// shutting down, or has no free session.
fn is_transient(error: &Cause) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(error) = next {
        if let Some(db_error) = error.downcast_ref::<DbError>() {
            return is_unavailable(db_error.code());
        }
        let driver = error.downcast_ref::<tokio_postgres::Error>();
        if error.is::<std::io::Error>() || driver.is_some_and(tokio_postgres::Error::is_closed) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Returns the pause after this many failures. Clients that lost their sessions together do not
/// reconnect together.
fn reconnect_pause(failures: u32) -> Duration {
    let random = std::hash::RandomState::new().build_hasher().finish();
    let share = random as f64 / u64::MAX as f64;
    Duration::from_millis(RECONNECT_BACKOFF.jittered(failures, share))
}

/// Parses a URL. `spcd url` prints `?passfile=`, which libpq supports and tokio-postgres does not.
fn parse_url(url: &str) -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
    let Some((url, passfile)) = url.split_once("?passfile=") else {
        return Ok(Config::from_str(url)?);
    };
    let mut config = Config::from_str(url)?;
    let entries = std::fs::read_to_string(passfile.replace("%2F", "/"))?;
    if let Some((_, password)) = entries.trim_end().rsplit_once(':') {
        config.password(password);
    }
    Ok(config)
}
