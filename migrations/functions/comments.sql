-- Comments of the sources on foreign tables.
-- Revision 1.

-- Lists the comments on a connection's tables that spcd may comment on (a user may have changed the
-- owner), and whether spcd wrote each one. Authorship is compared by table, because a column may
-- have been renamed since.
CREATE OR REPLACE VIEW spcd.table_comment AS
SELECT a.connection_name, c.relname::text AS table_name, coalesce(k.attname::text, '') AS column_name,
       d.description,
       EXISTS (SELECT FROM spcd.applied_comment o
               WHERE o.connection_name = a.connection_name AND o.table_name = c.relname
                 AND o.hash = pg_catalog.md5(d.description)) AS ours
FROM spcd.applied a
JOIN pg_catalog.pg_namespace n ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
CROSS JOIN LATERAL pg_catalog.unnest(a.tables) AS t (name)
JOIN pg_catalog.pg_class c ON c.relname = t.name AND c.relnamespace = n.oid AND c.relkind = 'f'
     AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
JOIN pg_catalog.pg_description d
     ON d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = c.oid
LEFT JOIN pg_catalog.pg_attribute k
     ON k.attrelid = c.oid AND k.attnum = d.objsubid AND d.objsubid > 0;

-- Returns the comments to set or remove (NULL) so that a connection's tables have those of the
-- source: an array of {table, column, text}. Comments of users stay.
CREATE OR REPLACE FUNCTION spcd.comment_changes(p_connection text, p_texts jsonb)
RETURNS TABLE (table_name text, column_name text, description text) LANGUAGE sql STABLE AS $$
    SELECT coalesce(w."table", t.table_name), coalesce(w."column", t.column_name), w.text
    FROM pg_catalog.jsonb_to_recordset(p_texts) AS w ("table" text, "column" text, text text)
    FULL JOIN (SELECT * FROM spcd.table_comment WHERE connection_name = p_connection) t
         ON t.table_name = w."table" AND t.column_name = w."column"
    WHERE w.text IS DISTINCT FROM t.description
      AND (t.ours OR t.description IS NULL AND EXISTS (
          SELECT FROM spcd.applied a
          JOIN pg_catalog.pg_namespace n ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
          JOIN pg_catalog.pg_class c
               ON c.relname = w."table" AND c.relnamespace = n.oid AND c.relkind = 'f'
              AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
          LEFT JOIN pg_catalog.pg_attribute k
               ON k.attrelid = c.oid AND k.attname = w."column" AND k.attnum > 0 AND NOT k.attisdropped
          WHERE a.connection_name = p_connection AND w."table" = ANY (a.tables)
            AND (w."column" = '' OR k.attname IS NOT NULL)))
    ORDER BY 1, 2
$$;

-- Sets the comments that comment_changes returned. p_seen: the generation of the connection's row
-- at that time; if the tables changed since, no comment is set. p_last: the row records that all
-- comments are set.
CREATE OR REPLACE FUNCTION spcd.set_comments(
    p_connection text, p_changes jsonb, p_seen bigint, p_last boolean, p_generation bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_statements text;
BEGIN
    SELECT pg_catalog.string_agg(CASE WHEN c."column" = ''
               THEN pg_catalog.format('COMMENT ON FOREIGN TABLE %I.%I IS %L', v.name, c."table", c.text)
               ELSE pg_catalog.format('COMMENT ON COLUMN %I.%I.%I IS %L', v.name, c."table", c."column",
                                      c.text)
           END, ';' ORDER BY c."table", c."column")
    INTO v_statements
    FROM pg_catalog.jsonb_to_recordset(p_changes) AS c ("table" text, "column" text, text text)
    CROSS JOIN (SELECT coalesce(a.hidden_schema, a.connection_name) FROM spcd.applied a
                WHERE a.connection_name = p_connection) AS v (name)
    -- Re-check: another session may have changed the row.
    WHERE NOT EXISTS (
        SELECT FROM spcd.table_comment t
        WHERE t.connection_name = p_connection AND t.table_name = c."table"
          AND t.column_name = c."column" AND NOT t.ours);
    IF v_statements IS NOT NULL THEN
        EXECUTE v_statements;
    END IF;
    INSERT INTO spcd.applied_comment AS o (connection_name, table_name, column_name, hash)
    SELECT p_connection, t.table_name, t.column_name, pg_catalog.md5(t.description)
    FROM pg_catalog.jsonb_to_recordset(p_changes) AS c ("table" text, "column" text, text text)
    JOIN spcd.table_comment t ON t.connection_name = p_connection AND t.table_name = c."table"
         AND t.column_name = c."column" AND t.description = c.text
    ON CONFLICT (connection_name, table_name, column_name) DO UPDATE SET hash = excluded.hash;
    IF NOT p_last THEN
        RETURN;
    END IF;
    DELETE FROM spcd.applied_comment o
    WHERE o.connection_name = p_connection AND NOT EXISTS (
        SELECT FROM spcd.table_comment t
        WHERE t.connection_name = p_connection AND t.table_name = o.table_name
          AND t.column_name = o.column_name AND pg_catalog.md5(t.description) = o.hash);
    UPDATE spcd.connection_state s SET comments_set = true, generation = p_generation
    WHERE s.connection_name = p_connection AND s.generation = p_seen AND s.status = 'ready';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the tables of % changed meanwhile', p_connection
            USING ERRCODE = 'serialization_failure';
    END IF;
END $$;
