//! Connection parameters as libpq understands them: a URL or keywords, then the service file,
//! the environment and the built-in defaults, in that order of precedence.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Parameters that have an effect here.
const USED: &[&str] = &[
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "options",
    "passfile",
    "password",
    "port",
    "service",
    "servicefile",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Parameters of libpq that are accepted and change nothing: what they ask for is either always
/// so here or only a preference.
const HARMLESS: &[&str] = &[
    "application_name",
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "requiressl",
    "sslcertmode",
    "sslcompression",
    "sslsni",
];

/// Parameters of libpq that ask for a protection which would be missing: refusing them is the
/// only honest answer.
const UNSUPPORTED: &[&str] = &[
    "replication",
    "require_auth",
    "requirepeer",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcrl",
    "sslcrldir",
    "sslpassword",
];

/// libpq's environment variables, for the parameters used here.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGDATABASE", "dbname"),
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGLOADBALANCEHOSTS", "load_balance_hosts"),
    ("PGOPTIONS", "options"),
    ("PGPASSFILE", "passfile"),
    ("PGPASSWORD", "password"),
    ("PGPORT", "port"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGUSER", "user"),
];

/// Parameter values by name. An empty value is an unset one, as in libpq.
pub type Params = BTreeMap<String, String>;

/// What is outside the program, handed in so that tests decide it.
pub struct Surroundings<'a> {
    /// An environment variable; empty ones are unset.
    pub var: &'a dyn Fn(&str) -> Option<String>,
    /// The home directory of the effective user.
    pub home: Option<PathBuf>,
}

impl Surroundings<'_> {
    fn var(&self, name: &str) -> Option<String> {
        (self.var)(name).filter(|value| !value.is_empty())
    }
}

/// Reads a URL (`postgres://…`), a keyword string (`host=… dbname=…`) or a bare database name.
///
/// # Errors
/// What is wrong with it and how it is written, without any value.
pub fn parse(text: &str) -> Result<Params, String> {
    if let Some(scheme) = other_scheme(text) {
        return Err(format!(
            "`{scheme}://` is not the URL of a Postgres (postgresql://…); what is elsewhere is a \
             source, and belongs into a .spc file"
        ));
    }
    let params = match split_scheme(text) {
        Some(rest) => parse_url(rest)?,
        None if text.contains('=') => parse_keywords(text)?,
        None => Params::from([("dbname".to_owned(), text.trim().to_owned())]),
    };
    check(&params)?;
    Ok(params)
}

/// Adds what the service file, the environment and libpq's defaults say where `params` is silent.
///
/// # Errors
/// A service that is named but not defined, or a service file that cannot be used.
pub fn complete(mut params: Params, around: &Surroundings<'_>) -> Result<Params, String> {
    params.retain(|_, value| !value.is_empty());
    // A service beats the environment: naming it is the more deliberate act.
    let service = params.remove("service").or_else(|| around.var("PGSERVICE"));
    if let Some(service) = service {
        for (name, value) in service_entries(&service, &params, around)? {
            params.entry(name).or_insert(value);
        }
    }
    for (variable, name) in ENVIRONMENT {
        if let Some(value) = around.var(variable) {
            params.entry((*name).to_owned()).or_insert(value);
        }
    }
    if let Some(home) = &around.home {
        let postgresql = home.join(".postgresql");
        for (name, path) in [
            ("passfile", home.join(".pgpass")),
            ("sslrootcert", postgresql.join("root.crt")),
        ] {
            if path.exists() {
                params
                    .entry(name.to_owned())
                    .or_insert_with(|| path.display().to_string());
            }
        }
        let (cert, key) = (
            postgresql.join("postgresql.crt"),
            postgresql.join("postgresql.key"),
        );
        if !params.contains_key("sslcert")
            && !params.contains_key("sslkey")
            && cert.exists()
            && key.exists()
        {
            params.insert("sslcert".to_owned(), cert.display().to_string());
            params.insert("sslkey".to_owned(), key.display().to_string());
        }
    }
    check(&params)?;
    Ok(params)
}

/// The password that a password file holds for one server, as libpq looks it up: the first line
/// whose fields all match. `host` is `localhost` for a Unix socket in the default directory.
pub fn passfile_lookup(
    text: &str,
    host: &str,
    port: u16,
    dbname: &str,
    user: &str,
) -> Option<String> {
    let port = port.to_string();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let fields = split_passfile_line(line.trim_end_matches('\r'));
            <[String; 5]>::try_from(fields).ok()
        })
        .find(|[h, p, d, u, _]| {
            [(h, host), (p, port.as_str()), (d, dbname), (u, user)]
                .iter()
                .all(|(field, wanted)| *field == "*" || field == wanted)
        })
        .map(|[_, _, _, _, password]| password)
}

/// A parameter that has a fixed set of values.
///
/// # Errors
/// Another value, with those that there are.
pub fn choice<T: Copy>(
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

/// A parameter that is a whole number.
///
/// # Errors
/// When it is not.
pub fn number(params: &Params, name: &str) -> Result<Option<u64>, String> {
    params
        .get(name)
        .filter(|text| !text.is_empty())
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|_| format!("{name} is not a whole number"))
        })
        .transpose()
}

/// Four fields and the password: `\` keeps the next character, the password is the rest of the line.
fn split_passfile_line(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() == 5;
        match c {
            '\\' => push(&mut fields, chars.next().unwrap_or('\\')),
            ':' if !last => fields.push(String::new()),
            c => push(&mut fields, c),
        }
    }
    fields
}

fn push(fields: &mut [String], c: char) {
    if let Some(field) = fields.last_mut() {
        field.push(c);
    }
}

fn split_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
}

/// Returns the scheme of a URL that is not one of Postgres.
fn other_scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.trim_start().split_once("://")?;
    let is_scheme = !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric());
    (is_scheme && split_scheme(text).is_none()).then_some(scheme)
}

fn check(params: &Params) -> Result<(), String> {
    for (name, value) in params {
        let name = name.as_str();
        if value.contains('\0') {
            return Err(format!(
                "the connection parameter \"{name}\" contains a NUL character"
            ));
        }
        if UNSUPPORTED.contains(&name) {
            return Err(format!(
                "the connection parameter \"{name}\" is not supported by spcd; what it protects against would go unchecked, so it is refused"
            ));
        }
        if name == "gssencmode" {
            if value == "require" {
                return Err(
                    "gssencmode=require is not supported by spcd; use TLS (sslmode=verify-full)"
                        .to_owned(),
                );
            }
            continue;
        }
        if !USED.contains(&name) && !HARMLESS.contains(&name) {
            return Err(format!("there is no connection parameter \"{name}\""));
        }
    }
    Ok(())
}

/// `[user[:password]@][host][:port][,…][/dbname][?name=value[&…]]`, the scheme taken off.
fn parse_url(rest: &str) -> Result<Params, String> {
    let mut params = Params::new();
    let whole = rest;
    let (rest, query) = rest
        .split_once('?')
        .map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, path) = rest
        .split_once('/')
        .map_or((rest, ""), |(authority, path)| (authority, path));
    let (credentials, hosts) = match authority.split_once('@') {
        Some((credentials, hosts)) => (Some(credentials), hosts),
        None => (None, authority),
    };
    // A special character in a password ends it too early, and its rest would be taken for a port
    // or a parameter and shown in that error.
    if hosts.contains('@') || (credentials.is_none() && whole.contains('@')) {
        return Err("the database URL holds an @ where none is expected; write @ / ? : inside the user, the password or a value as %40 %2F %3F %3A".to_owned());
    }
    if let Some(credentials) = credentials {
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        set(&mut params, "user", decode(user, "user")?);
        set(&mut params, "password", decode(password, "password")?);
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = split_port(host)?;
        names.push(decode(name, "host")?);
        ports.push(port.to_owned());
    }
    set(&mut params, "host", join(&names));
    set(&mut params, "port", join(&ports));
    set(&mut params, "dbname", decode(path, "dbname")?);
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            "the database URL holds a parameter without a value after the ?; write ?name=value&name=value".to_owned()
        })?;
        let name = decode(name, "parameter name")?;
        let value = decode(value, &name)?;
        // As libpq: what JDBC calls it.
        if name == "ssl" && value == "true" {
            set(&mut params, "sslmode", "require".to_owned());
        } else {
            params.insert(name, value);
        }
    }
    Ok(params)
}

fn set(params: &mut Params, name: &str, value: String) {
    if !value.is_empty() {
        params.insert(name.to_owned(), value);
    }
}

/// Several hosts' values; all empty is unset.
fn join(values: &[String]) -> String {
    if values.iter().all(String::is_empty) {
        String::new()
    } else {
        values.join(",")
    }
}

/// A host and its port; an IPv6 address stands in brackets.
fn split_port(host: &str) -> Result<(&str, &str), String> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(|| {
            "the database URL holds a [ without its ]; write IPv6 addresses as [::1]".to_owned()
        })?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if rest.is_empty() => Ok((address, "")),
            None => Err("the database URL holds text between an IPv6 address and its port; write [::1]:5432".to_owned()),
        };
    }
    match host.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(
            "the database URL holds an IPv6 address without brackets; write it as [::1]".to_owned(),
        ),
        Some((name, port)) => Ok((name, port)),
        None => Ok((host, "")),
    }
}

/// Percent-decoding; `part` names the place in an error.
fn decode(text: &str, part: &str) -> Result<String, String> {
    let wrong = || {
        format!(
            "the database URL's {part} is not percent-encoded UTF-8; write a % as %25, and other special characters likewise"
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || {
                rest.next()
                    .and_then(|b| char::from(b).to_digit(16))
                    .ok_or_else(wrong)
            };
            let (high, low) = (digit()?, digit()?);
            bytes.push(u8::try_from(high * 16 + low).map_err(|_| wrong())?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// `name = value` pairs; values with spaces stand in single quotes, `\` keeps the next character.
fn parse_keywords(text: &str) -> Result<Params, String> {
    let mut params = Params::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(params);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(format!(
                "the connection string has no = after {}; write name=value pairs, with values that contain spaces in single quotes, or a URL: postgres://user@host/dbname",
                // What stands here may be the tail of an unquoted password.
                if USED.contains(&name.as_str()) {
                    format!("\"{name}\"")
                } else {
                    "a word".to_owned()
                }
            ));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        if chars.next_if_eq(&'\'').is_some() {
            loop {
                match chars.next() {
                    Some('\'') => break,
                    Some('\\') => value.extend(chars.next()),
                    Some(c) => value.push(c),
                    None => {
                        return Err(format!(
                            "the connection string's value of \"{name}\" has no closing quote"
                        ));
                    }
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                if c == '\\' {
                    value.extend(chars.next());
                } else {
                    value.push(c);
                }
            }
        }
        params.insert(name, value);
    }
}

/// The entries of one service: the user's file if it has the service, else the system's.
fn service_entries(
    service: &str,
    params: &Params,
    around: &Surroundings<'_>,
) -> Result<Params, String> {
    let named = params
        .get("servicefile")
        .cloned()
        .or_else(|| around.var("PGSERVICEFILE"))
        .map(PathBuf::from);
    let personal = named.or_else(|| {
        around
            .home
            .as_ref()
            .map(|home| home.join(".pg_service.conf"))
    });
    let system = around
        .var("PGSYSCONFDIR")
        .map_or_else(|| PathBuf::from("/etc/postgresql-common"), PathBuf::from);
    let files: Vec<PathBuf> = personal
        .into_iter()
        .chain([system.join("pg_service.conf")])
        .collect();
    for file in &files {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(format!(
                    "cannot read the service file {}: {error}",
                    file.display()
                ));
            }
        };
        if let Some(entries) = parse_service(&text, service, file)? {
            return Ok(entries);
        }
    }
    let looked = files
        .iter()
        .map(|file| file.display().to_string())
        .collect::<Vec<_>>()
        .join(" and ");
    Err(format!(
        "the service \"{service}\" is not defined; looked for [{service}] in {looked}"
    ))
}

fn parse_service(text: &str, service: &str, file: &Path) -> Result<Option<Params>, String> {
    let mut found: Option<Params> = None;
    let mut inside = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            // The first section of that name counts, as in libpq.
            if found.is_some() {
                return Ok(found);
            }
            inside = name == service;
            if inside {
                found = Some(Params::new());
            }
        } else if inside {
            let place = || format!("{}:{number}", file.display());
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| format!("{}: a line of a service is name=value", place()))?;
            if name == "service" {
                return Err(format!(
                    "{}: a service cannot name another service",
                    place()
                ));
            }
            if let Some(found) = &mut found {
                found
                    .entry(name.to_owned())
                    .or_insert_with(|| value.to_owned());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
