//! Names that are too long for the server.

use std::collections::BTreeMap;

use super::{Column, Table};

/// The longest name that the server keeps, in bytes (its `NAMEDATALEN` less one).
pub const LONGEST_NAME: usize = 63;
/// What is cut off ends before a character: at most so many bytes earlier.
const CUT_AT_LEAST: usize = LONGEST_NAME - 3;

/// Why a table cannot be imported as its source names it. The server cuts names that are too long
/// for it (those of a source in another encoding, for one), and only an option has them in full.
pub(super) fn too_long(table: &Table) -> Option<String> {
    let cut = |name: &str, options: &BTreeMap<String, String>| {
        let longer = |value: &&String| value.len() > LONGEST_NAME && value.starts_with(name);
        match name.len() {
            0..CUT_AT_LEAST => None,
            CUT_AT_LEAST..=LONGEST_NAME => options.values().find(longer).cloned(),
            _ => Some(name.to_owned()),
        }
    };
    let column = |column: &Column| cut(&column.name, &column.options);
    match cut(&table.name, &table.options) {
        Some(full) => Some(long_name(&full)),
        None => (table.columns.iter().find_map(column)).map(|full| long_column(&full)),
    }
}

/// Marks the tables of which the server cut a name: `identifiers` are those it said it cut, in full.
pub fn mark_truncated(tables: &mut [Table], identifiers: &[String]) {
    let cut = |name: &str, options: &BTreeMap<String, String>| {
        let is_its = |full: &&String| full.len() > LONGEST_NAME && full.starts_with(name);
        // Its name in the source is this long and no longer.
        let is_whole = options.values().any(|value| value == name);
        let may_be_cut = name.len() >= CUT_AT_LEAST && !is_whole;
        let mut identifiers = identifiers.iter().filter(|_| may_be_cut);
        identifiers.find(is_its).cloned()
    };
    for table in tables.iter_mut().filter(|table| table.unfit.is_none()) {
        let column = |column: &Column| cut(&column.name, &column.options);
        table.unfit = match cut(&table.name, &table.options) {
            Some(full) => Some(long_name(&full)),
            None => (table.columns.iter().find_map(column)).map(|full| long_column(&full)),
        };
    }
}

fn long_name(full: &str) -> String {
    format!("its name {full:?} is longer than {LONGEST_NAME} bytes here")
}

fn long_column(full: &str) -> String {
    format!("the name of its column {full:?} is longer than {LONGEST_NAME} bytes here")
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    #[test]
    fn a_name_that_the_server_cut_costs_its_table() {
        let (whole, full) = ("n".repeat(LONGEST_NAME), "n".repeat(LONGEST_NAME + 1));
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
        // This one is so long in the source, too; it was the other that was cut.
        let options = &mut tables[2].options;
        options.insert("table_name".into(), whole.clone());
        mark_truncated(&mut tables, slice::from_ref(&full));
        let unfit: Vec<_> = tables.iter().map(|table| table.unfit.clone()).collect();
        assert_eq!(unfit, [Some(long_column(&full)), None, None]);
        tables[2].options.clear();
        mark_truncated(&mut tables, slice::from_ref(&full));
        assert_eq!(tables[2].unfit, Some(long_name(&full)));
    }
}
