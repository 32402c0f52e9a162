-- What spcd knows, and what clients read.
--
-- A numbered file is applied once, in one transaction, under a lock, and never changes once it is
-- released: spcd.migration has its SHA-256. Functions and views are in functions/, which is applied
-- again whenever it changes. ASCII only: the server may have any encoding.

CREATE SCHEMA spcd;
COMMENT ON SCHEMA spcd IS 'the state of spcd: see spcd.connection_state';

CREATE TABLE spcd.migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE spcd.migration IS 'the numbered migrations that were applied';
COMMENT ON COLUMN spcd.migration.number IS 'the number at the start of the file''s name';
COMMENT ON COLUMN spcd.migration.name IS 'the rest of the file''s name';
COMMENT ON COLUMN spcd.migration.sha256 IS 'SHA-256 of the text that was applied, in hexadecimal';
COMMENT ON COLUMN spcd.migration.applied_at IS 'when';

CREATE TABLE spcd.repeatable_script (
    name       text PRIMARY KEY,
    revision   integer NOT NULL,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE spcd.repeatable_script IS 'scripts that are applied again when they change';
COMMENT ON COLUMN spcd.repeatable_script.name IS 'functions: the functions and views of this schema';
COMMENT ON COLUMN spcd.repeatable_script.revision IS
    'grows with each release that changes the script: an older spcd does not replace a newer script';
COMMENT ON COLUMN spcd.repeatable_script.sha256 IS 'SHA-256 of the text that was applied, in hexadecimal';
COMMENT ON COLUMN spcd.repeatable_script.applied_at IS 'when';

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
    labels          jsonb NOT NULL DEFAULT '{}',
    CHECK ((status = 'error') = (error IS NOT NULL))
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

-- Empty once each connection was looked at: spcd.publish then gives back what a row that becomes the
-- same again said here.
CREATE TABLE spcd.before_start (
    connection_name text COLLATE "C" PRIMARY KEY,
    status          text NOT NULL,
    error           text,
    time_changed    timestamptz NOT NULL,
    last_ready      timestamptz,
    generation      bigint NOT NULL
);
COMMENT ON TABLE spcd.before_start IS 'rows of spcd.connection_state as they were before the service started or was taken over';
COMMENT ON COLUMN spcd.before_start.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.before_start.status IS 'its status then';
COMMENT ON COLUMN spcd.before_start.error IS 'its error then';
COMMENT ON COLUMN spcd.before_start.time_changed IS 'when it had changed';
COMMENT ON COLUMN spcd.before_start.last_ready IS 'when it had last become ready';
COMMENT ON COLUMN spcd.before_start.generation IS 'the pass that had changed it';

CREATE TABLE spcd.connection_event (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time            timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    connection_name text COLLATE "C",
    previous        text,
    status          text NOT NULL,
    error           text,
    generation      bigint NOT NULL,
    duration        interval,
    health          text CHECK (health IN ('lost', 'restored')),
    CHECK ((connection_name IS NULL) = (status = 'resync'))
);
CREATE INDEX connection_event_time ON spcd.connection_event (time);
CREATE INDEX connection_event_connection ON spcd.connection_event (connection_name, id);
COMMENT ON TABLE spcd.connection_event IS 'every change of a status or an error, committed in the order of id';
COMMENT ON COLUMN spcd.connection_event.id IS 'grows with each event: who has seen one has missed none before it';
COMMENT ON COLUMN spcd.connection_event.time IS 'when';
COMMENT ON COLUMN spcd.connection_event.connection_name IS 'the connection; NULL for a resync';
COMMENT ON COLUMN spcd.connection_event.previous IS 'the status before; NULL for a new connection';
COMMENT ON COLUMN spcd.connection_event.status IS
    'the status, deleted, or resync: the service started or was taken over, and all rows but the disabled ones became pending';
COMMENT ON COLUMN spcd.connection_event.error IS 'why the status is error, or why the source was lost';
COMMENT ON COLUMN spcd.connection_event.generation IS 'the pass that made the change';
COMMENT ON COLUMN spcd.connection_event.duration IS 'how long the previous status lasted';
COMMENT ON COLUMN spcd.connection_event.health IS 'lost or restored where the event is about the source; NULL where it is about the status';

CREATE TABLE spcd.config_diagnostic (
    severity        text NOT NULL CHECK (severity IN ('error', 'warning')),
    file_name       text NOT NULL,
    line            integer NOT NULL,
    column_number   integer NOT NULL,
    message         text NOT NULL,
    hint            text,
    connection_name text
);
COMMENT ON TABLE spcd.config_diagnostic IS 'what is wrong in the files now';
COMMENT ON COLUMN spcd.config_diagnostic.severity IS 'error or warning';
COMMENT ON COLUMN spcd.config_diagnostic.file_name IS 'the file';
COMMENT ON COLUMN spcd.config_diagnostic.line IS 'the line, from 1';
COMMENT ON COLUMN spcd.config_diagnostic.column_number IS 'the column in characters, from 1';
COMMENT ON COLUMN spcd.config_diagnostic.message IS 'what is wrong';
COMMENT ON COLUMN spcd.config_diagnostic.hint IS 'what to write instead';
COMMENT ON COLUMN spcd.config_diagnostic.connection_name IS 'the connection whose block it is in';

-- A file that vanished with its directory (missing, unreadable, no directory, or empty where it held
-- files) does not count as removed until it is back or `spcd apply --allow-empty` deletes its row.
CREATE TABLE spcd.config_file (
    path          text COLLATE "C" PRIMARY KEY,
    root          text NOT NULL,
    sets_path     boolean NOT NULL,
    vanished_with text
);
COMMENT ON TABLE spcd.config_file IS 'the files that the applied state came from';
COMMENT ON COLUMN spcd.config_file.path IS 'the file';
COMMENT ON COLUMN spcd.config_file.root IS 'its config directory, as configured';
COMMENT ON COLUMN spcd.config_file.sets_path IS 'it holds a block options "database"';
COMMENT ON COLUMN spcd.config_file.vanished_with IS 'the directory with which it vanished; NULL while it is there';

-- By name, so that it survives dump and restore. The OIDs tell an object that another role dropped and
-- made again; they are taken anew in a restored database (spcd.daemon.identity).
CREATE TABLE spcd.applied (
    connection_name   text COLLATE "C" PRIMARY KEY,
    target_hash       text NOT NULL,
    schema_oid        oid NOT NULL,
    server_oid        oid,
    tables            text[] NOT NULL DEFAULT '{}',
    members           text[],
    warnings          text[] NOT NULL DEFAULT '{}',
    extension_version text,
    types             jsonb,
    hidden_schema     text COLLATE "C",
    fingerprint       text NOT NULL
);
COMMENT ON TABLE spcd.applied IS 'what spcd made for each connection';
COMMENT ON COLUMN spcd.applied.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.applied.target_hash IS 'hash of the definition that was applied';
COMMENT ON COLUMN spcd.applied.schema_oid IS 'its schema';
COMMENT ON COLUMN spcd.applied.server_oid IS 'its foreign server; NULL for an aggregator';
COMMENT ON COLUMN spcd.applied.tables IS 'the tables or views in its schema';
COMMENT ON COLUMN spcd.applied.members IS 'the connections that an aggregator''s views show; NULL for all others';
COMMENT ON COLUMN spcd.applied.warnings IS 'what the import left out or refused';
COMMENT ON COLUMN spcd.applied.extension_version IS
    'the version of the extension that was asked, where all connections of a plugin have the same tables';
COMMENT ON COLUMN spcd.applied.types IS 'the types of columns of files that values decided, by table and column';
COMMENT ON COLUMN spcd.applied.hidden_schema IS 'the schema of its tables while only aggregators show them; NULL: the schema of its name';
COMMENT ON COLUMN spcd.applied.fingerprint IS 'spcd.fingerprint of it when it was recorded';

CREATE TABLE spcd.aggregator_view (
    connection_name text COLLATE "C" NOT NULL,
    hidden          boolean NOT NULL,
    name            text COLLATE "C" NOT NULL,
    table_name      text COLLATE "C" NOT NULL,
    statement_hash  text NOT NULL,
    definition_hash text NOT NULL,
    PRIMARY KEY (connection_name, hidden, name)
);
COMMENT ON TABLE spcd.aggregator_view IS 'the views that spcd made for aggregators';
COMMENT ON COLUMN spcd.aggregator_view.connection_name IS 'the aggregator';
COMMENT ON COLUMN spcd.aggregator_view.hidden IS 'it is a part of another view, in the schema spcd_union';
COMMENT ON COLUMN spcd.aggregator_view.name IS 'its name';
COMMENT ON COLUMN spcd.aggregator_view.table_name IS 'the table of the members that it shows';
COMMENT ON COLUMN spcd.aggregator_view.statement_hash IS 'hash of the statement that made it';
COMMENT ON COLUMN spcd.aggregator_view.definition_hash IS 'hash of the definition that the server showed then';

-- One row. Writers hold a key share of it, so that a new leader, who changes the key, waits for writes
-- under way and stops later ones; the heartbeat changes no key and waits for nobody.
CREATE TABLE spcd.daemon (
    epoch     bigint PRIMARY KEY,
    instance  text NOT NULL,
    leader    text,
    since     timestamptz,
    heartbeat timestamptz,
    version   text,
    backends  jsonb NOT NULL DEFAULT '[]',
    identity  text
);
CREATE UNIQUE INDEX daemon_is_one_row ON spcd.daemon ((true));
COMMENT ON TABLE spcd.daemon IS 'the daemon that leads';
COMMENT ON COLUMN spcd.daemon.epoch IS 'grows with each new leader, and fences the writes of earlier ones';
COMMENT ON COLUMN spcd.daemon.instance IS 'the setting instance';
COMMENT ON COLUMN spcd.daemon.leader IS 'host and process of the leader; NULL after it resigned';
COMMENT ON COLUMN spcd.daemon.since IS 'when it took the lead';
COMMENT ON COLUMN spcd.daemon.heartbeat IS 'when it last said that it is there';
COMMENT ON COLUMN spcd.daemon.version IS 'its version';
COMMENT ON COLUMN spcd.daemon.backends IS 'pid and backend_start of each of its sessions';
COMMENT ON COLUMN spcd.daemon.identity IS 'tells this database from one that was restored from its dump';

CREATE SEQUENCE spcd.generation;
COMMENT ON SEQUENCE spcd.generation IS 'numbers of passes';

CREATE TABLE spcd.wrapper_crash (
    connection_name text COLLATE "C" PRIMARY KEY,
    target_hash     text NOT NULL,
    times           integer NOT NULL,
    reason          text NOT NULL,
    crashed_at      timestamptz NOT NULL,
    next_attempt    timestamptz NOT NULL
);
COMMENT ON TABLE spcd.wrapper_crash IS 'connections whose last question ended its server process';
COMMENT ON COLUMN spcd.wrapper_crash.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.wrapper_crash.target_hash IS 'hash of its definition then: another one is tried at once';
COMMENT ON COLUMN spcd.wrapper_crash.times IS 'how often in a row';
COMMENT ON COLUMN spcd.wrapper_crash.reason IS 'what happened';
COMMENT ON COLUMN spcd.wrapper_crash.crashed_at IS 'when';
COMMENT ON COLUMN spcd.wrapper_crash.next_attempt IS 'when it is asked again';

CREATE TABLE spcd.refresh_request (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    connections     text[],
    requested_by    text NOT NULL DEFAULT SESSION_USER,
    requested_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    done_at         timestamptz,
    error           text,
    name_count      integer GENERATED ALWAYS AS (coalesce(pg_catalog.cardinality(connections), 0)) STORED,
    action          text NOT NULL DEFAULT 'refresh'
        CHECK (action IN ('refresh', 'reconnect', 'disconnect', 'retry')),
    retries_refused boolean NOT NULL DEFAULT pg_catalog.has_function_privilege(
        SESSION_USER, 'spcd.reconnect(pg_catalog.text[])', 'EXECUTE')
);
CREATE INDEX refresh_request_open ON spcd.refresh_request (id) WHERE done_at IS NULL;
CREATE INDEX refresh_request_role ON spcd.refresh_request (requested_by, requested_at);
COMMENT ON TABLE spcd.refresh_request IS 'requests of clients: see spcd.refresh, spcd.reconnect, spcd.disconnect and spcd.retry';
COMMENT ON COLUMN spcd.refresh_request.id IS 'what the functions return';
COMMENT ON COLUMN spcd.refresh_request.connections IS
    'the connections; NULL: all; empty: look at the files and the database, and ask no source';
COMMENT ON COLUMN spcd.refresh_request.requested_by IS 'the role';
COMMENT ON COLUMN spcd.refresh_request.requested_at IS 'when';
COMMENT ON COLUMN spcd.refresh_request.done_at IS 'when it was answered; NULL: it is open';
COMMENT ON COLUMN spcd.refresh_request.error IS 'why it failed; NULL: it did not';
COMMENT ON COLUMN spcd.refresh_request.name_count IS 'number of connections that it names, for the limits of a role';
COMMENT ON COLUMN spcd.refresh_request.action IS
    'refresh: ask the sources for their tables; disconnect: leave them alone; reconnect: end that and try now; retry: ask again what ended its server process';
COMMENT ON COLUMN spcd.refresh_request.retries_refused IS
    'it may send refused credentials again: each attempt counts at the source, which may lock the account';

-- It may be there still if only the schema spcd was dropped. Only its owner needs to use it.
CREATE SCHEMA IF NOT EXISTS spcd_union;
COMMENT ON SCHEMA spcd_union IS 'parts of the views of spcd''s aggregators';

CREATE TABLE spcd.role_search_path (
    role_name    text COLLATE "C" PRIMARY KEY,
    path_hash    text NOT NULL,
    setting_hash text NOT NULL,
    row_version  text NOT NULL
);
COMMENT ON TABLE spcd.role_search_path IS 'roles whose search path in this database spcd set';
COMMENT ON COLUMN spcd.role_search_path.role_name IS 'the role';
COMMENT ON COLUMN spcd.role_search_path.path_hash IS 'hash of the path';
COMMENT ON COLUMN spcd.role_search_path.setting_hash IS 'hash of the setting as the catalog has it';
COMMENT ON COLUMN spcd.role_search_path.row_version IS 'tells cheaply that the catalog''s row did not change since';

-- A table of its own, since each probe writes here; a row is rewritten in its page while there is room.
CREATE TABLE spcd.connection_health (
    connection_name text COLLATE "C" PRIMARY KEY
        REFERENCES spcd.connection_state ON DELETE CASCADE,
    reachable       boolean,
    last_checked    timestamptz,
    latency_ms      real,
    attempts        integer NOT NULL DEFAULT 0,
    last_failure    text,
    failed_at       timestamptz,
    next_attempt    timestamptz,
    breaker         text NOT NULL DEFAULT 'closed'
        CHECK (breaker IN ('closed', 'open', 'half_open')),
    held            boolean NOT NULL DEFAULT false
) WITH (fillfactor = 70);
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

CREATE TABLE spcd.applied_comment (
    connection_name text COLLATE "C" NOT NULL REFERENCES spcd.applied ON DELETE CASCADE,
    table_name      text COLLATE "C" NOT NULL,
    column_name     text COLLATE "C" NOT NULL,
    hash            text NOT NULL,
    PRIMARY KEY (connection_name, table_name, column_name)
);
COMMENT ON TABLE spcd.applied_comment IS 'comments that spcd wrote: one that reads otherwise is another role''s, and stays';
COMMENT ON COLUMN spcd.applied_comment.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.applied_comment.table_name IS 'the table';
COMMENT ON COLUMN spcd.applied_comment.column_name IS 'the column; empty: the table itself';
COMMENT ON COLUMN spcd.applied_comment.hash IS 'hash of the comment';
