//! The task that probes sources beside the loop and writes what it finds. What it asks and when is
//! decided by [`ProbeScheduler`].

mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use spcd_core::health::{Kind, ProbeAnswer, ProbeFailure, Turn};
use spcd_core::scheduler::{Event, MAX_WELL_PROBES, ProbeCommand, ProbeScheduler, WatchedSource};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_postgres::Client;

use crate::hub::connect::{Endpoint, Session};
use crate::hub::{HubError, Limits};
use crate::tunnel::Tunnels;
use session::{Found, Sessions};

/// Number of running jobs from which on probes and drift detection wait: they keep no client waiting
/// and would compete with the jobs for the hub's processors.
pub const MANY_JOBS: usize = 16;

/// The task that probes. It ends when this is dropped.
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
            let places = limits.for_probes(MAX_WELL_PROBES);
            let sessions = Sessions::new(endpoint.clone(), tunnels, places);
            let mut task = ProbeTask {
                sessions: Arc::new(sessions),
                endpoint,
                epoch,
                began: Instant::now(),
                scheduler: ProbeScheduler::new(known, limits.lost_probes()),
                running: JoinSet::new(),
                few: limits.are_few(),
                found: mpsc::unbounded_channel(),
                events: sender,
                jobs,
                writer: None,
                refusal: String::new(),
            };
            task.run(receiver).await;
        });
        Self {
            commands,
            events,
            _task: task,
        }
    }

    /// Waits for an event. Nothing is lost if this is not awaited to its end.
    pub async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // The lead is over, which the loop finds out by itself.
            None => std::future::pending().await,
        }
    }

    /// Tells the task something.
    pub fn tell(&self, command: ProbeCommand) {
        // The task ends when the lead is lost, which the loop finds out by itself.
        let _ = self.commands.send(command);
    }
}

/// What an earlier leader knew: whether sources answered, and which ones are held.
pub async fn known(
    client: &Client,
) -> Result<(BTreeMap<String, bool>, BTreeSet<String>), HubError> {
    let sql = "SELECT connection_name, reachable, held FROM spcd.connection_health
               WHERE held OR reachable IS NOT NULL";
    let (mut known, mut held) = (BTreeMap::new(), BTreeSet::new());
    for row in client.query(sql, &[]).await? {
        let name: String = row.try_get(0)?;
        if row.try_get(2)? {
            held.insert(name);
        } else if let Some(reachable) = row.try_get(1)? {
            known.insert(name, reachable);
        }
    }
    Ok((known, held))
}

/// The task.
struct ProbeTask {
    endpoint: Arc<Endpoint>,
    epoch: i64,
    sessions: Arc<Sessions>,
    /// Times are counted from here.
    began: Instant,
    scheduler: ProbeScheduler,
    running: JoinSet<()>,
    /// The server has hardly room for the sessions that are always needed.
    few: bool,
    found: (mpsc::UnboundedSender<Found>, mpsc::UnboundedReceiver<Found>),
    events: mpsc::UnboundedSender<Event>,
    /// The number of running jobs.
    jobs: watch::Receiver<usize>,
    writer: Option<Session>,
    /// Why health could not be written the last time.
    refusal: String,
}

impl ProbeTask {
    async fn run(&mut self, mut commands: mpsc::UnboundedReceiver<ProbeCommand>) {
        loop {
            let start = self.at(self.scheduler.next_start(self.now()));
            let write = self.at(self.scheduler.write_at());
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some(found) = self.found.1.recv() => self.take(found),
                () = until(start) => self.start(),
                () = until(write) => match self.write().await {
                    Ok(()) => {}
                    Err(HubError::NotLeading) => return,
                    Err(error) => tracing::debug!(%error, "health is not written yet"),
                },
            }
            while self.running.try_join_next().is_some() {}
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at(&self, time: Option<u64>) -> Option<Instant> {
        time.map(|time| self.began + Duration::from_millis(time))
    }

    fn obey(&mut self, command: ProbeCommand) {
        let now = self.now();
        match command {
            ProbeCommand::Watch { watched, importing } => {
                // Spread over the interval, so that a start does not probe all of them at once.
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
                let kind = Kind::Authentication;
                let failure = ProbeFailure { kind, text: error };
                let why = failure.one_line();
                let turn = (self.scheduler).credentials_rejected(
                    &name,
                    &target_hash,
                    failure,
                    is_requested,
                    now,
                );
                if let Some(Turn::Lost) = turn {
                    tracing::warn!(connection = name, "its source does not answer: {why}");
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
        let (sessions, sender) = (self.sessions.clone(), self.found.0.clone());
        self.running.spawn(async move {
            session::ask(&sessions, number, &watched, &sender).await;
        });
    }

    fn take(&mut self, found: Found) {
        let now = self.now();
        match found {
            Found::Slow(number) => self.scheduler.slow(number),
            Found::Answer {
                number,
                name,
                target_hash,
                answer,
            } => {
                let mut why = String::new();
                if let ProbeAnswer::Failed(failure) = &answer {
                    why = failure.one_line();
                    if failure.kind == Kind::Authentication {
                        self.report(Event::CredentialsRejected {
                            name: name.clone(),
                            target_hash,
                            error: failure.text.clone(),
                        });
                    }
                }
                match self.scheduler.answered(number, &name, answer, now) {
                    Some(Turn::Lost) => {
                        tracing::warn!(connection = name, "its source does not answer: {why}");
                    }
                    Some(Turn::Restored) => {
                        tracing::info!(connection = name, "its source answers again");
                        self.report(Event::SourceRestored(name));
                    }
                    None => {}
                }
            }
            Found::Over { number, name } => self.scheduler.session_ended(number, &name, now),
        }
    }

    fn report(&self, event: Event) {
        // The loop is gone where the lead is lost.
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
                if matches!(error, HubError::Refused { .. }) && text != self.refusal {
                    tracing::warn!("what probes found cannot be written: {text}");
                    self.refusal = text;
                }
                self.scheduler.write_failed(batch, self.now());
            }
        }
        written
    }

    async fn publish(&mut self, rows: &serde_json::Value) -> Result<(), HubError> {
        if self
            .writer
            .as_ref()
            .is_none_or(|session| session.client.is_closed())
        {
            let opened = self.endpoint.connect("health").await;
            self.writer = Some(opened.map_err(|_| HubError::NoSession)?);
        }
        let Some(writer) = &self.writer else {
            return Err(HubError::NoSession);
        };
        let sql = "SELECT spcd.publish_health($1, $2)";
        writer.client.execute(sql, &[&self.epoch, rows]).await?;
        if self.few {
            self.writer = None;
        }
        Ok(())
    }
}

/// Waits until then; for ever where there is no then.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
