//! Resolves the paths in a connection: they are relative to the directory of its file.

/// Returns whether a text is an absolute path that cannot contain a password: no URL, no driver's
/// own string.
pub(super) fn is_local_path(text: &str) -> bool {
    text.starts_with('/') && !text.contains([':', '@', '=', '?'])
}

/// Resolves a path, unless it is a URL or a driver's string (`https://…`, `PG:…`).
pub(super) fn resolve_unless_url(file: &str, path: &str) -> String {
    match path.contains(':') {
        true => path.to_owned(),
        false => resolve(file, path),
    }
}

/// Resolves a relative path. A path in a home directory stays as it is: only the process that opens
/// it knows that directory.
pub(crate) fn resolve(file: &str, path: &str) -> String {
    if path.starts_with('/') || path.starts_with("~/") {
        return path.to_owned();
    }
    match file.rsplit_once('/') {
        Some((directory, _)) => format!("{directory}/{}", path.strip_prefix("./").unwrap_or(path)),
        None => path.to_owned(),
    }
}
