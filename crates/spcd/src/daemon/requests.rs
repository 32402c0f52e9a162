//! `spcd.refresh_request`: what people asked for, and what is still to be answered.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use crate::hub::HubError;

/// So many names that no connection has are told; of the others, how many there are.
const TOLD: usize = 3;
/// Most requests that are held in memory at once, and the names in them; the others stay queued in the
/// table until these are answered. The oldest is always held.
const MOST_OPEN: i64 = 100;
const MOST_NAMES: i64 = 200_000;
/// Most errors that an answer names.
const MOST_ERRORS: usize = 100;
/// Most names that are kept of an answered request.
const MOST_KEPT: i32 = 100;
/// No name is longer, in bytes; nor is it told with more characters.
const LONGEST: usize = 63;

/// The requests that were seen and not answered yet.
#[derive(Default)]
pub struct Requests {
    open: BTreeMap<i64, Open>,
    /// Whether more are queued than are held.
    is_crowded: bool,
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub action: Action,
    /// `None`: all. In byte order, each once.
    pub names: Option<Vec<String>>,
    /// Whether credentials that were refused are sent again.
    pub retries_refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the sources.
    Refresh,
    /// Leave them alone no longer, and ask them.
    Reconnect,
    /// Leave them alone.
    Disconnect,
    /// Ask them although that ended a server process.
    Retry,
}

struct Open {
    action: Action,
    /// `None`: all. In byte order, each once; once looked for, only those of connections.
    names: Option<Vec<String>>,
    /// Those of them of which it was told that they are left alone.
    held: BTreeSet<String>,
    /// The pass that saw it first.
    seen: u64,
    /// Whether a pass since then left nothing for later, and knew what was altered.
    passed: bool,
    /// Connections of which the look found work that their status does not tell: other files, an
    /// obstacle that may be gone.
    found: BTreeSet<String>,
    /// When they are waited for no longer: one source that hangs holds up no look at the others.
    found_until: Option<Instant>,
    errors: Vec<String>,
    /// How many more there were.
    more_errors: usize,
}

impl Open {
    fn tell(&mut self, error: impl FnOnce() -> String) {
        match self.errors.len() < MOST_ERRORS {
            true => self.errors.push(error()),
            false => self.more_errors += 1,
        }
    }

    /// The answer: `None` where all went well.
    fn error(&self) -> Option<String> {
        let errors = self.errors.join("; ");
        match self.more_errors {
            0 => Some(errors).filter(|errors| !errors.is_empty()),
            more => Some(format!("{errors}; and {more} more")),
        }
    }
}

impl Requests {
    /// Reads the requests that are new to a pass; returns what each asks for.
    pub async fn read(&mut self, client: &Client, pass: u64) -> Result<Vec<Asked>, HubError> {
        // Whatever there is in the array: members that are NULL, or arrays of arrays.
        let sql = r#"SELECT q.id, CASE WHEN f.fits AND q.connections IS NOT NULL THEN ARRAY(
                       SELECT DISTINCT name COLLATE "C" FROM pg_catalog.unnest(q.connections) AS n (name)
                       WHERE name IS NOT NULL) END, q.action, f.fits, q.retries_refused
                   FROM (SELECT id, connections, action, retries_refused, row_number() OVER w AS n,
                                sum(name_count) OVER w AS names
                         FROM spcd.refresh_request
                         WHERE done_at IS NULL WINDOW w AS (ORDER BY id)) q
                   CROSS JOIN LATERAL (
                       SELECT q.n = 1 OR (q.n <= $2 AND q.names <= $3) AS fits) f
                   WHERE q.n <= $2 + 1 AND q.id <> ALL ($1)
                   ORDER BY q.id"#;
        let held: Vec<i64> = self.open.keys().copied().collect();
        let mut new = Vec::new();
        self.is_crowded = false;
        let rows = client.query(sql, &[&held, &MOST_OPEN, &MOST_NAMES]).await?;
        take_retries(client, &rows).await?;
        for row in rows {
            if !row.try_get::<_, bool>(3)? {
                self.is_crowded = true;
                break;
            }
            let (id, mut names): (i64, Option<Vec<String>>) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(names) = &mut names {
                // The database sorts in another order.
                names.sort_unstable();
            }
            let retries_refused = row.try_get(4)?;
            let action = match row.try_get(2)? {
                "reconnect" => Action::Reconnect,
                "disconnect" => Action::Disconnect,
                "retry" => Action::Retry,
                _ => Action::Refresh,
            };
            self.open.entry(id).or_insert_with(|| {
                let asked = names.clone();
                new.push(Asked {
                    action,
                    names: asked,
                    retries_refused,
                });
                Open {
                    action,
                    names,
                    held: BTreeSet::new(),
                    seen: pass,
                    passed: false,
                    found: BTreeSet::new(),
                    found_until: None,
                    errors: Vec::new(),
                    more_errors: 0,
                }
            });
        }
        Ok(new)
    }

    /// A pass looked: who asks for a connection that is not there is told, and who asks for one that
    /// is left alone.
    pub fn looked(&mut self, is_known: impl Fn(&str) -> bool, held: &BTreeSet<String>) {
        for open in self.open.values_mut().filter(|open| !open.passed) {
            let Some(names) = &mut open.names else {
                continue;
            };
            let unknown: Vec<String> = names.extract_if(.., |name| !is_known(name)).collect();
            if !unknown.is_empty() {
                open.errors.push(no_connection(&unknown));
            }
            if open.action != Action::Refresh {
                continue;
            }
            let left_alone: Vec<String> = (names.iter())
                .filter(|name| held.contains(*name) && !open.held.contains(*name))
                .cloned()
                .collect();
            for name in left_alone {
                open.tell(|| {
                    format!(
                        "{name}: its source is left alone since `spcd disconnect`: \
                         `spcd reconnect {name}` ends that"
                    )
                });
                open.held.insert(name);
            }
        }
    }

    /// The look found work for these connections, which those who asked for it wait for, at most
    /// until `until`.
    pub fn await_found<'a>(&mut self, names: impl Iterator<Item = &'a String>, until: Instant) {
        let names: BTreeSet<&String> = names.collect();
        if names.is_empty() {
            return;
        }
        for open in self.open.values_mut().filter(|open| !open.passed) {
            open.found.extend(names.iter().map(|name| (*name).clone()));
            open.found_until = Some(until);
        }
    }

    /// All that this pass or one before saw has been looked for, and nothing of it is put off.
    pub fn passed(&mut self, pass: u64) {
        for open in self.open.values_mut() {
            open.passed |= open.seen <= pass;
        }
    }

    /// Whether there are some that this pass had not seen.
    pub fn came_after(&self, pass: u64) -> bool {
        let mut open = self.open.values();
        open.any(|open| !open.passed && open.seen > pass)
    }

    /// Whether somebody waits for what a look finds.
    pub fn await_a_look(&self) -> bool {
        self.open.values().any(|open| !open.passed)
    }

    /// A job failed.
    pub fn failed(&mut self, name: &str, error: &str) {
        let concerns = |open: &&mut Open| match &open.names {
            Some(names) => (names.binary_search_by(|asked| asked.as_str().cmp(name))).is_ok(),
            None => true,
        };
        for open in self.open.values_mut().filter(concerns) {
            open.tell(|| format!("{name}: {error}"));
        }
    }

    /// Answers the requests of which nothing is under way any more, as `is_open` says of one
    /// connection, or of all; `is_found` says it of what a look found. Returns whether that made room
    /// for some that are queued.
    pub async fn answer(
        &mut self,
        client: &Client,
        epoch: i64,
        is_open: impl Fn(Option<&str>) -> bool,
        is_found: impl Fn(&str) -> bool,
    ) -> Result<bool, HubError> {
        let now = Instant::now();
        let waits = |open: &Open| {
            open.found_until.is_some_and(|until| until > now)
                && open.found.iter().any(|name| is_found(name))
        };
        let over = |open: &Open| {
            open.passed
                && !waits(open)
                && match &open.names {
                    Some(names) => !names.iter().any(|name| is_open(Some(name))),
                    None => !is_open(None),
                }
        };
        let ids: Vec<i64> = (self.open.iter())
            .filter(|(_, open)| over(open))
            .map(|(id, _)| *id)
            .collect();
        let made_room = self.is_crowded && !ids.is_empty();
        for id in ids {
            let error = self.open.get(&id).and_then(Open::error);
            let sql = "UPDATE spcd.refresh_request
                       SET done_at = pg_catalog.clock_timestamp(), error = $2,
                           connections = CASE WHEN name_count > $4 THEN connections[1:$4]
                                              ELSE connections END
                       WHERE id = $1 AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = $3)";
            let params: [&(dyn ToSql + Sync); 4] = [&id, &error, &epoch, &MOST_KEPT];
            client.execute(sql, &params).await?;
            self.open.remove(&id);
        }
        Ok(made_room)
    }
}

/// Leaves only a refresh of retries that were read for the next leader: a retry may end the server once
/// more.
async fn take_retries(client: &Client, rows: &[Row]) -> Result<(), HubError> {
    let mut ids: Vec<i64> = Vec::new();
    for row in rows {
        if row.try_get::<_, &str>(2)? == "retry" && row.try_get(3)? {
            ids.push(row.try_get(0)?);
        }
    }
    if !ids.is_empty() {
        let taken = "UPDATE spcd.refresh_request SET action = 'refresh' WHERE id = ANY ($1)";
        client.execute(taken, &[&ids]).await?;
    }
    Ok(())
}

/// That there are no connections of these names.
fn no_connection(names: &[String]) -> String {
    let told = |name: &String| match name.len() > LONGEST {
        true => format!(
            "{:?}",
            name.chars().take(LONGEST).chain(['…']).collect::<String>()
        ),
        false => format!("{name:?}"),
    };
    let first: Vec<String> = names.iter().take(TOLD).map(told).collect();
    let first = first.join(", ");
    match names.len() - names.len().min(TOLD) {
        0 => format!("no connection is named {first}"),
        more => format!("no connection is named {first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(action: Action, names: Vec<String>) -> Requests {
        let open = Open {
            action,
            names: Some(names),
            held: BTreeSet::new(),
            seen: 1,
            passed: false,
            found: BTreeSet::new(),
            found_until: None,
            errors: Vec::new(),
            more_errors: 0,
        };
        Requests {
            open: BTreeMap::from([(1, open)]),
            is_crowded: false,
        }
    }

    #[test]
    fn names_that_no_connection_has_are_told_in_short_and_once() {
        let names = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        let mut requests = asking(Action::Reconnect, names);
        let nothing = BTreeSet::new();
        for _ in 0..2 {
            requests.looked(|name| name == "c", &nothing);
            let open = &requests.open[&1];
            let told = "no connection is named \"a\", \"b\", \"d\" and 1 more";
            assert_eq!(open.errors, [told]);
            assert_eq!(open.names, Some(vec!["c".to_owned()]));
        }
        let mut requests = asking(Action::Refresh, vec!["ä".repeat(1_000_000)]);
        requests.looked(|_| false, &nothing);
        let told = format!("no connection is named \"{}…\"", "ä".repeat(LONGEST));
        assert_eq!(requests.open[&1].errors, [told]);
    }

    #[test]
    fn what_is_left_alone_is_told_once_to_who_asks_for_it() {
        let names: Vec<String> = ["a", "b"].map(str::to_owned).to_vec();
        let held = BTreeSet::from(["b".to_owned()]);
        for (action, told) in [(Action::Refresh, 1), (Action::Reconnect, 0)] {
            let mut requests = asking(action, names.clone());
            requests.looked(|_| true, &held);
            requests.looked(|_| true, &held);
            assert_eq!(requests.open[&1].errors.len(), told);
        }
    }
}
