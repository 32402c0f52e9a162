//! Aggregators: a view over the same-named tables of many connections, for each of their names.
//!
//! What a view shows is a function of what its members have, [`merge()`]; how it comes to show it,
//! from what is there, is [`changes`]. Above 80 members a view is one over hidden views of
//! about 50 members each: a flat one over thousands exceeds the server's stack, plans slower, and
//! is written anew as a whole when one member comes or goes.

mod merge;
mod views;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::aggregate::components;
use crate::hash::hash;
use crate::model::{Desired, Kind};
use crate::observed::Written;
use crate::pattern::Pattern;
use crate::shape::{self, Table};

pub use merge::{CONNECTION_NAME, Merged, ViewColumn, merge};
pub use views::{Changes, View, ViewChange, changes};

/// The schema of the views that are only parts of others. Nobody is granted its use: who reads a
/// view needs no right to the views below it.
pub const HIDDEN_SCHEMA: &str = "spcd_union";

/// Marks the target hash of an aggregator, so that what was made by one is known from what was
/// imported.
const MARK: &str = "aggregator:";
/// Marks the hash of one that was made from members that were altered by hand.
const PROVISIONAL: &str = ":provisional:";

/// Where the tables of a disabled connection are as long as aggregators show them: not on the
/// search path, and nobody is granted its use. The name is spcd's own (no connection may begin so).
pub fn hidden_schema(connection: &str) -> String {
    const PREFIX: &str = "spcd_member_";
    match PREFIX.len() + connection.len() <= shape::LONGEST_NAME {
        true => format!("{PREFIX}{connection}"),
        false => format!("{PREFIX}{}", hash([connection])),
    }
}

/// A connection whose tables take part.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its name: what the views show as `connection_name`.
    pub name: &'a str,
    /// Where its tables are.
    pub schema: &'a str,
    /// Its tables, in byte order of their names.
    pub tables: &'a [Table],
}

/// A view that spcd made for an aggregator, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Made {
    /// The table that it shows, or shows a part of.
    pub table: String,
    /// Only a part of another view, in [`HIDDEN_SCHEMA`].
    pub hidden: bool,
    /// Its own name.
    pub name: String,
    /// The hash of the statement by which it was made.
    pub definition: String,
    /// It is there.
    pub there: bool,
    /// Somebody altered what it says.
    pub altered: bool,
    /// Its columns; not given for hidden ones, whose name tells.
    pub columns: Vec<ViewColumn>,
    /// Objects of users that depend on it.
    pub dependents: BTreeSet<String>,
    /// Grants, comments and options of users, by column (`""`: of the view): kept when the view is
    /// made again, lost when it or the column is dropped.
    pub kept_aside: BTreeMap<String, BTreeSet<String>>,
    /// Members of `spcd_users` cannot read it.
    pub unreadable: bool,
}

impl Made {
    /// Lists everything of users that dropping the view would break or lose.
    fn of_users(&self) -> String {
        let kept = self.kept_aside.values().flatten();
        let all: BTreeSet<&str> = (self.dependents.iter().chain(kept))
            .map(String::as_str)
            .collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// What an aggregator is made from, and what was made of it.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Name, schema, and which of the shapes.
    pub members: Vec<(String, String, usize)>,
    /// Many members have the same tables.
    pub shapes: Vec<Vec<Table>>,
    /// The views.
    pub made: Vec<Made>,
    /// Names in the schema that a view cannot have: relations that spcd did not make.
    pub others: BTreeSet<String>,
    /// How many locks the server can hand out.
    pub locks: usize,
    /// The [`target_hash`] of just this.
    pub target_hash: String,
}

impl Found {
    /// The members, each with its tables.
    pub fn members(&self) -> Vec<Member<'_>> {
        let mut members = Vec::with_capacity(self.members.len());
        for (name, schema, shape) in &self.members {
            if let Some(tables) = self.shapes.get(*shape) {
                members.push(Member {
                    name,
                    schema,
                    tables,
                });
            }
        }
        members
    }
}

/// The connections whose tables each enabled aggregator shows, in byte order. An aggregator among
/// the members stands for its own: a table is shown once, under its own connection's name.
///
/// `kept` are connections, as their rows have them, whose configuration cannot be read now: those
/// that the patterns pick stay.
pub fn members<'a>(
    desired: &'a Desired,
    kept: &BTreeMap<&'a str, &'a Written>,
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut direct: BTreeMap<&str, Direct<'_>> = BTreeMap::new();
    let enabled = desired.connections.iter().filter(|(_, connection)| {
        connection.enabled && matches!(connection.kind, Kind::Aggregator { .. })
    });
    let enabled: Vec<&str> = enabled.map(|(name, _)| name.as_str()).collect();
    let mut open = enabled.clone();
    while let Some(name) = open.pop() {
        if let Entry::Vacant(vacant) = direct.entry(name) {
            let members = vacant.insert(direct_members(name, desired, kept));
            open.extend(members.aggregators.iter().copied());
        }
    }
    // Each after those that it shows: aggregators that are members of each other show the same.
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

/// The members of an aggregator: those that are aggregators themselves, and all others.
#[derive(Default)]
struct Direct<'a> {
    leaves: Vec<&'a str>,
    aggregators: Vec<&'a str>,
}

fn direct_members<'a>(
    name: &'a str,
    desired: &'a Desired,
    kept: &BTreeMap<&'a str, &'a Written>,
) -> Direct<'a> {
    let mut members: Vec<&str> = Vec::new();
    let (patterns, instance): (&[String], &str) =
        match (desired.connections.get(name), kept.get(name)) {
            (Some(connection), _) => {
                let Kind::Aggregator {
                    members: own,
                    patterns,
                } = &connection.kind
                else {
                    return Direct::default();
                };
                members.extend(own.iter().map(String::as_str));
                (patterns, &connection.plugin_instance)
            }
            (None, Some(written)) => {
                let (patterns, instance) = (&written.connections, &written.plugin_instance);
                let wanted = desired.connections.values().filter(|wanted| {
                    wanted.kind == Kind::Plugin
                        && picks(patterns, instance, &wanted.name, &wanted.plugin_instance)
                });
                members.extend(wanted.map(|wanted| wanted.name.as_str()));
                (patterns, instance)
            }
            (None, None) => return Direct::default(),
        };
    let picked = kept
        .iter()
        .filter(|(name, written)| match written.kind == AGGREGATOR {
            true => patterns.iter().any(|pattern| pattern == *name),
            false => picks(patterns, instance, name, &written.plugin_instance),
        });
    members.extend(picked.map(|(name, _)| *name));
    let mut direct = Direct::default();
    for member in members {
        let kind = match (desired.connections.get(member), kept.get(member)) {
            (Some(connection), _) => Some(connection.kind != Kind::Plugin),
            (None, Some(written)) => Some(written.kind == AGGREGATOR),
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

/// [`Written::kind`] of an aggregator.
const AGGREGATOR: &str = "aggregator";

/// Whether an aggregator's patterns pick a connection that is none.
fn picks(patterns: &[String], instance: &str, name: &str, of: &str) -> bool {
    let matches = |text: &str| Pattern::new(text).is_ok_and(|pattern| pattern.matches(name));
    patterns
        .iter()
        .any(|one| one == name || (instance == of && matches(one)))
}

/// The hash of what an aggregator is made from: its members and, of each that has tables, the hash
/// of their shapes.
pub fn target_hash<'a>(members: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> String {
    let mut parts = Vec::new();
    for (name, shape) in members {
        parts.extend([name, shape.unwrap_or_default()]);
    }
    format!("{MARK}{}", hash(parts))
}

/// The same where some members were altered by hand: `drifted` are their fingerprints. What is made
/// from them is looked at again when they are mended.
pub fn provisional_hash<'a>(
    target_hash: &str,
    drifted: impl IntoIterator<Item = &'a str>,
) -> String {
    format!("{target_hash}{PROVISIONAL}{}", hash(drifted))
}

/// The [`target_hash`] of an aggregator that was made while members were altered by hand; `None` if
/// none was.
pub fn provisional(target_hash: &str) -> Option<&str> {
    let (target_hash, _) = target_hash.split_once(PROVISIONAL)?;
    Some(target_hash)
}

/// Whether a target's hash is that of an aggregator.
pub fn is_of_aggregator(target_hash: &str) -> bool {
    target_hash.starts_with(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, load_plain};

    fn load(text: &str) -> Desired {
        load_plain(&[Source {
            path: "x.spc".into(),
            text: Ok(text.into()),
        }])
    }

    fn written(kind: &str, connections: &[&str]) -> Written {
        Written {
            plugin_instance: "postgres".into(),
            kind: kind.into(),
            connections: connections.iter().map(|one| (*one).to_owned()).collect(),
            ..Written::default()
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
        let (plugin, other) = (written("plugin", &[]), Written::default());
        let inner = written("aggregator", &["z*", "a2"]);
        let kept = BTreeMap::from([
            ("a9", &plugin),
            ("a8", &other),
            ("gone", &plugin),
            ("kept_in", &inner),
            ("z", &plugin),
            ("y", &plugin),
        ]);
        let all = members(&desired, &kept);
        assert_eq!(all["in"], ["a1", "a2", "a9", "my"]);
        assert_eq!(all["out"], ["a1", "a2", "a9", "gone", "my", "z"]);
    }
}
