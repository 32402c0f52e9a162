//! One way to a session with the hub, for every part of the program.

mod error;
mod hosts;
mod params;
mod session;

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spcd_core::config::HubSettings;
use spcd_core::secret::Secret;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;

use super::state::Shared;
use super::tls::{Handshake, Mode, Tls};
use error::plain;
pub use error::{Cause, ConnectError};
use hosts::{Host, Name};
use params::{Params, Surroundings, choice, number};
use session::Attributes;
pub use session::{Canceller, Session, farewell};

/// How long one attempt at one host may take when the endpoint does not say: a port that accepts
/// and then says nothing must not hold the daemon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After how long without an acknowledgement a connection is dead. A leader that cannot reach the
/// server must notice before its heartbeat is called stale.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the hub is and who asks: `--database`, completed by libpq's files and environment.
#[derive(Clone)]
pub struct Endpoint {
    hosts: Vec<Host>,
    user: String,
    dbname: String,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
    options: Option<String>,
    tls: Tls,
    ssl_negotiation: SslNegotiation,
    channel_binding: ChannelBinding,
    attributes: Attributes,
    load_balance: bool,
    connect_timeout: Duration,
    keepalives: Keepalives,
    tcp_user_timeout: Duration,
    /// Whether it is known that no pooler mixes up sessions.
    direct: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Keepalives {
    on: bool,
    idle: Duration,
    interval: Duration,
    count: u32,
}

impl Endpoint {
    /// Reads a URL, a keyword string or a bare database name, and completes it from libpq's
    /// service file and environment.
    ///
    /// # Errors
    /// [`ConnectError::Configuration`]; it shows no value that could be secret.
    pub fn parse(text: &Secret) -> Result<Self, ConnectError> {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .ok()
            .flatten();
        let home = std::env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from)
            .or_else(|| user.as_ref().map(|user| user.dir.clone()));
        let var = |name: &str| std::env::var(name).ok();
        let around = Surroundings { var: &var, home };
        params::parse(text.expose())
            .and_then(|given| params::complete(given, &around))
            .and_then(|params| Self::from_params(&params, user.map(|user| user.name)))
            .map_err(ConnectError::Configuration)
    }

    /// A server on this machine, at a socket directory or an address, whatever the environment says.
    pub fn local(host: &Path, port: u16, user: &str, dbname: &str, password: Secret) -> Self {
        let name = if host.is_absolute() {
            Name::Socket(host.to_owned())
        } else {
            Name::Tcp(host.display().to_string())
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
            tls: Tls {
                mode: Mode::Disable,
                root: None,
                certificate: None,
                key: None,
            },
            ssl_negotiation: SslNegotiation::Postgres,
            channel_binding: ChannelBinding::Prefer,
            attributes: Attributes::Any,
            load_balance: false,
            connect_timeout: CONNECT_TIMEOUT,
            keepalives: Keepalives {
                on: true,
                idle: Duration::from_secs(30),
                interval: Duration::from_secs(5),
                count: 3,
            },
            tcp_user_timeout: TCP_USER_TIMEOUT,
            direct: Arc::new(AtomicBool::new(true)),
            shared: Shared::new(HubSettings::none()),
        }
    }

    /// The same for another database.
    pub fn with_database(mut self, dbname: &str) -> Self {
        dbname.clone_into(&mut self.dbname);
        self
    }

    /// The same with what a daemon's sessions share.
    pub fn with_shared(mut self, shared: Arc<Shared>) -> Self {
        self.shared = shared;
        self
    }

    /// What all sessions of this endpoint share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Opens a session that calls itself `spcd <purpose>`. A daemon does not send what was refused
    /// a moment ago: then this is the same refusal.
    ///
    /// # Errors
    /// With several hosts, the error of the last one that was tried; see [`ConnectError`].
    pub async fn connect(&self, purpose: &str) -> Result<Session, ConnectError> {
        if let Some(refusal) = self.shared.refusal(|| self.passwords()) {
            let [target, who, advice, source] = refusal.told;
            let source = source.into();
            return Err(ConnectError::Refused {
                target,
                who,
                advice,
                source,
            });
        }
        // Read before: who changes it meanwhile wants the new one to be tried.
        let passwords = self.passwords();
        let result = self.connect_any(purpose).await;
        if let Err(error) = &result
            && let Some(told) = error.of_authentication()
        {
            self.shared.refuse(passwords, told);
        }
        result
    }

    /// The host, where that is not this machine.
    pub fn elsewhere(&self) -> Option<String> {
        let host = self.hosts.iter().find(|host| !host.is_here())?;
        Some(host.to_string())
    }

    /// Whether what was refused is still what would be sent.
    pub fn is_refused(&self) -> bool {
        self.shared.refusal(|| self.passwords()).is_some()
    }

    /// For a session that was opened and cannot be set up.
    pub fn cannot_use(&self, error: super::HubError) -> ConnectError {
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

    async fn connect_any(&self, purpose: &str) -> Result<Session, ConnectError> {
        let mut order: Vec<usize> = (0..self.hosts.len()).collect();
        if self.load_balance {
            let seed = std::hash::RandomState::new().build_hasher().finish();
            let by = usize::try_from(seed % (order.len().max(1) as u64)).unwrap_or(0);
            order.rotate_left(by);
        }
        let rounds: &[Attributes] = match self.attributes {
            Attributes::PreferStandby => &[Attributes::Standby, Attributes::Any],
            _ => std::slice::from_ref(&self.attributes),
        };
        let mut last = None;
        for wanted in rounds {
            for host in order.iter().filter_map(|index| self.hosts.get(*index)) {
                match self.connect_host(host, *wanted, purpose).await {
                    Ok(session) => return Ok(session),
                    Err(error @ ConnectError::Configuration(_)) => return Err(error),
                    // A host that answers says more than one that does not.
                    Err(error) => match (&last, &error) {
                        (Some(ConnectError::Refused { .. }), ConnectError::Unreachable { .. }) => {}
                        _ => last = Some(error),
                    },
                }
            }
        }
        Err(last.unwrap_or_else(|| ConnectError::Configuration("no host is given".to_owned())))
    }

    fn from_params(params: &Params, system_user: Option<String>) -> Result<Self, String> {
        let text = |name: &str| params.get(name).filter(|value| !value.is_empty());
        let user = text("user").cloned().or(system_user).ok_or(
            "no user is given, and the user that runs spcd has no name; write postgres://USER@…",
        )?;
        let mode = choice(
            params,
            "sslmode",
            Mode::Prefer,
            &[
                ("disable", Mode::Disable),
                ("allow", Mode::Allow),
                ("prefer", Mode::Prefer),
                ("require", Mode::Require),
                ("verify-ca", Mode::VerifyCa),
                ("verify-full", Mode::VerifyFull),
            ],
        )?;
        let hosts = hosts::hosts(params)?;
        // Of several servers only one takes writes; a daemon that landed on another could do nothing.
        let default = if hosts.len() > 1 {
            Attributes::ReadWrite
        } else {
            Attributes::Any
        };
        let attributes = choice(
            params,
            "target_session_attrs",
            default,
            &[
                ("any", Attributes::Any),
                ("read-write", Attributes::ReadWrite),
                ("read-only", Attributes::ReadOnly),
                ("primary", Attributes::Primary),
                ("standby", Attributes::Standby),
                ("prefer-standby", Attributes::PreferStandby),
            ],
        )?;
        let channel_binding = choice(
            params,
            "channel_binding",
            ChannelBinding::Prefer,
            &[
                ("disable", ChannelBinding::Disable),
                ("prefer", ChannelBinding::Prefer),
                ("require", ChannelBinding::Require),
            ],
        )?;
        let path = |name: &str| text(name).map(PathBuf::from);
        let ssl_negotiation = choice(
            params,
            "sslnegotiation",
            SslNegotiation::Postgres,
            &[
                ("postgres", SslNegotiation::Postgres),
                ("direct", SslNegotiation::Direct),
            ],
        )?;
        if ssl_negotiation == SslNegotiation::Direct && mode < Mode::Require {
            return Err("sslnegotiation=direct needs sslmode=require or stronger".to_owned());
        }
        let load_balance = choice(
            params,
            "load_balance_hosts",
            false,
            &[("disable", false), ("random", true)],
        )?;
        let on = choice(params, "keepalives", true, &[("0", false), ("1", true)])?;
        let seconds = |name: &str, default: Duration| -> Result<Duration, String> {
            Ok(number(params, name)?
                .filter(|n| *n > 0)
                .map_or(default, Duration::from_secs))
        };
        Ok(Self {
            dbname: text("dbname").cloned().unwrap_or_else(|| user.clone()),
            user,
            hosts,
            password: text("password").map(|password| Secret::new(password.as_str())),
            passfile: text("passfile").map(PathBuf::from),
            options: text("options").cloned(),
            tls: Tls {
                mode,
                root: path("sslrootcert"),
                certificate: path("sslcert"),
                key: path("sslkey"),
            },
            ssl_negotiation,
            channel_binding,
            attributes,
            load_balance,
            connect_timeout: seconds("connect_timeout", CONNECT_TIMEOUT)?,
            keepalives: Keepalives {
                on,
                idle: seconds("keepalives_idle", Duration::from_secs(30))?,
                interval: seconds("keepalives_interval", Duration::from_secs(5))?,
                count: number(params, "keepalives_count")?
                    .and_then(|n| u32::try_from(n).ok())
                    .filter(|n| *n > 0)
                    .unwrap_or(3),
            },
            tcp_user_timeout: number(params, "tcp_user_timeout")?
                .filter(|n| *n > 0)
                .map_or(TCP_USER_TIMEOUT, Duration::from_millis),
            direct: Arc::default(),
            shared: Shared::new(HubSettings::none()),
        })
    }

    async fn connect_host(
        &self,
        host: &Host,
        wanted: Attributes,
        purpose: &str,
    ) -> Result<Session, ConnectError> {
        let attempt = async {
            let mut session = self.open(host, purpose).await?;
            self.check_direct(host, &session).await?;
            let tcp = matches!(host.name, Name::Tcp(_));
            let state = session::prepare(&mut session, tcp, self.shared.settings())
                .await
                .map_err(|error| self.explain(host, error))?;
            match state.mismatch(wanted) {
                None => Ok(session),
                Some(why) => Err(self.refused(host, "give the host of another server", why.into())),
            }
        };
        match tokio::time::timeout(self.connect_timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Unreachable {
                target: host.to_string(),
                source: format!("no answer within {} s", self.connect_timeout.as_secs()).into(),
            }),
        }
    }

    /// Refuses a pooler that lends connections for one transaction: locks, LISTEN and settings would
    /// land on other clients' connections. So it comes before the settings, and once is enough.
    async fn check_direct(&self, host: &Host, session: &Session) -> Result<(), ConnectError> {
        if self.direct.load(Ordering::Relaxed) {
            return Ok(());
        }
        let other = self.open(host, "probe").await?;
        let shared = session::share_a_backend(session, &other)
            .await
            .map_err(|error| self.explain(host, error))?;
        if shared {
            let advice = "spcd needs sessions of its own: connect to Postgres itself, or let the pooler use pool_mode = session";
            return Err(self.refused(host, advice, "a pooler in transaction mode answers".into()));
        }
        self.direct.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// With TLS and without, in the order that `sslmode` means.
    async fn open(&self, host: &Host, purpose: &str) -> Result<Session, ConnectError> {
        let mut config = self.config(host, purpose);
        let ways: &[SslMode] = match self.tls.mode {
            _ if matches!(host.name, Name::Socket(_)) => &[SslMode::Disable],
            Mode::Disable => &[SslMode::Disable],
            Mode::Allow => &[SslMode::Disable, SslMode::Require],
            Mode::Prefer => &[SslMode::Prefer, SslMode::Disable],
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => &[SslMode::Require],
        };
        let mut failed = None;
        for way in ways {
            config.ssl_mode(*way);
            let (connector, handshake) = if *way == SslMode::Disable {
                (None, None)
            } else {
                let (connector, handshake) =
                    self.tls.connector().map_err(ConnectError::Configuration)?;
                (Some(connector), Some(handshake))
            };
            let error = match session::open(&config, connector.as_ref()).await {
                Ok(session) => return Ok(session),
                Err(error) => error,
            };
            // The other way helps only where this one was the matter: the server's rules for this
            // kind of connection (28000), or the handshake itself.
            let of_this_way = error.code().map_or_else(
                || {
                    handshake
                        .as_ref()
                        .is_some_and(|handshake| handshake.reason(&error).is_some())
                },
                |code| *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            );
            let error = self.explain_tls(host, handshake.as_deref(), error);
            if !of_this_way {
                return Err(error);
            }
            failed = Some(error);
        }
        Err(failed.unwrap_or_else(|| ConnectError::Configuration("no way to connect".to_owned())))
    }

    /// [`Self::explain`], for what TLS itself may be the reason of.
    fn explain_tls(
        &self,
        host: &Host,
        handshake: Option<&Handshake>,
        error: tokio_postgres::Error,
    ) -> ConnectError {
        let Some(handshake) = handshake.filter(|_| error.code().is_none()) else {
            return self.explain(host, error);
        };
        if let Some(reason) = handshake.reason(&error) {
            return self.refused(host, &reason, error.into());
        }
        let by_network = std::error::Error::source(&error)
            .is_some_and(|source| source.downcast_ref::<std::io::Error>().is_some());
        if self.tls.mode >= Mode::Require
            && !handshake.was_spoken()
            && !by_network
            && !error.is_closed()
        {
            let advice = "the server does not speak TLS and this sslmode demands it: set ssl = on there, or choose a weaker sslmode";
            return self.refused(host, advice, error.into());
        }
        self.explain(host, error)
    }

    fn config(&self, host: &Host, purpose: &str) -> Config {
        let mut config = Config::new();
        match &host.name {
            Name::Tcp(name) => config.host(name),
            Name::Socket(directory) => config.host_path(directory),
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
            .keepalives(self.keepalives.on)
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

    /// The password given, else the one in the password file, which is read anew each time so
    /// that a changed password needs no restart.
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

    /// Sorts an error by what can be done about it. SQLSTATEs decide, never texts.
    fn explain(&self, host: &Host, error: tokio_postgres::Error) -> ConnectError {
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
                    "it asks for a password and none is given: put it into ~/.pgpass or the database URL",
                    error.into(),
                ),
                None => self.refused(host, "spcd and this server find no way to authenticate", error.into()),
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
            "what answers there is not a Postgres that spcd can speak to; a pooler must be in session mode, or be passed by"
                .to_owned()
        } else {
            // Starting up, shutting down, out of connections, out of memory: it may pass.
            return ConnectError::Unreachable {
                target: host.to_string(),
                source: plain(error),
            };
        };
        self.refused(host, &advice, plain(error))
    }

    fn refused(&self, host: &Host, advice: &str, source: Cause) -> ConnectError {
        ConnectError::Refused {
            target: host.to_string(),
            who: format!("\"{}\" in database \"{}\"", self.user, self.dbname),
            advice: advice.to_owned(),
            source,
        }
    }
}

/// `user@host:port/dbname`: what a log may show.
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

/// A password file that others can read is not used, as in libpq.
fn read_passfile(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file is ignored because others may read it; chmod 600 it");
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
