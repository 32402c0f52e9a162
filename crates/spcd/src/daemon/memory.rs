//! What a leader remembers from one pass to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use serde_json::Value;
use spcd_core::config::Desired;
use spcd_core::health::{Options, Schedule};
use spcd_core::observed::{Attempt, Extension, Observed};
use spcd_core::plan::Plan;
use spcd_core::union;
use tokio::time::Instant;

use crate::hub::crash::Recorded;

use super::files;
use super::jobs::{self, Failure, Jobs, Next};
use super::requests::{Action, Asked};

/// How often a dynamic source is asked again where nothing says otherwise.
const REFRESH: Duration = Duration::from_secs(300);
/// Sources whose turn comes within so long are asked together, after one look.
const TURNS: Duration = Duration::from_secs(10);

/// What a leader remembers from one pass to the next. None of it is needed to be right: it is lost
/// with the process, and the next one looks again.
#[derive(Default)]
pub struct Memory {
    pub failures: BTreeMap<String, Failure>,
    pub refused_extensions: BTreeMap<String, String>,
    /// Roles whose search path could not be set, and the path's hash.
    pub refused_paths: BTreeMap<String, String>,
    /// Connections whose sources are to be asked although nothing differs.
    pub ask: BTreeSet<String>,
    /// Those that somebody asked for by name.
    pub urgent: BTreeSet<String>,
    /// All of them.
    pub ask_all: bool,
    /// Connections whose last job met another session, and when they are tried again.
    pub blocked: BTreeMap<String, Blocked>,
    /// When a dynamic source is to be asked next, and the interval by which that was reckoned.
    pub turns: BTreeMap<String, (Instant, Duration)>,
    /// When the next of them is looked for.
    pub next_turns: Option<Instant>,
    /// The diagnostics that the database has.
    pub diagnostics: Option<Value>,
    /// When something is to be tried again that nothing else will wake us for.
    pub later: Option<Instant>,
    pub aggregators: Aggregators,
    /// Connections whose sources are left alone, since somebody said so.
    pub held: BTreeSet<String>,
    /// When sources are tried again.
    pub health: Schedules,
    /// Connections whose last question ended its server process.
    pub crashed: BTreeSet<String>,
}

/// A connection whose job another session stood in the way of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Blocked {
    /// How often in a row.
    pub times: u32,
    /// When it is tried again.
    pub until: Option<Instant>,
}

/// When sources are asked whether they are there, and tried again.
#[derive(Default, PartialEq, Eq)]
pub struct Schedules {
    /// Of connections that say something of that.
    own: BTreeMap<String, Options>,
    /// What holds where they say nothing.
    pub defaults: Options,
}

/// What is known of aggregators since the last look.
#[derive(Default)]
pub struct Aggregators {
    /// Those that are enabled, with their members.
    pub members: BTreeMap<String, BTreeSet<String>>,
    /// Those that wait for members.
    pub waiting: BTreeSet<String>,
    /// A member may have changed: look again once the others are done.
    pub due: bool,
}

impl Memory {
    /// Has csv connections asked whose files changed: now, whatever failed before.
    pub fn notice(&mut self, changed: files::Changed) {
        for (name, read_before) in changed.names {
            if read_before {
                self.urgent.insert(name.clone());
            }
            if let Some(failure) = self.failures.get_mut(&name) {
                failure.next = Next::Due;
            }
            self.ask.insert(name);
        }
        if let Some(pause) = changed.again {
            self.wake_after(pause);
        }
    }

    /// Has connections dropped again that could not be dropped: what stood in the way may be gone,
    /// and only the hub is asked. Returns their names.
    pub fn retry_drops(&mut self) -> Vec<String> {
        let drops = self
            .failures
            .iter_mut()
            .filter(|(_, failure)| failure.is_of_drop());
        drops
            .map(|(name, failure)| {
                failure.next = Next::Due;
                name.clone()
            })
            .collect()
    }

    /// Takes over which connections are not to be asked yet, since that ended a server process.
    pub fn recall_crashes(&mut self, recorded: BTreeMap<String, Recorded>) {
        for (name, recorded) in recorded {
            let failure = Failure {
                target_hash: recorded.target_hash,
                error: recorded.reason,
                times: recorded.times,
                next: Next::At(Instant::now() + recorded.pause),
            };
            self.crashed.insert(name.clone());
            self.failures.insert(name, failure);
        }
    }

    /// Has a connection asked at once although its last question ended a server process.
    pub fn retry(&mut self, name: &str) {
        self.failures.remove(name);
    }

    /// Adds what is remembered to what was observed.
    pub fn recall(&mut self, desired: &Desired, observed: &mut Observed, asked: Vec<Asked>) {
        let now = Instant::now();
        observed.held.clone_from(&self.held);
        let all = std::mem::take(&mut self.ask_all).then_some(Asked {
            action: Action::Refresh,
            names: None,
            retries_refused: true,
        });
        for asked in asked.into_iter().chain(all) {
            let by_name = asked.names.is_some();
            let names =
                (asked.names).unwrap_or_else(|| desired.connections.keys().cloned().collect());
            for name in names {
                if !asked.retries_refused && self.is_refused(&name) {
                    continue;
                }
                if by_name {
                    self.urgent.insert(name.clone());
                }
                // A request is an attempt now, except of what may end the server once more.
                if !self.crashed.contains(&name) {
                    self.failures.remove(&name);
                }
                // An aggregator has no source but its members'.
                let members = self.aggregators.members.get(&name).into_iter().flatten();
                let members: Vec<String> = members.cloned().collect();
                for member in members {
                    if !asked.retries_refused && self.is_refused(&member) {
                        continue;
                    }
                    if !self.crashed.contains(&member) {
                        self.failures.remove(&member);
                    }
                    self.ask.insert(member);
                }
                if desired.connections.contains_key(&name) {
                    self.ask.insert(name);
                }
            }
            self.refused_extensions.clear();
            self.refused_paths.clear();
        }
        for (name, failure) in &mut self.failures {
            if matches!(failure.next, Next::At(next) if next <= now) {
                failure.next = Next::Due;
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
                due: failure.next == Next::Due,
            };
            observed.attempts.insert(name.clone(), attempt);
        }
        self.recall_extensions(observed);
    }

    /// Adds which extensions could not be created.
    pub fn recall_extensions(&self, observed: &mut Observed) {
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

    /// When a connection's source is tried again.
    pub fn schedule(&self, name: &str) -> Schedule {
        self.health.schedule(name)
    }

    /// Takes what is said of that now. What failed and waits longer than it would from now on is
    /// tried again sooner.
    pub fn reschedule(&mut self, desired: &Desired, defaults: Options) {
        let own = (desired.connections.iter())
            .filter(|(_, connection)| connection.health != Options::default())
            .map(|(name, connection)| (name.clone(), connection.health))
            .collect();
        let health = Schedules { own, defaults };
        if health == self.health {
            return;
        }
        for (name, failure) in &mut self.failures {
            let schedule = health.schedule(name);
            if let Next::At(next) = failure.next
                && !self.crashed.contains(name)
                && schedule != self.health.schedule(name)
            {
                let pause = Duration::from_millis(schedule.pause_after(failure.times));
                failure.next = Next::At(next.min(Instant::now() + pause));
            }
        }
        self.health = health;
    }

    /// A connection's source is back: what failed is tried again now. `true`: something is.
    pub fn is_back(&mut self, name: &str) -> bool {
        let failure = self.failures.get_mut(name);
        let failure = failure.filter(|_| !self.crashed.contains(name));
        let waiting = failure.filter(|failure| failure.next != Next::Due);
        waiting.is_some_and(|failure| {
            failure.next = Next::At(Instant::now());
            true
        })
    }

    /// Drops what no longer concerns anybody.
    pub fn forget(&mut self, observed: &Observed, plan: &Plan, jobs: &Jobs) {
        let works: BTreeSet<&str> = plan.work.iter().map(|work| work.name.as_str()).collect();
        self.ask
            .retain(|name| works.contains(name.as_str()) || jobs.is_running(name));
        let concerns = |name: &str| observed.connections.contains_key(name) || works.contains(name);
        self.failures.retain(|name, _| concerns(name));
        self.blocked.retain(|name, _| concerns(name));
    }

    /// Whether a job of the connection met another session and its pause is not over. A user who asks
    /// for it by name does not wait for that.
    pub fn is_paused(&self, name: &str, now: Instant) -> bool {
        let until = self.blocked.get(name).and_then(|blocked| blocked.until);
        until.is_some_and(|until| until > now) && !self.urgent.contains(name)
    }

    /// Whether the source refused the credentials, which are not sent again by themselves.
    fn is_refused(&self, name: &str) -> bool {
        (self.failures.get(name)).is_some_and(|failure| failure.next == Next::Asked)
    }

    pub fn wake_later(&mut self) {
        self.wake_after(jobs::later(0));
    }

    pub fn wake_after(&mut self, pause: Duration) {
        let later = Instant::now() + pause;
        self.later = Some(self.later.map_or(later, |at| at.min(later)));
    }

    pub fn next_due(&self) -> Option<Instant> {
        let failures = (self.failures.values()).filter_map(|failure| match failure.next {
            Next::At(next) => Some(next),
            Next::Due | Next::Asked => None,
        });
        let turn = self.turns.values().map(|(next, _)| *next).min();
        let turns = turn.map(|turn| self.next_turns.map_or(turn, |next| turn.max(next)));
        failures.chain(turns).chain(self.later).min()
    }
}

impl Schedules {
    fn schedule(&self, name: &str) -> Schedule {
        let own = self.own.get(name).copied().unwrap_or_default();
        own.or(self.defaults).schedule()
    }
}

impl Aggregators {
    pub fn of(desired: &Desired) -> Self {
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

    /// Connections, and the members of those that are aggregators: these have no source of their own.
    pub fn with_members(&self, mut names: Vec<String>) -> Vec<String> {
        let members = names.iter().filter_map(|name| self.members.get(name));
        let members: Vec<String> = members.flatten().cloned().collect();
        names.retain(|name| !self.members.contains_key(name));
        names.extend(members);
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether one of them shows a connection's tables.
    pub fn show(&self, name: &str) -> bool {
        self.members.values().any(|members| members.contains(name))
    }

    /// Takes note of the end of a connection's job; true if aggregators can follow it now, no
    /// other member being about to change.
    pub fn follow(&mut self, name: &str, done: bool, jobs: &Jobs) -> bool {
        let is_member = |name: &str| self.members.values().any(|members| members.contains(name));
        self.due |= (done || !self.waiting.is_empty()) && is_member(name);
        self.due && !jobs.brisk_and_slow().0.any(|name| is_member(name))
    }
}

#[cfg(test)]
mod tests {
    use spcd_core::health::Kind;

    use super::*;

    fn failed(kind: Kind) -> Failure {
        let import = Some((kind, Schedule::default()));
        Failure::after(None, "hash".into(), "it failed".into(), import, 0)
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_due_as_soon_as_its_source_is_back() {
        let mut memory = Memory::default();
        for kind in [Kind::Refused, Kind::Timeout, Kind::Authentication] {
            memory.failures.insert("a".into(), failed(kind));
            assert!(memory.next_due().is_none_or(|due| due > Instant::now()));
            assert!(memory.is_back("a"), "{kind:?}");
            assert!(memory.next_due().is_some_and(|due| due <= Instant::now()));
        }
        assert!(!memory.is_back("b"), "nothing of it failed");
    }
}
