//! The session in which HTTP requests read the database.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::Problem;
use spcd_postgres::HubError;
use spcd_postgres::connection::context::{HubContext, HubState};
use spcd_postgres::connection::{Endpoint, Session};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after a failed attempt to connect. Requests fail at once until then.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// A session that all requests share: the driver pipelines their statements.
pub struct Hub {
    endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
    context: Arc<HubContext>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The session, and the daemon's state when it was opened.
    session: Option<(Arc<Session>, HubState)>,
    /// Time and error of the last failed attempt to connect.
    failed: Option<(Instant, String)>,
}

impl Hub {
    /// Returns a value without a session. The first request opens it.
    pub fn new(endpoint: watch::Receiver<Option<Arc<Endpoint>>>, context: Arc<HubContext>) -> Self {
        Self {
            endpoint,
            context,
            state: Mutex::default(),
        }
    }

    /// Returns the rows of a statement.
    pub async fn query(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Problem> {
        let session = self.session().await?;
        self.execute(&session, QUERY_TIMEOUT, sql, params).await
    }

    /// Returns the row of a statement that has one, within a time limit. Closes the session if `is_good` is
    /// false for the row.
    pub async fn row_within(
        &self,
        limit: Duration,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        is_good: impl Fn(&Row) -> bool,
    ) -> Result<Row, Problem> {
        let until = Instant::now() + limit;
        let session = timeout_at(until, self.session()).await;
        let session =
            session.unwrap_or_else(|_| Err(unavailable("no session within the time limit")))?;
        let left = until.saturating_duration_since(Instant::now());
        let mut rows = self.execute(&session, left, sql, params).await?;
        let row = rows
            .pop()
            .ok_or_else(|| unavailable("no row was returned"))?;
        if !is_good(&row) {
            self.discard(&session).await;
        }
        Ok(row)
    }

    async fn execute(
        &self,
        session: &Arc<Session>,
        limit: Duration,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Problem> {
        match timeout(limit, session.client.query(sql, params)).await {
            Err(_) => {
                self.discard(session).await;
                Err(unavailable("no answer within the time limit"))
            }
            Ok(Err(error)) => {
                if error.is_closed() {
                    self.discard(session).await;
                }
                Err(unavailable(&format!(
                    "{:#}",
                    anyhow::Error::from(HubError::from(error))
                )))
            }
            Ok(Ok(rows)) => Ok(rows),
        }
    }

    /// Returns the row of a statement that has one.
    pub async fn row(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row, Problem> {
        let mut rows = self.query(sql, params).await?;
        rows.pop().ok_or_else(|| unavailable("no row was returned"))
    }

    async fn session(&self) -> Result<Arc<Session>, Problem> {
        let mut state = self.state.lock().await;
        let hub_state = self.context.state();
        // The database may have moved to another server, and the daemon with it.
        let has_settled = matches!(
            hub_state,
            HubState::Leading { .. } | HubState::Following { .. }
        );
        if let Some((session, opened)) = &state.session
            && !session.client.is_closed()
            && (!has_settled || *opened == hub_state)
        {
            return Ok(session.clone());
        }
        if let Some((when, why)) = &state.failed
            && when.elapsed() < RETRY_PAUSE
        {
            return Err(unavailable(why));
        }
        match timeout(CONNECT_TIMEOUT, self.open()).await {
            Ok(Ok(session)) => {
                let session = Arc::new(session);
                *state = State {
                    session: Some((session.clone(), hub_state)),
                    failed: None,
                };
                Ok(session)
            }
            Ok(Err(why)) => {
                state.failed = Some((Instant::now(), why.clone()));
                Err(unavailable(&why))
            }
            Err(_) => Err(unavailable("no session within the time limit")),
        }
    }

    async fn open(&self) -> Result<Session, String> {
        let endpoint = self.endpoint.borrow().clone();
        let Some(endpoint) = endpoint else {
            return Err("the private cluster is starting".into());
        };
        let opened = async {
            let session = endpoint.connect("http").await?;
            let settings = "SET statement_timeout = '15s'; SET default_transaction_read_only = off";
            session.client.batch_execute(settings).await?;
            anyhow::Ok(session)
        };
        opened.await.map_err(|error| format!("{error:#}"))
    }

    async fn discard(&self, session: &Arc<Session>) {
        let mut state = self.state.lock().await;
        let is_ours = |(kept, _): &(Arc<Session>, HubState)| Arc::ptr_eq(kept, session);
        if state.session.as_ref().is_some_and(is_ours) {
            state.session = None;
        }
    }
}

fn unavailable(why: &str) -> Problem {
    let error = format!("cannot read the database: {why}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, error)
}
