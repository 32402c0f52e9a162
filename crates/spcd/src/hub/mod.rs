//! The Postgres that holds the schemas.

pub mod adopt;
pub mod ahead;
pub mod apply;
pub mod ask;
mod catalog;
pub mod comments;
pub mod connect;
pub mod crash;
mod csv;
pub mod dependents;
pub mod destroy;
pub mod facts;
pub mod inputs;
pub mod lead;
pub mod migrate;
pub mod observe;
mod ownership;
mod partial;
pub mod pool;
mod privileges;
pub mod probe;
mod scratch;
pub mod search_path;
pub mod state;
pub mod steampipe;
mod tables;
mod tls;
mod transaction;
pub mod trial;
pub mod union;
pub mod waiting;

use spcd_core::health::{self, Kind};
use tokio_postgres::Client;
use tokio_postgres::error::{DbError, SqlState};

/// Why a statement on the hub did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The session is gone, or the server is going: connect again.
    #[error("the connection to the database is lost")]
    Lost(#[source] tokio_postgres::Error),
    /// The server process that ran a wrapper's code died.
    #[error("the wrapper ended its server process")]
    Crashed,
    /// It did not answer in time though the session is open.
    #[error("the database does not answer")]
    Silent,
    /// Another session waits for a lock that the daemon's own keep from it.
    #[error("another session drops or alters the schema spcd; this daemon gives way")]
    InTheWay,
    /// The session that holds the lead has ended: the server went away, or somebody ended it.
    #[error("the session that holds the lead was closed")]
    LeadLost,
    /// The server takes no writes: a standby, or one that was made read-only. Another may.
    #[error("the database takes no writes now: it is a standby, or read-only")]
    ReadOnly,
    /// There is no session for it now.
    #[error("cannot open a session with the database")]
    NoSession,
    /// The write was refused because another daemon leads.
    #[error("another daemon leads now")]
    NotLeading,
    /// The server says no, in words for the user.
    #[error("{text}")]
    Refused {
        /// Its message, detail and hint.
        text: String,
        /// Its SQLSTATE.
        code: SqlState,
    },
}

/// How much room the server has.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sessions that it lets us have, if nobody else has any.
    pub sessions: usize,
    /// Entries of its lock table that it vouches for; somewhat more fit into it.
    pub locks: usize,
}

impl Limits {
    /// Asks the server.
    pub async fn read(client: &Client) -> Result<Self, HubError> {
        // A superuser's own limit does not count, nor do the places that are kept for superusers.
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

/// Sources that do not answer are asked by so many probes at a time, at least and at most.
const LOST: (usize, usize) = (4, 16);

/// Sessions of the daemon's own, at most.
const OWN: usize = 10;
/// With fewer than so many it makes do with less, and lets go of what it does not use.
const FEW: usize = 14;

/// How the server's sessions are shared out, besides ten of the daemon's own. What is left, an eighth
/// at least where it lets in 60 or more, is for others.
impl Limits {
    /// With fewer than so many, much is slower than it has to be.
    pub const ENOUGH: usize = 20;

    /// Whether there is hardly room for the daemon's own.
    pub fn are_few(self) -> bool {
        self.sessions < FEW
    }

    /// So many write.
    pub fn for_writers(self) -> usize {
        if self.are_few() { 1 } else { 2 }
    }

    /// The pool may have so many.
    pub fn for_pool(self) -> usize {
        (self.sessions / 10).max(self.for_writers())
    }

    /// Imports may wait in so many, those that hang included.
    pub fn for_imports(self) -> usize {
        let left = self.sessions.saturating_sub(OWN + self.for_pool());
        let least = self.for_writers();
        (self.sessions / 3)
            .clamp(8, 64)
            .min((left * 2 / 3).max(least))
    }

    /// So many sources that did not answer are probed at a time.
    pub fn lost_probes(self) -> usize {
        (self.sessions / 10).clamp(LOST.0, LOST.1)
    }

    /// Probes may wait in so many, those that hang included, where so many are for sources that
    /// answer.
    pub fn for_probes(self, well: usize) -> usize {
        let others = OWN + self.for_pool() + self.for_imports();
        let left = self.sessions.saturating_sub(others).max(1);
        (well + 2 * self.lost_probes()).min(left)
    }
}

/// `spcd.assert_lead` raises it.
const NOT_LEADING: &str = "SP010";

impl From<tokio_postgres::Error> for HubError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return match is_of_the_request(&error) {
                false => HubError::Lost(error),
                true => HubError::Refused {
                    text: "it cannot be sent to the server: is there a NUL in it?".into(),
                    code: SqlState::CHARACTER_NOT_IN_REPERTOIRE,
                },
            };
        };
        let going = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ];
        if going.contains(db.code()) {
            HubError::Lost(error)
        } else if *db.code() == SqlState::READ_ONLY_SQL_TRANSACTION {
            HubError::ReadOnly
        } else if db.code().code() == NOT_LEADING {
            HubError::NotLeading
        } else {
            HubError::Refused {
                text: describe(db),
                code: db.code().clone(),
            }
        }
    }
}

impl HubError {
    /// Whether the same statements may succeed when sent again: a deadlock, a serialization
    /// failure, a lock that was not got in time, two ALTERs of one row at once.
    pub fn is_passing(&self) -> bool {
        let passing = [
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::INTERNAL_ERROR,
        ];
        matches!(self, HubError::Refused { code, .. } if passing.contains(code))
    }

    /// Whether the server has no room: a full disk, no memory (class 53 of SQLSTATE).
    pub fn is_out_of_room(&self) -> bool {
        matches!(self, HubError::Refused { code, .. } if code.code().starts_with("53"))
    }

    /// Whether it may succeed when sent again at once: whoever holds a lock may do so for long.
    pub fn may_pass_now(&self) -> bool {
        self.is_passing() && !self.is_blocked()
    }

    /// Of what was said of a source: what stands between us and it.
    pub fn kind(&self) -> Kind {
        match self {
            HubError::Refused { text, code } => health::kind(code.code(), text),
            _ => Kind::Other,
        }
    }

    /// Whether a lock was not got in time: its text says who holds it.
    pub fn is_blocked(&self) -> bool {
        matches!(self, HubError::Refused { code, .. } if *code == SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether the hub's encoding cannot hold what the source has.
    pub fn is_of_encoding(&self) -> bool {
        let codes = [
            SqlState::UNTRANSLATABLE_CHARACTER,
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        ];
        matches!(self, HubError::Refused { code, .. } if codes.contains(code))
    }

    /// Whether it may be one table's fault alone.
    pub fn is_of_a_table(&self) -> bool {
        matches!(self, HubError::Refused { .. }) && !self.is_passing() && !self.is_stale()
    }

    /// Whether it may be the fault of one table of a source alone, whose definition may need what the
    /// hub does not have.
    pub fn is_of_an_imported_table(&self) -> bool {
        matches!(self, HubError::Refused { code, .. } if *code != SqlState::QUERY_CANCELED)
            && !self.is_passing()
    }

    /// Whether the statements were made for tables or views that changed meanwhile.
    pub fn is_stale(&self) -> bool {
        let stale = [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN];
        matches!(self, HubError::Refused { code, .. } if stale.contains(code))
    }
}

/// Whether the driver refused to send a statement, so that the session is as it was.
fn is_of_the_request(error: &tokio_postgres::Error) -> bool {
    use std::error::Error as _;
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<std::io::Error>());
    !error.is_closed()
        && cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidInput)
}

/// What the server says, on one line: message, detail, hint.
fn describe(error: &DbError) -> String {
    // Its hint is CASCADE, which would take what people made.
    if *error.code() == SqlState::DEPENDENT_OBJECTS_STILL_EXIST {
        let what = one_line(error.detail().unwrap_or(error.message()));
        return format!("objects that spcd did not make are in the way, drop them first: {what}");
    }
    let parts = [Some(error.message()), error.detail(), error.hint()];
    let mut parts: Vec<_> = parts.into_iter().flatten().map(one_line).collect();
    if let Some(function) = error.where_().and_then(foreign_function) {
        parts.push(format!("raised by {function}, which is not spcd's"));
    }
    parts.join("; ")
}

/// The function of users that was running (an event trigger's), from an error's context. Its lines
/// are translated, but a function's signature with its types is not; of statements, which may hold
/// values, nothing is taken.
fn foreign_function(context: &str) -> Option<&str> {
    let first = context.lines().next()?;
    let of_function = first.strip_prefix("PL/pgSQL function ")?;
    let (function, _) = of_function.split_once(" line ")?;
    let is_own = function.starts_with("spcd.") || function == "inline_code_block";
    (!is_own).then_some(function)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the hub's database is in UTF8.
pub async fn is_utf8(client: &Client) -> Result<bool, HubError> {
    let sql = "SELECT pg_catalog.current_setting('server_encoding') = 'UTF8'";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}

#[cfg(test)]
mod tests {
    use super::{FEW, Limits, OWN, foreign_function};

    #[test]
    fn a_function_of_users_is_named_and_no_statement() {
        for (context, function) in [
            (
                "PL/pgSQL function public.no_ddl() line 3 at RAISE",
                Some("public.no_ddl()"),
            ),
            (
                "PL/pgSQL function spcd.record(jsonb) line 3 at SQL statement",
                None,
            ),
            ("SQL statement \"SELECT 'secret'\"", None),
            ("PL/pgSQL function inline_code_block line 2 at RAISE", None),
            ("", None),
        ] {
            assert_eq!(foreign_function(context), function, "{context}");
        }
    }

    #[test]
    fn nothing_is_shared_out_that_is_not_there() {
        for sessions in 0..300 {
            let limits = Limits { sessions, locks: 0 };
            let (imports, probes) = (limits.for_imports(), limits.for_probes(4));
            assert!(imports >= 1 && probes >= 1 && limits.for_pool() >= 1);
            let all = OWN + limits.for_pool() + imports + probes;
            assert!(sessions < FEW || all <= sessions + 1, "{sessions}: {all}");
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
}
