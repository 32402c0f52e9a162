//! `spcd.hcl`: the daemon's own settings, in the language of the `.spc` files.

use std::collections::BTreeSet;

use super::hub::{self, HubGiven};
use super::listen::Listen;
use super::load::{Asking, Budget, Given};
use super::place::Text;
use super::sections;
use super::{Diagnostic, Severity, Source};
use crate::health;
use crate::secret::Secret;
use spcd_lang::nearest::nearest;
use spcd_lang::parse;
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Problem, Span};
use spcd_lang::value::Value;

/// What can be set, with what it must be.
const KNOWN: [(&str, &str); 9] = [
    ("config", "a directory in quotes, or a list of them"),
    ("database", "a URL or keyword string in quotes"),
    ("state_dir", "a directory in quotes"),
    ("instance", "a name in quotes"),
    ("log", "a level or filter in quotes"),
    ("compat", "the name of a program in quotes"),
    ("http", "an address, \"unix:/path\" or \"off\", in quotes"),
    ("http_hosts", "a host name in quotes, or a list of them"),
    ("http_token_file", "a file in quotes"),
];

/// Another program whose clients find what they know besides spcd's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compat {
    /// None
    #[default]
    None,
    /// Steampipe's CLI, Powerpipe, Flowpipe
    Steampipe,
}

/// What [`Compat::named`] asks for.
pub const COMPAT: &str = "compat must be \"steampipe\"";

impl Compat {
    /// An empty name is none, so that a flag can take back what the file says.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::None),
            "steampipe" => Some(Self::Steampipe),
            _ => None,
        }
    }
}

/// What [`is_instance_name`] asks for.
pub const INSTANCE_NAME: &str =
    "the instance name must be 1 to 63 bytes without control characters";

/// Whether a daemon can have that name. (An empty one is as good as unset.)
pub fn is_instance_name(name: &str) -> bool {
    name.len() <= 63 && !name.chars().any(char::is_control)
}

/// What `spcd.hcl` says; empty texts are as good as unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonSettings {
    /// `config`: directories of `.spc` files, as written.
    pub config: Vec<String>,
    /// `database`: the hub's URL or keyword string.
    pub database: Option<Secret>,
    /// `state_dir`, as written.
    pub state_dir: Option<String>,
    /// `instance`
    pub instance: Option<String>,
    /// `log`: a `tracing` filter.
    pub log: Option<String>,
    /// `compat`
    pub compat: Option<Compat>,
    /// The block `hub`.
    pub hub: HubGiven,
    /// The block `health`: for connections that say nothing of it, and whose plugins do not.
    pub health: health::Options,
    /// `http`: where the page, the API and the metrics are.
    pub http: Option<Listen>,
    /// `http_hosts`: the names by which they are reached besides the address.
    pub http_hosts: Vec<String>,
    /// `http_token_file`, as written.
    pub http_token_file: Option<String>,
}

/// Reads the settings file. What is wrong is an error, all of it: a daemon does not start on half
/// of its settings. (A running one keeps those it has.)
pub fn daemon_settings(
    source: &Source,
    given: &mut Given<'_>,
) -> (DaemonSettings, Vec<Diagnostic>) {
    let text = match &source.text {
        Ok(text) => Text::new(&source.path, text),
        Err(reason) => {
            let message = format!("the settings file cannot be read: {reason}");
            let problem = Problem::new(Span::default(), message);
            let text = Text::new(&source.path, "");
            let told = text.diagnostic(0, Severity::Error, &problem, None);
            return (DaemonSettings::default(), vec![told]);
        }
    };
    let (body, mut problems) = parse::parse_body(text.text);
    let mut budget = Budget::of(text.text.len());
    let mut lookup = Asking::of(given, &source.path, &mut budget);
    let settings = Settings::of(&body, &[], &mut lookup, &mut problems);
    let read = read(&settings, &mut problems);
    problems.sort_by_key(|problem| problem.span.start);
    let told = |problem| text.diagnostic(0, Severity::Error, problem, None);
    (read, problems.iter().map(told).collect())
}

/// The settings whose values may be shown.
pub(crate) fn public() -> BTreeSet<String> {
    let names = KNOWN.iter().map(|(name, _)| (*name).to_owned());
    names
        .filter(|name| name != "database")
        .chain(hub::names().map(str::to_owned))
        .chain(health::KNOWN.map(str::to_owned))
        .collect()
}

fn read(settings: &Settings, problems: &mut Vec<Problem>) -> DaemonSettings {
    let list = KNOWN.map(|(name, _)| name).join(", ");
    unknown(settings, &list, problems);
    let (hub, health) = blocks(settings, &list, problems);
    let texts = |name: &str, problems: &mut Vec<Problem>| texts(settings, name, problems);
    let config = texts("config", problems);
    refused(settings, problems);
    let http_hosts = texts("http_hosts", problems);
    let mut one = |name: &str| texts(name, problems).into_iter().next();
    DaemonSettings {
        config,
        database: one("database").map(Secret::new),
        state_dir: one("state_dir"),
        instance: one("instance"),
        log: one("log"),
        compat: one("compat").and_then(|name| Compat::named(&name)),
        hub: hub.unwrap_or_default(),
        health: health.unwrap_or_default(),
        http: one("http")
            .filter(|text| !text.is_empty())
            .and_then(|text| Listen::parse(&text).ok()),
        http_hosts,
        http_token_file: one("http_token_file"),
    }
}

/// Tells names that no setting has.
fn unknown(settings: &Settings, list: &str, problems: &mut Vec<Problem>) {
    let names = || KNOWN.iter().map(|(name, _)| *name);
    for setting in &settings.list {
        if names().any(|name| *name == *setting.name) {
            continue;
        }
        let message = format!("there is no setting `{}`", setting.name);
        let problem = Problem::new(setting.span, message);
        problems.push(match nearest(&setting.name, names()) {
            Some(near) => problem.hint(format!("did you mean `{near}`?")),
            None => problem.hint(format!("there are: {list}")),
        });
    }
}

/// Reads the blocks `hub` and `health`.
fn blocks(
    settings: &Settings,
    list: &str,
    problems: &mut Vec<Problem>,
) -> (Option<HubGiven>, Option<health::Options>) {
    let (mut hub, mut health) = (None, None);
    for section in &settings.sections {
        let kind = &*section.kind;
        if (kind == "hub" && hub.is_some()) || (kind == "health" && health.is_some()) {
            let problem = Problem::new(section.span, format!("`{kind}` is written twice"));
            problems.push(problem.hint("join the two"));
        }
        match kind {
            "hub" => hub = Some(hub::hub(section, problems)),
            "health" => health = Some(sections::health(section, problems)),
            _ => {
                let problem = Problem::new(section.span, "settings are not written as blocks");
                problems.push(match kind {
                    "connection" | "plugin" | "options" => problem.hint(
                        "connections, plugins and options belong into a file `*.spc` in the config \
                         directory",
                    ),
                    _ => problem.hint(format!("write `name = \"value\"`; there are: {list}")),
                });
            }
        }
    }
    (hub, health)
}

/// The texts of a setting, of which only some take several.
fn texts(settings: &Settings, name: &str, problems: &mut Vec<Problem>) -> Vec<String> {
    let Some(setting) = settings.get(name) else {
        return Vec::new();
    };
    let (many, values) = match &setting.value {
        Value::List(values) => (matches!(name, "config" | "http_hosts"), values.as_slice()),
        one => (true, std::slice::from_ref(one)),
    };
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.to_string()),
        _ => None,
    };
    let found: Option<Vec<String>> = values.iter().map(text).collect();
    if let Some(found) = found.filter(|_| many) {
        return found;
    }
    let wanted = KNOWN.iter().find(|(known, _)| *known == name);
    let wanted = wanted.map_or("a text", |(_, wanted)| *wanted);
    let kind = setting.value.kind();
    let message = format!("expected {wanted} for `{name}`, found {kind}");
    problems.push(Problem::new(setting.value_span, message));
    Vec::new()
}

/// Tells texts that their settings do not take.
fn refused(settings: &Settings, problems: &mut Vec<Problem>) {
    let mut check = |name: &str, problem: &dyn Fn(&str) -> Option<String>| {
        if let Some(setting) = settings.get(name)
            && let Value::String(text) = &setting.value
            && let Some(problem) = problem(text)
        {
            problems.push(Problem::new(setting.value_span, problem));
        }
    };
    check("instance", &|name| {
        (!is_instance_name(name)).then(|| INSTANCE_NAME.to_owned())
    });
    check("compat", &|name| {
        Compat::named(name).is_none().then(|| COMPAT.to_owned())
    });
    check("http", &|text| Listen::parse(text).err());
}
