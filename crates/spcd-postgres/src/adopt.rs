//! Adopts objects that were created by hand under a connection's name.

use serde_json::json;
use spcd_core::config::{Connection, ConnectionKind};
use spcd_core::observed::ConfigSnapshot;
use spcd_core::planner::RowChange;
use spcd_core::sql;
use spcd_protocol::Status;
use tokio_postgres::Client;

use crate::HubError;

/// Objects with a connection's name that spcd did not create.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdoptableObjects {
    /// Whether there is such a schema.
    pub schema: bool,
    /// Whether there is such a server. Always false for an aggregator, which has none.
    pub server: bool,
    /// Foreign tables of the schema that use this server.
    pub tables: Vec<String>,
    /// Other objects of the schema. They are not adopted.
    pub others: Vec<String>,
    /// Statements that the user must run first, to make this role the owner.
    pub ownership: Vec<String>,
}

/// Returns the objects that can be adopted; `None` if there are none.
pub async fn find_adoptable(
    client: &Client,
    connection: &Connection,
) -> Result<Option<AdoptableObjects>, HubError> {
    let name = &connection.name;
    let with_server = matches!(connection.kind, ConnectionKind::Plugin);
    let sql = "SELECT n.oid, s.oid,
                      n.oid IS NOT NULL AND n.oid IS DISTINCT FROM a.schema_oid,
                      s.oid IS NOT NULL AND s.oid IS DISTINCT FROM a.server_oid AND $2,
                      pg_catalog.pg_has_role(n.nspowner, 'USAGE'),
                      pg_catalog.pg_has_role(s.srvowner, 'USAGE'),
                      pg_catalog.quote_ident(current_user)
               FROM (SELECT $1::text AS name) w
               LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.name
               LEFT JOIN pg_catalog.pg_foreign_server s ON s.srvname = w.name
               LEFT JOIN spcd.applied a ON a.connection_name = w.name";
    let row = client.query_one(sql, &[name, &with_server]).await?;
    let (schema, server): (Option<u32>, Option<u32>) = (row.try_get(0)?, row.try_get(1)?);
    let mut found = AdoptableObjects {
        schema: row.try_get(2)?,
        server: row.try_get(3)?,
        ..AdoptableObjects::default()
    };
    if !found.schema && !found.server {
        return Ok(None);
    }
    let owned = |n: usize| -> Result<bool, HubError> {
        Ok(row.try_get::<_, Option<bool>>(n)?.unwrap_or(true))
    };
    let role: String = row.try_get(6)?;
    if found.schema && !owned(4)? {
        let statement = format!("ALTER SCHEMA {} OWNER TO {role};", sql::ident(name));
        found.ownership.push(statement);
    }
    if found.server && !owned(5)? {
        let statement = format!("ALTER SERVER {} OWNER TO {role};", sql::ident(name));
        found.ownership.push(statement);
    }
    let sql = "SELECT c.relname::text,
                      coalesce(f.ftserver = $2, false),
                      pg_catalog.pg_has_role(c.relowner, 'USAGE')
               FROM pg_catalog.pg_class c
               LEFT JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = c.oid
               WHERE c.relnamespace = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
               ORDER BY c.relname";
    let server = server.filter(|_| with_server).unwrap_or(0);
    for row in client.query(sql, &[&schema.unwrap_or(0), &server]).await? {
        let table: String = row.try_get(0)?;
        if !row.try_get::<_, bool>(1)? {
            found.others.push(table);
            continue;
        }
        if !row.try_get::<_, bool>(2)? {
            found.ownership.push(format!(
                "ALTER FOREIGN TABLE {} OWNER TO {role};",
                sql::qualified(name, &table)
            ));
        }
        found.tables.push(table);
    }
    Ok(Some(found))
}

/// Records the objects as spcd's, inside the caller's transaction. The next pass changes them to the
/// definition in the files.
pub async fn record(
    client: &Client,
    connection: &Connection,
    found: &AdoptableObjects,
) -> Result<(), HubError> {
    let name = &connection.name;
    let with_server = matches!(connection.kind, ConnectionKind::Plugin);
    // A server without a schema gets one, since `spcd.applied` needs it.
    let there = "SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1";
    if client.query_opt(there, &[name]).await?.is_none() {
        client.batch_execute(&sql::create_schema(name)).await?;
    }
    // The row is missing if no daemon has run since the block was added.
    let row = "SELECT FROM spcd.connection_state WHERE connection_name = $1";
    if client.query_opt(row, &[name]).await?.is_none() {
        let row = RowChange {
            name: name.clone(),
            route: Status::route(None, Status::Pending),
            written: Some(ConfigSnapshot::of(connection)),
            ..RowChange::default()
        };
        let publish = "SELECT spcd.publish(pg_catalog.nextval('spcd.generation'), $1)";
        client.execute(publish, &[&json!([row])]).await?;
    }
    let applied = "INSERT INTO spcd.applied
                       (connection_name, target_hash, schema_oid, server_oid, tables, fingerprint)
                   SELECT n.nspname, 'adopted', n.oid, s.oid, $2, ''
                   FROM pg_catalog.pg_namespace n
                   LEFT JOIN pg_catalog.pg_foreign_server s ON s.srvname = n.nspname AND $3
                   WHERE n.nspname = $1
                   ON CONFLICT (connection_name) DO UPDATE SET
                       target_hash = excluded.target_hash, schema_oid = excluded.schema_oid,
                       server_oid = excluded.server_oid, tables = excluded.tables,
                       fingerprint = excluded.fingerprint";
    client
        .execute(applied, &[name, &found.tables, &with_server])
        .await?;
    Ok(())
}
