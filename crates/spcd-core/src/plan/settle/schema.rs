//! The schema of a connection, and who may read it.

use std::collections::BTreeSet;

use super::super::Import;
use super::grant;
use crate::observed::{Detail, Presence};
use crate::shape::{Table, TableChange};
use crate::{sql, union};

/// Whether a connection's schema is there, and whether it has another name than it is to have.
fn schema_state(name: &str, import: &Import) -> (bool, bool) {
    let made = import.applied.as_ref();
    let is_there = made.is_some_and(|applied| applied.schema == Presence::Ours);
    let moves = made.is_some_and(|applied| applied.schema_of(name) != import.schema(name));
    (is_there, is_there && moves)
}

/// Makes or renames the schema, and drops what an aggregator of this name had in it.
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
    if made.is_some_and(|applied| union::is_of_aggregator(&applied.target_hash)) {
        sql.push_str(&sql::drop_views(name, false));
    }
    sql
}

/// Grants readers what is new and what they lack.
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
    let unreadable = detail.unreadable.iter().map(String::as_str);
    let there = |name: &&str| after.iter().any(|table| table.name == *name);
    let tables: BTreeSet<&str> = fresh.chain(unreadable).filter(there).collect();
    let (is_there, moves) = schema_state(name, import);
    let is_readable = (import.applied.as_ref()).is_none_or(|applied| applied.readable);
    grant(name, !is_there || moves || !is_readable, tables, sql);
}
