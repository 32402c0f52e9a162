//! Pauses that the model knows of: none of them may be forgotten until the next full pass.

use std::collections::BTreeMap;

use spcd_core::scheduler::JobOutcome;

use crate::script::{FILE, NAMES};
use crate::world::World;

/// Pause after the first lock time-out, and the longest one.
const LOCK_PAUSES: (u64, u64) = (1_000, 15_000);
/// Longest time until a file that is known to have changed is looked at again.
const FILE_PAUSE: u64 = 1_000;

/// Jobs that are repeated after a pause.
#[derive(Debug, Default)]
pub struct Pauses(BTreeMap<String, Pause>);

#[derive(Debug, Default)]
struct Pause {
    /// Number of lock time-outs in a row.
    times: u32,
    /// Its end; `None` once a pass has found that it is over.
    until: Option<u64>,
    /// The longest pause would end then.
    latest: u64,
}

impl Pauses {
    pub fn job_ended(&mut self, name: &str, outcome: &JobOutcome, now: u64) {
        match outcome {
            JobOutcome::Done | JobOutcome::Same => drop(self.0.remove(name)),
            JobOutcome::Later { .. } => {
                let (first, longest) = LOCK_PAUSES;
                let pause = self.0.entry(name.to_owned()).or_default();
                pause.until = Some(now + (first << pause.times.min(10)).min(longest));
                pause.latest = now + longest;
                pause.times += 1;
            }
            // The pause goes on: a request may have started the job in the midst of it.
            _ => {}
        }
    }

    /// A pass that begins after the end of a pause may find that there is nothing left to do.
    pub fn looked(&mut self, now: u64) {
        for pause in self.0.values_mut() {
            pause.until = pause.until.filter(|until| *until > now);
        }
    }

    fn is_pausing(&self, name: &str) -> bool {
        let pause = self.0.get(name);
        pause.is_some_and(|pause| pause.until.is_some())
    }
}

impl World {
    /// Checks that the next pass does not come after the end of a pause.
    pub fn check_pauses(&mut self) -> Result<(), String> {
        let desired = self.desired();
        let (is_full, paused) = (self.hub.is_full, &self.hub.paused);
        let Some(daemon) = self.daemon.as_ref().filter(|_| !is_full) else {
            return Ok(());
        };
        let is_desired = |name: &str| {
            let connection = desired.connections.get(name);
            connection.is_some_and(|one| one.enabled) && !paused.contains(name)
        };
        let wake_at = daemon.began + daemon.state.wake_at();
        for (name, pause) in &daemon.pauses.0 {
            let is_forgotten = pause.until.is_some() && wake_at > pause.latest;
            if is_forgotten && is_desired(name) && !daemon.jobs.contains_key(name) {
                return Err(format!("the pause of {name} is forgotten until {wake_at}"));
            }
        }
        let file = NAMES[FILE];
        let is_unread = daemon.file.as_ref().is_some_and(|file| file.is_unread());
        let is_busy = daemon.jobs.contains_key(file) || daemon.pauses.is_pausing(file);
        let is_waiting = is_unread && is_desired(file) && !is_busy;
        match is_waiting && wake_at > self.now + FILE_PAUSE {
            true => Err(format!("the change of {file} is forgotten until {wake_at}")),
            false => Ok(()),
        }
    }
}
