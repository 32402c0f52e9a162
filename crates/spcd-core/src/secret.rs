//! Secret values and the masking of secrets in texts.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

/// Text that always prints as `***`; only [`Secret::expose`] returns the value.
///
/// Every value of a `.spc` file is secret unless its plugin's definition marks it public.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// Returns the value, for the code that sends it to the server.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Text that is shown in place of a secret.
pub const MASK: &str = "***";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Words in the names of parameters whose values are secret.
const SECRET_NAMES: [&str; 7] = ["pwd", "pass", "secret", "token", "key", "sig", "credential"];

/// Returns the ranges of secrets in a text: values of parameters with telling names (`PWD=…`,
/// `?aws_access_key_secret=…`), and user information before the `@` of a URL or of
/// `user/password@database`. Where the end of a secret is ambiguous, the longer range is returned.
pub fn ranges(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (at, _) in text.match_indices('=') {
        let is_found = found.last().is_some_and(|last| at < last.end);
        if !is_found && is_secret_name(&text[..at]) {
            let start = text.len() - text[at + 1..].trim_start_matches(' ').len();
            found.push(start..start + value_length(&text[start..]));
        }
    }
    for (at, _) in text.match_indices('@') {
        // A line may consist of `@` only: the work for each is bounded.
        let mut from = at.saturating_sub(MAX_USER_INFO_BYTES);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        if let Some(start) = user_info_start(&text[from..at]) {
            found.push(from + start..at);
        }
    }
    found.retain(|range| !range.is_empty());
    found.sort_by_key(|range| range.start);
    let mut apart: Vec<Range<usize>> = Vec::new();
    for range in found {
        match apart.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    apart
}

/// Maximum number of bytes before an `@` that are searched for user information.
const MAX_USER_INFO_BYTES: usize = 2048;

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-'
}

/// Returns whether the text before a `=` ends in the name of a secret. libpq allows spaces before
/// the `=`. The first word of a line is an attribute of a block, which its definition classifies.
fn is_secret_name(before: &str) -> bool {
    let trimmed = before.trim_end_matches(' ');
    let rest = trimmed.trim_end_matches(is_name);
    let name = trimmed[rest.len()..].to_lowercase();
    let is_spaced = trimmed.len() < before.len();
    (!is_spaced || !rest.trim().is_empty()) && SECRET_NAMES.iter().any(|word| name.contains(word))
}

/// Returns the length of a parameter's value in bytes. Drivers differ in which separators end a value,
/// and a password may contain them: a value that is not quoted ends before the next `name=`.
fn value_length(value: &str) -> usize {
    for (open, close) in [("{", "}"), ("'", "'"), ("\\\"", "\\\""), ("\\'", "\\'")] {
        let Some(quoted) = value.strip_prefix(open) else {
            continue;
        };
        // A doubled or escaped quote is part of the value.
        let ends = |at: usize| {
            let (before, after) = (&quoted[..at], &quoted[at + close.len()..]);
            !after.starts_with(close) && !before.ends_with(close) && !before.ends_with('\\')
        };
        let end = quoted.match_indices(close).find(|(at, _)| ends(*at));
        return end.map_or(value.len(), |(at, _)| open.len() + at + close.len());
    }
    let next_follows = |at: usize| {
        let rest = value[at..].trim_start_matches(SEPARATORS);
        let after = rest.trim_start_matches(is_name);
        after.len() < rest.len() && after.trim_start_matches(' ').starts_with('=')
    };
    let ends = |at: usize, c: &str| match c {
        // The end of the literal in a file.
        "\"" => !value[..at].ends_with('\\'),
        // A run of separators ends the value at its first.
        _ => !value[..at].ends_with(SEPARATORS) && next_follows(at),
    };
    value
        .match_indices(|c: char| c == '"' || SEPARATORS.contains(&c))
        .find(|(at, c)| ends(*at, c))
        .map_or(value.len(), |(at, _)| at)
}

/// Characters that separate parameters.
const SEPARATORS: [char; 6] = [' ', '\t', '&', ';', ',', '\n'];

/// Returns where the user information starts in the text before an `@`; `None` if there is none.
fn user_info_start(before: &str) -> Option<usize> {
    let start = before
        .rfind(|c: char| c.is_whitespace() || c == '"')
        .map_or(0, |start| start + 1);
    if let Some(slashes) = before[start..].rfind("://") {
        let start = start + slashes + 3;
        let (host, path) = match before[start..].split_once(['/', '?', '#']) {
            Some((host, _)) => (host, true),
            None => (&before[start..], false),
        };
        // A slash inside a password makes the text before it look like a port that is not a number.
        let port = host.split_once(':').map_or("", |(_, port)| port);
        return (!path || !port.chars().all(|c| c.is_ascii_digit())).then_some(start);
    }
    let start = start + before[start..].rfind('=').map_or(0, |at| at + 1);
    let start = start + before[start..].find(':').map_or(0, |at| at + 1);
    // A name alone, as in a mail address, is not secret.
    before[start..].contains('/').then_some(start)
}

/// Returns a text with `***` in place of the secrets that [`ranges`] finds.
pub fn masked(text: &str) -> String {
    let mut shown = text.to_owned();
    for range in ranges(text).into_iter().rev() {
        shown.replace_range(range, MASK);
    }
    shown
}

/// Returns the parts of a secret value that a program may quote separately: the text after a
/// driver's prefix (`ODBC:…`, `PG:…`), and [`parts_of_public`].
pub fn parts(value: &str) -> Vec<&str> {
    let prefix = value.split_once(':').filter(|(driver, rest)| {
        driver.len() > 1
            && driver.chars().all(|c| c.is_alphanumeric() || c == '_')
            && !rest.starts_with("//")
    });
    let mut found = parts_of_public(value);
    found.extend(prefix.map(|(_, rest)| rest));
    found
}

/// Returns the secrets in a value that is public as a whole, as [`ranges`] finds them, and the
/// parts of them that a program may quote separately.
pub fn parts_of_public(value: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for range in ranges(value) {
        let secret = &value[range];
        found.push(secret);
        // The value without quotes, as the driver reads it.
        found.push(secret.trim_matches(['{', '}', '\'', '"', '\\']));
        // User and password.
        let user = secret.split_once([':', '/']);
        found.extend(user.into_iter().flat_map(|(user, rest)| [user, rest]));
        // The value as read by a driver for which a separator ends it.
        found.extend(secret.split(SEPARATORS));
    }
    let mut seen = BTreeSet::new();
    found.retain(|part| part.len() > 1 && seen.insert(*part));
    found
}

#[cfg(test)]
mod tests {
    use super::{Secret, masked, parts, parts_of_public, ranges};

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
            ("PG:host=h password='hunter 2' dbname=d", &["'hunter 2'"]),
            (r"PG:password='hun\'ter 2' dbname=d", &[r"'hun\'ter 2'"]),
            ("PG:host=h password = hunter2 dbname=d", &["hunter2"]),
            ("ODBC:UID=u;PWD={hun;}}ter,2};DSN=d", &["{hun;}}ter,2}"]),
            ("ODBC:DSN=d;PWD=hun,t'er2;UID=u", &["hun,t'er2"]),
            ("MYSQL:d,password=hun;ter 2,port=1", &["hun;ter 2"]),
            ("ODBC:u/hun,ter2@dsn", &["u/hun,ter2"]),
            ("git::https://u:hun/t,er2@host/x.git", &["u:hun/t,er2"]),
            (
                r#"host = "h password=\"hun ter\" port=1""#,
                &[r#"\"hun ter\""#],
            ),
            ("u/p@ss@dsn", &["u/p@ss"]),
            ("password_required = false", &[]),
            ("http://host:8080/a@b.csv", &[]),
            ("/data/*.csv", &[]),
            ("https://example.org/a@b.csv", &[]),
            ("someone@example.org", &[]),
        ] {
            let found: Vec<&str> = ranges(value).into_iter().map(|r| &value[r]).collect();
            assert_eq!(found, secrets, "{value}");
        }
        assert_eq!(
            parts("ODBC:DRIVER=x;PWD=hunter2"),
            ["hunter2", "DRIVER=x;PWD=hunter2"]
        );
        assert_eq!(
            parts("MYSQL:d,password='hun ter',interactive"),
            [
                "'hun ter'",
                "hun ter",
                "'hun",
                "ter'",
                "d,password='hun ter',interactive"
            ]
        );
        assert_eq!(
            parts_of_public("s3::https://u:hunter2@h"),
            ["u:hunter2", "hunter2"]
        );
        assert_eq!(parts("https://example.org"), [""; 0]);
        assert_eq!(
            masked("https://u:hunter2@h/x?sig=hunter2&r=1"),
            "https://***@h/x?sig=***&r=1"
        );
    }

    #[test]
    fn a_secret_shows_nothing() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
    }
}
