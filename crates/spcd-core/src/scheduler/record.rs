//! The state of one connection between passes.

use std::collections::{BTreeMap, BTreeSet};

use super::Command;
use crate::health::{FailureKind, ProbeOptions, ProbeSchedule};
use crate::observed::{Attempt, Observed};
use crate::planner::{self, Work};
use spcd_protocol::Backoff;

/// Time after which aggregators and requests stop waiting for a job, in milliseconds.
pub const MAX_JOB_WAIT_MS: u64 = 3_000;
/// Pauses after lock time-outs.
const LOCK_BACKOFF: Backoff = Backoff::new(1_000, 15_000);
/// Pauses after failures other than imports.
const FAILURE_BACKOFF: Backoff = Backoff::new(5_000, 300_000);
/// Longest pause after an import that timed out, in milliseconds. A probe notices earlier that the
/// source answers again.
const LONGEST_AFTER_TIMEOUT: u64 = 3_600_000;

/// Everything that the scheduler knows of one connection. A new leader starts without it and observes
/// the database.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ConnectionRecord {
    /// The running job.
    pub job: Option<RunningJob>,
    /// The last attempt, if it failed.
    pub failure: Option<Failure>,
    /// The last attempt ended a server process. It is repeated after its pause or by `spcd retry`, not
    /// by a refresh.
    pub crashed: bool,
    /// Whether to import even if nothing is known to differ.
    pub refresh: bool,
    /// A client named the connection in a request whose work has not started yet.
    pub urgent: bool,
    /// Lock time-outs.
    pub locks: LockWait,
    /// The next refresh of its dynamic source.
    pub turn: Option<RefreshTurn>,
    /// A client paused it.
    pub paused: bool,
    /// Its options for probes and retries.
    pub health: ProbeOptions,
    /// The members of an enabled aggregator.
    pub members: Option<BTreeSet<String>>,
    /// An enabled aggregator shows it.
    pub shown: bool,
    /// It is an aggregator that waits for members.
    pub waits_for_members: bool,
    /// Whether the search for its files has not ended yet.
    pub files_late: bool,
    /// The probe that a client requested.
    pub probe: Option<ManualProbe>,
    /// Stamp of a mirrored connection at its last import.
    pub source_stamp: Option<String>,
}

/// Lock time-outs of a connection's job.
#[derive(Debug, Default, PartialEq)]
pub(super) struct LockWait {
    /// Number of time-outs in a row.
    pub times: u32,
    /// When the job is repeated.
    pub until: Option<u64>,
    /// Description of the lock's holder, until the job gets the lock.
    pub holder: Option<String>,
}

/// The next refresh of a dynamic source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RefreshTurn {
    pub at: u64,
    pub interval: u64,
}

/// Progress of a requested probe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ManualProbe {
    /// It starts at the end of the pass.
    Pending,
    /// It starts after the running import.
    AfterImport,
    /// It is running.
    Requested,
}

/// A failed attempt and its repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The target that was tried; empty: to drop it.
    pub target_hash: String,
    /// The error.
    pub error: String,
    /// Number of failures in a row.
    pub times: u32,
    /// When it is repeated.
    pub next: NextAttempt,
}

/// When a failed attempt is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextAttempt {
    /// In the next pass.
    Due,
    /// Not before this time.
    At(u64),
    /// When the configuration changes or a client requests it.
    OnRequest,
}

/// A running job.
#[derive(Debug, PartialEq)]
pub(super) struct RunningJob {
    /// What it does.
    pub does: planner::Job,
    /// Time at which it sent its import to the source.
    pub asked_at: Option<u64>,
    /// Another pass is needed when the job has ended.
    pub needs_follow_up: bool,
    pub is_cancelled: bool,
}

/// Result of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOutcome {
    /// The connection was changed as planned.
    Done,
    /// Nothing differed, and nothing was written.
    Same,
    /// The job failed, and the row says so unless it was a refresh.
    Failed {
        /// The target that was tried; empty: to drop it.
        target_hash: String,
        /// The error.
        error: String,
        /// The kind of the source's failure; `None` if the hub refused what was to be done.
        kind: Option<FailureKind>,
        /// The error could not be written to the row: a pass is to write it.
        is_unwritten: bool,
    },
    /// Another session blocked the job, which is repeated after a pause.
    Later {
        /// What blocked it.
        reason: String,
        /// The other session held a lock.
        is_lock: bool,
    },
    /// Aggregators have to release the connection's tables first.
    Waits,
    /// The job was cancelled or lost its session. The next pass observes what it did.
    Cancelled,
}

impl JobOutcome {
    /// Returns the outcome's name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Same => "same",
            Self::Failed { .. } => "failed",
            Self::Later { .. } => "later",
            Self::Waits => "waits",
            Self::Cancelled => "cancelled",
        }
    }
}

/// State of the servers of lanes.
#[derive(Debug, Default)]
pub(super) struct LaneRecord {
    /// Servers that cannot be created or altered, with the reasons.
    pub(super) refused: BTreeMap<String, String>,
    /// Whether the last observation found any.
    pub(super) are_there: bool,
}

impl LaneRecord {
    pub(super) fn merge_into(&self, observed: &mut Observed) {
        for (server, reason) in &self.refused {
            let lane = observed.lanes.entry(server.clone()).or_default();
            lane.refused = Some(reason.clone());
        }
    }
}

impl ConnectionRecord {
    /// Whether the source rejected the credentials, which are not sent again unless something changes.
    pub fn is_rejected(&self) -> bool {
        let failure = self.failure.as_ref();
        failure.is_some_and(|failure| failure.next == NextAttempt::OnRequest)
    }

    /// Whether a job, a refresh or a probe is outstanding.
    pub fn is_busy(&self) -> bool {
        self.job.is_some() || self.refresh || self.probe.is_some()
    }

    /// Whether its job runs and is not slow.
    pub fn has_fast_job(&self, now: u64) -> bool {
        self.job.as_ref().is_some_and(|job| !job.is_slow(now))
    }

    /// Whether its job has waited for the source for so long that nothing else waits for it.
    pub fn is_slow(&self, now: u64) -> bool {
        self.job.as_ref().is_some_and(|job| job.is_slow(now))
    }

    /// Records a lock time-out. Returns the pause.
    pub fn lock_timed_out(&mut self, reason: String, is_lock: bool, now: u64) -> u64 {
        self.locks.times = self.locks.times.saturating_add(1);
        let pause = lock_pause(self.locks.times);
        self.locks.until = Some(now + pause);
        if is_lock {
            self.locks.holder = Some(reason);
        }
        pause
    }

    /// Returns when the next pass is due: to repeat a failed attempt, or after a lock time-out's pause. The
    /// time may have passed since the last plan, which still found the pause.
    pub fn next_due(&self) -> Option<u64> {
        let repetition = match self.failure.as_ref().map(|failure| failure.next) {
            Some(NextAttempt::At(at)) => Some(at),
            _ => None,
        };
        repetition.into_iter().chain(self.locks.until).min()
    }

    /// Adds the scheduler's knowledge of a connection to the observed state.
    pub(super) fn merge_into(&mut self, observed: &mut Observed, name: &str, now: u64) {
        if let Some(failure) = &mut self.failure {
            if matches!(failure.next, NextAttempt::At(at) if at <= now) {
                failure.next = NextAttempt::Due;
                // Even if nothing is known to differ: only the source's answer is missing.
                self.refresh = true;
            }
            let attempt = Attempt {
                target_hash: failure.target_hash.clone(),
                error: failure.error.clone(),
                due: failure.next == NextAttempt::Due,
            };
            observed.attempts.insert(name.to_owned(), attempt);
        }
        self.locks.until = self.locks.until.filter(|until| *until > now);
        for (is_so, names) in [
            (self.refresh, &mut observed.ask),
            (self.urgent, &mut observed.urgent),
            (self.paused, &mut observed.paused),
            (self.is_slow(now), &mut observed.slow),
        ] {
            if is_so {
                names.insert(name.to_owned());
            }
        }
        match observed.connections.get_mut(name) {
            Some(known) => known.waits_for.clone_from(&self.locks.holder),
            None => self.locks.holder = None,
        }
    }

    /// Makes a failed attempt due at once, unless it may end the server again.
    pub(super) fn attempt_now(&mut self) {
        if !self.crashed {
            self.failure = None;
        }
    }
}

impl Failure {
    /// Whether it was an attempt to drop the connection.
    pub fn is_of_drop(&self) -> bool {
        self.target_hash.is_empty()
    }

    /// Returns the failure that follows `before`. An import is repeated by the source's `schedule`, unless
    /// its credentials were rejected, and not before `least_pause` has passed.
    pub(super) fn after(
        before: Option<&Self>,
        target_hash: String,
        error: String,
        import: Option<(FailureKind, ProbeSchedule)>,
        least_pause: u64,
        now: u64,
    ) -> Self {
        let times = before
            .filter(|before| before.target_hash == target_hash)
            .map_or(0, |before| before.times)
            .saturating_add(1);
        let next = match import {
            // Another attempt with the same credentials could lock the account.
            Some((FailureKind::Authentication, _)) => NextAttempt::OnRequest,
            Some((kind, schedule)) => {
                let mut pause = schedule.pause_after(times);
                // Each attempt may leave a stuck session.
                if kind == FailureKind::Timeout && times > schedule.attempts {
                    let longest = LONGEST_AFTER_TIMEOUT.max(pause);
                    let more = times - schedule.attempts;
                    pause = Backoff::new(pause, longest).pause(more.saturating_add(1));
                }
                NextAttempt::At(now + pause.max(least_pause))
            }
            None => NextAttempt::At(now + FAILURE_BACKOFF.pause(times)),
        };
        Self {
            target_hash,
            error,
            times,
            next,
        }
    }
}

impl RunningJob {
    pub fn of(work: &Work) -> Self {
        Self {
            does: planner::Job::of(work),
            asked_at: None,
            needs_follow_up: false,
            is_cancelled: false,
        }
    }

    /// Cancels the job, unless that was done before.
    pub fn cancel(&mut self, name: &str) -> Option<Command> {
        self.needs_follow_up = true;
        let is_new = !std::mem::replace(&mut self.is_cancelled, true);
        is_new.then(|| Command::Cancel(name.to_owned()))
    }

    fn is_slow(&self, now: u64) -> bool {
        self.asked_at.is_some_and(|at| now - at >= MAX_JOB_WAIT_MS)
    }
}

/// Returns the pause after this many lock time-outs in a row.
pub(super) fn lock_pause(times: u32) -> u64 {
    LOCK_BACKOFF.pause(times)
}
