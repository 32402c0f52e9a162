-- The leader, its config files and the connections that it must not import again.
-- Revision 4.

-- Records imports that ended a server process: an array of {name, target_hash, reason}. Such a
-- connection is imported again after 1, 5 and 30 minutes, then hourly. If several imports were
-- running, any of them may be the cause: they are repeated one by one, 5 s apart.
CREATE OR REPLACE FUNCTION spcd.record_crashes(p_crashes jsonb) RETURNS void LANGUAGE sql AS $$
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

-- Fails in the transaction of a daemon that lost the lead.
CREATE OR REPLACE FUNCTION spcd.assert_lead(p_epoch bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM spcd.daemon WHERE epoch = p_epoch FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another daemon leads now' USING ERRCODE = 'SP010';
    END IF;
END $$;

-- Records removed, new and changed config files.
DROP FUNCTION IF EXISTS spcd.record_config(bigint, text[], text[], text[], boolean[], text[]);
CREATE OR REPLACE FUNCTION spcd.record_config(p_epoch bigint, p_gone text[], p_paths text[], p_roots text[],
                                   p_set_path boolean[], p_vanished_with text[], p_plugins jsonb[])
RETURNS void LANGUAGE plpgsql AS $$
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

-- Renames a config directory in the recorded files.
CREATE OR REPLACE FUNCTION spcd.rename_config(p_epoch bigint, p_from text, p_to text)
RETURNS void LANGUAGE plpgsql AS $$
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

-- Makes a daemon the leader, in the transaction in which every connection becomes pending. It waits
-- for the writes of the previous leader. The rows' previous contents are kept, so that publish can
-- restore them. Returns the epoch that the new leader's writes carry.
CREATE OR REPLACE FUNCTION spcd.take_lead(p_instance text, p_leader text, p_version text) RETURNS bigint
LANGUAGE plpgsql AS $$
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
