//! Mirrors: the connections of a source become connections of the hub.
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

/// Last known state of a source. It is kept while the source is unreachable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MirrorView {
    /// Kind of the source; `None` until it has answered once.
    pub kind: Option<SourceKind>,
    /// Its connections.
    pub connections: BTreeMap<String, Arc<SourceConnection>>,
    /// Extensions of the source whose types its tables may have.
    pub extensions: BTreeSet<String>,
    /// Identities of the databases that its tables come from: its own, and those that it mirrors.
    pub origins: BTreeSet<String>,
    /// Reason why it is not followed at present.
    pub problem: Option<MirrorProblem>,
}

/// Why a source is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorProblem {
    /// It does not answer, or its answer is invalid. Its last known state stays.
    Unreachable(String),
    /// It must not be followed, since it leads back to this hub.
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
    /// The source itself mirrors it from another source.
    pub is_mirrored: bool,
    /// Text that is equal for connections with equal tables; `None` if it is not known which are.
    #[serde(skip)]
    pub shape: Option<String>,
}

/// State of a connection at the source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// The source has not reported it since this daemon became the leader. The tables of the hub stay
    /// unchanged.
    #[default]
    Unknown,
    /// The source is creating, changing or dropping its tables.
    #[serde(skip)]
    AtWork,
    /// Its tables can be compared. The text differs after each change that may concern them.
    #[serde(skip)]
    Ready(String),
    /// It failed at the source, for this reason.
    Error(String),
    /// It has no tables at the source.
    Disabled,
}

impl SourceConnection {
    /// Returns the form that is recorded in the hub. Transient states are recorded as unknown and read
    /// again.
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
