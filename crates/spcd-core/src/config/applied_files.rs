//! Records the files that the applied state came from, and detects which of them vanished.
//!
//! A file that a user deletes is a removal. A file that vanishes with its directory is not: the
//! directory is missing (an unmounted file system), unreadable, not a directory, or empty. Only
//! files with connections or `plugin` blocks are recorded. A vanished file stays unknown until it is back, also while
//! its directory is being filled file by file; `spcd apply --allow-empty` gives it up. Files with
//! `plugin` blocks are recorded, too: connections of other files depend on them.

use std::collections::{BTreeMap, BTreeSet};

use super::{PluginBlock, UnknownInput};

/// Files that the applied state came from, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppliedFiles(pub BTreeMap<String, AppliedFile>);

/// Recorded file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedFile {
    /// Config directory that holds it, or the file itself if that was configured.
    pub root: String,
    /// Whether it holds `options "database"`.
    pub sets_path: bool,
    /// Sources of its `plugin` blocks, by label.
    pub plugins: BTreeMap<String, String>,
    /// Directory that was missing, unreadable, not a directory or empty when the file vanished;
    /// `None` while the file exists.
    pub vanished_with: Option<String>,
}

/// Result of reading the config directories.
pub struct DirectoryScan<'a> {
    /// Config directories, as configured.
    pub roots: &'a [String],
    /// Files that exist.
    pub files: BTreeSet<&'a str>,
    /// Files that hold connections or `options "database"`. Those of `plugins` count as well.
    pub relevant: BTreeSet<&'a str>,
    /// Files that could not be read in full: only the record tells what they hold.
    pub incomplete: BTreeSet<&'a str>,
    /// File that holds `options "database"`.
    pub sets_path: Option<&'a str>,
    /// Readable `plugin` blocks.
    pub plugins: &'a [PluginBlock],
    /// Directories whose entries were read.
    pub listed: &'a BTreeSet<String>,
    /// Directories that were read under another name.
    pub aliased: &'a BTreeSet<String>,
    /// Directories whose entries could not be read. One without an error changed while it was read.
    pub unreadable: &'a [UnknownInput],
    /// Files that are not read because of their extension.
    pub skipped: &'a BTreeSet<String>,
    /// Returns whether a path exists, as a file or a directory.
    pub exists: &'a dyn Fn(&str) -> bool,
}

/// Outcome for a recorded file.
enum FileFate<'a> {
    Present,
    /// A user deleted the file.
    Removed,
    /// The file vanished with this directory.
    Vanished(&'a str),
    /// The directory changed while it was read.
    Unknown,
}

impl AppliedFiles {
    /// Returns the config directories of the recorded files.
    pub fn roots(&self) -> BTreeSet<&str> {
        self.0.values().map(|input| input.root.as_str()).collect()
    }

    /// Returns the recorded config directories that are not among `roots`.
    pub fn other_roots<'a>(&'a self, roots: &[String]) -> Vec<&'a str> {
        let is_other = |root: &&str| !roots.iter().any(|own| own == root);
        self.roots().into_iter().filter(is_other).collect()
    }

    /// Removes the files that another session gave up: those that vanished and are not in `left`.
    pub fn give_up(&mut self, left: &BTreeSet<String>) {
        self.0
            .retain(|path, input| input.vanished_with.is_none() || left.contains(path));
    }

    /// Returns the record after a scan, and the unknown inputs that follow from it. `allow_empty`
    /// gives up vanished files. Files of config directories outside of the scan are dropped.
    pub fn after_scan(
        &self,
        seen: &DirectoryScan<'_>,
        allow_empty: bool,
    ) -> (Self, Vec<UnknownInput>) {
        let mut now = BTreeMap::new();
        for (path, input) in &self.0 {
            if !seen.roots.contains(&input.root) {
                continue;
            }
            let vanished_with = match seen.fate(path, input) {
                FileFate::Present if seen.incomplete.contains(path.as_str()) => None,
                FileFate::Unknown => input.vanished_with.clone(),
                FileFate::Vanished(with) if !allow_empty => Some(with.to_owned()),
                FileFate::Present | FileFate::Removed | FileFate::Vanished(_) => continue,
            };
            let input = AppliedFile {
                vanished_with,
                ..input.clone()
            };
            now.insert(path.clone(), input);
        }
        let unknown = unknown_inputs(&now, seen);
        let of_plugins = seen.plugins.iter().map(|block| block.file.as_str());
        for path in seen.relevant.iter().copied().chain(of_plugins) {
            let known = now.entry(path.to_owned()).or_insert_with(|| AppliedFile {
                root: seen.root_of(path),
                sets_path: false,
                plugins: BTreeMap::new(),
                vanished_with: None,
            });
            known.sets_path |= seen.sets_path == Some(path);
        }
        for block in seen.plugins {
            if let Some(known) = now.get_mut(&block.file) {
                (known.plugins).insert(block.label.clone(), block.source.clone());
            }
        }
        (Self(now), unknown)
    }

    /// Returns whether the file that sets the search path cannot be read now.
    pub fn path_is_unknown(&self, seen: &DirectoryScan<'_>) -> bool {
        let is_lost = |(path, input): (&String, &AppliedFile)| {
            let unread = seen.incomplete.contains(path.as_str());
            input.sets_path && (unread || input.vanished_with.is_some())
        };
        seen.sets_path.is_none() && self.0.iter().any(is_lost)
    }
}

impl DirectoryScan<'_> {
    fn fate<'p>(&self, path: &'p str, input: &'p AppliedFile) -> FileFate<'p> {
        if self.files.contains(path) {
            return FileFate::Present;
        }
        let changed_meanwhile =
            |unread: &UnknownInput| unread.error.is_none() && unread.path == input.root;
        if self.unreadable.iter().any(changed_meanwhile) {
            return FileFate::Unknown;
        }
        let now = self.vanished_directory(path, &input.root);
        match (&input.vanished_with, now) {
            (None, None) => FileFate::Removed,
            (None, Some(with)) => FileFate::Vanished(with),
            // A user who also removes the directory has deleted its files.
            (Some(before), None) if *before != input.root && !(self.exists)(before) => {
                FileFate::Removed
            }
            (Some(before), None) => FileFate::Vanished(before),
            (Some(before), Some(with)) => FileFate::Vanished(match with.len() < before.len() {
                true => with,
                false => before,
            }),
        }
    }

    /// Returns the outermost directory with which a file vanished, or the file itself if it is not
    /// read any more; `None` if a user deleted the file.
    fn vanished_directory<'p>(&self, path: &'p str, root: &'p str) -> Option<&'p str> {
        if self.skipped.contains(path) {
            return Some(path);
        }
        for dir in directories_between(path, root) {
            if self.unreadable.iter().any(|input| input.path == dir) {
                return Some(dir);
            }
            if self.aliased.contains(dir) {
                return None;
            }
            if !self.listed.contains(dir) {
                // Missing in a readable directory, or not a directory any more.
                return (dir == root || (self.exists)(dir)).then_some(dir);
            }
            if !self.holds_files(dir) {
                return Some(dir);
            }
        }
        None
    }

    fn holds_files(&self, dir: &str) -> bool {
        let below = directory_prefix(dir);
        let mut following = self.files.range(below.as_str()..);
        following
            .next()
            .is_some_and(|path| path.starts_with(&below))
    }

    /// Returns the outermost config directory that holds a file.
    fn root_of(&self, path: &str) -> String {
        let holds = |root: &&String| {
            path == root.as_str() || path.starts_with(directory_prefix(root).as_str())
        };
        let roots = self.roots.iter().filter(holds);
        roots
            .min_by_key(|root| root.len())
            .map_or_else(|| path.to_owned(), String::clone)
    }

    /// Returns why the files of a vanished directory are unknown, and what to do.
    fn reason(&self, dir: &str, root: &str) -> String {
        if self.skipped.contains(dir) {
            return format!(
                "{dir} is read only with `compat = \"steampipe\"`: put that back, or run \
                 `spcd apply --allow-empty` to remove what the file held"
            );
        }
        let unreadable = self.unreadable.iter().find(|input| input.path == dir);
        let what = match unreadable.and_then(|input| input.error.clone()) {
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

/// Returns the unknown inputs for vanished files: one for a directory without any file, else one
/// for each missing file.
fn unknown_inputs(
    inputs: &BTreeMap<String, AppliedFile>,
    seen: &DirectoryScan<'_>,
) -> Vec<UnknownInput> {
    let mut unknown: BTreeMap<&str, UnknownInput> = BTreeMap::new();
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
        unknown.entry(place).or_insert_with(|| UnknownInput {
            mirror: None,
            path: place.to_owned(),
            is_directory: whole && !seen.skipped.contains(dir),
            error: Some(error),
        });
    }
    unknown.into_values().collect()
}

/// Returns the directories from a root down to a file; only the root if the file is the root.
fn directories_between<'p>(path: &'p str, root: &'p str) -> impl Iterator<Item = &'p str> {
    let from = directory_prefix(root).len();
    let inner = path
        .match_indices('/')
        .map(|(at, _)| at)
        .filter(move |at| *at >= from);
    std::iter::once(root).chain(inner.map(|at| &path[..at]))
}

/// Returns the prefix of all paths in a directory.
fn directory_prefix(dir: &str) -> String {
    match dir.ends_with('/') {
        true => dir.to_owned(),
        false => format!("{dir}/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scan of /c: its files and listed directories.
    struct Scan {
        files: Vec<&'static str>,
        listed: BTreeSet<String>,
        unknown: Vec<UnknownInput>,
        others: Vec<&'static str>,
        skipped: BTreeSet<String>,
    }

    fn scan(files: &[&'static str]) -> Scan {
        let listed = files
            .iter()
            .flat_map(|path| directories_between(path, "/c"));
        Scan {
            files: files.to_vec(),
            listed: listed.chain(["/c"]).map(str::to_owned).collect(),
            unknown: vec![],
            others: vec![],
            skipped: BTreeSet::new(),
        }
    }

    impl Scan {
        fn with_dir(mut self, dir: &str) -> Self {
            self.listed.insert(dir.to_owned());
            self
        }

        fn with_file(mut self, path: &'static str) -> Self {
            self.others.push(path);
            self
        }

        fn skipping(mut self, path: &'static str) -> Self {
            self.skipped.insert(path.to_owned());
            self.with_file(path)
        }

        fn unreadable(mut self, dir: &str) -> Self {
            self.listed.remove(dir);
            self.unknown.push(UnknownInput {
                mirror: None,
                path: dir.to_owned(),
                is_directory: true,
                error: Some(format!("the directory {dir} is missing")),
            });
            self
        }

        fn follows(
            &self,
            known: &AppliedFiles,
            allow_empty: bool,
        ) -> (AppliedFiles, Vec<(String, String)>) {
            let exists = |path: &str| self.listed.contains(path) || self.others.contains(&path);
            let (now, unknown) = self.sees(&exists, |seen| known.after_scan(seen, allow_empty));
            let described = |input: UnknownInput| (input.path, input.error.unwrap_or_default());
            (now, unknown.into_iter().map(described).collect())
        }

        fn sees<T>(
            &self,
            exists: &dyn Fn(&str) -> bool,
            ask: impl FnOnce(&DirectoryScan<'_>) -> T,
        ) -> T {
            let is_options = |path: &&&str| path.ends_with("options.spc");
            ask(&DirectoryScan {
                roots: &["/c".to_owned()],
                files: self.files.iter().copied().collect(),
                incomplete: BTreeSet::new(),
                sets_path: self.files.iter().find(is_options).copied(),
                plugins: &[],
                relevant: self
                    .files
                    .iter()
                    .copied()
                    .filter(|p| !p.contains("no-"))
                    .collect(),
                listed: &self.listed,
                aliased: &BTreeSet::new(),
                unreadable: &self.unknown,
                skipped: &self.skipped,
                exists,
            })
        }
    }

    fn known(files: &[&'static str]) -> AppliedFiles {
        scan(files).follows(&AppliedFiles::default(), false).0
    }

    /// Returns the paths of the unknown inputs after a scan of known files.
    fn places(before: &[&'static str], now: &Scan) -> Vec<String> {
        let (_, unknown) = now.follows(&known(before), false);
        unknown.into_iter().map(|(place, _)| place).collect()
    }

    #[test]
    fn a_file_that_is_deleted_beside_others_is_a_removal() {
        let before = ["/c/a.spc", "/c/b.spc", "/c/s/d.spc"];
        assert!(places(&before, &scan(&["/c/a.spc", "/c/s/d.spc"])).is_empty());
        // A sub-directory that is removed with its files.
        assert!(places(&before, &scan(&["/c/a.spc"])).is_empty());
    }

    #[test]
    fn a_directory_that_is_missing_empty_or_no_directory_is_in_doubt() {
        let before = ["/c/a.spc", "/c/s/d.spc"];
        assert_eq!(places(&before, &scan(&[])), ["/c"]);
        assert_eq!(places(&["/c/a.spc"], &scan(&[])), ["/c"]);
        assert_eq!(places(&before, &scan(&[]).unreadable("/c")), ["/c"]);
        let emptied = scan(&["/c/a.spc"]).with_dir("/c/s");
        assert_eq!(places(&before, &emptied), ["/c/s"]);
        let replaced = scan(&["/c/a.spc"]).with_file("/c/s");
        assert_eq!(places(&before, &replaced), ["/c/s"]);
        let unreadable = scan(&["/c/a.spc"]).unreadable("/c/s");
        assert_eq!(places(&before, &unreadable), ["/c/s"]);
        // The config directory became a file.
        let mut file = scan(&["/c"]);
        file.listed.clear();
        assert_eq!(places(&before, &file), ["/c"]);
    }

    #[test]
    fn what_vanished_stays_in_doubt_until_it_is_back() {
        let before = known(&["/c/a.spc", "/c/b.spc", "/c/s/d.spc"]);
        let (empty, _) = scan(&[]).follows(&before, false);
        let (one, unknown) = scan(&["/c/a.spc", "/c/new.spc"]).follows(&empty, false);
        let places: Vec<&str> = unknown.iter().map(|(place, _)| place.as_str()).collect();
        assert_eq!(places, ["/c/b.spc", "/c/s/d.spc"]);
        let all = scan(&["/c/a.spc", "/c/b.spc", "/c/new.spc", "/c/s/d.spc"]);
        let (whole, unknown) = all.follows(&one, false);
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(whole.0.values().all(|input| input.vanished_with.is_none()));
        // From then on a deleted file is a removal again.
        let (_, unknown) = scan(&["/c/a.spc"]).follows(&whole, false);
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn what_vanished_is_given_up_on_a_word_or_with_its_directory() {
        let before = known(&["/c/a.spc", "/c/s/d.spc"]);
        let (given_up, unknown) = scan(&[]).follows(&before, true);
        assert_eq!((given_up, unknown), (AppliedFiles::default(), vec![]));

        let emptied = scan(&["/c/a.spc"]).with_dir("/c/s");
        let (emptied, unknown) = emptied.follows(&before, false);
        assert!(
            unknown[0].1.contains("remove the directory, too"),
            "{unknown:?}"
        );
        let (left, unknown) = scan(&["/c/a.spc"]).follows(&emptied, false);
        assert_eq!((left, unknown), (known(&["/c/a.spc"]), vec![]));

        let (mut empty, _) = scan(&[]).follows(&before, false);
        empty.give_up(&BTreeSet::from(["/c/a.spc".to_owned()]));
        assert_eq!(empty.0.keys().collect::<Vec<_>>(), ["/c/a.spc"]);
    }

    #[test]
    fn a_search_path_is_unknown_while_its_file_is_away() {
        let before = known(&["/c/a.spc", "/c/s/options.spc"]);
        assert!(before.0["/c/s/options.spc"].sets_path);
        let asked = |scan: &Scan| {
            let (now, _) = scan.follows(&before, false);
            scan.sees(&|_| true, |seen| now.path_is_unknown(seen))
        };
        assert!(!asked(&scan(&["/c/a.spc", "/c/s/options.spc"])));
        // Deleted by its user; then lost with its directory.
        assert!(!asked(&scan(&["/c/a.spc"])));
        assert!(asked(&scan(&["/c/a.spc"]).with_dir("/c/s")));
        assert!(asked(&scan(&[])));
        assert!(!asked(
            &scan(&["/c/a.spc", "/c/options.spc"]).with_dir("/c/s")
        ));
    }

    #[test]
    fn only_directories_that_held_connections_count_as_recorded() {
        let inputs = known(&["/c/a.spc"]);
        let list = |roots: &[&str]| roots.iter().map(|root| (*root).to_owned()).collect();
        let besides = |roots: &[&str]| {
            let roots: Vec<String> = list(roots);
            inputs.other_roots(&roots).len()
        };
        assert_eq!((besides(&["/c"]), besides(&["/typo", "/c"])), (0, 0));
        assert_eq!(besides(&["/typo"]), 1);
        assert!(known(&["/c/no-connections.spc"]).roots().is_empty());
        assert!(known(&[]).roots().is_empty());
    }

    #[test]
    fn a_file_whose_extension_is_not_read_any_more_is_no_removal() {
        let before = known(&["/c/a.spc", "/c/b.yml"]);
        for (others, path) in [(&["/c/a.spc"][..], "/c/b.yml"), (&[], "/c/b.yml")] {
            let skipped = scan(others).skipping(path);
            let (now, unknown) = skipped.follows(&before, false);
            let of_file: Vec<_> = unknown.iter().filter(|(place, _)| place == path).collect();
            assert_eq!(of_file.len(), 1, "{unknown:?}");
            assert!(
                of_file[0].1.contains("compat = \"steampipe\""),
                "{unknown:?}"
            );
            assert!(now.0[path].vanished_with.is_some());
            // It is read again, or removed by its user.
            let (back, unknown) = scan(&["/c/a.spc", "/c/b.yml"]).follows(&now, false);
            assert_eq!((back, unknown), (before.clone(), vec![]));
            let (gone, unknown) = scan(&["/c/a.spc"]).follows(&now, false);
            assert_eq!((gone, unknown), (known(&["/c/a.spc"]), vec![]));
            let (given_up, _) = skipped.follows(&before, true);
            assert!(!given_up.0.contains_key(path));
        }
    }
}
