//! Whether a source answers: how often it is asked, and what follows from its answers.
//!
//! Time is handed in, in milliseconds since any moment, so that a test steps through a whole
//! schedule.

mod kind;
mod options;

pub use kind::{Kind, NO_TUNNEL, kind};
pub use options::{KNOWN, Options, Unfit};
/// A change that people are told of.
pub use spcd_protocol::Health as Turn;

use core::time::Duration;

use serde::Serialize;

use crate::backoff::Backoff;

/// How often a source is asked, and what is done when it does not answer. Times are milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// It is asked at all. (What is imported is tried again by the same times either way.)
    pub enabled: bool,
    /// From one probe to the next.
    pub interval: u64,
    /// How often a source that did not answer is tried again before the breaker opens.
    pub attempts: u32,
    /// Before the first of these attempts; before each further one it is twice as long.
    pub pause: u64,
    /// How long an answer may take.
    pub timeout: u64,
}

impl Default for Schedule {
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

impl Schedule {
    /// How long to wait after so many failures in a row. While attempts are left, the pauses grow;
    /// after them there is one attempt an interval.
    pub fn pause_after(&self, failures: u32) -> u64 {
        match failures {
            1.. if failures <= self.attempts => Backoff::new(self.pause, u64::MAX).pause(failures),
            _ => self.interval,
        }
    }
}

/// Whether a source that does not answer is still asked as often as one that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Breaker {
    /// It answers, or attempts are left.
    #[default]
    Closed,
    /// It is left alone until the next interval; one that refused its credentials, until they
    /// change or somebody asks.
    Open,
    /// One probe finds out whether it is back.
    HalfOpen,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The source answers.
    Answered,
    /// It does not.
    Failed(Kind),
    /// It could not be asked, for a reason that is not the source's.
    Unsure,
}

/// What is known of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Whether it answered when it was last asked; `None`: not known.
    pub reachable: Option<bool>,
    /// How often in a row it did not answer.
    pub attempts: u32,
    /// Whether it is still asked as usual.
    pub breaker: Breaker,
    /// When it is asked next; `None`: not before something changes or somebody asks.
    pub next: Option<u64>,
}

impl Health {
    /// Of a source that is asked first at `next`; `reachable`: what an earlier daemon knew.
    pub fn new(reachable: Option<bool>, next: u64) -> Self {
        Self {
            reachable,
            next: Some(next),
            ..Self::default()
        }
    }

    /// A probe begins.
    #[must_use]
    pub fn asked(self) -> Self {
        Self {
            breaker: match self.breaker {
                Breaker::Closed => Breaker::Closed,
                Breaker::Open | Breaker::HalfOpen => Breaker::HalfOpen,
            },
            ..self
        }
    }

    /// What is known after a probe that ended `now`, and what people are told.
    #[must_use]
    pub fn after(self, outcome: Outcome, now: u64, schedule: &Schedule) -> (Self, Option<Turn>) {
        let in_ms = |pause: u64| Some(now.saturating_add(pause));
        match outcome {
            Outcome::Answered => {
                let turn = (self.reachable == Some(false)).then_some(Turn::Restored);
                let health = Self {
                    reachable: Some(true),
                    next: in_ms(schedule.interval),
                    ..Self::default()
                };
                (health, turn)
            }
            Outcome::Failed(kind) => {
                let turn = (self.reachable != Some(false)).then_some(Turn::Lost);
                let attempts = self.attempts.saturating_add(1);
                // Another attempt with the same credentials could lock the account.
                let refused = kind == Kind::Authentication;
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
            Outcome::Unsure => {
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

    /// The configuration changed, or somebody asks: it is tried at once, and then with all its
    /// attempts.
    #[must_use]
    pub fn again(self, now: u64) -> Self {
        Self::new(self.reachable, now)
    }
}

/// The answer to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// The source answers, with this latency.
    There(Duration),
    /// It does not.
    Failed(ProbeFailure),
    /// It could not be asked, for a reason that is not the source's.
    Unsure(String),
}

/// Why a source does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeFailure {
    /// What stands in the way.
    pub kind: Kind,
    /// The wrapper's message, without values that are not public.
    pub text: String,
}

impl ProbeFailure {
    /// Returns the failure that a SQLSTATE and the message that came with it describe.
    pub fn of(sqlstate: &str, text: &str) -> Self {
        Self {
            kind: kind(sqlstate, text),
            text: text.to_owned(),
        }
    }

    /// Returns the failure of a source that did not answer in time.
    pub fn timeout(within: Duration) -> Self {
        let seconds = within.as_secs_f64();
        Self {
            kind: Kind::Timeout,
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
