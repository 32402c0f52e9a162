//! Imports and writes that crashed a server process. They are recorded after the server's restart, so
//! that they are retried only after a pause.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use spcd_core::planner::{Bookkeeping, WriteUnit};
use tokio_postgres::Client;

use crate::{HubError, transaction};

/// A crash of a server process in a wrapper's code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// Connection whose wrapper ran.
    pub name: String,
    /// Hash of its definition.
    pub target_hash: String,
    /// The wrapper.
    pub wrapper: String,
    /// The operation that crashed.
    pub question: Question,
    /// The process that crashed.
    pub backend_pid: i32,
}

/// Operation of a wrapper that crashed its server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Import of the tables.
    Import,
    /// Probe of the source.
    Probe,
    /// Validation of options.
    Write,
}

/// Recorded crashes of a connection.
#[derive(Debug, Clone)]
pub struct RecordedCrash {
    /// Hash of the definition that crashed.
    pub target_hash: String,
    /// Error text for the connection's state.
    pub reason: String,
    /// Number of consecutive crashes.
    pub times: u32,
    /// Time until the next attempt.
    pub pause: Duration,
}

impl Crash {
    /// Returns the crash that writing a unit may cause, if it runs a wrapper's code.
    pub fn of_unit(unit: &WriteUnit, backend_pid: i32) -> Option<Self> {
        let wrapper = unit.library.clone()?;
        let Bookkeeping::Made(record) = &unit.record else {
            return None;
        };
        Some(Self {
            name: unit.name.clone(),
            target_hash: record.target_hash.clone(),
            wrapper,
            question: Question::Write,
            backend_pid,
        })
    }

    /// Returns the error text, with the cause from the server's log.
    fn reason(&self, log: Option<&str>) -> String {
        let question = match self.question {
            Question::Import => "import",
            Question::Probe => "probe",
            Question::Write => "write",
        };
        let end = log.and_then(|log| process_end(log, self.backend_pid));
        let end = end.map(|end| format!("{end}, ")).unwrap_or_default();
        format!(
            "the wrapper {:?} ended its server process: {end}last asked: {question} of {}",
            self.wrapper, self.name
        )
    }
}

/// Returns how a process ended according to a server's log: `signal 11: Segmentation fault`.
fn process_end(log: &str, backend_pid: i32) -> Option<&str> {
    let mark = format!("(PID {backend_pid}) ");
    let end = log.lines().rev().find_map(|line| line.split_once(&mark))?.1;
    let end = end.strip_prefix("was terminated by ").unwrap_or(end);
    Some(end.strip_prefix("exited with ").unwrap_or(end).trim())
}

/// Maximum number of bytes of the server's log in which the end of a process is searched.
const LOG_TAIL_BYTES: i64 = 256 << 10;

/// Returns the end of the server's log, if the role may read it and the server keeps one.
async fn log_tail(client: &Client) -> Option<String> {
    let sql = "SELECT pg_catalog.pg_read_binary_file(l.name, greatest(f.size - $1, 0), $1)
               FROM pg_catalog.pg_current_logfile() AS l (name), pg_catalog.pg_stat_file(l.name) f
               WHERE l.name IS NOT NULL";
    let row = client.query_opt(sql, &[&LOG_TAIL_BYTES]).await.ok()??;
    let bytes: Vec<u8> = row.try_get(0).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Records crashes in the database, and logs them. Returns the plugins of their connections.
pub async fn record(
    client: &Client,
    epoch: i64,
    crashes: &[Crash],
) -> Result<Vec<String>, HubError> {
    if crashes.is_empty() {
        return Ok(Vec::new());
    }
    let log = log_tail(client).await;
    let rows = crashes.iter().map(|crash| {
        let reason = crash.reason(log.as_deref());
        tracing::error!(connection = crash.name, "{reason}");
        json!({"name": crash.name, "target_hash": crash.target_hash, "reason": reason})
    });
    let rows = serde_json::Value::Array(rows.collect());
    transaction::begin(client, epoch).await?;
    let recorded = client
        .execute("SELECT spcd.record_crashes($1)", &[&rows])
        .await;
    transaction::end(client, recorded.map(drop).map_err(HubError::from)).await?;
    let names: Vec<&str> = crashes.iter().map(|crash| crash.name.as_str()).collect();
    let sql = "SELECT plugin FROM spcd.connection_state WHERE connection_name = ANY ($1)";
    let rows = client.query(sql, &[&names]).await?;
    Ok(rows.iter().filter_map(|row| row.try_get(0).ok()).collect())
}

/// Returns the connections that crashed, by name.
pub async fn recorded(client: &Client) -> Result<BTreeMap<String, RecordedCrash>, HubError> {
    let sql = "SELECT connection_name, target_hash, times,
                      reason || '; asked again at '
                      || pg_catalog.to_char(next_attempt AT TIME ZONE 'UTC', 'HH24:MI') || ' UTC, when '
                      || 'its definition changes, or on `spcd retry ' || connection_name || '`',
                      -- The clock may have been set back.
                      greatest(extract(epoch FROM least(next_attempt - pg_catalog.clock_timestamp(),
                                                        next_attempt - crashed_at))::float8, 0)
               FROM spcd.wrapper_crash";
    let rows = client.query(sql, &[]).await?;
    rows.iter()
        .map(|row| {
            let recorded = RecordedCrash {
                target_hash: row.try_get(1)?,
                times: row.try_get::<_, i32>(2)?.unsigned_abs(),
                reason: row.try_get(3)?,
                pause: Duration::try_from_secs_f64(row.try_get(4)?).unwrap_or_default(),
            };
            Ok((row.try_get(0)?, recorded))
        })
        .collect()
}

/// Deletes the recorded crashes of a connection after a successful attempt.
pub async fn delete_record(client: &Client, epoch: i64, name: &str) -> Result<(), HubError> {
    let sql = "DELETE FROM spcd.wrapper_crash WHERE connection_name = $1
               AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = $2)";
    client.execute(sql, &[&name, &epoch]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_the_end_of_the_process_and_the_question() {
        let crash = Crash {
            name: "c".into(),
            target_hash: String::new(),
            wrapper: "w".into(),
            question: Question::Import,
            backend_pid: 42,
        };
        let log = "LOG:  server process (PID 42) exited with exit code 2\n\
                   LOG:  server process (PID 142) was terminated by signal 9: Killed\n\
                   LOG:  server process (PID 42) was terminated by signal 11: Segmentation fault\n";
        let begin = "the wrapper \"w\" ended its server process: ";
        for (log, end) in [
            (Some(log), "signal 11: Segmentation fault, "),
            (log.lines().next(), "exit code 2, "),
            (log.lines().nth(1), ""),
            (None, ""),
        ] {
            let reason = format!("{begin}{end}last asked: import of c");
            assert_eq!(crash.reason(log), reason);
        }
    }
}
