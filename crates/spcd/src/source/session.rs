//! The sessions in which sources are asked whether they are there, apart from those that import.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Watched;
use crate::hub::connect::{Endpoint, Session};
use crate::hub::probe::{Answer, Failure, probe};
use crate::hub::{HubError, apply};
use crate::tunnel::Tunnels;

/// Who has not answered after so long leaves its place to another.
const SLOW: Duration = Duration::from_secs(1);
/// How long it may take to tell the hub that a statement is to stop.
const CANCEL: Duration = Duration::from_secs(5);
/// How many sessions are kept for the next.
const KEPT: usize = 2;

/// What a probe tells, in this order.
pub enum Found {
    /// It takes long.
    Slow(u64),
    /// The source answered, or its time is up.
    Answer {
        number: u64,
        name: String,
        answer: Answer,
    },
    /// Its session is free again. Without an answer before it, none is known.
    Over { number: u64, name: String },
}

/// Sessions with the hub.
pub struct Sessions {
    endpoint: Arc<Endpoint>,
    tunnels: Arc<Tunnels>,
    idle: Mutex<Vec<Session>>,
}

impl Sessions {
    /// None yet.
    pub fn new(endpoint: Arc<Endpoint>, tunnels: Arc<Tunnels>) -> Self {
        Self {
            endpoint,
            tunnels,
            idle: Mutex::default(),
        }
    }

    async fn get(&self) -> anyhow::Result<Session> {
        while let Some(session) = self.idle().pop() {
            if !session.client.is_closed() {
                return Ok(session);
            }
        }
        let session = self.endpoint.connect("probing").await?;
        let settings = "SET idle_in_transaction_session_timeout = '300s'; SET lock_timeout = '2s'";
        session.client.batch_execute(settings).await?;
        apply::prepare_for_secrets(&session.client).await?;
        Ok(session)
    }

    fn put(&self, session: Session) {
        let mut idle = self.idle();
        if idle.len() < KEPT {
            idle.push(session);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a source. It ends only when the session does nothing any more: while a wrapper connects it
/// often cannot be stopped.
pub async fn ask(
    sessions: &Sessions,
    number: u64,
    watched: &Watched,
    sender: &mpsc::UnboundedSender<Found>,
) {
    let connection = &watched.connection;
    let name = connection.name.clone();
    let answer = |answer| Found::Answer {
        number,
        name: name.clone(),
        answer,
    };
    // Nobody listens any more where the lead is over.
    let tell = |found| drop(sender.send(found));
    if let Ok(target) = &connection.target
        && let Ok(session) = sessions.get().await
    {
        let within = Duration::from_millis(watched.schedule.timeout);
        let by = (connection.name.as_str(), connection.target_hash());
        let until = Instant::now() + within;
        let mut probing = Box::pin(async {
            // Its end on this machine takes whoever comes, also while nobody is at the other.
            match sessions.tunnels.ready(target).await {
                Ok(()) => probe(&session.client, Some(by), target, within).await,
                Err(HubError::Refused { text, code }) => {
                    Ok(Answer::Failed(Failure::of(&code, &text)))
                }
                Err(error) => Err(error),
            }
        });
        let mut result = tokio::select! {
            biased;
            result = &mut probing => Some(result),
            () = sleep(SLOW.min(within)) => None,
        };
        if result.is_none() {
            tell(Found::Slow(number));
            result = tokio::select! {
                biased;
                result = &mut probing => Some(result),
                () = sleep_until(until) => None,
            };
        }
        match result {
            Some(Ok(found)) => {
                tell(answer(found));
                drop(probing);
                sessions.put(session);
            }
            Some(Err(error)) => tracing::debug!(connection = name, "a probe was cut off: {error}"),
            None => {
                tell(answer(Answer::Failed(Failure::timeout(within))));
                let _ = timeout(CANCEL, session.canceller().cancel()).await;
                let _ = probing.as_mut().await;
            }
        }
    }
    tell(Found::Over { number, name });
}
