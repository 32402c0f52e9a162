//! Reads a `plugin` block into a definition.

use std::collections::{BTreeMap, BTreeSet};

use super::{PluginDefinition, PluginName};
use crate::model::{MAX_LANES, ProbeMethod, UnknownTypePolicy};
use spcd_lang::nearest::suggestion;
use spcd_lang::settings::{Setting, Settings};
use spcd_lang::syntax::Problem;
use spcd_lang::value::Value;

/// Attributes of a definition.
const ATTRIBUTES: &[&str] = &[
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
    "gateway",
    "import_options",
    "join",
    "lacks",
    "lanes",
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
    "table_name",
    "tunnel",
    "unknown_types",
    "values",
    "verbatim",
    "words",
    "wrapper",
];

/// Attributes of Steampipe's plugin blocks that have no effect in spcd.
pub(crate) const STEAMPIPE_ATTRIBUTES: [&str; 6] = [
    "fill_rate",
    "bucket_size",
    "max_concurrency",
    "memory_max_mb",
    "start_timeout",
    "scope",
];

/// Result of setting an attribute; the error is the expected value.
type Accepted = Result<(), &'static str>;

fn put<T>(slot: &mut T, value: Option<T>, expected: &'static str) -> Accepted {
    *slot = value.ok_or(expected)?;
    Ok(())
}

impl PluginDefinition {
    /// Applies the attributes of a block; others stay unchanged.
    pub(crate) fn apply_settings(&mut self, settings: &Settings, problems: &mut Vec<Problem>) {
        for setting in &settings.list {
            self.apply_setting(setting, problems);
        }
        // `extension` is the default of `wrapper`, and the reverse: they nearly always have the
        // same name.
        if settings.get("wrapper").is_none() && settings.get("extension").is_some() {
            self.wrapper.clone_from(&self.extension);
        } else if settings.get("extension").is_none() && settings.get("wrapper").is_some() {
            self.extension.clone_from(&self.wrapper);
        }
    }

    fn apply_setting(&mut self, setting: &Setting, problems: &mut Vec<Problem>) {
        let (name, value) = (&*setting.name, &setting.value);
        let taken = self
            .set_scalar(name, value)
            .or_else(|| self.set_collection(name, value))
            .or_else(|| self.set_keyword(name, value));
        match taken {
            Some(Ok(())) => {}
            // The expected values are keywords in backticks.
            Some(Err(words)) if words.starts_with('`') => {
                let problem = Problem::new(
                    setting.value_span,
                    format!("this is not a value for `{name}`"),
                );
                problems.push(problem.hint(format!("write {words}")));
            }
            Some(Err(expected)) => {
                let kind = value.kind();
                let message = format!("expected {expected} for `{name}`, found {kind}");
                problems.push(Problem::new(setting.value_span, message));
            }
            None if name == "source" || STEAMPIPE_ATTRIBUTES.contains(&name) => {}
            None => {
                let message = format!("a plugin block has no attribute `{name}`");
                let problem = Problem::new(setting.span, message);
                problems.push(problem.hint_if(suggestion(name, ATTRIBUTES.iter().copied())));
            }
        }
    }

    /// Sets an attribute that takes a text or a bool; `None` for any other attribute.
    fn set_scalar(&mut self, name: &str, value: &Value) -> Option<Accepted> {
        let text = value.as_text();
        let slot = match name {
            "extension" => &mut self.extension,
            "wrapper" => &mut self.wrapper,
            "package" => &mut self.package,
            "schema" => &mut self.schema,
            _ => return self.set_optional(name, value),
        };
        Some(put(slot, text, "text"))
    }

    fn set_optional(&mut self, name: &str, value: &Value) -> Option<Accepted> {
        let flag = match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        };
        let slot = match name {
            "table_name" => &mut self.table_name,
            "column_name" => &mut self.column_name,
            "body" => &mut self.body,
            "connection_string" => &mut self.connection_string,
            "schema_attribute" => &mut self.schema_attribute,
            "positional" => return Some(put(&mut self.positional, flag, "true or false")),
            "verbatim" => return Some(put(&mut self.verbatim, flag, "true or false")),
            "gateway" => return Some(put(&mut self.gateway, flag, "true or false")),
            "lanes" => {
                let lanes = value.as_text().and_then(|text| text.parse().ok());
                let lanes = lanes.filter(|lanes| (1..=MAX_LANES).contains(lanes));
                return Some(put(
                    &mut self.lanes,
                    lanes.map(Some),
                    "a number from 1 to 64",
                ));
            }
            "allow_visible_secrets" => {
                return Some(put(&mut self.allow_visible_secrets, flag, "true or false"));
            }
            _ => return None,
        };
        let text = value
            .as_text()
            .map(|text| Some(text).filter(|text| !text.is_empty()));
        Some(put(slot, text, "text"))
    }

    /// Sets an attribute that takes a list or an object.
    fn set_collection(&mut self, name: &str, value: &Value) -> Option<Accepted> {
        const NAMES: &str = "a list of names";
        const TEXTS: &str = "an object of texts";
        let of_names = match name {
            "public" => Some(&mut self.public),
            "paths" => Some(&mut self.paths),
            "files" => Some(&mut self.files),
            "dynamic" => Some(&mut self.dynamic_plugins),
            "requires" => Some(&mut self.requires),
            "aliases" => Some(&mut self.aliases),
            _ => None,
        };
        if let Some(slot) = of_names {
            return Some(put(slot, names(value), NAMES));
        }
        let of_texts = match name {
            "defaults" => &mut self.defaults,
            "ask" => &mut self.ask_options,
            "import_options" => &mut self.import_options,
            "since" => &mut self.since,
            "values" => &mut self.values,
            "lacks" => &mut self.lacks,
            "needs" => &mut self.needs,
            "tunnel" => &mut self.tunnel,
            "synonyms" => &mut self.synonyms,
            "required" => {
                let names = names(value).map(|names| names.into_iter().collect());
                return Some(put(&mut self.required, names, NAMES));
            }
            "server" | "mapping" => {
                let slot = match name {
                    "server" => &mut self.server,
                    _ => &mut self.mapping,
                };
                return Some(put(slot, renames(value), "a list of names or an object"));
            }
            "words" => {
                let expected = "an object of objects of texts";
                return Some(put(&mut self.words, objects(value), expected));
            }
            "join" => {
                let expected = "an object of lists of two texts";
                return Some(put(&mut self.join, pairs(value), expected));
            }
            _ => return None,
        };
        Some(put(of_texts, texts(value), TEXTS))
    }

    /// Sets an attribute that takes a keyword.
    fn set_keyword(&mut self, name: &str, value: &Value) -> Option<Accepted> {
        let text = value.as_text();
        let word = text.as_deref().unwrap_or_default();
        Some(match name {
            "schema_mode" => {
                let dynamic = match word {
                    "dynamic" => Some(true),
                    "static" => Some(false),
                    _ => None,
                };
                put(&mut self.dynamic, dynamic, "`\"dynamic\"` or `\"static\"`")
            }
            "probe" => {
                let probe = match word {
                    "import" => Some(ProbeMethod::Import),
                    "files" => Some(ProbeMethod::Files),
                    "none" => Some(ProbeMethod::None),
                    _ => None,
                };
                put(
                    &mut self.probe,
                    probe,
                    "`\"import\"`, `\"files\"` or `\"none\"`",
                )
            }
            "unknown_types" => {
                let found = UnknownTypePolicy::from_name(word).map(Some);
                let expected = "`\"known\"`, `\"text\"` or `\"skip\"`";
                put(&mut self.unknown_types, found, expected)
            }
            _ => return None,
        })
    }

    /// Applies the rule for undefined plugins to one of them.
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
        self.dynamic |= self.dynamic_plugins.contains(short);
        self.extension = fill(&self.extension);
        self.wrapper = fill(&self.wrapper);
        self.package = fill(&self.package);
        self.schema = fill(&self.schema);
        self.dynamic_plugins.clear();
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
