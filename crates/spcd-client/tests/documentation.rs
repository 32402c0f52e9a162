//! Every public item shows how it is used; the examples themselves run as the documentation's tests.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::fs;
use std::path::Path;

/// The public items of a file without an example above them.
fn bare(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]").next().unwrap();
    let (mut bare, mut example) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("///") {
            example |= line.contains("```");
        } else if !line.starts_with("#[") {
            let kinds = [
                "fn", "async", "const", "struct", "enum", "type", "trait", "static",
            ];
            let word = line
                .strip_prefix("pub ")
                .and_then(|rest| rest.split(' ').next());
            if word.is_some_and(|word| kinds.contains(&word)) && !example {
                bare.push(line.to_owned());
            }
            example = false;
        }
    }
    bare
}

#[test]
fn every_public_item_has_an_example() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut items = 0;
    // What the protocol defines is part of this crate's face.
    for dir in ["src", "src/client", "../spcd-protocol/src"].map(|dir| here.join(dir)) {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(bare(&text), Vec::<String>::new(), "{}", path.display());
            items += text.matches("\npub ").count();
        }
    }
    assert!(items > 15, "only {items} items were found");
    let without = "/// Says nothing.\npub fn silent() {}";
    assert_eq!(bare(without), ["pub fn silent() {}"]);
}
