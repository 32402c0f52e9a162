//! Names the tables and columns of a source as a connection's block `import` says.
//!
//! Two names that become one are no error of the source: the first in byte order is kept, and a warning
//! names the other. Options of tables and columns keep their names in the source.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::diff::{Column, Table, TableWarning};
use crate::model::{ForeignSource, Naming};
use crate::pattern::Pattern;
use crate::remote_schema::RemoteSchema;

/// Applies the names of a connection to the tables of its source. Their order is that of the names here.
pub fn apply<'a>(remote: &'a RemoteSchema, source: &ForeignSource) -> Cow<'a, RemoteSchema> {
    let Some(naming) = source.naming() else {
        return Cow::Borrowed(remote);
    };
    let mut namer = Namer {
        naming,
        source,
        excluded: naming.excluded_columns(),
        used: BTreeSet::new(),
        warnings: Vec::new(),
    };
    let mut named = remote.clone();
    let mut tables = std::mem::take(&mut named.tables);
    let option = source.table_name_option.as_deref();
    tables.sort_by(|a, b| a.remote_name(option).cmp(b.remote_name(option)));
    let mut remote_names: BTreeMap<String, String> = BTreeMap::new();
    for mut table in tables {
        let remote_name = table.remote_name(option).to_owned();
        namer.name_table(&mut table);
        namer.name_columns(&remote_name, &mut table);
        match remote_names.get(&table.name) {
            Some(first) => named.left_out.push(TableWarning {
                text: format!(
                    "table {remote_name:?} is left out: its name here would be {:?}, the same \
                     as that of {first:?}",
                    table.name
                ),
                table: Some(remote_name),
            }),
            None => {
                remote_names.insert(table.name.clone(), remote_name);
                named.tables.push(table);
            }
        }
    }
    let names: BTreeMap<&String, &String> = remote_names.iter().map(|(a, b)| (b, a)).collect();
    let of_source = named.left_out.iter_mut().take(remote.left_out.len());
    for left_out in of_source {
        if let Some(name) = left_out.table.as_ref().and_then(|table| names.get(table)) {
            left_out.table = Some((*name).clone());
        }
    }
    named.tables.sort_by(|a, b| a.name.cmp(&b.name));
    if !named.tables.is_empty() {
        let unmatched = namer.unmatched();
        named.warnings.extend(unmatched);
    }
    named.warnings.extend(namer.warnings);
    Cow::Owned(named)
}

/// Names tables and columns, and records what of the settings has an effect.
struct Namer<'a> {
    naming: &'a Naming,
    source: &'a ForeignSource,
    excluded: Vec<(&'a str, Pattern)>,
    /// Keys of `rename`, and patterns of columns.
    used: BTreeSet<String>,
    warnings: Vec<String>,
}

impl Namer<'_> {
    fn name_table(&mut self, table: &mut Table) {
        let Some(option) = &self.source.table_name_option else {
            return;
        };
        let remote = table.remote_name(Some(option)).to_owned();
        if self.naming.rename.contains_key(&remote) {
            self.used.insert(remote.clone());
        }
        let name = self.naming.table(&remote);
        if name != table.name {
            table.options.insert(option.clone(), remote);
            table.name = name;
        }
    }

    /// Leaves out columns and names the others. `table` is the table's name in the source.
    fn name_columns(&mut self, remote_table: &str, table: &mut Table) {
        let option = self.source.column_name_option.as_deref();
        let mut columns = std::mem::take(&mut table.columns);
        columns.retain(|column| !self.excludes(column.remote_name(option)));
        if self.naming.keeps_names() {
            table.columns = columns;
            return;
        }
        let mut order: Vec<usize> = (0..columns.len()).collect();
        order.sort_by_key(|at| columns[*at].remote_name(option));
        let mut remote_names: BTreeMap<String, String> = BTreeMap::new();
        let mut doubles = BTreeSet::new();
        for at in order {
            let column = &mut columns[at];
            let remote = column.remote_name(option).to_owned();
            self.name_column(remote_table, &remote, column);
            match remote_names.get(&column.name) {
                Some(first) => {
                    self.warnings.push(format!(
                        "column {remote:?} of table {remote_table:?} is left out: its name here would \
                         be {:?}, the same as that of {first:?}",
                        column.name
                    ));
                    doubles.insert(at);
                }
                None => drop(remote_names.insert(column.name.clone(), remote)),
            }
        }
        let all = columns.into_iter().enumerate();
        let single = all.filter(|(at, _)| !doubles.contains(at));
        table.columns = single.map(|(_, column)| column).collect();
    }

    fn excludes(&mut self, column: &str) -> bool {
        let found = self
            .excluded
            .iter()
            .filter(|(_, pattern)| pattern.matches(column));
        let found: Vec<String> = found.map(|(text, _)| (*text).to_owned()).collect();
        let is_excluded = !found.is_empty();
        self.used.extend(found);
        is_excluded
    }

    fn name_column(&mut self, table: &str, remote: &str, column: &mut Column) {
        let key = self.naming.column_key(table, remote).map(Cow::into_owned);
        let Some(option) = &self.source.column_name_option else {
            if let Some(key) = key
                && !self.used.contains(&key)
            {
                self.warnings.push(format!(
                    "column {remote:?} of table {table:?} keeps its name: the wrapper {} has no option \
                     for the name of a column in the source",
                    self.source.wrapper
                ));
                self.used.insert(key);
            }
            return;
        };
        self.used.extend(key);
        let name = self.naming.column(table, remote);
        match name == *remote {
            true => drop(column.options.remove(option)),
            false => drop(column.options.insert(option.clone(), remote.to_owned())),
        }
        column.name = name;
    }

    /// Returns warnings about settings that have no effect.
    fn unmatched(&self) -> Vec<String> {
        let keys = self
            .naming
            .rename
            .keys()
            .filter(|key| !self.used.contains(*key));
        let keys = keys.map(|key| {
            format!("{key:?} in import.rename is the name of no imported table or column")
        });
        let patterns = self
            .excluded
            .iter()
            .filter(|(text, _)| !self.used.contains(*text));
        let patterns = patterns.map(|(text, _)| {
            format!("the pattern {text:?} in import.exclude_columns matches no column")
        });
        keys.chain(patterns).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Import, NameStyle};

    fn table(name: &str, columns: &[&str]) -> Table {
        let column = |name: &&str| Column {
            name: (*name).into(),
            data_type: "text".into(),
            ..Column::default()
        };
        Table {
            name: name.into(),
            columns: columns.iter().map(column).collect(),
            ..Table::default()
        }
    }

    fn source(naming: Naming, column_option: Option<&str>) -> ForeignSource {
        ForeignSource {
            wrapper: "some_fdw".into(),
            table_name_option: Some("table_name".into()),
            column_name_option: column_option.map(str::to_owned),
            import: Import {
                naming: Some(Arc::new(naming)),
                ..Import::default()
            },
            ..ForeignSource::default()
        }
    }

    fn lower() -> Naming {
        Naming {
            style: NameStyle::Lower,
            ..Naming::default()
        }
    }

    /// Tables and columns, as `name=remote`, and the warnings.
    fn named(tables: &[Table], source: &ForeignSource) -> (Vec<String>, Vec<String>) {
        let remote = RemoteSchema::from(tables.to_vec());
        let named = apply(&remote, source);
        let show = |name: &str, remote: &str| match name == remote {
            true => name.to_owned(),
            false => format!("{name}={remote}"),
        };
        let table = |table: &Table| {
            let option = source.column_name_option.as_deref();
            let columns = table.columns.iter();
            let columns: Vec<_> = columns
                .map(|c| show(&c.name, c.remote_name(option)))
                .collect();
            let name = show(&table.name, table.remote_name(Some("table_name")));
            format!("{name}({})", columns.join(" "))
        };
        let warnings = named.left_out.iter().map(|warning| warning.text.clone());
        (
            named.tables.iter().map(table).collect(),
            warnings.chain(named.warnings.iter().cloned()).collect(),
        )
    }

    #[test]
    fn options_carry_the_names_of_the_source() {
        let tables = [table("Orders", &["ID", "note"]), table("a", &["B"])];
        let source = source(lower(), Some("column_name"));
        assert_eq!(
            named(&tables, &source),
            (
                vec!["a(b=B)".into(), "orders=Orders(id=ID note)".into()],
                vec![]
            )
        );
        // What is named already is named alike.
        let remote = RemoteSchema::from(tables.to_vec());
        let once = apply(&remote, &source).into_owned();
        assert_eq!(*apply(&once, &source), once);
        let gateway = ForeignSource {
            in_gateway: true,
            ..source
        };
        assert_eq!(*apply(&remote, &gateway), remote);
    }

    #[test]
    fn of_names_that_become_one_the_first_is_kept() {
        let long = |end: &str| format!("{}{end}", "x".repeat(63));
        let tables = [
            table("item", &["a"]),
            table("ITEM", &["ID", "id", "Id"]),
            table(&long("1"), &[]),
            table(&long("2"), &[]),
        ];
        let (tables, warnings) = named(&tables, &source(lower(), Some("column_name")));
        let whole = "x".repeat(63);
        assert_eq!(
            tables,
            ["item=ITEM(id=ID)".to_owned(), format!("{whole}={whole}1()")]
        );
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert_eq!(
            warnings[0],
            "table \"item\" is left out: its name here would be \"item\", the same as that of \"ITEM\""
        );
        assert!(warnings[1].starts_with(&format!("table \"{whole}2\" is left out")));
        assert_eq!(
            warnings[2],
            "column \"Id\" of table \"ITEM\" is left out: its name here would be \"id\", the same \
             as that of \"ID\""
        );
    }

    #[test]
    fn columns_are_left_out_by_their_names_in_the_source() {
        let naming = Naming {
            exclude_columns: vec!["geom".into(), "Secret_*".into(), "gone".into()],
            ..lower()
        };
        let tables = [table("t", &["geom", "Secret_key", "secret_b", "id"])];
        let (tables, warnings) = named(&tables, &source(naming, Some("column_name")));
        assert_eq!(tables, ["t(secret_b id)"]);
        assert_eq!(
            warnings,
            ["the pattern \"gone\" in import.exclude_columns matches no column"]
        );
    }

    #[test]
    fn an_entry_without_effect_is_a_warning() {
        let entry = |(from, to): (&str, &str)| (from.to_owned(), to.to_owned());
        let naming = Naming {
            rename: [("Old", "new"), ("t.id", "key"), ("gone", "x")]
                .map(entry)
                .into(),
            ..Naming::default()
        };
        let tables = [table("Old", &["id"]), table("t", &["id"])];
        let source = source(naming, Some("column_name"));
        assert_eq!(
            named(&tables, &source),
            (
                vec!["new=Old(id)".into(), "t(key=id)".into()],
                vec!["\"gone\" in import.rename is the name of no imported table or column".into()]
            )
        );
        let source = ForeignSource {
            column_name_option: None,
            ..source
        };
        assert_eq!(
            named(&tables, &source).1[1],
            "column \"id\" of table \"t\" keeps its name: the wrapper some_fdw has no option for the \
             name of a column in the source"
        );
    }
}
