//! The scheduler's state between events, and its simple changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::record::{
    ConnectionRecord, Failure, LaneRecord, MAX_JOB_WAIT_MS, ManualProbe, NextAttempt, RefreshTurn,
    lock_pause,
};
use super::requests::{Action, Progress, Request, Requests};
use super::{Command, DriftReport, WatchedSource};
use crate::aggregator;
use crate::config::DesiredState;
use crate::health::{ProbeOptions, ProbeSchedule};
use crate::observed::{Extension, Observed};
use crate::planner::{Plan, Running, Work};

/// Default interval of refreshes of a dynamic source, in milliseconds.
const REFRESH_INTERVAL: u64 = 300_000;
/// Refreshes that are due within this time start in one pass, in milliseconds.
const TURN_GROUPING: u64 = 10_000;
/// Interval of passes without an event, in milliseconds.
const MAX_PASS_INTERVAL: u64 = 60_000;
/// Minimum interval of such passes, as a multiple of a pass's duration.
const MIN_PASS_INTERVAL_FACTOR: u64 = 100;

/// State of a leader between events. It is lost with the process: the next leader observes the
/// database.
#[derive(Debug, Default)]
pub struct State {
    pub(super) connections: BTreeMap<String, ConnectionRecord>,
    pub(super) requests: Requests,
    /// Requests that were read and not carried out yet.
    pub(super) requested: Vec<Request>,
    /// Extensions that could not be created, and why.
    pub(super) refused_extensions: BTreeMap<String, String>,
    pub(super) lanes: LaneRecord,
    /// Roles whose search path could not be set, and the hash of the path.
    pub(super) refused_paths: BTreeMap<String, String>,
    /// Pauses (`true`) and their ends that are not recorded yet.
    pub(super) unrecorded_pauses: BTreeMap<String, bool>,
    /// Connections whose record of a crash is not removed yet.
    pub(super) unforgotten_crashes: BTreeSet<String>,
    /// The diagnostics in the database.
    pub(super) diagnostics: Option<Value>,
    /// The sources that the probes watch.
    pub(super) watched: Vec<WatchedSource>,
    /// The health options of connections that have none.
    pub(super) health_defaults: ProbeOptions,
    /// Sources are probed, which only a daemon does.
    pub(super) has_probes: bool,
    /// Each pass waits for drift detection.
    pub(super) waits_for_drift: bool,
    /// The next pass refreshes every source.
    pub(super) refresh_all: bool,
    /// Extensions and lanes are being changed: work that needs one of them is part of the next pass.
    pub(super) awaits_preparation: bool,
    /// A member has changed: a pass is due once no other member is about to change.
    pub(super) are_members_due: bool,
    /// When due refreshes are started next.
    pub(super) next_turns: u64,
    /// A pass is due.
    pub(super) is_pass_due: bool,
    /// Files may have changed since the last pass.
    pub(super) are_files_changed: bool,
    /// The desired state that the last pass followed.
    pub(super) desired: Option<Arc<DesiredState>>,
    /// Part of this pass that starts before the full observation.
    pub(super) early: Option<EarlyPass>,
    /// The full observation that follows then.
    pub(super) observe_all: Option<Command>,
    /// Number of jobs that were started before it.
    pub(super) started_early: usize,
    /// When it is due at the latest, if it was left to a later pass.
    pub(super) confirm_at: Option<u64>,
    /// The drift for the next pass.
    pub(super) drift: Option<DriftReport>,
    /// The number of the last pass, and when it began.
    pub(super) pass: u64,
    pub(super) pass_began: u64,
    /// Duration of the last drift detection.
    pub(super) drift_took: u64,
    pub(super) current: Option<PassInProgress>,
    /// Whether a pass has ended since this daemon became the leader.
    pub(super) has_passed: bool,
    /// Something was deferred until drift is known.
    pub(super) needs_drift: bool,
    /// Requests are not answered until a job has ended.
    pub(super) is_deferred: bool,
    pub(super) is_start_reported: bool,
    /// When a pass is due that no other time or event causes.
    pub(super) later: Option<u64>,
    /// When the next pass is due at the latest.
    pub(super) wake_at: u64,
    /// Number of writes in a row for which the server had no room.
    pub(super) failed_writes: u32,
    /// When the next pass repeats them.
    pub(super) retry_at: Option<u64>,
    /// Seed by which the first refreshes of dynamic sources are spread.
    pub(super) seed: u64,
}

/// The rest of a pass, while its changes are being published.
#[derive(Debug)]
pub(super) struct PassInProgress {
    pub desired: Arc<DesiredState>,
    pub drift: Option<DriftReport>,
    pub diagnostics: Option<Value>,
    pub work: Vec<Work>,
    /// Connections whose comments may not be set.
    pub comments: Vec<String>,
    pub rows: usize,
    /// Nothing was deferred until drift is known.
    pub is_complete: bool,
    pub is_deferred: bool,
}

/// The part of a pass that starts before the full observation.
#[derive(Debug)]
pub(super) struct EarlyPass {
    /// The whole desired state.
    pub files: Arc<DesiredState>,
    /// The changed connections alone.
    pub desired: DesiredState,
    pub work: Vec<Work>,
    /// Nothing else is known to differ.
    pub is_all: bool,
}

/// The recorded state with which a leader starts.
#[derive(Debug, Default)]
pub struct Start {
    /// Seed by which the first refreshes of dynamic sources are spread.
    pub seed: u64,
    /// Connections that are paused.
    pub paused: BTreeSet<String>,
    /// Connections whose last attempt ended a server process.
    pub crashes: BTreeMap<String, Failure>,
}

impl State {
    /// Returns the state of a new leader. The first pass is due at once.
    pub fn new(start: Start) -> Self {
        let mut state = Self {
            seed: start.seed,
            is_pass_due: true,
            ..Self::default()
        };
        for name in start.paused {
            state.record(&name).paused = true;
        }
        for (name, failure) in start.crashes {
            let record = state.record(&name);
            record.crashed = true;
            record.failure = Some(failure);
        }
        state
    }

    /// Enables probes.
    #[must_use]
    pub fn with_probes(mut self) -> Self {
        self.has_probes = true;
        self
    }

    /// Makes each pass wait for drift detection.
    #[must_use]
    pub fn waiting_for_drift(mut self) -> Self {
        self.waits_for_drift = true;
        self
    }

    /// Makes the next pass import from every source.
    pub fn refresh_all(&mut self) {
        self.refresh_all = true;
    }

    /// Whether a pass begins with [`super::Event::Idle`].
    pub fn is_pass_due(&self) -> bool {
        self.is_pass_due
    }

    /// Returns when [`super::Event::Woken`] is due, whatever else happens.
    pub fn wake_at(&self) -> u64 {
        match self.is_pass_due {
            true => 0,
            false => self.retry_at.unwrap_or(self.wake_at),
        }
    }

    /// Returns the number of running jobs.
    pub fn running_jobs(&self) -> usize {
        let mut records = self.connections.values();
        records
            .by_ref()
            .filter(|record| record.job.is_some())
            .count()
    }

    pub(super) fn record(&mut self, name: &str) -> &mut ConnectionRecord {
        if !self.connections.contains_key(name) {
            let record = ConnectionRecord::default();
            self.connections.insert(name.to_owned(), record);
        }
        // The entry exists now.
        self.connections.entry(name.to_owned()).or_default()
    }

    pub(super) fn get(&self, name: &str) -> Option<&ConnectionRecord> {
        self.connections.get(name)
    }

    pub(super) fn is_running(&self, name: &str) -> bool {
        self.get(name).is_some_and(|record| record.job.is_some())
    }

    /// Schedules a pass for this time, unless one is due earlier.
    pub(super) fn wake_by(&mut self, at: u64) {
        self.later = Some(self.later.map_or(at, |later| later.min(at)));
        self.wake_at = self.wake_at.min(at);
    }

    /// Schedules a pass for the end of the shortest pause after a lock time-out.
    pub(super) fn wake_soon(&mut self, now: u64) {
        self.wake_by(now + lock_pause(1));
    }

    /// Updates the members of aggregators from the files.
    pub(super) fn follow_members(&mut self, desired: &DesiredState) {
        self.are_members_due = false;
        for record in self.connections.values_mut() {
            record.members = None;
            record.waits_for_members = false;
            record.shown = false;
        }
        for (name, members) in aggregator::members(desired, &BTreeMap::new()) {
            for member in &members {
                self.record(member).shown = true;
            }
            let members = members.into_iter().map(str::to_owned).collect();
            self.record(name).members = Some(members);
        }
    }

    /// Replaces aggregators by their members: they have no source of their own.
    pub(super) fn with_members(&self, names: Vec<String>) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for name in names {
            match self.get(&name).and_then(|record| record.members.as_ref()) {
                Some(members) => all.extend(members.iter().cloned()),
                None => drop(all.insert(name)),
            }
        }
        all
    }

    /// Makes failed drops due at once: the obstacle may be gone, and no source is asked. Returns the
    /// connections.
    pub(super) fn retry_drops(&mut self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, record) in &mut self.connections {
            if let Some(failure) = record.failure.as_mut().filter(|one| one.is_of_drop()) {
                failure.next = NextAttempt::Due;
                names.insert(name.clone());
            }
        }
        names
    }

    /// Updates the health options. Failed attempts are repeated sooner if the new options say so.
    pub(super) fn reschedule(&mut self, desired: &DesiredState, defaults: ProbeOptions, now: u64) {
        let old_defaults = std::mem::replace(&mut self.health_defaults, defaults);
        for (name, record) in &mut self.connections {
            let connection = desired.connections.get(name);
            let own = connection.map_or(ProbeOptions::default(), |connection| connection.health);
            let old = std::mem::replace(&mut record.health, own);
            let schedule = own.or(defaults).schedule();
            if let Some(failure) = &mut record.failure
                && let NextAttempt::At(at) = failure.next
                && !record.crashed
                && schedule != old.or(old_defaults).schedule()
            {
                let pause = schedule.pause_after(failure.times);
                failure.next = NextAttempt::At(at.min(now + pause));
            }
        }
    }

    /// Returns the schedule by which a connection's import is repeated.
    pub(super) fn schedule(&self, name: &str) -> ProbeSchedule {
        let own = self.get(name).map(|record| record.health);
        own.unwrap_or_default().or(self.health_defaults).schedule()
    }

    /// Applies a refresh request: this pass imports its connections.
    pub(super) fn refresh(&mut self, desired: &DesiredState, request: Request) {
        let is_named = request.names.is_some();
        let names =
            (request.names).unwrap_or_else(|| desired.connections.keys().cloned().collect());
        for name in names {
            let is_left =
                |record: &ConnectionRecord| record.is_rejected() && !request.retries_refused;
            let record = self.record(&name);
            if is_left(record) {
                continue;
            }
            record.urgent |= is_named;
            record.attempt_now();
            // An aggregator has no source of its own.
            for member in record.members.clone().into_iter().flatten() {
                let record = self.record(&member);
                if !is_left(record) {
                    record.attempt_now();
                    record.refresh = true;
                }
            }
            if desired.connections.contains_key(&name) {
                self.record(&name).refresh = true;
            }
        }
        self.refused_extensions.clear();
        self.lanes.refused.clear();
        self.refused_paths.clear();
    }

    /// Adds the scheduler's knowledge of connections to the observed state.
    pub(super) fn merge_state(
        &mut self,
        desired: &DesiredState,
        observed: &mut Observed,
        now: u64,
    ) {
        if std::mem::take(&mut self.refresh_all) {
            let all = Request {
                action: Action::Refresh,
                names: None,
                retries_refused: true,
            };
            self.refresh(desired, all);
        }
        self.take_turns(desired, now);
        for (name, record) in &mut self.connections {
            record.merge_into(observed, name, now);
        }
        for role in &mut observed.roles {
            role.refused = self.refused_paths.get(&role.name).cloned();
        }
        self.lanes.merge_into(observed);
        for (name, reason) in &self.refused_extensions {
            if observed.extensions.get(name) == Some(&Extension::Available) {
                let refused = Extension::Refused(reason.clone());
                observed.extensions.insert(name.clone(), refused);
            }
        }
    }

    /// Starts the refreshes of dynamic sources that are due. The first ones are spread over the interval,
    /// so that a start does not ask 10,000 sources at once.
    fn take_turns(&mut self, desired: &DesiredState, now: u64) {
        if self.next_turns > now {
            return;
        }
        self.next_turns = now + TURN_GROUPING;
        for (name, connection) in &desired.connections {
            let target = connection.target.as_ref().ok();
            let target = target.filter(|target| target.dynamic);
            let is_desired =
                || connection.enabled || self.get(name).is_some_and(|record| record.shown);
            let interval = match target.filter(|_| is_desired()) {
                None => 0,
                Some(target) => {
                    let seconds = target.import.refresh_interval;
                    seconds.map_or(REFRESH_INTERVAL, |seconds| seconds.saturating_mul(1_000))
                }
            };
            if interval == 0 {
                if let Some(record) = self.connections.get_mut(name) {
                    record.turn = None;
                }
                continue;
            }
            let first = now + spread(self.seed, name, interval);
            let record = self.record(name);
            match &mut record.turn {
                Some(turn) if turn.interval == interval => {
                    if turn.at <= now {
                        turn.at = now + interval;
                        record.refresh = true;
                    }
                }
                turn => {
                    *turn = Some(RefreshTurn {
                        at: first,
                        interval,
                    })
                }
            }
        }
        for (name, record) in &mut self.connections {
            if record.turn.is_some() && !desired.connections.contains_key(name) {
                record.turn = None;
            }
        }
    }

    /// Returns the running jobs for the planner.
    pub(super) fn running(&self, now: u64) -> Running {
        let mut running = Running {
            prepares: true,
            ..Running::default()
        };
        for (name, record) in &self.connections {
            if let Some(job) = &record.job {
                running.jobs.insert(name.clone(), job.does.clone());
            }
            if record.locks.until.is_some_and(|until| until > now) {
                running.locked.insert(name.clone());
            }
        }
        running
    }

    /// Drops knowledge of connections that have no row, no block and no work.
    pub(super) fn drop_stale(&mut self, observed: &Observed, plan: &Plan, now: u64) {
        let works = plan.work.iter().map(|work| &work.name);
        let works: BTreeSet<&str> = works.chain(&plan.deferred).map(String::as_str).collect();
        let mut has_ended_wait = false;
        self.connections.retain(|name, record| {
            let has_work = works.contains(name.as_str());
            if !has_work && record.job.is_none() {
                record.refresh = false;
                has_ended_wait |= record.locks.holder.take().is_some();
            }
            if !has_work && !observed.connections.contains_key(name) {
                record.failure = None;
                record.locks = Default::default();
            }
            *record != ConnectionRecord::default()
        });
        if has_ended_wait {
            self.wake_soon(now);
        }
    }

    /// Sets when the next pass is due at the latest.
    pub(super) fn schedule_next_pass(&mut self, now: u64) {
        let took = now - self.pass_began + self.drift_took;
        let full = now + MAX_PASS_INTERVAL.max(took.saturating_mul(MIN_PASS_INTERVAL_FACTOR));
        let records = self.connections.values();
        let repetitions = records.filter_map(|record| record.next_due());
        let turn = (self.connections.values())
            .filter_map(|record| Some(record.turn?.at))
            .min();
        let turn = turn.map(|turn| turn.max(self.next_turns));
        let due = repetitions.chain(turn).chain(self.later);
        self.wake_at = due.min().map_or(full, |due| due.min(full));
    }

    /// Whether aggregators can be updated: a member has changed, and no other one is about to.
    pub(super) fn can_aggregators_follow(&self, now: u64) -> bool {
        let is_changing = |record: &ConnectionRecord| record.shown && record.has_fast_job(now);
        self.are_members_due && !self.connections.values().any(is_changing)
    }

    /// Records that a job has asked its source.
    pub(super) fn source_asked(&mut self, name: &str, now: u64) {
        let record = self.connections.get_mut(name);
        if let Some(job) = record.and_then(|record| record.job.as_mut()) {
            job.asked_at.get_or_insert(now);
        }
    }

    /// Gives up a pass for which the server has no room. The pause before the next one grows: a pass
    /// writes before it finds out.
    pub(super) fn server_full(&mut self, now: u64) {
        self.current = None;
        self.early = None;
        self.observe_all = None;
        self.requests.answers_failed();
        self.failed_writes = self.failed_writes.saturating_add(1);
        self.retry_at = Some(now + lock_pause(self.failed_writes));
    }

    /// Makes a failed attempt due at once, since its source answers again. Returns whether there is one.
    pub(super) fn source_restored(&mut self, name: &str, now: u64) -> bool {
        let Some(record) = self.connections.get_mut(name).filter(|one| !one.crashed) else {
            return false;
        };
        match &mut record.failure {
            Some(failure) if failure.next != NextAttempt::Due => {
                failure.next = NextAttempt::At(now);
                true
            }
            _ => false,
        }
    }

    /// Returns how many failed attempts wait for their repetition.
    pub(super) fn failures(&self) -> usize {
        let failed = |record: &&ConnectionRecord| record.failure.is_some();
        self.connections.values().filter(failed).count()
    }

    /// Returns until when requests wait for work that a pass found.
    pub(super) fn found_until(now: u64) -> u64 {
        now + MAX_JOB_WAIT_MS
    }

    /// Returns the connections whose requested probe is to begin.
    pub(super) fn take_due_probes(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        for (name, record) in &mut self.connections {
            if record.probe != Some(ManualProbe::Pending) {
                continue;
            }
            // An import also sends the credentials. Rejected twice, they could lock the account.
            record.probe = match record.job.is_some() {
                true => Some(ManualProbe::AfterImport),
                false => {
                    names.push(name.clone());
                    Some(ManualProbe::Requested)
                }
            };
        }
        names
    }
}

impl Progress for State {
    fn is_open(&self, name: Option<&str>) -> bool {
        let is_busy = |name: &str| self.get(name).is_some_and(ConnectionRecord::is_busy);
        let Some(name) = name else {
            let is_busy = |record: &ConnectionRecord| record.job.is_some() || record.refresh;
            return self.are_members_due || self.connections.values().any(is_busy);
        };
        let Some(record) = self.get(name) else {
            return false;
        };
        record.is_busy()
            || record.members.as_ref().is_some_and(|members| {
                self.are_members_due
                    || record.waits_for_members
                    || members.iter().any(|member| is_busy(member))
            })
    }

    fn is_found_open(&self, name: &str) -> bool {
        self.get(name).is_some_and(|record| {
            record.is_busy() || record.files_late || (self.are_members_due && record.shown)
        })
    }
}

/// Returns a share of an interval that differs from name to name.
fn spread(seed: u64, name: &str, interval: u64) -> u64 {
    // FNV-1a, then the finalizer of SplitMix64.
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)) % interval
}
