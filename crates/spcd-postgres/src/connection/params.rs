//! libpq's connection parameters, from a URL or keywords, the service file, the environment and the
//! built-in defaults, in this order of precedence.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use spcd_core::conninfo;

/// Parameters that spcd implements.
const SUPPORTED: &[&str] = &[
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

/// Parameters of libpq that are accepted without effect: spcd always does what they request, or they
/// are only a preference.
const IGNORED: &[&str] = &[
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

/// Parameters of libpq that are refused, since the protection that they request would be missing.
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

/// libpq's environment variables and their parameters.
const ENVIRONMENT_VARIABLES: &[(&str, &str)] = &[
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

/// Parameter values by name. As in libpq, an empty value means unset.
pub type Params = BTreeMap<String, String>;

/// Environment of the process, which tests replace.
pub struct Environment<'a> {
    /// Returns an environment variable. An empty value means unset.
    pub var: &'a dyn Fn(&str) -> Option<String>,
    /// Home directory of the effective user.
    pub home: Option<PathBuf>,
}

impl Environment<'_> {
    fn var(&self, name: &str) -> Option<String> {
        (self.var)(name).filter(|value| !value.is_empty())
    }
}

/// Parses a URL (`postgres://…`), a keyword string (`host=… dbname=…`) or a bare database name.
///
/// # Errors
/// Syntax errors. The text contains no values.
pub fn parse(text: &str) -> Result<Params, String> {
    if let Some(scheme) = other_scheme(text) {
        return Err(format!(
            "`{scheme}://` is not the URL of a Postgres (postgresql://…): configure other sources in a \
             .spc file"
        ));
    }
    let params = match conninfo::is_url(text) || text.contains('=') {
        true => (conninfo::parse(text).map_err(|error| error.to_string())?)
            .into_iter()
            .collect(),
        false => Params::from([("dbname".to_owned(), text.trim().to_owned())]),
    };
    check(&params)?;
    Ok(params)
}

/// Returns those of the options of a foreign server that are libpq's.
///
/// # Errors
/// An option that spcd does not implement.
pub fn of_connection(options: impl Iterator<Item = (String, String)>) -> Result<Params, String> {
    let is_known = |name: &str| {
        [SUPPORTED, IGNORED, UNSUPPORTED]
            .iter()
            .any(|list| list.contains(&name))
    };
    let params: Params = options.filter(|(name, _)| is_known(name)).collect();
    check(&params)?;
    Ok(params)
}

/// Adds parameters that are missing, from the service file, the environment and libpq's defaults.
///
/// # Errors
/// A service that is named but not defined, or a service file that cannot be used.
pub fn complete(mut params: Params, environment: &Environment<'_>) -> Result<Params, String> {
    params.retain(|_, value| !value.is_empty());
    // As in libpq, a service takes precedence over the environment.
    let service = params
        .remove("service")
        .or_else(|| environment.var("PGSERVICE"));
    if let Some(service) = service {
        for (name, value) in service_entries(&service, &params, environment)? {
            params.entry(name).or_insert(value);
        }
    }
    for (variable, name) in ENVIRONMENT_VARIABLES {
        if let Some(value) = environment.var(variable) {
            params.entry((*name).to_owned()).or_insert(value);
        }
    }
    if let Some(home) = &environment.home {
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

/// Returns the password from the first line of a password file whose fields all match, as libpq does.
/// `host` is `localhost` for a Unix socket in the default directory.
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
                .all(|(field, value)| *field == "*" || field == value)
        })
        .map(|[_, _, _, _, password]| password)
}

/// Splits a line into four fields and the password, the rest of the line. `\` escapes a character.
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

/// Returns the scheme of a URL of another kind than Postgres.
fn other_scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.trim_start().split_once("://")?;
    let is_scheme = !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric());
    (is_scheme && !conninfo::is_url(text)).then_some(scheme)
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
                "the connection parameter \"{name}\" is not supported by spcd; remove it, since its protection would be missing"
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
        if !SUPPORTED.contains(&name) && !IGNORED.contains(&name) {
            return Err(format!("there is no connection parameter \"{name}\""));
        }
    }
    Ok(())
}

/// Returns the entries of a service, from the user's service file or else the system's.
fn service_entries(
    service: &str,
    params: &Params,
    environment: &Environment<'_>,
) -> Result<Params, String> {
    let named = params
        .get("servicefile")
        .cloned()
        .or_else(|| environment.var("PGSERVICEFILE"))
        .map(PathBuf::from);
    let personal = named.or_else(|| {
        environment
            .home
            .as_ref()
            .map(|home| home.join(".pg_service.conf"))
    });
    let system = environment
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
    let searched = files
        .iter()
        .map(|file| file.display().to_string())
        .collect::<Vec<_>>()
        .join(" and ");
    Err(format!(
        "the service \"{service}\" is not defined; looked for [{service}] in {searched}"
    ))
}

fn parse_service(text: &str, service: &str, file: &Path) -> Result<Option<Params>, String> {
    let mut found: Option<Params> = None;
    let mut is_in_section = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            // As in libpq, the first section of this name counts.
            if found.is_some() {
                return Ok(found);
            }
            is_in_section = name == service;
            if is_in_section {
                found = Some(Params::new());
            }
        } else if is_in_section {
            let place = || format!("{}:{number}", file.display());
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| format!("{}: a line of a service must be name=value", place()))?;
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
