//! Blocks that connections, plugins and settings have in common.

use std::collections::BTreeMap;

use crate::health;
use crate::model::{Import, UnknownTypes};
use crate::pattern::Pattern;
use spcd_lang::nearest::nearest;
use spcd_lang::settings::{Section, Settings};
use spcd_lang::syntax::Problem;
use spcd_lang::value::Value;

/// Any names with a text each.
pub(super) fn labels(section: &Section, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let settings = &section.settings;
    for section in &settings.sections {
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

/// When a source is asked whether it is there; in a connection or in a plugin block.
pub(super) fn health(section: &Section, problems: &mut Vec<Problem>) -> health::Options {
    let settings = &section.settings;
    let list = || "it has `enabled`, `interval`, `attempts`, `pause` and `timeout`";
    for section in &settings.sections {
        let message = format!("`health` has no block `{}`", section.kind);
        problems.push(Problem::new(section.span, message).hint(list()));
    }
    let mut options = health::Options::default();
    for setting in settings.list.iter().filter(|s| s.value != Value::Null) {
        let name = &*setting.name;
        if !health::KNOWN.contains(&name) {
            let message = format!("`health` has no attribute `{name}`");
            let problem = Problem::new(setting.span, message);
            problems.push(match nearest(name, health::KNOWN.into_iter()) {
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem.hint(list()),
            });
            continue;
        }
        let Some(text) = setting.text(problems) else {
            continue;
        };
        if let Err(unfit) = options.set(name, &text) {
            let problem = Problem::new(setting.value_span, unfit.message);
            problems.push(problem.hint(unfit.hint));
        }
    }
    options
}

pub(super) fn import(section: &Section, problems: &mut Vec<Problem>) -> Import {
    const KNOWN: [&str; 6] = [
        "schema",
        "tables",
        "exclude",
        "refresh_interval",
        "timeout",
        "unknown_types",
    ];
    let settings = &section.settings;
    for setting in &settings.list {
        if !KNOWN.contains(&&*setting.name) {
            let problem = Problem::new(
                setting.span,
                format!("`import` has no attribute `{}`", setting.name),
            );
            problems.push(match nearest(&setting.name, KNOWN.into_iter()) {
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem.hint(
                    "it has `schema`, `tables`, `exclude`, `refresh_interval`, `timeout` and \
                     `unknown_types`",
                ),
            });
        }
    }
    for section in &settings.sections {
        problems.push(Problem::new(
            section.span,
            format!("`import` has no block `{}`", section.kind),
        ));
    }
    let mut patterns = |name: &str| {
        let patterns = settings.texts(name, problems).unwrap_or_default();
        for pattern in &patterns {
            if let Err(bad) = Pattern::new(pattern) {
                let span = settings
                    .get(name)
                    .map_or(section.span, |setting| setting.value_span);
                problems.push(Problem::new(span, format!("`{pattern}`: {bad}")));
            }
        }
        patterns
    };
    let (tables, exclude) = (patterns("tables"), patterns("exclude"));
    Import {
        schema: settings.text("schema", problems).unwrap_or_default(),
        tables,
        exclude,
        refresh_interval: seconds(settings, "refresh_interval", problems),
        timeout: seconds(settings, "timeout", problems),
        unknown_types: unknown_types(settings, problems),
    }
}

fn unknown_types(settings: &Settings, problems: &mut Vec<Problem>) -> Option<UnknownTypes> {
    let setting = settings.get("unknown_types")?;
    let text = setting.text(problems)?;
    let found = UnknownTypes::named(&text);
    if found.is_none() {
        let message = "this is no value for `unknown_types`";
        let problem = Problem::new(setting.value_span, message);
        let words = UnknownTypes::WORDS.map(|word| format!("`\"{word}\"`"));
        problems.push(problem.hint(format!("write {}", words.join(" or "))));
    }
    found
}

/// A duration: seconds as a number, or a text with a unit. For `refresh_interval`, `"never"` is 0.
fn seconds(settings: &Settings, name: &str, problems: &mut Vec<Problem>) -> Option<u64> {
    let setting = settings.get(name)?;
    let text = setting.text(problems)?;
    let text = text.trim();
    let never = name == "refresh_interval" && matches!(text, "never" | "off" | "0");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "s" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let seconds = number
        .parse::<u64>()
        .ok()
        .zip(factor)
        .and_then(|(n, factor)| n.checked_mul(factor));
    // More than a hundred years is a mistake, and would overflow the database's intervals.
    match seconds.filter(|seconds| (1..=3_155_760_000).contains(seconds)) {
        Some(seconds) => Some(seconds),
        None if never => Some(0),
        None => {
            let problem = Problem::new(
                setting.value_span,
                format!("this is no duration for `{name}`"),
            );
            problems
                .push(problem.hint("write a number of seconds, or `\"30s\"`, `\"5m\"`, `\"1h\"`"));
            None
        }
    }
}
