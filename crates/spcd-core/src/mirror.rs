//! Mirrors: what a source lists becomes connections of the hub.
//!
//! The source is another Postgres that announces the states of its connections: the service of
//! Steampipe, or the hub of another spcd. A mirrored connection is planned like any other, as tables of
//! postgres_fdw over the source's schema of the same name, on the one server of its mirror. Its state at
//! the source decides when its tables are compared.

mod circle;
mod expand;
mod list;

pub use crate::model::SourceKind;
pub use circle::refuses;
pub use expand::{MirrorParts, MirrorViews};
pub use list::{Listed, SchemaDigest, SchemalessReads, read_list};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A source as the hub knows it: what it said last, also while it is away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MirrorView {
    /// What it is; `None` until it has answered once.
    pub kind: Option<SourceKind>,
    /// Its connections.
    pub connections: BTreeMap<String, Arc<SourceConnection>>,
    /// Extensions of the source whose types its tables may have.
    pub extensions: BTreeSet<String>,
    /// Identities of the databases that its tables come from: its own, and those that it mirrors.
    pub origins: BTreeSet<String>,
    /// Why it cannot be followed now.
    pub problem: Option<MirrorProblem>,
}

/// Why a source is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorProblem {
    /// It does not answer, or not as it should. What it said last stays.
    Unreachable(String),
    /// It cannot be a source, whatever it answers.
    Refused(String),
}

impl MirrorProblem {
    /// Returns the text for users.
    pub fn text(&self) -> &str {
        match self {
            Self::Unreachable(text) | Self::Refused(text) => text,
        }
    }
}

/// A connection of the source. Serialized as it is recorded in the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceConnection {
    /// Its state.
    pub state: SourceState,
    /// Its plugin.
    pub plugin: String,
    /// `plugin` or `aggregator`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `connections` of an aggregator.
    pub connections: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The source mirrors it from elsewhere.
    pub is_mirrored: bool,
    /// The same for connections that have the same tables; `None` where that is not known.
    #[serde(skip)]
    pub shape: Option<String>,
}

/// State of a connection at the source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// The source has not said it since this daemon leads: the tables here stay as they are.
    #[default]
    Unknown,
    /// Its tables are being made, changed or dropped.
    #[serde(skip)]
    AtWork,
    /// Its tables can be compared. The text differs after each change that may concern them.
    #[serde(skip)]
    Ready(String),
    /// It failed there, and why.
    Error(String),
    /// It has no tables there.
    Disabled,
}

impl SourceConnection {
    /// Returns what is recorded of it: a state that passes by itself is asked for again.
    pub fn recorded(&self) -> Self {
        let state = match &self.state {
            state @ (SourceState::Error(_) | SourceState::Disabled) => state.clone(),
            SourceState::Unknown | SourceState::AtWork | SourceState::Ready(_) => {
                SourceState::Unknown
            }
        };
        Self {
            state,
            shape: None,
            ..self.clone()
        }
    }
}
