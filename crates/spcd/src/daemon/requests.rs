//! `spcd.refresh_request`: what people asked for, and what is still to be answered.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::Desired;
use spcd_core::observed::Observed;
use tokio_postgres::Client;

use crate::hub::HubError;

/// The requests that were seen and not answered yet.
#[derive(Default)]
pub struct Requests {
    open: BTreeMap<i64, Open>,
}

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub action: Action,
    /// `None`: all.
    pub names: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the sources.
    Refresh,
    /// Leave them alone no longer, and ask them.
    Reconnect,
    /// Leave them alone.
    Disconnect,
}

struct Open {
    action: Action,
    /// `None`: all.
    names: Option<Vec<String>>,
    /// The pass that saw it first.
    seen: u64,
    /// Whether a pass since then left nothing for later, and knew what was altered.
    passed: bool,
    errors: Vec<String>,
}

impl Requests {
    /// Reads the requests that are new to a pass; returns what each asks for.
    pub async fn read(&mut self, client: &Client, pass: u64) -> Result<Vec<Asked>, HubError> {
        let sql = "SELECT id, connections, action FROM spcd.refresh_request
                   WHERE done_at IS NULL ORDER BY id";
        let mut new = Vec::new();
        for row in client.query(sql, &[]).await? {
            let (id, names): (i64, Option<Vec<String>>) = (row.try_get(0)?, row.try_get(1)?);
            let action = match row.try_get(2)? {
                "reconnect" => Action::Reconnect,
                "disconnect" => Action::Disconnect,
                _ => Action::Refresh,
            };
            self.open.entry(id).or_insert_with(|| {
                let asked = names.clone();
                new.push(Asked {
                    action,
                    names: asked,
                });
                Open {
                    action,
                    names,
                    seen: pass,
                    passed: false,
                    errors: Vec::new(),
                }
            });
        }
        Ok(new)
    }

    /// A pass looked: who asks for a connection that is not there is told, and who asks for one that
    /// is left alone.
    pub fn looked(&mut self, desired: &Desired, observed: &Observed, held: &BTreeSet<String>) {
        let is_known = |name: &str| {
            observed.connections.contains_key(name) || desired.connections.contains_key(name)
        };
        for open in self.open.values_mut().filter(|open| !open.passed) {
            for name in open.names.iter().flatten() {
                let error = match (is_known(name), open.action) {
                    (false, _) => format!("no connection is named {name:?}"),
                    (true, Action::Refresh) if held.contains(name) => format!(
                        "{name}: its source is left alone since somebody said `spcd disconnect`: \
                         `spcd reconnect {name}` ends that"
                    ),
                    _ => continue,
                };
                if !open.errors.contains(&error) {
                    open.errors.push(error);
                }
            }
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
            Some(names) => names.iter().any(|asked| asked == name),
            None => true,
        };
        for open in self.open.values_mut().filter(concerns) {
            open.errors.push(format!("{name}: {error}"));
        }
    }

    /// Answers the requests of which nothing is under way any more, as `is_open` says of one
    /// connection, or of all.
    pub async fn answer(
        &mut self,
        client: &Client,
        epoch: i64,
        is_open: impl Fn(Option<&str>) -> bool,
    ) -> Result<(), HubError> {
        let over = |open: &Open| {
            open.passed
                && match &open.names {
                    Some(names) => !names.iter().any(|name| is_open(Some(name))),
                    None => !is_open(None),
                }
        };
        let ids: Vec<i64> = (self.open.iter())
            .filter(|(_, open)| over(open))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let error = self
                .open
                .remove(&id)
                .map(|open| open.errors.join("; "))
                .filter(|errors| !errors.is_empty());
            let sql = "UPDATE spcd.refresh_request
                       SET done_at = pg_catalog.clock_timestamp(), error = $2
                       WHERE id = $1 AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = $3)";
            client.execute(sql, &[&id, &error, &epoch]).await?;
        }
        Ok(())
    }
}
