//! Why a source does not answer, and what to do about it.

/// What stands between us and a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The way to it by ssh is not open.
    Tunnel,
    /// Its host's name means nothing.
    Dns,
    /// Nobody listens there, or there is no way.
    Refused,
    /// No answer came in time.
    Timeout,
    /// No agreement about encryption or certificates.
    Tls,
    /// The credentials are not accepted.
    Authentication,
    /// They are, and allow too little.
    Permission,
    /// The database or schema is not there.
    WrongDatabase,
    /// What could not be told apart.
    Other,
}

impl Kind {
    /// All of them.
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

    /// In a few words.
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

    /// What to do about it.
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::Tunnel => {
                "see that `ssh` gets in there from this machine, as the user that runs spcd, with what \
                 the block `ssh` says"
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
            Self::Tls => {
                "compare what the source offers with `sslmode` and the certificates that are given"
            }
            Self::Authentication => {
                "check `user` and `password`, and what the source lets in from the hub's server; it \
                 is not tried again until they change or somebody says `spcd reconnect`"
            }
            Self::Permission => "let the user connect to the database and read its schema",
            Self::WrongDatabase => "check the names of the database and of the schema",
            Self::Other => return None,
        })
    }
}

/// The SQLSTATE that stands for a way by ssh that is not open.
pub const NO_TUNNEL: &str = "SP020";

/// What the texts of libraries say where there is no code: the first line that fits counts. In lower
/// case, as the libraries say it in English; what is in another language is [`Kind::Other`].
///
/// The server that we talk to is the hub. What stands between it and a source is told by the wrapper,
/// and most of them pass on a text with a code that only means "no connection". Nothing is decided by
/// it but the hint, and that credentials which were refused are not tried again.
const SAYS: &[(&str, Kind)] = &[
    // Encryption first: that a handshake failed says more than that the connection did.
    ("certificate", Kind::Tls),
    ("ssl error", Kind::Tls),
    ("ssl connection", Kind::Tls),
    ("does not support ssl", Kind::Tls),
    ("tls/ssl", Kind::Tls),
    ("ssl is required", Kind::Tls),
    ("using insecure transport", Kind::Tls),
    ("sslmode value", Kind::Tls),
    // Names.
    ("could not translate host name", Kind::Dns),
    ("unknown server host", Kind::Dns),
    ("unknown mysql server host", Kind::Dns),
    ("name or service not known", Kind::Dns),
    ("could not resolve host", Kind::Dns),
    ("unknown host machine name", Kind::Dns),
    // Credentials. An entry that is missing in pg_hba.conf may be for want of encryption, too.
    ("no encryption", Kind::Tls),
    ("authentication failed", Kind::Authentication),
    ("no pg_hba.conf entry", Kind::Authentication),
    ("pg_hba.conf rejects", Kind::Authentication),
    ("no password supplied", Kind::Authentication),
    ("password is required", Kind::Authentication),
    ("is not permitted to log in", Kind::Authentication),
    ("login failed", Kind::Authentication),
    ("login incorrect", Kind::Authentication),
    // "Access denied for user ''@'' to database ''" is a matter of rights, without the rest not.
    ("'' to database", Kind::Permission),
    ("access denied", Kind::Authentication),
    // Rights and names over there.
    ("permission denied", Kind::Permission),
    ("unknown database", Kind::WrongDatabase),
    ("cannot open database", Kind::WrongDatabase),
    ("is not present on foreign server", Kind::WrongDatabase),
    // No answer.
    ("timeout expired", Kind::Timeout),
    ("timed out", Kind::Timeout),
    ("did not answer", Kind::Timeout),
    ("no answer", Kind::Timeout),
    ("(110)", Kind::Timeout),
    ("system error: 110", Kind::Timeout),
    // Nobody there.
    ("connection refused", Kind::Refused),
    ("no route to host", Kind::Refused),
    ("network is unreachable", Kind::Refused),
    ("no such file or directory", Kind::Refused),
    ("(111)", Kind::Refused),
    // What a library that connects without waiting was doing when it was refused.
    ("(115)", Kind::Refused),
    ("(113)", Kind::Refused),
    ("server has gone away", Kind::Refused),
    ("lost connection to", Kind::Refused),
    ("closed the connection unexpectedly", Kind::Refused),
    ("unavailable or does not exist", Kind::Refused),
];

/// What stands between us and a source that failed with this SQLSTATE and text.
pub fn kind(code: &str, text: &str) -> Kind {
    match code {
        NO_TUNNEL => return Kind::Tunnel,
        "28000" | "28P01" => return Kind::Authentication,
        // postgres_fdw's "password is required".
        "2F003" => return Kind::Authentication,
        "3D000" | "3F000" | "HV00Q" => return Kind::WrongDatabase,
        "42501" => return Kind::Permission,
        // We stopped it ourselves, since it took too long.
        "57014" => return Kind::Timeout,
        _ => {}
    }
    let text = without_names(text).to_lowercase();
    // `database "x" does not exist`, `role "x" does not exist`.
    for (what, kind) in [
        ("database", Kind::WrongDatabase),
        ("role", Kind::Authentication),
    ] {
        if text.contains(&format!("{what} \"\" does not exist")) {
            return kind;
        }
    }
    let found = SAYS.iter().find(|(part, _)| text.contains(part));
    found.map_or(Kind::Other, |(_, kind)| *kind)
}

/// A text without what stands in quotes: names are anybody's to choose.
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
                // An apostrophe inside a word (`can't`) opens nothing.
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
    use super::{Kind, kind, without_names};

    #[test]
    fn what_libraries_say_is_understood() {
        let connection = "08001";
        for (code, text, wanted) in [
            (
                connection,
                "could not connect to server \"the source\"; could not translate host name \"nowhere.invalid\" to address: Name or service not known",
                Kind::Dns,
            ),
            (
                connection,
                "could not connect to server \"x\"; connection to server at \"127.0.0.1\", port 1 failed: Connection refused Is the server running on that host and accepting TCP/IP connections?",
                Kind::Refused,
            ),
            (
                connection,
                "could not connect to server \"x\"; connection to server at \"10.0.0.1\", port 5432 failed: timeout expired",
                Kind::Timeout,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: password authentication failed for user \"***\"",
                Kind::Authentication,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: no pg_hba.conf entry for host \"h\", user \"u\", database \"d\", no encryption",
                Kind::Tls,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: no pg_hba.conf entry for host \"h\", user \"u\", database \"d\", SSL encryption",
                Kind::Authentication,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: database \"timeout expired\" does not exist",
                Kind::WrongDatabase,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: role \"u\" does not exist",
                Kind::Authentication,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: server does not support SSL, but SSL was required",
                Kind::Tls,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: root certificate file \"/c\" does not exist",
                Kind::Tls,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: permission denied for database \"d\"; User does not have CONNECT privilege.",
                Kind::Permission,
            ),
            (
                connection,
                "connection to server at \"h\", port 1 failed: FATAL: sorry, too many clients already",
                Kind::Other,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Can't connect to server on '127.0.0.1' (111)",
                Kind::Refused,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Can't connect to server on '127.0.0.1' (115)",
                Kind::Refused,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Can't connect to server on '127.0.0.1' (110)",
                Kind::Timeout,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Unknown server host 'nowhere.invalid' (-2)",
                Kind::Dns,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Access denied for user '***'@'127.0.0.1' (using password: YES)",
                Kind::Authentication,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Access denied for user '***'@'%' to database 'shop'",
                Kind::Permission,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Unknown database 'shop'",
                Kind::WrongDatabase,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: Lost connection to server at 'handshake: reading initial communication packet', system error: 110",
                Kind::Timeout,
            ),
            (
                "HV00N",
                "failed to connect to MySQL: TLS/SSL error: self-signed certificate",
                Kind::Tls,
            ),
            (
                "HV00Q",
                "schema \"connection refused\" is not present on foreign server \"x\"",
                Kind::WrongDatabase,
            ),
            ("2F003", "password is required", Kind::Authentication),
            (
                "42501",
                "permission denied for schema pg_catalog",
                Kind::Permission,
            ),
            (
                "57014",
                "canceling statement due to user request",
                Kind::Timeout,
            ),
            (
                connection,
                "Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen",
                Kind::Other,
            ),
            ("XX000", "", Kind::Other),
        ] {
            assert_eq!(kind(code, text), wanted, "{code} {text}");
        }
    }

    #[test]
    fn names_do_not_count() {
        assert_eq!(without_names("a \"b c\" d 'e' can't"), "a \"\" d '' can't");
        assert_eq!(without_names("an open \"quote"), "an open \"quote");
    }

    #[test]
    fn all_but_the_rest_have_a_hint() {
        for kind in Kind::ALL {
            assert_eq!(kind.hint().is_none(), kind == Kind::Other, "{kind:?}");
        }
    }
}
