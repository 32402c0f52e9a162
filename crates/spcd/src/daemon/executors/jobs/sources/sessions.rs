//! The sessions in which sources are asked: few that answer quickly, many that wait, each for one
//! wrapper's library.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use spcd_core::config::{HubSettings, Target};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{BRISK, CANCEL, GRACE, Sources, deadline};
use crate::daemon::executors::jobs::gate::{Pass, Place};
use crate::hub::connect::Session;
use crate::hub::crash::Crash;
use crate::hub::pool::Pooled;
use crate::hub::waiting::{self, Place as Seat, Risk};
use crate::hub::{HubError, apply};

/// A session to ask in.
pub(super) struct Waiter {
    session: Session,
    /// The wrapper whose library it has loaded, unless it comes with Postgres.
    library: Option<String>,
    _place: Seat,
}

/// A session that is given back when all went well, and stopped when it is dropped before.
pub struct Borrowed<'a> {
    sources: &'a Sources,
    waiter: Arc<Waiter>,
    risk: Option<Risk>,
    in_order: bool,
}

/// A shared session for a look at the hub, for as long as its turn lasts.
pub struct Look {
    session: Pooled,
    _pass: Pass,
}

impl Sources {
    /// A session for a look at the hub, in one's turn.
    pub async fn session(&self, place: Place) -> Result<Look, HubError> {
        let pass = self.brisk.enter(place, 1).await;
        Ok(Look {
            session: self.pool.get().await?,
            _pass: pass,
        })
    }

    /// A session to wait in for a source, for so long.
    pub(super) async fn open(
        &self,
        target: &Target,
        risk: Option<Risk>,
        deadline: Duration,
    ) -> Result<Borrowed<'_>, HubError> {
        let library = target.library();
        let settings = self.endpoint.shared().settings();
        let until = Instant::now() + deadline;
        let waiter = loop {
            if let Some(waiter) = self.idle_session(settings, library) {
                break waiter;
            }
            let place = tokio::select! {
                biased;
                place = self.waiting.place() => place,
                () = self.freed.notified() => continue,
                () = sleep_until(until) => return Err(HubError::NoSession),
            };
            break Arc::new(Waiter {
                session: self.connect(deadline).await?,
                library: library.map(str::to_owned),
                _place: place,
            });
        };
        let limit = Duration::from_millis(settings.statement_timeout);
        if !limit.is_zero() && limit <= deadline {
            let limit = (deadline + GRACE).as_millis();
            let set = format!("SET statement_timeout = {limit}");
            waiter.session.client.batch_execute(&set).await?;
        }
        Ok(Borrowed {
            sources: self,
            waiter,
            risk,
            in_order: false,
        })
    }

    /// An idle session that has loaded the library and no other. One that does not fit is closed, so
    /// that its place is free.
    fn idle_session(&self, settings: HubSettings, library: Option<&str>) -> Option<Arc<Waiter>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let is_usable = |waiter: &Arc<Waiter>| {
            !waiter.session.client.is_closed() && waiter.session.settings == settings
        };
        idle.retain(is_usable);
        let fits = |waiter: &Arc<Waiter>| waiter.library.as_deref() == library;
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

    /// Remembers that asking a connection's source ended the server process, until a leader can write
    /// that down: the server restarts now.
    pub fn crashed(&self, name: &str, target_hash: &str, target: &Target) {
        let crash = Crash::new(name, target_hash, &target.wrapper);
        self.endpoint.shared().crashed(crash);
    }

    /// A session for statements that load a wrapper's library.
    pub async fn bound(&self, target: &Target) -> Result<Borrowed<'_>, HubError> {
        self.open(target, None, deadline(target)).await
    }

    async fn connect(&self, within: Duration) -> Result<Session, HubError> {
        let opened = async {
            let mut session = waiting::session(&self.endpoint, "asking", within).await?;
            // An import reads its own notices, and no one else reads any.
            session.messages.close();
            let settings =
                "SET idle_in_transaction_session_timeout = '300s'; SET lock_timeout = '2s'";
            session.client.batch_execute(settings).await?;
            apply::prepare_for_secrets(&session.client).await?;
            anyhow::Ok(session)
        };
        opened.await.map_err(|error| {
            tracing::warn!("cannot open a session to ask a source: {error:#}");
            HubError::NoSession
        })
    }
}

impl Borrowed<'_> {
    /// The session.
    pub fn session(&self) -> &Session {
        &self.waiter.session
    }

    /// The session's client.
    pub fn client(&self) -> &Client {
        &self.waiter.session.client
    }

    /// Gives the session back where its statements came to an end.
    pub fn give_back_after<T>(mut self, result: &Result<T, HubError>) {
        self.in_order = match result {
            Ok(_) => true,
            Err(HubError::Refused { code, .. }) => *code != SqlState::QUERY_CANCELED,
            Err(_) => false,
        };
    }
}

impl Look {
    /// The session's client.
    pub fn client(&self) -> &Client {
        self.session.client()
    }

    /// Gives the session back where its statements came to an end.
    pub fn give_back_after<T>(self, result: &Result<T, HubError>) {
        self.session.give_back_after(result);
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if !self.in_order {
            let waiting = &self.sources.waiting;
            let hangs = self.risk.take().map(|risk| waiting.hangs(risk));
            let waiter = self.waiter.clone();
            tokio::spawn(async move {
                let session = &waiter.session;
                let _ = timeout(CANCEL, session.canceller().cancel()).await;
                // It is answered when what is under way is over, and that keeps its place.
                let _ = session.client.simple_query("").await;
                drop(hangs);
            });
            return;
        }
        let mut idle = self
            .sources
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // More were only needed while many kept us waiting.
        if idle.len() < BRISK {
            idle.push(self.waiter.clone());
            self.sources.freed.notify_one();
        }
    }
}
