//! Taking over what somebody made by hand under a connection's name.

use serde_json::json;
use spcd_core::config::{Connection, Kind};
use spcd_core::observed::Written;
use spcd_core::plan::{RowChange, WrittenJson};
use spcd_core::sql;
use spcd_protocol::Status;
use tokio_postgres::Client;

use super::HubError;

/// What there is under a connection's name that spcd did not make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The schema.
    pub schema: bool,
    /// The server. An aggregator has none, and leaves one of its name alone.
    pub server: bool,
    /// The schema's foreign tables that are on that server.
    pub tables: Vec<String>,
    /// What else is in the schema: it stays its owner's.
    pub others: Vec<String>,
    /// What to type first: the statements that make this role their owner.
    pub ownership: Vec<String>,
}

/// Looks for what could be taken over; `None` if nothing of that name is somebody else's.
pub async fn find(client: &Client, connection: &Connection) -> Result<Option<Found>, HubError> {
    let name = &connection.name;
    let with_server = matches!(connection.kind, Kind::Plugin);
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
    let mut found = Found {
        schema: row.try_get(2)?,
        server: row.try_get(3)?,
        ..Found::default()
    };
    if !found.schema && !found.server {
        return Ok(None);
    }
    let owned = |n: usize| -> Result<bool, HubError> {
        Ok(row.try_get::<_, Option<bool>>(n)?.unwrap_or(true))
    };
    let me: String = row.try_get(6)?;
    if found.schema && !owned(4)? {
        let statement = format!("ALTER SCHEMA {} OWNER TO {me};", sql::ident(name));
        found.ownership.push(statement);
    }
    if found.server && !owned(5)? {
        let statement = format!("ALTER SERVER {} OWNER TO {me};", sql::ident(name));
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
                "ALTER FOREIGN TABLE {} OWNER TO {me};",
                sql::qualified(name, &table)
            ));
        }
        found.tables.push(table);
    }
    Ok(Some(found))
}

/// Records them as spcd's, inside the caller's transaction. What the files want of them is another
/// matter: they then differ from it, as if the files had changed.
pub async fn record(
    client: &Client,
    connection: &Connection,
    found: &Found,
) -> Result<(), HubError> {
    let name = &connection.name;
    let with_server = matches!(connection.kind, Kind::Plugin);
    // A server alone gets the schema that spcd keeps by.
    let there = "SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1";
    if client.query_opt(there, &[name]).await?.is_none() {
        client.batch_execute(&sql::create_schema(name)).await?;
    }
    // Its row may not be there yet, where no daemon has run since the block was written.
    let row = "SELECT FROM spcd.connection_state WHERE connection_name = $1";
    if client.query_opt(row, &[name]).await?.is_none() {
        let row = RowChange {
            name: name.clone(),
            route: Status::route(None, Status::Pending),
            written: Some(WrittenJson::from(Written::of(connection))),
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
