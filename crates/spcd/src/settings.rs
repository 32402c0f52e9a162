//! Settings: flags, then the environment, then `spcd.hcl`, then defaults.

mod health;
mod hub;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
pub use spcd_core::config::Listen;
use spcd_core::config::{
    COMPAT_ERROR, Compat, DaemonSettings, Diagnostic, GatewayListen, GatewayPlace, HubSettings,
    INSTANCE_NAME_ERROR, LoadContext, SourceFile, daemon_settings, is_instance_name,
};
use spcd_core::health::ProbeOptions;
use spcd_core::report;
use spcd_core::secret::Secret;

use crate::config;
use crate::files::Extensions;

/// Default instance name.
const DEFAULT_INSTANCE: &str = "spcd";

/// Everything that flags, environment and `spcd.hcl` decide, with defaults applied.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directories of `.spc` files, absolute, in the order given. They need not exist.
    pub config_dirs: Vec<PathBuf>,
    /// The hub's URL or keyword string; `None`: the private cluster.
    pub database: Option<Secret>,
    /// Where wrappers run that must not run in the hub; `None` for the default.
    pub gateway: Option<GatewayPlace>,
    /// Where a private gateway listens for a hub on another machine. Files are absolute.
    pub gateway_listen: Option<GatewayListen>,
    /// Whether these are the settings of a gateway's loop.
    pub is_gateway: bool,
    /// Name of that gateway; empty if there is only one.
    pub gateway_name: String,
    /// Directory of the private cluster and other state, absolute.
    pub state_dir: PathBuf,
    /// Name that distinguishes daemons which share a database.
    pub instance: String,
    /// Filter of the log, as `tracing` defines it (`info`, `spcd=debug`).
    pub log: Option<String>,
    /// Program for whose clients the expected objects are created.
    pub compat: Compat,
    /// Which files of the config directories are read.
    pub extensions: Extensions,
    /// Sessions and time-outs of the hub.
    pub hub: HubSettings,
    /// Default probe options. A connection or its plugin may override them.
    pub health: ProbeOptions,
    /// The page, the API and the metrics.
    pub http: Http,
    /// Path of the settings file, which need not exist.
    pub file: PathBuf,
    /// Whether the settings file existed when it was read.
    pub is_written: bool,
    flags: Flags,
}

/// Address of the page, the API and the metrics, and access to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http {
    /// A socket's path is absolute.
    pub listen: Listen,
    /// File with the token that actions require.
    pub token_file: Option<PathBuf>,
    /// Accepted host names, besides the address.
    pub hosts: Vec<String>,
}

/// Flags of every command, which clap also reads from the environment.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Whether `env`, `file` and `credential` are not evaluated.
    #[arg(skip)]
    pub offline: bool,
    /// A directory of .spc files; may be repeated
    #[arg(
        long = "config",
        env = "SPCD_CONFIG",
        value_name = "DIR",
        value_delimiter = ':',
        global = true
    )]
    config: Vec<PathBuf>,
    /// The Postgres that is to hold the schemas, as a URL or a keyword string [default: a private cluster]
    #[arg(
        long,
        env = "SPCD_DATABASE",
        value_parser = secret,
        hide_env_values = true,
        value_name = "URL",
        global = true
    )]
    database: Option<Secret>,
    /// Where wrappers run that must not run in the hub: private (a second private cluster), a URL, or off; several URLs for several gateways [default: private, beside a hub on this machine]
    #[arg(
        long,
        env = "SPCD_GATEWAY",
        value_parser = secret,
        hide_env_values = true,
        value_name = "private|off|URL",
        global = true
    )]
    gateway: Vec<Secret>,
    /// Directory of the private cluster and other state
    #[arg(long, env = "SPCD_STATE_DIR", value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// A name that distinguishes this daemon from others on the same database
    #[arg(long, env = "SPCD_INSTANCE", value_name = "NAME", global = true)]
    instance: Option<String>,
    /// The settings file [default: spcd.hcl beside the config directory]
    #[arg(long, env = "SPCD_SETTINGS", value_name = "FILE", global = true)]
    settings: Option<PathBuf>,
    /// The log's filter: error, warn, info, debug, trace, or targets like spcd=debug
    #[arg(long, env = "SPCD_LOG", value_name = "FILTER", global = true)]
    log: Option<String>,
    /// Also create the objects that Steampipe's clients expect
    #[arg(long, env = "SPCD_COMPAT", value_parser = compat, value_name = "steampipe", global = true)]
    compat: Option<Compat>,
    #[command(flatten)]
    hub: hub::HubFlags,
    #[command(flatten)]
    health: health::HealthFlags,
    /// Where `run` serves its page, API and metrics: an address, unix:/path, or off [default: 127.0.0.1:7733]
    #[arg(long, env = "SPCD_HTTP", value_name = "ADDRESS", global = true)]
    http: Option<String>,
    /// The file with the token that actions over HTTP require
    #[arg(long, env = "SPCD_HTTP_TOKEN_FILE", value_name = "FILE", global = true)]
    http_token_file: Option<PathBuf>,
}

impl Settings {
    /// Combines the flags, the settings file and the defaults.
    ///
    /// # Errors
    /// A given settings file does not exist, the file cannot be read or contains unknown settings, or a value
    /// is invalid.
    pub fn load(flags: Flags) -> anyhow::Result<Self> {
        let defaults = Defaults::of_this_user()?;
        let here = std::env::current_dir().context("the current directory is gone")?;
        Self::resolve(flags, &defaults, &here)
    }

    /// Reads the settings file again, under the same flags and environment.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn reload(&self) -> anyhow::Result<Self> {
        Self::load(self.flags.clone())
    }

    /// Returns the settings that differ in `other` and need a restart.
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        [
            ("config", self.config_dirs != other.config_dirs),
            ("database", self.database != other.database),
            ("gateway", self.gateway != other.gateway),
            ("gateway { … }", self.gateway_listen != other.gateway_listen),
            ("state_dir", self.state_dir != other.state_dir),
            ("instance", self.instance != other.instance),
            ("compat", self.compat != other.compat),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }

    fn resolve(flags: Flags, defaults: &Defaults, here: &Path) -> anyhow::Result<Self> {
        let kept = flags.clone();
        let health = flags.health.options()?;
        let config_flags = non_empty(flags.config);
        let named_file = non_empty(flags.settings).pop().map(|path| here.join(path));
        let is_named = named_file.is_some();
        let file = named_file.unwrap_or_else(|| {
            let first = config_flags
                .first()
                .map_or_else(|| defaults.config_dir.clone(), |dir| here.join(dir));
            first.parent().unwrap_or(&first).join("spcd.hcl")
        });
        let read = read(&file, is_named, flags.offline)?;
        let is_written = read.is_some();
        let written = read.unwrap_or_default();
        let paths = Paths {
            here,
            beside: file.parent().unwrap_or(here),
        };
        let instance = first_text([flags.instance, written.instance])
            .unwrap_or_else(|| DEFAULT_INSTANCE.to_owned());
        if !is_instance_name(&instance) {
            bail!("{INSTANCE_NAME_ERROR}");
        }
        let state_dir = paths.one(flags.state_dir, written.state_dir);
        let mut databases = [flags.database, written.database].into_iter().flatten();
        let database = databases.find(|url| !url.expose().trim().is_empty());
        let gateway_listen = written.gateway_listen.map(|listen| paths.tls_files(listen));
        let gateway = GatewayPlace::of(&flags.gateway).map_err(anyhow::Error::msg)?;
        let gateway = (gateway.or(written.gateway))
            .or_else(|| gateway_listen.as_ref().map(|_| GatewayPlace::Private));
        let http = Http {
            listen: paths.listen(first_text([flags.http]), written.http)?,
            token_file: (paths.one(flags.http_token_file, written.http_token_file))
                .or_else(token_credential),
            hosts: written.http_hosts,
        };
        let compat = flags.compat.or(written.compat).unwrap_or_default();
        Ok(Self {
            config_dirs: paths.config_dirs(config_flags, &written.config, defaults),
            database,
            gateway,
            gateway_listen,
            is_gateway: false,
            gateway_name: String::new(),
            state_dir: state_dir.unwrap_or_else(|| defaults.state_dir.clone()),
            instance,
            log: first_text([flags.log, written.log]),
            compat,
            extensions: match compat {
                Compat::None => Extensions::Spc,
                Compat::Steampipe => Extensions::Steampipe,
            },
            hub: HubSettings::of(&[&flags.hub.given(), &written.hub]),
            health: health.or(written.health),
            http,
            is_written,
            flags: kept,
            file,
        })
    }
}

/// Resolves relative paths: in flags against the current directory, in the settings file against its
/// own. Empty paths count as unset.
struct Paths<'a> {
    here: &'a Path,
    beside: &'a Path,
}

impl Paths<'_> {
    fn one(&self, flag: Option<PathBuf>, written: Option<String>) -> Option<PathBuf> {
        let flag = non_empty(flag).pop().map(|path| self.here.join(path));
        let written = written.filter(|path| !path.is_empty());
        flag.or_else(|| written.map(|path| self.beside.join(path)))
    }

    fn tls_files(&self, mut listen: GatewayListen) -> GatewayListen {
        for file in [&mut listen.tls_cert_file, &mut listen.tls_key_file] {
            *file = self.beside.join(&*file).display().to_string();
        }
        listen
    }

    /// Normalizes each directory, since they are recorded in the database.
    fn config_dirs(
        &self,
        flags: Vec<PathBuf>,
        written: &[String],
        defaults: &Defaults,
    ) -> Vec<PathBuf> {
        let written = non_empty(written.iter().map(PathBuf::from));
        let dirs: Vec<PathBuf> = match (&flags[..], &written[..]) {
            ([], []) => vec![defaults.config_dir.clone()],
            ([], dirs) => dirs.iter().map(|dir| self.beside.join(dir)).collect(),
            (dirs, _) => dirs.iter().map(|dir| self.here.join(dir)).collect(),
        };
        dirs.iter().map(|dir| dir.components().collect()).collect()
    }

    fn listen(&self, flag: Option<String>, written: Option<Listen>) -> anyhow::Result<Listen> {
        let (listen, dir) = match flag {
            Some(text) => (Listen::parse(&text).map_err(anyhow::Error::msg)?, self.here),
            None => (written.unwrap_or_default(), self.beside),
        };
        Ok(match listen {
            Listen::Unix(path) => Listen::Unix(dir.join(path).display().to_string()),
            listen => listen,
        })
    }
}

/// Returns the token file that systemd passes as a credential.
fn token_credential() -> Option<PathBuf> {
    absolute_var("CREDENTIALS_DIRECTORY")
        .map(|dir| dir.join("http_token"))
        .filter(|file| file.exists())
}

/// Default directories.
struct Defaults {
    config_dir: PathBuf,
    state_dir: PathBuf,
}

impl Defaults {
    /// Returns the system's directories for root and services, the XDG ones for other users.
    fn of_this_user() -> anyhow::Result<Self> {
        // systemd sets these for units, not for login sessions.
        let service = std::env::var_os("INVOCATION_ID").is_some()
            && std::env::var_os("STATE_DIRECTORY").is_some();
        let me = nix::unistd::geteuid();
        // The package's user counts as a service also after sudo.
        let package = || {
            let user = nix::unistd::User::from_uid(me).ok().flatten();
            user.is_some_and(|user| user.name == "spcd" && user.dir == Path::new("/var/lib/spcd"))
        };
        if me.is_root() || service || package() {
            return Ok(Self {
                config_dir: PathBuf::from("/etc/spcd/conf.d"),
                state_dir: PathBuf::from("/var/lib/spcd"),
            });
        }
        let home = absolute_var("HOME");
        let xdg = |variable: &str, below: &str| {
            absolute_var(variable)
                .or_else(|| home.as_ref().map(|home| home.join(below)))
                .map(|dir| dir.join("spcd"))
                .with_context(|| {
                    format!("neither {variable} nor HOME is set; give --config and --state-dir")
                })
        };
        Ok(Self {
            config_dir: xdg("XDG_CONFIG_HOME", ".config")?.join("conf.d"),
            state_dir: xdg("XDG_STATE_HOME", ".local/state")?,
        })
    }
}

/// Problems in the settings file. `Display` shows positions and reasons on one line, for logs;
/// [`SettingsError::report`] includes the source lines.
#[derive(Debug, thiserror::Error)]
#[error("{}", .diagnostics.iter().map(Diagnostic::one_line).collect::<Vec<_>>().join("; "))]
pub struct SettingsError {
    diagnostics: Vec<Diagnostic>,
    file: SourceFile,
}

impl SettingsError {
    /// Formats each problem with its line, a marker and a hint, without secrets.
    pub fn report(&self, colours: bool) -> String {
        report::render_settings(&self.diagnostics, &self.file, colours)
    }
}

/// Reads `spcd.hcl`. Returns `None` if it was not given and does not exist.
fn read(path: &Path, named: bool, offline: bool) -> Result<Option<DaemonSettings>, SettingsError> {
    if !named && matches!(path.try_exists(), Ok(false)) {
        return Ok(None);
    }
    let source = SourceFile {
        path: path.display().to_string(),
        text: config::read(path),
    };
    let mut lookup = config::look_up;
    let mut given = LoadContext {
        lookup: (!offline).then_some(&mut lookup),
        has_gateway: false,
    };
    match daemon_settings(&source, &mut given) {
        (settings, diagnostics) if diagnostics.is_empty() => Ok(Some(settings)),
        (_, diagnostics) => Err(SettingsError {
            diagnostics,
            file: source,
        }),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "clap's signature")]
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

fn compat(text: &str) -> Result<Compat, &'static str> {
    Compat::from_name(text).ok_or(COMPAT_ERROR)
}

/// The XDG specification says to ignore relative paths in these variables.
fn absolute_var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

fn non_empty(paths: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    paths
        .into_iter()
        .filter(|path| !path.as_os_str().is_empty())
        .collect()
}

fn first_text<const N: usize>(texts: [Option<String>; N]) -> Option<String> {
    texts.into_iter().flatten().find(|text| !text.is_empty())
}
