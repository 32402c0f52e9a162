//! Statuses of a connection and their transitions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Status of a connection.
///
/// ```
/// use spcd_protocol::Status;
///
/// assert_eq!("ready".parse(), Ok(Status::Ready));
/// assert!(Status::Error.is_settled() && !Status::Updating.is_settled());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Configured, and not compared with the database since it appeared or the service started.
    Pending,
    /// A difference is known and is being applied.
    Updating,
    /// Its block was removed; its schema is about to be dropped.
    Deleting,
    /// Everything that the block asks for exists.
    Ready,
    /// The connection cannot be brought to its desired state; the row's `error` says why.
    Error,
    /// `import_schema = "disabled"`: no schema.
    Disabled,
}

/// Permitted transitions, in rows and in events. This is the only table of them.
///
/// When the service starts or takes over, every row but the disabled ones becomes `pending`. That
/// is one event without a connection and no transition of each row.
const TRANSITIONS: [(Status, &[Status]); 6] = {
    use Status::{Deleting, Disabled, Error, Pending, Ready, Updating};
    [
        (Pending, &[Ready, Error, Updating, Disabled, Deleting]),
        (Updating, &[Ready, Error, Disabled, Deleting]),
        (Deleting, &[Error, Pending]),
        (Ready, &[Updating, Disabled, Deleting]),
        (Error, &[Ready, Error, Updating, Disabled, Deleting]),
        (Disabled, &[Updating, Deleting]),
    ]
};

impl Status {
    /// All statuses.
    ///
    /// ```
    /// assert_eq!(spcd_protocol::Status::ALL.len(), 6);
    /// ```
    pub const ALL: [Status; 6] = [
        Status::Pending,
        Status::Updating,
        Status::Deleting,
        Status::Ready,
        Status::Error,
        Status::Disabled,
    ];

    /// Statuses that a new connection may have.
    ///
    /// ```
    /// use spcd_protocol::Status;
    /// assert!(!Status::INITIAL.contains(&Status::Ready));
    /// ```
    pub const INITIAL: [Status; 3] = [Status::Pending, Status::Error, Status::Disabled];

    /// Returns the word that `spcd.connection_state` holds.
    ///
    /// ```
    /// assert_eq!(spcd_protocol::Status::Ready.as_str(), "ready");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Updating => "updating",
            Status::Deleting => "deleting",
            Status::Ready => "ready",
            Status::Error => "error",
            Status::Disabled => "disabled",
        }
    }

    /// Returns whether the status is final for a waiting client: `ready`, `error` or `disabled`.
    ///
    /// ```
    /// assert!(!spcd_protocol::Status::Pending.is_settled());
    /// ```
    pub fn is_settled(self) -> bool {
        matches!(self, Status::Ready | Status::Error | Status::Disabled)
    }

    /// Returns whether `next` may follow directly.
    ///
    /// ```
    /// use spcd_protocol::Status;
    /// assert!(Status::Ready.may_become(Status::Updating));
    /// assert!(!Status::Ready.may_become(Status::Error));
    /// ```
    pub fn may_become(self, next: Status) -> bool {
        TRANSITIONS
            .iter()
            .any(|(from, to)| *from == self && to.contains(&next))
    }

    /// Returns the statuses to pass through, `to` included, so that each step is a permitted
    /// transition. A ready connection whose block breaks becomes `updating` and then `error`, in
    /// one commit. Returns an empty list when nothing changes, and when no route exists: only a new
    /// or deleting row may become `pending`.
    ///
    /// ```
    /// use spcd_protocol::Status;
    /// let route = Status::route(Some(Status::Ready), Status::Error);
    /// assert_eq!(route, [Status::Updating, Status::Error]);
    /// ```
    pub fn route(from: Option<Status>, to: Status) -> Vec<Status> {
        let follows = |from: Option<Status>, to: Status| match from {
            None => Self::INITIAL.contains(&to),
            Some(from) => from.may_become(to),
        };
        if from == Some(to) {
            return Vec::new();
        }
        if follows(from, to) {
            return vec![to];
        }
        let between = [Status::Updating, Status::Pending];
        let step = between
            .into_iter()
            .find(|step| follows(from, *step) && step.may_become(to));
        step.map_or_else(Vec::new, |step| vec![step, to])
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Error for a text that is not a status.
///
/// ```
/// let error = "READY".parse::<spcd_protocol::Status>().unwrap_err();
/// assert_eq!(error.to_string(), "\"READY\" is not a connection's status");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseStatusError(pub String);

impl fmt::Display for ParseStatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a connection's status", self.0)
    }
}

impl std::error::Error for ParseStatusError {}

impl FromStr for Status {
    type Err = ParseStatusError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| ParseStatusError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn every_route_is_made_of_permitted_steps_and_ends_where_it_should() {
        for to in Status::ALL {
            for from in Status::ALL.map(Some).into_iter().chain([None]) {
                let route = Status::route(from, to);
                let appears = matches!(from, None | Some(Status::Deleting));
                if from == Some(to) || (to == Status::Pending && !appears) {
                    assert!(route.is_empty());
                    continue;
                }
                assert_eq!(route.last(), Some(&to), "{from:?} -> {to}");
                let mut at = from;
                for step in route {
                    match at {
                        None => assert!(Status::INITIAL.contains(&step), "appears as {step}"),
                        Some(at) => assert!(at.may_become(step), "{at} -> {step}"),
                    }
                    at = Some(step);
                }
            }
        }
    }

    #[test]
    fn a_ready_connection_breaks_by_way_of_updating() {
        assert_eq!(
            Status::route(Some(Status::Ready), Status::Error),
            [Status::Updating, Status::Error]
        );
    }

    #[test]
    fn names_round_trip() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(
                serde_json::to_string(&status).unwrap(),
                format!("{:?}", status.as_str())
            );
        }
        assert!("READY".parse::<Status>().is_err());
    }
}
