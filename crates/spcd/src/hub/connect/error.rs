//! Why there is no session.

use tokio_postgres::error::SqlState;

/// Why there is no session. The cause is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not up yet, or not to be reached: worth another try soon.
    #[error("cannot reach the database at {target}")]
    Unreachable {
        /// `host:port`, or the socket.
        target: String,
        /// What happened.
        #[source]
        source: Cause,
    },
    /// The server answers and says no. Someone has to change something there or in a password
    /// file: worth another try now and then.
    #[error("no session with {target} as {who}; {advice}")]
    Refused {
        /// `host:port`, or the socket.
        target: String,
        /// The role and the database.
        who: String,
        /// What to do about it.
        advice: String,
        /// What the server said.
        #[source]
        source: Cause,
    },
    /// The endpoint cannot be used as it is written: trying again is of no use.
    #[error("{0}")]
    Configuration(String),
}

/// The error below a [`ConnectError`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

impl ConnectError {
    /// Where the server does not believe who asks: which server, as whom, what to do, what it said.
    pub(super) fn of_authentication(&self) -> Option<[String; 4]> {
        let Self::Refused {
            target,
            who,
            advice,
            source,
        } = self
        else {
            return None;
        };
        let said = source.downcast_ref::<tokio_postgres::error::DbError>()?;
        let codes = [
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        ];
        codes.contains(said.code()).then(|| {
            let [target, who, advice] = [target, who, advice].map(String::clone);
            [target, who, advice, said.to_string()]
        })
    }

    /// Whether the server lets in no more sessions now: its own limit, the role's or the database's.
    pub fn is_full(&self) -> bool {
        let (Self::Refused { source, .. } | Self::Unreachable { source, .. }) = self else {
            return false;
        };
        source
            .downcast_ref::<tokio_postgres::error::DbError>()
            .is_some_and(|said| *said.code() == SqlState::TOO_MANY_CONNECTIONS)
    }

    /// Whether the server is there and only the database is not.
    pub fn is_no_such_database(&self) -> bool {
        let Self::Refused { source, .. } = self else {
            return false;
        };
        source
            .downcast_ref::<tokio_postgres::error::DbError>()
            .is_some_and(|said| *said.code() == SqlState::INVALID_CATALOG_NAME)
    }
}

/// What the server itself said, without the driver's words around it.
pub(super) fn plain(error: tokio_postgres::Error) -> Cause {
    match error.as_db_error() {
        Some(said) => Box::new(said.clone()),
        None => error.into(),
    }
}
