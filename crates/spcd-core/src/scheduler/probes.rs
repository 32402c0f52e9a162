//! The probes: which sources are watched, when each is asked next, how many at a time, and what of
//! their health is not written yet. Times are handed in, in milliseconds.

mod batch;
mod source;
#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;

pub use batch::HealthBatch;
use batch::{HealthRow, PendingHealth, ProbeRequest};
pub use source::{ProbeCommand, WatchedSource};

use super::budget::stuck_sessions;
use crate::health::{
    Breaker, FailureKind, HealthChange, ProbeAnswer, ProbeFailure, ProbeOutcome, SourceHealth,
};
use spcd_protocol::Backoff;

/// Maximum number of concurrent probes of sources that answered last.
pub const MAX_HEALTHY_PROBES: usize = 4;
/// Maximum number of probes that start in a second. Each takes some milliseconds of a core of the
/// hub's server. Where there are more sources than that, each is asked less often.
pub(super) const PROBES_PER_SECOND: u32 = 50;
/// Maximum number of probes of sources that answered last that start in a second while many jobs
/// run, which also show whether their sources answer.
const PROBES_PER_SECOND_BESIDE_JOBS: u64 = 2;
/// Maximum time for which that limit holds, in milliseconds: some of the jobs may hang.
const MAX_TIME_BESIDE_JOBS_MS: u64 = 60_000;
/// Pause after a probe that found no session of the hub, in milliseconds.
const NO_SESSION_PAUSE_MS: u64 = 1_000;
/// Delay of writing an answer, so that several are written together, in milliseconds.
const WRITE_DELAY_MS: u64 = 1_000;

/// The state of all probes.
#[derive(Debug, Default)]
pub struct ProbeScheduler {
    sources: BTreeMap<String, SourceRecord>,
    /// The sources by the time of their next probe: those that answered last, and the others,
    /// which may occupy a session for long.
    due: [BTreeSet<(u64, String)>; 2],
    /// The numbers of the running probes, in the same two classes.
    running: [BTreeSet<u64>; 2],
    /// Probes that timed out and whose session is still stuck, with the wrapper if it cannot be
    /// cancelled while it connects.
    stuck: BTreeMap<u64, String>,
    /// Reachability that an earlier leader recorded, of sources that are not watched yet.
    known: BTreeMap<String, bool>,
    /// Sources with health to write.
    changed: BTreeSet<String>,
    /// Sources that are no longer watched and whose health is to be removed.
    forgotten: BTreeSet<String>,
    /// The number of the last probe.
    number: u64,
    /// Maximum number of concurrent probes of sources that did not answer last.
    max_unreachable: usize,
    /// When the next probe may start, and the next one of a source that answered last.
    next_start: u64,
    next_healthy: u64,
    /// Since when many jobs run.
    busy_since: Option<u64>,
    /// When pending health is written.
    write_at: Option<u64>,
}

/// Capacity for further probes.
#[derive(Debug, Clone, Copy)]
struct ProbeCapacity {
    /// A probe of a source whose last probe was answered.
    healthy: bool,
    /// A probe of any other source.
    unreachable: bool,
    /// One more for a source that has a stuck session.
    retry: bool,
    /// One more in a wrapper that has stuck sessions.
    more_stuck: bool,
}

/// The number of sessions in use.
#[derive(Debug, Clone, Copy)]
struct ProbeSessions {
    /// For sources that answered last.
    healthy: usize,
    /// For the others.
    unreachable: usize,
    /// Stuck after a time-out.
    stuck: usize,
}

/// State of one source.
#[derive(Debug)]
struct SourceRecord {
    watched: WatchedSource,
    health: SourceHealth,
    /// `health` describes an earlier target.
    is_unknown: bool,
    /// The running probe whose answer counts.
    probe: Option<u64>,
    /// Earlier probes whose sessions are stuck.
    stuck: BTreeSet<u64>,
    /// While some are, the next session is opened no earlier than this.
    not_before: u64,
    pending: PendingHealth,
}

const HEALTHY: usize = 0;
const UNREACHABLE: usize = 1;

impl ProbeScheduler {
    /// Returns a scheduler without sources. `known` is the reachability that an earlier leader
    /// recorded, `max_unreachable` the number of concurrent probes of sources that did not answer last.
    pub fn new(known: BTreeMap<String, bool>, max_unreachable: usize) -> Self {
        Self {
            known,
            max_unreachable,
            ..Self::default()
        }
    }

    /// Replaces the watched sources. `first` returns when a new one is probed first. A source whose
    /// target changed is probed at once, unless its import runs (`importing`), which replaces a probe.
    pub fn watch(
        &mut self,
        watched: Vec<WatchedSource>,
        importing: &BTreeSet<String>,
        now: u64,
        first: impl Fn(&WatchedSource) -> u64,
    ) {
        let mut before = take(&mut self.sources);
        for watched in watched {
            let name = watched.connection.name.clone();
            let known = self.known.remove(&name);
            let record = match before.remove(&name) {
                Some(mut record) => {
                    if record.follow(watched, importing.contains(&name), now) {
                        self.changed.insert(name.clone());
                    }
                    record
                }
                None => {
                    let first = match known {
                        Some(false) => now,
                        _ => first(&watched),
                    };
                    SourceRecord::new(watched, SourceHealth::new(known, first))
                }
            };
            self.forgotten.remove(&name);
            self.sources.insert(name, record);
        }
        let unknown = before.into_keys().chain(take(&mut self.known).into_keys());
        self.forgotten.extend(unknown);
        self.changed.retain(|name| self.sources.contains_key(name));
        self.due = Default::default();
        for (name, record) in &self.sources {
            record.put(name, &mut self.due);
        }
        self.schedule_write(now);
    }

    /// Returns when the next probe can start; `None`: not before another event.
    pub fn next_start(&self, now: u64) -> Option<u64> {
        let due = self.next(self.capacity(now));
        // While sources that answered last rest, one of them may become due.
        let rested = Some(self.next_healthy).filter(|then| *then > now);
        let start = due.map(|due| due.max(self.next_start)).into_iter();
        start.chain(rested).min()
    }

    /// Starts the next probe that is due: returns its number and its source. `many_jobs`: the hub is
    /// busy with imports.
    pub fn start(&mut self, many_jobs: bool, now: u64) -> Option<(u64, WatchedSource)> {
        self.next_start = now + 1_000 / u64::from(PROBES_PER_SECOND);
        let capacity = self.capacity(now);
        let started = self.start_within(capacity, now);
        if !many_jobs {
            self.busy_since = None;
        } else if started.is_some() && capacity.healthy {
            let since = *self.busy_since.get_or_insert(now);
            if now - since < MAX_TIME_BESIDE_JOBS_MS {
                self.next_healthy = now + 1_000 / PROBES_PER_SECOND_BESIDE_JOBS;
            }
        }
        self.schedule_write(now);
        started
    }

    fn capacity(&self, now: u64) -> ProbeCapacity {
        let ProbeSessions {
            healthy,
            unreachable,
            stuck,
        } = self.sessions();
        // A slow probe is counted as unreachable, though its source may have answered last.
        let any = healthy + unreachable < MAX_HEALTHY_PROBES + self.max_unreachable;
        ProbeCapacity {
            healthy: any && healthy < MAX_HEALTHY_PROBES && self.next_healthy <= now,
            unreachable: any && unreachable < self.max_unreachable,
            retry: stuck < self.max_unreachable / 2,
            more_stuck: stuck < self.max_unreachable,
        }
    }

    /// Makes a source due before all others, as a client requested. Returns `false` if it is not watched.
    pub fn request(&mut self, name: &str, now: u64) -> bool {
        self.change(name, now, |record| {
            record.retry_at(now);
            record.health.next = Some(0);
            record.pending.request = Some(ProbeRequest::Waiting);
        })
    }

    /// Records the end of an import. If it contradicts the last probe, or is the first import of
    /// another target, a probe is due at once.
    pub fn import_ended(&mut self, name: &str, answered: bool, now: u64) {
        let needs_probe = |record: &SourceRecord| {
            let is_contradiction = match answered {
                true => record.health.reachable == Some(false),
                false => record.health.reachable != Some(false),
            };
            (is_contradiction || record.is_unknown) && record.probe.is_none()
        };
        if self.sources.get(name).is_some_and(needs_probe) {
            self.change(name, now, |record| record.health.next = Some(now));
        }
    }

    /// Records that an import's credentials were rejected. No probe follows: it would be rejected, too,
    /// and could lock the account. `requested` means that a client waits for the answer.
    pub fn credentials_rejected(
        &mut self,
        name: &str,
        target_hash: &str,
        failure: ProbeFailure,
        requested: bool,
        now: u64,
    ) -> Option<HealthChange> {
        let record = self.sources.get(name)?;
        if record.watched.connection.target_hash() != target_hash {
            // The import was of an earlier target.
            if requested {
                self.request(name, now);
            }
            return None;
        }
        if requested {
            self.request(name, now);
        } else if record.probe.is_some() || record.health.next.is_none() {
            // A running probe is about to show it, or it is known already.
            return None;
        }
        self.record_answer(name, ProbeAnswer::Failed(failure), now)
    }

    /// Returns when the next probe is due for which there is capacity.
    fn next(&self, capacity: ProbeCapacity) -> Option<u64> {
        let first = |class: usize| self.due[class].first().map(|(due, _)| *due);
        let healthy = first(HEALTHY).filter(|_| capacity.healthy);
        let unreachable = first(UNREACHABLE).filter(|_| capacity.unreachable);
        healthy.into_iter().chain(unreachable).min()
    }

    /// Starts the first probe that is due, if there is capacity for it.
    fn start_within(&mut self, capacity: ProbeCapacity, now: u64) -> Option<(u64, WatchedSource)> {
        let due = self.next(capacity).filter(|due| *due <= now)?;
        let class = [
            (HEALTHY, capacity.healthy),
            (UNREACHABLE, capacity.unreachable),
        ]
        .into_iter()
        .find(|(class, is_free)| {
            *is_free && self.due[*class].first().is_some_and(|(at, _)| *at == due)
        });
        let (class, _) = class?;
        let (_, name) = self.due[class].pop_first()?;
        let record = self.sources.get_mut(&name)?;
        if let Some(wrapper) = record.watched.uncancellable_wrapper()
            && !capacity.more_stuck
        {
            let stuck = self
                .stuck
                .values()
                .filter(|other| *other == wrapper)
                .count();
            if stuck > 0 {
                let why = stuck_sessions(wrapper, stuck);
                self.record_answer(&name, ProbeAnswer::Inconclusive(why), now);
                return None;
            }
        }
        if !record.stuck.is_empty() && (now < record.not_before || !capacity.retry) {
            // A further session would most likely hang, too.
            let failure =
                ProbeFailure::timeout(Duration::from_millis(record.watched.schedule.timeout));
            self.record_answer(&name, ProbeAnswer::Failed(failure), now);
            return None;
        }
        let health = record.health.probing();
        if record.health.breaker != health.breaker {
            self.changed.insert(name);
        }
        record.health = health;
        self.number += 1;
        record.probe = Some(self.number);
        let others = u32::try_from(record.stuck.len()).unwrap_or(u32::MAX);
        // The growing pause limits the stuck sessions to a dozen in a day.
        let backoff = Backoff::new(record.watched.schedule.interval, u64::MAX);
        let pause = backoff.pause(others.saturating_add(2));
        record.not_before = now.saturating_add(pause);
        self.running[class].insert(self.number);
        Some((self.number, record.watched.clone()))
    }

    fn sessions(&self) -> ProbeSessions {
        ProbeSessions {
            healthy: self.running[HEALTHY].len(),
            unreachable: self.running[UNREACHABLE].len(),
            stuck: self.stuck.len(),
        }
    }

    /// Records that a probe is slow: it releases its permit.
    pub fn slow(&mut self, number: u64) {
        if self.running[HEALTHY].remove(&number) {
            self.running[UNREACHABLE].insert(number);
        }
    }

    /// Records a probe's answer. Returns the change if the source was lost or restored.
    pub fn answered(
        &mut self,
        number: u64,
        name: &str,
        answer: ProbeAnswer,
        now: u64,
    ) -> Option<HealthChange> {
        for running in &mut self.running {
            running.remove(&number);
        }
        let mut record = self.sources.get_mut(name);
        if matches!(&answer, ProbeAnswer::Failed(failure) if failure.kind == FailureKind::Timeout) {
            // Its session is stuck until `session_ended`.
            let watched = record.as_ref().map(|record| &record.watched);
            let wrapper = watched.and_then(WatchedSource::uncancellable_wrapper);
            self.stuck
                .insert(number, wrapper.unwrap_or_default().to_owned());
            if let Some(record) = &mut record {
                record.stuck.insert(number);
            }
        }
        let record = record?;
        // It may be about an earlier target.
        if record.probe != Some(number) {
            return None;
        }
        record.probe = None;
        self.record_answer(name, answer, now)
    }

    fn record_answer(&mut self, name: &str, answer: ProbeAnswer, now: u64) -> Option<HealthChange> {
        let mut turn = None;
        self.change(name, now, |record| {
            record.is_unknown = false;
            let pending = &mut record.pending;
            pending.checked = Some(now);
            let outcome = match answer {
                ProbeAnswer::Reachable(latency) => {
                    // The stuck sessions no longer show whether the source answers.
                    record.stuck.clear();
                    pending.latency = Some(latency.as_secs_f64() * 1000.0);
                    ProbeOutcome::Answered
                }
                ProbeAnswer::Failed(failure) => {
                    pending.failure = Some(failure.one_line());
                    ProbeOutcome::Failed(failure.kind)
                }
                ProbeAnswer::Inconclusive(text) => {
                    pending.failure = Some(text);
                    ProbeOutcome::Inconclusive
                }
            };
            (record.health, turn) =
                record
                    .health
                    .after_probe(outcome, now, &record.watched.schedule);
            pending.turns.extend(turn);
            pending.request = pending.request.map(|_| ProbeRequest::Answered);
        });
        turn
    }

    /// Records that a probe's session is free again. Without an answer before, the hub could not
    /// be asked, which does not show whether the source answers.
    pub fn session_ended(&mut self, number: u64, name: &str, now: u64) {
        for running in &mut self.running {
            running.remove(&number);
        }
        self.stuck.remove(&number);
        let Some(record) = self.sources.get_mut(name) else {
            return;
        };
        record.stuck.remove(&number);
        if record.probe != Some(number) {
            return;
        }
        record.probe = None;
        self.change(name, now, |record| {
            if record.health.breaker == Breaker::HalfOpen {
                record.health.breaker = Breaker::Open;
            }
            record.health.next = Some(now + NO_SESSION_PAUSE_MS);
        });
    }

    /// Returns when pending health is to be written; `None`: there is none.
    pub fn write_at(&self) -> Option<u64> {
        self.write_at
    }

    /// Takes the health that is to be written now.
    pub fn take_batch(&mut self, now: u64) -> HealthBatch {
        self.write_at = None;
        let mut rows = Vec::new();
        for name in take(&mut self.changed) {
            if let Some(record) = self.sources.get_mut(&name) {
                let pending = record.pending.take_written();
                let mut health = record.health;
                if record.is_unknown {
                    health.reachable = None;
                }
                rows.push(HealthRow {
                    name,
                    health,
                    pending,
                });
            }
        }
        rows.extend(take(&mut self.forgotten).into_iter().map(|name| HealthRow {
            name,
            health: SourceHealth::default(),
            pending: PendingHealth::default(),
        }));
        HealthBatch { rows, now }
    }

    /// Takes back a batch that could not be written.
    pub fn write_failed(&mut self, batch: HealthBatch, now: u64) {
        for row in batch.rows {
            match self.sources.get_mut(&row.name) {
                Some(record) => {
                    record.pending.put_back(row.pending);
                    self.changed.insert(row.name);
                }
                None => drop(self.forgotten.insert(row.name)),
            }
        }
        self.schedule_write(now);
    }

    fn schedule_write(&mut self, now: u64) {
        if !self.changed.is_empty() || !self.forgotten.is_empty() {
            self.write_at.get_or_insert(now + WRITE_DELAY_MS);
        }
    }

    /// Changes a record, schedules its write, and reschedules its next probe.
    fn change(&mut self, name: &str, now: u64, change: impl FnOnce(&mut SourceRecord)) -> bool {
        let Some(record) = self.sources.get_mut(name) else {
            return false;
        };
        let out = |record: &SourceRecord, due: &mut [BTreeSet<(u64, String)>; 2]| {
            if let Some(next) = record.health.next {
                for due in due {
                    due.remove(&(next, name.to_owned()));
                }
            }
        };
        out(record, &mut self.due);
        change(record);
        record.put(name, &mut self.due);
        self.changed.insert(name.to_owned());
        self.schedule_write(now);
        true
    }
}

impl SourceRecord {
    fn new(watched: WatchedSource, health: SourceHealth) -> Self {
        Self {
            watched,
            health,
            is_unknown: false,
            probe: None,
            stuck: BTreeSet::new(),
            not_before: 0,
            pending: PendingHealth::default(),
        }
    }

    /// Takes another definition of the source. Returns whether its target changed.
    fn follow(&mut self, watched: WatchedSource, is_importing: bool, now: u64) -> bool {
        let old = self.watched.connection.target_hash();
        let changed = old != watched.connection.target_hash();
        let schedule = watched.schedule;
        self.watched = watched;
        if !changed {
            let latest = now + schedule.pause_after(self.health.attempts);
            self.health.next = self.health.next.map(|next| next.min(latest));
            return false;
        }
        self.retry_at(now);
        self.is_unknown = true;
        self.pending = PendingHealth {
            forget: true,
            request: self.pending.request,
            ..PendingHealth::default()
        };
        if is_importing {
            self.health.next = Some(now.saturating_add(schedule.interval));
        }
        true
    }

    fn retry_at(&mut self, now: u64) {
        self.health = self.health.retry_at(now);
        // The answer of a probe that runs now does not count.
        self.probe = None;
        self.not_before = now;
    }

    fn put(&self, name: &str, due: &mut [BTreeSet<(u64, String)>; 2]) {
        let class = match self.health.reachable {
            Some(false) => UNREACHABLE,
            _ => HEALTHY,
        };
        if let Some(next) = self.health.next.filter(|_| self.probe.is_none()) {
            due[class].insert((next, name.to_owned()));
        }
    }
}
