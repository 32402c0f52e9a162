//! A database as a daemon would have left it, without one that leads: what the page shows can then
//! be anything.

use tokio_postgres::Client;

use crate::support::{Database, connect, kept::kept};

/// A database with spcd's schema in it, and the lead taken, so that a daemon only follows.
pub struct Filled {
    /// The database.
    pub hub: Database,
    /// Holds the lead.
    _lead: Client,
}

impl Filled {
    /// With so many connections of all kinds.
    pub async fn with(count: usize) -> Self {
        let hub = kept().await;
        let lead = connect(&hub.url).await.unwrap();
        lead.batch_execute("BEGIN; LOCK TABLE spcd_lock.lead IN EXCLUSIVE MODE")
            .await
            .unwrap();
        let filled = Self { hub, _lead: lead };
        filled.run(&connections(count)).await;
        filled
    }

    /// Runs statements, as the daemon could.
    pub async fn run(&self, sql: &str) {
        let session = connect(&self.hub.url).await.unwrap();
        session.batch_execute(sql).await.unwrap();
    }
}

/// Statements that make so many connections: nearly all of them well, and always the same ones.
fn connections(count: usize) -> String {
    format!(
        "
CREATE TEMP TABLE c AS
SELECT n, (ARRAY['sales','wiki','billing','stock','crm','shop','audit','metrics','hr','ledger'])[n % 10 + 1]
          || '_' || (ARRAY['eu','us','apac','north','south','lab','staging'])[n % 7 + 1]
          || '_' || lpad(n::text, length(({count} - 1)::text), '0') AS name,
       (ARRAY['postgres','postgres','postgres','mysql','csv','postgres','mssql'])[n % 7 + 1] AS plugin,
       CASE WHEN n % 41 = 3 OR n = 7 THEN 'error' WHEN n % 53 = 9 THEN 'updating' WHEN n % 61 = 20 THEN 'disabled'
            ELSE 'ready' END AS status,
       now() - (n * 7919 % 260000) * interval '1 second' AS since
FROM generate_series(0, {count} - 1) AS n;
INSERT INTO spcd.connection_state
    (connection_name, status, error, warnings, plugin, plugin_instance, type, import_schema, schema_mode,
     schema_hash, table_count, last_ready, file_name, start_line, end_line, time_changed, generation, labels)
SELECT name, status,
       CASE WHEN status = 'error' THEN (ARRAY[
           'could not connect to server \"' || name || '\"; connection to server at \"db' || n % 9 || '.internal\" (10.0.' || n % 5 || '.12), port 5432 failed: Connection refused; Is the server running on that host and accepting TCP/IP connections?',
           'password authentication failed for user \"reader\"; the source refuses the credentials: change user or password in /etc/spcd/conf.d/' || plugin || '.spc:' || n * 6 + 1 || ', then save',
           '/etc/spcd/conf.d/' || plugin || '.spc:' || n * 6 + 3 || ':3: there is no attribute `hots`; did you mean `host`?'])[n / 41 % 3 + 1] END,
       CASE WHEN n % 37 = 5 AND status = 'ready' THEN ARRAY['orders: the column \"total\" keeps the type numeric(10,2): the view reports.monthly depends on it (the source has numeric(12,2))'] ELSE '{{}}' END,
       plugin, plugin, 'plugin', CASE WHEN status = 'disabled' THEN 'disabled' ELSE 'enabled' END, 'dynamic',
       md5(name), CASE WHEN status = 'disabled' THEN NULL ELSE 4 + n * 31 % 180 END,
       since, '/etc/spcd/conf.d/' || plugin || '.spc', n * 6 + 1, n * 6 + 6, since, n,
       jsonb_build_object('team', (ARRAY['data','web','finance'])[n % 3 + 1])
FROM c;
INSERT INTO spcd.connection_health
    (connection_name, reachable, last_checked, latency_ms, attempts, last_failure, failed_at, next_attempt, breaker, held)
SELECT name, NOT (status = 'error' OR n % 47 = 11), now() - n % 30 * interval '1 second', 2 + n * 13 % 70 + 0.37,
       CASE WHEN status = 'error' OR n % 47 = 11 THEN 4 ELSE 0 END,
       CASE WHEN status = 'error' OR n % 47 = 11 THEN 'timeout: db' || n % 9 || '.internal:5432 did not answer within 5 s' END,
       CASE WHEN status = 'error' OR n % 47 = 11 THEN now() - interval '40 seconds' END,
       now() + interval '20 seconds', CASE WHEN status = 'error' OR n % 47 = 11 THEN 'open' ELSE 'closed' END, n % 97 = 13
FROM c WHERE status <> 'disabled' AND plugin <> 'csv';
INSERT INTO spcd.connection_event (time, connection_name, previous, status, error, generation, duration, health)
SELECT s.time_changed - e.ago, s.connection_name, e.previous, e.status, CASE WHEN e.status = 'error' THEN s.error END,
       s.generation, e.took, e.health
FROM spcd.connection_state s
CROSS JOIN LATERAL (VALUES
    (4, interval '3 hours', NULL, 'pending', interval '0', NULL),
    (3, interval '2 hours 59 minutes', 'pending', 'updating', interval '1.2 seconds', NULL),
    (2, interval '2 hours 58 minutes', 'updating', CASE WHEN s.status IN ('error', 'updating') THEN 'ready' ELSE s.status END, interval '0.34 seconds', NULL),
    (1, interval '1 minute', 'ready', 'ready', interval '0', 'lost'),
    (0, interval '0', 'ready', s.status, interval '2 hours 57 minutes', NULL))
    AS e (n, ago, previous, status, took, health)
WHERE s.status = 'error' OR e.n BETWEEN 2 AND 4
ORDER BY s.time_changed - e.ago, e.n DESC;
ANALYZE spcd.connection_state; ANALYZE spcd.connection_health; ANALYZE spcd.connection_event;
DROP TABLE c"
    )
}
