//! The task that probes sources beside the loop and writes the results. [`ProbeScheduler`] decides what
//! it probes and when.

pub mod ask;
pub mod csv;
mod probe_sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use spcd_core::health::{FailureKind, HealthChange, ProbeAnswer, ProbeFailure};
use spcd_core::scheduler::{
    Event, MAX_HEALTHY_PROBES, ProbeCommand, ProbeScheduler, WatchedSource,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_postgres::Client;

use crate::tunnel::Tunnels;
use probe_sessions::{OPEN_TIMEOUT, ProbeProgress, ProbeSessions};
use spcd_postgres::connection::{Endpoint, Session, crowded};
use spcd_postgres::{HubError, Limits};

/// Number of running jobs from which probes and drift detection are deferred. No client waits for them,
/// and they would compete with the jobs for the hub's processors.
const MANY_JOBS: usize = 16;

/// Handle of the task. Dropping it ends the task.
pub struct Probes {
    commands: mpsc::UnboundedSender<ProbeCommand>,
    events: mpsc::UnboundedReceiver<Event>,
    _task: JoinSet<()>,
}

impl Probes {
    /// Starts the task. `known` is the reachability that an earlier leader recorded, `jobs` the number
    /// of running jobs.
    pub fn start(
        endpoint: Arc<Endpoint>,
        epoch: i64,
        limits: Limits,
        tunnels: Arc<Tunnels>,
        known: BTreeMap<String, bool>,
        jobs: watch::Receiver<usize>,
    ) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (sender, events) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let max_sessions = limits.for_probes(MAX_HEALTHY_PROBES);
            let sessions = ProbeSessions::new(endpoint.clone(), tunnels, max_sessions);
            let mut task = ProbeTask {
                sessions: Arc::new(sessions),
                endpoint,
                epoch,
                started: Instant::now(),
                scheduler: ProbeScheduler::new(known, limits.unreachable_probes()),
                running: JoinSet::new(),
                has_few_sessions: limits.are_few(),
                progress: mpsc::unbounded_channel(),
                events: sender,
                jobs,
                writer: None,
                last_error: String::new(),
            };
            task.run(receiver).await;
        });
        Self {
            commands,
            events,
            _task: task,
        }
    }

    /// Waits for an event. Cancel safe.
    pub async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // The leadership is lost, which the loop detects by itself.
            None => std::future::pending().await,
        }
    }

    /// Sends a command to the task.
    pub fn send(&self, command: ProbeCommand) {
        // The task has ended if the leadership is lost, which the loop detects by itself.
        let _ = self.commands.send(command);
    }
}

/// Returns the reachability of sources and the paused connections, as an earlier leader recorded them.
pub async fn recorded_health(
    client: &Client,
) -> Result<(BTreeMap<String, bool>, BTreeSet<String>), HubError> {
    let sql = "SELECT connection_name, reachable, held FROM spcd.connection_health
               WHERE held OR reachable IS NOT NULL";
    let (mut known, mut paused) = (BTreeMap::new(), BTreeSet::new());
    for row in client.query(sql, &[]).await? {
        let name: String = row.try_get(0)?;
        if row.try_get(2)? {
            paused.insert(name);
        } else if let Some(reachable) = row.try_get(1)? {
            known.insert(name, reachable);
        }
    }
    Ok((known, paused))
}

/// The task.
struct ProbeTask {
    endpoint: Arc<Endpoint>,
    epoch: i64,
    sessions: Arc<ProbeSessions>,
    /// Origin of the scheduler's times.
    started: Instant,
    scheduler: ProbeScheduler,
    running: JoinSet<()>,
    /// Whether idle sessions are closed, since the server's limit is low.
    has_few_sessions: bool,
    progress: (
        mpsc::UnboundedSender<ProbeProgress>,
        mpsc::UnboundedReceiver<ProbeProgress>,
    ),
    events: mpsc::UnboundedSender<Event>,
    /// Number of running jobs.
    jobs: watch::Receiver<usize>,
    writer: Option<Session>,
    /// Text of the last error of a write, which is logged once.
    last_error: String,
}

impl ProbeTask {
    async fn run(&mut self, mut commands: mpsc::UnboundedReceiver<ProbeCommand>) {
        loop {
            let start = self.at(self.scheduler.next_start(self.now()));
            let write = self.at(self.scheduler.write_at());
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.execute(command),
                    None => return,
                },
                Some(progress) = self.progress.1.recv() => self.handle(progress),
                () = sleep_until_some(start) => self.start(),
                () = sleep_until_some(write) => match self.write().await {
                    Ok(()) => {}
                    Err(HubError::NotLeader) => return,
                    Err(error) => tracing::debug!(%error, "health is not written yet"),
                },
            }
            while self.running.try_join_next().is_some() {}
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at(&self, time: Option<u64>) -> Option<Instant> {
        time.map(|time| self.started + Duration::from_millis(time))
    }

    fn execute(&mut self, command: ProbeCommand) {
        let now = self.now();
        match command {
            ProbeCommand::Watch { watched, importing } => {
                // Spreads first probes over the interval, so that a start does not probe all sources at once.
                let first = |watched: &WatchedSource| {
                    let name = &watched.connection.name;
                    let share = RandomState::new().hash_one(name) as f64 / u64::MAX as f64;
                    now + (watched.schedule.interval as f64 * share) as u64
                };
                self.scheduler.watch(watched, &importing, now, first);
            }
            ProbeCommand::Request(names) => {
                for name in names {
                    if !self.scheduler.request(&name, now) {
                        self.report(Event::ProbeAnswered(name));
                    }
                }
            }
            ProbeCommand::ImportEnded { name, answered } => {
                self.scheduler.import_ended(&name, answered, now);
            }
            ProbeCommand::CredentialsRejected {
                name,
                target_hash,
                error,
                is_requested,
            } => {
                let kind = FailureKind::Authentication;
                let failure = ProbeFailure { kind, text: error };
                let why = failure.one_line();
                let turn = (self.scheduler).credentials_rejected(
                    &name,
                    &target_hash,
                    failure,
                    is_requested,
                    now,
                );
                if let Some(HealthChange::Lost) = turn {
                    tracing::warn!(connection = name, error = why, "its source does not answer");
                }
            }
        }
    }

    /// Starts the probe that is due.
    fn start(&mut self) {
        let (now, many_jobs) = (self.now(), *self.jobs.borrow() >= MANY_JOBS);
        let Some((number, watched)) = self.scheduler.start(many_jobs, now) else {
            return;
        };
        let (sessions, sender) = (self.sessions.clone(), self.progress.0.clone());
        self.running.spawn(async move {
            probe_sessions::run_probe(&sessions, number, &watched, &sender).await;
        });
    }

    fn handle(&mut self, progress: ProbeProgress) {
        let now = self.now();
        match progress {
            ProbeProgress::Slow(number) => self.scheduler.slow(number),
            ProbeProgress::Answer {
                number,
                name,
                target_hash,
                answer,
            } => {
                let mut why = String::new();
                if let ProbeAnswer::Failed(failure) = &answer {
                    why = failure.one_line();
                    if failure.kind == FailureKind::Authentication {
                        self.report(Event::CredentialsRejected {
                            name: name.clone(),
                            target_hash,
                            error: failure.text.clone(),
                        });
                    }
                }
                match self.scheduler.answered(number, &name, answer, now) {
                    Some(HealthChange::Lost) => {
                        tracing::warn!(
                            connection = name,
                            error = why,
                            "its source does not answer"
                        );
                    }
                    Some(HealthChange::Restored) => {
                        tracing::info!(connection = name, "its source answers again");
                        self.report(Event::SourceRestored(name));
                    }
                    None => {}
                }
            }
            ProbeProgress::Ended { number, name } => {
                self.scheduler.session_ended(number, &name, now)
            }
        }
    }

    fn report(&self, event: Event) {
        // The receiver is gone if the leadership is lost.
        let _ = self.events.send(event);
    }

    async fn write(&mut self) -> Result<(), HubError> {
        let batch = self.scheduler.take_batch(self.now());
        if batch.is_empty() {
            return Ok(());
        }
        let written = self.publish(&batch.json()).await;
        match &written {
            Ok(()) => {
                for name in batch.answered_requests() {
                    self.report(Event::ProbeAnswered(name));
                }
            }
            Err(error) => {
                let text = error.to_string();
                if matches!(error, HubError::StatementFailed { .. }) && text != self.last_error {
                    tracing::warn!(error = text, "the results of probes cannot be written");
                    self.last_error = text;
                }
                self.scheduler.write_failed(batch, self.now());
            }
        }
        written
    }

    async fn publish(&mut self, rows: &serde_json::Value) -> Result<(), HubError> {
        let mut permit = None;
        if self
            .writer
            .as_ref()
            .is_none_or(|session| session.client.is_closed())
        {
            // Where the server has little room, a probe makes it.
            if self.has_few_sessions {
                permit = self.sessions.permit().await.ok();
            }
            let opened = crowded::open_next_session(&self.endpoint, "health", OPEN_TIMEOUT).await;
            self.writer = Some(opened.map_err(|_| HubError::NoSession)?);
        }
        let Some(writer) = &self.writer else {
            return Err(HubError::NoSession);
        };
        let sql = "SELECT spcd.publish_health($1, $2)";
        writer.client.execute(sql, &[&self.epoch, rows]).await?;
        if self.has_few_sessions {
            self.writer = None;
        }
        drop(permit);
        Ok(())
    }
}

/// Sleeps until a time, or forever without one.
async fn sleep_until_some(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
