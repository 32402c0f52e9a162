//! What systemd, probes and monitoring are told: that the daemon is there, what it does, and that
//! its loop still turns. Without systemd nothing is sent.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// More often than this nobody needs to know that we live.
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
    let mut last = lock(&LAST);
    if last.is_none_or(|last| last.elapsed() >= PULSE) {
        *last = Some(Instant::now());
        tell(&[NotifyState::Watchdog]);
    }
}

/// How long ago a loop last turned; `None` before the first time.
pub fn last_alive() -> Option<Duration> {
    lock(&LAST).map(|last| last.elapsed())
}

/// Files and directories that cannot be read, and why, as of the last look.
pub fn cannot_read(places: Vec<String>) {
    *lock(&UNREADABLE) = places;
}

/// What could not be read.
pub fn unreadable() -> Vec<String> {
    lock(&UNREADABLE).clone()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
