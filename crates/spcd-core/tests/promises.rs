//! The tests that the documentation names exist.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

/// Documents in which each promise names its tests, and the least number of names in each.
const DOCUMENTS: [(&str, usize); 2] = [("docs/promises.md", 80), ("SECURITY.md", 30)];

/// Adds the tests of a file and of the modules in it that are compiled and not ignored.
fn tests_of(path: &[&str], file: &Path, directory: &Path, found: &mut BTreeSet<String>) {
    let text = std::fs::read_to_string(file).unwrap();
    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    add_tests(path, &parsed.items, directory, found);
}

fn add_tests(path: &[&str], items: &[syn::Item], directory: &Path, found: &mut BTreeSet<String>) {
    for item in items {
        match item {
            syn::Item::Fn(function) if is_run(&function.attrs) => {
                found.insert(format!("{}::{}", path.join("::"), function.sig.ident));
            }
            syn::Item::Mod(module) => {
                let name = module.ident.to_string();
                let child = [path, &[name.as_str()]].concat();
                let below = directory.join(&name);
                let files = [directory.join(format!("{name}.rs")), below.join("mod.rs")];
                match &module.content {
                    Some((_, items)) => add_tests(&child, items, &below, found),
                    None => {
                        let file = files.iter().find(|file| file.exists()).unwrap();
                        tests_of(&child, file, &below, found);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether a function is a test that is run.
fn is_run(attributes: &[syn::Attribute]) -> bool {
    let is = |attribute: &syn::Attribute, name: &str| {
        let last = attribute.path().segments.last();
        last.is_some_and(|segment| segment.ident == name)
    };
    let is_test = attributes.iter().any(|attribute| is(attribute, "test"));
    // `cfg` and `cfg_attr` may leave it out.
    let may_be_left_out = |attribute| {
        ["ignore", "cfg", "cfg_attr"]
            .iter()
            .any(|name| is(attribute, name))
    };
    is_test && !attributes.iter().any(may_be_left_out)
}

/// Names between backticks that are paths of functions.
fn named(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.contains("::")
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c))
            && !word.ends_with(':')
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

#[test]
fn tests_that_the_documentation_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut tests = BTreeSet::new();
    let real = root.join("tests");
    let text = std::fs::read_to_string(real.join("main.rs")).unwrap();
    let modules = syn::parse_file(&text).unwrap().items;
    // The path of a test of `real` begins with its module, as on the command line.
    add_tests(&[], &modules, &real, &mut tests);
    let simulator = root.join("crates/spcd-core/tests/simulator");
    tests_of(
        &["simulator"],
        &simulator.join("main.rs"),
        &simulator,
        &mut tests,
    );
    let protocol = root.join("crates/spcd-protocol/src");
    tests_of(
        &["spcd_protocol"],
        &protocol.join("lib.rs"),
        &protocol,
        &mut tests,
    );
    let mut missing = Vec::new();
    for (document, least) in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let named = named(&text);
        assert!(
            named.len() >= least,
            "{document} names {} tests",
            named.len()
        );
        let unknown = named.iter().filter(|name| !tests.contains(**name));
        missing.extend(unknown.map(|name| format!("{document}: {name}")));
        // Each row of a table of promises has a test.
        let rows = text
            .lines()
            .filter(|line| line.starts_with("| ") && !line.starts_with("|---"));
        let bare = rows.filter(|row| !row.contains("::") && !row.contains("shown by"));
        missing.extend(bare.map(|row| format!("{document}: no test in {row}")));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
