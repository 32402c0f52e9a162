//! A pool of sessions for short statements: observations of jobs and requests of users. Tasks that
//! hold state (the leader lock, LISTEN, a batch of writes) or wait for a source use own sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::connection::context::HubContext;
use crate::connection::{ConnectError, Endpoint, Session};
use crate::{HubError, Limits, secrets};

/// Time limit for a session to become free.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(30);
/// Lower bound of `lock_timeout`, in milliseconds. These statements hold no locks that others need.
const MIN_LOCK_TIMEOUT_MS: u64 = 2000;

/// At most `pool_size` sessions, opened when they are needed. A clone is the same pool.
#[derive(Clone)]
pub struct Pool {
    sessions: managed::Pool<Opener>,
    /// Upper bound that follows from the server's connection limit.
    limit: Arc<AtomicUsize>,
}

/// A session of the pool. [`PooledClient::give_back_after`] returns it; dropping it cancels its
/// statement and closes it.
pub struct PooledClient {
    session: Option<Object<Opener>>,
}

/// Opens sessions like those outside the pool. The manager of deadpool-postgres cannot: it knows one
/// host and only the driver's errors.
struct Opener {
    endpoint: Arc<Endpoint>,
}

impl Pool {
    /// Creates an empty pool.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        let size = usize::try_from(endpoint.context().settings().pool_size).unwrap_or(1);
        let sessions = managed::Pool::builder(Opener { endpoint })
            .max_size(size)
            .wait_timeout(Some(CHECKOUT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build();
        Self {
            // The builder fails only for time-outs without a runtime.
            sessions: sessions.unwrap_or_else(|error| unreachable!("{error}")),
            limit: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    /// Limits the pool to its share of the server's connections.
    pub fn apply_limits(&self, limits: Limits) {
        self.limit.store(limits.for_pool(), Ordering::Relaxed);
    }

    /// Returns an idle session, or opens one.
    ///
    /// # Errors
    /// [`HubError::NoSession`]. The log has the reason.
    pub async fn get(&self) -> Result<PooledClient, HubError> {
        self.resize();
        match self.sessions.get().await {
            Ok(session) => Ok(PooledClient {
                session: Some(session),
            }),
            Err(error) => {
                match error {
                    PoolError::Backend(error) => {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        tracing::warn!(error, "cannot open a session");
                    }
                    error => tracing::warn!(%error, "cannot get a session"),
                }
                Err(HubError::NoSession)
            }
        }
    }

    /// Closes idle sessions, after another host of the endpoint has become the primary.
    pub fn clear(&self) {
        self.sessions.retain(|_, _| false);
    }

    fn resize(&self) {
        let configured = self.sessions.manager().context().settings().pool_size;
        let limit = self.limit.load(Ordering::Relaxed);
        let size = usize::try_from(configured).unwrap_or(1).min(limit);
        if self.sessions.status().max_size != size {
            self.sessions.resize(size);
        }
    }
}

impl PooledClient {
    /// The session's client.
    pub fn client(&self) -> &Client {
        match &self.session {
            Some(session) => &session.client,
            None => unreachable!("the session is taken only when self is consumed"),
        }
    }

    /// Returns the session to the pool if its last statement has completed.
    pub fn give_back_after<T>(mut self, result: &Result<T, HubError>) {
        let is_idle = match result {
            Ok(_) => true,
            Err(HubError::StatementFailed { code, .. }) => *code != SqlState::QUERY_CANCELED,
            Err(_) => false,
        };
        if is_idle {
            drop(self.session.take());
        }
    }
}

impl Drop for PooledClient {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let canceller = Object::take(session).canceller();
            tokio::spawn(async move { canceller.cancel().await });
        }
    }
}

impl Opener {
    fn context(&self) -> &HubContext {
        self.endpoint.context()
    }

    async fn apply_settings(&self, session: &mut Session) -> Result<(), HubError> {
        let settings = self.context().settings();
        if session.settings != settings {
            let lock_timeout = settings.lock_timeout.max(MIN_LOCK_TIMEOUT_MS);
            let set = format!(
                "SET idle_in_transaction_session_timeout = '300s'; \
                 SET statement_timeout = {}; SET lock_timeout = {lock_timeout}",
                settings.statement_timeout
            );
            session.client.batch_execute(&set).await?;
            session.settings = settings;
        }
        Ok(())
    }
}

impl managed::Manager for Opener {
    type Type = Session;
    type Error = ConnectError;

    async fn create(&self) -> Result<Session, ConnectError> {
        let mut session = self.endpoint.connect("pool").await?;
        // Notices and notifications of these sessions are not read.
        session.messages.close();
        // A difference makes `apply_settings` set the pool's own lock_timeout.
        session.settings.lock_timeout = 0;
        let set_up = async {
            self.apply_settings(&mut session).await?;
            secrets::prepare(&session.client).await
        };
        match set_up.await {
            Ok(()) => Ok(session),
            Err(error) => Err(self.endpoint.setup_error(error)),
        }
    }

    async fn recycle(&self, session: &mut Session, used: &Metrics) -> RecycleResult<ConnectError> {
        if session.client.is_closed() {
            return Err(RecycleError::message("closed"));
        }
        let keepalive = Duration::from_millis(self.context().settings().keepalive);
        let last_used = used.recycled.unwrap_or(used.created);
        if Instant::now().saturating_duration_since(last_used) > keepalive
            && session.ping().await.is_err()
        {
            return Err(RecycleError::message("no answer"));
        }
        match self.apply_settings(session).await {
            Ok(()) => Ok(()),
            Err(_) => Err(RecycleError::message("settings not applied")),
        }
    }
}
