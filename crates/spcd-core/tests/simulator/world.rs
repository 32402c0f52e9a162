//! The world around the scheduler: it carries out commands in any order, late, or not at all.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use spcd_core::config::{DesiredState, SourceFile, load_plain};
use spcd_core::health::FailureKind;
use spcd_core::planner::Work;
use spcd_core::scheduler::{self, Action, DriftReport, Event, PermitKind, Request, Urgency};

use crate::daemons::Daemon;
use crate::hub::{Hub, HubRequest};
use crate::random::Random;
use crate::script::{AGGREGATOR, Act, Behaviour, Definition, FILE, NAMES, ROLES};

/// The number of concurrent probes of sources that did not answer.
pub const MAX_LOST: usize = 2;
/// What a job says that met a lock.
pub const ANOTHER_SESSION: &str = "another session";
/// How long an import may take.
pub const DEADLINE: u64 = 60_000;

/// Maximum number of desired states that are kept.
const MAX_LOADED: usize = 20_000;

type Loaded = BTreeMap<BTreeMap<usize, Definition>, Arc<DesiredState>>;

thread_local! {
    static LOADED: RefCell<Loaded> = const { RefCell::new(BTreeMap::new()) };
}

pub struct World {
    pub random: Random,
    pub now: u64,
    pub hub: Hub,
    pub files: BTreeMap<usize, Definition>,
    /// By connection; an aggregator has none.
    pub sources: [ModelSource; NAMES.len()],
    /// When the csv file last changed.
    pub file_changed_at: u64,
    /// The daemon that acts: the leader, unless an earlier one has its turn.
    pub daemon: Option<Daemon>,
    /// An earlier leader that does not know yet that another one leads.
    pub earlier: Option<Daemon>,
    pub timers: BTreeMap<(u64, u64), Timer>,
    pub next_timer: u64,
    /// Faults may happen.
    pub has_faults: bool,
    pub desired: Option<(BTreeMap<usize, Definition>, Arc<DesiredState>)>,
    pub passes: u64,
    pub trace: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy)]
pub struct ModelSource {
    pub behaviour: Behaviour,
    pub shape: u64,
}

pub struct ModelJob {
    pub number: u64,
    pub urgency: Urgency,
    /// The permits that it has.
    pub permits: Vec<PermitKind>,
    pub asked_at: u64,
    pub work: Work,
    /// What its source answered, once it was asked.
    pub answer: Option<ModelSource>,
    /// It is too late to cancel it.
    pub is_writing: bool,
    pub is_cancelled: bool,
}

#[derive(Debug)]
pub enum Timer {
    Lead,
    /// An earlier leader notices that another one leads.
    Dethroned(u64),
    Ask(u64, String, u64),
    /// The source has not answered quickly.
    Slow(u64, String, u64),
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
            }; NAMES.len()],
            file_changed_at: 0,
            daemon: None,
            earlier: None,
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
            let daemon = |daemon: &Option<Daemon>| {
                let daemon = daemon.as_ref()?;
                Some(daemon.next_event(self.now))
            };
            let (leader, earlier) = (daemon(&self.daemon), daemon(&self.earlier));
            let next = timer.into_iter().chain(leader).chain(earlier).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = self.now.max(until);
                return Ok(is_enough(self));
            };
            self.now = self.now.max(next);
            if timer == Some(next) {
                if let Some((_, timer)) = self.timers.pop_first() {
                    self.timer(timer)?;
                }
            } else if leader == Some(next) {
                self.awake()?;
            } else {
                self.as_earlier(Self::awake)?;
            }
        }
    }

    /// Does what the daemon that acts has to do by now.
    fn awake(&mut self) -> Result<(), String> {
        let now = self.now;
        let probe = self
            .daemon
            .as_ref()
            .and_then(|one| one.next_probe_event(now));
        match probe.is_some_and(|probe| probe <= now) {
            true => self.run_probes(),
            false => self.event(Event::Woken),
        }
    }

    // What happens from outside.

    pub fn act(&mut self, act: &Act) -> Result<(), String> {
        self.note(|| format!("-- {act:?}"));
        match act {
            Act::Write(index, definition) => {
                self.files.insert(*index, *definition);
                self.forgive(|name| name == NAMES[*index]);
                self.files_saved()?;
            }
            Act::Remove(index) => {
                self.files.remove(index);
                self.files_saved()?;
            }
            Act::Source(index, behaviour) => {
                self.sources[*index].behaviour = *behaviour;
                self.changed(*index)?;
            }
            Act::Reshape(index) => {
                self.sources[*index].shape += 1;
                self.changed(*index)?;
            }
            Act::Append => self.changed(FILE)?,
            Act::Alter(index) | Act::Touch(index) | Act::Revoke(index) => {
                if let Some(objects) = self.hub.objects.get_mut(NAMES[*index]) {
                    objects.version += 1;
                    match act {
                        Act::Alter(_) => objects.is_damaged = true,
                        Act::Revoke(_) => objects.are_tables_readable = false,
                        _ => {}
                    }
                }
            }
            Act::Readers(is_there) => self.hub.set_readers(*is_there),
            Act::Role(index, change) => self.hub.change_role(ROLES[*index], *change),
            Act::RefusePaths(is_refused) => self.hub.refuses_paths = *is_refused,
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
            Act::Usurp => self.usurp()?,
            Act::OnlyHangs => self.only_hangs()?,
            Act::RefuseExtension(is_refused) => self.hub.refuses_extension = *is_refused,
        }
        Ok(())
    }

    /// A source changed: a file that does is noticed.
    fn changed(&mut self, index: usize) -> Result<(), String> {
        if index != FILE {
            return Ok(());
        }
        self.file_changed_at = self.now;
        self.file_changed()
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
        self.wake()
    }

    /// Hands an event to the scheduler, and then an idle moment.
    pub fn event(&mut self, event: Event) -> Result<(), String> {
        self.handle(event)?;
        for _ in 0..10 {
            let is_due = |daemon: &Daemon| daemon.state.is_pass_due();
            if !self.daemon.as_ref().is_some_and(is_due) {
                return self.check_pauses();
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
            let told = match trace && !matches!(event, Event::AllObserved(_)) {
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

    /// Returns what the files want. What files of the same text meant before is not worked out again.
    pub fn desired(&mut self) -> Arc<DesiredState> {
        if let Some((files, desired)) = &self.desired
            && *files == self.files
        {
            return desired.clone();
        }
        let desired = LOADED.with_borrow_mut(|loaded| {
            if loaded.len() > MAX_LOADED {
                loaded.clear();
            }
            let load = || {
                let text: String = self.files.iter().map(block).collect();
                let source = SourceFile {
                    path: "a.spc".into(),
                    text: Ok(text),
                };
                Arc::new(load_plain(&[source]))
            };
            loaded
                .entry(self.files.clone())
                .or_insert_with(load)
                .clone()
        });
        self.desired = Some((self.files.clone(), desired.clone()));
        desired
    }

    pub fn timer(&mut self, timer: Timer) -> Result<(), String> {
        let epoch = |daemon: &Option<Daemon>| daemon.as_ref().map(|daemon| daemon.epoch);
        match timer.epoch() {
            None => {
                self.lead();
                self.event(Event::Idle)
            }
            of if of == epoch(&self.daemon) => self.timer_of_daemon(timer),
            of if of == epoch(&self.earlier) => {
                self.as_earlier(|world| world.timer_of_daemon(timer))
            }
            _ => Ok(()),
        }
    }

    fn timer_of_daemon(&mut self, timer: Timer) -> Result<(), String> {
        match timer {
            Timer::Lead => {}
            Timer::Dethroned(_) => self.die(),
            // What asks no source writes at once.
            Timer::Ask(_, name, number) if !self.needs_permits(&name) => self.ask(&name, number)?,
            Timer::Ask(_, name, number) => self.acquire(&name, number)?,
            Timer::Slow(_, name, number) => self.slow(&name, number)?,
            Timer::End(_, name, number) => self.end(&name, number)?,
            Timer::Drift(_) => self.drift_answered()?,
            Timer::ProbeSlow(_, number) => {
                if let Some(daemon) = &mut self.daemon {
                    daemon.probes.slow(number);
                }
            }
            Timer::Probed(_, number) => self.probed(number)?,
            Timer::ProbeOver(_, number, name) => {
                if let Some(daemon) = &mut self.daemon {
                    let now = self.now - daemon.began;
                    daemon.probes.session_ended(number, &name, now);
                }
            }
        }
        Ok(())
    }

    pub fn drift_answered(&mut self) -> Result<(), String> {
        let names = self.hub.drifted();
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
        if self.behaviour(name) != Behaviour::Fails(FailureKind::Authentication) {
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

impl Timer {
    /// The epoch of the daemon that it concerns.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Self::Lead => None,
            Self::Dethroned(epoch)
            | Self::Ask(epoch, ..)
            | Self::Slow(epoch, ..)
            | Self::End(epoch, ..)
            | Self::Drift(epoch)
            | Self::ProbeSlow(epoch, _)
            | Self::Probed(epoch, _)
            | Self::ProbeOver(epoch, ..) => Some(*epoch),
        }
    }
}

fn block((index, definition): (&usize, &Definition)) -> String {
    let name = NAMES[*index];
    let schema = match definition.enabled {
        true => "enabled",
        false => "disabled",
    };
    let (plugin, own) = match *index {
        AGGREGATOR => {
            let own = "  type = \"aggregator\"\n  connections = [\"*\"]\n";
            ("postgres", own.to_owned())
        }
        FILE => {
            let own = format!("  paths = [\"/files/{}.csv\"]\n", definition.database);
            ("csv", own)
        }
        _ => {
            let own = format!(
                "  host = \"h\"\n  user = \"u\"\n  dbname = \"d{}\"\n  password = \"p\"\n",
                definition.database
            );
            ("postgres", own)
        }
    };
    format!(
        "connection \"{name}\" {{\n  plugin = \"{plugin}\"\n{own}  import_schema = \"{schema}\"\n}}\n"
    )
}
