//! Sessions for short work, shared by all who have some: looks of jobs, what people are shown.
//! Those that hold something (the lead, LISTEN, a batch that is written) and those that wait for a
//! source have sessions of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connect::{ConnectError, Endpoint, Session};
use super::state::Shared;
use super::{HubError, Limits, apply};

/// How long to wait until somebody gives a session back.
const WAIT: Duration = Duration::from_secs(30);
/// How long a look waits for a lock at least: it is in nobody's way.
const LOCK_TIMEOUT: u64 = 2000;

/// At most `pool_size` sessions, opened when they are needed. A clone is the same pool.
#[derive(Clone)]
pub struct Pool {
    sessions: managed::Pool<Opener>,
    /// What the server has room for.
    room: Arc<AtomicUsize>,
}

/// A session that goes back to the pool when all went well, and is stopped when it is dropped
/// before.
pub struct Pooled {
    session: Option<Object<Opener>>,
}

/// deadpool-postgres's own manager knows one server and the driver's errors; this one follows the
/// hosts of an endpoint, and its sessions are set up like all others.
struct Opener {
    endpoint: Arc<Endpoint>,
}

impl Pool {
    /// None are open yet.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        let size = usize::try_from(endpoint.shared().settings().pool_size).unwrap_or(1);
        let sessions = managed::Pool::builder(Opener { endpoint })
            .max_size(size)
            .wait_timeout(Some(WAIT))
            .runtime(Runtime::Tokio1)
            .build();
        Self {
            // It fails only where there are time-outs without a runtime.
            sessions: sessions.unwrap_or_else(|error| unreachable!("{error}")),
            room: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    /// Leaves most of the sessions that the server lets in to others.
    pub fn fit(&self, limits: Limits) {
        self.room.store(limits.for_pool(), Ordering::Relaxed);
    }

    /// A session; opened where none is idle.
    ///
    /// # Errors
    /// [`HubError::NoSession`]; the log says why.
    pub async fn get(&self) -> Result<Pooled, HubError> {
        self.resize();
        match self.sessions.get().await {
            Ok(session) => Ok(Pooled {
                session: Some(session),
            }),
            Err(error) => {
                match error {
                    PoolError::Backend(error) => {
                        tracing::warn!("cannot open a session: {:#}", anyhow::Error::from(error));
                    }
                    error => tracing::warn!("cannot get a session: {error}"),
                }
                Err(HubError::NoSession)
            }
        }
    }

    /// Closes what is idle: it leads to a server that is no longer the one.
    pub fn clear(&self) {
        self.sessions.retain(|_, _| false);
    }

    fn resize(&self) {
        let wanted = self.sessions.manager().shared().settings().pool_size;
        let room = self.room.load(Ordering::Relaxed);
        let wanted = usize::try_from(wanted).unwrap_or(1).min(room);
        if self.sessions.status().max_size != wanted {
            self.sessions.resize(wanted);
        }
    }
}

impl Pooled {
    /// The session's client.
    pub fn client(&self) -> &Client {
        match &self.session {
            Some(session) => &session.client,
            None => unreachable!("it is taken only when this is dropped"),
        }
    }

    /// Gives the session back where its statements came to an end.
    pub fn give_back_after<T>(mut self, result: &Result<T, HubError>) {
        let in_order = match result {
            Ok(_) => true,
            Err(HubError::Refused { code, .. }) => *code != SqlState::QUERY_CANCELED,
            Err(_) => false,
        };
        if in_order {
            drop(self.session.take());
        }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let canceller = Object::take(session).canceller();
            tokio::spawn(async move { canceller.cancel().await });
        }
    }
}

impl Opener {
    fn shared(&self) -> &Shared {
        self.endpoint.shared()
    }

    async fn settle(&self, session: &mut Session) -> Result<(), HubError> {
        let settings = self.shared().settings();
        if session.settings != settings {
            let lock_timeout = settings.lock_timeout.max(LOCK_TIMEOUT);
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
        // Nobody reads what a server says to it beside its answers.
        session.messages.close();
        // Any other than those it has: its locks are waited for in another way.
        session.settings.lock_timeout = 0;
        let prepared = async {
            self.settle(&mut session).await?;
            apply::prepare_for_secrets(&session.client).await
        };
        match prepared.await {
            Ok(()) => Ok(session),
            Err(error) => Err(self.endpoint.cannot_use(error)),
        }
    }

    async fn recycle(&self, session: &mut Session, used: &Metrics) -> RecycleResult<ConnectError> {
        if session.client.is_closed() {
            return Err(RecycleError::message("closed"));
        }
        let keepalive = Duration::from_millis(self.shared().settings().keepalive);
        let last = used.recycled.unwrap_or(used.created);
        if Instant::now().saturating_duration_since(last) > keepalive
            && session.ping().await.is_err()
        {
            return Err(RecycleError::message("it does not answer"));
        }
        match self.settle(session).await {
            Ok(()) => Ok(()),
            Err(_) => Err(RecycleError::message("its settings cannot be changed")),
        }
    }
}
