//! Which tables a source has, by name, for an import that cannot take them all at once.

use spcd_core::shape::{Column, Table};
use spcd_core::sql;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::{Failed, Importer};
use crate::hub::{HubError, catalog};

/// A wrapper that does not escape the names that it is given, and whose source may take two of them
/// for one: to leave some out of an import would leave out others, too, or fail.
pub use spcd_core::model::MYSQL;

/// The names of the tables that the target takes, after an import of all failed; `None`: the source
/// is not asked for them.
pub(super) async fn of(
    importer: &mut Importer<'_>,
    failed: &Failed,
) -> Result<Option<Vec<String>>, HubError> {
    let target = importer.target;
    if target.wrapper == catalog::WRAPPER && failed.error.is_of_encoding() {
        let found =
            catalog::look_in_parts(&importer.session.client, importer.server, target).await?;
        importer.warnings.extend(found.warnings);
        let bad = found.tables.iter().filter(|table| table.unfit.is_some());
        for (table, text) in bad.filter_map(|table| Some((table, table.unfit.clone()?))) {
            let code = SqlState::UNTRANSLATABLE_CHARACTER;
            (importer.unfit).insert(table.name.clone(), HubError::Refused { text, code });
        }
        let fit = found
            .tables
            .into_iter()
            .filter(|table| table.unfit.is_none());
        let names = fit.map(|table| table.name).chain(found.odd);
        return Ok(Some(names.collect()));
    }
    // A source that refused the connection is not asked again.
    if target.wrapper == MYSQL && failed.is_of_a_table() {
        let names = of_mysql(importer).await?;
        return Ok((!names.is_empty()).then_some(names));
    }
    Ok(None)
}

/// Columns of a table of MySQL's information_schema, for the target's schema. Nothing of what asks for
/// them stays.
pub(super) async fn of_information_schema(
    importer: &Importer<'_>,
    table: &str,
    columns: &[&str],
) -> Result<Vec<Row>, HubError> {
    let (client, target) = (&importer.session.client, importer.target);
    let column = |name: &&str| Column {
        name: (*name).into(),
        data_type: "text".into(),
        ..Column::default()
    };
    let options = [("dbname", "information_schema"), ("table_name", table)];
    let option = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    // A name that no table of the source has here.
    let local = format!("information_schema.{table}");
    let foreign = Table {
        name: local.clone(),
        columns: columns
            .iter()
            .chain(&["TABLE_SCHEMA"])
            .map(column)
            .collect(),
        options: options.into_iter().map(option).collect(),
        ..Table::default()
    };
    let mut create = "SAVEPOINT spcd_names;\n".to_owned();
    sql::create_table(importer.into, importer.server, &foreign, &mut create);
    client.batch_execute(&create).await?;
    let columns: Vec<_> = columns.iter().map(|name| sql::ident(name)).collect();
    let question = format!(
        "SELECT {} FROM {} WHERE \"TABLE_SCHEMA\" = $1",
        columns.join(", "),
        sql::qualified(importer.into, &local)
    );
    let rows = client.query(&question, &[&target.import.schema]).await?;
    client.batch_execute("ROLLBACK TO spcd_names").await?;
    Ok(rows)
}

/// What the source's catalog lists.
async fn of_mysql(importer: &Importer<'_>) -> Result<Vec<String>, HubError> {
    let target = importer.target;
    let rows = of_information_schema(importer, "TABLES", &["TABLE_NAME"]).await?;
    let mut names = Vec::new();
    for row in rows {
        let name: String = row.try_get(0)?;
        if target.import.takes(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
