//! From what is wanted and what is there to what is to be done.
//!
//! [`plan`] decides; nothing after it makes a choice that it could have made. What it cannot know
//! is what a source answers: [`settle()`] turns that into statements, as purely.

mod comments;
mod connection;
mod settle;
mod show;
mod unite;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use spcd_protocol::Status;

use crate::model::{Desired, Target};
use crate::observed::{Applied, Observed, Written};
use crate::search_path::{self, PathChange};
use crate::union;

use connection::{doubt_of, droppable, merged, set, taken, unwanted_connection, wanted_connection};

pub use crate::offer::{Notice, Offer, quoted_names};
pub use comments::{Comment, comment_units};
pub use settle::{
    Bookkeeping, Piece, Record, Unit, drop_unit, error_unit, grant_unit, record_statement, settle,
    settle_new,
};
pub use show::{show, show_json, show_sql};
pub use unite::{Unite, settle_union};

/// What a pass is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Open spcd's own schema to `spcd_users`.
    pub admit: bool,
    /// Extensions to create first.
    pub extensions: BTreeSet<String>,
    /// Changes of rows that need nothing else: written at once, in one transaction.
    pub rows: Vec<RowChange>,
    /// Connections that somebody touched without changing anything that counts (a GRANT, a restore
    /// from a dump): what they look like now is recorded, so that the next look is cheap.
    pub touched: Vec<String>,
    /// Everything else, in the order in which it should be begun.
    pub work: Vec<Work>,
    /// Search paths to set or to take back.
    pub search_path: Option<PathChange>,
    /// Aggregators that wait until what is under way for their members is over.
    pub waiting: BTreeSet<String>,
    /// Something rests on which connections drifted, and that is not known yet.
    pub undecided: bool,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Plan {
            admit,
            extensions,
            rows,
            touched: _,
            work,
            search_path,
            waiting: _,
            undecided: _,
        } = self;
        !admit
            && extensions.is_empty()
            && rows.is_empty()
            && work.is_empty()
            && search_path.as_ref().is_none_or(PathChange::is_empty)
    }
}

/// A change of a row of `spcd.connection_state`, in the words of `spcd.publish`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RowChange {
    /// The connection.
    pub name: String,
    /// The statuses it passes through; empty: only other columns change.
    pub route: Vec<Status>,
    /// The row goes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub remove: bool,
    /// The error, where the route ends in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// New warnings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
    /// What the row repeats of the configuration.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub written: Option<WrittenJson>,
    /// What is imported.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

impl RowChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        let name = self.name.clone();
        *self
            == RowChange {
                name,
                ..RowChange::default()
            }
    }
}

/// [`Written`] under the table's column names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WrittenJson {
    plugin: String,
    plugin_instance: String,
    #[serde(rename = "type")]
    kind: String,
    connections: Vec<String>,
    import_schema: String,
    file_name: String,
    start_line: u32,
    end_line: u32,
    labels: BTreeMap<String, String>,
}

impl From<Written> for WrittenJson {
    fn from(written: Written) -> Self {
        Self {
            plugin: written.plugin,
            plugin_instance: written.plugin_instance,
            kind: written.kind,
            connections: written.connections,
            import_schema: written.import_schema,
            file_name: written.file,
            start_line: written.start_line,
            end_line: written.end_line,
            labels: written.labels,
        }
    }
}

/// What the row says of the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// `static` or `dynamic`; an aggregator has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_mode: Option<&'static str>,
    /// A hash of their shapes.
    pub schema_hash: String,
    /// How many they are.
    pub table_count: usize,
}

/// What one connection needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// The connection.
    pub name: String,
    /// What the row says when the work begins.
    pub status: Status,
    /// The error in the row then.
    pub error: Option<String>,
    /// What is to be done.
    pub task: Task,
}

/// Kinds of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Ask the source, and make schema, server, mapping and tables what they should be.
    Import(Box<Import>),
    /// Make an aggregator's views what its members make of them.
    Unite(Box<Unite>),
    /// Drop what spcd made; then the row is `disabled`, or gone.
    Drop {
        /// `Some` for a connection that stays, disabled, and what its row then says.
        keep: Option<Box<Written>>,
        /// What was made.
        applied: Applied,
        /// Its tables, as far as they are still spcd's.
        tables: Vec<String>,
    },
    /// Let members of `spcd_users` read what is there.
    Grant {
        /// The tables that they cannot read.
        tables: Vec<String>,
    },
}

/// An import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// What is wanted.
    pub target: Target,
    /// The hash of it.
    pub target_hash: String,
    /// What is there; `None`: nothing.
    pub applied: Option<Applied>,
    /// Why.
    pub why: Why,
    /// Warnings that come from the configuration.
    pub warnings: Vec<String>,
    /// The row's warnings now.
    pub known_warnings: Vec<String>,
    /// The role `spcd_users` exists.
    pub readers: bool,
    /// The plugin instance, whose connections share their tables unless they are dynamic.
    pub instance: String,
    /// The version of the extension, where it is installed.
    pub version: Option<String>,
    /// It is disabled: its tables are for aggregators only.
    pub hidden: bool,
}

/// What stands for the hash of a target where nothing but a grant was tried.
pub const GRANT: &str = "grant";

/// Why a source is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is new.
    New,
    /// Its configuration changed.
    Changed,
    /// What spcd made was altered or dropped by somebody.
    Drift,
    /// Its turn has come, or somebody asked; nothing is known to differ.
    Refresh,
}

/// What [`plan`] needs to know beyond a first look, by connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Those that may differ from what is wanted in a way that only the catalog tells.
    pub details: Vec<String>,
    /// Those whose recorded tables matter.
    pub tables: Vec<String>,
    /// Aggregators whose views may have been altered.
    pub views: Vec<String>,
}

/// What is to be looked at more closely before [`plan`].
pub fn needs_detail(desired: &Desired, observed: &Observed) -> Needs {
    let mut needs = Needs::default();
    for (name, known) in &observed.connections {
        let Some(applied) = &known.applied else {
            continue;
        };
        let wanted = desired.connections.get(name);
        if union::is_of_aggregator(&applied.target_hash) {
            if !applied.intact || !applied.readable {
                needs.views.push(name.clone());
            }
            continue;
        }
        let goes = wanted.is_none_or(|connection| !connection.enabled);
        let differs = wanted.is_some_and(|connection| {
            let moves = connection.enabled == applied.hidden_schema.is_some();
            connection.target.is_ok() && (moves || applied.target_hash != desired.target_hash(name))
        });
        let touched = !applied.intact || !applied.readable;
        if touched || differs {
            needs.details.push(name.clone());
        }
        if touched || differs || goes {
            needs.tables.push(name.clone());
        }
    }
    needs
}

/// What a pass is to do: deterministic, and empty when everything is as wanted.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan {
        admit: observed.readers && !observed.admitted,
        ..Plan::default()
    };
    let names: BTreeSet<&String> = (desired.connections.keys())
        .chain(observed.connections.keys())
        .collect();
    let kept = kept(desired, observed);
    let mut connections = desired.connections.values();
    let shown: BTreeSet<&str> = match connections.any(|connection| !connection.enabled) {
        true => union::members(desired, &kept)
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
            (Some(wanted), known) => {
                let shown = shown.contains(name.as_str());
                wanted_connection(&mut plan, desired, wanted, known, observed, shown);
            }
            (None, Some(known)) => unwanted_connection(&mut plan, desired, observed, name, known),
            (None, None) => {}
        }
    }
    unite::unite_all(&mut plan, desired, &kept, observed);
    plan.search_path = search_path::change(desired, &kept, &observed.roles);
    order(&mut plan.work, desired, &kept, observed);
    plan
}

/// Connections that no block names, but that are not known to be unwanted, as their rows have them.
pub fn kept<'a>(desired: &Desired, observed: &'a Observed) -> BTreeMap<&'a str, &'a Written> {
    if desired.doubts.is_empty() {
        return BTreeMap::new();
    }
    (observed.connections.iter())
        .filter(|(name, known)| {
            !desired.connections.contains_key(*name) && doubt_of(desired, known).is_some()
        })
        .map(|(name, known)| (name.as_str(), &known.written))
        .collect()
}

/// What somebody asked for by name comes first, then what makes others ready: what is dropped, then
/// the first connection of each plugin on the search path, the rest of the path, and all others.
/// Those that failed before wait until then, and those that are only asked again are last.
fn order(
    work: &mut [Work],
    desired: &Desired,
    kept: &BTreeMap<&str, &Written>,
    observed: &Observed,
) {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut plugins: BTreeSet<&str> = BTreeSet::new();
    let mut first: BTreeSet<&str> = BTreeSet::new();
    for (place, name) in search_path::path(desired, kept).into_iter().enumerate() {
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
            Task::Drop { .. } | Task::Grant { .. } | Task::Unite(_) => 1,
            Task::Import(import) if import.why == Why::Refresh => 5,
            Task::Import(_) if observed.attempts.contains_key(name) => 4,
            Task::Import(_) if first.contains(name) => 2,
            Task::Import(_) => 3,
        };
        (turn, place, work.name.clone())
    });
}
