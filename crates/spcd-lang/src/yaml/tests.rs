#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends by panicking"
)]

use super::*;
use crate::json;
use crate::parse::Parsed;
use crate::syntax::{Expression, ExpressionKind};

fn value(expression: &Expression) -> String {
    match &expression.kind {
        ExpressionKind::Literal(value) => match value {
            Value::String(text) => format!("{text:?}"),
            Value::Null => "null".to_owned(),
            other => other.as_text().unwrap(),
        },
        ExpressionKind::List(parts) => {
            format!(
                "[{}]",
                parts.iter().map(value).collect::<Vec<_>>().join(", ")
            )
        }
        ExpressionKind::Object(parts) => {
            let parts = parts
                .iter()
                .map(|(name, part)| format!("{}: {}", value(name), value(part)));
            format!("{{{}}}", parts.collect::<Vec<_>>().join(", "))
        }
        _ => "an expression".to_owned(),
    }
}

fn blocks(parsed: &[Parsed]) -> Vec<String> {
    let shown = |parsed: &Parsed| {
        let problems: Vec<_> = parsed.problems.iter().map(|p| p.message.clone()).collect();
        let Some(block) = &parsed.block else {
            return problems.join("; ");
        };
        let labels: Vec<_> = block.labels.iter().map(|label| &*label.text).collect();
        let values = block.body.attributes.iter();
        let values: Vec<_> = values
            .map(|a| format!("{} = {}", a.name, value(&a.value)))
            .collect();
        let nested: Vec<_> = block.body.blocks.iter().map(|block| &*block.kind).collect();
        format!(
            "{} {labels:?} {values:?} {nested:?} {problems:?}",
            block.kind
        )
    };
    parsed.iter().map(shown).collect()
}

/// Returns the value of one plain text, or the problem with it.
fn plain_value(text: &str) -> String {
    let file = parse(&format!("connection:\n  a:\n    x: {text}\n"));
    match (&file.syntax_error, file.blocks.first()) {
        (Some(problem), _) => format!("problem: {}", problem.message),
        (None, Some(parsed)) => value(&parsed.block.as_ref().unwrap().body.attributes[0].value),
        (None, None) => "nothing".to_owned(),
    }
}

#[test]
fn yaml_and_the_json_that_steampipe_makes_of_it_are_one() {
    let yaml = "\
# What Steampipe's own tests have.
connection:
  aws: &aws
    plugin: aws
    regions:
      - us-east-1
      - 'eu*'
    options: { connection: { cache: on } }
    text: |
      first ${x}
      second
    nothing:
  dev:
    <<: *aws
    profile: \"dev\"
    plugin: ${plugin.aws}
options:
- general: {update_check: no}
";
    let json = r#"{
        "connection": {
            "aws": {"plugin": "aws", "regions": ["us-east-1", "eu*"],
                    "options": {"connection": {"cache": true}},
                    "text": "first ${x}\nsecond\n", "nothing": null},
            "dev": {"profile": "dev", "plugin": "${plugin.aws}", "regions": ["us-east-1", "eu*"],
                    "options": {"connection": {"cache": true}},
                    "text": "first ${x}\nsecond\n", "nothing": null}
        },
        "options": [{"general": {"update_check": false}}]
    }"#;
    let (yaml, json) = (parse(yaml), json::parse_literal(json));
    assert_eq!((&yaml.syntax_error, &json.syntax_error), (&None, &None));
    let shown = blocks(&yaml.blocks);
    assert_eq!(shown, blocks(&json.blocks));
    assert_eq!(shown.len(), 3);
    assert!(
        shown[0].contains(r#"text = \"first ${x}\\nsecond\\n\""#),
        "{}",
        shown[0]
    );
    assert!(shown[1].contains("plugin = an expression"), "{}", shown[1]);
}

#[test]
fn plain_texts_mean_what_they_mean_to_steampipe() {
    for (text, means) in [
        ("on", "true"),
        ("No", "false"),
        ("y", "true"),
        ("yEs", r#""yEs""#),
        ("'on'", r#""on""#),
        ("!!str on", r#""on""#),
        ("! on", r#""on""#),
        ("~", "null"),
        ("nullable", r#""nullable""#),
        ("5432", "5432"),
        ("+5", "5"),
        ("-0x1F", "-31"),
        ("0b101", "5"),
        ("0o17", "15"),
        ("0x-1", r#""0x-1""#),
        ("1_000", "1000"),
        ("1.5e3", "1500"),
        (".5", "0.5"),
        ("1.", "1"),
        ("1e", r#""1e""#),
        ("10.0.0.1", r#""10.0.0.1""#),
        ("2024-01-02", r#""2024-01-02""#),
        ("12:30", r#""12:30""#),
        ("0", "0"),
        (
            "170141183460469231731687303715884105727",
            "170141183460469231731687303715884105727",
        ),
        (
            "01234567890",
            "problem: YAML reads this as a number without its leading zero",
        ),
        (
            "170141183460469231731687303715884105728",
            "problem: this number cannot be kept exactly",
        ),
        (
            "0.1234567890123456",
            "problem: this number cannot be kept exactly",
        ),
        (".inf", "problem: JSON has no such number"),
        ("!!binary aGk=", "problem: this tag has no meaning here"),
        ("!secret hi", "problem: this tag has no meaning here"),
        (
            "!!int x",
            "problem: this value does not have the type of its tag",
        ),
        (
            "*nowhere",
            "problem: not YAML: while parsing node, found unknown anchor",
        ),
    ] {
        assert_eq!(plain_value(text), means, "{text}");
    }
}

#[test]
fn what_would_be_another_name_is_refused() {
    for (text, message) in [
        (
            "connection: {no: {plugin: aws}}",
            "YAML reads this name as true or false",
        ),
        (
            "connection: {0x10: {plugin: aws}}",
            "YAML reads this name as a number",
        ),
        (
            "connection: {~: {plugin: aws}}",
            "YAML reads this name as null",
        ),
        ("connection: {[a]: {plugin: aws}}", "expected a name"),
        ("connection: {<<: 1}", "expected an object to merge"),
        ("connection: {<<: [1]}", "expected an object to merge"),
        (
            "connection: {a: &a {b: *a}}",
            "this alias is within the value that it names",
        ),
        ("a: 1\n---\nb: 2\n", "this is a second document"),
        ("a: 1\n\0b: 2\n", "not YAML: this is a NUL"),
    ] {
        let problem = parse(text).syntax_error.unwrap_or_else(|| panic!("{text}"));
        assert!(
            problem.message.starts_with(message),
            "{text}: {}",
            problem.message
        );
        assert!(problem.span.end as usize <= text.len(), "{text}");
    }
    for text in [
        "connection: {2024: {plugin: aws}}",
        "connection: {true: {plugin: aws}}",
    ] {
        assert_eq!(parse(text).syntax_error, None, "{text}");
    }
    for text in ["", "# nothing\n", "---\n", "---\na: {}\n---\n"] {
        assert_eq!(parse(text).syntax_error, None, "{text:?}");
    }
}

#[test]
fn spans_are_those_of_the_text() {
    let unix = "# é\nconnection:\n  \"sälés\":\n    plugin: aws # x\n    list:\n    - \"ü\"\n\n  b: { plugin: 'ö' }\n";
    for text in [unix.to_owned(), unix.replace('\n', "\r\n")] {
        let at = |span: Span| &text[span.start as usize..span.end as usize];
        let file = parse(&text);
        assert_eq!(file.syntax_error, None);
        let [first, second] = file.blocks.as_slice() else {
            panic!("{:?}", blocks(&file.blocks));
        };
        let first = first.block.as_ref().unwrap();
        assert_eq!(at(first.labels[0].span), "\"sälés\"");
        assert_eq!(at(first.body.attributes[0].span), "plugin");
        assert_eq!(at(first.body.attributes[0].value.span), "aws");
        let whole = at(Span::new(first.open as usize, first.close as usize + 1));
        assert!(
            whole.starts_with(':') && whole.ends_with("\"ü\""),
            "{whole:?}"
        );
        let second = second.block.as_ref().unwrap();
        let whole = at(Span::new(second.open as usize, second.close as usize + 1));
        assert_eq!(whole, "{ plugin: 'ö' }");
    }
    let text = "connection:\n  a:\n    plugin: é: b\n";
    let problem = parse(text).syntax_error.unwrap();
    assert_eq!(
        text[..problem.span.start as usize].lines().count(),
        3,
        "{problem:?}"
    );
}

#[test]
fn aliases_cost_no_more_than_the_text_is_long() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let before = format!("*a{}", level - 1);
        let list = vec![before; 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    let problem = parse(&text).syntax_error.unwrap();
    assert_eq!(
        problem.message,
        "the aliases of this file expand to too much"
    );
    // Each alias alone is short, and all together are deep.
    let mut text = "a0: &a0 [x]\n".to_owned();
    for level in 1..70 {
        text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    let problem = parse(&text).syntax_error.unwrap();
    assert_eq!(problem.message, "this is nested more than 64 levels deep");
    let defaults = "x: &d {plugin: aws, regions: ['*']}\nconnection:\n".to_owned();
    let text = (0..5000).fold(defaults, |text, n| format!("{text}  c{n}: *d\n"));
    assert_eq!(parse(&text).syntax_error, None);
}

#[test]
fn ranges_tell_names_from_values() {
    let text = "connection:\n  a:\n    plugin: &p aws\n    token: 'x' # y\n    more: {token: *p}\n";
    let found = ranges(text).unwrap();
    let at = |span: &Span| &text[span.start as usize..span.end as usize];
    let names: Vec<_> = found.names.iter().map(at).collect();
    assert_eq!(
        names,
        ["connection", "a", "plugin", "token", "more", "token"]
    );
    let values: Vec<_> = found
        .values
        .iter()
        .map(|(span, key)| (at(span), key.as_deref()))
        .collect();
    assert_eq!(values, [("aws", None), ("'x'", Some("token"))]);
    assert_eq!(ranges("a: b: c"), None);
}
