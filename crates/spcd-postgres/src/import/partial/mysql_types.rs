//! MySQL's column types that mysql_fdw imports as types with too small a range.
//!
//! The wrapper maps DATA_TYPE, which contains neither UNSIGNED nor the length of BIT, and writes `year`,
//! which is no type of Postgres (measured with mysql_fdw 2.8.0 and MariaDB 10.11).

use std::collections::HashMap;

use spcd_core::diff::Table;
use spcd_core::sql;

use super::PartialImport;
use super::remote_names::query_information_schema;
use crate::HubError;

/// Name that the wrapper writes for the type YEAR.
const YEAR: &str = "year";

/// Creates the type `year` in a schema of its own, since a table may have the same name.
pub(super) async fn create_year_type(import: &mut PartialImport<'_>) -> Result<(), HubError> {
    let schema = format!("{}_types", import.into);
    let create = format!(
        "{}CREATE DOMAIN {} AS smallint; SET LOCAL search_path = pg_catalog, {}",
        sql::create_schema(&schema),
        sql::qualified(&schema, YEAR),
        sql::ident(&schema)
    );
    import.session.client.batch_execute(&create).await?;
    import.type_schema = Some(schema);
    Ok(())
}

/// Replaces column types whose range is too small.
pub(super) async fn correct_types(
    import: &mut PartialImport<'_>,
    tables: &mut [Table],
) -> Result<(), HubError> {
    // Form of `format_type`. Neither name needs quotes.
    let year = format!("{}_types.{YEAR}", import.into);
    let columns = || tables.iter().flat_map(|table| &table.columns);
    let may_differ =
        |data_type: &str| matches!(data_type, "smallint" | "integer" | "bigint" | "bit(1)");
    let may_any_differ = columns().any(|column| may_differ(&column.data_type));
    let mut types: HashMap<(String, String), String> = HashMap::new();
    if may_any_differ {
        let names = ["TABLE_NAME", "COLUMN_NAME", "COLUMN_TYPE"];
        match query_information_schema(import, "COLUMNS", &names).await {
            Ok(rows) => {
                for row in rows {
                    types.insert((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?);
                }
            }
            Err(error @ HubError::StatementFailed { .. }) => {
                let client = &import.session.client;
                client.batch_execute("ROLLBACK TO spcd_names").await?;
                import.warnings.push(format!(
                    "cannot determine which columns are unsigned; large values of them cannot be read: \
                     {error}"
                ));
            }
            Err(error) => return Err(error),
        }
    }
    for table in tables {
        let remote = table
            .options
            .get("table_name")
            .unwrap_or(&table.name)
            .clone();
        let name = table.name.clone();
        table.columns.retain_mut(|column| {
            if column.data_type == year {
                column.data_type = "smallint".to_owned();
            }
            let remote_type = types.get(&(remote.clone(), column.name.clone()));
            match remote_type.map(|remote| map_column_type(remote)) {
                Some(ColumnType::Wider(data_type)) => column.data_type = data_type.to_owned(),
                Some(ColumnType::Unsupported) => {
                    let (column, remote_type) = (&column.name, remote_type.map_or("", String::as_str));
                    import.warnings.push(format!(
                        "table {name:?} is imported without its column {column:?}: mysql_fdw neither \
                         reads nor compares {remote_type} correctly (a view at the source may have CAST({column} \
                         AS UNSIGNED))"
                    ));
                    return false;
                }
                Some(ColumnType::Unchanged) | None => {}
            }
            true
        });
    }
    Ok(())
}

/// Type of the imported column.
#[derive(Debug, PartialEq, Eq)]
enum ColumnType {
    /// The wrapper's type is right.
    Unchanged,
    Wider(&'static str),
    Unsupported,
}

/// Maps a COLUMN_TYPE.
fn map_column_type(column_type: &str) -> ColumnType {
    let column_type = column_type.to_ascii_lowercase();
    let name: String = (column_type.chars())
        .take_while(char::is_ascii_alphabetic)
        .collect();
    match name.as_str() {
        "smallint" if column_type.contains("unsigned") => ColumnType::Wider("integer"),
        "int" if column_type.contains("unsigned") => ColumnType::Wider("bigint"),
        "bigint" if column_type.contains("unsigned") => ColumnType::Wider("numeric(20,0)"),
        // The wrapper reads the bytes of longer values as digits. As bytea they would be read
        // correctly, but a condition is sent as text, for which MySQL returns other rows.
        "bit" if column_type != "bit(1)" => ColumnType::Unsupported,
        _ => ColumnType::Unchanged,
    }
}

#[cfg(test)]
mod tests {
    use super::{ColumnType, map_column_type};

    #[test]
    fn types_are_widened_only_where_values_need_it() {
        for (column_type, expected) in [
            ("int(10) unsigned", ColumnType::Wider("bigint")),
            ("int unsigned zerofill", ColumnType::Wider("bigint")),
            ("INT(10) UNSIGNED", ColumnType::Wider("bigint")),
            ("int(11)", ColumnType::Unchanged),
            ("tinyint(3) unsigned", ColumnType::Unchanged),
            ("mediumint(8) unsigned", ColumnType::Unchanged),
            ("smallint(5) unsigned", ColumnType::Wider("integer")),
            ("bigint(20) unsigned", ColumnType::Wider("numeric(20,0)")),
            ("bigint(20)", ColumnType::Unchanged),
            ("bit(1)", ColumnType::Unchanged),
            ("bit(2)", ColumnType::Unsupported),
            ("decimal(10,2) unsigned", ColumnType::Unchanged),
        ] {
            assert_eq!(map_column_type(column_type), expected, "{column_type}");
        }
    }
}
