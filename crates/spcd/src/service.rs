//! Reports the daemon's state to systemd, and keeps it for the health endpoints. Sends nothing without
//! systemd.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sd_notify::NotifyState;

/// Minimum interval between two watchdog messages to systemd.
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(1);

static LAST: Mutex<Option<Instant>> = Mutex::new(None);
static UNREADABLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Reports that the daemon has started. The database may not be reachable yet.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Sets the line of `systemctl status`. It must not contain secrets.
pub fn status(text: &str) {
    // A line break would end the message.
    notify(&[NotifyState::Status(&text.replace('\n', " "))]);
}

/// Called in each iteration of the loops. If no loop calls it within the unit's `WatchdogSec`, systemd
/// restarts the daemon.
pub fn alive() {
    let mut last = LAST.lock();
    if last.is_none_or(|last| last.elapsed() >= WATCHDOG_INTERVAL) {
        *last = Some(Instant::now());
        notify(&[NotifyState::Watchdog]);
    }
}

/// Returns the time since the last iteration of a loop; `None` before the first one.
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

/// Reports that the settings are being read again. [`ready`] follows.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

/// Reports that the daemon stops on request.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}
