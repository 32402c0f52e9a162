-- The password with which a hub reads a gateway, and that hub. No role but spcd's may read it.

CREATE TABLE spcd.gateway_reader (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Made here, so that no statement contains it. A random UUID has 122 random bits.
    password text NOT NULL DEFAULT pg_catalog.replace(
        pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text, '-', ''),
    hub text
);
COMMENT ON TABLE spcd.gateway_reader IS 'in a gateway: how the hub logs in';
COMMENT ON COLUMN spcd.gateway_reader.only_row IS 'always true';
COMMENT ON COLUMN spcd.gateway_reader.password IS 'the password of the role spcd_gateway_reader';
COMMENT ON COLUMN spcd.gateway_reader.hub IS
    'system identifier and database of the hub whose daemon leads here';
