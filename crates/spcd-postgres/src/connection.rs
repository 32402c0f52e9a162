//! Sessions with the hub: connection strings, TLS, session settings and the session pool.

mod any_host;
pub mod context;
pub mod crowded;
mod error;
mod hosts;
mod params;
pub mod pool;
mod session;
mod tls;
mod typed;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use spcd_core::config::{ForeignSource, HubSettings};
use spcd_core::secret::Secret;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;

use crate::connection::any_host::Candidate;
use crate::connection::context::HubContext;
use crate::connection::tls::{Handshake, TlsMode, TlsSettings};
use error::AuthenticationFailure;
use error::server_error;
pub use error::{Cause, ConnectError};
use hosts::{Host, HostName};
use params::{Environment, Params};
use session::SessionAttributes;
pub use session::{Canceller, Session, wait_until_closed};

/// Default time limit of an attempt to connect to one host. libpq has none, but a server that accepts
/// a connection and stays silent must not block the daemon.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Default time without an acknowledgement after which a connection is closed. A leader that cannot
/// reach the server must notice before its heartbeat is stale.
const DEFAULT_TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Servers, role and database of the hub: `--database`, completed from libpq's files and environment.
#[derive(Clone)]
pub struct Endpoint {
    hosts: Vec<Host>,
    user: String,
    dbname: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    options: Option<String>,
    tls: TlsSettings,
    ssl_negotiation: SslNegotiation,
    channel_binding: ChannelBinding,
    attributes: SessionAttributes,
    load_balance: bool,
    /// Index of the host that the last session was opened with. It is tried first.
    last_host: Arc<AtomicUsize>,
    connect_timeout: Duration,
    keepalives: Keepalives,
    tcp_user_timeout: Duration,
    /// For each host, whether a check has found no pooler in transaction mode.
    is_direct: Arc<[AtomicBool]>,
    context: Arc<HubContext>,
}

#[derive(Clone)]
struct Keepalives {
    is_on: bool,
    idle: Duration,
    interval: Duration,
    count: u32,
}

impl Default for Keepalives {
    fn default() -> Self {
        Self {
            is_on: true,
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(5),
            count: 3,
        }
    }
}

impl Endpoint {
    /// Parses a URL, a keyword string or a bare database name, and completes it from libpq's service
    /// file and environment.
    ///
    /// # Errors
    /// [`ConnectError::Configuration`], whose text contains no values that could be secret.
    pub fn parse(text: &Secret) -> Result<Self, ConnectError> {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .ok()
            .flatten();
        let home = std::env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from)
            .or_else(|| user.as_ref().map(|user| user.dir.clone()));
        let var = |name: &str| std::env::var(name).ok();
        let environment = Environment { var: &var, home };
        params::parse(text.expose())
            .and_then(|given| params::complete(given, &environment))
            .and_then(|params| Self::from_params(&params, user.map(|user| user.name)))
            .map_err(ConnectError::Configuration)
    }

    /// Returns the source of a mirror, by the options of its server and mapping. Ignores the environment, as
    /// the hub's server does.
    ///
    /// # Errors
    /// [`ConnectError::Configuration`], whose text contains no values that could be secret.
    pub fn of_source(source: &ForeignSource) -> Result<Self, ConnectError> {
        let server = source.server_options().into_iter();
        let mapping = source.mapping.iter();
        let mapping = mapping.map(|(name, value)| (name.clone(), value.expose().to_owned()));
        let environment = Environment {
            var: &|_| None,
            home: None,
        };
        params::of_connection(server.chain(mapping))
            .and_then(|given| params::complete(given, &environment))
            .and_then(|params| Self::from_params(&params, None))
            .map_err(ConnectError::Configuration)
    }

    /// Returns a server on this machine, at a socket directory or an address. Ignores the environment.
    pub fn local(host: &Path, port: u16, user: &str, dbname: &str, password: Secret) -> Self {
        let name = if host.is_absolute() {
            HostName::Socket(host.to_owned())
        } else {
            HostName::Tcp(host.display().to_string())
        };
        Self {
            hosts: vec![Host {
                name,
                address: None,
                port,
            }],
            user: user.to_owned(),
            dbname: dbname.to_owned(),
            password: Some(password),
            passfile: None,
            options: None,
            tls: TlsSettings {
                mode: TlsMode::Disable,
                root: None,
                certificate: None,
                key: None,
            },
            ssl_negotiation: SslNegotiation::Postgres,
            channel_binding: ChannelBinding::Prefer,
            attributes: SessionAttributes::Any,
            load_balance: false,
            last_host: Arc::default(),
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            keepalives: Keepalives::default(),
            tcp_user_timeout: DEFAULT_TCP_USER_TIMEOUT,
            is_direct: Arc::new([AtomicBool::new(true)]),
            context: HubContext::new(HubSettings::without_timeouts()),
        }
    }

    /// Replaces the database.
    pub fn with_database(mut self, dbname: &str) -> Self {
        dbname.clone_into(&mut self.dbname);
        self
    }

    /// Replaces the role and its password. Shares no state with sessions of another role.
    pub fn with_role(mut self, user: &str, password: Secret) -> Self {
        user.clone_into(&mut self.user);
        self.password = Some(password);
        self.context = HubContext::new(HubSettings::without_timeouts());
        self
    }

    /// Replaces the state that the sessions share.
    pub fn with_context(mut self, context: Arc<HubContext>) -> Self {
        self.context = context;
        self
    }

    /// Returns the state that all sessions of this endpoint share.
    pub fn context(&self) -> &Arc<HubContext> {
        &self.context
    }

    /// Opens a session with the `application_name` `spcd <purpose>`. Returns the last authentication
    /// failure, without a connection, while the same passwords would be sent again.
    ///
    /// # Errors
    /// The error of the last host that was tried; see [`ConnectError`].
    pub async fn connect(&self, purpose: &str) -> Result<Session, ConnectError> {
        if let Some(failure) = self.known_failure() {
            return Err(failure.into());
        }
        // Read before connecting, so that a password that changes meanwhile is tried at once.
        let passwords = self.passwords();
        let result = self.connect_any(purpose).await;
        if let Err(error) = &result
            && let Some(failure) = error.authentication_failure()
        {
            self.context.set_authentication_failure(passwords, failure);
        }
        result
    }

    /// Returns the options by which a server of postgres_fdw leads to the same database. It demands TLS
    /// if this endpoint does. Certificates are files on this machine, which the server cannot read.
    pub fn server_options(&self) -> BTreeMap<String, String> {
        let list = |text: &dyn Fn(&Host) -> String| {
            let texts: Vec<String> = self.hosts.iter().map(text).collect();
            texts.join(",")
        };
        let host = |host: &Host| match &host.name {
            HostName::Socket(directory) => directory.display().to_string(),
            HostName::Tcp(name) => name.clone(),
        };
        let mut options: BTreeMap<String, String> = [
            ("host", list(&host)),
            ("port", list(&|host| host.port.to_string())),
            ("dbname", self.dbname.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        if self.tls.mode >= TlsMode::Require {
            options.insert("sslmode".to_owned(), "require".to_owned());
        }
        options
    }

    /// Returns the first host that is not this machine.
    pub fn remote_host(&self) -> Option<String> {
        let host = self.hosts.iter().find(|host| !host.is_local())?;
        Some(host.to_string())
    }

    /// Whether the server has rejected the credentials that would be sent.
    pub fn is_authentication_refused(&self) -> bool {
        self.known_failure().is_some()
    }

    fn known_failure(&self) -> Option<AuthenticationFailure> {
        self.context.authentication_failure(|| self.passwords())
    }

    /// Returns the error of a session that was opened and cannot be set up.
    pub fn setup_error(&self, error: crate::HubError) -> ConnectError {
        ConnectError::Unreachable {
            target: self.to_string(),
            source: error.into(),
        }
    }

    fn passwords(&self) -> Vec<Option<Secret>> {
        self.hosts
            .iter()
            .map(|host| self.password_for(host))
            .collect()
    }

    fn from_params(params: &Params, system_user: Option<String>) -> Result<Self, String> {
        let text = |name: &str| params.get(name).filter(|value| !value.is_empty()).cloned();
        let user = text("user").or(system_user).ok_or(
            "no user is given, and the user that runs spcd has no name: write postgres://USER@…",
        )?;
        let hosts = hosts::hosts(params)?;
        let tls = typed::tls(params)?;
        Ok(Self {
            dbname: text("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: text("password").map(Secret::new),
            passfile: text("passfile").map(PathBuf::from),
            options: text("options"),
            ssl_negotiation: typed::ssl_negotiation(params, tls.mode)?,
            tls,
            channel_binding: typed::channel_binding(params)?,
            attributes: typed::session_attributes(params, hosts.len())?,
            load_balance: typed::load_balance(params)?,
            last_host: Arc::default(),
            connect_timeout: typed::seconds(params, "connect_timeout", DEFAULT_CONNECT_TIMEOUT)?,
            keepalives: typed::keepalives(params)?,
            tcp_user_timeout: typed::tcp_user_timeout(params)?,
            is_direct: hosts.iter().map(|_| AtomicBool::new(false)).collect(),
            context: HubContext::new(HubSettings::without_timeouts()),
            hosts,
        })
    }

    /// Refuses a pooler in transaction mode, behind which locks, LISTEN and settings would reach
    /// other clients' connections. Runs before the settings are applied, and once per host.
    async fn check_direct(
        &self,
        (index, host): Candidate<'_>,
        session: &Session,
    ) -> Result<(), ConnectError> {
        let is_direct = self.is_direct.get(index);
        if is_direct.is_some_and(|is_direct| is_direct.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let other = self.open(host, "probe").await?;
        let is_shared = session::share_backend(session, &other)
            .await
            .map_err(|error| self.classify_error(host, error))?;
        if is_shared {
            let advice = "spcd needs sessions of its own: connect to Postgres itself, or let the pooler use pool_mode = session";
            return Err(self.refused(host, advice, "a pooler in transaction mode answers".into()));
        }
        if let Some(is_direct) = is_direct {
            is_direct.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Connects with and without TLS, in the order that `sslmode` defines.
    async fn open(&self, host: &Host, purpose: &str) -> Result<Session, ConnectError> {
        let mut config = self.config(host, purpose);
        let modes: &[SslMode] = match self.tls.mode {
            _ if matches!(host.name, HostName::Socket(_)) => &[SslMode::Disable],
            TlsMode::Disable => &[SslMode::Disable],
            TlsMode::Allow => &[SslMode::Disable, SslMode::Require],
            TlsMode::Prefer => &[SslMode::Prefer, SslMode::Disable],
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => &[SslMode::Require],
        };
        let mut failed = None;
        for mode in modes {
            config.ssl_mode(*mode);
            let (connector, handshake) = if *mode == SslMode::Disable {
                (None, None)
            } else {
                let (connector, handshake) =
                    self.tls.connector().map_err(ConnectError::Configuration)?;
                (Some(connector), Some(handshake))
            };
            let crash_notice = self.context().crash_notice();
            let error = match session::open(&config, connector.as_ref(), crash_notice).await {
                Ok(session) => return Ok(session),
                Err(error) => error,
            };
            // The other mode can help only if this one caused the error: pg_hba.conf has no entry for
            // it (28000), or the handshake failed.
            let is_mode_specific = error.code().map_or_else(
                || {
                    handshake
                        .as_ref()
                        .is_some_and(|handshake| handshake.reason(&error).is_some())
                },
                |code| *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            );
            let error = self.classify_tls_error(host, handshake.as_deref(), error);
            if !is_mode_specific {
                return Err(error);
            }
            failed = Some(error);
        }
        Err(failed.unwrap_or_else(|| ConnectError::Configuration("no way to connect".to_owned())))
    }

    /// [`Self::classify_error`] for errors that TLS may have caused.
    fn classify_tls_error(
        &self,
        host: &Host,
        handshake: Option<&Handshake>,
        error: tokio_postgres::Error,
    ) -> ConnectError {
        let Some(handshake) = handshake.filter(|_| error.code().is_none()) else {
            return self.classify_error(host, error);
        };
        if let Some(reason) = handshake.reason(&error) {
            return self.refused(host, &reason, error.into());
        }
        let is_network_error = std::error::Error::source(&error)
            .is_some_and(|source| source.downcast_ref::<std::io::Error>().is_some());
        if self.tls.mode >= TlsMode::Require
            && !handshake.saw_certificate()
            && !is_network_error
            && !error.is_closed()
        {
            let advice = "the server does not speak TLS and this sslmode demands it: set ssl = on there, or choose a weaker sslmode";
            return self.refused(host, advice, error.into());
        }
        self.classify_error(host, error)
    }

    fn config(&self, host: &Host, purpose: &str) -> Config {
        let mut config = Config::new();
        match &host.name {
            HostName::Tcp(name) => config.host(name),
            HostName::Socket(directory) => config.host_path(directory),
        };
        if let Some(address) = host.address {
            config.hostaddr(address);
        }
        config
            .port(host.port)
            .user(&self.user)
            .dbname(&self.dbname)
            .application_name(format!("spcd {purpose}"))
            .channel_binding(self.channel_binding)
            .connect_timeout(self.connect_timeout)
            .tcp_user_timeout(self.tcp_user_timeout)
            .keepalives(self.keepalives.is_on)
            .keepalives_idle(self.keepalives.idle)
            .keepalives_interval(self.keepalives.interval)
            .keepalives_retries(self.keepalives.count)
            .ssl_negotiation(self.ssl_negotiation);
        if let Some(options) = &self.options {
            config.options(options);
        }
        if let Some(password) = self.password_for(host) {
            config.password(password.expose());
        }
        config
    }

    /// Returns the given password, or the password file's. The file is read for each connection, so
    /// that a change needs no restart.
    fn password_for(&self, host: &Host) -> Option<Secret> {
        if let Some(password) = &self.password {
            return Some(password.clone());
        }
        let text = read_passfile(self.passfile.as_deref()?)?;
        params::passfile_lookup(
            &text,
            &host.passfile_name(),
            host.port,
            &self.dbname,
            &self.user,
        )
        .map(Secret::new)
    }

    /// Classifies an error by what can be done about it. Only SQLSTATEs and error types decide.
    fn classify_error(&self, host: &Host, error: tokio_postgres::Error) -> ConnectError {
        let Some(code) = error.code().cloned() else {
            let io_kind = std::error::Error::source(&error)
                .and_then(|source| source.downcast_ref::<std::io::Error>())
                .map(std::io::Error::kind);
            return match io_kind {
                Some(std::io::ErrorKind::PermissionDenied) => self.refused(
                    host,
                    "the user that runs spcd may not open this socket",
                    error.into(),
                ),
                Some(_) => ConnectError::Unreachable { target: host.to_string(), source: error.into() },
                None if error.is_closed() => {
                    ConnectError::Unreachable { target: host.to_string(), source: error.into() }
                }
                None if self.password_for(host).is_none() => self.refused(
                    host,
                    "the server asks for a password and none is given: put it into ~/.pgpass or the database URL",
                    error.into(),
                ),
                None => self.refused(host, "spcd supports none of the server's authentication methods", error.into()),
            };
        };
        let advice = if code == SqlState::INVALID_PASSWORD {
            "check the password in ~/.pgpass or the database URL".to_owned()
        } else if code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
            "check the role, and the server's pg_hba.conf".to_owned()
        } else if code == SqlState::INVALID_CATALOG_NAME {
            format!(
                "create the database first: createdb {}",
                quote_for_shell(&self.dbname)
            )
        } else if code == SqlState::INSUFFICIENT_PRIVILEGE {
            "the role needs CONNECT on this database".to_owned()
        } else if code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE {
            "this database takes no connections (datallowconn is off)".to_owned()
        } else if code == SqlState::PROTOCOL_VIOLATION || code == SqlState::FEATURE_NOT_SUPPORTED {
            "the server is no Postgres that spcd supports; set a pooler to pool_mode = session, or connect to Postgres itself"
                .to_owned()
        } else {
            // The server starts up, shuts down, or is out of connections or memory.
            return ConnectError::Unreachable {
                target: host.to_string(),
                source: server_error(error),
            };
        };
        self.refused(host, &advice, server_error(error))
    }

    fn refused(&self, host: &Host, advice: &str, source: Cause) -> ConnectError {
        ConnectError::Refused {
            target: host.to_string(),
            identity: format!("\"{}\" in database \"{}\"", self.user, self.dbname),
            advice: advice.to_owned(),
            source,
        }
    }
}

/// Formats `user@host:port/dbname`, without secrets.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user)?;
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { "," })?;
        }
        write!(f, "/{}", self.dbname)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// Reads the password file. As libpq does, ignores a file that other users can access.
fn read_passfile(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file is ignored because other users can access it; chmod 600 it");
        return None;
    }
    std::fs::read_to_string(path).ok()
}

fn quote_for_shell(text: &str) -> String {
    if text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
    {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
