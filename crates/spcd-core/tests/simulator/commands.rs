//! Carrying out the scheduler's commands.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::health::Options;
use spcd_core::plan::{Task, Work};
use spcd_core::scheduler::{Command, DriftReport, Event, Look, Request};

use crate::script::{AGGREGATOR, NAMES};
use crate::world::{Failed, ModelJob, Timer, World};

impl World {
    pub fn write(&mut self) -> Result<(), Failed> {
        if self.has_faults && self.random.once_in(200) {
            return Err(Failed::Lost);
        }
        match self.hub.is_full {
            true => Err(Failed::Full),
            false => {
                self.hub.writes += 1;
                Ok(())
            }
        }
    }

    pub fn execute(&mut self, command: Command) -> Result<Option<Event>, Failed> {
        Ok(Some(match command {
            Command::ReadRequests { open } => self.read_requests(&open),
            Command::Look {
                waits_for_drift,
                drift,
                ..
            } => self.look(waits_for_drift, drift),
            Command::CreateExtensions(names) => {
                let mut refused = BTreeMap::new();
                match self.hub.refuses_extension {
                    true => refused.extend(names.into_iter().map(|name| (name, "no".to_owned()))),
                    false => self.hub.has_extension = true,
                }
                Event::ExtensionsCreated(refused)
            }
            Command::RecordPause { names, is_pause } => {
                self.write()?;
                for name in &names {
                    match is_pause {
                        true => drop(self.hub.paused.insert(name.clone())),
                        false => drop(self.hub.paused.remove(name)),
                    }
                }
                Event::PausesRecorded(names)
            }
            Command::Publish {
                rows,
                diagnostics,
                touched,
            } => {
                // A generation alone is no write.
                if !rows.is_empty() || !touched.is_empty() || diagnostics.is_some() {
                    self.write()?;
                }
                let desired = self.desired();
                self.hub.publish(&rows, &desired)?;
                if diagnostics.is_some() {
                    self.hub.diagnostics = diagnostics;
                }
                self.hub.generation += 1;
                Event::Published {
                    generation: self.hub.generation,
                }
            }
            Command::Answer { id, error } => {
                self.write()?;
                let request = self.hub.requests.get_mut(&id);
                let request = request.ok_or_else(|| format!("no request {id}"))?;
                if request.answer.replace(error).is_some() {
                    return Err(format!("request {id} is answered twice").into());
                }
                Event::Answered(id)
            }
            Command::ForgetCrash(name) => {
                self.write()?;
                // It may come long after everything is as it should be.
                self.hub.writes -= 1;
                self.hub.crashes.remove(&name);
                Event::CrashForgotten(name)
            }
            command => {
                self.execute_beside(command)?;
                return Ok(None);
            }
        }))
    }

    pub fn execute_beside(&mut self, command: Command) -> Result<(), Failed> {
        match command {
            Command::AskDrift { pass, .. } => self.ask_drift(pass),
            Command::Start { work, .. } => self.start(work)?,
            Command::Cancel(name) => self.cancel(&name)?,
            Command::Probe(command) => self.tell_probes(command)?,
            Command::Report(_) => self.passes += 1,
            _ => {}
        }
        Ok(())
    }

    pub fn read_requests(&mut self, open: &[i64]) -> Event {
        let unanswered = (self.hub.requests.iter()).filter(|(_, one)| one.answer.is_none());
        let queued: Vec<(i64, Request)> = unanswered
            .map(|(id, one)| (*id, one.request.clone()))
            .collect();
        let is_crowded = queued.len() > 2;
        let requests: Vec<(i64, Request)> = (queued.into_iter().take(2))
            .filter(|(id, _)| !open.contains(id))
            .collect();
        for (_, request) in &requests {
            if request.retries_refused {
                match request.names.clone() {
                    // An aggregator stands for its members.
                    Some(names) if !names.iter().any(|name| name == NAMES[AGGREGATOR]) => {
                        self.forgive(|name| names.iter().any(|one| one == name));
                    }
                    _ => self.forgive(|_| true),
                }
            }
        }
        Event::Requested {
            requests,
            is_crowded,
        }
    }

    pub fn forgive(&mut self, is_forgiven: impl Fn(&str) -> bool) {
        if let Some(daemon) = &mut self.daemon {
            daemon.rejected.retain(|(name, _)| !is_forgiven(name));
        }
    }

    pub fn look(&mut self, waits: bool, drift: Option<DriftReport>) -> Event {
        self.now += self.random.skewed(0, 200);
        let drift = match (waits, &mut self.daemon) {
            (true, Some(daemon)) => daemon.drift.take().map(|pass| DriftReport {
                names: looks(&self.hub.drifted),
                pass,
                took: 5,
            }),
            _ => drift,
        };
        let desired = self.desired();
        let drifted = drift
            .as_ref()
            .map(|drift| drift.names.keys().cloned().collect());
        let observed = self.hub.observe(&desired, drifted.as_ref());
        Event::Looked(Box::new(Look {
            desired,
            observed,
            diagnostics: serde_json::Value::Array(Vec::new()),
            health: Options::default(),
            drift,
            ..Look::default()
        }))
    }

    pub fn ask_drift(&mut self, pass: u64) {
        let pause = self.random.skewed(1, 3_000);
        let Some(daemon) = &mut self.daemon else {
            return;
        };
        match daemon.drift {
            Some(_) => daemon.drift_again = Some(pass),
            None => {
                daemon.drift = Some(pass);
                daemon.ended.clear();
                let epoch = daemon.epoch;
                self.after(pause, Timer::Drift(epoch));
            }
        }
    }

    pub fn start(&mut self, work: Work) -> Result<(), String> {
        let name = work.name.clone();
        let turn = self.random.skewed(0, 2_000);
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        daemon.next_job += 1;
        let (epoch, number) = (daemon.epoch, daemon.next_job);
        let job = ModelJob {
            number,
            work,
            is_writing: false,
            is_cancelled: false,
        };
        if daemon.jobs.insert(name.clone(), job).is_some() {
            return Err(format!("two jobs of {name} at a time"));
        }
        self.after(turn, Timer::Ask(epoch, name, number));
        Ok(())
    }

    pub fn cancel(&mut self, name: &str) -> Result<(), String> {
        let pause = self.random.below(50);
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let Some(job) = daemon.jobs.get_mut(name) else {
            return Err(format!("no job of {name} is to be cancelled"));
        };
        let can = matches!(job.work.task, Task::Import(_) | Task::Unite(_));
        if can && !job.is_writing {
            job.is_cancelled = true;
            let (epoch, number) = (daemon.epoch, job.number);
            self.after(pause, Timer::End(epoch, name.to_owned(), number));
        }
        Ok(())
    }
}

pub fn looks(drifted: &BTreeSet<String>) -> BTreeMap<String, String> {
    drifted
        .iter()
        .map(|name| (name.clone(), String::new()))
        .collect()
}
