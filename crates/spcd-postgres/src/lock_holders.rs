//! Names the sessions whose locks a statement waited for in vain.

use tokio_postgres::Client;

use crate::HubError;

/// Replaces the text of a lock time-out by the sessions that hold locks on the tables of a connection's
/// schema, or locks on catalogs that exclude a change.
pub(super) async fn with_holders(client: &Client, schema: &str, mut error: HubError) -> HubError {
    if !error.is_lock_timeout() {
        return error;
    }
    // Omits the query of these sessions, which may contain secrets.
    let sql = "SELECT DISTINCT ON (n.nspname <> 'pg_catalog', l.pid) pg_catalog.format(
                   'process %s%s%s holds a lock on %I.%I', l.pid,
                   ' of ' || a.usename, ' (' || nullif(a.application_name, '') || ')',
                   n.nspname, c.relname), n.nspname = 'pg_catalog'
               FROM pg_catalog.pg_namespace n
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
               JOIN pg_catalog.pg_locks l ON l.locktype = 'relation' AND l.relation = c.oid
                    AND l.granted AND l.pid <> pg_catalog.pg_backend_pid()
                    AND l.database = (SELECT oid FROM pg_catalog.pg_database
                                      WHERE datname = pg_catalog.current_database())
               LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
               WHERE n.nspname = $1
                  OR n.nspname = 'pg_catalog'
                     AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                                    'AccessExclusiveLock')
               ORDER BY n.nspname <> 'pg_catalog', l.pid, c.relname LIMIT 5";
    if let Ok(rows) = client.query(sql, &[&schema]).await
        && let HubError::StatementFailed { text, .. } = &mut error
    {
        let holders: Vec<(String, bool)> = (rows.iter())
            .filter_map(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?)))
            .collect();
        let what = match holders.first() {
            Some((_, true)) => "the server's catalogs are locked",
            Some((_, false)) => "its tables are in use",
            None => return error,
        };
        let holders: Vec<String> = holders.into_iter().map(|(holder, _)| holder).collect();
        *text = format!("{what}: {}", holders.join("; "));
    }
    error
}
