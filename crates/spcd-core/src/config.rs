//! Reads the texts of all files into the desired state.
//!
//! The block is the error domain: reading never fails as a whole. Every bad block is a
//! [`Diagnostic`] and, where it names a connection, a [`Connection`] whose `target` is an error.

mod applied_files;
mod connection;
mod daemon;
mod gateway_listen;
mod gateway_places;
mod hub;
mod key;
mod listen;
mod load;
mod lost_plugins;
mod mirror;
mod naming;
mod options;
mod plugins;
mod position;
mod sections;
mod ssh;

use serde::Serialize;

pub use crate::csv::CsvSettings;
pub use crate::model::{
    Connection, ConnectionKind, DatabaseOptions, DesiredState, ForeignSource, GatewayAggregator,
    HubUse, Import, Mirror, OptionValue, ProbeMethod, Ssh, Tunnel, UnknownInput, UnknownTypePolicy,
};

pub use applied_files::{AppliedFile, AppliedFiles, DirectoryScan};
pub use connection::InspectedConnection;
pub(crate) use connection::invalid_name;
pub(crate) use daemon::public_settings;
pub use daemon::{
    COMPAT_ERROR, Compat, DaemonSettings, INSTANCE_NAME_ERROR, daemon_settings, is_instance_name,
};
pub use gateway_listen::GatewayListen;
pub use gateway_places::GatewayPlace;
pub use hub::{HubOverrides, HubSettings, hub_value};
pub use listen::Listen;
pub(crate) use load::is_yaml;
pub use load::{Cache, Inspection, LoadContext, Loaded, inspect, load, load_plain};
pub use plugins::PluginBlock;
pub(crate) use position::without_byte_order_mark;

/// Text of one file. Paths are absolute or as the user typed them; they are compared and shown as
/// text.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Path.
    pub path: String,
    /// Text, or the reason why it could not be read (`Permission denied (os error 13)`, `not UTF-8
    /// from byte 17`).
    pub text: Result<String, String>,
}

/// Severity of a diagnostic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The block cannot be used.
    Error,
    /// The block can be used, but something in it has no effect or is deprecated.
    Warning,
}

/// Problem in a file, with its position and a hint. Serialized as `spcd check --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Severity.
    pub severity: Severity,
    /// Path of the file.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Range to mark in the excerpt, in bytes; empty without a position.
    #[serde(skip)]
    pub span: std::ops::Range<usize>,
    /// Message, without values that are not public.
    pub message: String,
    /// Hint: what to type instead.
    pub hint: Option<String>,
    /// Name of the connection whose block it is in.
    #[serde(skip)]
    pub connection: Option<String>,
}

impl Diagnostic {
    /// Returns position, message and hint on one line, as a connection's state shows them.
    pub fn one_line(&self) -> String {
        let Self {
            file,
            line,
            column,
            message,
            ..
        } = self;
        match &self.hint {
            Some(hint) => format!("{file}:{line}:{column}: {message} ({hint})"),
            None => format!("{file}:{line}:{column}: {message}"),
        }
    }
}
