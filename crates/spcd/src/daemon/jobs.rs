//! Work under way: one job a connection, waiting for sources kept apart from writing.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use spcd_core::observed::Detail;
use spcd_core::plan::{self, Import, Task, Unit, Unite, Why, Work};
use spcd_core::shape::{self, TableChange};
use spcd_protocol::Status;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::hub::apply::{self, Writer};
use crate::hub::connect::{Endpoint, Session};
use crate::hub::{HubError, ask, observe, union};

/// How many sources that answer quickly are asked at a time: an import keeps a core of the server
/// busy, so more would only be slower.
const BRISK: usize = 4;
/// A source that has not answered for so long leaves its place to another.
const SLOW: Duration = Duration::from_secs(1);
/// How many sessions ask at a time, the slow ones included.
const SESSIONS: usize = 40;
/// How long aggregators wait for a member that changes.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long an import may take where the configuration does not say.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a lock that was not got is left to others.
const LATER: Duration = Duration::from_secs(1);
/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The jobs of a leader.
pub struct Jobs {
    shared: Arc<Shared>,
    running: BTreeMap<String, Running>,
    finished: mpsc::UnboundedReceiver<Finished>,
    sender: mpsc::UnboundedSender<Finished>,
    /// Ends them when the jobs are dropped.
    tasks: JoinSet<()>,
}

struct Shared {
    endpoint: Arc<Endpoint>,
    writer: Writer,
    brisk: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    idle: Mutex<Vec<Session>>,
    /// Members that change views of their aggregators do so one after the other: each starts from
    /// what the one before left.
    following: Arc<Mutex<()>>,
}

/// What a source's answer means, and the turn in which it is to be written.
type Answer = (Option<Unit>, Option<OwnedMutexGuard<()>>);

struct Running {
    key: Key,
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
    Import(String),
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
    pub fn new(endpoint: Arc<Endpoint>, writer: Writer) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        Self {
            shared: Arc::new(Shared {
                endpoint,
                writer,
                brisk: Arc::new(Semaphore::new(BRISK)),
                sessions: Arc::new(Semaphore::new(SESSIONS)),
                idle: Mutex::new(Vec::new()),
                following: Arc::default(),
            }),
            running: BTreeMap::new(),
            finished,
            sender,
            tasks: JoinSet::new(),
        }
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
            None => running.refresh && running.key == Key::Import(target.to_owned()),
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
            .is_some_and(|running| running.refresh && running.key == Key::Import(target.to_owned()))
    }

    /// Begins a piece of work, unless one is under way for its connection.
    pub fn start(&mut self, work: Work, generation: i64) {
        if self.running.contains_key(&work.name) {
            return;
        }
        let cancel = Arc::new(Notify::new());
        let began = Arc::new(OnceLock::new());
        let running = Running {
            key: Key::of(&work),
            refresh: matches!(&work.task, Task::Import(import) if import.why == Why::Refresh),
            began: began.clone(),
            cancel: cancel.clone(),
            look_again: false,
        };
        self.running.insert(work.name.clone(), running);
        let (shared, sender) = (self.shared.clone(), self.sender.clone());
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(async move {
            let name = work.name.clone();
            let outcome = shared.run(work, generation, &cancel, &began).await;
            let _ = sender.send(Finished { name, outcome });
        });
    }

    /// How long a lock that was not got is left to others.
    pub fn later() -> Duration {
        LATER
    }
}

impl Running {
    fn is_slow(&self) -> bool {
        self.began
            .get()
            .is_some_and(|began| began.elapsed() >= PATIENCE)
    }
}

impl Key {
    fn of(work: &Work) -> Self {
        match &work.task {
            Task::Import(import) => Key::Import(import.target_hash.clone()),
            Task::Unite(unite) => Key::Unite(unite.target_hash.clone()),
            Task::Drop { keep, .. } => Key::Drop {
                stays: keep.is_some(),
            },
            Task::Grant { .. } => Key::Grant,
        }
    }
}

impl Shared {
    async fn run(
        &self,
        work: Work,
        generation: i64,
        cancel: &Notify,
        began: &OnceLock<Instant>,
    ) -> Outcome {
        let Work {
            name,
            status,
            error: known_error,
            task,
        } = work;
        let mut turn = None;
        let (unit, target_hash, quiet) = match task {
            Task::Drop {
                keep,
                applied,
                tables,
            } => {
                match self.is_read(&name).await {
                    Ok(false) => {}
                    // Its aggregators let go of it first.
                    Ok(true) => return Outcome::Later("aggregators still show it".into()),
                    Err(_) => return Outcome::Cancelled,
                }
                let unit = plan::drop_unit(&name, status, &applied, &tables, keep.as_deref());
                (Ok(Some(unit)), String::new(), false)
            }
            Task::Grant { tables } => (
                Ok(Some(plan::grant_unit(&name, status, &tables))),
                "grant".into(),
                false,
            ),
            Task::Unite(unite) => {
                let unit = tokio::select! {
                    unit = self.unite(&name, status, &unite, generation) => match unit {
                        Err(error) if error.is_stale() => {
                            return Outcome::Later(error.to_string());
                        }
                        unit => unit.map(Some),
                    },
                    () = cancel.notified() => return Outcome::Cancelled,
                };
                (unit, unite.target_hash, false)
            }
            Task::Import(import) => {
                let answer = tokio::select! {
                    answer = self.import(&name, status, &import, began) => answer,
                    () = cancel.notified() => return Outcome::Cancelled,
                };
                let unit = answer.map(|(unit, its_turn)| {
                    turn = its_turn;
                    unit
                });
                (unit, import.target_hash, import.why == Why::Refresh)
            }
        };
        let result = match unit {
            Ok(None) => return Outcome::Same,
            Ok(Some(unit)) => match self.writer.write(unit, generation).await {
                Err(error) if error.is_stale() => return Outcome::Later(error.to_string()),
                result => result,
            },
            Err(error) => Err(error),
        };
        drop(turn);
        match result {
            Ok(()) => Outcome::Done,
            Err(HubError::Lost(_) | HubError::NotLeading | HubError::NoSession) => {
                Outcome::Cancelled
            }
            Err(error) if error.is_passing() => Outcome::Later(error.to_string()),
            Err(error) => {
                let error = error.to_string();
                // An error that the row tells already is not told again.
                let known = status == Status::Error && known_error.as_ref() == Some(&error);
                if !quiet && !known {
                    let unit = plan::error_unit(&name, status, error.clone());
                    if self.writer.write(unit, generation).await.is_err() {
                        return Outcome::Cancelled;
                    }
                }
                Outcome::Failed { target_hash, error }
            }
        }
    }

    /// Asks the source, and says what its answer means.
    async fn import(
        &self,
        name: &str,
        status: Status,
        import: &Import,
        began: &OnceLock<Instant>,
    ) -> Result<Answer, HubError> {
        let deadline = import
            .target
            .import
            .timeout
            .map_or(DEADLINE, Duration::from_secs);
        let _session_slot = slot(&self.sessions).await;
        let brisk = slot(&self.brisk).await;
        let _ = began.set(Instant::now());
        let session = self.session().await?;
        let guard = CancelOnDrop::new(&session);
        let asked = async {
            let asking = self.ask(&session, name, status, import);
            tokio::pin!(asking);
            if let Ok(answer) = timeout(SLOW, &mut asking).await {
                return answer;
            }
            drop(brisk);
            asking.await
        };
        let answer = timeout(deadline, asked).await.unwrap_or_else(|_| {
            Err(HubError::Refused {
                text: format!("the source did not answer within {} s", deadline.as_secs()),
                code: tokio_postgres::error::SqlState::QUERY_CANCELED,
            })
        });
        let in_order = match &answer {
            Ok(_) => true,
            Err(HubError::Refused { code, .. }) => {
                *code != tokio_postgres::error::SqlState::QUERY_CANCELED
            }
            Err(_) => false,
        };
        if in_order {
            guard.keep();
            self.idle.lock().await.push(session);
        }
        answer
    }

    async fn ask(
        &self,
        session: &Session,
        name: &str,
        status: Status,
        import: &Import,
    ) -> Result<Answer, HubError> {
        let client = &session.client;
        let mut detail = Detail::default();
        if import.applied.is_some() {
            let names = [name.to_owned()];
            let found = observe::details(client, &names, import.readers).await?;
            detail = found.into_values().next().unwrap_or_default();
            shape::normalize(&mut detail.tables, import.target.traits());
        }
        let wanted = ask::ask(client, &import.target).await?;
        let changes = import.changes(&detail, &wanted);
        let risky: Vec<&str> = (changes.iter())
            .filter(|change| change.is_risky())
            .map(TableChange::table)
            .collect();
        let mut dependents = observe::dependents(client, name, &risky).await?;
        let followers = union::followers(client, name, &risky).await?;
        if followers.is_empty() {
            let unit = plan::settle(name, status, import, &detail, wanted, &dependents);
            return Ok((unit, None));
        }
        let turn = self.following.clone().lock_owned().await;
        union::in_the_way(client, &followers, &changes, &mut dependents).await?;
        let (changes, _) = shape::guard(changes, &dependents);
        let step = union::Step {
            member: name,
            before: &detail.tables,
            after: &shape::after(&detail.tables, &wanted, &changes),
            changes: &changes,
        };
        let (first, last) = union::follow(client, &followers, &step, import.readers).await?;
        let mut unit = plan::settle(name, status, import, &detail, wanted, &dependents);
        if let Some(unit) = &mut unit {
            unit.sql = first + &unit.sql + &last;
        }
        Ok((unit, Some(turn)))
    }

    /// Looks at an aggregator's members, writes what must be written first, and says what is left.
    async fn unite(
        &self,
        name: &str,
        status: Status,
        unite: &Unite,
        generation: i64,
    ) -> Result<Unit, HubError> {
        let found = {
            let _session_slot = slot(&self.sessions).await;
            let session = self.session().await?;
            let drift = unite.why == Why::Drift;
            let found =
                union::find(&session.client, name, &unite.members, drift, unite.readers).await;
            self.idle.lock().await.push(session);
            found?
        };
        let mut units = plan::settle_union(name, status, unite, &found);
        let last = units.pop().unwrap_or_default();
        for unit in units {
            self.writer.write(unit, generation).await?;
        }
        Ok(last)
    }

    /// Whether views of aggregators still read a connection's tables.
    async fn is_read(&self, name: &str) -> Result<bool, HubError> {
        let _session_slot = slot(&self.sessions).await;
        let session = self.session().await?;
        let is_read = union::is_read(&session.client, name).await;
        self.idle.lock().await.push(session);
        is_read
    }

    async fn session(&self) -> Result<Session, HubError> {
        while let Some(session) = self.idle.lock().await.pop() {
            if !session.client.is_closed() {
                return Ok(session);
            }
        }
        let opened = async {
            let session = self.endpoint.connect("asking").await?;
            let settings =
                "SET idle_in_transaction_session_timeout = '300s'; SET lock_timeout = '2s'";
            session.client.batch_execute(settings).await?;
            apply::prepare_for_secrets(&session.client).await?;
            anyhow::Ok(session)
        };
        opened.await.map_err(|error| {
            tracing::warn!("cannot open a session to ask a source: {error:#}");
            HubError::NoSession
        })
    }
}

async fn slot(slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // They are never closed.
    slots.clone().acquire_owned().await.ok()
}

/// Stops the statement of a session that is given up.
struct CancelOnDrop(Option<crate::hub::connect::Canceller>);

impl CancelOnDrop {
    fn new(session: &Session) -> Self {
        Self(Some(session.canceller()))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(canceller) = self.0.take() {
            tokio::spawn(async move { canceller.cancel().await });
        }
    }
}
