//! Texts that are broken at random: nothing panics, every place is one, and nothing that is
//! planted as a secret is shown. The same texts every time; `SPCD_MUTATIONS` makes more of them.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::path::Path;

use spcd_core::config::{Cache, LoadContext, SourceFile, load};
use spcd_core::pattern::Pattern;
use spcd_core::report::{RenderStyle, render};
use spcd_lang::evaluate::Function;

/// Marsaglia's xorshift: enough to choose what to break.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }
}

const PIECES: [&str; 54] = [
    "\"",
    "${",
    "%{",
    "}",
    "{",
    "[",
    "]",
    "(",
    ")",
    "<<E\n",
    "<<-E\n",
    "\nE\n",
    "\n",
    "=",
    ":",
    ",",
    ".",
    "*",
    "...",
    "=>",
    "?",
    "#",
    "//",
    "/*",
    "*/",
    "\\",
    "\\u00",
    "'",
    "“",
    "”",
    "~",
    "é",
    "\u{feff}",
    "\r\n",
    "\0",
    "-",
    "!",
    "0",
    "1e999",
    "99999999999999999999999999999999999999999",
    "for x in ",
    "if ",
    "%{ endif }",
    "%{ for x in [1] }",
    "plugin.",
    "connection \"z\" {",
    "import {",
    "env(\"X\")",
    "&eu ",
    "*eu",
    "<<: ",
    "\n- ",
    ": |\n",
    "\t",
];

fn broken(text: &str, random: &mut Random) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for _ in 0..=random.below(6) {
        let at = random.below(characters.len() + 1);
        match random.below(4) {
            0 => {
                let to = (at + 1 + random.below(12)).min(characters.len());
                characters.drain(at.min(to)..to);
            }
            1 => characters.truncate(at.max(8)),
            2 => {
                let from = random.below(characters.len() + 1);
                let to = (from + random.below(40)).min(characters.len());
                let copy: Vec<char> = characters[from..to].to_vec();
                characters.splice(at..at, copy);
            }
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                characters.splice(at..at, piece.chars());
            }
        }
    }
    characters.into_iter().collect()
}

fn seeds() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/spc");
    let mut seeds = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension != "out") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            seeds.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    seeds.sort();
    seeds
}

#[test]
fn broken_texts_break_nothing() {
    let rounds = std::env::var("SPCD_MUTATIONS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    let seeds = seeds();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds.unwrap_or(1500) {
        let (name, text) = &seeds[random.below(seeds.len())];
        let text = broken(text, &mut random);
        let sources = [SourceFile {
            path: name.clone(),
            text: Ok(text.clone()),
        }];
        let mut lookup = |_: Function, _: &str, _: &str| Err("not here".to_owned());
        let loaded = load(
            &sources,
            &mut LoadContext {
                lookup: Some(&mut lookup),
                has_gateway: false,
            },
            &mut Cache::default(),
        );
        let body = text.strip_prefix('\u{feff}').unwrap_or(&text);
        // What stands before `=` or a brace is a name, whatever it was before.
        let named = text.split("SECRET").skip(1).any(|rest| {
            let word = |c: char| c.is_alphanumeric() || "_- \t\"".contains(c);
            rest.trim_start_matches(word)
                .starts_with(['=', ':', '{', '(', '}', '\n', ','])
        });
        for diagnostic in &loaded.diagnostics {
            assert!(diagnostic.line >= 1 && diagnostic.column >= 1);
            assert!(
                diagnostic.line as usize <= body.lines().count() + 1,
                "{text}\n{diagnostic:?}"
            );
            assert!(diagnostic.span.end <= body.len(), "{text}\n{diagnostic:?}");
            assert!(
                named || !diagnostic.message.contains("SECRET"),
                "{text}\n{diagnostic:?}"
            );
        }
        for connection in loaded.desired.connections.values() {
            assert!(connection.start_line <= connection.end_line, "{text}");
            assert!(!format!("{:?}", connection.target).contains('\0'), "{text}");
        }
        // What is broken is told: no connection is in error without a diagnostic.
        let in_error = loaded
            .desired
            .connections
            .values()
            .any(|c| c.target.is_err());
        assert!(!in_error || !loaded.diagnostics.is_empty(), "{text}");
        render(&loaded, &sources, RenderStyle::default());
        // Where every block could be read, it can be read again, to the same end.
        let again = load(
            &sources,
            &mut LoadContext {
                lookup: Some(&mut lookup),
                has_gateway: false,
            },
            &mut Cache::default(),
        );
        assert_eq!(again.diagnostics, loaded.diagnostics);
    }
}

#[test]
fn broken_patterns_break_nothing() {
    let mut random = Random(7);
    for _ in 0..20_000 {
        let pattern = broken("a*[b-d]?\\*[^x]", &mut random);
        if let Ok(pattern) = Pattern::new(&pattern) {
            pattern.matches(&broken("abc*y", &mut random));
        }
    }
}
