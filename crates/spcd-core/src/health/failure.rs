//! Kinds of failures of a source, and hints for them.

/// Kind of failure of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The ssh tunnel is not open.
    Tunnel,
    /// DNS lookup failed.
    Dns,
    /// The connection was refused, or the host is unreachable.
    Refused,
    /// The source did not answer in time.
    Timeout,
    /// TLS or a certificate was rejected.
    Tls,
    /// Authentication was rejected.
    Authentication,
    /// The user lacks privileges.
    Permission,
    /// The database or schema does not exist.
    WrongDatabase,
    /// Any other failure.
    Other,
}

impl FailureKind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Tunnel,
        Self::Dns,
        Self::Refused,
        Self::Timeout,
        Self::Tls,
        Self::Authentication,
        Self::Permission,
        Self::WrongDatabase,
        Self::Other,
    ];

    /// Returns a short name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "ssh",
            Self::Dns => "name not found",
            Self::Refused => "connection refused",
            Self::Timeout => "no answer",
            Self::Tls => "TLS",
            Self::Authentication => "authentication",
            Self::Permission => "permission",
            Self::WrongDatabase => "wrong database",
            Self::Other => "error",
        }
    }

    /// Returns a hint: what to check.
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::Tunnel => {
                "check that `ssh` can log in from this machine as the user that runs spcd, with the \
                 settings of the block `ssh`"
            }
            Self::Dns => {
                "check the spelling of `host`: the hub's server looks the name up, not this machine"
            }
            Self::Refused => {
                "is the source running, and are `host` and `port` those it listens on, as seen from \
                 the hub's server?"
            }
            Self::Timeout => {
                "is there a firewall between the hub's server and the source, or is the source overloaded?"
            }
            Self::Tls => "check `sslmode` and the certificates against the source's TLS settings",
            Self::Authentication => {
                "check `user` and `password`, and that the source accepts them from the hub's server; \
                 spcd tries again when they change or after `spcd reconnect`"
            }
            Self::Permission => "grant the user CONNECT on the database and USAGE on its schema",
            Self::WrongDatabase => "check the names of the database and of the schema",
            Self::Other => return None,
        })
    }
}

/// SQLSTATE that stands for a closed ssh tunnel.
pub const TUNNEL_CLOSED_SQLSTATE: &str = "SP020";

/// Parts of libraries' messages, for failures without a telling SQLSTATE; the first match counts.
/// In lower case and in English; a message in another language is [`FailureKind::Other`].
///
/// The hub reports the wrapper's message, and most wrappers use one SQLSTATE for everything. The
/// match decides only the hint, and that rejected credentials are not tried again.
const MESSAGE_PATTERNS: &[(&str, FailureKind)] = &[
    // TLS first: a failed handshake says more than a failed connection.
    ("certificate", FailureKind::Tls),
    ("ssl error", FailureKind::Tls),
    ("ssl connection", FailureKind::Tls),
    ("does not support ssl", FailureKind::Tls),
    ("tls/ssl", FailureKind::Tls),
    ("ssl is required", FailureKind::Tls),
    ("using insecure transport", FailureKind::Tls),
    ("sslmode value", FailureKind::Tls),
    // Host names.
    ("could not translate host name", FailureKind::Dns),
    ("unknown server host", FailureKind::Dns),
    ("unknown mysql server host", FailureKind::Dns),
    ("name or service not known", FailureKind::Dns),
    ("could not resolve host", FailureKind::Dns),
    ("unknown host machine name", FailureKind::Dns),
    // Credentials. A missing entry in pg_hba.conf may be for lack of encryption.
    ("no encryption", FailureKind::Tls),
    ("authentication failed", FailureKind::Authentication),
    ("no pg_hba.conf entry", FailureKind::Authentication),
    ("pg_hba.conf rejects", FailureKind::Authentication),
    ("no password supplied", FailureKind::Authentication),
    ("password is required", FailureKind::Authentication),
    ("is not permitted to log in", FailureKind::Authentication),
    ("login failed", FailureKind::Authentication),
    ("login incorrect", FailureKind::Authentication),
    // "Access denied for user ''@'' to database ''" is about privileges; without the database it is
    // about credentials.
    ("'' to database", FailureKind::Permission),
    ("access denied", FailureKind::Authentication),
    // Privileges and names at the source.
    ("permission denied", FailureKind::Permission),
    ("unknown database", FailureKind::WrongDatabase),
    ("cannot open database", FailureKind::WrongDatabase),
    (
        "is not present on foreign server",
        FailureKind::WrongDatabase,
    ),
    // Time-outs.
    ("timeout expired", FailureKind::Timeout),
    ("timed out", FailureKind::Timeout),
    ("did not answer", FailureKind::Timeout),
    ("no answer", FailureKind::Timeout),
    ("(110)", FailureKind::Timeout),
    ("system error: 110", FailureKind::Timeout),
    // Refused and lost connections.
    ("connection refused", FailureKind::Refused),
    ("no route to host", FailureKind::Refused),
    ("network is unreachable", FailureKind::Refused),
    ("no such file or directory", FailureKind::Refused),
    ("(111)", FailureKind::Refused),
    // EINPROGRESS, reported by libraries that connect asynchronously.
    ("(115)", FailureKind::Refused),
    ("(113)", FailureKind::Refused),
    ("server has gone away", FailureKind::Refused),
    ("lost connection to", FailureKind::Refused),
    ("closed the connection unexpectedly", FailureKind::Refused),
    ("unavailable or does not exist", FailureKind::Refused),
];

/// Classifies the failure of a source by its SQLSTATE and message.
pub fn classify_failure(code: &str, text: &str) -> FailureKind {
    match code {
        TUNNEL_CLOSED_SQLSTATE => return FailureKind::Tunnel,
        "28000" | "28P01" => return FailureKind::Authentication,
        // postgres_fdw's "password is required".
        "2F003" => return FailureKind::Authentication,
        "3D000" | "3F000" | "HV00Q" => return FailureKind::WrongDatabase,
        "42501" => return FailureKind::Permission,
        // spcd cancelled the statement after its limit.
        "57014" => return FailureKind::Timeout,
        _ => {}
    }
    let text = without_names(text).to_lowercase();
    // `database "x" does not exist`, `role "x" does not exist`.
    for (what, kind) in [
        ("database", FailureKind::WrongDatabase),
        ("role", FailureKind::Authentication),
    ] {
        if text.contains(&format!("{what} \"\" does not exist")) {
            return kind;
        }
    }
    let found = MESSAGE_PATTERNS
        .iter()
        .find(|(part, _)| text.contains(part));
    found.map_or(FailureKind::Other, |(_, kind)| *kind)
}

/// Returns a text without the names in quotes: users choose them.
fn without_names(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut before = ' ';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match quote {
            Some(open) if c == open => {
                quote = None;
                out.push(c);
            }
            Some(_) => {}
            None => {
                // An apostrophe inside a word (`can't`) opens no quote.
                let opens = c == '"' || (c == '\'' && !before.is_alphanumeric());
                let closes = |open: char| chars.clone().any(|c| c == open);
                if opens && closes(c) {
                    quote = Some(c);
                }
                out.push(c);
            }
        }
        before = c;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{FailureKind, classify_failure, without_names};

    #[test]
    fn what_libraries_say_is_understood() {
        let connection = "08001";
        for (code, text, expected) in [
            (
                connection,
                "could not connect to server \"the source\"; could not translate host name \"nowhere.invalid\" to address: Name or service not known",
                FailureKind::Dns,
            ),
            (
                connection,
                "could not connect to server \"x\"; connection to server at \"127.0.0.1\", port 1 failed: Connection refused Is the server running on that host and accepting TCP/IP connections?",
                FailureKind::Refused,
            ),
            (
                connection,
                "could not connect to server \"x\"; connection to server at \"10.0.0.1\", port 5432 failed: timeout expired",
                FailureKind::Timeout,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: password authentication failed for user \"***\"",
                FailureKind::Authentication,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: no pg_hba.conf entry for host \"h\", user \"u\", database \"d\", no encryption",
                FailureKind::Tls,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: no pg_hba.conf entry for host \"h\", user \"u\", database \"d\", SSL encryption",
                FailureKind::Authentication,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: database \"timeout expired\" does not exist",
                FailureKind::WrongDatabase,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: role \"u\" does not exist",
                FailureKind::Authentication,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: server does not support SSL, but SSL was required",
                FailureKind::Tls,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: root certificate file \"/c\" does not exist",
                FailureKind::Tls,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: permission denied for database \"d\"; User does not have CONNECT privilege.",
                FailureKind::Permission,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: sorry, too many clients already",
                FailureKind::Other,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Can't connect to server on '127.0.0.1' (111)",
                FailureKind::Refused,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Can't connect to server on '127.0.0.1' (115)",
                FailureKind::Refused,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Can't connect to server on '127.0.0.1' (110)",
                FailureKind::Timeout,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Unknown server host 'nowhere.invalid' (-2)",
                FailureKind::Dns,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Access denied for user '***'@'127.0.0.1' (using password: YES)",
                FailureKind::Authentication,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Access denied for user '***'@'%' to database 'shop'",
                FailureKind::Permission,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Unknown database 'shop'",
                FailureKind::WrongDatabase,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Lost connection to server at 'handshake: reading initial communication packet', system error: 110",
                FailureKind::Timeout,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: TLS/SSL error: self-signed certificate",
                FailureKind::Tls,
            ),
            (
                "HV00Q",
                "schema \"connection refused\" is not present on foreign server \"x\"",
                FailureKind::WrongDatabase,
            ),
            ("2F003", "password is required", FailureKind::Authentication),
            (
                "42501",
                "permission denied for schema pg_catalog",
                FailureKind::Permission,
            ),
            (
                "57014",
                "canceling statement due to user request",
                FailureKind::Timeout,
            ),
            (
                connection,
                "Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen",
                FailureKind::Other,
            ),
            ("XX000", "", FailureKind::Other),
        ] {
            assert_eq!(classify_failure(code, text), expected, "{code} {text}");
        }
    }

    #[test]
    fn names_do_not_count() {
        assert_eq!(without_names("a \"b c\" d 'e' can't"), "a \"\" d '' can't");
        assert_eq!(without_names("an open \"quote"), "an open \"quote");
    }

    #[test]
    fn all_but_the_rest_have_a_hint() {
        for kind in FailureKind::ALL {
            assert_eq!(
                kind.hint().is_none(),
                kind == FailureKind::Other,
                "{kind:?}"
            );
        }
    }
}
