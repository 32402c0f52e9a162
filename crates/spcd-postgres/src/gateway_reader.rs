//! The role with which hubs read a gateway, its password, and the hub that a gateway serves.

use spcd_core::secret::Secret;
use spcd_core::sql;
use tokio_postgres::Client;

use crate::{HubError, transaction};

/// Role with which the hub reads the gateway's tables.
pub const READER: &str = "spcd_gateway_reader";
/// Channel that announces a new password of the reader.
pub const CHANNEL: &str = "spcd_gateway_reader";

/// Creates the read-only role and its password if they do not exist, and sets and returns the password.
/// Revokes the role's access to the options of foreign servers, which contain wrappers' configuration, if
/// spcd's role is allowed to. Requires spcd's schema.
pub async fn prepare(client: &Client) -> Result<Secret, HubError> {
    let insert = "INSERT INTO spcd.gateway_reader DEFAULT VALUES ON CONFLICT DO NOTHING";
    client.batch_execute(insert).await?;
    let password = self::password(client).await?.unwrap_or_default();
    let (reader, readers) = (sql::ident(READER), sql::ident("spcd_users"));
    let role = |name: &str| {
        format!(
            "IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) THEN
                 CREATE ROLE {};
             END IF;",
            sql::literal(name),
            sql::ident(name)
        )
    };
    let create = format!(
        "DO $$ BEGIN {} {} END $$;
         {}
         GRANT {readers} TO {reader};",
        role("spcd_users"),
        role(READER),
        set_password(&password)
    );
    client.batch_execute(&create).await?;
    let close = "DO $$ BEGIN
                     REVOKE SELECT ON pg_catalog.pg_foreign_server FROM PUBLIC;
                 EXCEPTION WHEN insufficient_privilege THEN
                     NULL;
                 END $$";
    client.batch_execute(close).await?;
    Ok(password)
}

/// Returns the statement that sets the reader's password. It contains the SCRAM verifier, so that no
/// log and no view shows the password.
fn set_password(password: &Secret) -> String {
    let verifier = postgres_protocol::password::scram_sha_256(password.expose().as_bytes());
    let (reader, verifier) = (sql::ident(READER), sql::literal(&verifier));
    format!("ALTER ROLE {reader} LOGIN PASSWORD {verifier};")
}

/// Returns the reader's password; `None` if no daemon has created it yet.
pub async fn password(client: &Client) -> Result<Option<Secret>, HubError> {
    if !crate::has_relation(client, "spcd.gateway_reader").await? {
        return Ok(None);
    }
    let sql = "SELECT password FROM spcd.gateway_reader";
    let row = client.query_opt(sql, &[]).await?;
    let password: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
    Ok(password.map(Secret::new))
}

/// Replaces the reader's password by a new one, and announces it. Open sessions continue.
pub async fn rotate(client: &Client) -> Result<(), HubError> {
    client.batch_execute("BEGIN").await?;
    let rotated = async {
        let sql = "UPDATE spcd.gateway_reader SET password = DEFAULT RETURNING password";
        let password = Secret::new(client.query_one(sql, &[]).await?.try_get::<_, String>(0)?);
        let notify = format!("{} NOTIFY {}", set_password(&password), sql::ident(CHANNEL));
        Ok(client.batch_execute(&notify).await?)
    };
    transaction::end(client, rotated.await).await
}

/// Removes the role, unless it owns objects or has privileges in another database. Restores the default
/// access of all roles to the options of servers.
pub async fn remove(client: &Client) -> Result<(), HubError> {
    let sql = format!(
        "DO $$ BEGIN
             IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) THEN
                 DROP ROLE {};
             END IF;
         EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
             NULL;
         END $$;
         DO $$ BEGIN
             GRANT SELECT ON pg_catalog.pg_foreign_server TO PUBLIC;
         EXCEPTION WHEN insufficient_privilege THEN
             NULL;
         END $$",
        sql::literal(READER),
        sql::ident(READER)
    );
    Ok(client.batch_execute(&sql).await?)
}

/// Identity of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseIdentity {
    /// Start of its server, to the microsecond.
    pub server_start: String,
    /// The database's OID.
    pub database_oid: u32,
    /// The server's system identifier and the database's OID, which survive a restart; `None` if the role may
    /// not read it.
    pub lasting: Option<String>,
}

/// Returns the identity of the session's database.
pub async fn identify(client: &Client) -> Result<DatabaseIdentity, HubError> {
    let sql = "SELECT pg_catalog.pg_postmaster_start_time()::text, d.oid,
                      pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
               FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";
    let row = client.query_one(sql, &[]).await?;
    let database_oid: u32 = row.try_get(1)?;
    let mut lasting = None;
    if row.try_get(2)? {
        let sql = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()";
        let system: String = client.query_one(sql, &[]).await?.try_get(0)?;
        lasting = Some(format!("{system}/{database_oid}"));
    }
    Ok(DatabaseIdentity {
        server_start: row.try_get(0)?,
        database_oid,
        lasting,
    })
}

/// Records the hub that the gateway serves.
pub async fn record_hub(client: &Client, hub: &str) -> Result<(), HubError> {
    let sql = "UPDATE spcd.gateway_reader SET hub = $1 WHERE hub IS DISTINCT FROM $1";
    client.execute(sql, &[&hub]).await?;
    Ok(())
}

/// Returns the hub that the gateway serves, and the daemon that leads there.
pub async fn recorded_hub(client: &Client) -> Result<Option<(String, String)>, HubError> {
    let sql = "SELECT r.hub, coalesce(d.leader, '?') FROM spcd.gateway_reader r
               CROSS JOIN spcd.daemon d WHERE r.hub IS NOT NULL";
    let row = client.query_opt(sql, &[]).await?;
    Ok(match row {
        Some(row) => Some((row.try_get(0)?, row.try_get(1)?)),
        None => None,
    })
}

/// Purpose of the sessions in which the daemon checks that the reader can log in.
pub const CHECK: &str = "gateway check";

/// Returns the number of sessions in which hubs read the gateway.
pub async fn sessions(client: &Client) -> Result<i64, HubError> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_stat_activity
               WHERE usename = $1 AND application_name <> 'spcd ' || $2::text";
    Ok(client
        .query_one(sql, &[&READER, &CHECK])
        .await?
        .try_get(0)?)
}
