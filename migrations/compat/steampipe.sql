-- Objects that clients of Steampipe's database expect. Triggers update them in the same transactions as
-- spcd.connection_state. Created in one transaction if compat = "steampipe" is set. The script
-- steampipe_off.sql drops them.

-- State of the objects. One row.
CREATE TABLE spcd.steampipe (
    -- hash of this file
    version text NOT NULL,
    -- roles that spcd has created
    roles   text[] NOT NULL DEFAULT '{}',
    -- first connection of each plugin on the search path
    first   text[] NOT NULL DEFAULT '{}',
    -- whether a notification about changed schemas is pending
    owed    boolean NOT NULL DEFAULT false
);
INSERT INTO spcd.steampipe (version) VALUES ('');

-- Search paths that spcd has set on roles, for all databases. "said" is the setting in the catalog's
-- form.
CREATE TABLE spcd.steampipe_role (
    role_name text COLLATE "C" PRIMARY KEY,
    path_hash text NOT NULL,
    said      text NOT NULL
);

CREATE SCHEMA steampipe_internal;
COMMENT ON SCHEMA steampipe_internal IS 'created by spcd for clients of Steampipe; see spcd.connection_state';

CREATE TABLE steampipe_internal.steampipe_connection (
    name                text PRIMARY KEY,
    state               text NOT NULL,
    type                text,
    connections         text[],
    import_schema       text NOT NULL,
    error               text,
    plugin              text NOT NULL,
    plugin_instance     text,
    schema_mode         text NOT NULL,
    schema_hash         text NOT NULL,
    comments_set        boolean NOT NULL,
    connection_mod_time timestamptz NOT NULL,
    plugin_mod_time     timestamptz NOT NULL,
    file_name           text NOT NULL,
    start_line_number   integer NOT NULL,
    end_line_number     integer NOT NULL
);
CREATE TABLE steampipe_internal.steampipe_connection_state
    (LIKE steampipe_internal.steampipe_connection INCLUDING ALL);

CREATE TABLE steampipe_internal.steampipe_plugin (
    plugin_instance   text,
    plugin            text NOT NULL,
    version           text NOT NULL,
    memory_max_mb     integer,
    limiters          jsonb,
    file_name         text,
    start_line_number integer,
    end_line_number   integer
);
CREATE TABLE steampipe_internal.steampipe_plugin_limiter (
    name              text,
    plugin            text,
    plugin_instance   text,
    source_type       text,
    status            text,
    bucket_size       integer,
    fill_rate         real,
    max_concurrency   integer,
    scope             jsonb,
    "where"           text,
    file_name         text,
    start_line_number integer,
    end_line_number   integer
);
CREATE TABLE steampipe_internal.steampipe_plugin_column (
    plugin        text NOT NULL,
    table_name    text NOT NULL,
    name          text NOT NULL,
    type          text NOT NULL,
    description   text,
    list_config   jsonb,
    get_config    jsonb,
    hydrate_name  text,
    default_value jsonb
);
CREATE TABLE steampipe_internal.steampipe_server_settings (
    start_time        timestamptz NOT NULL,
    steampipe_version text NOT NULL,
    fdw_version       text NOT NULL,
    cache_max_ttl     integer NOT NULL,
    cache_max_size_mb integer NOT NULL,
    cache_enabled     boolean NOT NULL
);
-- Version of Steampipe that has these tables. There is no cache.
INSERT INTO steampipe_internal.steampipe_server_settings
SELECT coalesce((SELECT since FROM spcd.daemon), pg_catalog.clock_timestamp()),
       '1.0.0', '1.0.0', 0, 0, false;

CREATE TABLE steampipe_internal.steampipe_scan_metadata_summary (
    uncached_rows_fetched bigint NOT NULL,
    cached_rows_fetched   bigint NOT NULL,
    hydrate_calls         bigint NOT NULL,
    scan_count            bigint NOT NULL,
    connection_count      bigint NOT NULL
);
INSERT INTO steampipe_internal.steampipe_scan_metadata_summary VALUES (0, 0, 0, 0, 0);
CREATE TABLE steampipe_internal.steampipe_scan_metadata (
    connection    text,
    "table"       text,
    cache_hit     boolean,
    rows_fetched  bigint,
    hydrate_calls bigint,
    start_time    timestamptz,
    duration_ms   bigint,
    columns       jsonb,
    "limit"       bigint,
    quals         jsonb
);

-- Without a cache, these functions do nothing.
CREATE FUNCTION steampipe_internal.meta_cache(command text) RETURNS void
LANGUAGE sql AS 'SELECT';
CREATE FUNCTION steampipe_internal.meta_cache_ttl(duration integer) RETURNS void
LANGUAGE sql AS 'SELECT';
CREATE FUNCTION steampipe_internal.meta_connection_cache_clear(connection text) RETURNS void
LANGUAGE sql AS 'SELECT';
CREATE FUNCTION steampipe_internal.glob(input_glob text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pg_catalog.replace(pg_catalog.replace(input_glob, '*', '%'), '?', '_')
$$;

-- Returns the long form of a plugin's name.
CREATE FUNCTION spcd.steampipe_plugin_name(p_plugin text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_plugin = '' THEN ''
        ELSE CASE
                 -- from another registry, or local
                 WHEN p_plugin ~ '^([^/]*\.[^/]*|local)/' THEN p_plugin
                 WHEN pg_catalog.strpos(p_plugin, '/') > 0 THEN 'hub.steampipe.io/plugins/' || p_plugin
                 ELSE 'hub.steampipe.io/plugins/turbot/' || p_plugin END
            || CASE WHEN p_plugin ~ '@[^/]*$' OR p_plugin ~ '^local/' THEN '' ELSE '@latest' END END
$$;

-- Converts rows to Steampipe's form, except the state of connections in progress.
CREATE VIEW spcd.steampipe_row AS
SELECT s.connection_name AS name,
       s.status AS state,
       CASE s.type WHEN 'aggregator' THEN s.type END AS type,
       CASE s.type WHEN 'aggregator' THEN coalesce(a.members, s.connections) END AS connections,
       s.import_schema,
       s.error,
       spcd.steampipe_plugin_name(s.plugin) AS plugin,
       nullif(s.plugin_instance, '') AS plugin_instance,
       coalesce(s.schema_mode, '') AS schema_mode,
       coalesce(s.schema_hash, '') AS schema_hash,
       s.comments_set,
       s.time_changed AS connection_mod_time,
       -- spcd contains the definitions of plugins.
       (SELECT max(m.applied_at) FROM spcd.migration m) AS plugin_mod_time,
       coalesce(s.file_name, '') AS file_name,
       coalesce(s.start_line, 0) AS start_line_number,
       coalesce(s.end_line, 0) AS end_line_number
FROM spcd.connection_state s
LEFT JOIN spcd.applied a ON a.connection_name = s.connection_name;

-- Copies the rows of these connections. Pending connections of p_incomplete were not ready before.
CREATE FUNCTION spcd.steampipe_copy(p_names text[], p_incomplete text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM steampipe_internal.steampipe_connection WHERE name = ANY (p_names);
    INSERT INTO steampipe_internal.steampipe_connection
    SELECT name, CASE WHEN state = 'pending' AND name = ANY (p_incomplete) THEN 'incomplete' ELSE state END,
           type, connections, import_schema, error, plugin, plugin_instance, schema_mode, schema_hash,
           comments_set, connection_mod_time, plugin_mod_time, file_name, start_line_number, end_line_number
    FROM spcd.steampipe_row WHERE name = ANY (p_names);
    DELETE FROM steampipe_internal.steampipe_connection_state WHERE name = ANY (p_names);
    INSERT INTO steampipe_internal.steampipe_connection_state
    SELECT * FROM steampipe_internal.steampipe_connection WHERE name = ANY (p_names);

    INSERT INTO steampipe_internal.steampipe_plugin (plugin_instance, plugin, version)
    SELECT DISTINCT c.plugin_instance, c.plugin, '0.0.0'
    FROM steampipe_internal.steampipe_connection c
    WHERE c.name = ANY (p_names) AND c.plugin <> ''
      AND NOT EXISTS (SELECT FROM steampipe_internal.steampipe_plugin p
                      WHERE coalesce(p.plugin_instance, '') = coalesce(c.plugin_instance, '')
                        AND p.plugin = c.plugin);
    DELETE FROM steampipe_internal.steampipe_plugin p
    WHERE NOT EXISTS (SELECT FROM steampipe_internal.steampipe_connection c
                      WHERE coalesce(c.plugin_instance, '') = coalesce(p.plugin_instance, '')
                        AND c.plugin = p.plugin);
    -- The version of a plugin is that of its wrapper's extension.
    UPDATE steampipe_internal.steampipe_plugin p SET version = x.extversion
    FROM steampipe_internal.steampipe_connection c
    JOIN pg_catalog.pg_foreign_server s ON s.srvname = c.name
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_foreign_data_wrapper'::regclass
         AND d.objid = s.srvfdw AND d.deptype = 'e'
    JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
    WHERE c.name = ANY (p_names) AND c.plugin = p.plugin
      AND coalesce(c.plugin_instance, '') = coalesce(p.plugin_instance, '')
      AND p.version <> x.extversion;
END $$;

-- Notifies clients of errors and warnings, in several messages if necessary.
CREATE FUNCTION spcd.steampipe_notify(p_errors text[], p_warnings text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- A payload of NOTIFY has less than 8,000 bytes; a text takes at most about 1,000.
    PERFORM pg_catalog.pg_notify('steampipe_notification',
        '{"StructVersion":20230306,"Type":2,"Errors":' || coalesce(errors, 'null')
        || ',"Warnings":' || coalesce(warnings, 'null') || '}')
    FROM (
        SELECT pg_catalog.json_agg(text ORDER BY n) FILTER (WHERE error)::text AS errors,
               pg_catalog.json_agg(text ORDER BY n) FILTER (WHERE NOT error)::text AS warnings
        FROM (
            SELECT n, error, text, (sum(pg_catalog.octet_length(pg_catalog.to_json(text)::text) + 2)
                       OVER (ORDER BY n) - pg_catalog.octet_length(pg_catalog.to_json(text)::text) - 2)::bigint / 6000 AS part
            FROM (
                SELECT n, error, spcd.shortened(text) AS text
                FROM (SELECT text, true AS error, n FROM pg_catalog.unnest(p_errors) WITH ORDINALITY AS e (text, n)
                      UNION ALL
                      SELECT text, false, n + coalesce(pg_catalog.cardinality(p_errors), 0)
                      FROM pg_catalog.unnest(p_warnings) WITH ORDINALITY AS w (text, n)) all_of_them
            ) short
        ) cut GROUP BY part ORDER BY part
    ) message;
END $$;

-- Trigger: copies changes of spcd.connection_state.
CREATE FUNCTION spcd.steampipe_follow() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_names text[];
    v_incomplete text[] := '{}';
    v_changed boolean;
    v_owed boolean;
    v_errors text[];
    v_warnings text[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT pg_catalog.array_agg(n.connection_name), bool_or(n.status = 'ready'),
               pg_catalog.array_agg(pg_catalog.format('connection "%s": %s', n.connection_name, n.error)
                                    ORDER BY n.connection_name) FILTER (WHERE n.status = 'error')
        INTO v_names, v_changed, v_errors FROM new_rows n;
        SELECT pg_catalog.array_agg(pg_catalog.format('connection "%s": %s', n.connection_name, w.text)
                                    ORDER BY n.connection_name, w.n)
        INTO v_warnings
        FROM new_rows n CROSS JOIN LATERAL pg_catalog.unnest(n.warnings) WITH ORDINALITY AS w (text, n);
    ELSIF TG_OP = 'DELETE' THEN
        SELECT pg_catalog.array_agg(o.connection_name), true INTO v_names, v_changed FROM old_rows o;
    ELSE
        SELECT pg_catalog.array_agg(n.connection_name),
               coalesce(pg_catalog.array_agg(n.connection_name) FILTER (
                   WHERE o.status NOT IN ('ready', 'pending')
                      OR o.status = 'pending' AND c.state = 'incomplete'), '{}'),
               -- From pending to ready, the tables did not change unless the hash differs.
               bool_or(n.status = 'ready' AND (o.status NOT IN ('ready', 'pending')
                           OR n.schema_hash IS DISTINCT FROM o.schema_hash
                           OR n.table_count IS DISTINCT FROM o.table_count)
                       OR n.status = 'disabled' AND o.status <> 'disabled'),
               pg_catalog.array_agg(pg_catalog.format('connection "%s": %s', n.connection_name, n.error)
                                    ORDER BY n.connection_name)
                   FILTER (WHERE n.status = 'error' AND n.error IS DISTINCT FROM o.error)
        INTO v_names, v_incomplete, v_changed, v_errors
        FROM new_rows n
        JOIN old_rows o USING (connection_name)
        LEFT JOIN steampipe_internal.steampipe_connection c ON c.name = n.connection_name;
        SELECT pg_catalog.array_agg(pg_catalog.format('connection "%s": %s', n.connection_name, w.text)
                                    ORDER BY n.connection_name, w.n)
        INTO v_warnings
        FROM new_rows n
        JOIN old_rows o USING (connection_name)
        CROSS JOIN LATERAL pg_catalog.unnest(n.warnings) WITH ORDINALITY AS w (text, n)
        WHERE w.text <> ALL (o.warnings);
    END IF;
    IF v_names IS NULL THEN
        RETURN NULL;
    END IF;

    PERFORM spcd.steampipe_copy(v_names, v_incomplete);
    PERFORM spcd.steampipe_notify(v_errors, v_warnings);
    -- Serialized, since each of two concurrent commits could leave the notification to the other.
    SELECT owed INTO v_owed FROM spcd.steampipe FOR UPDATE;
    IF NOT (v_changed OR v_owed) THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM spcd.steampipe p CROSS JOIN LATERAL pg_catalog.unnest(p.first) AS f (name)
               JOIN spcd.connection_state s ON s.connection_name = f.name
               WHERE s.status IN ('pending', 'updating')) THEN
        UPDATE spcd.steampipe SET owed = true WHERE NOT owed;
    ELSE
        UPDATE spcd.steampipe SET owed = false WHERE owed;
        PERFORM pg_catalog.pg_notify('steampipe_notification', '{"StructVersion":20230306,"Type":1}');
    END IF;
    RETURN NULL;
EXCEPTION WHEN undefined_table OR undefined_column OR undefined_function OR invalid_schema_name THEN
    -- An object was dropped. The next pass creates it again. This must not fail the change of state.
    RETURN NULL;
END $$;

CREATE TRIGGER steampipe_insert AFTER INSERT ON spcd.connection_state
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION spcd.steampipe_follow();
CREATE TRIGGER steampipe_update AFTER UPDATE ON spcd.connection_state
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION spcd.steampipe_follow();
CREATE TRIGGER steampipe_delete AFTER DELETE ON spcd.connection_state
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION spcd.steampipe_follow();

-- Trigger: notifies clients of errors in the files that belong to no connection.
CREATE FUNCTION spcd.steampipe_follow_files() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_errors text[];
    v_warnings text[];
BEGIN
    SELECT pg_catalog.array_agg(d.text ORDER BY d.text) FILTER (WHERE d.severity = 'error'),
           pg_catalog.array_agg(d.text ORDER BY d.text) FILTER (WHERE d.severity = 'warning')
    INTO v_errors, v_warnings
    FROM (SELECT severity, pg_catalog.concat_ws(':', file_name, line, column_number) || ': ' || message AS text
          FROM new_rows WHERE connection_name IS NULL) d;
    PERFORM spcd.steampipe_notify(v_errors, v_warnings);
    RETURN NULL;
END $$;
CREATE TRIGGER steampipe_insert AFTER INSERT ON spcd.config_diagnostic
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION spcd.steampipe_follow_files();

-- Clients of Steampipe parse the server's messages, in English, and its times, in UTC.
CREATE FUNCTION spcd.steampipe_set_language() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT s.reset_val FROM pg_catalog.pg_settings s WHERE s.name = 'TimeZone') !~* '^(etc/)?(utc|gmt)$' THEN
        ALTER ROLE steampipe SET timezone = 'UTC';
    END IF;
    IF (SELECT s.reset_val FROM pg_catalog.pg_settings s WHERE s.name = 'lc_messages') !~* '^(c|posix|en)' THEN
        ALTER ROLE steampipe SET lc_messages = 'C';
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    -- Only a superuser may set lc_messages.
    RAISE WARNING 'compat steampipe: its clients need English messages: %', SQLERRM;
END $$;

-- Creates missing roles and grants. Members of steampipe_users can read the same tables as spcd_users.
CREATE FUNCTION spcd.steampipe_grant_access() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_role text;
BEGIN
    FOREACH v_role IN ARRAY ARRAY['spcd_users', 'steampipe_users', 'steampipe'] LOOP
        IF pg_catalog.to_regrole(v_role) IS NULL THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I %s', v_role,
                                      CASE v_role WHEN 'steampipe' THEN 'LOGIN' ELSE 'NOLOGIN' END);
            UPDATE spcd.steampipe SET roles = roles || v_role;
            IF v_role = 'steampipe' THEN
                PERFORM spcd.steampipe_set_language();
            END IF;
        END IF;
    END LOOP;
    IF NOT pg_catalog.pg_has_role('steampipe_users', 'spcd_users', 'member') THEN
        GRANT spcd_users TO steampipe_users;
    END IF;
    IF NOT pg_catalog.pg_has_role('steampipe', 'steampipe_users', 'member') THEN
        GRANT steampipe_users TO steampipe;
    END IF;
    -- Each role that can read the connections can use these clients.
    GRANT USAGE ON SCHEMA steampipe_internal TO spcd_users, steampipe_users;
    GRANT SELECT ON ALL TABLES IN SCHEMA steampipe_internal TO spcd_users, steampipe_users;
END $$;

-- Returns whether steampipe_grant_access has nothing to do.
CREATE FUNCTION spcd.steampipe_has_access() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT count(*) = 3
           AND bool_and(pg_catalog.pg_has_role(r.oid, pg_catalog.to_regrole('spcd_users')::oid, 'member'))
           AND bool_and(pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE'))
    FROM pg_catalog.pg_roles r
    JOIN pg_catalog.pg_namespace n ON n.nspname = 'steampipe_internal'
    WHERE r.rolname IN ('spcd_users', 'steampipe_users', 'steampipe')
$$;

-- Login roles that are direct members of steampipe_users: their search path, whether it is the first of
-- their settings, and whether the role has set it itself.
CREATE VIEW spcd.steampipe_path AS
SELECT r.rolname AS role_name,
       g.setconfig AS settings,
       spcd.search_path_of(g.setconfig) AS now,
       p.path_hash,
       spcd.search_path_of(g.setconfig) IS NOT NULL
           AND spcd.search_path_of(g.setconfig) IS DISTINCT FROM p.said AS own,
       coalesce(g.setconfig[1] = p.said, false) AS first
FROM pg_catalog.pg_roles r
JOIN pg_catalog.pg_auth_members a ON a.member = r.oid
     AND a.roleid = pg_catalog.to_regrole('steampipe_users')
LEFT JOIN pg_catalog.pg_db_role_setting g ON g.setrole = r.oid AND g.setdatabase = 0
LEFT JOIN spcd.steampipe_role p ON p.role_name = r.rolname
WHERE r.rolcanlogin;

-- Sets a search path (a list in the form of SET) for all databases on the roles that have another one
-- and have not set it themselves. It becomes their first setting, since a client reads the first element
-- of the first row. Returns the roles for which this failed.
CREATE FUNCTION spcd.steampipe_set_path(p_path text)
RETURNS TABLE (role_name text, state text, reason text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_role record;
    v_setting text;
BEGIN
    FOR v_role IN
        SELECT * FROM spcd.steampipe_path v
        WHERE NOT v.own AND NOT (v.first AND v.path_hash = pg_catalog.md5(p_path))
    LOOP
        BEGIN
            IF v_role.settings IS NOT NULL AND NOT v_role.first THEN
                EXECUTE pg_catalog.format('ALTER ROLE %I RESET ALL', v_role.role_name);
            END IF;
            EXECUTE pg_catalog.format('ALTER ROLE %I SET search_path = ', v_role.role_name) || p_path;
            IF v_role.settings IS NOT NULL AND NOT v_role.first THEN
                FOREACH v_setting IN ARRAY v_role.settings LOOP
                    CONTINUE WHEN pg_catalog.starts_with(v_setting, 'search_path=');
                    EXECUTE pg_catalog.format('ALTER ROLE %I SET %I = ', v_role.role_name,
                                              pg_catalog.split_part(v_setting, '=', 1))
                        -- The catalog has lists of names in quoted form, other settings as literals.
                        || CASE WHEN pg_catalog.split_part(v_setting, '=', 1) IN
                                     ('temp_tablespaces', 'session_preload_libraries', 'local_preload_libraries')
                                THEN pg_catalog.substr(v_setting, pg_catalog.strpos(v_setting, '=') + 1)
                                ELSE pg_catalog.quote_literal(
                                    pg_catalog.substr(v_setting, pg_catalog.strpos(v_setting, '=') + 1)) END;
                END LOOP;
            END IF;
            INSERT INTO spcd.steampipe_role (role_name, path_hash, said)
            SELECT r.rolname, pg_catalog.md5(p_path), spcd.search_path_of(g.setconfig)
            FROM pg_catalog.pg_roles r
            JOIN pg_catalog.pg_db_role_setting g ON g.setrole = r.oid AND g.setdatabase = 0
            WHERE r.rolname = v_role.role_name
            ON CONFLICT (role_name) DO UPDATE SET path_hash = excluded.path_hash, said = excluded.said;
        EXCEPTION WHEN OTHERS THEN
            role_name := v_role.role_name;
            state := SQLSTATE;
            reason := SQLERRM;
            RETURN NEXT;
        END;
    END LOOP;
END $$;

-- State for a pass: whether all objects exist, whether access is granted, whether all search paths are
-- set (a NULL argument: spcd does not manage them), and the first connections.
CREATE FUNCTION spcd.steampipe_state(
    p_path text, OUT is_complete boolean, OUT has_access boolean, OUT paths_set boolean, OUT first text[])
LANGUAGE plpgsql AS $$
BEGIN
    is_complete := (SELECT count(*) FROM pg_catalog.pg_class c
              JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname = 'steampipe_internal' AND c.relkind = 'r'
                AND c.relname IN ('steampipe_connection', 'steampipe_connection_state', 'steampipe_plugin',
                                  'steampipe_plugin_limiter', 'steampipe_plugin_column',
                                  'steampipe_server_settings', 'steampipe_scan_metadata_summary',
                                  'steampipe_scan_metadata')) = 8;
    has_access := is_complete AND spcd.steampipe_has_access();
    paths_set := p_path IS NULL OR NOT EXISTS
        (SELECT FROM spcd.steampipe_path v
         WHERE NOT v.own AND NOT (v.first AND v.path_hash = pg_catalog.md5(p_path)));
    first := (SELECT p.first FROM spcd.steampipe p);
END $$;

-- Copies the existing rows. A pending connection that was not ready at the daemon's start is incomplete.
SELECT spcd.steampipe_copy(
    (SELECT pg_catalog.array_agg(connection_name) FROM spcd.connection_state),
    ARRAY(SELECT s.connection_name FROM spcd.connection_state s
          JOIN spcd.before_start b ON b.connection_name = s.connection_name AND b.status <> 'ready'
          WHERE s.status = 'pending'));

REVOKE ALL ON FUNCTION
    spcd.steampipe_plugin_name(text), spcd.steampipe_copy(text[], text[]),
    spcd.steampipe_notify(text[], text[]), spcd.steampipe_follow(), spcd.steampipe_follow_files(),
    spcd.steampipe_set_language(), spcd.steampipe_grant_access(), spcd.steampipe_has_access(), spcd.steampipe_set_path(text),
    spcd.steampipe_state(text) FROM PUBLIC;
