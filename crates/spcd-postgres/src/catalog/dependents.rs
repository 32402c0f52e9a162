//! Objects of users that depend on objects of spcd.

use spcd_core::diff::{BrokenBy, Dependent, Dependents};
use tokio_postgres::Client;

use crate::HubError;

/// Returns the objects that depend on foreign tables of a connection and would break or be dropped.
pub async fn of_tables(
    client: &Client,
    connection: &str,
    tables: &[&str],
) -> Result<Dependents, HubError> {
    read(client, "f", connection, tables).await
}

/// Returns the objects that depend on an aggregator's views, and the views' grants and comments. The
/// latter are [`BrokenBy::Removal`]: a rebuilt view gets them back.
pub async fn of_views(
    client: &Client,
    aggregator: &str,
    views: &[&str],
) -> Result<Dependents, HubError> {
    read(client, "v", aggregator, views).await
}

/// Describes the objects that DROP … CASCADE of a connection's tables or views would drop as well.
pub async fn cascaded_objects(
    client: &Client,
    connection: &str,
    tables: &[String],
) -> Result<Vec<String>, HubError> {
    let rows = client
        .query(CASCADED_OBJECTS, &[&connection, &tables])
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Views over the tables, views over these views, and objects that depend on any of them. Omits
/// triggers, checks and statistics of the tables themselves.
const CASCADED_OBJECTS: &str = "
WITH RECURSIVE root AS (
    SELECT c.oid
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN spcd.applied a ON a.hidden_schema = n.nspname
    WHERE coalesce(a.connection_name, n.nspname) = $1 AND (c.relname = ANY ($2::text[]) OR EXISTS (
        SELECT 1 FROM spcd.aggregator_view v
        WHERE v.connection_name = $1 AND NOT v.hidden AND v.name = c.relname))
), gone (oid) AS (
    SELECT oid FROM root
    UNION
    SELECT r.ev_class
    FROM gone g
    JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass
         AND d.refobjid = g.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
    JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
)
SELECT pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, g.oid, 0)
FROM gone g
WHERE g.oid NOT IN (SELECT oid FROM root)
UNION
SELECT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid)
FROM gone g
JOIN pg_catalog.pg_class c ON c.oid = g.oid
JOIN pg_catalog.pg_depend d ON d.deptype = 'n' AND (
         d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = g.oid
      OR d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid = c.reltype)
WHERE d.classid NOT IN ('pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_trigger'::regclass,
                        'pg_catalog.pg_constraint'::regclass)
  AND NOT (d.classid = 'pg_catalog.pg_class'::regclass AND d.objid IN (SELECT oid FROM gone))
ORDER BY 1";

async fn read(
    client: &Client,
    kind: &str,
    schema: &str,
    names: &[&str],
) -> Result<Dependents, HubError> {
    let mut found = Dependents::new();
    if names.is_empty() {
        return Ok(found);
    }
    for row in client.query(DEPENDENTS, &[&schema, &names, &kind]).await? {
        let columns = found.entry(row.try_get(0)?).or_default();
        let all = columns.entry(row.try_get(1)?).or_default();
        all.insert(Dependent {
            description: row.try_get(2)?,
            broken_by: match row.try_get::<_, i32>(3)? {
                -1 => BrokenBy::Removal,
                0 => BrokenBy::Drop,
                1 => BrokenBy::Retype,
                _ => BrokenBy::AnyColumn,
            },
        });
    }
    Ok(found)
}

/// Table, column (`''` for the table), dependent object, and the change that harms it: -1 the final
/// removal, 0 a drop, 1 a type change, 2 the drop of any column. Includes what the server drops without an
/// error: grants, comments, checks, statistics and inheritance.
const DEPENDENTS: &str = "
WITH t AS (
    SELECT c.oid, c.relname::text AS name, c.reltype, y.typarray, c.relowner, c.relacl,
           c.relnamespace, c.reloptions, c.relkind = 'v' AS is_view,
           CASE c.relkind WHEN 'v' THEN -1 ELSE 0 END AS removal
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_type y ON y.oid = c.reltype
    LEFT JOIN spcd.applied a ON a.hidden_schema = n.nspname
    WHERE coalesce(a.connection_name, n.nspname) = $1 AND c.relname = ANY ($2::text[])
      AND c.relkind::text = $3
)
SELECT t.name, coalesce(k.attname::text, ''),
       CASE WHEN r.rulename = '_RETURN'
            THEN pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, r.ev_class, 0)
            ELSE pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) END,
       CASE WHEN d.classid = 'pg_catalog.pg_class'::regclass AND EXISTS (
                     SELECT 1 FROM pg_catalog.pg_inherits i
                     WHERE i.inhparent = t.oid AND i.inhrelid = d.objid) THEN 2
            -- For a type change, the server recreates statistics as the current role and without their
            -- target.
            WHEN k.attname IS NULL OR EXISTS (
                     SELECT 1 FROM pg_catalog.pg_statistic_ext s
                     WHERE d.classid = 'pg_catalog.pg_statistic_ext'::regclass AND s.oid = d.objid
                       AND pg_catalog.pg_get_userbyid(s.stxowner) = current_user
                       AND coalesce(s.stxstattarget, -1) = -1) THEN 0
            ELSE 1 END
FROM t
JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass
     AND d.refobjid = t.oid AND d.deptype IN ('n', 'a')
LEFT JOIN pg_catalog.pg_attribute k
     ON k.attrelid = t.oid AND k.attnum = d.refobjsubid AND d.refobjsubid > 0
LEFT JOIN pg_catalog.pg_rewrite r
     ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid
WHERE d.classid <> 'pg_catalog.pg_attrdef'::regclass
  -- Excludes a view's own rule, and aggregators' views, which spcd updates itself.
  AND (r.oid IS NULL OR r.rulename <> '_RETURN' OR r.ev_class <> t.oid)
  AND NOT EXISTS (
        SELECT 1
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN spcd.aggregator_view v ON v.name = c.relname
             AND n.nspname = CASE WHEN v.hidden THEN 'spcd_union' ELSE v.connection_name END
        WHERE c.oid = r.ev_class)
  AND NOT (d.classid = 'pg_catalog.pg_constraint'::regclass AND EXISTS (
        SELECT 1 FROM pg_catalog.pg_constraint q WHERE q.oid = d.objid AND q.contype = 'n'))
UNION ALL
-- Objects that use its row type. The server refuses to change the type while rows of it are stored.
SELECT t.name, '', pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid),
       CASE WHEN c.relkind IN ('r', 'm', 'p') THEN 1 ELSE 0 END
FROM t
JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_type'::regclass
     AND d.refobjid IN (t.reltype, t.typarray) AND d.deptype = 'n'
LEFT JOIN pg_catalog.pg_class c
     ON d.classid = 'pg_catalog.pg_class'::regclass AND c.oid = d.objid
UNION ALL
SELECT t.name, '', 'its inheritance from '
           || pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, i.inhparent, 0), 2
FROM t
JOIN pg_catalog.pg_inherits i ON i.inhrelid = t.oid
UNION ALL
SELECT t.name, coalesce(k.attname::text, ''),
       CASE WHEN k.attname IS NULL THEN 'its comment'
            ELSE 'the comment on column ' || k.attname END, t.removal
FROM t
JOIN pg_catalog.pg_description d
     ON d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = t.oid
LEFT JOIN pg_catalog.pg_attribute k
     ON k.attrelid = t.oid AND k.attnum = d.objsubid AND d.objsubid > 0
-- Excludes comments that spcd has copied from the source.
WHERE NOT EXISTS (
        SELECT FROM spcd.applied_comment o
        WHERE o.connection_name = $1 AND o.table_name = t.name
          AND o.hash = pg_catalog.md5(d.description))
UNION ALL
SELECT t.name, '', 'its security label', 0
FROM t
JOIN pg_catalog.pg_seclabel l
     ON l.classoid = 'pg_catalog.pg_class'::regclass AND l.objoid = t.oid
UNION ALL
SELECT t.name, '', 'a grant to ' || CASE WHEN a.grantee = 0 THEN 'PUBLIC'
                                    ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END, t.removal
FROM t
CROSS JOIN LATERAL pg_catalog.aclexplode(t.relacl) a
WHERE a.grantee <> t.relowner
  AND NOT (a.grantee = coalesce(pg_catalog.to_regrole('spcd_users')::oid, 0) AND a.grantee <> 0
           AND a.privilege_type = 'SELECT')
  -- Excludes grants that ALTER DEFAULT PRIVILEGES gives to each new table.
  AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_default_acl f
        JOIN pg_catalog.pg_roles r ON r.oid = f.defaclrole AND r.rolname = current_user
        CROSS JOIN LATERAL pg_catalog.aclexplode(f.defaclacl) g
        WHERE f.defaclobjtype = 'r' AND f.defaclnamespace IN (0, t.relnamespace)
          AND g.grantee = a.grantee AND g.privilege_type = a.privilege_type
          AND g.is_grantable >= a.is_grantable)
UNION ALL
SELECT t.name, k.attname::text, w.what || ' column ' || k.attname, t.removal
FROM t
JOIN pg_catalog.pg_attribute k ON k.attrelid = t.oid AND k.attnum > 0 AND NOT k.attisdropped
CROSS JOIN LATERAL (VALUES
    ('a grant on', k.attacl IS NOT NULL),
    ('the statistics target of', k.attstattarget >= 0),
    -- By name, since the server has entries of its own there (`pg_attver` since 15.20).
    ('the settings of', EXISTS (
        SELECT FROM pg_catalog.pg_options_to_table(k.attoptions) o
        WHERE o.option_name IN ('n_distinct', 'n_distinct_inherited')))) AS w (what, has)
WHERE w.has
UNION ALL
SELECT t.name, '', 'its options (' || pg_catalog.array_to_string(t.reloptions, ', ') || ')', -1
FROM t WHERE t.is_view AND t.reloptions IS NOT NULL";
