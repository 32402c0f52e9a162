//! Plugin definitions, and a connection seen through one.
//!
//! Definitions are data: those that ship are in `config/plugins.spc`, and a `plugin` block of the
//! user's changes one or adds another.

mod definition;
mod files;
mod libpq;
mod path;
mod target;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use crate::health;
use crate::model::{Probe, UnknownTypes};
use spcd_lang::nearest::{is_slip, nearest};
use spcd_lang::settings::Settings;

pub(crate) use definition::STEAMPIPE_ATTRIBUTES;
pub(crate) use path::below;
pub(crate) use target::{Context, OWN_ATTRIBUTES, OWN_BLOCKS, target};

/// The text of the definitions that ship, with its comments.
pub const SHIPPED: &str = include_str!("../../../config/plugins.spc");

/// How connections of a plugin become Postgres objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Definition {
    /// The extension that brings the wrapper.
    pub extension: String,
    /// The foreign data wrapper.
    pub wrapper: String,
    /// Other extensions whose types its tables may have: created where they are available.
    pub requires: BTreeSet<String>,
    /// What to install where the extension is not available.
    pub package: String,
    /// Attributes that become options of the server, with the options' names.
    pub server: BTreeMap<String, String>,
    /// Attributes that become options of the user mapping, with the options' names.
    pub mapping: BTreeMap<String, String>,
    /// Attributes whose values may be shown.
    pub public: BTreeSet<String>,
    /// Attributes that must be given.
    pub required: Vec<String>,
    /// Options of the server where the connection gives none.
    pub defaults: BTreeMap<String, String>,
    /// Options of the server that hold only while the source is asked.
    pub ask: BTreeMap<String, String>,
    /// Options of the import statement itself.
    pub import_options: BTreeMap<String, String>,
    /// What becomes of columns whose types the hub does not have, unless the connection says that.
    pub unknown_types: Option<UnknownTypes>,
    /// Attributes that not every version of the wrapper takes, and from which on it does.
    pub since: BTreeMap<String, String>,
    /// Attributes that hold paths.
    pub paths: BTreeSet<String>,
    /// Attributes that say which files become tables, and how they are read.
    pub files: BTreeSet<String>,
    /// The remote schema, unless the connection names one.
    pub schema: String,
    /// The attribute that names the remote schema.
    pub schema_attribute: Option<String>,
    /// Each connection is asked for its tables; else all of the plugin share one set.
    pub dynamic: bool,
    /// In the rule for undefined plugins: those that are to be asked each for itself.
    pub ask_each: BTreeSet<String>,
    /// What attributes' values must be: `port`, `seconds`, `milliseconds`, `flag`, or words between
    /// `|`.
    pub values: BTreeMap<String, String>,
    /// Attributes in plain words, and the options of the server that they mean.
    pub words: BTreeMap<String, BTreeMap<String, String>>,
    /// Options to which several words add: what stands before, and between.
    pub join: BTreeMap<String, (String, String)>,
    /// Attributes that people try and the wrapper has no option for, with the way out.
    pub lacks: BTreeMap<String, String>,
    /// What else people call the plugin.
    pub aliases: BTreeSet<String>,
    /// What other programs call an attribute, with the attribute.
    pub synonyms: BTreeMap<String, String>,
    /// Attributes (`name`, or `name=value`) that are of no use without another, or one of several
    /// between `|`.
    pub needs: BTreeMap<String, String>,
    /// How one finds out whether a source is there.
    pub probe: Probe,
    /// When that is done, as far as the plugin's block says.
    pub health: health::Options,
    /// How a source is reached through a tunnel: the options that hold `address` (of the tunnel's
    /// end), `host` and `port`, and the `default_port`. Empty: it cannot be.
    pub tunnel: BTreeMap<String, String>,
    /// Columns are mapped by position.
    pub positional: bool,
    /// The wrapper's option for a column's remote name.
    pub column_name: Option<String>,
    /// The attribute that takes a libpq connection string.
    pub connection_string: Option<String>,
    /// The option of the server that takes the connection's body as HCL.
    pub body: Option<String>,
    /// The connection itself names wrapper and options.
    pub verbatim: bool,
    /// A body with secrets may become an option of the server, which every role can read.
    pub allow_visible_secrets: bool,
}

impl Definition {
    /// Whether an attribute's value may be shown.
    pub fn is_public(&self, attribute: &str) -> bool {
        self.public.contains(attribute)
    }

    /// Whether a connection may give an attribute of this name.
    fn knows(&self, name: &str) -> bool {
        self.body.is_some()
            || self.server.contains_key(name)
            || self.mapping.contains_key(name)
            || self.words.contains_key(name)
            || self.lacks.contains_key(name)
            || self.files.contains(name)
            || self.schema_attribute.as_deref() == Some(name)
            || self.connection_string.as_deref() == Some(name)
            || (self.verbatim && VERBATIM.contains(&name))
    }

    /// The attribute that a name that is none most probably means.
    fn meant(&self, name: &str, besides: &[&'static str]) -> Option<&str> {
        let lower = name.to_lowercase();
        let synonym = self.synonyms.get(&lower).map(String::as_str);
        let attributes = self.attributes().chain(besides.iter().copied());
        synonym.or_else(|| nearest(name, attributes))
    }

    /// Every attribute that a connection may give, where they can be told.
    fn attributes(&self) -> impl Iterator<Item = &str> {
        let names = self
            .server
            .keys()
            .chain(self.mapping.keys())
            .chain(self.words.keys())
            .chain(&self.files);
        let named = [&self.schema_attribute, &self.connection_string];
        let verbatim: &[&str] = if self.verbatim { &VERBATIM } else { &[] };
        names
            .map(String::as_str)
            .chain(named.into_iter().filter_map(|name| name.as_deref()))
            .chain(verbatim.iter().copied())
    }
}

/// What a connection says where it names wrapper and options itself.
const VERBATIM: [&str; 6] = [
    "wrapper",
    "extension",
    "schema",
    "column_name",
    "server",
    "mapping",
];

/// What a plugin's name means: `"aws"`, `"turbot/aws"`, `"aws@latest"` and
/// `hub.steampipe.io/plugins/turbot/aws@latest` are one plugin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName {
    /// The organisation, or a registry's path; `turbot` if none is written.
    pub org: String,
    /// The name itself.
    pub name: String,
    /// `latest` if none is written.
    pub version: String,
}

impl PluginName {
    /// Reads a name as people write it.
    pub fn new(written: &str) -> Self {
        let written = written.trim();
        let written = written
            .strip_prefix("hub.steampipe.io/plugins/")
            .unwrap_or(written);
        let slash = written.rfind('/');
        let (path, version) = match written
            .rfind('@')
            .filter(|at| slash.is_none_or(|slash| *at > slash))
        {
            Some(at) => (&written[..at], &written[at + 1..]),
            None => (written, ""),
        };
        let (org, name) = path.rsplit_once('/').unwrap_or(("turbot", path));
        let version = if version.is_empty() {
            "latest"
        } else {
            version
        };
        Self {
            org: org.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
        }
    }

    /// The shortest way to write it.
    pub fn short(&self) -> String {
        let mut short = match self.org.as_str() {
            "turbot" => self.name.clone(),
            org => format!("{org}/{}", self.name),
        };
        if self.version != "latest" {
            short.push('@');
            short.push_str(&self.version);
        }
        short
    }
}

/// The definitions that ship, by name. `*` is the rule for plugins that nobody defines.
pub fn shipped() -> &'static BTreeMap<String, Definition> {
    static DEFINITIONS: OnceLock<BTreeMap<String, Definition>> = OnceLock::new();
    DEFINITIONS.get_or_init(|| {
        let mut definitions = BTreeMap::new();
        for piece in spcd_lang::block_splitter::split_blocks(SHIPPED).pieces {
            let parsed = spcd_lang::parse::parse(&SHIPPED[piece.start..piece.end]);
            let Some(block) = parsed.block else { continue };
            let Some(label) = block.labels.first() else {
                continue;
            };
            let mut problems = parsed.problems;
            let mut lookup = |_: spcd_lang::evaluate::Function, _: &str| Err(String::new());
            let settings = Settings::of(&block.body, &[], &mut lookup, &mut problems);
            let mut definition = Definition::default();
            definition.change(&settings, &mut problems);
            debug_assert!(problems.is_empty(), "{}: {problems:?}", label.text);
            definitions.insert(label.text.to_string(), definition);
        }
        definitions
    })
}

/// The definition that a name means where no block of the user's says otherwise.
pub(crate) fn definition_of(name: &PluginName) -> Definition {
    if let (Some(found), true) = (shipped().get(&name.name), name.org == "turbot") {
        return found.clone();
    }
    let rule = shipped().get("*").cloned().unwrap_or_default();
    rule.for_plugin(name)
}

/// The shipped plugin that a name most probably means, where the name is none of them: one of its
/// other names, or a slip.
pub(crate) fn shipped_near(name: &PluginName) -> Option<&'static str> {
    let lower = name.name.to_lowercase();
    if name.org != "turbot" {
        return None;
    }
    let plugins = shipped().iter().filter(|(label, _)| *label != "*");
    let means = |(label, definition): &(&'static String, &'static Definition)| {
        **label == lower
            || definition.aliases.contains(&lower)
            // A shorter name may be that of another plugin: `oci` is near `ogr`.
            || (label.len() >= 5 && is_slip(&lower, label))
    };
    plugins
        .into_iter()
        .find(means)
        .map(|(label, _)| label.as_str())
}

/// Whether a name means a definition that ships.
pub(crate) fn is_shipped(name: &PluginName) -> bool {
    name.org == "turbot" && name.name != "*" && shipped().contains_key(&name.name)
}

#[cfg(test)]
mod tests {
    use super::{PluginName, definition_of, shipped};

    #[test]
    fn names_that_mean_the_same_plugin_are_equal() {
        let aws = PluginName::new("aws");
        for same in [
            "turbot/aws",
            "aws@latest",
            "hub.steampipe.io/plugins/turbot/aws@latest",
        ] {
            assert_eq!(PluginName::new(same), aws, "{same}");
            assert_eq!(PluginName::new(same).short(), "aws");
        }
        for other in ["aws@0.1", "me/aws", "AWS", "ghcr.io/turbot/aws"] {
            assert_ne!(PluginName::new(other), aws, "{other}");
            assert_eq!(PluginName::new(other).short(), other);
        }
    }

    #[test]
    fn the_shipped_definitions_can_be_read() {
        let names: Vec<_> = shipped().keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["*", "csv", "fdw", "mssql", "mysql", "ogr", "postgres"]
        );
        let postgres = &shipped()["postgres"];
        assert_eq!(postgres.defaults["connect_timeout"], "10");
        assert_eq!(postgres.ask["keep_connections"], "off");
        assert!(postgres.dynamic);
        for definition in shipped().values() {
            let secret = definition
                .mapping
                .keys()
                .filter(|name| *name != "password_required");
            assert!(secret.into_iter().all(|name| !definition.is_public(name)));
        }
    }

    #[test]
    fn a_plugin_that_nobody_defines_is_a_steampipe_extension() {
        let definition = definition_of(&PluginName::new(
            "ghcr.io/mlavrinenko/steampipe-plugin-redmine@latest",
        ));
        assert_eq!(definition.extension, "steampipe_postgres_redmine");
        assert!(!definition.dynamic);
        let definition = definition_of(&PluginName::new("turbot/kubernetes"));
        assert_eq!(
            definition.package,
            "https://hub.steampipe.io/plugins/turbot/kubernetes"
        );
        assert!(definition.dynamic);
    }
}
