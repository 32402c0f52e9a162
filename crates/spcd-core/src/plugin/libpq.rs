//! libpq's connection strings: `key = value` pairs, or a URL.

/// Why a connection string cannot be read; never says what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadString {
    #[error("the connection string has a word without `=`")]
    NoEqual,
    #[error("the connection string has a quote that is never closed")]
    OpenQuote,
    #[error("the connection string has a `%` without two hexadecimal digits")]
    BadPercent,
    #[error("the connection string has a `[` without `]` around its address")]
    OpenBracket,
}

/// Parameters of libpq and of other drivers: a name that is none of these may be a part of a value.
const WORDS: [&str; 44] = [
    "application_name",
    "applicationname",
    "charset",
    "client_encoding",
    "connect_timeout",
    "connection_limit",
    "currentschema",
    "db",
    "database",
    "dbname",
    "encoding",
    "fallback_application_name",
    "gssdelegation",
    "host",
    "hostaddr",
    "krbsrvname",
    "loadbalancehosts",
    "max_protocol_version",
    "min_protocol_version",
    "options",
    "passfile",
    "passwd",
    "password",
    "pgbouncer",
    "pool_max_conns",
    "pool_min_conns",
    "pool_timeout",
    "port",
    "read_only",
    "replication",
    "require_auth",
    "schema",
    "search_path",
    "server",
    "socket_timeout",
    "ssl",
    "sslaccept",
    "sslcertmode",
    "sslnegotiation",
    "statement_timeout",
    "timezone",
    "uselibpqcompat",
    "user",
    "username",
];

/// Whether a parameter's name may be shown.
pub(super) fn is_word(name: &str) -> bool {
    WORDS.contains(&name.to_lowercase().as_str())
}

/// The parameters of a connection string.
pub(super) fn parameters(text: &str) -> Result<Vec<(String, String)>, BadString> {
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.trim().strip_prefix(scheme) {
            return url(rest);
        }
    }
    pairs(text)
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, BadString> {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(BadString::NoEqual)?;
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(BadString::NoEqual);
        }
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut characters = after.char_indices().skip(usize::from(quoted));
        let mut end = None;
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => value.extend(characters.next().map(|(_, next)| next)),
                '\'' if quoted => {
                    end = Some(at + 1);
                    break;
                }
                space if !quoted && space.is_whitespace() => {
                    end = Some(at);
                    break;
                }
                other => value.push(other),
            }
        }
        if quoted && end.is_none() {
            return Err(BadString::OpenQuote);
        }
        parameters.push((name.to_owned(), value));
        rest = after[end.unwrap_or(after.len())..].trim_start();
    }
    Ok(parameters)
}

fn url(rest: &str) -> Result<Vec<(String, String)>, BadString> {
    let mut parameters = Vec::new();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, password),
        None => (user, ""),
    };
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = if let Some(inner) = host.strip_prefix('[') {
            let (name, after) = inner.split_once(']').ok_or(BadString::OpenBracket)?;
            (name, after.strip_prefix(':').unwrap_or(""))
        } else {
            host.rsplit_once(':').unwrap_or((host, ""))
        };
        names.push(decoded(name)?);
        ports.push(decoded(port)?);
    }
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            parameters.push((name.to_owned(), value));
        }
    };
    add("user", decoded(user)?);
    add("password", decoded(password)?);
    let joined = |parts: Vec<String>| {
        if parts.iter().all(String::is_empty) {
            String::new()
        } else {
            parts.join(",")
        }
    };
    add("host", joined(names));
    add("port", joined(ports));
    add("dbname", decoded(database)?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(BadString::NoEqual)?;
        let (mut name, mut value) = (decoded(name)?, decoded(value)?);
        // JDBC's spelling, which libpq takes too.
        if name == "ssl" && value == "true" {
            (name, value) = ("sslmode".to_owned(), "require".to_owned());
        }
        parameters.push((name, value));
    }
    Ok(parameters)
}

fn decoded(text: &str) -> Result<String, BadString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or(BadString::BadPercent)?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| BadString::BadPercent)
}

#[cfg(test)]
mod tests {
    use super::{BadString, parameters};

    fn text(string: &str) -> String {
        let parameters = parameters(string).unwrap();
        parameters
            .iter()
            .map(|(name, value)| format!("{name}={value};"))
            .collect()
    }

    #[test]
    fn pairs_have_quotes_and_escapes() {
        assert_eq!(
            text("host=db port = 5433\tpassword='a \\'b\\\\ ' user=a\\ b dbname=''"),
            "host=db;port=5433;password=a 'b\\ ;user=a b;dbname=;"
        );
    }

    #[test]
    fn urls_are_split_and_decoded() {
        assert_eq!(
            text("postgresql://me:p%40ss@db:5433,[::1]/shop%20x?sslmode=require&ssl=true"),
            "user=me;password=p@ss;host=db,::1;port=5433,;dbname=shop x;sslmode=require;sslmode=require;"
        );
        assert_eq!(
            text("postgres:///shop?host=/run/postgresql"),
            "dbname=shop;host=/run/postgresql;"
        );
        assert_eq!(text("postgres://"), "");
    }

    #[test]
    fn what_cannot_be_read_is_said_without_saying_what_it_is() {
        for (string, expected) in [
            ("host", BadString::NoEqual),
            ("host='x", BadString::OpenQuote),
            ("postgres://a:%zz@b/c", BadString::BadPercent),
            ("postgres://[::1/c", BadString::OpenBracket),
        ] {
            assert_eq!(parameters(string), Err(expected));
        }
    }
}
