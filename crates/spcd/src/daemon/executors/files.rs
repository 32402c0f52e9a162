//! Notices which csv connections' files are not the ones that were read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{Csv, Desired};
use spcd_core::scheduler::Files;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use crate::csv::{Found, Look, aside, find};
use crate::files::{Place, Places};

/// A look goes on without the files of a connection that have not shown up after so long: a file
/// server that hangs costs its own connections only.
const PATIENCE: Duration = Duration::from_millis(300);
/// How many look at a time, apart from those that take long.
const AT_ONCE: usize = 16;
/// A look that has not ended after so long leaves its place to another.
const SLOW: Duration = Duration::from_millis(100);
/// Files that change all the time are read no more often.
const PAUSE: Duration = Duration::from_millis(300);
/// A file that changed within a tick of the clock is looked at again after so long.
const SETTLING: Duration = Duration::from_millis(40);

/// The files of all csv connections.
pub struct CsvFiles {
    known: BTreeMap<String, Known>,
    sender: mpsc::UnboundedSender<(String, Csv, Option<Look>)>,
    looked: mpsc::UnboundedReceiver<(String, Csv, Option<Look>)>,
    /// For those that look.
    places: Arc<Semaphore>,
}

/// What is known of one connection's.
#[derive(Default)]
struct Known {
    csv: Csv,
    found: Option<Found>,
    places: Vec<Place>,
    is_young: bool,
    /// A look is under way.
    looking: bool,
    /// It takes too long to be waited for.
    is_late: bool,
    /// As they were before they were last read.
    read: Option<Found>,
    read_at: Option<Instant>,
}

impl Default for CsvFiles {
    fn default() -> Self {
        let (sender, looked) = mpsc::unbounded_channel();
        Self {
            known: BTreeMap::new(),
            sender,
            looked,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl CsvFiles {
    /// Looks at all of them. Where a client waits for what the look finds (`awaited`), files that
    /// change all the time are read without a pause, too.
    pub async fn look(&mut self, desired: &Desired, awaited: bool) -> Files {
        let wanted: BTreeMap<&String, &Csv> = (desired.connections.iter())
            .filter(|(_, connection)| connection.enabled)
            .filter_map(|(name, connection)| {
                let target = connection.target.as_ref().ok()?;
                Some((name, target.csv.as_ref()?))
            })
            .collect();
        (self.known).retain(|name, known| wanted.get(name).is_some_and(|csv| **csv == known.csv));
        for (name, csv) in wanted {
            let known = self.known.entry(name.clone()).or_insert_with(|| Known {
                csv: csv.clone(),
                ..Known::default()
            });
            if known.looking {
                continue;
            }
            known.looking = true;
            let (name, csv, sender) = (name.clone(), csv.clone(), self.sender.clone());
            let (places, key) = (self.places.clone(), format!("find {name}"));
            tokio::spawn(async move {
                let paths = csv.paths.clone();
                let looking = aside(key, move || find(&paths));
                tokio::pin!(looking);
                let permit = places.acquire_owned().await;
                let look = match timeout(SLOW, &mut looking).await {
                    Ok(look) => look,
                    Err(_) => {
                        drop(permit);
                        looking.await
                    }
                };
                let _ = sender.send((name, csv, look));
            });
        }
        let until = Instant::now() + PATIENCE;
        while (self.known.values()).any(|known| known.looking && !known.is_late) {
            match timeout_at(until, self.looked.recv()).await {
                Ok(Some(looked)) => {
                    self.take(looked);
                }
                _ => break,
            }
        }
        let mut files = Files::default();
        let pause = if awaited { Duration::ZERO } else { PAUSE };
        for (name, known) in &mut self.known {
            known.is_late = known.looking;
            if known.is_late {
                files.late.push(name.clone());
            }
            if known.found.is_none() || known.found == known.read {
                continue;
            }
            let since = known.read_at.map(|at| at.elapsed());
            let wait = since.map_or(Duration::ZERO, |since| pause.saturating_sub(since));
            let wait = if known.is_young {
                wait.max(SETTLING)
            } else {
                wait
            };
            if !wait.is_zero() {
                let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                files.again = Some(files.again.map_or(wait, |again| again.min(wait)));
            }
            if since.is_none_or(|since| since >= pause) {
                files.changed.push((name.clone(), since.is_some()));
            }
        }
        files
    }

    /// Waits for a look that was late and found something else.
    pub async fn late(&mut self) {
        // The channel stays open: we hold a sender.
        while let Some(looked) = self.looked.recv().await {
            if self.take(looked) {
                return;
            }
        }
    }

    /// Takes note of a look; true if the files are not the ones that were read.
    fn take(&mut self, (name, csv, look): (String, Csv, Option<Look>)) -> bool {
        let Some(known) = self.known.get_mut(&name).filter(|known| known.csv == csv) else {
            return false;
        };
        known.looking = false;
        known.is_late = false;
        if let Some(look) = look {
            known.found = Some(look.found);
            known.places = look.places;
            known.is_young = look.is_young;
        }
        known.found.is_some() && known.found != known.read
    }

    /// A connection's files are about to be read.
    pub fn reading(&mut self, name: &str) {
        if let Some(known) = self.known.get_mut(name) {
            // Another change may carry the same stamp.
            known.read = known.found.clone().filter(|_| !known.is_young);
            known.read_at = Some(Instant::now());
        }
    }

    /// They were not read after all.
    pub fn unread(&mut self, name: &str) {
        if let Some(known) = self.known.get_mut(name) {
            known.read = None;
            known.read_at = None;
        }
    }

    /// Where a change may matter.
    pub fn watched(&self) -> Places {
        let mut places = Places::default();
        for known in self.known.values() {
            places.add(&known.places);
        }
        places
    }
}
