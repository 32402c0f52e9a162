//! Types of MySQL's columns that mysql_fdw imports as types that do not hold their values.
//!
//! The wrapper goes by DATA_TYPE, which says nothing of UNSIGNED and of the length of BIT, and writes
//! `year`, which is no type of Postgres (measured with mysql_fdw 2.8.0 and MariaDB 10.11).

use std::collections::HashMap;

use spcd_core::shape::Table;
use spcd_core::sql;

use super::Importer;
use super::remote_names::of_information_schema;
use crate::hub::HubError;

/// What an import finds as the type of YEAR.
const YEAR: &str = "year";

/// Lets an import find the type `year`, in a schema of its own: a table may have that name, too.
pub(super) async fn before(importer: &mut Importer<'_>) -> Result<(), HubError> {
    let schema = format!("{}_types", importer.into);
    let create = format!(
        "{}CREATE DOMAIN {} AS smallint; SET LOCAL search_path = pg_catalog, {}",
        sql::create_schema(&schema),
        sql::qualified(&schema, YEAR),
        sql::ident(&schema)
    );
    importer.session.client.batch_execute(&create).await?;
    importer.type_schema = Some(schema);
    Ok(())
}

/// Gives columns the types that hold their values.
pub(super) async fn correct(
    importer: &mut Importer<'_>,
    tables: &mut [Table],
) -> Result<(), HubError> {
    // As the catalog writes it: neither name needs quotes.
    let year = format!("{}_types.{YEAR}", importer.into);
    let columns = || tables.iter().flat_map(|table| &table.columns);
    let may_differ =
        |data_type: &str| matches!(data_type, "smallint" | "integer" | "bigint" | "bit(1)");
    let is_asked = columns().any(|column| may_differ(&column.data_type));
    let mut types: HashMap<(String, String), String> = HashMap::new();
    if is_asked {
        let names = ["TABLE_NAME", "COLUMN_NAME", "COLUMN_TYPE"];
        match of_information_schema(importer, "COLUMNS", &names).await {
            Ok(rows) => {
                for row in rows {
                    types.insert((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?);
                }
            }
            Err(error @ HubError::Refused { .. }) => {
                let client = &importer.session.client;
                client.batch_execute("ROLLBACK TO spcd_names").await?;
                importer.warnings.push(format!(
                    "it is not known which columns are unsigned; large values of them cannot be read: \
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
            let there = types.get(&(remote.clone(), column.name.clone()));
            match there.map(|there| here(there)) {
                Some(Here::As(data_type)) => column.data_type = data_type.to_owned(),
                Some(Here::Nothing) => {
                    let (column, there) = (&column.name, there.map_or("", String::as_str));
                    importer.warnings.push(format!(
                        "table {name:?} is imported without its column {column:?}: mysql_fdw neither \
                         reads nor compares {there} right (a view at the source may have CAST({column} \
                         AS UNSIGNED))"
                    ));
                    return false;
                }
                Some(Here::Same) | None => {}
            }
            true
        });
    }
    Ok(())
}

/// What a column becomes here.
#[derive(Debug, PartialEq, Eq)]
enum Here {
    /// What the wrapper says.
    Same,
    As(&'static str),
    Nothing,
}

/// What a column of that COLUMN_TYPE becomes.
fn here(column_type: &str) -> Here {
    let column_type = column_type.to_ascii_lowercase();
    let name: String = (column_type.chars())
        .take_while(char::is_ascii_alphabetic)
        .collect();
    match name.as_str() {
        "smallint" if column_type.contains("unsigned") => Here::As("integer"),
        "int" if column_type.contains("unsigned") => Here::As("bigint"),
        "bigint" if column_type.contains("unsigned") => Here::As("numeric(20,0)"),
        // The wrapper reads the bytes of longer ones as digits. As bytea they are read right, but a
        // condition is sent as text, for which MySQL finds other rows.
        "bit" if column_type != "bit(1)" => Here::Nothing,
        _ => Here::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::{Here, here};

    #[test]
    fn types_are_widened_only_where_values_need_it() {
        for (column_type, expected) in [
            ("int(10) unsigned", Here::As("bigint")),
            ("int unsigned zerofill", Here::As("bigint")),
            ("INT(10) UNSIGNED", Here::As("bigint")),
            ("int(11)", Here::Same),
            ("tinyint(3) unsigned", Here::Same),
            ("mediumint(8) unsigned", Here::Same),
            ("smallint(5) unsigned", Here::As("integer")),
            ("bigint(20) unsigned", Here::As("numeric(20,0)")),
            ("bigint(20)", Here::Same),
            ("bit(1)", Here::Same),
            ("bit(2)", Here::Nothing),
            ("decimal(10,2) unsigned", Here::Same),
        ] {
            assert_eq!(here(column_type), expected, "{column_type}");
        }
    }
}
