//! Expands attributes such as `read_only` and `statement_timeout` to server options, and checks
//! values.

use std::collections::BTreeMap;

use super::PluginDefinition;
use crate::duration;
use crate::model::OptionValue;
use spcd_lang::lex::is_invisible;
use spcd_lang::nearest::nearest;
use spcd_lang::syntax::Span;

/// Message and hint.
pub(super) type MessageAndHint = (String, String);

/// Span, message and hint.
pub(super) type LocatedMessage = (Span, String, String);

/// Options with their values, and whether the values come from expanded attributes alone.
pub(super) type ExpandedOptions = BTreeMap<String, (String, bool)>;

/// Values of a connection's attributes, with their spans.
#[derive(Default)]
pub(super) struct AttributeValues {
    values: BTreeMap<String, (String, Span)>,
}

impl AttributeValues {
    /// Adds a value; returns the previous one.
    pub(super) fn insert(&mut self, name: &str, text: String, span: Span) -> Option<String> {
        let before = self.values.insert(name.to_owned(), (text, span));
        before.map(|(text, _)| text)
    }

    /// Adds a placeholder for an attribute that has no value.
    pub(super) fn insert_if_missing(&mut self, name: Option<&String>) {
        if let Some(name) = name.filter(|name| !self.has(name)) {
            self.insert(name, "127.0.0.1".to_owned(), Span::default());
        }
    }

    /// Returns whether an attribute has a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values
            .get(name)
            .is_some_and(|(text, _)| !text.is_empty())
    }

    /// Returns the options that the attributes expand to, combined with the connection's own ones.
    pub(super) fn options(
        &self,
        definition: &PluginDefinition,
        server: &BTreeMap<String, OptionValue>,
    ) -> Result<ExpandedOptions, LocatedMessage> {
        let mut options = ExpandedOptions::new();
        for (word, means) in &definition.words {
            let Some((text, span)) = self.values.get(word) else {
                continue;
            };
            if text == "false" {
                continue;
            }
            for (option, fragment) in means {
                let fragment = fill_template(fragment, text);
                let own = server.get(option).map(|own| own.value.as_str());
                let Some((before, between)) = definition.join.get(option) else {
                    if own.is_some_and(|own| own != fragment) {
                        let message = format!("`{word}` and `{option}` contradict each other");
                        return Err((*span, message, format!("remove `{option}`")));
                    }
                    options.insert(option.clone(), (fragment, true));
                    continue;
                };
                let joined = match (options.remove(option), own) {
                    (Some((so_far, alone)), _) => (so_far + between + &fragment, alone),
                    (None, None) => (format!("{before}{fragment}"), true),
                    // With a prefix the value is one statement; the connection's own value is
                    // another.
                    (None, Some(_)) if !before.is_empty() => {
                        let message =
                            format!("`{word}` needs `{option}`, which takes one statement");
                        let hint = format!(
                            "remove `{option}`, or write into it what `{word}` means: {before}{fragment}"
                        );
                        return Err((*span, message, hint));
                    }
                    (None, Some(own)) => (format!("{own}{between}{fragment}"), false),
                };
                options.insert(option.clone(), joined);
            }
        }
        Ok(options)
    }

    /// Returns the problem of an attribute that requires another one.
    pub(super) fn missing(&self, definition: &PluginDefinition) -> Option<LocatedMessage> {
        definition.needs.iter().find_map(|(given, needed)| {
            let (name, value) = given.split_once('=').unwrap_or((given, ""));
            let (text, span) = self.values.get(name)?;
            let concerns = !text.is_empty() && (value.is_empty() || value == text);
            let is_there = needed.split('|').any(|needed| self.has(needed));
            (concerns && !is_there).then(|| {
                let needed = needed.split('|').next().unwrap_or_default();
                let written = match value {
                    "" => format!("`{name}`"),
                    value => format!("`{name} = \"{value}\"`"),
                };
                let message = format!("{written} needs `{needed}`");
                (*span, message, format!("write `{needed} = \"…\"`"))
            })
        })
    }
}

/// Fills a value into a template: `{s}` and `{ms}` from milliseconds, `{}` literally.
fn fill_template(fragment: &str, text: &str) -> String {
    let milliseconds: u64 = text.parse().unwrap_or(0);
    let seconds = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    fragment
        .replace("{s}", &seconds)
        .replace("{ms}", text)
        .replace("{}", text)
}

/// Converts a value to the option's form. The message does not contain the value: it may be a
/// secret in the wrong place.
pub(super) fn parse_value(kind: &str, name: &str, text: &str) -> Result<String, MessageAndHint> {
    let text = text.trim();
    // An empty value counts as unset.
    if text.is_empty() {
        return Ok(String::new());
    }
    let wrong =
        |message: &str, hint: &str| Err((format!("{message} for `{name}`"), hint.to_owned()));
    match kind {
        "port" => {
            // libpq accepts one port for each host.
            let good =
                |port: &str| port.is_empty() || port.parse::<u16>().is_ok_and(|port| port > 0);
            match text.split(',').all(|port| good(port.trim())) {
                true => Ok(text.to_owned()),
                false => wrong(
                    "expected a number from 1 to 65535",
                    &format!("write `{name} = 5432`"),
                ),
            }
        }
        "host" => match host_error(text) {
            None => Ok(text.to_owned()),
            Some((message, hint)) => wrong(message, hint),
        },
        // A file that the server opens; `system` and others are keywords.
        "path" => match text.contains('/') && !text.starts_with('/') || is_file_name(text) {
            false => Ok(text.to_owned()),
            true => wrong(
                "expected an absolute path",
                "the database's server opens the file, and starts at a directory of its own: write \
                 the path on its host from `/` on",
            ),
        },
        "flag" => match text {
            "true" | "on" | "yes" | "1" => Ok("true".to_owned()),
            "false" | "off" | "no" | "0" => Ok("false".to_owned()),
            _ => wrong("expected true or false", &format!("write `{name} = true`")),
        },
        "seconds" | "milliseconds" => match milliseconds(text) {
            Some(milliseconds) if kind == "milliseconds" => Ok(milliseconds.to_string()),
            Some(milliseconds) => Ok(milliseconds.div_ceil(1000).to_string()),
            None => wrong(
                "expected a time",
                "write a number of seconds, or `\"500ms\"`, `\"10s\"`, `\"5m\"`",
            ),
        },
        choices => {
            if choices.split('|').any(|choice| choice == text) {
                return Ok(text.to_owned());
            }
            let hint = match nearest(text, choices.split('|')) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("there are: {}", choices.replace('|', ", ")),
            };
            wrong("this is not a value", &hint)
        }
    }
}

/// Returns the message and hint for an invalid host or list of hosts.
fn host_error(text: &str) -> Option<(&'static str, &'static str)> {
    if text.contains("://") {
        let hint = "write the name or address alone, or the URL as `connection_string`";
        return Some(("a URL is not allowed", hint));
    }
    if text.chars().any(is_invisible) {
        return Some((
            "an invisible character is not allowed",
            "type the value again instead of pasting it",
        ));
    }
    let has_port = |host: &str| {
        let port = match host.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").map(|(_, port)| port),
            // An address with several colons is IPv6, and a path is a socket's.
            None => host.split_once(':').map(|(_, port)| port),
        };
        let is_number = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        !host.starts_with('/') && port.is_some_and(is_number)
    };
    (text.split(',').map(str::trim).any(has_port))
        .then_some(("a port is not allowed", "write it as `port = …`"))
}

/// Returns whether it looks like a file name without a directory.
fn is_file_name(text: &str) -> bool {
    let extensions = [".pem", ".crt", ".cer", ".key", ".crl", ".pgpass"];
    !text.contains('/') && extensions.iter().any(|extension| text.ends_with(extension))
}

/// Maximum of Postgres's integer settings.
const MAX_MILLISECONDS: u64 = i32::MAX as u64;

fn milliseconds(text: &str) -> Option<u64> {
    duration::milliseconds(text).filter(|milliseconds| *milliseconds <= MAX_MILLISECONDS)
}

#[cfg(test)]
mod tests {
    use super::{fill_template, parse_value};

    #[test]
    fn values_are_what_their_kind_says() {
        for (kind, text, good) in [
            ("port", "5432", Some("5432")),
            ("port", "5432,5433", Some("5432,5433")),
            ("port", "0", None),
            ("port", "65536", None),
            ("port", "http", None),
            ("host", "db.example", Some("db.example")),
            (
                "host",
                "::1, /run/postgresql, 10.0.0.1",
                Some("::1, /run/postgresql, 10.0.0.1"),
            ),
            ("host", "db.example:5432", None),
            ("host", "a,b:5432", None),
            ("host", "[::1]:5432", None),
            ("host", "postgres://db.example/x", None),
            ("host", "db.example\u{200b}", None),
            ("path", "/etc/ssl/root.pem", Some("/etc/ssl/root.pem")),
            ("path", "system", Some("system")),
            ("path", "root.pem", None),
            ("path", "certs/root", None),
            ("flag", "true", Some("true")),
            ("flag", "off", Some("false")),
            ("flag", "perhaps", None),
            ("seconds", "10", Some("10")),
            ("seconds", "1500ms", Some("2")),
            ("seconds", "2m", Some("120")),
            ("seconds", "soon", None),
            ("seconds", "-1", None),
            ("milliseconds", "10s", Some("10000")),
            ("milliseconds", "0", Some("0")),
            ("milliseconds", "1000h", None),
            ("a|b-c", "b-c", Some("b-c")),
            ("a|b-c", "b", None),
            ("a|b-c", "", Some("")),
        ] {
            assert_eq!(
                parse_value(kind, "x", text).ok().as_deref(),
                good,
                "{kind} {text}"
            );
        }
        let (message, hint) =
            parse_value("verify-ca|verify-full", "sslmode", "verify-ful").unwrap_err();
        assert_eq!(message, "this is not a value for `sslmode`");
        assert_eq!(hint, "did you mean \"verify-full\"?");
    }

    #[test]
    fn a_time_is_written_in_the_units_that_an_option_wants() {
        assert_eq!(fill_template("a={s} b={ms}", "1500"), "a=1.500 b=1500");
    }
}
