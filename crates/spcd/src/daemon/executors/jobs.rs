//! Runs jobs: at most one per connection, each in its own task.

mod comments;
mod drop;
mod grant;
mod import;
mod permits;
pub mod sources;
mod sync_aggregator;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use spcd_core::config::Connection;
use spcd_core::health::FailureKind;
use spcd_core::planner::{self, GRANT, Task, Work, WriteUnit};
use spcd_core::scheduler::{Event, JobOutcome, PermitKind, Priority, Urgency};
use spcd_protocol::Status;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::telemetry::{Observation, observe};
use comments::{Comments, Queue, QueuedComments};
use drop::Dropping;
use permits::Permit;
use sources::Sources;
use spcd_postgres::HubError;
use spcd_postgres::import::comments::are_supported;
use spcd_postgres::writer::Writer;

/// Size of a connection in permits, in addition to its tables.
const CONNECTION_SIZE: usize = 4;

/// The running jobs of a leader.
pub struct Jobs {
    context: Arc<JobContext>,
    running: BTreeMap<String, Handle>,
    /// Number of started jobs.
    started: u64,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    /// Aborts the jobs when it is dropped.
    tasks: JoinSet<()>,
    comments: Queue,
    /// Aborts the task that processes that queue.
    _commenter: JoinSet<()>,
}

struct Handle {
    number: u64,
    cancel: Arc<Notify>,
    /// For the log.
    origin: Origin,
}

/// Origin of a job, for the log.
pub struct Origin {
    /// Position of the connection's block; empty if it was removed.
    pub place: String,
    /// Whether a failure leaves the row unchanged.
    pub is_refresh: bool,
    /// Whether the job removes the tables: the row is then disabled or deleted.
    pub is_removal: bool,
}

/// Shared by all jobs.
pub struct JobContext {
    pub(super) sources: Sources,
    pub(super) writer: Writer,
    /// Held by a member that changes views of its aggregators: the next one must see the result.
    pub(super) following: Arc<Mutex<()>>,
    /// Whether any aggregator has views, and the pass that checked it.
    pub(super) have_aggregators_views: Mutex<(i64, bool)>,
    /// Whether dropped connections take dependent objects of users along.
    drop_dependents: AtomicBool,
    /// The number of running jobs.
    pub(super) busy: watch::Sender<usize>,
    /// Assignment of comments to jobs.
    pub(super) comments: Comments,
}

/// A job.
pub struct Job {
    pub name: String,
    /// The row's status when the job starts.
    pub status: Status,
    /// The row's error when the job starts.
    pub error: Option<String>,
    pub generation: i64,
    pub priority: Priority,
    pub import_start: ImportStart,
}

/// Time at which a job sent its import to the source.
pub struct ImportStart {
    at: OnceLock<Instant>,
    name: String,
    events: mpsc::UnboundedSender<Event>,
}

impl ImportStart {
    /// Records the current time, once, and reports it to the loop.
    pub fn record(&self) {
        if self.at.set(Instant::now()).is_ok() {
            // The loop has ended if the lead is lost.
            let _ = self.events.send(Event::SourceAsked(self.name.clone()));
        }
    }

    /// Returns the time since then.
    pub fn elapsed(&self) -> Option<Duration> {
        self.at.get().map(Instant::elapsed)
    }
}

impl Jobs {
    /// Returns a value without jobs.
    pub fn new(sources: Sources, writer: Writer) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let context = Arc::new(JobContext {
            sources,
            writer,
            following: Arc::default(),
            have_aggregators_views: Mutex::default(),
            drop_dependents: AtomicBool::new(false),
            busy: watch::Sender::default(),
            comments: Comments::default(),
        });
        let (comments, work) = Queue::new(context.clone());
        let mut commenter = JoinSet::new();
        commenter.spawn(work);
        Self {
            context,
            running: BTreeMap::new(),
            started: 0,
            events,
            sender,
            tasks: JoinSet::new(),
            comments,
            _commenter: commenter,
        }
    }

    /// Makes dropped connections take dependent objects of users along.
    pub fn drop_dependents(&self) {
        self.context.drop_dependents.store(true, Ordering::Relaxed);
    }

    /// Stops setting a connection's comments until they are queued again.
    pub fn leave_comments(&self, name: &str) {
        self.context.comments.leave(name);
    }

    /// Subscribes to the number of running jobs.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.context.busy.subscribe()
    }

    /// Returns what the running jobs use of the session budget, for the log.
    pub fn usage(&self) -> Option<String> {
        (!self.running.is_empty()).then(|| self.context.sources.permits.usage())
    }

    /// Waits for an event of a job.
    pub async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // The channel stays open: `self` holds a sender.
            None => std::future::pending().await,
        }
    }

    /// Returns an event that has already arrived.
    pub fn try_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// Removes an ended job. Returns its origin.
    pub fn ended(&mut self, name: &str) -> Option<Origin> {
        let handle = self.running.remove(name);
        self.context.busy.send_replace(self.running.len());
        handle.map(|handle| handle.origin)
    }

    /// Cancels a connection's job.
    pub fn cancel(&self, name: &str) {
        if let Some(handle) = self.running.get(name) {
            handle.cancel.notify_one();
        }
    }

    /// Gives a connection's job precedence over all others.
    pub fn prioritize(&self, name: &str) {
        if let Some(handle) = self.running.get(name) {
            self.context.sources.permits.prioritize(handle.number);
        }
    }

    /// Starts a job. `connection` is `None` if no file contains it any more.
    pub fn start(
        &mut self,
        work: Work,
        connection: Option<Arc<Connection>>,
        generation: i64,
        urgency: Urgency,
    ) {
        let cancel = Arc::new(Notify::new());
        self.started += 1;
        let number = self.started;
        let job = Job {
            name: work.name.clone(),
            status: work.status,
            error: work.error.clone(),
            generation,
            priority: Priority { urgency, number },
            import_start: ImportStart {
                at: OnceLock::new(),
                name: work.name.clone(),
                events: self.sender.clone(),
            },
        };
        let handle = Handle {
            number,
            cancel: cancel.clone(),
            origin: Origin::of(&work, connection.as_deref()),
        };
        self.running.insert(work.name.clone(), handle);
        self.context.busy.send_replace(self.running.len());
        let commenting = match &work.task {
            Task::Import(import) if !import.hidden && are_supported(&import.target) => connection
                .map(|connection| QueuedComments {
                    name: work.name.clone(),
                    connection,
                    number,
                    generation,
                }),
            _ => None,
        };
        let (context, sender) = (self.context.clone(), self.sender.clone());
        let queue = self.comments.clone();
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(async move {
            let began = Instant::now();
            let outcome = context.run(&job, work.task, &cancel).await;
            observe(Observation::Worked {
                outcome: outcome.name(),
                took: began.elapsed(),
            });
            let is_ready = matches!(outcome, JobOutcome::Done | JobOutcome::Same);
            if let Some(commenting) = commenting.filter(|_| is_ready) {
                context.comments.begin(&commenting.name, commenting.number);
                queue.add(commenting);
            }
            let name = job.name;
            let _ = sender.send(Event::JobEnded { name, outcome });
        });
    }

    /// Queues the comments of a ready connection without comments, unless they were queued since the daemon
    /// started.
    pub fn comment(&mut self, name: &str, connection: &Arc<Connection>) {
        let are_supported = connection.target.as_ref().is_ok_and(are_supported);
        let is_done = self.context.comments.has_begun(name) || self.running.contains_key(name);
        if !are_supported || is_done {
            return;
        }
        self.started += 1;
        self.context.comments.begin(name, self.started);
        self.comments.add(QueuedComments {
            name: name.to_owned(),
            connection: connection.clone(),
            number: self.started,
            generation: 0,
        });
    }

    /// Waits until the queue of comments is empty.
    pub async fn rest(&mut self) {
        while self.tasks.join_next().await.is_some() {}
        self.comments.drained().await;
    }
}

impl Origin {
    fn of(work: &Work, connection: Option<&Connection>) -> Self {
        Self {
            place: connection.map_or_else(String::new, place),
            is_refresh: match &work.task {
                Task::Import(import) => {
                    work.is_refresh() && import.target.csv.is_none() && !import.hidden
                }
                _ => false,
            },
            is_removal: match &work.task {
                Task::Import(import) => import.hidden,
                Task::Drop { .. } => true,
                Task::SyncAggregator(_) | Task::Grant { .. } => false,
            },
        }
    }
}

/// Returns the position of a connection's block, for the log.
pub fn place(connection: &Connection) -> String {
    format!("{}:{}", connection.file, connection.start_line)
}

impl JobContext {
    /// Runs a job until it ends or is cancelled.
    async fn run(&self, job: &Job, task: Task, cancel: &Notify) -> JobOutcome {
        match task {
            Task::Drop {
                keep,
                applied,
                tables,
            } => {
                let dropping = Dropping {
                    keep,
                    applied,
                    tables,
                };
                let result = self.drop_connection(job, dropping).await;
                self.conclude(job, result, "", None).await
            }
            Task::Grant { tables } => {
                let result = self.grant(job, &tables).await;
                self.conclude(job, result, GRANT, None).await
            }
            Task::SyncAggregator(sync) => {
                let result = self.sync_aggregator(job, &sync, cancel).await;
                self.conclude(job, result, &sync.target_hash, None).await
            }
            Task::Import(import) => self.import(job, &import, cancel).await,
        }
    }

    /// Returns the outcome of a job, after writing an error to its row.
    async fn conclude(
        &self,
        job: &Job,
        result: Result<JobOutcome, HubError>,
        target_hash: &str,
        kind: Option<FailureKind>,
    ) -> JobOutcome {
        match outcome_of(result.or_else(later)) {
            Ok(outcome) => outcome,
            Err(error) => {
                let (hash, text) = (target_hash.to_owned(), error.to_string());
                self.failed(job, hash, text, kind).await
            }
        }
    }

    /// Writes a job's error to its row, unless the row has it already. If that fails, a pass writes it:
    /// repeating the job would ask the source again, with credentials that it may have rejected.
    pub(super) async fn failed(
        &self,
        job: &Job,
        target_hash: String,
        error: String,
        kind: Option<FailureKind>,
    ) -> JobOutcome {
        let mut is_unwritten = false;
        if job.status != Status::Error || job.error.as_ref() != Some(&error) {
            let unit = planner::error_unit(&job.name, job.status, error.clone());
            if let Err(error) = self.writer.write(unit, job.generation).await {
                tracing::debug!(connection = job.name, %error, "the error of a job is not written yet");
                is_unwritten = true;
            }
        }
        JobOutcome::Failed {
            target_hash,
            error,
            kind,
            is_unwritten,
        }
    }

    /// Writes a job's statements.
    pub(super) async fn write(&self, job: &Job, unit: WriteUnit) -> Result<JobOutcome, HubError> {
        match self.writer.write(unit, job.generation).await {
            Err(error) => later(error).map_err(HubError::with_privilege_advice),
            Ok(()) => Ok(JobOutcome::Done),
        }
    }

    /// Waits for a permit to hand this number of tables to the writer.
    pub(super) async fn permit_to_write(&self, job: &Job, tables: usize) -> Permit {
        let size = CONNECTION_SIZE + tables;
        let permits = &self.sources.permits;
        permits.resize(PermitKind::Unwritten, self.writer.busy_tables());
        let permit = permits.acquire_many(PermitKind::Unwritten, job.priority, size);
        permit.await
    }

    /// Whether dropped connections take dependent objects of users along.
    pub(super) fn drops_dependents(&self) -> bool {
        self.drop_dependents.load(Ordering::Relaxed)
    }
}

/// Returns that a job is repeated if the hub's error passes by itself: what it meets while a user or another
/// job holds a lock or changes the same objects is no error of the connection.
pub(super) fn later(error: HubError) -> Result<JobOutcome, HubError> {
    match error.is_transient() || error.is_out_of_resources() {
        true => Ok(JobOutcome::Later {
            reason: error.to_string(),
            is_lock: error.is_lock_timeout(),
        }),
        false => Err(error),
    }
}

/// Returns the outcome of a job, or the error for its row.
pub(super) fn outcome_of(result: Result<JobOutcome, HubError>) -> Result<JobOutcome, HubError> {
    match result {
        Err(error) if error.is_outdated() || matches!(error, HubError::SourceAtWork) => {
            Ok(JobOutcome::Later {
                reason: error.to_string(),
                is_lock: false,
            })
        }
        // An error of the database, which the loop detects too.
        Err(
            HubError::ConnectionLost(_)
            | HubError::WrapperCrashed { .. }
            | HubError::Unresponsive
            | HubError::LeadershipLost
            | HubError::SchemaChangeWaiting
            | HubError::ReadOnly
            | HubError::NotLeader
            | HubError::NoSession,
        ) => Ok(JobOutcome::Cancelled),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::error::SqlState;

    use super::*;

    #[test]
    fn a_job_is_repeated_after_an_error_of_the_hub_that_passes() {
        let outcome = |code: SqlState| {
            let text = "the views of the aggregator all were changed meanwhile".to_owned();
            outcome_of(later(HubError::StatementFailed { text, code }))
        };
        for (code, is_lock) in [
            (SqlState::T_R_SERIALIZATION_FAILURE, false),
            (SqlState::T_R_DEADLOCK_DETECTED, false),
            (SqlState::LOCK_NOT_AVAILABLE, true),
            (SqlState::DISK_FULL, false),
        ] {
            let found = outcome(code.clone());
            let Ok(JobOutcome::Later { is_lock: found, .. }) = found else {
                panic!("{code:?}: {found:?}");
            };
            assert_eq!(found, is_lock, "{code:?}");
        }
        let found = outcome(SqlState::UNDEFINED_OBJECT);
        assert!(
            matches!(found, Err(HubError::StatementFailed { .. })),
            "{found:?}"
        );
    }
}
