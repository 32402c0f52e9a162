//! What travels on the channel.

use serde::{Deserialize, Serialize};

use crate::Status;

/// The channel on which the daemon announces changes.
///
/// ```
/// assert_eq!(format!("LISTEN {}", spcd_protocol::CHANNEL), "LISTEN connection_state");
/// ```
pub const CHANNEL: &str = "connection_state";

/// The channel on which anyone asks the daemon to look again. Its payload is never read.
///
/// ```
/// assert_eq!(format!("NOTIFY {}", spcd_protocol::WAKE_CHANNEL), "NOTIFY spcd_wake");
/// ```
pub const WAKE_CHANNEL: &str = "spcd_wake";

/// One message. Unknown fields are ignored, so that later versions can add some.
///
/// ```
/// let payload = r#"{"version":1,"resync":true}"#;
/// let message: spcd_protocol::Notification = serde_json::from_str(payload)?;
/// assert!(message.resync && message.changes.is_empty());
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// 1.
    pub version: u32,
    /// The pass that made the changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The daemon cannot know what was missed: read the table again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resync: bool,
    /// In the order in which they happened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// One change of one connection.
///
/// ```
/// use spcd_protocol::{Notification, Reported, Status};
///
/// let payload = r#"{"version":1,"generation":7,"changes":[{"connection":"sales","status":"ready",
///     "previous":"updating","time":"2026-01-01T00:00:00Z","event":12}]}"#;
/// let message: Notification = serde_json::from_str(payload)?;
/// let change = &message.changes[0];
/// assert_eq!(change.connection, "sales");
/// assert_eq!(change.status, Reported::Status(Status::Ready));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Whose.
    pub connection: String,
    /// What it is now.
    pub status: Reported,
    /// What it was; `None` when it is new.
    pub previous: Option<Status>,
    /// The server's clock, ISO 8601.
    pub time: String,
    /// The id of its row in `spcd.connection_event`: it grows, so that a client can order
    /// changes and drop what it has seen.
    pub event: i64,
    /// Why, when it is `error`; shortened to fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The source stopped answering, or answers again: `status` is then what it was, and so is
    /// `previous`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// What happened to a source.
///
/// ```
/// use spcd_protocol::{Health, Notification};
///
/// let payload = r#"{"version":1,"generation":7,"changes":[{"connection":"sales","status":"ready",
///     "previous":"ready","time":"2026-01-01T00:00:00Z","event":13,"health":"lost"}]}"#;
/// let message: Notification = serde_json::from_str(payload)?;
/// assert_eq!(message.changes[0].health, Some(Health::Lost));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It does not answer any more.
    Lost,
    /// It answers again.
    Restored,
}

impl Health {
    /// As it stands in the table of events.
    ///
    /// ```
    /// assert_eq!(spcd_protocol::Health::Lost.as_str(), "lost");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Lost => "lost",
            Health::Restored => "restored",
        }
    }
}

/// A status as announced: one of the table's, or that the row is gone.
///
/// ```
/// use spcd_protocol::{Reported, Status};
///
/// fn is_usable(status: Reported) -> bool {
///     status == Reported::Status(Status::Ready)
/// }
/// # assert!(!is_usable(Reported::Deleted(spcd_protocol::Deleted::Deleted)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reported {
    /// The row says this.
    Status(Status),
    /// There is no row any more.
    Deleted(Deleted),
}

/// The word for a removed row.
///
/// ```
/// let word = serde_json::to_string(&spcd_protocol::Deleted::Deleted)?;
/// assert_eq!(word, "\"deleted\"");
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deleted {
    /// `deleted`.
    Deleted,
}

#[cfg(test)]
mod tests {
    use super::{Change, Deleted, Notification, Reported};
    use crate::Status;

    #[test]
    fn the_documented_message_is_read() {
        let message: Notification = serde_json::from_str(
            r#"{"version":1,"generation":42,"changes":[
                {"connection":"sales","status":"ready","previous":"updating","time":"t","event":7},
                {"connection":"old","status":"deleted","previous":"deleting","time":"t","event":8}]}"#,
        )
        .unwrap();
        assert_eq!(message.generation, Some(42));
        assert_eq!(
            message.changes,
            [
                Change {
                    connection: "sales".into(),
                    status: Reported::Status(Status::Ready),
                    previous: Some(Status::Updating),
                    time: "t".into(),
                    event: 7,
                    error: None,
                    health: None,
                },
                Change {
                    connection: "old".into(),
                    status: Reported::Deleted(Deleted::Deleted),
                    previous: Some(Status::Deleting),
                    time: "t".into(),
                    event: 8,
                    error: None,
                    health: None,
                },
            ]
        );
    }

    #[test]
    fn a_resync_is_short() {
        let message = Notification {
            version: 1,
            generation: None,
            resync: true,
            changes: vec![],
        };
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(text, r#"{"version":1,"resync":true}"#);
        assert_eq!(
            serde_json::from_str::<Notification>(&text).unwrap(),
            message
        );
    }
}
