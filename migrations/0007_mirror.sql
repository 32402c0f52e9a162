-- Mirrors: what their sources said last, so that neither a restart nor a source that is away drops
-- anything; and which connections come from one, so that another hub can tell.

ALTER TABLE spcd.connection_state ADD COLUMN mirror text NOT NULL DEFAULT '';
COMMENT ON COLUMN spcd.connection_state.mirror IS 'the mirror block that it comes from; empty: a connection block';

CREATE TABLE spcd.mirror (
    name         text COLLATE "C" PRIMARY KEY,
    kind         text,
    origins      text[] NOT NULL DEFAULT '{}',
    extensions   text[] NOT NULL DEFAULT '{}',
    connections  jsonb NOT NULL DEFAULT '{}',
    error        text,
    time_changed timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
COMMENT ON TABLE spcd.mirror IS 'one row per mirror: what its source said last';
COMMENT ON COLUMN spcd.mirror.name IS 'the label of the mirror block';
COMMENT ON COLUMN spcd.mirror.kind IS 'what the source is: steampipe or spcd; NULL: it never answered';
COMMENT ON COLUMN spcd.mirror.origins IS 'identities of the databases that its tables come from';
COMMENT ON COLUMN spcd.mirror.extensions IS 'extensions of the source whose types its tables may have';
COMMENT ON COLUMN spcd.mirror.connections IS 'the connections of the source, by name';
COMMENT ON COLUMN spcd.mirror.error IS 'why the source cannot be followed now';
COMMENT ON COLUMN spcd.mirror.time_changed IS 'when the row last changed';

-- The server's system identifier is the same in every copy of a data directory.
ALTER TABLE spcd.daemon ADD COLUMN hub_id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid();
COMMENT ON COLUMN spcd.daemon.hub_id IS 'tells this hub from all others: hubs that mirror each other compare it';
