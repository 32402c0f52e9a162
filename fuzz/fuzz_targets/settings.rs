//! Any text as `spcd.hcl`: settings or problems with a place, and nothing of a value in their report.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spcd_core::config::{LoadContext, SourceFile, daemon_settings};
use spcd_core::report::render_settings;

fuzz_target!(|text: &str| {
    let source = SourceFile {
        path: "spcd.hcl".to_owned(),
        text: Ok(text.to_owned()),
    };
    let mut given = LoadContext {
        lookup: None,
        has_gateway: false,
    };
    let (_, diagnostics) = daemon_settings(&source, &mut given);
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = body.bytes().filter(|byte| *byte == b'\n').count() + 1;
    for diagnostic in &diagnostics {
        assert!(diagnostic.line >= 1 && diagnostic.column >= 1, "{diagnostic:?}");
        assert!(diagnostic.line as usize <= lines, "{diagnostic:?}");
        assert!(diagnostic.span.end <= body.len(), "{diagnostic:?}");
    }
    render_settings(&diagnostics, &source, false);
});
