//! `spcd check`

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;
use spcd_core::config::{
    ConnectionKind, Diagnostic, InspectedConnection, Inspection, Loaded, Mirror, PluginBlock,
    Severity, SourceFile,
};
use spcd_core::report::{self, RenderStyle};
use spcd_core::secret::{self, MASK};
use spcd_lang::value::Value;

use super::CheckArgs;
use super::terminal;
use crate::config::Config;
use crate::gateway;
use crate::settings::Settings;

/// Reads the files and prints every diagnostic.
pub fn run(settings: &Settings, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let dirs = match args.paths.is_empty() {
        true => &settings.config_dirs,
        false => &args.paths,
    };
    let (inspection, scan) = Config::new(dirs, settings.extensions, false)
        .with_gateway(gateway::is_on(settings))
        .inspect(args.offline);
    let count = |severity| {
        let diagnostics = inspection.loaded.diagnostics.iter();
        diagnostics.filter(|d| d.severity == severity).count()
    };
    // Unreadable directories have no diagnostic.
    let unseen: Vec<String> = scan
        .unknown_inputs
        .iter()
        .map(|input| match &input.error {
            Some(error) if args.paths.is_empty() => {
                format!("{error}: put it back, or take it out of the settings")
            }
            Some(_) if !Path::new(&input.path).exists() => {
                format!("{}: there is no such file or directory", input.path)
            }
            Some(error) => error.clone(),
            None => format!("{} keeps changing", input.path),
        })
        .collect();
    let (errors, warnings) = (
        count(Severity::Error) + unseen.len(),
        count(Severity::Warning),
    );
    if args.json {
        let object = Report::of(&inspection, &scan.sources, &unseen, args.show_values);
        let mut out = terminal::output(true);
        serde_json::to_writer_pretty(&mut out, &object).context("cannot write the report")?;
        writeln!(out)?;
        return Ok(ExitCode::from(u8::from(errors > 0)));
    }
    let style = RenderStyle {
        colours: false,
        show_values: args.show_values,
    };
    for error in &unseen {
        eprintln!("error: {error}\n");
    }
    // Values are shown on standard output only.
    if args.show_values {
        let style = RenderStyle {
            colours: std::io::stdout().is_terminal(),
            ..style
        };
        let report = report::render(&inspection.loaded, &scan.sources, style);
        terminal::control_stdout(&report);
    } else {
        let style = RenderStyle {
            colours: std::io::stderr().is_terminal(),
            ..style
        };
        // The report escapes what it quotes. Its own colours must reach the terminal.
        let report = report::render(&inspection.loaded, &scan.sources, style);
        terminal::control_stderr(&report);
    }
    let mirrors = match inspection.loaded.desired.mirrors.len() {
        0 => String::new(),
        count => format!(", {}", counted(count, "mirror")),
    };
    println!(
        "{}, {}{mirrors}: {}, {}",
        counted(scan.sources.len(), "file"),
        counted(inspection.connections.len(), "connection"),
        counted(errors, "error"),
        counted(warnings, "warning")
    );
    if args.show_values {
        show_values(&inspection);
    }
    // The process ends here, and freeing each value would take as long as reading it.
    std::mem::forget((inspection, scan));
    Ok(ExitCode::from(u8::from(errors > 0)))
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn show_values(inspection: &Inspection) {
    for view in &inspection.connections {
        let mut text = String::new();
        Value::Object(view.config.clone()).write_hcl(&mut text, 0);
        println!("\n{:?} = {text}", view.name);
    }
}

#[derive(Serialize)]
struct Report<'a> {
    files: Vec<&'a str>,
    connections: Vec<Connection<'a>>,
    mirrors: Vec<MirrorBlock<'a>>,
    plugins: &'a [PluginBlock],
    options: BTreeMap<&'a str, Value>,
    search_path: &'a [String],
    diagnostics: Vec<Diagnostic>,
}

/// A block `mirror`. The connections of its source are known to the hub only.
#[derive(Serialize)]
struct MirrorBlock<'a> {
    name: &'a str,
    connections: &'a [String],
    exclude: &'a [String],
    prefix: &'a str,
    labels: &'a BTreeMap<String, String>,
    refresh_interval: u64,
    transitive: bool,
    file: &'a str,
    start_line: u32,
    end_line: u32,
    error: Option<&'a str>,
}

impl<'a> MirrorBlock<'a> {
    fn of(mirror: &'a Mirror) -> Self {
        Self {
            name: &mirror.name,
            connections: &mirror.connections,
            exclude: &mirror.exclude,
            prefix: &mirror.prefix,
            labels: &mirror.labels,
            refresh_interval: mirror.refresh_interval,
            transitive: mirror.is_transitive,
            file: &mirror.file,
            start_line: mirror.start_line,
            end_line: mirror.end_line,
            error: mirror.target.as_ref().err().map(String::as_str),
        }
    }
}

#[derive(Serialize)]
struct Connection<'a> {
    name: &'a str,
    plugin: &'a str,
    plugin_instance: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    connections: &'a [String],
    members: &'a [String],
    import_schema: &'static str,
    config: BTreeMap<&'a str, Value>,
    file: &'a str,
    start_line: u32,
    end_line: u32,
    error: Option<&'a str>,
}

impl<'a> Report<'a> {
    fn of(
        inspection: &'a Inspection,
        sources: &'a [SourceFile],
        unseen: &[String],
        show_values: bool,
    ) -> Self {
        let options = inspection.options.iter().map(|(label, value)| {
            let value = if show_values {
                value.clone()
            } else {
                masked(value, false)
            };
            (label.as_str(), value)
        });
        let unseen = unseen.iter().map(|message| Diagnostic {
            severity: Severity::Error,
            file: String::new(),
            line: 0,
            column: 0,
            span: 0..0,
            message: message.clone(),
            hint: None,
            connection: None,
        });
        Self {
            files: sources.iter().map(|source| source.path.as_str()).collect(),
            connections: inspection
                .connections
                .iter()
                .map(|view| connection(view, &inspection.loaded, show_values))
                .collect(),
            mirrors: (inspection.loaded.desired.mirrors.values())
                .map(MirrorBlock::of)
                .collect(),
            plugins: &inspection.loaded.plugins,
            options: options.collect(),
            search_path: &inspection.search_path,
            diagnostics: unseen
                .chain(inspection.loaded.diagnostics.iter().cloned())
                .collect(),
        }
    }
}

fn connection<'a>(
    view: &'a InspectedConnection,
    loaded: &Loaded,
    show_values: bool,
) -> Connection<'a> {
    let public = loaded.public.get(&view.connection.plugin_instance);
    let shown = |name: &str, value: &Value| match name {
        _ if show_values => value.clone(),
        "import" | "labels" | "health" => value.clone(),
        name => masked(value, public.is_some_and(|public| public.contains(name))),
    };
    let (kind, connections, members): (_, &[String], &[String]) = match &view.connection.kind {
        ConnectionKind::Plugin => ("plugin", &[], &[]),
        ConnectionKind::Aggregator { patterns, members } => ("aggregator", patterns, members),
    };
    Connection {
        name: &view.name,
        plugin: &view.connection.plugin,
        plugin_instance: &view.connection.plugin_instance,
        kind,
        connections,
        members,
        import_schema: if view.connection.enabled {
            "enabled"
        } else {
            "disabled"
        },
        config: view
            .config
            .iter()
            .map(|(name, value)| (&**name, shown(name, value)))
            .collect(),
        file: &view.connection.file,
        start_line: view.connection.start_line,
        end_line: view.connection.end_line,
        error: view.error.as_deref(),
    }
}

/// Returns a value of the same shape with masked texts. In a public value only secrets are masked.
fn masked(value: &Value, is_public: bool) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::List(values) => Value::List(
            values
                .iter()
                .map(|value| masked(value, is_public))
                .collect(),
        ),
        Value::Object(values) => Value::Object(
            values
                .iter()
                .map(|(key, value)| (key.clone(), masked(value, is_public)))
                .collect(),
        ),
        Value::String(text) if is_public => Value::String(secret::masked(text).into()),
        value if is_public => value.clone(),
        _ => Value::String(MASK.into()),
    }
}
