//! Views of an aggregator, and the smallest changes from the existing ones.

mod partition;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::parts::{LanePart, lane_parts};
use super::{
    AggregatorInput, AggregatorMember, ExistingView, HIDDEN_SCHEMA, MergedTable, ViewColumn, hash,
    merge_tables,
};
use crate::diff::{Column, Table, TableWarning};
use crate::sql;
use partition::{part_count, part_count_of, part_of};

/// Condition that keeps the planner from flattening all parts into one list, which it would process
/// once more for each part. A subquery with any condition is planned separately, before the planner
/// finds that this one is always true. For 6,000 members planning takes 0.3 s instead of 17 s.
const PLANNER_BARRIER: &str = "WHERE true";
/// Maximum number of columns of a view: the server's limit for tables.
const MAX_VIEW_COLUMNS: usize = 1600;

/// Desired view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregatorView {
    /// Name of the table that it shows, or shows a part of.
    pub table: String,
    /// Whether it is a part of another view.
    pub hidden: bool,
    /// Name of the view.
    pub name: String,
    /// Columns.
    pub columns: Vec<ViewColumn>,
    /// Query.
    pub query: String,
    /// Number of members' tables or parts that it reads.
    pub branches: usize,
    /// Server, if it is a foreign table and `query` its statements.
    pub server: Option<String>,
}

/// Change of one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewChange {
    /// Creates a view.
    Create(AggregatorView),
    /// Replaces the query of a view with the same columns, or with more at the end. Dependent
    /// objects stay.
    Replace(AggregatorView),
    /// Drops and creates a view with other columns, and restores its grants and comments.
    Rebuild(AggregatorView),
    /// Drops a view that is no longer needed.
    Drop {
        /// Whether it is a hidden part.
        hidden: bool,
        /// Name of the view.
        name: String,
    },
}

/// Changes from the existing to the desired views.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ViewChanges {
    /// Changes in no particular order; empty if nothing differs.
    pub views: Vec<ViewChange>,
    /// Tables that the views show after the changes.
    pub tables: Vec<Table>,
    /// Warnings about columns that are left out, and tables that are unchanged.
    pub warnings: Vec<String>,
    /// Warnings about tables that get no view.
    pub left_out: Vec<TableWarning>,
}

impl AggregatorView {
    /// Returns the hash of its definition.
    pub fn definition(&self) -> String {
        let names = self.columns.iter().map(|column| column.name.as_str());
        hash(names.chain([self.query.as_str()]))
    }

    /// Returns the statement that creates or replaces it.
    pub fn statement(&self, aggregator: &str) -> String {
        if self.server.is_some() {
            return self.query.clone();
        }
        let columns: Vec<_> = (self.columns.iter())
            .map(|column| sql::ident(&column.name))
            .collect();
        format!(
            "CREATE OR REPLACE VIEW {} ({}) AS {};\n",
            sql::qualified(view_schema(aggregator, self.hidden), &self.name),
            columns.join(", "),
            self.query
        )
    }

    fn table(&self) -> Table {
        let column = |column: &ViewColumn| Column {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            collation: column.collation.clone(),
            ..Column::default()
        };
        Table {
            name: self.name.clone(),
            columns: self.columns.iter().map(column).collect(),
            ..Table::default()
        }
    }
}

/// Returns the schema of an aggregator's view.
pub fn view_schema(aggregator: &str, hidden: bool) -> &str {
    match hidden {
        true => HIDDEN_SCHEMA,
        false => aggregator,
    }
}

/// Returns the changes of an aggregator's views, limited to the tables in `only` if given.
///
/// With `keep_columns`, existing views keep their columns and only stop reading columns that no member has
/// any more; the rest is left to the aggregator's own update.
pub fn diff_views(
    aggregator: &str,
    found: &AggregatorInput,
    only: Option<&BTreeSet<String>>,
    keep_columns: bool,
) -> ViewChanges {
    let members = found.members();
    let mut member_tables: BTreeMap<&str, Vec<(AggregatorMember<'_>, &Table)>> = BTreeMap::new();
    for member in &members {
        for table in member.tables {
            member_tables
                .entry(&table.name)
                .or_default()
                .push((*member, table));
        }
    }
    let mut made: BTreeMap<&str, Vec<&ExistingView>> = BTreeMap::new();
    for view in &found.existing_views {
        made.entry(&view.table).or_default().push(view);
        member_tables.entry(&view.table).or_default();
    }
    let mut changes = ViewChanges::default();
    for (table, member_tables) in member_tables {
        if only.is_some_and(|only| !only.contains(table)) {
            continue;
        }
        let made = made.get(table).map_or(&[][..], Vec::as_slice);
        let taken = found.taken_names.contains(table);
        diff_table_views(
            aggregator,
            table,
            &member_tables,
            made,
            taken,
            keep_columns,
            &mut changes,
        );
    }
    changes
}

/// Adds the changes of the views of one table.
fn diff_table_views(
    aggregator: &str,
    name: &str,
    member_tables: &[(AggregatorMember<'_>, &Table)],
    made: &[&ExistingView],
    taken: bool,
    keep_columns: bool,
    changes: &mut ViewChanges,
) {
    let top = made.iter().copied().find(|view| !view.hidden);
    let there = top.filter(|view| view.exists);
    let keep = there.is_some_and(|view| {
        keep_columns
            || !view.dependents.is_empty()
            || (member_tables.is_empty() && !view.restorable.is_empty())
    });
    if keep_columns && !keep {
        return;
    }
    let mut desired = Vec::new();
    if taken && there.is_none() {
        let why = "something else in the schema has its name";
        changes
            .left_out
            .push(TableWarning::new(name, "is left out", why));
    } else if !member_tables.is_empty() || keep {
        let merged = merge_tables(name, member_tables, there, keep_columns);
        if merged.columns.len() > MAX_VIEW_COLUMNS {
            let why = format!("its members have more than {MAX_VIEW_COLUMNS} columns together");
            changes
                .left_out
                .push(TableWarning::new(name, "is left out", &why));
        } else {
            desired = views(aggregator, name, member_tables, &merged, made);
            changes.warnings.extend(merged.warnings);
        }
        if member_tables.is_empty() {
            changes.warnings.push(format!(
                "table {name:?} stays, empty, though no member has it any more: dropping it would \
                 break or lose {}",
                there.map(ExistingView::dependents_text).unwrap_or_default()
            ));
        }
    }
    let names: BTreeSet<_> = desired
        .iter()
        .map(|view| (view.hidden, view.name.clone()))
        .collect();
    for old in made
        .iter()
        .filter(|old| !names.contains(&(old.hidden, old.name.clone())))
    {
        changes.views.push(ViewChange::Drop {
            hidden: old.hidden,
            name: old.name.clone(),
        });
    }
    for view in desired {
        if !view.hidden {
            changes.tables.push(view.table());
        }
        let old = made
            .iter()
            .find(|old| old.hidden == view.hidden && old.name == view.name);
        changes.views.extend(match old {
            Some(old) if !old.exists => Some(ViewChange::Create(view)),
            Some(old) if !old.altered && old.definition == view.definition() => None,
            // A part's name contains a hash of its columns, so an existing part has the right ones.
            Some(old) if view.hidden || view.columns.starts_with(&old.columns) => {
                Some(ViewChange::Replace(view))
            }
            Some(_) => Some(ViewChange::Rebuild(view)),
            None => Some(ViewChange::Create(view)),
        });
    }
}

/// Returns the views of one table: its parts, if any, before the public view.
fn views(
    aggregator: &str,
    name: &str,
    member_tables: &[(AggregatorMember<'_>, &Table)],
    merged: &MergedTable,
    made: &[&ExistingView],
) -> Vec<AggregatorView> {
    let has_lanes = member_tables
        .iter()
        .any(|(member, _)| member.lane.is_some());
    let (mut views, branches) = match has_lanes {
        true => lane_views(member_tables, merged, made),
        false => part_views(aggregator, name, member_tables, merged, made),
    };
    views.push(union_view(false, name.to_owned(), branches, merged));
    for view in &mut views {
        view.table = name.to_owned();
    }
    views
}

/// Returns the view that joins SELECTs, which are all of the merged table's columns.
fn union_view(
    hidden: bool,
    name: String,
    branches: Vec<String>,
    merged: &MergedTable,
) -> AggregatorView {
    AggregatorView {
        table: String::new(),
        hidden,
        name,
        columns: merged.columns.clone(),
        branches: branches.len(),
        server: None,
        query: match branches.is_empty() {
            true => merged.empty_select(),
            false => branches.join("\nUNION ALL "),
        },
    }
}

/// Returns the foreign tables over the views of lanes, and the SELECT of each.
fn lane_views(
    member_tables: &[(AggregatorMember<'_>, &Table)],
    merged: &MergedTable,
    made: &[&ExistingView],
) -> (Vec<AggregatorView>, Vec<String>) {
    let (parts, branches) = lane_parts(member_tables, merged, made);
    let view = |part: LanePart| AggregatorView {
        table: String::new(),
        hidden: true,
        name: part.name,
        columns: part.columns,
        query: part.statements,
        branches: 1,
        server: Some(part.server),
    };
    (parts.into_iter().map(view).collect(), branches)
}

/// Returns the hidden parts of a view with many members, and the SELECT of each; with few members no
/// part, and the SELECT of each member.
fn part_views(
    aggregator: &str,
    name: &str,
    member_tables: &[(AggregatorMember<'_>, &Table)],
    merged: &MergedTable,
    made: &[&ExistingView],
) -> (Vec<AggregatorView>, Vec<String>) {
    let branches = (member_tables.iter())
        .filter(|(member, _)| !merged.excluded_members.contains(member.name))
        .map(|(member, table)| (member.name, merged.member_select(member, table)));
    let was = made.iter().find_map(|view| part_count_of(view));
    let parts = part_count(member_tables.len(), was);
    if parts == 1 {
        return (Vec::new(), branches.map(|(_, branch)| branch).collect());
    }
    let mut split: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (member, branch) in branches {
        split
            .entry(part_of(member, parts))
            .or_default()
            .push(branch);
    }
    let columns = merged.columns.iter().flat_map(|column| {
        [
            column.name.as_str(),
            &column.data_type,
            column.collation.as_deref().unwrap_or(""),
        ]
    });
    let stem = hash([aggregator, name].into_iter().chain(columns));
    let list: Vec<_> = (merged.columns.iter())
        .map(|column| sql::ident(&column.name))
        .collect();
    let list = list.join(", ");
    let (mut views, mut selects) = (Vec::new(), Vec::new());
    for (part, branches) in split {
        let part = format!("{}_{parts}_{part}", &stem[..24]);
        let from = sql::qualified(HIDDEN_SCHEMA, &part);
        selects.push(format!("SELECT {list} FROM {from} {PLANNER_BARRIER}"));
        views.push(union_view(true, part, branches, merged));
    }
    (views, selects)
}

fn drop_view(schema: &str, name: &str) -> String {
    let (schema, name) = (sql::literal(schema), sql::literal(name));
    format!("SELECT spcd.drop_view({schema}, {name});\n")
}

/// Returns a call of `spcd.set_aside`, which drops a view and keeps its grants and comments, or of
/// `spcd.restore`.
fn call_on_view(function: &str, aggregator: &str, view: &str) -> String {
    let (aggregator, view) = (sql::literal(aggregator), sql::literal(view));
    format!("SELECT spcd.{function}({aggregator}, {view});\n")
}

impl ViewChanges {
    /// Returns the statements in an order that works in one transaction; empty if nothing differs.
    pub fn statements(&self, aggregator: &str, found: &AggregatorInput, readers: bool) -> String {
        let mut out = String::new();
        if self.views.is_empty() {
            return out;
        }
        out.push_str(&self.claim(aggregator, found));
        // Public views are dropped first and created last: they depend on the hidden ones.
        for change in &self.views {
            match change {
                ViewChange::Rebuild(view) => {
                    out.push_str(&call_on_view("set_aside", aggregator, &view.name));
                }
                ViewChange::Drop {
                    hidden: false,
                    name,
                } => out.push_str(&drop_view(aggregator, name)),
                _ => {}
            }
        }
        let mut new = Vec::new();
        for hidden in [true, false] {
            for change in &self.views {
                let (ViewChange::Create(view)
                | ViewChange::Replace(view)
                | ViewChange::Rebuild(view)) = change
                else {
                    continue;
                };
                if view.hidden != hidden {
                    continue;
                }
                out.push_str(&view.statement(aggregator));
                match change {
                    ViewChange::Create(_) if !hidden => new.push(view.name.as_str()),
                    ViewChange::Rebuild(_) => {
                        out.push_str(&call_on_view("restore", aggregator, &view.name));
                    }
                    _ => {}
                }
            }
        }
        for change in &self.views {
            if let ViewChange::Drop { hidden: true, name } = change {
                out.push_str(&drop_view(HIDDEN_SCHEMA, name));
            }
        }
        if readers && !new.is_empty() {
            out.push_str(&sql::grant_tables(aggregator, new));
        }
        // A member may come from another lane, and have changed meanwhile.
        let parts = self.views.iter().filter_map(ViewChange::desired_view);
        let servers: BTreeSet<&String> = parts.filter_map(|part| part.server.as_ref()).collect();
        let touches = servers
            .into_iter()
            .map(|server| sql::touch_lane(server, "spcd hub"));
        out.extend(touches);
        out.push_str(&self.record(aggregator));
        out
    }

    /// Applies the changes to an input, as the next observation will see them.
    pub fn apply_to(&self, found: &mut AggregatorInput) {
        for change in &self.views {
            let (hidden, name) = change.key();
            let is_it = |made: &ExistingView| made.hidden == hidden && made.name == name;
            let old = found.existing_views.iter().position(is_it);
            let old = old.map(|n| found.existing_views.swap_remove(n));
            if let Some(view) = change.desired_view() {
                found.existing_views.push(ExistingView {
                    table: view.table.clone(),
                    hidden,
                    name: name.to_owned(),
                    definition: view.definition(),
                    exists: true,
                    altered: false,
                    columns: view.columns.clone(),
                    dependents: (old.as_ref())
                        .map(|old| old.dependents.clone())
                        .unwrap_or_default(),
                    restorable: old.map(|old| old.restorable).unwrap_or_default(),
                    unreadable: false,
                });
            }
        }
    }

    /// Returns the statement that fails if another session changed one of the views since they were
    /// observed.
    fn claim(&self, aggregator: &str, found: &AggregatorInput) -> String {
        let known: BTreeMap<_, _> = (found.existing_views.iter())
            .map(|view| ((view.hidden, view.name.as_str()), view.definition.as_str()))
            .collect();
        let views = self.views.iter().map(|change| {
            let (hidden, name) = change.key();
            let was = known.get(&(hidden, name));
            serde_json::json!({"hidden": hidden, "name": name, "was": was})
        });
        let views = serde_json::Value::Array(views.collect()).to_string();
        format!(
            "SELECT spcd.claim_views({}, {}::jsonb);\n",
            sql::literal(aggregator),
            sql::literal(&views)
        )
    }

    fn record(&self, aggregator: &str) -> String {
        let views = self.views.iter().map(|change| {
            let (hidden, name) = change.key();
            let view = change.desired_view();
            let table = view.map(|view| &view.table);
            let definition = view.map(AggregatorView::definition);
            serde_json::json!({"hidden": hidden, "name": name, "table": table, "definition": definition})
        });
        let views = serde_json::Value::Array(views.collect()).to_string();
        format!(
            "SELECT spcd.record_views({}, {}::jsonb);\n",
            sql::literal(aggregator),
            sql::literal(&views)
        )
    }

    /// Returns the number of relations that the statements touch, which is the measure of their
    /// locks.
    pub fn locks(&self) -> usize {
        self.views.iter().map(ViewChange::locks).sum()
    }

    /// Divides the changes into batches of at most `most` locks (or of one view), one transaction
    /// each. Every batch leaves the views consistent.
    pub fn batches(mut self, most: usize) -> Vec<ViewChanges> {
        let rank = |change: &ViewChange| match change {
            ViewChange::Drop { hidden: true, .. } => 2,
            change if change.key().0 => 0,
            _ => 1,
        };
        self.views.sort_by_key(rank);
        let mut packages: Vec<ViewChanges> = Vec::new();
        let mut size = 0;
        for change in self.views {
            let locks = change.locks();
            match packages.last_mut() {
                Some(package) if size + locks <= most => package.views.push(change),
                _ => {
                    size = 0;
                    packages.push(ViewChanges {
                        views: vec![change],
                        ..ViewChanges::default()
                    });
                }
            }
            size += locks;
        }
        packages
    }
}

impl ViewChange {
    /// Returns whether it is a hidden part, and its name.
    pub fn key(&self) -> (bool, &str) {
        match self {
            ViewChange::Create(view) | ViewChange::Replace(view) | ViewChange::Rebuild(view) => {
                (view.hidden, &view.name)
            }
            ViewChange::Drop { hidden, name } => (*hidden, name),
        }
    }

    /// Returns the desired view; `None` if it is dropped.
    fn desired_view(&self) -> Option<&AggregatorView> {
        match self {
            ViewChange::Create(view) | ViewChange::Replace(view) | ViewChange::Rebuild(view) => {
                Some(view)
            }
            ViewChange::Drop { .. } => None,
        }
    }

    fn locks(&self) -> usize {
        match self {
            // The view, its row type and its rule, besides the relations that it reads.
            ViewChange::Create(view) | ViewChange::Replace(view) | ViewChange::Rebuild(view) => {
                view.branches + 3
            }
            ViewChange::Drop { .. } => 3,
        }
    }
}

impl fmt::Display for ViewChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hidden, name) = self.key();
        let what = if hidden { "part" } else { "view" };
        match self {
            ViewChange::Create(view) => write!(f, "+ {what} {name} ({})", view.branches),
            ViewChange::Replace(view) => write!(f, "~ {what} {name} ({})", view.branches),
            ViewChange::Rebuild(view) => write!(f, "± {what} {name} ({})", view.branches),
            ViewChange::Drop { .. } => write!(f, "- {what} {name}"),
        }
    }
}

#[cfg(test)]
mod tests;
