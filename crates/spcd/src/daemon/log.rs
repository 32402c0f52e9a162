//! Log events of connections: constant messages, with the position in the files as a field.

use spcd_core::planner::RowChange;
use spcd_core::scheduler::JobOutcome;
use spcd_protocol::Status;

use super::LeaderSession;
use super::executors::jobs::{Origin, place};
use spcd_postgres::HubError;

impl LeaderSession<'_> {
    /// Logs the connections that became ready or failed without a job. The first pass logs only errors,
    /// since [`Self::log_start`] counts the others.
    pub(super) fn log_rows(&self, rows: &[RowChange]) {
        for row in rows {
            let connection = self.desired.connections.get(&row.name);
            // A block in a file that cannot be read has its position in the error.
            let place = connection.map(|connection| place(connection));
            let place = place.as_deref();
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

/// Logs the outcome of a job.
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
            tracing::info!(connection = name, place, reason, "waits for a retry");
        }
        JobOutcome::Done | JobOutcome::Same | JobOutcome::Waits | JobOutcome::Cancelled => {}
    }
}
