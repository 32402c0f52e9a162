//! What the log says of connections: constant messages, with the place in the files.

use spcd_core::plan::RowChange;
use spcd_core::scheduler::JobOutcome;
use spcd_protocol::Status;

use super::LeaderSession;
use super::executors::jobs::{Origin, place};
use crate::hub::HubError;

impl LeaderSession<'_> {
    /// Logs which connections became ready or went into error without a job. What a start gives back
    /// is counted, and not told one by one.
    pub(super) fn log_rows(&self, rows: &[RowChange]) {
        for row in rows {
            let connection = self.desired.connections.get(&row.name);
            let place = connection.map_or_else(String::new, |connection| place(connection));
            match row.route.last() {
                Some(Status::Ready) if self.has_passed => {
                    tracing::info!(connection = row.name, place, "ready");
                }
                Some(Status::Error) => {
                    let error = row.error.as_deref().unwrap_or_default();
                    tracing::warn!(connection = row.name, place, %error, "in error");
                }
                _ => {}
            }
        }
    }

    /// Logs how many connections are ready and in error after the start.
    pub(super) async fn log_start(&mut self, under_way: usize) -> Result<(), HubError> {
        let count = "SELECT count(*) FILTER (WHERE status = 'ready'),
                            count(*) FILTER (WHERE status = 'error')
                     FROM spcd.connection_state";
        let row = self.lead.control.client.query_one(count, &[]).await?;
        let (connections, in_error): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        tracing::info!(connections, in_error, under_way, "ready");
        Ok(())
    }
}

/// Logs what came of a job.
pub fn log_job(name: &str, outcome: &JobOutcome, origin: &Origin) {
    let place = origin.place.as_str();
    match outcome {
        JobOutcome::Done if !origin.is_removal => tracing::info!(connection = name, place, "ready"),
        JobOutcome::Failed { error, .. } if origin.is_refresh => {
            tracing::warn!(connection = name, place, %error, "cannot be refreshed");
        }
        JobOutcome::Failed { error, .. } => {
            tracing::warn!(connection = name, place, %error, "in error");
        }
        JobOutcome::Later { reason, .. } => {
            tracing::info!(
                connection = name,
                place,
                reason,
                "waits, and is tried again"
            );
        }
        JobOutcome::Done | JobOutcome::Same | JobOutcome::Waits | JobOutcome::Cancelled => {}
    }
}
