//! What can go wrong, for callers who tell cases apart.

use std::fmt;

use tokio_postgres::error::SqlState;

/// The error below [`Error::Connect`].
///
/// ```
/// let cause: spcd_client::Cause = "no route to host".into();
/// assert_eq!(spcd_client::Error::Connect(cause).to_string(), "cannot open a session with the database");
/// ```
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no answer. An error's text does not repeat its cause: print the chain.
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
    /// There is no `spcd.connection_state`: spcd was never run on this database.
    #[error("spcd has not been run on this database: there is no spcd.connection_state")]
    NotKept,
    /// No session with the database could be opened.
    #[error("cannot open a session with the database")]
    Connect(#[source] Cause),
    /// The database refuses the statement, or was lost while it ran.
    #[error("the statement failed")]
    Database(#[from] tokio_postgres::Error),
    /// A row that this version does not understand.
    #[error("a row of spcd.connection_state is not understood: is spcd newer than this program?")]
    Row(#[source] serde_json::Error),
    /// A connection that was named, or that the statement needs, will not become ready by waiting.
    #[error("connection {name:?} {problem}")]
    Connection {
        /// Which.
        name: String,
        /// What is the matter with it.
        problem: Problem,
        /// What the server said to the statement that needed it.
        source: Option<tokio_postgres::Error>,
    },
    /// Time is up.
    #[error("not ready in time: {}", waiting.join(", "))]
    TimedOut {
        /// What was waited for; empty when it was the database itself.
        waiting: Vec<String>,
        /// What the server said to the statement that needed it.
        source: Option<tokio_postgres::Error>,
    },
}

/// What is the matter with a connection.
///
/// ```
/// # use spcd_client::Problem;
/// let problem = Problem::Error("no route to host".into());
/// assert_eq!(problem.to_string(), "is in error: no route to host");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// No file configures it.
    Unknown,
    /// It has no schema: `import_schema = "disabled"`.
    Disabled,
    /// It is in error; the text says why.
    Error(String),
    /// It is ready without the table that the statement needs; the text is its warning about that
    /// table, which says why.
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
    /// The SQLSTATE of the server's answer, if there was one.
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

    /// Of statements that read spcd's own tables.
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

    /// Whether the session is gone, or the server is going: another session may do.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Error::Database(error) if is_lost(error))
    }
}

/// Whether the session is gone, or the server is going.
pub(crate) fn is_lost(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none_or(|said| is_going(said.code()))
}

/// What a server says that goes, comes, or has no room now.
pub(crate) fn is_going(code: &SqlState) -> bool {
    let going = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::IDLE_SESSION_TIMEOUT,
    ];
    going.contains(code)
}
