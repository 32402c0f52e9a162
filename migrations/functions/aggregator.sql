-- Functions for the views of aggregators.
-- Revision 3.

-- Fails if another session changed one of the views since they were observed. p_views: an array of
-- {hidden, name, was}; "was" is the hash of the definition that was observed.
CREATE OR REPLACE FUNCTION spcd.claim_views(p_connection text, p_views jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1
    FROM spcd.aggregator_view v
    WHERE v.connection_name = p_connection AND (v.hidden, v.name) IN (
        SELECT w.hidden, w.name
        FROM pg_catalog.jsonb_to_recordset(p_views) AS w (hidden boolean, name text))
    ORDER BY v.hidden, v.name
    FOR UPDATE;
    IF EXISTS (
        SELECT 1
        FROM pg_catalog.jsonb_to_recordset(p_views) AS w (hidden boolean, name text, was text)
        LEFT JOIN spcd.aggregator_view v ON v.connection_name = p_connection
             AND v.hidden = w.hidden AND v.name = w.name
        WHERE v.statement_hash IS DISTINCT FROM w.was
    ) THEN
        RAISE EXCEPTION 'the views of the aggregator % were changed meanwhile', p_connection
            USING ERRCODE = 'serialization_failure';
    END IF;
END $$;

-- Returns the hash of the definition that the server prints for a view, or of a foreign table's columns,
-- options and conditions.
CREATE OR REPLACE FUNCTION spcd.view_definition_hash(p_view oid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.md5(CASE c.relkind WHEN 'f' THEN pg_catalog.concat(s.srvname, t.ftoptions, (
               SELECT pg_catalog.string_agg(pg_catalog.concat(
                          k.attname, ' ', pg_catalog.format_type(k.atttypid, k.atttypmod), ' ',
                          k.attcollation, k.attnotnull, k.attfdwoptions), ',' ORDER BY k.attnum)
               FROM pg_catalog.pg_attribute k
               WHERE k.attrelid = c.oid AND k.attnum > 0 AND NOT k.attisdropped), (
               SELECT pg_catalog.string_agg(pg_catalog.pg_get_constraintdef(o.oid), ',' ORDER BY o.conname)
               FROM pg_catalog.pg_constraint o WHERE o.conrelid = c.oid))
           ELSE pg_catalog.pg_get_viewdef(c.oid) END)
    FROM pg_catalog.pg_class c
    LEFT JOIN pg_catalog.pg_foreign_table t ON t.ftrelid = c.oid
    LEFT JOIN pg_catalog.pg_foreign_server s ON s.oid = t.ftserver
    WHERE c.oid = p_view
$$;

-- Records created views: an array of {hidden, name, table, definition}, without definition for a
-- dropped view. Also records the visible ones as the aggregator's tables: the change of a member replaces
-- views of an aggregator that is ready and stays so until its own job runs.
CREATE OR REPLACE FUNCTION spcd.record_views(p_connection text, p_views jsonb) RETURNS void
LANGUAGE sql AS $$
    DELETE FROM spcd.aggregator_view v
    USING pg_catalog.jsonb_to_recordset(p_views) AS w (hidden boolean, name text, definition text)
    WHERE w.definition IS NULL AND v.connection_name = p_connection
      AND v.hidden = w.hidden AND v.name = w.name;
    INSERT INTO spcd.aggregator_view
        (connection_name, hidden, name, table_name, statement_hash, definition_hash)
    SELECT p_connection, w.hidden, w.name, w."table", w.definition, spcd.view_definition_hash(c.oid)
    FROM pg_catalog.jsonb_to_recordset(p_views)
         AS w (hidden boolean, name text, "table" text, definition text)
    JOIN pg_catalog.pg_namespace n
         ON n.nspname = CASE WHEN w.hidden THEN 'spcd_union' ELSE p_connection END
    JOIN pg_catalog.pg_class c ON c.relname = w.name AND c.relnamespace = n.oid
    WHERE w.definition IS NOT NULL
    ON CONFLICT (connection_name, hidden, name) DO UPDATE SET
        table_name = excluded.table_name, statement_hash = excluded.statement_hash,
        definition_hash = excluded.definition_hash;
    WITH changed AS (
        SELECT pg_catalog.array_agg(w.name) AS names,
               coalesce(pg_catalog.array_agg(w.name) FILTER (WHERE w.definition IS NOT NULL), '{}') AS made
        FROM pg_catalog.jsonb_to_recordset(p_views) AS w (hidden boolean, name text, definition text)
        WHERE NOT w.hidden
    )
    UPDATE spcd.applied a SET tables = ARRAY(
        (SELECT pg_catalog.unnest(a.tables) EXCEPT SELECT pg_catalog.unnest(c.names))
        UNION SELECT pg_catalog.unnest(c.made) ORDER BY 1)
    FROM changed c
    WHERE a.connection_name = p_connection AND c.names IS NOT NULL
$$;

-- Drops a view, or a foreign table that is a part of one; another kind of object of that name stays. Users' dependent objects make it fail,
-- or are dropped too if p_dependents is true.
CREATE OR REPLACE FUNCTION spcd.drop_view(p_schema text, p_view text, p_dependents boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_kind "char";
BEGIN
    SELECT c.relkind INTO v_kind
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = p_schema AND c.relname = p_view
      AND (c.relkind = 'v' OR p_schema = 'spcd_union' AND c.relkind = 'f');
    IF v_kind IS NOT NULL THEN
        EXECUTE pg_catalog.format('DROP %s %I.%I %s',
                                  CASE v_kind WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'VIEW' END,
                                  p_schema, p_view,
                                  CASE WHEN p_dependents THEN 'CASCADE' ELSE 'RESTRICT' END);
    END IF;
END $$;

-- Drops all views of an aggregator: the public ones first, then their hidden parts.
CREATE OR REPLACE FUNCTION spcd.drop_views(p_connection text, p_dependents boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_view record;
BEGIN
    FOR v_view IN
        SELECT hidden, name FROM spcd.aggregator_view
        WHERE connection_name = p_connection ORDER BY hidden, name FOR UPDATE
    LOOP
        PERFORM spcd.drop_view(
            CASE WHEN v_view.hidden THEN 'spcd_union' ELSE p_connection END, v_view.name,
            p_dependents);
    END LOOP;
    DELETE FROM spcd.aggregator_view WHERE connection_name = p_connection;
END $$;

-- Drops a view, and keeps its options, grants, comments and owner until the end of the transaction.
CREATE OR REPLACE FUNCTION spcd.set_aside(p_schema text, p_view text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    CREATE TEMP TABLE IF NOT EXISTS spcd_aside (
        schema_name text, view_name text, step integer, statement text
    ) ON COMMIT DELETE ROWS;
    WITH v AS (
        SELECT c.oid, c.relowner, c.relacl, c.reloptions,
               pg_catalog.format('%I.%I', p_schema, p_view) AS name
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = p_schema AND c.relname = p_view AND c.relkind = 'v'
    ), statement (step, statement) AS (
        SELECT 1, pg_catalog.format('ALTER VIEW %s SET (%s)', name,
                                    pg_catalog.array_to_string(reloptions, ', '))
        FROM v WHERE reloptions IS NOT NULL
        UNION ALL
        SELECT 2, pg_catalog.format('GRANT %s ON %s TO %s%s', a.privilege_type, v.name,
                   CASE WHEN a.grantee = 0 THEN 'PUBLIC'
                        ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
                   CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM v CROSS JOIN LATERAL pg_catalog.aclexplode(v.relacl) a
        WHERE a.grantee <> v.relowner
        UNION ALL
        SELECT 2, pg_catalog.format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, k.attname, v.name,
                   CASE WHEN a.grantee = 0 THEN 'PUBLIC'
                        ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
                   CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM v
        JOIN pg_catalog.pg_attribute k ON k.attrelid = v.oid AND k.attnum > 0 AND NOT k.attisdropped
        CROSS JOIN LATERAL pg_catalog.aclexplode(k.attacl) a
        WHERE a.grantee <> v.relowner
        UNION ALL
        SELECT 3, CASE WHEN k.attname IS NULL
                  THEN pg_catalog.format('COMMENT ON VIEW %s IS %L', v.name, d.description)
                  ELSE pg_catalog.format('COMMENT ON COLUMN %s.%I IS %L', v.name, k.attname, d.description)
                  END
        FROM v
        JOIN pg_catalog.pg_description d
             ON d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = v.oid
        LEFT JOIN pg_catalog.pg_attribute k
             ON k.attrelid = v.oid AND k.attnum = d.objsubid AND d.objsubid > 0
        UNION ALL
        SELECT 4, pg_catalog.format('ALTER VIEW %s OWNER TO %I', name,
                                    pg_catalog.pg_get_userbyid(relowner))
        FROM v WHERE relowner <> (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
    )
    INSERT INTO pg_temp.spcd_aside
    SELECT p_schema, p_view, s.step, s.statement FROM statement s;
    PERFORM spcd.drop_view(p_schema, p_view);
END $$;

-- Restores on a rebuilt view what spcd.set_aside kept. Settings of a column that no longer exists
-- are dropped.
CREATE OR REPLACE FUNCTION spcd.restore(p_schema text, p_view text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_statement text;
BEGIN
    FOR v_statement IN
        SELECT statement FROM pg_temp.spcd_aside
        WHERE schema_name = p_schema AND view_name = p_view ORDER BY step
    LOOP
        BEGIN
            EXECUTE v_statement;
        EXCEPTION WHEN undefined_column THEN
            NULL;
        END;
    END LOOP;
END $$;
