//! Following the states: LISTEN, read the table, wait; and the same again after any reconnect.
//!
//! Where LISTEN cannot work (on a standby) or is lost (behind a transaction pooler), the table is
//! polled. Any role can send on the channel, so a message is a hint: it says which events to read, and
//! what they say comes from the table. Nothing depends on hearing it; it is only sooner.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use spcd_protocol::{CHANNEL, Change, Deleted, Notification, Reported, Status};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::Error;
use crate::session::{Live, Slot};
use crate::states::{self, Seen};

/// In a long wait the table is read again this often.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// Until a message has shown that messages arrive, the table is read again after this, then after
/// twice this, and so on: behind a pooler that was not recognised a change is then noticed after at
/// most as long again as was waited already.
const READ_UNPROVEN: Duration = Duration::from_secs(1);

/// Polling begins with this pause …
const POLL_FIRST: Duration = Duration::from_millis(10);

/// … and grows to this one.
const POLL_LONGEST: Duration = Duration::from_millis(250);

/// A backend this much older than the session that it serves was another client's before: there is
/// a pooler. A direct session's backend is younger, but clocks do not run at quite the same speed.
const OLDER: Duration = Duration::from_millis(50);

/// The states of connections as last heard of.
pub(crate) struct Feed {
    /// `None`: all.
    names: Option<Vec<String>>,
    pub(crate) known: BTreeMap<String, Seen>,
    /// The session on which it was begun.
    on: Option<u64>,
    way: Way,
    next_read: Instant,
    /// The last event that was read. Events are committed in the order of their ids.
    head: i64,
    /// An event after `head` was announced and is not read yet.
    is_announced: bool,
}

/// How changes are noticed.
enum Way {
    Listen {
        backend: i32,
        pause: Duration,
        proven: bool,
    },
    Poll {
        pause: Duration,
    },
}

impl Feed {
    pub(crate) fn new(names: Option<Vec<String>>) -> Self {
        Self {
            names,
            known: BTreeMap::new(),
            on: None,
            way: Way::Poll { pause: POLL_FIRST },
            next_read: Instant::now(),
            head: 0,
            is_announced: false,
        }
    }

    /// Whether the table was read on the session there is.
    pub(crate) fn has_begun(&self) -> bool {
        self.on.is_some()
    }

    /// Whether changes are looked for, because they would not be told.
    pub(crate) fn polls(&self) -> bool {
        matches!(self.way, Way::Poll { .. })
    }

    /// Returns once something may have changed, or at `until`, with what did: reads the table after
    /// a session is opened, else waits for a message or for the time to read again.
    pub(crate) async fn turn(
        &mut self,
        slot: &mut Slot,
        until: Instant,
    ) -> Result<Vec<Change>, Error> {
        let live = slot.get(until).await?;
        let outcome = if self.on == Some(live.id) {
            self.wait(live, until).await
        } else {
            match timeout_at(until, self.begin(live)).await {
                Ok(outcome) => outcome,
                Err(_) => return Ok(self.abandon(slot)),
            }
        };
        match outcome {
            Ok(Some(changes)) => Ok(changes),
            Ok(None) => Ok(self.abandon(slot)),
            Err(error) if error.is_lost() => Ok(self.abandon(slot)),
            Err(error) => Err(error),
        }
    }

    /// What arrives from now on is dropped. The LISTEN is taken back later, when the session is
    /// used again: whoever waited need not wait for that too.
    pub(crate) fn end(slot: &mut Slot) {
        if let Some(live) = slot.live() {
            live.session.listening.store(false, Ordering::Release);
        }
    }

    fn abandon(&mut self, slot: &mut Slot) -> Vec<Change> {
        slot.drop_session();
        self.on = None;
        self.is_announced = false;
        Vec::new()
    }

    async fn begin(&mut self, live: &mut Live) -> Result<Option<Vec<Change>>, Error> {
        let client = &live.session.client;
        let sql = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid(),
                          extract(epoch FROM pg_catalog.clock_timestamp() - backend_start)::pg_catalog.float8
                   FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())";
        let row = client.query_one(sql, &[]).await?;
        let (standby, backend): (bool, i32) = (row.try_get(0)?, row.try_get(1)?);
        let age = row.try_get::<_, Option<f64>>(2)?.unwrap_or_default();
        let pooled = age > (live.begun.elapsed() + OLDER).as_secs_f64();
        self.way = if standby || pooled {
            Way::Poll { pause: POLL_FIRST }
        } else {
            while live.session.heard.try_recv().is_ok() {}
            live.session.listening.store(true, Ordering::Release);
            live.listens = true;
            live.session
                .client
                .batch_execute(&format!("LISTEN {CHANNEL}"))
                .await?;
            Way::Listen {
                backend,
                pause: READ_UNPROVEN,
                proven: false,
            }
        };
        let changes = self.read(live).await?;
        self.on = Some(live.id);
        Ok(Some(changes))
    }

    /// `None`: the session is lost.
    async fn wait(
        &mut self,
        live: &mut Live,
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
            && let Way::Listen { proven, .. } = &mut self.way
        {
            let Ok(message) = timeout_at(next, live.session.heard.recv()).await else {
                if next == until {
                    return Ok(Some(Vec::new()));
                }
                break;
            };
            let Some(message) = message else {
                return Ok(None);
            };
            // Nothing of ours was under way on the session: messages do arrive by themselves.
            *proven = true;
            if message.channel() != CHANNEL {
                continue;
            }
            match serde_json::from_str::<Notification>(message.payload()) {
                Ok(message) if !message.resync => {
                    self.is_announced = self.is_news(&message.changes)
                }
                // A message of a later version, or of another client: the table tells. The caller
                // may drop this future and call again, which must then read as well.
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

    /// Returns whether a message, if it is true, announces events that were not read yet.
    fn is_news(&self, changes: &[Change]) -> bool {
        (changes.iter())
            .any(|change| change.event > self.head && self.is_followed(&change.connection))
    }

    fn is_followed(&self, connection: &String) -> bool {
        (self.names.as_ref()).is_none_or(|names| names.contains(connection))
    }

    /// Reads all events since the last read, and returns what is new of them. A forged message thus
    /// hides no event. The flag is kept until then: a caller may drop this future and call again.
    async fn read_events(&mut self, live: &Live) -> Result<Vec<Change>, Error> {
        let (client, names) = (&live.session.client, self.names.as_deref());
        let events = states::events(client, self.head, names).await?;
        self.is_announced = false;
        Ok(self.take(events))
    }

    /// Takes in events, and returns what is new of them.
    fn take(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut new = Vec::new();
        for change in changes {
            if change.event <= self.head || !self.is_followed(&change.connection) {
                continue;
            }
            self.head = change.event;
            let known = self.known.get_mut(&change.connection);
            match (&change.status, known) {
                // Older than what the table said.
                (_, Some(known)) if known.event >= change.event => continue,
                (Reported::Deleted(_), None) => continue,
                (Reported::Deleted(_), Some(_)) => drop(self.known.remove(&change.connection)),
                (Reported::Status(status), Some(known)) => {
                    // What happened to the source says nothing of status and error.
                    if change.health.is_none() {
                        known.status = *status;
                        known.error.clone_from(&change.error);
                        known.time.clone_from(&change.time);
                    }
                    known.event = change.event;
                }
                (Reported::Status(status), None) => {
                    let seen = Seen {
                        status: *status,
                        error: change.error.clone(),
                        event: change.event,
                        time: change.time.clone(),
                        ..Seen::default()
                    };
                    self.known.insert(change.connection.clone(), seen);
                }
            }
            new.push(change);
        }
        new
    }

    /// Reads the table, and returns how it differs from what was known.
    async fn read(&mut self, live: &mut Live) -> Result<Vec<Change>, Error> {
        let client = &live.session.client;
        let table = states::seen(client, self.names.as_deref()).await?;
        let mut changes = Vec::new();
        for (name, row) in &table.rows {
            let previous = self.known.get(name);
            // What a start does to all rows at once has no event of each.
            let is_news = |known: &Seen| {
                (known.event, known.status) != (row.event, row.status) || known.error != row.error
            };
            if previous.is_none_or(is_news) {
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
                    status: Reported::Deleted(Deleted::Deleted),
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
        if let Way::Listen { backend, .. } = self.way
            && backend != now_on
        {
            // Another backend serves this session now: the one that listens is not ours any more.
            self.way = Way::Poll { pause: POLL_FIRST };
        }
        let pause = match &mut self.way {
            Way::Listen { proven: true, .. } => READ_AGAIN,
            Way::Listen { pause, .. } => grow(pause, 2.0, READ_AGAIN),
            Way::Poll { pause } => grow(pause, 1.5, POLL_LONGEST),
        };
        self.next_read = Instant::now() + pause;
    }
}

/// The pause, which is longer the next time.
fn grow(pause: &mut Duration, by: f64, longest: Duration) -> Duration {
    let now = *pause;
    *pause = pause.mul_f64(by).min(longest);
    now
}

fn change(name: &str, row: &Seen, previous: Option<Status>) -> Change {
    Change {
        connection: name.to_owned(),
        status: Reported::Status(row.status),
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

    fn told(connection: &str, status: Reported, event: i64) -> Change {
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
        let ready = Seen {
            status: Status::Ready,
            event: 5,
            ..Seen::default()
        };
        feed.known.insert("a".to_owned(), ready);
        let updating = Reported::Status(Status::Updating);
        let deleted = Reported::Deleted(Deleted::Deleted);
        let old = [
            told("a", updating, 4),
            told("a", updating, 5),
            told("a", deleted, 3),
            told("b", deleted, 6),
            told("b", updating, 6),
            told("stranger", updating, 7),
        ];
        assert_eq!(feed.take(old.to_vec()), []);
        assert_eq!(feed.known["a"].status, Status::Ready);
        let new = [told("a", updating, 8), told("b", updating, 9)];
        assert_eq!(feed.take(new.to_vec()), new);
        assert_eq!(feed.known["a"].status, Status::Updating);
        assert_eq!(feed.take(vec![told("a", deleted, 10)]).len(), 1);
        assert!(!feed.known.contains_key("a"));
    }
}
