//! Plugin definitions, and the objects that connections become through them.
//!
//! Definitions are data. The shipped ones are in `config/plugins.spc`; a `plugin` block changes one
//! or adds another.

mod block_text;
mod definition;
mod files;
mod foreign_source;
mod parameter_names;
mod path;
mod visible_secrets;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use crate::health;
use crate::model::{ProbeMethod, UnknownTypePolicy};
use spcd_lang::nearest::{is_one_edit_from, nearest};
use spcd_lang::settings::Settings;

pub use block_text::{UnwritableBlock, connection_block};
pub(crate) use definition::STEAMPIPE_ATTRIBUTES;
pub(crate) use foreign_source::{ConnectionContext, OWN_ATTRIBUTES, OWN_BLOCKS, build_target};
pub(crate) use path::resolve;

/// Text of the shipped definitions, with its comments.
pub const SHIPPED_TEXT: &str = include_str!("../../../config/plugins.spc");

/// Rules by which connections of a plugin become Postgres objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PluginDefinition {
    /// Extension that provides the wrapper.
    pub extension: String,
    /// Foreign data wrapper.
    pub wrapper: String,
    /// Further extensions whose types its tables may have; created where available.
    pub requires: BTreeSet<String>,
    /// Package or page to install if the extension is not available.
    pub package: String,
    /// Attributes that become server options, with the options' names.
    pub server: BTreeMap<String, String>,
    /// Attributes that become options of the user mapping, with the options' names.
    pub mapping: BTreeMap<String, String>,
    /// Attributes whose values may be shown.
    pub public: BTreeSet<String>,
    /// Required attributes.
    pub required: Vec<String>,
    /// Server options that apply if the connection gives none.
    pub defaults: BTreeMap<String, String>,
    /// Server options that are set only during an import.
    pub ask_options: BTreeMap<String, String>,
    /// Options of the IMPORT FOREIGN SCHEMA statement.
    pub import_options: BTreeMap<String, String>,
    /// Treatment of columns whose types the hub does not have, unless the connection gives one.
    pub unknown_types: Option<UnknownTypePolicy>,
    /// Minimum wrapper version of attributes that not every version supports.
    pub since: BTreeMap<String, String>,
    /// Attributes that hold paths.
    pub paths: BTreeSet<String>,
    /// Attributes that select files and say how to read them.
    pub files: BTreeSet<String>,
    /// Remote schema, unless the connection names one.
    pub schema: String,
    /// Attribute that names the remote schema.
    pub schema_attribute: Option<String>,
    /// Whether each connection is imported by itself; else all connections of the plugin share one
    /// set of tables.
    pub dynamic: bool,
    /// Plugins for which the rule for undefined plugins is dynamic.
    pub dynamic_plugins: BTreeSet<String>,
    /// Allowed values of attributes: `port`, `seconds`, `milliseconds`, `flag`, or words separated
    /// by `|`.
    pub values: BTreeMap<String, String>,
    /// Attributes that expand to server options, with those options.
    pub words: BTreeMap<String, BTreeMap<String, String>>,
    /// Options that several such attributes contribute to: the prefix, and the separator.
    pub join: BTreeMap<String, (String, String)>,
    /// Attributes that users try and the wrapper does not support, with a hint.
    pub lacks: BTreeMap<String, String>,
    /// Other names of the plugin.
    pub aliases: BTreeSet<String>,
    /// Names of attributes in other programs, with the attribute.
    pub synonyms: BTreeMap<String, String>,
    /// Attributes (`name`, or `name=value`) that require another one, or one of several separated
    /// by `|`.
    pub needs: BTreeMap<String, String>,
    /// Method of probing a source.
    pub probe: ProbeMethod,
    /// Probe options of the plugin's block.
    pub health: health::ProbeOptions,
    /// Options for a tunnel: those that hold `address` (of the local end), `host` and `port`, and
    /// the `default_port`. Empty if the plugin supports no tunnel.
    pub tunnel: BTreeMap<String, String>,
    /// Whether the wrapper maps columns by position.
    pub positional: bool,
    /// Table option for the remote name.
    pub table_name: Option<String>,
    /// Column option for the remote name.
    pub column_name: Option<String>,
    /// Attribute that takes a libpq connection string.
    pub connection_string: Option<String>,
    /// Server option that takes the connection's body as HCL.
    pub body: Option<String>,
    /// Whether the connection itself names wrapper and options.
    pub verbatim: bool,
    /// Whether the wrapper runs in the gateway where there is one, unless the connection says otherwise.
    pub gateway: bool,
    /// Number of lanes by which the hub reaches the gateway; `None` means the default.
    pub lanes: Option<u32>,
    /// Whether a body with secrets may become a server option, which every role can read.
    pub allow_visible_secrets: bool,
}

impl PluginDefinition {
    /// Returns whether an attribute's value may be shown.
    pub fn is_public(&self, attribute: &str) -> bool {
        self.public.contains(attribute)
    }

    /// Returns whether a connection may have an attribute of this name.
    pub(crate) fn accepts(&self, name: &str) -> bool {
        self.body.is_some()
            || self.server.contains_key(name)
            || self.mapping.contains_key(name)
            || self.words.contains_key(name)
            || self.lacks.contains_key(name)
            || self.files.contains(name)
            || self.schema_attribute.as_deref() == Some(name)
            || self.connection_string.as_deref() == Some(name)
            || (self.verbatim && VERBATIM_ATTRIBUTES.contains(&name))
    }

    /// Returns the attribute that an unknown name most probably means.
    pub(crate) fn nearest_attribute(&self, name: &str, besides: &[&'static str]) -> Option<&str> {
        let lower = name.to_lowercase();
        let synonym = self.synonyms.get(&lower).map(String::as_str);
        let attributes = self.attributes().chain(besides.iter().copied());
        synonym.or_else(|| nearest(name, attributes))
    }

    /// Returns every attribute that a connection may have, as far as they are known.
    fn attributes(&self) -> impl Iterator<Item = &str> {
        let names = self
            .server
            .keys()
            .chain(self.mapping.keys())
            .chain(self.words.keys())
            .chain(&self.files);
        let named = [&self.schema_attribute, &self.connection_string];
        let verbatim: &[&str] = if self.verbatim {
            &VERBATIM_ATTRIBUTES
        } else {
            &[]
        };
        names
            .map(String::as_str)
            .chain(named.into_iter().filter_map(|name| name.as_deref()))
            .chain(verbatim.iter().copied())
    }
}

/// Attributes of a connection that itself names wrapper and options.
const VERBATIM_ATTRIBUTES: [&str; 7] = [
    "wrapper",
    "extension",
    "schema",
    "table_name",
    "column_name",
    "server",
    "mapping",
];

/// Normalized name of a plugin: `"aws"`, `"turbot/aws"`, `"aws@latest"` and
/// `hub.steampipe.io/plugins/turbot/aws@latest` are one plugin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName {
    /// Organisation, or path of a registry; `turbot` by default.
    pub org: String,
    /// Name without organisation and version.
    pub name: String,
    /// Version; `latest` by default.
    pub version: String,
}

impl PluginName {
    /// Parses a name as users write it.
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

    /// Returns the shortest form of the name.
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

/// Returns the shipped definitions by name. `*` is the rule for undefined plugins.
pub fn shipped_definitions() -> &'static BTreeMap<String, PluginDefinition> {
    static DEFINITIONS: OnceLock<BTreeMap<String, PluginDefinition>> = OnceLock::new();
    DEFINITIONS.get_or_init(|| {
        let mut definitions = BTreeMap::new();
        for piece in spcd_lang::block_splitter::split_blocks(SHIPPED_TEXT).fragments {
            let parsed = spcd_lang::parse::parse(&SHIPPED_TEXT[piece.start..piece.end]);
            let Some(block) = parsed.block else { continue };
            let Some(label) = block.labels.first() else {
                continue;
            };
            let mut problems = parsed.problems;
            let mut lookup = |_: spcd_lang::evaluate::Function, _: &str| Err(String::new());
            let settings = Settings::of(&block.body, &[], &mut lookup, &mut problems);
            let mut definition = PluginDefinition::default();
            definition.apply_settings(&settings, &mut problems);
            debug_assert!(problems.is_empty(), "{}: {problems:?}", label.text);
            definitions.insert(label.text.to_string(), definition);
        }
        definitions
    })
}

/// Returns the shipped definition of a name, or the one from the rule for undefined plugins.
pub(crate) fn definition_of(name: &PluginName) -> PluginDefinition {
    if let (Some(found), true) = (shipped_definitions().get(&name.name), name.org == "turbot") {
        return found.clone();
    }
    let rule = shipped_definitions().get("*").cloned().unwrap_or_default();
    rule.for_plugin(name)
}

/// Returns the shipped plugin that an unknown name most probably means: by an alias or a typing
/// error.
pub(crate) fn shipped_near(name: &PluginName) -> Option<&'static str> {
    let lower = name.name.to_lowercase();
    if name.org != "turbot" {
        return None;
    }
    let plugins = shipped_definitions()
        .iter()
        .filter(|(label, _)| *label != "*");
    let means = |(label, definition): &(&'static String, &'static PluginDefinition)| {
        **label == lower
            || definition.aliases.contains(&lower)
            // A shorter name may be another plugin's: `oci` is near `ogr`.
            || (label.len() >= 5 && is_one_edit_from(&lower, label))
            || has_repeated_letter(&lower, label)
    };
    plugins
        .into_iter()
        .find(means)
        .map(|(label, _)| label.as_str())
}

/// Returns whether a name differs from another one only by letters that are typed twice (`csvv`).
fn has_repeated_letter(name: &str, of: &str) -> bool {
    let letters = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.dedup();
        letters
    };
    name.len() > of.len() && letters(name) == letters(of)
}

/// Returns whether a name has a shipped definition.
pub(crate) fn is_shipped(name: &PluginName) -> bool {
    name.org == "turbot" && name.name != "*" && shipped_definitions().contains_key(&name.name)
}

#[cfg(test)]
mod tests {
    use super::{PluginName, definition_of, shipped_definitions, shipped_near};

    #[test]
    fn slips_mean_a_shipped_plugin_and_other_plugins_do_not() {
        for (name, meant) in [
            ("ogrr", Some("ogr")),
            ("oogr", Some("ogr")),
            ("csvv", Some("csv")),
            ("CSV", Some("csv")),
            ("postgress", Some("postgres")),
            ("oci", None),
            ("csc", None),
            ("me/csvv", None),
        ] {
            assert_eq!(shipped_near(&PluginName::new(name)), meant, "{name}");
        }
    }

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
        let names: Vec<_> = shipped_definitions().keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["*", "csv", "fdw", "mssql", "mysql", "ogr", "postgres"]
        );
        let postgres = &shipped_definitions()["postgres"];
        assert_eq!(postgres.defaults["connect_timeout"], "10");
        assert_eq!(postgres.ask_options["keep_connections"], "off");
        assert!(postgres.dynamic);
        for definition in shipped_definitions().values() {
            let secret = definition
                .mapping
                .keys()
                .filter(|name| *name != "password_required");
            assert!(secret.into_iter().all(|name| !definition.is_public(name)));
        }
    }

    #[test]
    fn a_plugin_without_a_definition_is_a_steampipe_extension() {
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
