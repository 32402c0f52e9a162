//! The sources, watched: a task beside the loop asks each now and then whether it is there, and
//! writes what it finds.
//!
//! The loop hands over what there is to watch after each pass, and is woken when a source is back.

mod book;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{Connection, Desired, Kind as ConnectionKind, Probe};
use spcd_core::health::{Kind, Options, Schedule, Turn};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_postgres::Client;

use crate::hub::connect::{Endpoint, Session};
use crate::hub::probe::{Answer, Failure};
use crate::hub::waiting::is_stoppable;
use crate::hub::{HubError, Limits};
use crate::tunnel::Tunnels;
use book::{Book, Busy, Room};
use session::{Found, Sessions};

/// Number of jobs under way from which on probes and drift detection wait, since they keep nobody
/// waiting and would compete with the jobs for the hub's processors.
pub const MANY_JOBS: usize = 16;
/// How many sources are asked at a time, of those that answered last.
const AT_A_TIME: usize = 4;
/// How many are asked in a second at most. Each takes some milliseconds of a core of the hub's
/// server, so that all of them stay a small part of it: where there are more sources than that, each
/// is asked less often.
pub const A_SECOND: u32 = 50;
/// How many of the sources that answered last are asked in a second while many jobs are under way,
/// which tell as much of their own. That holds for so long, since among the jobs may be some that hang.
const A_SECOND_BESIDE: u32 = 2;
const BESIDE: Duration = Duration::from_secs(60);
/// How long what was found is kept back, to be written together with more.
const TOGETHER: Duration = Duration::from_secs(1);

/// A connection whose source is watched.
#[derive(Clone)]
pub struct Watched {
    connection: Arc<Connection>,
    schedule: Schedule,
}

/// What the loop is told.
#[derive(Debug)]
pub enum News {
    /// The source of this connection answers again.
    Restored(String),
    /// It was asked because somebody wanted that, and what was found is written.
    Asked(String),
}

/// What the task is told.
enum Order {
    Watch {
        watched: Vec<Watched>,
        /// Those of which an import is under way.
        busy: BTreeSet<String>,
    },
    /// Somebody asks.
    Again(Vec<String>),
    /// An import says so.
    Heard { name: String, answered: bool },
    /// An import says that the credentials were refused.
    Refused {
        name: String,
        target_hash: String,
        asked: bool,
        failure: Failure,
    },
}

/// The task that watches. It ends when this is dropped.
pub struct Watch {
    orders: mpsc::UnboundedSender<Order>,
    news: mpsc::UnboundedReceiver<News>,
    /// What was handed over last.
    watched: Vec<Watched>,
    /// Whom somebody wants to be asked.
    asking: BTreeSet<String>,
    /// Those of them of which an import will tell more.
    awaiting: BTreeSet<String>,
    _task: JoinSet<()>,
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connection, &other.connection) && self.schedule == other.schedule
    }
}

impl Watched {
    /// The wrapper, if a session that waits in it for the source cannot be stopped.
    fn wrapper(&self) -> Option<&str> {
        let target = self.connection.target.as_ref().ok()?;
        (!is_stoppable(target)).then_some(target.wrapper.as_str())
    }
}

impl Watch {
    /// Begins, with what an earlier leader knew. `jobs` is how many are under way.
    pub fn start(
        endpoint: Arc<Endpoint>,
        epoch: i64,
        limits: Limits,
        tunnels: Arc<Tunnels>,
        known: BTreeMap<String, bool>,
        jobs: watch::Receiver<usize>,
    ) -> Self {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (sender, news) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut round = Round {
                sessions: Arc::new(Sessions::new(
                    endpoint.clone(),
                    tunnels,
                    limits.for_probes(AT_A_TIME),
                )),
                endpoint,
                epoch,
                began: Instant::now(),
                book: Book::new(known),
                running: JoinSet::new(),
                few: limits.are_few(),
                lost: limits.lost_probes(),
                found: mpsc::unbounded_channel(),
                news: sender,
                next_start: Instant::now(),
                next_well: Instant::now(),
                jobs,
                busy_since: None,
                write_at: None,
                writer: None,
                refusal: String::new(),
            };
            round.run(receiver).await;
        });
        Self {
            orders,
            news,
            watched: Vec::new(),
            asking: BTreeSet::new(),
            awaiting: BTreeSet::new(),
            _task: task,
        }
    }

    /// Watches these from now on, but for those that are held. Nothing is handed over where nothing
    /// differs.
    pub fn follow(
        &mut self,
        desired: &Desired,
        defaults: Options,
        is_left_alone: impl Fn(&str, &Connection) -> bool,
        is_running: impl Fn(&str) -> bool,
    ) {
        let watched = |connection: &&Arc<Connection>| {
            let probed = |probe: Probe| probe != Probe::None;
            connection.kind == ConnectionKind::Plugin
                && (connection.target.as_ref()).is_ok_and(|target| probed(target.probe))
                && !is_left_alone(&connection.name, connection)
        };
        let all = desired.connections.values().filter(watched);
        let watched: Vec<Watched> = all
            .map(|connection| Watched {
                connection: connection.clone(),
                schedule: connection.health.or(defaults).schedule(),
            })
            .filter(|watched| watched.schedule.enabled)
            .collect();
        if watched != self.watched {
            self.watched.clone_from(&watched);
            let names: BTreeSet<&str> = (watched.iter())
                .map(|one| one.connection.name.as_str())
                .collect();
            self.asking.retain(|name| names.contains(name.as_str()));
            self.awaiting.retain(|name| names.contains(name.as_str()));
            let running = names.into_iter().filter(|name| is_running(name));
            let busy = running.map(str::to_owned).collect();
            let _ = self.orders.send(Order::Watch { watched, busy });
        }
    }

    /// Has sources asked now, whatever failed before. Where an import `is_running`, which asks too,
    /// its end comes first: two attempts with credentials that are refused could lock the account.
    pub fn again<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a String>,
        is_running: impl Fn(&str) -> bool,
    ) {
        let is_watched = |name: &&String| {
            let place = |one: &Watched| one.connection.name.as_str().cmp(name);
            self.watched.binary_search_by(place).is_ok()
        };
        let names: Vec<String> = names.into_iter().filter(is_watched).cloned().collect();
        if !names.is_empty() {
            self.asking.extend(names.iter().cloned());
            let (later, now): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| is_running(name));
            self.awaiting.extend(later);
            let _ = self.orders.send(Order::Again(now));
        }
    }

    /// An import went through to a source, or did not.
    pub fn heard(&self, name: &str, answered: bool) {
        let name = name.to_owned();
        let _ = self.orders.send(Order::Heard { name, answered });
    }

    /// An import is over, whatever came of it: who waits for it has the source asked now.
    pub fn over(&mut self, name: &str) {
        if self.awaiting.remove(name) {
            let _ = self.orders.send(Order::Again(vec![name.to_owned()]));
        }
    }

    /// An import met a source that refused its credentials: it is not asked again.
    pub fn refused(&mut self, name: &str, target_hash: &str, text: &str) {
        let failure = Failure {
            kind: Kind::Authentication,
            text: text.to_owned(),
        };
        let _ = self.orders.send(Order::Refused {
            name: name.to_owned(),
            target_hash: target_hash.to_owned(),
            asked: self.awaiting.remove(name),
            failure,
        });
    }

    /// Whether somebody waits for this source to be asked.
    pub fn is_asking(&self, name: &str) -> bool {
        self.asking.contains(name)
    }

    /// Waits for news. Nothing is lost if this is not awaited to its end.
    pub async fn news(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => {
                if let News::Asked(name) = &news {
                    self.asking.remove(name);
                }
                news
            }
            // The lead is over, which the loop finds out by itself.
            None => std::future::pending().await,
        }
    }
}

/// What an earlier leader knew: whether sources answered, and which ones are held.
pub async fn known(
    client: &Client,
) -> Result<(BTreeMap<String, bool>, BTreeSet<String>), HubError> {
    let sql = "SELECT connection_name, reachable, held FROM spcd.connection_health
               WHERE held OR reachable IS NOT NULL";
    let (mut known, mut held) = (BTreeMap::new(), BTreeSet::new());
    for row in client.query(sql, &[]).await? {
        let name: String = row.try_get(0)?;
        if row.try_get(2)? {
            held.insert(name);
        } else if let Some(reachable) = row.try_get(1)? {
            known.insert(name, reachable);
        }
    }
    Ok((known, held))
}

/// The task.
struct Round {
    endpoint: Arc<Endpoint>,
    epoch: i64,
    sessions: Arc<Sessions>,
    /// Times are counted from here.
    began: Instant,
    book: Book,
    running: JoinSet<()>,
    /// There is hardly room for the sessions that are needed all the time.
    few: bool,
    /// How many sources that did not answer are asked at a time.
    lost: usize,
    found: (mpsc::UnboundedSender<Found>, mpsc::UnboundedReceiver<Found>),
    news: mpsc::UnboundedSender<News>,
    /// Not more than so many a second.
    next_start: Instant,
    /// And not before this one of those that answered last.
    next_well: Instant,
    /// How many jobs are under way, and since when there are many.
    jobs: watch::Receiver<usize>,
    busy_since: Option<Instant>,
    /// When what was found is written.
    write_at: Option<Instant>,
    writer: Option<Session>,
    /// Why it could not be written the last time.
    refusal: String,
}

impl Round {
    async fn run(&mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            let due = self.book.next(self.room());
            let due = due.map(|due| self.began + Duration::from_millis(due));
            // Where others have to rest, there may be one that is due when they are done.
            let rested = Some(self.next_well).filter(|then| *then > Instant::now());
            let start = due.map(|due| due.max(self.next_start)).into_iter();
            let start = start.chain(rested).min();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.order(order),
                    None => return,
                },
                Some(found) = self.found.1.recv() => self.take(found),
                () = until(start) => self.ask(),
                () = until(self.write_at) => match self.write().await {
                    Ok(()) => {}
                    Err(HubError::NotLeading) => return,
                    Err(error) => {
                        tracing::debug!("what probes found is not written yet: {error}");
                        self.write_at = Some(Instant::now() + TOGETHER);
                    }
                },
            }
            while self.running.try_join_next().is_some() {}
            if self.write_at.is_none() && self.book.is_changed() {
                self.write_at = Some(Instant::now() + TOGETHER);
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn room(&self) -> Room {
        let Busy { well, lost, hung } = self.book.busy();
        // One that takes long was one that answered, until it was asked.
        let any = well + lost < AT_A_TIME + self.lost;
        Room {
            well: any && well < AT_A_TIME && self.next_well <= Instant::now(),
            lost: any && lost < self.lost,
            again: hung < self.lost / 2,
            more: hung < self.lost,
        }
    }

    /// Whether the hub has more to do than to ask sources, and not for too long.
    fn is_busy(&mut self) -> bool {
        if *self.jobs.borrow() < MANY_JOBS {
            self.busy_since = None;
            return false;
        }
        let since = self.busy_since.get_or_insert_with(Instant::now);
        since.elapsed() < BESIDE
    }

    fn order(&mut self, order: Order) {
        let now = self.now();
        match order {
            Order::Watch { watched, busy } => {
                // Spread over the interval, so that a start does not ask all of them at once.
                let first = |watched: &Watched| {
                    let name = &watched.connection.name;
                    let part = RandomState::new().hash_one(name) as f64 / u64::MAX as f64;
                    now + (watched.schedule.interval as f64 * part) as u64
                };
                self.book.watch(watched, &busy, now, first);
            }
            Order::Again(names) => {
                for name in names {
                    if !self.book.again(&name, now) {
                        let _ = self.news.send(News::Asked(name));
                    }
                }
            }
            Order::Heard { name, answered } => self.book.heard(&name, answered, now),
            Order::Refused {
                name,
                target_hash,
                asked,
                failure,
            } => {
                let why = failure.one_line();
                let turn = (self.book).refused(&name, &target_hash, failure, asked, now);
                if let Some(Turn::Lost) = turn {
                    tracing::warn!(connection = name, "its source does not answer: {why}");
                }
            }
        }
    }

    /// Asks the one that is due.
    fn ask(&mut self) {
        let now = self.now();
        self.next_start = Instant::now() + Duration::from_secs(1) / A_SECOND;
        let room = self.room();
        let Some((number, watched)) = self.book.begin(room, now) else {
            return;
        };
        if room.well && self.is_busy() {
            self.next_well = Instant::now() + Duration::from_secs(1) / A_SECOND_BESIDE;
        }
        let (sessions, sender) = (self.sessions.clone(), self.found.0.clone());
        self.running.spawn(async move {
            session::ask(&sessions, number, &watched, &sender).await;
        });
    }

    fn take(&mut self, found: Found) {
        let now = self.now();
        match found {
            Found::Slow(number) => self.book.slow(number),
            Found::Answer {
                number,
                name,
                answer,
            } => {
                let why = match &answer {
                    Answer::Failed(failure) => failure.one_line(),
                    _ => String::new(),
                };
                match self.book.found(number, &name, answer, now) {
                    Some(Turn::Lost) => {
                        tracing::warn!(connection = name, "its source does not answer: {why}");
                    }
                    Some(Turn::Restored) => {
                        tracing::info!(connection = name, "its source answers again");
                        let _ = self.news.send(News::Restored(name));
                    }
                    None => {}
                }
            }
            Found::Over { number, name } => self.book.over(number, &name, now),
        }
    }

    async fn write(&mut self) -> Result<(), HubError> {
        self.write_at = None;
        let now = self.now();
        let page = self.book.page(now);
        if page.is_empty() {
            return Ok(());
        }
        let written = self.publish(&page.json()).await;
        match &written {
            Ok(()) => page.told().for_each(|told| drop(self.news.send(told))),
            Err(error) => {
                let text = error.to_string();
                if matches!(error, HubError::Refused { .. }) && text != self.refusal {
                    tracing::warn!("what probes found cannot be written: {text}");
                    self.refusal = text;
                }
                self.book.not_written(page);
            }
        }
        written
    }

    async fn publish(&mut self, rows: &serde_json::Value) -> Result<(), HubError> {
        if self
            .writer
            .as_ref()
            .is_none_or(|session| session.client.is_closed())
        {
            let opened = self.endpoint.connect("health").await;
            self.writer = Some(opened.map_err(|_| HubError::NoSession)?);
        }
        let Some(writer) = &self.writer else {
            return Err(HubError::NoSession);
        };
        let sql = "SELECT spcd.publish_health($1, $2)";
        writer.client.execute(sql, &[&self.epoch, rows]).await?;
        if self.few {
            self.writer = None;
        }
        Ok(())
    }
}

/// Waits until then; for ever where there is no then.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
