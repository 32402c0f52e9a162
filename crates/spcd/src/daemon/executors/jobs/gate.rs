//! A gate that lets in so much at a time, those who are needed first before others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// When one's turn comes: the lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What is urgent is 0.
    pub turn: u8,
    /// Within the turn: who came first. No two have the same.
    pub number: u64,
}

/// A gate; its clones are the same one.
#[derive(Clone)]
pub struct Gate(Arc<Mutex<State>>);

struct State {
    /// How much more may be inside; below zero where the last one in was bigger than that.
    free: i64,
    waiting: BTreeMap<Place, (i64, oneshot::Sender<Pass>)>,
}

/// Being inside. Dropping it lets others in.
pub struct Pass {
    gate: Gate,
    size: i64,
}

impl Gate {
    /// A gate that lets in `size` at a time, and never keeps out the only one.
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: i64::try_from(size).unwrap_or(i64::MAX),
            waiting: BTreeMap::new(),
        })))
    }

    /// Waits to be let in.
    pub async fn enter(&self, place: Place, size: usize) -> Pass {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        loop {
            let waiter = {
                let mut state = self.state();
                if state.free > 0 && state.waiting.is_empty() {
                    state.free -= size;
                    return self.pass(size);
                }
                let (sender, waiter) = oneshot::channel();
                state.waiting.insert(place, (size, sender));
                waiter
            };
            // Only a place that is taken twice would lose its sender: wait again.
            if let Ok(pass) = waiter.await {
                return pass;
            }
        }
    }

    /// Lets one who waits go before all others.
    pub fn hurry(&self, number: u64) {
        let mut state = self.state();
        let place = state.waiting.keys().find(|place| place.number == number);
        let Some(place) = place.copied() else { return };
        if let Some(waiter) = state.waiting.remove(&place) {
            state.waiting.insert(Place { turn: 0, number }, waiter);
        }
    }

    fn pass(&self, size: i64) -> Pass {
        let gate = self.clone();
        Pass { gate, size }
    }

    fn leave(&self, size: i64) {
        let mut let_in = Vec::new();
        let mut state = self.state();
        state.free += size;
        while state.free > 0 {
            let Some((_, (size, waiter))) = state.waiting.pop_first() else {
                break;
            };
            // One who gave up waiting is not there any more.
            if !waiter.is_closed() {
                state.free -= size;
                let_in.push((waiter, self.pass(size)));
            }
        }
        drop(state);
        // Whoever gave up just now drops the pass, which comes back here: the lock must be free.
        for (waiter, pass) in let_in {
            let _ = waiter.send(pass);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there can be half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.size);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Poll;

    use super::{Gate, Place};

    fn place(turn: u8, number: u64) -> Place {
        Place { turn, number }
    }

    async fn waits(mut entering: Pin<&mut impl Future>) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(entering.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn the_lowest_place_is_let_in_first_and_one_can_be_hurried() {
        let gate = Gate::new(1);
        let inside = gate.enter(place(1, 0), 1).await;
        let (sender, mut entered) = tokio::sync::mpsc::unbounded_channel();
        for one in [
            place(2, 1),
            place(1, 2),
            place(1, 3),
            place(2, 4),
            place(0, 5),
        ] {
            let (gate, sender) = (gate.clone(), sender.clone());
            tokio::spawn(async move {
                let _pass = gate.enter(one, 1).await;
                sender.send(one.number).unwrap();
            });
        }
        // They have to wait before one of them can be hurried.
        while gate.state().waiting.len() < 5 {
            tokio::task::yield_now().await;
        }
        gate.hurry(4);
        drop(inside);
        let mut order = Vec::new();
        while order.len() < 5 {
            order.push(entered.recv().await.unwrap());
        }
        assert_eq!(order, [4, 5, 2, 3, 1]);
    }

    #[tokio::test]
    async fn one_that_is_bigger_than_the_gate_goes_in_alone() {
        let gate = Gate::new(10);
        let small = gate.enter(place(1, 0), 4).await;
        let big = gate.enter(place(1, 1), 40).await;
        let third = gate.enter(place(1, 2), 1);
        tokio::pin!(third);
        assert!(waits(third.as_mut()).await);
        drop(small);
        assert!(waits(third.as_mut()).await);
        drop(big);
        third.await;
    }

    #[tokio::test]
    async fn one_that_gave_up_waiting_keeps_nobody_out() {
        let gate = Gate::new(1);
        let inside = gate.enter(place(1, 0), 1).await;
        let mut gave_up = Box::pin(gate.enter(place(1, 1), 1));
        assert!(waits(gave_up.as_mut()).await);
        drop(gave_up);
        drop(inside);
        gate.enter(place(1, 2), 1).await;
    }
}
