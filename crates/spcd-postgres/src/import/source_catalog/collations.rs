//! Generated columns and collations of tables that cannot be imported, since they have types that only
//! the source has.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::sql;
use tokio_postgres::types::Oid;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{CatalogRows, SpecialColumn, catalog_table};
use crate::HubError;

/// Completes these tables as an import would. A generated column becomes a plain one, since its
/// expression may need objects that only the source has. A table with an unknown collation fails.
pub(super) async fn resolve(
    client: &Client,
    name: &str,
    rows: &mut CatalogRows,
    tables: &BTreeSet<String>,
) -> Result<(), HubError> {
    let special_columns: Vec<SpecialColumn> = (std::mem::take(&mut rows.special_columns)
        .into_iter())
    .filter(|column| tables.contains(&column.table))
    .collect();
    if special_columns.is_empty() {
        return Ok(());
    }
    rows.import_only.retain(|table| !tables.contains(table));
    let names = fetch_source_collations(client, name, &special_columns).await?;
    let mut generated: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for found in special_columns {
        let columns = rows.columns.get_mut(&found.table);
        let Some(column) = columns.and_then(|columns| columns.get_mut(&found.number)) else {
            continue;
        };
        if found.is_generated {
            let columns = generated.entry(found.table.clone()).or_default();
            columns.push(column.name.clone());
        }
        let Some((schema, collation)) = names.get(&found.collation) else {
            continue;
        };
        match find_hub_collation(client, schema, collation, &column.data_type).await? {
            Some(collation) => column.collation = collation,
            None => {
                let why = format!(
                    "column {}: collation {} does not exist (create the collation in this database)",
                    column.name,
                    sql::qualified(schema, collation)
                );
                rows.errors.insert(found.table, why);
            }
        }
    }
    generated.retain(|table, _| !rows.errors.contains_key(table));
    rows.warnings
        .extend(generated.iter().map(|(table, columns)| {
        format!(
            "table {table:?} is imported without generated expressions, since it has a type that \
             only the source has: the source refuses an INSERT, which gives {} a value",
            columns.join(", ")
        )
    }));
    Ok(())
}

/// Returns schema and name of the source's collations, by their OIDs in the source.
async fn fetch_source_collations(
    client: &Client,
    name: &str,
    special_columns: &[SpecialColumn],
) -> Result<BTreeMap<Oid, (String, String)>, HubError> {
    let oids: BTreeSet<Oid> = (special_columns.iter().map(|column| column.collation))
        .filter(|oid| *oid != 0)
        .collect();
    if oids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let columns = [
        ("oid", "oid"),
        ("collname", "text"),
        ("collnamespace", "oid"),
    ];
    let list: Vec<String> = oids.iter().map(Oid::to_string).collect();
    let query = format!(
        "{}SELECT k.oid, n.nspname, k.collname FROM {} k JOIN {} n ON n.oid = k.collnamespace
         WHERE k.oid = ANY ('{{{}}}'::pg_catalog.oid[])",
        catalog_table(name, "pg_collation", &columns),
        sql::qualified(name, "pg_collation"),
        sql::qualified(name, "pg_namespace"),
        list.join(",")
    );
    let mut names = BTreeMap::new();
    for message in client.simple_query(&query).await? {
        let SimpleQueryMessage::Row(row) = message else {
            continue;
        };
        let text = |column: usize| row.try_get(column).map(Option::unwrap_or_default);
        let oid = text(0)?.parse().unwrap_or(0);
        names.insert(oid, (text(1)?.to_owned(), text(2)?.to_owned()));
    }
    Ok(names)
}

/// Finds a collation of the hub. The inner `None` stands for the type's default. Returns `None` if the
/// hub has no collation of that name for its encoding.
async fn find_hub_collation(
    client: &Client,
    schema: &str,
    collation: &str,
    data_type: &str,
) -> Result<Option<Option<String>>, HubError> {
    let sql = "SELECT CASE WHEN k.oid IS DISTINCT FROM y.typcollation
                           THEN pg_catalog.quote_ident(n.nspname) || '.'
                                || pg_catalog.quote_ident(k.collname) END
               FROM pg_catalog.pg_collation k
               JOIN pg_catalog.pg_namespace n ON n.oid = k.collnamespace
               LEFT JOIN pg_catalog.pg_type y ON y.oid = pg_catalog.to_regtype($3)
               WHERE n.nspname = $1 AND k.collname = $2 AND k.collencoding IN (-1, (
                   SELECT d.encoding FROM pg_catalog.pg_database d
                   WHERE d.datname = pg_catalog.current_database()))
               ORDER BY k.collencoding DESC LIMIT 1";
    let row = client
        .query_opt(sql, &[&schema, &collation, &data_type])
        .await?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}
