//! What is known of one connection between passes.

use std::collections::BTreeSet;

use super::Command;
use crate::backoff::Backoff;
use crate::health::{Kind, Options, Schedule};
use crate::plan::{Task, Why, Work};

/// How long a job may take before aggregators and requests stop waiting for it, in milliseconds.
pub const PATIENCE: u64 = 3_000;
/// The pauses after a lock time-out.
const LOCK_BACKOFF: Backoff = Backoff::new(1_000, 15_000);
/// The pauses after a failure that is not an import's.
const FAILURE_BACKOFF: Backoff = Backoff::new(5_000, 300_000);
/// The longest pause after an import that timed out, in milliseconds. A probe finds out earlier that
/// its source answers again.
const LONGEST_AFTER_TIMEOUT: u64 = 3_600_000;

/// Everything that is known of one connection. None of it is needed to be right: a new leader starts
/// without it and looks again.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ConnectionRecord {
    /// The running job.
    pub job: Option<RunningJob>,
    /// The last attempt, if it failed.
    pub failure: Option<Failure>,
    /// The last attempt ended a server process: only the end of its pause or a retry repeats it.
    pub crashed: bool,
    /// The source is to be asked although nothing is known to differ.
    pub refresh: bool,
    /// A client named the connection in a request that no pass has carried out yet.
    pub urgent: bool,
    /// Lock time-outs.
    pub locks: LockWait,
    /// When its dynamic source is asked next.
    pub turn: Option<RefreshTurn>,
    /// Its source is left alone, as a client requested.
    pub paused: bool,
    /// What its definition says about probes and retries.
    pub health: Options,
    /// The members of an enabled aggregator.
    pub members: Option<BTreeSet<String>>,
    /// An enabled aggregator shows it.
    pub shown: bool,
    /// It is an aggregator that waits for members.
    pub waits_for_members: bool,
    /// Its files have not shown up yet.
    pub files_late: bool,
    /// A probe that a client requested.
    pub probe: Option<ManualProbe>,
}

/// Lock time-outs of a connection's job.
#[derive(Debug, Default, PartialEq)]
pub(super) struct LockWait {
    /// How many in a row.
    pub times: u32,
    /// When the job is tried again.
    pub until: Option<u64>,
    /// Who holds the lock, until the job got it.
    pub holder: Option<String>,
}

/// When a dynamic source is asked next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RefreshTurn {
    pub at: u64,
    pub interval: u64,
}

/// How far a requested probe is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ManualProbe {
    /// It is requested at the end of the pass.
    Wanted,
    /// It follows the import that runs.
    AfterImport,
    /// It is under way.
    Requested,
}

/// A failed attempt, and when it is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The target that was tried; empty: to drop it.
    pub target_hash: String,
    /// Why it failed.
    pub error: String,
    /// How often, in a row.
    pub times: u32,
    /// When it is repeated.
    pub next: NextAttempt,
}

/// When a failed attempt is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextAttempt {
    /// In the next pass.
    Due,
    /// No earlier than this.
    At(u64),
    /// When something changes or a client requests it.
    OnRequest,
}

/// A job under way.
#[derive(Debug, PartialEq)]
pub(super) struct RunningJob {
    pub key: JobKey,
    /// Nothing is known to differ.
    pub is_refresh: bool,
    /// When its source was asked.
    pub asked_at: Option<u64>,
    /// Something else is wanted meanwhile: look again when the job has ended.
    pub look_again: bool,
    pub is_cancelled: bool,
}

/// Two pieces of work with one key do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JobKey {
    Import { target: String, hidden: bool },
    SyncAggregator(String),
    Drop { stays: bool },
    Grant,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOutcome {
    /// The connection is as it should be.
    Done,
    /// It was so before: nothing was written.
    Same,
    /// The job failed, and the row says so unless it was a refresh.
    Failed {
        /// The target that was tried; empty: to drop it.
        target_hash: String,
        /// Why.
        error: String,
        /// The kind of failure of an import.
        kind: Option<Kind>,
    },
    /// Another session stood in the way: try again after a pause.
    Later {
        /// What stood in the way.
        reason: String,
        /// It held a lock.
        is_lock: bool,
    },
    /// Aggregators have to let go of it first.
    Waits,
    /// The job was given up: it was cancelled, or lost its session. What came of it, the next pass
    /// finds out.
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

impl ConnectionRecord {
    /// Whether the source rejected the credentials, which are not sent again unless something changes.
    pub fn is_rejected(&self) -> bool {
        let failure = self.failure.as_ref();
        failure.is_some_and(|failure| failure.next == NextAttempt::OnRequest)
    }

    /// Whether a lock time-out's pause is not over. A client that names the connection does not wait
    /// for that.
    pub fn waits_for_lock(&self, now: u64) -> bool {
        self.locks.until.is_some_and(|until| until > now) && !self.urgent
    }

    /// Whether anything is still to be done or answered for the connection.
    pub fn is_busy(&self) -> bool {
        self.job.is_some() || self.refresh || self.probe.is_some()
    }

    /// Whether its job runs and is not slow.
    pub fn is_brisk(&self, now: u64) -> bool {
        self.job.as_ref().is_some_and(|job| !job.is_slow(now))
    }

    /// Whether its job has waited for the source for too long for others to wait, too.
    pub fn is_slow(&self, now: u64) -> bool {
        self.job.as_ref().is_some_and(|job| job.is_slow(now))
    }

    /// Takes note of a lock time-out. Returns the pause.
    pub fn lock_timed_out(&mut self, reason: String, is_lock: bool, now: u64) -> u64 {
        self.locks.times = self.locks.times.saturating_add(1);
        let pause = lock_pause(self.locks.times);
        self.locks.until = Some(now + pause);
        if is_lock {
            self.locks.holder = Some(reason);
        }
        pause
    }

    /// When something is due that no event announces.
    pub fn next_due(&self) -> Option<u64> {
        match self.failure.as_ref().map(|failure| failure.next) {
            Some(NextAttempt::At(at)) => Some(at),
            _ => None,
        }
    }
}

impl Failure {
    /// Whether the connection was to be dropped.
    pub fn is_of_drop(&self) -> bool {
        self.target_hash.is_empty()
    }

    /// Returns the failure that follows `before`. An import is repeated by the source's `schedule`, as
    /// long as there is a chance that it succeeds, and no earlier than after `least_pause`.
    pub(super) fn after(
        before: Option<&Self>,
        target_hash: String,
        error: String,
        import: Option<(Kind, Schedule)>,
        least_pause: u64,
        now: u64,
    ) -> Self {
        let times = before
            .filter(|before| before.target_hash == target_hash)
            .map_or(0, |before| before.times)
            .saturating_add(1);
        let next = match import {
            // Another attempt with the same credentials could lock the account.
            Some((Kind::Authentication, _)) => NextAttempt::OnRequest,
            Some((kind, schedule)) => {
                let mut pause = schedule.pause_after(times);
                // Each attempt may leave a stuck session.
                if kind == Kind::Timeout && times > schedule.attempts {
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
            key: JobKey::of(work),
            is_refresh: is_refresh(work),
            asked_at: None,
            look_again: false,
            is_cancelled: false,
        }
    }

    /// Whether the source is being asked although nothing differs from a target.
    pub fn is_refresh_of(&self, wanted: &str) -> bool {
        self.is_refresh && self.imports(wanted)
    }

    /// Whether it imports a target.
    pub fn imports(&self, wanted: &str) -> bool {
        matches!(&self.key, JobKey::Import { target, .. } if target == wanted)
    }

    /// Has the job of this connection cancelled, once.
    pub fn cancel(&mut self, name: &str) -> Option<Command> {
        self.look_again = true;
        let is_new = !std::mem::replace(&mut self.is_cancelled, true);
        is_new.then(|| Command::Cancel(name.to_owned()))
    }

    fn is_slow(&self, now: u64) -> bool {
        self.asked_at.is_some_and(|at| now - at >= PATIENCE)
    }
}

impl JobKey {
    pub fn of(work: &Work) -> Self {
        match &work.task {
            Task::Import(import) => Self::Import {
                target: import.target_hash.clone(),
                hidden: import.hidden,
            },
            Task::Unite(sync) => Self::SyncAggregator(sync.target_hash.clone()),
            Task::Drop { keep, .. } => Self::Drop {
                stays: keep.is_some(),
            },
            Task::Grant { .. } => Self::Grant,
        }
    }
}

/// Whether a source is to be asked although nothing is known to differ.
pub fn is_refresh(work: &Work) -> bool {
    matches!(&work.task, Task::Import(import) if import.why == Why::Refresh)
}

/// Returns the pause after this many lock time-outs in a row.
pub(super) fn lock_pause(times: u32) -> u64 {
    LOCK_BACKOFF.pause(times)
}
