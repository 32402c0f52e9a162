//! Checks the paths of files that a connection names.

use crate::pattern::Pattern;
use crate::secret::masked;

/// Hosts from which Steampipe's plugins fetch files without a scheme.
const HOSTS: [&str; 4] = ["bitbucket.org/", "git@", "github.com/", "gitlab.com/"];

/// Returns the message and hint for an invalid list of paths or patterns of paths.
pub(super) fn invalid_paths(paths: &[String]) -> Option<(String, &'static str)> {
    if paths.is_empty() {
        return Some((
            "no path is given".into(),
            "write `paths = [\"data/*.csv\"]`",
        ));
    }
    if paths.iter().all(|path| path.ends_with(".gz")) {
        return Some((
            "files packed with gzip are not supported here".into(),
            "unpack them: the server reads the files itself",
        ));
    }
    paths.iter().find_map(|path| {
        let is_remote = path.contains("://")
            || path.contains("::")
            || HOSTS.iter().any(|host| path.starts_with(host));
        if is_remote {
            return Some((
                format!("remote files are not supported here: `{}`", plain(path)),
                "fetch the files to the server's host, and name the copies",
            ));
        }
        if path.starts_with('~') && !path.starts_with("~/") {
            let message = format!("`~` of another user is not supported: `{}`", plain(path));
            return Some((
                message,
                "write the whole path, or `~/…` for the home of spcd's user",
            ));
        }
        if path.is_empty() || path.contains('\0') {
            return Some((
                "this is not a path".into(),
                "write `paths = [\"data/*.csv\"]`",
            ));
        }
        let broken = (path.split('/')).find_map(|part| Pattern::new(part).err());
        broken.map(|error| {
            (
                format!("{error}: `{}`", plain(path)),
                "write `\\\\` before a character to match it literally",
            )
        })
    })
}

/// Returns a path for a message: without password and query, on one line.
fn plain(path: &str) -> String {
    // A password may contain any separator of a URL.
    let masked = masked(path);
    let path = masked.split(['?', '#']).next().unwrap_or(&masked);
    let path = match path.split_once("://") {
        Some((scheme, rest)) => {
            let (host, file) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
            format!("{scheme}://{host}/{file}")
        }
        None => path.to_owned(),
    };
    path.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::invalid_paths;

    fn message(paths: &[&str]) -> String {
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        invalid_paths(&paths)
            .map(|(message, _)| message)
            .unwrap_or_default()
    }

    #[test]
    fn paths_on_this_host_are_fine() {
        for path in ["a.csv", "/x/**/*.csv", "[ab]?.csv", "a:b.csv", "a b.csv"] {
            assert_eq!(message(&[path]), "");
        }
        assert_eq!(message(&["*.csv", "*.csv.gz"]), "");
    }

    #[test]
    fn what_cannot_be_read_here_is_refused_in_clear_words() {
        let gzip = "files packed with gzip are not supported here";
        assert_eq!(message(&["*.csv.gz"]), gzip);
        for (path, shown) in [
            (
                "https://me:secret@x.com/a.csv?token=1",
                "https://x.com/a.csv",
            ),
            ("s3::https://b/a.csv", "s3::https://b/a.csv"),
            (
                "git::https://me:sec/ret@x.com/a.csv",
                "git::https://x.com/a.csv",
            ),
            ("github.com/me/it//*.csv", "github.com/me/it//*.csv"),
        ] {
            let expected = format!("remote files are not supported here: `{shown}`");
            assert_eq!(message(&["a.csv", path]), expected);
        }
        assert_eq!(message(&["~/a.csv"]), "");
        let expected = "`~` of another user is not supported: `~ada/a.csv`";
        assert_eq!(message(&["~ada/a.csv"]), expected);
        assert!(message(&["a[.csv"]).starts_with("this pattern has a `[`"));
        assert_eq!(message(&[""]), "this is not a path");
        assert_eq!(message(&[]), "no path is given");
    }
}
