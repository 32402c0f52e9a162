//! What comes of jobs.

use spcd_core::health::Kind;
use spcd_core::plan::{Import, Task, Why, Work};
use spcd_core::scheduler::{Event, JobOutcome};
use spcd_protocol::Status;

use crate::hub::Made;
use crate::script::{Behaviour, NAMES};
use crate::world::{ANOTHER_SESSION, DEADLINE, Timer, World};

impl World {
    pub fn ask(&mut self, name: &str, number: u64) -> Result<(), String> {
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let epoch = daemon.epoch;
        let Some(job) = daemon.jobs.get_mut(name).filter(|job| job.number == number) else {
            return Ok(());
        };
        let target = match &job.work.task {
            _ if job.is_cancelled => return Ok(()),
            Task::Import(import) => Some(import.target_hash.clone()),
            _ => None,
        };
        let mut pause = self.random.skewed(5, 500);
        if let Some(target) = target {
            self.send_credentials(name, &target, "an import")?;
            pause += match self.behaviour(name) {
                Behaviour::Hangs => DEADLINE,
                Behaviour::IsSlow => self.random.skewed(1_000, 30_000),
                _ => 0,
            };
            self.event(Event::SourceAsked(name.to_owned()))?;
        }
        self.after(pause, Timer::End(epoch, name.to_owned(), number));
        Ok(())
    }

    pub fn end(&mut self, name: &str, number: u64) -> Result<(), String> {
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let epoch = daemon.epoch;
        let Some(job) = daemon.jobs.get_mut(name).filter(|job| job.number == number) else {
            return Ok(());
        };
        if !job.is_cancelled && !std::mem::replace(&mut job.is_writing, true) {
            let pause = self.random.skewed(1, 300);
            self.after(pause, Timer::End(epoch, name.to_owned(), number));
            return Ok(());
        }
        let Some(job) = daemon.jobs.remove(name) else {
            return Ok(());
        };
        daemon.ended.insert(name.to_owned());
        let outcome = match job.is_cancelled {
            true => JobOutcome::Cancelled,
            false => self.carry_out(name, job.work)?,
        };
        let name = name.to_owned();
        self.event(Event::JobEnded { name, outcome })
    }

    pub fn carry_out(&mut self, name: &str, work: Work) -> Result<JobOutcome, String> {
        match work.task {
            Task::Import(import) => {
                match self.behaviour(name) {
                    Behaviour::Answers | Behaviour::IsSlow => {}
                    Behaviour::Crashes => {
                        let (hash, times) = (import.target_hash, self.crashed(name) + 1);
                        let at = self.now + 60_000 * u64::from(times);
                        self.hub.crashes.insert(name.to_owned(), (hash, times, at));
                        self.die();
                        return Ok(JobOutcome::Cancelled);
                    }
                    Behaviour::Hangs => {
                        return self.failed(
                            name,
                            import.target_hash.clone(),
                            Kind::Timeout,
                            &import,
                        );
                    }
                    Behaviour::Fails(kind) => {
                        if kind == Kind::Authentication {
                            self.rejected(name, &import.target_hash);
                        }
                        return self.failed(name, import.target_hash.clone(), kind, &import);
                    }
                }
                if let Some(later) = self.blocked(name) {
                    return Ok(later);
                }
                let index = NAMES.iter().position(|one| *one == name);
                let shape = index.map_or(0, |index| self.sources[index].shape);
                let status = match import.hidden {
                    true => Status::Disabled,
                    false => Status::Ready,
                };
                let made = Made {
                    target_hash: import.target_hash,
                    shape: format!("shape {shape}"),
                    hidden: import.hidden,
                };
                self.made(name, status, made)
            }
            Task::Unite(sync) => {
                if let Some(later) = self.blocked(name) {
                    return Ok(later);
                }
                let hash = self.hub.aggregator_hash(&sync.members);
                self.hub.reads.insert(name.to_owned(), sync.members);
                let made = Made {
                    shape: hash.clone(),
                    target_hash: hash,
                    hidden: false,
                };
                self.made(name, Status::Ready, made)
            }
            Task::Drop { keep, .. } => {
                let readers = self.hub.readers(name);
                if let Some(reader) = readers.first() {
                    let in_error = |name: &&&String| {
                        let row = self.hub.rows.get(**name);
                        row.is_some_and(|row| row.status == Status::Error)
                    };
                    if readers.iter().find(in_error).is_none() {
                        return Ok(JobOutcome::Waits);
                    }
                    let error = format!("{reader} still shows it");
                    return self.write_error(name, String::new(), error, None);
                }
                if let Some(later) = self.blocked(name) {
                    return Ok(later);
                }
                self.hub.writes += 1;
                self.hub.dropped(name, keep.map(|keep| *keep))?;
                Ok(JobOutcome::Done)
            }
            Task::Grant { .. } => Ok(JobOutcome::Done),
        }
    }

    pub fn made(&mut self, name: &str, status: Status, made: Made) -> Result<JobOutcome, String> {
        Ok(match self.hub.made(name, status, made)? {
            true => {
                self.hub.writes += 1;
                JobOutcome::Done
            }
            false => JobOutcome::Same,
        })
    }

    pub fn crashed(&self, name: &str) -> u32 {
        self.hub.crashes.get(name).map_or(0, |(_, times, _)| *times)
    }

    pub fn blocked(&mut self, name: &str) -> Option<JobOutcome> {
        let is_lock = self.hub.locked.contains(name);
        (is_lock || self.hub.is_full).then(|| JobOutcome::Later {
            reason: ANOTHER_SESSION.to_owned(),
            is_lock,
        })
    }

    pub fn failed(
        &mut self,
        name: &str,
        target_hash: String,
        kind: Kind,
        import: &Import,
    ) -> Result<JobOutcome, String> {
        let error = format!("{name}: {}", kind.as_str());
        if import.why == Why::Refresh {
            return Ok(JobOutcome::Failed {
                target_hash,
                error,
                kind: Some(kind),
            });
        }
        self.write_error(name, target_hash, error, Some(kind))
    }

    pub fn write_error(
        &mut self,
        name: &str,
        target_hash: String,
        error: String,
        kind: Option<Kind>,
    ) -> Result<JobOutcome, String> {
        let known = self.hub.rows.get(name);
        let known = known.ok_or_else(|| format!("no row of {name:?}"))?;
        let says_so = known.status == Status::Error && known.error.as_ref() == Some(&error);
        if !says_so && !self.hub.is_full {
            self.hub.writes += 1;
            for status in match known.status {
                Status::Error => vec![Status::Error],
                status => Status::route(Some(status), Status::Error),
            } {
                self.hub.set_status(name, status, Some(error.clone()))?;
            }
        }
        Ok(JobOutcome::Failed {
            target_hash,
            error,
            kind,
        })
    }
}
