//! A `plugin` block to a definition.

use std::collections::{BTreeMap, BTreeSet};

use super::{Definition, PluginName};
use crate::model::{Probe, UnknownTypes};
use spcd_lang::nearest::nearest;
use spcd_lang::settings::{Setting, Settings};
use spcd_lang::syntax::Problem;
use spcd_lang::value::Value;

/// What a definition says.
const ATTRIBUTES: [&str; 35] = [
    "aliases",
    "allow_visible_secrets",
    "ask",
    "body",
    "column_name",
    "connection_string",
    "defaults",
    "dynamic",
    "extension",
    "files",
    "import_options",
    "unknown_types",
    "join",
    "lacks",
    "mapping",
    "needs",
    "package",
    "paths",
    "positional",
    "probe",
    "public",
    "required",
    "requires",
    "schema",
    "schema_attribute",
    "schema_mode",
    "server",
    "since",
    "source",
    "synonyms",
    "tunnel",
    "values",
    "verbatim",
    "words",
    "wrapper",
];

/// What Steampipe's plugin blocks say and spcd has no use for.
pub(crate) const STEAMPIPE_ATTRIBUTES: [&str; 6] = [
    "fill_rate",
    "bucket_size",
    "max_concurrency",
    "memory_max_mb",
    "start_timeout",
    "scope",
];

impl Definition {
    /// Takes what a block says and keeps the rest.
    pub(crate) fn change(&mut self, settings: &Settings, problems: &mut Vec<Problem>) {
        for setting in &settings.list {
            self.change_one(setting, problems);
        }
        // `extension` alone says the wrapper too: nearly always they have one name.
        if settings.get("wrapper").is_none() && settings.get("extension").is_some() {
            self.wrapper.clone_from(&self.extension);
        } else if settings.get("extension").is_none() && settings.get("wrapper").is_some() {
            self.extension.clone_from(&self.wrapper);
        }
    }

    fn change_one(&mut self, setting: &Setting, problems: &mut Vec<Problem>) {
        let span = setting.value_span;
        let mut wrong = |expected: &str| {
            let message = format!(
                "expected {expected} for `{}`, found {}",
                setting.name,
                setting.value.kind()
            );
            problems.push(Problem::new(span, message));
        };
        let text = setting.value.as_text();
        let boolean = match &setting.value {
            Value::Bool(value) => Some(*value),
            _ => None,
        };
        match &*setting.name {
            "extension" | "wrapper" | "package" | "schema" | "column_name" | "body"
            | "connection_string" | "schema_attribute" => {
                let Some(text) = text else {
                    return wrong("text");
                };
                let optional = Some(text.clone()).filter(|text| !text.is_empty());
                match &*setting.name {
                    "extension" => self.extension = text,
                    "wrapper" => self.wrapper = text,
                    "package" => self.package = text,
                    "schema" => self.schema = text,
                    "column_name" => self.column_name = optional,
                    "body" => self.body = optional,
                    "connection_string" => self.connection_string = optional,
                    _ => self.schema_attribute = optional,
                }
            }
            "positional" | "verbatim" | "allow_visible_secrets" => {
                let Some(value) = boolean else {
                    return wrong("true or false");
                };
                match &*setting.name {
                    "positional" => self.positional = value,
                    "verbatim" => self.verbatim = value,
                    _ => self.allow_visible_secrets = value,
                }
            }
            "schema_mode" => match text.as_deref() {
                Some("dynamic") => self.dynamic = true,
                Some("static") => self.dynamic = false,
                _ => problems.push(
                    Problem::new(span, "expected a schema mode")
                        .hint("write `schema_mode = \"dynamic\"` or `\"static\"`"),
                ),
            },
            "unknown_types" => {
                self.unknown_types = text.as_deref().and_then(UnknownTypes::named);
                if self.unknown_types.is_none() {
                    wrong("`\"known\"`, `\"text\"` or `\"skip\"`");
                }
            }
            "probe" => match text.as_deref() {
                Some("import") => self.probe = Probe::Import,
                Some("files") => self.probe = Probe::Files,
                Some("none") => self.probe = Probe::None,
                _ => problems.push(
                    Problem::new(span, "this is no way to find out whether a source is there")
                        .hint("write `probe = \"import\"`, `\"files\"` or `\"none\"`"),
                ),
            },
            "public" | "paths" | "files" | "dynamic" | "requires" | "aliases" => {
                let Some(names) = names(&setting.value) else {
                    return wrong("a list of names");
                };
                match &*setting.name {
                    "public" => self.public = names,
                    "paths" => self.paths = names,
                    "dynamic" => self.ask_each = names,
                    "requires" => self.requires = names,
                    "aliases" => self.aliases = names,
                    _ => self.files = names,
                }
            }
            "required" => match names(&setting.value) {
                Some(names) => self.required = names.into_iter().collect(),
                None => wrong("a list of names"),
            },
            "words" => match objects(&setting.value) {
                Some(words) => self.words = words,
                None => wrong("an object of objects of texts"),
            },
            "join" => match pairs(&setting.value) {
                Some(pairs) => self.join = pairs,
                None => wrong("an object of lists of two texts"),
            },
            "server" | "mapping" => {
                let Some(options) = renames(&setting.value) else {
                    return wrong("a list of names or an object");
                };
                if &*setting.name == "server" {
                    self.server = options
                } else {
                    self.mapping = options
                }
            }
            "defaults" | "ask" | "import_options" | "since" | "values" | "lacks" | "needs"
            | "tunnel" | "synonyms" => {
                let Some(values) = texts(&setting.value) else {
                    return wrong("an object of texts");
                };
                match &*setting.name {
                    "defaults" => self.defaults = values,
                    "ask" => self.ask = values,
                    "since" => self.since = values,
                    "tunnel" => self.tunnel = values,
                    "values" => self.values = values,
                    "lacks" => self.lacks = values,
                    "needs" => self.needs = values,
                    "synonyms" => self.synonyms = values,
                    _ => self.import_options = values,
                }
            }
            "source" => {}
            steampipe if STEAMPIPE_ATTRIBUTES.contains(&steampipe) => {}
            unknown => {
                let message = format!("a plugin block has no attribute `{unknown}`");
                let problem = Problem::new(setting.span, message);
                problems.push(match nearest(unknown, ATTRIBUTES.into_iter()) {
                    Some(known) => problem.hint(format!("did you mean `{known}`?")),
                    None => problem,
                });
            }
        }
    }

    /// The rule for undefined plugins, for one of them.
    pub(super) fn for_plugin(mut self, name: &PluginName) -> Self {
        let short = name
            .name
            .strip_prefix("steampipe-plugin-")
            .unwrap_or(&name.name);
        let identifier: String = short
            .chars()
            .map(|c| {
                if c == '-' {
                    '_'
                } else {
                    c.to_ascii_lowercase()
                }
            })
            .collect();
        let fill = |text: &str| {
            text.replace("{name}", &identifier)
                .replace("{org}", &name.org)
        };
        self.dynamic |= self.ask_each.contains(short);
        self.extension = fill(&self.extension);
        self.wrapper = fill(&self.wrapper);
        self.package = fill(&self.package);
        self.schema = fill(&self.schema);
        self.ask_each.clear();
        self
    }
}

fn names(value: &Value) -> Option<BTreeSet<String>> {
    match value {
        Value::List(values) => values.iter().map(Value::as_text).collect(),
        _ => None,
    }
}

fn texts(value: &Value) -> Option<BTreeMap<String, String>> {
    let Value::Object(values) = value else {
        return None;
    };
    (values.iter())
        .map(|(key, value)| Some((key.to_string(), value.as_text()?)))
        .collect()
}

fn objects(value: &Value) -> Option<BTreeMap<String, BTreeMap<String, String>>> {
    let Value::Object(values) = value else {
        return None;
    };
    (values.iter())
        .map(|(key, value)| Some((key.to_string(), texts(value)?)))
        .collect()
}

fn pairs(value: &Value) -> Option<BTreeMap<String, (String, String)>> {
    let Value::Object(values) = value else {
        return None;
    };
    (values.iter())
        .map(|(key, value)| {
            let Value::List(two) = value else {
                return None;
            };
            let [before, between] = two.as_slice() else {
                return None;
            };
            Some((key.to_string(), (before.as_text()?, between.as_text()?)))
        })
        .collect()
}

fn renames(value: &Value) -> Option<BTreeMap<String, String>> {
    match value {
        Value::List(values) => values
            .iter()
            .map(|value| value.as_text().map(|name| (name.clone(), name)))
            .collect(),
        Value::Object(values) => values
            .iter()
            .map(|(name, option)| Some((name.to_string(), option.as_text()?)))
            .collect(),
        _ => None,
    }
}
