//! Drops a connection's objects.

use spcd_core::observed::{Applied, ConfigSnapshot};
use spcd_core::planner;
use spcd_core::scheduler::JobOutcome;

use super::{Job, JobContext};
use spcd_postgres::HubError;
use spcd_postgres::catalog::aggregators;
use spcd_postgres::catalog::dependents;

/// The objects to drop.
pub struct Dropping {
    /// The row of a connection that stays, disabled.
    pub keep: Option<Box<ConfigSnapshot>>,
    /// The objects that spcd created.
    pub applied: Applied,
    /// Its tables.
    pub tables: Vec<String>,
}

impl JobContext {
    /// Drops the objects once no aggregator reads them.
    pub(super) async fn drop_connection(
        &self,
        job: &Job,
        dropping: Dropping,
    ) -> Result<JobOutcome, HubError> {
        let Dropping {
            keep,
            applied,
            tables,
        } = dropping;
        let _permit = self.permit_to_write(job, tables.len()).await;
        let readers = self.readers(job).await?;
        if let Some((aggregator, _)) = readers.iter().find(|(_, in_error)| *in_error) {
            let error = format!(
                "the aggregator {aggregator:?} still shows its tables, and cannot let go of them: see \
                 the error there"
            );
            return Ok(self.failed(job, String::new(), error, None).await);
        }
        if !readers.is_empty() {
            return Ok(JobOutcome::Waits);
        }
        let dependents = self.drops_dependents();
        if dependents {
            self.log_dependents(job, &tables).await?;
        }
        let (name, keep) = (&job.name, keep.as_deref());
        let unit = planner::drop_unit(name, job.status, &applied, &tables, keep, dependents);
        self.write(job, unit).await
    }

    /// Logs the users' objects that are dropped with a connection.
    async fn log_dependents(&self, job: &Job, tables: &[String]) -> Result<(), HubError> {
        let session = self.sources.session(job.priority).await?;
        let found = dependents::cascaded_objects(session.client(), &job.name, tables).await;
        session.give_back_after(&found);
        for what in found? {
            tracing::warn!(connection = job.name, "dropped along with it: {what}");
        }
        Ok(())
    }

    /// Returns the aggregators whose views read a connection's tables, and whether each is in error. Checks
    /// once per pass whether any aggregator has views.
    async fn readers(&self, job: &Job) -> Result<Vec<(String, bool)>, HubError> {
        let mut have_views = self.have_aggregators_views.lock().await;
        let (asked, any) = *have_views;
        if asked == job.generation && !any {
            return Ok(Vec::new());
        }
        let session = self.sources.session(job.priority).await?;
        if asked != job.generation {
            let any = aggregators::have_views(session.client()).await;
            *have_views = (job.generation, any.as_ref().is_ok_and(|any| *any));
            if !matches!(any, Ok(true)) {
                session.give_back_after(&any);
                return any.map(|_| Vec::new());
            }
        }
        drop(have_views);
        let readers = aggregators::reading_aggregators(session.client(), &job.name).await;
        session.give_back_after(&readers);
        readers
    }
}
