//! Asking a source, and making what it answers.

use spcd_core::observed::Detail;
use spcd_core::plan::{self, Import, Offer, Unit};
use spcd_core::scheduler::JobOutcome;
use spcd_core::shape::{self, Obstacles};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::gate::Pass;
use super::sources::Asker;
use super::{Job, JobContext, outcome_of};
use crate::hub::{HubError, ahead, observe, trial, union};
use crate::telemetry::{self, Observation};

/// What a source's answer means, and the permits that are held until it is written.
struct Answer {
    unit: Option<Unit>,
    _following: Option<OwnedMutexGuard<()>>,
    _room: Pass,
}

impl JobContext {
    /// Asks a source and writes its tables. A refresh that fails leaves the row as it is.
    pub(super) async fn import(&self, job: &Job, import: &Import, cancel: &Notify) -> JobOutcome {
        let hash = import.target_hash.clone();
        let result = self.import_twice(job, import, cancel).await;
        match outcome_of(result) {
            Ok(outcome) => outcome,
            Err(error) if import.why == plan::Why::Refresh && import.target.csv.is_none() => {
                JobOutcome::Failed {
                    target_hash: hash,
                    kind: Some(error.kind()),
                    error: error.to_string(),
                }
            }
            Err(error) => {
                let kind = Some(error.kind());
                self.failed(job, hash, error.to_string(), kind).await
            }
        }
    }

    /// Imports, and once more with each change tried first where the server may have refused one table
    /// of many, or where a user altered what the statements were made for.
    async fn import_twice(
        &self,
        job: &Job,
        import: &Import,
        cancel: &Notify,
    ) -> Result<JobOutcome, HubError> {
        let answer = tokio::select! {
            answer = self.ask(job, import, false) => answer,
            () = cancel.notified() => return Ok(JobOutcome::Cancelled),
        };
        if let Err(HubError::Crashed) = &answer {
            self.sources
                .crashed(&job.name, &import.target_hash, &import.target);
        }
        match self.write_answer(job, answer?).await {
            Err(error) if error.is_of_a_table() || error.is_stale() => {
                let answer = tokio::select! {
                    answer = self.ask(job, import, true) => answer,
                    () = cancel.notified() => return Ok(JobOutcome::Cancelled),
                };
                self.write_answer(job, answer?).await
            }
            result => result,
        }
    }

    async fn write_answer(&self, job: &Job, mut answer: Answer) -> Result<JobOutcome, HubError> {
        match answer.unit.take() {
            Some(unit) => self.write(job, unit).await,
            None => Ok(JobOutcome::Same),
        }
    }

    /// Asks the source. Returns what its answer means; `careful`: each change is tried first.
    async fn ask(&self, job: &Job, import: &Import, careful: bool) -> Result<Answer, HubError> {
        let asker = Asker {
            place: job.place,
            generation: job.generation,
            source: &import.target_hash,
            asked: &job.asked,
        };
        let answer = self.sources.tables(import, asker).await;
        if let Some(took) = job.asked.elapsed() {
            telemetry::observe(Observation::Asked { took });
        }
        let (wanted, held) = answer?;
        let room = self.room_for(job, wanted.offer.tables.len()).await;
        // The next source is asked when there is room for what this one answered.
        drop(held);
        let mut answer = Answer {
            unit: None,
            _following: None,
            _room: room,
        };
        if import.applied.is_none() && !careful && !import.hidden && wanted.is_plain {
            let (tables, hash) = (&wanted.offer.tables, wanted.hash.clone());
            let unit = plan::settle_new(&job.name, job.status, import, tables, hash);
            answer.unit = Some(unit);
            return Ok(answer);
        }
        if import.applied.is_none() && !careful {
            let (offer, detail, obstacles) =
                (&wanted.offer, Detail::default(), Obstacles::default());
            let unit = plan::settle(&job.name, job.status, import, &detail, offer, &obstacles);
            answer.unit = settled(unit)?;
            return Ok(answer);
        }
        let offer = &wanted.offer;
        let settled = if careful && import.target.library().is_some() {
            // A trial runs the wrapper's validator.
            let session = self.sources.bound(&import.target).await?;
            let settled = self
                .settle(session.client(), job, import, offer, careful)
                .await;
            session.give_back_after(&settled);
            settled
        } else {
            let session = self.sources.session(job.place).await?;
            let settled = self
                .settle(session.client(), job, import, offer, careful)
                .await;
            session.give_back_after(&settled);
            settled
        };
        (answer.unit, answer._following) = settled?;
        Ok(answer)
    }

    /// Returns what a source's answer means where something is there already.
    async fn settle(
        &self,
        client: &Client,
        job: &Job,
        import: &Import,
        wanted: &Offer,
        careful: bool,
    ) -> Result<(Option<Unit>, Option<OwnedMutexGuard<()>>), HubError> {
        let (name, status) = (job.name.as_str(), job.status);
        let names = [name.to_owned()];
        let found = observe::details(client, &names, import.readers).await?;
        let mut detail = found.into_values().next().unwrap_or_default();
        shape::normalize(&mut detail.tables, import.target.traits());
        let wanted = &*wanted.with_skipped(&detail.tables, &import.target.import);
        let changes = import.changes(&detail, wanted);
        let ahead::InTheWay {
            mut obstacles,
            followers,
            turn,
        } = ahead::in_the_way(client, name, &changes, &self.following).await?;
        let step = union::Step::new(
            name,
            &detail,
            wanted,
            changes,
            &obstacles,
            import.schema(name),
        );
        let look = union::Closeness {
            readers: import.readers,
            // Users may have altered other members, too.
            members: careful,
            ..union::Closeness::default()
        };
        let (mut first, mut last) = union::follow(client, &followers, &step, look).await?;
        if careful {
            let changes = &step.changes;
            obstacles.refused =
                trial::refused(client, name, import, &detail, &first, changes).await?;
            let step = union::Step::new(
                name,
                &detail,
                wanted,
                step.changes,
                &obstacles,
                import.schema(name),
            );
            (first, last) = union::follow(client, &followers, &step, look).await?;
        }
        let mut unit = settled(plan::settle(
            name, status, import, &detail, wanted, &obstacles,
        ))?;
        if let Some(unit) = &mut unit {
            unit.sql = first + &unit.sql + &last;
        }
        Ok((unit, turn))
    }
}

fn settled(settled: Result<Option<Unit>, String>) -> Result<Option<Unit>, HubError> {
    settled.map_err(|text| HubError::Refused {
        text,
        code: SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
    })
}
