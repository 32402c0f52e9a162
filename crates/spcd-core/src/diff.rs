//! Foreign tables and their columns as data, their hash, and the smallest changes between two.

mod blockers;
mod names;
mod renames;

use std::collections::BTreeMap;
use std::fmt;

use crate::hash::Hasher;

pub use blockers::{
    Blockers, BrokenBy, Dependent, Dependents, TableWarning, import_error_warnings,
    separate_blocked, tables_after,
};
use names::name_error;
pub use names::{MAX_NAME_BYTES, mark_truncated};
pub use renames::{FoundRenames, Rename, Renames, TableRename, find_renames};

/// Option of postgres_fdw for the number of rows of a fetch.
pub const FETCH_SIZE: &str = "fetch_size";

/// Foreign table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Name on the hub.
    pub name: String,
    /// Columns in order.
    pub columns: Vec<Column>,
    /// Options of the table (`schema_name`, `table_name`, `filename`).
    pub options: BTreeMap<String, String>,
    /// Number of attribute numbers in use, those of dropped columns included; 0 for a table that
    /// does not exist. It is no part of the hash.
    pub attribute_count: usize,
    /// Reason why a table of the source cannot be imported.
    pub import_error: Option<String>,
}

/// Column of a foreign table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Type as `format_type` writes it under `search_path = pg_catalog`: qualified unless it is in
    /// `pg_catalog`, with its modifier.
    pub data_type: String,
    /// Whether it is `NOT NULL`.
    pub not_null: bool,
    /// Qualified, quoted name of its collation; `None` for its type's default.
    pub collation: Option<String>,
    /// Expression of the default.
    pub default: Option<String>,
    /// Expression of a generated column.
    pub generated: Option<String>,
    /// Options of the column.
    pub options: BTreeMap<String, String>,
    /// Type inferred from the values of a file. It is no part of the hash.
    pub inferred: Option<InferredType>,
}

/// Type of a column as inferred from its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InferredType {
    /// Types that accept every value that was read.
    pub accepted_by: &'static [&'static str],
    /// Whether the values decide the type: there are some, and all of them were read.
    pub is_certain: bool,
}

/// Types of a connection's columns that values decided, by table and column.
pub type ColumnTypes = BTreeMap<String, BTreeMap<String, String>>;

/// How a wrapper maps columns, as its plugin's definition says.
#[derive(Debug, Clone, Copy, Default)]
pub struct WrapperTraits<'a> {
    /// Whether columns are mapped by position, so that their order is part of the hash.
    pub positional: bool,
    /// Table option for the remote name.
    pub table_name_option: Option<&'a str>,
    /// Column option for the remote name. It is left out if it equals the column's own name.
    pub column_name_option: Option<&'a str>,
    /// Whether spcd sets the table option `fetch_size`, which is then no part of the hash.
    pub is_tuned: bool,
}

/// Smallest change of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    /// Creates a missing table.
    Create(Table),
    /// Drops a table that the source lost.
    Drop(String),
    /// Drops and creates a table, because no ALTER suffices.
    Rebuild {
        /// Desired table.
        table: Table,
        /// Reason.
        reason: RebuildReason,
    },
    /// Alters a table.
    Alter {
        /// Name.
        table: String,
        /// Changes of columns, in the order of execution.
        columns: Vec<ColumnChange>,
        /// Options of the table, old and new, if they differ.
        options: Option<(BTreeMap<String, String>, BTreeMap<String, String>)>,
    },
}

/// Reason why a table is dropped and created again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebuildReason {
    /// Columns moved, and the wrapper maps them by position.
    Moved,
    /// The table's attribute numbers are used up.
    Exhausted,
}

/// Highest attribute number of a column (the server's `MaxHeapAttributeNumber`). A dropped column
/// keeps its number.
const MAX_ATTRIBUTES: usize = 1600;

/// Change of one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnChange {
    /// Adds a column at the end.
    Add(Column),
    /// Drops a column that the source lost.
    Drop {
        /// Name of the column.
        name: String,
        /// The only new column of its type, if there is just one: the source may have renamed the
        /// column, which no source reports.
        renamed: Option<String>,
    },
    /// Changes type or collation.
    Retype {
        /// Name of the column.
        name: String,
        /// Old type.
        from: String,
        /// New type.
        data_type: String,
        /// New collation; `None` for the type's default.
        collation: Option<String>,
    },
    /// Sets or drops NOT NULL.
    NotNull {
        /// Name of the column.
        name: String,
        /// Whether NOT NULL is set.
        set: bool,
    },
    /// Sets or drops the default.
    Default {
        /// Name of the column.
        name: String,
        /// New default.
        expression: Option<String>,
    },
    /// Changes options.
    Options {
        /// Name of the column.
        name: String,
        /// Old options.
        old: BTreeMap<String, String>,
        /// New options.
        new: BTreeMap<String, String>,
    },
}

/// Normalizes tables for comparison and writing: in byte order of their names, without redundant
/// column options.
pub fn normalize(tables: &mut [Table], traits: WrapperTraits<'_>) {
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    for table in tables
        .iter_mut()
        .filter(|table| table.import_error.is_none())
    {
        table.import_error = name_error(table);
    }
    let Some(option) = traits.column_name_option else {
        return;
    };
    for column in tables.iter_mut().flat_map(|table| &mut table.columns) {
        if column.options.get(option) == Some(&column.name) {
            column.options.remove(option);
        }
    }
}

/// Returns the hash of normalized tables. The order of columns counts only if the wrapper maps by
/// position.
pub fn hash(tables: &[Table], traits: WrapperTraits<'_>) -> String {
    let mut hasher = Hasher::default();
    let mut put = |text: &str| hasher.put(text);
    for table in tables {
        put("table");
        put(&table.name);
        let is_tuned = |name: &String| traits.is_tuned && name == FETCH_SIZE;
        for (name, value) in table.options.iter().filter(|(name, _)| !is_tuned(name)) {
            put(name);
            put(value);
        }
        let mut columns: Vec<_> = table.columns.iter().collect();
        if !traits.positional {
            columns.sort_by(|a, b| a.name.cmp(&b.name));
        }
        for column in columns {
            put("column");
            put(&column.name);
            put(&column.data_type);
            put(if column.not_null { "not null" } else { "" });
            for part in [&column.collation, &column.default, &column.generated] {
                put(part.as_deref().map_or("-", |_| "+"));
                put(part.as_deref().unwrap_or_default());
            }
            for (name, value) in &column.options {
                put(name);
                put(value);
            }
        }
    }
    hasher.finish()
}

/// Returns the changes from the existing to the desired tables, both normalized; empty if they
/// agree.
pub fn diff(there: &[Table], desired: &[Table], traits: WrapperTraits<'_>) -> Vec<TableChange> {
    let by_name = |tables: &[Table]| -> BTreeMap<String, usize> {
        (tables.iter().enumerate())
            .map(|(n, table)| (table.name.clone(), n))
            .collect()
    };
    let (old, new) = (by_name(there), by_name(desired));
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let mut changes: Vec<_> = gone.cloned().map(TableChange::Drop).collect();
    for (name, n) in &new {
        let table = &desired[*n];
        match old.get(name).map(|n| &there[*n]) {
            _ if table.import_error.is_some() => {}
            None => changes.push(TableChange::Create(table.clone())),
            Some(old) => changes.extend(alter(old, table, traits)),
        }
    }
    changes
}

fn alter(old: &Table, new: &Table, traits: WrapperTraits<'_>) -> Option<TableChange> {
    if traits.positional && moved(old, new) {
        return Some(TableChange::Rebuild {
            table: new.clone(),
            reason: RebuildReason::Moved,
        });
    }
    let find = |table: &Table, name: &str| table.columns.iter().position(|c| c.name == name);
    let mut columns = Vec::new();
    for column in &old.columns {
        match find(new, &column.name).map(|n| &new.columns[n]) {
            None => columns.push(ColumnChange::Drop {
                name: column.name.clone(),
                renamed: renamed(column, old, new),
            }),
            // ALTER cannot make a column generated, or the reverse.
            Some(desired) if desired.generated != column.generated => {
                columns.push(ColumnChange::Drop {
                    name: column.name.clone(),
                    renamed: None,
                });
                columns.push(ColumnChange::Add(desired.clone()));
            }
            Some(desired) => alter_column(column, desired, &mut columns),
        }
    }
    for column in &new.columns {
        if find(old, &column.name).is_none() {
            columns.push(ColumnChange::Add(column.clone()));
        }
    }
    let added = columns.iter();
    let added = added.filter(|change| matches!(change, ColumnChange::Add(_)));
    if old.attribute_count > 0 && old.attribute_count + added.count() > MAX_ATTRIBUTES {
        return Some(TableChange::Rebuild {
            table: new.clone(),
            reason: RebuildReason::Exhausted,
        });
    }
    let options = (old.options != new.options).then(|| (old.options.clone(), new.options.clone()));
    (!columns.is_empty() || options.is_some()).then(|| TableChange::Alter {
        table: new.name.clone(),
        columns,
        options,
    })
}

/// Returns whether an existing column would be read from another position. Adding and dropping
/// columns at the end moves no other.
fn moved(old: &Table, new: &Table) -> bool {
    let common = old.columns.len().min(new.columns.len());
    old.columns[..common]
        .iter()
        .zip(&new.columns[..common])
        .any(|(old, new)| old.name != new.name)
}

/// Returns the only new column of a dropped column's type, if no other column of that type is
/// dropped.
fn renamed(dropped: &Column, old: &Table, new: &Table) -> Option<String> {
    let only = |of: &Table, not_in: &Table| -> Option<String> {
        let mut columns = of.columns.iter().filter(|column| {
            let is_there = not_in.columns.iter().any(|other| other.name == column.name);
            column.data_type == dropped.data_type && !is_there
        });
        let first = columns.next()?;
        columns.next().is_none().then(|| first.name.clone())
    };
    only(old, new)?;
    only(new, old)
}

fn alter_column(old: &Column, new: &Column, changes: &mut Vec<ColumnChange>) {
    let name = || new.name.clone();
    let retyped = old.data_type != new.data_type || old.collation != new.collation;
    if retyped {
        // The old default may have no cast to the new type.
        if old.default.is_some() {
            changes.push(ColumnChange::Default {
                name: name(),
                expression: None,
            });
        }
        changes.push(ColumnChange::Retype {
            name: name(),
            from: old.data_type.clone(),
            data_type: new.data_type.clone(),
            collation: new.collation.clone(),
        });
    }
    let default_is_there = !retyped && old.default == new.default;
    if !default_is_there && (new.default.is_some() || !retyped) {
        changes.push(ColumnChange::Default {
            name: name(),
            expression: new.default.clone(),
        });
    }
    if old.not_null != new.not_null {
        changes.push(ColumnChange::NotNull {
            name: name(),
            set: new.not_null,
        });
    }
    if old.options != new.options {
        changes.push(ColumnChange::Options {
            name: name(),
            old: old.options.clone(),
            new: new.options.clone(),
        });
    }
}

impl TableChange {
    /// Returns the name of the table.
    pub fn table(&self) -> &str {
        match self {
            TableChange::Create(table) | TableChange::Rebuild { table, .. } => &table.name,
            TableChange::Drop(name) => name,
            TableChange::Alter { table, .. } => table,
        }
    }

    /// Returns whether the change may break or lose users' objects, so that dependents must be
    /// known.
    pub fn may_break_dependents(&self) -> bool {
        match self {
            TableChange::Create(_) => false,
            TableChange::Drop(_) | TableChange::Rebuild { .. } => true,
            TableChange::Alter { columns, .. } => columns.iter().any(|change| {
                matches!(
                    change,
                    ColumnChange::Drop { .. } | ColumnChange::Retype { .. }
                )
            }),
        }
    }
}

impl fmt::Display for TableChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableChange::Create(table) => {
                write!(
                    f,
                    "+ table {} ({} columns)",
                    table.name,
                    table.columns.len()
                )
            }
            TableChange::Drop(name) => write!(f, "- table {name}"),
            TableChange::Rebuild { table, reason: why } => {
                let why = match why {
                    RebuildReason::Moved => "its wrapper maps columns by position",
                    RebuildReason::Exhausted => "its column numbers are used up",
                };
                write!(f, "± table {} (rebuilt: {why})", table.name)
            }
            TableChange::Alter {
                table,
                columns,
                options,
            } => {
                write!(f, "~ table {table}")?;
                for change in columns {
                    write!(f, "\n    {change}")?;
                }
                if options.is_some() {
                    write!(f, "\n    ~ options")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for ColumnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnChange::Add(column) => write!(f, "+ column {} {}", column.name, column.data_type),
            ColumnChange::Drop { name, renamed } => {
                write!(f, "- column {name}")?;
                match renamed {
                    Some(to) => write!(f, " (renamed to {to}? It is dropped, and {to} added)"),
                    None => Ok(()),
                }
            }
            ColumnChange::Retype {
                name,
                from,
                data_type,
                ..
            } => write!(f, "~ column {name} {from} → {data_type}"),
            ColumnChange::NotNull { name, set } => {
                let sign = if *set { '+' } else { '-' };
                write!(f, "~ column {name} {sign} NOT NULL")
            }
            ColumnChange::Default { name, .. } => write!(f, "~ column {name} default"),
            ColumnChange::Options { name, .. } => write!(f, "~ column {name} options"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, data_type: &str) -> Column {
        Column {
            name: name.into(),
            data_type: data_type.into(),
            ..Column::default()
        }
    }

    fn table(name: &str, columns: &[(&str, &str)]) -> Table {
        Table {
            name: name.into(),
            columns: columns.iter().map(|(n, t)| column(n, t)).collect(),
            ..Table::default()
        }
    }

    const BY_NAME: WrapperTraits<'_> = WrapperTraits {
        positional: false,
        table_name_option: Some("table_name"),
        column_name_option: Some("column_name"),
        is_tuned: false,
    };
    const BY_POSITION: WrapperTraits<'_> = WrapperTraits {
        positional: true,
        table_name_option: None,
        column_name_option: None,
        is_tuned: false,
    };

    fn shown(changes: &[TableChange]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn equal_shapes_differ_in_nothing_whatever_their_order() {
        let old = [table("t", &[("a", "integer"), ("b", "text")])];
        let new = [table("t", &[("b", "text"), ("a", "integer")])];
        assert_eq!(diff(&old, &new, BY_NAME), []);
        assert_eq!(hash(&old, BY_NAME), hash(&new, BY_NAME));
        assert_ne!(hash(&old, BY_POSITION), hash(&new, BY_POSITION));
        assert_eq!(
            shown(&diff(&old, &new, BY_POSITION)),
            ["± table t (rebuilt: its wrapper maps columns by position)"]
        );
    }

    #[test]
    fn a_column_option_that_repeats_the_name_says_nothing() {
        let mut tables = [table("t", &[("a", "integer"), ("b", "integer")])];
        for (n, remote) in ["a", "B"].into_iter().enumerate() {
            let options = &mut tables[0].columns[n].options;
            options.insert("column_name".into(), remote.into());
        }
        normalize(&mut tables, BY_NAME);
        assert!(tables[0].columns[0].options.is_empty());
        assert_eq!(tables[0].columns[1].options["column_name"], "B");
    }

    #[test]
    fn the_smallest_changes() {
        let old = [
            table("gone", &[("a", "integer")]),
            table("t", &[("a", "integer"), ("b", "text"), ("c", "text")]),
        ];
        let new = [
            table("fresh", &[("x", "text")]),
            table("t", &[("d", "date"), ("a", "bigint"), ("c", "text")]),
        ];
        assert_eq!(
            shown(&diff(&old, &new, BY_NAME)),
            [
                "- table gone",
                "+ table fresh (1 columns)",
                "~ table t\n    ~ column a integer → bigint\n    - column b\n    + column d date",
            ]
        );
    }

    #[test]
    fn a_column_of_another_name_and_the_same_type_may_be_a_renamed_one() {
        let old = [table("t", &[("a", "integer"), ("b", "text")])];
        let new = [table("t", &[("a", "integer"), ("c", "text")])];
        assert_eq!(
            shown(&diff(&old, &new, BY_NAME)),
            [
                "~ table t\n    - column b (renamed to c? It is dropped, and c added)\n    \
                 + column c text"
            ]
        );
        let more = [table("t", &[("c", "text"), ("d", "text")])];
        assert!(!shown(&diff(&old, &more, BY_NAME))[0].contains("renamed"));
    }

    #[test]
    fn a_column_at_the_end_needs_no_rebuild() {
        let old = [table("t", &[("a", "text")])];
        let new = [table("t", &[("a", "text"), ("b", "text")])];
        assert_eq!(
            shown(&diff(&old, &new, BY_POSITION)),
            ["~ table t\n    + column b text"]
        );
    }

    #[test]
    fn a_default_is_dropped_before_its_column_gets_another_type() {
        let mut old = [table("t", &[("a", "integer")])];
        old[0].columns[0].default = Some("1".into());
        let new = [table("t", &[("a", "text")])];
        let TableChange::Alter { columns, .. } = &diff(&old, &new, BY_NAME)[0] else {
            panic!("altered");
        };
        assert!(matches!(
            columns[0],
            ColumnChange::Default {
                expression: None,
                ..
            }
        ));
        assert!(matches!(columns[1], ColumnChange::Retype { .. }));
        assert_eq!(columns.len(), 2);
    }

    #[test]
    fn a_table_whose_numbers_are_used_up_is_rebuilt_before_a_column_is_refused() {
        let mut old = [table("t", &[("a", "integer")])];
        old[0].attribute_count = MAX_ATTRIBUTES - 1;
        let one_more = [table("t", &[("a", "integer"), ("b", "text")])];
        let two_more = [table("t", &[("b", "text"), ("c", "text")])];
        assert_eq!(
            shown(&diff(&old, &one_more, BY_NAME)),
            ["~ table t\n    + column b text"]
        );
        assert_eq!(
            shown(&diff(&old, &two_more, BY_NAME)),
            ["± table t (rebuilt: its column numbers are used up)"]
        );
    }
}
