//! Which paths of files a connection may name.

use crate::pattern::Pattern;
use crate::secret::masked;

/// Where Steampipe's plugins fetch files from without a scheme.
const HOSTS: [&str; 4] = ["bitbucket.org/", "git@", "github.com/", "gitlab.com/"];

/// What is wrong with a list of paths or patterns of paths, and the way out.
pub(super) fn unfit(paths: &[String]) -> Option<(String, &'static str)> {
    if paths.is_empty() {
        return Some((
            "no path is given".into(),
            "write `paths = [\"data/*.csv\"]`",
        ));
    }
    if paths.iter().all(|path| path.ends_with(".gz")) {
        return Some((
            "files packed with gzip are not supported here".into(),
            "unpack them: the server reads them itself, as they are",
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
            let message = format!("`~` of another user means nothing here: `{}`", plain(path));
            return Some((
                message,
                "write the whole path, or `~/…` for the home of spcd's user",
            ));
        }
        if path.is_empty() || path.contains('\0') {
            return Some(("this is no path".into(), "write `paths = [\"data/*.csv\"]`"));
        }
        let broken = (path.split('/')).find_map(|part| Pattern::new(part).err());
        broken.map(|error| {
            (
                format!("{error}: `{}`", plain(path)),
                "a `\\\\` before a sign takes its meaning away",
            )
        })
    })
}

/// A path as a message may show it: without a password or a query, and on one line.
fn plain(path: &str) -> String {
    // A password may contain any of the signs that part a URL.
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
    use super::unfit;

    fn told(paths: &[&str]) -> String {
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        unfit(&paths)
            .map(|(message, _)| message)
            .unwrap_or_default()
    }

    #[test]
    fn paths_on_this_host_are_fine() {
        for path in ["a.csv", "/x/**/*.csv", "[ab]?.csv", "a:b.csv", "a b.csv"] {
            assert_eq!(told(&[path]), "");
        }
        assert_eq!(told(&["*.csv", "*.csv.gz"]), "");
    }

    #[test]
    fn what_cannot_be_read_here_is_refused_in_clear_words() {
        let gzip = "files packed with gzip are not supported here";
        assert_eq!(told(&["*.csv.gz"]), gzip);
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
            let wanted = format!("remote files are not supported here: `{shown}`");
            assert_eq!(told(&["a.csv", path]), wanted);
        }
        assert_eq!(told(&["~/a.csv"]), "");
        let wanted = "`~` of another user means nothing here: `~ada/a.csv`";
        assert_eq!(told(&["~ada/a.csv"]), wanted);
        assert!(told(&["a[.csv"]).starts_with("this pattern has a `[`"));
        assert_eq!(told(&[""]), "this is no path");
        assert_eq!(told(&[]), "no path is given");
    }
}
