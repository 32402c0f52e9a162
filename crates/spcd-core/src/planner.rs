//! From desired and observed state to a plan.
//!
//! [`plan`] makes every choice, including which work is left to running jobs. It does not know the
//! answers of sources. [`resolve_import()`] turns an answer into statements, also without side effects.

mod aggregators;
mod alignment;
mod comments;
mod connection;
mod lanes;
mod resolve_import;
mod running;
mod show;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use spcd_protocol::Status;

use crate::aggregator;
use crate::diff::TableWarning;
use crate::model::{DesiredState, ForeignSource};
use crate::observed::{Applied, ConfigSnapshot, Observed};
use crate::search_path::{self, SearchPathChange};

use connection::{
    droppable, merged, name_taken, plan_desired, plan_removed, set, unknown_input_of,
};

pub use crate::remote_schema::{ImportNotice, RemoteSchema, quoted_names};
pub use aggregators::{AggregatorSync, resolve_aggregator};
pub use alignment::Alignment;
pub use comments::{Comment, comment_units};
pub(crate) use lanes::LANE_WRAPPER;
pub use lanes::LaneChange;
pub use resolve_import::{
    Bookkeeping, Record, WriteChunk, WriteUnit, drop_unit, error_unit, grant_unit,
    record_statement, resolve_import, resolve_new_import,
};
pub use running::{Job, Running};
pub use show::{show, show_json, show_sql};

/// Work of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Grant `spcd_users` access to the schema `spcd`.
    pub admit: bool,
    /// Extensions to create first.
    pub extensions: BTreeSet<String>,
    /// Servers of lanes to create, alter or drop before the work begins.
    pub lanes: Vec<LaneChange>,
    /// Changes of rows that need nothing else: written at once, in one transaction.
    pub rows: Vec<RowChange>,
    /// Connections with new row versions but without drift, as after a GRANT or a restore from a dump.
    /// Their fingerprints are recorded again, so that the next pass does not compare them in full.
    pub refresh_fingerprints: Vec<String>,
    /// Work for jobs, in the order in which to start it.
    pub work: Vec<Work>,
    /// Search paths to set or reset.
    pub search_path: Option<SearchPathChange>,
    /// Aggregators that wait for running jobs of their members.
    pub waiting: BTreeSet<String>,
    /// Whether a decision depends on drift, which is not known yet.
    pub undecided: bool,
    /// Connections whose running job is to be cancelled, since it does something else than planned.
    pub cancel: BTreeSet<String>,
    /// Connections after whose running job another pass is needed.
    pub follow_up: BTreeSet<String>,
    /// Connections with work that waits: for their running job, a lock, or an extension.
    pub deferred: BTreeSet<String>,
    /// Whether a client's request cannot be answered after this pass.
    pub defers_request: bool,
}

impl Plan {
    /// Returns whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Plan {
            admit,
            extensions,
            lanes,
            rows,
            refresh_fingerprints: _,
            work,
            search_path,
            waiting: _,
            undecided: _,
            cancel,
            follow_up: _,
            deferred,
            defers_request: _,
        } = self;
        !admit
            && cancel.is_empty()
            && deferred.is_empty()
            && extensions.is_empty()
            && lanes.is_empty()
            && rows.is_empty()
            && work.is_empty()
            && search_path.as_ref().is_none_or(SearchPathChange::is_empty)
    }
}

/// A change of a row of `spcd.connection_state`, under the names that `spcd.publish` expects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RowChange {
    /// The connection.
    pub name: String,
    /// The statuses it passes through. Empty if only other columns change.
    pub route: Vec<Status>,
    /// Whether the row is removed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
    /// The error, if the route ends in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// New warnings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
    /// The columns that repeat the configuration.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub written: Option<ConfigSnapshot>,
    /// The columns about the imported tables.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

impl RowChange {
    /// Returns whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        let name = self.name.clone();
        *self
            == RowChange {
                name,
                ..RowChange::default()
            }
    }
}

/// The columns about the imported tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// `static` or `dynamic`; `None` for an aggregator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_mode: Option<&'static str>,
    /// Hash of the tables' shapes.
    pub schema_hash: String,
    /// Number of tables.
    pub table_count: usize,
}

/// Work for one connection, which a job does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// The connection.
    pub name: String,
    /// The row's status when the work starts.
    pub status: Status,
    /// The row's error when the work starts.
    pub error: Option<String>,
    /// What to do.
    pub task: Task,
}

impl Work {
    /// Whether it imports although nothing is known to differ.
    pub fn is_refresh(&self) -> bool {
        matches!(&self.task, Task::Import(import) if import.reason == Reason::Refresh)
    }
}

/// Kinds of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Import the source's tables; create or alter schema, server, mapping and tables.
    Import(Box<Import>),
    /// Create or replace an aggregator's views.
    SyncAggregator(Box<AggregatorSync>),
    /// Drop the objects that spcd created. The row becomes `disabled` or is removed.
    Drop {
        /// The row of a connection that stays, disabled; `None` if the row is removed.
        keep: Option<Box<ConfigSnapshot>>,
        /// The objects that spcd created.
        applied: Applied,
        /// The tables to drop.
        tables: Vec<String>,
    },
    /// Grant `spcd_users` access to existing tables.
    Grant {
        /// The tables that they cannot read.
        tables: Vec<String>,
    },
}

/// An import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The source.
    pub target: ForeignSource,
    /// Its hash.
    pub target_hash: String,
    /// The existing objects, if any.
    pub applied: Option<Applied>,
    /// The reason.
    pub reason: Reason,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
    /// Tables that the gateway left out.
    pub left_out: Vec<TableWarning>,
    /// The row's warnings now.
    pub known_warnings: Vec<String>,
    /// Hash of the tables in its row, by which aggregators group their members.
    pub known_schema_hash: Option<String>,
    /// The role `spcd_users` exists.
    pub readers: bool,
    /// The plugin instance. Its connections share their tables unless they are dynamic.
    pub instance: String,
    /// Version of the extension, if it is installed.
    pub extension_version: Option<String>,
    /// The connection is disabled: its tables are for aggregators only.
    pub hidden: bool,
}

/// Target hash of an attempt to grant access.
pub const GRANT: &str = "grant";

/// Why there is work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The connection is new.
    New,
    /// Its configuration changed.
    Changed,
    /// An object that spcd created was altered or dropped.
    Drift,
    /// Its refresh is due, or a client requested it; nothing is known to differ.
    Refresh,
}

/// Connections that must be observed in detail before [`plan`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Connections to compare in full.
    pub details: Vec<String>,
    /// Connections whose recorded tables are needed.
    pub tables: Vec<String>,
    /// Aggregators whose views may have been altered.
    pub views: Vec<String>,
}

/// Returns what to observe in detail before [`plan`].
pub fn needs_detail(desired: &DesiredState, observed: &Observed) -> Needs {
    let mut needs = Needs::default();
    for (name, known) in &observed.connections {
        let Some(applied) = &known.applied else {
            continue;
        };
        let connection = desired.connections.get(name);
        if aggregator::is_aggregator_hash(&applied.target_hash) {
            if !applied.intact || !applied.readable {
                needs.views.push(name.clone());
            }
            continue;
        }
        let is_dropped = connection.is_none_or(|connection| !connection.enabled);
        let differs = connection.is_some_and(|connection| {
            let moves = connection.enabled == applied.hidden_schema.is_some();
            connection.target.is_ok() && (moves || applied.target_hash != desired.target_hash(name))
        });
        let is_altered = !applied.intact || !applied.readable;
        if is_altered || differs {
            needs.details.push(name.clone());
        }
        if is_altered || differs || is_dropped {
            needs.tables.push(name.clone());
        }
    }
    needs
}

/// Returns the work of a pass besides the running jobs. Deterministic; empty if nothing differs.
pub fn plan(desired: &DesiredState, observed: &Observed, running: &Running) -> Plan {
    let mut plan = Plan {
        admit: observed.readers && !observed.admitted,
        ..Plan::default()
    };
    let names: BTreeSet<&String> = (desired.connections.keys())
        .chain(observed.connections.keys())
        .collect();
    let retained = retained(desired, observed);
    let mut connections = desired.connections.values();
    let shown: BTreeSet<&str> = match connections.any(|connection| !connection.enabled) {
        true => aggregator::members(desired, &retained)
            .into_values()
            .flatten()
            .collect(),
        false => BTreeSet::new(),
    };
    for name in names {
        match (
            desired.connections.get(name),
            observed.connections.get(name),
        ) {
            (Some(connection), known) => {
                let shown = shown.contains(name.as_str());
                plan_desired(&mut plan, desired, connection, known, observed, shown);
            }
            (None, Some(known)) => plan_removed(&mut plan, desired, observed, name, known),
            (None, None) => {}
        }
    }
    lanes::plan_lanes(&mut plan, desired, observed);
    aggregators::plan_aggregators(&mut plan, desired, &retained, observed);
    plan.search_path = search_path::search_path_change(desired, &retained, &observed.roles);
    running::reconcile_jobs(&mut plan, desired, &shown, observed, running);
    running::defer_waiting(&mut plan, observed, running);
    order(&mut plan.work, desired, &retained, observed);
    plan
}

/// Returns the rows of connections that no block names, but whose blocks may be in a file or directory
/// that cannot be read.
pub fn retained<'a>(
    desired: &DesiredState,
    observed: &'a Observed,
) -> BTreeMap<&'a str, &'a ConfigSnapshot> {
    if desired.unknown_inputs.is_empty() {
        return BTreeMap::new();
    }
    (observed.connections.iter())
        .filter(|(name, known)| {
            !desired.connections.contains_key(*name) && unknown_input_of(desired, known).is_some()
        })
        .map(|(name, known)| (name.as_str(), &known.written))
        .collect()
}

/// Sorts the work. Connections that a client named come first, then those that others depend on: drops,
/// the first connection of each plugin on the search path, and the rest of the path. All others follow,
/// then those that failed before, and refreshes last.
fn order(
    work: &mut [Work],
    desired: &DesiredState,
    retained: &BTreeMap<&str, &ConfigSnapshot>,
    observed: &Observed,
) {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut plugins: BTreeSet<&str> = BTreeSet::new();
    let mut first: BTreeSet<&str> = BTreeSet::new();
    for (place, name) in search_path::search_path(desired, retained)
        .into_iter()
        .enumerate()
    {
        let Some(connection) = desired.connections.get(name) else {
            continue;
        };
        places.insert(name, place);
        if plugins.insert(&connection.plugin_instance) {
            first.insert(name);
        }
    }
    work.sort_by_cached_key(|work| {
        let name = work.name.as_str();
        let place = places.get(name).copied().unwrap_or(usize::MAX);
        let turn = match &work.task {
            _ if observed.urgent.contains(name) => 0,
            Task::Drop { .. } | Task::Grant { .. } | Task::SyncAggregator(_) => 1,
            Task::Import(import) if import.reason == Reason::Refresh => 5,
            Task::Import(_) if observed.attempts.contains_key(name) => 4,
            Task::Import(_) if first.contains(name) => 2,
            Task::Import(_) => 3,
        };
        (turn, place, work.name.clone())
    });
}
