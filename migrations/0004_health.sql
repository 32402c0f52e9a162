-- What is known of the sources, beside what is known of the tables: a source that does not answer
-- changes nothing of a connection's status. A table of its own, since each probe writes here.
CREATE TABLE spcd.connection_health (
    connection_name text COLLATE "C" PRIMARY KEY,
    -- NULL: unknown
    reachable       boolean,
    last_checked    timestamptz,
    latency_ms      real,
    -- how often in a row it did not answer
    attempts        integer NOT NULL DEFAULT 0,
    -- why it did not answer when it last did not, and when that was; both stay when it answers again
    last_failure    text,
    failed_at       timestamptz,
    next_attempt    timestamptz,
    breaker         text NOT NULL DEFAULT 'closed'
        CHECK (breaker IN ('closed', 'open', 'half_open')),
    -- somebody said `spcd disconnect`: nothing is asked until `spcd reconnect`
    held            boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE spcd.connection_health IS 'one row a connection whose source is watched: whether it answers';

-- As the block says; for people.
ALTER TABLE spcd.connection_state ADD COLUMN labels jsonb NOT NULL DEFAULT '{}';

-- 'lost' or 'restored', where an event is about the source and not about the status.
ALTER TABLE spcd.connection_event ADD COLUMN health text CHECK (health IN ('lost', 'restored'));
