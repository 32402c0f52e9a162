//! Reads how tables and columns are named: attributes of the block `import`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::diff::MAX_NAME_BYTES;
use crate::model::{ForeignSource, NameStyle, Naming};
use spcd_lang::nearest::nearest;
use spcd_lang::settings::{NestedBlock, Setting, Settings};
use spcd_lang::syntax::Problem;
use spcd_lang::value::Value;

/// Names of the attributes.
pub(super) const ATTRIBUTES: [&str; 4] = ["names", "prefix", "rename", "exclude_columns"];

/// Reads the attributes besides `exclude_columns`; `None` if every name stays as it is in the source and no
/// column is left out.
pub(super) fn read(
    settings: &Settings,
    exclude_columns: Vec<String>,
    problems: &mut Vec<Problem>,
) -> Option<Arc<Naming>> {
    let naming = Naming {
        style: style(settings, problems),
        prefix: prefix(settings, problems),
        rename: rename(settings, problems),
        exclude_columns,
    };
    (naming != Naming::default()).then(|| Arc::new(naming))
}

fn style(settings: &Settings, problems: &mut Vec<Problem>) -> NameStyle {
    let Some(setting) = settings.get("names") else {
        return NameStyle::default();
    };
    let Some(text) = setting.text(problems) else {
        return NameStyle::default();
    };
    NameStyle::from_name(&text).unwrap_or_else(|| {
        let problem = Problem::new(setting.value_span, "this is not a value for `names`");
        problems.push(
            problem.hint(match nearest(&text, NameStyle::VALUES.into_iter()) {
                Some(near) => format!("did you mean `\"{near}\"`?"),
                None => "write `\"keep\"`, `\"lower\"` or `\"snake\"`".to_owned(),
            }),
        );
        NameStyle::default()
    })
}

fn prefix(settings: &Settings, problems: &mut Vec<Problem>) -> String {
    let Some(setting) = settings.get("prefix") else {
        return String::new();
    };
    let Some(prefix) = setting.text(problems) else {
        return String::new();
    };
    if prefix.chars().any(char::is_control) || prefix.len() >= MAX_NAME_BYTES {
        let message = "this is not the beginning of a table's name";
        let problem = Problem::new(setting.value_span, message);
        problems.push(problem.hint("write a short text without control characters"));
        return String::new();
    }
    prefix
}

fn rename(settings: &Settings, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let Some(setting) = settings.get("rename") else {
        return BTreeMap::new();
    };
    let names = match &setting.value {
        Value::Null => return BTreeMap::new(),
        Value::Object(names) => names,
        other => {
            let message = format!("expected an object for `rename`, found {}", other.kind());
            let hint = "write `rename = { \"Old Name\" = \"new_name\" }`";
            problems.push(Problem::new(setting.value_span, message).hint(hint));
            return BTreeMap::new();
        }
    };
    let mut valid = BTreeMap::new();
    for (remote, name) in names {
        if let Some(name) = new_name(remote, name, setting, problems) {
            valid.insert(remote.to_string(), name);
        }
    }
    valid
}

/// Returns the new name of an entry if it is a valid one.
fn new_name(
    remote: &str,
    name: &Value,
    setting: &Setting,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let Some(text) = name.as_text() else {
        let message = format!("expected a name for {remote:?}, found {}", name.kind());
        problems.push(Problem::new(setting.value_span, message));
        return None;
    };
    let is_valid =
        (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control);
    if !is_valid {
        let message = format!("{text:?} cannot be the name of a table or a column");
        let hint = "write 1 to 63 bytes without control characters";
        problems.push(Problem::new(setting.value_span, message).hint(hint));
    }
    is_valid.then_some(text)
}

/// Reports attributes that the wrapper of a connection cannot follow: it would look for the new name in the
/// source.
pub(super) fn check(settings: &Settings, source: &ForeignSource, problems: &mut Vec<Problem>) {
    let Some(section) = settings
        .blocks
        .iter()
        .find(|block| &*block.kind == "import")
    else {
        return;
    };
    // The hub reads the gateway's tables through a wrapper that has both options.
    if source.in_gateway || source.wrapper.is_empty() {
        return;
    }
    let missing = match (&source.table_name_option, &source.column_name_option) {
        (None, None) => "of a table or a column",
        (None, Some(_)) => "of a table",
        (Some(_), None) => "of a column",
        (Some(_), Some(_)) => "",
    };
    let wrapper = &source.wrapper;
    let needs_table = |name: &str| source.table_name_option.is_none() && is_used(section, name);
    for name in ["names", "prefix", "rename"] {
        let needs_column = name == "names" && source.column_name_option.is_none();
        if needs_table(name) || (needs_column && is_used(section, name)) {
            let message = format!(
                "`{name}` cannot rename here: the wrapper `{wrapper}` has no option for the name \
                 {missing} in the source"
            );
            let hint = "leave it out; if the wrapper has such an option, name it by `table_name` and \
                        `column_name` in the `plugin` block";
            report(section, name, message, hint, problems);
        }
    }
    if source.positional && is_used(section, "exclude_columns") {
        let message =
            format!("the wrapper `{wrapper}` maps columns by position: none can be left out");
        report(
            section,
            "exclude_columns",
            message,
            "leave it out",
            problems,
        );
    }
}

/// Whether an attribute is given with an effect.
fn is_used(section: &NestedBlock, name: &str) -> bool {
    let setting = section.settings.get(name);
    setting.is_some_and(|setting| match &setting.value {
        Value::Null => false,
        Value::String(text) if name == "names" => &**text != "keep",
        Value::String(text) => !text.is_empty(),
        Value::Object(names) => !names.is_empty(),
        Value::List(patterns) => !patterns.is_empty(),
        _ => true,
    })
}

fn report(
    section: &NestedBlock,
    name: &str,
    message: String,
    hint: &str,
    problems: &mut Vec<Problem>,
) {
    let span = section
        .settings
        .get(name)
        .map_or(section.span, |setting| setting.span);
    problems.push(Problem::new(span, message).hint(hint));
}
