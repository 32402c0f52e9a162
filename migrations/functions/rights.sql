-- Privileges on the objects of the schema. This file is applied last.
-- Revision 3.

-- Grants spcd_users the tables of the state, except the daemon's own.
CREATE OR REPLACE FUNCTION spcd.admit_readers() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    GRANT USAGE ON SCHEMA spcd TO spcd_users;
    GRANT SELECT ON spcd.connection_state, spcd.connection_event, spcd.connection_health,
                    spcd.config_diagnostic, spcd.daemon, spcd.refresh_request, spcd.migration,
                    spcd.left_out_table, spcd.mirror
        TO spcd_users;
END $$;

-- Only the functions for clients are for every role that can use the schema. Grants of the owner to
-- other roles stay.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA spcd FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    spcd.refresh(text[]), spcd.wait_until_ready(text[], interval), spcd.path_names(text) TO PUBLIC;

-- Roles that may read the schema may read new objects too.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'spcd_users')
       AND pg_catalog.has_schema_privilege('spcd_users', 'spcd', 'USAGE') THEN
        PERFORM spcd.admit_readers();
    END IF;
END $$;
