//! Reads the tables of many schemas of one source in one statement.

use std::collections::BTreeMap;

use spcd_core::config::ForeignSource;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{
    COLUMN_COUNT, CatalogRows, CatalogTables, SCHEMA_COLUMN, catalog_tables, tables_query, types,
};
use crate::HubError;

/// Separates schema and table in a key. No name contains this character.
const SEPARATOR: char = '\0';

/// Reads the tables of schemas in the open transaction. The statements `before` create schema, server and
/// mapping of that name. Omits a schema that does not exist, or that has a table which needs an import.
pub async fn read_many(
    client: &Client,
    name: &str,
    before: &str,
    target: &ForeignSource,
    schemas: &[&str],
) -> Result<BTreeMap<String, CatalogTables>, HubError> {
    let text = [
        before,
        &catalog_tables(name),
        &tables_query(name, target, schemas, None),
    ]
    .concat();
    let mut found: BTreeMap<String, CatalogRows> = BTreeMap::new();
    for message in client.simple_query(&text).await? {
        match message {
            SimpleQueryMessage::Row(row) if row.len() == COLUMN_COUNT => {
                let schema = row.try_get(SCHEMA_COLUMN)?.unwrap_or_default();
                if !found.contains_key(schema) {
                    found.insert(schema.to_owned(), CatalogRows::default());
                }
                if let Some(rows) = found.get_mut(schema) {
                    rows.add_row(&row, target)?;
                }
            }
            _ => {}
        }
    }
    found.retain(|_, rows| rows.import_only.is_empty() && rows.special_columns.is_empty());
    resolve_types(client, name, target, &mut found).await?;
    found.retain(|_, rows| rows.import_only.is_empty());
    let tables = |(schema, rows): (String, CatalogRows)| {
        let mut target = target.clone();
        target.import.schema.clone_from(&schema);
        (schema, rows.into_tables(&target))
    };
    Ok(found.into_iter().map(tables).collect())
}

/// Resolves the types of all schemas at once.
async fn resolve_types(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    found: &mut BTreeMap<String, CatalogRows>,
) -> Result<(), HubError> {
    let mut all = CatalogRows {
        are_plain: true,
        ..CatalogRows::default()
    };
    for (schema, rows) in &mut *found {
        let key = |table: &str| format!("{schema}{SEPARATOR}{table}");
        for mut column in std::mem::take(&mut rows.source_type_columns) {
            // Only these tables are resolved.
            if let Some(columns) = rows.columns.remove(&column.table) {
                all.columns.insert(key(&column.table), columns);
            }
            column.table = key(&column.table);
            all.source_type_columns.push(column);
        }
    }
    if all.source_type_columns.is_empty() {
        return Ok(());
    }
    types::resolve(client, name, target, &mut all).await?;
    for (key, columns) in std::mem::take(&mut all.columns) {
        if let Some((rows, table)) = rows_of(found, &key) {
            rows.columns.insert(table, columns);
        }
    }
    for (key, error) in std::mem::take(&mut all.errors) {
        if let Some((rows, table)) = rows_of(found, &key) {
            rows.errors.insert(table, error);
        }
    }
    for key in std::mem::take(&mut all.import_only) {
        if let Some((rows, table)) = rows_of(found, &key) {
            rows.import_only.push(table);
        }
    }
    Ok(())
}

/// Returns the rows of a key's schema, and the key's table.
fn rows_of<'a>(
    found: &'a mut BTreeMap<String, CatalogRows>,
    key: &str,
) -> Option<(&'a mut CatalogRows, String)> {
    let (schema, table) = key.split_once(SEPARATOR)?;
    Some((found.get_mut(schema)?, table.to_owned()))
}
