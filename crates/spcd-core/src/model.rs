//! Desired state, as plain data that the other modules share.

mod lane;
mod mirror;
mod naming;
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use crate::csv::CsvSettings;
use crate::diff::{FETCH_SIZE, MAX_NAME_BYTES, TableWarning, WrapperTraits};
use crate::hash::Hasher;
use crate::health;
use crate::pattern::Pattern;
use crate::secret::Secret;

pub use lane::{
    AggregatorLane, GatewayAggregator, HubUse, LANE_OPTIONS, Lane, LaneServer, MAX_LANES,
    TOUCH_OPTION,
};
pub use mirror::{MAX_MIRROR_NAME_BYTES, Mirror, MirrorOrigin, SourceKind};
pub use naming::{NameStyle, Naming};
pub use tunnel::{Ssh, Tunnel};

/// Server and table options that spcd sets where it can, so that queries of a Postgres source are fast
/// (see [`crate::tuning`]). A value in a file or one that a user sets by ALTER wins.
pub const TUNED_OPTIONS: [&str; 3] = ["async_capable", "extensions", FETCH_SIZE];

/// The one of them for which `config/plugins.spc` has a default.
const SHIPPED_TUNING: (&str, &str) = ("async_capable", "true");

/// Desired state: everything that the files ask for.
#[derive(Debug, Clone, Default)]
pub struct DesiredState {
    /// Connections by name. A block without a name, or with a refused one, is only a diagnostic.
    pub connections: BTreeMap<String, Arc<Connection>>,
    /// Files and directories that cannot be read now: connections from there keep what they have.
    pub unknown_inputs: Vec<UnknownInput>,
    /// The block `options "database"`.
    pub database: DatabaseOptions,
    /// How lanes reach their gateways, and the servers of mirrors their sources, by server, as far as
    /// that is known.
    pub lane_servers: BTreeMap<String, LaneServer>,
    /// For the gateway: what the hub still reads there.
    pub hub_use: HubUse,
    /// The blocks `mirror`, by name.
    pub mirrors: BTreeMap<String, Mirror>,
}

impl DesiredState {
    /// Returns the hash of a connection's target; empty if it has none.
    pub fn target_hash(&self, name: &str) -> &str {
        self.connections
            .get(name)
            .map_or("", |connection| connection.target_hash())
    }

    /// Returns the same with only these of its connections.
    pub fn only(&self, names: &[String]) -> Self {
        let connection = |name: &String| Some((name.clone(), self.connections.get(name)?.clone()));
        Self {
            connections: names.iter().filter_map(connection).collect(),
            unknown_inputs: self.unknown_inputs.clone(),
            database: self.database.clone(),
            lane_servers: self.lane_servers.clone(),
            hub_use: self.hub_use.clone(),
            mirrors: BTreeMap::new(),
        }
    }
}

/// Foreign data wrapper for MySQL and MariaDB.
pub const MYSQL_WRAPPER: &str = "mysql_fdw";

impl DesiredState {
    /// Removes the default of `character_set`, which is right for a hub in UTF8 only: mysql_fdw
    /// passes on text in `character_set` as if it were in the hub's encoding.
    pub fn adapt_to_other_encoding(&mut self) {
        let is_utf8 = |target: &ForeignSource| {
            target.wrapper == MYSQL_WRAPPER && target.default_options.contains("character_set")
        };
        for connection in self.connections.values_mut() {
            if connection.target.as_ref().is_ok_and(is_utf8)
                && let Ok(target) = &mut Arc::make_mut(connection).target
            {
                target.server.remove("character_set");
            }
        }
    }
}

/// File or directory whose contents are unknown. Connections that the database knows from there,
/// and that no readable block names, keep what they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownInput {
    /// Path of a file or directory.
    pub path: String,
    /// Whether `path` is a directory, with everything below it.
    pub is_directory: bool,
    /// Error for those connections; `None` leaves their state unchanged.
    pub error: Option<String>,
    /// Only the connections of this mirror are in doubt.
    pub mirror: Option<String>,
}

impl UnknownInput {
    /// Returns whether a file is the path or below it.
    pub fn holds(&self, file: &str) -> bool {
        match file.strip_prefix(&self.path) {
            Some("") => true,
            Some(rest) => self.is_directory && (rest.starts_with('/') || self.path.ends_with('/')),
            None => false,
        }
    }
}

/// Contents of `options "database"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseOptions {
    /// `search_path`, split; empty if unset.
    pub search_path: Vec<String>,
    /// `search_path_prefix`, split; empty if unset.
    pub search_path_prefix: Vec<String>,
    /// `manage_search_path`; `true` if unset.
    pub manage_search_path: Option<bool>,
    /// File that holds the block.
    pub file: Option<String>,
    /// Whether the block cannot be read now: search paths stay unchanged.
    pub is_unknown: bool,
}

/// A `connection` block.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Label of the block.
    pub name: String,
    /// `plugin` as written (`turbot/aws@latest`; for a reference, the label).
    pub plugin: String,
    /// Label of the plugin block that `plugin` resolved to, or name of the shipped definition.
    pub plugin_instance: String,
    /// Kind of connection.
    pub kind: ConnectionKind,
    /// Whether `import_schema` is `"enabled"`.
    pub enabled: bool,
    /// File that holds the block.
    pub file: String,
    /// Line of the block's opening brace, from 1.
    pub start_line: u32,
    /// Line of the block's closing brace.
    pub end_line: u32,
    /// Objects in Postgres that the connection asks for, or the error for its state:
    /// `file:line:col: reason`, without source lines and without values that are not public.
    pub target: Result<ForeignSource, String>,
    /// Warnings for its state, apart from errors.
    pub warnings: Vec<String>,
    /// Block `labels`. spcd shows them and draws no conclusion from them.
    pub labels: BTreeMap<String, String>,
    /// Probe options from its block `health` and its plugin's.
    pub health: health::ProbeOptions,
    /// Whether the wrapper runs in the gateway, also if the target is an error.
    pub in_gateway: bool,
    /// The hub waits until the gateway, or the source of a mirror, has its tables.
    pub awaits_source: bool,
    /// Views of the gateway that an aggregator reads instead of its members' tables.
    pub gateway: Option<GatewayAggregator>,
    /// Tables of the source that the gateway has left out.
    pub left_out: Vec<TableWarning>,
    /// Properties of a mirrored connection at the source.
    pub mirror: Option<MirrorOrigin>,
    pub(crate) hash: TargetHash,
}

impl Connection {
    /// Returns the hash of its target; empty if it has none.
    pub fn target_hash(&self) -> &str {
        let Ok(target) = &self.target else { return "" };
        self.hash.0.get_or_init(|| target.hash())
    }
}

/// Hash of a target, computed once and shared with the connection. A clone starts empty, because
/// clones are made to be changed.
#[derive(Debug, Default)]
pub(crate) struct TargetHash(OnceLock<String>);

impl Clone for TargetHash {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Kind of a connection, from `type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionKind {
    /// Foreign tables of one source.
    Plugin,
    /// Views over other connections' tables.
    Aggregator {
        /// `connections` as written.
        patterns: Vec<String>,
        /// Names of the members, in byte order.
        members: Vec<String>,
    },
}

/// Objects in Postgres that a connection becomes through its plugin's definition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForeignSource {
    /// Extension that provides the wrapper.
    pub extension: String,
    /// Further extensions whose types its tables may have; created where available.
    pub requires: BTreeSet<String>,
    /// Package or page to install if the extension is not available.
    pub package: String,
    /// Foreign data wrapper.
    pub wrapper: String,
    /// Options of the server, including the definition's defaults.
    pub server: BTreeMap<String, OptionValue>,
    /// Names of server options that come from the definition's defaults.
    pub default_options: BTreeSet<String>,
    /// Options of the user mapping; always secret.
    pub mapping: BTreeMap<String, Secret>,
    /// Server options that are set only during an import (`keep_connections = off`).
    pub ask_options: BTreeMap<String, String>,
    /// Selection of tables to import.
    pub import: Import,
    /// Options of the IMPORT FOREIGN SCHEMA statement (`import_enum_as_text`).
    pub import_options: BTreeMap<String, String>,
    /// Minimum wrapper version of each given attribute that not every version supports.
    pub since: BTreeMap<String, String>,
    /// Whether the connection is imported by itself (`dynamic`) or shares one set of tables with
    /// all connections of its plugin instance (`static`).
    pub dynamic: bool,
    /// Whether the wrapper maps columns by position (file_fdw), so that their order counts.
    pub positional: bool,
    /// Table option for a remote name (`table_name`).
    pub table_name_option: Option<String>,
    /// Column option for a remote name (`column_name`). It is left out if it equals the column's
    /// own name.
    pub column_name_option: Option<String>,
    /// Method of probing the source.
    pub probe: ProbeMethod,
    /// Tunnel to the source, if it is not reached directly.
    pub tunnel: Option<Tunnel>,
    /// Settings of CSV files, if the tables are inferred from files instead of imported.
    pub csv: Option<CsvSettings>,
    /// The wrapper runs in the gateway, and the hub reads its tables from there.
    pub in_gateway: bool,
    /// Whether the plugin is one for which spcd sets [`TUNED_OPTIONS`].
    pub has_tuned_wrapper: bool,
    /// Number of lanes of the plugin; `None` means the default.
    pub lanes: Option<u32>,
    /// Server that it shares with other connections, instead of one of its own name.
    pub lane: Option<Lane>,
    /// Servers of other lanes by which its tables in the gateway are read.
    pub also_read_by: BTreeSet<String>,
    /// Hash of its tables in the gateway, if other connections of its plugin instance have the same
    /// ones: then one of them is asked for all.
    pub shared_shape: Option<String>,
    /// The source lists its connections, and has a connection's tables only while its state is `ready`.
    pub follows: Option<SourceKind>,
}

/// Wrappers that ship with Postgres: a session may load any number of them.
const SHIPPED_WITH_POSTGRES: [&str; 2] = ["postgres_fdw", "file_fdw"];

impl ForeignSource {
    /// Returns the wrapper, unless it ships with Postgres. A session of spcd loads at most one such
    /// wrapper: two that embed a language runtime end the server process.
    pub fn exclusive_library(&self) -> Option<&str> {
        let wrapper = self.wrapper.as_str();
        (!SHIPPED_WITH_POSTGRES.contains(&wrapper) && self.csv.is_none()).then_some(wrapper)
    }

    /// Returns the extensions that the source needs.
    pub fn extensions(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.extension).chain(&self.requires)
    }

    /// Returns where to get the extension from.
    pub fn extension_origin(&self) -> &str {
        match self.package.as_str() {
            "" => "its vendor",
            package => package,
        }
    }

    /// Returns whether a session that waits for the source ends by itself or when it is cancelled.
    /// `postgres_fdw` has a `connect_timeout`.
    pub fn is_cancellable(&self) -> bool {
        self.csv.is_some() || self.wrapper == "postgres_fdw"
    }

    /// Returns the name of the server of a connection's tables.
    pub fn server_name(&self, connection: &str) -> String {
        (self.lane.as_ref()).map_or_else(|| connection.to_owned(), Lane::server)
    }

    /// Returns how its wrapper maps columns.
    pub fn wrapper_traits(&self) -> WrapperTraits<'_> {
        WrapperTraits {
            positional: self.positional,
            table_name_option: self.table_name_option.as_deref(),
            column_name_option: self.column_name_option.as_deref(),
            is_tuned: self.is_tuned(),
        }
    }

    /// Returns whether spcd sets [`TUNED_OPTIONS`]: it imports the tables by themselves, over a server
    /// of their own.
    pub fn is_tuned(&self) -> bool {
        self.has_tuned_wrapper && self.dynamic && self.lane.is_none()
    }

    /// Returns whether a file gives this option of the server: its value is not the shipped default.
    pub fn has_written_option(&self, option: &str) -> bool {
        self.server.get(option).is_some_and(|given| {
            !(self.default_options.contains(option)
                && SHIPPED_TUNING == (option, given.value.as_str()))
        })
    }

    /// Returns how its tables and columns are named here; `None`: as in the source. The gateway keeps the
    /// source's names, and the hub renames what it reads from there.
    pub fn naming(&self) -> Option<&Naming> {
        self.import.naming.as_deref().filter(|_| !self.in_gateway)
    }

    /// Returns the server's options as the catalog holds them.
    pub fn server_options(&self) -> BTreeMap<String, String> {
        let value = |(name, option): (&String, &OptionValue)| (name.clone(), option.value.clone());
        self.server.iter().map(value).collect()
    }

    /// Returns the hash of everything in it that the database follows.
    pub fn hash(&self) -> String {
        let mut hasher = Hasher::default();
        let mut put = |text: &str| hasher.put(text);
        put(&self.extension);
        put(&self.wrapper);
        // A shared server is followed by itself, and may lead to another gateway.
        let is_own = |name: &String| self.lane.is_none() || name == TOUCH_OPTION;
        // An import sets it, and no difference of it alone requires one.
        let is_tuned = |name: &String| {
            TUNED_OPTIONS.contains(&name.as_str()) && !self.has_written_option(name)
        };
        let options = self.server.iter();
        for (name, option) in options.filter(|(name, _)| is_own(name) && !is_tuned(name)) {
            put(name);
            put(&option.value);
        }
        put("mapping");
        for (name, value) in self.mapping.iter().filter(|(name, _)| is_own(name)) {
            put(name);
            put(value.expose());
        }
        put("import");
        put(&self.import.schema);
        for list in [&self.import.tables, &self.import.exclude] {
            put(&list.len().to_string());
            list.iter().for_each(|pattern| put(pattern));
        }
        if let Some(unknown_types) = self.import.unknown_types {
            put(&format!("{unknown_types:?}"));
        }
        if let Some(fetch_size) = self.import.fetch_size {
            put(FETCH_SIZE);
            put(&fetch_size.to_string());
        }
        for (name, value) in &self.import_options {
            put(name);
            put(value);
        }
        if let Some(naming) = self.naming() {
            naming.put(&mut hasher);
        }
        let mut put = |text: &str| hasher.put(text);
        put(if self.dynamic { "dynamic" } else { "static" });
        // Tables that were left out may be there with one more type.
        self.requires.iter().for_each(|extension| put(extension));
        // Not the number: a connection keeps the lane that it has.
        if let Some(lane) = &self.lane {
            put(&lane.group);
        }
        if let Some(csv) = &self.csv {
            put(&format!("{csv:?}"));
        }
        hasher.finish()
    }

    /// Returns the local port of the tunnel.
    pub fn tunnel_port(&self) -> Option<u16> {
        let tunnel = self.tunnel.as_ref()?;
        self.server.get(&tunnel.port_option)?.value.parse().ok()
    }

    /// Changes the local port of the tunnel: the default one is in use.
    pub fn set_tunnel_port(&mut self, port: u16) {
        if let Some(tunnel) = &self.tunnel
            && let Some(option) = self.server.get_mut(&tunnel.port_option)
        {
            option.value = port.to_string();
        }
    }
}

/// Method of probing a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProbeMethod {
    /// Importing a table that does not exist: it tests connection, credentials and catalog, and
    /// creates nothing.
    #[default]
    Import,
    /// Opening the files.
    Files,
    /// No probe.
    None,
}

/// Option of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionValue {
    /// Value. Every role can read it in the catalog.
    pub value: String,
    /// Whether spcd may show the value.
    pub public: bool,
}

/// Block `import`, including the definition's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// Remote schema.
    pub schema: String,
    /// Patterns of tables to import; empty selects all.
    pub tables: Vec<String>,
    /// Patterns of tables to leave out.
    pub exclude: Vec<String>,
    /// Interval between imports of a dynamic source, in seconds; 0 disables them, `None` means the
    /// default.
    pub refresh_interval: Option<u64>,
    /// Limit of an import, in seconds; `None` means the default.
    pub timeout: Option<u64>,
    /// Treatment of columns whose types the hub does not have; `None` means the plugin's.
    pub unknown_types: Option<UnknownTypePolicy>,
    /// Number of rows of a fetch from each table; `None` means the default.
    pub fetch_size: Option<u32>,
    /// Names of tables and columns; `None`: as in the source.
    pub naming: Option<Arc<Naming>>,
}

/// Treatment of a column of another Postgres whose type the hub does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum UnknownTypePolicy {
    /// Reads enums as text and domains as their base type, which loses nothing. A table with a
    /// column of another unknown type is left out.
    #[default]
    Known,
    /// Reads every unknown type as text.
    Text,
    /// Leaves out each table with such a column.
    Skip,
}

impl UnknownTypePolicy {
    /// Values of the attribute `unknown_types`.
    pub const VALUES: [&str; 3] = ["known", "text", "skip"];

    /// Returns the policy of that name.
    pub fn from_name(word: &str) -> Option<Self> {
        match word {
            "known" => Some(Self::Known),
            "text" => Some(Self::Text),
            "skip" => Some(Self::Skip),
            _ => None,
        }
    }
}

impl Import {
    /// Returns whether a table is selected. Invalid patterns match nothing; `load` has reported
    /// them.
    pub fn selects(&self, table: &str) -> bool {
        let any = |patterns: &[String]| {
            patterns
                .iter()
                .any(|text| Pattern::new(text).is_ok_and(|pattern| pattern.matches(table)))
        };
        (self.tables.is_empty() || any(&self.tables)) && !any(&self.exclude)
    }

    /// Returns the tables to import if each is named exactly; `None` if the source's list of tables is
    /// needed. A name that the server would truncate is none of its tables.
    pub fn exact_tables(&self) -> Option<Vec<String>> {
        if self.tables.is_empty() || !self.exclude.is_empty() {
            return None;
        }
        let exact = |text: &String| Pattern::new(text).ok()?.exact();
        let is_name = |name: &String| (1..=MAX_NAME_BYTES).contains(&name.len());
        let names = self.tables.iter().map(|text| exact(text).filter(is_name));
        names
            .collect::<Option<BTreeSet<String>>>()
            .map(|names| names.into_iter().collect())
    }

    /// Returns a warning for each pattern that matches no table of the source. `taken` are the
    /// selected tables; `others` are the rest, if known. Without `others`, `exclude` is not
    /// checked.
    pub fn unmatched_patterns(&self, taken: &[&str], others: Option<&[&str]>) -> Vec<String> {
        let all = || taken.iter().chain(others.into_iter().flatten()).copied();
        let matches = |text: &str| {
            Pattern::new(text).is_ok_and(|pattern| all().any(|name| pattern.matches(name)))
        };
        let exclude: &[String] = others.map_or(&[], |_| self.exclude.as_slice());
        let lists = [("tables", self.tables.as_slice()), ("exclude", exclude)];
        let patterns = (lists.into_iter())
            .flat_map(|(list, patterns)| patterns.iter().map(move |pattern| (list, pattern)));
        patterns
            .filter(|(_, text)| !matches(text))
            .map(|(list, text)| {
                let lower = |text: &str| text.to_lowercase();
                let folded = Pattern::new(&lower(text)).ok();
                let is_case = |name: &str| folded.as_ref().is_some_and(|p| p.matches(&lower(name)));
                let hint = if let Some(name) = all().find(|name| is_case(name)) {
                    format!("; patterns are case-sensitive: there is {name:?}")
                } else if text.contains('%') {
                    "; `%` is not a wildcard, write `*`".to_owned()
                } else if let Some((schema, table)) = text.split_once('.')
                    && (schema == self.schema || matches(table))
                {
                    format!("; patterns match names without their schema, write {table:?}")
                } else {
                    String::new()
                };
                format!(
                    "the pattern {text:?} in import.{list} matches no table of the source{hint}"
                )
            })
            .collect()
    }
}
