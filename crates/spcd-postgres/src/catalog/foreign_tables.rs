//! Foreign tables from the hub's catalog.

use std::collections::BTreeMap;

use spcd_core::diff::{self, Column, Table, WrapperTraits};
use tokio_postgres::Client;

use crate::HubError;

/// The existing foreign tables of connections.
pub(super) const RECORDED: &str =
    "SELECT a.connection_name AS key, c.oid, c.relname::text AS name, c.relnatts AS attributes
                FROM spcd.applied a
                JOIN pg_catalog.pg_namespace n
                     ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
                JOIN pg_catalog.pg_foreign_server s
                     ON s.srvname = coalesce(a.server_name, a.connection_name)
                CROSS JOIN LATERAL pg_catalog.unnest(a.tables) AS t (name)
                JOIN pg_catalog.pg_class c ON c.relname = t.name AND c.relnamespace = n.oid
                JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = c.oid AND f.ftserver = s.oid
                WHERE a.connection_name = ANY ($1)";

/// Returns the tables of some connections, not normalized.
pub(crate) async fn recorded(
    client: &Client,
    names: &[String],
) -> Result<BTreeMap<String, Vec<Table>>, HubError> {
    let mut all: BTreeMap<String, Vec<Table>> = BTreeMap::new();
    if !names.is_empty() {
        for (key, table) in tables(client, RECORDED, &names).await? {
            all.entry(key).or_default().push(table);
        }
    }
    Ok(all)
}

/// Returns all foreign tables of a schema, normalized.
pub(crate) async fn of_schema(
    client: &Client,
    schema: &str,
    traits: WrapperTraits<'_>,
) -> Result<Vec<Table>, HubError> {
    let from = "SELECT '' AS key, c.oid, c.relname::text AS name, c.relnatts AS attributes
                FROM pg_catalog.pg_namespace n
                JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass
                     AND d.refobjid = n.oid AND d.classid = 'pg_catalog.pg_class'::regclass
                JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'f'
                WHERE n.nspname = $1";
    let mut tables: Vec<Table> = (tables(client, from, &schema).await?.into_iter())
        .map(|(_, table)| table)
        .collect();
    diff::normalize(&mut tables, traits);
    Ok(tables)
}

/// Returns the foreign tables that `from` selects as (key, oid, name, attributes).
pub(super) async fn tables(
    client: &Client,
    from: &str,
    parameter: &(dyn tokio_postgres::types::ToSql + Sync),
) -> Result<Vec<(String, Table)>, HubError> {
    let sql = format!(
        "SELECT t.key, t.name, f.ftoptions, k.attname::text,
                pg_catalog.format_type(k.atttypid, k.atttypmod), k.attnotnull,
                CASE WHEN k.attcollation <> y.typcollation AND k.attcollation <> 0
                     THEN pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END,
                pg_catalog.pg_get_expr(d.adbin, d.adrelid), k.attgenerated <> '', k.attfdwoptions,
                t.attributes
         FROM ({from}) t
         JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.oid
         LEFT JOIN pg_catalog.pg_attribute k
              ON k.attrelid = t.oid AND k.attnum > 0 AND NOT k.attisdropped
         LEFT JOIN pg_catalog.pg_type y ON y.oid = k.atttypid
         LEFT JOIN pg_catalog.pg_collation co ON co.oid = k.attcollation
         LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = t.oid AND d.adnum = k.attnum
         ORDER BY t.key COLLATE \"C\", t.name COLLATE \"C\", k.attnum"
    );
    let mut tables: Vec<(String, Table)> = Vec::new();
    for row in client.query(&sql, &[parameter]).await? {
        let (key, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if tables
            .last()
            .is_none_or(|(k, t)| *k != key || t.name != name)
        {
            let table = Table {
                name,
                columns: Vec::new(),
                options: options(row.try_get(2)?),
                attribute_count: row.try_get::<_, i16>(10)?.unsigned_abs().into(),
                import_error: None,
            };
            tables.push((key, table));
        }
        let Some(column) = row.try_get::<_, Option<String>>(3)? else {
            continue;
        };
        let expression: Option<String> = row.try_get(7)?;
        let (default, generated) = match row.try_get(8)? {
            true => (None, expression),
            false => (expression, None),
        };
        let column = Column {
            name: column,
            data_type: row.try_get(4)?,
            not_null: row.try_get(5)?,
            collation: row.try_get(6)?,
            default,
            generated,
            options: options(row.try_get(9)?),
            inferred: None,
        };
        if let Some((_, table)) = tables.last_mut() {
            table.columns.push(column);
        }
    }
    Ok(tables)
}

/// Parses options of the catalog, `{a=1,b=2}`.
pub(super) fn options(list: Option<Vec<String>>) -> BTreeMap<String, String> {
    let split = |option: String| {
        let (name, value) = option.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    list.into_iter().flatten().filter_map(split).collect()
}
