//! The health of sources, as commands show it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// A row of `spcd.connection_health`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceHealth {
    #[serde(skip_serializing)]
    connection_name: String,
    /// Whether it answered the last probe; `None` if unknown.
    pub reachable: Option<bool>,
    last_checked: Option<String>,
    pub latency_ms: Option<f64>,
    attempts: i32,
    pub last_failure: Option<String>,
    failed_at: Option<String>,
    next_attempt: Option<String>,
    breaker: String,
    pub held: bool,
}

impl SourceHealth {
    /// Returns the text of the column SOURCE.
    pub fn summary(&self) -> String {
        match (self.held, self.reachable) {
            (true, _) => "held".into(),
            (_, None) => "-".into(),
            (_, Some(false)) => "lost".into(),
            (_, Some(true)) => match self.latency_ms {
                Some(ms) => format!("{ms:.0} ms"),
                None => "ok".into(),
            },
        }
    }

    /// Returns since when and why it does not answer.
    pub fn problem(&self) -> Option<String> {
        if self.held {
            return Some("paused until `spcd reconnect`".into());
        }
        let why = self.last_failure.as_ref()?;
        match self.reachable {
            Some(false) => Some(format!("its source does not answer: {why}")),
            None => Some(format!("its source cannot be probed: {why}")),
            Some(true) => None,
        }
    }
}

/// Returns all rows by connection. Empty if the table does not exist yet or cannot be read.
pub async fn rows(client: &Client) -> anyhow::Result<BTreeMap<String, SourceHealth>> {
    let sql = "SELECT pg_catalog.to_jsonb(h) FROM spcd.connection_health h";
    let rows = match client.query(sql, &[]).await {
        Ok(rows) => rows,
        Err(error) => {
            let missing = [SqlState::UNDEFINED_TABLE, SqlState::INSUFFICIENT_PRIVILEGE];
            return match error.code() {
                Some(code) if missing.contains(code) => Ok(BTreeMap::new()),
                _ => Err(error.into()),
            };
        }
    };
    let row = |row: &tokio_postgres::Row| {
        let row: SourceHealth = serde_json::from_value(row.try_get(0)?)?;
        anyhow::Ok((row.connection_name.clone(), row))
    };
    rows.iter().map(row).collect()
}
