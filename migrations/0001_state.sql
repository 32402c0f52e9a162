-- What spcd knows, and what it tells. Applied once, in one transaction, under a lock.

CREATE SCHEMA spcd;
COMMENT ON SCHEMA spcd IS 'the state of spcd: see spcd.connection_state';

CREATE TABLE spcd.migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

-- The truth that clients read.
CREATE TABLE spcd.connection_state (
    connection_name text COLLATE "C" PRIMARY KEY,
    status          text NOT NULL
        CHECK (status IN ('pending', 'updating', 'deleting', 'ready', 'error', 'disabled')),
    error           text,
    comments_set    boolean NOT NULL DEFAULT false,
    time_changed    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    warnings        text[] NOT NULL DEFAULT '{}',
    plugin          text NOT NULL,
    plugin_instance text NOT NULL,
    type            text NOT NULL,
    connections     text[] NOT NULL DEFAULT '{}',
    import_schema   text NOT NULL,
    schema_mode     text,
    schema_hash     text,
    table_count     integer,
    last_ready      timestamptz,
    file_name       text,
    start_line      integer,
    end_line        integer,
    generation      bigint NOT NULL,
    CHECK ((status = 'error') = (error IS NOT NULL))
);
COMMENT ON TABLE spcd.connection_state IS 'one row a connection: where it stands';

-- What a row said before the service started or was taken over: publish gives it back where the row
-- comes to say the same again. Empty once each connection has been looked at.
CREATE TABLE spcd.before_start (
    connection_name text COLLATE "C" PRIMARY KEY,
    status          text NOT NULL,
    error           text,
    time_changed    timestamptz NOT NULL,
    last_ready      timestamptz,
    generation      bigint NOT NULL
);

-- Every change of a status or an error, in order of id. A row whose status is 'resync' names no
-- connection: the service started or was taken over, and all rows but the disabled ones became
-- pending.
CREATE TABLE spcd.connection_event (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time            timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    connection_name text COLLATE "C",
    previous        text,
    status          text NOT NULL,
    error           text,
    generation      bigint NOT NULL,
    duration        interval,
    CHECK ((connection_name IS NULL) = (status = 'resync'))
);
CREATE INDEX connection_event_time ON spcd.connection_event (time);
CREATE INDEX connection_event_connection ON spcd.connection_event (connection_name, id);
COMMENT ON TABLE spcd.connection_event IS 'every change: "duration" is how long the previous status lasted';

-- Events are committed in the order of their ids, since one transaction at a time writes some: a
-- client that has read all events up to one has read all there will ever be up to it. A batch takes
-- seconds at most, so a longer wait is for a session that is none of spcd's.
CREATE FUNCTION spcd.keep_event_order() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = '10s' AS $$
BEGIN
    LOCK TABLE spcd_lock.event_order IN EXCLUSIVE MODE;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_order BEFORE INSERT ON spcd.connection_event
FOR EACH STATEMENT EXECUTE FUNCTION spcd.keep_event_order();

-- What is wrong in the files now.
CREATE TABLE spcd.config_diagnostic (
    severity        text NOT NULL CHECK (severity IN ('error', 'warning')),
    file_name       text NOT NULL,
    line            integer NOT NULL,
    column_number   integer NOT NULL,
    message         text NOT NULL,
    hint            text,
    connection_name text
);

-- The files that the applied state came from. What vanished with its directory (missing, unreadable,
-- no directory, or empty where it held files) is not taken for removed until it is back or
-- `spcd apply --allow-empty` deletes its row here.
CREATE TABLE spcd.config_file (
    path          text COLLATE "C" PRIMARY KEY,
    -- the config directory, as configured
    root          text NOT NULL,
    -- it holds `options "database"`
    sets_path     boolean NOT NULL,
    -- the directory it vanished with; NULL while it is there
    vanished_with text
);

-- What spcd made. By name, so that it survives dump and restore; the OIDs tell an object that was
-- dropped and made again by somebody else, and are taken anew when the database is a restored one
-- (spcd.daemon.identity).
CREATE TABLE spcd.applied (
    connection_name text COLLATE "C" PRIMARY KEY,
    target_hash     text NOT NULL,
    schema_oid      oid NOT NULL,
    server_oid      oid,
    tables          text[] NOT NULL DEFAULT '{}',
    -- an aggregator's: the connections that its views show; NULL for all others
    members         text[],
    -- what the import left out or refused
    warnings        text[] NOT NULL DEFAULT '{}',
    -- which version was asked, where all connections of a plugin share the answer
    extension_version text,
    -- of files: the types of columns that values decided, by table and column
    types           jsonb,
    -- where its tables are while only aggregators show them; NULL: in the schema of its name
    hidden_schema   text COLLATE "C",
    fingerprint     text NOT NULL
);

-- The views that spcd made for aggregators: "definition" is a hash of the statement, "says" one of
-- what the server made of it. The hidden ones are parts of the others, in the schema spcd_union.
CREATE TABLE spcd.aggregator_view (
    connection_name text COLLATE "C" NOT NULL,
    hidden          boolean NOT NULL,
    name            text COLLATE "C" NOT NULL,
    table_name      text COLLATE "C" NOT NULL,
    definition      text NOT NULL,
    says            text NOT NULL,
    PRIMARY KEY (connection_name, hidden, name)
);

-- The daemon that leads. One row. Writers hold a key share of it, so that a new leader, who changes
-- the key, waits for what is under way and stops what comes later; the heartbeat changes no key and
-- waits for nobody.
CREATE TABLE spcd.daemon (
    epoch     bigint PRIMARY KEY,
    instance  text NOT NULL,
    leader    text,
    since     timestamptz,
    heartbeat timestamptz,
    version   text,
    -- {pid, backend_start} of each of the leader's sessions
    backends  jsonb NOT NULL DEFAULT '[]',
    identity  text
);
CREATE UNIQUE INDEX daemon_is_one_row ON spcd.daemon ((true));

CREATE SEQUENCE spcd.generation;

-- Questions that ended a server process: the connection is not asked again before a time, also by a
-- daemon that starts meanwhile.
CREATE TABLE spcd.wrapper_crash (
    connection_name text COLLATE "C" PRIMARY KEY,
    target_hash     text NOT NULL,
    -- how often in a row
    times           integer NOT NULL,
    reason          text NOT NULL,
    crashed_at      timestamptz NOT NULL,
    next_attempt    timestamptz NOT NULL
);

-- Records that questions ended a server process: an array of {name, target_hash, reason}. One is
-- asked again after 1, 5 and 30 minutes, then hourly. Of several that were under way one did it: they
-- are asked again one by one, 5 s apart.
CREATE FUNCTION spcd.record_crashes(p_crashes jsonb) RETURNS void LANGUAGE sql AS $$
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

CREATE TABLE spcd.refresh_request (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL: all; empty: look at the files and the database, ask no source
    connections  text[],
    requested_by text NOT NULL DEFAULT SESSION_USER,
    requested_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    done_at      timestamptz,
    error        text,
    name_count   integer GENERATED ALWAYS AS (coalesce(pg_catalog.cardinality(connections), 0)) STORED
);
CREATE INDEX refresh_request_open ON spcd.refresh_request (id) WHERE done_at IS NULL;
CREATE INDEX refresh_request_role ON spcd.refresh_request (requested_by, requested_at);

-- Refuses the transaction of a daemon that lost the lead.
CREATE FUNCTION spcd.assert_lead(p_epoch bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM spcd.daemon WHERE epoch = p_epoch FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another daemon leads now' USING ERRCODE = 'SP010';
    END IF;
END $$;

-- Records files that are gone, new or otherwise than before.
CREATE FUNCTION spcd.record_config(p_epoch bigint, p_gone text[], p_paths text[], p_roots text[],
                                   p_set_path boolean[], p_vanished_with text[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM spcd.assert_lead(p_epoch);
    DELETE FROM spcd.config_file WHERE path = ANY (p_gone);
    INSERT INTO spcd.config_file AS f (path, root, sets_path, vanished_with)
    SELECT * FROM ROWS FROM (pg_catalog.unnest(p_paths), pg_catalog.unnest(p_roots),
                             pg_catalog.unnest(p_set_path), pg_catalog.unnest(p_vanished_with))
                  AS n (path, root, sets_path, vanished_with)
    ON CONFLICT (path) DO UPDATE
        SET root = excluded.root, sets_path = excluded.sets_path,
            vanished_with = excluded.vanished_with;
END $$;

-- A config directory goes by another name: what is recorded follows.
CREATE FUNCTION spcd.rename_config(p_epoch bigint, p_from text, p_to text)
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

-- One line a connection that spcd made: whether its schema and server are still the ones it made,
-- and a text that changes when anything of them does. A sum of row versions can only grow as rows
-- change, so with the counts beside it two different catalogs do not give the same text.
-- This is all of it but aggregators' views.
CREATE VIEW spcd.table_fingerprint AS
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
CREATE VIEW spcd.fingerprint AS
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
CREATE FUNCTION spcd.touch(p_names text[]) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_name text;
BEGIN
    IF pg_catalog.cardinality(p_names) > 1000 THEN
        PERFORM spcd.touch_many(p_names);
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
CREATE FUNCTION spcd.touch_many(p_names text[]) RETURNS void LANGUAGE sql
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
CREATE FUNCTION spcd.record(p_made jsonb) RETURNS void LANGUAGE plpgsql
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
    PERFORM spcd.touch(pg_catalog.array_agg(r->>'name'))
    FROM pg_catalog.jsonb_array_elements(p_made) r
    WHERE r->>'columns' IS NULL AND (r->>'look_again')::boolean IS NOT TRUE
    HAVING count(*) > 0;
END $$;

-- Whether a row says already what it is to say.
CREATE FUNCTION spcd.is_said(p_status text, p_error text, p_said text, p_said_error text)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_status = p_said AND (p_status <> 'error' OR p_error IS NOT DISTINCT FROM p_said_error)
$$;

-- Whether a change brings a row that a start made pending to what it said before the start.
CREATE FUNCTION spcd.is_as_before(
    p_change jsonb, p_status text, p_schema_hash text, p_before text, p_before_error text)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_status = 'pending' AND (p_change->>'remove')::boolean IS NOT TRUE
       AND p_change->'route' = pg_catalog.jsonb_build_array(p_before)
       AND spcd.is_said(p_before, p_change->>'error', p_before, p_before_error)
       AND coalesce(p_change->>'schema_hash', p_schema_hash) IS NOT DISTINCT FROM p_schema_hash
$$;

-- Puts changes into the table, the events and onto the channel, all in the caller's transaction.
-- p_changes: an array of objects
--   name    the connection
--   route   the statuses it passes through, the last one stays; empty: only the row's other columns
--   remove  true: the row goes
--   and any of error, warnings, plugin, plugin_instance, type, connections, import_schema,
--   schema_mode, schema_hash, table_count, file_name, start_line, end_line, labels: absent keeps
--   what is there
-- A row that a start made pending and that comes to say what it said before is no change: it gets
-- back when that was, and leaves no event. One resync message tells of all of them.
-- p_quiet: write the events but announce nothing (the caller announces a resync).
-- It goes from index to index: a planner that does not know how few changes there are would read all
-- connections for each. What has no index then seems so expensive that it would be compiled.
CREATE FUNCTION spcd.publish(p_generation bigint, p_changes jsonb, p_quiet boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    v_given_back boolean;
BEGIN
    -- The caller's sessions run one at a time for one connection, so reading before writing is safe.
    SELECT EXISTS (
        SELECT FROM pg_catalog.jsonb_array_elements(p_changes) AS c (change)
        JOIN spcd.before_start b ON b.connection_name = c.change->>'name'
        JOIN spcd.connection_state s ON s.connection_name = b.connection_name
        WHERE spcd.is_as_before(c.change, s.status, s.schema_hash, b.status, b.error)
    ) INTO v_given_back;
    PERFORM spcd.no_events();
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
      -- What a row says already is no change.
      AND NOT (r.step = 1 AND s.status IS NOT NULL
               AND spcd.is_said(r.status, c.change->>'error', s.status, s.error));

    DELETE FROM spcd.connection_state s
    USING pg_catalog.jsonb_array_elements(p_changes) AS c (change)
    WHERE (c.change->>'remove')::boolean AND s.connection_name = c.change->>'name';

    INSERT INTO spcd.connection_state (
        connection_name, status, error, comments_set, warnings, plugin, plugin_instance, type, connections,
        import_schema, schema_mode, schema_hash, table_count, last_ready,
        file_name, start_line, end_line, labels, time_changed, generation)
    SELECT c.name,
           coalesce(c.route->>-1, o.status),
           CASE coalesce(c.route->>-1, o.status)
               WHEN 'error' THEN coalesce(c.error, o.error, 'unknown') END,
           -- Tables that were written anew, or are gone, bear none until that is looked at.
           c.schema_hash IS NULL AND c.route->>-1 IS DISTINCT FROM 'disabled'
               AND coalesce(o.comments_set, false),
           coalesce(c.warnings, o.warnings, '{}'),
           coalesce(c.plugin, o.plugin, ''),
           coalesce(c.plugin_instance, o.plugin_instance, ''),
           coalesce(c.type, o.type, 'plugin'),
           coalesce(c.connections, o.connections, '{}'),
           coalesce(c.import_schema, o.import_schema, 'enabled'),
           coalesce(c.schema_mode, o.schema_mode),
           coalesce(c.schema_hash, o.schema_hash),
           coalesce(c.table_count, o.table_count),
           CASE WHEN b.connection_name IS NOT NULL THEN b.last_ready
                WHEN c.route->>-1 = 'ready' THEN pg_catalog.clock_timestamp()
                ELSE o.last_ready END,
           coalesce(c.file_name, o.file_name),
           coalesce(c.start_line, o.start_line),
           coalesce(c.end_line, o.end_line),
           coalesce(c.labels, o.labels, '{}'),
           CASE WHEN b.connection_name IS NOT NULL THEN b.time_changed
                WHEN o.time_changed IS NOT NULL AND (c.route->0 IS NULL
                     OR (c.route->1 IS NULL
                         AND spcd.is_said(c.route->>0, c.error, o.status, o.error)))
                THEN o.time_changed ELSE pg_catalog.clock_timestamp() END,
           coalesce(b.generation, p_generation)
    FROM pg_catalog.jsonb_to_recordset(p_changes) AS c (
        name text, route jsonb, remove boolean, error text, warnings text[], plugin text,
        plugin_instance text, type text, connections text[], import_schema text, schema_mode text,
        schema_hash text, table_count integer, file_name text, start_line integer, end_line integer,
        labels jsonb)
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

-- Where the events of a transaction are collected for spcd.announce.
CREATE FUNCTION spcd.no_events() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    CREATE TEMP TABLE IF NOT EXISTS spcd_event (
        n bigint, step integer, connection_name text, previous text, status text, error text,
        duration interval, health text
    ) ON COMMIT DELETE ROWS;
    DELETE FROM pg_temp.spcd_event;
END $$;

-- Writes the events that were collected, and packs them into messages.
CREATE FUNCTION spcd.announce(p_generation bigint, p_quiet boolean) RETURNS void
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
        -- As few as possible, since each goes to every listener. NOTIFY allows less than 8,000 bytes;
        -- the frame takes at most 70, and a change about 1,500. A message whose last change begins
        -- below the rest less the longest change ends below the rest.
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

-- As much of a text as takes at most 1,000 bytes inside JSON.
CREATE FUNCTION spcd.shortened(p_text text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN pg_catalog.octet_length(pg_catalog.to_json(p_text)::text) <= 1000 THEN p_text
        WHEN pg_catalog.octet_length(pg_catalog.to_json(pg_catalog.left(p_text, 800))::text) <= 996
        THEN pg_catalog.left(p_text, 800) || '...'
        ELSE pg_catalog.left(p_text, 160) || '...' END
$$;

-- Fails with what the server said of a mapping, unless that repeats one of the values that the
-- session put into pg_temp.spcd_secret.
CREATE FUNCTION spcd.refuse_user_mapping(p_state text, p_reason text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_temp.spcd_secret
               WHERE value <> '' AND pg_catalog.strpos(p_reason, value) > 0) THEN
        p_reason := 'the server refuses its options';
    END IF;
    RAISE EXCEPTION 'user mapping: %', p_reason USING ERRCODE = p_state;
END $$;

-- Keeps the statement that a function executes from the server's log, where a CONTEXT line carries it:
-- a wait for a lock ends before log_lock_waits tells of it, and a role that may do so switches messages
-- off. Returns what spcd.unhush takes back; after an error the rollback does.
CREATE FUNCTION spcd.hush() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    v_before text[] := ARRAY[pg_catalog.current_setting('lock_timeout'),
                             pg_catalog.current_setting('log_min_messages'),
                             pg_catalog.current_setting('log_error_verbosity')];
    v_limit integer;
BEGIN
    -- lock_timeout = 0: none
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

CREATE FUNCTION spcd.unhush(p_before text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_names text[] := '{lock_timeout,log_min_messages,log_error_verbosity}';
BEGIN
    FOR i IN 1..3 LOOP
        IF pg_catalog.current_setting(v_names[i]) <> p_before[i] THEN
            PERFORM pg_catalog.set_config(v_names[i], p_before[i], true);
        END IF;
    END LOOP;
END $$;

-- Creates or alters the mapping for PUBLIC of a server, from the rows that the session put into
-- pg_temp.spcd_secret by COPY: so that no secret is in the text of any statement.
CREATE FUNCTION spcd.set_user_mapping(p_server text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_old text[];
    v_options text;
    v_state text;
    v_reason text;
    v_before text[];
BEGIN
    v_before := spcd.hush();
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
    PERFORM spcd.unhush(v_before);
-- A cancelled statement is none of OTHERS, and would be logged with its context.
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_reason = MESSAGE_TEXT;
    PERFORM spcd.refuse_user_mapping(v_state, v_reason);
END $$;

-- The same for servers that were just made, all at once.
CREATE FUNCTION spcd.create_user_mappings(p_servers text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_server text;
    v_options text;
    v_state text;
    v_reason text;
    v_before text[];
BEGIN
    v_before := spcd.hush();
    FOR v_server, v_options IN
        -- A server without options has a mapping too, and a NULL is no name.
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
    PERFORM spcd.unhush(v_before);
-- A cancelled statement is none of OTHERS, and would be logged with its context.
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_reason = MESSAGE_TEXT;
    PERFORM spcd.refuse_user_mapping(v_state, v_reason);
END $$;

-- Makes a daemon the leader, in the transaction in which every connection becomes pending: waits for
-- the writes of the leader before. What the rows said is kept for publish to give back. Returns the
-- epoch that the new leader's own writes carry.
CREATE FUNCTION spcd.take_lead(p_instance text, p_leader text, p_version text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_epoch bigint;
    v_identity text;
    v_known text;
    v_generation bigint := pg_catalog.nextval('spcd.generation');
BEGIN
    -- What tells this database from one restored from its dump.
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
            SELECT s.oid FROM pg_catalog.pg_foreign_server s WHERE s.srvname = a.connection_name)
        FROM pg_catalog.pg_namespace n
        WHERE n.nspname = coalesce(a.hidden_schema, a.connection_name) AND a.members IS NULL;
        UPDATE spcd.applied a SET schema_oid = n.oid
        FROM pg_catalog.pg_namespace n
        WHERE n.nspname = coalesce(a.hidden_schema, a.connection_name) AND a.members IS NOT NULL;
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

-- The names of which a request is made, each once. Anybody who can use the schema may ask, and what
-- is asked for is kept: neither more names nor longer ones than connections could have.
CREATE FUNCTION spcd.asked_names(p_connections text[]) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE AS $$
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

-- Refuses a request of a role that made too many: p_most in the last minute, or more that are open
-- than the daemon is to hold for one role. The owner of the schema, its members and superusers are
-- not limited. Every name and operator is qualified, since it runs with the owner's rights under the
-- caller's search path.
CREATE FUNCTION spcd.limit_requests(p_names text[], p_most integer) RETURNS void
LANGUAGE plpgsql AS $$
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

-- A durable request to look again and ask the sources; returns its id.
-- NULL asks all; an empty array only looks at the files and the database.
CREATE FUNCTION spcd.refresh(connections text[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
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

-- The schemas on a search path that is given as SHOW search_path prints it. "$user" stays as it is.
CREATE FUNCTION spcd.path_names(p_path text) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    -- A path may have ten thousand names: where all are plain ones they are cut in a fraction of the time.
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

-- Waits until connections are settled, and returns their rows.
-- SP001: a named one is in error; SP002: time is up; SP003: a named one is unknown or disabled;
-- 25001: waiting could not end inside this transaction.
--
-- It runs as its caller, on a standby too. Names and operators are qualified, since a SET clause
-- would cost every later look-up of a session with a long search path.
CREATE FUNCTION spcd.wait_until_ready(
    connections text[] DEFAULT NULL, timeout interval DEFAULT '1 minute')
RETURNS SETOF spcd.connection_state LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    v_names pg_catalog.text[] := connections;
    v_moving CONSTANT pg_catalog.text[] := ARRAY['pending', 'updating', 'deleting'];
    -- NULL: for ever
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
            -- OFFSET 0: those on their way first, since they are few and the names may be many.
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
            -- What this transaction holds does not change while it waits here.
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
            -- What became ready just now counts.
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

-- Lets spcd_users read the state, and not what is only the daemon's.
CREATE FUNCTION spcd.admit_readers() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    GRANT USAGE ON SCHEMA spcd TO spcd_users;
    GRANT SELECT ON spcd.connection_state, spcd.connection_event, spcd.config_diagnostic,
                    spcd.daemon, spcd.refresh_request, spcd.migration TO spcd_users;
    -- What later migrations made.
    GRANT SELECT ON spcd.connection_health TO spcd_users;
END $$;

-- Only what clients may do is for everyone who can use the schema.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA spcd FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    spcd.refresh(text[]), spcd.wait_until_ready(text[], interval), spcd.path_names(text) TO PUBLIC;
