//! Directories to watch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Maximum number of symlinks in one path, as in the kernel.
const MAX_SYMLINKS: u32 = 40;

/// A directory to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchPoint {
    /// Its path without symlinks.
    pub dir: PathBuf,
    /// The entries that matter; `None` stands for all of them.
    pub only: Option<BTreeSet<OsString>>,
    /// Its device and inode; `None` if it no longer exists.
    pub identity: Option<(u64, u64)>,
}

/// Watch points being collected.
#[derive(Debug, Default)]
pub struct WatchPoints(BTreeMap<PathBuf, Option<BTreeSet<OsString>>>);

impl WatchPoints {
    /// Adds a directory of which every entry matters. Its path has no symlinks.
    pub fn all_of(&mut self, dir: &Path) {
        self.0.insert(dir.to_owned(), None);
    }

    /// Adds the directories in which `path` or a link on the way to it may be replaced. If the path does not
    /// exist, adds the directory in which its first missing part would appear.
    pub fn way_to(&mut self, path: &Path) {
        let mut todo: VecDeque<OsString> = components(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&part);
            match fs::symlink_metadata(&next) {
                Ok(found) if found.is_symlink() && links < MAX_SYMLINKS => {
                    links += 1;
                    self.note(&at, &part);
                    let Ok(target) = fs::read_link(&next) else {
                        return;
                    };
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    for part in components(&target).into_iter().rev() {
                        todo.push_front(part);
                    }
                }
                Ok(_) if !todo.is_empty() => at = next,
                // The end of the path, or its first missing part.
                _ => return self.note(&at, &part),
            }
        }
    }

    fn note(&mut self, dir: &Path, name: &OsStr) {
        let only = self
            .0
            .entry(dir.to_owned())
            .or_insert_with(|| Some(BTreeSet::new()));
        if let Some(only) = only {
            only.insert(name.to_owned());
        }
    }

    /// Adds collected directories.
    pub fn add(&mut self, watch_points: &[WatchPoint]) {
        for place in watch_points {
            match &place.only {
                None => self.all_of(&place.dir),
                Some(names) => names.iter().for_each(|name| self.note(&place.dir, name)),
            }
        }
    }

    /// Returns the directories with their identities.
    pub fn list(self) -> Vec<WatchPoint> {
        let identified = |(dir, only): (PathBuf, _)| {
            let found = fs::metadata(&dir).ok();
            WatchPoint {
                identity: found.map(|found| (found.dev(), found.ino())),
                dir,
                only,
            }
        };
        self.0.into_iter().map(identified).collect()
    }
}

/// Returns the names in a path, including `..`, but neither `.` nor the root.
fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}
