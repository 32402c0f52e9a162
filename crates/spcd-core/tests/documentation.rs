//! Every example in the documentation is read without an error.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends by panicking"
)]

use std::path::Path;

use spcd_core::config::{Cache, LoadContext, Severity, SourceFile, load};
use spcd_core::observed::{Extension, Observed};
use spcd_core::planner::{self, Running};
use spcd_core::plugin::shipped_definitions;
use spcd_lang::evaluate::Function;

fn examples(name: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let mut examples = Vec::new();
    for (language, ending) in [("hcl", "spc"), ("json", "spc.json")] {
        for part in text.split(&format!("```{language}\n")).skip(1) {
            let example = part.split("```").next().unwrap();
            examples.push((
                format!("{name}-{}.{ending}", examples.len()),
                example.to_owned(),
            ));
        }
    }
    examples
}

/// The file that examples read.
const ACCOUNTS: &str = r#"{"prod": {"host": "h", "port": 5432, "profile": "p", "regions": ["r"]}}"#;

#[test]
fn every_example_is_right() {
    let mut count = 0;
    for name in ["spc.md", "plugins.md", "steampipe.md"] {
        for (path, text) in examples(name) {
            count += 1;
            let sources = [SourceFile {
                path,
                text: Ok(text.clone()),
            }];
            let mut lookup = |_: Function, _: &str, argument: &str| {
                Ok(match argument.ends_with(".json") {
                    true => ACCOUNTS.to_owned(),
                    false => "x".to_owned(),
                })
            };
            let loaded = load(
                &sources,
                &mut LoadContext {
                    lookup: Some(&mut lookup),
                    has_gateway: false,
                },
                &mut Cache::default(),
            );
            let errors: Vec<_> = loaded
                .diagnostics
                .iter()
                .filter(|d| d.severity == Severity::Error)
                .collect();
            assert!(errors.is_empty(), "{text}\n{errors:#?}");
            let all = &loaded.desired;
            assert!(
                !all.connections.is_empty()
                    || !all.mirrors.is_empty()
                    || !all.database.search_path_prefix.is_empty()
            );
        }
    }
    assert!(count > 15, "{count}");
}

/// The rows of the tables whose first line is this: what stands between backticks or bars.
fn rows(text: &str, head: &str) -> Vec<(String, String)> {
    let cell = |text: &str| {
        let text = text.trim().replace("\\|", "|");
        match text.strip_prefix('`').and_then(|t| t.strip_suffix('`')) {
            Some(code) if !code.contains('`') => code.to_owned(),
            _ => text,
        }
    };
    let mut rows = Vec::new();
    for part in text.split(&format!("{head}\n")).skip(1) {
        for line in part
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with('|'))
        {
            let line = line.replace("\\|", "\0");
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            let cells: Vec<String> = cells.iter().map(|c| cell(&c.replace('\0', "|"))).collect();
            let [left, right] = cells.as_slice() else {
                panic!("two cells: {line}")
            };
            rows.push((left.clone(), right.clone()));
        }
    }
    rows
}

/// What is wrong with a value of an attribute in a connection, and the text it becomes.
fn read_value(value: &str) -> (Vec<String>, String) {
    let sources = [SourceFile {
        path: "a.spc".to_owned(),
        text: Ok(format!(
            "plugin \"p\" {{\n  body = \"config\"\n  public = [\"a\"]\n}}\n\
             connection \"x\" {{\n  plugin = \"p\"\n  a = {value}\n}}\n"
        )),
    }];
    let mut lookup = |_: Function, _: &str, _: &str| Ok("x".to_owned());
    let mut given = LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    let loaded = load(&sources, &mut given, &mut Cache::default());
    let target = loaded.desired.connections["x"].target.as_ref();
    let config = target.map(|target| target.server["config"].value.clone());
    let messages = loaded.diagnostics.into_iter().map(|d| d.message).collect();
    (messages, config.unwrap_or_default())
}

#[test]
fn every_expression_has_the_value_that_is_said() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/spc.md");
    let text = std::fs::read_to_string(path).unwrap();
    let values = rows(&text, "| expression | value |");
    assert!(values.len() > 20);
    for (expression, value) in values {
        let (messages, is) = read_value(&expression);
        assert!(messages.is_empty(), "{expression}: {messages:?}");
        assert_eq!(is, read_value(&value).1, "{expression}");
    }
    let mistakes = rows(&text, "| no value | because |");
    assert!(mistakes.len() > 10);
    for (expression, reason) in mistakes {
        let (messages, _) = read_value(&expression);
        assert!(
            messages.iter().any(|message| message.contains(&reason)),
            "{expression}: {messages:?}"
        );
    }
}

/// The mistake that is shown is what is shown.
#[test]
fn the_shown_mistake_is_real() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/spc.md");
    let text = std::fs::read_to_string(path).unwrap();
    let shown = text.split("```text\n").nth(1).unwrap();
    let shown = shown.split("```").next().unwrap();
    let sources = [SourceFile {
        path: "sales.spc".to_owned(),
        text: Ok(
            "connection \"sales\" {\n  plugin = \"postgres\"\n  hots   = \"db\"\n}\n".to_owned(),
        ),
    }];
    let mut lookup = |_: Function, _: &str, _: &str| Ok("x".to_owned());
    let mut given = LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    let loaded = load(&sources, &mut given, &mut Cache::default());
    let is =
        spcd_core::report::render(&loaded, &sources, spcd_core::report::RenderStyle::default());
    assert_eq!(is.trim_end(), shown.trim_end());
}

/// What `spcd plan` says of an example, where every extension is there and nothing was made yet.
fn planned(text: &str) -> String {
    let sources = [SourceFile {
        path: "a.spc".to_owned(),
        text: Ok(text.to_owned()),
    }];
    let mut lookup = |_: Function, _: &str, _: &str| Ok("x".to_owned());
    let mut given = LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    let loaded = load(&sources, &mut given, &mut Cache::default());
    let targets = loaded.desired.connections.values();
    let extensions = targets.filter_map(|c| c.target.as_ref().ok());
    let observed = Observed {
        admitted: true,
        drift_known: true,
        extensions: extensions
            .map(|target| (target.extension.clone(), Extension::Installed))
            .collect(),
        ..Observed::default()
    };
    let plan = planner::plan(&loaded.desired, &observed, &Running::default());
    planner::show(&plan, &observed)
}

/// UPDATE_GOLDEN=1 writes what is shown anew.
#[test]
fn every_plugin_becomes_what_is_shown() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plugins.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut is = text.clone();
    let mut count = 0;
    for part in text.split("```hcl\n").skip(1) {
        let Some((example, rest)) = part.split_once("```\n\n```text\n") else {
            continue;
        };
        // The example itself has ended before, and what follows belongs to another.
        if example.contains("```") {
            continue;
        }
        let shown = rest.split("```").next().unwrap();
        count += 1;
        let pair = |shown: &str| format!("{example}```\n\n```text\n{shown}```");
        is = is.replace(&pair(shown), &pair(&planned(example)));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &is).unwrap();
    }
    let wrong: Vec<_> = is
        .lines()
        .zip(text.lines())
        .filter(|(a, b)| a != b)
        .collect();
    assert!(is == text, "{wrong:#?}");
    assert!(count >= 7, "{count}");
}

#[test]
fn every_shipped_plugin_has_its_section() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plugins.md");
    let text = std::fs::read_to_string(text).unwrap();
    for name in shipped_definitions().keys().filter(|name| *name != "*") {
        assert!(text.contains(&format!("### {name}\n")), "{name}");
    }
}
