//! The server's limits of sessions and locks, and their distribution.

use spcd_core::config::HubSettings;
use spcd_core::scheduler::MAX_HEALTHY_PROBES;
use tokio_postgres::Client;

use crate::HubError;

/// Limits of the server for the daemon's role.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of sessions, if other roles have none.
    pub sessions: usize,
    /// Guaranteed number of entries in the lock table.
    pub locks: usize,
}

impl Limits {
    /// Reads the limits.
    pub async fn read(client: &Client) -> Result<Self, HubError> {
        // The limits of roles and databases and the reserved connections do not apply to superusers.
        let sql = "SELECT CASE WHEN r.rolsuper THEN s ELSE least(
                       s - pg_catalog.current_setting('superuser_reserved_connections')::bigint
                         - coalesce(pg_catalog.current_setting('reserved_connections', true)::bigint, 0),
                       CASE WHEN r.rolconnlimit >= 0 THEN r.rolconnlimit END,
                       CASE WHEN d.datconnlimit >= 0 THEN d.datconnlimit END) END,
                       l * (s + p)
                   FROM (SELECT
                       pg_catalog.current_setting('max_connections')::bigint,
                       pg_catalog.current_setting('max_locks_per_transaction')::bigint,
                       pg_catalog.current_setting('max_prepared_transactions')::bigint) AS v (s, l, p),
                       pg_catalog.pg_roles r, pg_catalog.pg_database d
                   WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database()";
        let row = client.query_one(sql, &[]).await?;
        let number = |column: usize| -> Result<usize, HubError> {
            Ok(usize::try_from(row.try_get::<_, i64>(column)?).unwrap_or_default())
        };
        Ok(Self {
            sessions: number(0)?,
            locks: number(1)?,
        })
    }
}

/// Minimum and maximum number of concurrent probes of sources that do not answer.
const UNREACHABLE_PROBES: (usize, usize) = (4, 16);

/// Maximum number of writer sessions.
const MAX_WRITERS: usize = HubSettings::MAX_WRITERS;
/// Number of locks that a writer needs for batches of a good size.
const LOCKS_PER_WRITER: usize = 400;
/// Maximum number of sessions for the daemon's permanent tasks, with the minimum of writers.
const OWN_SESSIONS: usize = 10;
/// Below this number of sessions the daemon uses fewer and closes idle ones.
const FEW_SESSIONS: usize = 14;

/// Distribution of the sessions. From 60 on, at least an eighth is left to other programs.
impl Limits {
    /// Number of sessions below which imports and probes are slowed down.
    pub const RECOMMENDED_SESSIONS: usize = 20;

    /// Whether the limit barely suffices for the permanent sessions.
    pub fn are_few(self) -> bool {
        self.sessions < FEW_SESSIONS
    }

    /// Minimum number of writer sessions. Two are 1.3 times as fast as one on two cores.
    pub fn for_writers(self) -> usize {
        if self.are_few() { 1 } else { 2 }
    }

    /// Maximum number of writer sessions if their number follows the throughput.
    pub fn max_writers(self) -> usize {
        let enough_locks = self.locks / 2 / LOCKS_PER_WRITER;
        self.max_fixed_writers()
            .min(enough_locks)
            .max(self.for_writers())
    }

    /// Maximum number of writer sessions if the settings say their number.
    pub fn max_fixed_writers(self) -> usize {
        let others = OWN_SESSIONS
            + self.for_pool()
            + self.for_imports()
            + self.for_probes(MAX_HEALTHY_PROBES);
        let unused = (self.sessions - self.sessions / 8).saturating_sub(others);
        (self.for_writers() + unused).min(MAX_WRITERS)
    }

    /// Maximum size of the session pool.
    pub fn for_pool(self) -> usize {
        (self.sessions / 10).max(self.for_writers())
    }

    /// Maximum number of import sessions, including stuck ones.
    pub fn for_imports(self) -> usize {
        let left = self.sessions.saturating_sub(OWN_SESSIONS + self.for_pool());
        let least = self.for_writers();
        (self.sessions / 3)
            .clamp(8, 64)
            .min((left * 2 / 3).max(least))
    }

    /// Maximum number of concurrent probes of sources that do not answer.
    pub fn unreachable_probes(self) -> usize {
        (self.sessions / 10).clamp(UNREACHABLE_PROBES.0, UNREACHABLE_PROBES.1)
    }

    /// Maximum number of probe sessions, including stuck ones. `healthy` of them are for sources that
    /// answer.
    pub fn for_probes(self, healthy: usize) -> usize {
        let others = OWN_SESSIONS + self.for_pool() + self.for_imports();
        let left = self.sessions.saturating_sub(others).max(1);
        (healthy + 2 * self.unreachable_probes()).min(left)
    }
}

#[cfg(test)]
mod tests {
    use super::{FEW_SESSIONS, Limits, OWN_SESSIONS};

    #[test]
    fn the_shares_do_not_exceed_the_limit() {
        for sessions in 0..300 {
            let limits = Limits { sessions, locks: 0 };
            let (imports, probes) = (limits.for_imports(), limits.for_probes(4));
            assert!(imports >= 1 && probes >= 1 && limits.for_pool() >= 1);
            let all = OWN_SESSIONS + limits.for_pool() + imports + probes;
            assert!(
                sessions < FEW_SESSIONS || all <= sessions + 1,
                "{sessions}: {all}"
            );
        }
        for sessions in 60..300 {
            let limits = Limits { sessions, locks: 0 };
            let (imports, probes) = (limits.for_imports(), limits.for_probes(4));
            let more = limits.max_fixed_writers() - limits.for_writers();
            let all = OWN_SESSIONS + limits.for_pool() + imports + probes + more;
            assert!(all <= sessions - sessions / 8, "{sessions}: {all}");
        }
        let hundred = Limits {
            sessions: 100,
            locks: 0,
        };
        let shared = (
            hundred.for_pool(),
            hundred.for_imports(),
            hundred.for_probes(4),
        );
        assert_eq!(shared, (10, 33, 24));
    }

    #[test]
    fn writers_take_what_sessions_and_locks_leave() {
        let writers = |sessions, locks| {
            let limits = Limits { sessions, locks };
            let max = (limits.max_writers(), limits.max_fixed_writers());
            (limits.for_writers(), max.0, max.1)
        };
        assert_eq!(writers(8, 512), (1, 1, 1));
        assert_eq!(writers(20, 1280), (2, 2, 2));
        assert_eq!(writers(100, 1000), (2, 2, 13));
        assert_eq!(writers(100, 6400), (2, 8, 13));
        assert_eq!(writers(300, 300 * 256), (2, 16, 16));
    }
}
