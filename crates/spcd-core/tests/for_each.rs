//! Many connections from one block, and local values: what a load makes of them, also again and with
//! very many.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends by panicking"
)]

use std::sync::Arc;

use spcd_core::config::{Cache, Connection, LoadContext, Loaded, SourceFile, inspect, load};
use spcd_lang::evaluate::Function;

fn sources(files: &[(&str, &str)]) -> Vec<SourceFile> {
    let source = |(path, text): &(&str, &str)| SourceFile {
        path: (*path).to_owned(),
        text: Ok((*text).to_owned()),
    };
    files.iter().map(source).collect()
}

/// Loads files that read `accounts.json` with this text.
fn load_with(files: &[(&str, &str)], accounts: &str, cache: &mut Cache) -> Loaded {
    let mut lookup = |_: Function, _: &str, _: &str| Ok(accounts.to_owned());
    let mut given = LoadContext {
        lookup: Some(&mut lookup),
        has_gateway: false,
    };
    load(&sources(files), &mut given, cache)
}

fn read(files: &[(&str, &str)]) -> Loaded {
    load_with(files, "{}", &mut Cache::default())
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded
        .desired
        .connections
        .keys()
        .map(String::as_str)
        .collect()
}

fn messages(loaded: &Loaded) -> Vec<&str> {
    let messages = loaded.diagnostics.iter();
    messages.map(|told| told.message.as_str()).collect()
}

fn host(connection: &Connection) -> &str {
    &connection.target.as_ref().unwrap().server["host"].value
}

const BLOCK: &str = "connection \"shop\" {\n  for_each = jsondecode(file(\"accounts.json\"))\n  name = \"shop_${each.key}\"\n  plugin = \"postgres\"\n  host = each.value.host\n}\n";
const AFTER: &str = "connection \"after\" {\n  plugin = \"postgres\"\n  host = \"h\"\n}\n";

#[test]
fn elements_that_did_not_change_are_not_read_again() {
    let mut cache = Cache::default();
    let files = [("a.spc", BLOCK)];
    let two = r#"{"a": {"host": "a"}, "b": {"host": "b"}}"#;
    let first = load_with(&files, two, &mut cache);
    assert_eq!(names(&first), ["shop_a", "shop_b"]);
    let three = r#"{"0": {"host": "0"}, "a": {"host": "a"}, "b": {"host": "other"}}"#;
    let later = load_with(&files, three, &mut cache);
    assert_eq!(names(&later), ["shop_0", "shop_a", "shop_b"]);
    let is_kept = |name: &str, before: &Loaded, after: &Loaded| {
        let find = |loaded: &Loaded| loaded.desired.connections[name].clone();
        Arc::ptr_eq(&find(before), &find(after))
    };
    assert!(is_kept("shop_a", &first, &later));
    assert!(!is_kept("shop_b", &first, &later));
    assert_eq!(host(&later.desired.connections["shop_b"]), "other");
    // The block moves, and its connections with it.
    let moved = format!("\n\n{BLOCK}");
    let moved = load_with(&[("a.spc", &moved)], three, &mut cache);
    assert_eq!(moved.desired.connections["shop_a"].start_line, 3);
    let fewer = load_with(&files, two, &mut cache);
    assert_eq!(names(&fewer), ["shop_a", "shop_b"]);
    assert_eq!(host(&fewer.desired.connections["shop_b"]), "b");
    // The text of the block counts, too.
    let other = BLOCK.replace("each.value.host", "\"x\"");
    let other = load_with(&[("a.spc", &other)], two, &mut cache);
    assert_eq!(host(&other.desired.connections["shop_a"]), "x");
}

#[test]
fn a_function_within_an_element_is_called_each_time() {
    let block = "connection \"c\" {\n  for_each = [\"a\"]\n  name = \"c_${each.key}\"\n  plugin = \"postgres\"\n  host = file(\"h\")\n}\n";
    let mut cache = Cache::default();
    for value in ["one", "two"] {
        let loaded = load_with(&[("a.spc", block)], value, &mut cache);
        assert_eq!(host(&loaded.desired.connections["c_a"]), value);
    }
}

#[test]
fn connections_follow_the_local_values_of_their_directory() {
    let user = "connection \"NAME\" {\n  plugin = \"postgres\"\n  host = \"${local.name}.example.com\"\n}\n";
    let each = "connection \"x\" {\n  for_each = [\"e\"]\n  name = \"NAME_${each.key}\"\n  plugin = \"postgres\"\n  host = local.name\n}\n";
    let (a, b) = (
        user.replace("NAME", "a") + &each.replace("NAME", "a"),
        user.replace("NAME", "b"),
    );
    let locals = |name: &str| format!("locals {{\n  name = \"{name}\"\n}}\n");
    let mut cache = Cache::default();
    let mut read = |one: &str, two: &str| {
        let (one, two) = (locals(one), locals(two));
        let files = [
            ("d/a.spc", &*a),
            ("d/sub/b.spc", &*b),
            ("d/sub/locals.spc", &*two),
            ("d/z.spc", &*one),
        ];
        let loaded = load_with(&files, "", &mut cache);
        assert_eq!(messages(&loaded), [] as [&str; 0]);
        let hosts = loaded
            .desired
            .connections
            .values()
            .map(|c| host(c).to_owned());
        hosts.collect::<Vec<_>>()
    };
    assert_eq!(read("x", "y"), ["x.example.com", "x", "y.example.com"]);
    assert_eq!(read("x", "z"), ["x.example.com", "x", "z.example.com"]);
    assert_eq!(read("w", "z"), ["w.example.com", "w", "z.example.com"]);
    // They are not those of the directory above.
    let loaded = load_with(
        &[("d/a.spc", &locals("x")), ("d/sub/b.spc", &b)],
        "",
        &mut Cache::default(),
    );
    assert_eq!(messages(&loaded), ["there is no local value `name`"]);
}

#[test]
fn every_kind_of_block_sees_local_values() {
    let text = "locals {\n  source = \"postgres\"\n  path = [\"b\"]\n}\nplugin \"p\" {\n  source = local.source\n}\noptions \"database\" {\n  search_path_prefix = local.path\n}\nmirror \"m\" {\n  source = \"host=${local.source} user=u\"\n}\n";
    let loaded = read(&[("a.spc", text)]);
    assert_eq!(messages(&loaded), [] as [&str; 0]);
    assert_eq!(loaded.desired.database.search_path_prefix, ["b"]);
}

#[test]
fn json_files_have_locals_and_elements_too() {
    let text = r#"{"locals": {"labels": {"a": "x"}}, "connection": {"c": {
        "for_each": "${local.labels}", "name": "c_${each.key}", "plugin": "postgres", "host": "${each.value}"}}}"#;
    let loaded = read(&[("a.spc.json", text)]);
    assert_eq!(messages(&loaded), [] as [&str; 0]);
    assert_eq!(host(&loaded.desired.connections["c_a"]), "x");
}

#[test]
fn a_text_that_is_half_written_leaves_the_connections_in_doubt() {
    let files = [("a.spc", BLOCK), ("b.spc", AFTER)];
    let whole = r#"{"a": {"host": "a"}, "b": {"host": "b"}}"#;
    for end in 0..whole.len() {
        let loaded = load_with(&files, &whole[..end], &mut Cache::default());
        assert_eq!(names(&loaded), ["after"], "{end}");
        assert_eq!(loaded.diagnostics.len(), 1, "{end}");
        let doubt = &loaded.desired.unknown_inputs[0];
        assert!(doubt.holds("a.spc"), "{end}");
        let error = doubt.error.as_ref().unwrap();
        assert!(error.starts_with("a.spc:2:25: `jsondecode`: "), "{error}");
    }
    // What the text says in full is removed.
    let loaded = load_with(&files, r#"{"a": {"host": "a"}}"#, &mut Cache::default());
    assert_eq!(names(&loaded), ["after", "shop_a"]);
    assert!(loaded.desired.unknown_inputs.is_empty());
}

#[test]
fn a_block_with_an_error_in_its_text_leaves_the_connections_in_doubt() {
    let whole = r#"{"a": {"host": "a"}, "b": {"host": "b"}}"#;
    let (for_each, name) = (
        "for_each = jsondecode(file(\"accounts.json\"))",
        "name = \"shop_${each.key}\"",
    );
    for (before, after) in [
        (for_each, "for_each = [1 2]"),
        (for_each, "for_each = "),
        (for_each, "for_each = jsondecode(file(\"accounts.json\")"),
        (for_each, "for_each = [\"a\"]\n  for_each = [\"b\"]"),
        (name, "name = \"shop_${each.key\""),
        (name, "name = \"shop_${each.key}"),
        (name, "name = "),
        (
            name,
            "name = \"${each.key}\"\n  name = \"shop_${each.key}\"",
        ),
        // Without `for_each` the others of its connections are not known.
        (for_each, "for_each jsondecode(file(\"accounts.json\"))"),
        (for_each, "for_each { a = {} }"),
        (for_each, "for_ea"),
        (for_each, "for_each_ = jsondecode(file(\"accounts.json\"))"),
        (for_each, "# for_each"),
    ] {
        let text = BLOCK.replace(before, after);
        assert_ne!(text, BLOCK);
        let files = [("a.spc", &*text), ("b.spc", AFTER)];
        let loaded = load_with(&files, whole, &mut Cache::default());
        let doubts = &loaded.desired.unknown_inputs;
        assert!(doubts.iter().any(|doubt| doubt.holds("a.spc")), "{text}");
        assert!(doubts.iter().all(|doubt| !doubt.holds("b.spc")), "{text}");
    }
}

#[test]
fn an_element_without_a_name_of_its_own_leaves_the_connections_in_doubt() {
    let block = BLOCK.replace("shop_", "");
    let read = |key: &str| {
        let accounts = format!(r#"{{"a": {{"host": "a"}}, "{key}": {{"host": "b"}}}}"#);
        load_with(&[("a.spc", &block)], &accounts, &mut Cache::default())
    };
    for key in ["", "pg_b", "b\\n", &"b".repeat(64)] {
        let loaded = read(key);
        assert_eq!(names(&loaded), ["a"], "{key}");
        assert_eq!(host(&loaded.desired.connections["a"]), "a");
        assert!(loaded.desired.unknown_inputs[0].holds("a.spc"), "{key}");
    }
    assert!(read("b").desired.unknown_inputs.is_empty());
    // Two of one name: one of them had another before.
    let same = BLOCK.replace("shop_${each.key}", "${each.value.host}");
    let accounts = r#"{"a": {"host": "x"}, "b": {"host": "x"}}"#;
    let loaded = load_with(&[("a.spc", &same)], accounts, &mut Cache::default());
    assert_eq!(names(&loaded), ["x"]);
    assert!(loaded.desired.unknown_inputs[0].holds("a.spc"));
}

#[test]
fn a_block_without_elements_is_checked() {
    for wrong in ["hots = 1", "port = [1 2]"] {
        let text = BLOCK.replace("host =", &format!("{wrong}\n  host ="));
        let loaded = load_with(&[("a.spc", &text)], "{}", &mut Cache::default());
        assert_eq!(messages(&loaded).len(), 1, "{wrong}");
    }
}

#[test]
fn offline_a_block_is_checked_without_its_elements() {
    let wrong = BLOCK.replace("host =", "hots =");
    let locals = "locals {\n  a = env(\"A\")\n}\nconnection \"l\" {\n  plugin = \"postgres\"\n  host = local.a\n}\n";
    let check = |text: &str| {
        let mut given = LoadContext {
            lookup: None,
            has_gateway: false,
        };
        let inspection = inspect(&sources(&[("a.spc", text)]), &mut given);
        messages(&inspection.loaded)
            .iter()
            .map(|m| (*m).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(check(BLOCK), [] as [&str; 0]);
    assert_eq!(check(locals), [] as [&str; 0]);
    assert_eq!(check(&wrong), ["`postgres` has no attribute `hots`"]);
}

#[test]
fn too_many_elements_are_refused_and_cost_nothing_else() {
    let block = |name: &str, elements: usize| {
        let list = ",".repeat(elements - 1);
        format!(
            "connection \"{name}\" {{\n  for_each = [for i, x in split(\",\", \"{list}\") : i]\n  name = \"{name}_${{each.key}}\"\n  plugin = \"postgres\"\n}}\n"
        )
    };
    let loaded = read(&[("a.spc", &block("c", 100_000)), ("b.spc", AFTER)]);
    assert_eq!(names(&loaded), ["after"]);
    assert_eq!(
        messages(&loaded),
        ["`for_each` has 100000 elements, and at most 20000 are possible"]
    );
    let loaded = read(&[("a.spc", &block("c", 20_000))]);
    assert_eq!(loaded.desired.connections.len(), 20_000);
    assert_eq!(messages(&loaded), [] as [&str; 0]);
}

#[test]
fn the_elements_of_all_blocks_have_a_limit_that_does_not_depend_on_the_cache() {
    let mut text = "locals {\n  list = [for i, x in split(\",\", join(\"\", [for x in split(\"\", \"0123456789\") : \",,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,\"])) : i]\n}\n".to_owned();
    for n in 0..400 {
        text += &format!(
            "connection \"c{n}\" {{\n  for_each = local.list\n  name = \"c{n}_${{each.key}}\"\n  plugin = \"postgres\"\n}}\n"
        );
    }
    let mut cache = Cache::default();
    let files = [("a.spc", &*text), ("b.spc", AFTER)];
    let first = load_with(&files, "", &mut cache);
    let count = first.desired.connections.len();
    assert!(count > 20_000 && count < 100_000, "{count}");
    assert!(first.desired.connections["after"].target.is_ok());
    assert!(
        messages(&first)
            .iter()
            .all(|message| message.contains("too much work")
                || message.contains("more in this file")),
        "{:?}",
        messages(&first)
    );
    let again = load_with(&files, "", &mut cache);
    assert_eq!(again.desired.connections.len(), count);
}

#[test]
fn one_mistake_of_many_elements_is_told_once() {
    let accounts: String = (0..5000).map(|n| format!("\"{n}\": {{}},")).collect();
    let accounts = format!("{{{} \"x\": {{\"host\": \"x\"}}}}", accounts);
    let loaded = load_with(&[("a.spc", BLOCK)], &accounts, &mut Cache::default());
    let expected =
        "there is no attribute of this name, in `shop_0`, `shop_1`, `shop_10` and 4997 more";
    assert_eq!(messages(&loaded), [expected]);
    let in_error = loaded
        .desired
        .connections
        .values()
        .filter(|c| c.target.is_err());
    assert_eq!(in_error.count(), 5000);
    assert_eq!(host(&loaded.desired.connections["shop_x"]), "x");
}

#[test]
fn long_chains_and_circles_of_local_values_end() {
    const N: usize = 20_000;
    let chain: String = (0..N)
        .map(|n| format!("  l{n} = local.l{}\n", n + 1))
        .collect();
    let text = format!(
        "locals {{\n{chain}  l{N} = \"h\"\n}}\nconnection \"c\" {{\n  plugin = \"postgres\"\n  host = local.l0\n}}\n"
    );
    let loaded = read(&[("a.spc", &text)]);
    assert_eq!(host(&loaded.desired.connections["c"]), "h");
    let circle = text.replace(&format!("l{N} = \"h\""), &format!("l{N} = local.l0"));
    let loaded = read(&[("a.spc", &circle)]);
    assert!(
        messages(&loaded)[0].contains("`local.l0` is computed from itself, through `local.l1`")
    );
    assert!(
        messages(&loaded)[0].ends_with(" and 19992 more"),
        "{}",
        messages(&loaded)[0]
    );
    let error = loaded.desired.connections["c"].target.as_ref().unwrap_err();
    assert!(
        error.contains("`local.l0` has no value (correct it at a.spc:2:3)"),
        "{error}"
    );
    // Each is twice as long as the one before.
    let double: String = (0..60)
        .map(|n| format!("  l{n} = \"${{local.l{}}}${{local.l{}}}\"\n", n + 1, n + 1))
        .collect();
    let loaded = read(&[(
        "a.spc",
        &format!("locals {{\n{double}  l60 = \"x\"\n}}\n{AFTER}"),
    )]);
    assert!(messages(&loaded).contains(&"this value grows too large"));
    assert!(loaded.desired.connections["after"].target.is_ok());
}
