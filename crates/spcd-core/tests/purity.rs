//! The core is pure: its manifest names nothing that could reach the world, and its source does
//! not ask the standard library for it either.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::path::{Path, PathBuf};

const ALLOWED: [&str; 12] = [
    "annotate-snippets",
    "csv",
    "encoding_rs",
    "hcl-rs",
    "saphyr-parser",
    "serde",
    "serde_json",
    "sha2",
    "spcd-lang",
    "spcd-protocol",
    "strsim",
    "thiserror",
];

const FORBIDDEN: [&str; 8] = [
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time",
    "tokio",
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_manifests_name_only_pure_crates() {
    names_only_pure_crates(include_str!("../Cargo.toml"));
    names_only_pure_crates(include_str!("../../spcd-lang/Cargo.toml"));
}

fn names_only_pure_crates(manifest: &str) {
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
    let dependencies = dependencies.split("\n[").next().unwrap();
    let names: Vec<&str> = dependencies
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(names.contains(&"serde"), "{names:?}");
    for name in names {
        assert!(
            ALLOWED.contains(&name),
            "`{name}` in the manifest of the pure crate"
        );
    }
}

#[test]
fn the_source_reaches_for_nothing_outside() {
    let mut files = Vec::new();
    for source in ["src", "../spcd-lang/src"] {
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(source),
            &mut files,
        );
    }
    assert!(files.len() > 10, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for forbidden in FORBIDDEN {
                assert!(
                    !code.contains(forbidden),
                    "{}:{}: {forbidden}",
                    file.display(),
                    number + 1
                );
            }
        }
    }
}
