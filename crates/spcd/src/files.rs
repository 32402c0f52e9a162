//! Reads the files of the config directories.

mod watch_points;

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
use spcd_core::config::{SourceFile, UnknownInput};

pub use watch_points::{WatchPoint, WatchPoints};

/// Maximum size of a file, in bytes: far above any written by hand. A file placed here by mistake must not
/// exhaust the memory.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Two changes within this time may have the same time stamp: file systems use the kernel's tick, up to
/// 10 ms. A more recent stamp is not trusted.
const TIMESTAMP_TICK: Duration = Duration::from_millis(20);

/// Maximum number of scans of a directory that keeps changing.
const MAX_SCANS: u32 = 10;

/// Which files of the config directories are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extensions {
    /// `.spc` and `.spc.json`.
    #[default]
    Spc,
    /// Also those that Steampipe reads: `.json`, `.yml` and `.yaml` in a config directory itself, not below
    /// it.
    Steampipe,
}

/// Reads the config directories. Files that have not changed since the last scan are not read again.
pub struct ConfigReader {
    roots: Vec<PathBuf>,
    extensions: Extensions,
    read: HashMap<PathBuf, CachedFile>,
    last: Arc<ConfigScan>,
    watch_points: Vec<WatchPoint>,
}

/// Content of the config directories at one moment.
#[derive(Debug, Default)]
pub struct ConfigScan {
    /// Every file, sorted by path.
    pub sources: Vec<SourceFile>,
    /// Directories whose contents are unknown: missing, unreadable, or behind a dangling link.
    pub unknown_inputs: Vec<UnknownInput>,
    /// Directories whose entries were read.
    pub listed: BTreeSet<String>,
    /// Directories that this scan read under another name.
    pub elsewhere: BTreeSet<String>,
    /// Files that only `compat = "steampipe"` would read.
    pub skipped: BTreeSet<String>,
    /// The config directories in the order given.
    pub dirs: Vec<(PathBuf, DirState)>,
}

/// State of a config directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirState {
    /// It cannot be read. It counts as an unknown input.
    Missing,
    /// It contains no file. Only its previous contents show whether that is intended.
    Empty,
    /// It contains files.
    Filled,
}

/// Metadata that differ between two states of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Content of a file, valid as long as its stamp is the same.
struct CachedFile {
    stamp: Option<Stamp>,
    text: Result<String, String>,
}

impl ConfigReader {
    /// Returns a reader of these directories or single files, which need not exist.
    pub fn new(roots: &[PathBuf], extensions: Extensions) -> Self {
        Self {
            roots: roots.to_vec(),
            extensions,
            read: HashMap::new(),
            last: Arc::default(),
            watch_points: Vec::new(),
        }
    }

    /// Scans all directories. Unchanged files are not read again, and without any change the previous scan
    /// is returned (`Arc::ptr_eq`). Blocks on the file system.
    pub fn scan(&mut self) -> Arc<ConfigScan> {
        let mut scan = ConfigScan::default();
        // A rename while a directory is listed may show a file twice or not at all, and a missed file would
        // remove its connections: scan again until nothing has changed.
        for scan_number in 1.. {
            let walk = Walk::of(&self.roots, self.extensions);
            scan.sources = self.read(&walk.files);
            let is_stable = walk.is_unchanged();
            scan.unknown_inputs = walk.unknown_inputs;
            scan.listed = walk.listed_names;
            scan.elsewhere = walk.elsewhere;
            scan.skipped = walk.skipped;
            self.watch_points = walk.watch_points.list();
            if is_stable {
                break;
            }
            if scan_number == MAX_SCANS {
                // A writer that never pauses: files that were not seen may exist.
                let unseen = self.roots.iter().map(|root| UnknownInput {
                    mirror: None,
                    path: root.display().to_string(),
                    is_directory: true,
                    error: None,
                });
                scan.unknown_inputs.extend(unseen);
                break;
            }
            std::thread::sleep(TIMESTAMP_TICK);
        }
        scan.dirs = self
            .roots
            .iter()
            .map(|root| (root.clone(), state(root, &scan)))
            .collect();
        if !scan.is_same(&self.last) {
            self.last = Arc::new(scan);
        }
        self.last.clone()
    }

    /// Returns the files, and reads those that have changed. Omits a file that was removed after it was listed.
    fn read(&mut self, files: &BTreeSet<PathBuf>) -> Vec<SourceFile> {
        let mut read = HashMap::with_capacity(files.len());
        let mut sources = Vec::with_capacity(files.len());
        for path in files {
            let cached = self
                .read
                .remove(path)
                .filter(|cached| cached.is_current(path))
                .or_else(|| CachedFile::read(path));
            if let Some(cached) = cached {
                sources.push(SourceFile {
                    path: path.display().to_string(),
                    text: cached.text.clone(),
                });
                read.insert(path.clone(), cached);
            }
        }
        self.read = read;
        sources
    }

    /// Returns the directories to watch.
    pub fn watch_points(&self) -> &[WatchPoint] {
        &self.watch_points
    }
}

impl ConfigScan {
    fn is_same(&self, other: &Self) -> bool {
        self.unknown_inputs == other.unknown_inputs
            && self.listed == other.listed
            && self.skipped == other.skipped
            && self.dirs == other.dirs
            && self.sources.len() == other.sources.len()
            && self
                .sources
                .iter()
                .zip(&other.sources)
                .all(|(one, other)| one.path == other.path && one.text == other.text)
    }
}

impl CachedFile {
    /// Returns `None` if the file was removed.
    fn read(path: &Path) -> Option<Self> {
        // A file that changes while it is read is read again. The watch notices further changes.
        let mut cached = None;
        for _ in 0..3 {
            match read_once(path) {
                Ok((text, stamp, is_stable)) => {
                    cached = Some(Self {
                        stamp: stamp.filter(|_| is_stable),
                        text: Ok(text),
                    });
                    if is_stable {
                        break;
                    }
                }
                // It was removed after it was listed. A dangling link still exists.
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
        cached
    }

    fn is_current(&self, path: &Path) -> bool {
        self.stamp.is_some()
            && fs::metadata(path).ok().and_then(|found| Stamp::of(&found)) == self.stamp
    }
}

impl Stamp {
    /// Returns `None` while another change could have the same times.
    fn of(metadata: &Metadata) -> Option<Self> {
        let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
        let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let settled = match changed.elapsed() {
            Ok(age) => age > TIMESTAMP_TICK,
            // A time in the future is accepted: the clock of a file server may be ahead, and waiting would not help.
            Err(ahead) => ahead.duration() > TIMESTAMP_TICK,
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

/// State of one walk through all directories.
#[derive(Default)]
struct Walk {
    files: BTreeSet<PathBuf>,
    unknown_inputs: Vec<UnknownInput>,
    watch_points: WatchPoints,
    seen: HashSet<(u64, u64)>,
    /// Listed directories, each with its stamp before it was listed.
    listed: Vec<(PathBuf, Option<Stamp>)>,
    /// Paths by which they were reached, and paths of directories that were listed under another one.
    listed_names: BTreeSet<String>,
    elsewhere: BTreeSet<String>,
    extensions: Extensions,
    /// Device and inode of the config directories.
    roots: HashSet<(u64, u64)>,
    skipped: BTreeSet<String>,
    /// Directories behind links. They come last, so that a directory that can be reached by two paths
    /// is read under its own.
    linked: VecDeque<PathBuf>,
}

impl Walk {
    fn of(roots: &[PathBuf], extensions: Extensions) -> Self {
        let found = roots.iter().filter_map(|root| fs::metadata(root).ok());
        let mut walk = Self {
            extensions,
            roots: found.map(|found| (found.dev(), found.ino())).collect(),
            ..Self::default()
        };
        for root in roots {
            walk.root(root);
        }
        while let Some(dir) = walk.linked.pop_front() {
            walk.watch_points.way_to(&dir);
            match fs::canonicalize(&dir) {
                Ok(real) => walk.directory(&dir, &real),
                Err(error) => walk.add_unknown(&dir, &error),
            }
        }
        walk.unknown_inputs
            .sort_by(|one, other| one.path.cmp(&other.path));
        walk
    }

    /// Whether no directory has changed since it was listed.
    fn is_unchanged(&self) -> bool {
        self.listed.iter().all(|(dir, before)| {
            before.is_some()
                && fs::metadata(dir).ok().and_then(|found| Stamp::of(&found)) == *before
        })
    }

    fn root(&mut self, root: &Path) {
        self.watch_points.way_to(root);
        match fs::canonicalize(root) {
            Ok(real) if real.is_file() => drop(self.files.insert(root.to_owned())),
            Ok(real) => self.directory(root, &real),
            Err(error) => self.add_unknown(root, &error),
        }
    }

    fn directory(&mut self, listed_names: &Path, real: &Path) {
        let mut is_root = false;
        let listing = fs::metadata(real).and_then(|found| {
            is_root = self.roots.contains(&(found.dev(), found.ino()));
            if !self.seen.insert((found.dev(), found.ino())) {
                return Ok(None);
            }
            self.watch_points.all_of(real);
            self.listed.push((real.to_owned(), Stamp::of(&found)));
            fs::read_dir(real)?
                .collect::<io::Result<Vec<_>>>()
                .map(Some)
        });
        let entries = match listing {
            Ok(Some(entries)) => entries,
            // A cycle of links, or a directory that is reached twice.
            Ok(None) => {
                self.elsewhere.insert(listed_names.display().to_string());
                return;
            }
            Err(error) => return self.add_unknown(listed_names, &error),
        };
        self.listed_names.insert(listed_names.display().to_string());
        for entry in entries {
            let name = entry.file_name();
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            let path = listed_names.join(&name);
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let target_is_dir = || match fs::metadata(&path) {
                Ok(target) => target.is_dir(),
                // A dangling link may have led to a directory, unless its name is one of a file.
                Err(_) => !(is_source(&name) || is_root && is_of_steampipe(&name)),
            };
            if kind.is_dir() {
                self.directory(&path, &real.join(&name));
            } else if kind.is_symlink() && target_is_dir() {
                self.linked.push_back(path);
            } else if is_root && self.extensions == Extensions::Spc && is_of_steampipe(&name) {
                self.skipped.insert(path.display().to_string());
            } else if is_source(&name) || is_root && is_of_steampipe(&name) {
                if kind.is_symlink() {
                    self.watch_points.way_to(&path);
                }
                self.files.insert(path);
            }
        }
    }

    fn add_unknown(&mut self, dir: &Path, error: &io::Error) {
        let error = if error.kind() == io::ErrorKind::NotFound {
            format!("the directory {} is missing", dir.display())
        } else {
            format!("the directory {} cannot be read: {error}", dir.display())
        };
        self.unknown_inputs.push(UnknownInput {
            mirror: None,
            path: dir.display().to_string(),
            is_directory: true,
            error: Some(error),
        });
    }
}

fn state(root: &Path, scan: &ConfigScan) -> DirState {
    let listed_names = root.display().to_string();
    // A directory that keeps changing has no error.
    let cannot_be_read = |input: &UnknownInput| input.path == listed_names && input.error.is_some();
    if scan.unknown_inputs.iter().any(cannot_be_read) {
        DirState::Missing
    } else if scan
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

/// Whether a file is read only for compatibility with Steampipe.
fn is_of_steampipe(name: &OsStr) -> bool {
    let extensions: [&[u8]; 3] = [b".json", b".yml", b".yaml"];
    let name = name.as_bytes();
    extensions.iter().any(|end| name.ends_with(end)) && !name.ends_with(b".spc.json")
}

/// Returns the text, its stamp, and whether the file did not change while it was read.
fn read_once(path: &Path) -> io::Result<(String, Option<Stamp>, bool)> {
    // Opening a pipe would otherwise block until it has a writer.
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if before.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "larger than {} MiB",
            MAX_FILE_BYTES >> 20
        )));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.len()).unwrap_or(0));
    (&file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    let after = file.metadata()?;
    let is_stable = (before.len(), before.mtime(), before.mtime_nsec())
        == (after.len(), after.mtime(), after.mtime_nsec());
    let text = String::from_utf8(bytes).map_err(|error| {
        io::Error::other(format!(
            "not UTF-8 from byte {}; save it as UTF-8",
            error.utf8_error().valid_up_to()
        ))
    })?;
    Ok((text, Stamp::of(&after), is_stable))
}

#[cfg(test)]
mod tests;
