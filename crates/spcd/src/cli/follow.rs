//! Posts a request and waits for its result, for `wait`, `refresh`, `apply` and `reconnect`.

use std::time::Duration;

use anyhow::Context as _;
use spcd_client::{ConnectionState, Status, states};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use spcd_postgres::connection::Session;

/// Exit code after a time-out.
pub const TIME_OUT: u8 = 3;

/// Result of waiting.
pub enum WaitOutcome {
    /// All connections are settled. Holds their rows and the request's error.
    Settled(Vec<ConnectionState>, Option<String>),
    /// The time-out expired. Holds the rows that are not settled.
    TimedOut(Vec<ConnectionState>),
}

/// Requests a pass that imports the connections of `ask` again: `None` means all, an empty list none.
/// Returns the request's id.
pub async fn request(session: &Session, ask: Option<&[String]>) -> anyhow::Result<i64> {
    let row = session
        .client
        .query_one("SELECT spcd.refresh($1)", &[&ask])
        .await
        .context("cannot post a request to the daemon (has spcd run on this database?)")?;
    Ok(row.get(0))
}

/// Waits until the request is answered, which covers all files saved before it, and the connections are
/// settled. `None` means all.
pub async fn follow(
    session: &mut Session,
    id: i64,
    names: Option<&[String]>,
    limit: Duration,
    mut progress: impl FnMut(&[ConnectionState]),
) -> anyhow::Result<WaitOutcome> {
    let until = Instant::now() + limit;
    session.listen(spcd_protocol::CHANNEL).await?;
    let mut pause = Duration::from_millis(5);
    loop {
        let sql = "SELECT done_at IS NOT NULL, error FROM spcd.refresh_request WHERE id = $1";
        let row = session.client.query_one(sql, &[&id]).await?;
        let (done, error): (bool, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let rows = states(&session.client, names).await?;
        progress(&rows);
        let settled = |row: &ConnectionState| row.status.is_settled();
        if done && rows.iter().all(settled) {
            return Ok(WaitOutcome::Settled(rows, error));
        }
        if Instant::now() >= until {
            let left = rows.into_iter().filter(|row| !settled(row)).collect();
            return Ok(WaitOutcome::TimedOut(left));
        }
        // Notifications announce changes of connections, but not answers to requests.
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

/// Returns whether a daemon leads on this database.
pub async fn is_led(client: &Client) -> anyhow::Result<bool> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_locks
               WHERE locktype = 'relation' AND relation = (SELECT c.oid FROM pg_catalog.pg_class c
                                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                                 WHERE n.nspname = 'spcd_lock' AND c.relname = 'lead')
                 AND mode = 'ExclusiveLock' AND granted";
    Ok(client.query_one(sql, &[]).await?.get::<_, i64>(0) > 0)
}

/// Returns the connections among `names` that have no row.
pub fn unknown<'a>(names: &'a [String], rows: &[ConnectionState]) -> Vec<&'a str> {
    let known = |name: &&String| rows.iter().any(|row| row.connection_name == **name);
    names
        .iter()
        .filter(|name| !known(name))
        .map(String::as_str)
        .collect()
}

/// Prints the errors of settled connections. Returns whether there is any.
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
