//! What `wait`, `refresh` and `apply` share: a request to look, and waiting for what it brings.

use std::time::Duration;

use anyhow::Context as _;
use spcd_client::{ConnectionState, Status, states};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use crate::hub::connect::Session;

/// How waiting ended.
pub enum Ended {
    /// Everything is settled: the rows, and what the sources said that were asked.
    Settled(Vec<ConnectionState>, Option<String>),
    /// Time is up: what is not settled.
    TimeOut(Vec<ConnectionState>),
}

/// Requests a look, and asks the sources of `ask` (`None`: all; empty: none); returns the id.
pub async fn request(session: &Session, ask: Option<&[String]>) -> anyhow::Result<i64> {
    let row = session
        .client
        .query_one("SELECT spcd.refresh($1)", &[&ask])
        .await
        .context("cannot ask the daemon to look (is spcd run on this database?)")?;
    Ok(row.get(0))
}

/// Waits until the request is answered and the connections (`None`: all) are settled: so that what
/// was saved before the request counts.
pub async fn follow(
    session: &mut Session,
    id: i64,
    names: Option<&[String]>,
    limit: Duration,
    mut progress: impl FnMut(&[ConnectionState]),
) -> anyhow::Result<Ended> {
    let until = Instant::now() + limit;
    let listen = format!("LISTEN {}", spcd_core::sql::ident(spcd_protocol::CHANNEL));
    session.client.batch_execute(&listen).await?;
    let mut pause = Duration::from_millis(5);
    loop {
        let sql = "SELECT done_at IS NOT NULL, error FROM spcd.refresh_request WHERE id = $1";
        let row = session.client.query_one(sql, &[&id]).await?;
        let (done, error): (bool, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let rows = states(&session.client, names).await?;
        progress(&rows);
        let settled = |row: &ConnectionState| row.status.is_settled();
        if done && rows.iter().all(settled) {
            return Ok(Ended::Settled(rows, error));
        }
        if Instant::now() >= until {
            let left = rows.into_iter().filter(|row| !settled(row)).collect();
            return Ok(Ended::TimeOut(left));
        }
        // A message says that something changed; that the request is answered has none.
        let next = (Instant::now() + pause).min(until);
        while let Ok(Some(_)) = timeout_at(next, session.messages.recv()).await {
            if !done {
                continue;
            }
            break;
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}

/// Whether a daemon is there to answer, for the message when time is up.
pub async fn is_led(client: &Client) -> anyhow::Result<bool> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_locks
               WHERE locktype = 'relation' AND relation = (SELECT c.oid FROM pg_catalog.pg_class c
                                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                                 WHERE n.nspname = 'spcd_lock' AND c.relname = 'lead')
                 AND mode = 'ExclusiveLock' AND granted";
    Ok(client.query_one(sql, &[]).await?.get::<_, i64>(0) > 0)
}

/// The connections among `names` that have no row.
pub fn unknown<'a>(names: &'a [String], rows: &[ConnectionState]) -> Vec<&'a str> {
    let known = |name: &&String| rows.iter().any(|row| row.connection_name == **name);
    names
        .iter()
        .filter(|name| !known(name))
        .map(String::as_str)
        .collect()
}

/// Prints what is wrong with settled connections; true if anything is.
pub fn report(names: &[String], rows: &[ConnectionState]) -> bool {
    let mut wrong = false;
    for name in unknown(names, rows) {
        eprintln!("spcd: no connection is named {name:?}");
        wrong = true;
    }
    for row in rows {
        match row.status {
            Status::Error => {
                let error = row.error.as_deref().unwrap_or_default();
                eprintln!("spcd: {}: {error}", row.connection_name);
                wrong = true;
            }
            Status::Disabled if names.contains(&row.connection_name) => {
                eprintln!("spcd: {} is disabled", row.connection_name);
                wrong = true;
            }
            _ => {}
        }
    }
    wrong
}
