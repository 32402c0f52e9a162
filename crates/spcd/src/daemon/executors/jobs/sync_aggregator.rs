//! Updates an aggregator's views to its members' tables.

use spcd_core::aggregator::AggregatorInput;
use spcd_core::config::GatewayAggregator;
use spcd_core::planner::{self, AggregatorSync, Reason};
use spcd_core::scheduler::JobOutcome;
use tokio::sync::Notify;

use super::{Job, JobContext};
use spcd_postgres::HubError;
use spcd_postgres::catalog::aggregators::{self, ObservationScope};
use spcd_postgres::import::lanes;

impl JobContext {
    /// Observes an aggregator's members, and writes its views.
    pub(super) async fn sync_aggregator(
        &self,
        job: &Job,
        sync: &AggregatorSync,
        cancel: &Notify,
    ) -> Result<JobOutcome, HubError> {
        let scope = ObservationScope {
            views: sync.reason == Reason::Drift,
            members: true,
            readers: sync.readers,
        };
        let looking = async {
            match &sync.gateway {
                Some(gateway) => self.observe_lanes(job, sync, gateway, scope).await,
                None => self.observe_members(job, sync, scope).await,
            }
        };
        let found = tokio::select! {
            found = looking => found?,
            () = cancel.notified() => return Ok(JobOutcome::Cancelled),
        };
        // Many views are written in several transactions. A member's job may prevent any of them.
        let mut outcome = JobOutcome::Same;
        for unit in planner::resolve_aggregator(&job.name, job.status, sync, &found) {
            outcome = self.write(job, unit).await?;
            if outcome != JobOutcome::Done {
                break;
            }
        }
        Ok(outcome)
    }

    async fn observe_members(
        &self,
        job: &Job,
        sync: &AggregatorSync,
        scope: ObservationScope,
    ) -> Result<AggregatorInput, HubError> {
        let session = self.sources.session(job.priority).await?;
        let client = session.client();
        let found = aggregators::observe_aggregator(client, &job.name, &sync.members, scope).await;
        session.give_back_after(&found);
        found
    }

    /// Asks the gateways for the views that stand for the members.
    async fn observe_lanes(
        &self,
        job: &Job,
        sync: &AggregatorSync,
        gateway: &GatewayAggregator,
        scope: ObservationScope,
    ) -> Result<AggregatorInput, HubError> {
        let source = gateway.lanes.first().map(|lane| lane.source.clone());
        let source = source.unwrap_or_default();
        let session = self.sources.bound(&source, job.priority).await?;
        let looked = async {
            let mut found =
                aggregators::observe_aggregator(session.client(), &job.name, &[], scope).await?;
            let hash = &sync.target_hash;
            lanes::observe_lanes(session.session(), gateway, hash, &mut found).await?;
            Ok(found)
        };
        let found = looked.await;
        session.give_back_after(&found);
        found
    }
}
