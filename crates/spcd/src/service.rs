//! Reports to systemd, probes and monitoring: that the daemon is ready, what it does, and that its loop
//! runs. Without systemd nothing is sent.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sd_notify::NotifyState;

/// Minimum interval between two signs of life to systemd.
const PULSE: Duration = Duration::from_secs(1);

static LAST: Mutex<Option<Instant>> = Mutex::new(None);
static UNREADABLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The daemon has started: it can be asked, though the database may not be up yet.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for `systemctl status`; no secrets.
pub fn status(text: &str) {
    // A line break would end the message.
    tell(&[NotifyState::Status(&text.replace('\n', " "))]);
}

/// Called by the loops that do the work, each time they turn. If none does for the unit's
/// `WatchdogSec`, systemd starts the daemon anew.
pub fn alive() {
    let mut last = LAST.lock();
    if last.is_none_or(|last| last.elapsed() >= PULSE) {
        *last = Some(Instant::now());
        tell(&[NotifyState::Watchdog]);
    }
}

/// How long ago a loop last turned; `None` before the first time.
pub fn last_alive() -> Option<Duration> {
    LAST.lock().map(|last| last.elapsed())
}

/// Sets the files and directories that cannot be read, with the reasons.
pub fn cannot_read(places: Vec<String>) {
    *UNREADABLE.lock() = places;
}

/// Returns the files and directories that cannot be read.
pub fn unreadable() -> Vec<String> {
    UNREADABLE.lock().clone()
}

/// The settings are read again; [`ready`] follows.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// The daemon ends because it was asked to.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
