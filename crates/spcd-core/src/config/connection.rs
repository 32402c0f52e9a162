//! Reads `connection` blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::naming;
use super::plugins::{PluginInstances, ResolvedPlugin};
use super::sections;
use crate::health;
use crate::model::{Connection, ConnectionKind, ForeignSource, Import, TargetHash};
use crate::pattern::Pattern;
use crate::plugin::{
    ConnectionContext, OWN_ATTRIBUTES, OWN_BLOCKS, PluginDefinition, build_target,
};
use spcd_lang::evaluate::DynEnvironment;
use spcd_lang::nearest::nearest;
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Block, Expression, ExpressionKind, Problem, Span, Step};
use spcd_lang::value::Value;

/// Connection with its values, for `check`.
#[derive(Debug, Clone)]
pub struct InspectedConnection {
    /// Name.
    pub name: String,
    /// Connection as it is in the desired state.
    pub connection: Connection,
    /// Configuration in the shape of HCL's JSON syntax, without the attributes that spcd itself
    /// reads.
    pub config: BTreeMap<Box<str>, Value>,
    /// Error, as its state shows it.
    pub error: Option<String>,
}

/// Contents of a block, before other blocks are considered.
pub(super) struct ParsedConnection {
    pub(super) connection: Connection,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    /// Span of `connections`.
    pub(super) connections_span: Span,
    pub(super) settings: Settings,
    pub(super) definition: Option<Arc<PluginDefinition>>,
}

/// Returns the problem of an invalid name; `None` for a valid one.
pub(crate) fn invalid_name(name: &str, span: Span) -> Option<Problem> {
    let lower = name.to_ascii_lowercase();
    let (message, hint) = if name.is_empty() {
        ("a connection's name cannot be empty".to_owned(), None)
    } else if name.chars().any(char::is_control) {
        (
            "a connection's name cannot hold control characters".to_owned(),
            None,
        )
    } else if name.len() > 63 {
        let message = format!(
            "a connection's name has at most 63 bytes, this one has {}",
            name.len()
        );
        (message, Some("Postgres would truncate it"))
    } else if ["public", "information_schema", "spcd"].contains(&name) {
        (
            format!("`{name}` is the name of a schema that spcd does not manage"),
            Some("choose another name"),
        )
    } else if lower.starts_with("pg_") {
        (
            "names that begin with `pg_` are Postgres's own".to_owned(),
            Some("choose another name"),
        )
    } else if name.starts_with("spcd_") || name.starts_with("steampipe_") {
        let prefix = if name.starts_with("spcd_") {
            "spcd_"
        } else {
            "steampipe_"
        };
        (
            format!("names that begin with `{prefix}` are reserved"),
            Some("choose another name"),
        )
    } else {
        return None;
    };
    Some(Problem {
        span,
        message,
        hint: hint.map(str::to_owned),
    })
}

/// Returns warnings about one-line values from files or variables that end in a newline, which
/// editors add. In a value of several lines (a key) it is intended.
fn ends_in_newline<'a>(
    block: &'a Block,
    settings: &'a Settings,
) -> impl Iterator<Item = Problem> + 'a {
    let reads_file = |name: &str| {
        let mut attributes = block.body.attributes.iter();
        let attribute = attributes.find(|attribute| *attribute.name == *name);
        attribute.is_some_and(|attribute| match &attribute.value.kind {
            ExpressionKind::Call(call) => matches!(&*call.name, "file" | "env"),
            _ => false,
        })
    };
    let ends_in_newline = |value: &Value| match value {
        Value::String(text) => (text.strip_suffix('\n'))
            .is_some_and(|line| !line.is_empty() && !line.trim_end().contains('\n')),
        _ => false,
    };
    let found = settings
        .list
        .iter()
        .filter(move |setting| ends_in_newline(&setting.value) && reads_file(&setting.name));
    found.map(|setting| {
        let message = format!("the value of `{}` ends in a newline", setting.name);
        Problem::new(setting.value_span, message)
            .hint("write `trimspace(…)` around it if the newline is not part of the value")
    })
}

/// Reads a block with a valid name. If it is not `whole`, a part of it could not be parsed.
pub(super) fn read(
    block: &Block,
    name: &str,
    file: &str,
    instances: &PluginInstances,
    lookup: &mut DynEnvironment<'_>,
    whole: bool,
) -> ParsedConnection {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let (settings, reference) = evaluate(block, lookup, &mut problems);
    warnings.extend(ends_in_newline(block, &settings));
    let (written, resolved) = plugin_of(
        block,
        &settings,
        reference,
        instances,
        &mut problems,
        &mut warnings,
    );

    let mut connections_span = block.span;
    let kind = kind(&settings, block.span, &mut connections_span, &mut problems);
    let enabled = enabled(&settings, block.span, &mut problems);
    let OwnBlocks {
        import,
        labels,
        health,
    } = own_blocks(&settings, &mut problems, &mut warnings);
    let of_plugin = (resolved.as_ref()).map_or_else(Default::default, |r| r.definition.health);

    let target = match &resolved {
        Some(ResolvedPlugin { definition, .. }) if kind == ConnectionKind::Plugin => {
            let context = ConnectionContext {
                file,
                ssh: super::ssh::read(&settings, file, &mut problems),
                has_gateway: instances.has_gateway,
                whole,
                plugin: written.as_deref().unwrap_or(""),
                span: block.span,
            };
            let target = build_target(&settings, definition, import, &context, &mut problems);
            naming::check(&settings, &target, &mut problems);
            target
        }
        Some(_) => {
            warn_of_aggregator(&settings, block.span, &mut problems, &mut warnings);
            ForeignSource::default()
        }
        None => ForeignSource::default(),
    };
    let connection = Connection {
        name: name.to_owned(),
        plugin: written.unwrap_or_default(),
        plugin_instance: (resolved.as_ref()).map_or_else(String::new, |r| r.instance.clone()),
        kind,
        enabled,
        file: file.to_owned(),
        start_line: 0,
        end_line: 0,
        in_gateway: target.in_gateway,
        target: Ok(target),
        warnings: Vec::new(),
        labels,
        health: health.or(of_plugin),
        awaits_source: false,
        gateway: None,
        left_out: Vec::new(),
        mirror: None,
        hash: TargetHash::default(),
    };
    ParsedConnection {
        connection,
        problems,
        warnings,
        connections_span,
        settings,
        definition: resolved.map(|resolved| resolved.definition),
    }
}

/// The attribute that makes many connections of a block.
pub(super) const FOR_EACH: &str = "for_each";

/// Evaluates the attributes of a block. Returns the label beside them if `plugin` refers to a plugin
/// block (`plugin.label`), which has no value.
fn evaluate(
    block: &Block,
    lookup: &mut DynEnvironment<'_>,
    problems: &mut Vec<Problem>,
) -> (Settings, Option<String>) {
    let mut attributes = block.body.attributes.iter();
    let plugin = attributes.find(|attribute| &*attribute.name == "plugin");
    let reference = plugin.and_then(|attribute| reference(&attribute.value));
    let is_repeated = (block.body.attributes.iter()).any(|a| *a.name == *FOR_EACH);
    // `name` is an attribute of the connection, and of a plugin where it is not.
    let without: &[&str] = match (reference.is_some(), is_repeated) {
        (true, true) => &["plugin", FOR_EACH, "name"],
        (true, false) => &["plugin"],
        (false, true) => &[FOR_EACH, "name"],
        (false, false) => &[],
    };
    let settings = Settings::of(&block.body, without, lookup, problems);
    (settings, reference)
}

/// Returns the plugin as written, and its definition.
fn plugin_of(
    block: &Block,
    settings: &Settings,
    reference: Option<String>,
    instances: &PluginInstances,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> (Option<String>, Option<ResolvedPlugin>) {
    let mut attributes = block.body.attributes.iter();
    let plugin = attributes.find(|attribute| &*attribute.name == "plugin");
    let span = plugin.map_or(block.span, |attribute| attribute.value.span);
    let is_reference = reference.is_some();
    let written = reference.or_else(|| settings.text("plugin", problems));
    if written.is_none() && !settings.was_written("plugin") {
        let problem = Problem::new(block.span, "a connection needs the attribute `plugin`");
        let hint = "write `plugin = \"postgres\"`, or the name of another plugin";
        problems.push(problem.hint(hint));
    }
    let resolved = (written.as_deref())
        .and_then(|written| resolve(instances, written, is_reference, span, problems));
    let warning = resolved.as_ref().and_then(|r| r.warning.clone());
    warnings.extend(warning.map(|warning| Problem::new(span, warning)));
    (written, resolved)
}

/// Resolves `plugin` to a definition.
fn resolve(
    instances: &PluginInstances,
    written: &str,
    is_reference: bool,
    span: Span,
    problems: &mut Vec<Problem>,
) -> Option<ResolvedPlugin> {
    let found = match is_reference {
        true => instances.reference(written),
        false if written.trim().is_empty() => {
            problems.push(Problem::new(span, "a plugin's name cannot be empty"));
            return None;
        }
        false => instances.named(written),
    };
    match found {
        Ok(resolved) => Some(resolved),
        Err((message, hint)) => {
            problems.push(Problem {
                span,
                message,
                hint,
            });
            None
        }
    }
}

/// Returns whether `import_schema` is `"enabled"`.
fn enabled(settings: &Settings, block: Span, problems: &mut Vec<Problem>) -> bool {
    match settings.text("import_schema", problems).as_deref() {
        None | Some("enabled") => true,
        Some("disabled") => false,
        Some(_) => {
            let span = settings
                .get("import_schema")
                .map_or(block, |s| s.value_span);
            let message = "expected \"enabled\" or \"disabled\" for `import_schema`";
            let problem = Problem::new(span, message);
            problems.push(problem.hint("write `import_schema = \"disabled\"`"));
            true
        }
    }
}

/// Returns the label in `plugin.label` or `plugin["label"]`.
fn reference(expression: &Expression) -> Option<String> {
    let ExpressionKind::Traversal(base, steps) = &expression.kind else {
        return None;
    };
    if !matches!(&base.kind, ExpressionKind::Variable(name) if &**name == "plugin") {
        return None;
    }
    match steps.as_slice() {
        [Step::Get(label, _)] => Some(label.to_string()),
        [
            Step::Index(Expression {
                kind: ExpressionKind::Literal(Value::String(label)),
                ..
            }),
        ] => Some(label.to_string()),
        _ => None,
    }
}

fn kind(
    settings: &Settings,
    block: Span,
    connections_span: &mut Span,
    problems: &mut Vec<Problem>,
) -> ConnectionKind {
    let written = settings.text("type", problems);
    let connections = settings.get("connections");
    if let Some(setting) = connections {
        *connections_span = setting.value_span;
    }
    match written.as_deref() {
        Some("aggregator") => {
            let patterns = settings.texts("connections", problems).unwrap_or_default();
            for pattern in &patterns {
                if let Err(bad) = Pattern::new(pattern) {
                    let message = format!("`{pattern}`: {bad}");
                    problems.push(Problem::new(*connections_span, message));
                }
            }
            ConnectionKind::Aggregator {
                patterns,
                members: Vec::new(),
            }
        }
        None | Some("plugin") => {
            if let Some(setting) = connections {
                let problem = Problem::new(setting.span, "only an aggregator has `connections`");
                problems.push(problem.hint("add `type = \"aggregator\"`"));
            }
            ConnectionKind::Plugin
        }
        Some(other) => {
            let span = settings
                .get("type")
                .map_or(block, |setting| setting.value_span);
            let problem = Problem::new(span, "expected \"plugin\" or \"aggregator\" for `type`");
            problems.push(match nearest(other, ["plugin", "aggregator"].into_iter()) {
                Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
                None => problem.hint("leave it out for a connection to one source"),
            });
            ConnectionKind::Plugin
        }
    }
}

/// Warns of attributes and blocks that have no effect in an aggregator, since it has no source, and of
/// missing members. Steampipe accepts both.
fn warn_of_aggregator(
    settings: &Settings,
    block: Span,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) {
    if !settings.was_written("connections") {
        let message = "an aggregator without the attribute `connections` has no members";
        let problem = Problem::new(block, message);
        warnings.push(problem.hint("write `connections = [\"*\"]`"));
    }
    for setting in &settings.list {
        if matches!(&*setting.name, "labels" | "health") {
            let name = &setting.name;
            let problem = Problem::new(setting.span, format!("`{name}` is a block"));
            problems.push(problem.hint(format!("write `{name} {{ … }}` without `=`")));
        } else if !OWN_ATTRIBUTES.contains(&&*setting.name) {
            let message = format!("`{}` has no effect in an aggregator", setting.name);
            warnings.push(Problem::new(setting.span, message).hint("remove it"));
        }
    }
    for section in &settings.blocks {
        if !OWN_BLOCKS.contains(&&*section.kind) {
            let message = format!(
                "the block `{}` has no effect in an aggregator",
                section.kind
            );
            warnings.push(Problem::new(section.span, message).hint("remove it"));
        }
    }
}

/// Nested blocks that spcd itself reads.
#[derive(Default)]
struct OwnBlocks {
    import: Import,
    labels: BTreeMap<String, String>,
    health: health::ProbeOptions,
}

fn own_blocks(
    settings: &Settings,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> OwnBlocks {
    let mut found = OwnBlocks::default();
    let mut seen: Vec<&str> = Vec::new();
    for section in &settings.blocks {
        let kind = &*section.kind;
        if ["import", "labels", "health"].contains(&kind) {
            if seen.contains(&kind) {
                let message = format!("a connection has one `{kind}` block");
                problems.push(Problem::new(section.span, message).hint("join the two"));
            }
            seen.push(kind);
        }
        match kind {
            "import" => found.import = sections::import(section, problems),
            "labels" => found.labels = sections::labels(section, problems),
            "health" => found.health = sections::health(section, problems),
            "options" => {
                let problem = Problem::new(
                    section.span,
                    "`options` in a connection is deprecated and has no effect",
                );
                warnings.push(problem.hint("remove the block"));
            }
            _ => {}
        }
    }
    if let Some(setting) = settings.get("import") {
        let problem = Problem::new(setting.span, "`import` is a block");
        problems.push(problem.hint("write `import { … }` without `=`"));
    }
    found
}
