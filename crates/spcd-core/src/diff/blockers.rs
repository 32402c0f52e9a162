//! Users' objects that depend on tables, and the changes that are not applied because of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{ColumnChange, Table, TableChange};

/// Users' objects that depend on tables, by table and column (`""` for the table itself).
pub type Dependents = BTreeMap<String, BTreeMap<String, BTreeSet<Dependent>>>;

/// Object of a user that depends on a table or column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependent {
    /// Description as the server words it: `view public.v`.
    pub description: String,
    /// Least change that would break or lose it.
    pub broken_by: BrokenBy,
}

/// Reasons not to apply changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blockers {
    /// Users' objects that depend on existing tables.
    pub dependents: Dependents,
    /// Tables whose change the server refuses, with the reason.
    pub refused: BTreeMap<String, String>,
    /// Tables whose renaming the server refuses, by their present names, with the reason.
    pub fixed: BTreeMap<String, String>,
}

/// Least change that breaks or loses a dependent object; each variant includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BrokenBy {
    /// Dropping a view for good; a rebuilt view gets its grants and comments back.
    Removal,
    /// Dropping the table or column: a comment, a grant.
    Drop,
    /// Changing the type of the column, or of any column of the table: a view, a column of the
    /// table's row type.
    Retype,
    /// Dropping any column of the table: an inheriting table would lose it too.
    AnyColumn,
}

/// Warning about one table of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableWarning {
    /// Name in the database; `None`: the database's encoding cannot hold it.
    pub table: Option<String>,
    /// What is wrong with the table.
    pub text: String,
}

impl TableWarning {
    /// Returns a warning that says what happens to a table, and why.
    pub fn new(table: &str, what: &str, why: &str) -> Self {
        Self {
            table: Some(table.to_owned()),
            text: format!("table {table:?} {what}: {why}"),
        }
    }
}

impl TableChange {
    /// Returns the parts of this change that would break or silently lose users' objects, with
    /// those objects.
    fn breaks<'a>(&self, dependents: &'a Dependents) -> Vec<(String, BTreeSet<&'a str>)> {
        let Some(of_table) = dependents.get(self.table()) else {
            return Vec::new();
        };
        let of = |name: &str, harm: BrokenBy| {
            let all = of_table.get(name).into_iter().flatten();
            all.filter(move |one| one.broken_by >= harm)
                .map(|one| one.description.as_str())
        };
        let of_column = |name: &str, on_it: BrokenBy, on_all: BrokenBy| {
            let all: BTreeSet<&str> = of(name, on_it).chain(of("", on_all)).collect();
            all
        };
        let all = || {
            of_table
                .values()
                .flatten()
                .map(|one| one.description.as_str())
        };
        let broken = match self {
            TableChange::Create(_) => Vec::new(),
            TableChange::Drop(_) => vec![("dropping it".to_owned(), all().collect())],
            TableChange::Rebuild { .. } => vec![("rebuilding it".to_owned(), all().collect())],
            TableChange::Alter { columns, .. } => (columns.iter())
                .filter_map(|change| match change {
                    ColumnChange::Drop { name, .. } => Some((
                        format!("dropping column {name}"),
                        of_column(name, BrokenBy::Drop, BrokenBy::AnyColumn),
                    )),
                    ColumnChange::Retype {
                        name,
                        from,
                        data_type,
                        ..
                    } => Some((
                        format!("changing column {name} from {from} to {data_type}"),
                        of_column(name, BrokenBy::Retype, BrokenBy::Retype),
                    )),
                    _ => None,
                })
                .collect(),
        };
        (broken.into_iter())
            .filter(|(_, of)| !of.is_empty())
            .collect()
    }
}

/// Separates changes into those to apply, and warnings about the others: they would break or lose a
/// user's object, or the server refuses them.
pub fn separate_blocked(
    changes: Vec<TableChange>,
    blockers: &Blockers,
) -> (Vec<TableChange>, Vec<TableWarning>) {
    let mut done = Vec::new();
    let mut warnings = Vec::new();
    for change in changes {
        let mut reasons: Vec<_> = (change.breaks(&blockers.dependents).into_iter())
            .map(|(what, of)| {
                let of: Vec<_> = of.into_iter().collect();
                format!("{what} would break or lose {}", of.join(", "))
            })
            .collect();
        reasons.extend(blockers.refused.get(change.table()).cloned());
        if reasons.is_empty() {
            done.push(change);
            continue;
        }
        let what = match change {
            TableChange::Create(_) => "is left out",
            _ => "stays as it was",
        };
        warnings.push(TableWarning::new(change.table(), what, &reasons.join("; ")));
    }
    (done, warnings)
}

/// Returns warnings about tables of the source that cannot be imported. Existing tables of those
/// names stay.
pub fn import_error_warnings(there: &[Table], desired: &[Table]) -> Vec<TableWarning> {
    let warnings = desired.iter().filter_map(|table| {
        let what = match there.iter().any(|old| old.name == table.name) {
            true => "stays as it was",
            false => "is left out",
        };
        let reason = table.import_error.as_ref()?;
        Some(TableWarning::new(&table.name, what, reason))
    });
    warnings.collect()
}

/// Returns the tables after `changes` were applied.
pub fn tables_after(there: &[Table], desired: &[Table], changes: &[TableChange]) -> Vec<Table> {
    let changed: BTreeSet<&str> = changes.iter().map(TableChange::table).collect();
    let kept = there
        .iter()
        .filter(|table| !changed.contains(table.name.as_str()));
    let made = desired
        .iter()
        .filter(|table| changed.contains(table.name.as_str()));
    let mut tables: Vec<_> = kept.chain(made).cloned().collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    tables
}

#[cfg(test)]
mod tests {
    use super::super::{Column, WrapperTraits, diff};
    use super::*;

    fn table(name: &str, columns: &[(&str, &str)]) -> Table {
        let column = |(name, data_type): &(&str, &str)| Column {
            name: (*name).into(),
            data_type: (*data_type).into(),
            ..Column::default()
        };
        Table {
            name: name.into(),
            columns: columns.iter().map(column).collect(),
            ..Table::default()
        }
    }

    fn dependents(list: &[(&str, &str, &str, BrokenBy)]) -> Dependents {
        let mut all = Dependents::new();
        for (table, column, what, harm) in list {
            let of_table = all.entry((*table).to_owned()).or_default();
            let of_column = of_table.entry((*column).to_owned()).or_default();
            of_column.insert(Dependent {
                description: (*what).to_owned(),
                broken_by: *harm,
            });
        }
        all
    }

    fn texts(warnings: Vec<TableWarning>) -> Vec<String> {
        warnings.into_iter().map(|warning| warning.text).collect()
    }

    fn refused(old: &Table, new: Option<&Table>, dependents: &Dependents) -> Vec<String> {
        let changes = diff(
            std::slice::from_ref(old),
            new.map_or(&[], std::slice::from_ref),
            WrapperTraits::default(),
        );
        let blockers = Blockers {
            dependents: dependents.clone(),
            ..Blockers::default()
        };
        texts(separate_blocked(changes, &blockers).1)
    }

    #[test]
    fn what_people_made_is_kept_and_the_rest_goes_on() {
        let old = [
            table("t", &[("a", "integer"), ("b", "text")]),
            table("u", &[("a", "integer")]),
        ];
        let new = [
            table("t", &[("a", "integer")]),
            table("u", &[("a", "bigint")]),
        ];
        let view = Blockers {
            dependents: dependents(&[("t", "b", "view public.v", BrokenBy::Retype)]),
            ..Blockers::default()
        };
        let (done, warnings) = separate_blocked(diff(&old, &new, WrapperTraits::default()), &view);
        let shown: Vec<_> = done.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["~ table u\n    ~ column a integer → bigint"]);
        assert_eq!(
            texts(warnings),
            ["table \"t\" stays as it was: dropping column b would break or lose view public.v"]
        );
        let after = tables_after(&old, &new, &done);
        assert_eq!(after[0], old[0]);
        assert_eq!(after[1], new[1]);
    }

    #[test]
    fn each_change_is_weighed_against_what_it_harms() {
        let old = table("t", &[("a", "integer"), ("b", "text")]);
        let retyped = table("t", &[("a", "bigint"), ("b", "text")]);
        let dropped = table("t", &[("b", "text")]);
        // Which of: retyping a, dropping a, dropping t.
        for (column, harm, expected) in [
            ("a", BrokenBy::Drop, [0, 1, 1]),
            ("a", BrokenBy::Retype, [1, 1, 1]),
            ("b", BrokenBy::Retype, [0, 0, 1]),
            ("", BrokenBy::Drop, [0, 0, 1]),
            ("", BrokenBy::Retype, [1, 0, 1]),
            ("", BrokenBy::AnyColumn, [1, 1, 1]),
        ] {
            let one = dependents(&[("t", column, "it", harm)]);
            let found =
                [Some(&retyped), Some(&dropped), None].map(|new| refused(&old, new, &one).len());
            assert_eq!(found, expected, "{column:?} {harm:?}");
        }
    }

    #[test]
    fn what_the_server_refuses_costs_one_table() {
        let old = [table("t", &[("a", "integer")])];
        let new = [table("t", &[("a", "mood")]), table("u", &[])];
        let why = |name: &str| (name.to_owned(), "no such type".to_owned());
        let blockers = Blockers {
            refused: BTreeMap::from([why("t"), why("u")]),
            ..Blockers::default()
        };
        let changes = diff(&old, &new, WrapperTraits::default());
        let (done, warnings) = separate_blocked(changes, &blockers);
        assert_eq!(done, []);
        assert_eq!(
            texts(warnings),
            [
                "table \"t\" stays as it was: no such type",
                "table \"u\" is left out: no such type"
            ]
        );
    }

    #[test]
    fn a_table_that_cannot_be_imported_is_left_out_and_what_is_there_stays() {
        let old = [table("t", &[("a", "integer")])];
        let failed = |name: &str| Table {
            import_error: Some("no such type".into()),
            ..table(name, &[])
        };
        let new = [failed("t"), failed("u"), table("v", &[])];
        let changes = diff(&old, &new, WrapperTraits::default());
        assert_eq!(changes.len(), 1);
        assert_eq!(tables_after(&old, &new, &changes).len(), 2);
        assert_eq!(
            texts(import_error_warnings(&old, &new)),
            [
                "table \"t\" stays as it was: no such type",
                "table \"u\" is left out: no such type"
            ]
        );
    }
}
