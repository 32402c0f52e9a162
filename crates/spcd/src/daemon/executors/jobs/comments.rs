//! The source's comments, once a connection is ready and nobody waits for anything else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spcd_core::config::Connection;
use spcd_core::plan;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::JobContext;
use super::gate::Place;
use crate::hub::{HubError, comments};

/// After all that somebody waits for.
const TURN: u8 = 3;
/// How long jobs under way are let go first: some may wait for a source for ever.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause from one connection's comments to the next.
const LONGEST_REST: Duration = Duration::from_millis(200);
/// How often comments are looked for anew when tables changed meanwhile.
const TRIES: usize = 3;

/// What is wanted of a connection's comments, and by which job.
pub struct Commenting {
    pub name: String,
    pub connection: Arc<Connection>,
    pub number: u64,
    pub generation: i64,
}

/// Which job looks for a connection's comments, or was the last to do so.
#[derive(Default)]
pub struct Comments(Mutex<BTreeMap<String, u64>>);

impl Comments {
    /// Whether a connection's comments were looked for, or are being, since the daemon started.
    pub fn has_begun(&self, name: &str) -> bool {
        self.jobs().contains_key(name)
    }

    /// Takes note that from now on the job of this number looks for a connection's comments.
    pub fn begin(&self, name: &str, number: u64) {
        self.jobs().insert(name.to_owned(), number);
    }

    /// Gives up looking for a connection's comments, until they are wanted anew.
    pub fn leave(&self, name: &str) {
        self.jobs().remove(name);
    }

    fn is_of(&self, name: &str, number: u64) -> bool {
        self.jobs().get(name) == Some(&number)
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those whose turn is still to come: one after the other, since ten thousand may wait for long.
#[derive(Clone)]
pub struct Queue {
    sender: mpsc::UnboundedSender<(Instant, Commenting)>,
    waiting: watch::Sender<usize>,
    /// Somebody waits for the end.
    hurried: Arc<AtomicBool>,
}

impl Queue {
    /// An empty one, and what is to be run to work on it.
    pub fn new(context: Arc<JobContext>) -> (Self, impl Future<Output = ()>) {
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Commenting)>();
        let waiting = watch::Sender::new(0);
        let hurried = Arc::new(AtomicBool::new(false));
        let queue = Self {
            sender,
            waiting: waiting.clone(),
            hurried: hurried.clone(),
        };
        let work = async move {
            while let Some((since, wanted)) = receiver.recv().await {
                let began = Instant::now();
                context.comment(since, &wanted).await;
                waiting.send_modify(|waiting| *waiting -= 1);
                // Half of the time is for what somebody saves meanwhile.
                if !hurried.load(Ordering::Relaxed) {
                    sleep(began.elapsed().min(LONGEST_REST)).await;
                }
            }
        };
        (queue, work)
    }

    /// Puts one at the end.
    pub fn add(&self, wanted: Commenting) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        // It is read for as long as there are jobs.
        let _ = self.sender.send((Instant::now(), wanted));
    }

    /// Waits until none is left.
    pub async fn is_empty(&self) {
        self.hurried.store(true, Ordering::Relaxed);
        let mut waiting = self.waiting.subscribe();
        // It ends by an error only with the queue.
        let _ = waiting.wait_for(|waiting| *waiting == 0).await;
    }
}

impl JobContext {
    /// Puts the source's comments on the tables of a connection that is ready. Where that fails, the
    /// next answer of its source is an occasion to try again.
    async fn comment(&self, since: Instant, wanted: &Commenting) {
        let mut busy = self.busy.subscribe();
        let quiet = busy.wait_for(|jobs| *jobs == 0);
        // It ends by an error only with the daemon.
        let _ = timeout_at(since + PATIENCE, quiet).await;
        for _ in 0..TRIES {
            // A later job asks the source as it is to be asked now.
            if !self.comments.is_of(&wanted.name, wanted.number) {
                return;
            }
            match self.try_comment(wanted).await {
                Ok(()) => return,
                Err(error) if error.is_passing() || error.is_stale() => {
                    tracing::debug!(connection = wanted.name, "its comments: {error}, again");
                }
                Err(error) => {
                    let name = &wanted.name;
                    return tracing::info!(connection = name, "its comments are not set: {error}");
                }
            }
        }
        tracing::info!(connection = wanted.name, "its comments are not set for now");
    }

    async fn try_comment(&self, wanted: &Commenting) -> Result<(), HubError> {
        let name = wanted.name.as_str();
        let (turn, number) = (TURN, wanted.number);
        let place = Place { turn, number };
        let Ok(target) = &wanted.connection.target else {
            return Ok(());
        };
        let source = wanted.connection.target_hash();
        let said = self.sources.comments(target, source, place).await?;
        let found = {
            let session = self.sources.session(place).await?;
            let found = comments::compare(session.client(), name, &said).await;
            session.give_back_after(&found);
            found?
        };
        let Some(found) = found else { return Ok(()) };
        if found.known && found.changes.is_empty() {
            return Ok(());
        }
        let (seen, generation) = (found.generation, wanted.generation.max(found.generation));
        for unit in plan::comment_units(name, &found.changes, seen, generation) {
            self.writer.write(unit, generation).await?;
        }
        Ok(())
    }
}
