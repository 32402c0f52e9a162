//! The states and their transitions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a connection stands.
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
    /// Wanted; not looked at yet since it appeared or since the service started.
    Pending,
    /// A difference is known and is being applied.
    Updating,
    /// Its block is gone; its schema is about to be.
    Deleting,
    /// Everything wanted is there.
    Ready,
    /// Something stands in the way; the row's `error` says what.
    Error,
    /// `import_schema = "disabled"`: no schema.
    Disabled,
}

/// Which status may follow which, in a row and as an event. Only this table says so.
///
/// When the service starts or takes over, every row but the disabled ones becomes `pending`: that is
/// one event without a connection, and no transition of each.
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
    /// All of them.
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

    /// The states in which a connection appears.
    ///
    /// ```
    /// use spcd_protocol::Status;
    /// assert!(!Status::FIRST.contains(&Status::Ready));
    /// ```
    pub const FIRST: [Status; 3] = [Status::Pending, Status::Error, Status::Disabled];

    /// As it stands in the table.
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

    /// Whether waiting for it is over: `ready`, `error` or `disabled`.
    ///
    /// ```
    /// assert!(!spcd_protocol::Status::Pending.is_settled());
    /// ```
    pub fn is_settled(self) -> bool {
        matches!(self, Status::Ready | Status::Error | Status::Disabled)
    }

    /// Whether `next` may follow directly.
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

    /// The states to pass through, `to` included, so that each step is a permitted transition:
    /// a ready connection whose block breaks is `updating` and then `error`, in one commit.
    /// Empty when nothing changes, and where no way leads: only a row that is new or about to go
    /// becomes `pending`.
    ///
    /// ```
    /// use spcd_protocol::Status;
    /// let route = Status::route(Some(Status::Ready), Status::Error);
    /// assert_eq!(route, [Status::Updating, Status::Error]);
    /// ```
    pub fn route(from: Option<Status>, to: Status) -> Vec<Status> {
        let follows = |from: Option<Status>, to: Status| match from {
            None => Self::FIRST.contains(&to),
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

/// A text that is no status.
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
                        None => assert!(Status::FIRST.contains(&step), "appears as {step}"),
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
