//! The one loop: a wake, a look at files and database, a plan, and its work.
//!
//! A wake carries nothing and is never branched on. What takes long (sources, writing) happens in
//! jobs beside the loop, so that a source that hangs holds up nobody else's change.

mod drift;
mod files;
mod gate;
mod jobs;
mod log;
mod look;
mod memory;
mod pass;
mod requests;
mod sources;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use spcd_core::config::{Compat, HubSettings, Inputs};
use spcd_core::health::Options;
use spcd_core::scheduler::Backoff;
use spcd_core::sql;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, sleep_until};

use crate::config::Config;
use crate::hub::apply::Writer;
use crate::hub::connect::{Endpoint, Session};
use crate::hub::lead::{self, Lead};
use crate::hub::pool::Pool;
use crate::hub::state::{HubState, Shared};
use crate::hub::steampipe::Steampipe;
use crate::hub::{HubError, Limits, crash, inputs, migrate};
use crate::service;
use crate::settings::Settings;
use crate::source::{self, ProbeEvent, Probes};
use crate::telemetry::{Observation, observe};
use crate::tunnel::Tunnels;
use crate::watch::Watcher;
use drift::Drift;
use files::CsvFiles;
use jobs::Jobs;
use memory::Memory;
use requests::Requests;
use sources::Sources;

/// How often everything is looked at although nothing woke us.
const FULL_LOOK: Duration = Duration::from_secs(60);
/// How often what is too old to be kept is removed.
const SWEEP: Duration = Duration::from_secs(3600);
/// How often to look whether a password that was refused is another one now.
const LOOK_FOR_PASSWORD: Duration = Duration::from_millis(500);

/// A daemon that leads.
pub struct Reign<'a> {
    config: &'a mut Config,
    /// The files that the applied state came from, as the database has them.
    inputs: Inputs,
    endpoint: Arc<Endpoint>,
    lead: Lead,
    jobs: Jobs,
    tunnels: Arc<Tunnels>,
    requests: Requests,
    memory: Memory,
    /// When sources are tried again where no connection says so: it may change.
    health: watch::Receiver<Options>,
    steampipe: Option<Steampipe>,
    csv: CsvFiles,
    listener: Session,
    drift: Drift,
    /// Something waits until it is known what was altered.
    held: bool,
    /// For some of what was wanted something else has to end first.
    is_deferred: bool,
    passes: u64,
    is_first_pass_logged: bool,
    /// How often in a row the server had no room to write.
    failed_writes: u32,
    /// When the next look is due where it had none.
    retry_at: Option<Instant>,
    limits: Limits,
    /// Probes the sources, where this goes on.
    probes: Option<Probes>,
    /// Which sources answered, as an earlier leader knew.
    answered: BTreeMap<String, bool>,
    /// When the change of a file was noticed that the next pass looks at.
    noticed: Option<Instant>,
    /// The same for connections that are being made as their files say.
    following: HashMap<String, Instant>,
}

/// What a pass did, for those who wait for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passed {
    /// Nothing differed and nothing is under way.
    pub idle: bool,
}

impl<'a> Reign<'a> {
    /// Brings spcd's schema up to date and takes the lead. As long as another daemon has it: waits
    /// where `wait` says so, else gives `None`.
    pub async fn begin(
        endpoint: &Arc<Endpoint>,
        pool: &Pool,
        settings: &Settings,
        config: &'a mut Config,
        health: watch::Receiver<Options>,
        wait: bool,
    ) -> anyhow::Result<Option<Self>> {
        let session = endpoint.connect("migrate").await?;
        // A file may take as long as it takes; the locks have limits of their own.
        let patient = "SET statement_timeout = 0";
        session.client.batch_execute(patient).await?;
        for name in migrate::migrate(&session.client).await? {
            tracing::info!(migration = name, "applied");
        }
        drop(session);
        // To read thousands of files takes as long as to take the lead: the first pass finds them read.
        let roots = config.required_roots().map(<[String]>::to_vec);
        let reading = async { tokio::task::block_in_place(|| drop(config.load())) };
        let taking = lead::take(endpoint, &settings.instance, roots.as_deref(), wait);
        let (lead, ()) = tokio::join!(taking, reading);
        let Some(lead) = lead? else {
            return Ok(None);
        };
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
        let (answered, held) = source::known(&lead.control.client).await?;
        let crashes = endpoint.shared().take_crashes();
        crash::record(&lead.control.client, lead.epoch, &crashes).await?;
        let mut memory = Memory {
            held,
            ..Memory::default()
        };
        memory.recall_crashes(crash::recorded(&lead.control.client).await?);
        let tunnels = Tunnels::new(&settings.state_dir, endpoint);
        let sources = Sources::new(endpoint.clone(), pool.clone(), tunnels.clone(), limits);
        let writer = Writer::start(endpoint.clone(), lead.epoch, limits);
        let jobs = Jobs::new(sources, writer);
        Ok(Some(Self {
            config,
            inputs,
            endpoint: endpoint.clone(),
            drift: Drift::new(observer, jobs.count()),
            jobs,
            tunnels,
            lead,
            requests: Requests::default(),
            memory,
            health,
            steampipe,
            csv: CsvFiles::default(),
            listener,
            held: false,
            is_deferred: false,
            passes: 0,
            is_first_pass_logged: false,
            failed_writes: 0,
            retry_at: None,
            limits,
            probes: None,
            answered,
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
        Self::begin(&endpoint, &pool, settings, config, health, false).await
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
    pub fn ask_all(&mut self) {
        self.memory.ask_all = true;
    }

    /// From now on what people hung on a connection that goes, goes with it.
    pub fn drop_dependents(&mut self) {
        self.jobs.drop_dependents();
    }

    /// Looks and works until the lead or the database is lost.
    pub async fn serve(&mut self, watcher: &mut Watcher) -> Result<(), HubError> {
        let Some(mut lock) = self.lead.lock.take() else {
            return Err(HubError::LeadLost);
        };
        // Beside the work: a statement that gets no answer would else hold up its own discovery.
        tokio::select! {
            ended = self.work(watcher) => ended,
            ended = lead::keep(&mut lock) => ended,
        }
    }

    async fn work(&mut self, watcher: &mut Watcher) -> Result<(), HubError> {
        let mut beat = tokio::time::interval(lead::HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut settings = self.endpoint.shared().watch_settings();
        let mut keepalive = every(settings.borrow_and_update().keepalive);
        let mut altered = None;
        let answered = std::mem::take(&mut self.answered);
        let (endpoint, epoch) = (self.endpoint.clone(), self.lead.epoch);
        self.probes = Some(Probes::start(
            endpoint,
            epoch,
            self.limits,
            self.tunnels.clone(),
            answered,
            self.jobs.count(),
        ));
        loop {
            let began = Instant::now();
            // The first pass finds everything pending, and it takes what was altered to say more.
            let wait = self.passes == 0;
            // Whatever woke us: a change that was noticed meanwhile is in this look, too.
            self.noticed = tokio::select! {
                biased;
                when = watcher.noticed() => Some(when),
                () = std::future::ready(()) => None,
            };
            self.retry_at = None;
            let passed = self.pass(Some(watcher), altered.take(), wait).await;
            self.bear(passed)?;
            let mut places = self.csv.watched();
            places.add(self.config.places());
            watcher.follow(&places.list());
            // A look that takes long is not repeated so often that it would matter.
            let pause = FULL_LOOK.max((began.elapsed() + self.drift.took()) * 100);
            let mut until = Instant::now() + pause;
            until = self.memory.next_due().map_or(until, |due| due.min(until));
            loop {
                service::alive();
                tokio::select! {
                    _ = watcher.noticed() => break,
                    () = sleep_until(self.retry_at.unwrap_or(until)) => break,
                    () = self.csv.late() => break,
                    () = self.tunnels.moved() => break,
                    answer = self.drift.answer() => {
                        let answer = answer?;
                        let follows = self.follow(&answer).await;
                        if self.bear(follows)?.unwrap_or_default() {
                            altered = Some(answer);
                            break;
                        }
                    }
                    (finished, again) = self.jobs.next() => {
                        let finished = self.finish(finished).await;
                        let mut look = self.bear(finished)?.unwrap_or_default() || again;
                        // One look for all that ended meanwhile.
                        while let Some((finished, again)) = self.jobs.try_next() {
                            let finished = self.finish(finished).await;
                            look |= self.bear(finished)?.unwrap_or_default() || again;
                        }
                        if look {
                            break;
                        }
                        if let Some(due) = self.memory.next_due() {
                            until = until.min(due);
                        }
                    }
                    message = self.listener.messages.recv() => match message {
                        Some(_) => break,
                        None => return Err(HubError::NoSession),
                    },
                    _ = keepalive.tick() => self.keep_alive().await?,
                    _ = settings.changed() => {
                        keepalive = every(settings.borrow_and_update().keepalive);
                        self.keep_alive().await?;
                    }
                    event = probe_event(&mut self.probes) => match event {
                        ProbeEvent::Restored(name) => if self.memory.is_back(&name) {
                            break;
                        },
                        ProbeEvent::RequestAnswered(_) => {
                            let answered = self.answer_requests().await;
                            if self.bear(answered)? == Some(true) {
                                break;
                            }
                        }
                    },
                    _ = sweep.tick() => {
                        let swept = lead::sweep(&self.lead.control.client, self.lead.epoch).await;
                        self.bear(swept)?;
                    }
                    _ = beat.tick() => {
                        let beaten = lead::beat(&self.lead.control.client, self.lead.epoch).await;
                        self.bear(beaten)?;
                    }
                }
            }
        }
    }

    /// Keeps the lead although the server has no room to write something down: to begin anew would
    /// write more. The next look tries again, later each time.
    fn bear<T>(&mut self, result: Result<T, HubError>) -> Result<Option<T>, HubError> {
        match result {
            Err(error) if error.is_out_of_room() => {
                let pause = jobs::later(self.failed_writes);
                tracing::warn!(%error, ?pause, "the server cannot write now");
                self.failed_writes = self.failed_writes.saturating_add(1);
                self.retry_at = Some(Instant::now() + pause);
                Ok(None)
            }
            result => result.map(Some),
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

    /// Passes until nothing is left to do: `spcd apply` without a daemon.
    pub async fn settle(&mut self, mut progress: impl FnMut(usize)) -> Result<(), HubError> {
        loop {
            let passed = self.pass(None, None, true).await?;
            if passed.idle {
                self.jobs.rest().await;
                return Ok(());
            }
            loop {
                progress(self.jobs.len());
                if self.jobs.len() == 0 {
                    break;
                }
                let (finished, again) = self.jobs.next().await;
                if self.finish(finished).await? || again {
                    break;
                }
            }
        }
    }
}

/// A clock that first ticks when so many milliseconds are over.
fn every(milliseconds: u64) -> Interval {
    let pause = Duration::from_millis(milliseconds.max(1));
    let mut interval = tokio::time::interval_at(Instant::now() + pause, pause);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}

async fn probe_event(probes: &mut Option<Probes>) -> ProbeEvent {
    match probes {
        Some(probes) => probes.event().await,
        None => std::future::pending().await,
    }
}

/// Returns the pause before the database is tried again after this many failures.
fn back_off(times: u32, settings: &HubSettings) -> Duration {
    let share = RandomState::new().hash_one(times) as f64 / u64::MAX as f64;
    let backoff = Backoff::new(settings.backoff_min, settings.backoff_max);
    Duration::from_millis(backoff.jittered(times, share))
}

/// Keeps a database true to the files, for ever: takes the lead, serves, and starts anew when the
/// database went away. Returns only when it cannot start at all.
pub async fn run(
    endpoint: Arc<Endpoint>,
    pool: &Pool,
    settings: &Settings,
    config: &mut Config,
    watcher: &mut Watcher,
    health: &watch::Receiver<Options>,
) -> anyhow::Result<()> {
    let hub = endpoint.shared().clone();
    let mut times = 0_u32;
    let mut has_led = false;
    loop {
        service::alive();
        let mut served = None;
        let error =
            match Reign::begin(&endpoint, pool, settings, config, health.clone(), true).await {
                Ok(None) => continue,
                Ok(Some(mut reign)) => {
                    has_led = true;
                    let began = served.insert(Instant::now());
                    match reign.serve(watcher).await {
                        Ok(()) => continue,
                        Err(error) => {
                            // One that served for a while was well.
                            if began.elapsed() > Duration::from_millis(hub.settings().backoff_max) {
                                times = 0;
                            }
                            anyhow::Error::from(error)
                        }
                    }
                }
                // What was good enough once will be so again.
                Err(error) if !has_led && is_final(&error) => {
                    return Err(error).context("cannot start");
                }
                Err(error) => error,
            };
        // What is still open may lead to a server that is no longer the one.
        pool.clear();
        let reason = format!("{error:#}");
        hub.lost(&reason);
        service::status(&format!("waiting for the database: {reason}"));
        if endpoint.is_refused() {
            tracing::warn!(
                "{reason}; trying again when the password or the settings change, and now and then"
            );
            wait_for_password(&endpoint).await;
            continue;
        }
        times = times.saturating_add(1);
        let pause = back_off(times, &hub.settings());
        observe(Observation::Lost {
            why: &reason,
            pause,
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = hub.asked_to_retry() => {}
        }
    }
}

/// Waits until there is a point in asking a server again that did not let us in.
async fn wait_for_password(endpoint: &Endpoint) {
    while endpoint.is_refused() {
        service::alive();
        tokio::select! {
            () = tokio::time::sleep(LOOK_FOR_PASSWORD) => {}
            () = endpoint.shared().asked_to_retry() => {}
        }
    }
}

/// Whether trying again cannot help.
fn is_final(error: &anyhow::Error) -> bool {
    use crate::hub::connect::ConnectError;
    if let Some(error @ HubError::Refused { .. }) = error.downcast_ref() {
        return !error.is_passing();
    }
    matches!(error.downcast_ref(), Some(ConnectError::Configuration(_)))
        || error.downcast_ref::<lead::OtherInstance>().is_some()
        || error.downcast_ref::<inputs::OtherConfig>().is_some()
}
