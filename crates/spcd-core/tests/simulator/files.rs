//! The csv file, and how a daemon notices that it is not the one that was read.

use spcd_core::config::DesiredState;
use spcd_core::scheduler::{Event, Files};

use crate::daemons::Daemon;
use crate::script::{Behaviour, FILE, NAMES};
use crate::world::World;

/// A look goes on without files that have not shown up after so long.
const PATIENCE: u64 = 300;
/// A file that changes all the time is read no more often.
const PAUSE: u64 = 300;
/// Two changes within so long bear the same time stamp.
const TICK: u64 = 40;

/// What a daemon knows of the csv file.
#[derive(Debug, Default)]
pub struct ModelFile {
    /// The target whose file it is.
    target: String,
    found: Option<Stamp>,
    is_young: bool,
    /// A look at it has not ended.
    is_late: bool,
    /// As it was before it was last read.
    read: Option<Stamp>,
    read_at: Option<u64>,
}

/// When the file changed; `None`: it is not there.
type Stamp = Option<u64>;

impl ModelFile {
    /// Takes note of what a look found. Returns whether it is not what was read.
    fn take(&mut self, found: Stamp, is_young: bool) -> bool {
        self.is_late = false;
        self.found = Some(found);
        self.is_young = is_young;
        self.found != self.read
    }

    /// The file is about to be read.
    pub fn reading(&mut self, now: u64) {
        // Another change may bear the same stamp.
        self.read = self.found.filter(|_| !self.is_young);
        self.read_at = Some(now);
    }

    /// Whether a change was found that has not been read.
    pub fn is_unread(&self) -> bool {
        !self.is_late && self.found.is_some() && self.found != self.read
    }

    /// The file was not read after all.
    pub fn unread(&mut self) {
        self.read = None;
        self.read_at = None;
    }
}

impl World {
    /// What a look at the file finds: its stamp, and whether another change may bear that, too.
    fn find_file(&self) -> (Stamp, bool) {
        let is_there = self.sources[FILE].behaviour == Behaviour::Answers;
        let changed_at = self.file_changed_at;
        let is_young = self.now < changed_at + TICK;
        (is_there.then_some(changed_at / TICK), is_young)
    }

    /// The file changed, or its file server answers again. Daemons that watch it notice that.
    pub fn file_changed(&mut self) -> Result<(), String> {
        if self.sources[FILE].behaviour == Behaviour::Hangs {
            return Ok(());
        }
        let (stamp, is_young) = self.find_file();
        self.each_daemon(|world| {
            let late = |daemon: &mut Daemon| daemon.file.take_if(|file| file.is_late);
            if let Some(mut file) = world.daemon.as_mut().and_then(late) {
                file.take(stamp, is_young);
                if let Some(daemon) = &mut world.daemon {
                    daemon.file = Some(file);
                }
            }
            world.event(Event::Woken)
        })
    }

    /// Looks at the file. Where a client waits for what the look finds, one that changes all the time
    /// is read without a pause, too.
    pub fn look_at_file(&mut self, desired: &DesiredState, is_awaited: bool) -> Files {
        let mut files = Files::default();
        let name = NAMES[FILE];
        let connection = desired.connections.get(name);
        let is_enabled = connection.is_some_and(|connection| connection.enabled);
        let hangs = self.sources[FILE].behaviour == Behaviour::Hangs;
        let (stamp, is_young) = self.find_file();
        let Some(daemon) = &mut self.daemon else {
            return files;
        };
        if !is_enabled {
            daemon.file = None;
            return files;
        }
        let target = desired.target_hash(name);
        let of_target = daemon.file.take().filter(|file| file.target == target);
        let mut file = of_target.unwrap_or_else(|| ModelFile {
            target: target.to_owned(),
            ..ModelFile::default()
        });
        match hangs {
            false => drop(file.take(stamp, is_young)),
            true => {
                if !std::mem::replace(&mut file.is_late, true) {
                    self.now += PATIENCE;
                }
                files.late.push(name.to_owned());
            }
        }
        if file.found.is_some() && file.found != file.read {
            let pause = if is_awaited { 0 } else { PAUSE };
            let since = file.read_at.map(|at| self.now - at);
            let wait = since.map_or(0, |since| pause.saturating_sub(since));
            let wait = if file.is_young { wait.max(TICK) } else { wait };
            if wait > 0 {
                files.again = Some(wait);
            }
            if since.is_none_or(|since| since >= pause) {
                files.changed.push((name.to_owned(), since.is_some()));
            }
        }
        daemon.file = Some(file);
        files
    }
}
