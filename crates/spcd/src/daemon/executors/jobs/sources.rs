//! Asks sources for their tables. Few are asked at a time, since each uses a core of the server. One that
//! does not answer quickly exchanges its permit for one of another kind, so that it delays no other.

mod batch;
mod privileges;
mod sessions;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use spcd_core::config::{ForeignSource, OptionValue, UnknownTypePolicy};
use spcd_core::diff::{self, Table};
use spcd_core::health::FailureKind;
use spcd_core::naming;
use spcd_core::planner::{Comment, Import, Reason, RemoteSchema};
use spcd_core::scheduler::{PermitKind, Priority, SessionBudget, Urgency};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::ImportStart;
use super::permits::{Permit, Permits, UncancellablePermit};
use crate::source::ask;
use crate::tunnel::Tunnels;
use batch::Batches;
use privileges::PrivilegeChecks;
use sessions::ImportSession;
use spcd_postgres::connection::pool::Pool;
use spcd_postgres::connection::{Endpoint, Session};
use spcd_postgres::import::{comments, fetch_remote_schemas, reports_privileges};
use spcd_postgres::{HubError, Limits};

/// Time limit of questions for which no client waits.
const BACKGROUND_DEADLINE: Duration = Duration::from_secs(10);
/// Default time limit for a wrapper to connect, in seconds.
const CONNECT_TIMEOUT: u64 = 10;
/// Time limit of the first attempt to connect, in seconds: the minimum of libpq. A source that cannot be
/// reached within it is asked again with its full time limit, but separately from the others.
const FIRST_CONNECT_TIMEOUT: u64 = 2;
/// Number of shared imports above which those of former tables of a gateway are removed.
const MAX_SHARED: usize = 64;
/// Table option of postgres_fdw for the remote schema.
const SCHEMA_OPTION: &str = "schema_name";
/// Server option for the time limit to connect, and the wrapper that has it.
const TIMEOUT_OPTION: &str = "connect_timeout";
const WRAPPER_WITH_TIMEOUT: &str = "postgres_fdw";
/// Default time limit of an import.
const DEADLINE: Duration = Duration::from_secs(60);
/// Time limit of a cancel request to the hub.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Extra time in the server's statement time-out, which ends the statement if the daemon is gone.
const STATEMENT_TIMEOUT_MARGIN: Duration = Duration::from_secs(5);

/// The sources of a leader's connections, and the sessions for asking them.
pub struct Sources {
    endpoint: Arc<Endpoint>,
    pool: Pool,
    tunnels: Arc<Tunnels>,
    pub(super) permits: Arc<Permits>,
    idle: Mutex<Vec<Arc<ImportSession>>>,
    /// Notified when a session becomes idle.
    freed: Notify,
    /// Number of sessions in use, including those that jobs wait for.
    users: AtomicUsize,
    /// Whether the server's limit is so low that unused sessions are closed.
    has_few_sessions: bool,
    /// Imports that all connections of one plugin instance share.
    shared: Mutex<BTreeMap<SharedImportKey, Arc<SharedImport>>>,
    privileges: PrivilegeChecks,
    /// Batched questions to sources with a schema for each of many connections.
    batches: Batches,
}

/// Key of connections that share their tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SharedImportKey {
    instance: String,
    version: Option<String>,
    wrapper: String,
    schema: String,
    ask: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    unknown_types: Option<UnknownTypePolicy>,
    /// Set for tables in a gateway, where each connection has a schema.
    shape: Option<String>,
}

impl SharedImportKey {
    fn of(import: &Import) -> Self {
        let target = &import.target;
        Self {
            instance: import.instance.clone(),
            version: import.extension_version.clone(),
            wrapper: target.wrapper.clone(),
            schema: match target.shared_shape {
                Some(_) => String::new(),
                None => target.import.schema.clone(),
            },
            ask: target.ask_options.clone(),
            options: target.import_options.clone(),
            unknown_types: target.import.unknown_types,
            shape: target.shared_shape.clone(),
        }
    }
}

/// An import that connections share: one of them asks at a time, until one has the answer.
struct SharedImport {
    turn: Arc<Semaphore>,
    state: watch::Sender<SharedState>,
}

/// State of a shared import.
#[derive(Default)]
struct SharedState {
    /// The tables, and the pass that asked for them.
    answer: Option<(i64, Arc<SourceTables>)>,
    /// Number of jobs that need the answer and have not failed.
    waiters: usize,
}

/// The tables of a source.
pub struct SourceTables {
    /// The source's answer.
    pub remote: RemoteSchema,
    /// The hash of the tables.
    pub hash: String,
    /// Whether every table can be imported without a warning.
    pub is_plain: bool,
}

/// A job that waits for a shared import.
struct Waiter<'a>(&'a SharedImport);

/// The job for which a source is asked.
#[derive(Clone, Copy)]
pub struct ImportContext<'a> {
    /// The job's priority.
    pub priority: Priority,
    /// Generation of the pass.
    pub generation: i64,
    /// Identity of its source.
    pub source: &'a str,
    /// Notified when its source is asked.
    pub import_start: &'a ImportStart,
}

/// The permits that an import holds.
#[derive(Default)]
pub struct ImportPermits {
    quick: Option<Permit>,
    /// Permit of a shared import.
    _turn: Option<OwnedSemaphorePermit>,
    /// Permit of an answer for many connections.
    _batch: Option<Arc<OwnedSemaphorePermit>>,
    /// Permit to wait for a source that is slow or hard to reach.
    _slow: Option<Permit>,
}

impl Sources {
    /// Returns a value that respects the server's limits.
    pub fn new(endpoint: Arc<Endpoint>, pool: Pool, tunnels: Arc<Tunnels>, limits: Limits) -> Self {
        let budget = SessionBudget::new(limits.for_imports());
        Self {
            endpoint,
            pool,
            tunnels,
            permits: Permits::new(budget),
            idle: Mutex::default(),
            freed: Notify::new(),
            users: AtomicUsize::new(0),
            has_few_sessions: limits.are_few(),
            shared: Mutex::default(),
            privileges: PrivilegeChecks::default(),
            batches: Batches::default(),
        }
    }

    /// Returns the tables of a connection's source under their names here. As long as the permits are
    /// held, no other source is asked instead.
    pub async fn tables(
        &self,
        import: &Import,
        context: ImportContext<'_>,
    ) -> Result<(Arc<SourceTables>, ImportPermits), HubError> {
        let (tables, held) = self.remote_tables(import, context).await?;
        let named = match naming::apply(&tables.remote, &import.target) {
            Cow::Owned(named) => Some(named),
            Cow::Borrowed(_) => None,
        };
        let named = named.map(|named| Arc::new(SourceTables::of(named, &import.target)));
        Ok((named.unwrap_or(tables), held))
    }

    /// Returns the tables of a connection's source: its own answer, or the one that all connections of
    /// its plugin instance share.
    async fn remote_tables(
        &self,
        import: &Import,
        context: ImportContext<'_>,
    ) -> Result<(Arc<SourceTables>, ImportPermits), HubError> {
        let target = &import.target;
        if target.shared_shape.is_some() {
            let all = self.shared(import, context).await?;
            let own = SourceTables::of(in_schema(&all.remote, &target.import.schema), target);
            return Ok((Arc::new(own), ImportPermits::default()));
        }
        if target.dynamic || target.csv.is_some() {
            let (mut tables, held) = match target.lane.is_some() {
                true => self.ask_in_batch(target, context).await?,
                false => self.ask_alone(target, context, None).await?,
            };
            import.keep_types(&mut tables);
            return Ok((Arc::new(SourceTables::of(tables, target)), held));
        }
        let all = self.shared(import, context).await?;
        let import = &target.import;
        let takes_all = import.tables.is_empty() && import.exclude.is_empty();
        let mut tables = None;
        if !takes_all {
            let (taken, others): (Vec<&str>, Vec<&str>) = (all.remote.tables.iter())
                .map(|table| table.name.as_str())
                .partition(|name| import.selects(name));
            let unmatched = import.unmatched_patterns(&taken, Some(&others));
            let selected = tables.insert(all.remote.clone());
            selected.warnings.extend(unmatched);
            selected.tables.retain(|table| import.selects(&table.name));
        }
        let remote = tables.as_ref().unwrap_or(&all.remote);
        if reports_privileges(target) && !remote.tables.is_empty() {
            let privileges = self.privileges(target, context, remote).await?;
            if !privileges.allow_all() {
                privileges.add_to(tables.get_or_insert_with(|| all.remote.clone()));
            }
        }
        let tables = tables.map(|tables| Arc::new(SourceTables::of(tables, target)));
        Ok((tables.unwrap_or(all), ImportPermits::default()))
    }

    /// Returns the comments on the tables of a connection's source.
    pub async fn comments(
        &self,
        target: &ForeignSource,
        source: &str,
        priority: Priority,
    ) -> Result<Vec<Comment>, HubError> {
        let (limited, _) = limited(target);
        let target = limited.as_ref().unwrap_or(target);
        let ask = async |client: &Client| comments::fetch(client, target).await;
        self.ask_after_imports(target, source, priority, ask).await
    }

    /// Sends a query to a source that yields to imports: it starts only when a permit is free, and
    /// imports do not wait for it.
    async fn ask_after_imports<T>(
        &self,
        target: &ForeignSource,
        source: &str,
        priority: Priority,
        question: impl AsyncFnOnce(&Client) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        drop(self.permits.acquire(PermitKind::Quick, priority).await);
        let permit = (self.uncancellable_permit(target, source, priority, false)).await?;
        // A short limit, since it delays all other queries for which no client waits.
        let deadline = deadline(target).min(BACKGROUND_DEADLINE);
        let session = self.open(target, permit, priority, deadline).await?;
        let asked = timeout(deadline, question(session.client())).await;
        let answer = asked.unwrap_or_else(|_| Err(too_late(deadline)));
        session.give_back_after(&answer);
        answer
    }

    /// Returns the shared import of a key. Removes those of an earlier version of the extension.
    fn shared_import(&self, key: SharedImportKey) -> Arc<SharedImport> {
        let mut all = self.shared.lock();
        if all.len() > MAX_SHARED {
            all.retain(|other, one| other.shape.is_none() || Arc::strong_count(one) > 1);
        }
        all.retain(|other, _| other.instance != key.instance || other.version == key.version);
        all.entry(key).or_default().clone()
    }

    /// Returns the shared tables of a plugin instance. One of its connections is asked, and another one if
    /// that fails or takes long.
    async fn shared(
        &self,
        import: &Import,
        context: ImportContext<'_>,
    ) -> Result<Arc<SourceTables>, HubError> {
        let target = &import.target;
        let has_shape = target.shared_shape.is_some();
        let shared = self.shared_import(SharedImportKey::of(import));
        let fresh = |known: &SharedState| {
            let new = |(asked, _): &(i64, _)| {
                has_shape || import.reason != Reason::Refresh || *asked >= context.generation
            };
            known.answer.as_ref().is_some_and(new)
        };
        let waiter = Waiter::of(&shared);
        let mut knowing = shared.state.subscribe();
        let known = async {
            // The sender lives as long as `shared`.
            let known = knowing.wait_for(fresh).await.ok()?;
            known.answer.as_ref().map(|(_, tables)| tables.clone())
        };
        tokio::pin!(known);
        let turn = tokio::select! {
            biased;
            Some(tables) = &mut known => return Ok(tables),
            turn = shared.turn.clone().acquire_owned() => turn.ok(),
        };
        let mut all = target.clone();
        all.import.tables.clear();
        all.import.exclude.clear();
        let answer = tokio::select! {
            biased;
            Some(tables) = &mut known => return Ok(tables),
            answer = self.ask_alone(&all, context, turn) => answer,
        };
        let error = match answer {
            // Ends the turn after the others can see the answer.
            Ok((tables, _held)) => {
                let tables = Arc::new(SourceTables::of(tables, target));
                let answer = (context.generation, tables.clone());
                shared
                    .state
                    .send_modify(|known| known.answer = Some(answer));
                return Ok(tables);
            }
            Err(error) => error,
        };
        // Another source may answer for all connections.
        drop(waiter);
        let mut knowing = shared.state.subscribe();
        match knowing
            .wait_for(|known| fresh(known) || known.waiters == 0)
            .await
        {
            Ok(known) if fresh(&known) => match &known.answer {
                Some((_, tables)) => Ok(tables.clone()),
                None => Err(error),
            },
            _ => Err(error),
        }
    }

    /// Asks one source for its tables. Holds `turn` as long as other jobs should wait for the answer.
    async fn ask_alone(
        &self,
        target: &ForeignSource,
        context: ImportContext<'_>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<(RemoteSchema, ImportPermits), HubError> {
        let (tables, held) = self.ask(target, context, turn, None).await?;
        let tables = tables.into_values().next().unwrap_or_default();
        Ok((tables, held))
    }

    /// Asks one source for the tables of `schemas`, or for those of the target. Repeats the question if the
    /// source could not be reached within the short time limit.
    async fn ask(
        &self,
        target: &ForeignSource,
        context: ImportContext<'_>,
        turn: Option<OwnedSemaphorePermit>,
        schemas: Option<&[String]>,
    ) -> Result<(BTreeMap<String, RemoteSchema>, ImportPermits), HubError> {
        if target.tunnel.is_some() {
            context.import_start.record();
            self.tunnels.ready(target).await?;
        }
        if !target.is_cancellable() {
            context.import_start.record();
        }
        let (source, priority) = (context.source, context.priority);
        let is_requested = priority.urgency == Urgency::Requested;
        let permit = self.uncancellable_permit(target, source, priority, is_requested);
        let permit = permit.await?;
        let quick = self.permits.acquire(PermitKind::Quick, priority).await;
        context.import_start.record();
        let (limited, hasty) = limited(target);
        let target = limited.as_ref().unwrap_or(target);
        let began = Instant::now();
        let first = hasty.as_ref().unwrap_or(target);
        let held = ImportPermits {
            quick: Some(quick),
            _turn: turn,
            ..ImportPermits::default()
        };
        let answer = (self.ask_within(first, permit, priority, held, schemas)).await;
        match &answer {
            Err(error @ HubError::StatementFailed { code, .. })
                if hasty.is_some()
                    && error.kind() != FailureKind::Authentication
                    && *code == SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION
                    // The attempt timed out instead of being refused. libpq counts whole seconds.
                    && began.elapsed() >= Duration::from_millis(900) =>
            {
                let held = ImportPermits {
                    _slow: Some(
                        self.permits
                            .acquire(PermitKind::Unreachable, priority)
                            .await,
                    ),
                    ..ImportPermits::default()
                };
                (self.ask_within(target, None, priority, held, schemas)).await
            }
            _ => answer,
        }
    }

    /// Waits for a permit to ask a source whose session may get stuck. Returns `None` if it cannot.
    async fn uncancellable_permit(
        &self,
        target: &ForeignSource,
        source: &str,
        priority: Priority,
        is_requested: bool,
    ) -> Result<Option<UncancellablePermit>, HubError> {
        if target.is_cancellable() {
            return Ok(None);
        }
        let source = (target.wrapper.as_str(), source);
        let within = deadline(target);
        let permits = &self.permits;
        let permit = permits.acquire_uncancellable(priority, source, is_requested, within);
        let code = SqlState::QUERY_CANCELED;
        let refused = |text| HubError::StatementFailed { text, code };
        permit.await.map(Some).map_err(refused)
    }

    /// Asks within the time limit. Returns the permit for quick sources if the answer takes longer than usual
    /// and a permit for a slow source is free.
    async fn ask_within(
        &self,
        target: &ForeignSource,
        permit: Option<UncancellablePermit>,
        priority: Priority,
        held: ImportPermits,
        schemas: Option<&[String]>,
    ) -> Result<(BTreeMap<String, RemoteSchema>, ImportPermits), HubError> {
        let deadline = deadline(target);
        let session = self.open(target, permit, priority, deadline).await?;
        let asked = async {
            let (began, slow_after) = (Instant::now(), self.permits.slow_after());
            let asking = tables_of(session.session(), target, schemas);
            tokio::pin!(asking);
            if held.quick.is_none() {
                return Ok((asking.await?, held));
            }
            if let Ok(answer) = timeout(slow_after, &mut asking).await {
                self.permits.answered(began.elapsed());
                return Ok((answer?, held));
            }
            let slow = tokio::select! {
                answer = &mut asking => return Ok((answer?, held)),
                slow = self.permits.acquire(PermitKind::Slow, priority) => slow,
            };
            drop(held);
            let tables = asking.await?;
            self.permits.answered(began.elapsed().min(slow_after * 2));
            let held = ImportPermits {
                _slow: Some(slow),
                ..ImportPermits::default()
            };
            Ok((tables, held))
        };
        let answer = timeout(deadline, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(too_late(deadline)));
        let answer = match answer {
            Err(HubError::ConnectionLost(_))
                if target.exclusive_library().is_some()
                    && session.session().has_ended_abruptly() =>
            {
                let backend_pid = session.session().backend_pid;
                Err(HubError::WrapperCrashed { backend_pid })
            }
            answer => answer,
        };
        session.give_back_after(&answer);
        answer
    }
}

/// Returns the tables that a connection shares with another one, in its own schema of the gateway.
fn in_schema(remote: &RemoteSchema, schema: &str) -> RemoteSchema {
    let mut remote = remote.clone();
    for table in &mut remote.tables {
        if let Some(option) = table.options.get_mut(SCHEMA_OPTION) {
            schema.clone_into(option);
        }
    }
    remote
}

/// Returns the tables of some schemas of a source, or those of the target.
async fn tables_of(
    session: &Session,
    target: &ForeignSource,
    schemas: Option<&[String]>,
) -> Result<BTreeMap<String, RemoteSchema>, HubError> {
    match schemas {
        Some(schemas) => {
            let schemas: Vec<&str> = schemas.iter().map(String::as_str).collect();
            fetch_remote_schemas(session, target, &schemas).await
        }
        None => {
            let tables = ask::tables(session, target).await?;
            Ok(BTreeMap::from([(target.import.schema.clone(), tables)]))
        }
    }
}

impl SourceTables {
    fn of(remote: RemoteSchema, target: &ForeignSource) -> Self {
        let fits = |table: &Table| table.import_error.is_none();
        Self {
            hash: diff::hash(&remote.tables, target.wrapper_traits()),
            is_plain: remote.extensions.as_ref().is_none_or(Vec::is_empty)
                && remote.warnings.is_empty()
                && remote.left_out.is_empty()
                && remote.notices.is_empty()
                && remote.tables.iter().all(fits),
            remote,
        }
    }
}

impl Default for SharedImport {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            state: watch::Sender::default(),
        }
    }
}

impl<'a> Waiter<'a> {
    fn of(shared: &'a SharedImport) -> Self {
        shared.state.send_modify(|known| known.waiters += 1);
        Self(shared)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|known| known.waiters -= 1);
    }
}

/// Returns the target with a default time limit to connect, and with the minimum one, if the wrapper has
/// an option for it.
fn limited(target: &ForeignSource) -> (Option<ForeignSource>, Option<ForeignSource>) {
    if target.csv.is_some() || target.wrapper != WRAPPER_WITH_TIMEOUT {
        return (None, None);
    }
    let with = |seconds: u64| {
        let mut limited = target.clone();
        let (value, public) = (seconds.to_string(), true);
        let option = OptionValue { value, public };
        limited.server.insert(TIMEOUT_OPTION.into(), option);
        Some(limited)
    };
    let given = target.server.get(TIMEOUT_OPTION);
    match given.map(|option| option.value.parse().unwrap_or(0)) {
        None => (with(CONNECT_TIMEOUT), with(FIRST_CONNECT_TIMEOUT)),
        Some(1..=FIRST_CONNECT_TIMEOUT) => (None, None),
        Some(_) => (None, with(FIRST_CONNECT_TIMEOUT)),
    }
}

/// Returns the time limit of a source.
fn deadline(target: &ForeignSource) -> Duration {
    target.import.timeout.map_or(DEADLINE, Duration::from_secs)
}

fn too_late(deadline: Duration) -> HubError {
    HubError::StatementFailed {
        text: format!("the source did not answer within {} s", deadline.as_secs()),
        code: SqlState::QUERY_CANCELED,
    }
}
