//! Finds what looks like a secret in a body that every role of the database could read.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::PluginDefinition;
use crate::pattern::Pattern;
use crate::secret;
use spcd_lang::evaluate::Function;
use spcd_lang::outline::outline;
use spcd_lang::settings::Settings;
use spcd_lang::syntax::Span;
use spcd_lang::value::Value;

/// The rules, in the language of `.spc` files.
const RULES: &str = include_str!("../../../../config/secrets.spc");

/// Prefix of the extensions of Steampipe's plugins; the rest is the plugin's name.
const STEAMPIPE_EXTENSION: &str = "steampipe_postgres_";

/// Patterns of names, by plugin.
#[derive(Default)]
struct Rules {
    names: Vec<Pattern>,
    except: Vec<Pattern>,
    paths: Vec<Pattern>,
}

impl Rules {
    /// Returns the rules of a plugin and of all plugins (`*`).
    fn of(plugin: &str) -> impl Iterator<Item = &'static Self> {
        static RULES: OnceLock<BTreeMap<String, Rules>> = OnceLock::new();
        let rules = RULES.get_or_init(read);
        [rules.get("*"), rules.get(plugin)].into_iter().flatten()
    }
}

fn read() -> BTreeMap<String, Rules> {
    let mut lookup = |_: Function, _: &str| Err(String::new());
    let (blocks, problems) = outline(RULES, &mut lookup);
    debug_assert!(problems.is_empty(), "{problems:?}");
    let patterns = |value: Option<&(usize, Option<Value>)>| {
        let Some((_, Some(Value::List(values)))) = value else {
            return Vec::new();
        };
        let texts = values.iter().filter_map(Value::as_text);
        texts.filter_map(|text| Pattern::new(&text).ok()).collect()
    };
    let mut rules = BTreeMap::new();
    for block in blocks {
        let of = |name: &str| patterns(block.attributes.get(name));
        let own = Rules {
            names: of("names"),
            except: of("except"),
            paths: of("paths"),
        };
        rules.extend(block.labels.first().map(|label| (label.clone(), own)));
    }
    rules
}

/// Returns the first attribute in a body that looks like a secret and is not known to be public.
/// `is_own` tells attributes and blocks (`true`) that are spcd's own and no part of the body.
pub(super) fn first_secret<'a>(
    settings: &'a Settings,
    definition: &PluginDefinition,
    is_own: &dyn Fn(&str, bool) -> bool,
) -> Option<(&'a str, Span)> {
    let extension = definition.extension.as_str();
    let plugin = extension.strip_prefix(STEAMPIPE_EXTENSION).unwrap_or("");
    let mut attributes = settings.list.iter();
    let here = attributes.find(|setting| {
        !is_own(&setting.name, false)
            && !definition.is_public(&setting.name)
            && looks_secret(plugin, &setting.name, &setting.value)
    });
    here.map(|setting| (&*setting.name, setting.span))
        .or_else(|| {
            let blocks = settings.blocks.iter();
            let mut blocks = blocks.filter(|block| !is_own(&block.kind, true));
            blocks.find_map(|block| first_secret(&block.settings, definition, &|_, _| false))
        })
}

/// Returns whether an attribute looks like a secret, by its name or its value.
fn looks_secret(plugin: &str, name: &str, value: &Value) -> bool {
    let name = name.to_lowercase().replace('/', "_");
    let matches = |kind: fn(&Rules) -> &Vec<Pattern>| {
        Rules::of(plugin).any(|rules| kind(rules).iter().any(|pattern| pattern.matches(&name)))
    };
    let is_named_so = matches(|rules| &rules.names) && !matches(|rules| &rules.except);
    let may_be_path = is_named_so && matches(|rules| &rules.paths);
    match value {
        Value::Null | Value::Bool(_) => false,
        Value::String(text) if text.is_empty() => false,
        Value::String(text) if may_be_path && is_path(text) => false,
        Value::String(text) => is_named_so || !secret::ranges(text).is_empty(),
        Value::Integer(_) | Value::Float(_) => is_named_so,
        Value::List(values) => values
            .iter()
            .any(|value| looks_secret(plugin, &name, value)),
        Value::Object(values) => values.iter().any(|(key, value)| {
            let own = looks_secret(plugin, key, value);
            own || is_named_so && looks_secret(plugin, &name, value)
        }),
    }
}

/// Returns whether a text is the path of a file.
fn is_path(text: &str) -> bool {
    let begins = ["/", "~/", "./", "../"]
        .iter()
        .any(|start| text.starts_with(start));
    begins && text.len() < 4096 && !text.contains(['\n', '{', '"'])
}

#[cfg(test)]
mod tests {
    use super::{RULES, looks_secret, read};
    use spcd_lang::value::Value;

    #[test]
    fn names_and_values_that_look_like_secrets() {
        for (plugin, name, value, expected) in [
            ("github", "token", "x", true),
            ("github", "TOKEN", "x", true),
            ("github", "token", "", false),
            ("aws", "secret_key", "x", true),
            ("aws", "access_key", "AKIA", false),
            ("aws", "regions", "*", false),
            ("stripe", "api_key", "x", true),
            ("stripe", "apikey", "x", true),
            ("aws", "aws_access_key_id", "x", false),
            ("aws", "secret_key_id", "x", false),
            ("gcp", "credentials", "~/key.json", false),
            ("gcp", "credentials", "{\"private_key\": 1}", true),
            ("exec", "private_key", "~/.ssh/id", false),
            ("exec", "private_key", "-----BEGIN", true),
            ("oci", "private_key_path", "keys/oci.pem", false),
            ("vault", "auth_type", "token", false),
            ("x", "passphrase", "x", true),
            ("x", "connection_string", "host=h", true),
            ("x", "dsn", "x", true),
            ("x", "host", "h", false),
            ("x", "url", "https://user:pw@host/", true),
            ("x", "url", "https://host/", false),
            (
                "terraform",
                "paths",
                "s3::https://b/x?aws_access_key_secret=y",
                true,
            ),
        ] {
            let value = Value::String(value.into());
            assert_eq!(
                looks_secret(plugin, name, &value),
                expected,
                "{plugin} {name}"
            );
        }
        let object = |key: &str, value: Value| Value::Object([(key.into(), value)].into());
        let text = || Value::String("x".into());
        let nested = Value::List(vec![object("token", text())]);
        assert!(looks_secret("x", "accounts", &nested));
        assert!(looks_secret("x", "credentials", &object("name", text())));
        assert!(!looks_secret("x", "accounts", &object("name", text())));
        assert!(looks_secret("x", "secret", &Value::Integer(1)));
        assert!(!looks_secret("x", "token_rotation", &Value::Bool(true)));
    }

    #[test]
    fn every_line_of_the_rules_is_read() {
        let rules = read();
        let count = rules
            .values()
            .map(|r| r.names.len() + r.except.len() + r.paths.len());
        let quoted = RULES.lines().filter(|line| !line.starts_with('#'));
        let quoted: usize = quoted.map(|line| line.matches('"').count() / 2).sum();
        // Each label is a text in quotes, too.
        assert_eq!(count.sum::<usize>() + rules.len(), quoted);
    }
}
