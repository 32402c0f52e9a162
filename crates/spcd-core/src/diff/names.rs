//! Names in the source, and names that are too long for the server.

use std::collections::BTreeMap;

use super::{Column, Table};

/// Maximum length of a name in bytes (the server's `NAMEDATALEN` less one).
pub const MAX_NAME_BYTES: usize = 63;
/// Minimum length of a truncated name: the server truncates before a character, which has up to 4
/// bytes.
const MIN_TRUNCATED_BYTES: usize = MAX_NAME_BYTES - 3;

impl Table {
    /// Returns the name in the source: that of the option, or its own.
    pub fn remote_name(&self, option: Option<&str>) -> &str {
        remote_name(&self.name, &self.options, option)
    }
}

impl Column {
    /// Returns the name in the source: that of the option, or its own.
    pub fn remote_name(&self, option: Option<&str>) -> &str {
        remote_name(&self.name, &self.options, option)
    }
}

fn remote_name<'a>(
    name: &'a str,
    options: &'a BTreeMap<String, String>,
    option: Option<&str>,
) -> &'a str {
    let remote = option.and_then(|option| options.get(option));
    remote.map_or(name, String::as_str)
}

/// Returns why a table cannot be imported under its source's name. The server truncates names that
/// are too long for it, for example those of a source in another encoding; only an option has the
/// full name.
pub(super) fn name_error(table: &Table) -> Option<String> {
    let cut = |name: &str, options: &BTreeMap<String, String>| {
        let longer = |value: &&String| value.len() > MAX_NAME_BYTES && value.starts_with(name);
        match name.len() {
            0..MIN_TRUNCATED_BYTES => None,
            MIN_TRUNCATED_BYTES..=MAX_NAME_BYTES => options.values().find(longer).cloned(),
            _ => Some(name.to_owned()),
        }
    };
    let column = |column: &Column| cut(&column.name, &column.options);
    match cut(&table.name, &table.options) {
        Some(full) => Some(long_name(&full)),
        None => (table.columns.iter().find_map(column)).map(|full| long_column(&full)),
    }
}

/// Marks the tables whose name, or a column's name, the server truncated. `identifiers` are the
/// full names from its notices.
pub fn mark_truncated(tables: &mut [Table], identifiers: &[String]) {
    let cut = |name: &str, options: &BTreeMap<String, String>| {
        let is_its = |full: &&String| full.len() > MAX_NAME_BYTES && full.starts_with(name);
        // The name in the source is exactly this one.
        let is_whole = options.values().any(|value| value == name);
        let may_be_cut = name.len() >= MIN_TRUNCATED_BYTES && !is_whole;
        let mut identifiers = identifiers.iter().filter(|_| may_be_cut);
        identifiers.find(is_its).cloned()
    };
    for table in tables
        .iter_mut()
        .filter(|table| table.import_error.is_none())
    {
        let column = |column: &Column| cut(&column.name, &column.options);
        table.import_error = match cut(&table.name, &table.options) {
            Some(full) => Some(long_name(&full)),
            None => (table.columns.iter().find_map(column)).map(|full| long_column(&full)),
        };
    }
}

fn long_name(full: &str) -> String {
    format!("its name {full:?} is longer than {MAX_NAME_BYTES} bytes here")
}

fn long_column(full: &str) -> String {
    format!("the name of its column {full:?} is longer than {MAX_NAME_BYTES} bytes here")
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    #[test]
    fn a_name_that_the_server_cut_costs_its_table() {
        let (whole, full) = ("n".repeat(MAX_NAME_BYTES), "n".repeat(MAX_NAME_BYTES + 1));
        let table = |name: &str, column: &str| Table {
            name: name.into(),
            columns: vec![Column {
                name: column.into(),
                ..Column::default()
            }],
            ..Table::default()
        };
        let mut tables = [
            table("column", &whole),
            table("good", "a"),
            table(&whole, "a"),
        ];
        // The table's name has this length in the source too; the column's name was truncated.
        let options = &mut tables[2].options;
        options.insert("table_name".into(), whole.clone());
        mark_truncated(&mut tables, slice::from_ref(&full));
        let found: Vec<_> = tables
            .iter()
            .map(|table| table.import_error.clone())
            .collect();
        assert_eq!(found, [Some(long_column(&full)), None, None]);
        tables[2].options.clear();
        mark_truncated(&mut tables, slice::from_ref(&full));
        assert_eq!(tables[2].import_error, Some(long_name(&full)));
    }
}
