-- Results of probes.
-- Revision 4.

DROP FUNCTION IF EXISTS spcd.hold(text[], boolean);

-- Pauses connections, or resumes them. The health of their sources is unknown from then on.
CREATE OR REPLACE FUNCTION spcd.set_paused(p_names text[], p_paused boolean) RETURNS void LANGUAGE sql AS $$
    INSERT INTO spcd.connection_health (connection_name, held)
    SELECT s.connection_name, true
    FROM spcd.connection_state s
    WHERE s.connection_name = ANY (p_names) AND p_paused
    ON CONFLICT (connection_name) DO UPDATE SET
        held = true, reachable = NULL, attempts = 0, next_attempt = NULL, breaker = 'closed';
    UPDATE spcd.connection_health SET held = false
    WHERE connection_name = ANY (p_names) AND NOT p_paused AND held
$$;

-- Records the results of probes, and writes an event for each source that was lost or restored.
-- p_rows: an array of
--   name, reachable, attempts, breaker
--   forget     true: the recorded results are of another target
--   checked    time of the probe, as seconds before now; absent: it did not run
--   latency    time until the answer, in milliseconds
--   failure    reason why there was no answer
--   next       time of the next probe, in seconds from now; absent: unknown
--   health     list of 'lost' and 'restored', in the order in which they happened; may be absent
-- Removed and paused connections are skipped.
CREATE OR REPLACE FUNCTION spcd.publish_health(p_epoch bigint, p_rows jsonb) RETURNS void
LANGUAGE plpgsql AS $$
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
