//! Keeps the types of columns while a file's contents change.

use std::collections::BTreeMap;

use crate::diff::{ColumnTypes, Table};

/// Keeps the existing types of columns as long as no value contradicts them.
pub fn keep_column_types(tables: &mut [Table], known: &ColumnTypes) {
    for table in tables.iter_mut() {
        let Some(known) = known.get(&table.name) else {
            continue;
        };
        for column in &mut table.columns {
            let (Some(inferred), Some(data_type)) = (&mut column.inferred, known.get(&column.name))
            else {
                continue;
            };
            if inferred.accepted_by.contains(&data_type.as_str()) {
                column.data_type.clone_from(data_type);
                inferred.is_certain = true;
            }
        }
    }
}

/// Returns the types to record for the tables `after` an import. A table that could not follow the
/// `desired` one keeps its `known` types.
pub fn certain_column_types(
    after: &[Table],
    desired: &[Table],
    known: &ColumnTypes,
) -> ColumnTypes {
    let mut types = ColumnTypes::new();
    for table in after {
        let now = desired.iter().find(|desired| desired.name == table.name);
        let before = known.get(&table.name);
        let of_column = table.columns.iter().filter_map(|column| {
            let now = now?.columns.iter().find(|now| now.name == column.name);
            let is_certain = now.is_some_and(|now| {
                now.data_type == column.data_type && now.inferred.is_some_and(|i| i.is_certain)
            });
            let was = before.and_then(|before| before.get(&column.name));
            (is_certain || was == Some(&column.data_type))
                .then(|| (column.name.clone(), column.data_type.clone()))
        });
        let of_column: BTreeMap<_, _> = of_column.collect();
        if !of_column.is_empty() {
            types.insert(table.name.clone(), of_column);
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use super::super::{foreign_table, infer_layout};
    use super::*;
    use crate::csv::CsvSettings;

    /// The types of a table's columns after one file after another was in its place.
    fn types(files: &[&str]) -> Vec<String> {
        let mut known = ColumnTypes::new();
        let mut types = Vec::new();
        for text in files {
            let csv = CsvSettings {
                header: Some(true),
                ..CsvSettings::default()
            };
            let sheet = infer_layout(text.as_bytes(), true, &csv).unwrap();
            let mut tables = [foreign_table("t", "/t.csv", &sheet, &csv)];
            keep_column_types(&mut tables, &known);
            known = certain_column_types(&tables, &tables, &known);
            types = (tables[0].columns.iter())
                .map(|column| column.data_type.clone())
                .collect();
        }
        types
    }

    #[test]
    fn an_empty_day_changes_no_type() {
        let full = "n,d,z,t\n1.5,2024-01-02,007,2024-01-02 10:00\n";
        let expected = ["numeric", "date", "text", "timestamp without time zone"];
        assert_eq!(types(&[full]), expected);
        for day in [
            "n,d,z,t\n",
            "n,d,z,t\n,,,\n",
            // Nothing in here contradicts them either.
            "n,d,z,t\n2,2024-01-03,8,2024-01-03\n",
        ] {
            assert_eq!(types(&[full, day]), expected, "{day:?}");
            assert_eq!(types(&[full, day, full]), expected, "{day:?}");
        }
    }

    #[test]
    fn a_value_that_contradicts_its_type_changes_it() {
        assert_eq!(types(&["n\n1\n", "n\n1.5\n"]), ["numeric"]);
        assert_eq!(types(&["n\n1\n", "n\nx\n"]), ["text"]);
        assert_eq!(types(&["n\n1\n", "n\n\"\"\n"]), ["text"]);
        assert_eq!(types(&["n\n2024-01-02\n", "n\n1\n"]), ["bigint"]);
    }

    #[test]
    fn a_column_without_values_waits_for_the_first() {
        assert_eq!(types(&["n,m\n"]), ["text", "text"]);
        assert_eq!(types(&["n,m\n", "n,m\n1,x\n"]), ["bigint", "text"]);
        assert_eq!(types(&["n\n", "n\nx\n", "n\n1\n"]), ["text"]);
    }

    #[test]
    fn a_file_that_grew_too_large_to_be_read_whole_changes_no_type() {
        let csv = CsvSettings::default();
        let mut tables = Vec::new();
        for text in ["n,m\n1,x\n", "n,m\n1,2\n3"] {
            let sheet = infer_layout(text.as_bytes(), text.ends_with('\n'), &csv).unwrap();
            let mut now = [foreign_table("t", "/t.csv", &sheet, &csv)];
            keep_column_types(
                &mut now,
                &certain_column_types(&tables, &tables, &ColumnTypes::new()),
            );
            tables = now.to_vec();
        }
        let types = tables[0].columns.iter().map(|c| c.data_type.as_str());
        assert_eq!(types.collect::<Vec<_>>(), ["bigint", "text"]);
    }

    #[test]
    fn a_table_that_stays_as_it_was_keeps_what_is_known_of_it() {
        let csv = CsvSettings::default();
        let of = |text: &str| {
            let sheet = infer_layout(text.as_bytes(), true, &csv).unwrap();
            vec![foreign_table("t", "/t.csv", &sheet, &csv)]
        };
        let (there, desired) = (of("n\n1\n"), of("n\nx\n"));
        let known = certain_column_types(&there, &there, &ColumnTypes::new());
        assert_eq!(certain_column_types(&there, &desired, &known), known);
        assert!(certain_column_types(&[], &desired, &known).is_empty());
    }
}
