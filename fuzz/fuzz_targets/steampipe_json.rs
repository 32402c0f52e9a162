//! Any text as a `.json` file of Steampipe.
#![no_main]

use libfuzzer_sys::fuzz_target;

mod reading;

fuzz_target!(|text: &str| reading::read("a.json", text));
