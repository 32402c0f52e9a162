//! The world around the scheduler: it carries out commands in any order, late, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spcd_core::config::{Desired, Source, load_plain};
use spcd_core::health::Kind;
use spcd_core::plan::Work;
use spcd_core::scheduler::{
    self, Action, DriftReport, Event, Failure, NextAttempt, ProbeScheduler, Request, Start, State,
};

use crate::commands::looks;
use crate::hub::{Hub, HubRequest};
use crate::random::Random;
use crate::script::{AGGREGATOR, Act, Behaviour, Definition, NAMES};

/// The number of concurrent probes of sources that did not answer.
pub const MAX_LOST: usize = 2;
/// What a job says that met a lock.
pub const ANOTHER_SESSION: &str = "another session";
/// How long an import may take.
pub const DEADLINE: u64 = 60_000;

pub struct World {
    pub random: Random,
    pub now: u64,
    pub hub: Hub,
    pub files: BTreeMap<usize, Definition>,
    pub sources: [ModelSource; AGGREGATOR],
    pub daemon: Option<Daemon>,
    pub timers: BTreeMap<(u64, u64), Timer>,
    pub next_timer: u64,
    /// Faults may happen.
    pub has_faults: bool,
    pub desired: Option<(BTreeMap<usize, Definition>, Arc<Desired>)>,
    pub passes: u64,
    pub trace: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy)]
pub struct ModelSource {
    pub behaviour: Behaviour,
    pub shape: u64,
}

pub struct Daemon {
    pub epoch: u64,
    pub state: State,
    pub began: u64,
    pub jobs: BTreeMap<String, ModelJob>,
    pub next_job: u64,
    pub probes: ProbeScheduler,
    pub running_probes: BTreeMap<u64, (String, String)>,
    pub drift: Option<u64>,
    pub drift_again: Option<u64>,
    pub ended: BTreeSet<String>,
    /// Targets whose credentials were rejected since a client last asked for another attempt.
    pub rejected: BTreeSet<(String, String)>,
}

pub struct ModelJob {
    pub number: u64,
    pub work: Work,
    /// It is too late to cancel it.
    pub is_writing: bool,
    pub is_cancelled: bool,
}

#[derive(Debug)]
pub enum Timer {
    Lead,
    Ask(u64, String, u64),
    End(u64, String, u64),
    Drift(u64),
    ProbeSlow(u64, u64),
    Probed(u64, u64),
    ProbeOver(u64, u64, String),
}

/// Why a command was not carried out.
pub enum Failed {
    Full,
    Lost,
    Broken(String),
}

impl From<String> for Failed {
    fn from(what: String) -> Self {
        Self::Broken(what)
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random(seed),
            now: 0,
            hub: Hub::default(),
            files: BTreeMap::new(),
            sources: [ModelSource {
                behaviour: Behaviour::Answers,
                shape: 0,
            }; AGGREGATOR],
            daemon: None,
            timers: BTreeMap::new(),
            next_timer: 0,
            has_faults: true,
            desired: None,
            passes: 0,
            trace: None,
        };
        world.after(0, Timer::Lead);
        world
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now:>9} {}", what()));
        }
    }

    pub fn after(&mut self, pause: u64, timer: Timer) {
        self.next_timer += 1;
        self.timers
            .insert((self.now + pause, self.next_timer), timer);
    }

    /// Lets time pass until then, or until `is_enough`.
    pub fn run(&mut self, until: u64, is_enough: impl Fn(&Self) -> bool) -> Result<bool, String> {
        let mut steps = 0;
        loop {
            if is_enough(self) {
                return Ok(true);
            }
            steps += 1;
            if steps > 20_000 {
                return Err("it does not come to rest".to_owned());
            }
            let timer = self.timers.keys().next().map(|(at, _)| *at);
            let wake = self
                .daemon
                .as_ref()
                .map(|one| one.began + one.state.wake_at());
            let probe = self
                .daemon
                .as_ref()
                .and_then(|one| one.next_probe_event(self.now));
            let next = timer.into_iter().chain(wake).chain(probe).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = self.now.max(until);
                return Ok(is_enough(self));
            };
            self.now = self.now.max(next);
            if timer == Some(next) {
                if let Some((_, timer)) = self.timers.pop_first() {
                    self.timer(timer)?;
                }
            } else if probe == Some(next) {
                self.run_probes()?;
            } else {
                self.event(Event::Woken)?;
            }
        }
    }

    // What happens from outside.

    pub fn act(&mut self, act: &Act) -> Result<(), String> {
        self.note(|| format!("-- {act:?}"));
        match act {
            Act::Write(index, definition) => {
                self.files.insert(*index, *definition);
                self.forgive(|name| name == NAMES[*index]);
                self.event(Event::Woken)?;
            }
            Act::Remove(index) => {
                self.files.remove(index);
                self.event(Event::Woken)?;
            }
            Act::Source(index, behaviour) => self.sources[*index].behaviour = *behaviour,
            Act::Reshape(index) => self.sources[*index].shape += 1,
            Act::Alter(index) => {
                let name = NAMES[*index];
                let known = self.hub.rows.get(name);
                if known.is_some_and(|known| known.applied.is_some()) {
                    self.hub.drifted.insert(name.to_owned());
                }
            }
            Act::Lock(index, is_locked) => {
                let name = NAMES[*index].to_owned();
                match is_locked {
                    true => drop(self.hub.locked.insert(name)),
                    false => drop(self.hub.locked.remove(&name)),
                }
            }
            Act::Full(is_full) => self.hub.is_full = *is_full,
            Act::Request(action, index, retries_refused) => {
                let names = index.map(|index| vec![NAMES[index].to_owned()]);
                self.request(*action, names, *retries_refused)?;
            }
            Act::Kill => self.die(),
            Act::LoseSession => self.die(),
            Act::RefuseExtension(is_refused) => self.hub.refuses_extension = *is_refused,
        }
        Ok(())
    }

    pub fn request(
        &mut self,
        action: Action,
        names: Option<Vec<String>>,
        retries_refused: bool,
    ) -> Result<(), String> {
        // As the functions in SQL make them.
        let names = names.or_else(|| {
            let all = || NAMES.map(str::to_owned).to_vec();
            (action != Action::Refresh).then(all)
        });
        let request = Request {
            action,
            names,
            retries_refused: retries_refused || matches!(action, Action::Reconnect | Action::Retry),
        };
        let id = self.hub.requests.len() as i64;
        self.hub.requests.insert(
            id,
            HubRequest {
                request,
                answer: None,
            },
        );
        self.event(Event::Woken)
    }

    pub fn die(&mut self) {
        if self.daemon.take().is_some() {
            self.note(|| "the daemon is gone".to_owned());
            self.timers.clear();
            let pause = self.random.skewed(100, 10_000);
            self.after(pause, Timer::Lead);
        }
    }

    // What the daemon does.

    pub fn lead(&mut self) {
        self.hub.take_lead();
        let now = self.now;
        let crash = |(name, (hash, times, at)): (&String, &(String, u32, u64))| {
            let failure = Failure {
                target_hash: hash.clone(),
                error: "it ended the server".to_owned(),
                times: *times,
                next: NextAttempt::At(at.saturating_sub(now)),
            };
            (name.clone(), failure)
        };
        let state = State::new(Start {
            seed: self.hub.epoch,
            paused: self.hub.paused.clone(),
            crashes: self.hub.crashes.iter().map(crash).collect(),
        });
        self.daemon = Some(Daemon {
            epoch: self.hub.epoch,
            state: state.with_probes(),
            began: now,
            jobs: BTreeMap::new(),
            next_job: 0,
            probes: ProbeScheduler::new(self.hub.reachable.clone(), MAX_LOST),
            running_probes: BTreeMap::new(),
            drift: None,
            drift_again: None,
            ended: BTreeSet::new(),
            rejected: BTreeSet::new(),
        });
    }

    /// Hands an event to the scheduler, and then an idle moment.
    pub fn event(&mut self, event: Event) -> Result<(), String> {
        self.handle(event)?;
        for _ in 0..10 {
            let is_due = |daemon: &Daemon| daemon.state.is_look_due();
            if !self.daemon.as_ref().is_some_and(is_due) {
                return Ok(());
            }
            self.handle(Event::Idle)?;
        }
        Err("a pass follows another for ever".to_owned())
    }

    pub fn handle(&mut self, event: Event) -> Result<(), String> {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let (now, trace) = (self.now, self.trace.is_some());
            let Some(daemon) = &mut self.daemon else {
                return Ok(());
            };
            let told = match trace && !matches!(event, Event::Looked(_)) {
                true => format!("{event:?}"),
                false => String::new(),
            };
            let commands = scheduler::step(&mut daemon.state, event, now - daemon.began);
            self.note(|| told);
            let mut is_full = false;
            for command in commands {
                self.note(|| format!("    {command:?}"));
                match self.execute(command) {
                    Ok(event) => events.extend(event),
                    Err(Failed::Full) => is_full = true,
                    Err(Failed::Lost) => {
                        self.die();
                        return Ok(());
                    }
                    Err(Failed::Broken(what)) => return Err(what),
                }
            }
            events.extend(is_full.then_some(Event::ServerFull));
        }
        Ok(())
    }

    pub fn desired(&mut self) -> Arc<Desired> {
        if let Some((files, desired)) = &self.desired
            && *files == self.files
        {
            return desired.clone();
        }
        let text: String = self.files.iter().map(block).collect();
        let source = Source {
            path: "a.spc".into(),
            text: Ok(text),
        };
        let desired = Arc::new(load_plain(&[source]));
        self.desired = Some((self.files.clone(), desired.clone()));
        desired
    }

    pub fn timer(&mut self, timer: Timer) -> Result<(), String> {
        let epoch = self.daemon.as_ref().map(|daemon| daemon.epoch);
        match timer {
            Timer::Lead => {
                self.lead();
                self.event(Event::Idle)
            }
            Timer::Ask(of, name, number) if epoch == Some(of) => self.ask(&name, number),
            Timer::End(of, name, number) if epoch == Some(of) => self.end(&name, number),
            Timer::Drift(of) if epoch == Some(of) => self.drift_answered(),
            Timer::ProbeSlow(of, number) if epoch == Some(of) => {
                if let Some(daemon) = &mut self.daemon {
                    daemon.probes.slow(number);
                }
                Ok(())
            }
            Timer::Probed(of, number) if epoch == Some(of) => self.probed(number),
            Timer::ProbeOver(of, number, name) if epoch == Some(of) => {
                if let Some(daemon) = &mut self.daemon {
                    let now = self.now - daemon.began;
                    daemon.probes.session_ended(number, &name, now);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub fn drift_answered(&mut self) -> Result<(), String> {
        let names = looks(&self.hub.drifted);
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let Some(pass) = daemon.drift.take() else {
            return Ok(());
        };
        let again = daemon.drift_again.take();
        if names.keys().any(|name| daemon.ended.contains(name)) {
            self.ask_drift(again.unwrap_or(pass));
            return Ok(());
        }
        if let Some(pass) = again {
            self.ask_drift(pass);
        }
        let took = 5;
        self.event(Event::DriftAnswered(DriftReport { names, pass, took }))
    }

    pub fn behaviour(&self, name: &str) -> Behaviour {
        let index = NAMES.iter().position(|one| *one == name);
        let source = index.and_then(|index| self.sources.get(index));
        source.map_or(Behaviour::Answers, |source| source.behaviour)
    }

    /// A source is asked with these credentials.
    pub fn send_credentials(&mut self, name: &str, target: &str, by: &str) -> Result<(), String> {
        if self.behaviour(name) != Behaviour::Fails(Kind::Authentication) {
            return Ok(());
        }
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        match daemon
            .rejected
            .contains(&(name.to_owned(), target.to_owned()))
        {
            true => Err(format!(
                "{by} sends credentials of {name} that were rejected"
            )),
            false => Ok(()),
        }
    }

    pub fn rejected(&mut self, name: &str, target: &str) {
        if let Some(daemon) = &mut self.daemon {
            let rejected = (name.to_owned(), target.to_owned());
            daemon.rejected.insert(rejected);
        }
    }
}

impl Daemon {
    pub fn next_probe_event(&self, now: u64) -> Option<u64> {
        let start = self.probes.next_start(now - self.began);
        let next = start.into_iter().chain(self.probes.write_at()).min();
        next.map(|at| self.began + at)
    }
}

fn block((index, definition): (&usize, &Definition)) -> String {
    let name = NAMES[*index];
    let schema = match definition.enabled {
        true => "enabled",
        false => "disabled",
    };
    let own = match *index {
        AGGREGATOR => "  type = \"aggregator\"\n  connections = [\"*\"]\n".to_owned(),
        _ => format!(
            "  host = \"h\"\n  user = \"u\"\n  dbname = \"d{}\"\n  password = \"p\"\n",
            definition.database
        ),
    };
    format!(
        "connection \"{name}\" {{\n  plugin = \"postgres\"\n{own}  import_schema = \"{schema}\"\n}}\n"
    )
}
