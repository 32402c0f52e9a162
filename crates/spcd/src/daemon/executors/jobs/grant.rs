//! Letting members of `spcd_users` read what is there.

use spcd_core::plan;
use spcd_core::scheduler::JobOutcome;

use super::{Job, JobContext};
use crate::hub::HubError;

impl JobContext {
    /// Grants what a connection's tables lack.
    pub(super) async fn grant(&self, job: &Job, tables: &[String]) -> Result<JobOutcome, HubError> {
        let unit = plan::grant_unit(&job.name, job.status, tables);
        self.write(job, unit).await
    }
}
