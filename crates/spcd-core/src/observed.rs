//! What the database holds, and what this daemon remembers of its attempts: plain data.

use std::collections::{BTreeMap, BTreeSet};

use spcd_protocol::Status;

use crate::model::{Connection, Kind};
use crate::offer::Offer;
use crate::secret::Secret;
use crate::shape::{KnownTypes, Obstacles, Table};

/// One look at the database.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Every row of `spcd.connection_state`.
    pub connections: BTreeMap<String, Known>,
    /// Names of wanted connections under which a schema or a server exists that spcd did not
    /// make, with what it is (`schema`, `server`).
    pub taken: BTreeMap<String, String>,
    /// What there is of the connections that [`crate::plan::needs_detail`] names.
    pub details: BTreeMap<String, Detail>,
    /// The tables that were made for those, and for the connections that are to go.
    pub tables: BTreeMap<String, Vec<String>>,
    /// What became of the views of the aggregators that [`crate::plan::needs_detail`] names.
    pub views: BTreeMap<String, Views>,
    /// Connections whose sources keep their jobs waiting: nobody else waits for them.
    pub slow: BTreeSet<String>,
    /// The roles whose search path is spcd's to set, or was.
    pub roles: Vec<Role>,
    /// The role `spcd_users` exists.
    pub readers: bool,
    /// It may use the schema `spcd`; `true` where there is no such role.
    pub admitted: bool,
    /// The extensions that targets name.
    pub extensions: BTreeMap<String, Extension>,
    /// The versions of those that are installed.
    pub versions: BTreeMap<String, String>,
    /// What came of asking sources since the daemon started, by connection.
    pub attempts: BTreeMap<String, Attempt>,
    /// Connections whose sources are left alone until somebody says otherwise.
    pub held: BTreeSet<String>,
    /// Connections whose sources are to be asked although nothing differs.
    pub ask: BTreeSet<String>,
    /// What sources answered that were asked ahead of a pass: for a dry run.
    pub answers: BTreeMap<String, Ahead>,
    /// Those of them that somebody asked for by name.
    pub urgent: BTreeSet<String>,
    /// It is known which connections drifted.
    pub drift_known: bool,
}

impl Observed {
    /// Notes that what spcd made for these was altered or dropped since.
    pub fn mark<'a>(&mut self, drifted: impl IntoIterator<Item = &'a String>) {
        self.drift_known = true;
        for name in drifted {
            let known = self.connections.get_mut(name);
            if let Some(applied) = known.and_then(|known| known.applied.as_mut()) {
                applied.intact = false;
            }
        }
    }
}

/// A role that is a direct member of `spcd_users`, or that has a path which spcd set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// It can log in and is a direct member.
    pub member: bool,
    /// It has a search path that spcd did not set.
    pub own: bool,
    /// The hash of the path that spcd set.
    pub set: Option<String>,
    /// What spcd set is still there.
    pub there: bool,
    /// It is, but other settings of the role changed.
    pub touched: bool,
}

/// What a source answered before anything is done.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// Its tables, normalized; or why it did not answer.
    pub tables: Result<Offer, String>,
    /// What stands in the way of changes.
    pub obstacles: Obstacles,
}

/// A row of `spcd.connection_state`, and what spcd made for it.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its status.
    pub status: Status,
    /// Its error.
    pub error: Option<String>,
    /// Its warnings.
    pub warnings: Vec<String>,
    /// The source's comments are on the tables.
    pub comments_set: bool,
    /// What it says of the files.
    pub written: Written,
    /// The hash of the imported tables.
    pub shape_hash: Option<String>,
    /// What spcd made; `None`: nothing yet.
    pub applied: Option<Applied>,
    /// What its work waits for, as far as this daemon met it: who holds a lock.
    pub waits_for: Option<String>,
}

/// The columns of the row that repeat the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// `plugin`
    pub plugin: String,
    /// `plugin_instance`
    pub plugin_instance: String,
    /// `type`
    pub kind: String,
    /// `connections`
    pub connections: Vec<String>,
    /// `import_schema`
    pub import_schema: String,
    /// `file_name`
    pub file: String,
    /// `start_line`
    pub start_line: u32,
    /// `end_line`
    pub end_line: u32,
    /// `labels`
    pub labels: BTreeMap<String, String>,
}

impl Applied {
    /// The schema of the tables.
    pub fn schema_of<'a>(&'a self, connection: &'a str) -> &'a str {
        self.hidden_schema.as_deref().unwrap_or(connection)
    }
}

impl Written {
    /// Whether it means what another says: the order of an aggregator's patterns does not count.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let sorted = |written: &Self| {
            let mut written = written.clone();
            written.connections.sort();
            written
        };
        self == other
            || (self.connections.len() == other.connections.len() && sorted(self) == sorted(other))
    }

    /// What the row of a wanted connection is to say.
    pub fn of(connection: &Connection) -> Self {
        let (kind, connections) = match &connection.kind {
            Kind::Plugin => ("plugin", Vec::new()),
            Kind::Aggregator { patterns, .. } => ("aggregator", patterns.clone()),
        };
        Self {
            plugin: connection.plugin.clone(),
            plugin_instance: connection.plugin_instance.clone(),
            kind: kind.into(),
            connections,
            import_schema: match connection.enabled {
                true => "enabled".into(),
                false => "disabled".into(),
            },
            file: connection.file.clone(),
            start_line: connection.start_line,
            end_line: connection.end_line,
            labels: connection.labels.clone(),
        }
    }
}

/// What spcd made for a connection, and whether it is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The hash of the target that was applied.
    pub target_hash: String,
    /// The schema.
    pub schema: Presence,
    /// The server.
    pub server: Presence,
    /// Nothing of it changed since: the catalog's row versions are those that were written.
    pub intact: bool,
    /// Members of `spcd_users` may use the schema; `true` where there is no such role.
    pub readable: bool,
    /// What the import left out or refused.
    pub warnings: Vec<String>,
    /// The schema of the tables, where it does not bear the connection's name: only aggregators
    /// show them.
    pub hidden_schema: Option<String>,
    /// The version of the extension that was asked, where all connections of a plugin share the
    /// answer.
    pub version: Option<String>,
    /// Of files: the types of columns that values decided.
    pub types: KnownTypes,
}

/// Where an extension stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// In this database.
    Installed,
    /// On the server's disk: it can be created.
    Available,
    /// Neither.
    Missing,
    /// Creating it failed, and why.
    Refused(String),
}

/// Whether an object that spcd made is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// No object of that name.
    Absent,
    /// The one that spcd made.
    Ours,
    /// One of that name that somebody else made.
    Foreign,
}

/// What there is of one connection, in full.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail {
    /// The server's wrapper and options; `None`: no server.
    pub server: Option<(String, BTreeMap<String, String>)>,
    /// The mapping's options for PUBLIC; `None`: no mapping.
    pub mapping: Option<BTreeMap<String, Secret>>,
    /// Those of the recorded tables that are there, on this server, normalized.
    pub tables: Vec<Table>,
    /// Tables that members of `spcd_users` cannot read.
    pub unreadable: Vec<String>,
    /// Names in the schema that a new table cannot have: relations that spcd did not make.
    pub others: Vec<String>,
}

/// What became of an aggregator's views.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Views {
    /// Those that are gone or say something else.
    pub altered: Vec<String>,
    /// Those that members of `spcd_users` cannot read.
    pub unreadable: Vec<String>,
}

/// What came of the last attempt to make a connection what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The target that was tried; empty: to drop it.
    pub target_hash: String,
    /// Why it failed.
    pub error: String,
    /// The back-off is over: try again.
    pub due: bool,
}

impl Attempt {
    /// Whether the connection was to be dropped.
    pub fn is_of_drop(&self) -> bool {
        self.target_hash.is_empty()
    }
}
