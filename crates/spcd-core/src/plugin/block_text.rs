//! Writes the block of a connection from the server that it is to manage.

use std::collections::BTreeMap;

use hcl::edit::expr::{
    Expression, FuncArgs, FuncCall, Object, ObjectKey, ObjectValue, ObjectValueTerminator,
};
use hcl::edit::structure::{Attribute, Block, Body};
use hcl::edit::{Decorate as _, Decorated, Ident};
use spcd_lang::outline::outline;

use super::{PluginDefinition, shipped_definitions};
use crate::secret::Secret;

/// Error for a name or an option that a `.spc` file cannot contain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name {0:?} or one of its options cannot be written in a .spc file")]
pub struct UnwritableBlock(String);

/// Separates template markers from the text before them while hcl-rs writes it, and is removed
/// afterwards. hcl-rs 0.20 escapes the `$${` in `${a}$${b}` wrongly, since it reads a text in pairs of
/// characters after the first marker.
const SEPARATOR: char = '\u{e000}';

/// Form of an option in the block.
enum OptionForm<'a> {
    Text(&'a str),
    /// Secret, read from this environment variable.
    Variable(String),
}

/// Returns the block of a connection whose server and user mapping have these options. A value that
/// is not known to be public is read from an environment variable.
///
/// # Errors
/// The block would be parsed as another one.
pub fn connection_block(
    name: &str,
    wrapper: &str,
    server: &BTreeMap<String, String>,
    mapping: &BTreeMap<String, Secret>,
) -> Result<String, UnwritableBlock> {
    let shipped = (shipped_definitions().iter())
        .filter(|(label, definition)| {
            *label != "*" && !definition.verbatim && definition.wrapper == wrapper
        })
        .find_map(|(label, definition)| {
            Some((label, attributes(name, definition, server, mapping)?))
        });
    let mut block = Block::builder(Ident::new_sanitized("connection"))
        .label(separated(name))
        .build();
    let mut expected = Vec::new();
    if let Some((label, attributes)) = &shipped {
        expected.push(("plugin", label.as_str()));
        let width = attributes.iter().map(|(name, _)| name.len()).max();
        let width = width.unwrap_or(0).max("plugin".len());
        push(
            &mut block,
            "plugin",
            width,
            Expression::from(label.as_str()),
        );
        for (attribute, written) in attributes {
            push(&mut block, attribute, width, expression(written));
            if let OptionForm::Text(text) = written {
                expected.push((attribute, text));
            }
        }
    } else {
        expected.extend([("plugin", "fdw"), ("wrapper", wrapper)]);
        let width = "wrapper".len();
        push(&mut block, "plugin", width, Expression::from("fdw"));
        push(
            &mut block,
            "wrapper",
            width,
            Expression::from(separated(wrapper)),
        );
        let server: Vec<&String> = server.keys().collect();
        let mapping: Vec<&String> = mapping.keys().collect();
        for (kind, options) in [("server", server), ("mapping", mapping)] {
            if !options.is_empty() {
                push(&mut block, kind, width, object(name, &options));
            }
        }
    }
    let text = Body::builder().block(block).build().to_string();
    let text = text.replace(SEPARATOR, "");
    match reads_back(&text, name, &expected) {
        true => Ok(text),
        false => Err(UnwritableBlock(name.to_owned())),
    }
}

/// Returns the attributes for all options; `None` if the plugin has no attribute for one of them.
fn attributes<'a>(
    name: &str,
    definition: &'a PluginDefinition,
    server: &'a BTreeMap<String, String>,
    mapping: &'a BTreeMap<String, Secret>,
) -> Option<Vec<(&'a str, OptionForm<'a>)>> {
    let server = server
        .iter()
        .map(|(option, value)| (&definition.server, option, value.as_str()));
    let mapping = mapping
        .iter()
        .map(|(option, value)| (&definition.mapping, option, value.expose()));
    let attribute =
        |(attributes, option, value): (&'a BTreeMap<String, String>, &String, &'a str)| {
            let attribute = attribute_of(attributes, option)?;
            let written = match definition.is_public(attribute) {
                true => OptionForm::Text(value),
                false => OptionForm::Variable(variable(name, attribute)),
            };
            Some((attribute, written))
        };
    server.chain(mapping).map(attribute).collect()
}

/// Returns the attribute for an option: preferably that of the same name.
fn attribute_of<'a>(attributes: &'a BTreeMap<String, String>, option: &str) -> Option<&'a str> {
    let mut found = (attributes.iter())
        .filter(|(_, of)| *of == option)
        .map(|(attribute, _)| attribute.as_str());
    { found.clone() }
        .find(|attribute| *attribute == option)
        .or_else(|| found.next())
}

/// Returns an environment variable's name: `SHOP_PASSWORD` for the password of `shop`.
fn variable(connection: &str, attribute: &str) -> String {
    let upper = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_uppercase(),
        false => '_',
    };
    format!("{connection}_{attribute}")
        .chars()
        .map(upper)
        .collect()
}

/// Returns a text with separated template markers.
fn separated(text: &str) -> String {
    let mut separated = text.to_owned();
    for marker in ["${", "%{"] {
        separated = separated.replace(marker, &format!("{SEPARATOR}{marker}"));
    }
    separated
}

fn expression(written: &OptionForm<'_>) -> Expression {
    match written {
        OptionForm::Text(text) => Expression::from(separated(text)),
        OptionForm::Variable(variable) => {
            let arguments = FuncArgs::from(vec![Expression::from(variable.as_str())]);
            Expression::from(FuncCall::new(Ident::new_sanitized("env"), arguments))
        }
    }
}

fn push(block: &mut Block, name: &str, width: usize, value: Expression) {
    let mut key = Decorated::new(Ident::new_sanitized(name));
    key.decor_mut()
        .set_suffix(" ".repeat(width + 1 - name.len()));
    let mut attribute = Attribute::new(key, value);
    attribute.decor_mut().set_prefix("  ");
    block.body.push(attribute);
}

/// Writes options of any names, one per line.
fn object(connection: &str, options: &[&String]) -> Expression {
    let mut object = Object::new();
    for (place, option) in options.iter().enumerate() {
        let mut key = Expression::from(separated(option));
        let line = if place == 0 { "\n    " } else { "    " };
        key.decor_mut().set_prefix(line);
        key.decor_mut().set_suffix(" ");
        let written = OptionForm::Variable(variable(connection, option));
        let mut value = ObjectValue::new(expression(&written));
        value.set_terminator(ObjectValueTerminator::Newline);
        object.insert(ObjectKey::Expression(key), value);
    }
    object.set_trailing("  ");
    Expression::from(object)
}

/// Returns whether spcd's parser reads the same values from the text.
fn reads_back(text: &str, name: &str, expected: &[(&str, &str)]) -> bool {
    let mut lookup = |_, variable: &str| Ok(variable.to_owned());
    let (blocks, problems) = outline(text, &mut lookup);
    let [block] = &blocks[..] else { return false };
    let is_same = |(attribute, text): &(&str, &str)| {
        let value = block.attributes.get(*attribute);
        let value = value.and_then(|(_, value)| value.as_ref()?.as_text());
        value.as_deref() == Some(*text)
    };
    // Postgres cannot store a NUL.
    let has_nul = name.contains('\0') || expected.iter().any(|(_, text)| text.contains('\0'));
    !has_nul && problems.is_empty() && block.labels == [name] && expected.iter().all(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cache, LoadContext, SourceFile, load};

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        (pairs.iter())
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn secrets(pairs: &[(&str, &str)]) -> BTreeMap<String, Secret> {
        let secret = |(name, value)| (name, Secret::new(value));
        options(pairs).into_iter().map(secret).collect()
    }

    #[test]
    fn the_block_of_a_server_shows_public_values_alone() {
        let server = options(&[
            ("host", "db"),
            ("port", "5433"),
            ("options", "-c x=hunter2"),
        ]);
        let mapping = secrets(&[("user", "me"), ("password", "hunter2")]);
        let text = connection_block("my shop", "postgres_fdw", &server, &mapping).unwrap();
        assert_eq!(
            text,
            r#"connection "my shop" {
  plugin   = "postgres"
  host     = "db"
  options  = env("MY_SHOP_OPTIONS")
  port     = "5433"
  password = env("MY_SHOP_PASSWORD")
  user     = env("MY_SHOP_USER")
}
"#
        );
    }

    #[test]
    fn a_wrapper_or_an_option_without_an_attribute_is_written_as_it_is() {
        let server = options(&[("odd name", "1"), ("host", "x")]);
        let text = connection_block("a", "postgres_fdw", &server, &secrets(&[])).unwrap();
        assert_eq!(
            text,
            r#"connection "a" {
  plugin  = "fdw"
  wrapper = "postgres_fdw"
  server  = {
    "host" = env("A_HOST")
    "odd name" = env("A_ODD_NAME")
  }
}
"#
        );
    }

    #[test]
    fn hostile_names_and_values_are_read_back_as_they_are() {
        for hostile in [
            "plain",
            "a\"b",
            "a\\",
            "${env(\"HOME\")}",
            "%{if true}x%{endif}",
            "$${x}",
            "two\nlines\r\n",
            "tab\tand\u{1b}[0m",
            "名前 ' }",
            "# no comment // /* */",
            "<<E",
            "${a}$${b}",
            "%{a}%%{b}$$${c}%${d}",
            "",
        ] {
            let server = options(&[("host", "h"), ("dbname", hostile)]);
            let text = connection_block(hostile, "postgres_fdw", &server, &secrets(&[]));
            let text = text.unwrap_or_else(|error| panic!("{error}"));
            let mut lookup = |_, _: &str| Err("none".to_owned());
            let (blocks, problems) = outline(&text, &mut lookup);
            assert!(problems.is_empty(), "{problems:?}: {text}");
            assert_eq!(blocks[0].labels, [hostile], "{text}");
            let value = blocks[0].attributes["dbname"].1.as_ref().unwrap();
            assert_eq!(value.as_text().as_deref(), Some(hostile), "{text}");
        }
        for unwritable in ["a\0b", "a\u{e000}b"] {
            let text = connection_block(unwritable, "w", &options(&[]), &secrets(&[]));
            assert!(text.is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_written_block_makes_the_same_server_again() {
        let server = options(&[("host", "db"), ("dbname", "shop")]);
        let text = connection_block("shop", "postgres_fdw", &server, &secrets(&[("user", "u")]));
        let source = SourceFile {
            path: "shop.spc".to_owned(),
            text: Ok(text.unwrap()),
        };
        let mut lookup = |_, _: &str, _: &str| Ok("u".to_owned());
        let mut context = LoadContext {
            lookup: Some(&mut lookup),
            has_gateway: false,
        };
        let loaded = load(&[source], &mut context, &mut Cache::default());
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
        let target = loaded.desired.connections["shop"].target.as_ref().unwrap();
        let made = target.server_options();
        assert_eq!(
            (&made["host"], &made["dbname"]),
            (&"db".into(), &"shop".into())
        );
        assert_eq!(target.mapping["user"].expose(), "u");
    }
}
