//! Parts of an aggregator's view that are foreign tables over views of the gateway, one for each lane.

use std::collections::BTreeSet;

use super::{
    AggregatorMember, CONNECTION_NAME, ExistingView, HIDDEN_SCHEMA, MergedTable, ViewColumn,
};
use crate::diff::{Column, Table};
use crate::hash::hash;
use crate::model::AggregatorLane;
use crate::sql;

/// Maximum number of members by which the planner leaves out a lane that a condition on
/// `connection_name` excludes: it does not look into longer lists (`MAX_SAOP_ARRAY_SIZE` in
/// predtest.c).
const MAX_CHECKED_MEMBERS: usize = 100;

/// Foreign table over a lane's view.
pub(super) struct LanePart {
    /// Name.
    pub(super) name: String,
    /// Columns.
    pub(super) columns: Vec<ViewColumn>,
    /// Statements that create it.
    pub(super) statements: String,
    /// Server.
    pub(super) server: String,
}

/// Returns the parts of the view of one table, and the SELECT of each.
pub(super) fn lane_parts(
    member_tables: &[(AggregatorMember<'_>, &Table)],
    merged: &MergedTable,
    made: &[&ExistingView],
) -> (Vec<LanePart>, Vec<String>) {
    let (mut parts, mut branches) = (Vec::new(), Vec::new());
    for (member, table) in member_tables {
        let Some(lane) = member.lane else { continue };
        if merged.excluded_members.contains(member.name) {
            continue;
        }
        let part = lane_part(lane, table, made);
        let from = sql::qualified(HIDDEN_SCHEMA, &part.name);
        branches.push(merged.select(member, table, &from));
        parts.push(part);
    }
    (parts, branches)
}

/// Returns the foreign table over a lane's view. Its name contains a hash of all that it is: one that is to
/// be another has another name, and the view over it can be replaced.
fn lane_part(lane: &AggregatorLane, table: &Table, made: &[&ExistingView]) -> LanePart {
    let connection_name = Column {
        name: CONNECTION_NAME.to_owned(),
        data_type: "text".to_owned(),
        ..Column::default()
    };
    let options = [("schema_name", &lane.schema), ("table_name", &table.name)];
    let mut foreign = Table {
        columns: std::iter::once(connection_name)
            .chain(table.columns.iter().cloned())
            .collect(),
        options: options
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .into(),
        ..Table::default()
    };
    let server = lane.lane.server();
    let text = statements(&foreign, &server, &lane.members);
    let stem = hash([text.as_str()]);
    // A part that was altered by hand cannot be replaced while the view reads it, so the new one gets
    // the other name.
    let find = |name: &str| {
        made.iter()
            .find(|view| view.hidden && view.exists && view.name == name)
    };
    let is_altered = |name: &str| find(name).is_some_and(|view| view.altered);
    let is_there = |name: &str| find(name).is_some_and(|view| !view.altered);
    let names =
        ["l", "m"].map(|kind| format!("{}_{kind}{}", &stem[..24], lane.lane.number.unwrap_or(0)));
    let [first, second] = names;
    let takes_second = is_altered(&first) || !is_there(&first) && is_there(&second);
    foreign.name = if takes_second { second } else { first };
    LanePart {
        columns: foreign.columns.iter().map(ViewColumn::of).collect(),
        statements: statements(&foreign, &server, &lane.members),
        name: foreign.name,
        server,
    }
}

fn statements(foreign: &Table, server: &str, members: &[String]) -> String {
    let mut text = String::new();
    sql::create_table(HIDDEN_SCHEMA, server, foreign, &mut text);
    let members: BTreeSet<&str> = members.iter().map(String::as_str).collect();
    if (1..=MAX_CHECKED_MEMBERS).contains(&members.len()) {
        text.push_str(&sql::add_check(
            HIDDEN_SCHEMA,
            &foreign.name,
            CONNECTION_NAME,
            members,
        ));
    }
    text
}
