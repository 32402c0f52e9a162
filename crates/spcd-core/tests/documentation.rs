//! Every example in the documentation is read without an error.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::path::Path;

use spcd_core::config::{Cache, Given, Severity, Source, load};
use spcd_core::plugin::shipped;
use spcd_core::spc::evaluate::Function;

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

#[test]
fn every_example_is_right() {
    let mut count = 0;
    for name in ["spc.md", "plugins.md"] {
        for (path, text) in examples(name) {
            count += 1;
            let sources = [Source {
                path,
                text: Ok(text.clone()),
            }];
            let mut lookup = |_: Function, _: &str, _: &str| Ok("x".to_owned());
            let loaded = load(
                &sources,
                &mut Given {
                    lookup: &mut lookup,
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
            assert!(!all.connections.is_empty() || !all.database.search_path_prefix.is_empty());
        }
    }
    assert!(count > 15, "{count}");
}

#[test]
fn every_shipped_plugin_has_its_section() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plugins.md");
    let text = std::fs::read_to_string(text).unwrap();
    for name in shipped().keys().filter(|name| *name != "*") {
        assert!(text.contains(&format!("### {name}\n")), "{name}");
    }
}
