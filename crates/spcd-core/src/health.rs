//! Health of sources: the probe schedule, the circuit breaker and the answers.
//!
//! Times are arguments, in milliseconds since an arbitrary moment, so that tests step through a
//! whole schedule.

mod failure;
mod options;

pub use failure::{FailureKind, TUNNEL_CLOSED_SQLSTATE, classify_failure};
pub use options::{InvalidOption, OPTION_NAMES, ProbeOptions};
pub use spcd_protocol::HealthChange;

use core::time::Duration;

use serde::Serialize;

use spcd_protocol::Backoff;

/// When a source is probed. Times are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSchedule {
    /// Whether the source is probed. (Imports are retried by the same times in either case.)
    pub enabled: bool,
    /// Interval between probes.
    pub interval: u64,
    /// Number of further attempts before the breaker opens.
    pub attempts: u32,
    /// Pause before the first further attempt; it doubles before each next one.
    pub pause: u64,
    /// Limit for an answer.
    pub timeout: u64,
}

impl Default for ProbeSchedule {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: 30_000,
            attempts: 3,
            pause: 5_000,
            timeout: 10_000,
        }
    }
}

impl ProbeSchedule {
    /// Returns the pause after this number of failures in a row: it grows while attempts are left,
    /// and is one interval after them.
    pub fn pause_after(&self, failures: u32) -> u64 {
        match failures {
            1.. if failures <= self.attempts => Backoff::new(self.pause, u64::MAX).pause(failures),
            _ => self.interval,
        }
    }
}

/// State of the circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Breaker {
    /// The source answers, or attempts are left.
    #[default]
    Closed,
    /// The source is not probed until the next interval. After rejected credentials, it is not
    /// probed until they change or a probe is requested.
    Open,
    /// One probe tests whether the source is back.
    HalfOpen,
}

/// Outcome of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The source answers.
    Answered,
    /// The source does not answer.
    Failed(FailureKind),
    /// The probe could not run, for a reason that is not the source's.
    Inconclusive,
}

/// Known health of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceHealth {
    /// Whether the last probe was answered; `None` if unknown.
    pub reachable: Option<bool>,
    /// Number of failed probes in a row.
    pub attempts: u32,
    /// State of the circuit breaker.
    pub breaker: Breaker,
    /// Time of the next probe; `None`: not before the configuration changes or a probe is
    /// requested.
    pub next: Option<u64>,
}

impl SourceHealth {
    /// Creates the health of a source whose first probe is at `next`. `reachable` is the result of
    /// an earlier daemon.
    pub fn new(reachable: Option<bool>, next: u64) -> Self {
        Self {
            reachable,
            next: Some(next),
            ..Self::default()
        }
    }

    /// Returns the health when a probe begins.
    #[must_use]
    pub fn probing(self) -> Self {
        Self {
            breaker: match self.breaker {
                Breaker::Closed => Breaker::Closed,
                Breaker::Open | Breaker::HalfOpen => Breaker::HalfOpen,
            },
            ..self
        }
    }

    /// Returns the health after a probe that ended `now`, and the change to announce.
    #[must_use]
    pub fn after_probe(
        self,
        outcome: ProbeOutcome,
        now: u64,
        schedule: &ProbeSchedule,
    ) -> (Self, Option<HealthChange>) {
        let in_ms = |pause: u64| Some(now.saturating_add(pause));
        match outcome {
            ProbeOutcome::Answered => {
                let turn = (self.reachable == Some(false)).then_some(HealthChange::Restored);
                let health = Self {
                    reachable: Some(true),
                    next: in_ms(schedule.interval),
                    ..Self::default()
                };
                (health, turn)
            }
            ProbeOutcome::Failed(kind) => {
                let turn = (self.reachable != Some(false)).then_some(HealthChange::Lost);
                let attempts = self.attempts.saturating_add(1);
                // Another attempt with the same credentials could lock the account.
                let refused = kind == FailureKind::Authentication;
                let health = Self {
                    reachable: Some(false),
                    attempts,
                    breaker: match refused || attempts > schedule.attempts {
                        true => Breaker::Open,
                        false => Breaker::Closed,
                    },
                    next: match refused {
                        true => None,
                        false => in_ms(schedule.pause_after(attempts)),
                    },
                };
                (health, turn)
            }
            ProbeOutcome::Inconclusive => {
                let health = Self {
                    breaker: match self.breaker {
                        Breaker::HalfOpen => Breaker::Open,
                        breaker => breaker,
                    },
                    next: in_ms(schedule.interval),
                    ..self
                };
                (health, None)
            }
        }
    }

    /// Returns the health for a probe at once with all attempts: the configuration changed, or a
    /// probe was requested.
    #[must_use]
    pub fn retry_at(self, now: u64) -> Self {
        Self::new(self.reachable, now)
    }
}

/// Answer to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// The source answers, after this time.
    Reachable(Duration),
    /// The source does not answer.
    Failed(ProbeFailure),
    /// The probe could not run, for a reason that is not the source's.
    Inconclusive(String),
}

/// Failure of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeFailure {
    /// Kind of failure.
    pub kind: FailureKind,
    /// Message of the wrapper, without values that are not public.
    pub text: String,
}

impl ProbeFailure {
    /// Returns the failure that a SQLSTATE and the message that came with it describe.
    pub fn classify(sqlstate: &str, text: &str) -> Self {
        Self {
            kind: classify_failure(sqlstate, text),
            text: text.to_owned(),
        }
    }

    /// Returns the failure of a source that did not answer in time.
    pub fn timeout(within: Duration) -> Self {
        let seconds = within.as_secs_f64();
        Self {
            kind: FailureKind::Timeout,
            text: format!("the source did not answer within {seconds} s"),
        }
    }

    /// Returns the reason and what to do about it, on one line.
    pub fn one_line(&self) -> String {
        match self.kind.hint() {
            Some(hint) => format!("{} ({hint})", self.text),
            None => self.text.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
