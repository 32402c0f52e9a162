//! Connection parameters as typed values.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::{ChannelBinding, SslNegotiation};

use super::params::Params;
use super::session::SessionAttributes;
use super::tls::{TlsMode, TlsSettings};
use super::{DEFAULT_TCP_USER_TIMEOUT, Keepalives};

const SSL_MODES: [(&str, TlsMode); 6] = [
    ("disable", TlsMode::Disable),
    ("allow", TlsMode::Allow),
    ("prefer", TlsMode::Prefer),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];

const SSL_NEGOTIATIONS: [(&str, SslNegotiation); 2] = [
    ("postgres", SslNegotiation::Postgres),
    ("direct", SslNegotiation::Direct),
];

const CHANNEL_BINDINGS: [(&str, ChannelBinding); 3] = [
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];

const SESSION_ATTRIBUTES: [(&str, SessionAttributes); 6] = [
    ("any", SessionAttributes::Any),
    ("read-write", SessionAttributes::ReadWrite),
    ("read-only", SessionAttributes::ReadOnly),
    ("primary", SessionAttributes::Primary),
    ("standby", SessionAttributes::Standby),
    ("prefer-standby", SessionAttributes::PreferStandby),
];

/// Returns `sslmode` and the files of certificates and keys.
pub(super) fn tls(params: &Params) -> Result<TlsSettings, String> {
    let path = |name: &str| {
        let path = params.get(name).filter(|path| !path.is_empty());
        path.map(PathBuf::from)
    };
    Ok(TlsSettings {
        mode: choice(params, "sslmode", TlsMode::Prefer, &SSL_MODES)?,
        root: path("sslrootcert"),
        certificate: path("sslcert"),
        key: path("sslkey"),
    })
}

/// Returns `sslnegotiation`.
///
/// # Errors
/// `direct` with an `sslmode` that also connects without TLS.
pub(super) fn ssl_negotiation(params: &Params, mode: TlsMode) -> Result<SslNegotiation, String> {
    let default = SslNegotiation::Postgres;
    let negotiation = choice(params, "sslnegotiation", default, &SSL_NEGOTIATIONS)?;
    if negotiation == SslNegotiation::Direct && mode < TlsMode::Require {
        return Err("sslnegotiation=direct needs sslmode=require or stronger".to_owned());
    }
    Ok(negotiation)
}

pub(super) fn channel_binding(params: &Params) -> Result<ChannelBinding, String> {
    let default = ChannelBinding::Prefer;
    choice(params, "channel_binding", default, &CHANNEL_BINDINGS)
}

/// Returns `target_session_attrs`. Of several servers only one accepts writes, and the daemon
/// needs that one: so it is the default there.
pub(super) fn session_attributes(
    params: &Params,
    hosts: usize,
) -> Result<SessionAttributes, String> {
    let default = match hosts {
        0 | 1 => SessionAttributes::Any,
        _ => SessionAttributes::ReadWrite,
    };
    choice(params, "target_session_attrs", default, &SESSION_ATTRIBUTES)
}

/// Returns whether the order of the hosts is random.
pub(super) fn load_balance(params: &Params) -> Result<bool, String> {
    let choices = [("disable", false), ("random", true)];
    choice(params, "load_balance_hosts", false, &choices)
}

pub(super) fn keepalives(params: &Params) -> Result<Keepalives, String> {
    let default = Keepalives::default();
    let count = number(params, "keepalives_count")?;
    Ok(Keepalives {
        is_on: choice(
            params,
            "keepalives",
            default.is_on,
            &[("0", false), ("1", true)],
        )?,
        idle: seconds(params, "keepalives_idle", default.idle)?,
        interval: seconds(params, "keepalives_interval", default.interval)?,
        count: count
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(default.count),
    })
}

/// Returns `tcp_user_timeout`, which is in milliseconds.
pub(super) fn tcp_user_timeout(params: &Params) -> Result<Duration, String> {
    let milliseconds = number(params, "tcp_user_timeout")?;
    Ok(milliseconds.map_or(DEFAULT_TCP_USER_TIMEOUT, Duration::from_millis))
}

/// Returns a parameter that is in seconds.
pub(super) fn seconds(params: &Params, name: &str, default: Duration) -> Result<Duration, String> {
    Ok(number(params, name)?.map_or(default, Duration::from_secs))
}

/// Returns a parameter that has a fixed set of values.
///
/// # Errors
/// Another value; lists the allowed ones.
fn choice<T: Copy>(
    params: &Params,
    name: &str,
    default: T,
    choices: &[(&str, T)],
) -> Result<T, String> {
    let Some(text) = params.get(name).filter(|text| !text.is_empty()) else {
        return Ok(default);
    };
    choices
        .iter()
        .find(|(choice, _)| choice == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let known: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
            format!(
                "{name} cannot be \"{text}\"; it is one of: {}",
                known.join(", ")
            )
        })
}

/// Returns a parameter that is a whole number; 0 stands for the default, as in libpq.
///
/// # Errors
/// Another value.
fn number(params: &Params, name: &str) -> Result<Option<u64>, String> {
    params
        .get(name)
        .filter(|text| !text.is_empty())
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|_| format!("{name} is not a whole number"))
        })
        .transpose()
        .map(|number| number.filter(|number| *number > 0))
}
