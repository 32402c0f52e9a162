//! Waits for permits of the session budget.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use spcd_core::scheduler::{PermitKind, Priority, SessionBudget};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// A session budget, and the tasks that wait for a permit of it.
pub struct Permits {
    state: Mutex<State>,
    /// Origin of the budget's times.
    began: Instant,
}

struct State {
    budget: SessionBudget,
    waiting: BTreeMap<(PermitKind, Priority), oneshot::Sender<Permit>>,
}

/// A permit. Dropping it gives it back.
pub struct Permit {
    permits: Arc<Permits>,
    kind: PermitKind,
    size: usize,
}

/// Permit for asking a source whose session may get stuck.
pub struct UncancellablePermit {
    wrapper: String,
    source: String,
    permit: Permit,
}

/// A session that was given up and does not end. Dropping it returns its permit.
pub struct StuckSession {
    number: u64,
    permit: Permit,
}

impl Permits {
    /// Returns the permits of a budget.
    pub fn new(budget: SessionBudget) -> Arc<Self> {
        let state = State {
            budget,
            waiting: BTreeMap::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            began: Instant::now(),
        })
    }

    /// Waits for a permit.
    pub async fn acquire(self: &Arc<Self>, kind: PermitKind, priority: Priority) -> Permit {
        self.acquire_many(kind, priority, 1).await
    }

    /// Waits for a permit that counts as `size`.
    pub async fn acquire_many(
        self: &Arc<Self>,
        kind: PermitKind,
        priority: Priority,
        size: usize,
    ) -> Permit {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                if state.budget.request(kind, priority, size) {
                    return self.permit(kind, size);
                }
                let (sender, waiter) = oneshot::channel();
                state.waiting.insert((kind, priority), sender);
                waiter
            };
            // Only another request of the same job would take its sender: wait again.
            if let Ok(permit) = waiter.await {
                return permit;
            }
        }
    }

    /// Waits for a permit to ask a source whose session may get stuck, at most `within`.
    ///
    /// # Errors
    /// The reason not to ask the source.
    pub async fn acquire_uncancellable(
        self: &Arc<Self>,
        priority: Priority,
        (wrapper, source): (&str, &str),
        is_requested: bool,
        within: Duration,
    ) -> Result<UncancellablePermit, String> {
        let now = self.now();
        let refused =
            (self.state.lock().budget).refuses_uncancellable(wrapper, source, is_requested, now);
        if let Some(why) = refused {
            return Err(why);
        }
        let permit = self.acquire(PermitKind::Uncancellable, priority);
        let permit = timeout(within, permit).await;
        Ok(UncancellablePermit {
            wrapper: wrapper.to_owned(),
            source: source.to_owned(),
            permit: permit.map_err(|_| self.state.lock().budget.why_full(wrapper))?,
        })
    }

    /// Changes the number of permits of a kind.
    pub fn resize(self: &Arc<Self>, kind: PermitKind, max: usize) {
        self.grant(kind, |budget| budget.resize(kind, max));
    }

    /// Gives a job precedence over all others.
    pub fn prioritize(&self, number: u64) {
        let mut state = self.state.lock();
        for (kind, before, after) in state.budget.prioritize(number) {
            if let Some(waiter) = state.waiting.remove(&(kind, before)) {
                state.waiting.insert((kind, after), waiter);
            }
        }
    }

    /// Records a session that was given up and does not end.
    pub fn stuck(&self, permit: UncancellablePermit) -> StuckSession {
        let now = self.now();
        let number = (self.state.lock().budget).stuck(permit.wrapper, permit.source, now);
        let permit = permit.permit;
        StuckSession { number, permit }
    }

    /// Returns the time after which another source is asked instead.
    pub fn slow_after(&self) -> Duration {
        Duration::from_micros(self.state.lock().budget.slow_after())
    }

    /// Records the duration of an answer.
    pub fn answered(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.state.lock().budget.answered(took);
    }

    /// Returns the permits in use, for the log.
    pub fn usage(&self) -> String {
        self.state.lock().budget.to_string()
    }

    fn permit(self: &Arc<Self>, kind: PermitKind, size: usize) -> Permit {
        let permits = self.clone();
        Permit {
            permits,
            kind,
            size,
        }
    }

    fn give_back(self: &Arc<Self>, kind: PermitKind, size: usize) {
        self.grant(kind, |budget| budget.give_back(kind, size));
    }

    /// Changes the budget, and hands out the permits that it grants then.
    fn grant(
        self: &Arc<Self>,
        kind: PermitKind,
        change: impl FnOnce(&mut SessionBudget) -> Vec<(Priority, usize)>,
    ) {
        let mut given = Vec::new();
        let mut state = self.state.lock();
        for (priority, size) in change(&mut state.budget) {
            let waiter = state.waiting.remove(&(kind, priority));
            given.push((waiter, self.permit(kind, size)));
        }
        drop(state);
        // If the task has stopped waiting, the permit is dropped here, which needs the lock.
        for (waiter, permit) in given {
            if let Some(waiter) = waiter {
                let _ = waiter.send(permit);
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.give_back(self.kind, self.size);
    }
}

impl Drop for StuckSession {
    fn drop(&mut self) {
        self.permit
            .permits
            .state
            .lock()
            .budget
            .stuck_ended(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use spcd_core::scheduler::{PermitKind, Priority, SessionBudget, Urgency};

    use super::Permits;

    fn priority(number: u64) -> Priority {
        let urgency = Urgency::Change;
        Priority { urgency, number }
    }

    /// The permits of a budget of one session.
    fn one() -> Arc<Permits> {
        Permits::new(SessionBudget::new(1))
    }

    #[tokio::test]
    async fn a_task_waits_until_a_permit_is_given_back_and_can_be_prioritized() {
        let permits = one();
        let kind = PermitKind::Session;
        let first = permits.acquire(kind, priority(0)).await;
        let (sender, mut given) = tokio::sync::mpsc::unbounded_channel();
        for number in [1, 2, 3] {
            let (permits, sender) = (permits.clone(), sender.clone());
            tokio::spawn(async move {
                let _permit = permits.acquire(kind, priority(number)).await;
                sender.send(number).unwrap();
            });
        }
        // They have to wait before one of them can be prioritized.
        while permits.state.lock().waiting.len() < 3 {
            tokio::task::yield_now().await;
        }
        permits.prioritize(3);
        drop(first);
        let mut order = Vec::new();
        while order.len() < 3 {
            order.push(given.recv().await.unwrap());
        }
        assert_eq!(order, [3, 1, 2]);
    }

    #[tokio::test]
    async fn a_task_that_gave_up_waiting_keeps_no_permit() {
        let permits = one();
        let kind = PermitKind::Session;
        let first = permits.acquire(kind, priority(0)).await;
        let mut gave_up = Box::pin(permits.acquire(kind, priority(1)));
        std::future::poll_fn(|cx| {
            assert!(gave_up.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(gave_up);
        drop(first);
        permits.acquire(kind, priority(2)).await;
    }

    #[tokio::test]
    async fn a_stuck_session_keeps_its_permit_until_it_ends() {
        let permits = one();
        let acquire = async |number, source, is_requested| {
            let source = ("mysql_fdw", source);
            // What is free is given at once.
            let within = Duration::ZERO;
            let permit =
                permits.acquire_uncancellable(priority(number), source, is_requested, within);
            permit.await
        };
        let permit = acquire(0, "a", false).await.unwrap();
        let why = acquire(1, "b", false).await.err().unwrap();
        assert!(why.contains("limit of concurrent queries"), "{why}");
        let stuck = permits.stuck(permit);
        let why = acquire(2, "b", true).await.err().unwrap();
        assert!(why.contains("a session waits in mysql_fdw"), "{why}");
        drop(stuck);
        assert!(acquire(3, "a", false).await.is_ok());
    }
}
