-- States with their events and notifications.
-- Revision 6.

-- Serializes the writers of events, so that events are committed in the order of their ids: a
-- client that has read an event has read all earlier ones. A batch takes seconds at most, so a
-- longer wait is caused by a session outside of spcd.
CREATE OR REPLACE FUNCTION spcd.lock_event_order() RETURNS void LANGUAGE plpgsql SET lock_timeout = '10s' AS $$
BEGIN
    LOCK TABLE spcd_lock.event_order IN EXCLUSIVE MODE;
END $$;

CREATE OR REPLACE FUNCTION spcd.keep_event_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM spcd.lock_event_order();
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER keep_order BEFORE INSERT ON spcd.connection_event
FOR EACH STATEMENT EXECUTE FUNCTION spcd.keep_event_order();

-- Returns whether a row already has the new contents. CREATE OR REPLACE cannot rename the parameters of
-- earlier revisions.
DROP FUNCTION IF EXISTS spcd.is_recorded(text, text, text, text);
CREATE OR REPLACE FUNCTION spcd.is_recorded(p_status text, p_error text, p_recorded text, p_recorded_error text)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_status = p_recorded AND (p_status <> 'error' OR p_error IS NOT DISTINCT FROM p_recorded_error)
$$;

-- Returns whether a change restores the row's contents from before the start of the service.
CREATE OR REPLACE FUNCTION spcd.is_as_before(
    p_change jsonb, p_status text, p_schema_hash text, p_before text, p_before_error text)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_status = 'pending' AND (p_change->>'remove')::boolean IS NOT TRUE
       AND p_change->'route' = pg_catalog.jsonb_build_array(p_before)
       AND spcd.is_recorded(p_before, p_change->>'error', p_before, p_before_error)
       AND coalesce(p_change->>'schema_hash', p_schema_hash) IS NOT DISTINCT FROM p_schema_hash
$$;

-- Writes changes to the table, the events and the channel, in the caller's transaction.
-- p_changes: an array of objects
--   name    the connection
--   route   the statuses that it passes through, the last one stays; empty: only other columns change
--   remove  true: the row is deleted
--   and any of error, warnings, plugin, plugin_instance, type, connections, import_schema,
--   schema_mode, schema_hash, table_count, file_name, start_line, end_line, labels, mirror; an absent
--   one keeps its value
-- A row that the start made pending, and that gets its previous contents back, does not change: it
-- gets its previous time and has no event. One resync notification covers all of them.
-- p_quiet: write the events but announce nothing (the caller announces a resync).
-- All access is by index: the planner does not know how few changes there are, and would scan all
-- connections for each. JIT is off: without an index the estimated cost exceeds jit_above_cost.
CREATE OR REPLACE FUNCTION spcd.publish(p_generation bigint, p_changes jsonb, p_quiet boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_given_back boolean;
BEGIN
    -- The caller writes each connection from one session at a time, so reading before writing is
    -- safe.
    SELECT EXISTS (
        SELECT FROM pg_catalog.jsonb_array_elements(p_changes) AS c (change)
        JOIN spcd.before_start b ON b.connection_name = c.change->>'name'
        JOIN spcd.connection_state s ON s.connection_name = b.connection_name
        WHERE spcd.is_as_before(c.change, s.status, s.schema_hash, b.status, b.error)
    ) INTO v_given_back;
    PERFORM spcd.reset_event_buffer();
    INSERT INTO pg_temp.spcd_event
    SELECT c.n, r.step, c.change->>'name',
           CASE WHEN r.step = 1 THEN s.status ELSE c.change->'route'->>(r.step::integer - 2) END,
           r.status,
           CASE WHEN r.status = 'error' THEN c.change->>'error' END,
           -- The clock may have been set back.
           CASE WHEN r.step = 1
                THEN greatest(pg_catalog.clock_timestamp() - s.time_changed, interval '0')
                ELSE interval '0' END
    FROM pg_catalog.jsonb_array_elements(p_changes) WITH ORDINALITY AS c (change, n)
    LEFT JOIN spcd.connection_state s ON s.connection_name = c.change->>'name'
    LEFT JOIN spcd.before_start b ON b.connection_name = s.connection_name
         AND spcd.is_as_before(c.change, s.status, s.schema_hash, b.status, b.error)
    CROSS JOIN LATERAL pg_catalog.jsonb_array_elements_text(
        CASE WHEN (c.change->>'remove')::boolean AND s.connection_name IS NOT NULL
             THEN c.change->'route' || '["deleted"]' ELSE c.change->'route' END
    ) WITH ORDINALITY AS r (status, step)
    WHERE b.connection_name IS NULL
      -- A row that already has the new contents does not change.
      AND NOT (r.step = 1 AND s.status IS NOT NULL
               AND spcd.is_recorded(r.status, c.change->>'error', s.status, s.error));

    DELETE FROM spcd.connection_state s
    USING pg_catalog.jsonb_array_elements(p_changes) AS c (change)
    WHERE (c.change->>'remove')::boolean AND s.connection_name = c.change->>'name';

    INSERT INTO spcd.connection_state (
        connection_name, status, error, comments_set, warnings, plugin, plugin_instance, type, connections,
        import_schema, schema_mode, schema_hash, table_count, last_ready,
        file_name, start_line, end_line, labels, mirror, time_changed, generation)
    SELECT c.name,
           coalesce(c.route->>-1, o.status),
           CASE coalesce(c.route->>-1, o.status)
               WHEN 'error' THEN coalesce(c.error, o.error, 'unknown') END,
           -- New and removed tables have no comments until they are observed.
           c.schema_hash IS NULL AND c.route->>-1 IS DISTINCT FROM 'disabled'
               AND coalesce(o.comments_set, false),
           coalesce(c.warnings, o.warnings, '{}'),
           coalesce(c.plugin, o.plugin, ''),
           coalesce(c.plugin_instance, o.plugin_instance, ''),
           coalesce(c.type, o.type, 'plugin'),
           coalesce(c.connections, o.connections, '{}'),
           coalesce(c.import_schema, o.import_schema, 'enabled'),
           -- What was imported has a mode, except for an aggregator.
           CASE WHEN c.schema_mode IS NOT NULL OR c.schema_hash IS NOT NULL
                THEN c.schema_mode ELSE o.schema_mode END,
           coalesce(c.schema_hash, o.schema_hash),
           coalesce(c.table_count, o.table_count),
           CASE WHEN b.connection_name IS NOT NULL THEN b.last_ready
                WHEN c.route->>-1 = 'ready' THEN pg_catalog.clock_timestamp()
                ELSE o.last_ready END,
           coalesce(c.file_name, o.file_name),
           coalesce(c.start_line, o.start_line),
           coalesce(c.end_line, o.end_line),
           coalesce(c.labels, o.labels, '{}'),
           coalesce(c.mirror, o.mirror, ''),
           CASE WHEN b.connection_name IS NOT NULL THEN b.time_changed
                WHEN o.time_changed IS NOT NULL AND (c.route->0 IS NULL
                     OR (c.route->1 IS NULL
                         AND spcd.is_recorded(c.route->>0, c.error, o.status, o.error)))
                THEN o.time_changed ELSE pg_catalog.clock_timestamp() END,
           coalesce(b.generation, p_generation)
    FROM pg_catalog.jsonb_to_recordset(p_changes) AS c (
        name text, route jsonb, remove boolean, error text, warnings text[], plugin text,
        plugin_instance text, type text, connections text[], import_schema text, schema_mode text,
        schema_hash text, table_count integer, file_name text, start_line integer, end_line integer,
        labels jsonb, mirror text)
    LEFT JOIN spcd.connection_state o ON o.connection_name = c.name
    LEFT JOIN spcd.before_start b ON b.connection_name = c.name AND spcd.is_as_before(
         pg_catalog.jsonb_build_object('route', c.route, 'error', c.error,
                                       'schema_hash', c.schema_hash),
         o.status, o.schema_hash, b.status, b.error)
    WHERE c.remove IS NOT TRUE AND (o.connection_name IS NOT NULL OR c.route->>-1 IS NOT NULL)
    ON CONFLICT (connection_name) DO UPDATE SET
        status = excluded.status,
        error = excluded.error,
        comments_set = excluded.comments_set,
        warnings = excluded.warnings,
        time_changed = excluded.time_changed,
        plugin = excluded.plugin,
        plugin_instance = excluded.plugin_instance,
        type = excluded.type,
        connections = excluded.connections,
        import_schema = excluded.import_schema,
        schema_mode = excluded.schema_mode,
        schema_hash = excluded.schema_hash,
        table_count = excluded.table_count,
        last_ready = excluded.last_ready,
        file_name = excluded.file_name,
        start_line = excluded.start_line,
        end_line = excluded.end_line,
        labels = excluded.labels,
        mirror = excluded.mirror,
        generation = excluded.generation;

    DELETE FROM spcd.before_start b
    USING pg_catalog.jsonb_array_elements(p_changes) AS c (change)
    WHERE b.connection_name = c.change->>'name'
      AND (c.change->'route' <> '[]' OR (c.change->>'remove')::boolean);
    IF v_given_back AND NOT p_quiet THEN
        PERFORM pg_catalog.pg_notify('connection_state', '{"version":1,"resync":true}');
    END IF;
    PERFORM spcd.announce(p_generation, p_quiet);
END $$;

-- Creates the temporary table that collects a transaction's events for spcd.announce.
CREATE OR REPLACE FUNCTION spcd.reset_event_buffer() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    CREATE TEMP TABLE IF NOT EXISTS spcd_event (
        n bigint, step integer, connection_name text, previous text, status text, error text,
        duration interval, health text
    ) ON COMMIT DELETE ROWS;
    DELETE FROM pg_temp.spcd_event;
END $$;

-- Writes the collected events, and packs them into notifications.
CREATE OR REPLACE FUNCTION spcd.announce(p_generation bigint, p_quiet boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    WITH event AS (
        INSERT INTO spcd.connection_event
            (connection_name, previous, status, error, generation, duration, health)
        SELECT connection_name, previous, status, error, p_generation, duration, health
        FROM pg_temp.spcd_event ORDER BY n, step
        RETURNING id, time, connection_name, previous, status, error, health
    ), change AS (
        SELECT id, pg_catalog.json_build_object(
                   'connection', connection_name, 'status', status, 'previous', previous,
                   'time', time, 'event', id)::jsonb
               || CASE WHEN error IS NULL THEN '{}'::jsonb
                  ELSE pg_catalog.jsonb_build_object('error', spcd.shortened(error)) END
               || CASE WHEN health IS NULL THEN '{}'::jsonb
                  ELSE pg_catalog.jsonb_build_object('health', health) END AS change
        FROM event
        WHERE NOT p_quiet
    ), message AS (
        -- As few notifications as possible, since each goes to every listener. NOTIFY allows less
        -- than 8,000 bytes; the frame takes at most 70, and a change about 1,500. A notification
        -- whose last change begins below the rest less the longest change ends below the rest.
        SELECT change, id,
               (sum(pg_catalog.octet_length(change::text) + 2) OVER (ORDER BY id)
                - pg_catalog.octet_length(change::text) - 2)
               / (7900 - max(pg_catalog.octet_length(change::text) + 2) OVER ()) AS part
        FROM change
    )
    SELECT count(pg_catalog.pg_notify('connection_state', text)) INTO p_generation
    FROM (
        SELECT pg_catalog.json_build_object('version', 1, 'generation', p_generation,
                                            'changes', pg_catalog.json_agg(change ORDER BY id))::text
        FROM message GROUP BY part ORDER BY part
    ) AS m (text);
END $$;

-- Returns the longest prefix of a text that takes at most 1,000 bytes inside JSON.
CREATE OR REPLACE FUNCTION spcd.shortened(p_text text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN pg_catalog.octet_length(pg_catalog.to_json(p_text)::text) <= 1000 THEN p_text
        WHEN pg_catalog.octet_length(pg_catalog.to_json(pg_catalog.left(p_text, 800))::text) <= 996
        THEN pg_catalog.left(p_text, 800) || '...'
        ELSE pg_catalog.left(p_text, 160) || '...' END
$$;
