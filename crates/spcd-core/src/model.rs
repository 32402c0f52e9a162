//! What the files want, as plain data that the other modules share.

mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use crate::csv::Csv;
use crate::hash::Hasher;
use crate::health;
use crate::pattern::Pattern;
use crate::secret::Secret;
use crate::shape::Traits;

pub use tunnel::{Ssh, Tunnel};

/// Everything the files want.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// By name. Blocks whose name is refused or that have no name are only diagnostics.
    pub connections: BTreeMap<String, Arc<Connection>>,
    /// Inputs whose contents are not known now: what they held before must stay.
    pub doubts: Vec<Doubt>,
    /// `options "database"`.
    pub database: DatabaseOptions,
}

impl Desired {
    /// The hash of a connection's target; empty if it has none.
    pub fn target_hash(&self, name: &str) -> &str {
        self.connections
            .get(name)
            .map_or("", |connection| connection.target_hash())
    }
}

/// The wrapper for MySQL and MariaDB.
pub const MYSQL: &str = "mysql_fdw";

impl Desired {
    /// Takes back a default that holds for a hub in UTF8 only: mysql_fdw hands on the text that it gets
    /// in `character_set` as if it were in the hub's encoding.
    pub fn adapt_to_other_encoding(&mut self) {
        let is_utf8 = |target: &Target| {
            target.wrapper == MYSQL && target.default_options.contains("character_set")
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

/// A place of which it is not known what it wants. Connections that the database knows from
/// there, and that no readable block names, keep what they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// A file, or everything below a directory.
    pub path: String,
    /// Whether `path` is a directory.
    pub directory: bool,
    /// What those connections' error is to say; `None` leaves their state as it is.
    pub error: Option<String>,
}

/// What `options "database"` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseOptions {
    /// `search_path`, split; empty if unset.
    pub search_path: Vec<String>,
    /// `search_path_prefix`, split; empty if unset.
    pub search_path_prefix: Vec<String>,
    /// `manage_search_path`; `true` if unset.
    pub manage_search_path: Option<bool>,
    /// The file that holds the block.
    pub file: Option<String>,
    /// The block cannot be read now: paths stay as they are.
    pub is_unknown: bool,
}

/// One `connection` block.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The label.
    pub name: String,
    /// `plugin` as written (`turbot/aws@latest`; for a reference, the label).
    pub plugin: String,
    /// The label of the plugin block it resolved to, or the shipped definition's name.
    pub plugin_instance: String,
    /// What kind of connection.
    pub kind: Kind,
    /// `import_schema = "enabled"`.
    pub enabled: bool,
    /// The file the block is in.
    pub file: String,
    /// The line of the block's opening brace, from 1.
    pub start_line: u32,
    /// The line of its closing brace.
    pub end_line: u32,
    /// What is to be there, or the error for its state: `file:line:col: reason`, without
    /// source lines and without values that are not public.
    pub target: Result<Target, String>,
    /// What its state is to warn of, apart from errors.
    pub warnings: Vec<String>,
    /// The block `labels`: for people, and nothing follows from them.
    pub labels: BTreeMap<String, String>,
    /// What its block `health` and its plugin's say of when its source is asked whether it is there.
    pub health: health::Options,
    pub(crate) hash: TargetHash,
}

impl Connection {
    /// The hash of its target; empty if it has none.
    pub fn target_hash(&self) -> &str {
        let Ok(target) = &self.target else { return "" };
        self.hash.0.get_or_init(|| target.hash())
    }
}

/// Reckoned once for all who share a connection. A copy is made to be changed, so it starts anew.
#[derive(Debug, Default)]
pub(crate) struct TargetHash(OnceLock<String>);

impl Clone for TargetHash {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// `type = …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Foreign tables of one source.
    Plugin,
    /// Views over other connections' tables.
    Aggregator {
        /// `connections` as written.
        patterns: Vec<String>,
        /// The connections they mean, in byte order.
        members: Vec<String>,
    },
}

/// A connection seen through its plugin's definition: what it becomes in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// The extension that brings the wrapper.
    pub extension: String,
    /// Other extensions that its tables may need: created where they are available.
    pub requires: BTreeSet<String>,
    /// What to install when the extension is not available: a package or a page.
    pub package: String,
    /// The foreign data wrapper.
    pub wrapper: String,
    /// Options of the server, with defaults from the definition applied.
    pub server: BTreeMap<String, OptionValue>,
    /// Those of them that the connection does not give.
    pub default_options: BTreeSet<String>,
    /// Options of the user mapping; always secret.
    pub mapping: BTreeMap<String, Secret>,
    /// Server options that hold only while the source is asked (`keep_connections = off`).
    pub ask: BTreeMap<String, String>,
    /// What is imported.
    pub import: Import,
    /// Options of the import statement itself (`import_enum_as_text`).
    pub import_options: BTreeMap<String, String>,
    /// Of the attributes that are given: those that not every version of the wrapper takes, and
    /// from which on it does.
    pub since: BTreeMap<String, String>,
    /// `dynamic`: asked for itself; `static`: shares one set of tables with all connections of
    /// its plugin instance.
    pub dynamic: bool,
    /// The wrapper maps columns by position (file_fdw), so their order counts.
    pub positional: bool,
    /// The wrapper's column option for a remote name (`column_name`), left out where it says
    /// what the column's own name says.
    pub column_name_option: Option<String>,
    /// How one finds out whether the source is there.
    pub probe: Probe,
    /// What leads to the source, where it cannot be reached by itself.
    pub tunnel: Option<Tunnel>,
    /// Which files are the tables, where the wrapper cannot import: they are read, not asked for.
    pub csv: Option<Csv>,
}

/// The wrappers that come with Postgres: any number of them live in one session.
const SHIPPED_WITH_POSTGRES: [&str; 2] = ["postgres_fdw", "file_fdw"];

impl Target {
    /// The wrapper, unless it comes with Postgres. A session of spcd's own loads the library of one
    /// such wrapper at most: two that bring a language runtime along end the server process.
    pub fn library(&self) -> Option<&str> {
        let wrapper = self.wrapper.as_str();
        (!SHIPPED_WITH_POSTGRES.contains(&wrapper) && self.csv.is_none()).then_some(wrapper)
    }

    /// Whether a session that waits for the source ends by itself or when it is cancelled.
    /// `postgres_fdw` limits the time in which it connects.
    pub fn is_cancellable(&self) -> bool {
        self.csv.is_some() || self.wrapper == "postgres_fdw"
    }

    /// How its wrapper sees tables.
    pub fn traits(&self) -> Traits<'_> {
        Traits {
            positional: self.positional,
            column_name_option: self.column_name_option.as_deref(),
        }
    }

    /// The server's options as the catalog holds them.
    pub fn server_options(&self) -> BTreeMap<String, String> {
        let value = |(name, option): (&String, &OptionValue)| (name.clone(), option.value.clone());
        self.server.iter().map(value).collect()
    }

    /// Returns the hash of everything in it that the database should follow.
    pub fn hash(&self) -> String {
        let mut hasher = Hasher::default();
        let mut put = |text: &str| hasher.put(text);
        put(&self.extension);
        put(&self.wrapper);
        for (name, option) in &self.server {
            put(name);
            put(&option.value);
        }
        put("mapping");
        for (name, value) in &self.mapping {
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
        for (name, value) in &self.import_options {
            put(name);
            put(value);
        }
        put(if self.dynamic { "dynamic" } else { "static" });
        if let Some(csv) = &self.csv {
            put(&format!("{csv:?}"));
        }
        hasher.finish()
    }

    /// The port on this machine through which the source is reached.
    pub fn tunnel_port(&self) -> Option<u16> {
        let tunnel = self.tunnel.as_ref()?;
        self.server.get(&tunnel.port_option)?.value.parse().ok()
    }

    /// Names another port for the tunnel's end: the usual one is taken.
    pub fn set_tunnel_port(&mut self, port: u16) {
        if let Some(tunnel) = &self.tunnel
            && let Some(option) = self.server.get_mut(&tunnel.port_option)
        {
            option.value = port.to_string();
        }
    }
}

/// How one finds out whether a source is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Probe {
    /// By an import of a table that does not exist: it goes through connection, credentials and
    /// catalog, and makes nothing.
    #[default]
    Import,
    /// By opening the files.
    Files,
    /// Not at all.
    None,
}

/// A server option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionValue {
    /// Its value. Every role can read it in the catalog.
    pub value: String,
    /// Whether spcd may show it.
    pub public: bool,
}

/// The block `import`, with the definition's defaults applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// The remote schema.
    pub schema: String,
    /// Patterns of tables to take; empty: all.
    pub tables: Vec<String>,
    /// Patterns of tables to leave out.
    pub exclude: Vec<String>,
    /// How often a dynamic source is asked again, in seconds; 0: never; `None`: the default.
    pub refresh_interval: Option<u64>,
    /// How long an import may take, in seconds; `None`: the default.
    pub timeout: Option<u64>,
    /// What becomes of columns whose types the hub does not have; `None`: what the plugin says.
    pub unknown_types: Option<UnknownTypes>,
}

/// What becomes of a column of another Postgres whose type the hub does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownTypes {
    /// Enums are read as text and domains as the type below them, which loses nothing. A table with a
    /// column of another unknown type is left out.
    #[default]
    Known,
    /// Every unknown type is read as text.
    Text,
    /// Each table with such a column is left out.
    Skip,
}

impl UnknownTypes {
    /// The values of the attribute `unknown_types`.
    pub const WORDS: [&str; 3] = ["known", "text", "skip"];

    /// The value with that name.
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "known" => Some(Self::Known),
            "text" => Some(Self::Text),
            "skip" => Some(Self::Skip),
            _ => None,
        }
    }
}

impl Import {
    /// Whether a table is wanted. Patterns that cannot be read match nothing; `load` has refused
    /// them before.
    pub fn takes(&self, table: &str) -> bool {
        let any = |patterns: &[String]| {
            patterns
                .iter()
                .any(|text| Pattern::new(text).is_ok_and(|pattern| pattern.matches(table)))
        };
        (self.tables.is_empty() || any(&self.tables)) && !any(&self.exclude)
    }

    /// Returns a warning for each pattern that matches none of the source's tables: `taken` are those
    /// that are wanted, `others` the rest, where they are known. Without them nothing can be said of
    /// `exclude`.
    pub fn unmatched(&self, taken: &[&str], others: Option<&[&str]>) -> Vec<String> {
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
                    format!("; upper and lower case count: there is {name:?}")
                } else if text.contains('%') {
                    "; `%` is no wildcard here, write `*`".to_owned()
                } else if let Some((schema, table)) = text.split_once('.')
                    && (schema == self.schema || matches(table))
                {
                    format!("; patterns are of names without their schema, write {table:?}")
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
