//! Aggregators: one view for each table name, over the tables of that name in many connections.
//!
//! [`merge_tables`] computes what a view shows from its members' tables; [`diff_views`] computes
//! the changes from the existing views. Above 80 members a view reads hidden views of about 50
//! members each. A flat view over thousands of members exceeds the server's stack, plans slower,
//! and is rewritten as a whole when one member is added or removed.

mod members;
mod merge;
mod parts;
mod views;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::diff::{self, Table};
use crate::hash::hash;
use crate::model::{AggregatorLane, ConnectionKind, DesiredState};
use crate::observed::ConfigSnapshot;
use crate::pattern::Pattern;
use members::components;

pub(crate) use members::{MemberCandidate, ResolvedMembers, resolve_members};
pub use merge::{CONNECTION_NAME, MergedTable, ViewColumn, merge_tables};
pub use views::{AggregatorView, ViewChange, ViewChanges, diff_views};

/// Schema of hidden views. No role has USAGE on it: reading a view requires no privilege on the
/// views below it.
pub const HIDDEN_SCHEMA: &str = "spcd_union";

/// Prefix of an aggregator's target hash, which tells it from a hash of imported tables.
const HASH_PREFIX: &str = "aggregator:";
/// Separates the target hash from the fingerprints of members that were altered by hand.
const PROVISIONAL_SEPARATOR: &str = ":provisional:";

/// Returns the schema for the tables of a disabled connection that an aggregator shows. It is on no
/// search path, and no role has USAGE on it. No connection's name may begin like this.
pub fn hidden_schema(connection: &str) -> String {
    const PREFIX: &str = "spcd_member_";
    match PREFIX.len() + connection.len() <= diff::MAX_NAME_BYTES {
        true => format!("{PREFIX}{connection}"),
        false => format!("{PREFIX}{}", hash([connection])),
    }
}

/// Member of an aggregator: a connection with its tables.
#[derive(Debug, Clone, Copy)]
pub struct AggregatorMember<'a> {
    /// Name, which the views show as `connection_name`.
    pub name: &'a str,
    /// Schema of its tables.
    pub schema: &'a str,
    /// Tables in byte order of their names.
    pub tables: &'a [Table],
    /// Lane of the gateway whose views stand for the members.
    pub lane: Option<&'a AggregatorLane>,
}

/// View that spcd created for an aggregator, in its current state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExistingView {
    /// Name of the table that it shows, or shows a part of.
    pub table: String,
    /// Whether it is a part of another view, in [`HIDDEN_SCHEMA`].
    pub hidden: bool,
    /// Name of the view.
    pub name: String,
    /// Hash of the definition with which it was created.
    pub definition: String,
    /// Whether it exists.
    pub exists: bool,
    /// Whether its query was altered by hand.
    pub altered: bool,
    /// Columns; empty for hidden views, whose name determines them.
    pub columns: Vec<ViewColumn>,
    /// Users' objects that depend on it.
    pub dependents: BTreeSet<String>,
    /// Users' grants, comments and options, by column (`""` for the view). They are kept when the
    /// view is rebuilt, and lost when the view or the column is dropped.
    pub restorable: BTreeMap<String, BTreeSet<String>>,
    /// Whether members of `spcd_users` lack SELECT on it.
    pub unreadable: bool,
}

impl ExistingView {
    /// Lists everything of users that dropping the view would break or lose.
    fn dependents_text(&self) -> String {
        let retained = self.restorable.values().flatten();
        let all: BTreeSet<&str> = (self.dependents.iter().chain(retained))
            .map(String::as_str)
            .collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// Members and existing views of an aggregator.
#[derive(Debug, Clone, Default)]
pub struct AggregatorInput {
    /// Name, schema, and index into `shapes` of each member.
    pub members: Vec<(String, String, usize)>,
    /// Distinct lists of tables; many members share one.
    pub shapes: Vec<Vec<Table>>,
    /// Existing views.
    pub existing_views: Vec<ExistingView>,
    /// Names of relations in the schema that spcd did not create.
    pub taken_names: BTreeSet<String>,
    /// Number of locks that the server's lock table holds.
    pub lock_capacity: usize,
    /// The [`target_hash`] of this input.
    pub target_hash: String,
    /// Lanes of the gateway, one for each of `members`; empty if these are connections.
    pub lanes: Vec<AggregatorLane>,
}

impl AggregatorInput {
    /// Returns the members with their tables.
    pub fn members(&self) -> Vec<AggregatorMember<'_>> {
        let mut members = Vec::with_capacity(self.members.len());
        for (n, (name, schema, shape)) in self.members.iter().enumerate() {
            if let Some(tables) = self.shapes.get(*shape) {
                members.push(AggregatorMember {
                    name,
                    schema,
                    tables,
                    lane: self.lanes.get(n),
                });
            }
        }
        members
    }
}

/// Returns the connections whose tables each enabled aggregator shows, in byte order. An aggregator
/// among the members stands for its own members: a table is shown once, under its own connection's
/// name.
///
/// `retained` are the rows of connections whose configuration cannot be read now: those that the
/// patterns match stay members.
pub fn members<'a>(
    desired: &'a DesiredState,
    retained: &BTreeMap<&'a str, &'a ConfigSnapshot>,
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut direct: BTreeMap<&str, DirectMembers<'_>> = BTreeMap::new();
    let enabled = desired.connections.iter().filter(|(_, connection)| {
        connection.enabled && matches!(connection.kind, ConnectionKind::Aggregator { .. })
    });
    let enabled: Vec<&str> = enabled.map(|(name, _)| name.as_str()).collect();
    let mut open = enabled.clone();
    while let Some(name) = open.pop() {
        if let Entry::Vacant(vacant) = direct.entry(name) {
            let members = vacant.insert(direct_members(name, desired, retained));
            open.extend(members.aggregators.iter().copied());
        }
    }
    // Each component comes after those that it shows. Aggregators that are members of each other
    // show the same.
    let inner = |name: &&'a str| {
        direct
            .get(name)
            .map_or_else(Vec::new, |d| d.aggregators.clone())
    };
    let mut shown: BTreeMap<&str, Rc<BTreeSet<&str>>> = BTreeMap::new();
    for component in components(enabled.iter().copied(), &inner) {
        let mut leaves = BTreeSet::new();
        for members in component.iter().filter_map(|name| direct.get(name)) {
            leaves.extend(members.leaves.iter().copied());
            let inner = members
                .aggregators
                .iter()
                .filter_map(|name| shown.get(name));
            inner.for_each(|inner| leaves.extend(inner.iter().copied()));
        }
        let leaves = Rc::new(leaves);
        shown.extend(component.into_iter().map(|name| (name, leaves.clone())));
    }
    let leaves = |name: &'a str| {
        let leaves = shown.get(name).into_iter().flat_map(|leaves| leaves.iter());
        (name, leaves.copied().collect())
    };
    enabled.into_iter().map(leaves).collect()
}

/// Direct members of an aggregator, separated into aggregators and other connections.
#[derive(Default)]
struct DirectMembers<'a> {
    leaves: Vec<&'a str>,
    aggregators: Vec<&'a str>,
}

fn direct_members<'a>(
    name: &'a str,
    desired: &'a DesiredState,
    retained: &BTreeMap<&'a str, &'a ConfigSnapshot>,
) -> DirectMembers<'a> {
    let mut members: Vec<&str> = Vec::new();
    let (patterns, instance): (&[String], &str) =
        match (desired.connections.get(name), retained.get(name)) {
            (Some(connection), _) => {
                let ConnectionKind::Aggregator {
                    members: own,
                    patterns,
                } = &connection.kind
                else {
                    return DirectMembers::default();
                };
                members.extend(own.iter().map(String::as_str));
                (patterns, &connection.plugin_instance)
            }
            (None, Some(written)) => {
                let (patterns, instance) = (&written.connections, &written.plugin_instance);
                let matching = desired.connections.values().filter(|connection| {
                    connection.kind == ConnectionKind::Plugin
                        && matches_patterns(
                            patterns,
                            instance,
                            &connection.name,
                            &connection.plugin_instance,
                        )
                });
                members.extend(matching.map(|connection| connection.name.as_str()));
                (patterns, instance)
            }
            (None, None) => return DirectMembers::default(),
        };
    let picked = retained
        .iter()
        .filter(|(name, written)| match is_aggregator(written) {
            true => patterns.iter().any(|pattern| pattern == *name),
            false => matches_patterns(patterns, instance, name, &written.plugin_instance),
        });
    members.extend(picked.map(|(name, _)| *name));
    let mut direct = DirectMembers::default();
    for member in members {
        let kind = match (desired.connections.get(member), retained.get(member)) {
            (Some(connection), _) => Some(connection.kind != ConnectionKind::Plugin),
            (None, Some(written)) => Some(is_aggregator(written)),
            (None, None) => None,
        };
        match kind {
            Some(true) => direct.aggregators.push(member),
            Some(false) => direct.leaves.push(member),
            None => {}
        }
    }
    direct
}

/// [`ConfigSnapshot::kind`] of an aggregator.
const AGGREGATOR: &str = "aggregator";

/// Whether a row is that of an aggregator of this hub: a mirrored one has tables of its own.
fn is_aggregator(written: &ConfigSnapshot) -> bool {
    written.kind == AGGREGATOR && written.mirror.is_empty()
}

/// Returns whether an aggregator's patterns match a connection that is not an aggregator.
fn matches_patterns(patterns: &[String], instance: &str, name: &str, of: &str) -> bool {
    let matches = |text: &str| Pattern::new(text).is_ok_and(|pattern| pattern.matches(name));
    patterns
        .iter()
        .any(|one| one == name || (instance == of && matches(one)))
}

/// Returns the hash of an aggregator's members and of each member's tables.
pub fn target_hash<'a>(members: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> String {
    let mut parts = Vec::new();
    for (name, shape) in members {
        parts.extend([name, shape.unwrap_or_default()]);
    }
    format!("{HASH_PREFIX}{}", hash(parts))
}

/// Returns the target hash of an aggregator that reads lanes of the gateway.
pub(crate) fn lanes_hash(lanes: &[AggregatorLane]) -> String {
    let mut parts = vec!["lanes".to_owned()];
    for lane in lanes {
        parts.extend([
            lane.lane.server(),
            lane.schema.clone(),
            lane.shape_hash.clone(),
        ]);
        parts.push(lane.members.len().to_string());
        parts.extend(lane.members.iter().cloned());
    }
    format!("{HASH_PREFIX}{}", hash(parts.iter().map(String::as_str)))
}

/// Returns the target hash for members of which some were altered by hand; `drifted` are their
/// fingerprints. Repairing those members changes the hash, so the aggregator is compared again.
pub fn provisional_hash<'a>(
    target_hash: &str,
    drifted: impl IntoIterator<Item = &'a str>,
) -> String {
    format!("{target_hash}{PROVISIONAL_SEPARATOR}{}", hash(drifted))
}

/// Returns the [`target_hash`] within a provisional hash; `None` for any other hash.
pub fn provisional_base(target_hash: &str) -> Option<&str> {
    let (target_hash, _) = target_hash.split_once(PROVISIONAL_SEPARATOR)?;
    Some(target_hash)
}

/// Returns whether a target hash is an aggregator's.
pub fn is_aggregator_hash(target_hash: &str) -> bool {
    target_hash.starts_with(HASH_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SourceFile, load_plain};

    fn load(text: &str) -> DesiredState {
        load_plain(&[SourceFile {
            path: "x.spc".into(),
            text: Ok(text.into()),
        }])
    }

    fn written(kind: &str, connections: &[&str]) -> ConfigSnapshot {
        ConfigSnapshot {
            plugin_instance: "postgres".into(),
            kind: kind.into(),
            connections: connections.iter().map(|one| (*one).to_owned()).collect(),
            ..ConfigSnapshot::default()
        }
    }

    const FILES: &str = r#"
connection "a1" {
  plugin = "postgres"
}
connection "a2" {
  plugin        = "postgres"
  import_schema = "disabled"
}
connection "my" {
  plugin = "mysql"
}
connection "in" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["a*", "my"]
}
connection "out" {
  plugin      = "postgres"
  type        = "aggregator"
  connections = ["in", "a1", "gone", "kept_in"]
}
"#;

    #[test]
    fn aggregators_stand_for_their_members_and_each_is_there_once() {
        let desired = load(FILES);
        let all = members(&desired, &BTreeMap::new());
        assert_eq!(all["in"], ["a1", "a2", "my"]);
        assert_eq!(all["out"], ["a1", "a2", "my"]);
    }

    #[test]
    fn what_cannot_be_read_now_stays_a_member() {
        let desired = load(FILES);
        let (plugin, other) = (written("plugin", &[]), ConfigSnapshot::default());
        let inner = written("aggregator", &["z*", "a2"]);
        let retained = BTreeMap::from([
            ("a9", &plugin),
            ("a8", &other),
            ("gone", &plugin),
            ("kept_in", &inner),
            ("z", &plugin),
            ("y", &plugin),
        ]);
        let all = members(&desired, &retained);
        assert_eq!(all["in"], ["a1", "a2", "a9", "my"]);
        assert_eq!(all["out"], ["a1", "a2", "a9", "gone", "my", "z"]);
    }
}
