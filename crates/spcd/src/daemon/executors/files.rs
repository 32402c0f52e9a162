//! Finds out for which csv connections the files differ from those that were last read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{CsvSettings, DesiredState};
use spcd_core::scheduler::Files;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use crate::files::{WatchPoint, WatchPoints};
use crate::source::csv::{FileSearch, FoundFiles, find_files, run_in_thread};

/// Time that a pass waits for the searches. Connections whose search takes longer are late: a file
/// server that hangs delays no other connection.
const SEARCH_TIMEOUT: Duration = Duration::from_millis(300);
/// Maximum number of concurrent searches, not counting the slow ones.
const MAX_CONCURRENT_SEARCHES: usize = 16;
/// Time after which a search is slow and gives its permit back.
const SLOW_AFTER: Duration = Duration::from_millis(100);
/// Minimum time between two reads of files that keep changing.
const MIN_READ_INTERVAL: Duration = Duration::from_millis(300);
/// Time until files that have just changed are searched again: their next change may have the same
/// time stamp.
const RECHECK_DELAY: Duration = Duration::from_millis(40);

/// The files of all csv connections.
pub struct CsvWatch {
    connections: BTreeMap<String, ConnectionFiles>,
    sender: mpsc::UnboundedSender<SearchResult>,
    results: mpsc::UnboundedReceiver<SearchResult>,
    permits: Arc<Semaphore>,
}

/// Result of one search. `search` is `None` if its thread could not run.
struct SearchResult {
    name: String,
    csv: CsvSettings,
    search: Option<FileSearch>,
}

/// The files of one connection.
#[derive(Default)]
struct ConnectionFiles {
    csv: CsvSettings,
    found: Option<FoundFiles>,
    watch_points: Vec<WatchPoint>,
    /// A file changed so recently that its next change may have the same time stamp.
    is_recent: bool,
    is_searching: bool,
    /// The search takes longer than a pass waits.
    is_late: bool,
    /// The search began before another one was requested, and may miss a change in between.
    is_outdated: bool,
    /// State of the files when they were last read.
    read: Option<FoundFiles>,
    read_at: Option<Instant>,
}

impl Default for CsvWatch {
    fn default() -> Self {
        let (sender, results) = mpsc::unbounded_channel();
        Self {
            connections: BTreeMap::new(),
            sender,
            results,
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_SEARCHES)),
        }
    }
}

/// Searches a connection's files and sends the result.
async fn search(
    name: String,
    csv: CsvSettings,
    sender: mpsc::UnboundedSender<SearchResult>,
    permits: Arc<Semaphore>,
) {
    let paths = csv.paths.clone();
    let searching = run_in_thread(format!("find {name}"), move || find_files(&paths));
    tokio::pin!(searching);
    let permit = permits.acquire_owned().await;
    let search = match timeout(SLOW_AFTER, &mut searching).await {
        Ok(search) => search,
        Err(_) => {
            drop(permit);
            searching.await
        }
    };
    // Fails only when the daemon ends.
    let _ = sender.send(SearchResult { name, csv, search });
}

impl CsvWatch {
    /// Searches the files of all csv connections. If a client waits for the result (`is_awaited`),
    /// files that keep changing are read without a pause.
    pub async fn scan(&mut self, desired: &DesiredState, is_awaited: bool) -> Files {
        self.start_searches(desired);
        let until = Instant::now() + SEARCH_TIMEOUT;
        while (self.connections.values()).any(|known| known.is_searching && !known.is_late) {
            match timeout_at(until, self.results.recv()).await {
                Ok(Some(result)) => {
                    self.record(result);
                }
                _ => break,
            }
        }
        let mut files = Files::default();
        let min_interval = if is_awaited {
            Duration::ZERO
        } else {
            MIN_READ_INTERVAL
        };
        for (name, known) in &mut self.connections {
            known.is_late = known.is_searching;
            if known.is_late {
                files.late.push(name.clone());
            }
            if !known.is_changed() {
                continue;
            }
            let since = known.read_at.map(|at| at.elapsed());
            let mut wait = since.map_or(Duration::ZERO, |since| min_interval.saturating_sub(since));
            if known.is_recent {
                wait = wait.max(RECHECK_DELAY);
            }
            if !wait.is_zero() {
                let wait = whole_millis(wait);
                files.again = Some(files.again.map_or(wait, |again| again.min(wait)));
            }
            if since.is_none_or(|since| since >= min_interval) {
                files.changed.push((name.clone(), since.is_some()));
            }
        }
        files
    }

    /// Starts a search for each enabled csv connection, and drops the state of all others.
    fn start_searches(&mut self, desired: &DesiredState) {
        let desired_csv: BTreeMap<&String, &CsvSettings> = (desired.connections.iter())
            .filter(|(_, connection)| connection.enabled)
            .filter_map(|(name, connection)| {
                let target = connection.target.as_ref().ok()?;
                Some((name, target.csv.as_ref()?))
            })
            .collect();
        (self.connections)
            .retain(|name, known| desired_csv.get(name).is_some_and(|csv| **csv == known.csv));
        for (name, csv) in desired_csv {
            let known = self.connections.entry(name.clone());
            let known = known.or_insert_with(|| ConnectionFiles {
                csv: csv.clone(),
                ..ConnectionFiles::default()
            });
            if known.is_searching {
                known.is_outdated = true;
                continue;
            }
            known.is_searching = true;
            let (sender, permits) = (self.sender.clone(), self.permits.clone());
            tokio::spawn(search(name.clone(), csv.clone(), sender, permits));
        }
    }

    /// Waits until a late search ends and finds a change.
    pub async fn late_change(&mut self) {
        // The channel stays open: this struct holds a sender.
        while let Some(result) = self.results.recv().await {
            if self.record(result) {
                return;
            }
        }
    }

    /// Records the result of a search. Returns whether the files differ from those that were read.
    fn record(&mut self, result: SearchResult) -> bool {
        let SearchResult {
            name,
            csv,
            search: found,
        } = result;
        let Some(known) = (self.connections.get_mut(&name)).filter(|known| known.csv == csv) else {
            return false;
        };
        known.is_searching = known.is_outdated;
        known.is_late = false;
        if std::mem::take(&mut known.is_outdated) {
            let sender = self.sender.clone();
            tokio::spawn(search(name, csv, sender, self.permits.clone()));
        }
        if let Some(search) = found {
            known.found = Some(search.found);
            known.watch_points = search.watch_points;
            known.is_recent = search.is_recent;
        }
        known.is_changed()
    }

    /// Records that a connection's files are about to be read.
    pub fn begin_read(&mut self, name: &str) {
        if let Some(known) = self.connections.get_mut(name) {
            // Another change may have the same time stamp.
            known.read = known.found.clone().filter(|_| !known.is_recent);
            known.read_at = Some(Instant::now());
        }
    }

    /// Records that a connection's files were not read after all.
    pub fn cancel_read(&mut self, name: &str) {
        if let Some(known) = self.connections.get_mut(name) {
            known.read = None;
            known.read_at = None;
        }
    }

    /// Returns the directories in which a change may matter.
    pub fn watch_points(&self) -> WatchPoints {
        let mut watch_points = WatchPoints::default();
        for known in self.connections.values() {
            watch_points.add(&known.watch_points);
        }
        watch_points
    }
}

impl ConnectionFiles {
    fn is_changed(&self) -> bool {
        self.found.is_some() && self.found != self.read
    }
}

/// Returns a wait in milliseconds, rounded up: a pass that comes too early has to wait again.
fn whole_millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use spcd_core::config::{Cache, LoadContext, SourceFile, load};

    use super::*;

    fn desired(dir: &std::path::Path) -> DesiredState {
        let text = format!(
            "connection \"a\" {{\n  plugin = \"csv\"\n  paths = [\"{}/*.csv\"]\n}}\n",
            dir.display()
        );
        let source = SourceFile {
            path: "/a.spc".to_owned(),
            text: Ok(text),
        };
        let mut context = LoadContext {
            lookup: None,
            has_gateway: false,
        };
        load(&[source], &mut context, &mut Cache::default()).desired
    }

    #[test]
    fn a_wait_of_less_than_a_millisecond_is_none_of_zero() {
        let waits = [1, 999_999, 1_000_000, 1_000_001].map(Duration::from_nanos);
        assert_eq!(waits.map(whole_millis), [1, 1, 1, 2]);
    }

    #[tokio::test]
    async fn a_search_that_began_earlier_is_no_answer_to_a_later_scan() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("a.csv"), "a\n1\n").unwrap();
        let desired = desired(&dir);
        let mut files = CsvWatch::default();
        let is_changed = |found: Files| found.changed.iter().any(|(name, _)| name == "a");
        // A file that was just written is read again.
        while files.scan(&desired, true).await.again.is_some()
            || files.connections["a"].read.is_none()
        {
            files.begin_read("a");
        }
        assert!(!is_changed(files.scan(&desired, true).await));

        // A search is running that read the directory before it was renamed.
        let csv = files.connections["a"].csv.clone();
        let early = find_files(&csv.paths);
        files.connections.get_mut("a").unwrap().is_searching = true;
        std::fs::rename(&dir, top.path().join("aside")).unwrap();
        files
            .sender
            .send(SearchResult {
                name: "a".to_owned(),
                csv,
                search: Some(early),
            })
            .map_err(|_| "the receiver is gone")
            .unwrap();
        assert!(is_changed(files.scan(&desired, true).await));
    }
}
