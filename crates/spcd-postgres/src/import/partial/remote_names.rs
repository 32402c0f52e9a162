//! Table names of a source, for an import that cannot import all tables at once.

use spcd_core::diff::{Column, Table};
use spcd_core::sql;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::{ImportError, PartialImport};
use crate::HubError;
use crate::import::source_catalog;

/// A wrapper that does not escape names, and whose source may consider two names equal. An EXCEPT clause
/// could therefore exclude other tables, too, or fail.
pub use spcd_core::model::MYSQL_WRAPPER;

/// Names of a source's tables.
pub(super) struct RemoteNames {
    /// Tables that the target selects and that can be imported.
    pub(super) selected: Vec<String>,
    /// Tables that the target does not select.
    pub(super) others: Vec<String>,
}

/// Lists the source's tables, after an import of all has failed. Returns `None` if the names cannot be
/// read.
pub(super) async fn list(
    import: &mut PartialImport<'_>,
    failed: &ImportError,
) -> Result<Option<RemoteNames>, HubError> {
    let target = import.target;
    if target.wrapper == source_catalog::POSTGRES_FDW && failed.error.is_encoding_error() {
        let found =
            source_catalog::read_in_parts(&import.session.client, import.server, target).await?;
        import.warnings.extend(found.warnings);
        import.left_out.extend(found.left_out);
        let unrepresentable = found
            .tables
            .iter()
            .filter(|table| table.import_error.is_some());
        for (table, text) in
            unrepresentable.filter_map(|table| Some((table, table.import_error.clone()?)))
        {
            let code = SqlState::UNTRANSLATABLE_CHARACTER;
            (import.errors).insert(table.name.clone(), HubError::StatementFailed { text, code });
        }
        let representable = found
            .tables
            .into_iter()
            .filter(|table| table.import_error.is_none());
        let names = representable
            .map(|table| table.name)
            .chain(found.import_only);
        return Ok(Some(RemoteNames {
            selected: names.collect(),
            others: found.unselected.into_iter().collect(),
        }));
    }
    // Skipped if the source has refused the connection.
    if target.wrapper == MYSQL_WRAPPER && failed.is_table_error() {
        let names = list_mysql_tables(import).await?;
        return Ok((!names.selected.is_empty()).then_some(names));
    }
    Ok(None)
}

/// Returns a foreign table for a table of MySQL's information_schema. All columns are texts.
pub(in crate::import) fn information_schema_table(
    local: &str,
    table: &str,
    columns: &[&str],
) -> Table {
    let column = |name: &&str| Column {
        name: (*name).into(),
        data_type: "text".into(),
        ..Column::default()
    };
    let options = [("dbname", "information_schema"), ("table_name", table)];
    let option = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Table {
        name: local.into(),
        columns: columns.iter().map(column).collect(),
        options: options.into_iter().map(option).collect(),
        ..Table::default()
    }
}

/// Returns columns of a table of MySQL's information_schema, for the target's schema. Rolls back the
/// foreign table for it.
pub(super) async fn query_information_schema(
    import: &PartialImport<'_>,
    table: &str,
    columns: &[&str],
) -> Result<Vec<Row>, HubError> {
    let (client, target) = (&import.session.client, import.target);
    // No table of the source has this local name.
    let local = format!("information_schema.{table}");
    let all = [columns, &["TABLE_SCHEMA"]].concat();
    let foreign = information_schema_table(&local, table, &all);
    let mut create = "SAVEPOINT spcd_names;\n".to_owned();
    sql::create_table(import.into, import.server, &foreign, &mut create);
    client.batch_execute(&create).await?;
    let columns: Vec<_> = columns.iter().map(|name| sql::ident(name)).collect();
    let query = format!(
        "SELECT {} FROM {} WHERE \"TABLE_SCHEMA\" = $1",
        columns.join(", "),
        sql::qualified(import.into, &local)
    );
    let rows = client.query(&query, &[&target.import.schema]).await?;
    client.batch_execute("ROLLBACK TO spcd_names").await?;
    Ok(rows)
}

/// Lists the tables of MySQL's catalog.
async fn list_mysql_tables(import: &PartialImport<'_>) -> Result<RemoteNames, HubError> {
    let rows = query_information_schema(import, "TABLES", &["TABLE_NAME"]).await?;
    let names = rows.iter().map(|row| row.try_get(0));
    let mut names = names.collect::<Result<Vec<String>, _>>()?;
    names.sort();
    let is_selected = |name: &String| import.target.import.selects(name);
    let (selected, others) = names.into_iter().partition(is_selected);
    Ok(RemoteNames { selected, others })
}
