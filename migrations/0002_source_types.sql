-- Types for columns whose types only the source has.
--
-- postgres_fdw sends conditions on built-in types to the source, where a text does not compare with an
-- enum. Conditions on a domain stay here (is_shippable in contrib/postgres_fdw/shippable.c).
-- The schema is its own, so that no column goes along when the schema spcd is dropped.

CREATE SCHEMA IF NOT EXISTS spcd_type;
COMMENT ON SCHEMA spcd_type IS 'types of columns whose types only the source has';
GRANT USAGE ON SCHEMA spcd_type TO PUBLIC;

DO $$ BEGIN
    IF pg_catalog.to_regtype('spcd_type.text') IS NULL THEN
        CREATE DOMAIN spcd_type.text AS pg_catalog.text;
    END IF;
END $$;
COMMENT ON DOMAIN spcd_type.text IS 'a value of the source as text; conditions on it are not sent to the source';
