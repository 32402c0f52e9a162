//! Removes spcd's own schemas, after all objects outside of them have been removed.

use std::collections::BTreeSet;

use spcd_core::sql;
use tokio_postgres::Client;

use crate::HubError;
use crate::migrations;

/// Drops the objects named in the array `made` one by one, without CASCADE, until none is left or all
/// others have dependent objects.
const DROP_SCHEMAS: &str = "
DO $spcd$
DECLARE
    v_object record;
    v_dropped boolean;
    v_reason text;
BEGIN
    LOOP
        v_dropped := false;
        FOR v_object IN
            SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
                   pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
            FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'spcd' AND c.relkind IN ('r', 'p', 'v', 'S') AND c.relname = ANY ($made)
            UNION ALL
            SELECT 'FUNCTION', p.oid::pg_catalog.regprocedure::text
            FROM pg_catalog.pg_proc p
            JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname = 'spcd' AND p.proname = ANY ($made)
            ORDER BY 1 DESC
        LOOP
            BEGIN
                EXECUTE 'DROP ' || v_object.kind || ' ' || v_object.name;
                v_dropped := true;
            EXCEPTION WHEN dependent_objects_still_exist THEN
                GET STACKED DIAGNOSTICS v_reason = PG_EXCEPTION_DETAIL;
            END;
        END LOOP;
        EXIT WHEN NOT v_dropped;
    END LOOP;
    BEGIN
        DROP SCHEMA IF EXISTS spcd_union;
        DROP DOMAIN IF EXISTS spcd_type.text;
        DROP SCHEMA IF EXISTS spcd_type;
        DROP SCHEMA spcd;
        DROP TABLE spcd_lock.migration, spcd_lock.lead, spcd_lock.event_order;
        DROP SCHEMA spcd_lock;
    EXCEPTION WHEN dependent_objects_still_exist THEN
        GET STACKED DIAGNOSTICS v_reason = PG_EXCEPTION_DETAIL;
        RAISE EXCEPTION 'objects that spcd did not create are in the way of its own, drop them first: %', v_reason
            USING ERRCODE = 'dependent_objects_still_exist';
    END;
END $spcd$";

/// Drops spcd's schemas in the transaction that holds the leader lock, and commits it. Fails without a
/// change if objects of users are in them or depend on them.
pub async fn drop_schemas(lock: &Client) -> Result<(), HubError> {
    let made = created_names();
    let made = sql::text_array(made.iter().copied());
    // Limits the wait for clients that read the tables.
    lock.batch_execute("SET LOCAL lock_timeout = '10s'").await?;
    lock.batch_execute(&DROP_SCHEMAS.replace("$made", &made))
        .await?;
    lock.batch_execute("COMMIT").await?;
    Ok(())
}

/// Returns whether another daemon waits to lead. It would create the schemas again.
pub async fn has_waiting_daemon(client: &Client) -> Result<bool, HubError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks
                   WHERE locktype = 'relation' AND NOT granted
                     AND relation = (SELECT c.oid FROM pg_catalog.pg_class c
                                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                                 WHERE n.nspname = 'spcd_lock' AND c.relname = 'lead')
                     AND database = (SELECT oid FROM pg_catalog.pg_database
                                     WHERE datname = pg_catalog.current_database()))";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

/// Describes the objects of users in spcd's private cluster: databases, roles, and objects in the
/// database of the schemas.
pub async fn user_objects(client: &Client) -> Result<Vec<String>, HubError> {
    let sql = "
        SELECT 'database ' || datname FROM pg_catalog.pg_database
        WHERE datname NOT IN ('postgres', 'template0', 'template1', pg_catalog.current_database())
        UNION ALL
        SELECT 'role ' || rolname FROM pg_catalog.pg_roles
        -- The members of spcd_users are listed instead of the role.
        WHERE rolname NOT IN (current_user, 'spcd_users') AND rolname NOT LIKE 'pg\\_%'
        UNION ALL
        SELECT pg_catalog.pg_describe_object(o.class, o.oid, 0)
        FROM (
            SELECT 'pg_catalog.pg_namespace'::pg_catalog.regclass AS class, oid, nspname AS schema
            FROM pg_catalog.pg_namespace WHERE nspname <> 'public'
            UNION ALL
            SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, c.oid, n.nspname
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            UNION ALL
            SELECT 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, n.nspname
            FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
            UNION ALL
            SELECT 'pg_catalog.pg_foreign_server'::pg_catalog.regclass, oid, ''
            FROM pg_catalog.pg_foreign_server
        ) o
        WHERE o.schema NOT LIKE 'pg\\_%' AND o.schema <> 'information_schema'
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                          WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype IN ('e', 'i'))
        ORDER BY 1";
    let rows = client.query(sql, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Returns the names of the tables, views, functions and sequences that the migrations create. Other
/// objects in the schema belong to users.
fn created_names() -> BTreeSet<&'static str> {
    let lines = migrations::texts().flat_map(str::lines);
    lines
        .filter_map(|line| {
            let (create, rest) = line.split_once(" spcd.")?;
            let is_create = create.starts_with("CREATE ") || create.starts_with("ALTER ");
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            is_create.then(|| rest.get(..end.unwrap_or(rest.len())).unwrap_or_default())
        })
        .filter(|name| !name.is_empty())
        .collect()
}
