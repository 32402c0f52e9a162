//! The daemon. A leader's loop takes an event, has `spcd_core::scheduler` decide, and carries out the
//! commands (`executors`).
//!
//! What takes long (sources, writing) happens in jobs beside the loop, so that a source that hangs
//! holds up no other connection.

mod executors;
mod log;
mod run;

pub use run::run;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{Compat, Desired, HubSettings, Inputs};
use spcd_core::health::Options;
use spcd_core::plan::Work;
use spcd_core::scheduler::{
    self, Event, Failure, JobOutcome, NextAttempt, PassOutcome, Start, State, is_refresh,
};
use spcd_core::sql;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until};

use crate::config::Config;
use crate::hub::apply::Writer;
use crate::hub::connect::{Endpoint, Session};
use crate::hub::crash::Recorded;
use crate::hub::lead::{self, Lead};
use crate::hub::pool::Pool;
use crate::hub::state::{HubState, Shared};
use crate::hub::steampipe::Steampipe;
use crate::hub::{HubError, Limits, crash, inputs, migrate};
use crate::service;
use crate::settings::Settings;
use crate::source::{self, Probes};
use crate::telemetry::{Observation, observe};
use crate::tunnel::Tunnels;
use crate::watch::Watcher;
use executors::drift::Drift;
use executors::files::CsvFiles;
use executors::jobs::Jobs;
use executors::jobs::sources::Sources;
use log::log_job;

/// How often what is too old to be kept is removed.
const SWEEP: Duration = Duration::from_secs(3600);

/// A daemon that leads, or a command that leads for one run.
pub struct LeaderSession<'a> {
    state: State,
    /// The scheduler's times are counted from here.
    began: Instant,
    config: &'a mut Config,
    /// Notices changed files, where this goes on.
    watcher: Option<&'a mut Watcher>,
    /// The files that the applied state came from, as the database has them.
    inputs: Inputs,
    endpoint: Arc<Endpoint>,
    lead: Lead,
    jobs: Jobs,
    tunnels: Arc<Tunnels>,
    /// The health options of connections that have none: they may change.
    health: watch::Receiver<Options>,
    steampipe: Option<Steampipe>,
    csv: CsvFiles,
    listener: Session,
    drift: Drift,
    limits: Limits,
    /// Probes the sources, where this goes on.
    probes: Option<Probes>,
    /// Which sources answered, as an earlier leader recorded.
    answered: BTreeMap<String, bool>,
    /// What the files want, as the last look found it.
    desired: Arc<Desired>,
    /// When the last pass began, and how long its look took.
    pass_began: Instant,
    looked_for: Duration,
    /// What the last pass did.
    outcome: Option<PassOutcome>,
    /// A pass came to its end.
    has_passed: bool,
    /// When the change of a file was noticed that the last look found.
    noticed: Option<Instant>,
    /// The same for connections that are being made as their files say.
    following: HashMap<String, Instant>,
}

/// What the loop does by the clock beside the scheduler's work.
struct Clocks {
    beat: Interval,
    sweep: Interval,
    keepalive: Interval,
    settings: watch::Receiver<HubSettings>,
}

impl Clocks {
    fn new(mut settings: watch::Receiver<HubSettings>) -> Self {
        let keepalive = every(settings.borrow_and_update().keepalive);
        let interval = |period| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Self {
            beat: interval(lead::HEARTBEAT),
            sweep: interval(SWEEP),
            keepalive,
            settings,
        }
    }
}

impl<'a> LeaderSession<'a> {
    /// Brings spcd's schema up to date and takes the lead. While another daemon has it: waits if there
    /// is a `watcher`, since this one goes on, else returns `None`.
    pub async fn begin(
        endpoint: &Arc<Endpoint>,
        pool: &Pool,
        settings: &Settings,
        config: &'a mut Config,
        health: watch::Receiver<Options>,
        watcher: Option<&'a mut Watcher>,
    ) -> anyhow::Result<Option<Self>> {
        migrate_hub(endpoint).await?;
        let Some(lead) = take_lead(endpoint, settings, config, watcher.is_some()).await? else {
            return Ok(None);
        };
        config.learn_encoding(&lead.control.client).await?;
        let inputs = inputs::read(&lead.control.client).await?;
        observe(Observation::Led { epoch: lead.epoch });
        service::status("leading");
        if let HubState::Lost { since, reason } = endpoint.shared().state() {
            let seconds = since.elapsed().unwrap_or_default().as_secs();
            tracing::info!(seconds, reason, "the database is back");
        }
        endpoint.shared().leads(lead.epoch);
        let compat = settings.compat == Compat::Steampipe;
        let steampipe = Steampipe::begin(&lead.control.client, lead.epoch, compat).await?;
        let listener = endpoint.connect("listener").await?;
        let listen = format!("LISTEN {}", sql::ident(spcd_protocol::WAKE_CHANNEL));
        listener.client.batch_execute(&listen).await?;
        let observer = endpoint.connect("observer").await?;
        let limits = fit_pool(pool, &lead).await?;
        let (state, answered) = first_state(endpoint, &lead, watcher.is_some()).await?;
        let tunnels = Tunnels::new(&settings.state_dir, endpoint);
        let sources = Sources::new(endpoint.clone(), pool.clone(), tunnels.clone(), limits);
        let writer = Writer::start(endpoint.clone(), lead.epoch, limits);
        let jobs = Jobs::new(sources, writer);
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
            lead,
            health,
            steampipe,
            csv: CsvFiles::default(),
            listener,
            limits,
            probes: None,
            answered,
            desired: Arc::default(),
            pass_began: Instant::now(),
            looked_for: Duration::ZERO,
            outcome: None,
            has_passed: false,
            noticed: None,
            following: HashMap::new(),
        }))
    }

    /// The same for a command that ends soon: it does not wait.
    pub async fn begin_once(
        endpoint: &Endpoint,
        settings: &Settings,
        config: &'a mut Config,
    ) -> anyhow::Result<Option<Self>> {
        let shared = Shared::new(settings.hub);
        let endpoint = Arc::new(endpoint.clone().with_shared(shared));
        let pool = Pool::new(endpoint.clone());
        let (_, health) = watch::channel(settings.health);
        Self::begin(&endpoint, &pool, settings, config, health, None).await
    }

    /// Gives up the lead, and says so.
    pub async fn resign(self) {
        if let Err(error) = lead::resign(&self.lead.control.client).await {
            tracing::debug!("cannot say that the lead is free: {error}");
        }
    }

    /// Gives up all but the session that holds the lead.
    pub fn abdicate(self) -> Option<Session> {
        self.lead.lock
    }

    /// Asks every source in the next pass.
    pub fn refresh_all(&mut self) {
        self.state.refresh_all();
    }

    /// From now on what people hung on a connection that goes, goes with it.
    pub fn drop_dependents(&mut self) {
        self.jobs.drop_dependents();
    }

    /// Serves until the lead or the database is lost.
    pub async fn serve(&mut self) -> Result<(), HubError> {
        let Some(mut lock) = self.lead.lock.take() else {
            return Err(HubError::LeadLost);
        };
        // Beside the loop: a statement that gets no answer would else hold up its own discovery.
        tokio::select! {
            ended = self.run() => ended,
            ended = lead::keep(&mut lock) => ended,
        }
    }

    /// Passes until nothing is left to do: `spcd apply` without a daemon.
    pub async fn settle(&mut self, mut progress: impl FnMut(usize)) -> Result<(), HubError> {
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
                if running == 0 || self.state.is_look_due() {
                    break;
                }
                let event = self.jobs.event().await;
                self.handle(event).await?;
            }
        }
    }

    async fn run(&mut self) -> Result<(), HubError> {
        let mut clocks = Clocks::new(self.endpoint.shared().watch_settings());
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
            // One pass for all that ended meanwhile.
            while let Some(event) = self.jobs.try_event() {
                self.handle(event).await?;
            }
        }
    }

    /// Waits for an event. Meanwhile keeps the lead and the sessions alive.
    async fn next_event(&mut self, clocks: &mut Clocks) -> Result<Event, HubError> {
        loop {
            let wake_at = self.began + Duration::from_millis(self.state.wake_at());
            let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
            let kept = tokio::select! {
                () = noticed(&mut self.watcher) => return Ok(Event::Woken),
                () = sleep_until(wake_at) => return Ok(Event::Woken),
                () = self.csv.late() => return Ok(Event::Woken),
                () = self.tunnels.moved() => return Ok(Event::Woken),
                event = self.jobs.event() => return Ok(event),
                drift = self.drift.answer() => drift.map(Event::DriftAnswered).map(Some),
                event = probed(&mut self.probes) => return Ok(event),
                message = self.listener.messages.recv() => match message {
                    Some(_) => return Ok(Event::Woken),
                    None => return Err(HubError::NoSession),
                },
                _ = clocks.sweep.tick() => lead::sweep(client, epoch).await.map(|_| None),
                _ = clocks.beat.tick() => lead::beat(client, epoch).await.map(|_| None),
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
                    self.bear(error)?;
                    return Ok(Event::ServerFull);
                }
            }
        }
    }

    /// Takes an event, and carries out what follows from it.
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
                        self.bear(error)?;
                        is_full = true;
                    }
                }
            }
            events.extend(is_full.then_some(Event::ServerFull));
        }
        Ok(())
    }

    /// Keeps the lead although the server has no room to write: to begin anew would write more.
    fn bear(&self, error: HubError) -> Result<(), HubError> {
        match error.is_out_of_room() && self.watcher.is_some() {
            true => {
                tracing::warn!(%error, "the server cannot write now");
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

    /// Takes note of when the change of a file was noticed that the next look finds. A pass may look
    /// twice, once before and once after extensions are created: the first time counts.
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

    /// Counts how long it takes until a connection is as its changed file says.
    fn follow_change(&mut self, work: &Work) {
        if let Some(noticed) = self.noticed.filter(|_| !is_refresh(work)) {
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
            look: self.looked_for,
            took: self.pass_began.elapsed(),
        });
        self.outcome = Some(outcome);
        self.has_passed = true;
        self.noticed = None;
        if let Some(watcher) = &mut self.watcher {
            let mut places = self.csv.watched();
            places.add(self.config.places());
            watcher.follow(&places.list());
        }
    }

    /// Speaks to the sessions that may have nothing to do for long: a server that vanished, or that
    /// became a standby, is noticed, and what stands between keeps the connections open.
    async fn keep_alive(&mut self) -> Result<(), HubError> {
        let settings = self.endpoint.shared().settings();
        for session in [&mut self.lead.control, &mut self.listener] {
            session.limit(settings).await?;
            session.ping().await?;
        }
        self.drift.keep_alive(settings).await
    }
}

/// Brings spcd's schema up to date.
async fn migrate_hub(endpoint: &Endpoint) -> anyhow::Result<()> {
    let session = endpoint.connect("migrate").await?;
    // A file may take as long as it takes; the locks have limits of their own.
    let patient = "SET statement_timeout = 0";
    session.client.batch_execute(patient).await?;
    for name in migrate::migrate(&session.client).await? {
        tracing::info!(migration = name, "applied");
    }
    Ok(())
}

/// Takes the lead, and reads the files meanwhile: that takes as long where there are thousands, and
/// the first pass finds them read.
async fn take_lead(
    endpoint: &Arc<Endpoint>,
    settings: &Settings,
    config: &mut Config,
    waits: bool,
) -> anyhow::Result<Option<Lead>> {
    let roots = config.required_roots().map(<[String]>::to_vec);
    let reading = async { tokio::task::block_in_place(|| drop(config.load())) };
    let taking = lead::take(endpoint, &settings.instance, roots.as_deref(), waits);
    let (lead, ()) = tokio::join!(taking, reading);
    lead
}

/// Fits the pool into what the server has room for.
async fn fit_pool(pool: &Pool, lead: &Lead) -> anyhow::Result<Limits> {
    let limits = Limits::read(&lead.control.client).await?;
    pool.fit(limits);
    if limits.sessions < Limits::ENOUGH {
        tracing::warn!(
            sessions = limits.sessions,
            "the server lets this role have few sessions, so that much takes longer; \
             `spcd doctor` says what to do"
        );
    }
    if limits.are_few() {
        // What is needed all the time has its place before what comes and goes.
        pool.get().await?.give_back_after(&Ok::<_, HubError>(()));
    }
    Ok(limits)
}

/// Returns the state that a leader starts with, and which sources answered an earlier one.
async fn first_state(
    endpoint: &Endpoint,
    lead: &Lead,
    goes_on: bool,
) -> anyhow::Result<(State, BTreeMap<String, bool>)> {
    let client = &lead.control.client;
    let (answered, paused) = source::known(client).await?;
    let crashes = endpoint.shared().take_crashes();
    crash::record(client, lead.epoch, &crashes).await?;
    let state = State::new(Start {
        seed: RandomState::new().hash_one(lead.epoch),
        paused,
        crashes: failures(crash::recorded(client).await?),
    });
    let state = match goes_on {
        true => state.with_probes(),
        false => state.waiting_for_drift(),
    };
    Ok((state, answered))
}

/// Waits until a file changes; for ever where none is watched.
async fn noticed(watcher: &mut Option<&mut Watcher>) {
    match watcher {
        Some(watcher) => drop(watcher.noticed().await),
        None => std::future::pending().await,
    }
}

/// Waits for an event of the probes; for ever where there are none.
async fn probed(probes: &mut Option<Probes>) -> Event {
    match probes {
        Some(probes) => probes.event().await,
        None => std::future::pending().await,
    }
}

/// A clock that first ticks when so many milliseconds are over.
fn every(milliseconds: u64) -> Interval {
    let pause = Duration::from_millis(milliseconds.max(1));
    let mut interval = tokio::time::interval_at(Instant::now() + pause, pause);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Returns the failures of connections whose last attempt ended a server process.
fn failures(crashes: BTreeMap<String, Recorded>) -> BTreeMap<String, Failure> {
    let failure = |(name, recorded): (String, Recorded)| {
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
