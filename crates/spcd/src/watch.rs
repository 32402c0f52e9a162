//! Watches files. A wake-up only means that something may have changed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::files::WatchPoint;

/// Time without another event before a scan begins: editors write a file in several steps, a few
/// milliseconds apart.
const DEBOUNCE: Duration = Duration::from_millis(40);

/// The same if no event suggests that a file is incomplete.
const BRIEF_DEBOUNCE: Duration = Duration::from_millis(10);

/// Maximum wait for a writer that never pauses.
const MAX_DEBOUNCE: Duration = Duration::from_millis(500);

/// Interval of polling if the kernel reports no events.
const POLL: Duration = Duration::from_secs(2);

/// Watches the directories that each scan returns.
pub struct Watcher {
    /// `None` if the kernel supports no watches.
    notify: Option<RecommendedWatcher>,
    wake: Arc<Notify>,
    state: Arc<Mutex<WatchState>>,
    /// Watched directories, with their device and inode.
    watched: HashMap<PathBuf, Option<(u64, u64)>>,
    polling: bool,
    /// When polling wakes next. Kept here, as `since`: other events cancel the wait every few seconds.
    poll_at: Option<Instant>,
    /// Time of the first wake-up since the last scan. Kept here and not in a future, so that a cancelled wait
    /// loses nothing.
    since: Option<Instant>,
}

/// Events since the last scan.
struct Burst {
    /// Time of the last event.
    last: Instant,
    /// Time without another event after which the burst has ended.
    quiet: Duration,
}

/// Shared with the thread that delivers events.
#[derive(Default)]
struct WatchState {
    /// `None` if there was no event, so that a wake-up has another cause.
    burst: Option<Burst>,
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
        let state = Arc::new(Mutex::new(WatchState::default()));
        let (waker, shared) = (wake.clone(), state.clone());
        let notify = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let mut state = shared.lock();
            // An error may mean lost events.
            if event.as_ref().map_or(true, |event| state.takes(event)) {
                state.extend_burst(event.as_ref().map_or(DEBOUNCE, debounce_of));
                waker.notify_one();
            }
        });
        let mut watcher = Self {
            notify: None,
            wake,
            state,
            watched: HashMap::new(),
            polling: false,
            poll_at: None,
            since: None,
        };
        match notify {
            Ok(notify) => watcher.notify = Some(notify),
            Err(error) => watcher.poll(&error),
        }
        watcher
    }

    /// Returns a handle that wakes the watcher without a change of files, so that it does not wait for one to
    /// settle.
    pub fn waker(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Watches these directories and no others. Wakes itself if one is new, since a change after the scan may
    /// have been missed.
    pub fn follow(&mut self, watch_points: &[WatchPoint]) {
        // Updated before the first watch, so that no event is compared with the old directories. The lock must
        // be free then: the thread that delivers events takes it, and must answer `watch`.
        let gone = {
            let mut state = self.state.lock();
            state.watch_points = watch_points
                .iter()
                .map(|place| (place.dir.clone(), place.only.clone()))
                .collect();
            std::mem::take(&mut state.gone)
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
        let (mut failure, mut is_new) = (None, false);
        for place in watch_points {
            if before.contains_key(&place.dir) {
                continue;
            }
            match notify.watch(&place.dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    before.insert(place.dir.clone(), place.identity);
                    is_new = true;
                }
                // Removed after it was listed: the watch of its parent reports that.
                Err(_) if !place.dir.exists() => is_new = true,
                Err(error) => failure = Some(error),
            }
        }
        self.watched = before;
        if is_new {
            // Files in it may just be being written.
            self.state.lock().extend_burst(DEBOUNCE);
            self.wake.notify_one();
        }
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
                    let poll_at = *self.poll_at.get_or_insert_with(|| Instant::now() + POLL);
                    let _ = timeout_at(poll_at, self.wake.notified()).await;
                    self.poll_at = None;
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
        let latest = self.noticed().await + MAX_DEBOUNCE;
        loop {
            let burst_end = self.state.lock().take_burst(latest);
            let Some(burst_end) = burst_end else { break };
            // A wake-up now belongs to the burst, which it may prolong.
            let _ = timeout_at(burst_end, self.wake.notified()).await;
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

/// Returns how long no other event may follow until what is read is complete.
fn debounce_of(event: &Event) -> Duration {
    let is_complete = matches!(
        event.kind,
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
    );
    // They are not read, only renamed into place.
    let is_hidden = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(b".")
    };
    match is_complete || !event.paths.is_empty() && event.paths.iter().all(is_hidden) {
        true => BRIEF_DEBOUNCE,
        false => DEBOUNCE,
    }
}

impl WatchState {
    /// Adds an event to the burst. An event that needs a long quiet needs it after all others, too.
    fn extend_burst(&mut self, quiet: Duration) {
        let before = self
            .burst
            .take()
            .map_or(Duration::ZERO, |burst| burst.quiet);
        self.burst = Some(Burst {
            last: Instant::now(),
            quiet: quiet.max(before),
        });
    }

    /// Returns when the burst will have ended, `latest` at the latest. Discards it if it has.
    fn take_burst(&mut self, latest: Instant) -> Option<Instant> {
        let burst = self.burst.as_ref()?;
        let until = (burst.last + burst.quiet).min(latest);
        if until > Instant::now() {
            return Some(until);
        }
        self.burst = None;
        None
    }

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
