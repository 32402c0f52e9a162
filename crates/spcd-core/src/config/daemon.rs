//! Reads `spcd.hcl`, the daemon's settings, in the language of the `.spc` files.

use std::collections::BTreeSet;

use super::gateway_listen::{self, GatewayListen, gateway_listen};
use super::gateway_places::GatewayPlace;
use super::hub::{self, HubOverrides};
use super::listen::Listen;
use super::load::{Budget, FileEnvironment, LoadContext};
use super::position::SourceText;
use super::sections;
use super::{Diagnostic, Severity, SourceFile};
use crate::health;
use crate::secret::Secret;
use spcd_lang::nearest::suggestion;
use spcd_lang::parse;
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Problem, Span};
use spcd_lang::value::Value;

/// Settings, with the expected values.
const SETTINGS: [(&str, &str); 10] = [
    ("config", "a directory in quotes, or a list of them"),
    ("database", "a URL or keyword string in quotes"),
    ("state_dir", "a directory in quotes"),
    (
        "gateway",
        "\"private\", \"off\" or a URL, in quotes, or a list of URLs",
    ),
    ("instance", "a name in quotes"),
    ("log", "a level or filter in quotes"),
    ("compat", "the name of a program in quotes"),
    ("http", "an address, \"unix:/path\" or \"off\", in quotes"),
    ("http_hosts", "a host name in quotes, or a list of them"),
    ("http_token_file", "a file in quotes"),
];

/// Program whose clients find the objects that they expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compat {
    /// None.
    #[default]
    None,
    /// Steampipe's CLI, Powerpipe, Flowpipe.
    Steampipe,
}

/// Error for a name that [`Compat::from_name`] does not know.
pub const COMPAT_ERROR: &str = "compat must be \"steampipe\"";

impl Compat {
    /// Returns the program of a name. An empty name means none, so that a flag can override the
    /// file.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::None),
            "steampipe" => Some(Self::Steampipe),
            _ => None,
        }
    }
}

/// Error for a name that [`is_instance_name`] refuses.
pub const INSTANCE_NAME_ERROR: &str =
    "the instance name must be 1 to 63 bytes without control characters";

/// Returns whether a daemon may have this name. (An empty one counts as unset.)
pub fn is_instance_name(name: &str) -> bool {
    name.len() <= 63 && !name.chars().any(char::is_control)
}

/// Contents of `spcd.hcl`; empty texts count as unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonSettings {
    /// `config`: directories of `.spc` files, as written.
    pub config: Vec<String>,
    /// `database`: the hub's URL or keyword string.
    pub database: Option<Secret>,
    /// `gateway`: where wrappers run that must not run in the hub.
    pub gateway: Option<GatewayPlace>,
    /// The block `gateway`: where a private gateway listens for a hub on another machine.
    pub gateway_listen: Option<GatewayListen>,
    /// `state_dir`, as written.
    pub state_dir: Option<String>,
    /// `instance`.
    pub instance: Option<String>,
    /// `log`: a `tracing` filter.
    pub log: Option<String>,
    /// `compat`.
    pub compat: Option<Compat>,
    /// The block `hub`.
    pub hub: HubOverrides,
    /// Block `health`: defaults for connections and plugins that have none.
    pub health: health::ProbeOptions,
    /// `http`: address of the page, the API and the metrics.
    pub http: Option<Listen>,
    /// `http_hosts`: host names that requests may use besides the address.
    pub http_hosts: Vec<String>,
    /// `http_token_file`, as written.
    pub http_token_file: Option<String>,
}

/// Reads the settings file. Every problem is an error: a daemon does not start with a part of its
/// settings. (A running one keeps its settings.)
pub fn daemon_settings(
    source: &SourceFile,
    given: &mut LoadContext<'_>,
) -> (DaemonSettings, Vec<Diagnostic>) {
    let text = match &source.text {
        Ok(text) => SourceText::new(&source.path, text),
        Err(reason) => {
            let message = format!("the settings file cannot be read: {reason}");
            let problem = Problem::new(Span::default(), message);
            let text = SourceText::new(&source.path, "");
            let diagnostic = text.diagnostic(0, Severity::Error, &problem, None);
            return (DaemonSettings::default(), vec![diagnostic]);
        }
    };
    let (body, mut problems) = parse::parse_body(text.text);
    let mut budget = Budget::of(text.text.len());
    let mut lookup = FileEnvironment::of(given, &source.path, &mut budget);
    let settings = Settings::of(&body, &[], &mut lookup, &mut problems);
    let read = read(&settings, &mut problems);
    problems.sort_by_key(|problem| problem.span.start);
    let diagnostic = |problem| text.diagnostic(0, Severity::Error, problem, None);
    (read, problems.iter().map(diagnostic).collect())
}

/// Returns the settings whose values may be shown.
pub(crate) fn public_settings() -> BTreeSet<String> {
    let names = SETTINGS.iter().map(|(name, _)| (*name).to_owned());
    names
        .filter(|name| !matches!(name.as_str(), "database" | "gateway"))
        .chain(hub::names().map(str::to_owned))
        .chain(gateway_listen::names().map(str::to_owned))
        .chain(health::OPTION_NAMES.map(str::to_owned))
        .collect()
}

fn read(settings: &Settings, problems: &mut Vec<Problem>) -> DaemonSettings {
    let list = SETTINGS.map(|(name, _)| name).join(", ");
    report_unknown(settings, &list, problems);
    let blocks = blocks(settings, &list, problems);
    let texts = |name: &str, problems: &mut Vec<Problem>| texts(settings, name, problems);
    let config = texts("config", problems);
    report_invalid(settings, problems);
    let http_hosts = texts("http_hosts", problems);
    let gateways: Vec<Secret> = (texts("gateway", problems).into_iter())
        .map(Secret::new)
        .collect();
    let gateway = GatewayPlace::of(&gateways).unwrap_or_else(|problem| {
        let span = settings.get("gateway").map(|setting| setting.value_span);
        problems.push(Problem::new(span.unwrap_or_default(), problem));
        None
    });
    let mut one = |name: &str| texts(name, problems).into_iter().next();
    DaemonSettings {
        config,
        database: one("database").map(Secret::new),
        gateway,
        state_dir: one("state_dir"),
        instance: one("instance"),
        log: one("log"),
        compat: one("compat").and_then(|name| Compat::from_name(&name)),
        gateway_listen: blocks.gateway.flatten(),
        hub: blocks.hub.unwrap_or_default(),
        health: blocks.health.unwrap_or_default(),
        http: one("http")
            .filter(|text| !text.is_empty())
            .and_then(|text| Listen::parse(&text).ok()),
        http_hosts,
        http_token_file: one("http_token_file"),
    }
}

/// Reports unknown names.
fn report_unknown(settings: &Settings, list: &str, problems: &mut Vec<Problem>) {
    let names = || SETTINGS.iter().map(|(name, _)| *name);
    for setting in &settings.list {
        if names().any(|name| *name == *setting.name) {
            continue;
        }
        let message = format!("there is no setting `{}`", setting.name);
        let problem = Problem::new(setting.span, message);
        let hint = suggestion(&setting.name, names());
        problems.push(problem.hint(hint.unwrap_or_else(|| format!("there are: {list}"))));
    }
}

/// The blocks; `None` where one is not written.
#[derive(Default)]
struct Blocks {
    hub: Option<HubOverrides>,
    health: Option<health::ProbeOptions>,
    gateway: Option<Option<GatewayListen>>,
}

/// Reads the blocks `hub`, `health` and `gateway`.
fn blocks(settings: &Settings, list: &str, problems: &mut Vec<Problem>) -> Blocks {
    let mut read = Blocks::default();
    for section in &settings.blocks {
        let kind = &*section.kind;
        let is_written = match kind {
            "hub" => read.hub.is_some(),
            "health" => read.health.is_some(),
            "gateway" => read.gateway.is_some(),
            _ => false,
        };
        if is_written {
            let problem = Problem::new(section.span, format!("`{kind}` is written twice"));
            problems.push(problem.hint("join the two"));
        }
        match kind {
            "hub" => read.hub = Some(hub::hub(section, problems)),
            "health" => read.health = Some(sections::health(section, problems)),
            "gateway" => read.gateway = Some(gateway_listen(section, problems)),
            _ => {
                let problem = Problem::new(section.span, "settings are not written as blocks");
                problems.push(match kind {
                    "connection" | "plugin" | "options" => problem.hint(
                        "write connections, plugins and options into a file `*.spc` in the config \
                         directory",
                    ),
                    _ => problem.hint(format!("write `name = \"value\"`; there are: {list}")),
                });
            }
        }
    }
    read
}

/// Returns the texts of a setting; only some settings take several.
fn texts(settings: &Settings, name: &str, problems: &mut Vec<Problem>) -> Vec<String> {
    let Some(setting) = settings.get(name) else {
        return Vec::new();
    };
    let (many, values) = match &setting.value {
        Value::List(values) => (
            matches!(name, "config" | "http_hosts" | "gateway"),
            values.as_slice(),
        ),
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
    let expected = SETTINGS.iter().find(|(known, _)| *known == name);
    let expected = expected.map_or("a text", |(_, expected)| *expected);
    let kind = setting.value.kind();
    let message = format!("expected {expected} for `{name}`, found {kind}");
    problems.push(Problem::new(setting.value_span, message));
    Vec::new()
}

/// Reports invalid texts.
fn report_invalid(settings: &Settings, problems: &mut Vec<Problem>) {
    let mut check = |name: &str, problem: &dyn Fn(&str) -> Option<String>| {
        if let Some(setting) = settings.get(name)
            && let Value::String(text) = &setting.value
            && let Some(problem) = problem(text)
        {
            problems.push(Problem::new(setting.value_span, problem));
        }
    };
    check("instance", &|name| {
        (!is_instance_name(name)).then(|| INSTANCE_NAME_ERROR.to_owned())
    });
    check("compat", &|name| {
        Compat::from_name(name)
            .is_none()
            .then(|| COMPAT_ERROR.to_owned())
    });
    check("http", &|text| Listen::parse(text).err());
}
