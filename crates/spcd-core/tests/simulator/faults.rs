//! The end of faults.

use spcd_core::scheduler::Action;

use crate::script::{AGGREGATOR, Act, Behaviour, Definition, FILE, NAMES};
use crate::world::World;

/// Within so many milliseconds a saved file is carried out, whatever other sources do: the longest pause
/// after a lock, and what a look, a job and its writing take. An import that hangs takes a minute.
const UNHINDERED: u64 = 30_000;

impl World {
    /// Stops all faults. Where `asks`, a client asks for everything, too.
    pub fn heal(&mut self, asks: bool) -> Result<(), String> {
        self.note(|| format!("-- all is well from now on, asks: {asks}"));
        self.has_faults = false;
        self.open_hub();
        let mut rejecting = Vec::new();
        for index in 0..NAMES.len() {
            let behaviour = self.sources[index].behaviour;
            if index < AGGREGATOR && matches!(behaviour, Behaviour::Fails(_)) {
                rejecting.push(index);
            }
            if behaviour != Behaviour::Answers {
                self.act(&Act::Source(index, Behaviour::Answers))?;
            }
        }
        let all = Some(NAMES.map(str::to_owned).to_vec());
        self.request(Action::Reconnect, all, true)?;
        if asks {
            self.request(Action::Retry, Some(NAMES.map(str::to_owned).to_vec()), true)?;
            self.request(Action::Refresh, None, true)?;
        }
        // Whose credentials were rejected has others from now on.
        for index in rejecting {
            self.save(index)?;
        }
        Ok(())
    }

    fn open_hub(&mut self) {
        self.hub.locked.clear();
        self.hub.is_full = false;
        self.hub.refuses_extension = false;
        self.hub.refuses_paths = false;
    }

    /// Saves a file that names another target. Returns whether there is such a file.
    fn save(&mut self, index: usize) -> Result<bool, String> {
        let Some(definition) = self.files.get(&index).copied() else {
            return Ok(false);
        };
        let database = definition.database.wrapping_add(2);
        let definition = Definition {
            database,
            ..definition
        };
        self.act(&Act::Write(index, definition))?;
        Ok(true)
    }

    /// Stops all faults but sources that hang, and saves the files of all others: each of these is
    /// carried out in its own time.
    pub fn only_hangs(&mut self) -> Result<(), String> {
        let had_faults = std::mem::replace(&mut self.has_faults, false);
        self.open_hub();
        self.end_earlier();
        self.run(self.now + 11_000, |world| world.daemon.is_some())?;
        let mut saved = Vec::new();
        for index in (0..AGGREGATOR).chain([FILE]) {
            let behaviour = self.sources[index].behaviour;
            if behaviour == Behaviour::Hangs {
                continue;
            }
            if behaviour != Behaviour::Answers {
                self.act(&Act::Source(index, Behaviour::Answers))?;
            }
            let is_enabled = self.files.get(&index).is_some_and(|file| file.enabled);
            let is_left_alone = self.hub.crashes.contains_key(NAMES[index])
                || !(index == FILE || self.hub.has_extension);
            if is_enabled && !is_left_alone && self.save(index)? {
                saved.push(NAMES[index]);
            }
        }
        let is_paused = |world: &Self, name: &str| world.hub.paused.contains(name);
        let until = self.now + UNHINDERED;
        loop {
            saved.retain(|name| !is_paused(self, name));
            match self.unsettled(&saved) {
                None => break,
                Some(what) if self.now >= until => return Err(what),
                Some(_) => self.run((self.now + 500).min(until), |_| false)?,
            };
        }
        self.has_faults = had_faults;
        Ok(())
    }
}
