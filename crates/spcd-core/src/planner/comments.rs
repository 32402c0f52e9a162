//! Comments of the source, written after the tables.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{RowChange, WriteUnit};
use crate::sql;

/// Maximum number of comments in one transaction.
const MAX_COMMENTS: usize = 2000;
/// Maximum number of commented tables in one transaction: each takes a lock.
const MAX_TABLES: usize = 200;

/// A comment on a table or a column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Comment {
    /// The table.
    pub table: String,
    /// The column; empty for the table itself.
    pub column: String,
    /// The text; `None` removes the comment.
    pub text: Option<String>,
}

/// Returns the statements that set comments, as at least one unit, to be written in this order. `seen`
/// is the generation of the connection's row when `changes` were found, `generation` the one that the
/// row gets with `comments_set`.
pub fn comment_units(
    name: &str,
    changes: &[Comment],
    seen: i64,
    generation: i64,
) -> Vec<WriteUnit> {
    let mut chunks: Vec<Vec<&Comment>> = vec![Vec::new()];
    let mut tables: BTreeSet<&str> = BTreeSet::new();
    for change in changes {
        tables.insert(&change.table);
        let full = |chunk: &Vec<&Comment>| chunk.len() == MAX_COMMENTS;
        if tables.len() > MAX_TABLES || chunks.last().is_some_and(full) {
            chunks.push(Vec::new());
            tables = BTreeSet::from([change.table.as_str()]);
        }
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(change);
        }
    }
    let last = chunks.len() - 1;
    let unit = |(n, chunk): (usize, &Vec<&Comment>)| {
        let tables: BTreeSet<&str> = chunk.iter().map(|change| change.table.as_str()).collect();
        // Cannot fail: texts only.
        let json = serde_json::to_string(chunk).unwrap_or_default();
        WriteUnit {
            name: name.into(),
            sql: format!(
                "SELECT spcd.set_comments({}, {}::jsonb, {seen}, {}, {generation});\n",
                sql::literal(name),
                sql::literal(&json),
                n == last
            ),
            tables: tables.len(),
            locks: tables.len() + 1,
            row: RowChange {
                name: name.into(),
                ..RowChange::default()
            },
            ..WriteUnit::default()
        }
    };
    chunks.iter().enumerate().map(unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comment(table: &str, column: &str) -> Comment {
        Comment {
            table: table.into(),
            column: column.into(),
            text: Some("it's \\ 'so'".into()),
        }
    }

    #[test]
    fn without_changes_the_row_is_updated() {
        let units = comment_units("a", &[], 3, 4);
        let sql: Vec<&str> = units.iter().map(|unit| unit.sql.as_str()).collect();
        assert_eq!(
            sql,
            ["SELECT spcd.set_comments('a', '[]'::jsonb, 3, true, 4);\n"]
        );
        assert!(units[0].row.is_empty());
    }

    #[test]
    fn many_comments_are_split_and_the_last_unit_updates_the_row() {
        let tables: Vec<Comment> = (0..450)
            .map(|n| comment(&format!("t{n:03}"), "c"))
            .collect();
        let columns: Vec<Comment> = (0..4001)
            .map(|n| comment("u", &format!("c{n:04}")))
            .collect();
        for (all, parts, locks) in [
            (tables, vec![200, 200, 50], 201),
            (columns, vec![1, 1, 1], 2),
        ] {
            let units = comment_units("a", &all, 3, 4);
            let sizes: Vec<usize> = units.iter().map(|unit| unit.tables).collect();
            assert_eq!(sizes, parts);
            assert_eq!(units[0].locks, locks);
            let last: Vec<bool> = units
                .iter()
                .map(|unit| unit.sql.contains("3, true, 4"))
                .collect();
            assert_eq!(last, [false, false, true]);
            let count: usize = units
                .iter()
                .map(|unit| unit.sql.matches("\"table\"").count())
                .sum();
            assert_eq!(count, all.len());
        }
    }
}
