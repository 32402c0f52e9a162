//! What is to hold after a schedule.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spcd_core::sql::ident;
use spcd_protocol::Status;

use super::model::{SECRET, columns_of};
use super::people::AGGREGATOR;
use super::schedule::MEMBERS;
use super::sql_session::{Rows, insist, must};
use super::world::{THEIR_STATE, World};
use crate::support::{DEADLINE, eventually, query, try_query};

/// How long everything may take to be as the files say once the faults are over: `SPCD_FAULT_LIMIT`
/// seconds, which is 10 in `scripts/soak.sh`; here the machine may be busy with other tests.
fn limit() -> Duration {
    super::number("SPCD_FAULT_LIMIT").map_or(DEADLINE, Duration::from_secs)
}

/// Schemas that are there beside the connections'.
const OTHER_SCHEMAS: &str =
    "public people theirs spcd spcd_lock spcd_type spcd_union information_schema";

impl World {
    /// Checks everything; returns how long it took until all was as the files say.
    ///
    /// # Panics
    /// When something is not.
    pub async fn check(&mut self) -> Duration {
        self.end_faults().await;
        let (begin, limit) = (Instant::now(), limit());
        // The first daemon may not have come to make the function.
        eventually("a refresh is requested", DEADLINE, || async {
            insist(&self.hub, "SELECT spcd.refresh()").await.ok()
        })
        .await;
        let mut difference = Some("nothing was read".to_owned());
        while difference.is_some() {
            difference = match self.difference().await {
                Ok(difference) => difference,
                Err(error) => Some(error),
            };
            if let Some(difference) = &difference {
                if self.is_verbose {
                    super::say(&format!("{:?}: {difference}", begin.elapsed()));
                }
                assert!(
                    begin.elapsed() < limit,
                    "{limit:?} after the faults: {difference}\n{}",
                    self.states().await
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let took = begin.elapsed();
        self.check_events().await;
        let complaint = self.watch.complaint();
        assert!(complaint.is_none(), "{}", complaint.unwrap_or_default());
        assert!(self.watch.snapshots() > 0, "no snapshot was taken");
        while let Some(waited) = self.waiters.join_next().await {
            let (sql, ended) = waited.unwrap();
            assert_eq!(ended, Ok(()), "{sql}");
        }
        self.check_leftovers().await;
        self.check_secrets().await;
        took
    }

    async fn states(&self) -> String {
        let sql =
            "SELECT connection_name, status, error, warnings FROM spcd.connection_state ORDER BY 1";
        let rows = try_query(&self.hub, sql).await;
        rows.map_or_else(
            |error| error.to_string(),
            |rows| rows.iter().map(|row| format!("  {row:?}\n")).collect(),
        )
    }

    /// What is not as the model says, if anything. An error may pass.
    pub async fn difference(&self) -> Result<Option<String>, String> {
        let sql = "SELECT connection_name, status, coalesce(error, ''), warnings
                   FROM spcd.connection_state ORDER BY 1";
        let rows = read(&self.hub, sql).await?;
        let mut states: BTreeMap<&str, (&str, &str, &str)> = rows
            .iter()
            .map(|row| {
                (
                    row[0].as_str(),
                    (row[1].as_str(), row[2].as_str(), row[3].as_str()),
                )
            })
            .collect();
        for (n, name) in MEMBERS.iter().enumerate() {
            let state = states.remove(name);
            let found = self.member_difference(n, state).await?;
            if let Some(found) = found {
                return Ok(Some(format!("{name:?}: {found}")));
            }
        }
        for (name, status) in self.expected() {
            let state = states.remove(name.as_str());
            if state.map(|state| state.0) != Some(status) {
                return Ok(Some(format!("{name:?} is {state:?}, not {status}")));
            }
        }
        if let Some((name, state)) = states.first_key_value() {
            return Ok(Some(format!("{name:?} has no block, and is {state:?}")));
        }
        for found in [
            self.rows_difference().await?,
            self.things_difference().await?,
            self.requests_difference().await?,
        ] {
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The statuses of all connections but the members.
    fn expected(&self) -> Vec<(String, &'static str)> {
        let mut expected = vec![
            (AGGREGATOR.to_owned(), "ready"),
            ("files".to_owned(), "ready"),
            ("off".to_owned(), "disabled"),
        ];
        if self.gateway.is_some() {
            expected.extend([0, 1].map(|n| (format!("w{n}"), "ready")));
        }
        expected
    }

    async fn member_difference(
        &self,
        member: usize,
        state: Option<(&str, &str, &str)>,
    ) -> Result<Option<String>, String> {
        let (block, name) = (&self.model.members[member], MEMBERS[member]);
        let is_kept = self.model.is_kept(name);
        let status = match block {
            block if !block.is_present => is_kept.then_some("error"),
            block if block.is_broken => Some("error"),
            block if !block.is_enabled && is_kept => Some("error"),
            block if !block.is_enabled => Some("disabled"),
            _ => Some("ready"),
        };
        if state.map(|state| state.0) != status {
            return Ok(Some(format!("is {state:?}, not {status:?}")));
        }
        let Some((_, error, warnings)) = state else {
            return Ok(None);
        };
        if block.is_present && block.is_broken && !error.contains(&self.model.file_name(member)) {
            return Ok(Some(format!("its error names no file: {error}")));
        }
        if status != Some("ready") {
            return Ok(None);
        }
        if warnings != "{}" {
            return Ok(Some(format!("it warns: {warnings}")));
        }
        let there = read(&self.hub, &columns_of(name, "f")).await?;
        let source = read(&self.sources[block.source], &columns_of("public", "r")).await?;
        if there != source {
            return Ok(Some(format!("has {there:?}, its source {source:?}")));
        }
        let sql = format!("SELECT id, note FROM {}.t", ident(name));
        let rows = read(&self.as_reader(), &sql).await?;
        let wanted = block.source.to_string();
        let right = [wanted.clone(), format!("of source {wanted}")];
        Ok((rows != [right.clone()]).then(|| format!("shows {rows:?}, not {right:?}")))
    }

    /// The hub's URL for a member of `spcd_users`.
    fn as_reader(&self) -> String {
        self.hub.replacen("://postgres@", "://reader@", 1)
    }

    /// What other connections show.
    async fn rows_difference(&self) -> Result<Option<String>, String> {
        let mut wanted: Vec<Vec<String>> = (MEMBERS.iter().zip(&self.model.members))
            .filter(|(_, block)| block.is_present && !block.is_broken)
            .map(|(name, block)| vec![(*name).to_owned(), block.source.to_string()])
            .collect();
        wanted.sort();
        let sql =
            "SELECT connection_name, id FROM \"all\".t ORDER BY connection_name COLLATE \"C\"";
        let mut rows = read(&self.as_reader(), sql).await?;
        // A broken block keeps what it had, which may be nothing.
        let is_broken = |name: &str| {
            let mut blocks = MEMBERS.iter().zip(&self.model.members);
            blocks.any(|(member, block)| *member == name && block.is_broken)
        };
        rows.retain(|row| !is_broken(&row[0]));
        if rows != wanted {
            return Ok(Some(format!(
                "the aggregator shows {rows:?}, not {wanted:?}"
            )));
        }
        let rows = read(&self.as_reader(), "SELECT id, name FROM files.c ORDER BY 1").await?;
        if rows != [["1", "one"], ["2", "two"]] {
            return Ok(Some(format!("files shows {rows:?}")));
        }
        if self.gateway.is_some() {
            for n in 0..2 {
                let sql = format!("SELECT token FROM w{n}.account");
                let rows = read(&self.as_reader(), &sql).await?;
                let token = self.model.token(n);
                if rows != [[token.as_str()]] {
                    return Ok(Some(format!("w{n} shows {rows:?}, not {token}")));
                }
            }
        }
        Ok(None)
    }

    /// What of users' objects is gone.
    async fn things_difference(&self) -> Result<Option<String>, String> {
        for thing in &self.model.things {
            if read(&self.hub, &thing.check()).await? != [["t"]] {
                return Ok(Some(format!("it is gone: {}", thing.make())));
            }
        }
        let theirs = read(&self.hub, THEIR_STATE).await?;
        if theirs != self.theirs {
            return Ok(Some(format!("theirs is {theirs:?}, was {:?}", self.theirs)));
        }
        Ok(None)
    }

    async fn requests_difference(&self) -> Result<Option<String>, String> {
        let sql = "SELECT id, action, requested_at FROM spcd.refresh_request WHERE done_at IS NULL";
        let open = read(&self.hub, sql).await?;
        Ok((!open.is_empty()).then(|| format!("requests without an answer: {open:?}")))
    }

    /// Each event was announced, and each is a legal transition that begins where the one before ended.
    async fn check_events(&self) {
        let sql = "SELECT id, coalesce(connection_name, ''), coalesce(previous, ''), status,
                          coalesce(health, '') FROM spcd.connection_event ORDER BY id";
        let events = must(&self.hub, sql).await;
        let ids: Vec<i64> = events.iter().map(|row| row[0].parse().unwrap()).collect();
        let begin = Instant::now();
        while let Some(unheard) = self.watch.unheard(&ids) {
            assert!(begin.elapsed() < DEADLINE, "{unheard}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let chain = illegal(&events);
        assert!(chain.is_none(), "{}", chain.unwrap_or_default());
    }

    /// Without a daemon, nothing of it is left but what connections have.
    async fn check_leftovers(&self) {
        self.spcd.lock().await.stop();
        let schemas: Vec<String> = must(
            &self.hub,
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN (
                 SELECT connection_name FROM spcd.connection_state WHERE status <> 'disabled'
                 UNION SELECT 'spcd_member_' || connection_name FROM spcd.connection_state)",
        )
        .await
        .concat();
        let known: Vec<&str> = OTHER_SCHEMAS.split(' ').collect();
        let left: Vec<&String> = (schemas.iter())
            .filter(|schema| !known.contains(&schema.as_str()) && !schema.starts_with("spcd_lane"))
            .collect();
        assert!(left.is_empty(), "schemas are left: {left:?}");
        let servers = "SELECT srvname FROM pg_foreign_server WHERE srvname <> 'their_server'
                       AND srvname NOT IN (SELECT connection_name FROM spcd.connection_state)";
        let left = must(&self.hub, servers).await.concat();
        let left: Vec<&String> = left
            .iter()
            .filter(|name| !name.starts_with("spcd_"))
            .collect();
        assert!(left.is_empty(), "servers are left: {left:?}");
        let mut urls = vec![(&self.hub, "application_name LIKE 'spcd%'")];
        urls.extend(
            self.sources
                .iter()
                .map(|url| (url, "usename = 'source_reader'")),
        );
        urls.extend(
            self.gateway
                .iter()
                .map(|url| (url, "application_name LIKE 'spcd%'")),
        );
        for (url, whose) in urls {
            let sql = format!(
                "SELECT application_name, state, query FROM pg_stat_activity
                 WHERE datname = current_database() AND {whose}"
            );
            let begin = Instant::now();
            loop {
                let left = query(url, &sql).await;
                if left.is_empty() {
                    break;
                }
                assert!(begin.elapsed() < DEADLINE, "sessions are left: {left:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// No password or token is where it could be read.
    async fn check_secrets(&self) {
        let log = self.spcd.lock().await.log();
        let hub_log = self.servers.hub.lock().await.log();
        let source_log = self.servers.source.lock().await.log();
        let texts = [
            ("the daemon's log", log),
            ("the hub's log", hub_log),
            ("the source's log", source_log),
            ("notifications", self.watch.text()),
            ("spcd's tables", self.tables().await),
        ];
        for (place, text) in texts {
            let found = text.lines().find(|line| line.contains(SECRET));
            assert!(found.is_none(), "a secret is in {place}: {found:?}");
        }
    }

    /// The rows of all of spcd's tables.
    async fn tables(&self) -> String {
        let sql = "SELECT format('SELECT t::text FROM %s t', c.oid::regclass)
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'spcd' AND c.relkind = 'r'";
        let mut text = String::new();
        for select in must(&self.hub, sql).await.concat() {
            for row in must(&self.hub, &select).await.concat() {
                text.push_str(&row);
                text.push('\n');
            }
        }
        text
    }
}

/// Rows, or the error as text: it may pass.
async fn read(url: &str, sql: &str) -> Result<Rows, String> {
    let rows = try_query(url, sql).await;
    let rows = rows.map_err(|error| match error.as_db_error() {
        Some(error) => format!("{sql}: {error:?}"),
        None => format!("{sql}: {error}"),
    })?;
    let cells = |row: Vec<Option<String>>| row.into_iter().map(Option::unwrap_or_default).collect();
    Ok(rows.into_iter().map(cells).collect())
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
