//! Sets comments of the source, once a connection is ready and no client waits for other work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spcd_core::config::Connection;
use spcd_core::planner;
use spcd_core::scheduler::{Priority, Urgency};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::JobContext;
use spcd_postgres::HubError;
use spcd_postgres::import::comments;

/// Maximum time for which comments wait for running jobs, some of which may never end.
const MAX_JOB_WAIT: Duration = Duration::from_secs(60);
/// Maximum pause between the comments of two connections.
const MAX_PAUSE: Duration = Duration::from_millis(200);
/// Maximum number of attempts if the tables keep changing.
const MAX_ATTEMPTS: usize = 3;

/// A queued connection.
pub struct QueuedComments {
    pub name: String,
    pub connection: Arc<Connection>,
    pub number: u64,
    pub generation: i64,
}

/// Number of the last job that set a connection's comments, by connection.
#[derive(Default)]
pub struct Comments(Mutex<BTreeMap<String, u64>>);

impl Comments {
    /// Whether comments of a connection were queued since the daemon started.
    pub fn has_begun(&self, name: &str) -> bool {
        self.0.lock().contains_key(name)
    }

    /// Assigns a connection's comments to the job of this number. Earlier jobs give up.
    pub fn begin(&self, name: &str, number: u64) {
        self.0.lock().insert(name.to_owned(), number);
    }

    /// Removes the assignment, so that a running job gives up.
    pub fn leave(&self, name: &str) {
        self.0.lock().remove(name);
    }

    fn is_of(&self, name: &str, number: u64) -> bool {
        self.0.lock().get(name) == Some(&number)
    }
}

/// Queue of connections, which are processed one at a time: there may be 10,000.
#[derive(Clone)]
pub struct Queue {
    sender: mpsc::UnboundedSender<(Instant, QueuedComments)>,
    waiting: watch::Sender<usize>,
    /// `spcd apply` waits for the end.
    is_awaited: Arc<AtomicBool>,
}

impl Queue {
    /// Returns an empty queue and the future that processes it.
    pub fn new(context: Arc<JobContext>) -> (Self, impl Future<Output = ()>) {
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, QueuedComments)>();
        let waiting = watch::Sender::new(0);
        let is_awaited = Arc::new(AtomicBool::new(false));
        let queue = Self {
            sender,
            waiting: waiting.clone(),
            is_awaited: is_awaited.clone(),
        };
        let work = async move {
            while let Some((since, item)) = receiver.recv().await {
                let began = Instant::now();
                context.comment(since, &item).await;
                waiting.send_modify(|waiting| *waiting -= 1);
                // Leaves half of the time to jobs for files that are saved in between.
                if !is_awaited.load(Ordering::Relaxed) {
                    sleep(began.elapsed().min(MAX_PAUSE)).await;
                }
            }
        };
        (queue, work)
    }

    /// Appends a connection.
    pub fn add(&self, item: QueuedComments) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        // The receiver lives as long as the jobs.
        let _ = self.sender.send((Instant::now(), item));
    }

    /// Waits until the queue is empty.
    pub async fn drained(&self) {
        self.is_awaited.store(true, Ordering::Relaxed);
        let mut waiting = self.waiting.subscribe();
        // Fails only when the queue has been dropped.
        let _ = waiting.wait_for(|waiting| *waiting == 0).await;
    }
}

impl JobContext {
    /// Sets the comments of a ready connection. After a failure, its next import tries again.
    async fn comment(&self, since: Instant, item: &QueuedComments) {
        let mut busy = self.busy.subscribe();
        let quiet = busy.wait_for(|jobs| *jobs == 0);
        // Fails only when the daemon ends.
        let _ = timeout_at(since + MAX_JOB_WAIT, quiet).await;
        for _ in 0..MAX_ATTEMPTS {
            // A later job has the current configuration.
            if !self.comments.is_of(&item.name, item.number) {
                return;
            }
            match self.try_comment(item).await {
                Ok(()) => return,
                Err(error) if error.is_transient() || error.is_outdated() => {
                    tracing::debug!(
                        connection = item.name,
                        "setting its comments again: {error}"
                    );
                }
                Err(error) => {
                    let name = &item.name;
                    return tracing::info!(connection = name, "its comments are not set: {error}");
                }
            }
        }
        tracing::info!(
            connection = item.name,
            "its comments are not set: its tables keep changing"
        );
    }

    async fn try_comment(&self, item: &QueuedComments) -> Result<(), HubError> {
        let name = item.name.as_str();
        let (urgency, number) = (Urgency::Comments, item.number);
        let priority = Priority { urgency, number };
        let Ok(target) = &item.connection.target else {
            return Ok(());
        };
        let source = item.connection.target_hash();
        let texts = self.sources.comments(target, source, priority).await?;
        let found = {
            let session = self.sources.session(priority).await?;
            let found = comments::compare(session.client(), name, target, texts).await;
            session.give_back_after(&found);
            found?
        };
        let Some(found) = found else { return Ok(()) };
        if found.is_recorded && found.changes.is_empty() {
            return Ok(());
        }
        let (seen, generation) = (found.generation, item.generation.max(found.generation));
        for unit in planner::comment_units(name, &found.changes, seen, generation) {
            self.writer.write(unit, generation).await?;
        }
        Ok(())
    }
}
