//! The source's comments, written once the tables are there.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{RowChange, Unit};
use crate::sql;

/// How many comments are written in one transaction.
const AT_ONCE: usize = 2000;
/// On how many tables: each takes a lock.
const TABLES_AT_ONCE: usize = 200;

/// A comment on a table or a column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Comment {
    /// The table.
    pub table: String,
    /// The column; empty: the table as such.
    pub column: String,
    /// What it says; `None`: it is taken away.
    pub text: Option<String>,
}

/// The statements that set comments, to be written one unit after the other. `seen` is the
/// generation of the connection's row when `changes` were looked for, `generation` the one that the
/// row has once it says that all are there. At least one unit.
pub fn comment_units(name: &str, changes: &[Comment], seen: i64, generation: i64) -> Vec<Unit> {
    let mut pieces: Vec<Vec<&Comment>> = vec![Vec::new()];
    let mut tables: BTreeSet<&str> = BTreeSet::new();
    for change in changes {
        tables.insert(&change.table);
        let full = |piece: &Vec<&Comment>| piece.len() == AT_ONCE;
        if tables.len() > TABLES_AT_ONCE || pieces.last().is_some_and(full) {
            pieces.push(Vec::new());
            tables = BTreeSet::from([change.table.as_str()]);
        }
        if let Some(piece) = pieces.last_mut() {
            piece.push(change);
        }
    }
    let last = pieces.len() - 1;
    let unit = |(n, piece): (usize, &Vec<&Comment>)| {
        let tables: BTreeSet<&str> = piece.iter().map(|change| change.table.as_str()).collect();
        // Texts and nothing else: this cannot fail.
        let json = serde_json::to_string(piece).unwrap_or_default();
        Unit {
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
            ..Unit::default()
        }
    };
    pieces.iter().enumerate().map(unit).collect()
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
    fn nothing_to_set_is_said_to_be_there() {
        let units = comment_units("a", &[], 3, 4);
        let sql: Vec<&str> = units.iter().map(|unit| unit.sql.as_str()).collect();
        assert_eq!(
            sql,
            ["SELECT spcd.set_comments('a', '[]'::jsonb, 3, true, 4);\n"]
        );
        assert!(units[0].row.is_empty());
    }

    #[test]
    fn many_are_written_in_parts_and_the_last_one_says_so() {
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
            let said: usize = units
                .iter()
                .map(|unit| unit.sql.matches("\"table\"").count())
                .sum();
            assert_eq!(said, all.len());
        }
    }
}
