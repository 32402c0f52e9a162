//! Errors of this library.

use std::fmt;

use tokio_postgres::error::SqlState;

/// Source of [`Error::Connect`].
///
/// ```
/// let cause: spcd_client::Cause = "no route to host".into();
/// assert_eq!(spcd_client::Error::Connect(cause).to_string(), "cannot open a session with the database");
/// ```
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Reason why an operation failed. An error's text does not repeat its source: print the chain.
///
/// ```
/// # use spcd_client::{Error, Problem};
/// fn advice(error: &Error) -> &str {
///     match error {
///         Error::Connection { problem: Problem::Unknown, .. } => "is it in a .spc file?",
///         Error::TimedOut { .. } => "try again later",
///         _ => "ask the person who runs spcd",
///     }
/// }
/// # let error = Error::TimedOut { waiting: vec![], source: None };
/// # assert_eq!(advice(&error), "try again later");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The table `spcd.connection_state` does not exist: spcd was never run on this database.
    #[error("spcd has not been run on this database: there is no spcd.connection_state")]
    NotKept,
    /// No session could be opened.
    #[error("cannot open a session with the database")]
    Connect(#[source] Cause),
    /// The database rejected the statement, or the session was lost while it ran.
    #[error("the statement failed")]
    Database(#[from] tokio_postgres::Error),
    /// A row has a value that this version does not know.
    #[error("a row of spcd.connection_state is not understood: is spcd newer than this program?")]
    Row(#[source] serde_json::Error),
    /// A connection that was named, or that the statement needs, will not become ready.
    #[error("connection {name:?} {problem}")]
    Connection {
        /// Name of the connection.
        name: String,
        /// Reason why it will not become ready.
        problem: Problem,
        /// Server's error for the statement that needed it.
        source: Option<tokio_postgres::Error>,
    },
    /// The time limit expired.
    #[error("not ready in time: {}", waiting.join(", "))]
    TimedOut {
        /// Connections that were not settled; empty if the database itself could not be reached.
        waiting: Vec<String>,
        /// Server's error for the statement that needed it.
        source: Option<tokio_postgres::Error>,
    },
}

/// Reason why a connection will not become ready.
///
/// ```
/// # use spcd_client::Problem;
/// let problem = Problem::Error("no route to host".into());
/// assert_eq!(problem.to_string(), "is in error: no route to host");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// No file configures the connection.
    Unknown,
    /// The connection has no schema: `import_schema = "disabled"`.
    Disabled,
    /// The connection is in error; the text is the row's.
    Error(String),
    /// The connection is ready without the table that the statement needs. The text is its warning
    /// about that table.
    LeftOut(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unknown => f.write_str("is not configured"),
            Problem::Disabled => f.write_str("is disabled"),
            Problem::Error(text) => write!(f, "is in error: {text}"),
            Problem::LeftOut(text) => write!(f, "is ready, but {text}"),
        }
    }
}

impl Error {
    /// Returns the SQLSTATE of the server's error, if there was one.
    ///
    /// ```
    /// # async fn example(client: &mut spcd_client::Client) {
    /// if let Err(error) = client.query("SELECT * FROM sales.orders", &[]).await {
    ///     println!("{error}: {:?}", error.code());
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Error::Database(error) => error.code(),
            Error::Connection { source, .. } | Error::TimedOut { source, .. } => {
                source.as_ref().and_then(tokio_postgres::Error::code)
            }
            _ => None,
        }
    }

    /// Returns the error of a statement that read spcd's tables.
    ///
    /// ```no_run
    /// # async fn example(client: &tokio_postgres::Client) -> Result<(), spcd_client::Error> {
    /// let count = client.query_one("SELECT count(*) FROM spcd.connection_event", &[]).await;
    /// let count = count.map_err(spcd_client::Error::reading)?;
    /// # drop(count); Ok(()) }
    /// ```
    pub fn reading(error: tokio_postgres::Error) -> Self {
        let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
        match error.code() {
            Some(code) if missing.contains(code) => Error::NotKept,
            _ => Error::Database(error),
        }
    }

    /// Returns whether the session is lost or the server is shutting down: another session may
    /// succeed.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Error::Database(error) if is_lost(error))
    }
}

/// Returns whether the session is lost or the server is shutting down.
pub(crate) fn is_lost(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_none_or(|db_error| is_unavailable(db_error.code()))
}

/// Returns whether a server that shuts down, starts or has no free session reports this SQLSTATE.
pub(crate) fn is_unavailable(code: &SqlState) -> bool {
    let going = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::IDLE_SESSION_TIMEOUT,
    ];
    going.contains(code)
}
