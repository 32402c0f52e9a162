//! Any text as a `.spc` file: splitter, parser, evaluator, plugins, excerpts.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod reading;

fuzz_target!(|text: &str| reading::read("a.spc", text));
