//! Any text as a file, in both syntaxes: cutter, parser, evaluator, plugins, excerpts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_core::config::{Cache, Given, Source, load};
use spcd_core::report::{Style, render};
use spcd_core::spc::evaluate::Function;

fuzz_target!(|text: &str| {
    for path in ["a.spc", "a.spc.json"] {
        let sources = [Source { path: path.to_owned(), text: Ok(text.to_owned()) }];
        let mut lookup = |_: Function, _: &str, _: &str| Err("not here".to_owned());
        let loaded = load(&sources, &mut Given { lookup: &mut lookup }, &mut Cache::default());
        render(&loaded, &sources, Style::default());
    }
});
