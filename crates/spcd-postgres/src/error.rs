//! Errors of statements that run on the hub, classified by what a caller does about them.

use spcd_core::health::{self, FailureKind};
use tokio_postgres::error::{DbError, SqlState};

/// A statement on the hub failed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The session ended, or the server shuts down. A new connection is needed.
    #[error("the connection to the database is lost")]
    ConnectionLost(#[source] tokio_postgres::Error),
    /// The server process that ran a wrapper's code died, or the connection with it was lost.
    #[error("the wrapper ended its server process")]
    WrapperCrashed {
        /// The process.
        backend_pid: i32,
    },
    /// The session is open, but the server did not answer within the time limit.
    #[error("the database does not answer")]
    Unresponsive,
    /// Another session waits for a lock that only the daemon's sessions hold.
    #[error("another session drops or alters the schema spcd; this daemon gives way")]
    SchemaChangeWaiting,
    /// The session that holds the leader lock was closed or terminated.
    #[error("the session that holds the leader lock was closed")]
    LeadershipLost,
    /// The server is a standby or read-only. Another host of the endpoint may accept writes.
    #[error("the database takes no writes now: it is a standby, or read-only")]
    ReadOnly,
    /// No session could be opened. The log has the reason.
    #[error("cannot open a session with the database")]
    NoSession,
    /// The write was refused because another daemon leads.
    #[error("another daemon leads now")]
    NotLeader,
    /// The source is changing the tables of a connection, so its catalog must not be used.
    #[error("the source is changing its tables")]
    SourceAtWork,
    /// The server refused the statement.
    #[error("{text}")]
    StatementFailed {
        /// The server's message, detail and hint, on one line.
        text: String,
        /// The SQLSTATE.
        code: SqlState,
    },
}

/// SQLSTATE that the function `spcd.assert_lead` raises.
const NOT_LEADER: &str = "SP010";

impl From<tokio_postgres::Error> for HubError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return match is_invalid_request(&error) {
                false => HubError::ConnectionLost(error),
                true => HubError::StatementFailed {
                    text: "the statement cannot be sent: check whether a value has a NUL byte"
                        .into(),
                    code: SqlState::CHARACTER_NOT_IN_REPERTOIRE,
                },
            };
        };
        let session_ends = [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ];
        if session_ends.contains(db.code()) {
            HubError::ConnectionLost(error)
        } else if *db.code() == SqlState::READ_ONLY_SQL_TRANSACTION {
            HubError::ReadOnly
        } else if db.code().code() == NOT_LEADER {
            HubError::NotLeader
        } else {
            HubError::StatementFailed {
                text: describe(db),
                code: db.code().clone(),
            }
        }
    }
}

impl HubError {
    /// Whether the same statements may succeed when they are sent again: after a deadlock, a
    /// serialization failure, a lock time-out or a concurrent ALTER of one catalog row.
    pub fn is_transient(&self) -> bool {
        self.has_code(&[
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::INTERNAL_ERROR,
        ])
    }

    /// Whether the server is out of disk space, memory or another resource (SQLSTATE class 53).
    pub fn is_out_of_resources(&self) -> bool {
        matches!(self, HubError::StatementFailed { code, .. } if code.code().starts_with("53"))
    }

    /// Whether the server's state is the reason, and not the statements: a lack of resources, a cancelled
    /// statement, a server that stops or starts, an error of its disk (SQLSTATE classes 53, 57 and 58).
    pub fn is_of_the_server(&self) -> bool {
        let classes = ["53", "57", "58"];
        matches!(self, HubError::StatementFailed { code, .. }
                 if classes.iter().any(|class| code.code().starts_with(class)))
    }

    /// Whether the error is transient and needs no pause before a retry. A lock may be held for long.
    pub fn is_retryable_at_once(&self) -> bool {
        self.is_transient() && !self.is_lock_timeout()
    }

    /// Kind of failure that the error of a source stands for.
    pub fn kind(&self) -> FailureKind {
        match self {
            HubError::StatementFailed { text, code } => health::classify_failure(code.code(), text),
            _ => FailureKind::Other,
        }
    }

    /// Whether a lock was not granted in time. The text then names the sessions that hold it.
    pub fn is_lock_timeout(&self) -> bool {
        self.has_code(&[SqlState::LOCK_NOT_AVAILABLE])
    }

    /// Whether the hub's encoding cannot represent a character of the source.
    pub fn is_encoding_error(&self) -> bool {
        self.has_code(&[
            SqlState::UNTRANSLATABLE_CHARACTER,
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        ])
    }

    /// Whether a single table of those that the statements change may be the reason.
    pub fn may_concern_one_table(&self) -> bool {
        matches!(self, HubError::StatementFailed { .. })
            && !self.is_transient()
            && !self.is_outdated()
    }

    /// Whether a single table of the source may be the reason: its definition may need an object
    /// that the hub does not have.
    pub fn may_concern_one_import(&self) -> bool {
        matches!(self, HubError::StatementFailed { code, .. } if *code != SqlState::QUERY_CANCELED)
            && !self.is_transient()
    }

    /// Whether the statements refer to tables or views that another session has changed meanwhile.
    pub fn is_outdated(&self) -> bool {
        self.has_code(&[SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN])
    }

    /// Adds how to find the missing privilege to the error of a write that lacks one.
    pub fn with_privilege_advice(mut self) -> Self {
        if let HubError::StatementFailed { text, code } = &mut self
            && *code == SqlState::INSUFFICIENT_PRIVILEGE
        {
            text.push_str(" (`spcd doctor` says what to grant to spcd's role)");
        }
        self
    }

    fn has_code(&self, codes: &[SqlState]) -> bool {
        matches!(self, HubError::StatementFailed { code, .. } if codes.contains(code))
    }
}

/// Whether the driver refused to encode a statement. The session is then unchanged.
fn is_invalid_request(error: &tokio_postgres::Error) -> bool {
    use std::error::Error as _;
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<std::io::Error>());
    !error.is_closed()
        && cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidInput)
}

/// Formats a server error on one line: message, detail, hint.
fn describe(error: &DbError) -> String {
    // The server's hint recommends CASCADE, which would drop objects of users.
    if *error.code() == SqlState::DEPENDENT_OBJECTS_STILL_EXIST {
        let detail = one_line(error.detail().unwrap_or(error.message()));
        return format!(
            "objects that spcd did not create are in the way, drop them first: {detail}"
        );
    }
    let parts = [Some(error.message()), error.detail(), error.hint()];
    let mut parts: Vec<_> = parts.into_iter().flatten().map(one_line).collect();
    if let Some(function) = error.where_().and_then(user_function) {
        parts.push(format!("raised by {function}, which is not spcd's"));
    }
    parts.join("; ")
}

/// Returns the user's function (for example an event trigger's) that raised an error, from the
/// error's context.
///
/// The context's lines are translated, but a function's signature is not. Statements are never
/// returned: they may contain secret values.
fn user_function(context: &str) -> Option<&str> {
    let first = context.lines().next()?;
    let signature = first.strip_prefix("PL/pgSQL function ")?;
    let (function, _) = signature.split_once(" line ")?;
    let is_own = function.starts_with("spcd.") || function == "inline_code_block";
    (!is_own).then_some(function)
}

pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::user_function;

    #[test]
    fn error_context_names_a_user_function_and_no_statement() {
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
            assert_eq!(user_function(context), function, "{context}");
        }
    }
}
