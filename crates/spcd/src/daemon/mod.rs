//! The daemon. A leader's loop passes each event to `spcd_core::scheduler` and executes the commands
//! that it returns (`executors`).
//!
//! Slow work (sources, writes) runs in jobs beside the loop, so that a source that hangs delays no other
//! connection.

mod executors;
mod log;
mod run;

pub use run::run;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{AppliedFiles, Compat, DesiredState, HubSettings};
use spcd_core::health::ProbeOptions;
use spcd_core::planner::Work;
use spcd_core::scheduler::{
    self, Event, Failure, JobOutcome, NextAttempt, PassOutcome, Start, State,
};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until};

use crate::config::Config;
use crate::mirror::Mirrors;
use crate::service;
use crate::settings::Settings;
use crate::source::{self, Probes};
use crate::telemetry::{Observation, observe};
use crate::tunnel::Tunnels;
use crate::watch::Watcher;
use executors::drift::Drift;
use executors::files::CsvWatch;
use executors::forward::ForwardedRequests;
use executors::jobs::Jobs;
use executors::jobs::sources::Sources;
use log::log_job;
use spcd_postgres::config_files;
use spcd_postgres::connection::context::{HubContext, HubState};
use spcd_postgres::connection::pool::Pool;
use spcd_postgres::connection::{Endpoint, Session};
use spcd_postgres::crash_guard;
use spcd_postgres::crash_guard::RecordedCrash;
use spcd_postgres::leader::{self, Leadership};
use spcd_postgres::migrations;
use spcd_postgres::steampipe::Steampipe;
use spcd_postgres::writer::Writer;
use spcd_postgres::{HubError, Limits};

/// Interval of deleting rows that exceed their retention.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

/// A daemon that leads, or a command that leads for one run.
pub struct LeaderSession<'a> {
    state: State,
    /// Origin of the scheduler's times.
    began: Instant,
    config: &'a mut Config,
    /// Watches the files; `None` for a command.
    watcher: Option<&'a mut Watcher>,
    /// The files from which the applied state came, as recorded in the database.
    inputs: AppliedFiles,
    endpoint: Arc<Endpoint>,
    lead: Leadership,
    jobs: Jobs,
    tunnels: Arc<Tunnels>,
    mirrors: Mirrors,
    /// Default health options, which may change.
    health: watch::Receiver<ProbeOptions>,
    steampipe: Option<Steampipe>,
    csv: CsvWatch,
    listener: Session,
    forwarded: ForwardedRequests,
    drift: Drift,
    limits: Limits,
    /// Probes the sources; `None` for a command.
    probes: Option<Probes>,
    /// Reachability of sources, as recorded by an earlier leader.
    answered: BTreeMap<String, bool>,
    /// Desired state of the last load.
    desired: Arc<DesiredState>,
    /// Diagnostics of the files, until the next observation.
    diagnostics: Option<serde_json::Value>,
    /// Start of the last pass, and the duration of its observation.
    pass_began: Instant,
    observation_took: Duration,
    /// Outcome of the last pass.
    outcome: Option<PassOutcome>,
    /// Whether a pass has ended.
    has_passed: bool,
    /// Time at which the change of files was noticed that the last load found.
    noticed: Option<Instant>,
    /// The same, by connection, until the connection follows its file.
    following: HashMap<String, Instant>,
}

/// Periodic tasks of the loop.
struct Timers {
    heartbeat: Interval,
    cleanup: Interval,
    keepalive: Interval,
    settings: watch::Receiver<HubSettings>,
}

impl Timers {
    fn new(mut settings: watch::Receiver<HubSettings>) -> Self {
        let keepalive = every(settings.borrow_and_update().keepalive);
        let interval = |period| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Self {
            heartbeat: interval(leader::HEARTBEAT_INTERVAL),
            cleanup: interval(RETENTION_INTERVAL),
            keepalive,
            settings,
        }
    }
}

impl<'a> LeaderSession<'a> {
    /// Migrates spcd's schema and becomes the leader. While another daemon leads, waits if there is a
    /// `watcher`, and otherwise returns `None`.
    pub async fn begin(
        endpoint: &Arc<Endpoint>,
        pool: &Pool,
        settings: &Settings,
        config: &'a mut Config,
        health: watch::Receiver<ProbeOptions>,
        watcher: Option<&'a mut Watcher>,
    ) -> anyhow::Result<Option<Self>> {
        migrate_hub(endpoint).await?;
        let Some(lead) = take_lead(endpoint, settings, config, watcher.is_some()).await? else {
            return Ok(None);
        };
        config.learn_encoding(&lead.control.client).await?;
        config.learn_lanes(&lead.control.client).await?;
        let inputs = config_files::read(&lead.control.client).await?;
        observe(Observation::Led { epoch: lead.epoch });
        service::status("leading");
        if let HubState::Lost { since, reason } = endpoint.context().state() {
            let seconds = since.elapsed().unwrap_or_default().as_secs();
            tracing::info!(seconds, reason, "the database is back");
        }
        endpoint.context().set_leading(lead.epoch);
        let compat = settings.compat == Compat::Steampipe;
        let steampipe = Steampipe::start(&lead.control.client, lead.epoch, compat).await?;
        let listener = endpoint.connect("listener").await?;
        listener.listen(spcd_protocol::WAKE_CHANNEL).await?;
        let observer = endpoint.connect("observer").await?;
        let limits = fit_pool(pool, &lead).await?;
        let (state, answered) = first_state(endpoint, &lead, watcher.is_some()).await?;
        let tunnels = Tunnels::new(&settings.state_dir, endpoint);
        let sources = Sources::new(endpoint.clone(), pool.clone(), tunnels.clone(), limits);
        let writer = Writer::start(endpoint.clone(), lead.epoch, limits, |committed| {
            observe(Observation::Wrote(committed));
        });
        let jobs = Jobs::new(sources, writer);
        let mirrors = Mirrors::begin(&lead.control.client).await?;
        Ok(Some(Self {
            state,
            began: Instant::now(),
            config,
            watcher,
            inputs,
            endpoint: endpoint.clone(),
            drift: Drift::new(observer, jobs.count()),
            jobs,
            tunnels,
            mirrors,
            lead,
            health,
            steampipe,
            csv: CsvWatch::default(),
            listener,
            forwarded: ForwardedRequests::default(),
            limits,
            probes: None,
            answered,
            desired: Arc::default(),
            diagnostics: None,
            pass_began: Instant::now(),
            observation_took: Duration::ZERO,
            outcome: None,
            has_passed: false,
            noticed: None,
            following: HashMap::new(),
        }))
    }

    /// Like [`Self::begin`], for a command: does not wait.
    pub async fn begin_once(
        endpoint: &Endpoint,
        settings: &Settings,
        config: &'a mut Config,
    ) -> anyhow::Result<Option<Self>> {
        let context = HubContext::new(settings.hub);
        let endpoint = Arc::new(endpoint.clone().with_context(context));
        let pool = Pool::new(endpoint.clone());
        let (_, health) = watch::channel(settings.health);
        Self::begin(&endpoint, &pool, settings, config, health, None).await
    }

    /// Gives up the lead, and records that.
    pub async fn resign(self) {
        if let Err(error) = leader::resign(&self.lead.control.client).await {
            tracing::debug!("cannot say that the lead is free: {error}");
        }
    }

    /// Returns the session that holds the lead, and drops everything else.
    pub fn into_lock_session(self) -> Option<Session> {
        self.lead.lock
    }

    /// Imports all tables again in the next pass.
    pub fn refresh_all(&mut self) {
        self.state.refresh_all();
    }

    /// Makes dropped connections take dependent objects of users along.
    pub fn drop_dependents(&mut self) {
        self.jobs.drop_dependents();
    }

    /// Serves until the lead or the database is lost.
    pub async fn serve(&mut self) -> Result<(), HubError> {
        let Some(mut lock) = self.lead.lock.take() else {
            return Err(HubError::LeadershipLost);
        };
        // Beside the loop: it detects that a statement of the loop gets no answer.
        tokio::select! {
            ended = self.run() => ended,
            ended = leader::watch(&mut lock) => ended,
        }
    }

    /// Runs passes until nothing is left to do, for `spcd apply` without a daemon.
    pub async fn run_until_settled(
        &mut self,
        mut progress: impl FnMut(usize),
    ) -> Result<(), HubError> {
        self.read_mirrors().await;
        loop {
            self.outcome = None;
            self.handle(Event::Woken).await?;
            self.handle(Event::Idle).await?;
            if self.outcome.is_some_and(|outcome| outcome.is_idle) {
                self.jobs.rest().await;
                return Ok(());
            }
            loop {
                let running = self.state.running_jobs();
                progress(running);
                if running == 0 || self.state.is_pass_due() {
                    break;
                }
                let event = self.jobs.event().await;
                self.handle(event).await?;
            }
        }
    }

    async fn run(&mut self) -> Result<(), HubError> {
        let mut clocks = Timers::new(self.endpoint.context().watch_settings());
        self.probes = Some(Probes::start(
            self.endpoint.clone(),
            self.lead.epoch,
            self.limits,
            self.tunnels.clone(),
            std::mem::take(&mut self.answered),
            self.jobs.count(),
        ));
        loop {
            self.handle(Event::Idle).await?;
            service::alive();
            let event = self.next_event(&mut clocks).await?;
            self.handle(event).await?;
            // One pass for all jobs that have ended.
            while let Some(event) = self.jobs.try_event() {
                self.handle(event).await?;
            }
        }
    }

    /// Waits for an event. Keeps the lead and the sessions alive.
    async fn next_event(&mut self, clocks: &mut Timers) -> Result<Event, HubError> {
        loop {
            let wake_at = self.began + Duration::from_millis(self.state.wake_at());
            let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
            let kept = tokio::select! {
                () = noticed(&mut self.watcher) => return Ok(Event::FilesChanged),
                () = sleep_until(wake_at) => return Ok(Event::Woken),
                () = self.csv.late_change() => return Ok(Event::Woken),
                () = self.tunnels.moved() => return Ok(Event::Woken),
                () = self.mirrors.changed() => return Ok(Event::FilesChanged),
                () = self.forwarded.answered() => return Ok(Event::Woken),
                event = self.jobs.event() => return Ok(event),
                drift = self.drift.answer() => drift.map(Event::DriftAnswered).map(Some),
                event = probed(&mut self.probes) => return Ok(event),
                message = self.listener.messages.recv() => match message {
                    Some(_) => {
                        // Any role can send any number of them: all that have arrived make one pass.
                        while self.listener.messages.try_recv().is_ok() {}
                        return Ok(Event::Woken);
                    }
                    None => return Err(HubError::NoSession),
                },
                _ = clocks.cleanup.tick() => leader::delete_expired_rows(client, epoch).await.map(|_| None),
                _ = clocks.heartbeat.tick() => leader::send_heartbeat(client, epoch).await.map(|_| None),
                _ = clocks.keepalive.tick() => self.keep_alive().await.map(|()| None),
                _ = clocks.settings.changed() => {
                    clocks.keepalive = every(clocks.settings.borrow_and_update().keepalive);
                    self.keep_alive().await.map(|()| None)
                }
            };
            match kept {
                Ok(None) => {}
                Ok(Some(event)) => return Ok(event),
                Err(error) => {
                    self.tolerate_full_disk(error)?;
                    return Ok(Event::ServerFull);
                }
            }
        }
    }

    /// Passes an event to the scheduler, and executes its commands.
    async fn handle(&mut self, event: Event) -> Result<(), HubError> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.note(&event);
            let mut is_full = false;
            let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            for command in scheduler::step(&mut self.state, event, now) {
                match self.execute(command).await {
                    Ok(event) => events.extend(event),
                    Err(error) => {
                        self.tolerate_full_disk(error)?;
                        is_full = true;
                    }
                }
            }
            events.extend(is_full.then_some(Event::ServerFull));
        }
        Ok(())
    }

    /// Keeps the lead although the server is out of disk space: a new start would write more.
    fn tolerate_full_disk(&self, error: HubError) -> Result<(), HubError> {
        match error.is_out_of_resources() && self.watcher.is_some() {
            true => {
                tracing::warn!(%error, "the server cannot write now");
                let context = self.endpoint.context();
                context.set_write_error(Some(error.to_string()));
                Ok(())
            }
            false => Err(error),
        }
    }

    /// Counts and logs an event.
    fn note(&mut self, event: &Event) {
        let Event::JobEnded { name, outcome } = event else {
            return;
        };
        self.drift.ended(name);
        if let Some(origin) = self.jobs.ended(name) {
            log_job(name, outcome, &origin);
        }
        match outcome {
            JobOutcome::Later { .. } | JobOutcome::Waits | JobOutcome::Cancelled => {}
            JobOutcome::Done => {
                if let Some(noticed) = self.following.remove(name) {
                    let lag = noticed.elapsed();
                    observe(Observation::Followed { lag });
                }
            }
            JobOutcome::Same | JobOutcome::Failed { .. } => drop(self.following.remove(name)),
        }
    }

    /// Records when the change was noticed that the next load will find. Work may wait for a later pass while
    /// extensions are created: the first time counts.
    async fn notice_files(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let noticed = tokio::select! {
            biased;
            when = watcher.noticed() => Some(when),
            () = std::future::ready(()) => None,
        };
        self.noticed = self.noticed.or(noticed);
    }

    /// Reports the time until a connection follows its changed file.
    fn follow_change(&mut self, work: &Work) {
        if let Some(noticed) = self.noticed.filter(|_| !work.is_refresh()) {
            self.following.insert(work.name.clone(), noticed);
        }
    }

    /// Ends a pass.
    fn report(&mut self, outcome: PassOutcome) {
        observe(Observation::Passed {
            pass: outcome.pass,
            connections: outcome.connections,
            altered: outcome.drifted,
            rows: outcome.rows,
            work: outcome.work,
            under_way: outcome.running,
            observation: self.observation_took,
            took: self.pass_began.elapsed(),
        });
        if let Some(usage) = self.jobs.usage() {
            tracing::debug!(pass = outcome.pass, usage, "session budget");
        }
        self.endpoint.context().set_write_error(None);
        self.outcome = Some(outcome);
        self.has_passed = true;
        self.noticed = self.noticed.filter(|_| outcome.awaits_preparation);
        if let Some(watcher) = &mut self.watcher {
            let mut watch_points = self.csv.watch_points();
            watch_points.add(self.config.watch_points());
            watcher.follow(&watch_points.list());
        }
    }

    /// Pings the sessions that may be idle for long. This detects a server that vanished or became a
    /// standby, and keeps firewalls from closing the connections.
    async fn keep_alive(&mut self) -> Result<(), HubError> {
        let settings = self.endpoint.context().settings();
        for session in [&mut self.lead.control, &mut self.listener] {
            session.apply_settings(settings).await?;
            session.ping().await?;
        }
        self.drift.keep_alive(settings).await
    }
}

/// Migrates spcd's schema.
async fn migrate_hub(endpoint: &Endpoint) -> anyhow::Result<()> {
    let session = endpoint.connect("migrate").await?;
    // A migration has no time limit; its lock attempts have.
    let patient = "SET statement_timeout = 0";
    session.client.batch_execute(patient).await?;
    for name in migrations::migrate(&session.client).await? {
        tracing::info!(migration = name, "applied");
    }
    Ok(())
}

/// Takes the lead while it reads the files, which takes as long if there are thousands.
async fn take_lead(
    endpoint: &Arc<Endpoint>,
    settings: &Settings,
    config: &mut Config,
    waits: bool,
) -> anyhow::Result<Option<Leadership>> {
    let roots = config.required_roots().map(<[String]>::to_vec);
    let reading = async { tokio::task::block_in_place(|| drop(config.load())) };
    let taking = leader::acquire(
        endpoint,
        &settings.instance,
        roots.as_deref(),
        waits,
        service::alive,
    );
    let (lead, ()) = tokio::join!(taking, reading);
    lead
}

/// Adjusts the pool to the server's limits.
async fn fit_pool(pool: &Pool, lead: &Leadership) -> anyhow::Result<Limits> {
    let limits = Limits::read(&lead.control.client).await?;
    pool.apply_limits(limits);
    if limits.sessions < Limits::RECOMMENDED_SESSIONS {
        tracing::warn!(
            sessions = limits.sessions,
            "the server lets this role have few sessions, so that much takes longer; \
             `spcd doctor` says what to do"
        );
    }
    if limits.are_few() {
        // Permanent sessions have precedence over temporary ones.
        pool.get().await?.give_back_after(&Ok::<_, HubError>(()));
    }
    Ok(limits)
}

/// Returns the scheduler's initial state, and the reachability that an earlier leader recorded.
async fn first_state(
    endpoint: &Endpoint,
    lead: &Leadership,
    goes_on: bool,
) -> anyhow::Result<(State, BTreeMap<String, bool>)> {
    let client = &lead.control.client;
    let (answered, paused) = source::recorded_health(client).await?;
    let crashes = endpoint.context().take_crashes();
    for plugin in crash_guard::record(client, lead.epoch, &crashes).await? {
        observe(Observation::Crashed { plugin: &plugin });
    }
    let state = State::new(Start {
        seed: RandomState::new().hash_one(lead.epoch),
        paused,
        crashes: failures(crash_guard::recorded(client).await?),
    });
    let state = match goes_on {
        true => state.with_probes(),
        false => state.waiting_for_drift(),
    };
    Ok((state, answered))
}

/// Waits until a file changes, or forever without a watcher.
async fn noticed(watcher: &mut Option<&mut Watcher>) {
    match watcher {
        Some(watcher) => drop(watcher.noticed().await),
        None => std::future::pending().await,
    }
}

/// Waits for an event of the probes, or forever without them.
async fn probed(probes: &mut Option<Probes>) -> Event {
    match probes {
        Some(probes) => probes.event().await,
        None => std::future::pending().await,
    }
}

/// Returns an interval in milliseconds whose first tick is after one interval.
fn every(milliseconds: u64) -> Interval {
    let pause = Duration::from_millis(milliseconds.max(1));
    let mut interval = tokio::time::interval_at(Instant::now() + pause, pause);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Returns the failures of connections whose last attempt crashed a server process.
fn failures(crashes: BTreeMap<String, RecordedCrash>) -> BTreeMap<String, Failure> {
    let failure = |(name, recorded): (String, RecordedCrash)| {
        let pause = u64::try_from(recorded.pause.as_millis()).unwrap_or(u64::MAX);
        let failure = Failure {
            target_hash: recorded.target_hash,
            error: recorded.reason,
            times: recorded.times,
            next: NextAttempt::At(pause),
        };
        (name, failure)
    };
    crashes.into_iter().map(failure).collect()
}
