//! The database, as those who look at it over HTTP reach it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::Problem;
use crate::hub::HubError;
use crate::hub::connect::{Endpoint, Session};

/// How long somebody who looks waits for a session, and for an answer.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(15);
/// A server that is away is not tried more often than this.
const REST: Duration = Duration::from_millis(250);

/// One session, which all requests share: the driver sends one statement after the other.
pub struct Hub {
    endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    /// When it last could not be had, and why.
    failed: Option<(Instant, String)>,
}

impl Hub {
    /// No session yet.
    pub fn new(endpoint: watch::Receiver<Option<Arc<Endpoint>>>) -> Self {
        Self {
            endpoint,
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
        match timeout(ANSWER, session.client.query(sql, params)).await {
            Err(_) => {
                self.forget(&session).await;
                Err(away("it does not answer in time"))
            }
            Ok(Err(error)) => {
                if error.is_closed() {
                    self.forget(&session).await;
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
        if let Some(session) = &state.session
            && !session.client.is_closed()
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
                    session: Some(session.clone()),
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
        let is_ours = |kept: &Arc<Session>| Arc::ptr_eq(kept, session);
        if state.session.as_ref().is_some_and(is_ours) {
            state.session = None;
        }
    }
}

fn away(why: &str) -> Problem {
    let error = format!("the database cannot be read: {why}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, error)
}
