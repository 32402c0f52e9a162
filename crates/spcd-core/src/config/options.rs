//! Reads top-level `options` blocks.

use super::DatabaseOptions;
use spcd_lang::nearest::suggestion;
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Problem, Span};
use spcd_lang::value::Value;

/// Accepted labels; all blocks but `database` have no effect.
const LABELS: [&str; 3] = ["database", "general", "plugin"];

/// Labels of blocks for Steampipe's own commands.
const STEAMPIPE_COMMANDS: [&str; 4] = ["terminal", "dashboard", "check", "query"];

/// Attributes of Steampipe's `options "database"` that have no effect in spcd.
const STEAMPIPE_ATTRIBUTES: [&str; 6] = [
    "cache",
    "cache_max_ttl",
    "cache_max_size_mb",
    "listen",
    "port",
    "start_timeout",
];

const OWN_OPTIONS: [&str; 3] = ["search_path", "search_path_prefix", "manage_search_path"];

/// Reads `options "database"`.
pub(super) fn database(
    settings: &Settings,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> DatabaseOptions {
    for setting in &settings.list {
        let name = &*setting.name;
        if OWN_OPTIONS.contains(&name) {
            continue;
        }
        let problem = Problem::new(setting.span, format!("`{name}` has no effect here"));
        let hint = suggestion(name, OWN_OPTIONS).filter(|_| !STEAMPIPE_ATTRIBUTES.contains(&name));
        warnings.push(problem.hint_if(hint));
    }
    for section in &settings.blocks {
        let message = format!("the block `{}` has no effect here", section.kind);
        warnings.push(Problem::new(section.span, message));
    }
    DatabaseOptions {
        search_path: path(settings, "search_path", problems),
        search_path_prefix: path(settings, "search_path_prefix", problems),
        manage_search_path: settings.boolean("manage_search_path", problems),
        ..DatabaseOptions::default()
    }
}

/// Reads a comma-separated text or a list; empty if unset.
fn path(settings: &Settings, name: &str, problems: &mut Vec<Problem>) -> Vec<String> {
    let Some(setting) = settings.get(name) else {
        return Vec::new();
    };
    let names: Vec<String> = match &setting.value {
        Value::List(_) => settings.texts(name, problems).unwrap_or_default(),
        _ => match setting.text(problems) {
            Some(text) => text.split(',').map(str::to_owned).collect(),
            None => return Vec::new(),
        },
    };
    let names: Vec<String> = names
        .iter()
        .map(|n| unquoted(n.trim()))
        .filter(|n| !n.is_empty())
        .collect();
    if let Some(long) = names.iter().find(|name| name.len() > 63) {
        let message = format!(
            "a schema's name has at most 63 bytes, this one has {}",
            long.len()
        );
        problems.push(Problem::new(setting.value_span, message));
    }
    names
}

/// Removes the quotes of a name in SQL syntax.
fn unquoted(name: &str) -> String {
    match name
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}

/// Returns the search path from `options "database"` and the enabled connections.
pub(super) fn search_path<'a>(
    options: &DatabaseOptions,
    enabled: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let rest: Vec<String> = if options.search_path.is_empty() {
        std::iter::once("public")
            .chain(enabled)
            .map(str::to_owned)
            .collect()
    } else {
        options.search_path.clone()
    };
    let mut seen = std::collections::HashSet::from(["spcd".to_owned()]);
    let mut path: Vec<String> = options
        .search_path_prefix
        .iter()
        .cloned()
        .chain(rest)
        .filter(|n| seen.insert(n.clone()))
        .collect();
    path.push("spcd".to_owned());
    path
}

/// Returns the warning for a label without effect.
pub(super) fn no_effect_warning(label: &str, span: Span) -> Option<Problem> {
    if LABELS.contains(&label) {
        return None;
    }
    if label == "connection" {
        let message = "`options \"connection\"` is deprecated and has no effect";
        return Some(Problem::new(span, message).hint("remove the block"));
    }
    if STEAMPIPE_COMMANDS.contains(&label) {
        let message =
            format!("`options \"{label}\"` has no effect: it is for Steampipe's own commands");
        return Some(Problem::new(span, message).hint("remove the block"));
    }
    let problem = Problem::new(
        span,
        format!("there are no options `{label}`; the block has no effect"),
    );
    Some(problem.hint_if(suggestion(label, LABELS)))
}
