//! What the log says of connections: constant messages, with the place in the files.

use spcd_core::config::Desired;
use spcd_core::plan::RowChange;
use spcd_protocol::Status;

use super::Reign;
use super::jobs::{self, Finished, Outcome, Then};
use crate::hub::HubError;

impl Reign<'_> {
    /// Logs which connections became ready or went into error without a job. What a start gives back
    /// is counted, and not told one by one.
    pub(super) fn log_rows(&self, desired: &Desired, rows: &[RowChange]) {
        for row in rows {
            let connection = desired.connections.get(&row.name);
            let place = connection.map_or_else(String::new, |connection| jobs::place(connection));
            match row.route.last() {
                Some(Status::Ready) if self.passes > 1 => {
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

    /// Logs once how many connections are ready and in error: when what the first pass began is
    /// over, but for sources that take long.
    pub(super) async fn log_first_pass(&mut self) -> Result<(), HubError> {
        if self.is_first_pass_logged || self.jobs.brisk_and_slow().0.next().is_some() {
            return Ok(());
        }
        self.is_first_pass_logged = true;
        let count = "SELECT count(*) FILTER (WHERE status = 'ready'),
                            count(*) FILTER (WHERE status = 'error')
                     FROM spcd.connection_state";
        let row = self.lead.control.client.query_one(count, &[]).await?;
        let (connections, in_error): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let under_way = self.jobs.len();
        tracing::info!(connections, in_error, under_way, "ready");
        Ok(())
    }

    /// Logs what came of a job.
    pub(super) fn log_job(finished: &Finished) {
        let Finished {
            name,
            outcome,
            place,
            then,
        } = finished;
        match (outcome, then) {
            (Outcome::Done, Then::Ready | Then::Stays) => {
                tracing::info!(connection = name, place, "ready");
            }
            (Outcome::Failed { error, .. }, Then::Stays) => {
                tracing::warn!(connection = name, place, %error, "cannot be refreshed");
            }
            (Outcome::Failed { error, .. }, Then::Ready | Then::Gone) => {
                tracing::warn!(connection = name, place, %error, "in error");
            }
            (Outcome::Later(reason), _) => {
                tracing::info!(
                    connection = name,
                    place,
                    reason,
                    "waits, and is tried again"
                );
            }
            (Outcome::Done | Outcome::Same | Outcome::Waits | Outcome::Cancelled, _) => {}
        }
    }
}
