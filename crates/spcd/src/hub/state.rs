//! What all of a daemon's sessions with the hub have in common: its settings, how things stand,
//! and that a password that was refused is not sent again and again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use spcd_core::config::HubSettings;
use spcd_core::secret::Secret;
use tokio::sync::{Notify, watch};

use super::crash::Crash;

/// How things stand between the daemon and its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubState {
    /// It was not reached yet.
    Connecting,
    /// Another daemon leads; this one waits to take over.
    Following {
        /// Since when.
        since: SystemTime,
    },
    /// This daemon leads.
    Leading {
        /// Since when.
        since: SystemTime,
        /// What each of its writes carries.
        epoch: i64,
    },
    /// It was there and is gone, or it does not let us in.
    Lost {
        /// Since when.
        since: SystemTime,
        /// What happened; no secrets.
        reason: String,
    },
}

/// One for all copies of an endpoint.
#[derive(Debug)]
pub struct Shared {
    settings: watch::Sender<HubSettings>,
    state: watch::Sender<HubState>,
    refusal: Mutex<Option<Refusal>>,
    retry: Notify,
    /// Questions that ended a server process, until they are recorded.
    crashes: Mutex<Vec<Crash>>,
    /// For what there was no session the last time, because the server had no room.
    crowded: Mutex<BTreeSet<String>>,
}

/// The server said that it does not believe who asks.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Not tried again before.
    until: Instant,
    /// What was tried, for each host. Another password is tried at once.
    passwords: Vec<Option<Secret>>,
    /// Which server, as whom, what to do, and what it said.
    pub told: [String; 4],
}

impl Shared {
    /// Nothing is known yet.
    pub fn new(settings: HubSettings) -> Arc<Self> {
        Arc::new(Self {
            settings: watch::Sender::new(settings),
            state: watch::Sender::new(HubState::Connecting),
            refusal: Mutex::default(),
            retry: Notify::new(),
            crashes: Mutex::default(),
            crowded: Mutex::default(),
        })
    }

    /// As they are now.
    pub fn settings(&self) -> HubSettings {
        *self.settings.borrow()
    }

    /// To hear of changes.
    pub fn watch_settings(&self) -> watch::Receiver<HubSettings> {
        self.settings.subscribe()
    }

    /// Takes settings; sessions follow when they are spoken to next.
    pub fn tune(&self, settings: HubSettings) {
        self.settings.send_if_modified(|current| {
            let differs = *current != settings;
            *current = settings;
            differs
        });
    }

    /// How things stand.
    pub fn state(&self) -> HubState {
        self.state.borrow().clone()
    }

    /// This daemon leads.
    pub fn leads(&self, epoch: i64) {
        self.state.send_replace(HubState::Leading {
            since: SystemTime::now(),
            epoch,
        });
    }

    /// Another daemon leads.
    pub fn follows(&self) {
        self.state.send_replace(HubState::Following {
            since: SystemTime::now(),
        });
    }

    /// The database is gone. It stays lost since the first time that this is said.
    pub fn lost(&self, why: &str) {
        self.state.send_modify(|state| {
            let since = match state {
                HubState::Lost { since, .. } => *since,
                _ => SystemTime::now(),
            };
            let reason = why.to_owned();
            *state = HubState::Lost { since, reason };
        });
    }

    /// Somebody changed something: what failed is tried again at once.
    pub fn retry_now(&self) {
        *self.refusals() = None;
        self.retry.notify_waiters();
    }

    /// Waits until [`Shared::retry_now`] is called.
    pub async fn asked_to_retry(&self) {
        self.retry.notified().await;
    }

    /// What was refused a moment ago, if the same would be sent again.
    pub fn refusal(&self, passwords: impl FnOnce() -> Vec<Option<Secret>>) -> Option<Refusal> {
        let refusal = self.refusals().clone()?;
        (refusal.until > Instant::now() && refusal.passwords == passwords()).then_some(refusal)
    }

    /// Remembers what was refused, for the longest pause.
    pub fn refuse(&self, passwords: Vec<Option<Secret>>, told: [String; 4]) {
        let pause = Duration::from_millis(self.settings().backoff_max);
        *self.refusals() = Some(Refusal {
            until: Instant::now() + pause,
            passwords,
            told,
        });
    }

    /// Remembers a question that ended a server process.
    pub fn crashed(&self, crash: Crash) {
        self.crashes().push(crash);
    }

    /// The questions that ended a server process and are not recorded yet.
    pub fn take_crashes(&self) -> Vec<Crash> {
        std::mem::take(&mut *self.crashes())
    }

    fn crashes(&self) -> std::sync::MutexGuard<'_, Vec<Crash>> {
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of whether there was room for a session; whether that is news.
    pub fn crowded(&self, purpose: &str, full: bool) -> bool {
        let mut crowded = self.crowded.lock().unwrap_or_else(PoisonError::into_inner);
        match full {
            true => crowded.insert(purpose.to_owned()),
            false => crowded.remove(purpose),
        }
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Option<Refusal>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
