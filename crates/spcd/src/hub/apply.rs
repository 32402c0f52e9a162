//! Writing: units of statements, many in a transaction, each with its connection's state.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use spcd_core::plan::{self, Bookkeeping, RowChange, Unit};
use spcd_core::secret::Secret;
use spcd_core::sql;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use tokio_postgres::Client;

use super::connect::{Endpoint, Session};
use super::crash::Crash;
use super::{HubError, Limits, lead, transaction, waiting};
use crate::telemetry::{Observation, observe};

/// Batching small connections into one transaction pays up to 500 to 1,000 tables.
const TABLES_PER_BATCH: usize = 1000;
/// Above this one message of the batch's notification becomes several; it pays no more.
const UNITS_PER_BATCH: usize = 250;
/// How long a session waits for room on the server, before what it should write is left to another
/// attempt.
const ROOM: Duration = Duration::from_secs(30);
/// How often a write that failed in passing (a deadlock) is sent again before its job is told.
const TRIES: usize = 3;

/// Where units are handed in to be written.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::UnboundedSender<Submitted>,
}

struct Submitted {
    unit: Unit,
    generation: i64,
    done: oneshot::Sender<Result<(), HubError>>,
}

impl Writer {
    /// Starts the writing sessions of a leader. They end when the writer and all its clones do.
    pub fn start(endpoint: Arc<Endpoint>, epoch: i64, limits: Limits) -> Self {
        let (queue, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(Mutex::new(Queue {
            receiver,
            next: None,
            // Half of the lock table is for others.
            locks: (limits.locks / 2 / limits.for_writers()).max(100),
        }));
        // Two sessions are 1.3 times as fast as one on two cores; four are slower.
        for _ in 0..limits.for_writers() {
            let early = limits.are_few();
            tokio::spawn(run(endpoint.clone(), epoch, queued.clone(), early));
        }
        Self { queue }
    }

    /// Writes a unit; returns when it is committed, or why it is not.
    pub async fn write(&self, unit: Unit, generation: i64) -> Result<(), HubError> {
        let (done, result) = oneshot::channel();
        let submitted = Submitted {
            unit,
            generation,
            done,
        };
        let gone = || HubError::NoSession;
        self.queue.send(submitted).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

/// A writing session, and the wrapper whose library it has loaded.
struct Writing {
    session: Session,
    library: Option<String>,
}

impl Writing {
    /// Whether units that load this library can be written in it.
    fn takes(&self, library: Option<&str>) -> bool {
        takes(self.library.as_deref(), library)
    }
}

/// Whether a session that has loaded one library, or none, may load another, or none.
pub fn takes(loaded: Option<&str>, library: Option<&str>) -> bool {
    loaded.is_none() || library.is_none() || loaded == library
}

/// What is to be written, and how much of it at once.
struct Queue {
    receiver: mpsc::UnboundedReceiver<Submitted>,
    /// What did not fit into the batch before.
    next: Option<Submitted>,
    /// The locks that a transaction may take.
    locks: usize,
}

async fn run(endpoint: Arc<Endpoint>, epoch: i64, queue: Arc<Mutex<Queue>>, early: bool) {
    let mut session: Option<Writing> = None;
    if early {
        session = open(&endpoint, epoch).await;
    }
    let mut settings = endpoint.shared().watch_settings();
    loop {
        let next = async {
            let mut queue = queue.lock().await;
            (queue.next_batch().await, queue.locks)
        };
        let keepalive = Duration::from_millis(settings.borrow_and_update().keepalive);
        let next = tokio::select! {
            next = timeout(keepalive, next) => next,
            // The next wait is of another length. (The endpoint is here, so this is no error.)
            _ = settings.changed() => continue,
        };
        let Ok((batch, locks)) = next else {
            // An idle session is kept alive, or found to be dead before it is needed.
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
        // They may have changed while this waited for the batch.
        let settings = *settings.borrow();
        let library = batch.iter().find_map(|one| one.unit.library.clone());
        let is_usable = |open: &Writing| {
            open.session.settings == settings
                && !open.session.client.is_closed()
                && open.takes(library.as_deref())
        };
        if !session.as_ref().is_some_and(is_usable) {
            session = None;
        }
        if session.is_none() {
            session = open(&endpoint, epoch).await;
        }
        // Without a session the batch is dropped, and its jobs are told that the lead is over:
        // the daemon starts anew when the database is back.
        if let Some(open) = &mut session {
            open.library = library.or(open.library.take());
            let suspects: Vec<Crash> = (batch.iter())
                .filter_map(|one| Crash::of_unit(&one.unit))
                .collect();
            write_batch(&open.session.client, epoch, batch, locks).await;
            if open.session.died() {
                let shared = endpoint.shared();
                suspects.into_iter().for_each(|crash| shared.crashed(crash));
            }
        }
    }
}

async fn open(endpoint: &Endpoint, epoch: i64) -> Option<Writing> {
    let opened = async {
        let session = waiting::session(endpoint, "writer", ROOM).await?;
        let settings = format!(
            "SET idle_in_transaction_session_timeout = '60s'; SET lock_timeout = {}",
            session.settings.lock_timeout
        );
        session.client.batch_execute(&settings).await?;
        lead::register(&session.client, epoch).await?;
        anyhow::Ok(session)
    };
    match opened.await {
        Ok(session) => Some(Writing {
            session,
            library: None,
        }),
        Err(error) => {
            tracing::warn!("cannot open a session to write: {error:#}");
            None
        }
    }
}

impl Queue {
    /// Waits for one unit, then takes what else is there, up to the size of a batch, and as far as all
    /// of it may load one library.
    async fn next_batch(&mut self) -> Vec<Submitted> {
        let mut batch: Vec<Submitted> = Vec::new();
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
            if locks > self.locks || !takes(library.as_deref(), next.unit.library.as_deref()) {
                self.next = Some(next);
                break;
            }
            library = library.or_else(|| next.unit.library.clone());
            batch.push(next);
        }
        batch
    }
}

/// Writes a batch; where it fails, each unit by itself, so that one costs only its own.
async fn write_batch(client: &Client, epoch: i64, mut batch: Vec<Submitted>, locks: usize) {
    // One alone may be bigger than any batch.
    if let [one] = batch.as_mut_slice()
        && one.unit.locks > locks
    {
        match write_pieces(client, epoch, &mut one.unit, locks).await {
            Ok(()) => {}
            Err(error @ HubError::Refused { .. }) => {
                let error = with_blockers(client, &one.unit.name, error).await;
                return tell(batch, error);
            }
            Err(error) => {
                return tracing::warn!("a part of what was to be written was cut off: {error}");
            }
        }
    }
    let units: Vec<_> = batch.iter().map(|one| &one.unit).collect();
    let generation = batch
        .iter()
        .map(|one| one.generation)
        .max()
        .unwrap_or_default();
    match write(client, epoch, generation, &units).await {
        Err(error @ HubError::Refused { .. }) if batch.len() == 1 && !error.may_pass_now() => {
            let error = with_blockers(client, &units[0].name, error).await;
            tell(batch, error);
        }
        Err(HubError::Refused { .. }) => {
            for one in batch {
                let result = write_one(client, epoch, &one).await;
                let _ = one.done.send(result);
            }
        }
        Ok(()) => batch.into_iter().for_each(|one| {
            let _ = one.done.send(Ok(()));
        }),
        // Whether it was committed is not known: their jobs end without an answer, and the next
        // look tells.
        Err(error) => tracing::warn!("a batch was cut off: {error}"),
    }
}

/// Tells the only one of a batch why it failed.
fn tell(mut batch: Vec<Submitted>, error: HubError) {
    if let Some(one) = batch.pop() {
        let _ = one.done.send(Err(error));
    }
}

async fn write_one(client: &Client, epoch: i64, one: &Submitted) -> Result<(), HubError> {
    let mut result = Ok(());
    for _ in 0..TRIES {
        result = write(client, epoch, one.generation, &[&one.unit]).await;
        match &result {
            Err(error) if error.may_pass_now() => {
                tracing::debug!("{}: {error}, again", one.unit.name)
            }
            _ => break,
        }
    }
    match result {
        Err(error) => Err(with_blockers(client, &one.unit.name, error).await),
        Ok(()) => Ok(()),
    }
}

/// Commits what may go before the rest. Tables on which something hangs go all at once, or not.
async fn write_pieces(
    client: &Client,
    epoch: i64,
    unit: &mut Unit,
    locks: usize,
) -> Result<(), HubError> {
    let sql = "SELECT EXISTS (
                   SELECT 1
                   FROM spcd.applied a
                   JOIN pg_catalog.pg_depend s
                        ON s.refclassid = 'pg_catalog.pg_namespace'::regclass
                       AND s.refobjid = a.schema_oid
                       AND s.classid = 'pg_catalog.pg_class'::regclass
                   JOIN pg_catalog.pg_depend d
                        ON d.refclassid = s.classid AND d.refobjid = s.objid AND d.deptype = 'n'
                       AND d.classid <> 'pg_catalog.pg_attrdef'::regclass
                   WHERE a.connection_name = $1)";
    if matches!(unit.record, Bookkeeping::Forget) {
        let is_needed: bool = client.query_one(sql, &[&unit.name]).await?.try_get(0)?;
        if is_needed {
            return Ok(());
        }
    }
    let mut pieces = std::mem::take(&mut unit.pieces).into_iter().peekable();
    while let Some(mut piece) = pieces.next() {
        // As many at once as there is room for.
        while let Some(next) = pieces.next_if(|next| piece.locks + next.locks <= locks) {
            piece.sql.push_str(&next.sql);
            piece.record = next.record;
            piece.locks += next.locks;
        }
        transaction::begin(client, epoch).await?;
        let text = piece.sql + &piece.record;
        let result = client.batch_execute(&text).await.map_err(HubError::from);
        transaction::end(client, result).await?;
    }
    if let Bookkeeping::Made(record) = &mut unit.record {
        // The rows of what was made in several transactions are of several versions.
        record.columns = None;
    }
    Ok(())
}

/// Where a lock was not got: says who holds one on the connection's tables.
async fn with_blockers(client: &Client, name: &str, mut error: HubError) -> HubError {
    if !error.is_blocked() {
        return error;
    }
    // What somebody runs is nobody else's business: it may hold a secret.
    let sql = "SELECT DISTINCT ON (l.pid) pg_catalog.format(
                   'process %s%s%s holds a lock on %I.%I', l.pid,
                   ' of ' || a.usename, ' (' || nullif(a.application_name, '') || ')',
                   n.nspname, c.relname)
               FROM pg_catalog.pg_namespace n
               JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
               JOIN pg_catalog.pg_locks l ON l.locktype = 'relation' AND l.relation = c.oid
                    AND l.granted AND l.pid <> pg_catalog.pg_backend_pid()
                    AND l.database = (SELECT oid FROM pg_catalog.pg_database
                                      WHERE datname = pg_catalog.current_database())
               LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
               WHERE n.nspname = $1
               ORDER BY l.pid, c.relname LIMIT 5";
    if let Ok(rows) = client.query(sql, &[&name]).await
        && let HubError::Refused { text, .. } = &mut error
    {
        let holders: Vec<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
        if !holders.is_empty() {
            *text = format!("its tables are in use: {}", holders.join("; "));
        }
    }
    error
}

/// Writes units in one transaction.
async fn write(
    client: &Client,
    epoch: i64,
    generation: i64,
    units: &[&Unit],
) -> Result<(), HubError> {
    transaction::begin(client, epoch).await?;
    let result = async {
        let secrets = units
            .iter()
            .filter_map(|unit| Some((unit.name.as_str(), unit.mapping.as_ref()?)));
        let secrets: Vec<_> = secrets.collect();
        if !secrets.is_empty() {
            prepare_for_secrets(client).await?;
            send_secrets(client, secrets).await?;
        }
        let text = statements(generation, units);
        client.batch_execute(&text).await?;
        Ok(text)
    };
    let (result, text) = match result.await {
        Ok(text) => (Ok(()), text),
        Err(error) => (Err(error), String::new()),
    };
    transaction::end(client, result).await?;
    observe(Observation::Wrote {
        connections: units.len(),
        tables: units.iter().map(|unit| unit.tables).sum(),
        // Each ends its line; one inside a literal that does so as well counts for little.
        statements: text.lines().filter(|line| line.ends_with(';')).count(),
    });
    Ok(())
}

/// Writes row changes, what connections look like (as it is given, or as it is now), and the
/// diagnostics, in one transaction.
pub async fn publish(
    client: &Client,
    epoch: i64,
    generation: i64,
    rows: &[RowChange],
    touched: &[(&str, Option<&str>)],
    diagnostics: Option<&Value>,
) -> Result<(), HubError> {
    transaction::begin(client, epoch).await?;
    let mut text = String::new();
    if let Some(diagnostics) = diagnostics {
        let _ = writeln!(
            text,
            "DELETE FROM spcd.config_diagnostic;
             INSERT INTO spcd.config_diagnostic
             SELECT * FROM pg_catalog.jsonb_populate_recordset(NULL::spcd.config_diagnostic, {}::jsonb);",
            sql::literal(&diagnostics.to_string())
        );
    }
    let looks: BTreeMap<&str, &str> = (touched.iter())
        .filter_map(|(name, look)| Some((*name, (*look)?)))
        .collect();
    if !looks.is_empty() {
        let _ = writeln!(
            text,
            "UPDATE spcd.applied a SET fingerprint = l.value
             FROM pg_catalog.jsonb_each_text({}::jsonb) l WHERE a.connection_name = l.key;",
            sql::literal(&json!(looks).to_string())
        );
    }
    let unknown = touched.iter().filter(|(_, look)| look.is_none());
    let unknown: Vec<&str> = unknown.map(|(name, _)| *name).collect();
    if !unknown.is_empty() {
        let names = sql::text_array(unknown);
        let _ = writeln!(text, "SELECT spcd.refresh_fingerprint({names});");
    }
    publish_statement(generation, rows.iter(), &mut text);
    let result = client.batch_execute(&text).await.map_err(HubError::from);
    transaction::end(client, result).await
}

fn statements(generation: i64, units: &[&Unit]) -> String {
    let mut text = String::new();
    let (mut made, mut gone) = (Vec::new(), Vec::new());
    let mut new_mappings = Vec::new();
    for unit in units {
        for piece in &unit.pieces {
            text.push_str(&piece.sql);
        }
        text.push_str(&unit.sql);
        match unit.mapping {
            Some(_) if unit.mapping_is_new => new_mappings.push(unit.name.as_str()),
            Some(_) => text.push_str(&sql::set_user_mapping(&unit.name)),
            None => {}
        }
        match &unit.record {
            Bookkeeping::Keep => {}
            Bookkeeping::Forget => gone.push(unit.name.as_str()),
            Bookkeeping::Made(record) => made.push((unit.name.as_str(), record)),
        }
    }
    if !new_mappings.is_empty() {
        text.push_str(&sql::create_user_mappings(new_mappings));
    }
    if !made.is_empty() {
        text.push_str(&plan::record_statement(&made));
    }
    if !gone.is_empty() {
        let _ = writeln!(
            text,
            "DELETE FROM spcd.applied WHERE connection_name = ANY ({});",
            sql::text_array(gone)
        );
    }
    let rows = units.iter().map(|unit| &unit.row);
    publish_statement(generation, rows.filter(|row| !row.is_empty()), &mut text);
    text
}

fn publish_statement<'a>(
    generation: i64,
    rows: impl Iterator<Item = &'a RowChange>,
    text: &mut String,
) {
    let rows: Vec<&RowChange> = rows.collect();
    if rows.is_empty() {
        return;
    }
    // Its fields are texts, numbers and lists of texts: this cannot fail.
    let json = serde_json::to_string(&rows).unwrap_or_default();
    let _ = writeln!(
        text,
        "SELECT spcd.publish({generation}, {}::jsonb);",
        sql::literal(&json)
    );
}

/// Makes a session ready for [`send_secrets`]. The statement that a function of ours executes is
/// written down by nobody but these, where they are told to: `pg_stat_statements.track = all`, and
/// the dumps of parse trees.
pub async fn prepare_for_secrets(client: &Client) -> Result<(), HubError> {
    let there = "SELECT pg_catalog.to_regclass('pg_temp.spcd_secret') IS NOT NULL";
    if client.query_one(there, &[]).await?.try_get(0)? {
        return Ok(());
    }
    let prepare = "
        CREATE TEMP TABLE spcd_secret
            (server text, option text, value text) ON COMMIT DELETE ROWS;
        SET debug_print_parse = off;
        SET debug_print_rewritten = off;
        SET debug_print_plan = off;
        DO $$ BEGIN
            -- It is not there at all where the extension is not loaded.
            IF pg_catalog.current_setting('pg_stat_statements.track_utility', true) = 'on' THEN
                PERFORM pg_catalog.set_config('pg_stat_statements.track_utility', 'off', false);
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            -- `spcd doctor` says what to do about it.
            NULL;
        END $$;
        DO $$ BEGIN
            -- A message during the COPY has the line that is read in its CONTEXT.
            PERFORM pg_catalog.set_config('log_error_verbosity', 'terse', false);
        EXCEPTION WHEN insufficient_privilege THEN
            -- docs/operations.md says what remains then.
            NULL;
        END $$";
    Ok(client.batch_execute(prepare).await?)
}

/// Hands the options of user mappings to the session by COPY, inside a transaction: what is copied
/// stands in no statement, so neither in the log nor in `pg_stat_activity`.
pub async fn send_secrets<'a>(
    client: &Client,
    mappings: impl IntoIterator<Item = (&'a str, &'a BTreeMap<String, Secret>)>,
) -> Result<(), HubError> {
    let mut rows = String::new();
    for (server, options) in mappings {
        for (option, value) in options {
            for (text, end) in [
                (server, '\t'),
                (option.as_str(), '\t'),
                (value.expose(), '\n'),
            ] {
                copy_escape(text, &mut rows);
                rows.push(end);
            }
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    use futures_util::SinkExt as _;
    let sink = client
        .copy_in("COPY pg_temp.spcd_secret FROM STDIN")
        .await?;
    let mut sink = std::pin::pin!(sink);
    sink.send(bytes::Bytes::from(rows)).await?;
    sink.finish().await?;
    Ok(())
}

fn copy_escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
}
