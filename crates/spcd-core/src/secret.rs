//! Text that must not be shown.

use std::fmt;

/// A text that prints as `***` whatever asks for it; the value is had only by [`Secret::expose`].
///
/// Everything a `.spc` file says is a secret unless its plugin's definition marks it public.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that hands it to the server.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Words in the name of a parameter whose value is a secret.
const SECRET_NAMES: [&str; 7] = ["pwd", "pass", "secret", "token", "key", "sig", "credential"];

/// Returns where secrets stand in a text that is none as a whole: values of parameters with telling
/// names (`PWD=…`, `?aws_access_key_secret=…`), and what stands before the `@` of a URL or of
/// `user/password@database`.
pub fn ranges(text: &str) -> Vec<std::ops::Range<usize>> {
    let ends = |c: char| c.is_whitespace() || "&;,\"'".contains(c);
    let mut found = Vec::new();
    for (at, _) in text.match_indices('=') {
        let name = text[..at].rsplit(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'));
        let name = name.into_iter().next().unwrap_or_default().to_lowercase();
        if SECRET_NAMES.iter().any(|word| name.contains(word)) {
            let value = &text[at + 1..];
            let end = value.find(ends).unwrap_or(value.len());
            found.push(at + 1..at + 1 + end);
        }
    }
    for (at, _) in text.match_indices('@') {
        let before = &text[..at];
        let mut start = before
            .rfind(|c: char| ends(c) || c == '=')
            .map_or(0, |start| start + 1);
        let is_secret = match before[start..].rfind("//") {
            // The host's part of a URL ends at the first slash.
            Some(slashes) => {
                start += slashes + 2;
                !before[start..].contains('/')
            }
            // A name alone, as in an address for mail, is no secret.
            None => {
                start += before[start..].find(':').map_or(0, |colon| colon + 1);
                before[start..].contains('/')
            }
        };
        if is_secret {
            found.push(start..at);
        }
    }
    found.retain(|range| !range.is_empty());
    found.sort_by_key(|range| range.start);
    found
}

/// Returns the parts of a secret value that a program may quote without the rest: what follows a
/// driver's prefix (`ODBC:…`, `PG:…`), and what [`ranges`] finds.
pub fn parts(value: &str) -> Vec<&str> {
    let prefix = value.split_once(':').filter(|(driver, rest)| {
        driver.len() > 1
            && driver.chars().all(|c| c.is_alphanumeric() || c == '_')
            && !rest.starts_with("//")
    });
    let rest = prefix.map(|(_, rest)| rest);
    let found = ranges(value);
    (rest.into_iter())
        .chain(found.into_iter().filter_map(|range| value.get(range)))
        .filter(|part| part.len() > 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Secret, parts, ranges};

    #[test]
    fn secrets_within_a_value_are_found() {
        for (value, secrets) in [
            ("ODBC:DRIVER=x;UID=u;PWD=hunter2", &["hunter2"][..]),
            ("ODBC:u/hunter2@dsn", &["u/hunter2"]),
            ("MYSQL:shop,user=u,password=hunter2,port=3306", &["hunter2"]),
            ("PG:host=h user=u password=hunter2 dbname=d", &["hunter2"]),
            (
                "s3::https://b/x.csv?aws_access_key_secret=hunter2&r=1",
                &["hunter2"],
            ),
            (
                "git::https://user:hunter2@host/x.git//*.csv",
                &["user:hunter2"],
            ),
            ("/data/*.csv", &[]),
            ("https://example.org/a@b.csv", &[]),
            ("someone@example.org", &[]),
        ] {
            let found: Vec<&str> = ranges(value).into_iter().map(|r| &value[r]).collect();
            assert_eq!(found, secrets, "{value}");
        }
        assert_eq!(
            parts("ODBC:DRIVER=x;PWD=hunter2"),
            ["DRIVER=x;PWD=hunter2", "hunter2"]
        );
        assert_eq!(parts("https://example.org"), [""; 0]);
    }

    #[test]
    fn a_secret_shows_nothing() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
    }
}
