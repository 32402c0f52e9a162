//! Asking sources. Few are asked at a time, since each keeps a core of the server busy; one that
//! does not answer soon moves over to where many may wait, so that it holds up nobody else.

mod sessions;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use spcd_core::config::{OptionValue, Target};
use spcd_core::health::Kind;
use spcd_core::plan::{Comment, Import, Offer, Why};
use spcd_core::shape::{self, Table};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_postgres::error::SqlState;

use super::AskedAt;
use super::gate::{Gate, Pass, Place};
use crate::hub::connect::Endpoint;
use crate::hub::pool::Pool;
use crate::hub::waiting::{Risk, Waiting};
use crate::hub::{HubError, Limits, ask, comments};
use crate::tunnel::Tunnels;
use sessions::Waiter;

/// How many sources that answer quickly are asked at a time: each keeps a core of the server busy,
/// so more would only be slower.
const BRISK: usize = 4;
/// How long a source may take for what nobody waits for.
const UNHURRIED_DEADLINE: Duration = Duration::from_secs(10);
/// A source that takes so many times as long as others do is no longer waited for by them.
const SLOW: u32 = 5;
/// However fast and however slow the others are.
const SLOW_AT_LEAST: Duration = Duration::from_millis(100);
const SLOW_AT_MOST: Duration = Duration::from_secs(1);
/// What is taken for usual before any source has answered.
const USUAL: Duration = Duration::from_millis(50);
/// The time that a wrapper is given to connect where nothing says otherwise, in seconds.
const CONNECT: u64 = 10;
/// The time it is given at first: the shortest that libpq knows. Whoever cannot be reached in it is
/// asked again with all the time it should have, but apart from all others.
const HASTY: u64 = 2;
/// The server option that limits the time to connect, and the wrapper that has one.
const CONNECT_TIMEOUT: &str = "connect_timeout";
const TAKES_TIMEOUT: &str = "postgres_fdw";
/// How long an import may take where the configuration does not say.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long it may take to tell the hub that a statement is to stop.
const CANCEL: Duration = Duration::from_secs(5);
/// How much longer the server works on it, should the daemon be gone by then.
const GRACE: Duration = Duration::from_secs(5);

/// The sources of a leader's connections, and the sessions in which they are asked.
pub struct Sources {
    endpoint: Arc<Endpoint>,
    pool: Pool,
    tunnels: Arc<Tunnels>,
    brisk: Gate,
    /// Where those wait that did not answer soon.
    slow: Arc<Semaphore>,
    /// Where those wait that could not be reached soon.
    patient: Arc<Semaphore>,
    idle: Mutex<Vec<Arc<Waiter>>>,
    /// One more of them is there.
    freed: Notify,
    waiting: Arc<Waiting>,
    /// By what is asked: what all connections of one plugin instance share.
    sets: Mutex<BTreeMap<Shared, Arc<Set>>>,
    /// How long an answer takes usually, in microseconds.
    usual: AtomicU64,
}

/// What connections whose tables are the same have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Shared {
    instance: String,
    version: Option<String>,
    wrapper: String,
    schema: String,
    ask: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
}

/// One set of tables: asked for by one connection at a time, until one has the answer.
struct Set {
    turn: Arc<Semaphore>,
    known: watch::Sender<Known>,
}

/// What is known of a set.
#[derive(Default)]
struct Known {
    /// The tables, and in which pass they were asked for.
    answer: Option<(i64, Arc<Wanted>)>,
    /// How many want to know and did not fail yet.
    candidates: usize,
}

/// What a source has.
pub struct Wanted {
    /// As it answered.
    pub offer: Offer,
    /// The hash of the tables.
    pub hash: String,
    /// Every table can be imported, and there is nothing to warn of.
    pub is_plain: bool,
}

/// One of those who want to know.
struct Candidate<'a>(&'a Set);

/// Who asks.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// When its turn comes.
    pub place: Place,
    /// The pass that wants it.
    pub generation: i64,
    /// What tells its source from others.
    pub source: &'a str,
    /// Is told when its source is asked.
    pub asked: &'a AskedAt,
}

/// What keeps others waiting.
#[derive(Default)]
pub struct Held {
    pass: Option<Pass>,
    /// Of those whose tables are the same.
    _turn: Option<OwnedSemaphorePermit>,
    /// Among the slow.
    _slot: Option<OwnedSemaphorePermit>,
}

impl Sources {
    /// Of a hub that has so much room.
    pub fn new(endpoint: Arc<Endpoint>, pool: Pool, tunnels: Arc<Tunnels>, limits: Limits) -> Self {
        let sessions = limits.for_imports();
        Self {
            endpoint,
            pool,
            tunnels,
            brisk: Gate::new(BRISK),
            slow: Arc::new(Semaphore::new((sessions / 2).max(1))),
            patient: Arc::new(Semaphore::new((sessions / 4).max(1))),
            idle: Mutex::default(),
            freed: Notify::new(),
            waiting: Waiting::new(sessions),
            sets: Mutex::default(),
            usual: AtomicU64::new(USUAL.as_micros() as u64),
        }
    }

    /// Lets one who waits go before all others.
    pub fn hurry(&self, number: u64) {
        self.brisk.hurry(number);
    }

    /// The tables of a connection's source: asked for itself, or what all of its plugin instance
    /// share. As long as what comes with them is held, no other is asked in its place.
    pub async fn tables(
        &self,
        import: &Import,
        asker: Asker<'_>,
    ) -> Result<(Arc<Wanted>, Held), HubError> {
        let target = &import.target;
        if target.dynamic || target.csv.is_some() {
            let (mut tables, held) = self.ask(target, asker, None).await?;
            import.keep_types(&mut tables);
            return Ok((Arc::new(Wanted::of(tables, target)), held));
        }
        let all = self.shared(import, asker).await?;
        let wanted = &target.import;
        if wanted.tables.is_empty() && wanted.exclude.is_empty() {
            return Ok((all, Held::default()));
        }
        let mut tables = all.offer.clone();
        let (taken, others): (Vec<&str>, Vec<&str>) = (all.offer.tables.iter())
            .map(|table| table.name.as_str())
            .partition(|name| wanted.takes(name));
        tables
            .warnings
            .extend(wanted.unmatched(&taken, Some(&others)));
        tables.tables.retain(|table| wanted.takes(&table.name));
        let wanted = Wanted::of(tables, target);
        Ok((Arc::new(wanted), Held::default()))
    }

    /// The comments on the tables of a connection's source. Whoever waits for tables goes first, and
    /// is not kept waiting by this.
    pub async fn comments(
        &self,
        target: &Target,
        source: &str,
        place: Place,
    ) -> Result<Vec<Comment>, HubError> {
        drop(self.brisk.enter(place, 1).await);
        let (limited, _) = limited(target);
        let target = limited.as_ref().unwrap_or(target);
        let risk = self.risk(target, source, false).await?;
        // It holds up all others that are not waited for.
        let deadline = deadline(target).min(UNHURRIED_DEADLINE);
        let session = self.open(target, risk, deadline).await?;
        let asked = timeout(deadline, comments::ask(session.client(), target)).await;
        let answer = asked.unwrap_or_else(|_| Err(too_late(deadline)));
        session.give_back_after(&answer);
        answer
    }

    /// What all connections of a plugin instance share. One of them asks; where that fails or
    /// takes long, another does.
    async fn shared(&self, import: &Import, asker: Asker<'_>) -> Result<Arc<Wanted>, HubError> {
        let target = &import.target;
        let key = Shared {
            instance: import.instance.clone(),
            version: import.version.clone(),
            wrapper: target.wrapper.clone(),
            schema: target.import.schema.clone(),
            ask: target.ask.clone(),
            options: target.import_options.clone(),
        };
        let set = {
            let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
            // What an extension said before it changed is not asked for again.
            sets.retain(|other, _| other.instance != key.instance || other.version == key.version);
            sets.entry(key).or_default().clone()
        };
        let fresh = |known: &Known| {
            let new =
                |(asked, _): &(i64, _)| import.why != Why::Refresh || *asked >= asker.generation;
            known.answer.as_ref().is_some_and(new)
        };
        let candidate = Candidate::of(&set);
        let mut knowing = set.known.subscribe();
        let known = async {
            // The sender lives as long as the set, which is ours.
            let known = knowing.wait_for(fresh).await.ok()?;
            known.answer.as_ref().map(|(_, tables)| tables.clone())
        };
        tokio::pin!(known);
        let turn = tokio::select! {
            biased;
            Some(tables) = &mut known => return Ok(tables),
            turn = slot(&set.turn) => turn,
        };
        let mut all = target.clone();
        all.import.tables.clear();
        all.import.exclude.clear();
        let answer = tokio::select! {
            biased;
            Some(tables) = &mut known => return Ok(tables),
            answer = self.ask(&all, asker, turn) => answer,
        };
        let error = match answer {
            // The turn is over when the others can see the answer.
            Ok((tables, _held)) => {
                let tables = Arc::new(Wanted::of(tables, target));
                let answer = (asker.generation, tables.clone());
                set.known.send_modify(|known| known.answer = Some(answer));
                return Ok(tables);
            }
            Err(error) => error,
        };
        // Its own source is not needed if another one's says what all of them have.
        drop(candidate);
        let mut knowing = set.known.subscribe();
        match knowing
            .wait_for(|known| fresh(known) || known.candidates == 0)
            .await
        {
            Ok(known) if fresh(&known) => match &known.answer {
                Some((_, tables)) => Ok(tables.clone()),
                None => Err(error),
            },
            _ => Err(error),
        }
    }

    /// Asks one source. `turn` is kept only as long as others should wait for the answer.
    async fn ask(
        &self,
        target: &Target,
        asker: Asker<'_>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<(Offer, Held), HubError> {
        if target.tunnel.is_some() {
            asker.asked.now();
            self.tunnels.ready(target).await?;
        }
        let risk = match target.is_cancellable() {
            true => None,
            false => {
                asker.asked.now();
                let urgent = asker.place.turn == 0;
                self.risk(target, asker.source, urgent).await?
            }
        };
        let pass = self.brisk.enter(asker.place, 1).await;
        asker.asked.now();
        let (limited, hasty) = limited(target);
        let target = limited.as_ref().unwrap_or(target);
        let began = Instant::now();
        let first = hasty.as_ref().unwrap_or(target);
        let held = Held {
            pass: Some(pass),
            _turn: turn,
            ..Held::default()
        };
        let answer = self.ask_within(first, risk, held).await;
        match &answer {
            Err(error @ HubError::Refused { code, .. })
                if hasty.is_some()
                    && error.kind() != Kind::Authentication
                    && *code == SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION
                    // It was not refused: nothing came. The clock of libpq has whole seconds.
                    && began.elapsed() >= Duration::from_millis(900) =>
            {
                let held = Held {
                    _slot: slot(&self.patient).await,
                    ..Held::default()
                };
                self.ask_within(target, None, held).await
            }
            _ => answer,
        }
    }

    /// Leave to ask a source whose session may come to hang; `None`: it cannot.
    async fn risk(
        &self,
        target: &Target,
        source: &str,
        urgent: bool,
    ) -> Result<Option<Risk>, HubError> {
        if target.is_cancellable() {
            return Ok(None);
        }
        let risk = self
            .waiting
            .risk(&target.wrapper, source, urgent, deadline(target));
        let code = SqlState::QUERY_CANCELED;
        let refused = |text| HubError::Refused { text, code };
        risk.await.map(Some).map_err(refused)
    }

    /// Asks within the time that the configuration gives. What is held in common with others is let
    /// go of once it takes longer than usual and there is room among the slow.
    async fn ask_within(
        &self,
        target: &Target,
        risk: Option<Risk>,
        held: Held,
    ) -> Result<(Offer, Held), HubError> {
        let session = self.open(target, risk, deadline(target)).await?;
        let asked = async {
            let (began, soon) = (Instant::now(), self.soon());
            let asking = ask::ask(session.session(), target);
            tokio::pin!(asking);
            if held.pass.is_none() {
                return Ok((asking.await?, held));
            }
            if let Ok(answer) = timeout(soon, &mut asking).await {
                self.learn(began.elapsed());
                return Ok((answer?, held));
            }
            let slot = tokio::select! {
                answer = &mut asking => return Ok((answer?, held)),
                slot = slot(&self.slow) => slot,
            };
            drop(held);
            let tables = asking.await?;
            self.learn(began.elapsed().min(soon * 2));
            let held = Held {
                _slot: slot,
                ..Held::default()
            };
            Ok((tables, held))
        };
        let answer = timeout(deadline(target), asked).await;
        let answer = answer.unwrap_or_else(|_| Err(too_late(deadline(target))));
        let answer = match answer {
            Err(HubError::Lost(_)) if target.library().is_some() && session.session().died() => {
                Err(HubError::Crashed)
            }
            answer => answer,
        };
        session.give_back_after(&answer);
        answer
    }

    /// How long a source is waited for before another is asked.
    fn soon(&self) -> Duration {
        let usual = Duration::from_micros(self.usual.load(Ordering::Relaxed));
        (usual * SLOW).clamp(SLOW_AT_LEAST, SLOW_AT_MOST)
    }

    fn learn(&self, took: Duration) {
        let usual = self.usual.load(Ordering::Relaxed);
        let took = u64::try_from(took.as_micros())
            .unwrap_or(u64::MAX)
            .min(1 << 32);
        self.usual.store((usual * 7 + took) / 8, Ordering::Relaxed);
    }
}

impl Wanted {
    fn of(offer: Offer, target: &Target) -> Self {
        let fits = |table: &Table| table.unfit.is_none();
        Self {
            hash: shape::hash(&offer.tables, target.traits()),
            is_plain: offer.warnings.is_empty()
                && offer.notices.is_empty()
                && offer.tables.iter().all(fits),
            offer,
        }
    }
}

impl Default for Set {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            known: watch::Sender::default(),
        }
    }
}

impl<'a> Candidate<'a> {
    fn of(set: &'a Set) -> Self {
        set.known.send_modify(|known| known.candidates += 1);
        Self(set)
    }
}

impl Drop for Candidate<'_> {
    fn drop(&mut self) {
        self.0.known.send_modify(|known| known.candidates -= 1);
    }
}

/// The same with a limit to the time that it takes to connect, if it has none, and with as little
/// as possible, where the wrapper has an option for that.
fn limited(target: &Target) -> (Option<Target>, Option<Target>) {
    if target.csv.is_some() || target.wrapper != TAKES_TIMEOUT {
        return (None, None);
    }
    let with = |seconds: u64| {
        let mut limited = target.clone();
        let (value, public) = (seconds.to_string(), true);
        let option = OptionValue { value, public };
        limited.server.insert(CONNECT_TIMEOUT.into(), option);
        Some(limited)
    };
    let given = target.server.get(CONNECT_TIMEOUT);
    match given.map(|option| option.value.parse().unwrap_or(0)) {
        None => (with(CONNECT), with(HASTY)),
        Some(1..=HASTY) => (None, None),
        Some(_) => (None, with(HASTY)),
    }
}

/// How long a source may take.
fn deadline(target: &Target) -> Duration {
    target.import.timeout.map_or(DEADLINE, Duration::from_secs)
}

fn too_late(deadline: Duration) -> HubError {
    HubError::Refused {
        text: format!("the source did not answer within {} s", deadline.as_secs()),
        code: SqlState::QUERY_CANCELED,
    }
}

async fn slot(slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // They are never closed.
    slots.clone().acquire_owned().await.ok()
}
