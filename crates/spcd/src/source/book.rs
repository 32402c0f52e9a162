//! What is known of all sources that are watched, when each is asked next, and what of it is not
//! written yet. It knows no clock: times are handed in, in milliseconds.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;

use serde_json::{Value, json};
use spcd_core::health::{Breaker, Health, Kind, Outcome, Turn};
use spcd_core::scheduler::Backoff;

use super::{News, Watched};
use crate::hub::probe::{Answer, Failure};
use crate::hub::waiting::crowd;

/// How long to wait where the hub could not be asked, in milliseconds.
const NO_SESSION: u64 = 1_000;

/// All sources that are watched.
#[derive(Default)]
pub struct Book {
    entries: BTreeMap<String, Entry>,
    /// When which is to be asked, of those that answered last; and of the others, which may keep a
    /// session for long.
    due: [BTreeSet<(u64, String)>; 2],
    /// The probes under way.
    running: [BTreeSet<u64>; 2],
    /// Those whose time is up, and whose session still hangs; in which wrapper, if it is one that
    /// cannot be stopped.
    hung: BTreeMap<u64, String>,
    /// What an earlier leader knew of sources that were not handed over yet.
    known: BTreeMap<String, bool>,
    /// What is to be written.
    changed: BTreeSet<String>,
    /// Those that are not watched any more: nothing is known of them.
    forgotten: BTreeSet<String>,
    /// The probe that began last.
    number: u64,
}

/// For which there is room.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// One of those that answered last.
    pub well: bool,
    /// One of the others.
    pub lost: bool,
    /// Another session for a source in which one hangs already.
    pub again: bool,
    /// Another session in a wrapper in which some hang already.
    pub more: bool,
}

/// How many sessions are busy.
#[derive(Debug, Clone, Copy)]
pub struct Busy {
    /// With sources that answered last.
    pub well: usize,
    /// With the others.
    pub lost: usize,
    /// With nothing: they hang.
    pub hung: usize,
}

/// What is to be written at once.
pub struct Page {
    rows: Vec<Row>,
    now: u64,
}

struct Row {
    name: String,
    health: Health,
    facts: Facts,
}

struct Entry {
    watched: Watched,
    health: Health,
    /// What is known is of an earlier target.
    is_unknown: bool,
    /// The probe that is under way for it; its answer counts.
    probe: Option<u64>,
    /// Probes before it whose sessions hang: some wrappers cannot be stopped while they connect.
    hung: BTreeSet<u64>,
    /// As long as some do, the next session is not risked before this.
    not_before: u64,
    facts: Facts,
}

/// What was found since it was written last.
#[derive(Default)]
struct Facts {
    /// What was told before is of an earlier target.
    forget: bool,
    checked: Option<u64>,
    latency: Option<f64>,
    failure: Option<String>,
    turns: Vec<Turn>,
    /// Somebody wants to know.
    asked: Option<Asked>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Waiting,
    Known,
}

const WELL: usize = 0;
const LOST: usize = 1;

impl Book {
    /// With what an earlier leader knew.
    pub fn new(known: BTreeMap<String, bool>) -> Self {
        Self {
            known,
            ..Self::default()
        }
    }

    /// Watches these from now on. `first` says when a new one is asked first. One that changed is
    /// asked at once, unless it is one of the `busy`, whose import tells as much.
    pub fn watch(
        &mut self,
        watched: Vec<Watched>,
        busy: &BTreeSet<String>,
        now: u64,
        first: impl Fn(&Watched) -> u64,
    ) {
        let mut before = take(&mut self.entries);
        for watched in watched {
            let name = watched.connection.name.clone();
            let known = self.known.remove(&name);
            let entry = match before.remove(&name) {
                Some(mut entry) => {
                    let old = entry.watched.connection.target_hash();
                    let changed = old != watched.connection.target_hash();
                    let schedule = watched.schedule;
                    entry.watched = watched;
                    if changed {
                        entry.again(now);
                        entry.is_unknown = true;
                        entry.facts = Facts {
                            forget: true,
                            asked: entry.facts.asked,
                            ..Facts::default()
                        };
                        if busy.contains(&name) {
                            entry.health.next = Some(now.saturating_add(schedule.interval));
                        }
                        self.changed.insert(name.clone());
                    } else {
                        let latest = now + schedule.pause_after(entry.health.attempts);
                        entry.health.next = entry.health.next.map(|next| next.min(latest));
                    }
                    entry
                }
                None => {
                    let first = match known {
                        Some(false) => now,
                        _ => first(&watched),
                    };
                    Entry {
                        watched,
                        health: Health::new(known, first),
                        is_unknown: false,
                        probe: None,
                        hung: BTreeSet::new(),
                        not_before: 0,
                        facts: Facts::default(),
                    }
                }
            };
            self.forgotten.remove(&name);
            self.entries.insert(name, entry);
        }
        let unknown = before.into_keys().chain(take(&mut self.known).into_keys());
        self.forgotten.extend(unknown);
        self.changed.retain(|name| self.entries.contains_key(name));
        self.due = Default::default();
        for (name, entry) in &self.entries {
            entry.put(name, &mut self.due);
        }
    }

    /// Has one asked before all that are due, whatever was found before; `false`: it is not watched.
    pub fn again(&mut self, name: &str, now: u64) -> bool {
        self.change(name, |entry| {
            entry.again(now);
            entry.health.next = Some(0);
            entry.facts.asked = Some(Asked::Waiting);
        })
    }

    /// An import says otherwise, or is the first to ask another target: the source is asked now.
    pub fn heard(&mut self, name: &str, answered: bool, now: u64) {
        let wanted = |entry: &Entry| {
            let news = match answered {
                true => entry.health.reachable == Some(false),
                false => entry.health.reachable != Some(false),
            };
            (news || entry.is_unknown) && entry.probe.is_none()
        };
        if self.entries.get(name).is_some_and(wanted) {
            self.change(name, |entry| entry.health.next = Some(now));
        }
    }

    /// An import of a target says that the source refused its credentials: that is what a probe would
    /// say, and another attempt could lock the account. `asked`: somebody waits to hear it.
    pub fn refused(
        &mut self,
        name: &str,
        target_hash: &str,
        failure: Failure,
        asked: bool,
        now: u64,
    ) -> Option<Turn> {
        let entry = self.entries.get(name)?;
        if entry.watched.connection.target_hash() != target_hash {
            // It says nothing of what is wanted now.
            if asked {
                self.again(name, now);
            }
            return None;
        }
        if asked {
            self.again(name, now);
        } else if entry.probe.is_some() {
            return None;
        }
        self.answered(name, Answer::Failed(failure), now)
    }

    /// When the next one is to be asked for which there is room.
    pub fn next(&self, room: Room) -> Option<u64> {
        let first = |class: usize| self.due[class].first().map(|(due, _)| *due);
        let well = first(WELL).filter(|_| room.well);
        let lost = first(LOST).filter(|_| room.lost);
        well.into_iter().chain(lost).min()
    }

    /// Begins to ask the first that is due.
    pub fn begin(&mut self, room: Room, now: u64) -> Option<(u64, Watched)> {
        let due = self.next(room).filter(|due| *due <= now)?;
        let class = [(WELL, room.well), (LOST, room.lost)]
            .into_iter()
            .find(|(class, room)| {
                *room && self.due[*class].first().is_some_and(|(at, _)| *at == due)
            });
        let (class, _) = class?;
        let (_, name) = self.due[class].pop_first()?;
        let entry = self.entries.get_mut(&name)?;
        if let Some(wrapper) = entry.watched.wrapper()
            && !room.more
        {
            let hung = self.hung.values().filter(|other| *other == wrapper).count();
            if hung > 0 {
                let why = crowd(wrapper, hung);
                self.answered(&name, Answer::Unsure(why), now);
                return None;
            }
        }
        if !entry.hung.is_empty() && (now < entry.not_before || !room.again) {
            // Another session would hang too, most likely.
            let within = std::time::Duration::from_millis(entry.watched.schedule.timeout);
            let failure = Failure::timeout(within);
            self.answered(&name, Answer::Failed(failure), now);
            return None;
        }
        let health = entry.health.asked();
        if entry.health.breaker != health.breaker {
            self.changed.insert(name);
        }
        entry.health = health;
        self.number += 1;
        entry.probe = Some(self.number);
        let others = u32::try_from(entry.hung.len()).unwrap_or(u32::MAX);
        // So that there are a dozen after a day, and not thousands.
        let backoff = Backoff::new(entry.watched.schedule.interval, u64::MAX);
        let pause = backoff.pause(others.saturating_add(2));
        entry.not_before = now.saturating_add(pause);
        self.running[class].insert(self.number);
        Some((self.number, entry.watched.clone()))
    }

    /// How many sessions are busy.
    pub fn busy(&self) -> Busy {
        Busy {
            well: self.running[WELL].len(),
            lost: self.running[LOST].len(),
            hung: self.hung.len(),
        }
    }

    /// A probe takes long: it is no longer one of those that keep others waiting.
    pub fn slow(&mut self, number: u64) {
        if self.running[WELL].remove(&number) {
            self.running[LOST].insert(number);
        }
    }

    /// What a probe found; whether its source was lost or is back.
    pub fn found(&mut self, number: u64, name: &str, answer: Answer, now: u64) -> Option<Turn> {
        for running in &mut self.running {
            running.remove(&number);
        }
        let mut entry = self.entries.get_mut(name);
        if matches!(&answer, Answer::Failed(failure) if failure.kind == Kind::Timeout) {
            // Until its session says that it is over.
            let wrapper = entry.as_ref().and_then(|entry| entry.watched.wrapper());
            self.hung
                .insert(number, wrapper.unwrap_or_default().to_owned());
            if let Some(entry) = &mut entry {
                entry.hung.insert(number);
            }
        }
        let entry = entry?;
        // It may be about a target that is not wanted any more.
        if entry.probe != Some(number) {
            return None;
        }
        entry.probe = None;
        self.answered(name, answer, now)
    }

    fn answered(&mut self, name: &str, answer: Answer, now: u64) -> Option<Turn> {
        let mut turn = None;
        self.change(name, |entry| {
            entry.is_unknown = false;
            let facts = &mut entry.facts;
            facts.checked = Some(now);
            let outcome = match answer {
                Answer::There(latency) => {
                    // What hangs is of another time.
                    entry.hung.clear();
                    facts.latency = Some(latency.as_secs_f64() * 1000.0);
                    Outcome::Answered
                }
                Answer::Failed(failure) => {
                    facts.failure = Some(failure.one_line());
                    Outcome::Failed(failure.kind)
                }
                Answer::Unsure(text) => {
                    facts.failure = Some(text);
                    Outcome::Unsure
                }
            };
            (entry.health, turn) = entry.health.after(outcome, now, &entry.watched.schedule);
            facts.turns.extend(turn);
            facts.asked = facts.asked.map(|_| Asked::Known);
        });
        turn
    }

    /// A probe's session is free again.
    pub fn over(&mut self, number: u64, name: &str, now: u64) {
        for running in &mut self.running {
            running.remove(&number);
        }
        self.hung.remove(&number);
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.hung.remove(&number);
        if entry.probe != Some(number) {
            return;
        }
        entry.probe = None;
        // The hub was not there: that says nothing of the source.
        self.change(name, |entry| {
            if entry.health.breaker == Breaker::HalfOpen {
                entry.health.breaker = Breaker::Open;
            }
            entry.health.next = Some(now + NO_SESSION);
        });
    }

    /// Whether something is to be written.
    pub fn is_changed(&self) -> bool {
        !self.changed.is_empty() || !self.forgotten.is_empty()
    }

    /// What is to be written.
    pub fn page(&mut self, now: u64) -> Page {
        let mut rows = Vec::new();
        for name in take(&mut self.changed) {
            if let Some(entry) = self.entries.get_mut(&name) {
                let facts = entry.facts.taken();
                let mut health = entry.health;
                if entry.is_unknown {
                    health.reachable = None;
                }
                rows.push(Row {
                    name,
                    health,
                    facts,
                });
            }
        }
        rows.extend(take(&mut self.forgotten).into_iter().map(|name| Row {
            name,
            health: Health::default(),
            facts: Facts::default(),
        }));
        Page { rows, now }
    }

    /// It was not written: all of it is still to be.
    pub fn not_written(&mut self, page: Page) {
        for row in page.rows {
            match self.entries.get_mut(&row.name) {
                Some(entry) => {
                    entry.facts.put_back(row.facts);
                    self.changed.insert(row.name);
                }
                None => drop(self.forgotten.insert(row.name)),
            }
        }
    }

    /// Changes an entry, which is then to be written and may be due at another time.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut Entry)) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        let out = |entry: &Entry, due: &mut [BTreeSet<(u64, String)>; 2]| {
            if let Some(next) = entry.health.next {
                for due in due {
                    due.remove(&(next, name.to_owned()));
                }
            }
        };
        out(entry, &mut self.due);
        change(entry);
        entry.put(name, &mut self.due);
        self.changed.insert(name.to_owned());
        true
    }
}

impl Entry {
    fn again(&mut self, now: u64) {
        self.health = self.health.again(now);
        // What a probe says that began before does not count.
        self.probe = None;
        self.not_before = now;
    }

    fn put(&self, name: &str, due: &mut [BTreeSet<(u64, String)>; 2]) {
        let class = match self.health.reachable {
            Some(false) => LOST,
            _ => WELL,
        };
        if let Some(next) = self.health.next.filter(|_| self.probe.is_none()) {
            due[class].insert((next, name.to_owned()));
        }
    }
}

impl Facts {
    /// What is to be written of them; who waits for an answer that is not there waits on.
    fn taken(&mut self) -> Self {
        let waits = self.asked.filter(|asked| *asked == Asked::Waiting);
        let mut facts = take(self);
        if waits.is_some() {
            facts.asked = None;
            self.asked = waits;
        }
        facts
    }

    fn put_back(&mut self, mut older: Self) {
        // What was found before the target changed is not told any more.
        if self.forget {
            self.asked = self.asked.or(older.asked);
            return;
        }
        self.forget = older.forget;
        self.checked = self.checked.or(older.checked);
        self.latency = self.latency.or(older.latency);
        self.failure = take(&mut self.failure).or(older.failure);
        self.asked = self.asked.or(older.asked);
        older.turns.append(&mut self.turns);
        self.turns = older.turns;
    }
}

impl Page {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// As `spcd.publish_health` takes it.
    pub fn json(&self) -> Value {
        let seconds = |time: u64| time as f64 / 1000.0;
        let row = |row: &Row| {
            let Row {
                name,
                health,
                facts,
            } = row;
            let mut json = json!({
                "name": name,
                "forget": facts.forget,
                "reachable": health.reachable,
                "attempts": health.attempts,
                "breaker": health.breaker,
                "checked": facts.checked.map(|at| seconds(self.now.saturating_sub(at))),
                "latency": facts.latency,
                "failure": facts.failure,
                "next": health.next.map(|at| seconds(at.saturating_sub(self.now))),
            });
            if !facts.turns.is_empty() {
                json["health"] = json!(facts.turns);
            }
            json
        };
        Value::Array(self.rows.iter().map(row).collect())
    }

    /// Whom somebody wanted to be asked, now that it is written.
    pub fn told(self) -> impl Iterator<Item = News> {
        let known = |row: &Row| row.facts.asked == Some(Asked::Known);
        (self.rows.into_iter())
            .filter(known)
            .map(|row| News::Asked(row.name))
    }
}

#[cfg(test)]
mod tests;
