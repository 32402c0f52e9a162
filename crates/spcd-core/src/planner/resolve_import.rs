//! From a source's answer to what is written for its connection.

mod schema;
mod server;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use spcd_protocol::Status;

pub use schema::grant_unit;
use schema::{admit_readers, check_others, grant, schema_statements};
use server::{has_mapping, server_statements};
use tables::{TableDecision, decide_tables};

use super::{Alignment, Import, Imported, Reason, RemoteSchema, RowChange, lanes, merged};
use crate::aggregator;
use crate::csv::{certain_column_types, keep_column_types};
use crate::diff::{self, Blockers, ColumnTypes, Table, TableChange, TableWarning};
use crate::model::Lane;
use crate::observed::{Applied, ConfigSnapshot, Detail, Presence};
use crate::secret::Secret;
use crate::sql;
use crate::tuning::{self, Existing, Tuning};

/// Statements for one connection, written in one transaction with its state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteUnit {
    /// The connection.
    pub name: String,
    /// The statements. None contains a secret.
    pub sql: String,
    /// The user mapping's options, if they are to be set. They reach the server by COPY.
    pub mapping: Option<BTreeMap<String, Secret>>,
    /// The statements create the server, so that no mapping exists yet.
    pub mapping_is_new: bool,
    /// Number of tables in the statements.
    pub tables: usize,
    /// Estimated number of locks.
    pub locks: usize,
    /// Statements that come first and can be committed in several transactions, if one would take more
    /// locks than the server has: dropped and created tables.
    pub chunks: Vec<WriteChunk>,
    /// The change of the row.
    pub row: RowChange,
    /// The change of `spcd.applied`.
    pub record: Bookkeeping,
    /// The wrapper whose library the statements load, unless it ships with Postgres.
    pub library: Option<String>,
    /// Length of the statements at the beginning that rename tables and columns.
    pub renames_end: usize,
}

/// Statements for some of many tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteChunk {
    /// The statements.
    pub sql: String,
    /// Statement that records the existing tables, so that a later job can continue.
    pub record: String,
    /// Estimated number of locks.
    pub locks: usize,
}

/// Change of the recorded objects of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Bookkeeping {
    /// No change.
    #[default]
    Keep,
    /// The objects that now exist.
    Made(Box<Record>),
    /// No object exists any more.
    Forget,
}

/// The recorded objects of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The target that was applied.
    pub target_hash: String,
    /// The tables that exist.
    pub tables: Vec<String>,
    /// An aggregator's members; `None` for other connections.
    pub members: Option<Vec<String>>,
    /// Warnings about tables left out and changes refused.
    pub warnings: Vec<String>,
    /// The tables that were left out.
    pub left_out: Vec<TableWarning>,
    /// The server of the tables, if it is shared.
    pub server_name: Option<String>,
    /// Version of the extension at the import; `None` if each connection is imported by itself.
    pub extension_version: Option<String>,
    /// Number of columns, if all objects are created in this transaction. The fingerprint is then
    /// computed instead of read from the catalog.
    pub columns: Option<usize>,
    /// Record no fingerprint: the objects had drifted and may have been altered again since they were
    /// observed. The next pass compares them in full.
    pub compare_again: bool,
    /// The schema of the tables, if it is not named after the connection.
    pub hidden_schema: Option<String>,
    /// Column types that were inferred from the values of files.
    #[serde(skip_serializing_if = "ColumnTypes::is_empty")]
    pub types: ColumnTypes,
    /// Options for speed that spcd has set; `None` where it sets none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
}

/// Locks: a dropped table takes three, a created one takes one, schema, server and mapping a few.
const LOCKS_OF_A_DROP: usize = 3;
const LOCKS_BESIDE_TABLES: usize = 6;
/// Number of tables that one chunk creates or drops: the smallest lock table has room for them.
const TABLES_PER_CHUNK: usize = 30;

impl WriteUnit {
    /// Adds the statements by which aggregators follow: those before the changes, which know the new names
    /// of tables and columns, and those after them.
    pub fn follow(&mut self, first: &str, last: &str) {
        self.sql.insert_str(self.renames_end, first);
        self.sql.push_str(last);
    }
}

impl Import {
    /// Returns the schema of the tables.
    pub fn schema(&self, connection: &str) -> String {
        match self.hidden {
            true => aggregator::hidden_schema(connection),
            false => connection.to_owned(),
        }
    }

    /// Returns the changes from the existing tables to those of the source. Both are normalized.
    pub fn changes(&self, detail: &Detail, desired: &[Table]) -> Vec<TableChange> {
        let desired = &*tuning::tuned_tables(&self.target, detail.existing(&self.target), desired);
        match self.keeps_server(detail) {
            true => diff::diff(&detail.tables, desired, self.target.wrapper_traits()),
            // Neither a server's wrapper nor a table's server can be altered.
            false => {
                let gone =
                    (detail.tables.iter()).map(|table| TableChange::Drop(table.name.clone()));
                let new = desired.iter().cloned().map(TableChange::Create);
                gone.chain(new).collect()
            }
        }
    }

    /// Keeps the column types of existing tables over files, unless a value contradicts them.
    pub fn keep_types(&self, remote: &mut RemoteSchema) {
        if let Some(applied) = &self.applied {
            keep_column_types(&mut remote.tables, &applied.types);
        }
    }

    /// Whether what is recorded of it besides the objects is the same.
    fn is_recorded_as(&self, record: &Record) -> bool {
        (self.applied.as_ref()).is_some_and(|applied| {
            applied.extension_version == record.extension_version
                && applied.types == record.types
                && applied.left_out == record.left_out.len()
        })
    }

    fn known_types(&self, after: &[Table], desired: &[Table]) -> ColumnTypes {
        let none = ColumnTypes::new();
        let known = self
            .applied
            .as_ref()
            .map_or(&none, |applied| &applied.types);
        certain_column_types(after, desired, known)
    }
}

/// Returns what [`resolve_import`] returns for a connection without objects, without comparing and
/// copying. `hash` is the hash of `desired`.
pub fn resolve_new_import(
    name: &str,
    status: Status,
    import: &Import,
    desired: &[Table],
    hash: String,
) -> WriteUnit {
    let target = &import.target;
    let mut sql = sql::create_schema(name);
    let server = target.server_name(name);
    if target.lane.is_none() {
        let options = target.server_options();
        sql.push_str(&sql::create_server(name, &target.wrapper, &options));
    }
    let names = desired.iter().map(|table| table.name.as_str());
    let types = certain_column_types(desired, desired, &ColumnTypes::new());
    let nothing = Existing {
        server: None,
        tables: &[],
        tuning: &Tuning::default(),
    };
    let tuning = tuning::tuning_after(target, nothing, &target.server_options(), desired);
    let record = Record {
        tuning: target.is_tuned().then_some(tuning),
        ..record_of(import, names.clone().map(str::to_owned).collect(), types)
    };
    let new: Vec<&Table> = desired.iter().collect();
    let chunks = create_in_chunks(name, (name, &server), &new, &[], &record, &mut sql);
    if import.readers {
        grant(name, true, names.clone().collect(), &mut sql);
    }
    let columns: usize = desired.iter().map(|table| table.columns.len()).sum();
    WriteUnit {
        name: name.into(),
        sql,
        library: target.exclusive_library().map(str::to_owned),
        mapping: target.lane.is_none().then(|| target.mapping.clone()),
        mapping_is_new: true,
        renames_end: 0,
        tables: desired.len(),
        locks: LOCKS_BESIDE_TABLES + desired.len(),
        row: RowChange {
            name: name.into(),
            route: route(status, false, false),
            warnings: Some(merged(import.warnings.iter())),
            imported: Some(imported(import, hash, desired.len())),
            ..RowChange::default()
        },
        record: Bookkeeping::Made(Box::new(Record {
            columns: (columns > 0).then_some(columns),
            ..record
        })),
        chunks,
    }
}

/// Returns what to record about an import of these tables without warnings.
fn record_of(import: &Import, tables: Vec<String>, types: ColumnTypes) -> Record {
    let target = &import.target;
    Record {
        target_hash: import.target_hash.clone(),
        tables,
        members: None,
        warnings: Vec::new(),
        left_out: import.left_out.clone(),
        server_name: target.lane.as_ref().map(Lane::server),
        extension_version: import.extension_version.clone().filter(|_| !target.dynamic),
        columns: None,
        compare_again: false,
        hidden_schema: None,
        types,
        tuning: None,
    }
}

/// Appends the statements that create tables to `sql`. If they are many, all but the last ones become
/// chunks, the first of which begins with the previous content of `sql`. `there` are existing tables.
fn create_in_chunks(
    name: &str,
    (schema, server): (&str, &str),
    new: &[&Table],
    there: &[Table],
    record: &Record,
    sql: &mut String,
) -> Vec<WriteChunk> {
    let mut chunks = Vec::new();
    let mut tables: Vec<String> = there.iter().map(|table| table.name.clone()).collect();
    let mut rest = new;
    while let Some((chunk, more)) = rest.split_at_checked(TABLES_PER_CHUNK)
        && !more.is_empty()
    {
        for table in chunk {
            sql::create_table(schema, server, table, sql);
            tables.push(table.name.clone());
        }
        let so_far = Record {
            // An empty hash marks a partial import.
            target_hash: String::new(),
            tables: tables.clone(),
            // The computed fingerprint is wrong, so that the next pass compares in full.
            columns: Some(0),
            ..record.clone()
        };
        chunks.push(WriteChunk {
            sql: std::mem::take(sql),
            record: record_statement(&[(name, &so_far)]),
            locks: LOCKS_BESIDE_TABLES + chunk.len(),
        });
        rest = more;
    }
    for table in rest {
        sql::create_table(schema, server, table, sql);
    }
    chunks
}

/// Returns the statement that records the objects of connections.
pub fn record_statement(made: &[(&str, &Record)]) -> String {
    #[derive(Serialize)]
    struct Made<'a> {
        name: &'a str,
        #[serde(flatten)]
        record: &'a Record,
    }
    let made: Vec<_> = (made.iter())
        .map(|(name, record)| Made { name, record })
        .collect();
    // Cannot fail: texts, numbers and lists of texts.
    let json = serde_json::to_string(&made).unwrap_or_default();
    format!("SELECT spcd.record({}::jsonb);\n", sql::literal(&json))
}

fn imported(import: &Import, schema_hash: String, table_count: usize) -> Imported {
    let dynamic = import.target.dynamic;
    Imported {
        schema_mode: Some(if dynamic { "dynamic" } else { "static" }),
        schema_hash,
        table_count,
    }
}

/// Appends the statements that create or change tables. Returns chunks if all are new and many.
fn change_tables(
    name: &str,
    (schema, server): (&str, &str),
    changes: &[TableChange],
    detail: &Detail,
    record: &Record,
    sql: &mut String,
) -> Vec<WriteChunk> {
    let new = changes.iter().map(|change| match change {
        TableChange::Create(table) => Some(table),
        _ => None,
    });
    if let Some(new) = new.collect::<Option<Vec<&Table>>>() {
        return create_in_chunks(name, (schema, server), &new, &detail.tables, record, sql);
    }
    let others = changes
        .iter()
        .filter(|change| !matches!(change, TableChange::Drop(_)));
    others.for_each(|change| sql::change_table(schema, server, change, sql));
    Vec::new()
}

/// Returns the statuses that a connection passes through. `same` means that nothing changes.
fn route(status: Status, hidden: bool, same: bool) -> Vec<Status> {
    match (status, same) {
        (status, _) if hidden => Status::route(Some(status), Status::Disabled),
        // A refresh or a repeated attempt has found a difference.
        (Status::Ready | Status::Error, false) => vec![Status::Updating, Status::Ready],
        (status, _) => Status::route(Some(status), Status::Ready),
    }
}

/// Returns what to write for a source's answer; `None` if nothing differs.
///
/// `status` is the row's status, `detail` are the existing objects, and `remote` the source's tables,
/// normalized.
///
/// # Errors
/// The reason why nothing can be changed.
pub fn resolve_import(
    name: &str,
    status: Status,
    import: &Import,
    detail: &Detail,
    remote: &RemoteSchema,
    blockers: &Blockers,
) -> Result<Option<WriteUnit>, String> {
    let target = &import.target;
    let Alignment {
        detail,
        remote,
        renames,
    } = import.align(detail, remote, &blockers.fixed);
    let (detail, remote) = (&*detail, &*remote);
    check_others(name, import, detail)?;
    let tables = decide_tables(import, detail, remote, blockers)?;
    let names = tables.after.iter().map(|table| table.name.clone());
    let existing = detail.existing(target);
    let options = tuning::server_options(target, existing, remote.extensions.as_deref());
    let tuning = tuning::tuning_after(target, existing, &options, &tables.after);
    let is_tuning_same = tuning == detail.tuning;
    let record = Record {
        tuning: target.is_tuned().then_some(tuning),
        warnings: tables.warnings.clone(),
        left_out: [tables.left_out.as_slice(), &import.left_out].concat(),
        compare_again: import.reason == Reason::Drift,
        hidden_schema: import.hidden.then(|| import.schema(name)),
        ..record_of(import, names.collect(), tables.types.clone())
    };
    let renaming = import.rename_statements(name, &renames);
    let (sql, chunks) = statements(name, import, detail, &tables, &options, &record);
    let (sql, chunks) = match renaming.is_empty() {
        true => (sql, chunks),
        // A new table may get the present name of a renamed one.
        false => {
            let parts = std::iter::once(renaming.as_str());
            let parts = parts.chain(chunks.iter().map(|chunk| chunk.sql.as_str()));
            (parts.chain([sql.as_str()]).collect(), Vec::new())
        }
    };

    let mapping_is_there = has_mapping(import, detail);
    let warnings = merged(tables.warnings.iter().chain(&import.warnings));
    let same = sql.is_empty() && chunks.is_empty() && mapping_is_there;
    let hash = diff::hash(&tables.after, target.wrapper_traits());
    if same
        && is_tuning_same
        && import.is_recorded_as(&record)
        && import.reason == Reason::Refresh
        && status != Status::Error
        && warnings == import.known_warnings
        && import.known_schema_hash.as_ref() == Some(&hash)
    {
        return Ok(None);
    }
    Ok(Some(WriteUnit {
        name: name.into(),
        sql,
        library: target.exclusive_library().map(str::to_owned),
        mapping: (!mapping_is_there).then(|| target.mapping.clone()),
        mapping_is_new: false,
        renames_end: renaming.len(),
        tables: tables.changes.len() + renames.len(),
        locks: locks(&tables.changes) + renames.len(),
        chunks,
        row: RowChange {
            name: name.into(),
            route: route(status, import.hidden, same),
            warnings: Some(warnings),
            imported: Some(imported(import, hash, tables.after.len())),
            ..RowChange::default()
        },
        record: Bookkeeping::Made(Box::new(record)),
    }))
}

/// Returns the statements of an import, and the chunks that may be committed ahead of them.
fn statements(
    name: &str,
    import: &Import,
    detail: &Detail,
    tables: &TableDecision,
    options: &BTreeMap<String, String>,
    record: &Record,
) -> (String, Vec<WriteChunk>) {
    let (schema, server) = (import.schema(name), import.target.server_name(name));
    let mut sql = schema_statements(name, import);
    for change in &tables.changes {
        if matches!(change, TableChange::Drop(_)) {
            sql::change_table(&schema, &server, change, &mut sql);
        }
    }
    sql.push_str(&server_statements(name, import, detail, options));
    let place = (schema.as_str(), server.as_str());
    let chunks = change_tables(name, place, &tables.changes, detail, record, &mut sql);
    if import.readers && !import.hidden {
        let (changes, after) = (&tables.changes, &tables.after);
        admit_readers(name, import, detail, changes, after, &mut sql);
    }
    (sql, chunks)
}

fn locks(changes: &[TableChange]) -> usize {
    let drops = |change: &&TableChange| !matches!(change, TableChange::Create(_));
    let drops = changes.iter().filter(drops).count();
    LOCKS_BESIDE_TABLES + changes.len() + drops * (LOCKS_OF_A_DROP - 1)
}

/// Returns the statements that drop a connection's objects. They fail if objects of users depend on
/// them, unless `dependents` says to drop those, too.
pub fn drop_unit(
    name: &str,
    status: Status,
    applied: &Applied,
    tables: &[String],
    keep: Option<&ConfigSnapshot>,
    dependents: bool,
) -> WriteUnit {
    let schema = applied.schema_of(name);
    let drop = |tables: &[String], sql: &mut String| match dependents {
        true => {
            let drops = tables.iter();
            sql.extend(drops.map(|table| sql::drop_with_dependents(schema, table)));
        }
        false => drop_tables(schema, tables, sql),
    };
    let mut sql = String::new();
    let mut chunks = Vec::new();
    let mut rest = tables;
    if applied.schema == Presence::Ours {
        match aggregator::is_aggregator_hash(&applied.target_hash) {
            true => sql.push_str(&sql::drop_views(name, dependents)),
            false => {
                while let Some((chunk, more)) = rest.split_at_checked(TABLES_PER_CHUNK) {
                    let mut sql = String::new();
                    drop(chunk, &mut sql);
                    chunks.push(WriteChunk {
                        sql,
                        record: String::new(),
                        locks: chunk.len() * LOCKS_OF_A_DROP,
                    });
                    rest = more;
                }
                drop(rest, &mut sql);
            }
        }
        sql.push_str(&sql::drop_schema(schema));
    }
    if applied.has_own_server() {
        sql.push_str(&sql::drop_server(name));
    }
    // One of the same name and another configuration may follow.
    sql.push_str(&lanes::touch(Some(applied), name, &BTreeSet::new()));
    let row = RowChange {
        name: name.into(),
        ..RowChange::default()
    };
    WriteUnit {
        // Dropping a server or a table calls no function of its wrapper.
        library: None,
        name: name.into(),
        sql,
        mapping: None,
        mapping_is_new: false,
        renames_end: 0,
        tables: tables.len(),
        locks: LOCKS_BESIDE_TABLES + tables.len() * LOCKS_OF_A_DROP,
        chunks,
        row: match keep {
            Some(written) => RowChange {
                route: Status::route(Some(status), Status::Disabled),
                warnings: Some(Vec::new()),
                written: Some(written.clone()),
                ..row
            },
            None => RowChange {
                route: match status {
                    Status::Deleting => Vec::new(),
                    _ => vec![Status::Deleting],
                },
                remove: true,
                ..row
            },
        },
        record: Bookkeeping::Forget,
    }
}

pub(super) fn drop_tables(name: &str, tables: &[String], sql: &mut String) {
    for table in tables {
        sql::change_table(name, name, &TableChange::Drop(table.clone()), sql);
    }
}

/// Returns the change of a connection's row to `error`.
pub fn error_unit(name: &str, status: Status, error: String) -> WriteUnit {
    let mut route = Status::route(Some(status), Status::Error);
    if route.is_empty() {
        route = vec![Status::Error];
    }
    WriteUnit {
        name: name.into(),
        row: RowChange {
            name: name.into(),
            route,
            error: Some(error),
            ..RowChange::default()
        },
        ..WriteUnit::default()
    }
}
