//! Notices that files changed. A wake says only that: look again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::files::Place;

/// Editors write a file in several steps, a few milliseconds apart: a look begins when this much
/// time has passed without another change.
const QUIET: Duration = Duration::from_millis(40);

/// But someone who never stops writing is not waited for longer than this.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often to look where the kernel does not tell.
const POLL: Duration = Duration::from_secs(2);

/// Watches directories; which ones is learned from each look.
pub struct Watcher {
    /// `None` if the kernel gives no watch at all.
    notify: Option<RecommendedWatcher>,
    wake: Arc<Notify>,
    interest: Arc<Mutex<Interest>>,
    /// With the device and inode that was watched.
    watched: HashMap<PathBuf, Option<(u64, u64)>>,
    polling: bool,
    /// When the first change since the last look was noticed. Kept here and not in a future, so
    /// that a wait that is given up half-way loses nothing.
    since: Option<Instant>,
}

/// Shared with the thread that delivers events.
#[derive(Default)]
struct Interest {
    /// Which entries of which directories matter; `None`: all.
    places: HashMap<PathBuf, Option<BTreeSet<OsString>>>,
    /// Directories that were removed or renamed: what is at their path now must be watched anew.
    /// Their inode alone does not tell; it may have been given again.
    gone: HashSet<PathBuf>,
}

impl Watcher {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let wake = Arc::new(Notify::new());
        let interest = Arc::new(Mutex::new(Interest::default()));
        let (waker, interesting) = (wake.clone(), interest.clone());
        let notify = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let mut interest = interesting.lock().unwrap_or_else(PoisonError::into_inner);
            // An error may stand for lost events.
            if event.as_ref().map_or(true, |event| interest.takes(event)) {
                waker.notify_one();
            }
        });
        let mut watcher = Self {
            notify: None,
            wake,
            interest,
            watched: HashMap::new(),
            polling: false,
            since: None,
        };
        match notify {
            Ok(notify) => watcher.notify = Some(notify),
            Err(error) => watcher.poll(&error),
        }
        watcher
    }

    /// What wakes it as a change would.
    pub fn waker(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Watches the places of a look, and no others. Where that began only now, a change may have
    /// been missed since the look: then it wakes itself.
    pub fn follow(&mut self, places: &[Place]) {
        // Before the first watch, so that no event finds the old interest; and not held any longer:
        // the thread that delivers events takes it too, and it must answer `watch`.
        let gone = {
            let mut interest = self.interest.lock().unwrap_or_else(PoisonError::into_inner);
            interest.places = places
                .iter()
                .map(|place| (place.dir.clone(), place.only.clone()))
                .collect();
            std::mem::take(&mut interest.gone)
        };
        let Some(notify) = &mut self.notify else {
            return;
        };
        let mut before = std::mem::take(&mut self.watched);
        let wanted: HashMap<&PathBuf, Option<(u64, u64)>> = places
            .iter()
            .map(|place| (&place.dir, place.identity))
            .collect();
        before.retain(|dir, identity| {
            let same = !gone.contains(dir) && wanted.get(dir) == Some(identity);
            if !same {
                // It fails if the directory is gone, and its watch with it.
                let _ = notify.unwatch(dir);
            }
            same
        });
        let mut failure = None;
        for place in places {
            if before.contains_key(&place.dir) {
                continue;
            }
            match notify.watch(&place.dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    before.insert(place.dir.clone(), place.identity);
                    self.wake.notify_one();
                }
                // Removed since the look: a watch above it tells, or told.
                Err(_) if !place.dir.exists() => self.wake.notify_one(),
                Err(error) => failure = Some(error),
            }
        }
        self.watched = before;
        match failure {
            Some(error) => self.poll(&error),
            None if self.polling => {
                tracing::info!("all directories are watched again");
                self.polling = false;
            }
            None => {}
        }
    }

    /// Waits until something has changed. Changes since the last [`Self::settled`] count, also those
    /// from before the call. Dropping the future loses nothing.
    pub async fn noticed(&mut self) -> Instant {
        match self.since {
            Some(since) => since,
            None => {
                if self.polling {
                    let _ = tokio::time::timeout(POLL, self.wake.notified()).await;
                } else {
                    self.wake.notified().await;
                }
                *self.since.insert(Instant::now())
            }
        }
    }

    /// Whether something has changed of which nobody knows yet whether it has settled.
    pub fn is_stirred(&self) -> bool {
        self.since.is_some()
    }

    /// Waits until something has [changed](Self::noticed) and then settled.
    pub async fn settled(&mut self) {
        let since = self.noticed().await;
        let latest = since + PATIENCE;
        while Instant::now() < latest {
            let quiet = (Instant::now() + QUIET).min(latest);
            if timeout_at(quiet, self.wake.notified()).await.is_err() {
                break;
            }
        }
        self.since = None;
    }

    fn poll(&mut self, error: &notify::Error) {
        if !self.polling {
            let advice = match error.kind {
                notify::ErrorKind::MaxFilesWatch => "; raise fs.inotify.max_user_watches",
                notify::ErrorKind::Io(_) => {
                    "; if too many files are open, raise fs.inotify.max_user_instances"
                }
                _ => "",
            };
            let every = POLL.as_secs();
            tracing::warn!(error = %error, "not all directories can be watched: looking every {every} s instead{advice}");
            self.polling = true;
        }
    }
}

impl Interest {
    /// Whether an event can mean that another look finds something else.
    fn takes(&mut self, event: &Event) -> bool {
        // The daemon's own reading opens and closes files.
        if let EventKind::Access(access) = event.kind
            && access != AccessKind::Close(AccessMode::Write)
        {
            return false;
        }
        // After an overflow it is not known what was lost.
        if event.need_rescan() {
            self.gone.extend(self.places.keys().cloned());
            return true;
        }
        let replaced = matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        );
        let mut matters = event.paths.is_empty();
        for path in &event.paths {
            let itself = self.places.contains_key(path);
            if itself && replaced {
                self.gone.insert(path.clone());
            }
            let entry = path
                .parent()
                .and_then(|dir| self.places.get(dir))
                .is_some_and(|only| match (only, path.file_name()) {
                    (Some(only), Some(name)) => only.contains(name),
                    _ => true,
                });
            matters |= itself || entry;
        }
        matters
    }
}

#[cfg(test)]
mod tests;
