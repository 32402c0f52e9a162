//! Follows the states: LISTEN, read the table, wait, and again after a reconnect.
//!
//! On a standby and behind a transaction pooler the table is polled. Any role can send on the
//! channel, so a notification is only a hint to read: the changes come from the table. A lost
//! notification delays a change and loses none.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use spcd_protocol::{AnnouncedStatus, Backoff, CHANNEL, Change, Deleted, Notification, Status};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::Error;
use crate::session::{LiveSession, SessionSlot};
use crate::states::{self, StateSummary};

/// Interval at which the table is read during a long wait.
const READ_INTERVAL: Duration = Duration::from_secs(30);

/// Intervals at which the table is read until a notification has arrived, in milliseconds. Behind a
/// pooler that was not detected, a change is then noticed within twice the time waited.
const UNPROVEN_READ_BACKOFF: Backoff = Backoff::new(1_000, READ_INTERVAL.as_millis() as u64);

/// Pauses between polls, in milliseconds.
const POLL_BACKOFF: Backoff = Backoff::new(10, 250);

/// Tolerance for clock differences. A backend that is older than its session by more than this
/// belonged to another client before: there is a pooler.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(50);

/// States of connections as last read or announced.
pub(crate) struct Feed {
    /// Names of the connections; `None` follows all.
    names: Option<Vec<String>>,
    pub(crate) known: BTreeMap<String, StateSummary>,
    /// Number of the session on which the table was read.
    session_id: Option<u64>,
    detection: Detection,
    next_read: Instant,
    /// Id of the last event that was read. Events are committed in the order of their ids.
    head: i64,
    /// Whether an event after `head` was announced and is not read yet.
    is_announced: bool,
}

/// How changes are detected.
enum Detection {
    Listen {
        backend: i32,
        /// Number of reads since then.
        reads: u32,
        proven: bool,
    },
    Poll {
        /// Number of reads since then.
        reads: u32,
    },
}

impl Feed {
    pub(crate) fn new(names: Option<Vec<String>>) -> Self {
        Self {
            names,
            known: BTreeMap::new(),
            session_id: None,
            detection: Detection::Poll { reads: 0 },
            next_read: Instant::now(),
            head: 0,
            is_announced: false,
        }
    }

    /// Returns whether the table was read on the current session.
    pub(crate) fn has_begun(&self) -> bool {
        self.session_id.is_some()
    }

    /// Returns whether the table is polled.
    pub(crate) fn polls(&self) -> bool {
        matches!(self.detection, Detection::Poll { .. })
    }

    /// Waits until something may have changed, at most until `until`, and returns the changes.
    /// Reads the table after a session was opened; else waits for a notification or for the next
    /// read.
    pub(crate) async fn next_changes(
        &mut self,
        slot: &mut SessionSlot,
        until: Instant,
    ) -> Result<Vec<Change>, Error> {
        let live = slot.get(until).await?;
        let outcome = if self.session_id == Some(live.id) {
            self.wait(live, until).await
        } else {
            match timeout_at(until, self.begin(live)).await {
                Ok(outcome) => outcome,
                Err(_) => return Ok(self.drop_session(slot)),
            }
        };
        match outcome {
            Ok(Some(changes)) => Ok(changes),
            Ok(None) => Ok(self.drop_session(slot)),
            Err(error) if error.is_lost() => Ok(self.drop_session(slot)),
            Err(error) => Err(error),
        }
    }

    /// Drops notifications from now on. UNLISTEN is sent when the session is used next, so that the
    /// wait does not take longer.
    pub(crate) fn stop_listening(slot: &mut SessionSlot) {
        if let Some(live) = slot.live() {
            live.session.listening.store(false, Ordering::Release);
        }
    }

    fn drop_session(&mut self, slot: &mut SessionSlot) -> Vec<Change> {
        slot.drop_session();
        self.session_id = None;
        self.is_announced = false;
        Vec::new()
    }

    async fn begin(&mut self, live: &mut LiveSession) -> Result<Option<Vec<Change>>, Error> {
        let client = &live.session.client;
        let sql = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid(),
                          extract(epoch FROM pg_catalog.clock_timestamp() - backend_start)::pg_catalog.float8
                   FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())";
        let row = client.query_one(sql, &[]).await?;
        let (standby, backend): (bool, i32) = (row.try_get(0)?, row.try_get(1)?);
        let age = row.try_get::<_, Option<f64>>(2)?.unwrap_or_default();
        let pooled = age > (live.opening_since.elapsed() + CLOCK_TOLERANCE).as_secs_f64();
        self.detection = if standby || pooled {
            Detection::Poll { reads: 0 }
        } else {
            while live.session.notifications.try_recv().is_ok() {}
            live.session.listening.store(true, Ordering::Release);
            live.has_listen = true;
            live.session
                .client
                .batch_execute(&format!("LISTEN {CHANNEL}"))
                .await?;
            Detection::Listen {
                backend,
                reads: 0,
                proven: false,
            }
        };
        let changes = self.read(live).await?;
        self.session_id = Some(live.id);
        Ok(Some(changes))
    }

    /// Returns `None` if the session is lost.
    async fn wait(
        &mut self,
        live: &mut LiveSession,
        until: Instant,
    ) -> Result<Option<Vec<Change>>, Error> {
        let next = self.next_read.min(until);
        if self.polls() {
            sleep_until(next).await;
            if next == until {
                return Ok(Some(Vec::new()));
            }
        }
        while !self.is_announced
            && let Detection::Listen { proven, .. } = &mut self.detection
        {
            let Ok(message) = timeout_at(next, live.session.notifications.recv()).await else {
                if next == until {
                    return Ok(Some(Vec::new()));
                }
                break;
            };
            let Some(message) = message else {
                return Ok(None);
            };
            // No statement was running, so notifications arrive by themselves.
            *proven = true;
            if message.channel() != CHANNEL {
                continue;
            }
            match serde_json::from_str::<Notification>(message.payload()) {
                Ok(message) if !message.resync => {
                    self.is_announced = self.announces_events(&message.changes)
                }
                // A notification of a later version, or of another client: read the table. The
                // caller may drop this future and call again, which must then read as well.
                _ => {
                    self.next_read = Instant::now();
                    break;
                }
            }
        }
        if self.is_announced {
            return match timeout_at(until, self.read_events(live)).await {
                Ok(changes) => changes.map(Some),
                Err(_) => Ok(None),
            };
        }
        match timeout_at(until, self.read(live)).await {
            Ok(changes) => changes.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Returns whether a notification, if it is genuine, announces events that were not read yet.
    fn announces_events(&self, changes: &[Change]) -> bool {
        (changes.iter())
            .any(|change| change.event > self.head && self.is_followed(&change.connection))
    }

    fn is_followed(&self, connection: &String) -> bool {
        (self.names.as_ref()).is_none_or(|names| names.contains(connection))
    }

    /// Reads all events since the last read and returns the new ones. A forged notification thus
    /// hides no event. `is_announced` stays set until then, because a caller may drop this future
    /// and call again.
    async fn read_events(&mut self, live: &LiveSession) -> Result<Vec<Change>, Error> {
        let (client, names) = (&live.session.client, self.names.as_deref());
        let events = states::events(client, self.head, names).await?;
        self.is_announced = false;
        Ok(self.apply_events(events))
    }

    /// Applies events, and returns those that are new.
    fn apply_events(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut new = Vec::new();
        for change in changes {
            if change.event <= self.head || !self.is_followed(&change.connection) {
                continue;
            }
            self.head = change.event;
            let known = self.known.get_mut(&change.connection);
            match (&change.status, known) {
                // Older than the table's row.
                (_, Some(known)) if known.event >= change.event => continue,
                (AnnouncedStatus::Deleted(_), None) => continue,
                (AnnouncedStatus::Deleted(_), Some(_)) => {
                    drop(self.known.remove(&change.connection))
                }
                (AnnouncedStatus::Status(status), Some(known)) => {
                    // An event about reachability changes neither status nor error.
                    if change.health.is_none() {
                        known.status = *status;
                        known.error.clone_from(&change.error);
                        known.time.clone_from(&change.time);
                    }
                    known.event = change.event;
                }
                (AnnouncedStatus::Status(status), None) => {
                    let seen = StateSummary {
                        status: *status,
                        error: change.error.clone(),
                        event: change.event,
                        time: change.time.clone(),
                        ..StateSummary::default()
                    };
                    self.known.insert(change.connection.clone(), seen);
                }
            }
            new.push(change);
        }
        new
    }

    /// Reads the table and returns the differences from the known states.
    async fn read(&mut self, live: &mut LiveSession) -> Result<Vec<Change>, Error> {
        let client = &live.session.client;
        let table = states::read_table(client, self.names.as_deref()).await?;
        let mut changes = Vec::new();
        for (name, row) in &table.rows {
            let previous = self.known.get(name);
            // A start of the daemon changes all rows without an event for each.
            let differs = |known: &StateSummary| {
                (known.event, known.status) != (row.event, row.status) || known.error != row.error
            };
            if previous.is_none_or(differs) {
                changes.push(change(name, row, previous.map(|known| known.status)));
            }
        }
        let gone = |name: &&String| !table.rows.contains_key(*name);
        let gone: Vec<String> = self.known.keys().filter(gone).cloned().collect();
        if !gone.is_empty() {
            let events = states::last_events(client, &gone).await?;
            for name in gone {
                let Some(known) = self.known.get(&name) else {
                    continue;
                };
                changes.push(Change {
                    connection: name.clone(),
                    status: AnnouncedStatus::Deleted(Deleted::Deleted),
                    previous: Some(known.status),
                    time: table.time.clone(),
                    event: events.get(&name).copied().unwrap_or(known.event),
                    error: None,
                    health: None,
                });
            }
        }
        changes.sort_by_key(|change| change.event);
        self.known = table.rows;
        self.head = table.head;
        self.is_announced = false;
        self.plan_next_read(table.backend);
        Ok(changes)
    }

    fn plan_next_read(&mut self, now_on: i32) {
        if let Detection::Listen { backend, .. } = self.detection
            && backend != now_on
        {
            // Another backend serves this session now, so its LISTEN is lost.
            self.detection = Detection::Poll { reads: 0 };
        }
        let pause = match &mut self.detection {
            Detection::Listen { proven: true, .. } => READ_INTERVAL,
            Detection::Listen { reads, .. } => next_pause(UNPROVEN_READ_BACKOFF, reads),
            Detection::Poll { reads } => next_pause(POLL_BACKOFF, reads),
        };
        self.next_read = Instant::now() + pause;
    }
}

/// Counts a read and returns the pause after it.
fn next_pause(backoff: Backoff, reads: &mut u32) -> Duration {
    *reads = reads.saturating_add(1);
    Duration::from_millis(backoff.pause(*reads))
}

fn change(name: &str, row: &StateSummary, previous: Option<Status>) -> Change {
    Change {
        connection: name.to_owned(),
        status: AnnouncedStatus::Status(row.status),
        previous,
        time: row.time.clone(),
        event: row.event,
        error: row.error.clone(),
        health: row.health,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change_of(connection: &str, status: AnnouncedStatus, event: i64) -> Change {
        Change {
            connection: connection.to_owned(),
            status,
            previous: None,
            time: String::new(),
            event,
            error: None,
            health: None,
        }
    }

    #[test]
    fn what_is_known_already_or_of_others_is_not_told_again() {
        let mut feed = Feed::new(Some(vec!["a".to_owned(), "b".to_owned()]));
        let ready = StateSummary {
            status: Status::Ready,
            event: 5,
            ..StateSummary::default()
        };
        feed.known.insert("a".to_owned(), ready);
        let updating = AnnouncedStatus::Status(Status::Updating);
        let deleted = AnnouncedStatus::Deleted(Deleted::Deleted);
        let old = [
            change_of("a", updating, 4),
            change_of("a", updating, 5),
            change_of("a", deleted, 3),
            change_of("b", deleted, 6),
            change_of("b", updating, 6),
            change_of("stranger", updating, 7),
        ];
        assert_eq!(feed.apply_events(old.to_vec()), []);
        assert_eq!(feed.known["a"].status, Status::Ready);
        let new = [change_of("a", updating, 8), change_of("b", updating, 9)];
        assert_eq!(feed.apply_events(new.to_vec()), new);
        assert_eq!(feed.known["a"].status, Status::Updating);
        assert_eq!(
            feed.apply_events(vec![change_of("a", deleted, 10)]).len(),
            1
        );
        assert!(!feed.known.contains_key("a"));
    }
}
