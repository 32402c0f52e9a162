//! Grants `spcd_users` access to existing tables.

use spcd_core::planner;
use spcd_core::scheduler::JobOutcome;

use super::{Job, JobContext};
use spcd_postgres::HubError;

impl JobContext {
    /// Grants the missing access to a connection's tables.
    pub(super) async fn grant(&self, job: &Job, tables: &[String]) -> Result<JobOutcome, HubError> {
        let unit = planner::grant_unit(&job.name, job.status, tables);
        self.write(job, unit).await
    }
}
