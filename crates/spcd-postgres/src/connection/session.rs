//! An open connection: its settings, the task that reads from it, and cancelling its statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spcd_core::config::HubSettings;
use spcd_core::sql;
use tokio::sync::mpsc;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{
    AsyncMessage, CancelToken, Client, Config, Connection, NoTls, SimpleQueryMessage,
    SimpleQueryRow, Socket,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::HubError;

/// Time limit of a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum number of warnings and notices that are kept for one statement.
const MAX_NOTICES: usize = 1000;

/// Upper bound of `lock_timeout`, in milliseconds. spcd's own writes hold a lock on its tables for a
/// few seconds at most.
const LOCK_TIMEOUT_MS: u64 = 10_000;

/// Number of connections whose reading task has not ended.
static OPEN_CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// A session with the settings that all sessions of spcd share. Dropping it closes it.
pub struct Session {
    /// Sends statements.
    pub client: Client,
    /// Notices and notifications, in order. Ends with the connection. May be dropped if unused.
    pub messages: mpsc::UnboundedReceiver<AsyncMessage>,
    /// Whether the connection ended without an error message of the server.
    is_abrupt_end: Arc<AtomicBool>,
    /// Warnings and notices of the statements that record them.
    pub notices: Notices,
    /// The parameter `server_version`, for example `15.8 (Debian 15.8-0+deb12u1)`.
    pub server_version: String,
    /// The server process of the session; 0 until the session is prepared.
    pub backend_pid: i32,
    /// Settings that were applied last.
    pub settings: HubSettings,
    tls: Option<MakeRustlsConnect>,
}

/// Warnings and notices that arrive between [`Notices::start`] and [`Notices::take`]. The server sends
/// them before the result of their statement, so none is missing after it.
#[derive(Clone, Default)]
pub struct Notices(Arc<Mutex<Option<Vec<DbError>>>>);

impl Notices {
    /// Starts recording with an empty list.
    pub fn start(&self) {
        *self.0.lock() = Some(Vec::new());
    }

    /// Stops recording and returns the list.
    pub fn take(&self) -> Vec<DbError> {
        self.0.lock().take().unwrap_or_default()
    }

    fn record(&self, message: &AsyncMessage) {
        if let AsyncMessage::Notice(notice) = message
            && let Some(recorded) = &mut *self.0.lock()
            && recorded.len() < MAX_NOTICES
        {
            recorded.push(notice.clone());
        }
    }
}

/// Cancels the statement of a session, over a connection of its own.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    tls: Option<MakeRustlsConnect>,
}

/// Values of libpq's `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "libpq's names")]
pub enum SessionAttributes {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl Session {
    /// Applies the time-outs of `settings` if they differ from those of the session. `lock_timeout`
    /// becomes at most `LOCK_TIMEOUT_MS`; sessions that compete for users' tables set a shorter one.
    pub async fn apply_settings(
        &mut self,
        settings: HubSettings,
    ) -> Result<(), tokio_postgres::Error> {
        if settings != self.settings {
            let statement_timeout = settings.statement_timeout;
            let lock_timeout = match statement_timeout {
                0 => LOCK_TIMEOUT_MS,
                timeout => timeout.min(LOCK_TIMEOUT_MS),
            };
            let set = format!(
                "SET statement_timeout = {statement_timeout}; SET lock_timeout = {lock_timeout}"
            );
            self.client.batch_execute(&set).await?;
            self.settings = settings;
        }
        Ok(())
    }

    /// Subscribes to a channel.
    pub async fn listen(&self, channel: &str) -> Result<(), HubError> {
        let listen = format!("LISTEN {}", sql::ident(channel));
        Ok(self.client.batch_execute(&listen).await?)
    }

    /// Waits for a notification or a notice. Further ones that have arrived are taken with it. Returns
    /// `None` if the connection has ended. Cancel safe.
    pub async fn notified(&mut self) -> Option<()> {
        self.messages.recv().await?;
        while self.messages.try_recv().is_ok() {}
        Some(())
    }

    /// Checks that the server answers and accepts writes.
    ///
    /// # Errors
    /// [`HubError::Unresponsive`], [`HubError::ReadOnly`], and errors of the server.
    pub async fn ping(&self) -> Result<(), HubError> {
        ping(&self.client).await
    }

    /// Whether the connection ended without an error message, as after the death of its server
    /// process. A broken network connection looks the same.
    pub fn has_ended_abruptly(&self) -> bool {
        self.client.is_closed() && self.is_abrupt_end.load(Ordering::Acquire)
    }

    /// Returns a handle that cancels the running statement while its future is being awaited.
    pub fn canceller(&self) -> Canceller {
        Canceller {
            token: self.client.cancel_token(),
            tls: self.tls.clone(),
        }
    }
}

/// [`Session::ping`] for a client without its session.
pub async fn ping(client: &Client) -> Result<(), HubError> {
    const IS_READ_ONLY: &str = "SELECT pg_catalog.pg_is_in_recovery()
                           OR pg_catalog.current_setting('default_transaction_read_only') = 'on'";
    let answer = tokio::time::timeout(PING_TIMEOUT, client.simple_query(IS_READ_ONLY)).await;
    let answer = answer.map_err(|_| HubError::Unresponsive)??;
    match first_row(&answer).and_then(|row| row.get(0)) {
        Some("f") => Ok(()),
        _ => Err(HubError::ReadOnly),
    }
}

impl Canceller {
    /// Cancels the running statement, which then fails with `57014`. The server does not report
    /// whether there was one.
    ///
    /// # Errors
    /// The connection for the request could not be opened.
    pub async fn cancel(&self) -> Result<(), tokio_postgres::Error> {
        match &self.tls {
            Some(tls) => self.token.cancel_query(tls.clone()).await,
            None => self.token.cancel_query(NoTls).await,
        }
    }
}

/// Waits up to 0.2 s until the dropped sessions have sent their Terminate messages. A process that
/// exits earlier causes a line in the server's log for each of them.
pub async fn wait_until_closed() {
    for _ in 0..100 {
        if OPEN_CONNECTIONS.load(Ordering::Relaxed) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether two open sessions share one server process, as behind a pooler in transaction mode.
pub async fn share_backend(one: &Session, other: &Session) -> Result<bool, tokio_postgres::Error> {
    const PID: &str = "SELECT pg_catalog.pg_backend_pid()";
    // A pooler reuses the connection that was returned last, unless another client has taken it.
    for _ in 0..3 {
        let first = query_despite_timeout(one, PID).await?;
        let second = query_despite_timeout(other, &format!("BEGIN; {PID}; COMMIT")).await?;
        let pid = |answer: &[SimpleQueryMessage]| {
            first_row(answer).and_then(|row| row.get(0).map(str::to_owned))
        };
        if pid(&first) == pid(&second) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Runs idempotent statements before the session's settings are applied. Until then a
/// `statement_timeout` of the role is in force, which may be as short as a millisecond.
async fn query_despite_timeout(
    session: &Session,
    sql: &str,
) -> Result<Vec<SimpleQueryMessage>, tokio_postgres::Error> {
    // At 1 ms on a busy machine a single attempt often fails.
    const MAX_ATTEMPTS: usize = 200;
    let mut attempts = 1;
    loop {
        match session.client.simple_query(sql).await {
            Err(error)
                if error.code() == Some(&SqlState::QUERY_CANCELED) && attempts < MAX_ATTEMPTS =>
            {
                attempts += 1;
                // Ends a transaction that the statements have opened. A canceled ROLLBACK is
                // repeated before the next attempt.
                let _ = session.client.simple_query("ROLLBACK").await;
            }
            result => return result,
        }
    }
}

fn first_row(answer: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// Mode of the server of a new session.
pub struct ServerState {
    is_read_only: bool,
    is_standby: bool,
}

impl ServerState {
    /// Returns why the server does not satisfy `target_session_attrs`.
    pub fn mismatch(&self, required: SessionAttributes) -> Option<&'static str> {
        match required {
            SessionAttributes::ReadWrite if self.is_standby => Some("it is a standby"),
            SessionAttributes::ReadWrite if self.is_read_only => Some("its sessions are read-only"),
            SessionAttributes::ReadOnly if !self.is_standby && !self.is_read_only => {
                Some("its sessions are not read-only")
            }
            SessionAttributes::Primary if self.is_standby => Some("it is a standby"),
            SessionAttributes::Standby if !self.is_standby => Some("it is not a standby"),
            _ => None,
        }
    }
}

/// Opens the connection and starts the task that reads from it. It sets `crash_notice` when the server
/// terminates the session because another process crashed.
pub async fn open(
    config: &Config,
    tls: Option<&MakeRustlsConnect>,
    crash_notice: Arc<AtomicBool>,
) -> Result<Session, tokio_postgres::Error> {
    let mut session = match tls {
        Some(tls) => open_with(config, tls.clone(), crash_notice).await?,
        None => open_with(config, NoTls, crash_notice).await?,
    };
    session.tls = tls.cloned();
    Ok(session)
}

async fn open_with<T>(
    config: &Config,
    tls: T,
    crash_notice: Arc<AtomicBool>,
) -> Result<Session, tokio_postgres::Error>
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
    OPEN_CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let notices = Notices::default();
    let is_abrupt_end = Arc::new(AtomicBool::new(false));
    let ending = Ending {
        is_abrupt: is_abrupt_end.clone(),
        crash_notice,
    };
    let reader = read(connection, sender, notices.clone(), ending);
    tokio::spawn(async move {
        reader.await;
        OPEN_CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    });
    Ok(Session {
        client,
        messages,
        is_abrupt_end,
        notices,
        server_version,
        backend_pid: 0,
        settings: HubSettings::without_timeouts(),
        tls: None,
    })
}

/// Flags that tell how a connection ended.
struct Ending {
    /// The server sent no reason.
    is_abrupt: Arc<AtomicBool>,
    /// The reason was the crash of another process.
    crash_notice: Arc<AtomicBool>,
}

/// Reads until the connection ends. Notifications arrive only while it is read, with or without a
/// running statement.
async fn read<S, T>(
    mut connection: Connection<S, T>,
    messages: mpsc::UnboundedSender<AsyncMessage>,
    notices: Notices,
    ending: Ending,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // The server sends a reason to each session that it terminates, but not for a process that died.
    let mut has_reason = false;
    loop {
        match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(message)) => {
                if let AsyncMessage::Notice(notice) = &message {
                    let is_crash = *notice.code() == SqlState::CRASH_SHUTDOWN;
                    if is_crash {
                        ending.crash_notice.store(true, Ordering::Release);
                    }
                    has_reason |= is_crash || *notice.code() == SqlState::ADMIN_SHUTDOWN;
                }
                notices.record(&message);
                // The receiver may have been dropped.
                drop(messages.send(message));
            }
            Some(Err(error)) => {
                has_reason |= error.as_db_error().is_some();
                ending.is_abrupt.store(!has_reason, Ordering::Release);
                return tracing::debug!(%error, "a session ended");
            }
            None => {
                ending.is_abrupt.store(!has_reason, Ordering::Release);
                return;
            }
        }
    }
}

/// Overrides settings of the role, the database and the server's configuration files.
pub async fn prepare(
    session: &mut Session,
    is_tcp: bool,
    settings: HubSettings,
) -> Result<ServerState, tokio_postgres::Error> {
    // A statement of its own, since the whole batch may take longer than the role's time-out.
    const NO_TIMEOUT: &str = "SET statement_timeout = 0";
    // Settings that exist in PostgreSQL 14 to 18 and that every role may change.
    const SETTINGS: &str = "\
        SET search_path = pg_catalog; SET jit = off; SET client_min_messages = warning; \
        SET timezone = 'UTC'; SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres'; \
        SET standard_conforming_strings = on; SET bytea_output = 'hex'; SET extra_float_digits = 1; \
        SET row_security = on; SET quote_all_identifiers = off; \
        SET default_transaction_isolation = 'read committed'; SET default_transaction_deferrable = off; \
        SET lock_timeout = 0; SET idle_session_timeout = 0; \
        SET idle_in_transaction_session_timeout = 0; ";
    // Lets the server end the session, and release its locks, when the daemon's machine is lost.
    const TCP: &str = "\
        SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
        SET tcp_user_timeout = 15000; ";
    const STATE: &str = "SELECT current_setting('default_transaction_read_only') = 'on', pg_is_in_recovery(), \
                pg_backend_pid()";
    let batch = [SETTINGS, if is_tcp { TCP } else { "" }, STATE].concat();
    query_despite_timeout(session, NO_TIMEOUT).await?;
    let answer = query_despite_timeout(session, &batch).await?;
    session.apply_settings(settings).await?;
    let row = first_row(&answer);
    let is_true =
        |column: usize| row.and_then(|row| row.try_get(column).ok().flatten()) == Some("t");
    let pid = row.and_then(|row| row.try_get(2).ok().flatten()?.parse().ok());
    session.backend_pid = pid.unwrap_or_default();
    Ok(ServerState {
        is_read_only: is_true(0),
        is_standby: is_true(1),
    })
}
