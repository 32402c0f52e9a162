//! Which files the paths of a connection mean, as the file system is now.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use spcd_core::pattern::Pattern;

use super::access::Who;
use crate::files::{Place, Places};

/// Two changes nearer to each other than this may carry the same time: see `files.rs`.
const TICK: Duration = Duration::from_millis(20);

/// The files of a connection. Two that are equal promise the same tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// By path.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// What was looked for and is no file that could be a table.
    pub warnings: Vec<String>,
    /// Why it is not known which files there are.
    pub error: Option<String>,
    /// The way into each directory: its mode and owners.
    directories: BTreeMap<PathBuf, (u32, u32, u32)>,
}

/// What tells one state of a file from another without reading it.
pub type Stamp = [i64; 9];

/// One look for the files of a connection.
#[derive(Debug, Default)]
pub struct Look {
    /// What is there.
    pub found: Found,
    /// Where a change would make another look worth while.
    pub places: Vec<Place>,
    /// A file changed just now: another change could still carry the same stamp.
    pub is_young: bool,
}

/// A part of a path.
enum Part {
    Exactly(String),
    Like(Pattern, bool),
    /// `**`: any directories, or none.
    Any,
}

struct Search {
    look: Look,
    places: Places,
    /// Directories and how much of a pattern was matched in them: links may lead in circles.
    seen: HashSet<(u64, u64, usize)>,
    parts: Vec<Part>,
}

/// Looks for the files that these paths or patterns mean. It blocks on the file system.
pub fn find(paths: &[String]) -> Look {
    let mut search = Search {
        look: Look::default(),
        places: Places::default(),
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
                    search.look.found.error.get_or_insert(text);
                    continue;
                }
            },
        };
        let absolute = std::path::absolute(&path).unwrap_or(path);
        let before = search.look.found.files.len();
        let told = search.look.found.warnings.len();
        search.seen.clear();
        search.parts = parts(&absolute.to_string_lossy());
        search.walk(PathBuf::from("/"), 0, true);
        let found = &mut search.look.found;
        let nothing = found.files.len() == before && found.warnings.len() == told;
        if nothing && found.error.is_none() {
            // One that another path has found already is no reason to warn.
            let is_pattern = search
                .parts
                .iter()
                .any(|part| !matches!(part, Part::Exactly(_)));
            if is_pattern && search.look.found.files.is_empty() {
                let text = format!("no file matches {}", absolute.display());
                search.look.found.warnings.push(text);
            }
        }
    }
    search.look.places = search.places.list();
    search.look
}

fn parts(path: &str) -> Vec<Part> {
    let parts = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    parts
        .map(|part| match (part, Pattern::new(part)) {
            ("**", _) => Part::Any,
            (_, Ok(pattern)) if part.contains(['*', '?', '[', '\\']) => {
                Part::Like(pattern, part.starts_with('.'))
            }
            _ => Part::Exactly(part.to_owned()),
        })
        .collect()
}

impl Search {
    /// `plain`: the path was spelled out up to here, so that it must be there.
    fn walk(&mut self, at: PathBuf, n: usize, plain: bool) {
        let Some(part) = self.parts.get(n) else {
            return;
        };
        let last = n + 1 == self.parts.len();
        if let Part::Exactly(name) = part {
            let next = at.join(name);
            return match last {
                true => self.file(next, plain),
                false => self.walk(next, n + 1, plain),
            };
        }
        if plain {
            self.places.way_to(&at);
        }
        let (entries, id) = match self.list(&at) {
            Ok(listed) => listed,
            // It went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !plain => return,
            Err(error) => return self.cannot_list(&at, &error),
        };
        if !self.seen.insert((id.0, id.1, n)) {
            return;
        }
        let hidden = |name: &str| name.starts_with('.');
        if let Some(Part::Any) = self.parts.get(n) {
            match last {
                true => {
                    for (path, is_dir) in &entries {
                        if !is_dir
                            && !path
                                .file_name()
                                .is_some_and(|n| hidden(&n.to_string_lossy()))
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
                        .is_some_and(|n| hidden(&n.to_string_lossy()))
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
                Some(Part::Like(pattern, dots)) => {
                    pattern.matches(&name) && (*dots || !hidden(&name))
                }
                _ => false,
            };
            if matches && last && !is_dir {
                self.file(path, false);
            } else if matches && !last && is_dir {
                self.walk(path, n + 1, false);
            }
        }
    }

    /// The entries of a directory in order, links followed, and what tells it from others.
    #[allow(clippy::type_complexity, reason = "read in one place")]
    fn list(&mut self, dir: &Path) -> io::Result<(Vec<(PathBuf, bool)>, (u64, u64))> {
        let real = fs::canonicalize(dir)?;
        let found = fs::metadata(&real)?;
        self.enters(dir, &found);
        self.places.all_of(&real);
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let is_dir = kind.is_dir()
                || (kind.is_symlink() && fs::metadata(entry.path()).is_ok_and(|to| to.is_dir()));
            if kind.is_symlink() {
                self.places.way_to(&entry.path());
            }
            entries.push((entry.path(), is_dir));
        }
        entries.sort();
        Ok((entries, (found.dev(), found.ino())))
    }

    fn enters(&mut self, dir: &Path, found: &Metadata) {
        let way = (found.mode(), found.uid(), found.gid());
        self.look.found.directories.insert(dir.to_owned(), way);
    }

    fn cannot_list(&mut self, dir: &Path, error: &io::Error) {
        let text = match error.kind() {
            io::ErrorKind::NotFound => format!("the directory {} is missing", dir.display()),
            io::ErrorKind::PermissionDenied => Who::me()
                .and_then(|me| me.lacks(dir))
                .unwrap_or_else(|| format!("{}: {error}", dir.display())),
            _ => format!("the directory {} cannot be read: {error}", dir.display()),
        };
        self.look.found.error.get_or_insert(text);
    }

    /// A file that is wanted. `plain`: by its own name.
    fn file(&mut self, path: PathBuf, plain: bool) {
        let shown = path.display().to_string();
        if plain {
            self.places.way_to(&path);
            let directory = path.parent().unwrap_or(&path);
            match fs::metadata(directory) {
                Ok(found) => self.enters(directory, &found),
                Err(error) => return self.cannot_list(directory, &error),
            }
        }
        let found = match fs::metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return self.cannot_list(path.parent().unwrap_or(&path), &error);
            }
            Err(_) if fs::symlink_metadata(&path).is_ok() => {
                return self.warn(format!("{shown}: this link leads nowhere"));
            }
            Err(_) if plain => return self.warn(format!("there is no file {shown}")),
            // It went while we looked, or a directory of the pattern has none of that name.
            Err(_) => return,
        };
        if found.is_dir() && plain {
            return self.warn(format!(
                "{shown} is a directory: write \"{shown}/*.csv\" for the files in it"
            ));
        }
        if !found.is_file() {
            if !found.is_dir() {
                self.warn(format!("{shown} is left out: it is no regular file"));
            }
            return;
        }
        if path.to_str().is_none() {
            return self.warn(format!("{shown} is left out: its name is not UTF-8"));
        }
        if path.extension().is_some_and(|ending| ending == "gz") {
            return self.warn(format!(
                "{shown} is left out: files packed with gzip are not supported here, unpack it"
            ));
        }
        let changed = (
            found.ctime(),
            u32::try_from(found.ctime_nsec()).unwrap_or(0),
        );
        let changed = Duration::new(u64::try_from(changed.0).unwrap_or(0), changed.1);
        let age = (SystemTime::UNIX_EPOCH + changed).elapsed();
        self.look.is_young |= age.is_ok_and(|age| age <= TICK);
        self.look.found.files.insert(path, stamp(&found));
    }

    fn warn(&mut self, text: String) {
        let warnings = &mut self.look.found.warnings;
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }
}

fn stamp(found: &Metadata) -> Stamp {
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

    /// The files below the directory, then what else is told, with `…` for its path.
    fn found(dir: &tempfile::TempDir, paths: &[&str]) -> (Vec<String>, Vec<String>) {
        let whole: Vec<_> = (paths.iter())
            .map(|path| dir.path().join(path).display().to_string())
            .collect();
        let found = find(&whole).found;
        let below = |path: &PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        let told = found.warnings.into_iter().chain(found.error);
        let here = dir.path().display().to_string();
        (
            found.files.keys().map(below).collect(),
            told.map(|text| text.replace(&here, "…")).collect(),
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
    fn what_is_no_file_of_ours_is_told() {
        let dir = dir(&["a.csv", "z.csv.gz", "sub/x"]);
        symlink("nowhere", dir.path().join("l.csv")).unwrap();
        let told = |paths: &[&str]| found(&dir, paths).1;
        assert_eq!(told(&["*.csv"]), ["…/l.csv: this link leads nowhere"]);
        assert_eq!(told(&["b.csv"]), ["there is no file …/b.csv"]);
        assert_eq!(told(&["*.tsv"]), ["no file matches …/*.tsv"]);
        assert_eq!(
            told(&["sub"]),
            ["… is a directory: write \"…/*.csv\" for the files in it".replace('…', "…/sub")]
        );
        assert_eq!(told(&["gone/*.csv"]), ["the directory …/gone is missing"]);
        assert_eq!(told(&["gone/a.csv"]), ["the directory …/gone is missing"]);
        assert_eq!(told(&["sub/**/*.csv"]), ["no file matches …/sub/**/*.csv"]);
        assert_eq!(
            told(&["a*.csv", "*.csv.gz"]),
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
    fn a_changed_file_is_another_find() {
        let dir = dir(&["a.csv"]);
        let look = || find(&[dir.path().join("*.csv").display().to_string()]).found;
        let before = look();
        assert_eq!(before, look());
        fs::write(dir.path().join("a.csv"), "a\n12\n").unwrap();
        assert_ne!(before, look());
    }
}
