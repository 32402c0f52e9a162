//! `spcd.refresh_request`: what people asked for, and what is still to be answered.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::observed::Observed;
use tokio_postgres::Client;

use crate::hub::HubError;

/// The requests that were seen and not answered yet.
#[derive(Default)]
pub struct Requests {
    open: BTreeMap<i64, Open>,
}

struct Open {
    /// `None`: all.
    names: Option<Vec<String>>,
    /// Whether a pass since it was seen left nothing for later.
    passed: bool,
    errors: Vec<String>,
}

impl Requests {
    /// Reads the requests that are new; returns what each asks for.
    pub async fn read(&mut self, client: &Client) -> Result<Vec<Option<Vec<String>>>, HubError> {
        let sql = "SELECT id, connections FROM spcd.refresh_request
                   WHERE done_at IS NULL ORDER BY id";
        let mut new = Vec::new();
        for row in client.query(sql, &[]).await? {
            let (id, names): (i64, Option<Vec<String>>) = (row.try_get(0)?, row.try_get(1)?);
            self.open.entry(id).or_insert_with(|| {
                new.push(names.clone());
                Open {
                    names,
                    passed: false,
                    errors: Vec::new(),
                }
            });
        }
        Ok(new)
    }

    /// A pass is over; `deferred` are the connections for which it could do nothing yet.
    pub fn passed(&mut self, observed: &Observed, deferred: &BTreeSet<String>) {
        for open in self.open.values_mut().filter(|open| !open.passed) {
            open.passed = deferred.is_empty();
            let names = open.names.iter().flatten();
            for name in names.filter(|name| !observed.connections.contains_key(*name)) {
                let error = format!("no connection is named {name:?}");
                if !open.errors.contains(&error) {
                    open.errors.push(error);
                }
            }
        }
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
