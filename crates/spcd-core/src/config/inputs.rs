//! The files that the applied state came from, and which of them vanished.
//!
//! A file that its user deletes is a removal. Input that vanished is not: an unmounted file system,
//! a directory that is missing, unreadable, no directory, or empty where it held files. The
//! directory tells them apart. Only files with connections count: others hold nothing that could be
//! lost. What vanished stays in doubt until it is back, also while its
//! directory fills again file by file; `spcd apply --allow-empty` gives it up.

use std::collections::{BTreeMap, BTreeSet};

use super::Doubt;

/// The files that the applied state came from, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs(pub BTreeMap<String, Input>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The config directory in which it was found, or the file itself where that was configured.
    pub root: String,
    /// It holds `options "database"`.
    pub sets_path: bool,
    /// The directory that was missing, unreadable, no directory or empty when the file was missed;
    /// `None` while the file is there.
    pub vanished_with: Option<String>,
}

/// What a look at the config directories found.
pub struct Seen<'a> {
    /// The config directories, as configured.
    pub roots: &'a [String],
    /// Every file.
    pub files: BTreeSet<&'a str>,
    /// Those of them that hold connections or `options "database"`.
    pub holding: BTreeSet<&'a str>,
    /// Those that cannot be read in full: only the record tells what they hold.
    pub unread: BTreeSet<&'a str>,
    /// The one that holds `options "database"`.
    pub sets_path: Option<&'a str>,
    /// Directories whose entries were read.
    pub listed: &'a BTreeSet<String>,
    /// Directories that were read under another name.
    pub elsewhere: &'a BTreeSet<String>,
    /// Directories whose entries could not be read. One without an error never came to rest.
    pub doubts: &'a [Doubt],
    /// Whether a path exists, as anything.
    pub exists: &'a dyn Fn(&str) -> bool,
}

/// What became of a known file.
enum Fate<'a> {
    There,
    /// It was deleted, and its directory shows it.
    Removed,
    /// Nothing is known of it, because this directory vanished.
    Vanished(&'a str),
    /// Its directory never came to rest.
    Unknown,
}

impl Inputs {
    /// The config directories that held them.
    pub fn roots(&self) -> BTreeSet<&str> {
        self.0.values().map(|input| input.root.as_str()).collect()
    }

    /// Those of the recorded config directories that are not among `roots`.
    pub fn roots_besides<'a>(&'a self, roots: &[String]) -> Vec<&'a str> {
        let is_other = |root: &&str| !roots.iter().any(|own| own == root);
        self.roots().into_iter().filter(is_other).collect()
    }

    /// Takes those for removed that another session gave up: what vanished and is no longer in `left`.
    pub fn give_up(&mut self, left: &BTreeSet<String>) {
        self.0
            .retain(|path, input| input.vanished_with.is_none() || left.contains(path));
    }

    /// What is known after a look, and the doubts that follow from it. With `allow_empty` what
    /// vanished is given up. Files of other config directories than those seen are forgotten.
    pub fn after(&self, seen: &Seen<'_>, allow_empty: bool) -> (Self, Vec<Doubt>) {
        let mut now = BTreeMap::new();
        for (path, input) in &self.0 {
            if !seen.roots.contains(&input.root) {
                continue;
            }
            let vanished_with = match seen.fate(path, input) {
                Fate::There if seen.unread.contains(path.as_str()) => None,
                Fate::Unknown => input.vanished_with.clone(),
                Fate::Vanished(with) if !allow_empty => Some(with.to_owned()),
                Fate::There | Fate::Removed | Fate::Vanished(_) => continue,
            };
            let input = Input {
                vanished_with,
                ..input.clone()
            };
            now.insert(path.clone(), input);
        }
        let doubts = doubts(&now, seen);
        for path in &seen.holding {
            let known = now.entry((*path).to_owned()).or_insert_with(|| Input {
                root: seen.root_of(path),
                sets_path: false,
                vanished_with: None,
            });
            known.sets_path |= seen.sets_path == Some(*path);
        }
        (Self(now), doubts)
    }

    /// Whether what sets the search path cannot be read now.
    pub fn path_is_unknown(&self, seen: &Seen<'_>) -> bool {
        let is_lost = |(path, input): (&String, &Input)| {
            let unread = seen.unread.contains(path.as_str());
            input.sets_path && (unread || input.vanished_with.is_some())
        };
        seen.sets_path.is_none() && self.0.iter().any(is_lost)
    }
}

impl Seen<'_> {
    fn fate<'p>(&self, path: &'p str, input: &'p Input) -> Fate<'p> {
        if self.files.contains(path) {
            return Fate::There;
        }
        let never_rests = |doubt: &&Doubt| doubt.error.is_none() && doubt.path == input.root;
        if self.doubts.iter().any(|doubt| never_rests(&doubt)) {
            return Fate::Unknown;
        }
        let now = self.cause(path, &input.root);
        match (&input.vanished_with, now) {
            (None, None) => Fate::Removed,
            (None, Some(with)) => Fate::Vanished(with),
            // The user removed the directory after its files: that is an answer.
            (Some(before), None) if *before != input.root && !(self.exists)(before) => {
                Fate::Removed
            }
            (Some(before), None) => Fate::Vanished(before),
            (Some(before), Some(with)) => Fate::Vanished(match with.len() < before.len() {
                true => with,
                false => before,
            }),
        }
    }

    /// The outermost directory on the way to a file that vanished; `None` if all are as they should
    /// be, so that the file was deleted.
    fn cause<'p>(&self, path: &'p str, root: &'p str) -> Option<&'p str> {
        for dir in way(path, root) {
            if self.doubts.iter().any(|doubt| doubt.path == dir) {
                return Some(dir);
            }
            if self.elsewhere.contains(dir) {
                return None;
            }
            if !self.listed.contains(dir) {
                // Gone from a directory that can be read, or no directory any more.
                return (dir == root || (self.exists)(dir)).then_some(dir);
            }
            if !self.holds_files(dir) {
                return Some(dir);
            }
        }
        None
    }

    fn holds_files(&self, dir: &str) -> bool {
        let below = below(dir);
        let mut following = self.files.range(below.as_str()..);
        following
            .next()
            .is_some_and(|path| path.starts_with(&below))
    }

    /// The outermost config directory that holds a file.
    fn root_of(&self, path: &str) -> String {
        let holds =
            |root: &&String| path == root.as_str() || path.starts_with(below(root).as_str());
        let roots = self.roots.iter().filter(holds);
        roots
            .min_by_key(|root| root.len())
            .map_or_else(|| path.to_owned(), String::clone)
    }

    /// Why nothing is known of the files that vanished with a directory, and what to do.
    fn reason(&self, dir: &str, root: &str) -> String {
        let unreadable = self.doubts.iter().find(|doubt| doubt.path == dir);
        let what = match unreadable.and_then(|doubt| doubt.error.clone()) {
            Some(error) => error,
            None if !self.listed.contains(dir) => format!("{dir} is no longer a directory"),
            None => format!("the directory {dir} holds no file any more"),
        };
        let also = match dir == root {
            true => "",
            false => ", remove the directory, too,",
        };
        format!(
            "{what}: put its files back{also} or run `spcd apply --allow-empty` to remove what they held"
        )
    }
}

/// The doubts on what the vanished ones of these held: one for a directory of which all vanished,
/// and one for each file that is not back with the others.
fn doubts(inputs: &BTreeMap<String, Input>, seen: &Seen<'_>) -> Vec<Doubt> {
    let mut doubts: BTreeMap<&str, Doubt> = BTreeMap::new();
    for (path, input) in inputs {
        let Some(dir) = &input.vanished_with else {
            continue;
        };
        let whole = !seen.holds_files(dir);
        let (place, error) = match whole {
            true => (dir.as_str(), seen.reason(dir, &input.root)),
            false => {
                let error = format!(
                    "{path} is not back since {dir} was missing or empty: put it back, or run \
                     `spcd apply --allow-empty` to remove what it held"
                );
                (path.as_str(), error)
            }
        };
        doubts.entry(place).or_insert_with(|| Doubt {
            path: place.to_owned(),
            directory: whole,
            error: Some(error),
        });
    }
    doubts.into_values().collect()
}

/// The directories from a root down to a file: none where the file is the root, but the root itself.
fn way<'p>(path: &'p str, root: &'p str) -> impl Iterator<Item = &'p str> {
    let from = below(root).len();
    let inner = path
        .match_indices('/')
        .map(|(at, _)| at)
        .filter(move |at| *at >= from);
    std::iter::once(root).chain(inner.map(|at| &path[..at]))
}

/// What the paths below a directory begin with.
fn below(dir: &str) -> String {
    match dir.ends_with('/') {
        true => dir.to_owned(),
        false => format!("{dir}/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look at /c: these files, in directories that are all listed, and further directories.
    struct Look {
        files: Vec<&'static str>,
        listed: BTreeSet<String>,
        doubts: Vec<Doubt>,
        others: Vec<&'static str>,
    }

    fn look(files: &[&'static str]) -> Look {
        let listed = files.iter().flat_map(|path| way(path, "/c"));
        Look {
            files: files.to_vec(),
            listed: listed.chain(["/c"]).map(str::to_owned).collect(),
            doubts: vec![],
            others: vec![],
        }
    }

    impl Look {
        fn with_dir(mut self, dir: &str) -> Self {
            self.listed.insert(dir.to_owned());
            self
        }

        fn with_file(mut self, path: &'static str) -> Self {
            self.others.push(path);
            self
        }

        fn unreadable(mut self, dir: &str) -> Self {
            self.listed.remove(dir);
            self.doubts.push(Doubt {
                path: dir.to_owned(),
                directory: true,
                error: Some(format!("the directory {dir} is missing")),
            });
            self
        }

        fn follows(&self, known: &Inputs, allow_empty: bool) -> (Inputs, Vec<(String, String)>) {
            let exists = |path: &str| self.listed.contains(path) || self.others.contains(&path);
            let (now, doubts) = self.sees(&exists, |seen| known.after(seen, allow_empty));
            let told = |doubt: Doubt| (doubt.path, doubt.error.unwrap_or_default());
            (now, doubts.into_iter().map(told).collect())
        }

        fn sees<T>(&self, exists: &dyn Fn(&str) -> bool, ask: impl FnOnce(&Seen<'_>) -> T) -> T {
            let is_options = |path: &&&str| path.ends_with("options.spc");
            ask(&Seen {
                roots: &["/c".to_owned()],
                files: self.files.iter().copied().collect(),
                unread: BTreeSet::new(),
                sets_path: self.files.iter().find(is_options).copied(),
                holding: self
                    .files
                    .iter()
                    .copied()
                    .filter(|p| !p.contains("no-"))
                    .collect(),
                listed: &self.listed,
                elsewhere: &BTreeSet::new(),
                doubts: &self.doubts,
                exists,
            })
        }
    }

    fn known(files: &[&'static str]) -> Inputs {
        look(files).follows(&Inputs::default(), false).0
    }

    /// Where the doubts are after one look at what was known.
    fn places(before: &[&'static str], now: &Look) -> Vec<String> {
        let (_, doubts) = now.follows(&known(before), false);
        doubts.into_iter().map(|(place, _)| place).collect()
    }

    #[test]
    fn a_file_that_is_deleted_beside_others_is_a_removal() {
        let before = ["/c/a.spc", "/c/b.spc", "/c/s/d.spc"];
        assert!(places(&before, &look(&["/c/a.spc", "/c/s/d.spc"])).is_empty());
        // And a sub-directory that is removed with its files.
        assert!(places(&before, &look(&["/c/a.spc"])).is_empty());
    }

    #[test]
    fn a_directory_that_is_missing_empty_or_no_directory_is_in_doubt() {
        let before = ["/c/a.spc", "/c/s/d.spc"];
        assert_eq!(places(&before, &look(&[])), ["/c"]);
        assert_eq!(places(&["/c/a.spc"], &look(&[])), ["/c"]);
        assert_eq!(places(&before, &look(&[]).unreadable("/c")), ["/c"]);
        let emptied = look(&["/c/a.spc"]).with_dir("/c/s");
        assert_eq!(places(&before, &emptied), ["/c/s"]);
        let replaced = look(&["/c/a.spc"]).with_file("/c/s");
        assert_eq!(places(&before, &replaced), ["/c/s"]);
        let unreadable = look(&["/c/a.spc"]).unreadable("/c/s");
        assert_eq!(places(&before, &unreadable), ["/c/s"]);
        // The config directory became a file.
        let mut file = look(&["/c"]);
        file.listed.clear();
        assert_eq!(places(&before, &file), ["/c"]);
    }

    #[test]
    fn what_vanished_stays_in_doubt_until_it_is_back() {
        let before = known(&["/c/a.spc", "/c/b.spc", "/c/s/d.spc"]);
        let (empty, _) = look(&[]).follows(&before, false);
        let (one, doubts) = look(&["/c/a.spc", "/c/new.spc"]).follows(&empty, false);
        let places: Vec<&str> = doubts.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places, ["/c/b.spc", "/c/s/d.spc"]);
        let all = look(&["/c/a.spc", "/c/b.spc", "/c/new.spc", "/c/s/d.spc"]);
        let (whole, doubts) = all.follows(&one, false);
        assert!(doubts.is_empty(), "{doubts:?}");
        assert!(whole.0.values().all(|input| input.vanished_with.is_none()));
        // From then on a deleted file is a removal again.
        let (_, doubts) = look(&["/c/a.spc"]).follows(&whole, false);
        assert!(doubts.is_empty(), "{doubts:?}");
    }

    #[test]
    fn what_vanished_is_given_up_on_a_word_or_with_its_directory() {
        let before = known(&["/c/a.spc", "/c/s/d.spc"]);
        let (given_up, doubts) = look(&[]).follows(&before, true);
        assert_eq!((given_up, doubts), (Inputs::default(), vec![]));

        let emptied = look(&["/c/a.spc"]).with_dir("/c/s");
        let (emptied, doubts) = emptied.follows(&before, false);
        assert!(
            doubts[0].1.contains("remove the directory, too"),
            "{doubts:?}"
        );
        let (left, doubts) = look(&["/c/a.spc"]).follows(&emptied, false);
        assert_eq!((left, doubts), (known(&["/c/a.spc"]), vec![]));

        let (mut empty, _) = look(&[]).follows(&before, false);
        empty.give_up(&BTreeSet::from(["/c/a.spc".to_owned()]));
        assert_eq!(empty.0.keys().collect::<Vec<_>>(), ["/c/a.spc"]);
    }

    #[test]
    fn a_search_path_is_unknown_while_its_file_is_away() {
        let before = known(&["/c/a.spc", "/c/s/options.spc"]);
        assert!(before.0["/c/s/options.spc"].sets_path);
        let asked = |look: &Look| {
            let (now, _) = look.follows(&before, false);
            look.sees(&|_| true, |seen| now.path_is_unknown(seen))
        };
        assert!(!asked(&look(&["/c/a.spc", "/c/s/options.spc"])));
        // Deleted by its user, and lost with its directory.
        assert!(!asked(&look(&["/c/a.spc"])));
        assert!(asked(&look(&["/c/a.spc"]).with_dir("/c/s")));
        assert!(asked(&look(&[])));
        assert!(!asked(
            &look(&["/c/a.spc", "/c/options.spc"]).with_dir("/c/s")
        ));
    }

    #[test]
    fn only_directories_that_held_connections_count_as_recorded() {
        let inputs = known(&["/c/a.spc"]);
        let list = |roots: &[&str]| roots.iter().map(|root| (*root).to_owned()).collect();
        let besides = |roots: &[&str]| {
            let roots: Vec<String> = list(roots);
            inputs.roots_besides(&roots).len()
        };
        assert_eq!((besides(&["/c"]), besides(&["/typo", "/c"])), (0, 0));
        assert_eq!(besides(&["/typo"]), 1);
        assert!(known(&["/c/no-connections.spc"]).roots().is_empty());
        assert!(known(&[]).roots().is_empty());
    }
}
