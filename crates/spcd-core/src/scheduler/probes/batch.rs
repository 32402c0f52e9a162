//! Batches of health to write, and the health that is still pending.

use std::mem::take;

use serde_json::{Value, json};

use crate::health::{HealthChange, SourceHealth};

/// Health to write at once.
#[derive(Debug)]
pub struct HealthBatch {
    pub(super) rows: Vec<HealthRow>,
    pub(super) now: u64,
}

#[derive(Debug)]
pub(super) struct HealthRow {
    pub name: String,
    pub health: SourceHealth,
    pub pending: PendingHealth,
}

/// Results since the last write.
#[derive(Debug, Default)]
pub(super) struct PendingHealth {
    /// Whether the written health describes an earlier target.
    pub forget: bool,
    pub checked: Option<u64>,
    /// In milliseconds.
    pub latency: Option<f64>,
    pub failure: Option<String>,
    pub turns: Vec<HealthChange>,
    /// A client requested a probe.
    pub request: Option<ProbeRequest>,
}

/// Progress of a requested probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeRequest {
    Waiting,
    Answered,
}

impl HealthBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the batch as `spcd.publish_health` takes it.
    pub fn json(&self) -> Value {
        let seconds = |time: u64| time as f64 / 1000.0;
        let row = |row: &HealthRow| {
            let HealthRow {
                name,
                health,
                pending,
            } = row;
            let mut json = json!({
                "name": name,
                "forget": pending.forget,
                "reachable": health.reachable,
                "attempts": health.attempts,
                "breaker": health.breaker,
                "checked": pending.checked.map(|at| seconds(self.now.saturating_sub(at))),
                "latency": pending.latency,
                "failure": pending.failure,
                "next": health.next.map(|at| seconds(at.saturating_sub(self.now))),
            });
            if !pending.turns.is_empty() {
                json["health"] = json!(pending.turns);
            }
            json
        };
        Value::Array(self.rows.iter().map(row).collect())
    }

    /// Returns the connections whose requested probe is answered once the batch is written.
    pub fn answered_requests(self) -> impl Iterator<Item = String> {
        let is_answered = |row: &HealthRow| row.pending.request == Some(ProbeRequest::Answered);
        (self.rows.into_iter())
            .filter(is_answered)
            .map(|row| row.name)
    }
}

impl PendingHealth {
    /// Takes the changes to write. A request without an answer stays.
    pub fn take_written(&mut self) -> Self {
        let waiting = self
            .request
            .take_if(|request| *request == ProbeRequest::Waiting);
        let written = take(self);
        self.request = waiting;
        written
    }

    /// Puts back a batch that could not be written. Results for an earlier target are dropped.
    pub fn put_back(&mut self, mut older: Self) {
        self.request = self.request.or(older.request);
        if self.forget {
            return;
        }
        self.forget = older.forget;
        self.checked = self.checked.or(older.checked);
        self.latency = self.latency.or(older.latency);
        self.failure = take(&mut self.failure).or(older.failure);
        older.turns.append(&mut self.turns);
        self.turns = older.turns;
    }
}
