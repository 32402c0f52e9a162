//! Watches files. A wake-up only means that something may have changed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::files::WatchPoint;

/// Time without another change before a scan begins: editors write a file in several steps, a few
/// milliseconds apart.
const DEBOUNCE: Duration = Duration::from_millis(40);

/// Maximum wait for a writer that never pauses.
const MAX_DEBOUNCE: Duration = Duration::from_millis(500);

/// Interval of polling if the kernel reports no events.
const POLL: Duration = Duration::from_secs(2);

/// Watches the directories that each scan returns.
pub struct Watcher {
    /// `None` if the kernel supports no watches.
    notify: Option<RecommendedWatcher>,
    wake: Arc<Notify>,
    interest: Arc<Mutex<WatchedPaths>>,
    /// Watched directories, with their device and inode.
    watched: HashMap<PathBuf, Option<(u64, u64)>>,
    polling: bool,
    /// Time of the first change since the last scan. Kept here and not in a future, so that a cancelled wait
    /// loses nothing.
    since: Option<Instant>,
}

/// Shared with the thread that delivers events.
#[derive(Default)]
struct WatchedPaths {
    /// Entries that matter, by directory; `None` stands for all entries.
    watch_points: HashMap<PathBuf, Option<BTreeSet<OsString>>>,
    /// Directories that were removed or renamed. A new directory at the same path needs a new watch, which
    /// its inode does not show, since it may have been reused.
    gone: HashSet<PathBuf>,
}

impl Watcher {
    /// Returns a watcher without directories.
    pub fn new() -> Self {
        let wake = Arc::new(Notify::new());
        let interest = Arc::new(Mutex::new(WatchedPaths::default()));
        let (waker, interesting) = (wake.clone(), interest.clone());
        let notify = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let mut interest = interesting.lock();
            // An error may mean lost events.
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

    /// Returns a handle that wakes the watcher like a change.
    pub fn waker(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Watches these directories and no others. Wakes itself if one is new, since a change after the scan may
    /// have been missed.
    pub fn follow(&mut self, watch_points: &[WatchPoint]) {
        // Updated before the first watch, so that no event is compared with the old interest. The lock must
        // be free then: the thread that delivers events takes it, and must answer `watch`.
        let gone = {
            let mut interest = self.interest.lock();
            interest.watch_points = watch_points
                .iter()
                .map(|place| (place.dir.clone(), place.only.clone()))
                .collect();
            std::mem::take(&mut interest.gone)
        };
        let Some(notify) = &mut self.notify else {
            return;
        };
        let mut before = std::mem::take(&mut self.watched);
        let desired: HashMap<&PathBuf, Option<(u64, u64)>> = watch_points
            .iter()
            .map(|place| (&place.dir, place.identity))
            .collect();
        before.retain(|dir, identity| {
            let same = !gone.contains(dir) && desired.get(dir) == Some(identity);
            if !same {
                // Fails if the directory, and with it the watch, is gone.
                let _ = notify.unwatch(dir);
            }
            same
        });
        let mut failure = None;
        for place in watch_points {
            if before.contains_key(&place.dir) {
                continue;
            }
            match notify.watch(&place.dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    before.insert(place.dir.clone(), place.identity);
                    self.wake.notify_one();
                }
                // Removed after it was listed: the watch of its parent reports that.
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

    /// Whether a change may not have settled yet.
    pub fn is_stirred(&self) -> bool {
        self.since.is_some()
    }

    /// Waits until something has [changed](Self::noticed) and then settled.
    pub async fn settled(&mut self) {
        let since = self.noticed().await;
        let latest = since + MAX_DEBOUNCE;
        while Instant::now() < latest {
            let quiet = (Instant::now() + DEBOUNCE).min(latest);
            if timeout_at(quiet, self.wake.notified()).await.is_err() {
                break;
            }
        }
        self.since = None;
    }

    fn poll(&mut self, error: &notify::Error) {
        if !self.polling {
            let advice = match error.kind {
                notify::ErrorKind::MaxFilesWatch => "raise fs.inotify.max_user_watches",
                notify::ErrorKind::Io(_) => {
                    "if too many files are open, raise fs.inotify.max_user_instances"
                }
                _ => "",
            };
            tracing::warn!(
                %error,
                advice,
                interval_seconds = POLL.as_secs(),
                "cannot watch all directories; they are read at intervals instead"
            );
            self.polling = true;
        }
    }
}

impl WatchedPaths {
    /// Whether an event may mean that a scan finds changes.
    fn takes(&mut self, event: &Event) -> bool {
        // The daemon's own reading opens and closes files.
        if let EventKind::Access(access) = event.kind
            && access != AccessKind::Close(AccessMode::Write)
        {
            return false;
        }
        // After an overflow it is not known what was lost.
        if event.need_rescan() {
            self.gone.extend(self.watch_points.keys().cloned());
            return true;
        }
        let replaced = matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        );
        let mut matters = event.paths.is_empty();
        for path in &event.paths {
            let itself = self.watch_points.contains_key(path);
            if itself && replaced {
                self.gone.insert(path.clone());
            }
            let entry = path
                .parent()
                .and_then(|dir| self.watch_points.get(dir))
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
