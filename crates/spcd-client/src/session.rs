//! Sessions with the database, and how to get another when one is lost.

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

use crate::error::{Cause, Error, is_going};

/// Between attempts to connect; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Short enough that a database that is back is not kept waiting for.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How sessions are opened, now and after one is lost.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let connector = spcd_client::Connector::new("postgres://me@localhost/hub")?;
/// let client = spcd_client::Client::new(connector);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Connector {
    open: Arc<dyn Fn() -> Opening + Send + Sync>,
}

type Opening = Pin<Box<dyn Future<Output = Result<Session, Cause>> + Send>>;

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
    pub(crate) heard: mpsc::UnboundedReceiver<Notification>,
    /// Whether anybody reads `heard`: what arrives else is dropped, so that it does not pile up.
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
        let config = config(url).map_err(Error::Connect)?;
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

    /// Opens sessions in the caller's own way.
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
    /// Of a client and its connection, which this polls in a task of its own. Notices are dropped.
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
            // An error ends the connection, which shows at the client.
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                pass_on(message, &listening, &sender);
            }
        });
        session
    }

    /// Of a client whose connection somebody polls already, and the messages that arrive on it.
    /// They must end when the connection does.
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
                pass_on(message, &listening, &sender);
            }
        });
        session
    }

    fn parts(client: tokio_postgres::Client) -> (Self, mpsc::UnboundedSender<Notification>) {
        let (sender, heard) = mpsc::unbounded_channel();
        let listening = Arc::new(AtomicBool::new(false));
        let session = Self {
            client,
            heard,
            listening,
        };
        (session, sender)
    }
}

fn pass_on(
    message: AsyncMessage,
    listening: &AtomicBool,
    to: &mpsc::UnboundedSender<Notification>,
) {
    if let AsyncMessage::Notification(message) = message
        && listening.load(Ordering::Acquire)
    {
        // Nobody may be there to hear it; the connection is needed all the same.
        let _ = to.send(message);
    }
}

/// The session in use, or a place for the next one.
pub(crate) struct Slot {
    connector: Connector,
    live: Option<Live>,
    opened: u64,
    /// What every session begins with.
    pub(crate) setup: Option<String>,
}

/// A session, and what is known of it.
pub(crate) struct Live {
    pub(crate) session: Session,
    /// Tells it from the sessions before it.
    pub(crate) id: u64,
    /// Before it was begun to be opened.
    pub(crate) begun: Instant,
    /// A LISTEN was sent and not taken back.
    pub(crate) listens: bool,
}

impl Slot {
    pub(crate) fn new(connector: Connector) -> Self {
        Self {
            connector,
            live: None,
            opened: 0,
            setup: None,
        }
    }

    /// The session there is, or a new one; tries again and again until `until` while the database
    /// cannot be reached, and not where it says no.
    pub(crate) async fn get(&mut self, until: Instant) -> Result<&mut Live, Error> {
        if self
            .live
            .as_ref()
            .is_some_and(|live| live.session.client.is_closed())
        {
            self.live = None;
        }
        let mut pause = FIRST_PAUSE;
        while self.live.is_none() {
            let error = match timeout_at(until, self.open()).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error,
                Err(_) => {
                    let (waiting, source) = (Vec::new(), None);
                    return Err(Error::TimedOut { waiting, source });
                }
            };
            let next = Instant::now() + jittered(pause);
            if next >= until || !is_passing(&error) {
                return Err(Error::Connect(error));
            }
            sleep(next - Instant::now()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        // The loop ends with a session.
        self.live
            .as_mut()
            .ok_or_else(|| Error::Connect("no session".into()))
    }

    /// Opens a session, once.
    pub(crate) async fn open(&mut self) -> Result<(), Cause> {
        let begun = Instant::now();
        let session = (self.connector.open)().await?;
        if let Some(setup) = &self.setup {
            session.client.batch_execute(setup).await?;
        }
        self.opened += 1;
        self.live = Some(Live {
            session,
            id: self.opened,
            begun,
            listens: false,
        });
        Ok(())
    }

    /// The session, if there is one.
    pub(crate) fn live(&mut self) -> Option<&mut Live> {
        self.live.as_mut()
    }

    /// Closes the session: it is lost, or in a state that nobody knows.
    pub(crate) fn drop_session(&mut self) {
        self.live = None;
    }
}

/// Whether connecting again may help: the server cannot be reached, or is coming, going or full.
fn is_passing(error: &Cause) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(error) = next {
        if let Some(said) = error.downcast_ref::<DbError>() {
            return is_going(said.code());
        }
        let driver = error.downcast_ref::<tokio_postgres::Error>();
        if error.is::<std::io::Error>() || driver.is_some_and(tokio_postgres::Error::is_closed) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Half to all of a pause, so that clients that were lost together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = std::hash::RandomState::new().build_hasher().finish() % 512;
    pause / 2 + pause / 1024 * u32::try_from(random).unwrap_or(0)
}

/// A URL's configuration. `spcd url` names a file with the password, as libpq knows it and
/// tokio-postgres does not.
fn config(url: &str) -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
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
