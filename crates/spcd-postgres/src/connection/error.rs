//! Errors of connection attempts.

use tokio_postgres::error::{DbError, SqlState};

/// A session could not be opened. The cause is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server is not up, not reachable or full. A retry soon may succeed.
    #[error("cannot reach the database at {target}")]
    Unreachable {
        /// `host:port`, or the socket.
        target: String,
        /// The network's or the server's error.
        #[source]
        source: Cause,
    },
    /// The server refuses the session until its configuration or a password changes.
    #[error("no session with {target} as {identity}; {advice}")]
    Refused {
        /// `host:port`, or the socket.
        target: String,
        /// The role and the database.
        identity: String,
        /// What the operator can do about it.
        advice: String,
        /// The server's error.
        #[source]
        source: Cause,
    },
    /// The connection string is invalid. A retry cannot succeed.
    #[error("{0}")]
    Configuration(String),
}

/// The error below a [`ConnectError`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A [`ConnectError::Refused`] because of the credentials, in a form that can be repeated.
#[derive(Debug, Clone)]
pub(super) struct AuthenticationFailure {
    target: String,
    identity: String,
    advice: String,
    message: String,
}

impl From<AuthenticationFailure> for ConnectError {
    fn from(failure: AuthenticationFailure) -> Self {
        Self::Refused {
            target: failure.target,
            identity: failure.identity,
            advice: failure.advice,
            source: failure.message.into(),
        }
    }
}

impl ConnectError {
    /// Returns the failure if the server rejected the credentials.
    pub(super) fn authentication_failure(&self) -> Option<AuthenticationFailure> {
        let Self::Refused {
            target,
            identity,
            advice,
            ..
        } = self
        else {
            return None;
        };
        let error = self.server_error()?;
        let codes = [
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        ];
        codes.contains(error.code()).then(|| AuthenticationFailure {
            target: target.clone(),
            identity: identity.clone(),
            advice: advice.clone(),
            message: error.to_string(),
        })
    }

    /// Whether the connection limit of the server, the role or the database is reached.
    pub fn is_full(&self) -> bool {
        self.has_code(&SqlState::TOO_MANY_CONNECTIONS)
    }

    /// Whether the server rejected the password.
    pub fn is_wrong_password(&self) -> bool {
        self.has_code(&SqlState::INVALID_PASSWORD)
    }

    /// Whether the server answers and the database does not exist.
    pub fn is_missing_database(&self) -> bool {
        self.has_code(&SqlState::INVALID_CATALOG_NAME)
    }

    fn has_code(&self, code: &SqlState) -> bool {
        self.server_error()
            .is_some_and(|error| error.code() == code)
    }

    fn server_error(&self) -> Option<&DbError> {
        match self {
            Self::Refused { source, .. } | Self::Unreachable { source, .. } => {
                source.downcast_ref()
            }
            Self::Configuration(_) => None,
        }
    }
}

/// Returns the server's own error without the driver's text around it.
pub(super) fn server_error(error: tokio_postgres::Error) -> Cause {
    match error.as_db_error() {
        Some(error) => Box::new(error.clone()),
        None => error.into(),
    }
}
