//! Files of csv connections: their paths, permissions and contents.

mod find;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use parking_lot::Mutex;
use spcd_core::config::{CsvSettings, Import};
use spcd_core::csv;
use spcd_core::diff::{Table, TableWarning};

pub use find::{FileSearch, FoundFiles, find_files};
use spcd_postgres::import::csv::CsvFiles;
use spcd_postgres::import::csv::file_access::FileAccessor;

/// Maximum size of a file that is read whole, so that its column types are certain.
const MAX_WHOLE_BYTES: u64 = 16 << 20;
/// Number of bytes that are read of a larger file. They must contain the header.
const PREFIX_BYTES: u64 = 1 << 20;

/// Maximum number of reads of files that vanish while they are read.
const MAX_READS: usize = 3;

/// Reads the files of a connection. Blocks on the file system.
///
/// # Errors
/// The files cannot be listed.
pub fn read(csv: &CsvSettings, import: &Import) -> Result<CsvFiles, String> {
    read_found(csv, import, || find_files(&csv.paths).found)
}

/// Reads the files that `find` lists. If one vanishes before it is read, lists them again: its whole
/// directory may be out of reach, which must not look as if the files had been deleted.
fn read_found(
    csv: &CsvSettings,
    import: &Import,
    mut find: impl FnMut() -> FoundFiles,
) -> Result<CsvFiles, String> {
    let mut reads = 0;
    loop {
        let mut found = find();
        if let Some(error) = found.error.take() {
            return Err(error);
        }
        let (files, has_vanished) = read_once(found, csv, import);
        reads += 1;
        if !has_vanished || reads == MAX_READS {
            return Ok(files);
        }
    }
}

/// Reads these files. Returns also whether one of them has vanished.
fn read_once(found: FoundFiles, csv: &CsvSettings, import: &Import) -> (CsvFiles, bool) {
    let FoundFiles {
        files,
        warnings,
        left_out,
        ..
    } = found;
    let mut has_vanished = false;
    let mut all = CsvFiles::default();
    all.remote.warnings = warnings;
    all.remote.left_out = left_out;
    let mut separators = BTreeMap::<char, Vec<String>>::new();
    let mut names: Vec<String> = (all.remote.left_out.iter())
        .filter_map(|warning| warning.table.clone())
        .collect();
    for path in files.into_keys() {
        // `find_files` returns only UTF-8 paths.
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
                let table = Some(csv::stem(file).to_owned());
                names.extend(table.clone());
                all.remote.left_out.push(TableWarning { table, text });
                continue;
            }
        };
        names.push(name.to_owned());
        if !import.selects(name) {
            continue;
        }
        if let Some(first) = all.paths.get(name) {
            all.remote.warnings.push(format!(
                "{whole} is left out: {} has given its name to the table {name:?}; rename one of \
                 them, or give each a connection of its own",
                first.display()
            ));
            continue;
        }
        let Some(table) = read_table(&path, (name, whole), csv, &mut all, &mut separators) else {
            has_vanished = true;
            continue;
        };
        all.remote.tables.push(table);
        all.paths.insert(name.to_owned(), path.clone());
    }
    let warnings = &mut all.remote.warnings;
    warnings.extend(unmatched_patterns(import, &names));
    warnings.extend(separators.iter().map(separator_warning));
    (all, has_vanished)
}

/// Returns the table of a file, or `None` if the file was deleted after it was found.
fn read_table(
    path: &Path,
    (name, whole): (&str, &str),
    csv: &CsvSettings,
    all: &mut CsvFiles,
    separators: &mut BTreeMap<char, Vec<String>>,
) -> Option<Table> {
    let failed = |reason: String| Table {
        name: name.to_owned(),
        import_error: Some(format!("{whole}: {reason}")),
        ..Table::default()
    };
    let table = match read_bytes(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            all.unreadable.insert(name.to_owned());
            let missing =
                FileAccessor::current_process().and_then(|me| me.missing_permission(path));
            failed(missing.unwrap_or_else(|| error.to_string()))
        }
        Err(error) => failed(error.to_string()),
        Ok((bytes, is_whole)) => match csv::infer_layout(&bytes, is_whole, csv) {
            Ok(sheet) => {
                if csv.separator.is_none() && sheet.separator != ',' {
                    let files = separators.entry(sheet.separator).or_default();
                    files.push(whole.to_owned());
                }
                csv::foreign_table(name, whole, &sheet, csv)
            }
            Err(fault) => failed(fault.to_string()),
        },
    };
    Some(table)
}

/// Returns a warning for each pattern that matches the name of no file. There is none without files,
/// which have a warning of their own.
fn unmatched_patterns(import: &Import, names: &[String]) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    let (taken, others): (Vec<&str>, Vec<&str>) =
        (names.iter().map(String::as_str)).partition(|name| import.selects(name));
    import.unmatched_patterns(&taken, Some(&others))
}

/// Returns the warning that a separator other than the comma was detected.
fn separator_warning((separator, files): (&char, &Vec<String>)) -> String {
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

/// Returns the files of a connection that can be opened. Blocks on the file system.
///
/// # Errors
/// The files cannot be listed, or none of them can be opened.
pub fn openable(paths: &[String]) -> Result<Vec<String>, String> {
    let FoundFiles { files, error, .. } = find_files(paths).found;
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
    // Without O_NONBLOCK, opening a pipe would block until another process opens it for writing.
    let flags = OFlag::O_NONBLOCK.bits();
    File::options().read(true).custom_flags(flags).open(path)
}

/// Reads a file or its prefix. Returns also whether the file is complete.
fn read_bytes(path: &Path) -> io::Result<(Vec<u8>, bool)> {
    let file = open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    let most = if found.len() > MAX_WHOLE_BYTES {
        PREFIX_BYTES
    } else {
        MAX_WHOLE_BYTES
    };
    let mut bytes = Vec::with_capacity(usize::try_from(found.len().min(most)).unwrap_or(0));
    (&file).take(most).read_to_end(&mut bytes)?;
    // The file may have grown meanwhile.
    let is_whole = found.len() <= MAX_WHOLE_BYTES
        && (bytes.len() as u64) < MAX_WHOLE_BYTES.max(found.len() + 1);
    Ok((bytes, is_whole))
}

/// Locks of the running threads, by key.
static RUNNING: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>> = Mutex::new(BTreeMap::new());

/// Runs a function that may block forever, for example on a lost file server, in a thread that does not
/// delay the end of the process. Runs one function per key at a time, so that blocked threads do not
/// accumulate. Returns `None` if no thread can be started.
pub async fn run_in_thread<T: Send + 'static>(
    key: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let turn = {
        let mut running = RUNNING.lock();
        running.retain(|_, turn| Arc::strong_count(turn) > 1);
        running.entry(key).or_default().clone()
    };
    let turn = turn.lock_owned().await;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name("files".into())
        .spawn(move || {
            let done = run();
            drop(turn);
            // The receiver may have been dropped.
            let _ = sender.send(done);
        });
    match spawned {
        Ok(_) => receiver.await.ok(),
        Err(error) => {
            tracing::warn!(%error, "cannot start a thread to read files");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_function_of_a_key_runs_at_a_time() {
        let (release, hold) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn(run_in_thread("hangs".into(), move || hold.recv().is_ok()));
        while RUNNING
            .lock()
            .get("hangs")
            .is_none_or(|turn| turn.try_lock().is_ok())
        {
            tokio::task::yield_now().await;
        }
        let second = tokio::spawn(run_in_thread("hangs".into(), || 2));
        // Another key has a turn of its own.
        assert_eq!(run_in_thread("other".into(), || 3).await, Some(3));
        assert!(!second.is_finished());
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Some(true));
        assert_eq!(second.await.unwrap(), Some(2));
    }

    #[test]
    fn a_pattern_that_matches_no_file_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("orders.csv"), "a\n1\n").unwrap();
        std::fs::write(dir.path().join("people.csv"), "a\n1\n").unwrap();
        let csv = CsvSettings {
            paths: vec![dir.path().join("*.csv").display().to_string()],
            ..CsvSettings::default()
        };
        let import = Import {
            tables: vec!["order*".into(), "costs".into()],
            ..Import::default()
        };
        let read = read(&csv, &import).unwrap();
        let names: Vec<&str> = read.paths.keys().map(String::as_str).collect();
        assert_eq!(names, ["orders"]);
        let warnings = read.remote.warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("costs"), "{warnings:?}");
    }

    #[test]
    fn a_directory_that_vanishes_during_a_read_is_an_error() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        for name in ["a.csv", "b.csv"] {
            std::fs::write(dir.join(name), "a\n1\n").unwrap();
        }
        let csv = CsvSettings {
            paths: vec![dir.join("*.csv").display().to_string()],
            ..CsvSettings::default()
        };
        let files_after = |mut change: Box<dyn FnMut()>| {
            let find = || {
                let found = find_files(&csv.paths).found;
                change();
                found
            };
            read_found(&csv, &Import::default(), find).map(|files| files.paths.len())
        };
        let file = dir.join("a.csv");
        let deleted = files_after(Box::new(move || drop(std::fs::remove_file(&file))));
        assert_eq!(deleted, Ok(1));
        let aside = top.path().join("aside");
        let error = files_after(Box::new(move || drop(std::fs::rename(&dir, &aside))));
        assert!(error.unwrap_err().ends_with("is missing"));
    }

    #[test]
    fn a_large_file_is_read_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let size = |size: u64| {
            File::create(&path).unwrap().set_len(size).unwrap();
            let (bytes, whole) = read_bytes(&path).unwrap();
            (bytes.len() as u64, whole)
        };
        assert_eq!(size(0), (0, true));
        assert_eq!(size(MAX_WHOLE_BYTES), (MAX_WHOLE_BYTES, true));
        assert_eq!(size(MAX_WHOLE_BYTES + 1), (PREFIX_BYTES, false));
        assert_eq!(size(1 << 40), (PREFIX_BYTES, false));
    }
}
