//! The sessions in which sources are asked whether they are there, apart from those that import.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spcd_core::health::{ProbeAnswer, ProbeFailure};
use spcd_core::scheduler::WatchedSource;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::hub::connect::{Endpoint, Session};
use crate::hub::crash::Crash;
use crate::hub::probe::probe;
use crate::hub::waiting::{Place, Waiting};
use crate::hub::{HubError, apply};
use crate::tunnel::Tunnels;

/// Who has not answered after so long leaves its place to another.
const SLOW: Duration = Duration::from_secs(1);
/// How long it may take to tell the hub that a statement is to stop.
const CANCEL: Duration = Duration::from_secs(5);
/// How long a place is waited for.
const NO_PLACE: Duration = Duration::from_secs(5);
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
        target_hash: String,
        answer: ProbeAnswer,
    },
    /// Its session is free again. Without an answer before it, none is known.
    Over { number: u64, name: String },
}

/// Sessions with the hub.
pub struct Sessions {
    endpoint: Arc<Endpoint>,
    tunnels: Arc<Tunnels>,
    waiting: Arc<Waiting>,
    idle: Mutex<Vec<Prober>>,
}

/// A session to ask in.
struct Prober {
    session: Session,
    /// The wrapper whose library it has loaded, unless it comes with Postgres.
    library: Option<String>,
    _place: Place,
}

impl Sessions {
    /// None yet, and so many at most.
    pub fn new(endpoint: Arc<Endpoint>, tunnels: Arc<Tunnels>, places: usize) -> Self {
        Self {
            endpoint,
            tunnels,
            waiting: Waiting::new(places),
            idle: Mutex::default(),
        }
    }

    /// A session that has loaded the library and no other. An idle one that does not fit is closed, so
    /// that its place is free.
    async fn get(&self, library: Option<&str>) -> anyhow::Result<Prober> {
        let idle = {
            let mut idle = self.idle();
            idle.retain(|prober| !prober.session.client.is_closed());
            match idle
                .iter()
                .rposition(|prober| prober.library.as_deref() == library)
            {
                Some(place) => Some(idle.swap_remove(place)),
                None => {
                    drop(idle.pop());
                    None
                }
            }
        };
        if let Some(prober) = idle {
            return Ok(prober);
        }
        let place = timeout(NO_PLACE, self.waiting.place()).await?;
        let session = self.endpoint.connect("probing").await?;
        let settings = "SET idle_in_transaction_session_timeout = '300s'; SET lock_timeout = '2s'";
        session.client.batch_execute(settings).await?;
        apply::prepare_for_secrets(&session.client).await?;
        Ok(Prober {
            session,
            library: library.map(str::to_owned),
            _place: place,
        })
    }

    fn put(&self, prober: Prober) {
        let mut idle = self.idle();
        // Where there are few, others may need it more.
        if idle.len() < KEPT && !self.waiting.is_full() {
            idle.push(prober);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Prober>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a source. It ends only when the session does nothing any more: while a wrapper connects it
/// often cannot be stopped.
pub async fn ask(
    sessions: &Sessions,
    number: u64,
    watched: &WatchedSource,
    sender: &mpsc::UnboundedSender<Found>,
) {
    let connection = &watched.connection;
    let name = connection.name.clone();
    let answer = |answer| Found::Answer {
        number,
        name: name.clone(),
        target_hash: connection.target_hash().to_owned(),
        answer,
    };
    // Nobody listens any more where the lead is over.
    let tell = |found| drop(sender.send(found));
    if let Ok(target) = &connection.target
        && let Ok(prober) = sessions.get(target.library()).await
    {
        let session = &prober.session;
        let within = Duration::from_millis(watched.schedule.timeout);
        let by = (connection.name.as_str(), connection.target_hash());
        let until = Instant::now() + within;
        let mut probing = Box::pin(async {
            // Its end on this machine takes whoever comes, also while nobody is at the other.
            match sessions.tunnels.ready(target).await {
                Ok(()) => probe(&session.client, Some(by), target, within).await,
                Err(HubError::Refused { text, code }) => {
                    Ok(ProbeAnswer::Failed(ProbeFailure::of(code.code(), &text)))
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
                sessions.put(prober);
            }
            Some(Err(error)) => {
                tracing::debug!(connection = name, "a probe was cut off: {error}");
                if prober.library.is_some() && session.died() {
                    let crash = Crash::new(&name, connection.target_hash(), &target.wrapper);
                    sessions.endpoint.shared().crashed(crash);
                }
            }
            None => {
                tell(answer(ProbeAnswer::Failed(ProbeFailure::timeout(within))));
                let _ = timeout(CANCEL, session.canceller().cancel()).await;
                let _ = probing.as_mut().await;
            }
        }
    }
    tell(Found::Over { number, name });
}
