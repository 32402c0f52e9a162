-- Who may read and call what. The last of these files.

-- Lets spcd_users read the state, and not what is only the daemon's.
CREATE OR REPLACE FUNCTION spcd.admit_readers() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    GRANT USAGE ON SCHEMA spcd TO spcd_users;
    GRANT SELECT ON spcd.connection_state, spcd.connection_event, spcd.connection_health,
                    spcd.config_diagnostic, spcd.daemon, spcd.refresh_request, spcd.migration
        TO spcd_users;
END $$;

-- Only what clients may call is for every role that can use the schema. What the owner granted to
-- other roles stays.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA spcd FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    spcd.refresh(text[]), spcd.wait_until_ready(text[], interval), spcd.path_names(text) TO PUBLIC;

-- Readers who were admitted may read what is new, too.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'spcd_users')
       AND pg_catalog.has_schema_privilege('spcd_users', 'spcd', 'USAGE') THEN
        PERFORM spcd.admit_readers();
    END IF;
END $$;
