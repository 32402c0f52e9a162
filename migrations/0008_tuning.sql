-- The options for speed that spcd has set on servers and foreign tables: a user's value stays.

ALTER TABLE spcd.applied ADD COLUMN tuning jsonb;
COMMENT ON COLUMN spcd.applied.tuning IS
    'options for speed that spcd has set: of the server, and fetch_size by table';
