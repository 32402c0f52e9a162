//! State that all sessions of a daemon share: its settings, the state of the hub, and the last
//! authentication failure, so that rejected credentials are not sent again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use spcd_core::config::HubSettings;
use spcd_core::secret::Secret;
use tokio::sync::{Notify, watch};

use super::error::AuthenticationFailure;
use crate::crash_guard::Crash;

/// State of the daemon with respect to its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubState {
    /// The first connection is not established yet.
    Connecting,
    /// Another daemon leads; this one waits to take over.
    Following {
        /// Start of the state.
        since: SystemTime,
    },
    /// This daemon leads.
    Leading {
        /// Start of the state.
        since: SystemTime,
        /// Number that each write asserts.
        epoch: i64,
    },
    /// The connection was lost, or the server refuses it.
    Lost {
        /// Start of the state.
        since: SystemTime,
        /// Error text, without secrets.
        reason: String,
    },
}

/// Shared by all clones of an endpoint.
#[derive(Debug)]
pub struct HubContext {
    settings: watch::Sender<HubSettings>,
    state: watch::Sender<HubState>,
    refusal: Mutex<Option<Refusal>>,
    retry: Notify,
    /// Suspected crashes that are not recorded in the database yet.
    crashes: Mutex<Vec<Crash>>,
    /// Whether the server has told a session that a process crashed.
    crash_notice: Arc<AtomicBool>,
    /// Error of the last write, if the server could not write.
    write_error: Mutex<Option<String>>,
    /// Purposes whose last connection attempt found the server full.
    full: Mutex<BTreeSet<String>>,
}

/// A failed authentication, and the passwords that it was tried with.
#[derive(Debug)]
struct Refusal {
    until: Instant,
    /// One for each host. Other passwords are tried at once.
    passwords: Vec<Option<Secret>>,
    failure: AuthenticationFailure,
}

impl HubContext {
    /// Starts in [`HubState::Connecting`].
    pub fn new(settings: HubSettings) -> Arc<Self> {
        Arc::new(Self {
            settings: watch::Sender::new(settings),
            state: watch::Sender::new(HubState::Connecting),
            refusal: Mutex::default(),
            retry: Notify::new(),
            crashes: Mutex::default(),
            crash_notice: Arc::default(),
            write_error: Mutex::default(),
            full: Mutex::default(),
        })
    }

    /// Returns the current settings.
    pub fn settings(&self) -> HubSettings {
        *self.settings.borrow()
    }

    /// Subscribes to changes of the settings.
    pub fn watch_settings(&self) -> watch::Receiver<HubSettings> {
        self.settings.subscribe()
    }

    /// Replaces the settings. Open sessions adopt them at their next use.
    pub fn set_settings(&self, settings: HubSettings) {
        self.settings.send_if_modified(|current| {
            let differs = *current != settings;
            *current = settings;
            differs
        });
    }

    /// Returns the current state.
    pub fn state(&self) -> HubState {
        self.state.borrow().clone()
    }

    /// Enters [`HubState::Leading`].
    pub fn set_leading(&self, epoch: i64) {
        self.state.send_replace(HubState::Leading {
            since: SystemTime::now(),
            epoch,
        });
    }

    /// Enters [`HubState::Following`].
    pub fn set_following(&self) {
        self.state.send_replace(HubState::Following {
            since: SystemTime::now(),
        });
    }

    /// Enters [`HubState::Lost`]. Repeated calls keep the start of the state.
    pub fn set_lost(&self, reason: &str) {
        self.state.send_modify(|state| {
            let since = match state {
                HubState::Lost { since, .. } => *since,
                _ => SystemTime::now(),
            };
            let reason = reason.to_owned();
            *state = HubState::Lost { since, reason };
        });
    }

    /// Ends pending waits and forgets the authentication failure, after a change by the operator.
    pub fn retry_now(&self) {
        *self.refusal.lock() = None;
        self.retry.notify_waiters();
    }

    /// Waits until [`HubContext::retry_now`] is called.
    pub async fn retry_requested(&self) {
        self.retry.notified().await;
    }

    /// Returns the last authentication failure if it was caused by the same passwords.
    pub(super) fn authentication_failure(
        &self,
        passwords: impl FnOnce() -> Vec<Option<Secret>>,
    ) -> Option<AuthenticationFailure> {
        let refusal = self.refusal.lock();
        let refusal = refusal.as_ref()?;
        (refusal.until > Instant::now() && refusal.passwords == passwords())
            .then(|| refusal.failure.clone())
    }

    /// Remembers an authentication failure for the longest back-off pause.
    pub(super) fn set_authentication_failure(
        &self,
        passwords: Vec<Option<Secret>>,
        failure: AuthenticationFailure,
    ) {
        let pause = Duration::from_millis(self.settings().backoff_max);
        *self.refusal.lock() = Some(Refusal {
            until: Instant::now() + pause,
            passwords,
            failure,
        });
    }

    /// Keeps a crash of a wrapper until it can be recorded in the database.
    pub fn record_crash(&self, crash: Crash) {
        self.crashes.lock().push(crash);
    }

    /// Takes the crashes that are not recorded yet. To be called after the leader session was lost:
    /// after a crash the server terminates all sessions, and tells each of them why. Without that
    /// notice only the network connection of the suspects was lost.
    pub fn take_crashes(&self) -> Vec<Crash> {
        let suspects = std::mem::take(&mut *self.crashes.lock());
        let is_confirmed = self.crash_notice.swap(false, Ordering::AcqRel);
        if !is_confirmed && !suspects.is_empty() {
            let names: Vec<&str> = suspects.iter().map(|crash| crash.name.as_str()).collect();
            tracing::debug!(?names, "sessions ended without a crash of the server");
        }
        if is_confirmed { suspects } else { Vec::new() }
    }

    /// Returns the flag that the context's sessions set when the server tells of a crash.
    pub(super) fn crash_notice(&self) -> Arc<AtomicBool> {
        self.crash_notice.clone()
    }

    /// Sets the reason why the server cannot write; `None` if it can.
    pub fn set_write_error(&self, error: Option<String>) {
        *self.write_error.lock() = error;
    }

    /// Returns the error of the last write, if the server could not write.
    pub fn write_error(&self) -> Option<String> {
        self.write_error.lock().clone()
    }

    /// Sets whether the server refused a connection for `purpose` because it is full. Returns whether
    /// that is a change.
    pub fn set_full(&self, purpose: &str, is_full: bool) -> bool {
        match is_full {
            true => self.full.lock().insert(purpose.to_owned()),
            false => self.full.lock().remove(purpose),
        }
    }
}
