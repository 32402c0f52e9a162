-- Drops the objects of steampipe.sql. Fails without a change if objects of users depend on them. Keeps
-- roles that spcd did not create, and roles that own objects or have other privileges.
DO $$
DECLARE
    v_role text;
    v_roles text[];
BEGIN
    FOR v_role IN SELECT v.role_name FROM spcd.steampipe_path v WHERE v.now IS NOT NULL AND NOT v.own LOOP
        EXECUTE pg_catalog.format('ALTER ROLE %I RESET search_path', v_role);
    END LOOP;
    SELECT roles INTO v_roles FROM spcd.steampipe;

    DROP TRIGGER IF EXISTS steampipe_insert ON spcd.connection_state;
    DROP TRIGGER IF EXISTS steampipe_update ON spcd.connection_state;
    DROP TRIGGER IF EXISTS steampipe_delete ON spcd.connection_state;
    DROP TRIGGER IF EXISTS steampipe_insert ON spcd.config_diagnostic;
    DROP FUNCTION IF EXISTS spcd.steampipe_state(text), spcd.steampipe_set_path(text),
        spcd.steampipe_has_access(), spcd.steampipe_grant_access(),
        spcd.steampipe_set_language(), spcd.steampipe_follow_files(),
        spcd.steampipe_follow(), spcd.steampipe_notify(text[], text[]),
        spcd.steampipe_copy(text[], text[]);
    DROP VIEW IF EXISTS spcd.steampipe_row, spcd.steampipe_path;
    DROP FUNCTION IF EXISTS spcd.steampipe_plugin_name(text);
    DROP TABLE IF EXISTS spcd.steampipe, spcd.steampipe_role;
    DROP TABLE IF EXISTS steampipe_internal.steampipe_connection,
        steampipe_internal.steampipe_connection_state, steampipe_internal.steampipe_plugin,
        steampipe_internal.steampipe_plugin_limiter, steampipe_internal.steampipe_plugin_column,
        steampipe_internal.steampipe_server_settings,
        steampipe_internal.steampipe_scan_metadata_summary, steampipe_internal.steampipe_scan_metadata;
    DROP FUNCTION IF EXISTS steampipe_internal.meta_cache(text), steampipe_internal.meta_cache_ttl(integer),
        steampipe_internal.meta_connection_cache_clear(text), steampipe_internal.glob(text);
    DROP SCHEMA IF EXISTS steampipe_internal;

    -- Keeps spcd_users, a role of spcd itself that has privileges on each connection.
    FOREACH v_role IN ARRAY ARRAY['steampipe', 'steampipe_users'] LOOP
        BEGIN
            IF v_role = ANY (v_roles) THEN
                EXECUTE pg_catalog.format('DROP ROLE %I', v_role);
            END IF;
        EXCEPTION WHEN dependent_objects_still_exist OR undefined_object OR insufficient_privilege THEN
            NULL;
        END;
    END LOOP;
END $$;
