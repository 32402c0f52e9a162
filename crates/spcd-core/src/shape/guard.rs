//! What people made that hangs on tables, and which changes are not done for its sake.

use std::collections::{BTreeMap, BTreeSet};

use super::{ColumnChange, Table, TableChange};

/// What people made that hangs on tables: by table, and by column (`""` for the table as such).
pub type Dependents = BTreeMap<String, BTreeMap<String, BTreeSet<Dependent>>>;

/// Something that people made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependent {
    /// In the server's words: `view public.v`.
    pub what: String,
    /// What would break or lose it.
    pub harm: Harm,
}

/// What stands in the way of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// What people made that hangs on what is there.
    pub dependents: Dependents,
    /// Tables whose change the server refuses, and why.
    pub refused: BTreeMap<String, String>,
}

/// Which changes something that hangs on a table or a column does not survive; each is one more
/// than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// Dropping it for good: a view that is made again gets back its grants and comments.
    Removal,
    /// Dropping the table or column: a comment, a grant.
    Drop,
    /// Changing its type, or, of a table, that of any column: a view, a column of the table's row
    /// type.
    Retype,
    /// Of a table: dropping any column of it. A child would lose it too.
    AnyColumn,
}

impl TableChange {
    /// What in this change would break, or quietly lose, which of the things that people made.
    fn breaks<'a>(&self, dependents: &'a Dependents) -> Vec<(String, BTreeSet<&'a str>)> {
        let Some(of_table) = dependents.get(self.table()) else {
            return Vec::new();
        };
        let of = |name: &str, harm: Harm| {
            let all = of_table.get(name).into_iter().flatten();
            all.filter(move |one| one.harm >= harm)
                .map(|one| one.what.as_str())
        };
        let of_column = |name: &str, on_it: Harm, on_all: Harm| {
            let all: BTreeSet<&str> = of(name, on_it).chain(of("", on_all)).collect();
            all
        };
        let all = || of_table.values().flatten().map(|one| one.what.as_str());
        let broken = match self {
            TableChange::Create(_) => Vec::new(),
            TableChange::Drop(_) => vec![("dropping it".to_owned(), all().collect())],
            TableChange::Rebuild { .. } => vec![("rebuilding it".to_owned(), all().collect())],
            TableChange::Alter { columns, .. } => (columns.iter())
                .filter_map(|change| match change {
                    ColumnChange::Drop { name, .. } => Some((
                        format!("dropping column {name}"),
                        of_column(name, Harm::Drop, Harm::AnyColumn),
                    )),
                    ColumnChange::Retype {
                        name,
                        from,
                        data_type,
                        ..
                    } => Some((
                        format!("changing column {name} from {from} to {data_type}"),
                        of_column(name, Harm::Retype, Harm::Retype),
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

/// Parts changes into those that are done, and warnings about those that are not, because
/// something that people made would break or be lost, or because the server refuses them.
pub fn guard(changes: Vec<TableChange>, obstacles: &Obstacles) -> (Vec<TableChange>, Vec<String>) {
    let mut done = Vec::new();
    let mut warnings = Vec::new();
    for change in changes {
        let mut reasons: Vec<_> = (change.breaks(&obstacles.dependents).into_iter())
            .map(|(what, of)| {
                let of: Vec<_> = of.into_iter().collect();
                format!("{what} would break or lose {}", of.join(", "))
            })
            .collect();
        reasons.extend(obstacles.refused.get(change.table()).cloned());
        if reasons.is_empty() {
            done.push(change);
            continue;
        }
        let what = match change {
            TableChange::Create(_) => "is left out",
            _ => "stays as it was",
        };
        warnings.push(format!(
            "table {:?} {what}: {}",
            change.table(),
            reasons.join("; ")
        ));
    }
    (done, warnings)
}

/// Warnings about tables of the source that cannot be imported; what is there under their names
/// stays.
pub fn unfit(there: &[Table], wanted: &[Table]) -> Vec<String> {
    let unfit = wanted.iter().filter_map(|table| {
        let what = match there.iter().any(|old| old.name == table.name) {
            true => "stays as it was",
            false => "is left out",
        };
        let reason = table.unfit.as_ref()?;
        Some(format!("table {:?} {what}: {reason}", table.name))
    });
    unfit.collect()
}

/// The tables that will be there once `changes` are done.
pub fn after(there: &[Table], wanted: &[Table], changes: &[TableChange]) -> Vec<Table> {
    let changed: BTreeSet<&str> = changes.iter().map(TableChange::table).collect();
    let kept = there
        .iter()
        .filter(|table| !changed.contains(table.name.as_str()));
    let made = wanted
        .iter()
        .filter(|table| changed.contains(table.name.as_str()));
    let mut tables: Vec<_> = kept.chain(made).cloned().collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    tables
}

#[cfg(test)]
mod tests {
    use super::super::{Column, Traits, diff};
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

    fn dependents(list: &[(&str, &str, &str, Harm)]) -> Dependents {
        let mut all = Dependents::new();
        for (table, column, what, harm) in list {
            let of_table = all.entry((*table).to_owned()).or_default();
            let of_column = of_table.entry((*column).to_owned()).or_default();
            of_column.insert(Dependent {
                what: (*what).to_owned(),
                harm: *harm,
            });
        }
        all
    }

    fn refused(old: &Table, new: Option<&Table>, dependents: &Dependents) -> Vec<String> {
        let changes = diff(
            std::slice::from_ref(old),
            new.map_or(&[], std::slice::from_ref),
            Traits::default(),
        );
        let obstacles = Obstacles {
            dependents: dependents.clone(),
            ..Obstacles::default()
        };
        guard(changes, &obstacles).1
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
        let view = Obstacles {
            dependents: dependents(&[("t", "b", "view public.v", Harm::Retype)]),
            ..Obstacles::default()
        };
        let (done, warnings) = guard(diff(&old, &new, Traits::default()), &view);
        let shown: Vec<_> = done.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["~ table u\n    ~ column a integer → bigint"]);
        assert_eq!(
            warnings,
            ["table \"t\" stays as it was: dropping column b would break or lose view public.v"]
        );
        let after = after(&old, &new, &done);
        assert_eq!(after[0], old[0]);
        assert_eq!(after[1], new[1]);
    }

    #[test]
    fn each_change_is_weighed_against_what_it_harms() {
        let old = table("t", &[("a", "integer"), ("b", "text")]);
        let retyped = table("t", &[("a", "bigint"), ("b", "text")]);
        let dropped = table("t", &[("b", "text")]);
        // Which of: retyping a, dropping a, dropping t.
        for (column, harm, wanted) in [
            ("a", Harm::Drop, [0, 1, 1]),
            ("a", Harm::Retype, [1, 1, 1]),
            ("b", Harm::Retype, [0, 0, 1]),
            ("", Harm::Drop, [0, 0, 1]),
            ("", Harm::Retype, [1, 0, 1]),
            ("", Harm::AnyColumn, [1, 1, 1]),
        ] {
            let one = dependents(&[("t", column, "it", harm)]);
            let found =
                [Some(&retyped), Some(&dropped), None].map(|new| refused(&old, new, &one).len());
            assert_eq!(found, wanted, "{column:?} {harm:?}");
        }
    }

    #[test]
    fn what_the_server_refuses_costs_one_table() {
        let old = [table("t", &[("a", "integer")])];
        let new = [table("t", &[("a", "mood")]), table("u", &[])];
        let why = |name: &str| (name.to_owned(), "no such type".to_owned());
        let obstacles = Obstacles {
            refused: BTreeMap::from([why("t"), why("u")]),
            ..Obstacles::default()
        };
        let changes = diff(&old, &new, Traits::default());
        let (done, warnings) = guard(changes, &obstacles);
        assert_eq!(done, []);
        assert_eq!(
            warnings,
            [
                "table \"t\" stays as it was: no such type",
                "table \"u\" is left out: no such type"
            ]
        );
    }

    #[test]
    fn a_table_that_cannot_be_imported_is_left_out_and_what_is_there_stays() {
        let old = [table("t", &[("a", "integer")])];
        let unfit = |name: &str| Table {
            unfit: Some("no such type".into()),
            ..table(name, &[])
        };
        let new = [unfit("t"), unfit("u"), table("v", &[])];
        let changes = diff(&old, &new, Traits::default());
        assert_eq!(changes.len(), 1);
        assert_eq!(after(&old, &new, &changes).len(), 2);
        assert_eq!(
            super::unfit(&old, &new),
            [
                "table \"t\" stays as it was: no such type",
                "table \"u\" is left out: no such type"
            ]
        );
    }
}
