-- Requests of clients.
-- Revision 3.

-- Returns the distinct names of a request. Every role that can use the schema may call it and its
-- requests are stored, so number and length of names are limited to what connections can have.
CREATE OR REPLACE FUNCTION spcd.asked_names(p_connections text[]) RETURNS text[]
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

-- Fails if a role has made too many requests: p_most in the last minute, or more open ones than the
-- daemon holds for one role. The owner of the schema, its members and superusers are not limited.
-- It runs with the owner's rights. Its callers set their search path, and every name and operator is
-- qualified all the same.
CREATE OR REPLACE FUNCTION spcd.limit_requests(p_names text[], p_most integer) RETURNS void
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
          (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '1 minute'::pg_catalog.interval)
      -- Later ones were made before the clock was set back.
      AND r.requested_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp();
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

-- Records a durable request to read the files and import from the sources; returns its id. NULL
-- selects all connections; an empty array reads only files and database.
CREATE OR REPLACE FUNCTION spcd.refresh(connections text[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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

-- Records a durable request for an action; returns its id.
CREATE OR REPLACE FUNCTION spcd.request(p_connections text[], p_action text) RETURNS bigint LANGUAGE sql AS $$
    SELECT spcd.limit_requests(spcd.asked_names(p_connections), 10);
    SELECT pg_catalog.pg_notify('spcd_wake', '');
    INSERT INTO spcd.refresh_request (connections, action)
    VALUES (coalesce(spcd.asked_names(p_connections), '{}'), p_action) RETURNING id
$$;

-- Readers may refresh. Only the owner of the schema, and roles to which it grants EXECUTE, may send
-- rejected credentials again or pause and resume sources.

-- Records a durable request to probe sources now, including those that were refused or
-- disconnected; returns its id.
CREATE OR REPLACE FUNCTION spcd.reconnect(connections text[]) RETURNS bigint LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$ SELECT spcd.request(connections, 'reconnect') $$;

-- Records a durable request to pause sources until spcd.reconnect; returns its id. Their tables
-- stay.
CREATE OR REPLACE FUNCTION spcd.disconnect(connections text[]) RETURNS bigint LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$ SELECT spcd.request(connections, 'disconnect') $$;

-- Records a durable request to import at once from connections whose wrapper ended its server
-- process; returns its id.
CREATE OR REPLACE FUNCTION spcd.retry(connections text[]) RETURNS bigint LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$ SELECT spcd.request(connections, 'retry') $$;
