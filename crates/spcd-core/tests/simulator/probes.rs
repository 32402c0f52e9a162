//! The probes of sources.

use std::time::Duration;

use spcd_core::health::{FailureKind, HealthChange, ProbeAnswer, ProbeFailure};
use spcd_core::scheduler::{Event, MAX_HEALTHY_PROBES, ProbeCommand};

use crate::script::Behaviour;
use crate::world::{MAX_LOST, Timer, World};

impl World {
    pub fn tell_probes(&mut self, command: ProbeCommand) -> Result<(), String> {
        let mut unwatched = Vec::new();
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let now = self.now - daemon.began;
        match command {
            ProbeCommand::Watch { watched, importing } => {
                let random = &mut self.random;
                let first = random.below(30_000);
                daemon
                    .probes
                    .watch(watched, &importing, now, |_| now + first);
            }
            ProbeCommand::Request(names) => {
                for name in names {
                    if !daemon.probes.request(&name, now) {
                        unwatched.push(name);
                    }
                }
            }
            ProbeCommand::ImportEnded { name, answered } => {
                daemon.probes.import_ended(&name, answered, now);
            }
            ProbeCommand::CredentialsRejected {
                name,
                target_hash,
                error,
                is_requested,
            } => {
                let kind = FailureKind::Authentication;
                let failure = ProbeFailure { kind, text: error };
                let probes = &mut daemon.probes;
                probes.credentials_rejected(&name, &target_hash, failure, is_requested, now);
            }
        }
        for name in unwatched {
            self.event(Event::ProbeAnswered(name))?;
        }
        Ok(())
    }

    pub fn run_probes(&mut self) -> Result<(), String> {
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let (now, epoch) = (self.now - daemon.began, daemon.epoch);
        if daemon.probes.write_at().is_some_and(|at| at <= now) {
            if epoch != self.hub.epoch {
                // The task that probes does not write any more.
                self.die();
                return Ok(());
            }
            let batch = daemon.probes.take_batch(now);
            if self.hub.is_full {
                daemon.probes.write_failed(batch, now);
                return Ok(());
            }
            for row in batch.json().as_array().into_iter().flatten() {
                if let (Some(name), Some(is)) = (row["name"].as_str(), row["reachable"].as_bool()) {
                    self.hub.reachable.insert(name.to_owned(), is);
                }
            }
            for name in batch.answered_requests() {
                self.event(Event::ProbeAnswered(name))?;
            }
            return Ok(());
        }
        let Some((number, watched)) = daemon.probes.start(false, now) else {
            return Ok(());
        };
        let name = watched.connection.name.clone();
        let target = watched.connection.target_hash().to_owned();
        (daemon.running_probes).insert(number, (name.clone(), target.clone()));
        if daemon.running_probes.len() > MAX_HEALTHY_PROBES + MAX_LOST {
            return Err("too many probes run".to_owned());
        }
        self.send_credentials(&name, &target, "a probe")?;
        let pause = match self.behaviour(&name) {
            Behaviour::Hangs => watched.schedule.timeout,
            Behaviour::IsSlow => 1_500,
            _ => self.random.skewed(1, 500),
        };
        if pause > 1_000 {
            self.after(1_000, Timer::ProbeSlow(epoch, number));
        }
        self.after(pause, Timer::Probed(epoch, number));
        Ok(())
    }

    pub fn probed(&mut self, number: u64) -> Result<(), String> {
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let epoch = daemon.epoch;
        let Some((name, target)) = daemon.running_probes.remove(&number) else {
            return Ok(());
        };
        let mut over = 0;
        let answer = match self.behaviour(&name) {
            Behaviour::Answers | Behaviour::IsSlow | Behaviour::Crashes => {
                ProbeAnswer::Reachable(Duration::from_millis(3))
            }
            Behaviour::Hangs => {
                over = self.random.skewed(0, 100_000);
                ProbeAnswer::Failed(ProbeFailure::timeout(Duration::from_secs(10)))
            }
            Behaviour::Fails(kind) => {
                if kind == FailureKind::Authentication {
                    self.rejected(&name, &target);
                }
                let text = kind.as_str().to_owned();
                ProbeAnswer::Failed(ProbeFailure { kind, text })
            }
        };
        self.note(|| format!("probe {number} of {name}: {answer:?}"));
        let is_rejected = matches!(&answer, ProbeAnswer::Failed(failure)
            if failure.kind == FailureKind::Authentication);
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let now = self.now - daemon.began;
        let turn = daemon.probes.answered(number, &name, answer, now);
        self.after(over, Timer::ProbeOver(epoch, number, name.clone()));
        if is_rejected {
            self.event(Event::CredentialsRejected {
                name: name.clone(),
                target_hash: target,
                error: "rejected".to_owned(),
            })?;
        }
        match turn {
            Some(HealthChange::Restored) => self.event(Event::SourceRestored(name)),
            _ => Ok(()),
        }
    }
}
