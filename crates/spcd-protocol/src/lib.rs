//! What the daemon and its clients share: the states of a connection and the one table of their
//! transitions, the row of `spcd.connection_state`, and the notification's JSON.

mod notification;
mod status;

pub use notification::{CHANNEL, Change, Deleted, Health, Notification, Reported, WAKE_CHANNEL};
pub use status::{ParseStatusError, Status};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One row of `spcd.connection_state`, as clients read it.
///
/// Times are texts in ISO 8601 as the server writes them, so that this crate needs no calendar.
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
    /// The connection, and so its schema and server.
    pub connection_name: String,
    /// Where it stands.
    pub status: Status,
    /// Why, when `status` is `error`.
    pub error: Option<String>,
    /// The source's comments are on the tables.
    pub comments_set: bool,
    /// The server's clock at the last change of status or error.
    pub time_changed: String,
    /// What was left out or refused, and why.
    pub warnings: Vec<String>,
    /// The plugin as configured.
    pub plugin: String,
    /// The plugin block or shipped definition it uses.
    pub plugin_instance: String,
    /// `plugin` or `aggregator`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An aggregator's `connections` as configured.
    pub connections: Vec<String>,
    /// `enabled` or `disabled`.
    pub import_schema: String,
    /// As its block says, for people.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `dynamic` or `static`, once known.
    pub schema_mode: Option<String>,
    /// A hash of the imported tables' shapes.
    pub schema_hash: Option<String>,
    /// How many tables are imported.
    pub table_count: Option<i32>,
    /// When it was last seen whole.
    pub last_ready: Option<String>,
    /// The file its block is in.
    pub file_name: Option<String>,
    /// The line of the block's opening brace.
    pub start_line: Option<i32>,
    /// The line of its closing brace.
    pub end_line: Option<i32>,
    /// The pass that last changed it.
    pub generation: i64,
}
