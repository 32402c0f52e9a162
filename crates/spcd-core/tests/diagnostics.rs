//! `tests/spc/*`: a file, and beside it what spcd makes of it, as a person would read it. Run with
//! `UPDATE_GOLDEN=1` to write what it makes now.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use spcd_core::config::{
    Cache, Connection, ConnectionKind, Inspection, LoadContext, Loaded, SourceFile, inspect, load,
};
use spcd_core::health::ProbeOptions;
use spcd_core::report::{RenderStyle, render};
use spcd_lang::evaluate::Function;

fn lookup(function: Function, directory: &str, argument: &str) -> Result<String, String> {
    match (function, directory, argument) {
        (Function::Env, _, "SET") => Ok("from the environment".to_owned()),
        (Function::Env, ..) => Err("it is not set".to_owned()),
        (Function::File, _, "secret") => Ok("SECRET\n".to_owned()),
        (Function::File, _, "key.pem") => Ok("-----\nSECRET\n-----\n".to_owned()),
        (Function::File, _, "accounts.json") => Ok(ACCOUNTS.to_owned()),
        (Function::File, _, "half.json") => Ok(ACCOUNTS[..30].to_owned()),
        _ => Err("there is no such file".to_owned()),
    }
}

/// Accounts of which the third has no host, and the fourth a name that is refused.
const ACCOUNTS: &str = r#"{
  "eu": {"host": "eu.example.com", "port": 5432, "password": "SECRET"},
  "us": {"host": "us.example.com", "port": 5433, "password": "SECRET"},
  "xx": {"port": 5434, "password": "SECRET"},
  "zz\u0007": {"host": "zz.example.com", "port": 5435, "password": "SECRET"}
}"#;

fn shown(inspection: &Inspection, sources: &[SourceFile]) -> String {
    let mut out = render(&inspection.loaded, sources, RenderStyle::default());
    for connection in inspection.loaded.desired.connections.values() {
        let lines = (connection.start_line, connection.end_line);
        let instance = &connection.plugin_instance;
        write!(
            out,
            "{:?} ({instance}, lines {} to {})",
            connection.name, lines.0, lines.1
        )
        .unwrap();
        match &connection.target {
            Err(error) => writeln!(out, " in error: {error}").unwrap(),
            Ok(target) => {
                writeln!(out).unwrap();
                if let ConnectionKind::Aggregator { members, .. } = &connection.kind {
                    writeln!(out, "    members {members:?}").unwrap();
                    continue;
                }
                writeln!(out, "    {} of {}", target.wrapper, target.extension).unwrap();
                for (option, value) in &target.server {
                    let shown = if value.public { &value.value } else { "***" };
                    writeln!(out, "    server {option} {shown:?}").unwrap();
                }
                for option in target.mapping.keys() {
                    writeln!(out, "    mapping {option}").unwrap();
                }
                writeln!(out, "    import {:?}", target.import).unwrap();
                if connection.health != ProbeOptions::default() {
                    let schedule = connection.health.schedule();
                    writeln!(out, "    health {:?} {schedule:?}", target.probe).unwrap();
                }
            }
        }
        for (label, text) in &connection.labels {
            writeln!(out, "    label {label} {text:?}").unwrap();
        }
        for warning in &connection.warnings {
            writeln!(out, "    warning: {warning}").unwrap();
        }
    }
    for doubt in &inspection.loaded.desired.unknown_inputs {
        writeln!(
            out,
            "in doubt: {} ({})",
            doubt.path,
            doubt.error.as_deref().unwrap_or("")
        )
        .unwrap();
    }
    writeln!(out, "search path {:?}", inspection.search_path).unwrap();
    out
}

#[test]
fn files_are_read_as_the_golden_files_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/spc");
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    files.retain(|path| path.extension().is_some_and(|extension| extension != "out"));
    assert!(files.len() >= 8);
    let mut different = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let sources = [SourceFile {
            path: name.clone(),
            text: Ok(text),
        }];
        let is = shown(
            &inspect(
                &sources,
                &mut LoadContext {
                    lookup: Some(&mut lookup),
                    has_gateway: false,
                },
            ),
            &sources,
        );
        assert!(!is.contains("SECRET"), "{name} shows a secret:\n{is}");
        let expected = directory.join(format!("{name}.out"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&expected, &is).unwrap();
        }
        let should = std::fs::read_to_string(&expected).unwrap_or_default();
        if is != should {
            different.push(format!("{name}\n--- is\n{is}\n--- should be\n{should}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

fn sources(files: &[(&str, &str)]) -> Vec<SourceFile> {
    let source = |(path, text): &(&str, &str)| SourceFile {
        path: (*path).to_owned(),
        text: Ok((*text).to_owned()),
    };
    files.iter().map(source).collect()
}

#[test]
fn check_lists_a_connection_whose_name_is_refused() {
    let text = "connection \"public\" {\n  plugin = \"postgres\"\n  hots = \"h\"\n}\n";
    let given = &mut LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    let inspection = inspect(&sources(&[("a.spc", text)]), given);
    let [view] = inspection.connections.as_slice() else {
        panic!("{:?}", inspection.connections);
    };
    let error = view.error.as_deref().unwrap_or_default();
    assert_eq!(
        (view.name.as_str(), view.connection.start_line),
        ("public", 1)
    );
    assert!(
        error.contains("a.spc:1:12: `public` is the name of a schema"),
        "{error}"
    );
    // Its other mistakes are told, too, and nothing is made of it.
    assert_eq!(inspection.loaded.diagnostics.len(), 2);
    assert!(inspection.loaded.desired.connections.is_empty());
}

/// What these files say, read for the first time.
fn read(files: &[(&str, &str)]) -> Loaded {
    let given = &mut LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    load(&sources(files), given, &mut Cache::default())
}

#[test]
fn only_blocks_whose_text_changed_are_parsed_again() {
    let block = |name: usize, host: &str| {
        format!("connection \"c{name}\" {{\n plugin = \"postgres\"\n host = \"{host}\"\n}}\n")
    };
    let text = |host: &str| {
        (0..100)
            .map(|i| block(i, if i == 7 { host } else { "h" }))
            .collect::<String>()
    };
    let mut cache = Cache::default();
    let mut counts = Vec::new();
    for text in [
        text("h"),
        text("h"),
        text("other"),
        format!("\n\n{}", text("other")),
    ] {
        let loaded = load(
            &sources(&[("a.spc", &text)]),
            &mut LoadContext {
                lookup: Some(&mut lookup),
                has_gateway: false,
            },
            &mut cache,
        );
        assert!(loaded.diagnostics.is_empty());
        counts.push(cache.parsed());
        let line = loaded.desired.connections["c99"].start_line;
        assert_eq!(line as usize, text.lines().count() - 3);
    }
    assert_eq!(counts, [100, 0, 1, 0]);
}

/// What is kept of a connection rests on the plugin blocks, wherever they are.
#[test]
fn a_connection_that_is_kept_follows_its_plugin_and_its_twins() {
    let block = "connection \"a\" {\n plugin = \"postgres\"\n host = \"h\"\n}\n";
    let plugin = |fetch: &str| {
        format!("plugin \"postgres\" {{\n defaults = {{ fetch_size = \"{fetch}\" }}\n}}\n")
    };
    let (ten, twenty) = (plugin("10"), plugin("20"));
    let mut cache = Cache::default();
    let mut lookup = |_: Function, _: &str, _: &str| Err(String::new());
    let mut read = |files: &[(&str, &str)]| {
        let given = &mut LoadContext {
            lookup: Some(&mut lookup),
            has_gateway: false,
        };
        load(&sources(files), given, &mut cache).desired.connections["a"].clone()
    };
    let fetch = |connection: &Connection| {
        let target = connection.target.as_ref().unwrap();
        target.server.get("fetch_size").map(|o| o.value.clone())
    };
    let first = read(&[("a.spc", block), ("p.spc", &ten)]);
    assert_eq!(fetch(&first).as_deref(), Some("10"));
    let again = read(&[("a.spc", block), ("p.spc", &ten)]);
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(
        fetch(&read(&[("a.spc", block), ("p.spc", &twenty)])).as_deref(),
        Some("20")
    );
    assert_eq!(fetch(&read(&[("a.spc", block)])), None);
    let twin = read(&[("a.spc", block), ("b.spc", block)]);
    assert!(twin.target.as_ref().unwrap_err().contains("b.spc:1"));
    assert!(read(&[("a.spc", block)]).target.is_ok());
}

#[test]
fn values_from_outside_are_looked_up_each_time() {
    let files = sources(&[(
        "a.spc",
        "connection \"a\" {\n plugin = \"postgres\"\n host = env(\"H\")\n}\n",
    )]);
    let mut cache = Cache::default();
    for value in ["one", "two"] {
        let mut lookup = |_: Function, _: &str, _: &str| Ok(value.to_owned());
        let loaded = load(
            &files,
            &mut LoadContext {
                lookup: Some(&mut lookup),
                has_gateway: false,
            },
            &mut cache,
        );
        let target = loaded.desired.connections["a"].target.as_ref().unwrap();
        assert_eq!(target.server["host"].value, value);
    }
}

#[test]
fn twins_in_two_files_name_each_other() {
    let block = "connection \"a\" {\n  plugin = \"postgres\"\n}\n";
    let loaded = read(&[("x.spc", block), ("y.spc", block)]);
    let messages: Vec<_> = loaded
        .diagnostics
        .iter()
        .map(|d| (&*d.file, &*d.message))
        .collect();
    assert_eq!(
        messages,
        [
            ("x.spc", "connection `a` is also written at y.spc:1"),
            ("y.spc", "connection `a` is also written at x.spc:1")
        ]
    );
    assert!(loaded.desired.connections["a"].target.is_err());
}

#[test]
fn a_file_that_cannot_be_read_is_a_doubt_and_costs_no_other() {
    let mut files = sources(&[("b.spc", "connection \"b\" {\n  plugin = \"postgres\"\n}\n")]);
    files.insert(
        0,
        SourceFile {
            path: "a.spc".to_owned(),
            text: Err("Permission denied".to_owned()),
        },
    );
    let loaded = load(
        &files,
        &mut LoadContext {
            lookup: Some(&mut lookup),
            has_gateway: false,
        },
        &mut Cache::default(),
    );
    assert!(loaded.desired.connections["b"].target.is_ok());
    let doubt = &loaded.desired.unknown_inputs[0];
    assert_eq!((doubt.path.as_str(), doubt.is_directory), ("a.spc", false));
    assert!(
        doubt
            .error
            .as_ref()
            .unwrap()
            .starts_with("a.spc:1:1: this file cannot be read: Permission denied")
    );
}

#[test]
fn a_byte_order_mark_and_carriage_returns_change_nothing() {
    let text = "\u{feff}connection \"a\" {\r\n  plugin = \"postgres\"\r\n  hots = 1\r\n}\r\n";
    let loaded = read(&[("a.spc", text)]);
    let places: Vec<_> = loaded
        .diagnostics
        .iter()
        .map(|d| (d.line, d.column))
        .collect();
    assert_eq!(places, [(3, 3)]);
}

#[test]
fn what_is_nested_too_deep_is_refused_and_never_overflows() {
    let deep = |open: &str, inner: &str, close: &str, levels: usize| {
        format!(
            "connection \"a\" {{\n plugin = \"postgres\"\n host = {}{inner}{}\n}}\nconnection \"b\" {{\n plugin = \"postgres\"\n}}\n",
            open.repeat(levels),
            close.repeat(levels)
        )
    };
    for (open, inner, close) in [
        ("(", "1", ")"),
        ("[", "1", "]"),
        ("{ a = ", "1", "}"),
        ("\"${", "1", "}\""),
        ("!", "true", ""),
        ("-", "1", ""),
        ("true ? ", "1", " : 2"),
        ("[for x in [1]: ", "x", "]"),
        ("f(", "1", ")"),
    ] {
        let text = deep(open, inner, close, 10_000);
        let loaded = read(&[("a.spc", &text)]);
        assert!(loaded.desired.connections["a"].target.is_err(), "{open}");
        assert!(loaded.desired.connections["b"].target.is_ok(), "{open}");
    }
    for (open, inner) in [("x {\n", ""), ("x \"y\" {\n", "")] {
        let text = format!("{}{inner}{}", open.repeat(10_000), "}\n".repeat(10_000));
        let text = format!("connection \"a\" {{\n plugin = \"zzz\"\n{text}}}\n");
        let loaded = read(&[("a.spc", &text)]);
        assert!(loaded.desired.connections["a"].target.is_err(), "{open}");
    }
    // Long is not deep: chains of one operator or of steps are read at any length.
    let long = format!(
        "connection \"a\" {{\n plugin = \"postgres\"\n host = 0{}\n}}\n",
        " + 1".repeat(10_000)
    );
    let loaded = read(&[("a.spc", &long)]);
    let target = loaded.desired.connections["a"].target.as_ref().unwrap();
    assert_eq!(target.server["host"].value, "10000");
}

#[test]
fn the_first_hundred_of_many_errors_are_told_and_the_rest_counted() {
    let text: String = (0..1000)
        .map(|i| format!("connection \"c{i}\" {{\n  x =\n}}\n"))
        .collect();
    let loaded = read(&[("a.spc", &text)]);
    assert_eq!(loaded.diagnostics.len(), 101);
    assert_eq!(
        loaded.diagnostics[100].message,
        "and 1900 more in this file"
    );
    assert_eq!(loaded.desired.connections.len(), 1000);
    let text: String = (0..100_000).map(|i| format!("  x{i} =\n")).collect();
    let text =
        format!("connection \"a\" {{\n{text}}}\nconnection \"b\" {{\n plugin = \"postgres\"\n}}\n");
    let loaded = read(&[("a.spc", &text)]);
    // One more than were written: what is not there is missed, too.
    assert_eq!(
        loaded.diagnostics[100].message,
        "and 99901 more in this file"
    );
    assert!(loaded.desired.connections["b"].target.is_ok());
}

#[test]
fn sixty_four_levels_are_read_and_one_more_is_not() {
    // The block and the value's own expression are the first two.
    for (levels, fine) in [(62, true), (63, false)] {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        let text =
            format!("connection \"a\" {{\n plugin = \"zzz\"\n regions = {open}1{close}\n}}\n");
        let loaded = read(&[("a.spc", &text)]);
        let target = &loaded.desired.connections["a"].target;
        assert_eq!(target.is_ok(), fine, "{levels}: {target:?}");
        if !fine {
            let message = &loaded.diagnostics[0].message;
            assert!(message.contains("more than 64 levels deep"), "{message}");
        }
    }
    let deep = |levels: usize| {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        let text = format!(
            "{{\"connection\": {{\"a\": {{\"plugin\": \"zzz\", \"regions\": {open}{close}}}}}}}"
        );
        read(&[("a.spc.json", &text)])
    };
    assert!(deep(50).diagnostics.is_empty());
    let message = &deep(10_000).diagnostics[0].message;
    assert!(message.contains("levels deep"), "{message}");
}

#[test]
fn integers_beyond_64_bits_are_kept_exactly_or_refused() {
    let host = |text: &str, path: &str| {
        let loaded = read(&[(path, text)]);
        let found = loaded
            .desired
            .connections
            .get("a")
            .map(|c| c.target.clone());
        found.map(|target| target.map(|target| target.server["host"].value.clone()))
    };
    let most = "170141183460469231731687303715884105727";
    for (value, kept) in [
        ("9223372036854775808", Some("9223372036854775808")),
        ("-9223372036854775809", Some("-9223372036854775809")),
        ("18446744073709551616", Some("18446744073709551616")),
        (most, Some(most)),
        ("170141183460469231731687303715884105728", None),
        ("9223372036854775807 + 1", Some("9223372036854775808")),
        ("18446744073709551616 * 18446744073709551616", None),
        // Nothing between is rounded to what a fraction's type can hold.
        ("9007199254740993 / 1", Some("9007199254740993")),
        ("9007199254740993 / 2", None),
        ("9007199254740993 + 0.5", None),
        ("9007199254740993 == 9007199254740992.0", Some("false")),
        ("9007199254740993 > 9007199254740992.0", Some("true")),
        ("12345678901234567890.5", None),
        ("0.1234567890123456789", None),
        ("1e400", None),
    ] {
        let text = format!("connection \"a\" {{\n plugin = \"postgres\"\n host = {value}\n}}\n");
        let found = host(&text, "a.spc").unwrap().ok();
        assert_eq!(found.as_deref(), kept, "{value}");
    }
    for (value, kept) in [
        ("18446744073709551616", true),
        ("170141183460469231731687303715884105728", false),
        ("12345678901234567890.5", false),
        ("1e400", false),
    ] {
        let text =
            format!("{{\"connection\":{{\"a\":{{\"plugin\":\"postgres\",\"host\":{value}}}}}}}");
        let found = host(&text, "a.spc.json").and_then(Result::ok);
        assert_eq!(found.as_deref(), kept.then_some(value), "{value}");
    }
}

#[test]
fn loops_within_loops_end() {
    let list = "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]";
    let mut value = "1".to_owned();
    for level in 0..20 {
        value = format!("[for x{level} in {list}: {value}]");
    }
    let text = format!("connection \"a\" {{\n plugin = \"postgres\"\n host = {value}\n}}\n");
    let loaded = read(&[("a.spc", &text)]);
    assert!(
        loaded
            .diagnostics
            .iter()
            .any(|d| d.message == "this value grows too large")
    );
}
