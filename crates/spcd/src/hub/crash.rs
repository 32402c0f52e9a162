//! Questions that ended a server process: remembered over the server's restart, and not asked again
//! at once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use spcd_core::plan::{Bookkeeping, Unit};
use tokio_postgres::Client;

use super::{HubError, transaction};

/// A question that ended a server process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    name: String,
    target_hash: String,
    reason: String,
}

/// What is recorded of a connection that crashed.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The target that was asked.
    pub target_hash: String,
    /// For its state.
    pub reason: String,
    /// How often in a row.
    pub times: u32,
    /// In how long it is asked again.
    pub pause: Duration,
}

impl Crash {
    /// Of a connection, by its wrapper.
    pub fn new(name: &str, target_hash: &str, wrapper: &str) -> Self {
        Self {
            name: name.to_owned(),
            target_hash: target_hash.to_owned(),
            reason: format!(
                "the wrapper {wrapper:?} ended the server process that asked it, and with it every \
                 session of the server"
            ),
        }
    }
}

impl Crash {
    /// Of what is written for a connection, if that runs its wrapper's code.
    pub fn of_unit(unit: &Unit) -> Option<Self> {
        let wrapper = unit.library.as_deref()?;
        let Bookkeeping::Made(record) = &unit.record else {
            return None;
        };
        Some(Self::new(&unit.name, &record.target_hash, wrapper))
    }
}

/// Records crashes.
pub async fn record(client: &Client, epoch: i64, crashes: &[Crash]) -> Result<(), HubError> {
    if crashes.is_empty() {
        return Ok(());
    }
    let rows = crashes.iter().map(|crash| {
        let Crash {
            name,
            target_hash,
            reason,
        } = crash;
        tracing::error!(connection = name, "{reason}");
        json!({"name": name, "target_hash": target_hash, "reason": reason})
    });
    let rows = serde_json::Value::Array(rows.collect());
    transaction::begin(client, epoch).await?;
    let recorded = client
        .execute("SELECT spcd.record_crashes($1)", &[&rows])
        .await;
    transaction::end(client, recorded.map(drop).map_err(HubError::from)).await
}

/// Returns the connections that crashed, by name.
pub async fn recorded(client: &Client) -> Result<BTreeMap<String, Recorded>, HubError> {
    let sql = "SELECT connection_name, target_hash, times,
                      reason || '; asked again at '
                      || pg_catalog.to_char(next_attempt AT TIME ZONE 'UTC', 'HH24:MI') || ' UTC, when '
                      || 'its definition changes, or on `spcd retry ' || connection_name || '`',
                      greatest(extract(epoch FROM next_attempt - pg_catalog.clock_timestamp())::float8, 0)
               FROM spcd.wrapper_crash";
    let rows = client.query(sql, &[]).await?;
    rows.iter()
        .map(|row| {
            let recorded = Recorded {
                target_hash: row.try_get(1)?,
                times: row.try_get::<_, i32>(2)?.unsigned_abs(),
                reason: row.try_get(3)?,
                pause: Duration::try_from_secs_f64(row.try_get(4)?).unwrap_or_default(),
            };
            Ok((row.try_get(0)?, recorded))
        })
        .collect()
}

/// Forgets that a connection crashed: it was asked again, and nothing happened.
pub async fn forget(client: &Client, epoch: i64, name: &str) -> Result<(), HubError> {
    let sql = "DELETE FROM spcd.wrapper_crash WHERE connection_name = $1
               AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = $2)";
    client.execute(sql, &[&name, &epoch]).await?;
    Ok(())
}
