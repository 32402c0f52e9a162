//! Carrying out the scheduler's commands.

use std::collections::BTreeMap;

use spcd_core::health::ProbeOptions;
use spcd_core::planner::{Task, Work};
use spcd_core::scheduler::{Action, Command, DriftReport, Event, PassInput, Request, Urgency};

use crate::hub::HubRequest;
use crate::script::{AGGREGATOR, FILE, NAMES};
use crate::world::{Failed, ModelJob, Timer, World};

impl World {
    /// Begins to write, as every transaction does: by asserting that this daemon leads.
    pub fn write(&mut self) -> Result<(), Failed> {
        if !self.leads() || self.has_faults && self.random.once_in(200) {
            return Err(Failed::Lost);
        }
        match self.hub.is_full {
            true => Err(Failed::Full),
            false => Ok(self.begin_write()?),
        }
    }

    /// Begins a transaction that writes.
    pub fn begin_write(&mut self) -> Result<(), String> {
        let epoch = self.daemon.as_ref().map_or(0, |daemon| daemon.epoch);
        self.hub.begin_write(epoch)
    }

    pub fn execute(&mut self, command: Command) -> Result<Option<Event>, Failed> {
        Ok(Some(match command {
            Command::ReadRequests { open } => self.read_requests(&open),
            Command::ReadFiles => Event::FilesRead(self.desired()),
            Command::Observe(names) => {
                let desired = self.desired().only(&names);
                let mut observed = self.hub.observe(&desired, None);
                (observed.connections).retain(|name, _| desired.connections.contains_key(name));
                Event::Observed(Box::new(observed))
            }
            Command::ObserveAll {
                waits_for_drift,
                drift,
                is_awaited,
            } => self.look(waits_for_drift, drift, is_awaited),
            Command::SetSearchPath(change) => self.set_search_path(change)?,
            Command::CreateExtensions(names) => {
                self.write()?;
                let mut refused = BTreeMap::new();
                match self.hub.refuses_extension {
                    true => refused.extend(names.into_iter().map(|name| (name, "no".to_owned()))),
                    false => self.hub.has_extension = true,
                }
                Event::ExtensionsCreated(refused)
            }
            Command::ChangeLanes(_) => Event::LanesChanged(BTreeMap::new()),
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
                refresh_fingerprints,
            } => {
                // The pass was planned some time ago.
                self.now += self.random.skewed(0, 200);
                // A generation alone is no write.
                if !rows.is_empty() || !refresh_fingerprints.is_empty() || diagnostics.is_some() {
                    self.write()?;
                }
                let desired = self.desired();
                for (name, found) in &refresh_fingerprints {
                    self.hub.record_fingerprint(name, found.as_deref())?;
                }
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
            Command::AdmitReaders => {
                self.write()?;
                self.hub.is_admitted = true;
                return Ok(None);
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
            Command::Start { work, urgency, .. } => self.start(work, urgency)?,
            Command::Prioritize(name) => {
                if let Some(daemon) = &mut self.daemon
                    && let Some(job) = daemon.jobs.get_mut(&name)
                {
                    job.urgency = Urgency::Requested;
                    daemon.budget.prioritize(job.number);
                }
            }
            Command::Cancel(name) => self.cancel(&name)?,
            Command::Probe(command) => self.tell_probes(command)?,
            Command::FilesUnread(name) => {
                let daemon = self.daemon.as_mut().filter(|_| name == NAMES[FILE]);
                if let Some(file) = daemon.and_then(|daemon| daemon.file.as_mut()) {
                    file.unread();
                }
            }
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
        // A retry may end the server once more: only a refresh of it is left for the next leader.
        if self.leads() {
            for (id, _) in &requests {
                if let Some(HubRequest { request, .. }) = self.hub.requests.get_mut(id)
                    && request.action == Action::Retry
                {
                    request.action = Action::Refresh;
                }
            }
        }
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
        for daemon in [&mut self.daemon, &mut self.earlier].into_iter().flatten() {
            daemon.rejected.retain(|(name, _)| !is_forgiven(name));
        }
    }

    pub fn look(&mut self, waits: bool, drift: Option<DriftReport>, is_awaited: bool) -> Event {
        self.now += self.random.skewed(0, 200);
        if let Some(daemon) = &mut self.daemon {
            daemon.pauses.looked(self.now);
        }
        let drift = match (waits, &mut self.daemon) {
            (true, Some(daemon)) => daemon.drift.take().map(|pass| DriftReport {
                names: self.hub.drifted(),
                pass,
                took: 5,
            }),
            _ => drift,
        };
        let desired = self.desired();
        let files = self.look_at_file(&desired, is_awaited);
        let drifted = drift
            .as_ref()
            .map(|drift| drift.names.keys().cloned().collect());
        let observed = self.hub.observe(&desired, drifted.as_ref());
        Event::AllObserved(Box::new(PassInput {
            desired,
            observed,
            diagnostics: serde_json::Value::Array(Vec::new()),
            health: ProbeOptions::default(),
            files,
            drift,
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

    pub fn start(&mut self, work: Work, urgency: Urgency) -> Result<(), String> {
        let name = work.name.clone();
        let turn = self.random.skewed(0, 2_000);
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        if name == NAMES[FILE]
            && matches!(work.task, Task::Import(_))
            && let Some(file) = &mut daemon.file
        {
            file.reading(self.now);
        }
        daemon.next_job += 1;
        let (epoch, number) = (daemon.epoch, daemon.next_job);
        let job = ModelJob {
            number,
            urgency,
            work,
            permits: Vec::new(),
            asked_at: 0,
            answer: None,
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
        let can = matches!(job.work.task, Task::Import(_) | Task::SyncAggregator(_));
        if can && !job.is_writing {
            job.is_cancelled = true;
            let (epoch, number) = (daemon.epoch, job.number);
            self.after(pause, Timer::End(epoch, name.to_owned(), number));
        }
        Ok(())
    }
}
