SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE SCHEMA one;
CREATE SCHEMA spcd;
COMMENT ON SCHEMA spcd IS 'the state of spcd: see spcd.connection_state';
CREATE SCHEMA spcd_lock;
COMMENT ON SCHEMA spcd_lock IS 'locks of spcd: who leads, who migrates, whose turn it is to write events';
CREATE SCHEMA spcd_type;
COMMENT ON SCHEMA spcd_type IS 'types of columns whose types only the source has';
CREATE SCHEMA spcd_union;
COMMENT ON SCHEMA spcd_union IS 'parts of the views of spcd''s aggregators';
CREATE EXTENSION IF NOT EXISTS postgres_fdw WITH SCHEMA public;
COMMENT ON EXTENSION postgres_fdw IS 'foreign-data wrapper for remote PostgreSQL servers';
CREATE DOMAIN spcd_type.text AS text;
COMMENT ON DOMAIN spcd_type.text IS 'a value of the source as text; conditions on it are not sent to the source';
CREATE FUNCTION spcd.admit_readers() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    GRANT USAGE ON SCHEMA spcd TO spcd_users;
    GRANT SELECT ON spcd.connection_state, spcd.connection_event, spcd.connection_health,
                    spcd.config_diagnostic, spcd.daemon, spcd.refresh_request, spcd.migration,
                    spcd.left_out_table, spcd.mirror
        TO spcd_users;
END $$;
CREATE FUNCTION spcd.announce(p_generation bigint, p_quiet boolean) RETURNS void
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION spcd.asked_names(p_connections text[]) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    AS $$
DECLARE
    v_name pg_catalog.text;
BEGIN
    IF pg_catalog.cardinality(p_connections) OPERATOR(pg_catalog.>) 100000 THEN
        RAISE EXCEPTION 'a request is for 100000 names at most, and this one has %',
                pg_catalog.cardinality(p_connections)
            USING ERRCODE = 'program_limit_exceeded',
                  HINT = 'Make several of them, or ask for all: spcd.refresh().';
    END IF;
    FOR v_name IN
        SELECT n.name FROM pg_catalog.unnest(p_connections) AS n (name)
        WHERE pg_catalog.octet_length(n.name) OPERATOR(pg_catalog.>) 63 LIMIT 1
    LOOP
        RAISE EXCEPTION 'no connection is named "%...": a name has 63 bytes at most',
                pg_catalog."left"(v_name, 63)
            USING ERRCODE = 'name_too_long', HINT = 'spcd.connection_state has the names.';
    END LOOP;
    RETURN CASE WHEN p_connections IS NOT NULL THEN
        ARRAY(SELECT DISTINCT n.name FROM pg_catalog.unnest(p_connections) AS n (name)
              WHERE n.name IS NOT NULL) END;
END $$;
CREATE FUNCTION spcd.assert_lead(p_epoch bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM 1 FROM spcd.daemon WHERE epoch = p_epoch FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another daemon leads now' USING ERRCODE = 'SP010';
    END IF;
END $$;
CREATE FUNCTION spcd.claim_views(p_connection text, p_views jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION spcd.comment_changes(p_connection text, p_texts jsonb) RETURNS TABLE(table_name text, column_name text, description text)
    LANGUAGE sql STABLE
    AS $$
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
CREATE FUNCTION spcd.create_user_mappings(p_servers text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_server text;
    v_options text;
    v_state text;
    v_reason text;
    v_before text[];
BEGIN
    v_before := spcd.silence_log();
    FOR v_server, v_options IN
        -- A server without options has a mapping too; a NULL is not a name.
        SELECT n.server, pg_catalog.string_agg(
                   pg_catalog.format('%I %L', s.option, s.value), ', ')
                   FILTER (WHERE s.option IS NOT NULL)
        FROM pg_catalog.unnest(p_servers) AS n (server)
        LEFT JOIN pg_temp.spcd_secret s USING (server)
        GROUP BY n.server
    LOOP
        EXECUTE pg_catalog.format('CREATE USER MAPPING FOR PUBLIC SERVER %I', v_server)
             || CASE WHEN v_options <> '' THEN ' OPTIONS (' || v_options || ')' ELSE '' END;
    END LOOP;
    PERFORM spcd.restore_log(v_before);
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_reason = MESSAGE_TEXT;
    PERFORM spcd.refuse_user_mapping(v_state, v_reason);
END $$;
CREATE FUNCTION spcd.disconnect(connections text[]) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ SELECT spcd.request(connections, 'disconnect') $$;
CREATE FUNCTION spcd.drop_view(p_schema text, p_view text, p_dependents boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION spcd.drop_views(p_connection text, p_dependents boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION spcd.is_as_before(p_change jsonb, p_status text, p_schema_hash text, p_before text, p_before_error text) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT p_status = 'pending' AND (p_change->>'remove')::boolean IS NOT TRUE
       AND p_change->'route' = pg_catalog.jsonb_build_array(p_before)
       AND spcd.is_recorded(p_before, p_change->>'error', p_before, p_before_error)
       AND coalesce(p_change->>'schema_hash', p_schema_hash) IS NOT DISTINCT FROM p_schema_hash
$$;
CREATE FUNCTION spcd.is_recorded(p_status text, p_error text, p_recorded text, p_recorded_error text) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT p_status = p_recorded AND (p_status <> 'error' OR p_error IS NOT DISTINCT FROM p_recorded_error)
$$;
CREATE FUNCTION spcd.keep_event_order() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM spcd.lock_event_order();
    RETURN NULL;
END $$;
CREATE FUNCTION spcd.limit_requests(p_names text[], p_most integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_open bigint;
    v_names bigint;
    v_recent bigint;
BEGIN
    IF pg_catalog.pg_has_role(SESSION_USER,
           (SELECT n.nspowner FROM pg_catalog.pg_namespace n
            WHERE n.nspname OPERATOR(pg_catalog.=) 'spcd'), 'MEMBER') THEN
        RETURN;
    END IF;
    SELECT pg_catalog.count(*), coalesce(pg_catalog.sum(r.name_count), 0) INTO v_open, v_names
    FROM spcd.refresh_request r
    WHERE r.done_at IS NULL
      AND r.requested_by OPERATOR(pg_catalog.=) SESSION_USER::pg_catalog.text;
    SELECT pg_catalog.count(*) INTO v_recent
    FROM spcd.refresh_request r
    WHERE r.requested_by OPERATOR(pg_catalog.=) SESSION_USER::pg_catalog.text
      AND r.requested_at OPERATOR(pg_catalog.>)
          (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '1 minute'::pg_catalog.interval);
    IF v_open OPERATOR(pg_catalog.>=) 30 THEN
        RAISE EXCEPTION 'role "%" has % requests that are not answered yet, and 30 is the limit',
                SESSION_USER, v_open
            USING ERRCODE = 'configuration_limit_exceeded',
                  HINT = 'Wait for their answers in spcd.refresh_request.';
    ELSIF (v_names OPERATOR(pg_catalog.+) coalesce(pg_catalog.cardinality(p_names), 0)::bigint)
          OPERATOR(pg_catalog.>) 100000 THEN
        RAISE EXCEPTION 'the open requests of role "%" would name more than 100000 connections',
                SESSION_USER
            USING ERRCODE = 'configuration_limit_exceeded',
                  HINT = 'Wait for their answers, or ask for all: spcd.refresh().';
    ELSIF v_recent OPERATOR(pg_catalog.>=) p_most::bigint THEN
        RAISE EXCEPTION 'role "%" made % requests in the last minute, and the limit is %',
                SESSION_USER, v_recent, p_most
            USING ERRCODE = 'configuration_limit_exceeded', HINT = 'Try again in a minute.';
    END IF;
END $$;
CREATE FUNCTION spcd.lock_event_order() RETURNS void
    LANGUAGE plpgsql
    SET lock_timeout TO '10s'
    AS $$
BEGIN
    LOCK TABLE spcd_lock.event_order IN EXCLUSIVE MODE;
END $$;
CREATE FUNCTION spcd.path_names(p_path text) RETURNS text[]
    LANGUAGE sql IMMUTABLE
    AS $$
    -- A path may have 10,000 names. If all are plain, splitting them at commas takes a fraction of
    -- the time.
    SELECT CASE WHEN pg_catalog.strpos(p_path, '"') OPERATOR(pg_catalog.=) 0
                 AND pg_catalog.strpos(p_path, E'\n') OPERATOR(pg_catalog.=) 0
                 AND pg_catalog.strpos(p_path, E'\t') OPERATOR(pg_catalog.=) 0
                 AND pg_catalog.strpos(p_path, E'\r') OPERATOR(pg_catalog.=) 0
                 AND pg_catalog.strpos(p_path, E'\f') OPERATOR(pg_catalog.=) 0
                 AND pg_catalog.strpos(p_path, E'\v') OPERATOR(pg_catalog.=) 0
        THEN pg_catalog.array_remove(pg_catalog.string_to_array(
                 pg_catalog.lower(pg_catalog.replace(p_path, ' ', '')), ','), '')
        ELSE (SELECT coalesce(pg_catalog.array_agg(
                  coalesce(pg_catalog.replace(m[1], '""', '"'), pg_catalog.lower(m[2]))), '{}')
              FROM pg_catalog.regexp_matches(p_path, '"((?:[^"]|"")*)"|([^",\s]+)', 'g') AS m) END
$$;
CREATE FUNCTION spcd.publish(p_generation bigint, p_changes jsonb, p_quiet boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
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
           CASE WHEN r.step = 1
                THEN pg_catalog.clock_timestamp() - s.time_changed ELSE interval '0' END
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
CREATE FUNCTION spcd.publish_health(p_epoch bigint, p_rows jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_now timestamptz := pg_catalog.clock_timestamp();
    v_reported boolean;
BEGIN
    PERFORM spcd.assert_lead(p_epoch);
    UPDATE spcd.connection_health h
    SET last_checked = NULL, latency_ms = NULL, last_failure = NULL, failed_at = NULL
    FROM pg_catalog.jsonb_array_elements(p_rows) r
    WHERE (r->>'forget')::boolean AND h.connection_name = r->>'name' AND NOT h.held;
    INSERT INTO spcd.connection_health AS h
        (connection_name, reachable, last_checked, latency_ms, attempts, last_failure, failed_at,
         next_attempt, breaker)
    SELECT r.name, r.reachable, v_now - pg_catalog.make_interval(secs => r.checked), r.latency,
           r.attempts, r.failure,
           CASE WHEN r.failure IS NOT NULL
                THEN v_now - pg_catalog.make_interval(secs => r.checked) END,
           v_now + pg_catalog.make_interval(secs => r.next), r.breaker
    FROM pg_catalog.jsonb_to_recordset(p_rows) AS r (
        name text, reachable boolean, checked float8, latency real, attempts integer,
        failure text, next float8, breaker text, forget boolean)
    -- The row is locked because this one refers to it; a connection that is being removed is
    -- skipped.
    JOIN (SELECT connection_name FROM spcd.connection_state
          WHERE connection_name IN (SELECT n->>'name' FROM pg_catalog.jsonb_array_elements(p_rows) n)
          FOR KEY SHARE SKIP LOCKED) s ON s.connection_name = r.name
    ON CONFLICT (connection_name) DO UPDATE SET
        reachable = excluded.reachable,
        last_checked = coalesce(excluded.last_checked, h.last_checked),
        latency_ms = coalesce(excluded.latency_ms, h.latency_ms),
        attempts = excluded.attempts,
        last_failure = coalesce(excluded.last_failure, h.last_failure),
        failed_at = coalesce(excluded.failed_at, h.failed_at),
        next_attempt = excluded.next_attempt,
        breaker = excluded.breaker
    WHERE NOT h.held;
    SELECT EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(p_rows) r WHERE r ? 'health')
    INTO v_reported;
    IF v_reported THEN
        PERFORM spcd.reset_event_buffer();
        -- An event repeats the status, so no other session may change it before the event has its
        -- id. The next statement sees what the previous holder of the lock has committed.
        PERFORM spcd.lock_event_order();
        INSERT INTO pg_temp.spcd_event
            (n, step, connection_name, previous, status, error, duration, health)
        SELECT r.n, t.step, s.connection_name, s.status, s.status, s.error, interval '0', t.health
        FROM pg_catalog.jsonb_array_elements(p_rows) WITH ORDINALITY AS r (result, n)
        CROSS JOIN LATERAL pg_catalog.jsonb_array_elements_text(r.result->'health')
            WITH ORDINALITY AS t (health, step)
        JOIN spcd.connection_health h ON h.connection_name = r.result->>'name' AND NOT h.held
        JOIN spcd.connection_state s ON s.connection_name = h.connection_name;
        PERFORM spcd.announce((SELECT last_value FROM spcd.generation), false);
    END IF;
END $$;
CREATE FUNCTION spcd.reconnect(connections text[]) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ SELECT spcd.request(connections, 'reconnect') $$;
CREATE FUNCTION spcd.record(p_made jsonb) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
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
CREATE FUNCTION spcd.record_config(p_epoch bigint, p_gone text[], p_paths text[], p_roots text[], p_set_path boolean[], p_vanished_with text[], p_plugins jsonb[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM spcd.assert_lead(p_epoch);
    DELETE FROM spcd.config_file WHERE path = ANY (p_gone);
    INSERT INTO spcd.config_file AS f (path, root, sets_path, vanished_with, plugins)
    SELECT * FROM ROWS FROM (pg_catalog.unnest(p_paths), pg_catalog.unnest(p_roots),
                             pg_catalog.unnest(p_set_path), pg_catalog.unnest(p_vanished_with),
                             pg_catalog.unnest(p_plugins))
                  AS n (path, root, sets_path, vanished_with, plugins)
    ON CONFLICT (path) DO UPDATE
        SET root = excluded.root, sets_path = excluded.sets_path,
            vanished_with = excluded.vanished_with, plugins = excluded.plugins;
END $$;
CREATE FUNCTION spcd.record_crashes(p_crashes jsonb) RETURNS void
    LANGUAGE sql
    AS $$
    INSERT INTO spcd.wrapper_crash AS w
        (connection_name, target_hash, times, reason, crashed_at, next_attempt)
    SELECT c.name, c.target_hash, c.times, c.reason, pg_catalog.clock_timestamp(),
           pg_catalog.clock_timestamp()
           + CASE WHEN c.suspects > 1 THEN interval '5 s' * c.n ELSE
             CASE c.times WHEN 1 THEN interval '1 min' WHEN 2 THEN interval '5 min'
                          WHEN 3 THEN interval '30 min' ELSE interval '1 h' END END
    FROM (
        SELECT r.name, r.target_hash, r.reason, pg_catalog.row_number() OVER () AS n,
               pg_catalog.count(*) OVER () AS suspects,
               coalesce(o.times, 0)
               + CASE WHEN pg_catalog.count(*) OVER () > 1 THEN 0 ELSE 1 END AS times
        FROM pg_catalog.jsonb_to_recordset(p_crashes)
             AS r (name text, target_hash text, reason text)
        LEFT JOIN spcd.wrapper_crash o
             ON o.connection_name = r.name AND o.target_hash = r.target_hash
    ) c
    ON CONFLICT (connection_name) DO UPDATE SET
        target_hash = excluded.target_hash, times = excluded.times, reason = excluded.reason,
        crashed_at = excluded.crashed_at, next_attempt = excluded.next_attempt
$$;
CREATE FUNCTION spcd.record_lane(p_server text) RETURNS void
    LANGUAGE sql
    AS $$
    INSERT INTO spcd.gateway_lane (server_name, server_oid)
    SELECT s.srvname, s.oid FROM pg_catalog.pg_foreign_server s WHERE s.srvname = p_server
    ON CONFLICT (server_name) DO UPDATE SET server_oid = excluded.server_oid
$$;
CREATE FUNCTION spcd.record_search_path(p_roles text[], p_hash text) RETURNS void
    LANGUAGE sql
    AS $$
    INSERT INTO spcd.role_search_path (role_name, path_hash, setting_hash, row_version)
    SELECT r.rolname, coalesce(p_hash, p.path_hash), pg_catalog.md5(spcd.search_path_of(h.setconfig)), h.xmin::text
    FROM pg_catalog.pg_roles r
    JOIN pg_catalog.pg_db_role_setting h ON h.setrole = r.oid
    JOIN pg_catalog.pg_database d ON d.oid = h.setdatabase
         AND d.datname = pg_catalog.current_database()
    LEFT JOIN spcd.role_search_path p ON p.role_name = r.rolname
    WHERE r.rolname = ANY (p_roles)
    ON CONFLICT (role_name) DO UPDATE SET
        path_hash = excluded.path_hash, setting_hash = excluded.setting_hash, row_version = excluded.row_version
$$;
CREATE FUNCTION spcd.record_views(p_connection text, p_views jsonb) RETURNS void
    LANGUAGE sql
    AS $$
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
        definition_hash = excluded.definition_hash
$$;
CREATE FUNCTION spcd.refresh(connections text[] DEFAULT NULL::text[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_variable
DECLARE
    v_id bigint;
    v_names pg_catalog.text[] := spcd.asked_names(connections);
BEGIN
    PERFORM spcd.limit_requests(v_names, 60);
    INSERT INTO spcd.refresh_request (connections) VALUES (v_names) RETURNING id INTO v_id;
    PERFORM pg_catalog.pg_notify('spcd_wake', '');
    RETURN v_id;
END $$;
CREATE FUNCTION spcd.refresh_fingerprint(p_names text[]) RETURNS void
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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
CREATE FUNCTION spcd.refresh_fingerprints(p_names text[]) RETURNS void
    LANGUAGE sql
    SET enable_seqscan TO 'on'
    SET enable_hashjoin TO 'on'
    SET enable_mergejoin TO 'on'
    AS $$
    UPDATE spcd.applied a SET fingerprint = f.fingerprint
    FROM spcd.fingerprint f
    WHERE f.connection_name = a.connection_name AND a.connection_name = ANY (p_names)
      -- repeated for the view: otherwise the planner would scan all connections
      AND f.connection_name = ANY (p_names)
$$;
CREATE FUNCTION spcd.refuse_user_mapping(p_state text, p_reason text) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_temp.spcd_secret
               WHERE value <> '' AND pg_catalog.strpos(p_reason, value) > 0) THEN
        p_reason := 'the server refuses its options';
    END IF;
    RAISE EXCEPTION 'user mapping: %', p_reason USING ERRCODE = p_state;
END $$;
CREATE FUNCTION spcd.rename_config(p_epoch bigint, p_from text, p_to text) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_rest integer := pg_catalog.length(p_from) + 1;
BEGIN
    PERFORM spcd.assert_lead(p_epoch);
    DELETE FROM spcd.config_file f
    WHERE root = p_from
      AND EXISTS (SELECT FROM spcd.config_file o
                  WHERE o.path = p_to || pg_catalog.substr(f.path, v_rest));
    UPDATE spcd.config_file
    SET path = p_to || pg_catalog.substr(path, v_rest), root = p_to,
        vanished_with = p_to || pg_catalog.substr(vanished_with, v_rest)
    WHERE root = p_from;
    UPDATE spcd.connection_state SET file_name = p_to || pg_catalog.substr(file_name, v_rest)
    WHERE file_name = p_from OR pg_catalog.starts_with(file_name, p_from || '/');
END $$;
CREATE FUNCTION spcd.request(p_connections text[], p_action text) RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT spcd.limit_requests(spcd.asked_names(p_connections), 10);
    SELECT pg_catalog.pg_notify('spcd_wake', '');
    INSERT INTO spcd.refresh_request (connections, action)
    VALUES (coalesce(spcd.asked_names(p_connections), '{}'), p_action) RETURNING id
$$;
CREATE FUNCTION spcd.reset_event_buffer() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    CREATE TEMP TABLE IF NOT EXISTS spcd_event (
        n bigint, step integer, connection_name text, previous text, status text, error text,
        duration interval, health text
    ) ON COMMIT DELETE ROWS;
    DELETE FROM pg_temp.spcd_event;
END $$;
CREATE FUNCTION spcd.restore(p_schema text, p_view text) RETURNS void
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION spcd.restore_log(p_before text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_names text[] := '{lock_timeout,log_min_messages,log_error_verbosity}';
BEGIN
    FOR i IN 1..3 LOOP
        IF pg_catalog.current_setting(v_names[i]) <> p_before[i] THEN
            PERFORM pg_catalog.set_config(v_names[i], p_before[i], true);
        END IF;
    END LOOP;
END $$;
CREATE FUNCTION spcd.retry(connections text[]) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ SELECT spcd.request(connections, 'retry') $$;
CREATE FUNCTION spcd.search_path_of(p_settings text[]) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT c FROM pg_catalog.unnest(p_settings) c
    WHERE pg_catalog.starts_with(c, 'search_path=')
$$;
CREATE FUNCTION spcd.set_aside(p_schema text, p_view text) RETURNS void
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION spcd.set_comments(p_connection text, p_changes jsonb, p_seen bigint, p_last boolean, p_generation bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION spcd.set_paused(p_names text[], p_paused boolean) RETURNS void
    LANGUAGE sql
    AS $$
    INSERT INTO spcd.connection_health (connection_name, held)
    SELECT s.connection_name, true
    FROM spcd.connection_state s
    WHERE s.connection_name = ANY (p_names) AND p_paused
    ON CONFLICT (connection_name) DO UPDATE SET
        held = true, reachable = NULL, attempts = 0, next_attempt = NULL, breaker = 'closed';
    UPDATE spcd.connection_health SET held = false
    WHERE connection_name = ANY (p_names) AND NOT p_paused AND held
$$;
CREATE FUNCTION spcd.set_search_path(p_roles text[], p_path text, p_hash text) RETURNS TABLE(role_name text, state text, reason text)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    v_role text;
BEGIN
    FOREACH v_role IN ARRAY p_roles LOOP
        BEGIN
            EXECUTE pg_catalog.format('ALTER ROLE %I IN DATABASE %I ', v_role,
                                      pg_catalog.current_database())
                 || coalesce('SET search_path = ' || p_path, 'RESET search_path');
            IF p_path IS NULL THEN
                DELETE FROM spcd.role_search_path p WHERE p.role_name = v_role;
            ELSE
                PERFORM spcd.record_search_path(ARRAY[v_role], p_hash);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            role_name := v_role;
            state := SQLSTATE;
            reason := SQLERRM;
            RETURN NEXT;
        END;
    END LOOP;
END $$;
CREATE FUNCTION spcd.set_user_mapping(p_server text) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_old text[];
    v_options text;
    v_state text;
    v_reason text;
    v_before text[];
BEGIN
    v_before := spcd.silence_log();
    SELECT coalesce(umoptions, '{}') INTO v_old
    FROM pg_catalog.pg_user_mappings WHERE srvname = p_server AND umuser = 0;
    IF v_old IS NULL THEN
        SELECT pg_catalog.string_agg(pg_catalog.format('%I %L', option, value), ', ')
        INTO v_options FROM pg_temp.spcd_secret WHERE server = p_server;
        EXECUTE pg_catalog.format('CREATE USER MAPPING FOR PUBLIC SERVER %I', p_server)
             || coalesce(' OPTIONS (' || v_options || ')', '');
    ELSE
        SELECT pg_catalog.string_agg(CASE
            WHEN n.option IS NULL THEN pg_catalog.format('DROP %I', o.option)
            WHEN o.option IS NULL THEN pg_catalog.format('ADD %I %L', n.option, n.value)
            ELSE pg_catalog.format('SET %I %L', n.option, n.value) END, ', ')
        INTO v_options
        FROM (SELECT option, value FROM pg_temp.spcd_secret WHERE server = p_server) n
        FULL JOIN (SELECT pg_catalog.split_part(x, '=', 1) AS option,
                          pg_catalog.substr(x, pg_catalog.strpos(x, '=') + 1) AS value
                   FROM pg_catalog.unnest(v_old) x) o USING (option)
        WHERE n.value IS DISTINCT FROM o.value;
        IF v_options IS NOT NULL THEN
            EXECUTE pg_catalog.format('ALTER USER MAPPING FOR PUBLIC SERVER %I', p_server)
                 || ' OPTIONS (' || v_options || ')';
        END IF;
    END IF;
    PERFORM spcd.restore_log(v_before);
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_reason = MESSAGE_TEXT;
    PERFORM spcd.refuse_user_mapping(v_state, v_reason);
END $$;
CREATE FUNCTION spcd.shortened(p_text text) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT CASE
        WHEN pg_catalog.octet_length(pg_catalog.to_json(p_text)::text) <= 1000 THEN p_text
        WHEN pg_catalog.octet_length(pg_catalog.to_json(pg_catalog.left(p_text, 800))::text) <= 996
        THEN pg_catalog.left(p_text, 800) || '...'
        ELSE pg_catalog.left(p_text, 160) || '...' END
$$;
CREATE FUNCTION spcd.silence_log() RETURNS text[]
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_before text[] := ARRAY[pg_catalog.current_setting('lock_timeout'),
                             pg_catalog.current_setting('log_min_messages'),
                             pg_catalog.current_setting('log_error_verbosity')];
    v_limit integer;
BEGIN
    -- lock_timeout = 0 means no limit.
    SELECT greatest(1, least(d.setting::integer / 2, nullif(l.setting::integer, 0))) INTO v_limit
    FROM pg_catalog.pg_settings d, pg_catalog.pg_settings l
    WHERE d.name = 'deadlock_timeout' AND l.name = 'lock_timeout';
    PERFORM pg_catalog.set_config('lock_timeout', v_limit::text, true);
    BEGIN
        PERFORM pg_catalog.set_config('log_min_messages', 'panic', true);
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END;
    BEGIN
        PERFORM pg_catalog.set_config('log_error_verbosity', 'terse', true);
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END;
    RETURN v_before;
END $$;
CREATE FUNCTION spcd.take_lead(p_instance text, p_leader text, p_version text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
DECLARE
    v_epoch bigint;
    v_identity text;
    v_known text;
    v_generation bigint := pg_catalog.nextval('spcd.generation');
BEGIN
    -- Tells this database from one that was restored from its dump.
    SELECT pg_catalog.concat_ws('/', n.oid, n.xmin, c.oid, d.oid) INTO v_identity
    FROM pg_catalog.pg_namespace n
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'connection_state'
    JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
    WHERE n.nspname = 'spcd';
    SELECT identity INTO v_known FROM spcd.daemon;
    UPDATE spcd.daemon SET
        epoch = epoch + 1, leader = p_leader, since = pg_catalog.clock_timestamp(),
        heartbeat = pg_catalog.clock_timestamp(), version = p_version, backends = '[]',
        identity = v_identity
    RETURNING epoch INTO v_epoch;
    IF NOT FOUND THEN
        INSERT INTO spcd.daemon (epoch, instance, leader, since, heartbeat, version, identity)
        VALUES (1, p_instance, p_leader, pg_catalog.clock_timestamp(), pg_catalog.clock_timestamp(),
                p_version, v_identity)
        RETURNING epoch INTO v_epoch;
    ELSIF v_known IS DISTINCT FROM v_identity THEN
        UPDATE spcd.applied a SET schema_oid = n.oid, server_oid = (
            SELECT s.oid FROM pg_catalog.pg_foreign_server s WHERE s.srvname = coalesce(a.server_name, a.connection_name))
        FROM pg_catalog.pg_namespace n
        WHERE n.nspname = coalesce(a.hidden_schema, a.connection_name) AND a.members IS NULL;
        UPDATE spcd.applied a SET schema_oid = n.oid
        FROM pg_catalog.pg_namespace n
        WHERE n.nspname = coalesce(a.hidden_schema, a.connection_name) AND a.members IS NOT NULL;
        UPDATE spcd.daemon SET hub_id = pg_catalog.gen_random_uuid();
        UPDATE spcd.gateway_lane l SET server_oid = s.oid
        FROM pg_catalog.pg_foreign_server s WHERE s.srvname = l.server_name;
    END IF;
    WITH before AS (
        SELECT connection_name, status, error, time_changed, last_ready, generation
        FROM spcd.connection_state
        WHERE status NOT IN ('disabled', 'pending') FOR UPDATE
    ), kept AS (
        INSERT INTO spcd.before_start AS k SELECT * FROM before
        ON CONFLICT (connection_name) DO UPDATE SET
            status = excluded.status, error = excluded.error,
            time_changed = excluded.time_changed, last_ready = excluded.last_ready,
            generation = excluded.generation
    )
    UPDATE spcd.connection_state s SET
        status = 'pending', error = NULL, generation = v_generation,
        time_changed = pg_catalog.clock_timestamp()
    FROM before b WHERE b.connection_name = s.connection_name;
    INSERT INTO spcd.connection_event (status, generation) VALUES ('resync', v_generation);
    PERFORM pg_catalog.pg_notify('connection_state', '{"version":1,"resync":true}');
    RETURN v_epoch;
END $$;
CREATE FUNCTION spcd.touch_lane(p_server text, p_text text) RETURNS void
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION spcd.view_definition_hash(p_view oid) RETURNS text
    LANGUAGE sql STABLE
    AS $$
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
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE spcd.connection_state (
    connection_name text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL,
    error text,
    comments_set boolean DEFAULT false NOT NULL,
    time_changed timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    warnings text[] DEFAULT '{}'::text[] NOT NULL,
    plugin text NOT NULL,
    plugin_instance text NOT NULL,
    type text NOT NULL,
    connections text[] DEFAULT '{}'::text[] NOT NULL,
    import_schema text NOT NULL,
    schema_mode text,
    schema_hash text,
    table_count integer,
    last_ready timestamp with time zone,
    file_name text,
    start_line integer,
    end_line integer,
    generation bigint NOT NULL,
    labels jsonb DEFAULT '{}'::jsonb NOT NULL,
    mirror text DEFAULT ''::text NOT NULL,
    CONSTRAINT connection_state_check CHECK (((status = 'error'::text) = (error IS NOT NULL))),
    CONSTRAINT connection_state_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'updating'::text, 'deleting'::text, 'ready'::text, 'error'::text, 'disabled'::text])))
);
COMMENT ON TABLE spcd.connection_state IS 'one row per connection: its status';
COMMENT ON COLUMN spcd.connection_state.connection_name IS 'the label of the connection block; also the name of its schema';
COMMENT ON COLUMN spcd.connection_state.status IS 'pending, updating, deleting, ready, error or disabled';
COMMENT ON COLUMN spcd.connection_state.error IS 'why the status is error';
COMMENT ON COLUMN spcd.connection_state.comments_set IS 'the comments of the source are on the tables';
COMMENT ON COLUMN spcd.connection_state.time_changed IS 'when status or error last changed; a restart that finds nothing changed keeps it';
COMMENT ON COLUMN spcd.connection_state.warnings IS 'what was left out or refused, and why';
COMMENT ON COLUMN spcd.connection_state.plugin IS 'the plugin, as it is written';
COMMENT ON COLUMN spcd.connection_state.plugin_instance IS 'the plugin block or the shipped definition that it means';
COMMENT ON COLUMN spcd.connection_state.type IS 'plugin or aggregator';
COMMENT ON COLUMN spcd.connection_state.connections IS 'the patterns of an aggregator';
COMMENT ON COLUMN spcd.connection_state.import_schema IS 'enabled or disabled';
COMMENT ON COLUMN spcd.connection_state.schema_mode IS 'dynamic, or static where all connections of a plugin have the same tables';
COMMENT ON COLUMN spcd.connection_state.schema_hash IS 'hash of the imported tables';
COMMENT ON COLUMN spcd.connection_state.table_count IS 'number of tables or views in the schema';
COMMENT ON COLUMN spcd.connection_state.last_ready IS 'when the connection last became ready';
COMMENT ON COLUMN spcd.connection_state.file_name IS 'the file of its block';
COMMENT ON COLUMN spcd.connection_state.start_line IS 'the first line of its block, from 1';
COMMENT ON COLUMN spcd.connection_state.end_line IS 'the last line of its block';
COMMENT ON COLUMN spcd.connection_state.generation IS 'the pass that last changed the row';
COMMENT ON COLUMN spcd.connection_state.labels IS 'the block labels, for people: nothing follows from it';
COMMENT ON COLUMN spcd.connection_state.mirror IS 'the mirror block that it comes from; empty: a connection block';
CREATE FUNCTION spcd.wait_until_ready(connections text[] DEFAULT NULL::text[], timeout interval DEFAULT '00:01:00'::interval) RETURNS SETOF spcd.connection_state
    LANGUAGE plpgsql
    AS $_$
#variable_conflict use_variable
DECLARE
    v_names pg_catalog.text[] := connections;
    v_moving CONSTANT pg_catalog.text[] := ARRAY['pending', 'updating', 'deleting'];
    -- NULL waits without limit.
    v_until pg_catalog.timestamptz := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) timeout;
    v_pause pg_catalog.float8;
    v_waiting pg_catalog.text[];
    v_held pg_catalog.text[];
    v_name pg_catalog.text;
    v_status pg_catalog.text;
    v_error pg_catalog.text;
BEGIN
    IF connections IS NULL THEN
        v_names := pg_catalog.array_replace(
            spcd.path_names(pg_catalog.current_setting('search_path')),
            '$user', current_user::pg_catalog.text);
    END IF;
    LOOP
        IF connections IS NOT NULL THEN
            SELECT n.name, s.status, s.error INTO v_name, v_status, v_error
            FROM pg_catalog.unnest(connections) WITH ORDINALITY AS n (name, place)
            LEFT JOIN spcd.connection_state s ON s.connection_name OPERATOR(pg_catalog.=) n.name
            WHERE s.status IS NULL OR s.status OPERATOR(pg_catalog.<>) 'ready'
            ORDER BY CASE WHEN s.status OPERATOR(pg_catalog.=) 'error' THEN 1
                          WHEN s.status OPERATOR(pg_catalog.=) ANY (v_moving) THEN 2 ELSE 0 END,
                     n.place
            LIMIT 1;
            EXIT WHEN NOT FOUND;
            IF v_status OPERATOR(pg_catalog.=) 'error' THEN
                RAISE EXCEPTION 'connection "%" is in error: %', v_name, v_error
                    USING ERRCODE = 'SP001';
            ELSIF v_status IS NULL OR v_status OPERATOR(pg_catalog.=) 'disabled' THEN
                RAISE EXCEPTION 'connection "%" is %', v_name, coalesce(v_status, 'not configured')
                    USING ERRCODE = 'SP003';
            END IF;
        ELSE
            -- OFFSET 0: the unsettled rows are found first, since they are few and the names may be
            -- many.
            SELECT s.connection_name INTO v_name
            FROM (SELECT connection_name FROM spcd.connection_state
                  WHERE status OPERATOR(pg_catalog.=) ANY (v_moving) OFFSET 0) s
            JOIN pg_catalog.unnest(v_names) AS n (name) ON s.connection_name OPERATOR(pg_catalog.=) n.name
            LIMIT 1;
            EXIT WHEN NOT FOUND;
        END IF;
        IF v_pause IS NULL THEN
            v_pause := 0.01;
            IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.=)
               ANY (ARRAY['repeatable read', 'serializable']) THEN
                RAISE EXCEPTION 'connection "%" is not ready, and this transaction''s snapshot is frozen: it would never see it become so',
                    v_name USING ERRCODE = '25001',
                    HINT = 'Wait before the transaction begins, or use READ COMMITTED.';
            END IF;
            -- The locks of this transaction do not change during the wait.
            v_held := ARRAY(
                SELECT n.nspname::pg_catalog.text
                FROM pg_catalog.pg_locks l
                JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation
                JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
                WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
                  AND l.locktype OPERATOR(pg_catalog.=) 'relation' AND l.granted
                  AND n.nspname OPERATOR(pg_catalog.<>) ALL (ARRAY['spcd', 'pg_catalog']::pg_catalog.name[])
                UNION
                SELECT coalesce(n.nspname, s.srvname)::pg_catalog.text
                FROM pg_catalog.pg_locks l
                LEFT JOIN pg_catalog.pg_namespace n
                    ON l.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
                   AND n.oid OPERATOR(pg_catalog.=) l.objid
                LEFT JOIN pg_catalog.pg_foreign_server s
                    ON l.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_foreign_server'::pg_catalog.regclass
                   AND s.oid OPERATOR(pg_catalog.=) l.objid
                WHERE l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
                  AND l.locktype OPERATOR(pg_catalog.=) 'object' AND l.granted);
        END IF;
        IF pg_catalog.cardinality(v_held) OPERATOR(pg_catalog.>) 0
           OR pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) v_until THEN
            v_waiting := ARRAY(
                SELECT s.connection_name
                FROM (SELECT connection_name FROM spcd.connection_state
                      WHERE status OPERATOR(pg_catalog.=) ANY (v_moving) OFFSET 0) s
                JOIN pg_catalog.unnest(v_names) WITH ORDINALITY AS n (name, place)
                    ON s.connection_name OPERATOR(pg_catalog.=) n.name
                ORDER BY n.place);
            SELECT w.name INTO v_name FROM pg_catalog.unnest(v_waiting) AS w (name)
            WHERE w.name OPERATOR(pg_catalog.=) ANY (v_held) LIMIT 1;
            IF FOUND THEN
                RAISE EXCEPTION 'connection "%" is not ready, and this transaction holds locks on its tables: each would wait for the other',
                    v_name USING ERRCODE = '25001', HINT = 'Wait before the transaction begins.';
            END IF;
            -- A connection that has just become ready counts.
            IF pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>=) v_until
               AND pg_catalog.cardinality(v_waiting) OPERATOR(pg_catalog.>) 0 THEN
                RAISE EXCEPTION 'not ready in time: %',
                    pg_catalog.array_to_string(v_waiting[1:10], ', ')
                        OPERATOR(pg_catalog.||)
                        CASE WHEN pg_catalog.cardinality(v_waiting) OPERATOR(pg_catalog.>) 10
                             THEN ', ...' ELSE '' END
                    USING ERRCODE = 'SP002';
            END IF;
        END IF;
        PERFORM pg_catalog.pg_sleep(least(v_pause, greatest(0::pg_catalog.float8,
            extract(epoch FROM v_until OPERATOR(pg_catalog.-) pg_catalog.clock_timestamp())
                ::pg_catalog.float8)));
        IF v_until IS NULL THEN
            PERFORM pg_catalog.pg_sleep(v_pause);
        END IF;
        v_pause := least(v_pause OPERATOR(pg_catalog.*) 1.5::pg_catalog.float8, 0.25::pg_catalog.float8);
    END LOOP;
    RETURN QUERY
        SELECT s.* FROM spcd.connection_state s
        WHERE s.connection_name OPERATOR(pg_catalog.=) ANY (v_names)
        ORDER BY s.connection_name;
END $_$;
CREATE SERVER one FOREIGN DATA WRAPPER postgres_fdw OPTIONS (
    async_capable 'true',
    connect_timeout '10',
    dbname 't1',
    host '127.0.0.1',
    port '22691'
);
CREATE USER MAPPING FOR public SERVER one OPTIONS (
    "user" 'postgres'
);
CREATE FOREIGN TABLE one.t (
    id integer
)
SERVER one
OPTIONS (
    fetch_size '50000',
    schema_name 'public',
    table_name 't'
);
CREATE TABLE spcd.aggregator_view (
    connection_name text NOT NULL COLLATE pg_catalog."C",
    hidden boolean NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    table_name text NOT NULL COLLATE pg_catalog."C",
    statement_hash text NOT NULL,
    definition_hash text NOT NULL
);
COMMENT ON TABLE spcd.aggregator_view IS 'the views that spcd made for aggregators';
COMMENT ON COLUMN spcd.aggregator_view.connection_name IS 'the aggregator';
COMMENT ON COLUMN spcd.aggregator_view.hidden IS 'it is a part of another view, in the schema spcd_union';
COMMENT ON COLUMN spcd.aggregator_view.name IS 'its name';
COMMENT ON COLUMN spcd.aggregator_view.table_name IS 'the table of the members that it shows';
COMMENT ON COLUMN spcd.aggregator_view.statement_hash IS 'hash of the statement that made it';
COMMENT ON COLUMN spcd.aggregator_view.definition_hash IS 'hash of the definition that the server showed then';
CREATE TABLE spcd.applied (
    connection_name text NOT NULL COLLATE pg_catalog."C",
    target_hash text NOT NULL,
    schema_oid oid NOT NULL,
    server_oid oid,
    tables text[] DEFAULT '{}'::text[] NOT NULL,
    members text[],
    warnings text[] DEFAULT '{}'::text[] NOT NULL,
    extension_version text,
    types jsonb,
    hidden_schema text COLLATE pg_catalog."C",
    fingerprint text NOT NULL,
    server_name text COLLATE pg_catalog."C",
    tuning jsonb
);
COMMENT ON TABLE spcd.applied IS 'what spcd made for each connection';
COMMENT ON COLUMN spcd.applied.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.applied.target_hash IS 'hash of the definition that was applied';
COMMENT ON COLUMN spcd.applied.schema_oid IS 'its schema';
COMMENT ON COLUMN spcd.applied.server_oid IS 'its foreign server; NULL for an aggregator';
COMMENT ON COLUMN spcd.applied.tables IS 'the tables or views in its schema';
COMMENT ON COLUMN spcd.applied.members IS 'the connections that an aggregator''s views show; NULL for all others';
COMMENT ON COLUMN spcd.applied.warnings IS 'what the import left out or refused';
COMMENT ON COLUMN spcd.applied.extension_version IS 'the version of the extension that was asked, where all connections of a plugin have the same tables';
COMMENT ON COLUMN spcd.applied.types IS 'the types of columns of files that values decided, by table and column';
COMMENT ON COLUMN spcd.applied.hidden_schema IS 'the schema of its tables while only aggregators show them; NULL: the schema of its name';
COMMENT ON COLUMN spcd.applied.fingerprint IS 'spcd.fingerprint of it when it was recorded';
COMMENT ON COLUMN spcd.applied.server_name IS 'the server of its tables, where connections share it; NULL: the one of its name';
COMMENT ON COLUMN spcd.applied.tuning IS 'options for speed that spcd has set: of the server, and fetch_size by table';
CREATE TABLE spcd.applied_comment (
    connection_name text NOT NULL COLLATE pg_catalog."C",
    table_name text NOT NULL COLLATE pg_catalog."C",
    column_name text NOT NULL COLLATE pg_catalog."C",
    hash text NOT NULL
);
COMMENT ON TABLE spcd.applied_comment IS 'comments that spcd wrote: one that reads otherwise is another role''s, and stays';
COMMENT ON COLUMN spcd.applied_comment.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.applied_comment.table_name IS 'the table';
COMMENT ON COLUMN spcd.applied_comment.column_name IS 'the column; empty: the table itself';
COMMENT ON COLUMN spcd.applied_comment.hash IS 'hash of the comment';
CREATE TABLE spcd.before_start (
    connection_name text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL,
    error text,
    time_changed timestamp with time zone NOT NULL,
    last_ready timestamp with time zone,
    generation bigint NOT NULL
);
COMMENT ON TABLE spcd.before_start IS 'rows of spcd.connection_state as they were before the service started or was taken over';
COMMENT ON COLUMN spcd.before_start.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.before_start.status IS 'its status then';
COMMENT ON COLUMN spcd.before_start.error IS 'its error then';
COMMENT ON COLUMN spcd.before_start.time_changed IS 'when it had changed';
COMMENT ON COLUMN spcd.before_start.last_ready IS 'when it had last become ready';
COMMENT ON COLUMN spcd.before_start.generation IS 'the pass that had changed it';
CREATE TABLE spcd.config_diagnostic (
    severity text NOT NULL,
    file_name text NOT NULL,
    line integer NOT NULL,
    column_number integer NOT NULL,
    message text NOT NULL,
    hint text,
    connection_name text,
    CONSTRAINT config_diagnostic_severity_check CHECK ((severity = ANY (ARRAY['error'::text, 'warning'::text])))
);
COMMENT ON TABLE spcd.config_diagnostic IS 'what is wrong in the files now';
COMMENT ON COLUMN spcd.config_diagnostic.severity IS 'error or warning';
COMMENT ON COLUMN spcd.config_diagnostic.file_name IS 'the file';
COMMENT ON COLUMN spcd.config_diagnostic.line IS 'the line, from 1';
COMMENT ON COLUMN spcd.config_diagnostic.column_number IS 'the column in characters, from 1';
COMMENT ON COLUMN spcd.config_diagnostic.message IS 'what is wrong';
COMMENT ON COLUMN spcd.config_diagnostic.hint IS 'what to write instead';
COMMENT ON COLUMN spcd.config_diagnostic.connection_name IS 'the connection whose block it is in';
CREATE TABLE spcd.config_file (
    path text NOT NULL COLLATE pg_catalog."C",
    root text NOT NULL,
    sets_path boolean NOT NULL,
    vanished_with text,
    plugins jsonb DEFAULT '{}'::jsonb NOT NULL
);
COMMENT ON TABLE spcd.config_file IS 'the files that the applied state came from';
COMMENT ON COLUMN spcd.config_file.path IS 'the file';
COMMENT ON COLUMN spcd.config_file.root IS 'its config directory, as configured';
COMMENT ON COLUMN spcd.config_file.sets_path IS 'it holds a block options "database"';
COMMENT ON COLUMN spcd.config_file.vanished_with IS 'the directory with which it vanished; NULL while it is there';
COMMENT ON COLUMN spcd.config_file.plugins IS 'its plugin blocks: the source of each, by label';
CREATE TABLE spcd.connection_event (
    id bigint NOT NULL,
    "time" timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    connection_name text COLLATE pg_catalog."C",
    previous text,
    status text NOT NULL,
    error text,
    generation bigint NOT NULL,
    duration interval,
    health text,
    CONSTRAINT connection_event_check CHECK (((connection_name IS NULL) = (status = 'resync'::text))),
    CONSTRAINT connection_event_health_check CHECK ((health = ANY (ARRAY['lost'::text, 'restored'::text])))
);
COMMENT ON TABLE spcd.connection_event IS 'every change of a status or an error, committed in the order of id';
COMMENT ON COLUMN spcd.connection_event.id IS 'grows with each event: who has seen one has missed none before it';
COMMENT ON COLUMN spcd.connection_event."time" IS 'when';
COMMENT ON COLUMN spcd.connection_event.connection_name IS 'the connection; NULL for a resync';
COMMENT ON COLUMN spcd.connection_event.previous IS 'the status before; NULL for a new connection';
COMMENT ON COLUMN spcd.connection_event.status IS 'the status, deleted, or resync: the service started or was taken over, and all rows but the disabled ones became pending';
COMMENT ON COLUMN spcd.connection_event.error IS 'why the status is error, or why the source was lost';
COMMENT ON COLUMN spcd.connection_event.generation IS 'the pass that made the change';
COMMENT ON COLUMN spcd.connection_event.duration IS 'how long the previous status lasted';
COMMENT ON COLUMN spcd.connection_event.health IS 'lost or restored where the event is about the source; NULL where it is about the status';
ALTER TABLE spcd.connection_event ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME spcd.connection_event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE spcd.connection_health (
    connection_name text NOT NULL COLLATE pg_catalog."C",
    reachable boolean,
    last_checked timestamp with time zone,
    latency_ms real,
    attempts integer DEFAULT 0 NOT NULL,
    last_failure text,
    failed_at timestamp with time zone,
    next_attempt timestamp with time zone,
    breaker text DEFAULT 'closed'::text NOT NULL,
    held boolean DEFAULT false NOT NULL,
    CONSTRAINT connection_health_breaker_check CHECK ((breaker = ANY (ARRAY['closed'::text, 'open'::text, 'half_open'::text])))
)
WITH (fillfactor='70');
COMMENT ON TABLE spcd.connection_health IS 'one row per connection whose source is probed: whether it answers';
COMMENT ON COLUMN spcd.connection_health.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.connection_health.reachable IS 'whether its source answered the last probe; NULL: unknown';
COMMENT ON COLUMN spcd.connection_health.last_checked IS 'when that was';
COMMENT ON COLUMN spcd.connection_health.latency_ms IS 'how long its last answer took, in milliseconds';
COMMENT ON COLUMN spcd.connection_health.attempts IS 'how often in a row it did not answer';
COMMENT ON COLUMN spcd.connection_health.last_failure IS 'why it did not answer when it last did not; it stays when the source answers again';
COMMENT ON COLUMN spcd.connection_health.failed_at IS 'when that was';
COMMENT ON COLUMN spcd.connection_health.next_attempt IS 'when it is asked next; NULL: when its definition changes or on request';
COMMENT ON COLUMN spcd.connection_health.breaker IS 'the circuit breaker: closed, open or half_open';
COMMENT ON COLUMN spcd.connection_health.held IS 'nothing is asked of the source until spcd reconnect';
CREATE TABLE spcd.daemon (
    epoch bigint NOT NULL,
    instance text NOT NULL,
    leader text,
    since timestamp with time zone,
    heartbeat timestamp with time zone,
    version text,
    backends jsonb DEFAULT '[]'::jsonb NOT NULL,
    identity text,
    hub_id uuid DEFAULT gen_random_uuid() NOT NULL
);
COMMENT ON TABLE spcd.daemon IS 'the daemon that leads';
COMMENT ON COLUMN spcd.daemon.epoch IS 'grows with each new leader, and fences the writes of earlier ones';
COMMENT ON COLUMN spcd.daemon.instance IS 'the setting instance';
COMMENT ON COLUMN spcd.daemon.leader IS 'host and process of the leader; NULL after it resigned';
COMMENT ON COLUMN spcd.daemon.since IS 'when it took the lead';
COMMENT ON COLUMN spcd.daemon.heartbeat IS 'when it last said that it is there';
COMMENT ON COLUMN spcd.daemon.version IS 'its version';
COMMENT ON COLUMN spcd.daemon.backends IS 'pid and backend_start of each of its sessions';
COMMENT ON COLUMN spcd.daemon.identity IS 'tells this database from one that was restored from its dump';
COMMENT ON COLUMN spcd.daemon.hub_id IS 'tells this hub from all others: hubs that mirror each other compare it';
CREATE VIEW spcd.table_fingerprint AS
 SELECT a.connection_name,
    n.oid AS schema_oid,
    s.oid AS server_oid,
    (NOT (n.oid IS DISTINCT FROM a.schema_oid)) AS schema_is_ours,
    (NOT (s.oid IS DISTINCT FROM a.server_oid)) AS server_is_ours,
    concat_ws('/'::text, n.oid, s.oid,
        CASE
            WHEN (a.server_name IS NULL) THEN hashtextextended(concat(s.srvfdw, s.srvoptions), (0)::bigint)
            ELSE NULL::bigint
        END,
        CASE
            WHEN (a.server_name IS NULL) THEN hashtextextended((m.umoptions)::text, (0)::bigint)
            ELSE NULL::bigint
        END, t.tables, t.rows, t.columns, t.column_rows) AS fingerprint
   FROM ((((spcd.applied a
     LEFT JOIN pg_namespace n ON ((n.nspname = COALESCE(a.hidden_schema, a.connection_name))))
     LEFT JOIN pg_foreign_server s ON ((s.srvname = COALESCE(a.server_name, a.connection_name))))
     LEFT JOIN pg_user_mappings m ON (((m.srvid = s.oid) AND (m.umuser = (0)::oid))))
     LEFT JOIN LATERAL ( SELECT count(*) AS tables,
            sum(((((age('3'::xid))::bigint - age(c.xmin)) & '4294967295'::bigint) + (((age('3'::xid))::bigint - age(f.xmin)) & '4294967295'::bigint))) AS rows,
            sum(k.columns) AS columns,
            sum(k.column_rows) AS column_rows
           FROM (((pg_depend d
             JOIN pg_class c ON ((c.oid = d.objid)))
             JOIN pg_foreign_table f ON (((f.ftrelid = d.objid) AND (f.ftserver = s.oid))))
             CROSS JOIN LATERAL ( SELECT count(*) AS columns,
                    sum((((age('3'::xid))::bigint - age(k_1.xmin)) & '4294967295'::bigint)) AS column_rows
                   FROM pg_attribute k_1
                  WHERE ((k_1.attrelid = d.objid) AND (k_1.attnum > 0))) k)
          WHERE ((d.refclassid = ('pg_namespace'::regclass)::oid) AND (d.refobjid = n.oid) AND (d.classid = ('pg_class'::regclass)::oid) AND (c.relname = ANY (a.tables)))) t ON (true));
CREATE VIEW spcd.fingerprint AS
 WITH v AS MATERIALIZED (
         SELECT w.connection_name,
            count(*) AS views,
            sum(((((((age('3'::xid))::bigint - age(c.xmin)) & '4294967295'::bigint) + (((age('3'::xid))::bigint - age(COALESCE(r.xmin, f.xmin))) & '4294967295'::bigint)))::numeric + k.column_rows)) AS rows
           FROM (((((spcd.aggregator_view w
             JOIN pg_namespace m ON ((m.nspname =
                CASE
                    WHEN w.hidden THEN 'spcd_union'::text
                    ELSE w.connection_name
                END)))
             JOIN pg_class c ON (((c.relname = w.name) AND (c.relnamespace = m.oid) AND ((c.relkind = 'v'::"char") OR (w.hidden AND (c.relkind = 'f'::"char"))))))
             LEFT JOIN pg_rewrite r ON (((r.ev_class = c.oid) AND (r.rulename = '_RETURN'::name))))
             LEFT JOIN pg_foreign_table f ON ((f.ftrelid = c.oid)))
             CROSS JOIN LATERAL ( SELECT sum((((age('3'::xid))::bigint - age(k_1.xmin)) & '4294967295'::bigint)) AS column_rows
                   FROM pg_attribute k_1
                  WHERE ((k_1.attrelid = c.oid) AND (k_1.attnum > 0))) k)
          GROUP BY w.connection_name
        )
 SELECT t.connection_name,
    t.schema_oid,
    t.server_oid,
    t.schema_is_ours,
    t.server_is_ours,
    concat_ws('/'::text, t.fingerprint, v.views, v.rows) AS fingerprint
   FROM (spcd.table_fingerprint t
     LEFT JOIN v ON ((v.connection_name = t.connection_name)));
CREATE TABLE spcd.gateway_lane (
    server_name text NOT NULL COLLATE pg_catalog."C",
    server_oid oid NOT NULL
);
COMMENT ON TABLE spcd.gateway_lane IS 'servers that spcd made for the connections of a plugin to share';
COMMENT ON COLUMN spcd.gateway_lane.server_name IS 'the server';
COMMENT ON COLUMN spcd.gateway_lane.server_oid IS 'tells it from one that another role made';
CREATE TABLE spcd.gateway_reader (
    only_row boolean DEFAULT true NOT NULL,
    password text DEFAULT replace(((gen_random_uuid())::text || (gen_random_uuid())::text), '-'::text, ''::text) NOT NULL,
    hub text,
    CONSTRAINT gateway_reader_only_row_check CHECK (only_row)
);
COMMENT ON TABLE spcd.gateway_reader IS 'in a gateway: how the hub logs in';
COMMENT ON COLUMN spcd.gateway_reader.only_row IS 'always true';
COMMENT ON COLUMN spcd.gateway_reader.password IS 'the password of the role spcd_gateway_reader';
COMMENT ON COLUMN spcd.gateway_reader.hub IS 'system identifier and database of the hub whose daemon leads here';
CREATE SEQUENCE spcd.generation
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
COMMENT ON SEQUENCE spcd.generation IS 'numbers of passes';
CREATE TABLE spcd.left_out_table (
    connection_name text NOT NULL COLLATE pg_catalog."C",
    table_name text COLLATE pg_catalog."C",
    warning text NOT NULL
);
COMMENT ON TABLE spcd.left_out_table IS 'tables of sources that were not imported';
COMMENT ON COLUMN spcd.left_out_table.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.left_out_table.table_name IS 'the name that the table would have; NULL: this database''s encoding cannot hold it';
COMMENT ON COLUMN spcd.left_out_table.warning IS 'the warning in spcd.connection_state that says why';
CREATE TABLE spcd.migration (
    number integer NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
COMMENT ON TABLE spcd.migration IS 'the numbered migrations that were applied';
COMMENT ON COLUMN spcd.migration.number IS 'the number at the start of the file''s name';
COMMENT ON COLUMN spcd.migration.name IS 'the rest of the file''s name';
COMMENT ON COLUMN spcd.migration.sha256 IS 'SHA-256 of the text that was applied, in hexadecimal';
COMMENT ON COLUMN spcd.migration.applied_at IS 'when';
CREATE TABLE spcd.mirror (
    name text NOT NULL COLLATE pg_catalog."C",
    kind text,
    origins text[] DEFAULT '{}'::text[] NOT NULL,
    extensions text[] DEFAULT '{}'::text[] NOT NULL,
    connections jsonb DEFAULT '{}'::jsonb NOT NULL,
    error text,
    time_changed timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
COMMENT ON TABLE spcd.mirror IS 'one row per mirror: what its source said last';
COMMENT ON COLUMN spcd.mirror.name IS 'the label of the mirror block';
COMMENT ON COLUMN spcd.mirror.kind IS 'what the source is: steampipe or spcd; NULL: it never answered';
COMMENT ON COLUMN spcd.mirror.origins IS 'identities of the databases that its tables come from';
COMMENT ON COLUMN spcd.mirror.extensions IS 'extensions of the source whose types its tables may have';
COMMENT ON COLUMN spcd.mirror.connections IS 'the connections of the source, by name';
COMMENT ON COLUMN spcd.mirror.error IS 'why the source cannot be followed now';
COMMENT ON COLUMN spcd.mirror.time_changed IS 'when the row last changed';
CREATE TABLE spcd.refresh_request (
    id bigint NOT NULL,
    connections text[],
    requested_by text DEFAULT SESSION_USER NOT NULL,
    requested_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    done_at timestamp with time zone,
    error text,
    name_count integer GENERATED ALWAYS AS (COALESCE(cardinality(connections), 0)) STORED,
    action text DEFAULT 'refresh'::text NOT NULL,
    retries_refused boolean DEFAULT has_function_privilege(SESSION_USER, 'spcd.reconnect(pg_catalog.text[])'::text, 'EXECUTE'::text) NOT NULL,
    CONSTRAINT refresh_request_action_check CHECK ((action = ANY (ARRAY['refresh'::text, 'reconnect'::text, 'disconnect'::text, 'retry'::text])))
);
COMMENT ON TABLE spcd.refresh_request IS 'requests of clients: see spcd.refresh, spcd.reconnect, spcd.disconnect and spcd.retry';
COMMENT ON COLUMN spcd.refresh_request.id IS 'what the functions return';
COMMENT ON COLUMN spcd.refresh_request.connections IS 'the connections; NULL: all; empty: look at the files and the database, and ask no source';
COMMENT ON COLUMN spcd.refresh_request.requested_by IS 'the role';
COMMENT ON COLUMN spcd.refresh_request.requested_at IS 'when';
COMMENT ON COLUMN spcd.refresh_request.done_at IS 'when it was answered; NULL: it is open';
COMMENT ON COLUMN spcd.refresh_request.error IS 'why it failed; NULL: it did not';
COMMENT ON COLUMN spcd.refresh_request.name_count IS 'number of connections that it names, for the limits of a role';
COMMENT ON COLUMN spcd.refresh_request.action IS 'refresh: ask the sources for their tables; disconnect: leave them alone; reconnect: end that and try now; retry: ask again what ended its server process';
COMMENT ON COLUMN spcd.refresh_request.retries_refused IS 'it may send refused credentials again: each attempt counts at the source, which may lock the account';
ALTER TABLE spcd.refresh_request ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME spcd.refresh_request_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE spcd.repeatable_script (
    name text NOT NULL,
    revision integer NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
COMMENT ON TABLE spcd.repeatable_script IS 'scripts that are applied again when they change';
COMMENT ON COLUMN spcd.repeatable_script.name IS 'functions: the functions and views of this schema';
COMMENT ON COLUMN spcd.repeatable_script.revision IS 'grows with each release that changes the script: an older spcd does not replace a newer script';
COMMENT ON COLUMN spcd.repeatable_script.sha256 IS 'SHA-256 of the text that was applied, in hexadecimal';
COMMENT ON COLUMN spcd.repeatable_script.applied_at IS 'when';
CREATE TABLE spcd.role_search_path (
    role_name text NOT NULL COLLATE pg_catalog."C",
    path_hash text NOT NULL,
    setting_hash text NOT NULL,
    row_version text NOT NULL
);
COMMENT ON TABLE spcd.role_search_path IS 'roles whose search path in this database spcd set';
COMMENT ON COLUMN spcd.role_search_path.role_name IS 'the role';
COMMENT ON COLUMN spcd.role_search_path.path_hash IS 'hash of the path';
COMMENT ON COLUMN spcd.role_search_path.setting_hash IS 'hash of the setting as the catalog has it';
COMMENT ON COLUMN spcd.role_search_path.row_version IS 'tells cheaply that the catalog''s row did not change since';
CREATE VIEW spcd.role_path AS
 SELECT r.rolname AS role_name,
    (r.rolcanlogin AND (m.member IS NOT NULL)) AS member,
    ((EXISTS ( SELECT 1
           FROM pg_db_role_setting g
          WHERE ((g.setrole = r.oid) AND (g.setdatabase = (0)::oid) AND (spcd.search_path_of(g.setconfig) IS NOT NULL)))) OR
        CASE
            WHEN ((h.setrole IS NULL) OR ((h.xmin)::text = p.row_version)) THEN false
            ELSE COALESCE((md5(spcd.search_path_of(h.setconfig)) <> COALESCE(p.setting_hash, ''::text)), false)
        END) AS own,
    p.path_hash,
    ((p.role_name IS NOT NULL) AND (h.setrole IS NOT NULL) AND
        CASE
            WHEN ((h.xmin)::text = p.row_version) THEN true
            ELSE COALESCE((md5(spcd.search_path_of(h.setconfig)) = p.setting_hash), false)
        END) AS there,
    COALESCE(((h.xmin)::text <> p.row_version), false) AS touched
   FROM (((pg_roles r
     LEFT JOIN ( SELECT DISTINCT a.member
           FROM pg_auth_members a
          WHERE (a.roleid = (to_regrole('spcd_users'::text))::oid)) m ON ((m.member = r.oid)))
     LEFT JOIN spcd.role_search_path p ON ((p.role_name = r.rolname)))
     LEFT JOIN pg_db_role_setting h ON (((h.setrole = r.oid) AND (h.setdatabase = ( SELECT d.oid
           FROM pg_database d
          WHERE (d.datname = current_database()))))))
  WHERE ((p.role_name IS NOT NULL) OR (r.rolcanlogin AND (m.member IS NOT NULL)));
CREATE VIEW spcd.table_comment AS
 SELECT a.connection_name,
    (c.relname)::text AS table_name,
    COALESCE((k.attname)::text, ''::text) AS column_name,
    d.description,
    (EXISTS ( SELECT
           FROM spcd.applied_comment o
          WHERE ((o.connection_name = a.connection_name) AND (o.table_name = c.relname) AND (o.hash = md5(d.description))))) AS ours
   FROM (((((spcd.applied a
     JOIN pg_namespace n ON ((n.nspname = COALESCE(a.hidden_schema, a.connection_name))))
     CROSS JOIN LATERAL unnest(a.tables) t(name))
     JOIN pg_class c ON (((c.relname = t.name) AND (c.relnamespace = n.oid) AND (c.relkind = 'f'::"char") AND pg_has_role(c.relowner, 'USAGE'::text))))
     JOIN pg_description d ON (((d.classoid = ('pg_class'::regclass)::oid) AND (d.objoid = c.oid))))
     LEFT JOIN pg_attribute k ON (((k.attrelid = c.oid) AND (k.attnum = d.objsubid) AND (d.objsubid > 0))));
CREATE TABLE spcd.wrapper_crash (
    connection_name text NOT NULL COLLATE pg_catalog."C",
    target_hash text NOT NULL,
    times integer NOT NULL,
    reason text NOT NULL,
    crashed_at timestamp with time zone NOT NULL,
    next_attempt timestamp with time zone NOT NULL
);
COMMENT ON TABLE spcd.wrapper_crash IS 'connections whose last question ended its server process';
COMMENT ON COLUMN spcd.wrapper_crash.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.wrapper_crash.target_hash IS 'hash of its definition then: another one is tried at once';
COMMENT ON COLUMN spcd.wrapper_crash.times IS 'how often in a row';
COMMENT ON COLUMN spcd.wrapper_crash.reason IS 'what happened';
COMMENT ON COLUMN spcd.wrapper_crash.crashed_at IS 'when';
COMMENT ON COLUMN spcd.wrapper_crash.next_attempt IS 'when it is asked again';
CREATE TABLE spcd_lock.event_order (
    nothing boolean
)
PARTITION BY LIST (nothing);
CREATE TABLE spcd_lock.lead (
    nothing boolean
)
PARTITION BY LIST (nothing);
CREATE TABLE spcd_lock.migration (
    nothing boolean
)
PARTITION BY LIST (nothing);
INSERT INTO spcd.applied VALUES ('one', '219379c0e79a372c56bda8256e48af98', 16729, 16730, '{t}', NULL, '{}', NULL, NULL, NULL, '16729/16730/9151855783361207759/-5741350957452373700/1/1492/1/746', NULL, '{"server": {"async_capable": "true"}, "tables": {"t": "50000"}}');
INSERT INTO spcd.config_file VALUES ('/CONFIG_DIR/one.spc', '/CONFIG_DIR', false, NULL, '{}');
INSERT INTO spcd.connection_event OVERRIDING SYSTEM VALUE VALUES (1, '2026-11-28 15:49:12.118077+00', NULL, NULL, 'resync', NULL, 1, NULL, NULL);
INSERT INTO spcd.connection_event OVERRIDING SYSTEM VALUE VALUES (2, '2026-11-28 15:49:12.191194+00', 'one', NULL, 'pending', NULL, 2, NULL, NULL);
INSERT INTO spcd.connection_event OVERRIDING SYSTEM VALUE VALUES (3, '2026-11-28 15:49:12.369894+00', 'one', 'pending', 'ready', NULL, 3, '00:00:00.17847', NULL);
INSERT INTO spcd.connection_state VALUES ('one', 'ready', NULL, true, '2026-11-28 15:49:12.368532+00', '{}', 'postgres', 'postgres', 'plugin', '{}', 'enabled', 'dynamic', '027834e77deda0950b1221b99ad01277', 1, '2026-11-28 15:49:12.368531+00', '/CONFIG_DIR/one.spc', 1, 7, 3, '{}', '');
INSERT INTO spcd.daemon VALUES (1, 'spcd', NULL, '2026-11-28 15:49:12.116814+00', NULL, '0.1.0', '[{"pid": 26762, "backend_start": "2026-11-28T15:49:12.085327+00:00"}, {"pid": 26763, "backend_start": "2026-11-28T15:49:12.093145+00:00"}, {"pid": 26782, "backend_start": "2026-11-28T15:49:12.319621+00:00"}, {"pid": 26798, "backend_start": "2026-11-28T15:49:12.438724+00:00"}]', '16399/728/16416/16384', 'cf5cc980-dab3-4692-9436-38915b5022be');
INSERT INTO spcd.migration VALUES (1, 'state', '36c05ad08e3a7e350a7aa83c74fde8e27824436732e2348b41f022f000873892', '2026-11-28 15:49:12.012415+00');
INSERT INTO spcd.migration VALUES (2, 'source_types', 'a736664165bdf3668f295bc3fc473d41b6d65d1a65ed6661f88e0ad4192ac885', '2026-11-28 15:49:12.01669+00');
INSERT INTO spcd.migration VALUES (3, 'left_out_tables', '1763df18b81e66b6ba570d5307361820295936f5dd7b52021bbcefe345ef6096', '2026-11-28 15:49:12.03018+00');
INSERT INTO spcd.migration VALUES (4, 'gateway_lane', 'ce0116b552e06fdad3348aefee39c78b0ea157d91047acf05c756f44ea8717d2', '2026-11-28 15:49:12.040339+00');
INSERT INTO spcd.migration VALUES (5, 'gateway_reader', '8f0081874f0565d2a4edf720857fe51a08918434e8954a91fd67268fac67236b', '2026-11-28 15:49:12.046666+00');
INSERT INTO spcd.migration VALUES (6, 'plugin_blocks', 'd0c041c59c7c7243a4a32e6d79c6199f428d4f349cc74d7010eadd72989c313e', '2026-11-28 15:49:12.049762+00');
INSERT INTO spcd.migration VALUES (7, 'mirror', 'fc3777262d8578d4d25a78cfc1bad59283fac40c87a4b1ecc6f41fb193f68c12', '2026-11-28 15:49:12.061196+00');
INSERT INTO spcd.migration VALUES (8, 'tuning', 'ea6fc7a4bf26faf45dc8037d20ead4cde4bca1879ddb85a830a4fe44720fe551', '2026-11-28 15:49:12.063614+00');
INSERT INTO spcd.refresh_request OVERRIDING SYSTEM VALUE VALUES (1, '{one}', 'postgres', '2026-11-28 15:49:12.400038+00', '2026-11-28 15:49:12.478434+00', NULL, DEFAULT, 'refresh', true);
INSERT INTO spcd.repeatable_script VALUES ('functions', 30, '3490d5f2a0cddaa892c761a1d35dfcb18dcbc6e084041fd8fd78bb159f13b34a', '2026-11-28 15:49:12.083522+00');
SELECT pg_catalog.setval('spcd.connection_event_id_seq', 3, true);
SELECT pg_catalog.setval('spcd.generation', 4, true);
SELECT pg_catalog.setval('spcd.refresh_request_id_seq', 1, true);
ALTER TABLE ONLY spcd.aggregator_view
    ADD CONSTRAINT aggregator_view_pkey PRIMARY KEY (connection_name, hidden, name);
ALTER TABLE ONLY spcd.applied_comment
    ADD CONSTRAINT applied_comment_pkey PRIMARY KEY (connection_name, table_name, column_name);
ALTER TABLE ONLY spcd.applied
    ADD CONSTRAINT applied_pkey PRIMARY KEY (connection_name);
ALTER TABLE ONLY spcd.before_start
    ADD CONSTRAINT before_start_pkey PRIMARY KEY (connection_name);
ALTER TABLE ONLY spcd.config_file
    ADD CONSTRAINT config_file_pkey PRIMARY KEY (path);
ALTER TABLE ONLY spcd.connection_event
    ADD CONSTRAINT connection_event_pkey PRIMARY KEY (id);
ALTER TABLE ONLY spcd.connection_health
    ADD CONSTRAINT connection_health_pkey PRIMARY KEY (connection_name);
ALTER TABLE ONLY spcd.connection_state
    ADD CONSTRAINT connection_state_pkey PRIMARY KEY (connection_name);
ALTER TABLE ONLY spcd.daemon
    ADD CONSTRAINT daemon_pkey PRIMARY KEY (epoch);
ALTER TABLE ONLY spcd.gateway_lane
    ADD CONSTRAINT gateway_lane_pkey PRIMARY KEY (server_name);
ALTER TABLE ONLY spcd.gateway_reader
    ADD CONSTRAINT gateway_reader_pkey PRIMARY KEY (only_row);
ALTER TABLE ONLY spcd.migration
    ADD CONSTRAINT migration_pkey PRIMARY KEY (number);
ALTER TABLE ONLY spcd.mirror
    ADD CONSTRAINT mirror_pkey PRIMARY KEY (name);
ALTER TABLE ONLY spcd.refresh_request
    ADD CONSTRAINT refresh_request_pkey PRIMARY KEY (id);
ALTER TABLE ONLY spcd.repeatable_script
    ADD CONSTRAINT repeatable_script_pkey PRIMARY KEY (name);
ALTER TABLE ONLY spcd.role_search_path
    ADD CONSTRAINT role_search_path_pkey PRIMARY KEY (role_name);
ALTER TABLE ONLY spcd.wrapper_crash
    ADD CONSTRAINT wrapper_crash_pkey PRIMARY KEY (connection_name);
CREATE INDEX connection_event_connection ON spcd.connection_event USING btree (connection_name, id);
CREATE INDEX connection_event_time ON spcd.connection_event USING btree ("time");
CREATE UNIQUE INDEX daemon_is_one_row ON spcd.daemon USING btree ((true));
CREATE INDEX left_out_table_connection ON spcd.left_out_table USING btree (connection_name);
CREATE INDEX refresh_request_open ON spcd.refresh_request USING btree (id) WHERE (done_at IS NULL);
CREATE INDEX refresh_request_role ON spcd.refresh_request USING btree (requested_by, requested_at);
CREATE TRIGGER keep_order BEFORE INSERT ON spcd.connection_event FOR EACH STATEMENT EXECUTE FUNCTION spcd.keep_event_order();
ALTER TABLE ONLY spcd.applied_comment
    ADD CONSTRAINT applied_comment_connection_name_fkey FOREIGN KEY (connection_name) REFERENCES spcd.applied(connection_name) ON DELETE CASCADE;
ALTER TABLE ONLY spcd.connection_health
    ADD CONSTRAINT connection_health_connection_name_fkey FOREIGN KEY (connection_name) REFERENCES spcd.connection_state(connection_name) ON DELETE CASCADE;
ALTER TABLE ONLY spcd.left_out_table
    ADD CONSTRAINT left_out_table_connection_name_fkey FOREIGN KEY (connection_name) REFERENCES spcd.applied(connection_name) ON DELETE CASCADE;
