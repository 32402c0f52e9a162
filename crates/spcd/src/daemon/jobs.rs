//! Work under way: one job a connection, waiting for sources kept apart from writing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use spcd_core::observed::Detail;
use spcd_core::plan::{self, Import, Offer, Task, Unit, Unite, Why, Work};
use spcd_core::shape::{self, Obstacles, TableChange};
use spcd_protocol::Status;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::gate::{Gate, Pass, Place};
use super::sources::{Asker, Sources};
use crate::hub::apply::Writer;
use crate::hub::connect::Endpoint;
use crate::hub::{HubError, Limits, dependents, observe, trial, union};

/// How long aggregators wait for a member that changes.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How many tables may be on their way to the writer, which takes some hundreds at a time: enough
/// to keep it busy, and no more than fit into memory as text.
const ON_THEIR_WAY: usize = 4000;
/// What a connection counts as beside its tables.
const BESIDE_TABLES: usize = 4;
/// How long a lock that was not got is left to others: the first time, and at most.
const LATER: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(15);
/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The jobs of a leader.
pub struct Jobs {
    shared: Arc<Shared>,
    running: BTreeMap<String, Running>,
    /// How many were started.
    started: u64,
    finished: mpsc::UnboundedReceiver<Finished>,
    sender: mpsc::UnboundedSender<Finished>,
    /// Ends them when the jobs are dropped.
    tasks: JoinSet<()>,
}

struct Shared {
    sources: Sources,
    writer: Writer,
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
}

/// A piece of work, and when its turn comes.
struct Job {
    name: String,
    status: Status,
    generation: i64,
    place: Place,
    began: Arc<OnceLock<Instant>>,
}

/// What a source's answer means, and the turns in which it is to be written.
#[derive(Default)]
struct Answer {
    unit: Option<Unit>,
    _following: Option<OwnedMutexGuard<()>>,
    _room: Option<Pass>,
}

struct Running {
    key: Key,
    number: u64,
    /// Nothing is known to differ.
    refresh: bool,
    /// When its source was asked.
    began: Arc<OnceLock<Instant>>,
    cancel: Arc<Notify>,
    /// Something else is wanted of the connection meanwhile: look again when the job is over.
    look_again: bool,
}

/// Two pieces of work with one key do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Import { target: String, hidden: bool },
    Unite(String),
    Drop { stays: bool },
    Grant,
}

/// A job that is over.
pub struct Finished {
    /// The connection.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a job.
#[derive(Debug)]
pub enum Outcome {
    /// All is as it should be.
    Done,
    /// It was so already: nothing was written.
    Same,
    /// It failed, and its row says so unless it was only asked again.
    Failed {
        /// The target that was tried; empty: to drop it.
        target_hash: String,
        /// Why.
        error: String,
    },
    /// Somebody holds a lock: try again after a moment.
    Later(String),
    /// Given up because something else is wanted now, or because a session was lost: what came of
    /// it is for the next look to say.
    Cancelled,
}

/// What a failure means for the next attempt.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The target that was tried; empty: to drop it.
    pub target_hash: String,
    /// Why it failed.
    pub error: String,
    /// How often, in a row.
    pub times: u32,
    /// Not before this; `None` once it is due.
    pub next: Option<Instant>,
}

impl Failure {
    /// The failure that follows `before`.
    pub fn after(before: Option<&Failure>, target_hash: String, error: String) -> Self {
        let times = before
            .filter(|before| before.target_hash == target_hash)
            .map_or(0, |before| before.times)
            .saturating_add(1);
        let pause = FIRST_PAUSE * 2u32.saturating_pow(times.saturating_sub(1).min(10));
        Self {
            target_hash,
            error,
            times,
            next: Some(Instant::now() + pause.min(LONGEST_PAUSE)),
        }
    }
}

impl Jobs {
    /// None yet.
    pub fn new(endpoint: Arc<Endpoint>, writer: Writer, limits: Limits) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        Self {
            shared: Arc::new(Shared {
                sources: Sources::new(endpoint, limits),
                writer,
                room: Gate::new(ON_THEIR_WAY),
                following: Arc::default(),
                united: Mutex::default(),
                drop_dependents: AtomicBool::new(false),
                blocked: std::sync::Mutex::default(),
            }),
            running: BTreeMap::new(),
            started: 0,
            finished,
            sender,
            tasks: JoinSet::new(),
        }
    }

    /// From now on what people hung on a connection that goes, goes with it.
    pub fn drop_dependents(&self) {
        self.shared.drop_dependents.store(true, Ordering::Relaxed);
    }

    /// Whether a job of this connection is under way.
    pub fn is_running(&self, name: &str) -> bool {
        self.running.contains_key(name)
    }

    /// The connections with a job under way.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.running.keys()
    }

    /// The connections with a job that is waited for, and those whose job takes too long for that.
    pub fn brisk_and_slow(&self) -> (impl Iterator<Item = &String>, impl Iterator<Item = &String>) {
        let part = |slow: bool| {
            (self.running.iter())
                .filter(move |(_, running)| running.is_slow() == slow)
                .map(|(name, _)| name)
        };
        (part(false), part(true))
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Waits for a job to end; for ever if there is none. Returns whether something else is wanted
    /// of its connection.
    pub async fn next(&mut self) -> (Finished, bool) {
        loop {
            // The channel stays open: we hold a sender.
            if let Some(finished) = self.finished.recv().await {
                let again = self
                    .running
                    .remove(&finished.name)
                    .is_some_and(|running| running.look_again);
                return (finished, again);
            }
        }
    }

    /// A job that has ended already, as [`Jobs::next`] gives it.
    pub fn try_next(&mut self) -> Option<(Finished, bool)> {
        let finished = self.finished.try_recv().ok()?;
        let running = self.running.remove(&finished.name);
        let again = running.is_some_and(|running| running.look_again);
        Some((finished, again))
    }

    /// Stops what is under way for a connection unless it is what `wanted` says; true if something
    /// else has to wait until it is over.
    ///
    /// A source that is asked though nothing differs is no work that a plan would name: it is left
    /// alone as long as `target` is still the hash of what the connection is to be.
    pub fn settle_with(
        &mut self,
        name: &str,
        wanted: Option<&Work>,
        target: &str,
        ask_again: bool,
    ) -> bool {
        let Some(running) = self.running.get_mut(name) else {
            return false;
        };
        let same = match wanted {
            Some(work) => Key::of(work) == running.key,
            None => running.is_refresh(target),
        };
        if same {
            running.look_again |= ask_again;
            return ask_again;
        }
        running.cancel.notify_one();
        running.look_again = true;
        true
    }

    /// Whether a connection's source is being asked although nothing differs from `target`.
    pub fn is_refresh(&self, name: &str, target: &str) -> bool {
        self.running
            .get(name)
            .is_some_and(|running| running.is_refresh(target))
    }

    /// Lets a connection's job go before all others.
    pub fn hurry(&self, name: &str) {
        if let Some(running) = self.running.get(name) {
            self.shared.sources.hurry(running.number);
            self.shared.room.hurry(running.number);
        }
    }

    /// Begins a piece of work, unless one is under way for its connection. What is urgent goes
    /// before what began earlier.
    pub fn start(&mut self, work: Work, generation: i64, urgent: bool) {
        if self.running.contains_key(&work.name) {
            return;
        }
        let cancel = Arc::new(Notify::new());
        let began = Arc::new(OnceLock::new());
        let refresh = matches!(&work.task, Task::Import(import) if import.why == Why::Refresh);
        self.started += 1;
        let job = Job {
            name: work.name.clone(),
            status: work.status,
            generation,
            place: Place {
                turn: match (urgent, refresh) {
                    (true, _) => 0,
                    (false, false) => 1,
                    (false, true) => 2,
                },
                number: self.started,
            },
            began: began.clone(),
        };
        let running = Running {
            key: Key::of(&work),
            number: self.started,
            refresh,
            began: began.clone(),
            cancel: cancel.clone(),
            look_again: false,
        };
        self.running.insert(work.name.clone(), running);
        let (shared, sender) = (self.shared.clone(), self.sender.clone());
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(async move {
            let outcome = shared.run(&job, work, &cancel).await;
            let _ = sender.send(Finished {
                name: job.name,
                outcome,
            });
        });
    }
}

/// How long a lock that was not got is left to others, after so many times before.
pub fn later(times: u32) -> Duration {
    (LATER * 2u32.saturating_pow(times.min(10))).min(LATEST)
}

impl Running {
    fn is_refresh(&self, wanted: &str) -> bool {
        self.refresh && matches!(&self.key, Key::Import { target, .. } if target == wanted)
    }

    fn is_slow(&self) -> bool {
        self.began
            .get()
            .is_some_and(|began| began.elapsed() >= PATIENCE)
    }
}

impl Key {
    fn of(work: &Work) -> Self {
        match &work.task {
            Task::Import(import) => Key::Import {
                target: import.target_hash.clone(),
                hidden: import.hidden,
            },
            Task::Unite(unite) => Key::Unite(unite.target_hash.clone()),
            Task::Drop { keep, .. } => Key::Drop {
                stays: keep.is_some(),
            },
            Task::Grant { .. } => Key::Grant,
        }
    }
}

impl Shared {
    async fn run(&self, job: &Job, work: Work, cancel: &Notify) -> Outcome {
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
                        None => return Outcome::Later("aggregators still show it".into()),
                        Some((aggregator, _)) => {
                            let text = format!(
                                "the aggregator {aggregator:?} still shows its tables, and cannot \
                                 let go of them: see the error there"
                            );
                            return self.failed(job, &work.error, String::new(), text).await;
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
                (Ok(alone(unit)), "grant".into(), false)
            }
            Task::Unite(unite) => {
                let unit = tokio::select! {
                    unit = self.unite(job, &unite) => match unit {
                        Err(error) if error.is_stale() => {
                            return Outcome::Later(error.to_string());
                        }
                        unit => unit.map(alone),
                    },
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
        let result = match answer {
            Ok(answer) => match (self.write(job, answer).await, imported) {
                // The server may refuse one table of many: which, a trial tells.
                (Err(error), Some(import)) if error.is_of_a_table() => {
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
            Ok(Outcome::Done) => {
                self.blocked().remove(name);
                Outcome::Done
            }
            Ok(outcome) => outcome,
            Err(HubError::Lost(_) | HubError::NotLeading | HubError::NoSession) => {
                Outcome::Cancelled
            }
            Err(error) if quiet => Outcome::Failed {
                target_hash,
                error: error.to_string(),
            },
            Err(error) => {
                self.failed(job, &work.error, target_hash, error.to_string())
                    .await
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
    ) -> Outcome {
        if job.status != Status::Error || known.as_ref() != Some(&error) {
            let unit = plan::error_unit(&job.name, job.status, error.clone());
            if self.writer.write(unit, job.generation).await.is_err() {
                return Outcome::Cancelled;
            }
        }
        Outcome::Failed { target_hash, error }
    }

    /// Asks the source, and says what its answer means.
    async fn import(&self, job: &Job, import: &Import, careful: bool) -> Result<Answer, HubError> {
        let asker = Asker {
            place: job.place,
            generation: job.generation,
            began: &job.began,
        };
        let (wanted, held) = self.sources.tables(import, asker).await?;
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
        let session = self.sources.session(job.place).await?;
        let settled = self
            .settle(session.client(), job, import, &wanted.offer, careful)
            .await;
        session.give_back_after(&settled);
        (answer.unit, answer._following) = settled?;
        Ok(answer)
    }

    /// Writes what an answer means. Its turns are over then.
    async fn write(&self, job: &Job, mut answer: Answer) -> Result<Outcome, HubError> {
        let Some(unit) = answer.unit.take() else {
            return Ok(Outcome::Same);
        };
        match self.writer.write(unit, job.generation).await {
            Err(error) if error.is_passing() || error.is_stale() => {
                self.tell_who_blocks(job, &error).await;
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
        let changes = import.changes(&detail, wanted);
        let risky: Vec<&str> = (changes.iter())
            .filter(|change| change.is_risky())
            .map(TableChange::table)
            .collect();
        let mut obstacles = Obstacles {
            dependents: dependents::of_tables(client, name, &risky).await?,
            ..Obstacles::default()
        };
        let followers = union::followers(client, name, &risky).await?;
        let mut turn = None;
        if !followers.is_empty() {
            turn = Some(self.following.clone().lock_owned().await);
            union::in_the_way(client, &followers, &changes, &mut obstacles.dependents).await?;
        }
        let step = union::Step::new(
            name,
            &detail,
            wanted,
            changes,
            &obstacles,
            import.schema(name),
        );
        let (mut first, mut last) =
            union::follow(client, &followers, &step, import.readers).await?;
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
            (first, last) = union::follow(client, &followers, &step, import.readers).await?;
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
    async fn unite(&self, job: &Job, unite: &Unite) -> Result<Unit, HubError> {
        let found = {
            let session = self.sources.session(job.place).await?;
            let (client, drift) = (session.client(), unite.why == Why::Drift);
            let found = union::find(client, &job.name, &unite.members, drift, unite.readers).await;
            session.give_back_after(&found);
            found?
        };
        let mut units = plan::settle_union(&job.name, job.status, unite, &found);
        let last = units.pop().unwrap_or_default();
        for unit in units {
            self.writer.write(unit, job.generation).await?;
        }
        Ok(last)
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

    /// Leaves an event that says who holds a lock that a connection needs, once for each who does.
    async fn tell_who_blocks(&self, job: &Job, error: &HubError) {
        if !error.is_blocked() {
            return;
        }
        let reason = error.to_string();
        let before = self.blocked().insert(job.name.clone(), reason.clone());
        if before.as_ref() != Some(&reason) {
            let unit = plan::event_unit(&job.name, job.status, job.generation, &reason);
            // It is in the log too.
            let _ = self.writer.write(unit, job.generation).await;
        }
    }

    fn blocked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
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
