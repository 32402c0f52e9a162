//! Reads a text as a file and sees that what is said of it can be true.

use spcd_core::config::{Cache, LoadContext, SourceFile, load};
use spcd_core::report::{RenderStyle, render};
use spcd_lang::evaluate::Function;

pub fn read(path: &str, text: &str) {
    let sources = [SourceFile {
        path: path.to_owned(),
        text: Ok(text.to_owned()),
    }];
    let mut lookup = |_: Function, _: &str, argument: &str| match argument.len() % 2 {
        0 => Ok(argument.to_owned()),
        _ => Err("not here".to_owned()),
    };
    let mut given = LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    let mut cache = Cache::default();
    let loaded = load(&sources, &mut given, &mut cache);
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = body.bytes().filter(|byte| *byte == b'\n').count() + 1;
    for diagnostic in &loaded.diagnostics {
        assert!(diagnostic.line >= 1 && diagnostic.column >= 1);
        assert!(diagnostic.line as usize <= lines, "{diagnostic:?}");
        assert!(diagnostic.span.start <= diagnostic.span.end);
        assert!(diagnostic.span.end <= body.len(), "{diagnostic:?}");
    }
    let connections = &loaded.desired.connections;
    for connection in connections.values() {
        assert!(connection.start_line <= connection.end_line);
        assert!(connection.end_line as usize <= lines);
    }
    let in_error = connections.values().any(|c| c.target.is_err());
    assert!(!in_error || !loaded.diagnostics.is_empty());
    render(&loaded, &sources, RenderStyle::default());
    // What is remembered of the first reading says the same at the second.
    let again = load(&sources, &mut given, &mut cache);
    assert_eq!(again.diagnostics, loaded.diagnostics);
    assert_eq!(cache.parsed(), 0);
}
