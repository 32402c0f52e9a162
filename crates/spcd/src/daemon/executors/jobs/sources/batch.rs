//! Asks for the tables of many connections at once. Those of a mirror or a gateway are schemas of one
//! database.
//!
//! The first job asks alone and at once. Jobs that arrive during a question share the next one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use spcd_core::config::ForeignSource;
use spcd_core::model::TOUCH_OPTION;
use spcd_core::planner::RemoteSchema;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_postgres::error::SqlState;

use super::{ImportContext, ImportPermits, Sources};
use spcd_postgres::HubError;

/// Maximum number of schemas per question: their tables are in memory until they are written.
const MAX_SCHEMAS: usize = 30;
/// Maximum number of concurrent questions to one database: the next one is asked while the tables of the
/// last one are written.
const MAX_CONCURRENT_QUESTIONS: usize = 2;

/// Questions, by database and how it is reached.
#[derive(Default)]
pub(super) struct Batches(Mutex<HashMap<String, Arc<Batch>>>);

/// Jobs that wait for a question to one database.
struct Batch {
    turns: Arc<Semaphore>,
    waiting: Mutex<BTreeMap<String, WaitingJob>>,
}

/// A waiting job.
struct WaitingJob {
    answer: oneshot::Sender<Answer>,
    /// Notified when the question is asked.
    asked: Arc<Notify>,
}

/// Answer for one schema.
enum Answer {
    Tables(RemoteSchema, Arc<OwnedSemaphorePermit>),
    /// The schema needs a question of its own.
    Alone,
    /// The source refuses every question.
    Refused(String, SqlState),
}

impl Batches {
    fn of(&self, target: &ForeignSource) -> Arc<Batch> {
        let mut way = target.clone();
        way.import.schema.clear();
        way.server.remove(TOUCH_OPTION);
        way.lane = None;
        let key = format!("{} {:?}", way.hash(), way.import.timeout);
        let new = || {
            Arc::new(Batch {
                turns: Arc::new(Semaphore::new(MAX_CONCURRENT_QUESTIONS)),
                waiting: Mutex::default(),
            })
        };
        let mut all = self.0.lock();
        // Removes unused entries.
        all.retain(|other, batch| *other == key || Arc::strong_count(batch) > 1);
        all.entry(key).or_insert_with(new).clone()
    }
}

impl Batch {
    /// Takes the schemas of the next question, with `schema` unless another question has it.
    fn take(&self, schema: &str) -> Option<BTreeMap<String, WaitingJob>> {
        let mut waiting = self.waiting.lock();
        let own = waiting.remove_entry(schema)?;
        let mut taken = BTreeMap::from([own]);
        while taken.len() < MAX_SCHEMAS
            && let Some((schema, one)) = waiting.pop_first()
        {
            if !one.answer.is_closed() {
                taken.insert(schema, one);
            }
        }
        Some(taken)
    }
}

impl Sources {
    /// Asks for the tables of one schema, together with all waiting ones.
    pub(super) async fn ask_in_batch(
        &self,
        target: &ForeignSource,
        context: ImportContext<'_>,
    ) -> Result<(RemoteSchema, ImportPermits), HubError> {
        let batch = self.batches.of(target);
        let schema = &target.import.schema;
        loop {
            let (sender, mut answer) = oneshot::channel();
            let asked = Arc::new(Notify::new());
            let waiting = WaitingJob {
                answer: sender,
                asked: asked.clone(),
            };
            batch.waiting.lock().insert(schema.clone(), waiting);
            // Another job's question contains it.
            let mut is_taken = false;
            let answer = loop {
                tokio::select! {
                    biased;
                    answer = &mut answer => break answer.ok(),
                    () = asked.notified() => {
                        is_taken = true;
                        context.import_start.record();
                    }
                    turn = batch.turns.clone().acquire_owned(), if !is_taken => {
                        is_taken = true;
                        let Some(taken) = batch.take(schema) else {
                            continue;
                        };
                        if taken.len() == 1 {
                            return self.ask_alone(target, context, turn.ok()).await;
                        }
                        self.ask_for(target, context, taken, turn.ok()).await?;
                    }
                }
            };
            match answer {
                Some(Answer::Tables(tables, turn)) => {
                    let held = ImportPermits {
                        _batch: Some(turn),
                        ..ImportPermits::default()
                    };
                    return Ok((tables, held));
                }
                Some(Answer::Alone) => return self.ask_alone(target, context, None).await,
                Some(Answer::Refused(text, code)) => {
                    return Err(HubError::StatementFailed { text, code });
                }
                // The job that asked was cancelled, or lost its session.
                None => {}
            }
        }
    }

    /// Asks for the tables of many schemas, and distributes the answers.
    async fn ask_for(
        &self,
        target: &ForeignSource,
        context: ImportContext<'_>,
        taken: BTreeMap<String, WaitingJob>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<(), HubError> {
        for one in taken.values() {
            one.asked.notify_one();
        }
        let schemas: Vec<String> = taken.keys().cloned().collect();
        let answered = self.ask(target, context, None, Some(&schemas)).await;
        let turn = turn.map(Arc::new);
        match answered {
            Ok((mut found, _permits)) => {
                for (schema, one) in taken {
                    let answer = match (found.remove(&schema), &turn) {
                        (Some(tables), Some(turn)) => Answer::Tables(tables, turn.clone()),
                        _ => Answer::Alone,
                    };
                    // The job may have been cancelled.
                    drop(one.answer.send(answer));
                }
                Ok(())
            }
            Err(HubError::StatementFailed { text, code }) => {
                for one in taken.into_values() {
                    drop(one.answer.send(Answer::Refused(text.clone(), code.clone())));
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
