//! What the program is told from outside: flags, then the environment, then `spcd.hcl`, then
//! defaults.

mod health;
mod hub;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
pub use spcd_core::config::Listen;
use spcd_core::config::{
    COMPAT, Compat, DaemonSettings, Diagnostic, Given, HubSettings, INSTANCE_NAME, Source,
    daemon_settings, is_instance_name,
};
use spcd_core::health::Options;
use spcd_core::report;
use spcd_core::secret::Secret;

use crate::config;

/// The instance name of a daemon that was given none.
const DEFAULT_INSTANCE: &str = "spcd";

/// Everything that flags, environment and `spcd.hcl` decide, with defaults applied.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directories of `.spc` files, absolute, in the order given. They need not exist.
    pub config_dirs: Vec<PathBuf>,
    /// The hub's URL or keyword string; `None`: the private cluster.
    pub database: Option<Secret>,
    /// What the program keeps between runs, absolute: the private cluster.
    pub state_dir: PathBuf,
    /// Which of several daemons' connections these are.
    pub instance: String,
    /// What is logged, as a `tracing` filter (`info`, `spcd=debug`).
    pub log: Option<String>,
    /// Whose clients find what they know besides spcd's own.
    pub compat: Compat,
    /// How the daemon keeps in touch with its database.
    pub hub: HubSettings,
    /// When sources are asked whether they are there, unless a connection or its plugin says.
    pub health: Options,
    /// The page, the API and the metrics.
    pub http: Http,
    /// The settings file, where it is or would be looked for.
    pub file: PathBuf,
    /// Whether it was there when it was read.
    pub is_written: bool,
    flags: Flags,
}

/// Where the page, the API and the metrics are, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http {
    /// A socket's path is absolute.
    pub listen: Listen,
    /// The file with the token that writers show.
    pub token_file: Option<PathBuf>,
    /// The names by which it is reached, besides the address.
    pub hosts: Vec<String>,
}

/// The flags that every command takes. Clap fills them from the environment too.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// The values of `env`, `file` and `credential` are not read.
    #[arg(skip)]
    pub offline: bool,
    /// A directory of .spc files; may be given several times
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
    /// Where the private cluster is kept
    #[arg(long, env = "SPCD_STATE_DIR", value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// A name that tells this daemon's connections from another's in the same database
    #[arg(long, env = "SPCD_INSTANCE", value_name = "NAME", global = true)]
    instance: Option<String>,
    /// The settings file [default: spcd.hcl beside the config directory]
    #[arg(long, env = "SPCD_SETTINGS", value_name = "FILE", global = true)]
    settings: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter like spcd=debug
    #[arg(long, env = "SPCD_LOG", value_name = "FILTER", global = true)]
    log: Option<String>,
    /// Also make what clients of another program look for
    #[arg(long, env = "SPCD_COMPAT", value_parser = compat, value_name = "steampipe", global = true)]
    compat: Option<Compat>,
    #[command(flatten)]
    hub: hub::HubFlags,
    #[command(flatten)]
    health: health::HealthFlags,
    /// Where `run` serves its page, API and metrics: an address, unix:/path, or off [default: 127.0.0.1:7733]
    #[arg(long, env = "SPCD_HTTP", value_name = "ADDRESS", global = true)]
    http: Option<String>,
    /// The file with the token that is asked of those who change something over HTTP
    #[arg(long, env = "SPCD_HTTP_TOKEN_FILE", value_name = "FILE", global = true)]
    http_token_file: Option<PathBuf>,
}

impl Settings {
    /// Puts the flags together with the settings file and the defaults.
    ///
    /// # Errors
    /// A settings file that was named and is not there, one that cannot be read or holds what is
    /// no setting, and values that cannot be used.
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

    /// What differs in another set of settings and holds only from the next start on.
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        [
            ("config", self.config_dirs != other.config_dirs),
            ("database", self.database != other.database),
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
        let config: Vec<PathBuf> = non_empty(flags.config);
        let named = flags
            .settings
            .filter(|path| !path.as_os_str().is_empty())
            .map(|path| here.join(path));
        let file = named.clone().unwrap_or_else(|| {
            let first = config
                .first()
                .map_or_else(|| defaults.config_dir.clone(), |dir| here.join(dir));
            first.parent().unwrap_or(&first).join("spcd.hcl")
        });
        let read = read(&file, named.is_some(), flags.offline)?;
        let is_written = read.is_some();
        let written = read.unwrap_or_default();
        // Paths in the file are relative to it, paths in flags to where they are typed.
        let beside = file.parent().unwrap_or(here).to_owned();
        let config_dirs: Vec<PathBuf> = if !config.is_empty() {
            config.iter().map(|dir| here.join(dir)).collect()
        } else if written.config.iter().any(|dir| !dir.is_empty()) {
            let dirs = written.config.iter().filter(|dir| !dir.is_empty());
            dirs.map(|dir| beside.join(dir)).collect()
        } else {
            vec![defaults.config_dir.clone()]
        };
        // They are recorded: one spelling for one directory.
        let config_dirs = config_dirs.iter().map(|dir| dir.components().collect());
        let config_dirs: Vec<PathBuf> = config_dirs.collect();
        let state_dir = match (
            flags.state_dir.filter(|dir| !dir.as_os_str().is_empty()),
            written.state_dir.filter(|dir| !dir.is_empty()),
        ) {
            (Some(dir), _) => here.join(dir),
            (None, Some(dir)) => beside.join(dir),
            (None, None) => defaults.state_dir.clone(),
        };
        let instance = first_text([flags.instance, written.instance])
            .unwrap_or_else(|| DEFAULT_INSTANCE.to_owned());
        if !is_instance_name(&instance) {
            bail!("{INSTANCE_NAME}");
        }
        let database = flags
            .database
            .filter(|url| !url.expose().trim().is_empty())
            .or(written.database)
            .filter(|url| !url.expose().trim().is_empty());
        let log = first_text([flags.log, written.log]);
        let compat = flags.compat.or(written.compat).unwrap_or_default();
        let hub = HubSettings::of(&[&flags.hub.given(), &written.hub]);
        let listen = match first_text([flags.http]) {
            Some(text) => absolute(Listen::parse(&text).map_err(anyhow::Error::msg)?, here),
            None => absolute(written.http.unwrap_or_default(), &beside),
        };
        let token_file = match (
            flags
                .http_token_file
                .filter(|file| !file.as_os_str().is_empty()),
            written.http_token_file.filter(|file| !file.is_empty()),
        ) {
            (Some(file), _) => Some(here.join(file)),
            (None, Some(file)) => Some(beside.join(file)),
            // As systemd hands secrets out.
            (None, None) => absolute_var("CREDENTIALS_DIRECTORY")
                .map(|dir| dir.join("http_token"))
                .filter(|file| file.exists()),
        };
        let http = Http {
            listen,
            token_file,
            hosts: written.http_hosts,
        };
        Ok(Self {
            config_dirs,
            database,
            state_dir,
            instance,
            log,
            compat,
            hub,
            health: health.or(written.health),
            http,
            file,
            is_written,
            flags: kept,
        })
    }
}

/// Where things are when nobody says.
struct Defaults {
    config_dir: PathBuf,
    state_dir: PathBuf,
}

impl Defaults {
    /// The machine's directories for root and for services, the XDG ones for people.
    fn of_this_user() -> anyhow::Result<Self> {
        // systemd sets this for every unit; a person's session does not have it.
        let service = std::env::var_os("INVOCATION_ID").is_some()
            && std::env::var_os("STATE_DIRECTORY").is_some();
        let me = nix::unistd::geteuid();
        // The package's user is a service too where it was changed to with sudo.
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

/// What is wrong in the settings file. It shows the places and reasons on one line, as logs want
/// it, and [`SettingsError::report`] shows the lines too.
#[derive(Debug, thiserror::Error)]
#[error("{}", .diagnostics.iter().map(Diagnostic::one_line).collect::<Vec<_>>().join("; "))]
pub struct SettingsError {
    diagnostics: Vec<Diagnostic>,
    file: Source,
}

impl SettingsError {
    /// Each mistake with its line, a marker and what to type; without secrets.
    pub fn report(&self, colours: bool) -> String {
        report::render_settings(&self.diagnostics, &self.file, colours)
    }
}

/// Reads `spcd.hcl`. A file that nobody named need not exist: then there is nothing.
fn read(path: &Path, named: bool, offline: bool) -> Result<Option<DaemonSettings>, SettingsError> {
    if !named && matches!(path.try_exists(), Ok(false)) {
        return Ok(None);
    }
    let source = Source {
        path: path.display().to_string(),
        text: config::read(path),
    };
    let mut lookup = config::look_up;
    let mut given = Given {
        lookup: (!offline).then_some(&mut lookup),
    };
    match daemon_settings(&source, &mut given) {
        (settings, diagnostics) if diagnostics.is_empty() => Ok(Some(settings)),
        (_, diagnostics) => Err(SettingsError {
            diagnostics,
            file: source,
        }),
    }
}

fn absolute(listen: Listen, dir: &Path) -> Listen {
    match listen {
        Listen::Unix(path) => Listen::Unix(dir.join(path).display().to_string()),
        listen => listen,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "clap's signature")]
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

fn compat(text: &str) -> Result<Compat, &'static str> {
    Compat::named(text).ok_or(COMPAT)
}

/// The specification says that relative paths in these variables are to be ignored.
fn absolute_var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

fn non_empty(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths
        .into_iter()
        .filter(|path| !path.as_os_str().is_empty())
        .collect()
}

fn first_text<const N: usize>(texts: [Option<String>; N]) -> Option<String> {
    texts.into_iter().flatten().find(|text| !text.is_empty())
}
