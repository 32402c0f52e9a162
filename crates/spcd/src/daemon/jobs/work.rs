//! One job: asks a source, says what its answer means, and has it written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use spcd_core::health::Kind;
use spcd_core::observed::Detail;
use spcd_core::plan::{self, Import, Offer, Task, Unit, Unite, Why, Work};
use spcd_core::shape::{self, Obstacles};
use spcd_protocol::Status;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, watch};
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Outcome;
use crate::daemon::gate::{Gate, Pass, Place};
use crate::daemon::sources::{Asker, Sources};
use crate::hub::apply::Writer;
use crate::hub::{HubError, ahead, dependents, observe, trial, union};
use crate::telemetry::{self, Observation};

/// How many tables may be on their way to the writer, which takes some hundreds at a time: enough
/// to keep it busy, and no more than fit into memory as text.
const ON_THEIR_WAY: usize = 4000;
/// What a connection counts as beside its tables.
const BESIDE_TABLES: usize = 4;
/// What all jobs share.
pub struct Shared {
    pub(super) sources: Sources,
    pub(super) writer: Writer,
    /// What is on its way to the writer.
    room: Gate,
    /// Members that change views of their aggregators do so one after the other: each starts from
    /// what the one before left.
    following: Arc<Mutex<()>>,
    /// Whether aggregators have views, and in which pass that was asked.
    united: Mutex<(i64, bool)>,
    /// What people hung on a connection that goes, goes with it.
    drop_dependents: AtomicBool,
    /// Who is known to hold the locks that connections need, so that it is told once.
    blocked: std::sync::Mutex<BTreeMap<String, String>>,
    /// How many jobs are under way.
    pub(super) busy: watch::Sender<usize>,
    /// Which job looks for a connection's comments, or was the last to do so.
    pub(super) commenting: std::sync::Mutex<BTreeMap<String, u64>>,
}

/// A piece of work, and when its turn comes.
pub struct Job {
    pub name: String,
    pub status: Status,
    pub generation: i64,
    pub place: Place,
    pub began: Arc<OnceLock<Instant>>,
}

/// What a source's answer means, and the turns in which it is to be written.
#[derive(Default)]
struct Answer {
    unit: Option<Unit>,
    _following: Option<OwnedMutexGuard<()>>,
    _room: Option<Pass>,
}

impl Shared {
    /// Nothing begun yet.
    pub fn new(sources: Sources, writer: Writer) -> Self {
        Self {
            sources,
            writer,
            room: Gate::new(ON_THEIR_WAY),
            following: Arc::default(),
            united: Mutex::default(),
            drop_dependents: AtomicBool::new(false),
            blocked: std::sync::Mutex::default(),
            busy: watch::Sender::default(),
            commenting: std::sync::Mutex::default(),
        }
    }

    /// From now on what people hung on a connection that goes, goes with it.
    pub fn drop_dependents(&self) {
        self.drop_dependents.store(true, Ordering::Relaxed);
    }

    /// Lets the job of a number go before all others.
    pub fn hurry(&self, number: u64) {
        self.sources.hurry(number);
        self.room.hurry(number);
    }

    /// Does a piece of work, until it is told that something else is wanted.
    pub async fn run(&self, job: &Job, work: Work, cancel: &Notify) -> Outcome {
        let (name, status) = (job.name.as_str(), job.status);
        let alone = |unit| Answer {
            unit: Some(unit),
            ..Answer::default()
        };
        let mut imported = None;
        let (answer, target_hash, quiet) = match work.task {
            Task::Drop {
                keep,
                applied,
                tables,
            } => {
                let room = self
                    .room
                    .enter(job.place, BESIDE_TABLES + tables.len())
                    .await;
                match self.readers(job).await {
                    Ok(readers) if readers.is_empty() => {}
                    Ok(readers) => match readers.into_iter().find(|(_, in_error)| *in_error) {
                        // Its aggregators let go of it first.
                        None => return Outcome::Waits,
                        Some((aggregator, _)) => {
                            let text = format!(
                                "the aggregator {aggregator:?} still shows its tables, and cannot \
                                 let go of them: see the error there"
                            );
                            return self
                                .failed(job, &work.error, String::new(), text, None)
                                .await;
                        }
                    },
                    Err(_) => return Outcome::Cancelled,
                }
                let dependents = self.drop_dependents.load(Ordering::Relaxed);
                if dependents && self.tell_what_goes(job, &tables).await.is_err() {
                    return Outcome::Cancelled;
                }
                let keep = keep.as_deref();
                let unit = plan::drop_unit(name, status, &applied, &tables, keep, dependents);
                let answer = Answer {
                    _room: Some(room),
                    ..alone(unit)
                };
                (Ok(answer), String::new(), false)
            }
            Task::Grant { tables } => {
                let unit = plan::grant_unit(name, status, &tables);
                (Ok(alone(unit)), plan::GRANT.into(), false)
            }
            Task::Unite(unite) => {
                let unit = tokio::select! {
                    answer = self.unite(job, &unite) => answer,
                    () = cancel.notified() => return Outcome::Cancelled,
                };
                (unit, unite.target_hash, false)
            }
            Task::Import(import) => {
                let answer = tokio::select! {
                    answer = self.import(job, &import, false) => answer,
                    () = cancel.notified() => return Outcome::Cancelled,
                };
                let import = imported.insert(import);
                let quiet = import.why == Why::Refresh && import.target.csv.is_none();
                (answer, import.target_hash.clone(), quiet)
            }
        };
        let is_import = imported.is_some();
        if let (Err(HubError::Crashed), Some(import)) = (&answer, &imported) {
            self.sources
                .crashed(name, &import.target_hash, &import.target);
        }
        let result = match answer {
            Ok(answer) => match (self.write(job, answer).await, imported) {
                // The server may refuse one table of many: which, a trial tells. Or a user altered
                // what the statements were made for.
                (Err(error), Some(import)) if error.is_of_a_table() || error.is_stale() => {
                    let answer = tokio::select! {
                        answer = self.import(job, &import, true) => answer,
                        () = cancel.notified() => return Outcome::Cancelled,
                    };
                    match answer {
                        Ok(answer) => self.write(job, answer).await,
                        Err(error) => Err(error),
                    }
                }
                (result, _) => result,
            },
            Err(error) => Err(error),
        };
        match result {
            Ok(outcome) => {
                if !matches!(outcome, Outcome::Later(_)) {
                    self.blocked().remove(name);
                }
                outcome
            }
            Err(error) if error.is_stale() => Outcome::Later(error.to_string()),
            // The database's own matter: the loop meets it too.
            Err(
                HubError::Lost(_)
                | HubError::Crashed
                | HubError::Silent
                | HubError::LeadLost
                | HubError::InTheWay
                | HubError::ReadOnly
                | HubError::NotLeading
                | HubError::NoSession,
            ) => Outcome::Cancelled,
            Err(error) => {
                self.blocked().remove(name);
                let kind = is_import.then(|| error.kind());
                let text = error.to_string();
                match quiet {
                    true => Outcome::Failed {
                        target_hash,
                        error: text,
                        kind,
                    },
                    false => self.failed(job, &work.error, target_hash, text, kind).await,
                }
            }
        }
    }

    /// Writes why a job failed, unless the row tells just that already (`known`).
    async fn failed(
        &self,
        job: &Job,
        known: &Option<String>,
        target_hash: String,
        error: String,
        kind: Option<Kind>,
    ) -> Outcome {
        if job.status != Status::Error || known.as_ref() != Some(&error) {
            let unit = plan::error_unit(&job.name, job.status, error.clone());
            if self.writer.write(unit, job.generation).await.is_err() {
                return Outcome::Cancelled;
            }
        }
        Outcome::Failed {
            target_hash,
            error,
            kind,
        }
    }

    /// Asks the source, and says what its answer means.
    async fn import(&self, job: &Job, import: &Import, careful: bool) -> Result<Answer, HubError> {
        let asker = Asker {
            place: job.place,
            generation: job.generation,
            source: &import.target_hash,
            began: &job.began,
        };
        let answer = self.sources.tables(import, asker).await;
        if let Some(began) = job.began.get() {
            telemetry::observe(Observation::Asked {
                took: began.elapsed(),
            });
        }
        let (wanted, held) = answer?;
        let room = self
            .room
            .enter(job.place, BESIDE_TABLES + wanted.offer.tables.len())
            .await;
        // The next source is asked when there is room for what this one answered.
        drop(held);
        let mut answer = Answer {
            _room: Some(room),
            ..Answer::default()
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

    /// Writes what an answer means. Its turns are over then.
    async fn write(&self, job: &Job, mut answer: Answer) -> Result<Outcome, HubError> {
        let Some(unit) = answer.unit.take() else {
            return Ok(Outcome::Same);
        };
        match self.writer.write(unit, job.generation).await {
            Err(error) if error.is_passing() || error.is_out_of_room() => {
                self.note_who_blocks(job, &error);
                Ok(Outcome::Later(error.to_string()))
            }
            Err(error) => Err(error),
            Ok(()) => Ok(Outcome::Done),
        }
    }

    /// What a source's answer means where something is there already; `careful`: each change is
    /// tried first.
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

    /// Looks at an aggregator's members, writes what must be written first, and says what is left.
    async fn unite(&self, job: &Job, unite: &Unite) -> Result<Answer, HubError> {
        let found = {
            let session = self.sources.session(job.place).await?;
            let look = union::Closeness {
                views: unite.why == Why::Drift,
                members: true,
                readers: unite.readers,
            };
            let found = union::find(session.client(), &job.name, &unite.members, look).await;
            session.give_back_after(&found);
            found?
        };
        let mut units = plan::settle_union(&job.name, job.status, unite, &found);
        let unit = units.pop();
        for unit in units {
            self.writer.write(unit, job.generation).await?;
        }
        Ok(Answer {
            unit,
            ..Answer::default()
        })
    }

    /// Names what people made that will go with a connection.
    async fn tell_what_goes(&self, job: &Job, tables: &[String]) -> Result<(), HubError> {
        let session = self.sources.session(job.place).await?;
        let found = dependents::of_all(session.client(), &job.name, tables).await;
        session.give_back_after(&found);
        for what in found? {
            tracing::warn!(connection = job.name, "dropped along with it: {what}");
        }
        Ok(())
    }

    /// The aggregators whose views still read a connection's tables, and whether each is in error.
    /// Where no aggregator has any view, which is asked once a pass, nobody reads them.
    async fn readers(&self, job: &Job) -> Result<Vec<(String, bool)>, HubError> {
        let mut united = self.united.lock().await;
        let (asked, any) = *united;
        if asked == job.generation && !any {
            return Ok(Vec::new());
        }
        let session = self.sources.session(job.place).await?;
        if asked != job.generation {
            let any = union::any(session.client()).await;
            *united = (job.generation, any.as_ref().is_ok_and(|any| *any));
            if !matches!(any, Ok(true)) {
                session.give_back_after(&any);
                return any.map(|_| Vec::new());
            }
        }
        drop(united);
        let readers = union::readers(session.client(), &job.name).await;
        session.give_back_after(&readers);
        readers
    }

    /// Remembers who holds a lock that a connection needs: its row's warnings say so until it has
    /// got it.
    fn note_who_blocks(&self, job: &Job, error: &HubError) {
        if error.is_blocked() {
            self.blocked().insert(job.name.clone(), error.to_string());
        }
    }

    /// Who holds locks that connections need, by connection.
    pub fn blocked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.blocked
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn settled(settled: Result<Option<Unit>, String>) -> Result<Option<Unit>, HubError> {
    settled.map_err(|text| HubError::Refused {
        text,
        code: SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
    })
}
