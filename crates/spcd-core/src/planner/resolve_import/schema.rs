//! Statements for a connection's schema and its privileges.

use std::collections::BTreeSet;

use super::super::{Import, RowChange};
use super::{Bookkeeping, WriteUnit};
use crate::diff::{Table, TableChange};
use crate::observed::{Detail, Presence};
use crate::{aggregator, sql};
use spcd_protocol::Status;

/// Returns whether a connection's schema exists, and whether it must be renamed.
fn schema_state(name: &str, import: &Import) -> (bool, bool) {
    let made = import.applied.as_ref();
    let is_there = made.is_some_and(|applied| applied.schema == Presence::Ours);
    let moves = made.is_some_and(|applied| applied.schema_of(name) != import.schema(name));
    (is_there, is_there && moves)
}

/// Refuses to rename the schema of a disabled member that holds relations of users: they would be moved
/// to a schema that users do not know.
pub(super) fn check_others(name: &str, import: &Import, detail: &Detail) -> Result<(), String> {
    let (_, moves) = schema_state(name, import);
    match detail.others.first() {
        Some(other) if moves && import.hidden => Err(format!(
            "the schema {name:?} holds {other:?}, which spcd did not create: drop it or move it to \
             another schema, so that the connection can be disabled"
        )),
        _ => Ok(()),
    }
}

/// Returns the statements that create or rename the schema and drop the views of a former aggregator.
pub(super) fn schema_statements(name: &str, import: &Import) -> String {
    let (is_there, moves) = schema_state(name, import);
    let schema = import.schema(name);
    let made = import.applied.as_ref();
    let mut sql = String::new();
    if !is_there {
        sql.push_str(&sql::create_schema(&schema));
    }
    if moves && let Some(applied) = made {
        sql.push_str(&sql::rename_schema(applied.schema_of(name), &schema));
        if import.hidden && import.readers {
            sql.push_str(&sql::revoke_schema(&schema));
        }
    }
    if made.is_some_and(|applied| aggregator::is_aggregator_hash(&applied.target_hash)) {
        sql.push_str(&sql::drop_views(name, false));
    }
    sql
}

/// Appends the grants on new and unreadable tables.
pub(super) fn admit_readers(
    name: &str,
    import: &Import,
    detail: &Detail,
    changes: &[TableChange],
    after: &[Table],
    sql: &mut String,
) {
    let fresh = changes.iter().filter_map(|change| match change {
        TableChange::Create(table) | TableChange::Rebuild { table, .. } => {
            Some(table.name.as_str())
        }
        TableChange::Drop(_) | TableChange::Alter { .. } => None,
    });
    let unreadable = detail.grantable().map(String::as_str);
    let there = |name: &&str| after.iter().any(|table| table.name == *name);
    let tables: BTreeSet<&str> = fresh.chain(unreadable).filter(there).collect();
    let (is_there, moves) = schema_state(name, import);
    let is_readable = (import.applied.as_ref()).is_none_or(|applied| applied.readable);
    grant(name, !is_there || moves || !is_readable, tables, sql);
}

pub(super) fn grant(name: &str, schema: bool, tables: BTreeSet<&str>, sql: &mut String) {
    if schema {
        sql.push_str(&sql::grant_schema(name));
    }
    if !tables.is_empty() {
        sql.push_str(&sql::grant_tables(name, tables));
    }
}

/// Returns the statements that grant `spcd_users` access to existing tables.
pub fn grant_unit(name: &str, status: Status, tables: &[String]) -> WriteUnit {
    let mut sql = String::new();
    grant(
        name,
        true,
        tables.iter().map(String::as_str).collect(),
        &mut sql,
    );
    WriteUnit {
        name: name.into(),
        sql,
        row: RowChange {
            name: name.into(),
            route: match status {
                Status::Ready => vec![Status::Updating, Status::Ready],
                status => Status::route(Some(status), Status::Ready),
            },
            ..RowChange::default()
        },
        // The privileges may be revoked again: the next pass compares in full.
        record: Bookkeeping::Keep,
        ..WriteUnit::default()
    }
}
