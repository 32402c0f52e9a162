//! Removing spcd's own schema, when nothing that it made is left outside of it.

use std::collections::BTreeSet;

use spcd_core::sql;
use tokio_postgres::Client;

use super::{HubError, migrate};

/// Drops one object after the other, none with CASCADE, until none is left or each that is left is
/// in somebody's way. `made` is an array of names.
const DROP: &str = "
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
        RAISE EXCEPTION 'objects that spcd did not make are in the way of its own, drop them first: %', v_reason
            USING ERRCODE = 'dependent_objects_still_exist';
    END;
END $spcd$";

/// Drops the schema `spcd` in the transaction that holds the lead, and commits it. Fails, and
/// leaves all as it is, where people's views hang on it or their objects are in it.
pub async fn drop_own(lock: &Client) -> Result<(), HubError> {
    let made = names_made();
    let made = sql::text_array(made.iter().copied());
    // A client that is reading is waited for, but not for ever.
    lock.batch_execute("SET LOCAL lock_timeout = '10s'").await?;
    lock.batch_execute(&DROP.replace("$made", &made)).await?;
    lock.batch_execute("COMMIT").await?;
    Ok(())
}

/// Whether another daemon waits to lead: it would make all of it again.
pub async fn has_heir(client: &Client) -> Result<bool, HubError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks
                   WHERE locktype = 'relation' AND NOT granted
                     AND relation = (SELECT c.oid FROM pg_catalog.pg_class c
                                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                                 WHERE n.nspname = 'spcd_lock' AND c.relname = 'lead')
                     AND database = (SELECT oid FROM pg_catalog.pg_database
                                     WHERE datname = pg_catalog.current_database()))";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

/// What is in a cluster of spcd's own that people made: databases, roles, and objects in the
/// database of the schemas.
pub async fn of_people(client: &Client) -> Result<Vec<String>, HubError> {
    let sql = "
        SELECT 'database ' || datname FROM pg_catalog.pg_database
        WHERE datname NOT IN ('postgres', 'template0', 'template1', pg_catalog.current_database())
        UNION ALL
        SELECT 'role ' || rolname FROM pg_catalog.pg_roles
        -- Without members spcd_users means nothing, and those are listed.
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

/// The names that the migrations give to tables, views, functions and sequences: what else is in
/// the schema somebody put there.
fn names_made() -> BTreeSet<&'static str> {
    let lines = migrate::texts().flat_map(str::lines);
    lines
        .filter_map(|line| {
            let (create, rest) = line.split_once(" spcd.")?;
            let of_ours = create.starts_with("CREATE ") || create.starts_with("ALTER ");
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            of_ours.then(|| rest.get(..end.unwrap_or(rest.len())).unwrap_or_default())
        })
        .filter(|name| !name.is_empty())
        .collect()
}
