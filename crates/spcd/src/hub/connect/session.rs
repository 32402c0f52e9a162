//! An open connection: its settings, the task that reads from it, and how it is interrupted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spcd_core::config::HubSettings;
use tokio::sync::mpsc;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{
    AsyncMessage, CancelToken, Client, Config, Connection, NoTls, SimpleQueryMessage,
    SimpleQueryRow, Socket,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::hub::HubError;

/// How long an answer to the shortest question may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How many warnings and notices of one statement are kept.
const MOST_NOTICES: usize = 1000;

/// How long a lock on one of spcd's own tables is waited for, in milliseconds: its own writes hold one
/// for a few seconds at most.
const LOCK_WAIT: u64 = 10_000;

/// Connections whose task has not ended.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A session with the settings that all sessions of spcd have. Dropping it closes it.
pub struct Session {
    /// To send statements.
    pub client: Client,
    /// Notices and notifications, in order; ends when the connection does. Whoever does not want
    /// them may drop it.
    pub messages: mpsc::UnboundedReceiver<AsyncMessage>,
    /// Whether the session ended without a word of the server's.
    ended: Arc<AtomicBool>,
    /// Warnings and notices of the statements that want them.
    pub notices: Notices,
    /// As the server says it (`15.8 (Debian 15.8-0+deb12u1)`).
    pub server_version: String,
    /// Those that were set in it.
    pub settings: HubSettings,
    tls: Option<MakeRustlsConnect>,
}

/// What the server says while statements run, kept from [`Notices::start`] to [`Notices::take`]. It
/// arrives before the statement's own answer, so that all of it is there then.
#[derive(Clone, Default)]
pub struct Notices(Arc<Mutex<Option<Vec<DbError>>>>);

impl Notices {
    /// Forgets what came before, and keeps what comes now.
    pub fn start(&self) {
        *self.kept() = Some(Vec::new());
    }

    /// What came since the start. What comes from now on is not kept.
    pub fn take(&self) -> Vec<DbError> {
        self.kept().take().unwrap_or_default()
    }

    fn keep(&self, message: &AsyncMessage) {
        if let AsyncMessage::Notice(notice) = message
            && let Some(kept) = &mut *self.kept()
            && kept.len() < MOST_NOTICES
        {
            kept.push(notice.clone());
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Vec<DbError>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops what a session is doing, from anywhere, over a connection of its own.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    tls: Option<MakeRustlsConnect>,
}

/// `target_session_attrs`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "libpq's names")]
pub enum Attributes {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl Session {
    /// Lets no statement take longer than the settings say, and none wait longer than [`LOCK_WAIT`] for
    /// a lock on a table of spcd's own. (Sessions that compete for users' tables wait for shorter.)
    ///
    /// # Errors
    /// As the server or the driver says.
    pub async fn limit(&mut self, settings: HubSettings) -> Result<(), tokio_postgres::Error> {
        if settings != self.settings {
            let limit = settings.statement_timeout;
            let wait = match limit {
                0 => LOCK_WAIT,
                limit => limit.min(LOCK_WAIT),
            };
            let set = format!("SET statement_timeout = {limit}; SET lock_timeout = {wait}");
            self.client.batch_execute(&set).await?;
            self.settings = settings;
        }
        Ok(())
    }

    /// Whether the server still answers, and takes writes.
    ///
    /// # Errors
    /// [`HubError::Silent`], [`HubError::ReadOnly`], and as the server says.
    pub async fn ping(&self) -> Result<(), HubError> {
        ping(&self.client).await
    }

    /// Whether the server ended the session without telling why: as it is where the process that
    /// served it died. (A cut connection looks the same.)
    pub fn died(&self) -> bool {
        self.client.is_closed() && self.ended.load(Ordering::Acquire)
    }

    /// For deadlines: stops the statement under way while its future is being awaited.
    pub fn canceller(&self) -> Canceller {
        Canceller {
            token: self.client.cancel_token(),
            tls: self.tls.clone(),
        }
    }
}

/// [`Session::ping`] for who has the client alone.
pub async fn ping(client: &Client) -> Result<(), HubError> {
    const ASK: &str = "SELECT pg_catalog.pg_is_in_recovery()
                           OR pg_catalog.current_setting('default_transaction_read_only') = 'on'";
    let answer = tokio::time::timeout(PATIENCE, client.simple_query(ASK)).await;
    let answer = answer.map_err(|_| HubError::Silent)??;
    match row(&answer).and_then(|row| row.get(0)) {
        Some("f") => Ok(()),
        _ => Err(HubError::ReadOnly),
    }
}

impl Canceller {
    /// Asks the server to stop the statement; it then fails with `57014`. The server does not
    /// say whether there was one.
    ///
    /// # Errors
    /// When the server cannot be reached for this.
    pub async fn cancel(&self) -> Result<(), tokio_postgres::Error> {
        match &self.tls {
            Some(tls) => self.token.cancel_query(tls.clone()).await,
            None => self.token.cancel_query(NoTls).await,
        }
    }
}

/// Waits a moment until every session that was dropped has said goodbye. A process that ends before
/// leaves a line in the server's log for each.
pub async fn farewell() {
    for _ in 0..100 {
        if OPEN.load(Ordering::Relaxed) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether two open sessions are the same one for the server: then a pooler stands between that
/// lends its connections for one transaction each.
///
/// # Errors
/// As the server or the driver says.
pub async fn share_a_backend(
    one: &Session,
    other: &Session,
) -> Result<bool, tokio_postgres::Error> {
    const PID: &str = "SELECT pg_catalog.pg_backend_pid()";
    // A pooler lends the connection that was given back last, unless someone else was faster.
    for _ in 0..3 {
        let first = patiently(one, PID).await?;
        let second = patiently(other, &format!("BEGIN; {PID}; COMMIT")).await?;
        let pid = |answer: &[SimpleQueryMessage]| {
            row(answer).and_then(|row| row.get(0).map(str::to_owned))
        };
        if pid(&first) == pid(&second) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Sends what may be sent twice, before the session has settings of its own: a role may bear a
/// `statement_timeout` of a millisecond, and it is in force until then.
async fn patiently(
    session: &Session,
    sql: &str,
) -> Result<Vec<SimpleQueryMessage>, tokio_postgres::Error> {
    // Each try stands a fair chance even at 1 ms on a busy machine.
    const TRIES: usize = 200;
    let mut tries = 1;
    loop {
        match session.client.simple_query(sql).await {
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) && tries < TRIES => {
                tries += 1;
                // Its transaction, if the statements had opened one. Stopped as well, it comes
                // again before the next try.
                let _ = session.client.simple_query("ROLLBACK").await;
            }
            result => return result,
        }
    }
}

fn row(answer: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// What a fresh session says of its server.
pub struct ServerState {
    read_only: bool,
    standby: bool,
}

impl ServerState {
    /// Why this server is not one that was asked for.
    pub fn mismatch(&self, wanted: Attributes) -> Option<&'static str> {
        match wanted {
            Attributes::ReadWrite if self.standby => Some("it is a standby"),
            Attributes::ReadWrite if self.read_only => Some("its sessions are read-only"),
            Attributes::ReadOnly if !self.standby && !self.read_only => {
                Some("its sessions are not read-only")
            }
            Attributes::Primary if self.standby => Some("it is a standby"),
            Attributes::Standby if !self.standby => Some("it is not a standby"),
            _ => None,
        }
    }
}

/// Opens the connection and gives it a task that reads from it until it ends.
pub async fn open(
    config: &Config,
    tls: Option<&MakeRustlsConnect>,
) -> Result<Session, tokio_postgres::Error> {
    let mut session = match tls {
        Some(tls) => open_with(config, tls.clone()).await?,
        None => open_with(config, NoTls).await?,
    };
    session.tls = tls.cloned();
    Ok(session)
}

async fn open_with<T>(config: &Config, tls: T) -> Result<Session, tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let (client, connection) = config.connect(tls).await?;
    let server_version = connection
        .parameter("server_version")
        .unwrap_or_default()
        .to_owned();
    let (sender, messages) = mpsc::unbounded_channel();
    OPEN.fetch_add(1, Ordering::Relaxed);
    let notices = Notices::default();
    let ended = Arc::new(AtomicBool::new(false));
    let reader = read(connection, sender, notices.clone(), ended.clone());
    tokio::spawn(async move {
        reader.await;
        OPEN.fetch_sub(1, Ordering::Relaxed);
    });
    Ok(Session {
        client,
        messages,
        ended,
        notices,
        server_version,
        settings: HubSettings::none(),
        tls: None,
    })
}

/// A LISTEN is heard only while the connection is read, whether or not a statement is under way.
async fn read<S, T>(
    mut connection: Connection<S, T>,
    messages: mpsc::UnboundedSender<AsyncMessage>,
    notices: Notices,
    ended: Arc<AtomicBool>,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // The server tells its other sessions why it ends them; of the process that died it says nothing.
    let mut told = false;
    loop {
        match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(message)) => {
                if let AsyncMessage::Notice(notice) = &message {
                    let why = [SqlState::CRASH_SHUTDOWN, SqlState::ADMIN_SHUTDOWN];
                    told |= why.contains(notice.code());
                }
                notices.keep(&message);
                // Without a receiver the connection is needed all the same.
                drop(messages.send(message));
            }
            Some(Err(error)) => {
                told |= error.as_db_error().is_some();
                ended.store(!told, Ordering::Release);
                return tracing::debug!("a session ended: {error}");
            }
            None => {
                ended.store(!told, Ordering::Release);
                return;
            }
        }
    }
}

/// Makes the session independent of what a role, a database or a server file sets.
pub async fn prepare(
    session: &mut Session,
    tcp: bool,
    settings: HubSettings,
) -> Result<ServerState, tokio_postgres::Error> {
    // Alone and first: what takes longer than a role's time-out would else never get through.
    const NO_TIMEOUT: &str = "SET statement_timeout = 0";
    // Only settings that 14 to 18 know and that every role may set.
    const SETTINGS: &str = "\
        SET search_path = pg_catalog; SET jit = off; SET client_min_messages = warning; \
        SET timezone = 'UTC'; SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres'; \
        SET standard_conforming_strings = on; SET bytea_output = 'hex'; SET extra_float_digits = 1; \
        SET row_security = on; SET quote_all_identifiers = off; \
        SET default_transaction_isolation = 'read committed'; SET default_transaction_deferrable = off; \
        SET lock_timeout = 0; SET idle_session_timeout = 0; \
        SET idle_in_transaction_session_timeout = 0; ";
    // The server's side: a daemon that vanished with its machine must not keep its locks for hours.
    const TCP: &str = "\
        SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
        SET tcp_user_timeout = 15000; ";
    const STATE: &str =
        "SELECT current_setting('default_transaction_read_only') = 'on', pg_is_in_recovery()";
    let batch = [SETTINGS, if tcp { TCP } else { "" }, STATE].concat();
    patiently(session, NO_TIMEOUT).await?;
    let answer = patiently(session, &batch).await?;
    session.limit(settings).await?;
    let row = row(&answer);
    let is = |column: usize| row.and_then(|row| row.try_get(column).ok().flatten()) == Some("t");
    Ok(ServerState {
        read_only: is(0),
        standby: is(1),
    })
}
