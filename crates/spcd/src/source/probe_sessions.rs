//! Sessions for probes, separate from those for imports.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use spcd_core::health::{ProbeAnswer, ProbeFailure};
use spcd_core::scheduler::WatchedSource;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::source::ask::probe;
use crate::tunnel::Tunnels;
use spcd_postgres::connection::{Endpoint, Session, crowded};
use spcd_postgres::crash_guard::{Crash, Question};
use spcd_postgres::{HubError, secrets};

/// Time without an answer after which another probe may start.
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// Time limit of a cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for a permit of a session, and for the server to have room for that session.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of idle sessions.
const MAX_IDLE: usize = 2;

/// Progress of a probe, in this order.
pub enum ProbeProgress {
    /// The source has not answered within [`SLOW_AFTER`].
    Slow(u64),
    /// The source answered, or the time limit was reached.
    Answer {
        number: u64,
        name: String,
        target_hash: String,
        answer: ProbeAnswer,
    },
    /// The session is free again. The result is unknown unless an answer came before.
    Ended { number: u64, name: String },
}

/// Sessions with the hub.
pub struct ProbeSessions {
    endpoint: Arc<Endpoint>,
    tunnels: Arc<Tunnels>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<ProbeSession>>,
}

/// A session, and the library that it has loaded.
struct ProbeSession {
    session: Session,
    /// The wrapper whose library it has loaded, unless it comes with Postgres.
    library: Option<String>,
    _permit: OwnedSemaphorePermit,
}

impl ProbeSessions {
    /// Allows at most `max` sessions.
    pub fn new(endpoint: Arc<Endpoint>, tunnels: Arc<Tunnels>, max: usize) -> Self {
        Self {
            endpoint,
            tunnels,
            permits: Arc::new(Semaphore::new(max)),
            idle: Mutex::default(),
        }
    }

    /// Returns a session that has loaded the library and no other. An idle one that does not fit is
    /// closed, so that its permit is free.
    async fn get(&self, library: Option<&str>) -> anyhow::Result<ProbeSession> {
        let idle = {
            let mut idle = self.idle.lock();
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
        let permit = self.permit().await?;
        let session = crowded::open_next_session(&self.endpoint, "probing", OPEN_TIMEOUT).await?;
        let settings = "SET idle_in_transaction_session_timeout = '300s'; SET lock_timeout = '2s'";
        session.client.batch_execute(settings).await?;
        secrets::prepare(&session.client).await?;
        Ok(ProbeSession {
            session,
            library: library.map(str::to_owned),
            _permit: permit,
        })
    }

    /// Waits for room for a session.
    pub async fn permit(&self) -> anyhow::Result<OwnedSemaphorePermit> {
        Ok(timeout(OPEN_TIMEOUT, self.permits.clone().acquire_owned()).await??)
    }

    fn give_back(&self, prober: ProbeSession) {
        let mut idle = self.idle.lock();
        // Closes the session if all permits are taken, since another probe may need its permit.
        if idle.len() < MAX_IDLE && self.permits.available_permits() > 0 {
            idle.push(prober);
        }
    }
}

/// Probes a source. Returns only after the session is idle, since many wrappers cannot be canceled while
/// they connect.
pub async fn run_probe(
    sessions: &ProbeSessions,
    number: u64,
    watched: &WatchedSource,
    sender: &mpsc::UnboundedSender<ProbeProgress>,
) {
    let connection = &watched.connection;
    let name = connection.name.clone();
    let answer = |answer| ProbeProgress::Answer {
        number,
        name: name.clone(),
        target_hash: connection.target_hash().to_owned(),
        answer,
    };
    // The receiver is gone if the leadership is lost.
    let send = |found| drop(sender.send(found));
    if let Ok(target) = &connection.target
        && let Ok(prober) = sessions.get(target.exclusive_library()).await
    {
        let session = &prober.session;
        let within = Duration::from_millis(watched.schedule.timeout);
        let by = (connection.name.as_str(), connection.target_hash());
        let until = Instant::now() + within;
        let mut probing = Box::pin(async {
            // The local end of a tunnel accepts connections even if the remote end is down.
            match sessions.tunnels.ready(target).await {
                Ok(()) => probe(&session.client, Some(by), target, within).await,
                Err(HubError::StatementFailed { text, code }) => Ok(ProbeAnswer::Failed(
                    ProbeFailure::classify(code.code(), &text),
                )),
                Err(error) => Err(error),
            }
        });
        let mut result = tokio::select! {
            biased;
            result = &mut probing => Some(result),
            () = sleep(SLOW_AFTER.min(within)) => None,
        };
        if result.is_none() {
            send(ProbeProgress::Slow(number));
            result = tokio::select! {
                biased;
                result = &mut probing => Some(result),
                () = sleep_until(until) => None,
            };
        }
        match result {
            Some(Ok(found)) => {
                send(answer(found));
                drop(probing);
                sessions.give_back(prober);
            }
            Some(Err(error)) => {
                tracing::debug!(connection = name, %error, "a probe was interrupted");
                if prober.library.is_some() && session.has_ended_abruptly() {
                    sessions.endpoint.context().record_crash(Crash {
                        name: name.clone(),
                        target_hash: connection.target_hash().to_owned(),
                        wrapper: target.wrapper.clone(),
                        question: Question::Probe,
                        backend_pid: session.backend_pid,
                    });
                }
            }
            None => {
                send(answer(ProbeAnswer::Failed(ProbeFailure::timeout(within))));
                let _ = timeout(CANCEL_TIMEOUT, session.canceller().cancel()).await;
                let _ = probing.as_mut().await;
            }
        }
    }
    send(ProbeProgress::Ended { number, name });
}
