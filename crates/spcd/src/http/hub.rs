//! Sessions with the database for HTTP requests.

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

/// Deadline of a request for a session, and for an answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(15);
/// A server that is away is not tried more often than this.
const REST: Duration = Duration::from_millis(250);

/// One session, which all requests share: the driver sends one statement after the other.
pub struct Hub {
    endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
    standing: Arc<HubContext>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// With how things stood when it was opened.
    session: Option<(Arc<Session>, HubState)>,
    /// When it last could not be had, and why.
    failed: Option<(Instant, String)>,
}

impl Hub {
    /// No session yet.
    pub fn new(
        endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
        standing: Arc<HubContext>,
    ) -> Self {
        Self {
            endpoint,
            standing,
            state: Mutex::default(),
        }
    }

    /// Rows of one statement.
    pub async fn query(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Problem> {
        let session = self.session().await?;
        self.ask(&session, ANSWER, sql, params).await
    }

    /// Returns the row of a statement that has one, for requests with a short deadline. `is_good` decides
    /// whether the session is kept.
    pub async fn row_within(
        &self,
        limit: Duration,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        is_good: impl Fn(&Row) -> bool,
    ) -> Result<Row, Problem> {
        let until = Instant::now() + limit;
        let session = timeout_at(until, self.session()).await;
        let session = session.unwrap_or_else(|_| Err(away("no session in time")))?;
        let left = until.saturating_duration_since(Instant::now());
        let mut rows = self.ask(&session, left, sql, params).await?;
        let row = rows.pop().ok_or_else(|| away("it answers nothing"))?;
        if !is_good(&row) {
            self.forget(&session).await;
        }
        Ok(row)
    }

    async fn ask(
        &self,
        session: &Arc<Session>,
        limit: Duration,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Problem> {
        match timeout(limit, session.client.query(sql, params)).await {
            Err(_) => {
                self.forget(session).await;
                Err(away("it does not answer in time"))
            }
            Ok(Err(error)) => {
                if error.is_closed() {
                    self.forget(session).await;
                }
                Err(away(&format!(
                    "{:#}",
                    anyhow::Error::from(HubError::from(error))
                )))
            }
            Ok(Ok(rows)) => Ok(rows),
        }
    }

    /// The one row of a statement that has one.
    pub async fn row(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row, Problem> {
        let mut rows = self.query(sql, params).await?;
        rows.pop().ok_or_else(|| away("it answers nothing"))
    }

    async fn session(&self) -> Result<Arc<Session>, Problem> {
        let mut state = self.state.lock().await;
        let standing = self.standing.state();
        // The daemon may have followed its database to another server since.
        let has_settled = matches!(
            standing,
            HubState::Leading { .. } | HubState::Following { .. }
        );
        if let Some((session, opened)) = &state.session
            && !session.client.is_closed()
            && (!has_settled || *opened == standing)
        {
            return Ok(session.clone());
        }
        if let Some((when, why)) = &state.failed
            && when.elapsed() < REST
        {
            return Err(away(why));
        }
        match timeout(CONNECT, self.open()).await {
            Ok(Ok(session)) => {
                let session = Arc::new(session);
                *state = State {
                    session: Some((session.clone(), standing)),
                    failed: None,
                };
                Ok(session)
            }
            Ok(Err(why)) => {
                state.failed = Some((Instant::now(), why.clone()));
                Err(away(&why))
            }
            Err(_) => Err(away("no session in time")),
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

    async fn forget(&self, session: &Arc<Session>) {
        let mut state = self.state.lock().await;
        let is_ours = |(kept, _): &(Arc<Session>, HubState)| Arc::ptr_eq(kept, session);
        if state.session.as_ref().is_some_and(is_ours) {
            state.session = None;
        }
    }
}

fn away(why: &str) -> Problem {
    let error = format!("the database cannot be read: {why}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, error)
}
