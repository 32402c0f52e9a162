-- Fingerprints of spcd's objects: equal sums of the row versions in the catalog mean that nothing
-- changed.
-- Revision 6.

-- Returns one row per connection: whether its schema and server are the ones that spcd created, and
-- a text that changes when any of its objects does. A sum of row versions only grows as rows
-- change, so with the counts beside it two different catalogs have different texts. Views of
-- aggregators are not included, nor the options of a server that connections share: it is compared
-- by itself.
CREATE OR REPLACE VIEW spcd.table_fingerprint AS
SELECT a.connection_name,
       n.oid AS schema_oid,
       s.oid AS server_oid,
       n.oid IS NOT DISTINCT FROM a.schema_oid AS schema_is_ours,
       s.oid IS NOT DISTINCT FROM a.server_oid AS server_is_ours,
       pg_catalog.concat_ws('/', n.oid, s.oid,
           CASE WHEN a.server_name IS NULL THEN
               pg_catalog.hashtextextended(pg_catalog.concat(s.srvfdw, s.srvoptions), 0) END,
           CASE WHEN a.server_name IS NULL THEN
               pg_catalog.hashtextextended(m.umoptions::text, 0) END,
           t.tables, t.rows, t.columns, t.column_rows) AS fingerprint
FROM spcd.applied a
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
LEFT JOIN pg_catalog.pg_foreign_server s ON s.srvname = coalesce(a.server_name, a.connection_name)
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

-- Returns the same with the number and the versions of aggregators' views.
CREATE OR REPLACE VIEW spcd.fingerprint AS
-- Computed once: computing it per connection would take longer than the rest.
WITH v AS MATERIALIZED (
    SELECT w.connection_name, count(*) AS views,
           sum(((age('3'::xid)::bigint - age(c.xmin)) & 4294967295)
             + ((age('3'::xid)::bigint - age(coalesce(r.xmin, f.xmin))) & 4294967295) + k.column_rows) AS rows
    FROM spcd.aggregator_view w
    JOIN pg_catalog.pg_namespace m
         ON m.nspname = CASE WHEN w.hidden THEN 'spcd_union' ELSE w.connection_name END
    JOIN pg_catalog.pg_class c
         ON c.relname = w.name AND c.relnamespace = m.oid
            AND (c.relkind = 'v' OR w.hidden AND c.relkind = 'f')
    LEFT JOIN pg_catalog.pg_rewrite r ON r.ev_class = c.oid AND r.rulename = '_RETURN'
    LEFT JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = c.oid
    CROSS JOIN LATERAL (
        -- Renaming a column changes only the column's row.
        SELECT sum((age('3'::xid)::bigint - age(k.xmin)) & 4294967295) AS column_rows
        FROM pg_catalog.pg_attribute k WHERE k.attrelid = c.oid AND k.attnum > 0
    ) k
    GROUP BY w.connection_name
)
SELECT t.connection_name, t.schema_oid, t.server_oid, t.schema_is_ours, t.server_is_ours,
       pg_catalog.concat_ws('/', t.fingerprint, v.views, v.rows) AS fingerprint
FROM spcd.table_fingerprint t
LEFT JOIN v ON v.connection_name = t.connection_name;

-- Records the current fingerprints of connections. A few are computed one by one, with a cached
-- plan that uses indexes only: planning takes ten times as long as running it.
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
                         + ((age('3'::xid)::bigint - age(coalesce(r.xmin, f.xmin))) & 4294967295)
                         + k.column_rows) AS rows
                FROM spcd.aggregator_view w
                JOIN pg_catalog.pg_namespace m
                     ON m.nspname = CASE WHEN w.hidden THEN 'spcd_union' ELSE w.connection_name END
                JOIN pg_catalog.pg_class c
                     ON c.relname = w.name AND c.relnamespace = m.oid
                        AND (c.relkind = 'v' OR w.hidden AND c.relkind = 'f')
                LEFT JOIN pg_catalog.pg_rewrite r
                     ON r.ev_class = c.oid AND r.rulename = '_RETURN'
                LEFT JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = c.oid
                CROSS JOIN LATERAL (
                    -- Renaming a column changes only the column's row.
                    SELECT sum((age('3'::xid)::bigint - age(k.xmin)) & 4294967295) AS column_rows
                    FROM pg_catalog.pg_attribute k WHERE k.attrelid = c.oid AND k.attnum > 0
                ) k
                WHERE w.connection_name = v_name
            ) v
            WHERE t.connection_name = v_name)
        WHERE a.connection_name = v_name;
    END LOOP;
END $$;

-- Records the fingerprints of most connections in one statement.
CREATE OR REPLACE FUNCTION spcd.refresh_fingerprints(p_names text[]) RETURNS void LANGUAGE sql
SET enable_seqscan = on SET enable_hashjoin = on SET enable_mergejoin = on AS $$
    UPDATE spcd.applied a SET fingerprint = f.fingerprint
    FROM spcd.fingerprint f
    WHERE f.connection_name = a.connection_name AND a.connection_name = ANY (p_names)
      -- repeated for the view: otherwise the planner would scan all connections
      AND f.connection_name = ANY (p_names)
$$;

-- Records the objects of connections: an array of {name, target_hash, tables, members, warnings,
-- extension_version, columns, compare_again, hidden_schema, types, server_name, left_out: [{table,
-- text}]}. If all objects were created in this transaction, "columns" is the number of the tables'
-- columns, and the fingerprint is computed from it: each row has the same version. An error there costs
-- only a full comparison. With "compare_again" no fingerprint is recorded, so that the next observation
-- compares in full. All access is by index, as in spcd.refresh_fingerprint.
CREATE OR REPLACE FUNCTION spcd.record(p_made jsonb) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    INSERT INTO spcd.applied
        (connection_name, target_hash, schema_oid, server_oid, tables, members, warnings,
         extension_version, hidden_schema, types, tuning, server_name, fingerprint)
    SELECT r.name, r.target_hash, n.oid, s.oid, r.tables, r.members, r.warnings, r.extension_version,
           r.hidden_schema, r.types, r.tuning, r.server_name,
           CASE WHEN r.columns IS NULL THEN ''
           ELSE pg_catalog.concat_ws('/', n.oid, s.oid,
               CASE WHEN r.server_name IS NULL THEN
                   pg_catalog.hashtextextended(pg_catalog.concat(s.srvfdw, s.srvoptions), 0) END,
               CASE WHEN r.server_name IS NULL THEN
                   pg_catalog.hashtextextended(m.umoptions::text, 0) END,
               pg_catalog.cardinality(r.tables), 2 * pg_catalog.cardinality(r.tables) * v.row,
               r.columns, r.columns * v.row)
           END
    FROM pg_catalog.jsonb_to_recordset(p_made)
         AS r (name text, target_hash text, tables text[], members text[], warnings text[],
               extension_version text, columns bigint, hidden_schema text, types jsonb,
               tuning jsonb, server_name text)
    CROSS JOIN (SELECT (age('3'::xid)::bigint - age(pg_catalog.pg_current_xact_id()::xid))
                       & 4294967295) AS v (row)
    JOIN pg_catalog.pg_namespace n ON n.nspname = coalesce(r.hidden_schema, r.name)
    LEFT JOIN pg_catalog.pg_foreign_server s ON s.srvname = coalesce(r.server_name, r.name)
              AND r.members IS NULL
    LEFT JOIN pg_catalog.pg_user_mappings m ON m.srvid = s.oid AND m.umuser = 0
    ON CONFLICT (connection_name) DO UPDATE SET
        target_hash = excluded.target_hash, schema_oid = excluded.schema_oid,
        server_oid = excluded.server_oid, tables = excluded.tables, members = excluded.members,
        warnings = excluded.warnings, extension_version = excluded.extension_version,
        hidden_schema = excluded.hidden_schema, types = excluded.types, tuning = excluded.tuning,
        server_name = excluded.server_name,
        fingerprint = excluded.fingerprint;
    DELETE FROM spcd.left_out_table l USING pg_catalog.jsonb_array_elements(p_made) r
    WHERE l.connection_name = r->>'name';
    INSERT INTO spcd.left_out_table (connection_name, table_name, warning)
    SELECT a.connection_name, t->>'table', t->>'text'
    FROM pg_catalog.jsonb_array_elements(p_made) r
    CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(r->'left_out') t
    JOIN spcd.applied a ON a.connection_name = r->>'name';
    PERFORM spcd.refresh_fingerprint(pg_catalog.array_agg(r->>'name'))
    FROM pg_catalog.jsonb_array_elements(p_made) r
    WHERE r->>'columns' IS NULL AND (r->>'compare_again')::boolean IS NOT TRUE
    HAVING count(*) > 0;
END $$;

-- Records that spcd created the server of a lane.
CREATE OR REPLACE FUNCTION spcd.record_lane(p_server text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO spcd.gateway_lane (server_name, server_oid)
    SELECT s.srvname, s.oid FROM pg_catalog.pg_foreign_server s WHERE s.srvname = p_server
    ON CONFLICT (server_name) DO UPDATE SET server_oid = excluded.server_oid
$$;

-- Changes an option of a lane's server that means nothing: sessions that use it connect again at their
-- next transaction. One that is gone, or that another role created, is left alone.
CREATE OR REPLACE FUNCTION spcd.touch_lane(p_server text, p_text text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_option text;
BEGIN
    -- Two sessions cannot alter one server at once.
    PERFORM FROM spcd.gateway_lane WHERE server_name = p_server FOR UPDATE;
    SELECT CASE WHEN EXISTS (
               SELECT FROM pg_catalog.unnest(s.srvoptions) o WHERE pg_catalog.starts_with(o, 'application_name='))
           THEN 'SET' ELSE 'ADD' END INTO v_option
    FROM spcd.gateway_lane l JOIN pg_catalog.pg_foreign_server s ON s.oid = l.server_oid AND s.srvname = l.server_name
    WHERE l.server_name = p_server;
    IF v_option IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER SERVER %I OPTIONS (%s application_name %L)', p_server, v_option, p_text);
    END IF;
END $$;
