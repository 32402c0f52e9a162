-- Servers that connections share to reach the gateway.

ALTER TABLE spcd.applied ADD COLUMN server_name text COLLATE "C";
COMMENT ON COLUMN spcd.applied.server_name IS 'the server of its tables, where connections share it; NULL: the one of its name';

CREATE TABLE spcd.gateway_lane (
    server_name text COLLATE "C" PRIMARY KEY,
    server_oid  oid NOT NULL
);
COMMENT ON TABLE spcd.gateway_lane IS 'servers that spcd made for the connections of a plugin to share';
COMMENT ON COLUMN spcd.gateway_lane.server_name IS 'the server';
COMMENT ON COLUMN spcd.gateway_lane.server_oid IS 'tells it from one that another role made';
