//! Imports: asks a source, and writes its tables.

use std::collections::BTreeMap;

use spcd_core::diff::{self, Blockers};
use spcd_core::health::FailureKind;
use spcd_core::observed::Detail;
use spcd_core::planner::{self, Import, RemoteSchema, WriteUnit};
use spcd_core::scheduler::JobOutcome;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::permits::Permit;
use super::sources::{ImportContext, SourceTables};
use super::{Job, JobContext, later, outcome_of};
use crate::telemetry::{self, Observation};
use spcd_postgres::HubError;
use spcd_postgres::catalog::aggregators;
use spcd_postgres::catalog::observe;
use spcd_postgres::crash_guard::{Crash, Question};
use spcd_postgres::import::preview;
use spcd_postgres::writer::savepoint_check;

/// The unit to write after a source's answer, and the permits that are held until then.
struct Answer {
    unit: Option<WriteUnit>,
    _following: Option<OwnedMutexGuard<()>>,
    _permit: Permit,
}

/// An error of an import.
struct ImportError {
    error: HubError,
    /// Kind of the source's failure. `None` for an error of the hub after the source's answer, for which
    /// the source's schedule and probes do not matter.
    kind: Option<FailureKind>,
}

impl ImportError {
    fn of_source(error: HubError) -> Self {
        let kind = Some(error.kind());
        Self { error, kind }
    }

    fn of_hub(error: HubError) -> Self {
        Self { error, kind: None }
    }
}

impl JobContext {
    /// Asks a source and writes its tables. A failed refresh leaves the row unchanged.
    pub(super) async fn import(&self, job: &Job, import: &Import, cancel: &Notify) -> JobOutcome {
        let hash = import.target_hash.clone();
        let ImportError { error, kind } = match self.import_twice(job, import, cancel).await {
            Ok(outcome) => return outcome,
            Err(failed) => failed,
        };
        // What the source says is an error of the source, whatever its code.
        let outcome = match kind {
            Some(_) => Err(error),
            None => later(error),
        };
        match outcome_of(outcome) {
            Ok(outcome) => outcome,
            Err(error)
                if import.reason == planner::Reason::Refresh && import.target.csv.is_none() =>
            {
                JobOutcome::Failed {
                    target_hash: hash,
                    kind,
                    error: error.to_string(),
                    is_unwritten: false,
                }
            }
            Err(error) => self.failed(job, hash, error.to_string(), kind).await,
        }
    }

    /// Imports. If the server may have refused one of many tables, or another session altered the tables,
    /// repeats the import once and tries each change in a savepoint first.
    async fn import_twice(
        &self,
        job: &Job,
        import: &Import,
        cancel: &Notify,
    ) -> Result<JobOutcome, ImportError> {
        let answer = tokio::select! {
            answer = self.ask(job, import, false) => answer,
            () = cancel.notified() => return Ok(JobOutcome::Cancelled),
        };
        if let Err(ImportError {
            error: HubError::WrapperCrashed { backend_pid },
            ..
        }) = &answer
        {
            self.sources.crashed(Crash {
                name: job.name.clone(),
                target_hash: import.target_hash.clone(),
                wrapper: import.target.wrapper.clone(),
                question: Question::Import,
                backend_pid: *backend_pid,
            });
        }
        match self.write_answer(job, answer?).await {
            Err(error) if error.may_concern_one_table() || error.is_outdated() => {
                let answer = tokio::select! {
                    answer = self.ask(job, import, true) => answer,
                    () = cancel.notified() => return Ok(JobOutcome::Cancelled),
                };
                let written = self.write_answer(job, answer?).await;
                written.map_err(ImportError::of_hub)
            }
            result => result.map_err(ImportError::of_hub),
        }
    }

    async fn write_answer(&self, job: &Job, mut answer: Answer) -> Result<JobOutcome, HubError> {
        match answer.unit.take() {
            Some(unit) => self.write(job, unit).await,
            None => Ok(JobOutcome::Same),
        }
    }

    /// Asks the source, and resolves its answer. `careful` tries each change in a savepoint first.
    async fn ask(&self, job: &Job, import: &Import, careful: bool) -> Result<Answer, ImportError> {
        let context = ImportContext {
            priority: job.priority,
            generation: job.generation,
            source: &import.target_hash,
            import_start: &job.import_start,
        };
        let answer = self.sources.tables(import, context).await;
        if let Some(took) = job.import_start.elapsed() {
            telemetry::observe(Observation::Asked { took });
        }
        let (answered, permits) = answer.map_err(ImportError::of_source)?;
        if let Some(error) = &answered.remote.failed_check {
            let connection = job.name.as_str();
            tracing::warn!(connection, %error, "cannot check what the source's role may read");
        }
        let permit = self
            .permit_to_write(job, answered.remote.tables.len())
            .await;
        // Waits before the next source is asked: the answers are kept in memory.
        drop(permits);
        let resolved = self.resolve(job, import, &answered, careful).await;
        let (unit, following) =
            resolved.map_err(|error| ImportError::of_hub(error.with_privilege_advice()))?;
        Ok(Answer {
            unit,
            _following: following,
            _permit: permit,
        })
    }

    /// Returns what to write after a source's answer.
    async fn resolve(
        &self,
        job: &Job,
        import: &Import,
        answered: &SourceTables,
        careful: bool,
    ) -> Result<(Option<WriteUnit>, Option<OwnedMutexGuard<()>>), HubError> {
        let (name, remote) = (&job.name, &answered.remote);
        if import.applied.is_none() && !careful {
            if !import.hidden && answered.is_plain {
                let (tables, hash) = (&remote.tables, answered.hash.clone());
                let unit = planner::resolve_new_import(name, job.status, import, tables, hash);
                return Ok((Some(unit), None));
            }
            let (detail, blockers) = (Detail::default(), Blockers::default());
            let unit =
                planner::resolve_import(name, job.status, import, &detail, remote, &blockers);
            return Ok((written(unit)?, None));
        }
        if careful && import.target.exclusive_library().is_some() {
            // The savepoint check runs the wrapper's validator.
            let session = self.sources.bound(&import.target, job.priority).await?;
            let client = session.client();
            let written = self
                .resolve_and_write(client, job, import, remote, careful)
                .await;
            session.give_back_after(&written);
            written
        } else {
            let session = self.sources.session(job.priority).await?;
            let client = session.client();
            let written = self
                .resolve_and_write(client, job, import, remote, careful)
                .await;
            session.give_back_after(&written);
            written
        }
    }

    /// Returns the unit to write if the connection has objects already.
    async fn resolve_and_write(
        &self,
        client: &Client,
        job: &Job,
        import: &Import,
        remote: &RemoteSchema,
        careful: bool,
    ) -> Result<(Option<WriteUnit>, Option<OwnedMutexGuard<()>>), HubError> {
        let (name, status) = (job.name.as_str(), job.status);
        let names = [name.to_owned()];
        let found = observe::details(client, &names, import.readers).await?;
        let mut detail = found.into_values().next().unwrap_or_default();
        diff::normalize(&mut detail.tables, import.target.wrapper_traits());
        let mut fixed = BTreeMap::new();
        let mut aligned = import.align(&detail, remote, &fixed);
        if careful && !aligned.renames.is_empty() {
            let renames = &aligned.renames;
            fixed = savepoint_check::refused_renames(client, name, import, renames).await?;
            aligned = import.align(&detail, remote, &fixed);
        }
        let changes = import.changes(&aligned.detail, &aligned.remote);
        let preview::FoundBlockers {
            mut blockers,
            followers,
            guard: turn,
        } = preview::find_blockers(
            client,
            name,
            &aligned.detail,
            &aligned.renames,
            &changes,
            &self.following,
        )
        .await?;
        blockers.fixed = fixed;
        let member_change = |changes, blockers: &Blockers| {
            let (detail, remote) = (&aligned.detail, &aligned.remote);
            let schema = import.schema(name);
            aggregators::MemberChange::new(name, detail, remote, changes, blockers, schema)
        };
        let step = member_change(changes, &blockers);
        let scope = aggregators::ObservationScope {
            readers: import.readers,
            // Other sessions may have altered other members, too.
            members: careful,
            ..aggregators::ObservationScope::default()
        };
        let (mut first, mut last) =
            aggregators::follow_statements(client, &followers, &step, scope).await?;
        if careful {
            let (detail, changes) = (&aligned.detail, &step.changes);
            let before = import.rename_statements(name, &aligned.renames) + &first;
            let refused =
                savepoint_check::refused_changes(client, name, import, detail, &before, changes)
                    .await?;
            for (table, reason) in refused {
                blockers.refused.entry(table).or_insert(reason);
            }
            let step = member_change(step.changes, &blockers);
            (first, last) =
                aggregators::follow_statements(client, &followers, &step, scope).await?;
        }
        let mut unit = written(planner::resolve_import(
            name, status, import, &detail, remote, &blockers,
        ))?;
        if let Some(unit) = &mut unit {
            unit.follow(&first, &last);
        }
        Ok((unit, turn))
    }
}

fn written(written: Result<Option<WriteUnit>, String>) -> Result<Option<WriteUnit>, HubError> {
    written.map_err(|text| HubError::StatementFailed {
        text,
        code: SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
    })
}
