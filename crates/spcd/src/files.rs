//! All files of the config directories, as they are now.

mod places;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;
use spcd_core::config::{Doubt, Source};

pub use places::{Place, Places};

/// Nobody writes this much by hand; a file that someone put here by mistake must not fill memory.
const LARGEST: u64 = 16 << 20;

/// Two changes nearer to each other than this may carry the same time: file systems stamp with
/// the kernel's tick, up to 10 ms. What is younger is looked at again rather than trusted.
const TICK: Duration = Duration::from_millis(20);

/// How often a directory is looked at that changes all the while.
const ROUNDS: u32 = 10;

/// Reads the config directories, and remembers what it read.
pub struct Files {
    roots: Vec<PathBuf>,
    read: HashMap<PathBuf, Kept>,
    last: Arc<Look>,
    places: Vec<Place>,
}

/// What the config directories hold at one moment.
#[derive(Debug, Default)]
pub struct Look {
    /// Every file, sorted by path.
    pub sources: Vec<Source>,
    /// Directories whose contents cannot be known now: missing, unreadable, links into nothing.
    pub doubts: Vec<Doubt>,
    /// Directories whose entries were read.
    pub listed: BTreeSet<String>,
    /// Directories that were read before under another name.
    pub elsewhere: BTreeSet<String>,
    /// The config directories in the order given.
    pub dirs: Vec<(PathBuf, DirState)>,
}

/// How a config directory is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirState {
    /// It cannot be read; it is among the doubts.
    Missing,
    /// There is no file in it. Whether that was meant is known only by what it held.
    Empty,
    /// There are files.
    Filled,
}

/// What tells one state of a file or directory from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A file that was read, for as long as its stamp holds.
struct Kept {
    stamp: Option<Stamp>,
    text: Result<String, String>,
}

impl Files {
    /// For these directories (or single files), which need not exist.
    pub fn new(roots: &[PathBuf]) -> Self {
        Self {
            roots: roots.to_vec(),
            read: HashMap::new(),
            last: Arc::default(),
            places: Vec::new(),
        }
    }

    /// Looks at all of them. Unchanged files are not read again; if nothing at all has changed,
    /// the very same look as before is returned (`Arc::ptr_eq`). It blocks on the file system.
    pub fn look(&mut self) -> Arc<Look> {
        let mut look = Look::default();
        // A rename while a directory is listed may show a file twice or not at all, and a file that
        // is not seen is a connection that is removed: look again until nothing moved.
        for round in 1.. {
            let walk = Walk::of(&self.roots);
            look.sources = self.read(&walk.files);
            let still = walk.is_still();
            look.doubts = walk.doubts;
            look.listed = walk.shown;
            look.elsewhere = walk.elsewhere;
            self.places = walk.places.list();
            if still {
                break;
            }
            if round == ROUNDS {
                // Somebody who never pauses cannot be outwaited: what was not seen may be there.
                let unseen = self.roots.iter().map(|root| Doubt {
                    path: root.display().to_string(),
                    directory: true,
                    error: None,
                });
                look.doubts.extend(unseen);
                break;
            }
            std::thread::sleep(TICK);
        }
        look.dirs = self
            .roots
            .iter()
            .map(|root| (root.clone(), state(root, &look)))
            .collect();
        if !look.is_same(&self.last) {
            self.last = Arc::new(look);
        }
        self.last.clone()
    }

    /// Reads what has changed since the last time. A file that is gone since it was listed is left out.
    fn read(&mut self, files: &BTreeSet<PathBuf>) -> Vec<Source> {
        let mut read = HashMap::with_capacity(files.len());
        let mut sources = Vec::with_capacity(files.len());
        for path in files {
            let kept = self
                .read
                .remove(path)
                .filter(|kept| kept.is_current(path))
                .or_else(|| Kept::read(path));
            if let Some(kept) = kept {
                sources.push(Source {
                    path: path.display().to_string(),
                    text: kept.text.clone(),
                });
                read.insert(path.clone(), kept);
            }
        }
        self.read = read;
        sources
    }

    /// Where a change would make another look worth while, as of the last look.
    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

impl Look {
    fn is_same(&self, other: &Self) -> bool {
        self.doubts == other.doubts
            && self.listed == other.listed
            && self.dirs == other.dirs
            && self.sources.len() == other.sources.len()
            && self
                .sources
                .iter()
                .zip(&other.sources)
                .all(|(one, other)| one.path == other.path && one.text == other.text)
    }
}

impl Kept {
    /// `None` if there is no such file any more.
    fn read(path: &Path) -> Option<Self> {
        // A file that changes while it is read is read again; whoever writes all the time is
        // noticed again by the watch.
        let mut kept = None;
        for _ in 0..3 {
            match read_once(path) {
                Ok((text, stamp, still)) => {
                    kept = Some(Self {
                        stamp: stamp.filter(|_| still),
                        text: Ok(text),
                    });
                    if still {
                        break;
                    }
                }
                // Gone since it was listed; but a link that leads nowhere is still there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::symlink_metadata(path).ok()?;
                    return Some(Self {
                        stamp: None,
                        text: Err(format!("the link leads nowhere: {error}")),
                    });
                }
                Err(error) => {
                    return Some(Self {
                        stamp: None,
                        text: Err(error.to_string()),
                    });
                }
            }
        }
        kept
    }

    fn is_current(&self, path: &Path) -> bool {
        self.stamp.is_some()
            && fs::metadata(path).ok().and_then(|found| Stamp::of(&found)) == self.stamp
    }
}

impl Stamp {
    /// `None` while another change could still carry the same times.
    fn of(metadata: &Metadata) -> Option<Self> {
        let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
        let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let settled = match changed.elapsed() {
            Ok(age) => age > TICK,
            // A file server whose clock runs ahead is believed: waiting would not help.
            Err(ahead) => ahead.duration() > TICK,
        };
        settled.then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// One walk through all directories.
#[derive(Default)]
struct Walk {
    files: BTreeSet<PathBuf>,
    doubts: Vec<Doubt>,
    places: Places,
    seen: HashSet<(u64, u64)>,
    /// Listed directories with the stamp they had before.
    listed: Vec<(PathBuf, Option<Stamp>)>,
    /// The same by the names under which they were reached, and those that were listed before.
    shown: BTreeSet<String>,
    elsewhere: BTreeSet<String>,
    /// Directories behind links come last, so that a directory that is there twice is read under
    /// its own name.
    linked: VecDeque<PathBuf>,
}

impl Walk {
    fn of(roots: &[PathBuf]) -> Self {
        let mut walk = Self::default();
        for root in roots {
            walk.root(root);
        }
        while let Some(dir) = walk.linked.pop_front() {
            walk.places.way_to(&dir);
            match fs::canonicalize(&dir) {
                Ok(real) => walk.directory(&dir, &real),
                Err(error) => walk.doubt(&dir, &error),
            }
        }
        walk.doubts.sort_by(|one, other| one.path.cmp(&other.path));
        walk
    }

    /// Whether no directory has changed since before it was listed.
    fn is_still(&self) -> bool {
        self.listed.iter().all(|(dir, before)| {
            before.is_some()
                && fs::metadata(dir).ok().and_then(|found| Stamp::of(&found)) == *before
        })
    }

    fn root(&mut self, root: &Path) {
        self.places.way_to(root);
        match fs::canonicalize(root) {
            Ok(real) if real.is_file() => drop(self.files.insert(root.to_owned())),
            Ok(real) => self.directory(root, &real),
            Err(error) => self.doubt(root, &error),
        }
    }

    fn directory(&mut self, shown: &Path, real: &Path) {
        let listing = fs::metadata(real).and_then(|found| {
            if !self.seen.insert((found.dev(), found.ino())) {
                return Ok(None);
            }
            self.places.all_of(real);
            self.listed.push((real.to_owned(), Stamp::of(&found)));
            fs::read_dir(real)?
                .collect::<io::Result<Vec<_>>>()
                .map(Some)
        });
        let entries = match listing {
            Ok(Some(entries)) => entries,
            // A circle of links, or a directory that is reached twice.
            Ok(None) => {
                self.elsewhere.insert(shown.display().to_string());
                return;
            }
            Err(error) => return self.doubt(shown, &error),
        };
        self.shown.insert(shown.display().to_string());
        for entry in entries {
            let name = entry.file_name();
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            let path = shown.join(&name);
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let target_is_dir = || match fs::metadata(&path) {
                Ok(target) => target.is_dir(),
                // It may have been one, unless it is called a file.
                Err(_) => !is_source(&name),
            };
            if kind.is_dir() {
                self.directory(&path, &real.join(&name));
            } else if kind.is_symlink() && target_is_dir() {
                self.linked.push_back(path);
            } else if is_source(&name) {
                if kind.is_symlink() {
                    self.places.way_to(&path);
                }
                self.files.insert(path);
            }
        }
    }

    fn doubt(&mut self, dir: &Path, error: &io::Error) {
        let error = if error.kind() == io::ErrorKind::NotFound {
            format!("the directory {} is missing", dir.display())
        } else {
            format!("the directory {} cannot be read: {error}", dir.display())
        };
        self.doubts.push(Doubt {
            path: dir.display().to_string(),
            directory: true,
            error: Some(error),
        });
    }
}

fn state(root: &Path, look: &Look) -> DirState {
    let shown = root.display().to_string();
    // One that merely never rests has no error.
    let cannot_be_read = |doubt: &Doubt| doubt.path == shown && doubt.error.is_some();
    if look.doubts.iter().any(cannot_be_read) {
        DirState::Missing
    } else if look
        .sources
        .iter()
        .any(|source| Path::new(&source.path).starts_with(root))
    {
        DirState::Filled
    } else {
        DirState::Empty
    }
}

fn is_source(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".spc") || name.ends_with(b".spc.json")
}

/// The text, its stamp, and whether the file stayed the same meanwhile.
fn read_once(path: &Path) -> io::Result<(String, Option<Stamp>, bool)> {
    // A pipe that someone named so would otherwise hold the daemon until a writer comes.
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if before.len() > LARGEST {
        return Err(io::Error::other(format!(
            "larger than {} MiB",
            LARGEST >> 20
        )));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.len()).unwrap_or(0));
    (&file).take(LARGEST + 1).read_to_end(&mut bytes)?;
    let after = file.metadata()?;
    let still = (before.len(), before.mtime(), before.mtime_nsec())
        == (after.len(), after.mtime(), after.mtime_nsec());
    let text = String::from_utf8(bytes).map_err(|error| {
        io::Error::other(format!(
            "not UTF-8 from byte {}; save it as UTF-8",
            error.utf8_error().valid_up_to()
        ))
    })?;
    Ok((text, Stamp::of(&after), still))
}

#[cfg(test)]
mod tests;
