//! Blocks `mirror`, which make each connection of another Postgres a connection of the hub.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ForeignSource;

/// Prefix of the names of the servers of mirrors.
const SERVER_PREFIX: &str = "spcd_mirror_";
/// Maximum length of a mirror's name: the name of its server has at most 63 bytes.
pub const MAX_MIRROR_NAME_BYTES: usize = 63 - SERVER_PREFIX.len();

/// A block `mirror`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Label of the block.
    pub name: String,
    /// The source, or the error of the block: `file:line:col: reason`.
    pub target: Result<ForeignSource, String>,
    /// Patterns of the source's connections.
    pub connections: Vec<String>,
    /// Patterns of connections to leave out.
    pub exclude: Vec<String>,
    /// Prefix of the connections' names in the hub.
    pub prefix: String,
    /// Block `labels`.
    pub labels: BTreeMap<String, String>,
    /// Interval at which the source's list is read without a notification, in seconds; 0: never.
    pub refresh_interval: u64,
    /// Whether connections that the source itself mirrors are mirrored, too.
    pub is_transitive: bool,
    /// File that holds the block.
    pub file: String,
    /// Line of the block's opening brace, from 1.
    pub start_line: u32,
    /// Line of the block's closing brace.
    pub end_line: u32,
}

impl Mirror {
    /// Returns the name of the server of all its tables.
    pub fn server(&self) -> String {
        format!("{SERVER_PREFIX}{}", self.name)
    }
}

/// Properties of a mirrored connection at the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorOrigin {
    /// Name of the mirror.
    pub mirror: String,
    /// `plugin` or `aggregator`.
    pub kind: String,
    /// `connections` of an aggregator.
    pub connections: Vec<String>,
    /// Stamp that differs after each change at the source that may concern the tables; `None` until the
    /// source has reported `ready`.
    pub stamp: Option<String>,
}

/// Kind of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// The service of Steampipe.
    Steampipe,
    /// The hub of another spcd.
    Spcd,
}

impl SourceKind {
    /// Kinds in the order in which a source is tried: a hub may also serve clients of Steampipe.
    pub const ALL: [Self; 2] = [Self::Spcd, Self::Steampipe];

    /// Returns schema and name of the table that lists the connections.
    pub fn table(self) -> (&'static str, &'static str) {
        match self {
            Self::Steampipe => ("steampipe_internal", "steampipe_connection"),
            Self::Spcd => ("spcd", "connection_state"),
        }
    }

    /// Returns the channel on which changes are announced.
    pub fn channel(self) -> &'static str {
        match self {
            Self::Steampipe => "steampipe_notification",
            Self::Spcd => spcd_protocol::CHANNEL,
        }
    }

    /// Returns its name in messages.
    pub fn title(self) -> &'static str {
        match self {
            Self::Steampipe => "a service of Steampipe",
            Self::Spcd => "a hub of spcd",
        }
    }

    /// Returns its name, as it is recorded.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steampipe => "steampipe",
            Self::Spcd => "spcd",
        }
    }

    /// Returns the kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the columns with the connection's name and its state.
    pub fn columns(self) -> [&'static str; 2] {
        match self {
            Self::Steampipe => ["name", "state"],
            Self::Spcd => ["connection_name", "status"],
        }
    }

    /// Columns that change with the tables of a connection that stays ready.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Steampipe => &["schema_hash", "plugin_mod_time"],
            Self::Spcd => &["schema_hash"],
        }
    }
}
