//! The state that the scheduler keeps between events, and the simple changes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::record::{
    ConnectionRecord, Failure, ManualProbe, NextAttempt, PATIENCE, RefreshTurn, lock_pause,
};
use super::requests::{Action, Progress, Request, Requests};
use super::{DriftReport, WatchedSource};
use crate::config::Desired;
use crate::health::{Options, Schedule};
use crate::observed::{Attempt, Extension, Observed};
use crate::plan::{Plan, Work};
use crate::union;

/// How often a dynamic source is asked again where nothing says otherwise.
const REFRESH_INTERVAL: u64 = 300_000;
/// Sources whose turn comes within so long are asked together, after one pass.
const TURNS_TOGETHER: u64 = 10_000;
/// How often everything is looked at although no event says so.
const FULL_LOOK: u64 = 60_000;
/// A pass that takes long is repeated no more often than after so many times its duration.
const LOOK_SHARE: u64 = 100;

/// What a leader keeps between events. None of it is needed to be right: it is lost with the process,
/// and the next leader looks again.
#[derive(Debug, Default)]
pub struct State {
    pub(super) connections: BTreeMap<String, ConnectionRecord>,
    pub(super) requests: Requests,
    /// Requests that were read and are not carried out yet.
    pub(super) requested: Vec<Request>,
    /// Extensions that could not be created, and why.
    pub(super) refused_extensions: BTreeMap<String, String>,
    /// Roles whose search path could not be set, and the hash of the path.
    pub(super) refused_paths: BTreeMap<String, String>,
    /// Whether connections are paused, as it is to be recorded.
    pub(super) unrecorded_pauses: BTreeMap<String, bool>,
    /// Connections that ended a server process before, as it is to be forgotten.
    pub(super) unforgotten_crashes: BTreeSet<String>,
    /// The diagnostics in the database.
    pub(super) diagnostics: Option<Value>,
    /// The sources that were handed to the probes last.
    pub(super) watched: Vec<WatchedSource>,
    /// The health options of connections that have none.
    pub(super) health_defaults: Options,
    /// Sources are probed: the daemon goes on.
    pub(super) has_probes: bool,
    /// Each pass waits until it is known what has drifted.
    pub(super) waits_for_drift: bool,
    /// Every source is to be asked in the next pass.
    pub(super) refresh_all: bool,
    /// A member may have changed: look again once the others are done.
    pub(super) are_members_due: bool,
    /// When dynamic sources are looked for whose turn has come.
    pub(super) next_turns: u64,
    /// A pass is to begin.
    pub(super) is_look_due: bool,
    /// What has drifted, for that pass.
    pub(super) drift: Option<DriftReport>,
    /// The number of the last pass, and when it began.
    pub(super) pass: u64,
    pub(super) pass_began: u64,
    /// How long it took to tell what has drifted.
    pub(super) drift_took: u64,
    pub(super) current: Option<PassInProgress>,
    /// A pass came to its end.
    pub(super) has_passed: bool,
    /// Something was put off until it is known what has drifted.
    pub(super) needs_drift: bool,
    /// Something was put off until a job has ended.
    pub(super) is_deferred: bool,
    pub(super) is_start_reported: bool,
    /// When a pass is to be made that nothing else causes.
    pub(super) later: Option<u64>,
    /// When the next pass is to be made whatever happens.
    pub(super) wake_at: u64,
    /// How often in a row the server had no room to write.
    pub(super) failed_writes: u32,
    /// When the next pass tries that again.
    pub(super) retry_at: Option<u64>,
    /// Spreads the first turns of dynamic sources.
    pub(super) seed: u64,
}

/// What is left of a pass when its changes are published.
#[derive(Debug)]
pub(super) struct PassInProgress {
    pub desired: Arc<Desired>,
    pub drift: Option<DriftReport>,
    pub diagnostics: Option<Value>,
    pub work: Vec<Work>,
    /// Connections whose comments may be missing.
    pub comments: Vec<String>,
    pub rows: usize,
    /// Nothing was put off for want of knowing what has drifted.
    pub is_complete: bool,
    pub is_deferred: bool,
}

/// What a leader starts with.
#[derive(Debug, Default)]
pub struct Start {
    /// Spreads the first turns of dynamic sources.
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
            is_look_due: true,
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

    /// Has sources probed from now on.
    #[must_use]
    pub fn with_probes(mut self) -> Self {
        self.has_probes = true;
        self
    }

    /// Has each pass wait until it is known what has drifted.
    #[must_use]
    pub fn waiting_for_drift(mut self) -> Self {
        self.waits_for_drift = true;
        self
    }

    /// Has every source asked in the next pass.
    pub fn refresh_all(&mut self) {
        self.refresh_all = true;
    }

    /// Whether a pass begins with [`super::Event::Idle`].
    pub fn is_look_due(&self) -> bool {
        self.is_look_due
    }

    /// Returns when [`super::Event::Woken`] is due, whatever else happens.
    pub fn wake_at(&self) -> u64 {
        match self.is_look_due {
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
        // It is there now.
        self.connections.entry(name.to_owned()).or_default()
    }

    pub(super) fn get(&self, name: &str) -> Option<&ConnectionRecord> {
        self.connections.get(name)
    }

    pub(super) fn is_running(&self, name: &str) -> bool {
        self.get(name).is_some_and(|record| record.job.is_some())
    }

    /// Has a pass made at this time at the latest.
    pub(super) fn wake_by(&mut self, at: u64) {
        self.later = Some(self.later.map_or(at, |later| later.min(at)));
        self.wake_at = self.wake_at.min(at);
    }

    /// Has a pass made when the shortest lock time-out's pause is over.
    pub(super) fn wake_soon(&mut self, now: u64) {
        self.wake_by(now + lock_pause(1));
    }

    /// Takes over which connections aggregators show, as the files have it.
    pub(super) fn follow_members(&mut self, desired: &Desired) {
        self.are_members_due = false;
        for record in self.connections.values_mut() {
            record.members = None;
            record.waits_for_members = false;
            record.shown = false;
        }
        for (name, members) in union::members(desired, &BTreeMap::new()) {
            for member in &members {
                self.record(member).shown = true;
            }
            let members = members.into_iter().map(str::to_owned).collect();
            self.record(name).members = Some(members);
        }
    }

    /// Returns connections with the members of those that are aggregators in their place: these have no
    /// source of their own.
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

    /// Has connections dropped again that could not be dropped: what stood in the way may be gone, and
    /// only the hub is asked. Returns their names.
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

    /// Takes over the health options. What failed and waits longer than it would from now on is
    /// repeated sooner.
    pub(super) fn reschedule(&mut self, desired: &Desired, defaults: Options, now: u64) {
        let old_defaults = std::mem::replace(&mut self.health_defaults, defaults);
        for (name, record) in &mut self.connections {
            let connection = desired.connections.get(name);
            let own = connection.map_or(Options::default(), |connection| connection.health);
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

    /// Returns when the import of a connection is repeated.
    pub(super) fn schedule(&self, name: &str) -> Schedule {
        let own = self.get(name).map(|record| record.health);
        own.unwrap_or_default().or(self.health_defaults).schedule()
    }

    /// Carries out the requests to ask sources.
    pub(super) fn refresh(&mut self, desired: &Desired, request: Request) {
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
            // An aggregator has no source but its members'.
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
        self.refused_paths.clear();
    }

    /// Merges what is known of connections into what was observed.
    pub(super) fn merge_state(&mut self, desired: &Desired, observed: &mut Observed, now: u64) {
        if std::mem::take(&mut self.refresh_all) {
            let all = Request {
                action: Action::Refresh,
                names: None,
                retries_refused: true,
            };
            self.refresh(desired, all);
        }
        self.take_turns(desired, now);
        self.later = self.later.filter(|later| *later > now);
        for (name, record) in &mut self.connections {
            if let Some(failure) = &mut record.failure {
                if matches!(failure.next, NextAttempt::At(at) if at <= now) {
                    failure.next = NextAttempt::Due;
                    // Also where nothing is known to differ: only the source's answer was missing.
                    record.refresh = true;
                }
                let attempt = Attempt {
                    target_hash: failure.target_hash.clone(),
                    error: failure.error.clone(),
                    due: failure.next == NextAttempt::Due,
                };
                observed.attempts.insert(name.clone(), attempt);
            }
            for (is_so, names) in [
                (record.refresh, &mut observed.ask),
                (record.urgent, &mut observed.urgent),
                (record.paused, &mut observed.held),
                (record.is_slow(now), &mut observed.slow),
            ] {
                if is_so {
                    names.insert(name.clone());
                }
            }
            match observed.connections.get_mut(name) {
                Some(known) => known.waits_for.clone_from(&record.locks.holder),
                None => record.locks.holder = None,
            }
        }
        for (name, reason) in &self.refused_extensions {
            if observed.extensions.get(name) == Some(&Extension::Available) {
                let refused = Extension::Refused(reason.clone());
                observed.extensions.insert(name.clone(), refused);
            }
        }
    }

    /// Has the dynamic sources asked whose turn it is. The first turns are spread over the interval, so
    /// that a start does not ask ten thousand sources at once.
    fn take_turns(&mut self, desired: &Desired, now: u64) {
        if self.next_turns > now {
            return;
        }
        self.next_turns = now + TURNS_TOGETHER;
        for (name, connection) in &desired.connections {
            let target = connection.target.as_ref().ok();
            let target = target.filter(|target| target.dynamic);
            let is_wanted =
                || connection.enabled || self.get(name).is_some_and(|record| record.shown);
            let interval = match target.filter(|_| is_wanted()) {
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

    /// Drops what concerns no connection and no work any more.
    pub(super) fn drop_stale(&mut self, observed: &Observed, plan: &Plan, now: u64) {
        let works: BTreeSet<&str> = plan.work.iter().map(|work| work.name.as_str()).collect();
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

    /// Sets when the next pass is made whatever happens.
    pub(super) fn schedule_next_look(&mut self, now: u64) {
        let took = now - self.pass_began + self.drift_took;
        let full = now + FULL_LOOK.max(took.saturating_mul(LOOK_SHARE));
        let failures = self
            .connections
            .values()
            .filter_map(ConnectionRecord::next_due);
        let turn = (self.connections.values())
            .filter_map(|record| Some(record.turn?.at))
            .min();
        let turn = turn.map(|turn| turn.max(self.next_turns));
        let due = failures.chain(turn).chain(self.later);
        self.wake_at = due.min().map_or(full, |due| due.min(full));
    }

    /// Whether aggregators can follow members that changed: no other member is about to.
    pub(super) fn can_aggregators_follow(&self, now: u64) -> bool {
        let is_changing = |record: &ConnectionRecord| record.shown && record.is_brisk(now);
        self.are_members_due && !self.connections.values().any(is_changing)
    }

    /// Takes note that a job asks its source.
    pub(super) fn source_asked(&mut self, name: &str, now: u64) {
        let record = self.connections.get_mut(name);
        if let Some(job) = record.and_then(|record| record.job.as_mut()) {
            job.asked_at.get_or_insert(now);
        }
    }

    /// Gives up a pass for which the server has no room. The next one is made later each time: to begin
    /// anew would write more.
    pub(super) fn server_full(&mut self, now: u64) {
        self.current = None;
        self.requests.answers_failed();
        self.failed_writes = self.failed_writes.saturating_add(1);
        self.retry_at = Some(now + lock_pause(self.failed_writes));
    }

    /// Has a failed attempt repeated at once whose source answers again. Returns whether there is one.
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

    /// How long requests wait for what a pass found.
    pub(super) fn found_until(now: u64) -> u64 {
        now + PATIENCE
    }

    /// Returns the connections whose requested probe is to begin.
    pub(super) fn wanted_probes(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        for (name, record) in &mut self.connections {
            if record.probe != Some(ManualProbe::Wanted) {
                continue;
            }
            // An import asks, too, and two attempts with rejected credentials could lock the account.
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

impl ConnectionRecord {
    /// Has an attempt made at once that failed before, except one that may end the server again.
    fn attempt_now(&mut self) {
        if !self.crashed {
            self.failure = None;
        }
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
