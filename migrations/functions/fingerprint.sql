-- Fingerprints of what spcd made: sums of the row versions in the catalog tell that nothing changed.

-- One line a connection that spcd made: whether its schema and server are still the ones it made,
-- and a text that changes when anything of them does. A sum of row versions can only grow as rows
-- change, so with the counts beside it two different catalogs do not give the same text.
-- This is all of it but aggregators' views.
CREATE OR REPLACE VIEW spcd.table_fingerprint AS
SELECT a.connection_name,
       n.oid AS schema_oid,
       s.oid AS server_oid,
       n.oid IS NOT DISTINCT FROM a.schema_oid AS schema_is_ours,
       s.oid IS NOT DISTINCT FROM a.server_oid AS server_is_ours,
       pg_catalog.concat_ws('/', n.oid, s.oid,
           pg_catalog.hashtextextended(pg_catalog.concat(s.srvfdw, s.srvoptions), 0),
           pg_catalog.hashtextextended(m.umoptions::text, 0),
           t.tables, t.rows, t.columns, t.column_rows) AS fingerprint
FROM spcd.applied a
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
LEFT JOIN pg_catalog.pg_foreign_server s ON s.srvname = a.connection_name
LEFT JOIN pg_catalog.pg_user_mappings m ON m.srvid = s.oid AND m.umuser = 0
LEFT JOIN LATERAL (
    SELECT count(*) AS tables,
           sum(((age('3'::xid)::bigint - age(c.xmin)) & 4294967295)
             + ((age('3'::xid)::bigint - age(f.xmin)) & 4294967295)) AS rows,
           sum(k.columns) AS columns,
           sum(k.column_rows) AS column_rows
    FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_class c ON c.oid = d.objid
    JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = d.objid AND f.ftserver = s.oid
    CROSS JOIN LATERAL (
        SELECT count(*) AS columns,
               sum((age('3'::xid)::bigint - age(k.xmin)) & 4294967295) AS column_rows
        FROM pg_catalog.pg_attribute k
        WHERE k.attrelid = d.objid AND k.attnum > 0
    ) k
    WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass
      AND d.refobjid = n.oid
      AND d.classid = 'pg_catalog.pg_class'::regclass
      AND c.relname = ANY (a.tables)
) t ON true;

-- The same with the number and the versions of aggregators' views.
CREATE OR REPLACE VIEW spcd.fingerprint AS
-- Once for all: for each connection anew it would cost more than all the rest.
WITH v AS MATERIALIZED (
    SELECT w.connection_name, count(*) AS views,
           sum(((age('3'::xid)::bigint - age(c.xmin)) & 4294967295)
             + ((age('3'::xid)::bigint - age(r.xmin)) & 4294967295) + k.column_rows) AS rows
    FROM spcd.aggregator_view w
    JOIN pg_catalog.pg_namespace m
         ON m.nspname = CASE WHEN w.hidden THEN 'spcd_union' ELSE w.connection_name END
    JOIN pg_catalog.pg_class c
         ON c.relname = w.name AND c.relnamespace = m.oid AND c.relkind = 'v'
    JOIN pg_catalog.pg_rewrite r ON r.ev_class = c.oid AND r.rulename = '_RETURN'
    CROSS JOIN LATERAL (
        -- A renamed column changes nothing but its own row.
        SELECT sum((age('3'::xid)::bigint - age(k.xmin)) & 4294967295) AS column_rows
        FROM pg_catalog.pg_attribute k WHERE k.attrelid = c.oid AND k.attnum > 0
    ) k
    GROUP BY w.connection_name
)
SELECT t.connection_name, t.schema_oid, t.server_oid, t.schema_is_ours, t.server_is_ours,
       pg_catalog.concat_ws('/', t.fingerprint, v.views, v.rows) AS fingerprint
FROM spcd.table_fingerprint t
LEFT JOIN v ON v.connection_name = t.connection_name;

-- Records what connections look like now. For a few each by itself, by a plan that is made once and
-- goes from index to index: to plan it each time would take ten times as long as to do it.
CREATE OR REPLACE FUNCTION spcd.refresh_fingerprint(p_names text[]) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_name text;
BEGIN
    IF pg_catalog.cardinality(p_names) > 1000 THEN
        PERFORM spcd.refresh_fingerprints(p_names);
        RETURN;
    END IF;
    FOREACH v_name IN ARRAY p_names LOOP
        UPDATE spcd.applied a SET fingerprint = (
            SELECT pg_catalog.concat_ws('/', t.fingerprint, v.views, v.rows)
            FROM spcd.table_fingerprint t
            CROSS JOIN (
                SELECT nullif(count(*), 0) AS views,
                       sum(((age('3'::xid)::bigint - age(c.xmin)) & 4294967295)
                         + ((age('3'::xid)::bigint - age(r.xmin)) & 4294967295)
                         + k.column_rows) AS rows
                FROM spcd.aggregator_view w
                JOIN pg_catalog.pg_namespace m
                     ON m.nspname = CASE WHEN w.hidden THEN 'spcd_union' ELSE w.connection_name END
                JOIN pg_catalog.pg_class c
                     ON c.relname = w.name AND c.relnamespace = m.oid AND c.relkind = 'v'
                JOIN pg_catalog.pg_rewrite r ON r.ev_class = c.oid AND r.rulename = '_RETURN'
                CROSS JOIN LATERAL (
                    -- A renamed column changes nothing but its own row.
                    SELECT sum((age('3'::xid)::bigint - age(k.xmin)) & 4294967295) AS column_rows
                    FROM pg_catalog.pg_attribute k WHERE k.attrelid = c.oid AND k.attnum > 0
                ) k
                WHERE w.connection_name = v_name
            ) v
            WHERE t.connection_name = v_name)
        WHERE a.connection_name = v_name;
    END LOOP;
END $$;

-- The same for most of all connections at once.
CREATE OR REPLACE FUNCTION spcd.refresh_fingerprints(p_names text[]) RETURNS void LANGUAGE sql
SET enable_seqscan = on SET enable_hashjoin = on SET enable_mergejoin = on AS $$
    UPDATE spcd.applied a SET fingerprint = f.fingerprint
    FROM spcd.fingerprint f
    WHERE f.connection_name = a.connection_name AND a.connection_name = ANY (p_names)
      -- said of the view too: a planner that did not know would look at all connections
      AND f.connection_name = ANY (p_names)
$$;

-- Records what was made for connections: an array of {name, target_hash, tables, members, warnings,
-- version, columns, look_again, hidden_schema, types}. Where all of it was made in this transaction,
-- "columns" is how many columns the tables have, and the fingerprint is reckoned: each row bears the
-- same version. A mistake in that would cost a closer look, and no more. With "look_again" there is
-- none, so that the next look is a closer one. It goes from index to index, as spcd.touch does.
CREATE OR REPLACE FUNCTION spcd.record(p_made jsonb) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    INSERT INTO spcd.applied
        (connection_name, target_hash, schema_oid, server_oid, tables, members, warnings,
         extension_version, hidden_schema, types, fingerprint)
    SELECT r.name, r.target_hash, n.oid, s.oid, r.tables, r.members, r.warnings, r.version,
           r.hidden_schema, r.types,
           CASE WHEN r.columns IS NULL THEN ''
           ELSE pg_catalog.concat_ws('/', n.oid, s.oid,
               pg_catalog.hashtextextended(pg_catalog.concat(s.srvfdw, s.srvoptions), 0),
               pg_catalog.hashtextextended(m.umoptions::text, 0),
               pg_catalog.cardinality(r.tables), 2 * pg_catalog.cardinality(r.tables) * v.row,
               r.columns, r.columns * v.row)
           END
    FROM pg_catalog.jsonb_to_recordset(p_made)
         AS r (name text, target_hash text, tables text[], members text[], warnings text[],
               version text, columns bigint, hidden_schema text, types jsonb)
    CROSS JOIN (SELECT (age('3'::xid)::bigint - age(pg_catalog.pg_current_xact_id()::xid))
                       & 4294967295) AS v (row)
    JOIN pg_catalog.pg_namespace n ON n.nspname = coalesce(r.hidden_schema, r.name)
    LEFT JOIN pg_catalog.pg_foreign_server s ON s.srvname = r.name AND r.members IS NULL
    LEFT JOIN pg_catalog.pg_user_mappings m ON m.srvid = s.oid AND m.umuser = 0
    ON CONFLICT (connection_name) DO UPDATE SET
        target_hash = excluded.target_hash, schema_oid = excluded.schema_oid,
        server_oid = excluded.server_oid, tables = excluded.tables, members = excluded.members,
        warnings = excluded.warnings, extension_version = excluded.extension_version,
        hidden_schema = excluded.hidden_schema, types = excluded.types,
        fingerprint = excluded.fingerprint;
    PERFORM spcd.refresh_fingerprint(pg_catalog.array_agg(r->>'name'))
    FROM pg_catalog.jsonb_array_elements(p_made) r
    WHERE r->>'columns' IS NULL AND (r->>'look_again')::boolean IS NOT TRUE
    HAVING count(*) > 0;
END $$;
