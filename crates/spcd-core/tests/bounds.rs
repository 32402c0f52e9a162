//! No file ends the daemon or keeps it busy: nesting is bounded, and so is the work of a whole load.
//! A test that takes minutes has met work that grows with the square of a file's length.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends by panicking"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use spcd_core::aggregator;
use spcd_core::config::{Cache, LoadContext, Loaded, SourceFile, load};
use spcd_core::report::{RenderStyle, render};
use spcd_lang::evaluate::Function;

fn sources(path: &str, text: &str) -> Vec<SourceFile> {
    vec![SourceFile {
        path: path.to_owned(),
        text: Ok(text.to_owned()),
    }]
}

fn read(sources: &[SourceFile], cache: &mut Cache) -> Loaded {
    let mut lookup = |_: Function, _: &str, _: &str| Ok("x".to_owned());
    let mut given = LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    load(sources, &mut given, cache)
}

fn messages(loaded: &Loaded) -> Vec<&str> {
    let messages = loaded.diagnostics.iter();
    messages.map(|told| told.message.as_str()).collect()
}

/// Reads a file in a thread with the stack of any other, and all that is shown of it.
fn survives(what: &str, path: &str, text: &str) {
    let files = sources(path, text);
    let reading = move || {
        let loaded = read(&files, &mut Cache::default());
        let style = RenderStyle {
            colours: false,
            show_values: true,
        };
        render(&loaded, &files, style);
        aggregator::members(&loaded.desired, &BTreeMap::new());
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let ended = thread.spawn(reading).unwrap().join();
    assert!(ended.is_ok(), "{what}");
}

#[test]
fn no_nesting_ends_the_process() {
    const N: usize = 12_000;
    let many = |piece: &str| piece.repeat(N);
    let around = |open: &str, inner: &str, close: &str| many(open) + inner + &many(close);
    let values = [
        ("members of all elements", format!("[1]{}", many("[*]"))),
        ("members of each element", format!("[1]{}", many(".*"))),
        ("members and indexes", format!("[1]{}", many("[*][0]"))),
        ("attributes", format!("x{}", many(".a"))),
        ("indexes", format!("[1]{}", many("[0]"))),
        ("indexes in indexes", around("[1][*][", "0", "]")),
        ("lists", around("[", "1", "]")),
        ("parentheses", around("(", "1", ")")),
        ("objects", around("{ a = ", "1", " }")),
        ("signs", format!("{}1", many("-"))),
        ("negations", format!("{}true", many("!"))),
        ("operators", format!("1{}", many(" + 1"))),
        ("operators in parentheses", around("1 + (", "1", ")")),
        ("conditions", format!("{}1", many("true ? 1 : "))),
        ("conditions within", around("true ? ", "1", " : 2")),
        ("calls", around("env(", "\"X\"", ")")),
        ("templates", around("\"${", "1", "}\"")),
        (
            "directives",
            format!("\"{}x{}\"", many("%{ if true }"), many("%{ endif }")),
        ),
        (
            "loops in templates",
            format!("\"{}x{}\"", many("%{ for a in [1] }"), many("%{ endfor }")),
        ),
        ("loops", around("[for a in [1] : ", "a", "]")),
        (
            "loops over loops",
            format!("{}[1]{}", many("[for a in "), many(" : a]")),
        ),
        (
            "object loops",
            around("{for a in [1] : \"k\" => ", "1", "}"),
        ),
        ("heredocs", format!("<<E\n{}\nE", around("${", "1", "}"))),
    ];
    for (what, value) in values {
        let text = format!("connection \"a\" {{\n  plugin = \"fdw\"\n  host = {value}\n}}\n");
        survives(what, "a.spc", &text);
    }
    for (what, text) in [
        ("blocks", around("a {\n", "", "}\n")),
        ("labels", format!("connection {} {{\n}}\n", many("\"a\" "))),
        ("braces", many("{")),
        ("closing braces", many("}\n")),
        ("open quotes", many("\"${\n")),
        ("heredocs without an end", many("a = <<E\n")),
        ("comments", many("/* ")),
    ] {
        survives(
            what,
            "a.spc",
            &format!("connection \"b\" {{\n{text}\n}}\n{text}"),
        );
    }
    for (what, text) in [
        ("arrays", around("[", "1", "]")),
        ("objects", around("{\"a\":", "1", "}")),
        ("open arrays", many("[")),
        ("texts", format!("\"{}\"", around("${", "1", "}"))),
    ] {
        let text =
            format!("{{\"connection\": {{\"a\": {{\"plugin\": \"fdw\", \"host\": {text}}}}}}}");
        survives(what, "a.spc.json", &text);
    }
    for (what, text) in [
        ("lists", around("[", "1", "]")),
        ("objects", around("{a: ", "1", "}")),
        ("open lists", many("[")),
        ("lists on one line", many("- ")),
        ("keys on one line", many("? ")),
        ("anchors", many("&a ")),
        ("tags", many("!a ")),
        (
            "lines",
            (0..N / 4).fold(String::new(), |text, n| {
                text + "\n" + &" ".repeat(n + 3) + "a:"
            }),
        ),
    ] {
        let text = format!("connection:\n a:\n  plugin: fdw\n  host: {text}\n");
        survives(what, "a.yml", &text);
    }
}

#[test]
fn values_that_are_nested_by_computing_are_refused() {
    // Each of the loops nests what the one around it has by 8, none by more than the text may.
    let mut value = "a".to_owned();
    for depth in 0..10 {
        let (open, close) = ("[".repeat(8), "]".repeat(8));
        let name = if depth == 9 { "1" } else { "a" };
        value = format!("[for a in {open}{name}{close} : {value}]");
    }
    let text = format!("connection \"a\" {{\n  plugin = \"fdw\"\n  host = {value}\n}}\n");
    let loaded = read(&sources("a.spc", &text), &mut Cache::default());
    let told = messages(&loaded);
    assert!(
        told.iter().any(|told| told.contains("64 levels deep")),
        "{told:?}"
    );
}

/// A connection that computes 4 million bytes.
fn costly(name: usize) -> String {
    let text = "x".repeat(1 << 16);
    let numbers = (0..60)
        .map(|n| n.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "connection \"c{name:03}\" {{\n  plugin = \"some_plugin\"\n  allow_visible_secrets = true\n  \
         listed = [for t in [\"{text}\"] : [for n in [{numbers}] : t]]\n}}\n"
    )
}

#[test]
fn all_values_together_have_a_limit_that_does_not_depend_on_the_cache() {
    const COUNT: usize = 40;
    let text: String = (0..COUNT).map(costly).collect();
    let after = "connection \"z\" {\n  plugin = \"postgres\"\n  host = \"h\"\n}\n";
    let files = sources("a.spc", &(text + after));
    let mut cache = Cache::default();
    let first = read(&files, &mut cache);
    let refused = |loaded: &Loaded| {
        let connections = loaded.desired.connections.iter();
        let refused = connections.filter(|(_, c)| c.target.is_err());
        refused.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let names = refused(&first);
    assert!(
        names.len() > COUNT / 4 && names.len() < COUNT * 3 / 4,
        "{names:?}"
    );
    let error = "the values of all files together take too much work";
    assert_eq!(messages(&first), vec![error; names.len()]);
    // In the order of the files; what computes nothing is not concerned.
    assert_eq!(names.last().map(String::as_str), Some("c039"));
    assert_eq!(refused(&read(&files, &mut cache)), names);
}

fn aggregator(name: &str, members: &[&str]) -> String {
    format!(
        "connection \"{name}\" {{\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
         connections = {members:?}\n}}\n"
    )
}

#[test]
fn a_circle_and_a_chain_of_many_aggregators_are_found_at_once() {
    const N: usize = 20_000;
    let name = |n: usize| format!("a{:05}", n % N);
    let circle: String = (0..N)
        .map(|n| aggregator(&name(n), &[&name(n + 1)]))
        .collect();
    let loaded = read(&sources("a.spc", &circle), &mut Cache::default());
    let connections = &loaded.desired.connections;
    assert_eq!(connections.len(), N);
    for (name, connection) in connections {
        let error = connection.target.as_ref().unwrap_err();
        assert!(error.contains(&format!("itself: {name} → ")), "{error}");
        assert!(error.contains(&format!(" → {name} (")), "{error}");
        assert!(error.contains("(19988 more)"), "{error}");
    }
    aggregator::members(&loaded.desired, &BTreeMap::new());

    let mut chain =
        String::from("connection \"leaf\" {\n  plugin = \"postgres\"\n  host = \"h\"\n}\n");
    for n in 0..N - 1 {
        chain += &aggregator(&name(n), &[&name(n + 1)]);
    }
    chain += &aggregator(&name(N - 1), &["leaf"]);
    let loaded = read(&sources("a.spc", &chain), &mut Cache::default());
    assert_eq!(messages(&loaded), [] as [&str; 0]);
    let members = aggregator::members(&loaded.desired, &BTreeMap::new());
    assert_eq!(members["a00000"], ["leaf"]);
}

#[test]
fn aggregators_that_show_too_many_connections_together_are_refused() {
    let mut text = String::new();
    for n in 0..2_000 {
        let _ = write!(
            text,
            "connection \"c{n}\" {{\n  plugin = \"postgres\"\n  host = \"h\"\n}}\n"
        );
    }
    for n in 0..4_000 {
        text += &aggregator(&format!("a{n:04}"), &["c*"]);
    }
    let loaded = read(&sources("a.spc", &text), &mut Cache::default());
    let refused = |name: &str| loaded.desired.connections[name].target.is_err();
    assert!(!refused("a0000") && !refused("c0") && refused("a3999"));
    let members = aggregator::members(&loaded.desired, &BTreeMap::new());
    assert_eq!((members["a0000"].len(), members["a3999"].len()), (2_000, 0));
}

#[test]
fn aggregators_of_aggregators_that_show_too_many_connections_are_refused() {
    let mut text = String::new();
    for n in 0..2_000 {
        let _ = write!(
            text,
            "connection \"c{n}\" {{\n  plugin = \"postgres\"\n  host = \"h\"\n}}\n"
        );
    }
    text += &aggregator("base", &["c*"]);
    for n in 0..4_000 {
        text += &aggregator(&format!("a{n:04}"), &["base"]);
    }
    let loaded = read(&sources("a.spc", &text), &mut Cache::default());
    let refused = |name: &str| loaded.desired.connections[name].target.is_err();
    assert!(!refused("a0000") && !refused("base") && !refused("c0") && refused("a3999"));
    let members = aggregator::members(&loaded.desired, &BTreeMap::new());
    assert_eq!((members["a0000"].len(), members["a3999"].len()), (2_000, 0));
}

#[test]
fn long_files_take_no_more_than_their_length() {
    const N: usize = 10_000;
    let connection =
        |body: &str| format!("connection \"a\" {{\n  plugin = \"postgres\"\n{body}}}\n");
    let numbered = |line: &dyn Fn(usize) -> String| (0..N).map(line).collect::<String>();
    let files = [
        (
            "blank lines after a mistake",
            connection(&format!("  host = ]{}", "\n".repeat(N * 4))),
        ),
        (
            "a template of many lines",
            connection(&format!("  host = <<E\n{}${{1}}\nE\n", "x\n".repeat(N * 4))),
        ),
        (
            "quotes that stay open",
            connection(&"  host = \"${\n".repeat(N)),
        ),
        (
            "unknown attributes",
            connection(&numbered(&|n| format!("  hots{n} = 1\n"))),
        ),
        (
            "the same attribute",
            connection(&"  host = \"h\"\n".repeat(N)),
        ),
        (
            "attributes and blocks",
            connection(&numbered(&|n| format!("  a{n} = 1\n  b{n} {{\n  }}\n"))),
        ),
        ("the same block", connection(&"  ssh {\n  }\n".repeat(N))),
        ("twins", connection("  host = \"h\"\n").repeat(N)),
        ("plugins of one label", "plugin \"a\" {\n}\n".repeat(N)),
        (
            "plugins",
            numbered(&|n| format!("plugin \"p{n}\" {{\n}}\n")),
        ),
        (
            "references to no plugin",
            numbered(&|n| {
                format!(
                    "plugin \"p{n}\" {{\n}}\nconnection \"c{n}\" {{\n  plugin = plugin.q{n}\n}}\n"
                )
            }),
        ),
        (
            "names that are near to plugins",
            numbered(&|n| format!("connection \"c{n}\" {{\n  plugin = \"postgers{n}\"\n}}\n")),
        ),
        ("options", "options \"database\" {\n}\n".repeat(N)),
        (
            "block types",
            numbered(&|n| format!("conection{n} \"a\" {{\n}}\n")),
        ),
    ];
    for (what, text) in files {
        survives(what, "a.spc", &text);
    }
    let keys = numbered(&|n| format!("\"hots{n}\": 1, \"host\": 1, "));
    let json = format!("{{\"connection\": {{\"a\": {{{keys} \"plugin\": \"postgres\"}}}}}}");
    survives("keys", "a.spc.json", &json);
    for (what, text) in [
        ("keys", numbered(&|n| format!("    hots{n}: 1\n"))),
        (
            "mistakes",
            numbered(&|n| format!("    host: [é\n    b{n}: 'ö'\n")),
        ),
        ("merges", numbered(&|_| "    <<: *m\n".to_owned())),
        (
            "lines of a text",
            format!("    host: |\n{}", "      é\n".repeat(N * 4)),
        ),
        (
            "lines of a plain text",
            format!("    host: é\n{}", "      é\n".repeat(N * 4)),
        ),
    ] {
        let text = format!("m: &m {{a: 1, b: 2}}\nconnection:\n  a:\n    plugin: fdw\n{text}");
        survives(what, "a.yml", &text);
    }
}
