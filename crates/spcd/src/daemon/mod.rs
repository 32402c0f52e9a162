//! The one loop: a wake, a look at files and database, a plan, and its work.
//!
//! A wake carries nothing and is never branched on. What takes long (sources, writing) happens in
//! jobs beside the loop, so that a source that hangs holds up nobody else's change.

mod files;
mod gate;
mod jobs;
mod look;
mod requests;
mod sources;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use spcd_core::config::{Compat, Desired, Diagnostic, Severity};
use spcd_core::observed::{Attempt, Extension, Observed};
use spcd_core::plan::{self, Plan, Task, Work};
use spcd_core::search_path::PathChange;
use spcd_core::sql;
use spcd_core::union;
use spcd_protocol::Status;
use tokio::time::{Instant, sleep_until};

use crate::config::Config;
use crate::hub::apply::{self, Writer};
use crate::hub::connect::{Endpoint, Session};
use crate::hub::lead::{self, Lead};
use crate::hub::steampipe::{self, Steampipe};
use crate::hub::{HubError, Limits, migrate, observe, search_path};
use crate::service;
use crate::settings::Settings;
use crate::watch::Watcher;
use files::CsvFiles;
use jobs::{Failure, Finished, Jobs, Outcome};
use requests::Requests;

/// How often everything is looked at although nothing woke us.
const FULL_LOOK: Duration = Duration::from_secs(60);
/// How often a dynamic source is asked again where nothing says otherwise.
const REFRESH: Duration = Duration::from_secs(300);

/// How often what is too old to be kept is removed.
const SWEEP: Duration = Duration::from_secs(3600);
/// Sources whose turn comes within so long are asked together, after one look.
const TURNS: Duration = Duration::from_secs(10);

/// What a leader remembers from one pass to the next. None of it is needed to be right: it is lost
/// with the process, and the next one looks again.
#[derive(Default)]
struct Memory {
    failures: BTreeMap<String, Failure>,
    refused_extensions: BTreeMap<String, String>,
    /// Roles whose search path could not be set, and the path's hash.
    refused_paths: BTreeMap<String, String>,
    /// Connections whose sources are to be asked although nothing differs.
    ask: BTreeSet<String>,
    /// Those that somebody asked for by name.
    urgent: BTreeSet<String>,
    /// All of them.
    ask_all: bool,
    /// How often in a row connections did not get a lock.
    blocked: BTreeMap<String, u32>,
    /// When a dynamic source is to be asked next, and the interval by which that was reckoned.
    turns: BTreeMap<String, (Instant, Duration)>,
    /// When the next of them is looked for.
    next_turns: Option<Instant>,
    /// The diagnostics that the database has.
    diagnostics: Option<Value>,
    /// When something is to be tried again that nothing else will wake us for.
    later: Option<Instant>,
    aggregators: Aggregators,
}

/// What is known of aggregators since the last look.
#[derive(Default)]
struct Aggregators {
    /// Those that are enabled, with their members.
    members: BTreeMap<String, BTreeSet<String>>,
    /// Those that wait for members.
    waiting: BTreeSet<String>,
    /// A member may have changed: look again once the others are done.
    due: bool,
}

/// What came of one plan.
#[derive(Default)]
struct Carried {
    /// Nothing was held back for want of knowing what was altered.
    complete: bool,
    /// Connections for which something else has to end first.
    deferred: BTreeSet<String>,
    rows: usize,
    work: usize,
}

impl Carried {
    fn and(mut self, later: Self) -> Self {
        self.deferred.extend(later.deferred);
        Self {
            complete: later.complete,
            deferred: self.deferred,
            rows: self.rows + later.rows,
            work: self.work + later.work,
        }
    }
}

/// A daemon that leads.
pub struct Reign<'a> {
    config: &'a mut Config,
    lead: Lead,
    jobs: Jobs,
    requests: Requests,
    memory: Memory,
    steampipe: Option<Steampipe>,
    csv: CsvFiles,
    listener: Session,
    /// Looks for what was altered, while `lead.control` goes on.
    observer: Arc<Session>,
    passes: u64,
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
        settings: &Settings,
        config: &'a mut Config,
        wait: bool,
    ) -> anyhow::Result<Option<Self>> {
        let session = endpoint.connect("migrate").await?;
        for name in migrate::migrate(&session.client).await? {
            tracing::info!(migration = name, "applied");
        }
        drop(session);
        // To read thousands of files takes as long as to take the lead: the first pass finds them read.
        let reading = async { tokio::task::block_in_place(|| drop(config.load())) };
        let (lead, ()) = tokio::join!(lead::take(endpoint, &settings.instance, wait), reading);
        let Some(lead) = lead? else {
            return Ok(None);
        };
        tracing::info!(epoch = lead.epoch, "this daemon leads");
        service::status("leading");
        let compat = settings.compat == Compat::Steampipe;
        let steampipe = Steampipe::begin(&lead.control.client, lead.epoch, compat).await?;
        let listener = endpoint.connect("listener").await?;
        let listen = format!("LISTEN {}", sql::ident(spcd_protocol::WAKE_CHANNEL));
        listener.client.batch_execute(&listen).await?;
        let observer = Arc::new(endpoint.connect("observer").await?);
        let limits = Limits::read(&lead.control.client).await?;
        let writer = Writer::start(endpoint.clone(), lead.epoch, limits);
        Ok(Some(Self {
            config,
            jobs: Jobs::new(endpoint.clone(), writer, limits),
            lead,
            requests: Requests::default(),
            memory: Memory::default(),
            steampipe,
            csv: CsvFiles::default(),
            listener,
            observer,
            passes: 0,
        }))
    }

    /// Gives up the lead, and says so.
    pub async fn resign(self) {
        if let Err(error) = lead::resign(&self.lead.control.client).await {
            tracing::debug!("cannot say that the lead is free: {error}");
        }
    }

    /// Gives up all but the session that holds the lead.
    pub fn abdicate(self) -> Session {
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
        let mut beat = tokio::time::interval(lead::HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let took = Instant::now();
            self.pass(Some(watcher)).await?;
            let mut places = self.csv.watched();
            places.add(self.config.places());
            watcher.follow(&places.list());
            // A look that takes long is not repeated so often that it would matter.
            let pause = FULL_LOOK.max(took.elapsed() * 100);
            let mut until = Instant::now() + pause;
            until = self.memory.next_due().map_or(until, |due| due.min(until));
            loop {
                service::alive();
                tokio::select! {
                    _ = watcher.noticed() => break,
                    () = sleep_until(until) => break,
                    () = self.csv.late() => break,
                    (finished, again) = self.jobs.next() => {
                        let mut look = self.finish(finished).await? || again;
                        // One look for all that ended meanwhile.
                        while let Some((finished, again)) = self.jobs.try_next() {
                            look |= self.finish(finished).await? || again;
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
                    message = self.lead.lock.messages.recv() => {
                        if message.is_none() {
                            return Err(HubError::NotLeading);
                        }
                    }
                    _ = sweep.tick() => lead::sweep(&self.lead.control.client, self.lead.epoch).await?,
                    _ = beat.tick() => lead::beat(&self.lead.control.client, self.lead.epoch).await?,
                }
            }
        }
    }

    /// Passes until nothing is left to do: `spcd apply` without a daemon.
    pub async fn settle(&mut self, mut progress: impl FnMut(usize)) -> Result<(), HubError> {
        loop {
            let passed = self.pass(None).await?;
            if passed.idle {
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

    /// One look, and what follows from it.
    ///
    /// Whether something was altered behind our back takes ten times as long to tell as what the
    /// files want. So what they want is begun first, on the assumption that nothing was; what rests
    /// on it, and what was altered, comes second.
    async fn pass(&mut self, watcher: Option<&mut Watcher>) -> Result<Passed, HubError> {
        let began = Instant::now();
        let client = &self.lead.control.client;
        // Requests first: what was saved before one was made is then seen by this pass.
        let asked = self.requests.read(client).await?;
        let observer = self.observer.clone();
        let look_for_drift = async move { observe::drifted(&observer.client).await };
        // The first pass needs the answer before all else, so the looks go side by side. Later that
        // would take the processor from what a saved file waits for.
        let (early, late) = match self.passes {
            0 => (Some(tokio::spawn(look_for_drift)), None),
            _ => (None, Some(look_for_drift)),
        };
        let (desired, diagnostics, mut observed) = look::look(self.config, client, watcher).await?;
        let diagnostics = diagnostics_json(&diagnostics);
        self.memory.aggregators = Aggregators::of(&desired);
        let changed = self.csv.look(&desired).await;
        self.memory.notice(changed);
        self.memory.recall(&desired, &mut observed, asked);
        let looked = began.elapsed();
        let drifted = early.or_else(|| late.map(tokio::spawn));

        // The first pass finds everything pending, and it takes what was altered to say more.
        let mut first = match self.passes {
            0 => None,
            _ => Some(
                self.carry_out(&desired, &mut observed, &diagnostics, false)
                    .await?,
            ),
        };
        let drifted = match drifted {
            Some(begun) => begun.await.map_err(|_| HubError::NoSession)??,
            None => BTreeSet::new(),
        };
        let altered = drifted.iter().any(|name| !self.jobs.is_running(name));
        let second = match &mut first {
            Some(first) if first.complete && !altered => None,
            Some(_) => {
                // What was begun has changed the rows.
                observed = observe::first(&self.lead.control.client).await?;
                self.memory.recall(&desired, &mut observed, Vec::new());
                Some(())
            }
            None => Some(()),
        };
        let carried = match (first, second) {
            (Some(first), None) => first,
            (first, _) => {
                observed.mark(&drifted);
                let client = &self.lead.control.client;
                observe::complete(client, &desired, &mut observed).await?;
                let second = self
                    .carry_out(&desired, &mut observed, &diagnostics, true)
                    .await?;
                first.unwrap_or_default().and(second)
            }
        };
        self.passes += 1;
        self.memory.urgent.clear();
        tracing::debug!(
            pass = self.passes,
            connections = desired.connections.len(),
            drifted = drifted.len(),
            rows = carried.rows,
            work = carried.work,
            under_way = self.jobs.len(),
            look_micros = looked.as_micros() as u64,
            micros = began.elapsed().as_micros() as u64,
            "looked"
        );
        self.requests.passed(&observed, &carried.deferred);
        self.answer_requests().await?;
        let idle = carried.rows == 0 && carried.work == 0 && self.jobs.len() == 0;
        Ok(Passed { idle })
    }

    /// Plans, publishes, and begins the work. Without knowing what was altered (`sure`) nothing
    /// that is said becomes `ready`, and nothing under way is stopped because it seems needless.
    async fn carry_out(
        &mut self,
        desired: &Desired,
        observed: &mut Observed,
        diagnostics: &Value,
        sure: bool,
    ) -> Result<Carried, HubError> {
        observed.slow = self.jobs.brisk_and_slow().1.cloned().collect();
        let plan = plan::plan(desired, observed);
        self.memory.forget(observed, &plan, &self.jobs);
        let mut carried = Carried {
            complete: true,
            ..Carried::default()
        };
        let running: Vec<String> = self.jobs.names().cloned().collect();
        let planned: HashMap<&str, &Work> = match running.is_empty() {
            true => HashMap::new(),
            false => (plan.work.iter().map(|work| (work.name.as_str(), work))).collect(),
        };
        for name in running {
            let work = planned.get(name.as_str()).copied();
            let wanted = desired.connections.get(&name);
            let is_wanted = wanted.is_some_and(|connection| connection.enabled)
                || self.memory.aggregators.show(&name);
            let target = match is_wanted {
                true => desired.target_hash(&name),
                false => "",
            };
            let ask = self.memory.ask.contains(&name);
            if work.is_none() && !sure && !self.jobs.is_refresh(&name, target) {
                carried.complete = false;
            } else if self.jobs.settle_with(&name, work, target, ask) {
                carried.deferred.insert(name);
            }
        }
        let Plan {
            admit,
            extensions,
            mut rows,
            touched,
            work,
            search_path,
            waiting,
        } = plan;
        if !waiting.is_empty() {
            self.memory.wake_after(jobs::PATIENCE);
        }
        self.memory.aggregators.waiting = waiting;
        // What is under way says itself how it ends.
        rows.retain(|row| !self.jobs.is_running(&row.name));
        if !sure {
            let all = rows.len();
            rows.retain(|row| row.route.last() != Some(&Status::Ready));
            carried.complete &= rows.len() == all;
        }
        let work: Vec<Work> = (work.into_iter())
            .filter(|work| !self.jobs.is_running(&work.name))
            .collect();

        if admit {
            let admit = "SELECT spcd.admit_readers()";
            self.lead.control.client.batch_execute(admit).await?;
        }
        self.create_extensions(&extensions).await?;
        if let Some(change) = search_path {
            self.set_search_path(change).await?;
        }
        if let Some(steampipe) = &mut self.steampipe {
            let wanted = steampipe::Wanted::of(desired, observed);
            let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
            steampipe.follow(client, epoch, wanted).await?;
        }
        let news = (self.memory.diagnostics.as_ref() != Some(diagnostics)).then_some(diagnostics);
        let writes = !rows.is_empty() || !touched.is_empty() || news.is_some();
        let mut generation = 0;
        if writes || !work.is_empty() {
            let next = "SELECT pg_catalog.nextval('spcd.generation')";
            generation = self.lead.control.client.query_one(next, &[]).await?.get(0);
        }
        if writes {
            let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
            apply::publish(client, epoch, generation, &rows, &touched, news).await?;
            self.memory.diagnostics = Some(diagnostics.clone());
        }
        (carried.rows, carried.work) = (rows.len(), work.len());
        for work in work {
            if let Task::Import(_) = &work.task {
                self.csv.reading(&work.name);
                self.memory.ask.remove(&work.name);
            }
            let urgent = self.memory.urgent.contains(&work.name);
            self.jobs.start(work, generation, urgent);
        }
        for name in &self.memory.urgent {
            self.jobs.hurry(name);
        }
        Ok(carried)
    }

    /// Takes note of a job's end; true if another look is needed.
    async fn finish(&mut self, finished: Finished) -> Result<bool, HubError> {
        let Finished { name, outcome } = finished;
        let mut again = self.memory.ask.contains(&name);
        let done = matches!(outcome, Outcome::Done);
        again |= self.memory.aggregators.follow(&name, done, &self.jobs);
        // What an aggregator let go of can be dropped, and its members may have changed meanwhile:
        // who waits for it waits for one more look.
        if self.memory.aggregators.members.contains_key(&name) {
            self.memory.aggregators.due = true;
            again |= !matches!(outcome, Outcome::Later(_));
        }
        match outcome {
            Outcome::Done | Outcome::Same => {
                self.memory.failures.remove(&name);
                self.memory.blocked.remove(&name);
            }
            Outcome::Failed { target_hash, error } => {
                tracing::warn!(connection = name, "{error}");
                self.requests.failed(&name, &error);
                let before = self.memory.failures.get(&name);
                let failure = Failure::after(before, target_hash, error);
                self.memory.failures.insert(name, failure);
            }
            Outcome::Later(reason) => {
                tracing::info!(connection = name, "{reason}; trying again soon");
                let times = self.memory.blocked.entry(name.clone()).or_default();
                let pause = jobs::later(*times);
                *times = times.saturating_add(1);
                // Also where nothing but a source's answer would tell that something differs.
                self.memory.ask.insert(name);
                self.memory.wake_after(pause);
            }
            Outcome::Cancelled => {
                self.csv.unread(&name);
                again = true;
                self.memory.wake_later();
            }
        }
        self.answer_requests().await?;
        Ok(again)
    }

    async fn answer_requests(&mut self) -> Result<(), HubError> {
        let (jobs, ask) = (&self.jobs, &self.memory.ask);
        let aggregators = &self.memory.aggregators;
        let one = |name: &str| jobs.is_running(name) || ask.contains(name);
        let open = |name: Option<&str>| match name {
            Some(name) => match aggregators.members.get(name) {
                Some(members) => {
                    let waits = aggregators.due || aggregators.waiting.contains(name);
                    waits || one(name) || members.iter().any(|member| one(member))
                }
                None => one(name),
            },
            None => jobs.len() > 0 || !ask.is_empty() || aggregators.due,
        };
        self.requests
            .answer(&self.lead.control.client, self.lead.epoch, open)
            .await
    }

    /// Sets search paths, unless just that was refused before.
    async fn set_search_path(&mut self, mut change: PathChange) -> Result<(), HubError> {
        let refused = &mut self.memory.refused_paths;
        let hash = change.hash.clone();
        let tried = |role: &String| refused.get(role) == Some(&hash);
        change.set.retain(|role| !tried(role));
        change.reset.retain(|role| !tried(role));
        if change.is_empty() && change.forget.is_empty() && change.touched.is_empty() {
            return Ok(());
        }
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        for failed in search_path::set(client, epoch, &change).await? {
            if failed.passing {
                self.memory.wake_later();
                continue;
            }
            tracing::warn!(
                role = failed.role,
                "its search path cannot be set: {}",
                failed.reason
            );
            let refused = &mut self.memory.refused_paths;
            refused.insert(failed.role, hash.clone());
        }
        Ok(())
    }

    /// Creates extensions, each by itself: one that is refused costs only its own connections.
    async fn create_extensions(&mut self, names: &BTreeSet<String>) -> Result<(), HubError> {
        for name in names {
            // Where people expect it, and not in pg_catalog, which is our sessions' path.
            let create = format!(
                "SET search_path = public, spcd; CREATE EXTENSION IF NOT EXISTS {}; SET search_path = pg_catalog",
                sql::ident(name)
            );
            match self
                .lead
                .control
                .client
                .batch_execute(&create)
                .await
                .map_err(HubError::from)
            {
                Ok(()) => tracing::info!(extension = name, "created"),
                Err(HubError::Refused { text, .. }) => {
                    tracing::warn!(extension = name, "cannot be created: {text}");
                    self.memory.refused_extensions.insert(name.clone(), text);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Memory {
    /// Has csv connections asked whose files changed: now, whatever failed before.
    fn notice(&mut self, changed: files::Changed) {
        for (name, read_before) in changed.names {
            if read_before {
                self.urgent.insert(name.clone());
            }
            if let Some(failure) = self.failures.get_mut(&name) {
                failure.next = None;
            }
            self.ask.insert(name);
        }
        if let Some(pause) = changed.again {
            self.wake_after(pause);
        }
    }

    /// Adds what is remembered to what was observed.
    fn recall(
        &mut self,
        desired: &Desired,
        observed: &mut Observed,
        asked: Vec<Option<Vec<String>>>,
    ) {
        let now = Instant::now();
        let all = std::mem::take(&mut self.ask_all).then_some(None);
        for names in asked.into_iter().chain(all) {
            let by_name = names.is_some();
            let names = names.unwrap_or_else(|| desired.connections.keys().cloned().collect());
            for name in names {
                if by_name {
                    self.urgent.insert(name.clone());
                }
                // Who asks wants an attempt now.
                self.failures.remove(&name);
                // An aggregator has no source but its members'.
                for member in self.aggregators.members.get(&name).into_iter().flatten() {
                    self.failures.remove(member);
                    self.ask.insert(member.clone());
                }
                if desired.connections.contains_key(&name) {
                    self.ask.insert(name);
                }
            }
            self.refused_extensions.clear();
            self.refused_paths.clear();
        }
        for (name, failure) in &mut self.failures {
            if failure.next.is_some_and(|next| next <= now) {
                failure.next = None;
                // Also where nothing is known to differ: only the source's answer was missing.
                self.ask.insert(name.clone());
            }
        }
        self.take_turns(desired, now);
        self.later = self.later.filter(|later| *later > now);
        observed.ask = self.ask.clone();
        observed.urgent = self.urgent.clone();
        for (name, failure) in &self.failures {
            let attempt = Attempt {
                target_hash: failure.target_hash.clone(),
                error: failure.error.clone(),
                due: failure.next.is_none(),
            };
            observed.attempts.insert(name.clone(), attempt);
        }
        for (name, reason) in &self.refused_extensions {
            if observed.extensions.get(name) == Some(&Extension::Available) {
                let refused = Extension::Refused(reason.clone());
                observed.extensions.insert(name.clone(), refused);
            }
        }
    }

    /// Adds the dynamic connections whose turn it is. The first turn is spread over the interval,
    /// so that a start does not ask ten thousand sources at once.
    fn take_turns(&mut self, desired: &Desired, now: Instant) {
        if self.next_turns.is_some_and(|next| next > now) {
            return;
        }
        self.next_turns = Some(now + TURNS);
        self.turns
            .retain(|name, _| desired.connections.contains_key(name));
        for (name, connection) in &desired.connections {
            let interval = match &connection.target {
                Ok(target)
                    if target.dynamic && (connection.enabled || self.aggregators.show(name)) =>
                {
                    let seconds = target.import.refresh_interval;
                    seconds.map_or(REFRESH, Duration::from_secs)
                }
                _ => Duration::ZERO,
            };
            if interval.is_zero() {
                self.turns.remove(name);
                continue;
            }
            let (next, of) = self
                .turns
                .get(name)
                .copied()
                .unwrap_or((now, Duration::ZERO));
            if of != interval {
                let part = RandomState::new().hash_one(name) as f64 / u64::MAX as f64;
                let first = now + interval.mul_f64(part);
                self.turns.insert(name.clone(), (first, interval));
            } else if next <= now {
                self.ask.insert(name.clone());
                self.turns.insert(name.clone(), (now + interval, interval));
            }
        }
    }

    /// Drops what no longer concerns anybody.
    fn forget(&mut self, observed: &Observed, plan: &Plan, jobs: &Jobs) {
        let works: BTreeSet<&str> = plan.work.iter().map(|work| work.name.as_str()).collect();
        self.ask
            .retain(|name| works.contains(name.as_str()) || jobs.is_running(name));
        let concerns = |name: &str| observed.connections.contains_key(name) || works.contains(name);
        self.failures.retain(|name, _| concerns(name));
        self.blocked.retain(|name, _| concerns(name));
    }

    fn wake_later(&mut self) {
        self.wake_after(jobs::later(0));
    }

    fn wake_after(&mut self, pause: Duration) {
        let later = Instant::now() + pause;
        self.later = Some(self.later.map_or(later, |at| at.min(later)));
    }

    fn next_due(&self) -> Option<Instant> {
        let failures = self.failures.values().filter_map(|failure| failure.next);
        let turn = self.turns.values().map(|(next, _)| *next).min();
        let turns = turn.map(|turn| self.next_turns.map_or(turn, |next| turn.max(next)));
        failures.chain(turns).chain(self.later).min()
    }
}

impl Aggregators {
    fn of(desired: &Desired) -> Self {
        let owned = |(name, members): (&str, Vec<&str>)| {
            (
                name.to_owned(),
                members.into_iter().map(str::to_owned).collect(),
            )
        };
        Self {
            members: union::members(desired, &BTreeMap::new())
                .into_iter()
                .map(owned)
                .collect(),
            ..Self::default()
        }
    }

    /// Whether one of them shows a connection's tables.
    fn show(&self, name: &str) -> bool {
        self.members.values().any(|members| members.contains(name))
    }

    /// Takes note of the end of a connection's job; true if aggregators can follow it now, no
    /// other member being about to change.
    fn follow(&mut self, name: &str, done: bool, jobs: &Jobs) -> bool {
        let is_member = |name: &str| self.members.values().any(|members| members.contains(name));
        self.due |= (done || !self.waiting.is_empty()) && is_member(name);
        self.due && !jobs.brisk_and_slow().0.any(|name| is_member(name))
    }
}

/// The rows of `spcd.config_diagnostic`.
fn diagnostics_json(diagnostics: &[Diagnostic]) -> Value {
    let row = |diagnostic: &Diagnostic| {
        json!({
            "severity": match diagnostic.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            "file_name": diagnostic.file,
            "line": diagnostic.line,
            "column_number": diagnostic.column,
            "message": diagnostic.message,
            "hint": diagnostic.hint,
            "connection_name": diagnostic.connection,
        })
    };
    Value::Array(diagnostics.iter().map(row).collect())
}

/// The longest pause before the database is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long to wait before the database is tried again: 100 ms, doubled up to 10 s, with jitter.
fn back_off(times: u32) -> Duration {
    let pause = Duration::from_millis(100) * 2u32.saturating_pow(times.min(7));
    let part = RandomState::new().hash_one(times) as f64 / u64::MAX as f64;
    pause.min(LONGEST_PAUSE).mul_f64(0.5 + part / 2.0)
}

/// Keeps a database true to the files, for ever: takes the lead, serves, and starts anew when the
/// database went away. Returns only when it cannot start at all.
pub async fn run(
    endpoint: Arc<Endpoint>,
    settings: &Settings,
    config: &mut Config,
    watcher: &mut Watcher,
) -> anyhow::Result<()> {
    let mut times = 0;
    loop {
        service::alive();
        let began = Instant::now();
        let error = match Reign::begin(&endpoint, settings, config, true).await {
            Ok(None) => continue,
            Ok(Some(mut reign)) => match reign.serve(watcher).await {
                Ok(()) => continue,
                Err(error) => {
                    // One that served for a while was well.
                    if began.elapsed() > LONGEST_PAUSE {
                        times = 0;
                    }
                    anyhow::Error::from(error)
                }
            },
            Err(error) if is_final(&error) => return Err(error).context("cannot start"),
            Err(error) => error,
        };
        let pause = back_off(times);
        times += 1;
        tracing::warn!("{error:#}; trying again in {} ms", pause.as_millis());
        service::status(&format!("waiting for the database: {error:#}"));
        tokio::time::sleep(pause).await;
    }
}

/// Whether trying again cannot help.
fn is_final(error: &anyhow::Error) -> bool {
    use crate::hub::connect::ConnectError;
    if let Some(HubError::Refused { .. }) = error.downcast_ref() {
        return true;
    }
    matches!(error.downcast_ref(), Some(ConnectError::Configuration(_)))
        || error.downcast_ref::<lead::OtherInstance>().is_some()
}
