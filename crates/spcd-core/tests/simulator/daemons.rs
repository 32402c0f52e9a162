//! The daemons: the one that leads, and an earlier leader that does not know yet that it lost.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::scheduler::{
    Event, Failure, NextAttempt, ProbeScheduler, SessionBudget, Start, State,
};

use crate::files::ModelFile;
use crate::pauses::Pauses;
use crate::permits::SESSIONS;
use crate::world::{MAX_LOST, ModelJob, Timer, World};

pub struct Daemon {
    pub epoch: u64,
    pub state: State,
    pub began: u64,
    pub jobs: BTreeMap<String, ModelJob>,
    pub next_job: u64,
    pub budget: SessionBudget,
    pub probes: ProbeScheduler,
    pub running_probes: BTreeMap<u64, (String, String)>,
    pub drift: Option<u64>,
    pub drift_again: Option<u64>,
    pub ended: BTreeSet<String>,
    pub file: Option<ModelFile>,
    pub pauses: Pauses,
    /// Targets whose credentials were rejected since a client last asked for another attempt.
    pub rejected: BTreeSet<(String, String)>,
}

impl World {
    /// Lets the earlier leader act.
    pub fn as_earlier(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        std::mem::swap(&mut self.daemon, &mut self.earlier);
        let result = act(self);
        std::mem::swap(&mut self.daemon, &mut self.earlier);
        result
    }

    /// Lets each daemon act.
    pub fn each_daemon(
        &mut self,
        act: impl Fn(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        act(self)?;
        match self.earlier.is_some() {
            true => self.as_earlier(act),
            false => Ok(()),
        }
    }

    pub fn wake(&mut self) -> Result<(), String> {
        self.each_daemon(|world| world.event(Event::Woken))
    }

    pub fn files_saved(&mut self) -> Result<(), String> {
        self.each_daemon(|world| world.event(Event::FilesChanged))
    }

    /// The daemon that acts ends. Where it led, another one leads soon.
    pub fn die(&mut self) {
        let Some(daemon) = self.daemon.take() else {
            return;
        };
        let epoch = daemon.epoch;
        self.note(|| format!("the daemon of epoch {epoch} is gone"));
        self.timers.retain(|_, timer| timer.epoch() != Some(epoch));
        if epoch == self.hub.epoch {
            let pause = self.random.skewed(100, 10_000);
            self.after(pause, Timer::Lead);
        }
    }

    /// The server's process ends, and with it every session.
    pub fn crash_server(&mut self) {
        self.die();
        std::mem::swap(&mut self.daemon, &mut self.earlier);
        self.die();
        std::mem::swap(&mut self.daemon, &mut self.earlier);
    }

    /// Another daemon leads, and the leader does not notice it for a while.
    pub fn usurp(&mut self) -> Result<(), String> {
        let Some(daemon) = self.daemon.take() else {
            return Ok(());
        };
        self.end_earlier();
        let pause = self.random.skewed(1, 15_000);
        self.after(pause, Timer::Dethroned(daemon.epoch));
        self.earlier = Some(daemon);
        self.lead();
        self.event(Event::Idle)
    }

    /// The earlier leader notices that another one leads.
    pub fn end_earlier(&mut self) {
        std::mem::swap(&mut self.daemon, &mut self.earlier);
        self.die();
        std::mem::swap(&mut self.daemon, &mut self.earlier);
    }

    /// Whether the daemon that acts is the leader.
    pub fn leads(&self) -> bool {
        let epoch = self.hub.epoch;
        self.daemon.as_ref().is_some_and(|one| one.epoch == epoch)
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
            budget: SessionBudget::new(SESSIONS),
            probes: ProbeScheduler::new(self.hub.reachable.clone(), MAX_LOST),
            running_probes: BTreeMap::new(),
            drift: None,
            drift_again: None,
            ended: BTreeSet::new(),
            file: None,
            pauses: Pauses::default(),
            rejected: BTreeSet::new(),
        });
    }
}

impl Daemon {
    /// When it acts although nothing happens to it.
    pub fn next_event(&self, now: u64) -> u64 {
        let wake = self.began + self.state.wake_at();
        self.next_probe_event(now)
            .map_or(wake, |probe| probe.min(wake))
    }

    pub fn next_probe_event(&self, now: u64) -> Option<u64> {
        let start = self.probes.next_start(now - self.began);
        let next = start.into_iter().chain(self.probes.write_at()).min();
        next.map(|at| self.began + at)
    }
}
