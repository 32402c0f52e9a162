//! Paths that stand in a connection: they begin at the directory of its file.

/// A path on this machine, and nothing that could hold a password: no URL, no driver's own string.
pub(super) fn is_plain(text: &str) -> bool {
    text.starts_with('/') && !text.contains([':', '@', '=', '?'])
}

/// A path that begins at the directory of its file, unless it is absolute or no path (`https://…`,
/// `PG:…`).
pub(super) fn absolute(file: &str, path: &str) -> String {
    match path.contains(':') {
        true => path.to_owned(),
        false => below(file, path),
    }
}

/// A path that begins at the directory of its file, unless it is absolute or begins at a home
/// directory, which only the process that opens it knows.
pub(crate) fn below(file: &str, path: &str) -> String {
    if path.starts_with('/') || path.starts_with("~/") {
        return path.to_owned();
    }
    match file.rsplit_once('/') {
        Some((directory, _)) => format!("{directory}/{}", path.strip_prefix("./").unwrap_or(path)),
        None => path.to_owned(),
    }
}
