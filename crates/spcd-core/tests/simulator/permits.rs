//! The permits of jobs.

use std::collections::{BTreeMap, VecDeque};

use spcd_core::planner::Task;
use spcd_core::scheduler::{PermitKind, Priority};

use crate::world::{Timer, World};

/// How many sessions to sources a daemon may open. Half of them may wait for slow ones.
pub const SESSIONS: usize = 4;
/// What a job needs to ask a source, in this order.
const TO_ASK: [PermitKind; 2] = [PermitKind::Quick, PermitKind::Session];

/// How many permits of each kind are there at most.
fn max(kind: PermitKind) -> usize {
    match kind {
        PermitKind::Slow => SESSIONS / 2,
        _ => SESSIONS,
    }
}

impl World {
    /// Whether a job reads from a source or the catalog.
    pub fn needs_permits(&self, name: &str) -> bool {
        let job = self.daemon.as_ref().and_then(|one| one.jobs.get(name));
        job.is_some_and(|job| matches!(job.work.task, Task::Import(_) | Task::SyncAggregator(_)))
    }

    /// Has a job ask its source once it has its permits.
    pub fn acquire(&mut self, name: &str, number: u64) -> Result<(), String> {
        for kind in TO_ASK {
            let Some(daemon) = &mut self.daemon else {
                return Ok(());
            };
            let Some(job) = daemon.jobs.get_mut(name).filter(|job| job.number == number) else {
                return Ok(());
            };
            if job.is_cancelled {
                return Ok(());
            }
            if job.permits.contains(&kind) {
                continue;
            }
            let (urgency, number) = (job.urgency, job.number);
            if !(daemon.budget).request(kind, Priority { urgency, number }, 1) {
                return Ok(());
            }
            job.permits.push(kind);
            self.check_permits()?;
        }
        self.ask(name, number)
    }

    /// A job waits for its source for so long that it makes room for others.
    pub fn slow(&mut self, name: &str, number: u64) -> Result<(), String> {
        let Some(daemon) = &mut self.daemon else {
            return Ok(());
        };
        let job = daemon.jobs.get(name).filter(|job| job.number == number);
        let Some(job) = job.filter(|job| !job.is_writing && !job.is_cancelled) else {
            return Ok(());
        };
        let (urgency, number) = (job.urgency, job.number);
        match (daemon.budget).request(PermitKind::Slow, Priority { urgency, number }, 1) {
            true => self.given(PermitKind::Slow, number).map(drop),
            false => Ok(()),
        }
    }

    /// A job has a permit for which it waited. Returns whether it takes it.
    fn given(&mut self, kind: PermitKind, number: u64) -> Result<bool, String> {
        let Some(daemon) = &mut self.daemon else {
            return Ok(false);
        };
        let mut jobs = daemon.jobs.iter_mut();
        let Some((name, job)) = jobs.find(|(_, job)| job.number == number) else {
            return Ok(false);
        };
        if job.is_cancelled || job.is_writing {
            return Ok(false);
        }
        let name = name.clone();
        job.permits.push(kind);
        match kind {
            PermitKind::Slow => {
                let quick = |one: &PermitKind| *one == PermitKind::Quick;
                if job.permits.extract_if(.., |one| quick(one)).count() > 0 {
                    self.give_back(vec![PermitKind::Quick])?;
                }
            }
            _ => self.acquire(&name, number)?,
        }
        self.check_permits()?;
        Ok(true)
    }

    /// Gives permits back, and lets those go on who waited for them.
    pub fn give_back(&mut self, permits: Vec<PermitKind>) -> Result<(), String> {
        let mut permits = VecDeque::from(permits);
        while let Some(kind) = permits.pop_front() {
            let Some(daemon) = &mut self.daemon else {
                return Ok(());
            };
            for (priority, _) in daemon.budget.give_back(kind, 1) {
                if !self.given(kind, priority.number)? {
                    permits.push_back(kind);
                }
            }
        }
        Ok(())
    }

    /// No more permits are in use than there are, and none that no job has.
    pub fn check_permits(&self) -> Result<(), String> {
        let Some(daemon) = &self.daemon else {
            return Ok(());
        };
        let mut used: BTreeMap<PermitKind, usize> = BTreeMap::new();
        for kind in daemon.jobs.values().flat_map(|job| &job.permits) {
            *used.entry(*kind).or_default() += 1;
        }
        match used.into_iter().find(|(kind, count)| *count > max(*kind)) {
            Some((kind, count)) => Err(format!("{count} permits {kind:?} are in use")),
            None => Ok(()),
        }
    }

    /// Has the timer of a slow source set.
    pub fn expect_answer(&mut self, epoch: u64, name: &str, number: u64) {
        let after = self.daemon.as_ref().map(|one| one.budget.slow_after());
        let after = after.unwrap_or_default() / 1_000;
        self.after(after, Timer::Slow(epoch, name.to_owned(), number));
    }
}
