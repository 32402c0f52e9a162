//! Reads `mirror` blocks.

use std::collections::BTreeMap;

use super::sections;
use crate::model::{ForeignSource, Import, MAX_MIRROR_NAME_BYTES, Mirror};
use crate::plugin::{ConnectionContext, PluginDefinition, build_target, shipped_definitions};
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Problem, Span};

/// Attributes that are the mirror's own. All others are the source's, as those of `postgres`.
const OWN_ATTRIBUTES: [&str; 6] = [
    "source",
    "connections",
    "exclude",
    "prefix",
    "refresh_interval",
    "transitive",
];

/// Interval at which the source's list is read without a notification, in seconds.
const REFRESH_INTERVAL: u64 = 60;

/// Attribute of `postgres` that takes the value of `source`.
const CONNECTION_STRING: &str = "connection_string";

/// Returns the problem of a mirror's name.
pub(super) fn invalid_name(name: &str, span: Span) -> Option<Problem> {
    let message = if name.is_empty() {
        "a mirror's name cannot be empty".to_owned()
    } else if name.chars().any(char::is_control) {
        "a mirror's name cannot hold control characters".to_owned()
    } else if name.len() > MAX_MIRROR_NAME_BYTES {
        format!(
            "a mirror's name has at most {MAX_MIRROR_NAME_BYTES} bytes, this one has {}",
            name.len()
        )
    } else {
        return None;
    };
    Some(Problem::new(span, message).hint("choose another name"))
}

/// Reads a block; adds problems to `problems`. The caller sets positions and error.
pub(super) fn read(
    settings: &Settings,
    name: &str,
    file: &str,
    span: Span,
    whole: bool,
    problems: &mut Vec<Problem>,
) -> Mirror {
    if !settings.was_written("source") {
        let problem = Problem::new(span, "a mirror needs the attribute `source`");
        let hint = "write `source = \"postgresql://steampipe@127.0.0.1:9193/steampipe\"`";
        problems.push(problem.hint(hint));
    }
    let connections = sections::patterns(settings, "connections", problems);
    let exclude = sections::patterns(settings, "exclude", problems).unwrap_or_default();
    let refresh_interval = sections::seconds(settings, "refresh_interval", problems);
    Mirror {
        name: name.to_owned(),
        target: Ok(target(settings, file, span, whole, problems)),
        connections: connections.unwrap_or_else(|| vec!["*".to_owned()]),
        exclude,
        prefix: settings.text("prefix", problems).unwrap_or_default(),
        labels: labels(settings, problems),
        refresh_interval: refresh_interval.unwrap_or(REFRESH_INTERVAL),
        is_transitive: settings.boolean("transitive", problems).unwrap_or(false),
        file: file.to_owned(),
        start_line: 0,
        end_line: 0,
    }
}

/// Reads the one block that a mirror may have.
fn labels(settings: &Settings, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut is_read = false;
    for section in &settings.blocks {
        if &*section.kind != "labels" {
            let message = format!("`mirror` has no block `{}`", section.kind);
            problems.push(Problem::new(section.span, message).hint("it has `labels`"));
        } else if std::mem::replace(&mut is_read, true) {
            let problem = Problem::new(section.span, "a mirror has one `labels` block");
            problems.push(problem.hint("join the two"));
        } else {
            labels = sections::labels(section, problems);
        }
    }
    labels
}

/// Builds what `postgres` would build of the attributes that are not the mirror's own.
fn target(
    settings: &Settings,
    file: &str,
    span: Span,
    whole: bool,
    problems: &mut Vec<Problem>,
) -> ForeignSource {
    let Some(definition) = shipped_definitions().get("postgres") else {
        return ForeignSource::default();
    };
    let before = problems.len();
    let of_source = source_settings(settings, definition, problems);
    let context = ConnectionContext {
        file,
        plugin: "mirror",
        span,
        ssh: None,
        has_gateway: false,
        whole,
    };
    let import = Import::default();
    let mut target = build_target(&of_source, definition, import, &context, problems);
    target.import = Import::default();
    let has_user = ["user", "service"]
        .iter()
        .any(|name| target.mapping.contains_key(*name) || target.server.contains_key(*name));
    if !has_user && whole && problems.len() == before && settings.was_written("source") {
        let problem = Problem::new(span, "the source of a mirror needs a user");
        problems.push(problem.hint("write `source = \"postgresql://USER@…\"`, or `user = \"…\"`"));
    }
    target
}

/// Returns the settings of the source, with `source` under the name that `postgres` knows.
fn source_settings(
    settings: &Settings,
    definition: &PluginDefinition,
    problems: &mut Vec<Problem>,
) -> Settings {
    let mut of_source = Settings::default();
    for setting in &settings.list {
        let name = &*setting.name;
        if name == "source" {
            let mut setting = setting.clone();
            setting.name = CONNECTION_STRING.into();
            of_source.list.push(setting);
        } else if OWN_ATTRIBUTES.contains(&name) {
            continue;
        } else if is_of_source(definition, name) {
            of_source.list.push(setting.clone());
        } else {
            let message = match name {
                "labels" => "`labels` is a block".to_owned(),
                name => format!("`mirror` has no attribute `{name}`"),
            };
            let problem = Problem::new(setting.span, message);
            let near = definition.nearest_attribute(name, &OWN_ATTRIBUTES);
            problems.push(match near {
                _ if name == "labels" => problem.hint("write `labels { … }` without `=`"),
                Some(CONNECTION_STRING) => problem.hint("did you mean `source`?"),
                Some(near) if near == name => {
                    problem.hint("each connection has the schema of its name")
                }
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem.hint("it has `source`, `connections`, `exclude` and `prefix`"),
            });
        }
    }
    let broken = settings.without_value.iter();
    let broken = broken.filter(|name| is_of_source(definition, name));
    of_source.without_value = broken.cloned().collect();
    of_source
}

/// Whether an attribute of `postgres` has a meaning for a mirror. Each connection names its own schema.
fn is_of_source(definition: &PluginDefinition, name: &str) -> bool {
    let is_schema = definition.schema_attribute.as_deref() == Some(name);
    definition.accepts(name) && !is_schema && name != CONNECTION_STRING
}
