-- The tables that an import left out, by name: a query for one of them is told why.

CREATE TABLE spcd.left_out_table (
    connection_name text COLLATE "C" NOT NULL REFERENCES spcd.applied ON DELETE CASCADE,
    table_name      text COLLATE "C",
    warning         text NOT NULL
);
CREATE INDEX left_out_table_connection ON spcd.left_out_table (connection_name);
COMMENT ON TABLE spcd.left_out_table IS 'tables of sources that were not imported';
COMMENT ON COLUMN spcd.left_out_table.connection_name IS 'the connection';
COMMENT ON COLUMN spcd.left_out_table.table_name IS
    'the name that the table would have; NULL: this database''s encoding cannot hold it';
COMMENT ON COLUMN spcd.left_out_table.warning IS 'the warning in spcd.connection_state that says why';
