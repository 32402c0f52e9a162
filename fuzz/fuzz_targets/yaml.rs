//! Any text as a YAML file.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod reading;

fuzz_target!(|text: &str| reading::read("a.yml", text));
