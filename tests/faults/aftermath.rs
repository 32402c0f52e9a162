//! What is left of a schedule: events, sessions, objects, logs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spcd_protocol::Status;

use super::model::SECRET;
use super::sql_session::{must, read};
use super::world::World;
use crate::support::{Cluster, DEADLINE, Spcd};

/// Schemas that are there beside the connections'.
const OTHER_SCHEMAS: &str =
    "public people theirs spcd spcd_lock spcd_type spcd_union information_schema";

impl World {
    /// No client saw what must not be.
    pub fn check_watch(&self) -> Result<(), String> {
        match self.watch.complaint() {
            Some(complaint) => Err(complaint),
            None if self.watch.snapshots() == 0 => Err("no snapshot was taken".to_owned()),
            None => Ok(()),
        }
    }

    /// Each client that waited has got an answer.
    pub async fn check_waiters(&mut self) -> Result<(), String> {
        while let Some(waited) = self.waiters.join_next().await {
            let (sql, ended) = waited.map_err(|error| error.to_string())?;
            ended.map_err(|error| format!("{sql}: {error}"))?;
        }
        Ok(())
    }

    /// Each event was announced, and each is a legal transition that begins where the one before ended.
    pub async fn check_events(&self) -> Result<(), String> {
        let sql = "SELECT id, coalesce(connection_name, ''), coalesce(previous, ''), status,
                          coalesce(health, '') FROM spcd.connection_event ORDER BY id";
        let events = must(&self.hub, sql).await;
        let ids = events.iter().map(|row| row[0].parse().map_err(|_| "an id"));
        let ids: Vec<i64> = ids.collect::<Result<_, _>>()?;
        let begin = Instant::now();
        while let Some(unheard) = self.watch.unheard(&ids) {
            if begin.elapsed() > DEADLINE {
                return Err(unheard);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        illegal(&events).map_or(Ok(()), Err)
    }

    /// Only connections have schemas and servers.
    pub async fn check_objects(&self) -> Result<(), String> {
        let schemas =
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN (
                 SELECT connection_name FROM spcd.connection_state WHERE status <> 'disabled'
                 UNION SELECT 'spcd_member_' || connection_name FROM spcd.connection_state)";
        let known: Vec<&str> = OTHER_SCHEMAS.split(' ').collect();
        let schemas = must(&self.hub, schemas).await.concat();
        let mut left = schemas
            .iter()
            .filter(|name| !known.contains(&name.as_str()) && !name.starts_with("spcd_lane"));
        if let Some(schema) = left.next() {
            return Err(format!("the schema {schema:?} is left"));
        }
        let servers = "SELECT srvname FROM pg_foreign_server WHERE srvname <> 'their_server'
                       AND srvname NOT IN (SELECT connection_name FROM spcd.connection_state)";
        let servers = must(&self.hub, servers).await.concat();
        let mut left = servers.iter().filter(|name| !name.starts_with("spcd_"));
        let left = left.next();
        left.map_or(Ok(()), |server| {
            Err(format!("the server {server:?} is left"))
        })
    }

    /// Without a daemon no session is left, neither of the daemon nor of the hub with a source.
    pub async fn check_sessions(&self) -> Result<(), String> {
        let by_spcd = "application_name LIKE 'spcd%'";
        let mut urls = vec![(&self.hub, by_spcd)];
        urls.extend(
            self.sources
                .iter()
                .map(|url| (url, "usename = 'source_reader'")),
        );
        urls.extend(self.gateway.iter().map(|url| (url, by_spcd)));
        for (url, whose) in urls {
            let sql = format!(
                "SELECT application_name, state, query FROM pg_stat_activity
                 WHERE datname = current_database() AND {whose}"
            );
            let begin = Instant::now();
            loop {
                let left = must(url, &sql).await;
                if left.is_empty() {
                    break;
                }
                if begin.elapsed() > self.leftover_limit {
                    return Err(format!("sessions are left: {left:?}"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// No password or token is where it could be read.
    pub async fn check_secrets(&self) -> Result<(), String> {
        let mut daemons = self.spcd.lock().await.log();
        for retired in &self.retired {
            daemons.push_str(&retired.lock().await.log());
        }
        daemons.extend(self.second.iter().map(Spcd::log));
        let gateway = self.servers.gateway.lock().await.as_ref().map(Cluster::log);
        let texts = [
            ("a daemon's log", daemons),
            ("the gateway's log", gateway.unwrap_or_default()),
            ("the hub's log", self.servers.hub.lock().await.log()),
            ("the source's log", self.servers.source.lock().await.log()),
            ("notifications", self.watch.text()),
            ("spcd's tables", self.tables().await?),
        ];
        for (place, text) in texts {
            if let Some(line) = text.lines().find(|line| line.contains(SECRET)) {
                return Err(format!("a secret is in {place}: {line}"));
            }
        }
        Ok(())
    }

    /// The rows of all of spcd's tables.
    async fn tables(&self) -> Result<String, String> {
        let sql = "SELECT format('SELECT t::text FROM %s t', c.oid::regclass)
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'spcd' AND c.relkind = 'r'";
        let mut text = String::new();
        for select in read(&self.hub, sql).await?.concat() {
            for row in read(&self.hub, &select).await?.concat() {
                text.push_str(&row);
                text.push('\n');
            }
        }
        Ok(text)
    }
}

/// The first event that is no legal transition from the state that the events before it left. The
/// events are rows of id, connection, previous status, status and health.
pub fn illegal(events: &[Vec<String>]) -> Option<String> {
    let mut states: BTreeMap<&str, &str> = BTreeMap::new();
    // What a resync made pending, and what it was before: a row may get it back without an event.
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    for event in events {
        let [_, name, previous, status, health] = event.as_slice() else {
            return Some(format!("five columns: {event:?}"));
        };
        if name.is_empty() {
            for (name, state) in &mut states {
                if *state != "disabled" {
                    before.entry(name).or_insert(state);
                    *state = "pending";
                }
            }
            continue;
        }
        let known = states.get(name.as_str()).copied().unwrap_or_default();
        let is_known = previous == known || Some(&previous.as_str()) == before.get(name.as_str());
        if !health.is_empty() {
            // About the source: the status is the same.
            if !is_known || status != previous {
                return Some(format!("{event:?} after {known:?}"));
            }
            continue;
        }
        let next = status.parse::<Status>();
        let is_legal = match (previous.parse::<Status>(), next) {
            (Ok(from), Ok(to)) => from.may_become(to),
            (Err(_), Ok(to)) => Status::INITIAL.contains(&to),
            (Ok(Status::Deleting), Err(_)) => status == "deleted",
            (_, Err(_)) => false,
        };
        if !is_known || !is_legal {
            return Some(format!("{event:?} after {known:?}"));
        }
        before.remove(name.as_str());
        match status.as_str() {
            "deleted" => drop(states.remove(name.as_str())),
            status => drop(states.insert(name, status)),
        }
    }
    None
}
