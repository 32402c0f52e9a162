//! Writes units of statements and the states of their connections, many in one transaction.

mod batch;
mod publish;
pub mod savepoint_check;

use std::sync::Arc;
use std::time::Duration;

use spcd_core::planner::WriteUnit;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

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
}

/// Queue of the units to write. A clone is the same queue.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::UnboundedSender<QueuedUnit>,
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
        let shared = Arc::new(Mutex::new(Queue {
            receiver,
            next: None,
            on_commit,
            // Leaves half of the lock table to other sessions.
            max_locks: (limits.locks / 2 / limits.for_writers()).max(100),
        }));
        // Two sessions are 1.3 times as fast as one on two cores; four are slower.
        for _ in 0..limits.for_writers() {
            let opens_early = limits.are_few();
            tokio::spawn(run(endpoint.clone(), epoch, shared.clone(), opens_early));
        }
        Self { queue }
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

/// Receiving end of the queue, and the limits of a batch.
struct Queue {
    receiver: mpsc::UnboundedReceiver<QueuedUnit>,
    /// WriteUnit that did not fit into the previous batch.
    next: Option<QueuedUnit>,
    /// Maximum number of locks of a transaction.
    max_locks: usize,
    on_commit: fn(Committed),
}

async fn run(endpoint: Arc<Endpoint>, epoch: i64, queue: Arc<Mutex<Queue>>, opens_early: bool) {
    let mut session: Option<WriterSession> = None;
    if opens_early {
        session = open(&endpoint, epoch).await;
    }
    let mut settings = endpoint.context().watch_settings();
    loop {
        let next = async {
            let mut queue = queue.lock().await;
            (queue.next_batch().await, queue.max_locks, queue.on_commit)
        };
        let keepalive = Duration::from_millis(settings.borrow_and_update().keepalive);
        let next = tokio::select! {
            next = timeout(keepalive, next) => next,
            // Waits again with the new interval. No error: the endpoint holds the sender.
            _ = settings.changed() => continue,
        };
        let Ok((batch, locks, on_commit)) = next else {
            // Keeps an idle session alive, and detects a dead one before it is needed.
            if let Some(open) = &session
                && open.session.ping().await.is_err()
            {
                session = None;
            }
            continue;
        };
        if batch.is_empty() {
            return;
        }
        // The settings may have changed during the wait.
        let settings = *settings.borrow();
        let library = batch.iter().find_map(|one| one.unit.library.clone());
        let is_usable = |open: &WriterSession| {
            open.session.settings == settings
                && !open.session.client.is_closed()
                && open.can_load(library.as_deref())
        };
        if !session.as_ref().is_some_and(is_usable) {
            session = None;
        }
        if session.is_none() {
            session = open(&endpoint, epoch).await;
        }
        // Without a session the batch is dropped, which ends its jobs. The daemon restarts its leader
        // session when the database is back.
        if let Some(open) = &mut session {
            open.library = library.or(open.library.take());
            let suspects: Vec<Crash> = (batch.iter())
                .filter_map(|one| Crash::of_unit(&one.unit, open.session.backend_pid))
                .collect();
            let client = &open.session.client;
            let writer = BatchWriter {
                client,
                epoch,
                on_commit,
            };
            writer.write_batch(batch, locks).await;
            if open.session.has_ended_abruptly() {
                let context = endpoint.context();
                suspects
                    .into_iter()
                    .for_each(|crash| context.record_crash(crash));
            }
        }
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
    /// Waits for a unit, then adds queued ones up to the size of a batch, as long as one session can
    /// load all their libraries.
    async fn next_batch(&mut self) -> Vec<QueuedUnit> {
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
            if locks > self.max_locks || !can_load(library.as_deref(), next.unit.library.as_deref())
            {
                self.next = Some(next);
                break;
            }
            library = library.or_else(|| next.unit.library.clone());
            batch.push(next);
        }
        batch
    }
}
