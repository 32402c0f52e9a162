//! Identity of a hub.

use tokio_postgres::Client;

use crate::HubError;

/// A database, and the hub in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubIdentity {
    /// Identifier of the hub; `None` if it does not exist or may not be read.
    pub id: Option<String>,
    /// Start of the server, to the microsecond.
    server_start: String,
    database_oid: u32,
    is_standby: bool,
}

impl HubIdentity {
    /// Returns whether both are the same database, or one is a standby of the other. An independent
    /// copy of the data directory has the same identifier, but is another hub.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_one = self.server_start == other.server_start;
        let is_same_mark = self.id.is_some() && self.id == other.id;
        self.database_oid == other.database_oid
            && (is_one || is_same_mark && (self.is_standby || other.is_standby))
    }
}

/// Returns the identity of the session's database.
pub async fn identify(client: &Client) -> Result<HubIdentity, HubError> {
    let sql =
        "SELECT pg_catalog.pg_postmaster_start_time()::text, d.oid, pg_catalog.pg_is_in_recovery(),
                      EXISTS (
                          SELECT FROM pg_catalog.pg_attribute a
                          JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
                          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                          WHERE n.nspname = 'spcd' AND c.relname = 'daemon' AND a.attname = 'hub_id'
                            AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                            AND pg_catalog.has_table_privilege(c.oid, 'SELECT'))
               FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";
    let row = client.query_one(sql, &[]).await?;
    let id = match row.try_get(3)? {
        true => {
            let id = client
                .query_opt("SELECT hub_id::text FROM spcd.daemon", &[])
                .await?;
            id.map(|row| row.try_get(0)).transpose()?
        }
        false => None,
    };
    Ok(HubIdentity {
        id,
        server_start: row.try_get(0)?,
        database_oid: row.try_get(1)?,
        is_standby: row.try_get(2)?,
    })
}
