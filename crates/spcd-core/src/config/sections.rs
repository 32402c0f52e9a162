//! Reads blocks that connections, plugins and settings have in common.

use std::collections::BTreeMap;

use super::naming;
use crate::diff::FETCH_SIZE;
use crate::duration;
use crate::health;
use crate::model::{Import, UnknownTypePolicy};
use crate::pattern::Pattern;
use spcd_lang::settings::{NestedBlock, Settings};
use spcd_lang::syntax::{Problem, Span};
use spcd_lang::value::Value;

/// Reads the block `labels`: any names, each with a text.
pub(super) fn labels(
    section: &NestedBlock,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, String> {
    let settings = &section.settings;
    for section in &settings.blocks {
        let message = format!("`labels` has no block `{}`", section.kind);
        problems.push(Problem::new(section.span, message).hint("write `name = \"text\"`"));
    }
    let mut labels = BTreeMap::new();
    for setting in settings.list.iter().filter(|s| s.value != Value::Null) {
        if let Some(text) = setting.text(problems) {
            labels.insert(setting.name.to_string(), text);
        }
    }
    labels
}

/// Reads the block `health` of a connection, a plugin or the settings.
pub(super) fn health(section: &NestedBlock, problems: &mut Vec<Problem>) -> health::ProbeOptions {
    let settings = &section.settings;
    section.report_unknown("attribute", &health::OPTION_NAMES, problems);
    let mut options = health::ProbeOptions::default();
    for setting in settings.list.iter().filter(|s| s.value != Value::Null) {
        let name = &*setting.name;
        if !health::OPTION_NAMES.contains(&name) {
            continue;
        }
        let Some(text) = setting.text(problems) else {
            continue;
        };
        if let Err(error) = options.set(name, &text) {
            let problem = Problem::new(setting.value_span, error.message);
            problems.push(problem.hint(error.hint));
        }
    }
    options
}

pub(super) fn import(section: &NestedBlock, problems: &mut Vec<Problem>) -> Import {
    const ATTRIBUTES: [&str; 7] = [
        "schema",
        "tables",
        "exclude",
        "refresh_interval",
        "timeout",
        "unknown_types",
        FETCH_SIZE,
    ];
    let settings = &section.settings;
    let attributes = [&ATTRIBUTES[..], &naming::ATTRIBUTES].concat();
    section.report_unknown("attribute", &attributes, problems);
    let mut patterns = |name| patterns(settings, name, problems).unwrap_or_default();
    let (tables, exclude) = (patterns("tables"), patterns("exclude"));
    let exclude_columns = patterns("exclude_columns");
    Import {
        schema: settings.text("schema", problems).unwrap_or_default(),
        tables,
        exclude,
        refresh_interval: seconds(settings, "refresh_interval", problems),
        timeout: seconds(settings, "timeout", problems),
        unknown_types: unknown_types(settings, problems),
        fetch_size: fetch_size(settings, problems),
        naming: naming::read(settings, exclude_columns, problems),
    }
}

/// Reads a list of patterns.
pub(super) fn patterns(
    settings: &Settings,
    name: &str,
    problems: &mut Vec<Problem>,
) -> Option<Vec<String>> {
    let patterns = settings.texts(name, problems)?;
    let span = settings.get(name).map_or(Span::default(), |s| s.value_span);
    for pattern in &patterns {
        if let Err(bad) = Pattern::new(pattern) {
            problems.push(Problem::new(span, format!("`{pattern}`: {bad}")));
        }
    }
    Some(patterns)
}

/// Reads a number of rows that postgres_fdw accepts.
fn fetch_size(settings: &Settings, problems: &mut Vec<Problem>) -> Option<u32> {
    let setting = settings.get(FETCH_SIZE)?;
    let text = setting.text(problems)?;
    let rows = text.trim().parse().ok();
    let rows = rows.filter(|rows| (1..=i32::MAX.unsigned_abs()).contains(rows));
    if rows.is_none() {
        let message = "this is not a number of rows for `fetch_size`";
        let problem = Problem::new(setting.value_span, message);
        problems.push(problem.hint("write a whole number from 1, such as `10000`"));
    }
    rows
}

fn unknown_types(settings: &Settings, problems: &mut Vec<Problem>) -> Option<UnknownTypePolicy> {
    let setting = settings.get("unknown_types")?;
    let text = setting.text(problems)?;
    let found = UnknownTypePolicy::from_name(&text);
    if found.is_none() {
        let message = "this is not a value for `unknown_types`";
        let problem = Problem::new(setting.value_span, message);
        let words = UnknownTypePolicy::VALUES.map(|word| format!("`\"{word}\"`"));
        problems.push(problem.hint(format!("write {}", words.join(" or "))));
    }
    found
}

/// Reads a duration: seconds as a number, or a text with a unit. For `refresh_interval`, `"never"`
/// is 0.
pub(super) fn seconds(settings: &Settings, name: &str, problems: &mut Vec<Problem>) -> Option<u64> {
    let setting = settings.get(name)?;
    let text = setting.text(problems)?;
    let text = text.trim();
    let never = name == "refresh_interval" && matches!(text, "never" | "off" | "0");
    let whole = duration::milliseconds(text).filter(|milliseconds| milliseconds % 1000 == 0);
    let seconds = whole.map(|milliseconds| milliseconds / 1000);
    // More than 100 years is an error, and would overflow the database's intervals.
    match seconds.filter(|seconds| (1..=3_155_760_000).contains(seconds)) {
        Some(seconds) => Some(seconds),
        None if never => Some(0),
        None => {
            let problem = Problem::new(
                setting.value_span,
                format!("this is not a duration for `{name}`"),
            );
            problems
                .push(problem.hint("write a number of seconds, or `\"30s\"`, `\"5m\"`, `\"1h\"`"));
            None
        }
    }
}
