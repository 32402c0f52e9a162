//! The views of an aggregator, and the smallest way to them from those that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Found, HIDDEN_SCHEMA, Made, Member, Merged, ViewColumn, hash, merge};
use crate::shape::{Column, Table};
use crate::sql;

/// A view over more members than this is made of parts.
const MOST_DIRECT: usize = 80;
/// How many members a part has on average. To plan a query over 1,000 members with 20 columns takes
/// 57 ms of processor time with parts of 50 and 96 ms with parts of 100, but more parts are more views.
const PER_PART: usize = 50;
/// Parts are divided anew only outside of this, so that a member more or less moves no other.
const FEWEST_PER_PART: usize = 15;
/// What keeps the planner from making one flat list of all parts' members, which it would go through
/// once more for each part: a subquery with any condition is planned by itself. It does so before it
/// finds that this one says nothing. Of 6,000 members: 0.3 s instead of 17 s.
const APART: &str = "WHERE true";
/// What a view may have; the server's limit for the columns of a table.
const MOST_COLUMNS: usize = 1600;

/// A view as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The table that it shows, or shows a part of.
    pub table: String,
    /// Only a part of another.
    pub hidden: bool,
    /// Its own name.
    pub name: String,
    /// Its columns.
    pub columns: Vec<ViewColumn>,
    /// Its query.
    pub query: String,
    /// How many members' tables, or parts, it reads.
    pub branches: usize,
}

/// What becomes of one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewChange {
    /// A new one.
    Create(View),
    /// One that says something else under the same columns, or with more at its end. What hangs
    /// on it stays.
    Replace(View),
    /// One with other columns: dropped and made again, with the grants and comments it had.
    Rebuild(View),
    /// One that nobody needs any more.
    Drop {
        /// Whether it was only a part.
        hidden: bool,
        /// Its name.
        name: String,
    },
}

/// What leads from the views that are there to those that are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// In no particular order; empty if nothing differs.
    pub views: Vec<ViewChange>,
    /// What the views show once all is done, as tables.
    pub tables: Vec<Table>,
    /// What is left out or stays as it was, and why.
    pub warnings: Vec<String>,
}

impl View {
    /// The hash of its definition.
    pub fn definition(&self) -> String {
        let names = self.columns.iter().map(|column| column.name.as_str());
        hash(names.chain([self.query.as_str()]))
    }

    /// The statement that makes it, or says anew what it shows.
    pub fn statement(&self, aggregator: &str) -> String {
        let columns: Vec<_> = (self.columns.iter())
            .map(|column| sql::ident(&column.name))
            .collect();
        format!(
            "CREATE OR REPLACE VIEW {} ({}) AS {};\n",
            sql::qualified(schema(aggregator, self.hidden), &self.name),
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

/// Where a view of an aggregator is.
pub fn schema(aggregator: &str, hidden: bool) -> &str {
    match hidden {
        true => HIDDEN_SCHEMA,
        false => aggregator,
    }
}

/// What is to become of an aggregator's views; of those of some tables only, if `only` names them.
///
/// `hold`: the views that are there keep their columns for now, so that they only let go of what
/// no member has any more; what that leaves open is for another turn.
pub fn changes(
    aggregator: &str,
    found: &Found,
    only: Option<&BTreeSet<String>>,
    hold: bool,
) -> Changes {
    let members = found.members();
    let mut having: BTreeMap<&str, Vec<(Member<'_>, &Table)>> = BTreeMap::new();
    for member in &members {
        for table in member.tables {
            having
                .entry(&table.name)
                .or_default()
                .push((*member, table));
        }
    }
    let mut made: BTreeMap<&str, Vec<&Made>> = BTreeMap::new();
    for view in &found.made {
        made.entry(&view.table).or_default().push(view);
        having.entry(&view.table).or_default();
    }
    let mut changes = Changes::default();
    for (table, having) in having {
        if only.is_some_and(|only| !only.contains(table)) {
            continue;
        }
        let made = made.get(table).map_or(&[][..], Vec::as_slice);
        let taken = found.others.contains(table);
        one(aggregator, table, &having, made, taken, hold, &mut changes);
    }
    changes
}

/// What becomes of the views of one table.
fn one(
    aggregator: &str,
    name: &str,
    having: &[(Member<'_>, &Table)],
    made: &[&Made],
    taken: bool,
    hold: bool,
    changes: &mut Changes,
) {
    let top = made.iter().copied().find(|view| !view.hidden);
    let there = top.filter(|view| view.there);
    let was = made.iter().find_map(|view| parts_of(view));
    let keep = there.is_some_and(|view| {
        hold || !view.dependents.is_empty() || (having.is_empty() && !view.kept_aside.is_empty())
    });
    if hold && !keep {
        return;
    }
    let mut wanted = Vec::new();
    if taken && there.is_none() {
        changes.warnings.push(format!(
            "table {name:?} is left out: something else in the schema has its name"
        ));
    } else if !having.is_empty() || keep {
        let merged = merge(name, having, there, hold);
        if merged.columns.len() > MOST_COLUMNS {
            changes.warnings.push(format!(
                "table {name:?} is left out: its members have more than {MOST_COLUMNS} columns \
                 together"
            ));
        } else {
            wanted = views(aggregator, name, having, &merged, was);
            changes.warnings.extend(merged.warnings);
        }
        if having.is_empty() {
            changes.warnings.push(format!(
                "table {name:?} stays, empty, though no member has it any more: dropping it would \
                 break or lose {}",
                there.map(Made::of_users).unwrap_or_default()
            ));
        }
    }
    let names: BTreeSet<_> = wanted
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
    for view in wanted {
        if !view.hidden {
            changes.tables.push(view.table());
        }
        let old = made
            .iter()
            .find(|old| old.hidden == view.hidden && old.name == view.name);
        changes.views.extend(match old {
            Some(old) if !old.there => Some(ViewChange::Create(view)),
            Some(old) if !old.altered && old.definition == view.definition() => None,
            // A part's name tells its columns, so one that is there has them.
            Some(old) if view.hidden || view.columns.starts_with(&old.columns) => {
                Some(ViewChange::Replace(view))
            }
            Some(_) => Some(ViewChange::Rebuild(view)),
            None => Some(ViewChange::Create(view)),
        });
    }
}

/// The views of one table: parts, if there are any, before the one that people read.
fn views(
    aggregator: &str,
    name: &str,
    having: &[(Member<'_>, &Table)],
    merged: &Merged,
    was: Option<usize>,
) -> Vec<View> {
    let view = |hidden, name: String, branches: Vec<String>| View {
        table: String::new(),
        hidden,
        name,
        columns: merged.columns.clone(),
        branches: branches.len(),
        query: match branches.is_empty() {
            true => merged.no_branch(),
            false => branches.join("\nUNION ALL "),
        },
    };
    let branches = (having.iter())
        .filter(|(member, _)| !merged.left_out.contains(member.name))
        .map(|(member, table)| (member.name, merged.branch(member, table)));
    let parts = parts(having.len(), was);
    let mut views = Vec::new();
    let all = if parts == 1 {
        branches.map(|(_, branch)| branch).collect()
    } else {
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
        let mut all = Vec::new();
        for (part, branches) in split {
            let part = format!("{}_{parts}_{part}", &stem[..24]);
            all.push(format!(
                "SELECT {list} FROM {} {APART}",
                sql::qualified(HIDDEN_SCHEMA, &part)
            ));
            views.push(view(true, part, branches));
        }
        all
    };
    views.push(view(false, name.to_owned(), all));
    for view in &mut views {
        view.table = name.to_owned();
    }
    views
}

/// Into how many parts so many members are divided; `was`: into how many they are now.
fn parts(members: usize, was: Option<usize>) -> usize {
    let fits = |parts: usize| match parts {
        0 | 1 => members <= MOST_DIRECT,
        parts => members / parts >= FEWEST_PER_PART && members / parts <= MOST_DIRECT,
    };
    match was {
        Some(was) if fits(was) => was,
        _ if fits(1) => 1,
        _ => members.div_ceil(PER_PART).next_power_of_two(),
    }
}

/// The part that a member is in, whoever the others are.
fn part_of(member: &str, parts: usize) -> usize {
    let digits = hash([member]);
    let number = digits
        .get(..8)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    number.unwrap_or_default() as usize % parts
}

/// Into how many parts the members were divided of whose views this is one.
fn parts_of(view: &Made) -> Option<usize> {
    let mut parts = view.name.rsplitn(3, '_').skip(1);
    let parts = view.hidden.then(|| parts.next()).flatten()?;
    parts.parse().ok().filter(|parts| *parts > 1)
}

fn drop_view(schema: &str, name: &str) -> String {
    let (schema, name) = (sql::literal(schema), sql::literal(name));
    format!("SELECT spcd.drop_view({schema}, {name});\n")
}

/// Drops a view and notes the grants and comments that it had, or gives them back.
fn keep_aside(function: &str, aggregator: &str, view: &str) -> String {
    let (aggregator, view) = (sql::literal(aggregator), sql::literal(view));
    format!("SELECT spcd.{function}({aggregator}, {view});\n")
}

impl Changes {
    /// The statements, in an order in which they can be carried out in one transaction; none if
    /// nothing differs.
    pub fn statements(&self, aggregator: &str, found: &Found, readers: bool) -> String {
        let mut out = String::new();
        if self.views.is_empty() {
            return out;
        }
        out.push_str(&self.claim(aggregator, found));
        // What people read goes first, so that what it is made of can, and comes last.
        for change in &self.views {
            match change {
                ViewChange::Rebuild(view) => {
                    out.push_str(&keep_aside("set_aside", aggregator, &view.name));
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
                        out.push_str(&keep_aside("restore", aggregator, &view.name));
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
        out.push_str(&self.record(aggregator));
        out
    }

    /// What a look will find once these changes are made.
    pub fn carry_out(&self, found: &mut Found) {
        for change in &self.views {
            let (hidden, name) = change.view();
            let is_it = |made: &Made| made.hidden == hidden && made.name == name;
            let old = found.made.iter().position(is_it);
            let old = old.map(|n| found.made.swap_remove(n));
            if let Some(view) = change.made() {
                found.made.push(Made {
                    table: view.table.clone(),
                    hidden,
                    name: name.to_owned(),
                    definition: view.definition(),
                    there: true,
                    altered: false,
                    columns: view.columns.clone(),
                    dependents: (old.as_ref())
                        .map(|old| old.dependents.clone())
                        .unwrap_or_default(),
                    kept_aside: old.map(|old| old.kept_aside).unwrap_or_default(),
                    unreadable: false,
                });
            }
        }
    }

    /// Refuses the transaction if another changed one of the views since they were looked at.
    fn claim(&self, aggregator: &str, found: &Found) -> String {
        let known: BTreeMap<_, _> = (found.made.iter())
            .map(|view| ((view.hidden, view.name.as_str()), view.definition.as_str()))
            .collect();
        let views = self.views.iter().map(|change| {
            let (hidden, name) = change.view();
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
            let (hidden, name) = change.view();
            let view = change.made();
            let table = view.map(|view| &view.table);
            let definition = view.map(View::definition);
            serde_json::json!({"hidden": hidden, "name": name, "table": table, "definition": definition})
        });
        let views = serde_json::Value::Array(views.collect()).to_string();
        format!(
            "SELECT spcd.record_views({}, {}::jsonb);\n",
            sql::literal(aggregator),
            sql::literal(&views)
        )
    }

    /// How many tables and views the statements touch: the measure of their locks.
    pub fn locks(&self) -> usize {
        self.views.iter().map(ViewChange::locks).sum()
    }

    /// Divides them into packages of at most so many locks (or of one view), to be written one
    /// after the other, each in its own transaction. Every package leaves the views whole.
    pub fn packages(mut self, most: usize) -> Vec<Changes> {
        let rank = |change: &ViewChange| match change {
            ViewChange::Drop { hidden: true, .. } => 2,
            change if change.view().0 => 0,
            _ => 1,
        };
        self.views.sort_by_key(rank);
        let mut packages: Vec<Changes> = Vec::new();
        let mut size = 0;
        for change in self.views {
            let locks = change.locks();
            match packages.last_mut() {
                Some(package) if size + locks <= most => package.views.push(change),
                _ => {
                    size = 0;
                    packages.push(Changes {
                        views: vec![change],
                        ..Changes::default()
                    });
                }
            }
            size += locks;
        }
        packages
    }
}

impl ViewChange {
    /// Whether it is only a part, and its name.
    pub fn view(&self) -> (bool, &str) {
        match self {
            ViewChange::Create(view) | ViewChange::Replace(view) | ViewChange::Rebuild(view) => {
                (view.hidden, &view.name)
            }
            ViewChange::Drop { hidden, name } => (*hidden, name),
        }
    }

    /// The view as it is to be; `None`: not at all.
    fn made(&self) -> Option<&View> {
        match self {
            ViewChange::Create(view) | ViewChange::Replace(view) | ViewChange::Rebuild(view) => {
                Some(view)
            }
            ViewChange::Drop { .. } => None,
        }
    }

    fn locks(&self) -> usize {
        match self {
            // With its row type, its rule, and what it reads.
            ViewChange::Create(view) | ViewChange::Replace(view) | ViewChange::Rebuild(view) => {
                view.branches + 3
            }
            ViewChange::Drop { .. } => 3,
        }
    }
}

impl fmt::Display for ViewChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hidden, name) = self.view();
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
