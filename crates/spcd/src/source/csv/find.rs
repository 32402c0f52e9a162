//! Resolves the paths and patterns of a csv connection to files.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use spcd_core::csv;
use spcd_core::diff::TableWarning;
use spcd_core::pattern::Pattern;

use crate::files::{WatchPoint, WatchPoints};
use spcd_postgres::import::csv::file_access::FileAccessor;

/// Changes within this time may have equal timestamps; see `files.rs`.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_millis(20);

/// The files of a connection. Equal values mean equal tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundFiles {
    /// By path.
    pub files: BTreeMap<PathBuf, FileStamp>,
    /// Warnings about missing files.
    pub warnings: Vec<String>,
    /// Files that cannot be tables.
    pub left_out: Vec<TableWarning>,
    /// Error because of which the files cannot be listed.
    pub error: Option<String>,
    /// Mode, user and group of each directory.
    directories: BTreeMap<PathBuf, (u32, u32, u32)>,
}

/// Metadata that changes with the content of a file.
pub type FileStamp = [i64; 9];

/// Result of a search for the files of a connection.
#[derive(Debug, Default)]
pub struct FileSearch {
    /// The files.
    pub found: FoundFiles,
    /// Directories to watch for changes.
    pub watch_points: Vec<WatchPoint>,
    /// Whether a file changed so recently that another change could have an equal stamp.
    pub is_recent: bool,
}

/// A part of a path.
enum PathPart {
    Literal(String),
    Pattern(Pattern, bool),
    /// `**`: any directories, or none.
    AnyDirectories,
}

struct Walk {
    search: FileSearch,
    watch_points: WatchPoints,
    /// Directories with the number of matched parts, since symbolic links may form cycles.
    seen: HashSet<(u64, u64, usize)>,
    parts: Vec<PathPart>,
}

/// Finds the files of these paths and patterns. Blocks on the file system.
pub fn find_files(paths: &[String]) -> FileSearch {
    let mut walk = Walk {
        search: FileSearch::default(),
        watch_points: WatchPoints::default(),
        seen: HashSet::new(),
        parts: Vec::new(),
    };
    for path in paths {
        let path = match path.strip_prefix("~/") {
            None => PathBuf::from(path),
            Some(rest) => match std::env::home_dir().filter(|home| home.is_absolute()) {
                Some(home) => home.join(rest),
                None => {
                    let text = format!("{path}: the user who runs spcd has no home directory");
                    walk.search.found.error.get_or_insert(text);
                    continue;
                }
            },
        };
        let absolute = std::path::absolute(&path).unwrap_or(path);
        let files_before = walk.search.found.files.len();
        let warnings_before = walk.search.found.warnings_before();
        walk.seen.clear();
        walk.parts = parse_parts(&absolute.to_string_lossy());
        walk.walk(PathBuf::from("/"), 0, true);
        let found = &mut walk.search.found;
        let found_nothing =
            found.files.len() == files_before && found.warnings_before() == warnings_before;
        if found_nothing && found.error.is_none() {
            // No warning if another path has found the files already.
            let is_pattern = walk
                .parts
                .iter()
                .any(|part| !matches!(part, PathPart::Literal(_)));
            if is_pattern && walk.search.found.files.is_empty() {
                let text = format!("no file matches {}", absolute.display());
                walk.search.found.warnings.push(text);
            }
        }
    }
    walk.search.watch_points = walk.watch_points.list();
    walk.search
}

fn parse_parts(path: &str) -> Vec<PathPart> {
    let parts = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    parts
        .map(|part| match (part, Pattern::new(part)) {
            ("**", _) => PathPart::AnyDirectories,
            (_, Ok(pattern)) if part.contains(['*', '?', '[', '\\']) => {
                PathPart::Pattern(pattern, part.starts_with('.'))
            }
            _ => PathPart::Literal(part.to_owned()),
        })
        .collect()
}

impl Walk {
    /// Matches the parts from `n` on. `is_literal`: no pattern came before, so the path must exist.
    fn walk(&mut self, at: PathBuf, n: usize, is_literal: bool) {
        let Some(part) = self.parts.get(n) else {
            return;
        };
        let is_last = n + 1 == self.parts.len();
        if let PathPart::Literal(name) = part {
            let next = at.join(name);
            return match is_last {
                true => self.file(next, is_literal),
                false => self.walk(next, n + 1, is_literal),
            };
        }
        if is_literal {
            self.watch_points.way_to(&at);
        }
        let (entries, id) = match self.list(&at) {
            Ok(listed) => listed,
            // Deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_literal => return,
            Err(error) => return self.cannot_list(&at, &error),
        };
        if !self.seen.insert((id.0, id.1, n)) {
            return;
        }
        let is_hidden = |name: &str| name.starts_with('.');
        if let Some(PathPart::AnyDirectories) = self.parts.get(n) {
            match is_last {
                true => {
                    for (path, is_dir) in &entries {
                        if !is_dir
                            && !path
                                .file_name()
                                .is_some_and(|n| is_hidden(&n.to_string_lossy()))
                        {
                            self.file(path.clone(), false);
                        }
                    }
                }
                false => self.walk(at, n + 1, false),
            }
            for (path, is_dir) in entries {
                if is_dir
                    && !path
                        .file_name()
                        .is_some_and(|n| is_hidden(&n.to_string_lossy()))
                {
                    self.walk(path, n, false);
                }
            }
            return;
        }
        for (path, is_dir) in entries {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let matches = match self.parts.get(n) {
                Some(PathPart::Pattern(pattern, matches_hidden)) => {
                    pattern.matches(&name) && (*matches_hidden || !is_hidden(&name))
                }
                _ => false,
            };
            if matches && is_last && !is_dir {
                self.file(path, false);
            } else if matches && !is_last && is_dir {
                self.walk(path, n + 1, false);
            }
        }
    }

    /// Returns the sorted entries of a directory, with links resolved, and its device and inode.
    #[allow(clippy::type_complexity, reason = "read in one place")]
    fn list(&mut self, dir: &Path) -> io::Result<(Vec<(PathBuf, bool)>, (u64, u64))> {
        let real = fs::canonicalize(dir)?;
        let found = fs::metadata(&real)?;
        self.record_directory(dir, &found);
        self.watch_points.all_of(&real);
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let is_dir = kind.is_dir()
                || (kind.is_symlink() && fs::metadata(entry.path()).is_ok_and(|to| to.is_dir()));
            if kind.is_symlink() {
                self.watch_points.way_to(&entry.path());
            }
            entries.push((entry.path(), is_dir));
        }
        entries.sort();
        Ok((entries, (found.dev(), found.ino())))
    }

    fn record_directory(&mut self, dir: &Path, found: &Metadata) {
        let mode_and_owners = (found.mode(), found.uid(), found.gid());
        self.search
            .found
            .directories
            .insert(dir.to_owned(), mode_and_owners);
    }

    fn cannot_list(&mut self, dir: &Path, error: &io::Error) {
        let text = match error.kind() {
            io::ErrorKind::NotFound => format!("the directory {} is missing", dir.display()),
            io::ErrorKind::PermissionDenied => FileAccessor::current_process()
                .and_then(|me| me.missing_permission(dir))
                .unwrap_or_else(|| format!("{}: {error}", dir.display())),
            _ => format!("the directory {} cannot be read: {error}", dir.display()),
        };
        self.search.found.error.get_or_insert(text);
    }

    /// Adds a file. `is_literal`: the path has no pattern.
    fn file(&mut self, path: PathBuf, is_literal: bool) {
        let name = path.display().to_string();
        if is_literal {
            self.watch_points.way_to(&path);
            let directory = path.parent().unwrap_or(&path);
            match fs::metadata(directory) {
                Ok(found) => self.record_directory(directory, &found),
                Err(error) => return self.cannot_list(directory, &error),
            }
        }
        let found = match fs::metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return self.cannot_list(path.parent().unwrap_or(&path), &error);
            }
            Err(_) if fs::symlink_metadata(&path).is_ok() => {
                return self.leave_out(&path, format!("{name}: this link leads nowhere"));
            }
            Err(_) if is_literal => {
                return self.leave_out(&path, format!("there is no file {name}"));
            }
            // Deleted meanwhile, or a directory of the pattern has no such file.
            Err(_) => return,
        };
        if found.is_dir() && is_literal {
            return self.warn(format!(
                "{name} is a directory: write \"{name}/*.csv\" for the files in it"
            ));
        }
        if !found.is_file() {
            if !found.is_dir() {
                self.leave_out(
                    &path,
                    format!("{name} is left out: it is not a regular file"),
                );
            }
            return;
        }
        if path.to_str().is_none() {
            return self.leave_out(&path, format!("{name} is left out: its name is not UTF-8"));
        }
        if path.extension().is_some_and(|ending| ending == "gz") {
            let text = format!(
                "{name} is left out: files packed with gzip are not supported here, unpack it"
            );
            return self.leave_out(&path.with_extension(""), text);
        }
        let changed = (
            found.ctime(),
            u32::try_from(found.ctime_nsec()).unwrap_or(0),
        );
        let changed = Duration::new(u64::try_from(changed.0).unwrap_or(0), changed.1);
        let age = (SystemTime::UNIX_EPOCH + changed).elapsed();
        self.search.is_recent |= age.is_ok_and(|age| age <= TIMESTAMP_GRANULARITY);
        self.search.found.files.insert(path, stamp(&found));
    }

    fn warn(&mut self, text: String) {
        let warnings = &mut self.search.found.warnings;
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Warns of a file that would be a table.
    fn leave_out(&mut self, path: &Path, text: String) {
        let name = path.file_name().and_then(OsStr::to_str);
        let table = name.map(|name| csv::stem(name).to_owned());
        let warning = TableWarning { table, text };
        let left_out = &mut self.search.found.left_out;
        if !left_out.contains(&warning) {
            left_out.push(warning);
        }
    }
}

impl FoundFiles {
    /// Number of warnings.
    fn warnings_before(&self) -> usize {
        self.warnings.len() + self.left_out.len()
    }
}

fn stamp(found: &Metadata) -> FileStamp {
    [
        found.dev().cast_signed(),
        found.ino().cast_signed(),
        found.size().cast_signed(),
        i64::from(found.mode()),
        i64::from(found.uid()) << 32 | i64::from(found.gid()),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn dir(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "a\n1\n").unwrap();
        }
        dir
    }

    /// The files below the directory, then what else is warnings_before, with `…` for its path.
    fn found(dir: &tempfile::TempDir, paths: &[&str]) -> (Vec<String>, Vec<String>) {
        let whole: Vec<_> = (paths.iter())
            .map(|path| dir.path().join(path).display().to_string())
            .collect();
        let found = find_files(&whole).found;
        let below = |path: &PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        let left_out = found.left_out.into_iter().map(|left_out| left_out.text);
        let warnings_before = left_out.chain(found.warnings).chain(found.error);
        let here = dir.path().display().to_string();
        (
            found.files.keys().map(below).collect(),
            warnings_before
                .map(|text| text.replace(&here, "…"))
                .collect(),
        )
    }

    #[test]
    fn patterns_name_files_and_directories() {
        let dir = dir(&[
            "a.csv",
            "b.csv",
            "c.txt",
            ".h.csv",
            "sub/d.csv",
            "sub/deep/e.csv",
            ".hid/f.csv",
            "[x].csv",
        ]);
        let files = |paths: &[&str]| found(&dir, paths).0;
        assert_eq!(files(&["*.csv"]), ["[x].csv", "a.csv", "b.csv"]);
        assert_eq!(files(&["?.csv"]), ["a.csv", "b.csv"]);
        assert_eq!(files(&["[ab].*"]), ["a.csv", "b.csv"]);
        assert_eq!(files(&["\\[x\\].csv"]), ["[x].csv"]);
        assert_eq!(files(&["*/*.csv"]), ["sub/d.csv"]);
        assert_eq!(files(&[".h*"]), [".h.csv"]);
        let all = ["[x].csv", "a.csv", "b.csv", "sub/d.csv", "sub/deep/e.csv"];
        assert_eq!(files(&["**/*.csv"]), all);
        assert_eq!(files(&["**/e.csv"]), ["sub/deep/e.csv"]);
        assert_eq!(files(&["sub/**"]), ["sub/d.csv", "sub/deep/e.csv"]);
        assert_eq!(files(&["sub/**/deep/*"]), ["sub/deep/e.csv"]);
        assert_eq!(files(&["./sub/../a.csv"]), ["sub/../a.csv"]);
        assert_eq!(files(&["a.csv", "a.csv", "*a*"]), ["a.csv"]);
    }

    #[test]
    fn unusable_paths_cause_warnings() {
        let dir = dir(&["a.csv", "z.csv.gz", "sub/x"]);
        symlink("nowhere", dir.path().join("l.csv")).unwrap();
        let warnings_before = |paths: &[&str]| found(&dir, paths).1;
        assert_eq!(
            warnings_before(&["*.csv"]),
            ["…/l.csv: this link leads nowhere"]
        );
        assert_eq!(warnings_before(&["b.csv"]), ["there is no file …/b.csv"]);
        assert_eq!(warnings_before(&["*.tsv"]), ["no file matches …/*.tsv"]);
        assert_eq!(
            warnings_before(&["sub"]),
            ["… is a directory: write \"…/*.csv\" for the files in it".replace('…', "…/sub")]
        );
        assert_eq!(
            warnings_before(&["gone/*.csv"]),
            ["the directory …/gone is missing"]
        );
        assert_eq!(
            warnings_before(&["gone/a.csv"]),
            ["the directory …/gone is missing"]
        );
        assert_eq!(
            warnings_before(&["sub/**/*.csv"]),
            ["no file matches …/sub/**/*.csv"]
        );
        assert_eq!(
            warnings_before(&["a*.csv", "*.csv.gz"]),
            ["…/z.csv.gz is left out: files packed with gzip are not supported here, unpack it"]
        );
    }

    #[test]
    fn links_are_followed_and_circles_end() {
        let dir = dir(&["real/a.csv"]);
        symlink("real", dir.path().join("link")).unwrap();
        symlink("..", dir.path().join("real/up")).unwrap();
        symlink("real/a.csv", dir.path().join("b.csv")).unwrap();
        assert_eq!(found(&dir, &["link/*.csv"]).0, ["link/a.csv"]);
        assert_eq!(found(&dir, &["*.csv"]).0, ["b.csv"]);
        // Each directory once, by the first way to it.
        assert_eq!(found(&dir, &["**/a.csv"]).0, ["link/a.csv"]);
    }

    #[test]
    fn a_changed_file_changes_the_result() {
        let dir = dir(&["a.csv"]);
        let search = || find_files(&[dir.path().join("*.csv").display().to_string()]).found;
        let before = search();
        assert_eq!(before, search());
        fs::write(dir.path().join("a.csv"), "a\n12\n").unwrap();
        assert_ne!(before, search());
    }
}
