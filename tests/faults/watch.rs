//! Clients that look on throughout a schedule: one takes snapshots, one listens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::{AsyncMessage, NoTls, SimpleQueryMessage};

use crate::support::try_query;

/// Ready connections, and what each lacks in one snapshot: tables of the last import, the table that
/// every source of its kind has, and what members of `spcd_users` need to read them. Privileges are
/// read from the catalog's rows, since functions such as `has_table_privilege` look outside of the
/// snapshot.
const SNAPSHOT: &str = r#"
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT s.connection_name, w.lacks, s::text
FROM spcd.connection_state s
LEFT JOIN spcd.applied a USING (connection_name)
LEFT JOIN pg_namespace n ON n.nspname = s.connection_name
CROSS JOIN LATERAL (
    SELECT string_agg(lack, ', ') AS lacks FROM (
        SELECT 'the schema' WHERE n.oid IS NULL
        UNION ALL
        SELECT 'USAGE' WHERE n.oid IS NOT NULL AND NOT EXISTS (
            SELECT FROM aclexplode(n.nspacl) p
            WHERE p.grantee = 'spcd_users'::regrole AND p.privilege_type = 'USAGE')
        UNION ALL
        SELECT 'table ' || t.name
        FROM (SELECT unnest(a.tables)
              UNION SELECT CASE WHEN s.connection_name LIKE 'w_' THEN 'account'
                                WHEN s.connection_name = 'files' THEN 'c' ELSE 't' END) t (name)
        -- An aggregator whose members have no tables yet warns of that, and shows none.
        WHERE NOT (s.type = 'aggregator' AND s.warnings <> '{}' AND a.tables = '{}')
          AND NOT EXISTS (
            SELECT FROM pg_class c
            WHERE c.relnamespace = n.oid AND c.relname = t.name AND c.relkind IN ('f', 'v')
              AND EXISTS (SELECT FROM aclexplode(c.relacl) p
                          WHERE p.grantee = 'spcd_users'::regrole AND p.privilege_type = 'SELECT'))
    ) l (lack)) w
WHERE s.status = 'ready';
COMMIT"#;

/// What one session heard.
#[derive(Debug, Default)]
struct Hearing {
    /// The newest event before it listened.
    since: i64,
    heard: Vec<Heard>,
    /// Whether it listens still.
    is_open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Event(i64),
    Resync,
}

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    snapshots: u64,
    /// Ready rows that lacked something.
    incomplete: Vec<String>,
    hearings: Vec<Hearing>,
    /// Messages that are none of the protocol.
    malformed: Vec<String>,
    /// All messages, for the search for secrets.
    text: String,
    /// Damages that the daemon need not have noticed yet: by connection their numbers, and whether the
    /// statement has ended.
    damages: BTreeMap<String, Vec<(u64, bool)>>,
    next_damage: u64,
}

/// The clients. Dropping it ends them.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Watch {
    pub fn start(hub: String) -> Arc<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let looks = tokio::spawn(look(hub.clone(), seen.clone()));
        let listens = tokio::spawn(listen_always(hub, seen.clone()));
        Arc::new(Self {
            seen,
            tasks: vec![looks, listens],
        })
    }

    /// Says that these connections are about to be damaged.
    pub fn damage<const N: usize>(&self, names: [&str; N]) -> u64 {
        let mut seen = self.seen.lock().unwrap();
        seen.next_damage += 1;
        let number = seen.next_damage;
        for name in names {
            let damages = seen.damages.entry(name.to_owned()).or_default();
            damages.push((number, false));
        }
        number
    }

    /// Says that a damage is done: from now on a snapshot in which nothing lacks shows that it is mended.
    pub fn damaged(&self, number: u64) {
        let mut seen = self.seen.lock().unwrap();
        for damages in seen.damages.values_mut() {
            for damage in damages.iter_mut().filter(|damage| damage.0 == number) {
                damage.1 = true;
            }
        }
    }

    /// All messages that were heard.
    pub fn text(&self) -> String {
        self.seen.lock().unwrap().text.clone()
    }

    /// Number of snapshots.
    pub fn snapshots(&self) -> u64 {
        self.seen.lock().unwrap().snapshots
    }

    /// What was seen that must not be, if anything.
    pub fn complaint(&self) -> Option<String> {
        let seen = self.seen.lock().unwrap();
        let all = seen.incomplete.iter().chain(&seen.malformed);
        let all: Vec<&str> = all.map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("\n"))
    }

    /// An event that was committed while a session listened, and that it did not hear, if any. `events`
    /// are the ids of all events, in order. What a lost session did not hear after its last message
    /// is no fault.
    pub fn unheard(&self, events: &[i64]) -> Option<String> {
        let seen = self.seen.lock().unwrap();
        seen.hearings
            .iter()
            .find_map(|hearing| hearing.unheard(events))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Hearing {
    fn unheard(&self, events: &[i64]) -> Option<String> {
        let mut heard = self.heard.iter().peekable();
        let mut after_resync = false;
        for event in events.iter().filter(|event| **event > self.since) {
            loop {
                match heard.peek() {
                    Some(Heard::Resync) => after_resync = true,
                    // Of a transaction that committed before this session read the newest event.
                    Some(Heard::Event(id)) if id < event => after_resync = false,
                    Some(Heard::Event(id)) if id == event => {
                        after_resync = false;
                        heard.next();
                        break;
                    }
                    // A resync stands for all events of its transaction.
                    Some(Heard::Event(_)) if after_resync => break,
                    None if after_resync || !self.is_open => break,
                    Some(Heard::Event(_)) | None => {
                        return Some(format!("event {event} was not announced: {self:?}"));
                    }
                }
                heard.next();
            }
        }
        None
    }
}

/// Takes one snapshot after the other.
async fn look(hub: String, seen: Arc<Mutex<Seen>>) {
    loop {
        let Ok(client) = crate::support::connect(&hub).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        loop {
            let damages = seen.lock().unwrap().damages.clone();
            let Ok(rows) = client.simple_query(SNAPSHOT).await else {
                // Before the first migration there is no table.
                let _ = client.simple_query("ROLLBACK").await;
                break;
            };
            seen.lock().unwrap().check_all(&rows, &damages);
            sleep(Duration::from_millis(15)).await;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

impl Seen {
    fn check_all(
        &mut self,
        rows: &[SimpleQueryMessage],
        damages: &BTreeMap<String, Vec<(u64, bool)>>,
    ) {
        self.snapshots += 1;
        for row in rows {
            if let SimpleQueryMessage::Row(row) = row {
                let name = row.get(0).unwrap_or_default();
                self.check(name, row.get(1), damages.get(name), row.get(2));
            }
        }
    }

    /// `damages` are those that were known before the snapshot.
    fn check(
        &mut self,
        name: &str,
        lacks: Option<&str>,
        damages: Option<&Vec<(u64, bool)>>,
        row: Option<&str>,
    ) {
        match lacks {
            None => {
                // What was damaged before the snapshot is mended.
                let mended = damages.into_iter().flatten().filter(|damage| damage.1);
                let mended: Vec<u64> = mended.map(|damage| damage.0).collect();
                if let Some(damages) = self.damages.get_mut(name) {
                    damages.retain(|damage| !mended.contains(&damage.0));
                }
            }
            Some(lacks) => {
                let is_damaged = |damages: &Vec<(u64, bool)>| !damages.is_empty();
                if !self.damages.get(name).is_some_and(is_damaged)
                    && !damages.is_some_and(is_damaged)
                {
                    let row = row.unwrap_or_default();
                    let complaint = format!("{name:?} was ready without {lacks}: {row}");
                    if self.incomplete.last() != Some(&complaint) {
                        self.incomplete.push(complaint);
                    }
                }
            }
        }
    }
}

/// Listens, again after each loss of the session.
async fn listen_always(hub: String, seen: Arc<Mutex<Seen>>) {
    loop {
        let _ = listen(&hub, &seen).await;
        if let Some(last) = seen.lock().unwrap().hearings.last_mut() {
            last.is_open = false;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn listen(hub: &str, seen: &Mutex<Seen>) -> Result<(), tokio_postgres::Error> {
    let newest = "SELECT coalesce(max(id), 0) FROM spcd.connection_event";
    // Before the first migration there is no table.
    while try_query(hub, newest).await.is_err() {
        sleep(Duration::from_millis(5)).await;
    }
    let (client, mut connection) = tokio_postgres::connect(hub, NoTls).await?;
    let (sender, mut messages) = tokio::sync::mpsc::unbounded_channel();
    let reader = tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(message) = message {
                let _ = sender.send(message.payload().to_owned());
            }
        }
    });
    client.batch_execute("LISTEN connection_state").await?;
    let since = client.query_one(newest, &[]).await?.get(0);
    seen.lock().unwrap().hearings.push(Hearing {
        since,
        heard: Vec::new(),
        is_open: true,
    });
    while let Some(text) = messages.recv().await {
        seen.lock().unwrap().hear(&text);
    }
    reader.abort();
    Ok(())
}

impl Seen {
    fn hear(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
        let message: Value = serde_json::from_str(text).unwrap_or_default();
        let mut heard = Vec::new();
        if message["resync"] == true {
            heard.push(Heard::Resync);
        }
        for change in message["changes"].as_array().into_iter().flatten() {
            heard.extend(change["event"].as_i64().map(Heard::Event));
        }
        if message["version"] != 1 || heard.is_empty() || text.len() >= 8000 {
            self.malformed.push(format!("no notification: {text}"));
        }
        if let Some(hearing) = self.hearings.last_mut() {
            hearing.heard.extend(heard);
        }
    }
}
