//! Sessions with the hub that wait for sources: how many there may be, and which of them hang.
//!
//! Some wrappers cannot be stopped while they connect: neither a cancel nor a `statement_timeout`
//! reaches a client library that waits for a server which says nothing, and such a session stays
//! until the source hangs up. So it keeps its place, and where enough hang no more are risked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spcd_core::backoff::Backoff;
use spcd_core::scheduler::stuck_sessions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::connect::{ConnectError, Endpoint, Session};

/// How long one that hangs keeps its own source from being asked again, unless somebody wants that:
/// where something in between swallows everything, it hangs for ever.
const RISK: Duration = Duration::from_secs(3600);

/// The pauses before a server that had no room for a session is asked again.
const BACKOFF: Backoff = Backoff::new(100, 5_000);

/// Opens a session. Where the server has no room for it now, that is said once, and tried again for
/// so long.
///
/// # Errors
/// As [`Endpoint::connect`].
pub async fn session(
    endpoint: &Endpoint,
    purpose: &str,
    within: Duration,
) -> Result<Session, ConnectError> {
    let (began, mut times) = (Instant::now(), 0);
    loop {
        let result = endpoint.connect(purpose).await;
        let full = result.as_ref().is_err_and(ConnectError::is_full);
        let news = endpoint.shared().crowded(purpose, full);
        let Err(error) = result else { return result };
        if !full {
            return Err(error);
        }
        if !news && began.elapsed() > within {
            return Err(error);
        }
        if news {
            let told = anyhow::Error::from(error);
            tracing::warn!(
                "there is no room for another session ({purpose}): {told:#}; trying again \
                 until there is (`spcd doctor` says how many there should be)"
            );
        }
        times += 1;
        sleep(Duration::from_millis(BACKOFF.pause(times))).await;
    }
}

/// The places of those that wait for one purpose.
pub struct Waiting {
    places: Arc<Semaphore>,
    /// Of them, those that may come to hang: the others are left for who can be stopped.
    risks: Arc<Semaphore>,
    most_risks: usize,
    hung: Mutex<Hung>,
}

#[derive(Default)]
struct Hung {
    number: u64,
    sessions: BTreeMap<u64, One>,
}

/// A session that hangs.
struct One {
    wrapper: String,
    source: String,
    since: Instant,
}

/// Held for as long as a session is open.
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

/// Held while a source is asked for which a session may come to hang.
pub struct Risk {
    wrapper: String,
    source: String,
    permit: Option<OwnedSemaphorePermit>,
}

/// Held for as long as a session hangs.
pub struct Hangs {
    waiting: Arc<Waiting>,
    number: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Waiting {
    /// So many sessions at a time.
    pub fn new(places: usize) -> Arc<Self> {
        let most_risks = (places * 2 / 3).max(1);
        Arc::new(Self {
            places: Arc::new(Semaphore::new(places)),
            risks: Arc::new(Semaphore::new(most_risks)),
            most_risks,
            hung: Mutex::default(),
        })
    }

    /// Whether all are taken.
    pub fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// A place for a session, as soon as there is one.
    pub async fn place(&self) -> Place {
        Place {
            // It is never closed.
            _permit: self.places.clone().acquire_owned().await.ok(),
        }
    }

    /// Leave to ask a source that may not let go of its session, as soon as there is room for one
    /// more such session. Where somebody wants it, `urgent`, one is risked although another hangs.
    ///
    /// # Errors
    /// Why it is better not asked.
    pub async fn risk(
        &self,
        wrapper: &str,
        source: &str,
        urgent: bool,
        within: Duration,
    ) -> Result<Risk, String> {
        if let Some(why) = self.refuses(wrapper, source, urgent) {
            return Err(why);
        }
        let permit = timeout(within, self.risks.clone().acquire_owned()).await;
        Ok(Risk {
            wrapper: wrapper.to_owned(),
            source: source.to_owned(),
            permit: permit.map_err(|_| self.crowd(wrapper))?.ok(),
        })
    }

    /// Takes note of a session that is given up and does not end.
    pub fn hangs(self: &Arc<Self>, risk: Risk) -> Hangs {
        let mut hung = self.hung();
        hung.number += 1;
        let number = hung.number;
        let one = One {
            wrapper: risk.wrapper,
            source: risk.source,
            since: Instant::now(),
        };
        hung.sessions.insert(number, one);
        Hangs {
            waiting: self.clone(),
            number,
            _permit: risk.permit,
        }
    }

    fn refuses(&self, wrapper: &str, source: &str, urgent: bool) -> Option<String> {
        let hung = self.hung();
        let own = hung.sessions.values().filter(|one| one.source == source);
        let last = own.map(|one| one.since).max();
        if last.is_some_and(|since| since.elapsed() < RISK) && !urgent {
            return Some(format!(
                "the source did not answer, and a session still waits for it in {wrapper}, which \
                 cannot be stopped while it connects; another is risked when that one ends, when \
                 somebody asks, or after an hour"
            ));
        }
        let full = hung.sessions.len() >= self.most_risks;
        drop(hung);
        full.then(|| self.crowd(wrapper))
    }

    fn crowd(&self, wrapper: &str) -> String {
        let hung = self.hung();
        let of_wrapper = |one: &&One| one.wrapper == wrapper;
        stuck_sessions(wrapper, hung.sessions.values().filter(of_wrapper).count())
    }

    fn hung(&self) -> MutexGuard<'_, Hung> {
        // Nothing in there can be half done.
        self.hung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hangs {
    fn drop(&mut self) {
        self.waiting.hung().sessions.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;
    use std::time::Duration;

    use super::Waiting;

    #[tokio::test]
    async fn one_hangs_for_a_source_and_so_many_in_all() {
        let waiting = Waiting::new(4);
        let risk = async |source: &'static str, urgent: bool| {
            // What is free is had at once.
            let within = Duration::ZERO;
            waiting.risk("mysql_fdw", source, urgent, within).await
        };
        let first = waiting.hangs(risk("a", false).await.unwrap());
        let why = risk("a", false).await.err().unwrap();
        assert!(why.contains("still waits for it in mysql_fdw"), "{why}");
        drop(risk("a", true).await.unwrap());
        // What is under way is waited for; what hangs is not.
        let second = risk("b", false).await.unwrap();
        let why = risk("c", false).await.err().unwrap();
        assert!(why.contains("a session waits in mysql_fdw"), "{why}");
        let second = waiting.hangs(second);
        let why = risk("a", true).await.err().unwrap();
        assert!(why.contains("2 sessions wait in mysql_fdw"), "{why}");
        drop((first, second));
        let both = (risk("a", false).await, risk("b", false).await);
        assert!(both.0.is_ok() && both.1.is_ok());
    }

    #[tokio::test]
    async fn there_are_so_many_places() {
        let waiting = Waiting::new(2);
        let places = [waiting.place().await, waiting.place().await];
        let mut third = Box::pin(waiting.place());
        let is_over = std::future::poll_fn(|cx| Poll::Ready(third.as_mut().poll(cx).is_ready()));
        assert!(!is_over.await);
        drop(places);
        third.await;
    }
}
