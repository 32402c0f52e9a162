//! Work under way: one job a connection, waiting for sources kept apart from writing.

mod comments;
mod work;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use spcd_core::config::Connection;
use spcd_core::health::{Kind, Schedule};
use spcd_core::observed::Observed;
use spcd_core::plan::{Plan, Task, Why, Work};
use spcd_core::scheduler::{Backoff, PROBES_PER_SECOND};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::gate::Place;
use super::sources::Sources;
use crate::hub::apply::Writer;
use crate::hub::comments::are_offered;
use crate::telemetry::{Observation, observe};
use comments::{Commenting, Queue};
use work::{Job, Shared};

/// How long aggregators wait for a member that changes.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Where a connection is written, as a log tells it.
pub fn place(connection: &Connection) -> String {
    format!("{}:{}", connection.file, connection.start_line)
}

/// The pauses after a lock time-out.
const LOCK_BACKOFF: Backoff = Backoff::new(1_000, 15_000);
/// The pauses after a failure that is not an import's.
const FAILURE_BACKOFF: Backoff = Backoff::new(5_000, 300_000);
/// The longest pause after an import that timed out, in milliseconds. A probe finds out earlier that
/// its source answers again.
const LONGEST_AFTER_TIMEOUT: u64 = 3_600_000;

/// The jobs of a leader.
pub struct Jobs {
    shared: Arc<Shared>,
    running: BTreeMap<String, Running>,
    /// How many were started.
    started: u64,
    finished: mpsc::UnboundedReceiver<Finished>,
    sender: mpsc::UnboundedSender<Finished>,
    /// Ends them when the jobs are dropped.
    tasks: JoinSet<()>,
    comments: Queue,
    /// The same for what works on that queue.
    _commenter: JoinSet<()>,
}

struct Running {
    key: Key,
    number: u64,
    /// Nothing is known to differ.
    refresh: bool,
    /// When its source was asked.
    began: Arc<OnceLock<Instant>>,
    cancel: Arc<Notify>,
    /// Something else is wanted of the connection meanwhile: look again when the job is over.
    look_again: bool,
}

/// What becomes of a row when a job succeeds, or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It becomes ready, or goes into error.
    Ready,
    /// The same, but a failure leaves it as it is: nothing was known to differ.
    Stays,
    /// It is disabled or removed, or goes into error.
    Gone,
}

impl Then {
    fn of(task: &Task) -> Self {
        match task {
            Task::Import(import) if import.hidden => Self::Gone,
            Task::Import(import) if import.why == Why::Refresh && import.target.csv.is_none() => {
                Self::Stays
            }
            Task::Drop { .. } => Self::Gone,
            Task::Import(_) | Task::Unite(_) | Task::Grant { .. } => Self::Ready,
        }
    }
}

/// Two pieces of work with one key do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Import { target: String, hidden: bool },
    Unite(String),
    Drop { stays: bool },
    Grant,
}

/// A job that is over.
pub struct Finished {
    /// The connection.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Where the connection is written; empty: nowhere any more.
    pub place: String,
    /// What becomes of its row.
    pub then: Then,
}

/// What came of a job.
#[derive(Debug)]
pub enum Outcome {
    /// All is as it should be.
    Done,
    /// It was so already: nothing was written.
    Same,
    /// It failed, and its row says so unless it was only asked again.
    Failed {
        /// The target that was tried; empty: to drop it.
        target_hash: String,
        /// Why.
        error: String,
        /// Of an import: what stands between us and the source.
        kind: Option<Kind>,
    },
    /// Another session stands in the way: try again after a pause.
    Later(String),
    /// Aggregators have to let go of it first: try again when they did.
    Waits,
    /// Given up because something else is wanted now, or because a session was lost: what came of
    /// it is for the next look to say.
    Cancelled,
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Same => "same",
            Self::Failed { .. } => "failed",
            Self::Later(_) => "later",
            Self::Waits => "waits",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a failure means for the next attempt.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The target that was tried; empty: to drop it.
    pub target_hash: String,
    /// Why it failed.
    pub error: String,
    /// How often, in a row.
    pub times: u32,
    /// When it is tried again.
    pub next: Next,
}

/// When something that failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// In the next pass.
    Due,
    /// Not before this.
    At(Instant),
    /// When something changes or somebody asks.
    Asked,
}

impl Failure {
    /// Whether the connection was to be dropped.
    pub fn is_of_drop(&self) -> bool {
        self.target_hash.is_empty()
    }

    /// The failure that follows `before`. An import is tried again by the source's `schedule`, as
    /// long as there is a chance that it succeeds; `others` that fail make room for each other.
    pub fn after(
        before: Option<&Failure>,
        target_hash: String,
        error: String,
        import: Option<(Kind, Schedule)>,
        others: usize,
    ) -> Self {
        let times = before
            .filter(|before| before.target_hash == target_hash)
            .map_or(0, |before| before.times)
            .saturating_add(1);
        let next = match import {
            // Another attempt with the same credentials could lock the account.
            Some((Kind::Authentication, _)) => Next::Asked,
            Some((kind, schedule)) => {
                let mut pause = schedule.pause_after(times);
                // Each attempt may leave a session that hangs in its wrapper.
                if kind == Kind::Timeout && times > schedule.attempts {
                    let longest = LONGEST_AFTER_TIMEOUT.max(pause);
                    let more = times - schedule.attempts;
                    pause = Backoff::new(pause, longest).pause(more.saturating_add(1));
                }
                let least = Duration::from_secs(others as u64) / PROBES_PER_SECOND;
                Next::At(Instant::now() + Duration::from_millis(pause).max(least))
            }
            None => Next::At(Instant::now() + Duration::from_millis(FAILURE_BACKOFF.pause(times))),
        };
        Self {
            target_hash,
            error,
            times,
            next,
        }
    }
}

impl Jobs {
    /// None yet.
    pub fn new(sources: Sources, writer: Writer) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(sources, writer));
        let (comments, work) = Queue::new(shared.clone());
        let mut commenter = JoinSet::new();
        commenter.spawn(work);
        Self {
            shared,
            comments,
            _commenter: commenter,
            running: BTreeMap::new(),
            started: 0,
            finished,
            sender,
            tasks: JoinSet::new(),
        }
    }

    /// From now on what people hung on a connection that goes, goes with it.
    pub fn drop_dependents(&self) {
        self.shared.drop_dependents();
    }

    /// Gives up looking for a connection's comments, until they are wanted anew.
    pub fn leave_comments(&self, name: &str) {
        self.shared.leave_comments(name);
    }

    /// Whether a job of this connection is under way.
    pub fn is_running(&self, name: &str) -> bool {
        self.running.contains_key(name)
    }

    /// The connections with a job under way.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.running.keys()
    }

    /// The connections with a job that is waited for, and those whose job takes too long for that.
    pub fn brisk_and_slow(&self) -> (impl Iterator<Item = &String>, impl Iterator<Item = &String>) {
        let part = |slow: bool| {
            (self.running.iter())
                .filter(move |(_, running)| running.is_slow() == slow)
                .map(|(name, _)| name)
        };
        (part(false), part(true))
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Adds what work waits for to what was observed.
    pub fn recall_blocked(&self, observed: &mut Observed) {
        let mut blocked = self.shared.blocked();
        blocked.retain(|name, _| observed.connections.contains_key(name));
        for (name, reason) in blocked.iter() {
            if let Some(known) = observed.connections.get_mut(name) {
                known.waits_for = Some(reason.clone());
            }
        }
    }

    /// Forgets what work waits for that is not wanted any more; true if there was some.
    pub fn forget_blocked(&self, plan: &Plan) -> bool {
        let mut blocked = self.shared.blocked();
        let before = blocked.len();
        blocked.retain(|name, _| {
            self.is_running(name) || plan.work.iter().any(|work| work.name == *name)
        });
        blocked.len() < before
    }

    /// How many are under way, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.shared.busy.subscribe()
    }

    /// Waits for a job to end; for ever if there is none. Returns whether something else is wanted
    /// of its connection.
    pub async fn next(&mut self) -> (Finished, bool) {
        loop {
            // The channel stays open: we hold a sender.
            if let Some(finished) = self.finished.recv().await {
                let again = self.remove(&finished);
                return (finished, again);
            }
        }
    }

    /// A job that has ended already, as [`Jobs::next`] gives it.
    pub fn try_next(&mut self) -> Option<(Finished, bool)> {
        let finished = self.finished.try_recv().ok()?;
        let again = self.remove(&finished);
        Some((finished, again))
    }

    fn remove(&mut self, finished: &Finished) -> bool {
        let running = self.running.remove(&finished.name);
        self.shared.busy.send_replace(self.running.len());
        running.is_some_and(|running| running.look_again)
    }

    /// Stops what is under way for a connection unless it is what `wanted` says; true if something
    /// else has to wait until it is over.
    ///
    /// A source that is asked though nothing differs is no work that a plan would name: it is left
    /// alone as long as `target` is still the hash of what the connection is to be.
    pub fn settle_with(
        &mut self,
        name: &str,
        wanted: Option<&Work>,
        target: &str,
        ask_again: bool,
    ) -> bool {
        let Some(running) = self.running.get_mut(name) else {
            return false;
        };
        let same = match wanted {
            Some(work) => Key::of(work) == running.key,
            None => running.is_refresh(target),
        };
        if same {
            running.look_again |= ask_again;
            return ask_again;
        }
        running.cancel.notify_one();
        running.look_again = true;
        true
    }

    /// Whether a connection's source is being asked although nothing differs from `target`.
    pub fn is_refresh(&self, name: &str, target: &str) -> bool {
        self.running
            .get(name)
            .is_some_and(|running| running.is_refresh(target))
    }

    /// Lets a connection's job go before all others.
    pub fn hurry(&self, name: &str) {
        if let Some(running) = self.running.get(name) {
            self.shared.hurry(running.number);
        }
    }

    /// Begins a piece of work, unless one is under way for its `connection`, if that is still
    /// written anywhere. What is urgent goes
    /// before what began earlier.
    pub fn start(
        &mut self,
        work: Work,
        connection: Option<Arc<Connection>>,
        generation: i64,
        urgent: bool,
    ) {
        if self.running.contains_key(&work.name) {
            return;
        }
        let cancel = Arc::new(Notify::new());
        let began = Arc::new(OnceLock::new());
        let refresh = matches!(&work.task, Task::Import(import) if import.why == Why::Refresh);
        self.started += 1;
        let job = Job {
            name: work.name.clone(),
            status: work.status,
            generation,
            place: Place {
                turn: match (urgent, refresh) {
                    (true, _) => 0,
                    (false, false) => 1,
                    (false, true) => 2,
                },
                number: self.started,
            },
            began: began.clone(),
        };
        let place = connection.as_ref().map_or_else(String::new, |c| place(c));
        let then = Then::of(&work.task);
        let running = Running {
            key: Key::of(&work),
            number: self.started,
            refresh,
            began: began.clone(),
            cancel: cancel.clone(),
            look_again: false,
        };
        self.running.insert(work.name.clone(), running);
        self.shared.busy.send_replace(self.running.len());
        let (shared, sender) = (self.shared.clone(), self.sender.clone());
        while self.tasks.try_join_next().is_some() {}
        let commenting = match &work.task {
            Task::Import(import) if !import.hidden && are_offered(&import.target) => connection
                .map(|connection| Commenting {
                    name: work.name.clone(),
                    connection,
                    number: self.started,
                    generation,
                }),
            _ => None,
        };
        let queue = self.comments.clone();
        self.tasks.spawn(async move {
            let began = Instant::now();
            let outcome = shared.run(&job, work, &cancel).await;
            observe(Observation::Worked {
                outcome: outcome.name(),
                took: began.elapsed(),
            });
            let commenting =
                commenting.filter(|_| matches!(outcome, Outcome::Done | Outcome::Same));
            if let Some(commenting) = commenting {
                shared.will_comment(&commenting.name, commenting.number);
                queue.add(commenting);
            }
            let _ = sender.send(Finished {
                name: job.name,
                outcome,
                place,
                then,
            });
        });
    }

    /// Looks for the comments of a connection that is ready and has none, unless that was done since
    /// the daemon started.
    pub fn comment(&mut self, name: &str, connection: &Arc<Connection>) {
        let are_offered = connection.target.as_ref().is_ok_and(are_offered);
        if !are_offered || self.shared.has_commented(name) || self.is_running(name) {
            return;
        }
        self.started += 1;
        self.shared.will_comment(name, self.started);
        self.comments.add(Commenting {
            name: name.to_owned(),
            connection: connection.clone(),
            number: self.started,
            generation: 0,
        });
    }

    /// Waits until what is done beside the jobs is over.
    pub async fn rest(&mut self) {
        while self.tasks.join_next().await.is_some() {}
        self.comments.is_empty().await;
    }
}

/// How long a lock that was not got is left to others, after so many times before.
pub fn later(times: u32) -> Duration {
    Duration::from_millis(LOCK_BACKOFF.pause(times.saturating_add(1)))
}

impl Running {
    fn is_refresh(&self, wanted: &str) -> bool {
        self.refresh && matches!(&self.key, Key::Import { target, .. } if target == wanted)
    }

    fn is_slow(&self) -> bool {
        self.began
            .get()
            .is_some_and(|began| began.elapsed() >= PATIENCE)
    }
}

impl Key {
    fn of(work: &Work) -> Self {
        match &work.task {
            Task::Import(import) => Key::Import {
                target: import.target_hash.clone(),
                hidden: import.hidden,
            },
            Task::Unite(unite) => Key::Unite(unite.target_hash.clone()),
            Task::Drop { keep, .. } => Key::Drop {
                stays: keep.is_some(),
            },
            Task::Grant { .. } => Key::Grant,
        }
    }
}
