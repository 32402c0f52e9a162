-- User mappings. No password reaches a log or pg_stat_statements.
-- Revision 1.

-- Fails with the server's message about a mapping, unless the message repeats one of the values in
-- pg_temp.spcd_secret.
CREATE OR REPLACE FUNCTION spcd.refuse_user_mapping(p_state text, p_reason text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_temp.spcd_secret
               WHERE value <> '' AND pg_catalog.strpos(p_reason, value) > 0) THEN
        p_reason := 'the server refuses its options';
    END IF;
    RAISE EXCEPTION 'user mapping: %', p_reason USING ERRCODE = p_state;
END $$;

-- Keeps the statement of a function out of the server's log, where a CONTEXT line would show it.
-- lock_timeout expires before log_lock_waits writes a line, and a role that may do so switches
-- messages off. Returns the settings that spcd.restore_log restores; after an error the rollback
-- restores them.
CREATE OR REPLACE FUNCTION spcd.silence_log() RETURNS text[] LANGUAGE plpgsql AS $$
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

CREATE OR REPLACE FUNCTION spcd.restore_log(p_before text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_names text[] := '{lock_timeout,log_min_messages,log_error_verbosity}';
BEGIN
    FOR i IN 1..3 LOOP
        IF pg_catalog.current_setting(v_names[i]) <> p_before[i] THEN
            PERFORM pg_catalog.set_config(v_names[i], p_before[i], true);
        END IF;
    END LOOP;
END $$;

-- Creates or alters a server's user mapping for PUBLIC from the rows in pg_temp.spcd_secret. The
-- session writes them by COPY, so that no statement contains a secret.
CREATE OR REPLACE FUNCTION spcd.set_user_mapping(p_server text) RETURNS void LANGUAGE plpgsql AS $$
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
-- OTHERS does not include a cancelled statement, which would be logged with its context.
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_reason = MESSAGE_TEXT;
    PERFORM spcd.refuse_user_mapping(v_state, v_reason);
END $$;

-- Creates the user mappings of new servers.
CREATE OR REPLACE FUNCTION spcd.create_user_mappings(p_servers text[]) RETURNS void LANGUAGE plpgsql AS $$
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
-- OTHERS does not include a cancelled statement, which would be logged with its context.
EXCEPTION WHEN query_canceled OR OTHERS THEN
    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_reason = MESSAGE_TEXT;
    PERFORM spcd.refuse_user_mapping(v_state, v_reason);
END $$;
