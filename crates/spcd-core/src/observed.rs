//! Observed state: what the database holds, and this daemon's failed attempts. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use spcd_protocol::Status;

use crate::diff::{Blockers, ColumnTypes, Renames, Table, TableChange, TableWarning};
use crate::model::{Connection, ConnectionKind, ForeignSource};
use crate::remote_schema::RemoteSchema;
use crate::secret::Secret;
use crate::sql;
use crate::tuning::{Existing, Tuning};

/// The observed state of a database.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Every row of `spcd.connection_state`.
    pub connections: BTreeMap<String, ObservedConnection>,
    /// Desired connections whose name belongs to a schema or server that spcd did not create, with the
    /// kind of object (`schema`, `server`).
    pub taken: BTreeMap<String, String>,
    /// The objects of the connections that [`crate::planner::needs_detail`] names.
    pub details: BTreeMap<String, Detail>,
    /// The tables that spcd created for those, and for connections that are to be dropped.
    pub tables: BTreeMap<String, Vec<String>>,
    /// The altered views of the aggregators that [`crate::planner::needs_detail`] names.
    pub views: BTreeMap<String, Views>,
    /// Connections whose jobs wait for slow sources. No other work waits for these jobs.
    pub slow: BTreeSet<String>,
    /// Roles whose search path spcd sets or has set.
    pub roles: Vec<Role>,
    /// Whether the role `spcd_users` exists.
    pub readers: bool,
    /// Whether `spcd_users` has USAGE on the schema `spcd`; `true` without that role.
    pub admitted: bool,
    /// The extensions that sources name.
    pub extensions: BTreeMap<String, Extension>,
    /// The versions of the installed ones.
    pub versions: BTreeMap<String, String>,
    /// Failed attempts since the daemon started, by connection.
    pub attempts: BTreeMap<String, Attempt>,
    /// Connections that a client paused by `spcd disconnect`.
    pub paused: BTreeSet<String>,
    /// Connections whose sources are to be asked although nothing differs.
    pub ask: BTreeSet<String>,
    /// Answers of sources, for a dry run.
    pub answers: BTreeMap<String, ImportPreview>,
    /// Connections that a client named in a request.
    pub urgent: BTreeSet<String>,
    /// Whether drift detection has answered.
    pub drift_known: bool,
    /// Servers with names of lanes.
    pub lanes: BTreeMap<String, ObservedLane>,
}

/// A server with the name of a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedLane {
    /// Whether spcd created it.
    pub presence: Presence,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// The mapping's options for PUBLIC; `None`: no mapping.
    pub mapping: Option<BTreeMap<String, Secret>>,
    /// Whether tables or mappings of users depend on it.
    pub in_use: bool,
    /// Reason why it cannot be created or altered.
    pub refused: Option<String>,
}

impl Observed {
    /// Marks the connections whose objects have drifted.
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
    /// Whether it can log in and is a direct member of `spcd_users`.
    pub member: bool,
    /// Whether it has a search path that spcd did not set.
    pub own: bool,
    /// The hash of the path that spcd set.
    pub set: Option<String>,
    /// Whether the path that spcd set is still set.
    pub there: bool,
    /// Whether the path is still set, but other settings of the role have changed.
    pub are_settings_changed: bool,
    /// The hash of a path that could not be set.
    pub refused: Option<String>,
}

/// The answer of a source, for a dry run.
#[derive(Debug, Clone)]
pub struct ImportPreview {
    /// Its tables, normalized, or the error.
    pub tables: Result<RemoteSchema, String>,
    /// The dependent objects that block changes.
    pub blockers: Blockers,
}

/// A row of `spcd.connection_state`, and the objects that spcd created for it.
#[derive(Debug, Clone)]
pub struct ObservedConnection {
    /// Its status.
    pub status: Status,
    /// Its error.
    pub error: Option<String>,
    /// Its warnings.
    pub warnings: Vec<String>,
    /// Whether the source's comments are on the tables.
    pub comments_set: bool,
    /// The columns that repeat the configuration.
    pub written: ConfigSnapshot,
    /// The hash of the imported tables.
    pub schema_hash: Option<String>,
    /// The objects that spcd created, if any.
    pub applied: Option<Applied>,
    /// The session that holds a lock for which its job waits, as a warning.
    pub waits_for: Option<String>,
}

/// The columns of the row that repeat the configuration, under the table's column names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigSnapshot {
    /// Plugin as written in the block.
    pub plugin: String,
    /// Plugin block or shipped definition that the connection uses.
    pub plugin_instance: String,
    /// `plugin` or `aggregator`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Patterns of an aggregator.
    pub connections: Vec<String>,
    /// `enabled` or `disabled`.
    pub import_schema: String,
    /// File of the block.
    #[serde(rename = "file_name")]
    pub file: String,
    /// First line of the block.
    pub start_line: u32,
    /// Last line of the block.
    pub end_line: u32,
    /// Block `labels`.
    pub labels: BTreeMap<String, String>,
    /// Mirror that the connection comes from; empty for a connection block.
    pub mirror: String,
}

impl Applied {
    /// Returns the objects of a connection as a complete write without warnings leaves them.
    pub fn complete(target_hash: &str) -> Self {
        Self {
            target_hash: target_hash.to_owned(),
            schema: Presence::Ours,
            server: Presence::Ours,
            intact: true,
            readable: true,
            warnings: Vec::new(),
            left_out: 0,
            server_name: None,
            hidden_schema: None,
            extension_version: None,
            types: ColumnTypes::new(),
        }
    }

    /// Returns whether it has a server of its own, which spcd created.
    pub fn has_own_server(&self) -> bool {
        self.server == Presence::Ours && self.server_name.is_none()
    }

    /// Returns the schema of the tables.
    pub fn schema_of<'a>(&'a self, connection: &'a str) -> &'a str {
        self.hidden_schema.as_deref().unwrap_or(connection)
    }
}

impl ConfigSnapshot {
    /// Returns whether two snapshots are equal except for the order of an aggregator's patterns.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        let sorted = |written: &Self| {
            let mut written = written.clone();
            written.connections.sort();
            written
        };
        self == other
            || (self.connections.len() == other.connections.len() && sorted(self) == sorted(other))
    }

    /// Returns the snapshot of a desired connection.
    pub fn of(connection: &Connection) -> Self {
        let (kind, connections) = match (&connection.kind, &connection.mirror) {
            (_, Some(origin)) => (origin.kind.as_str(), origin.connections.clone()),
            (ConnectionKind::Plugin, None) => ("plugin", Vec::new()),
            (ConnectionKind::Aggregator { patterns, .. }, None) => ("aggregator", patterns.clone()),
        };
        let mirror = connection.mirror.as_ref();
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
            mirror: mirror.map_or_else(String::new, |origin| origin.mirror.clone()),
        }
    }
}

/// The objects that spcd created for a connection, and whether they still exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Hash of the target that was applied.
    pub target_hash: String,
    /// The schema.
    pub schema: Presence,
    /// The server.
    pub server: Presence,
    /// Whether no object has drifted: the catalog's row versions are those that were written.
    pub intact: bool,
    /// `spcd_users` has USAGE on the schema; `true` without that role.
    pub readable: bool,
    /// Warnings of the import: tables left out, changes refused.
    pub warnings: Vec<String>,
    /// Number of tables that were left out.
    pub left_out: usize,
    /// The server of the tables, if it is shared; `None`: the one of the connection's name.
    pub server_name: Option<String>,
    /// The schema of the tables, if it is not named after the connection: a disabled connection whose
    /// tables only aggregators show.
    pub hidden_schema: Option<String>,
    /// Version of the extension at the import, if all connections of the plugin share their tables.
    pub extension_version: Option<String>,
    /// Column types that were inferred from the values of files.
    pub types: ColumnTypes,
}

/// Whether an extension can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// Created in this database.
    Installed,
    /// Available on the server, so that it can be created.
    Available,
    /// Not available on the server.
    Missing,
    /// Its creation failed, for this reason.
    Refused(String),
}

impl Extension {
    /// Returns why a source cannot use its extension, if it cannot.
    pub fn problem(&self, source: &ForeignSource) -> Option<String> {
        let extension = &source.extension;
        let (host, place) = match source.in_gateway {
            true => ("gateway's", " in the gateway"),
            false => ("database's", ""),
        };
        match self {
            Self::Installed | Self::Available => None,
            Self::Missing => Some(format!(
                "the extension {extension} is not installed on the {host} host: get it from {}",
                source.extension_origin()
            )),
            Self::Refused(reason) => Some(format!(
                "the extension {extension} cannot be created{place}: {reason}"
            )),
        }
    }
}

/// Whether an object that spcd created exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Presence {
    /// No object of that name.
    #[default]
    Absent,
    /// The one that spcd created.
    Ours,
    /// Another object of that name.
    Foreign,
}

/// All objects of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail {
    /// The server's wrapper and options; `None`: no server.
    pub server: Option<(String, BTreeMap<String, String>)>,
    /// The mapping's options for PUBLIC; `None`: no mapping.
    pub mapping: Option<BTreeMap<String, Secret>>,
    /// The recorded tables that exist on this server, normalized.
    pub tables: Vec<Table>,
    /// Tables that members of `spcd_users` cannot read.
    pub unreadable: Vec<String>,
    /// Tables that spcd's role can neither alter nor grant, since another role owns them.
    pub other_owners: BTreeMap<String, OtherOwner>,
    /// Names of relations in the schema that spcd did not create. No new table can have them.
    pub others: Vec<String>,
    /// Options for speed that spcd has set.
    pub tuning: Tuning,
}

/// Owner of a table of whose rights spcd's role has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherOwner {
    /// Name of the owner.
    pub owner: String,
    /// Name of spcd's role.
    pub role: String,
}

impl OtherOwner {
    /// Returns why a table stays as it is, with the statement that lets spcd change it.
    pub fn reason(&self) -> String {
        format!(
            "it belongs to role {:?}, and spcd's role has none of its rights: GRANT {} TO {}",
            self.owner,
            sql::ident(&self.owner),
            sql::ident(&self.role)
        )
    }
}

impl Detail {
    /// Returns what decides about the options for speed of a target.
    pub fn existing(&self, target: &ForeignSource) -> Existing<'_> {
        let is_same = |(wrapper, _): &&(String, _)| *wrapper == target.wrapper;
        Existing {
            server: self
                .server
                .as_ref()
                .filter(is_same)
                .map(|(_, options)| options),
            tables: &self.tables,
            tuning: &self.tuning,
        }
    }

    /// Renames tables and columns.
    pub fn rename(&mut self, renames: &Renames) {
        renames.apply(&mut self.tables);
        let name = |present: &String| renames.new_table(present).to_owned();
        self.unreadable = self.unreadable.iter().map(name).collect();
        let owners = std::mem::take(&mut self.other_owners).into_iter();
        self.other_owners = owners.map(|(table, owner)| (name(&table), owner)).collect();
        let sizes = std::mem::take(&mut self.tuning.tables).into_iter();
        self.tuning.tables = sizes.map(|(table, size)| (name(&table), size)).collect();
    }

    /// Returns the alterations that spcd's role may not make, by table, with the reason. A table can be
    /// dropped and created again by the owner of its schema.
    pub fn refused_alterations(&self, changes: &[TableChange]) -> BTreeMap<String, String> {
        let alters = |change: &&TableChange| matches!(change, TableChange::Alter { .. });
        let tables = changes.iter().filter(alters).map(TableChange::table);
        tables
            .filter_map(|table| {
                let other = self.other_owners.get(table)?;
                Some((table.to_owned(), other.reason()))
            })
            .collect()
    }

    /// Returns the tables that spcd's role can let `spcd_users` read.
    pub fn grantable(&self) -> impl Iterator<Item = &String> {
        let all = self.unreadable.iter();
        all.filter(|table| !self.other_owners.contains_key(*table))
    }

    /// Returns warnings about the other tables that `spcd_users` cannot read.
    pub fn closed_tables(&self) -> Vec<TableWarning> {
        let all = self.unreadable.iter().filter_map(|table| {
            let other = self.other_owners.get(table)?;
            let what = "cannot be read by members of spcd_users";
            Some(TableWarning::new(table, what, &other.reason()))
        });
        all.collect()
    }
}

/// An aggregator's views that are not as spcd created them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Views {
    /// Views that are missing or have another definition.
    pub altered: Vec<String>,
    /// Views that members of `spcd_users` cannot read.
    pub unreadable: Vec<String>,
}

/// The last attempt to apply a connection, which failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Hash of the target of the attempt; empty for a drop.
    pub target_hash: String,
    /// Error of the attempt.
    pub error: String,
    /// Whether the back-off is over.
    pub due: bool,
}

impl Attempt {
    /// Whether it was an attempt to drop the connection.
    pub fn is_of_drop(&self) -> bool {
        self.target_hash.is_empty()
    }
}
