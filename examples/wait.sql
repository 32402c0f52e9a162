-- Waits for a connection, then reads it: psql -v ON_ERROR_STOP=1 -v connection=shop -v table=pgbench_branches -f wait.sql URL
--
-- The first statement fails with SP001 (in error), SP002 (time is up) or SP003 (unknown or disabled).
SELECT connection_name, status, table_count
FROM spcd.wait_until_ready(ARRAY[:'connection'], '30 seconds');

SELECT count(*) FROM :"connection".:"table";
