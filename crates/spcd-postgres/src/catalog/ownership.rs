//! Ownership check of spcd's schemas.
//!
//! The owner of the database can create a schema `spcd` with functions of its own before the first
//! start, and a daemon that connects as a superuser would run them. So nothing in these schemas is used
//! unless the daemon's role or a superuser owns all of it.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::HubError;

/// Maximum number of objects that an error names.
const MAX_NAMED_OBJECTS: i64 = 5;

/// Refuses schemas of spcd, and objects in them, that neither this role nor a superuser owns. Reads
/// nothing but the catalog.
///
/// # Errors
/// `42501` with the objects and their owners; errors of the hub.
pub async fn check(client: &Client) -> Result<(), HubError> {
    let sql = "
        WITH n AS (
            SELECT oid, nspname, nspowner FROM pg_catalog.pg_namespace
            WHERE nspname IN ('spcd', 'spcd_lock', 'spcd_type', 'spcd_union')
        ), o (class, oid, owner) AS (
            SELECT 'pg_catalog.pg_namespace'::pg_catalog.regclass, oid, nspowner FROM n
            UNION ALL
            SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, c.oid, c.relowner
            FROM n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
            UNION ALL
            SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, p.proowner
            FROM n JOIN pg_catalog.pg_proc p ON p.pronamespace = n.oid
            UNION ALL
            SELECT 'pg_catalog.pg_type'::pg_catalog.regclass, t.oid, t.typowner
            FROM n JOIN pg_catalog.pg_type t ON t.typnamespace = n.oid
            UNION ALL
            SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, p.oid, p.oprowner
            FROM n JOIN pg_catalog.pg_operator p ON p.oprnamespace = n.oid
        )
        SELECT pg_catalog.pg_describe_object(o.class, o.oid, 0), r.rolname::text
        FROM o JOIN pg_catalog.pg_roles r ON r.oid = o.owner
        WHERE NOT r.rolsuper AND r.rolname <> current_user
        ORDER BY o.class <> 'pg_catalog.pg_namespace'::pg_catalog.regclass, 1
        LIMIT $1";
    let rows = client.query(sql, &[&MAX_NAMED_OBJECTS]).await?;
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let owner: String = first.try_get(1)?;
    let named: Result<Vec<String>, tokio_postgres::Error> = rows
        .iter()
        .map(|row| {
            let (object, owner): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            Ok(format!("{object} belongs to {owner}"))
        })
        .collect();
    let role: String = client
        .query_one("SELECT current_user::text", &[])
        .await?
        .try_get(0)?;
    Err(HubError::StatementFailed {
        text: format!(
            "neither {role} nor a superuser owns these objects in the schemas of spcd, which are \
             therefore not used: {}; connect as {owner} if it is the daemon's role, or drop these objects",
            named?.join(", ")
        ),
        code: SqlState::INSUFFICIENT_PRIVILEGE,
    })
}
