//! Every file of the corpus against what HashiCorp's own parser reads in it, and the corpus as
//! one directory. Prints how many agree; has no harness, so that this is always seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;
use spcd_core::config::{Diagnostic, LoadContext, Severity, SourceFile, inspect};
use spcd_lang::evaluate::Function;
use spcd_lang::outline::{Outline, outline};

/// Where spcd means to differ, and why.
const MEANT: [(&str, &str); 1] = [(
    "turbot__steampipe-docs__docs__reference__config-files__plugin-doc-8.spc",
    "its last block closes on the line of its last attribute, where HashiCorp's parser gives up; \
     nothing about it is in doubt, so spcd reads it",
)];

fn corpus() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    let path = std::env::var_os("SPCD_CORPUS").map_or(beside, PathBuf::from);
    path.join("facts.jsonl").is_file().then_some(path)
}

fn main() -> ExitCode {
    let Some(corpus) = corpus() else {
        println!(
            "corpus: skipped, it is not beside this checkout (SPCD_CORPUS names its directory)"
        );
        return ExitCode::SUCCESS;
    };
    let facts = std::fs::read_to_string(corpus.join("facts.jsonl")).expect("facts.jsonl");
    let facts: Vec<Value> = facts
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of facts"))
        .collect();
    let mut sources = Vec::new();
    let (mut agree, mut unresolved, mut failed) = (0, 0, false);
    for fact in &facts {
        let name = fact["file"].as_str().expect("a file's name");
        let text = std::fs::read_to_string(corpus.join("spc").join(name)).expect("a corpus file");
        let differences = compare(fact, &text, &mut unresolved);
        let meant = MEANT.iter().find(|(file, _)| *file == name);
        match (differences.is_empty(), meant) {
            (true, None) => agree += 1,
            (false, Some((_, reason))) => println!("corpus: meant: {name}: {reason}"),
            (true, Some(_)) => {
                failed = true;
                println!("corpus: {name} agrees now: take it off the list");
            }
            (false, None) => {
                failed = true;
                println!("corpus: {name}:");
                differences
                    .iter()
                    .for_each(|difference| println!("    {difference}"));
            }
        }
        sources.push(SourceFile {
            path: format!("corpus/{name}"),
            text: Ok(text),
        });
    }
    println!(
        "corpus: {agree} of {} files agree; {unresolved} values are references, which both leave open",
        facts.len()
    );
    failed |= !whole(&sources, &facts);
    failed |= !each_file(&sources, true);
    failed |= !each_file(&sources, false);
    ExitCode::from(u8::from(failed))
}

/// What differs between the facts and our reading.
fn compare(fact: &Value, text: &str, unresolved: &mut usize) -> Vec<String> {
    let mut lookup = |_, _: &str| Err("not here".to_owned());
    let (blocks, problems) = outline(text, &mut lookup);
    let mut differences = Vec::new();
    if fact["parses"].as_bool() != Some(problems.is_empty()) {
        differences.push(format!("parses: {} but {problems:?}", fact["parses"]));
    }
    if fact["parses"] != true {
        differences.push(format!("{} blocks where there are none", blocks.len()));
    } else {
        compare_blocks(&fact["blocks"], &blocks, "", &mut differences, unresolved);
    }
    differences
}

fn compare_blocks(
    facts: &Value,
    blocks: &[Outline],
    path: &str,
    differences: &mut Vec<String>,
    unresolved: &mut usize,
) {
    let facts = facts.as_array().map_or(&[] as &[Value], Vec::as_slice);
    if facts.len() != blocks.len() {
        differences.push(format!(
            "{path}: {} blocks, not {}",
            blocks.len(),
            facts.len()
        ));
    }
    for (fact, block) in facts.iter().zip(blocks) {
        let path = format!("{path}/{} {:?}", block.kind, block.labels);
        let mut same = |what: &str, is: Value| {
            if fact.get(what).is_some_and(|expected| *expected != is) {
                differences.push(format!("{path}: {what} is {is}, not {}", fact[what]));
            }
        };
        same("type", block.kind.as_str().into());
        same("labels", block.labels.clone().into());
        same("start_line", block.start_line.into());
        same("brace_line", block.brace_line.into());
        same("end_line", block.end_line.into());
        let empty = serde_json::Map::new();
        let expected = fact["attributes"].as_object().unwrap_or(&empty);
        // Nested blocks have their attributes in the facts only where they were asked for.
        if fact.get("attributes").is_some() {
            let names = |keys: Vec<&String>| keys.into_iter().cloned().collect::<Vec<_>>();
            if names(expected.keys().collect()) != names(block.attributes.keys().collect()) {
                differences.push(format!("{path}: the attributes are others"));
            }
        }
        for (name, fact) in expected {
            let Some((line, value)) = block.attributes.get(name) else {
                continue;
            };
            if fact["line"] != *line {
                differences.push(format!("{path}.{name}: line {line}, not {}", fact["line"]));
            }
            match value {
                None if fact["unresolved"] == true => *unresolved += 1,
                None => differences.push(format!("{path}.{name}: no value")),
                Some(value) => {
                    let value = serde_json::to_value(value).expect("a value as JSON");
                    if fact
                        .get("value")
                        .is_none_or(|expected| !equal(expected, &value))
                    {
                        differences.push(format!("{path}.{name}: {value}, not {}", fact["value"]));
                    }
                }
            }
        }
        compare_blocks(
            &fact["nested"],
            &block.nested,
            &path,
            differences,
            unresolved,
        );
    }
}

/// Numbers are equal if they mean the same; all else must be the same.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|b| equal(v, b)))
        }
        _ => a == b,
    }
}

/// Files that are in error although a gateway runs the wrappers, and why.
const REFUSED: [(&str, &str); 8] = [
    (
        "alicloud-doc-2.spc",
        "two connections have one name; Steampipe refuses them, too (`duplicate connection name`)",
    ),
    (
        "csv-doc-2.spc",
        "Steampipe downloads files of other hosts; file_fdw, which is the plugin csv here, reads local ones",
    ),
    ("csv-doc-4.spc", "files of other hosts, as above"),
    ("csv-doc-5.spc", "files of other hosts, as above"),
    ("csv-doc-6.spc", "files of other hosts, as above"),
    (
        "scaleway-doc-2.spc",
        "its connections name no plugin, which Steampipe requires, too",
    ),
    (
        "turbot__steampipe-docs__docs__reference__config-files__plugin-doc-8.spc",
        "it refers to plugin blocks that it lacks; Steampipe reads nothing of it, since its last \
         brace is one that HashiCorp's parser refuses",
    ),
    (
        "turbot__steampipe__design__internal_introspection_tables_tests-doc-4.spc",
        "it refers to a plugin block that it lacks; Steampipe loads the file and fails this connection",
    ),
];

/// Part of the message about a secret that every role could read.
const VISIBLE_SECRET: &str = "every role of the database could read it";

/// Each file by itself, as `check` reads it where wrappers run in a gateway: those that Steampipe
/// loads are right as they are. Without a gateway only secrets may be refused besides.
fn each_file(sources: &[SourceFile], has_gateway: bool) -> bool {
    let mut ok = true;
    let (mut right, mut visible) = (0, 0);
    for source in sources {
        let name = source.path.trim_start_matches("corpus/");
        let inspection = inspect(
            std::slice::from_ref(source),
            &mut LoadContext {
                lookup: None,
                has_gateway,
            },
        );
        let is_secret = |diagnostic: &&Diagnostic| diagnostic.message.contains(VISIBLE_SECRET);
        let errors = (inspection.loaded.diagnostics.iter())
            .filter(|diagnostic| diagnostic.severity == Severity::Error);
        let (secrets, mut errors): (Vec<_>, Vec<_>) = errors.partition(is_secret);
        if has_gateway {
            errors.extend(&secrets);
        }
        let is_refused = REFUSED.iter().any(|(file, _)| *file == name);
        match (errors.first(), is_refused) {
            (None, false) if secrets.is_empty() => right += 1,
            (None, false) => visible += 1,
            (Some(_), true) => {}
            (Some(error), false) => {
                ok = false;
                println!("corpus: {name} is refused: {}", error.one_line());
            }
            (None, true) => {
                ok = false;
                println!("corpus: {name} is right now: take it off the list");
            }
        }
    }
    let (all, with) = (sources.len(), if has_gateway { "with" } else { "without" });
    println!("corpus {with} a gateway: {right} of {all} files are right, {visible} show secrets");
    ok
}

/// The whole corpus as one directory: every connection is either fine or has its own diagnostic.
fn whole(sources: &[SourceFile], facts: &[Value]) -> bool {
    let mut lookup = |_: Function, _: &str, _: &str| Err("not here".to_owned());
    let inspection = inspect(
        sources,
        &mut LoadContext {
            lookup: Some(&mut lookup),
            has_gateway: false,
        },
    );
    let written: usize = facts
        .iter()
        .flat_map(|fact| fact["blocks"].as_array().into_iter().flatten())
        .filter(|block| block["type"] == "connection")
        .count();
    let errors = |severity| {
        inspection
            .loaded
            .diagnostics
            .iter()
            .filter(|d| d.severity == severity)
            .count()
    };
    let mut fine = 0;
    let mut by_reason: BTreeMap<String, usize> = BTreeMap::new();
    let mut ok = true;
    for view in &inspection.connections {
        let own = inspection.loaded.diagnostics.iter().any(|diagnostic| {
            diagnostic.severity == Severity::Error
                && diagnostic.connection.as_deref() == Some(&view.name)
                && diagnostic.file == view.connection.file
                && (view.connection.start_line..=view.connection.end_line)
                    .contains(&diagnostic.line)
        });
        match &view.error {
            None => fine += 1,
            Some(error) => {
                let reason = error.split(": ").nth(1).unwrap_or(error);
                let reason: String = reason.split('`').step_by(2).collect::<Vec<_>>().join("…");
                let reason = reason.split(" at corpus/").next().unwrap_or("").to_owned();
                *by_reason.entry(reason).or_default() += 1;
            }
        }
        if view.error.is_some() != own {
            ok = false;
            println!(
                "corpus: {:?} is in error without a diagnostic of its own, or the other way",
                view.name
            );
        }
    }
    println!(
        "corpus as one directory: {} connections ({written} in the facts), {fine} fine, {} errors, {} warnings",
        inspection.connections.len(),
        errors(Severity::Error),
        errors(Severity::Warning)
    );
    for (reason, count) in by_reason {
        println!("    {count} x {reason}");
    }
    ok
}
