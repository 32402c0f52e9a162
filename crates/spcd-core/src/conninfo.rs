//! Parses libpq's connection strings: `name = value` pairs, or a URL.

/// Error of a connection string. It contains no part of the string, which may be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConninfoError {
    /// A keyword without a value.
    #[error(
        "the connection string has a word without `=`; write name=value pairs, with values that \
         contain spaces in single quotes, or a URL: postgresql://user@host/dbname"
    )]
    MissingEqual,
    /// A single quote that opens a value.
    #[error("the connection string has a quote without its closing quote")]
    OpenQuote,
    /// A parameter of a URL without a value.
    #[error("the URL holds a parameter without a value after the ?; write ?name=value&name=value")]
    MissingValue,
    /// The part of a URL that cannot be decoded.
    #[error(
        "the URL's {0} is not percent-encoded UTF-8; write a % as %25, and other special \
         characters likewise"
    )]
    BadPercent(&'static str),
    /// A special character in the user, the password or a value.
    #[error(
        "the URL holds an @ where none is expected; write @ / ? : inside the user, the password or \
         a value as %40 %2F %3F %3A"
    )]
    StrayAt,
    /// An address without its closing bracket.
    #[error("the URL holds a [ without its ]; write IPv6 addresses as [::1]")]
    OpenBracket,
    /// An IPv6 address without brackets.
    #[error("the URL holds an IPv6 address without brackets; write it as [::1]")]
    NoBrackets,
    /// Text after the closing bracket of an address that is not a port.
    #[error("the URL holds text between an IPv6 address and its port; write [::1]:5432")]
    AfterBracket,
}

/// Returns whether a text is a Postgres URL.
pub fn is_url(text: &str) -> bool {
    without_scheme(text).is_some()
}

/// Returns the parameters of a connection string in their order. A parameter may occur again: the
/// last one counts. Those without a value in a URL are left out.
///
/// # Errors
/// The problem and the correct syntax, without any value.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    match without_scheme(text) {
        Some(rest) => parse_url(rest),
        None => parse_pairs(text),
    }
}

fn without_scheme(text: &str) -> Option<&str> {
    let text = text.trim();
    ["postgresql://", "postgres://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
}

/// Parses pairs. Values with spaces are in single quotes; `\` escapes the next character.
fn parse_pairs(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(ConninfoError::MissingEqual)?;
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(ConninfoError::MissingEqual);
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
            return Err(ConninfoError::OpenQuote);
        }
        parameters.push((name.to_owned(), value));
        rest = after[end.unwrap_or(after.len())..].trim_start();
    }
    Ok(parameters)
}

/// Parses `[user[:password]@][host][:port][,…][/dbname][?name=value[&…]]`, without the scheme.
fn parse_url(url: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let (rest, query) = url.split_once('?').unwrap_or((url, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, hosts) = match authority.split_once('@') {
        Some((credentials, hosts)) => (Some(credentials), hosts),
        None => (None, authority),
    };
    // An unescaped special character in a password ends it too early: the rest would be taken for a
    // port or a parameter, and shown.
    if hosts.contains('@') || (credentials.is_none() && url.contains('@')) {
        return Err(ConninfoError::StrayAt);
    }
    let credentials = credentials.unwrap_or_default();
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = split_port(host)?;
        names.push(decode(name, "host")?);
        ports.push(decode(port, "port")?);
    }
    let mut parameters: Vec<(String, String)> = [
        ("user", decode(user, "user")?),
        ("password", decode(password, "password")?),
        ("host", join(&names)),
        ("port", join(&ports)),
        ("dbname", decode(dbname, "dbname")?),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(ConninfoError::MissingValue)?;
        let (mut name, mut value) = (decode(name, "parameter")?, decode(value, "parameter")?);
        // JDBC's spelling, which libpq accepts too.
        if name == "ssl" && value == "true" {
            (name, value) = ("sslmode".to_owned(), "require".to_owned());
        }
        parameters.push((name, value));
    }
    Ok(parameters)
}

/// Joins the values of several hosts; if all are empty, the parameter is unset.
fn join(values: &[String]) -> String {
    match values.iter().all(String::is_empty) {
        true => String::new(),
        false => values.join(","),
    }
}

/// Splits a host from its port; an IPv6 address is in brackets.
fn split_port(host: &str) -> Result<(&str, &str), ConninfoError> {
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(ConninfoError::OpenBracket)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if rest.is_empty() => Ok((address, "")),
            None => Err(ConninfoError::AfterBracket),
        };
    }
    match host.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(ConninfoError::NoBrackets),
        Some(split) => Ok(split),
        None => Ok((host, "")),
    }
}

/// Decodes percent-encoding; `part` names the place in an error.
fn decode(text: &str, part: &'static str) -> Result<String, ConninfoError> {
    let wrong = || ConninfoError::BadPercent(part);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let decoded =
            (digit().zip(digit())).and_then(|(high, low)| (high * 16 + low).try_into().ok());
        bytes.push(decoded.ok_or_else(wrong)?);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::{ConninfoError, parse};

    fn text(string: &str) -> String {
        let parameters = parse(string).unwrap();
        parameters
            .iter()
            .map(|(name, value)| format!("{name}={value};"))
            .collect()
    }

    #[test]
    fn pairs_have_quotes_and_escapes() {
        for (string, expected) in [
            (
                "host=db port = 5433\tpassword='a \\'b\\\\ ' user=a\\ b dbname=''",
                "host=db;port=5433;password=a 'b\\ ;user=a b;dbname=;",
            ),
            ("host = h dbname=d", "host=h;dbname=d;"),
            (
                r"user='a b\'c' password=x\ y port=1",
                "user=a b'c;password=x y;port=1;",
            ),
        ] {
            assert_eq!(text(string), expected);
        }
    }

    #[test]
    fn urls_are_split_and_decoded() {
        for (string, expected) in [
            ("postgres://", ""),
            ("postgresql://localhost", "host=localhost;"),
            (
                "postgresql://me:p%40ss%3a@db:5433,[::1]/shop%20x?sslmode=require&ssl=true",
                "user=me;password=p@ss:;host=db,::1;port=5433,;dbname=shop x;sslmode=require;sslmode=require;",
            ),
            (
                "postgres://a:1,b,[::1]:3/d",
                "host=a,b,::1;port=1,,3;dbname=d;",
            ),
            (
                "postgres:///shop?host=/run/postgresql&port=7",
                "dbname=shop;host=/run/postgresql;port=7;",
            ),
            ("postgres://%2Frun%2Fpg/d", "host=/run/pg;dbname=d;"),
            ("postgres://h/?ssl=true", "host=h;sslmode=require;"),
            (
                "postgres://h?sslmode=verify-full",
                "host=h;sslmode=verify-full;",
            ),
        ] {
            assert_eq!(text(string), expected, "{string}");
        }
    }

    #[test]
    fn errors_name_the_place_and_never_a_value() {
        for (string, expected) in [
            ("host", ConninfoError::MissingEqual),
            ("password=hunter2 hunter2", ConninfoError::MissingEqual),
            ("password='hunter2", ConninfoError::OpenQuote),
            ("postgres://h/d?hunter2", ConninfoError::MissingValue),
            (
                "postgres://a:%zz@b/c",
                ConninfoError::BadPercent("password"),
            ),
            (
                "postgres://a:%e9@b/c",
                ConninfoError::BadPercent("password"),
            ),
            ("postgres://a@b/%1", ConninfoError::BadPercent("dbname")),
            ("postgres://u:hunter2@x@h/d", ConninfoError::StrayAt),
            ("postgres://u:x/hunter2@h/d", ConninfoError::StrayAt),
            ("postgres://u:x?hunter2=1@h/d", ConninfoError::StrayAt),
            ("postgres://[::1/c", ConninfoError::OpenBracket),
            ("postgres://::1/d", ConninfoError::NoBrackets),
            ("postgres://[::1]hunter2/d", ConninfoError::AfterBracket),
        ] {
            let error = parse(string).unwrap_err();
            assert_eq!(error, expected, "{string}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
