//! The files of csv connections: which there are, who may read them, and what is in them.

pub mod access;
mod find;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use nix::fcntl::OFlag;
use spcd_core::config::{Csv, Import};
use spcd_core::csv::{self, Fault};
use spcd_core::plan::Offer;
use spcd_core::shape::Table;

use access::Who;
pub use find::{Found, Look, find};

/// A file up to this size is read whole, so that its types are certain.
const WHOLE: u64 = 16 << 20;
/// Of a larger one so much is read: its names must be in there.
const BEGINNING: u64 = 1 << 20;

/// What the files of a connection hold.
#[derive(Debug, Default)]
pub struct Files {
    /// A table a file; those that cannot be one say why.
    pub offer: Offer,
    /// The tables' files.
    pub paths: BTreeMap<String, PathBuf>,
    /// Tables whose file this process may not read.
    pub closed: BTreeSet<String>,
}

/// Reads the files of a connection. It blocks on the file system.
///
/// # Errors
/// Why it is not known which files there are.
pub fn read(csv: &Csv, import: &Import) -> Result<Files, String> {
    let Found {
        files,
        warnings,
        error,
        ..
    } = find(&csv.paths).found;
    if let Some(error) = error {
        return Err(error);
    }
    let mut all = Files::default();
    all.offer.warnings = warnings;
    let mut separators = BTreeMap::<char, Vec<String>>::new();
    for path in files.into_keys() {
        // `find` has left out what is not.
        let Some((whole, file)) = path
            .to_str()
            .zip(path.file_name().and_then(|name| name.to_str()))
        else {
            continue;
        };
        let name = match csv::table_name(file) {
            Ok(name) => name,
            Err(fault) => {
                let text = format!("{whole} is left out: {fault}");
                all.offer.warnings.push(text);
                continue;
            }
        };
        if !import.takes(name) {
            continue;
        }
        if let Some(first) = all.paths.get(name) {
            all.offer.warnings.push(format!(
                "{whole} is left out: {} has given its name to the table {name:?}; rename one of \
                 them, or give each a connection of its own",
                first.display()
            ));
            continue;
        }
        let unfit = |reason: String| Table {
            name: name.to_owned(),
            unfit: Some(format!("{whole}: {reason}")),
            ..Table::default()
        };
        let table = match bytes(&path) {
            // It went since it was found.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                all.closed.insert(name.to_owned());
                let lacks = Who::me().and_then(|me| me.lacks(&path));
                unfit(lacks.unwrap_or_else(|| error.to_string()))
            }
            Err(error) => unfit(error.to_string()),
            Ok((bytes, is_whole)) => match csv::read(&bytes, is_whole, csv) {
                Ok(sheet) => {
                    if csv.separator.is_none() && sheet.separator != ',' {
                        let files = separators.entry(sheet.separator).or_default();
                        files.push(whole.to_owned());
                    }
                    csv::table(name, whole, &sheet, csv)
                }
                Err(fault) => unfit(of_file(&fault)),
            },
        };
        all.offer.tables.push(table);
        all.paths.insert(name.to_owned(), path.clone());
    }
    all.offer
        .warnings
        .extend(separators.iter().map(of_separator));
    Ok(all)
}

/// Says that files have another separator than the usual one, which was found by looking.
fn of_separator((separator, files): (&char, &Vec<String>)) -> String {
    let first = files.first().map_or("", String::as_str);
    let files = match files.len() {
        0 | 1 => first.to_owned(),
        n => format!("{first} (and {} more)", n - 1),
    };
    let sign = separator.escape_default();
    format!(
        "{files}: the values are separated by \"{sign}\", not by commas; write \
         `separator = \"{sign}\"` to confirm it"
    )
}

fn of_file(fault: &Fault) -> String {
    fault.to_string()
}

/// Those files of a connection that can be opened. It blocks on the file system.
///
/// # Errors
/// Why it is not known which files there are, or why none of them can be opened.
pub fn openable(paths: &[String]) -> Result<Vec<String>, String> {
    let Found { files, error, .. } = find(paths).found;
    if let Some(error) = error {
        return Err(error);
    }
    let mut open = Vec::new();
    let mut first = None;
    for path in files.keys() {
        match (self::open(path), path.to_str()) {
            (Ok(_), Some(path)) => open.push(path.to_owned()),
            (Ok(_), None) => {}
            (Err(error), _) => {
                first.get_or_insert_with(|| format!("{}: {error}", path.display()));
            }
        }
    }
    match first.filter(|_| open.is_empty()) {
        Some(error) => Err(error),
        None => Ok(open),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // A pipe that took the file's place would hold us until a writer comes.
    let flags = OFlag::O_NONBLOCK.bits();
    File::options().read(true).custom_flags(flags).open(path)
}

/// A file's bytes, or its beginning; and whether that is all of it.
fn bytes(path: &Path) -> io::Result<(Vec<u8>, bool)> {
    let file = open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    let most = if found.len() > WHOLE {
        BEGINNING
    } else {
        WHOLE
    };
    let mut bytes = Vec::with_capacity(usize::try_from(found.len().min(most)).unwrap_or(0));
    (&file).take(most).read_to_end(&mut bytes)?;
    // It may have grown meanwhile.
    let is_whole = found.len() <= WHOLE && (bytes.len() as u64) < WHOLE.max(found.len() + 1);
    Ok((bytes, is_whole))
}

/// What runs aside now, by its key.
static ASIDE: LazyLock<Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>> =
    LazyLock::new(Mutex::default);

/// Runs what may block for ever (a file server that is gone) in a thread that nobody waits for when
/// the process ends. Of one key only one runs at a time, so that threads which hang do not pile up.
/// `None`: there is no thread for it.
pub async fn aside<T: Send + 'static>(
    key: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let turn = {
        let mut aside = ASIDE.lock().unwrap_or_else(PoisonError::into_inner);
        aside.retain(|_, turn| Arc::strong_count(turn) > 1);
        aside.entry(key).or_default().clone()
    };
    let turn = turn.lock_owned().await;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("files".into())
        .spawn(move || {
            let done = run();
            drop(turn);
            // Whoever asked may have given up.
            let _ = sender.send(done);
        });
    match spawned {
        Ok(_) => receiver.await.ok(),
        Err(error) => {
            tracing::warn!("no thread to read files: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_one_key_one_runs_at_a_time() {
        let (release, hold) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn(aside("hangs".into(), move || hold.recv().is_ok()));
        while ASIDE
            .lock()
            .unwrap()
            .get("hangs")
            .is_none_or(|turn| turn.try_lock().is_ok())
        {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn(aside("hangs".into(), || 2));
        // Another key has a turn of its own.
        assert_eq!(aside("other".into(), || 3).await, Some(3));
        assert!(!second.is_finished());
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Some(true));
        assert_eq!(second.await.unwrap(), Some(2));
    }

    #[test]
    fn a_large_file_is_read_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let size = |size: u64| {
            File::create(&path).unwrap().set_len(size).unwrap();
            let (bytes, whole) = bytes(&path).unwrap();
            (bytes.len() as u64, whole)
        };
        assert_eq!(size(0), (0, true));
        assert_eq!(size(WHOLE), (WHOLE, true));
        assert_eq!(size(WHOLE + 1), (BEGINNING, false));
        assert_eq!(size(1 << 40), (BEGINNING, false));
    }
}
