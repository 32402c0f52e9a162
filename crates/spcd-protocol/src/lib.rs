//! Types that the daemon and its clients share: the statuses of a connection with their one
//! transition table, the row of `spcd.connection_state`, the notification's JSON, and the back-off of
//! every retry.

mod backoff;
mod notification;
mod status;

pub use backoff::Backoff;
pub use notification::{
    AnnouncedStatus, CHANNEL, Change, Deleted, HealthChange, Notification, WAKE_CHANNEL,
};
pub use status::{ParseStatusError, Status};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One row of `spcd.connection_state`, as clients read it.
///
/// Times are ISO 8601 texts as the server writes them: this crate has no calendar.
///
/// ```
/// use spcd_protocol::{ConnectionState, Status};
///
/// fn summary(row: &ConnectionState) -> String {
///     match row.status {
///         Status::Ready => format!("{}: {} tables", row.connection_name, row.table_count.unwrap_or(0)),
///         status => format!("{}: {status}", row.connection_name),
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionState {
    /// Name of the connection, its schema and its server.
    pub connection_name: String,
    /// Current status.
    pub status: Status,
    /// Reason for the status `error`; `None` for other statuses.
    pub error: Option<String>,
    /// Whether the source's comments are on the tables.
    pub comments_set: bool,
    /// Time of the last change of status or error, by the server's clock.
    pub time_changed: String,
    /// Tables and changes that were left out or refused, each with its reason.
    pub warnings: Vec<String>,
    /// Plugin as written in the block.
    pub plugin: String,
    /// Label of the plugin block, or name of the shipped definition, that the connection uses.
    pub plugin_instance: String,
    /// `plugin` or `aggregator`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An aggregator's `connections` as configured.
    pub connections: Vec<String>,
    /// `enabled` or `disabled`.
    pub import_schema: String,
    /// Labels from the block. spcd shows them and draws no conclusion from them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Mirror block that the connection comes from; empty for a connection block.
    #[serde(default)]
    pub mirror: String,
    /// `dynamic` or `static`; `None` until it is known.
    pub schema_mode: Option<String>,
    /// Hash of the imported tables' columns and options.
    pub schema_hash: Option<String>,
    /// Number of imported tables.
    pub table_count: Option<i32>,
    /// Time when the connection was last `ready`.
    pub last_ready: Option<String>,
    /// File that holds the block.
    pub file_name: Option<String>,
    /// Line of the block's opening brace.
    pub start_line: Option<i32>,
    /// Line of the block's closing brace.
    pub end_line: Option<i32>,
    /// Number of the pass that last changed the row.
    pub generation: i64,
}
