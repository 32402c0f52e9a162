//! Sessions for asking sources. Each loads the library of at most one wrapper.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use spcd_core::config::{ForeignSource, HubSettings};
use spcd_core::scheduler::{PermitKind, Priority};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{CANCEL_TIMEOUT, STATEMENT_TIMEOUT_MARGIN, Sources, deadline};
use crate::daemon::executors::jobs::permits::{Permit, UncancellablePermit};
use spcd_postgres::connection::Session;
use spcd_postgres::connection::crowded;
use spcd_postgres::connection::pool::PooledClient;
use spcd_postgres::crash_guard::Crash;
use spcd_postgres::{HubError, secrets};

/// Maximum number of idle sessions. More are needed only while many sources are slow.
const MAX_IDLE: usize = 4;

/// A session for asking sources.
pub(super) struct ImportSession {
    session: Session,
    /// The wrapper whose library it has loaded, unless it comes with Postgres.
    library: Option<String>,
    _permit: Permit,
}

/// A session that must be given back after success. Dropping it cancels its statement and closes it.
pub struct BorrowedSession<'a> {
    sources: &'a Sources,
    session: Arc<ImportSession>,
    permit: Option<UncancellablePermit>,
    in_order: bool,
    _use: SessionUse<'a>,
}

/// Counts a session as in use.
struct SessionUse<'a>(&'a AtomicUsize);

/// A session of the pool, and its permit.
pub struct PooledSession {
    session: PooledClient,
    _permit: Permit,
}

impl Sources {
    /// Waits for a session of the pool.
    pub async fn session(&self, priority: Priority) -> Result<PooledSession, HubError> {
        let permit = self.permits.acquire(PermitKind::Quick, priority).await;
        Ok(PooledSession {
            session: self.pool.get().await?,
            _permit: permit,
        })
    }

    /// Waits for a session for asking a source, at most for `deadline`.
    pub(super) async fn open(
        &self,
        target: &ForeignSource,
        permit: Option<UncancellablePermit>,
        priority: Priority,
        deadline: Duration,
    ) -> Result<BorrowedSession<'_>, HubError> {
        let library = target.exclusive_library();
        let settings = self.endpoint.context().settings();
        let until = Instant::now() + deadline;
        let session_use = SessionUse::count(&self.users);
        let session = loop {
            if let Some(session) = self.idle_session(settings, library) {
                break session;
            }
            let session_permit = tokio::select! {
                biased;
                permit = self.permits.acquire(PermitKind::Session, priority) => permit,
                () = self.freed.notified() => continue,
                () = sleep_until(until) => return Err(HubError::NoSession),
            };
            break Arc::new(ImportSession {
                session: self.connect(deadline).await?,
                library: library.map(str::to_owned),
                _permit: session_permit,
            });
        };
        let limit = Duration::from_millis(settings.statement_timeout);
        if !limit.is_zero() && limit <= deadline {
            let limit = (deadline + STATEMENT_TIMEOUT_MARGIN).as_millis();
            let set = format!("SET statement_timeout = {limit}");
            session.session.client.batch_execute(&set).await?;
        }
        Ok(BorrowedSession {
            sources: self,
            session,
            permit,
            in_order: false,
            _use: session_use,
        })
    }

    /// Returns an idle session that has loaded the library and no other. One that does not fit is
    /// closed, so that its permit is free.
    fn idle_session(
        &self,
        settings: HubSettings,
        library: Option<&str>,
    ) -> Option<Arc<ImportSession>> {
        let mut idle = self.idle.lock();
        let is_usable = |session: &Arc<ImportSession>| {
            !session.session.client.is_closed() && session.session.settings == settings
        };
        idle.retain(is_usable);
        let fits = |session: &Arc<ImportSession>| session.library.as_deref() == library;
        let found = match idle.iter().rposition(fits) {
            Some(place) => Some(idle.swap_remove(place)),
            None => {
                drop(idle.pop());
                None
            }
        };
        if !idle.is_empty() {
            self.freed.notify_one();
        }
        found
    }

    /// Keeps a crash of the server process during an import until a leader can record it: the server is
    /// restarting.
    pub fn crashed(&self, crash: Crash) {
        self.endpoint.context().record_crash(crash);
    }

    /// Waits for a session for statements that load a wrapper's library.
    pub async fn bound(
        &self,
        target: &ForeignSource,
        priority: Priority,
    ) -> Result<BorrowedSession<'_>, HubError> {
        self.open(target, None, priority, deadline(target)).await
    }

    async fn connect(&self, within: Duration) -> Result<Session, HubError> {
        let opened = async {
            let mut session = crowded::open_session(&self.endpoint, "asking", within).await?;
            // An import records its own notices. Nothing else reads the messages.
            session.messages.close();
            let settings =
                "SET idle_in_transaction_session_timeout = '300s'; SET lock_timeout = '2s'";
            session.client.batch_execute(settings).await?;
            secrets::prepare(&session.client).await?;
            anyhow::Ok(session)
        };
        opened.await.map_err(|error| {
            tracing::warn!("cannot open a session to ask a source: {error:#}");
            HubError::NoSession
        })
    }
}

impl BorrowedSession<'_> {
    /// The session.
    pub fn session(&self) -> &Session {
        &self.session.session
    }

    /// The session's client.
    pub fn client(&self) -> &Client {
        &self.session.session.client
    }

    /// Gives the session back if its statements have ended.
    pub fn give_back_after<T>(mut self, result: &Result<T, HubError>) {
        self.in_order = match result {
            Ok(_) => true,
            Err(HubError::StatementFailed { code, .. }) => *code != SqlState::QUERY_CANCELED,
            Err(HubError::SourceAtWork) => true,
            Err(_) => false,
        };
    }
}

impl PooledSession {
    /// The session's client.
    pub fn client(&self) -> &Client {
        self.session.client()
    }

    /// Gives the session back if its statements have ended.
    pub fn give_back_after<T>(self, result: &Result<T, HubError>) {
        self.session.give_back_after(result);
    }
}

impl<'a> SessionUse<'a> {
    fn count(users: &'a AtomicUsize) -> Self {
        users.fetch_add(1, Ordering::Relaxed);
        Self(users)
    }
}

impl Drop for SessionUse<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for BorrowedSession<'_> {
    fn drop(&mut self) {
        if !self.in_order {
            let permits = &self.sources.permits;
            let stuck = (self.permit.take()).map(|permit| permits.stuck(permit));
            let given_up = self.session.clone();
            tokio::spawn(async move {
                let session = &given_up.session;
                let _ = timeout(CANCEL_TIMEOUT, session.canceller().cancel()).await;
                // Answered once the running statement has ended. The permit is kept until then.
                let _ = session.client.simple_query("").await;
                drop(stuck);
            });
            return;
        }
        let is_last = self.sources.users.load(Ordering::Relaxed) <= 1;
        let mut idle = self.sources.idle.lock();
        if self.sources.has_few_sessions && is_last {
            // Leaves the sessions to probes.
            idle.clear();
        } else if idle.len() < MAX_IDLE {
            idle.push(self.session.clone());
            self.sources.freed.notify_one();
        }
    }
}
