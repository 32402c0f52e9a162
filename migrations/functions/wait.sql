-- spcd.wait_until_ready.
-- Revision 1.

-- Returns the schemas of a search path as SHOW search_path prints it. "$user" stays as it is.
CREATE OR REPLACE FUNCTION spcd.path_names(p_path text) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
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

-- Waits until connections are settled, and returns their rows. SP001: a named connection is in
-- error; SP002: time-out; SP003: a named connection is unknown or disabled; 25001: waiting could
-- not end inside this transaction.
--
-- It runs with the caller's rights, on a standby too. Names and operators are qualified, because a
-- SET clause would slow down every later look-up in a session with a long search path.
CREATE OR REPLACE FUNCTION spcd.wait_until_ready(
    connections text[] DEFAULT NULL, timeout interval DEFAULT '1 minute')
RETURNS SETOF spcd.connection_state LANGUAGE plpgsql AS $$
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
END $$;
