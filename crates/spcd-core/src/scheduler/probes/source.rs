//! The sources that are probed, and commands to the probes.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Connection, ConnectionKind, DesiredState, ProbeMethod};
use crate::health::{ProbeOptions, ProbeSchedule};

/// A connection whose source is probed.
#[derive(Debug, Clone)]
pub struct WatchedSource {
    /// The connection.
    pub connection: Arc<Connection>,
    /// When its source is probed.
    pub schedule: ProbeSchedule,
}

/// Command to the probes.
#[derive(Debug, Clone, PartialEq)]
pub enum ProbeCommand {
    /// Replace the watched sources.
    Watch {
        /// The sources.
        watched: Vec<WatchedSource>,
        /// Connections whose import runs, or has just answered: none of them is probed at once.
        importing: BTreeSet<String>,
    },
    /// A client requests a probe of each.
    Request(Vec<String>),
    /// An import reached its source, or did not.
    ImportEnded {
        /// Its connection.
        name: String,
        /// Whether it did.
        answered: bool,
    },
    /// An import's credentials were rejected.
    CredentialsRejected {
        /// Its connection.
        name: String,
        /// The target that was asked.
        target_hash: String,
        /// The wrapper's message.
        error: String,
        /// A client waits for a probe.
        is_requested: bool,
    },
}

impl WatchedSource {
    /// Returns the connections of a desired state whose sources are to be probed.
    pub fn of_desired(
        desired: &DesiredState,
        defaults: ProbeOptions,
        is_left_alone: impl Fn(&str, &Connection) -> bool,
    ) -> Vec<Self> {
        let is_probed = |connection: &&Arc<Connection>| {
            connection.kind == ConnectionKind::Plugin
                && (connection.target.as_ref())
                    .is_ok_and(|target| target.probe != ProbeMethod::None)
                && !is_left_alone(&connection.name, connection)
        };
        (desired.connections.values().filter(is_probed))
            .map(|connection| Self {
                connection: connection.clone(),
                schedule: connection.health.or(defaults).schedule(),
            })
            .filter(|watched| watched.schedule.enabled)
            .collect()
    }

    /// Returns the wrapper if a session that connects through it cannot be cancelled.
    pub(super) fn uncancellable_wrapper(&self) -> Option<&str> {
        let target = self.connection.target.as_ref().ok()?;
        (!target.is_cancellable()).then_some(target.wrapper.as_str())
    }
}

impl PartialEq for WatchedSource {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connection, &other.connection) && self.schedule == other.schedule
    }
}
