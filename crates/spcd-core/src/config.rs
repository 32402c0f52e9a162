//! From the texts of all files to what is wanted.
//!
//! The block is the error domain: reading never fails as a whole. Every bad block is a
//! [`Diagnostic`] and, where it names a connection, a [`Connection`] whose `target` is an error.

mod connection;
mod daemon;
mod hub;
mod inputs;
mod key;
mod listen;
mod load;
mod options;
mod place;
mod plugins;
mod sections;
mod ssh;

pub use crate::csv::Csv;
pub use crate::model::{
    Connection, DatabaseOptions, Desired, Doubt, Import, Kind, OptionValue, Probe, Ssh, Target,
    Tunnel, UnknownTypes,
};

pub use connection::View;
pub(crate) use daemon::public as public_settings;
pub use daemon::{
    COMPAT, Compat, DaemonSettings, INSTANCE_NAME, daemon_settings, is_instance_name,
};
pub use hub::{HubGiven, HubSettings, hub_value};
pub use inputs::{Input, Inputs, Seen};
pub use listen::Listen;
pub use load::{Cache, Given, Inspection, Loaded, inspect, load, load_plain};
pub(crate) use place::without_mark;
pub use plugins::PluginBlock;

/// One file as the edge found it. Paths are absolute or as the user typed them; they are
/// compared and shown as text.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where it lies.
    pub path: String,
    /// Its bytes as text, or why they could not be had (`Permission denied (os error 13)`,
    /// `not UTF-8 from byte 17`).
    pub text: Result<String, String>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The block cannot be used.
    Error,
    /// It can, but something in it has no effect or will not last.
    Warning,
}

/// One thing that is wrong, with its place and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// The file.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// The marked range of the text in bytes, for the excerpt; empty when there is no place.
    pub span: std::ops::Range<usize>,
    /// What is wrong, without values that are not public.
    pub message: String,
    /// What to type instead.
    pub hint: Option<String>,
    /// The connection whose block it is in.
    pub connection: Option<String>,
}

impl Diagnostic {
    /// As it stands in the error of a connection's state: place, reason and way out, on one line
    /// and without the source.
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
