-- Search paths of the members of spcd_users.
-- Revision 1.

-- Returns a role's search path in this database, as the catalog has it; NULL if there is none.
CREATE OR REPLACE FUNCTION spcd.search_path_of(p_settings text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT c FROM pg_catalog.unnest(p_settings) c
    WHERE pg_catalog.starts_with(c, 'search_path=')
$$;

-- Each direct member of spcd_users that can log in, and each role for which spcd set a path.
--   own      the role has a path that spcd did not set, in this database or in all
--   there    the path that spcd set is in effect
--   touched  it is, but another session rewrote the catalog row
CREATE OR REPLACE VIEW spcd.role_path AS
SELECT r.rolname AS role_name,
       r.rolcanlogin AND m.member IS NOT NULL AS member,
       EXISTS (SELECT 1 FROM pg_catalog.pg_db_role_setting g
               WHERE g.setrole = r.oid AND g.setdatabase = 0
                 AND spcd.search_path_of(g.setconfig) IS NOT NULL)
       OR CASE WHEN h.setrole IS NULL OR h.xmin::text = p.row_version THEN false
               ELSE coalesce(pg_catalog.md5(spcd.search_path_of(h.setconfig)) <> coalesce(p.setting_hash, ''), false)
          END AS own,
       p.path_hash,
       p.role_name IS NOT NULL AND h.setrole IS NOT NULL
       AND CASE WHEN h.xmin::text = p.row_version THEN true
                ELSE coalesce(pg_catalog.md5(spcd.search_path_of(h.setconfig)) = p.setting_hash, false)
           END AS there,
       coalesce(h.xmin::text <> p.row_version, false) AS touched
FROM pg_catalog.pg_roles r
LEFT JOIN (
    SELECT DISTINCT a.member FROM pg_catalog.pg_auth_members a
    WHERE a.roleid = pg_catalog.to_regrole('spcd_users')
) m ON m.member = r.oid
LEFT JOIN spcd.role_search_path p ON p.role_name = r.rolname
LEFT JOIN pg_catalog.pg_db_role_setting h ON h.setrole = r.oid
     AND h.setdatabase = (SELECT d.oid FROM pg_catalog.pg_database d
                          WHERE d.datname = pg_catalog.current_database())
WHERE p.role_name IS NOT NULL OR (r.rolcanlogin AND m.member IS NOT NULL);

-- Records the roles' current settings: the path with this hash or, if it is NULL, the recorded one.
CREATE OR REPLACE FUNCTION spcd.record_search_path(p_roles text[], p_hash text) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO spcd.role_search_path (role_name, path_hash, setting_hash, row_version)
    SELECT r.rolname, coalesce(p_hash, p.path_hash), pg_catalog.md5(spcd.search_path_of(h.setconfig)), h.xmin::text
    FROM pg_catalog.pg_roles r
    JOIN pg_catalog.pg_db_role_setting h ON h.setrole = r.oid
    JOIN pg_catalog.pg_database d ON d.oid = h.setdatabase
         AND d.datname = pg_catalog.current_database()
    LEFT JOIN spcd.role_search_path p ON p.role_name = r.rolname
    WHERE r.rolname = ANY (p_roles)
    ON CONFLICT (role_name) DO UPDATE SET
        path_hash = excluded.path_hash, setting_hash = excluded.setting_hash, row_version = excluded.row_version
$$;

-- Sets a search path (a list as SET takes it) on roles, or resets it if p_path is NULL. Each role
-- is handled by itself: returns the roles for which it failed.
CREATE OR REPLACE FUNCTION spcd.set_search_path(p_roles text[], p_path text, p_hash text)
RETURNS TABLE (role_name text, state text, reason text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_role text;
BEGIN
    FOREACH v_role IN ARRAY p_roles LOOP
        BEGIN
            EXECUTE pg_catalog.format('ALTER ROLE %I IN DATABASE %I ', v_role,
                                      pg_catalog.current_database())
                 || coalesce('SET search_path = ' || p_path, 'RESET search_path');
            IF p_path IS NULL THEN
                DELETE FROM spcd.role_search_path p WHERE p.role_name = v_role;
            ELSE
                PERFORM spcd.record_search_path(ARRAY[v_role], p_hash);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            role_name := v_role;
            state := SQLSTATE;
            reason := SQLERRM;
            RETURN NEXT;
        END;
    END LOOP;
END $$;
