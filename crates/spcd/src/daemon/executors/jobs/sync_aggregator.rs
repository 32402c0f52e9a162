//! Making an aggregator's views what its members make of them.

use spcd_core::plan::{self, Unite, Why};
use spcd_core::scheduler::JobOutcome;
use tokio::sync::Notify;

use super::{Job, JobContext};
use crate::hub::{HubError, union};

impl JobContext {
    /// Looks at an aggregator's members and writes its views.
    pub(super) async fn sync_aggregator(
        &self,
        job: &Job,
        sync: &Unite,
        cancel: &Notify,
    ) -> Result<JobOutcome, HubError> {
        let looking = async {
            let session = self.sources.session(job.place).await?;
            let look = union::Closeness {
                views: sync.why == Why::Drift,
                members: true,
                readers: sync.readers,
            };
            let found = union::find(session.client(), &job.name, &sync.members, look).await;
            session.give_back_after(&found);
            found
        };
        let found = tokio::select! {
            found = looking => found?,
            () = cancel.notified() => return Ok(JobOutcome::Cancelled),
        };
        // Many views are written in several transactions, of which a member's job may stop any.
        let mut outcome = JobOutcome::Same;
        for unit in plan::settle_union(&job.name, job.status, sync, &found) {
            outcome = self.write(job, unit).await?;
            if outcome != JobOutcome::Done {
                break;
            }
        }
        Ok(outcome)
    }
}
