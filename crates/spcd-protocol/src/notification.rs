//! Notifications on the channel `connection_state`.

use serde::{Deserialize, Serialize};

use crate::Status;

/// Channel on which the daemon announces changes.
///
/// ```
/// assert_eq!(format!("LISTEN {}", spcd_protocol::CHANNEL), "LISTEN connection_state");
/// ```
pub const CHANNEL: &str = "connection_state";

/// Channel on which any client asks the daemon to look again. The payload is not read.
///
/// ```
/// assert_eq!(format!("NOTIFY {}", spcd_protocol::WAKE_CHANNEL), "NOTIFY spcd_wake");
/// ```
pub const WAKE_CHANNEL: &str = "spcd_wake";

/// One notification. Unknown fields are ignored, so that later versions can add some.
///
/// ```
/// let payload = r#"{"version":1,"resync":true}"#;
/// let message: spcd_protocol::Notification = serde_json::from_str(payload)?;
/// assert!(message.resync && message.changes.is_empty());
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Version of the format: 1.
    pub version: u32,
    /// Number of the pass that made the changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Whether changes may have been missed: a client must read the table again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resync: bool,
    /// Changes in the order in which they happened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// Change of one connection.
///
/// ```
/// use spcd_protocol::{Notification, AnnouncedStatus, Status};
///
/// let payload = r#"{"version":1,"generation":7,"changes":[{"connection":"sales","status":"ready",
///     "previous":"updating","time":"2026-01-01T00:00:00Z","event":12}]}"#;
/// let message: Notification = serde_json::from_str(payload)?;
/// let change = &message.changes[0];
/// assert_eq!(change.connection, "sales");
/// assert_eq!(change.status, AnnouncedStatus::Status(Status::Ready));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Name of the connection.
    pub connection: String,
    /// Status after the change.
    pub status: AnnouncedStatus,
    /// Status before the change; `None` for a new connection.
    pub previous: Option<Status>,
    /// Time of the change by the server's clock, ISO 8601.
    pub time: String,
    /// Id of the row in `spcd.connection_event`. Ids grow, so a client can order changes and drop
    /// those that it has seen.
    pub event: i64,
    /// Reason for the status `error`, shortened to fit into a notification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Set when the source stopped answering or answers again. `status` and `previous` are then
    /// equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthChange>,
}

/// Change of a source's reachability.
///
/// ```
/// use spcd_protocol::{HealthChange, Notification};
///
/// let payload = r#"{"version":1,"generation":7,"changes":[{"connection":"sales","status":"ready",
///     "previous":"ready","time":"2026-01-01T00:00:00Z","event":13,"health":"lost"}]}"#;
/// let message: Notification = serde_json::from_str(payload)?;
/// assert_eq!(message.changes[0].health, Some(HealthChange::Lost));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthChange {
    /// The source stopped answering.
    Lost,
    /// The source answers again.
    Restored,
}

impl HealthChange {
    /// Returns the word that `spcd.connection_event` holds.
    ///
    /// ```
    /// assert_eq!(spcd_protocol::HealthChange::Lost.as_str(), "lost");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            HealthChange::Lost => "lost",
            HealthChange::Restored => "restored",
        }
    }
}

/// Status in a notification: one of the table's, or that the row was removed.
///
/// ```
/// use spcd_protocol::{AnnouncedStatus, Status};
///
/// fn is_usable(status: AnnouncedStatus) -> bool {
///     status == AnnouncedStatus::Status(Status::Ready)
/// }
/// # assert!(!is_usable(AnnouncedStatus::Deleted(spcd_protocol::Deleted::Deleted)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AnnouncedStatus {
    /// Status of the row.
    Status(Status),
    /// The row was removed.
    Deleted(Deleted),
}

/// The word `deleted`, which stands for a removed row.
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
    use super::{AnnouncedStatus, Change, Deleted, Notification};
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
                    status: AnnouncedStatus::Status(Status::Ready),
                    previous: Some(Status::Updating),
                    time: "t".into(),
                    event: 7,
                    error: None,
                    health: None,
                },
                Change {
                    connection: "old".into(),
                    status: AnnouncedStatus::Deleted(Deleted::Deleted),
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
