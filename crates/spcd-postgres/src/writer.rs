//! Writes units of statements and the states of their connections, many in one transaction.

mod batch;
mod publish;
pub mod savepoint_check;

use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::HubSettings;
use spcd_core::planner::WriteUnit;
use spcd_core::scheduler::WriterCount;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::connection::crowded;
use crate::connection::{Endpoint, Session};
use crate::crash_guard::Crash;
use crate::leader;
use crate::{HubError, Limits};
use batch::BatchWriter;
pub use publish::publish;

/// Maximum number of tables in a batch. Measured: larger transactions gain nothing.
const TABLES_PER_BATCH: usize = 1000;
/// Maximum number of units in a batch. With more, its notification needs several messages.
const UNITS_PER_BATCH: usize = 250;
/// Minimum number of locks of a batch, even on a server with a tiny lock table.
const MIN_LOCKS: usize = 100;
/// Time limit for opening a writer session while the server's connection limit is reached.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);

/// Sizes of a committed transaction.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    /// Number of connections that changed in it.
    pub connections: usize,
    /// Number of tables that its statements are about.
    pub tables: usize,
    /// Number of statements that the plan had for them.
    pub statements: usize,
    /// Length of their text, which is roughly proportional to the server's work.
    pub bytes: usize,
}

/// Queue of the units to write. A clone is the same queue.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::UnboundedSender<QueuedUnit>,
    shared: Arc<Shared>,
}

struct QueuedUnit {
    unit: WriteUnit,
    generation: i64,
    reply: oneshot::Sender<Result<(), HubError>>,
}

impl Writer {
    /// Starts the writing sessions of a leader, which call `on_commit` after each transaction. They
    /// end when the writer and all its clones do.
    pub fn start(
        endpoint: Arc<Endpoint>,
        epoch: i64,
        limits: Limits,
        on_commit: fn(Committed),
    ) -> Self {
        let (queue, receiver) = mpsc::unbounded_channel();
        let shared = Shared::new(receiver, limits, on_commit, endpoint.context().settings());
        for index in 0..shared.max {
            tokio::spawn(run(endpoint.clone(), epoch, shared.clone(), index));
        }
        Self { queue, shared }
    }

    /// Writes a unit. Returns after its commit.
    pub async fn write(&self, unit: WriteUnit, generation: i64) -> Result<(), HubError> {
        let (reply, result) = oneshot::channel();
        let queued = QueuedUnit {
            unit,
            generation,
            reply,
        };
        let closed = || HubError::NoSession;
        self.queue.send(queued).map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }

    /// Returns the number of tables, written and queued, that keeps the writers busy.
    pub fn busy_tables(&self) -> usize {
        2 * TABLES_PER_BATCH * self.shared.active()
    }
}

/// Shared by the tasks of the writers. All are started at once; those whose index is not below the
/// number of active ones wait without a session.
struct Shared {
    queue: Mutex<Queue>,
    /// Number of tasks.
    max: usize,
    limits: Limits,
    count: parking_lot::Mutex<WriterCount>,
    active: watch::Sender<usize>,
    /// Half of the lock table, which is left to other sessions.
    max_locks: usize,
    /// The other half. A transaction takes its share for as long as it runs, so the sum holds while the
    /// number of writers changes.
    locks: Semaphore,
    began: Instant,
    on_commit: fn(Committed),
}

/// Value of [`Shared::active`] once the queue is closed: all tasks are to end.
const CLOSED: usize = usize::MAX;

impl Shared {
    fn new(
        receiver: mpsc::UnboundedReceiver<QueuedUnit>,
        limits: Limits,
        on_commit: fn(Committed),
        settings: HubSettings,
    ) -> Arc<Self> {
        let max = limits.max_writers().max(limits.max_fixed_writers());
        let max_locks = (limits.locks / 2).max(MIN_LOCKS * max);
        let (min, most) = (limits.for_writers(), limits.max_writers());
        let shared = Self {
            queue: Mutex::new(Queue {
                receiver,
                next: None,
            }),
            max,
            limits,
            count: parking_lot::Mutex::new(WriterCount::new(min, most)),
            active: watch::Sender::new(min),
            max_locks,
            locks: Semaphore::new(max_locks),
            began: Instant::now(),
            on_commit,
        };
        shared.adjust(settings);
        Arc::new(shared)
    }

    fn active(&self) -> usize {
        (*self.active.borrow()).min(self.max)
    }

    /// Applies the setting, or else the number that the throughput suggests.
    fn adjust(&self, settings: HubSettings) {
        let wanted = match self.fixed(settings) {
            Some(fixed) => fixed,
            None => self.count.lock().get(),
        };
        self.active.send_if_modified(|active| {
            let differs = *active != wanted && *active != CLOSED;
            if differs {
                tracing::debug!(from = *active, to = wanted, "the number of writers changes");
                *active = wanted;
            }
            differs
        });
    }

    /// Returns the number of writers that the settings fix, as far as the server has sessions for them.
    fn fixed(&self, settings: HubSettings) -> Option<usize> {
        let fixed = usize::try_from(settings.writers).unwrap_or(usize::MAX);
        (fixed > 0).then(|| fixed.min(self.limits.max_fixed_writers()))
    }

    /// Whether a writer opens its session before it is needed, and keeps it while it is idle.
    fn keeps_session(&self, index: usize, settings: HubSettings) -> (bool, bool) {
        let is_fixed = self.fixed(settings).is_some();
        let opens_early = is_fixed || self.limits.are_few();
        (opens_early, is_fixed || index < self.limits.for_writers())
    }

    /// Waits for a batch. Returns it with the maximum number of its locks and their permit.
    async fn next_batch(&self) -> (Vec<QueuedUnit>, usize, Option<SemaphorePermit<'_>>) {
        let mut queue = self.queue.lock().await;
        let share = self.max_locks / self.active().max(1);
        // Before the first unit is taken, since this function may be cancelled while it waits. The
        // semaphore is never closed.
        let permits = u32::try_from(share).unwrap_or(u32::MAX);
        let permit = self.locks.acquire_many(permits).await.ok();
        if queue.is_empty() {
            self.count.lock().waited();
        }
        (queue.next_batch(share).await, share, permit)
    }

    fn committed(&self, committed: Committed, settings: HubSettings) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let work = u64::try_from(committed.bytes).unwrap_or(u64::MAX);
        self.count.lock().committed(work, now);
        self.adjust(settings);
        (self.on_commit)(committed);
    }
}

/// A session, and the wrapper whose library it has loaded.
struct WriterSession {
    session: Session,
    library: Option<String>,
}

impl WriterSession {
    /// Whether the session can write units that load this library.
    fn can_load(&self, library: Option<&str>) -> bool {
        can_load(self.library.as_deref(), library)
    }
}

/// Whether a session can load `library`, since it has loaded none or the same.
pub fn can_load(loaded: Option<&str>, library: Option<&str>) -> bool {
    loaded.is_none() || library.is_none() || loaded == library
}

/// Receiving end of the queue.
struct Queue {
    receiver: mpsc::UnboundedReceiver<QueuedUnit>,
    /// Unit that did not fit into the previous batch.
    next: Option<QueuedUnit>,
}

/// Work of the writer with this index, until the queue is closed.
async fn run(endpoint: Arc<Endpoint>, epoch: i64, shared: Arc<Shared>, index: usize) {
    let mut session: Option<WriterSession> = None;
    let mut settings = endpoint.context().watch_settings();
    let mut active = shared.active.subscribe();
    let mut is_active = false;
    loop {
        let now = *settings.borrow_and_update();
        let was_active = std::mem::replace(&mut is_active, index < *active.borrow_and_update());
        if !is_active {
            session = None;
            // No error: `shared` holds the sender. The first writer is always active, and notices the
            // change of a setting.
            let _ = active.changed().await;
            continue;
        }
        let (opens_early, keeps) = shared.keeps_session(index, now);
        if opens_early && !was_active {
            session = open(&endpoint, epoch).await;
        }
        let next = tokio::select! {
            next = timeout(Duration::from_millis(now.keepalive), shared.next_batch()) => next,
            // Waits again with the new interval. No error: the endpoint holds the sender.
            _ = settings.changed() => {
                shared.adjust(*settings.borrow());
                continue;
            }
            _ = active.changed() => continue,
        };
        let Ok((batch, locks, _permit)) = next else {
            // Keeps an idle session alive, and detects a dead one before it is needed.
            let is_alive = match &session {
                Some(open) if keeps => open.session.ping().await.is_ok(),
                _ => false,
            };
            session = session.filter(|_| is_alive);
            continue;
        };
        if batch.is_empty() {
            shared.active.send_replace(CLOSED);
            return;
        }
        // The settings may have changed during the wait.
        let settings = *settings.borrow();
        session = usable_session(session, &endpoint, epoch, &batch, settings).await;
        // Without a session the batch is dropped, which ends its jobs. The daemon restarts its leader
        // session when the database is back.
        if let Some(open) = &mut session {
            write(open, epoch, &endpoint, &shared, (batch, locks)).await;
        }
    }
}

/// Returns the session if a batch can be written in it, else a new one.
async fn usable_session(
    session: Option<WriterSession>,
    endpoint: &Endpoint,
    epoch: i64,
    batch: &[QueuedUnit],
    settings: HubSettings,
) -> Option<WriterSession> {
    let library = batch.iter().find_map(|one| one.unit.library.clone());
    let is_usable = |open: &WriterSession| {
        open.session.settings == settings
            && !open.session.client.is_closed()
            && open.can_load(library.as_deref())
    };
    let mut session = match session.filter(is_usable) {
        Some(session) => session,
        None => open(endpoint, epoch).await?,
    };
    session.library = library.or(session.library);
    Some(session)
}

/// Writes a batch, and records which units may have ended the session.
async fn write(
    open: &WriterSession,
    epoch: i64,
    endpoint: &Endpoint,
    shared: &Shared,
    (batch, locks): (Vec<QueuedUnit>, usize),
) {
    let suspects: Vec<Crash> = (batch.iter())
        .filter_map(|one| Crash::of_unit(&one.unit, open.session.backend_pid))
        .collect();
    let settings = endpoint.context().settings();
    let writer = BatchWriter {
        client: &open.session.client,
        epoch,
        on_commit: &|committed| shared.committed(committed, settings),
    };
    writer.write_batch(batch, locks).await;
    if open.session.has_ended_abruptly() {
        let context = endpoint.context();
        suspects
            .into_iter()
            .for_each(|crash| context.record_crash(crash));
    }
}

async fn open(endpoint: &Endpoint, epoch: i64) -> Option<WriterSession> {
    let opened = async {
        let session = crowded::open_session(endpoint, "writer", SESSION_TIMEOUT).await?;
        let settings = format!(
            "SET idle_in_transaction_session_timeout = '60s'; SET lock_timeout = {}",
            session.settings.lock_timeout
        );
        session.client.batch_execute(&settings).await?;
        leader::register(&session.client, epoch).await?;
        anyhow::Ok(session)
    };
    match opened.await {
        Ok(session) => Some(WriterSession {
            session,
            library: None,
        }),
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "cannot open a session to write"
            );
            None
        }
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.next.is_none() && self.receiver.is_empty()
    }

    /// Waits for a unit, then adds queued ones up to the size of a batch, as long as one session can
    /// load all their libraries.
    async fn next_batch(&mut self, max_locks: usize) -> Vec<QueuedUnit> {
        let mut batch: Vec<QueuedUnit> = Vec::new();
        let first = match self.next.take() {
            Some(next) => Some(next),
            None => self.receiver.recv().await,
        };
        let Some(first) = first else { return batch };
        let (mut tables, mut locks) = (first.unit.tables, first.unit.locks);
        let mut library = first.unit.library.clone();
        batch.push(first);
        while batch.len() < UNITS_PER_BATCH && tables < TABLES_PER_BATCH {
            let Ok(next) = self.receiver.try_recv() else {
                break;
            };
            tables += next.unit.tables;
            locks += next.unit.locks;
            if locks > max_locks || !can_load(library.as_deref(), next.unit.library.as_deref()) {
                self.next = Some(next);
                break;
            }
            library = library.or_else(|| next.unit.library.clone());
            batch.push(next);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn transactions_share_half_of_the_lock_table_while_the_number_of_writers_changes() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let limits = Limits {
            sessions: 100,
            locks: 8000,
        };
        let with = |writers| HubSettings {
            writers,
            ..HubSettings::default()
        };
        let shared = Shared::new(receiver, limits, |_| (), with(2));
        for _ in 0..100 {
            let (reply, _) = oneshot::channel();
            let unit = WriteUnit {
                locks: 500,
                ..WriteUnit::default()
            };
            let queued = QueuedUnit {
                unit,
                generation: 0,
                reply,
            };
            assert!(sender.send(queued).is_ok());
        }
        let next = || shared.next_batch().now_or_never();
        let size = |batch: &Option<(Vec<QueuedUnit>, usize, _)>| {
            batch.as_ref().map(|(units, ..)| units.len())
        };
        let (first, second) = (next(), next());
        assert_eq!((size(&first), size(&second)), (Some(4), Some(4)));
        shared.adjust(with(4));
        // The first two transactions have all locks.
        assert_eq!(size(&next()), None);
        drop(first);
        let (third, fourth) = (next(), next());
        assert_eq!((size(&third), size(&fourth)), (Some(2), Some(2)));
        assert_eq!(size(&next()), None);
    }
}
