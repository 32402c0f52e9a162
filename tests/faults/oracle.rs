//! What is to hold after a schedule.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spcd_core::sql::ident;

use super::model::{Member, columns_of};
use super::people::AGGREGATOR;
use super::schedule::MEMBERS;
use super::sql_session::{insist, read};
use super::world::{THEIR_STATE, World};
use crate::support::{DEADLINE, eventually, finish, try_query};

/// How long everything may take to be as the files say once the faults are over: `SPCD_FAULT_LIMIT`
/// seconds, which is 10 in `scripts/soak.sh`; here the machine may be busy with other tests.
fn limit() -> Duration {
    super::number("SPCD_FAULT_LIMIT").map_or(DEADLINE, Duration::from_secs)
}

impl World {
    /// Checks everything; returns how long it took until all was as the files say.
    ///
    /// # Errors
    /// What is not as it has to be.
    pub async fn check(&mut self) -> Result<Duration, String> {
        self.end_faults().await;
        let begin = Instant::now();
        // The first daemon may not have come to make the function.
        eventually("a refresh is requested", DEADLINE, || async {
            insist(&self.hub, "SELECT spcd.refresh()").await.ok()
        })
        .await;
        if self.has_vanished && self.has_removed {
            self.give_up_files(begin).await?;
        }
        self.settle(begin, limit()).await?;
        let took = begin.elapsed();
        self.check_events().await?;
        self.check_watch()?;
        self.check_waiters().await?;
        self.spcd.lock().await.stop();
        if let Some(second) = &mut self.second {
            second.stop();
        }
        self.check_objects().await?;
        self.check_sessions().await?;
        self.check_secrets().await?;
        Ok(took)
    }

    /// Gives up files that were removed. If the daemon saw them vanish together with their directory, it
    /// waits for a user's word. A user says so again if the servers were not back yet.
    async fn give_up_files(&self, begin: Instant) -> Result<(), String> {
        let waiting = "SELECT 1 FROM spcd.connection_state WHERE error LIKE '%--allow-empty%'";
        loop {
            let apply = self.spcd.lock().await.command(&["apply", "--allow-empty"]);
            let ended = tokio::task::spawn_blocking(|| finish(apply)).await;
            ended.map_err(|error| error.to_string())?;
            let left = read(&self.hub, waiting).await;
            if left.is_ok_and(|rows| rows.is_empty()) || begin.elapsed() > limit() {
                return Ok(());
            }
        }
    }

    /// Waits until nothing differs from the model.
    pub async fn settle(&self, begin: Instant, limit: Duration) -> Result<(), String> {
        loop {
            let found = self.difference().await;
            let Some(found) = found.unwrap_or_else(Some) else {
                return Ok(());
            };
            let elapsed = begin.elapsed();
            if self.is_verbose {
                super::say(&format!("{elapsed:?}: {found}"));
            }
            if elapsed > limit {
                let states = self.states().await;
                return Err(format!("{elapsed:?} after the faults: {found}\n{states}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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
            self.aggregator_difference().await?,
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
            block if !block.is_enabled && self.model.keeps_schema(name) => Some("error"),
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

    /// What the aggregator shows.
    async fn aggregator_difference(&self) -> Result<Option<String>, String> {
        let blocks = || MEMBERS.iter().zip(&self.model.members);
        // Only a connection that is in no error is mended.
        let is_in_error = |name: &str, block: &Member| {
            block.is_broken || !block.is_enabled && self.model.keeps_schema(name)
        };
        if blocks().any(|(name, block)| block.is_damaged && is_in_error(name, block)) {
            return Ok(None);
        }
        let mut wanted: Vec<Vec<String>> = blocks()
            .filter(|(_, block)| block.is_present && !block.is_broken)
            .map(|(name, block)| vec![(*name).to_owned(), block.source.to_string()])
            .collect();
        wanted.sort();
        let sql =
            "SELECT connection_name, id FROM \"all\".t ORDER BY connection_name COLLATE \"C\"";
        let mut rows = read(&self.as_reader(), sql).await?;
        // A broken block keeps what it had, which may be nothing.
        let is_broken =
            |name: &str| blocks().any(|(member, block)| *member == name && block.is_broken);
        rows.retain(|row| !is_broken(&row[0]));
        Ok((rows != wanted).then(|| format!("the aggregator shows {rows:?}, not {wanted:?}")))
    }

    /// What other connections show.
    async fn rows_difference(&self) -> Result<Option<String>, String> {
        let mut wanted = vec!["c id bigint".to_owned(), "c name text".to_owned()];
        for n in (0..2).filter(|n| self.model.csv[*n]) {
            wanted.push(format!("d{n} day date"));
        }
        let columns = read(&self.hub, &columns_of("files", "f")).await?.concat();
        if columns != wanted {
            return Ok(Some(format!("files has {columns:?}, not {wanted:?}")));
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
}
