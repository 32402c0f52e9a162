//! What comes of jobs.

use spcd_core::aggregator;
use spcd_core::health::FailureKind;
use spcd_core::observed::ConfigSnapshot;
use spcd_core::planner::{AggregatorSync, Import, Reason, Task};
use spcd_core::scheduler::{Event, JobOutcome};
use spcd_protocol::Status;

use crate::hub::Made;
use crate::objects::schema_hash;
use crate::script::{Behaviour, FILE, NAMES};
use crate::world::{ANOTHER_SESSION, DEADLINE, ModelJob, ModelSource, Timer, World};

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
        let index = NAMES.iter().position(|one| *one == name);
        job.answer = index.map(|index| self.sources[index]);
        let mut pause = self.random.skewed(5, 500);
        job.asked_at = self.now;
        if let Some(target) = target {
            self.send_credentials(name, &target, "an import")?;
            self.expect_answer(epoch, name, number);
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
            let permits = std::mem::take(&mut job.permits);
            daemon.budget.answered((self.now - job.asked_at) * 1_000);
            self.give_back(permits)?;
            let pause = self.random.skewed(1, 300);
            self.after(pause, Timer::End(epoch, name.to_owned(), number));
            return Ok(());
        }
        let Some(mut job) = daemon.jobs.remove(name) else {
            return Ok(());
        };
        let permits = std::mem::take(&mut job.permits);
        daemon.ended.insert(name.to_owned());
        let outcome = match job.is_cancelled {
            true => JobOutcome::Cancelled,
            false => self.carry_out(name, job)?,
        };
        self.give_back(permits)?;
        if let Some(daemon) = &mut self.daemon {
            daemon.pauses.job_ended(name, &outcome, self.now);
        }
        let name = name.to_owned();
        self.event(Event::JobEnded { name, outcome })
    }

    fn carry_out(&mut self, name: &str, job: ModelJob) -> Result<JobOutcome, String> {
        match job.work.task {
            Task::Import(import) => self.import(name, *import, job.answer),
            Task::SyncAggregator(sync) => self.sync_aggregator(name, *sync),
            Task::Drop { keep, .. } => self.drop_connection(name, keep.map(|keep| *keep)),
            Task::Grant { .. } => self.grant(name),
        }
    }

    fn import(
        &mut self,
        name: &str,
        import: Import,
        answer: Option<ModelSource>,
    ) -> Result<JobOutcome, String> {
        let Some(index) = NAMES.iter().position(|one| *one == name) else {
            return Err(format!("{name} has no source"));
        };
        // A file that changes after it was read is read again.
        let source = match index {
            FILE => answer.unwrap_or(self.sources[index]),
            _ => self.sources[index],
        };
        match source.behaviour {
            Behaviour::Answers | Behaviour::IsSlow => {}
            Behaviour::Crashes => {
                let (hash, times) = (import.target_hash, self.crashed(name) + 1);
                let at = self.now + 60_000 * u64::from(times);
                self.hub.crashes.insert(name.to_owned(), (hash, times, at));
                self.crash_server();
                return Ok(JobOutcome::Cancelled);
            }
            Behaviour::Hangs => return self.failed(name, FailureKind::Timeout, &import),
            Behaviour::Fails(kind) => {
                if kind == FailureKind::Authentication {
                    self.rejected(name, &import.target_hash);
                }
                return self.failed(name, kind, &import);
            }
        }
        if let Some(blocked) = self.blocked(name) {
            return Ok(blocked);
        }
        let status = match import.hidden {
            true => Status::Disabled,
            false => Status::Ready,
        };
        let made = Made {
            target_hash: import.target_hash,
            shape: source.shape,
            schema_hash: schema_hash(source.shape, import.target.wrapper_traits()),
            hidden: import.hidden,
            is_refresh: import.reason == Reason::Refresh,
            is_looked_at_again: import.reason == Reason::Drift,
        };
        self.made(name, status, made)
    }

    fn sync_aggregator(&mut self, name: &str, sync: AggregatorSync) -> Result<JobOutcome, String> {
        if let Some(blocked) = self.blocked(name) {
            return Ok(blocked);
        }
        let hash = self.hub.aggregator_hash(&sync.members);
        let drifted = self.hub.drifted();
        let drifted = sync.members.iter().filter_map(|name| drifted.get(name));
        let drifted: Vec<&str> = drifted.map(String::as_str).collect();
        let (target_hash, status) = match drifted.is_empty() {
            true => (hash.clone(), Status::Ready),
            false => (
                aggregator::provisional_hash(&hash, drifted),
                Status::Updating,
            ),
        };
        self.hub.reads.insert(name.to_owned(), sync.members);
        let made = Made {
            target_hash,
            shape: 0,
            schema_hash: hash,
            hidden: false,
            is_refresh: sync.reason == Reason::Refresh,
            is_looked_at_again: sync.reason == Reason::Drift,
        };
        self.made(name, status, made)
    }

    fn drop_connection(
        &mut self,
        name: &str,
        keep: Option<ConfigSnapshot>,
    ) -> Result<JobOutcome, String> {
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
        if let Some(blocked) = self.blocked(name) {
            return Ok(blocked);
        }
        self.begin_write()?;
        self.hub.dropped(name, keep)?;
        Ok(JobOutcome::Done)
    }

    fn grant(&mut self, name: &str) -> Result<JobOutcome, String> {
        if let Some(blocked) = self.blocked(name) {
            return Ok(blocked);
        }
        self.begin_write()?;
        self.hub.granted(name)?;
        Ok(JobOutcome::Done)
    }

    fn made(&mut self, name: &str, status: Status, made: Made) -> Result<JobOutcome, String> {
        Ok(match self.hub.made(name, status, made)? {
            true => {
                self.begin_write()?;
                JobOutcome::Done
            }
            false => JobOutcome::Same,
        })
    }

    pub fn crashed(&self, name: &str) -> u32 {
        self.hub.crashes.get(name).map_or(0, |(_, times, _)| *times)
    }

    /// What stands in the way of a job's transaction, which begins by asserting the epoch.
    fn blocked(&self, name: &str) -> Option<JobOutcome> {
        if !self.leads() {
            return Some(JobOutcome::Cancelled);
        }
        let is_lock = self.hub.locked.contains(name);
        (is_lock || self.hub.is_full).then(|| JobOutcome::Later {
            reason: ANOTHER_SESSION.to_owned(),
            is_lock,
        })
    }

    fn failed(
        &mut self,
        name: &str,
        kind: FailureKind,
        import: &Import,
    ) -> Result<JobOutcome, String> {
        let (error, target_hash) = (
            format!("{name}: {}", kind.as_str()),
            import.target_hash.clone(),
        );
        if import.reason == Reason::Refresh && import.target.csv.is_none() {
            return Ok(JobOutcome::Failed {
                target_hash,
                error,
                kind: Some(kind),
                is_unwritten: false,
            });
        }
        self.write_error(name, target_hash, error, Some(kind))
    }

    pub fn write_error(
        &mut self,
        name: &str,
        target_hash: String,
        error: String,
        kind: Option<FailureKind>,
    ) -> Result<JobOutcome, String> {
        // Where it cannot be written, the next pass does.
        let can_write = self.leads() && !self.hub.is_full;
        let known = self.hub.rows.get(name);
        let known = known.ok_or_else(|| format!("no row of {name:?}"))?;
        let says_so = known.status == Status::Error && known.error.as_ref() == Some(&error);
        if !says_so && can_write {
            let route = match known.status {
                Status::Error => vec![Status::Error],
                status => Status::route(Some(status), Status::Error),
            };
            self.begin_write()?;
            for status in route {
                self.hub.set_status(name, status, Some(error.clone()))?;
            }
        }
        Ok(JobOutcome::Failed {
            target_hash,
            error,
            kind,
            is_unwritten: !says_so && !can_write,
        })
    }
}
