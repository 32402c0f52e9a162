//! Whose the schemas of spcd are.
//!
//! A role that owns the database can make a schema `spcd` before the first start, with views and
//! functions of its own, which a daemon that connects as a superuser would then run. So nothing in
//! these schemas is used unless the daemon's role or a superuser owns all of it.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::HubError;

/// Most objects that a refusal names.
const MOST_NAMED: i64 = 5;

/// Refuses schemas of spcd, and objects in them, that neither this role nor a superuser owns. Reads
/// nothing but the catalog.
///
/// # Errors
/// `42501` with the objects and their owners; the hub's.
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
    let rows = client.query(sql, &[&MOST_NAMED]).await?;
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let owner: String = first.try_get(1)?;
    let named: Result<Vec<String>, tokio_postgres::Error> = rows
        .iter()
        .map(|row| {
            let (what, owner): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            Ok(format!("{what} belongs to {owner}"))
        })
        .collect();
    let me: String = client
        .query_one("SELECT current_user::text", &[])
        .await?
        .try_get(0)?;
    Err(HubError::Refused {
        text: format!(
            "the schemas of spcd hold what neither {me} nor a superuser owns, and nothing there is \
             used: {}; connect as {owner} if it is the daemon's role, or drop these objects",
            named?.join(", ")
        ),
        code: SqlState::INSUFFICIENT_PRIVILEGE,
    })
}
