//! What is written for one connection, once its source has answered.

mod schema;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use spcd_protocol::Status;

use schema::{admit_readers, schema_statements};

use super::{Import, Imported, Offer, RowChange, Why, merged};
use crate::csv::{keep_types, known_types};
use crate::observed::{Applied, Detail, Presence, Written};
use crate::secret::Secret;
use crate::shape::KnownTypes;
use crate::shape::{self, Obstacles, Table, TableChange};
use crate::sql;
use crate::union;

/// What is written for one connection, in one transaction with its state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// The connection.
    pub name: String,
    /// The statements; none of them holds a secret.
    pub sql: String,
    /// The mapping's options, if they are to be set: they reach the server by COPY.
    pub mapping: Option<BTreeMap<String, Secret>>,
    /// The server is made by these statements, so that there is no mapping yet.
    pub mapping_is_new: bool,
    /// How many tables the statements are about.
    pub tables: usize,
    /// How many locks they take, about.
    pub locks: usize,
    /// What comes before the statements, and can be committed piece by piece where one transaction
    /// would take more locks than the server has: tables that go, and tables that come.
    pub pieces: Vec<Piece>,
    /// The row's change, in the same transaction.
    pub row: RowChange,
    /// What to record of it.
    pub record: Bookkeeping,
    /// The wrapper whose library the statements load, unless it comes with Postgres.
    pub library: Option<String>,
}

/// Some of many tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// The statements.
    pub sql: String,
    /// What records what is there then, for whoever is stopped half-way and goes on from there.
    pub record: String,
    /// How many locks they take, about.
    pub locks: usize,
}

/// What a unit changes in spcd's own memory of what it made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Bookkeeping {
    /// Nothing.
    #[default]
    Keep,
    /// This was made.
    Made(Record),
    /// Nothing is there any more.
    Forget,
}

/// What spcd remembers of what it made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The target that was applied.
    pub target_hash: String,
    /// The tables that were made.
    pub tables: Vec<String>,
    /// An aggregator's members; `None` for all others.
    pub members: Option<Vec<String>>,
    /// What was left out or refused.
    pub warnings: Vec<String>,
    /// The version of the extension that was asked; `None` where each connection is asked for
    /// itself.
    pub version: Option<String>,
    /// How many columns the tables have, where all of it is made in this transaction, so that what
    /// it looks like then need not be looked up.
    pub columns: Option<usize>,
    /// Somebody alters it by hand: between the look on which this rests and now they may have done
    /// more, so that what it looks like now is left for the next look to judge.
    pub look_again: bool,
    /// Where its tables are, if not in the schema of its name.
    pub hidden_schema: Option<String>,
    /// Of files: the types of columns that values decided.
    #[serde(skip_serializing_if = "KnownTypes::is_empty")]
    pub types: KnownTypes,
}

/// A table that is made takes one lock, one that is dropped three, and schema, server and mapping
/// some.
const LOCKS_OF_A_DROP: usize = 3;
const LOCKS_BESIDE_TABLES: usize = 6;
/// How many tables are made or dropped by one piece: what the smallest lock table has room for.
const TABLES_IN_A_PIECE: usize = 30;

impl Import {
    /// The schema in which the tables are to be.
    pub fn schema(&self, connection: &str) -> String {
        match self.hidden {
            true => union::hidden_schema(connection),
            false => connection.to_owned(),
        }
    }

    /// The changes that lead from the tables that are there to those that the source has; both
    /// normalized.
    pub fn changes(&self, detail: &Detail, wanted: &[Table]) -> Vec<TableChange> {
        match self.same_wrapper(detail) {
            true => shape::diff(&detail.tables, wanted, self.target.traits()),
            // A server's wrapper cannot be altered: everything is made anew.
            false => {
                let gone =
                    (detail.tables.iter()).map(|table| TableChange::Drop(table.name.clone()));
                let new = wanted.iter().cloned().map(TableChange::Create);
                gone.chain(new).collect()
            }
        }
    }

    /// Gives what a connection's files hold the types that its tables have, unless a value
    /// contradicts them.
    pub fn keep_types(&self, offer: &mut Offer) {
        if let Some(applied) = &self.applied {
            keep_types(&mut offer.tables, &applied.types);
        }
    }

    fn known_types(&self, after: &[Table], wanted: &[Table]) -> KnownTypes {
        let none = KnownTypes::new();
        let known = self
            .applied
            .as_ref()
            .map_or(&none, |applied| &applied.types);
        known_types(after, wanted, known)
    }

    fn same_wrapper(&self, detail: &Detail) -> bool {
        (detail.server.as_ref()).is_none_or(|(wrapper, _)| *wrapper == self.target.wrapper)
    }
}

/// What a source's answer means for a connection of which nothing is there: what [`settle`] says
/// too, without comparing and copying. `hash` is that of `wanted`.
pub fn settle_new(
    name: &str,
    status: Status,
    import: &Import,
    wanted: &[Table],
    hash: String,
) -> Unit {
    let target = &import.target;
    let mut sql = sql::create_schema(name);
    let options = target.server_options();
    sql.push_str(&sql::create_server(name, &target.wrapper, &options));
    let names = wanted.iter().map(|table| table.name.as_str());
    let record = Record {
        target_hash: import.target_hash.clone(),
        tables: names.clone().map(str::to_owned).collect(),
        members: None,
        warnings: Vec::new(),
        version: import.version.clone().filter(|_| !target.dynamic),
        columns: None,
        look_again: false,
        hidden_schema: None,
        types: known_types(wanted, wanted, &KnownTypes::new()),
    };
    let new: Vec<&Table> = wanted.iter().collect();
    let pieces = create_in_pieces(name, name, &new, &[], &record, &mut sql);
    if import.readers {
        grant(name, true, names.clone().collect(), &mut sql);
    }
    let columns: usize = wanted.iter().map(|table| table.columns.len()).sum();
    Unit {
        name: name.into(),
        sql,
        library: target.library().map(str::to_owned),
        mapping: Some(target.mapping.clone()),
        mapping_is_new: true,
        tables: wanted.len(),
        locks: LOCKS_BESIDE_TABLES + wanted.len(),
        row: RowChange {
            name: name.into(),
            route: match status {
                Status::Ready | Status::Error => vec![Status::Updating, Status::Ready],
                status => Status::route(Some(status), Status::Ready),
            },
            warnings: Some(merged(import.warnings.iter())),
            imported: Some(Imported {
                schema_mode: Some(mode(target.dynamic)),
                schema_hash: hash,
                table_count: wanted.len(),
            }),
            ..RowChange::default()
        },
        record: Bookkeeping::Made(Record {
            columns: (columns > 0).then_some(columns),
            ..record
        }),
        pieces,
    }
}

/// The statements that make tables. Where they are many all but the last of them become pieces, the
/// first of which begins with what `sql` holds. `there` are tables that are there already.
fn create_in_pieces(
    name: &str,
    schema: &str,
    new: &[&Table],
    there: &[Table],
    record: &Record,
    sql: &mut String,
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut tables: Vec<String> = there.iter().map(|table| table.name.clone()).collect();
    let mut rest = new;
    while let Some((piece, more)) = rest.split_at_checked(TABLES_IN_A_PIECE)
        && !more.is_empty()
    {
        for table in piece {
            sql::create_table(schema, name, table, sql);
            tables.push(table.name.clone());
        }
        let so_far = Record {
            // Of no target: there is more to come.
            target_hash: String::new(),
            tables: tables.clone(),
            // What it looks like is reckoned, wrongly: it is looked at again all the same.
            columns: Some(0),
            ..record.clone()
        };
        pieces.push(Piece {
            sql: std::mem::take(sql),
            record: record_statement(&[(name, &so_far)]),
            locks: LOCKS_BESIDE_TABLES + piece.len(),
        });
        rest = more;
    }
    for table in rest {
        sql::create_table(schema, name, table, sql);
    }
    pieces
}

/// The statement that records what was made for connections.
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
    // Texts, numbers and lists of texts: this cannot fail.
    let json = serde_json::to_string(&made).unwrap_or_default();
    format!("SELECT spcd.record({}::jsonb);\n", sql::literal(&json))
}

fn mode(dynamic: bool) -> &'static str {
    if dynamic { "dynamic" } else { "static" }
}

/// The wanted tables whose names nothing else in the schema has.
fn without_clashes<'a>(
    wanted: &'a [Table],
    detail: &Detail,
    warnings: &mut Vec<String>,
) -> Cow<'a, [Table]> {
    let mut wanted = Cow::Borrowed(wanted);
    if !detail.others.is_empty() {
        wanted.to_mut().retain(|table| {
            let clashes = detail.others.contains(&table.name);
            if clashes {
                let table = &table.name;
                warnings.push(format!(
                    "table {table:?} is left out: something else in the schema has its name"
                ));
            }
            !clashes
        });
    }
    wanted
}

/// Makes tables, in pieces where they are all new and many, or changes them.
fn change_tables(
    name: &str,
    schema: &str,
    changes: &[TableChange],
    detail: &Detail,
    record: &Record,
    sql: &mut String,
) -> Vec<Piece> {
    let new = changes.iter().map(|change| match change {
        TableChange::Create(table) => Some(table),
        _ => None,
    });
    if let Some(new) = new.collect::<Option<Vec<&Table>>>() {
        return create_in_pieces(name, schema, &new, &detail.tables, record, sql);
    }
    let others = changes
        .iter()
        .filter(|change| !matches!(change, TableChange::Drop(_)));
    others.for_each(|change| sql::change_table(schema, name, change, sql));
    Vec::new()
}

/// The statuses that a connection passes through; `same`: nothing of it changes.
fn route(status: Status, hidden: bool, same: bool) -> Vec<Status> {
    match (status, same) {
        (status, _) if hidden => Status::route(Some(status), Status::Disabled),
        // What was asked while ready, or tried again while in error, and does differ.
        (Status::Ready | Status::Error, false) => vec![Status::Updating, Status::Ready],
        (status, _) => Status::route(Some(status), Status::Ready),
    }
}

/// What a source's answer means for the database; `None`: nothing.
///
/// `status` is what the row says now. `detail` is what there is, `wanted` what the source has,
/// normalized like that.
///
/// # Errors
/// Why nothing at all can be done.
pub fn settle(
    name: &str,
    status: Status,
    import: &Import,
    detail: &Detail,
    wanted: &Offer,
    obstacles: &Obstacles,
) -> Result<Option<Unit>, String> {
    let target = &import.target;
    let wanted = wanted.with_skipped(&detail.tables, &target.import);
    let mut warnings = wanted.warnings.clone();
    let wanted = without_clashes(&wanted.tables, detail, &mut warnings);
    let changes = import.changes(detail, &wanted);
    let (changes, mut kept) = shape::guard(changes, obstacles);
    if let (false, Some((wrapper, _)), [first, ..]) =
        (import.same_wrapper(detail), &detail.server, &kept[..])
    {
        return Err(format!(
            "every table must be made anew, since the wrapper changes from {wrapper} to {}: {first}",
            target.wrapper
        ));
    }
    if target.positional {
        // What is there was made for a file that is another one now.
        for text in &mut kept {
            text.push_str("; until then reading it fails or gives wrong values");
        }
    }
    warnings.extend(kept);
    warnings.extend(shape::unfit(&detail.tables, &wanted));
    let after = shape::after(&detail.tables, &wanted, &changes);

    let made = import.applied.as_ref();
    let has_server = made.is_some_and(|applied| applied.server == Presence::Ours);
    let schema = import.schema(name);
    let mut sql = schema_statements(name, import);
    let drops = changes
        .iter()
        .filter(|change| matches!(change, TableChange::Drop(_)));
    for change in drops {
        sql::change_table(&schema, name, change, &mut sql);
    }
    let server = server_statements(name, import, detail, has_server);
    sql.push_str(&server);
    let tables: Vec<String> = after.iter().map(|table| table.name.clone()).collect();
    let version = import.version.clone().filter(|_| !target.dynamic);
    let record = Record {
        target_hash: import.target_hash.clone(),
        tables: tables.clone(),
        members: None,
        warnings: warnings.clone(),
        version: version.clone(),
        columns: None,
        look_again: import.why == Why::Drift,
        hidden_schema: import.hidden.then(|| schema.clone()),
        types: import.known_types(&after, &wanted),
    };
    let pieces = change_tables(name, &schema, &changes, detail, &record, &mut sql);
    if import.readers && !import.hidden {
        admit_readers(name, import, detail, &changes, &after, &mut sql);
    }

    let mapping_is_there = has_server
        && import.same_wrapper(detail)
        && detail.mapping.as_ref() == Some(&target.mapping);
    let shown = merged(warnings.iter().chain(&import.warnings));
    let same = sql.is_empty() && pieces.is_empty() && mapping_is_there;
    let known = made.and_then(|applied| applied.version.as_ref()) == version.as_ref();
    if same
        && known
        && import.why == Why::Refresh
        && status != Status::Error
        && shown == import.known_warnings
        && made.is_some_and(|applied| applied.types == record.types)
    {
        return Ok(None);
    }
    let route = route(status, import.hidden, same);
    Ok(Some(Unit {
        name: name.into(),
        sql,
        library: target.library().map(str::to_owned),
        mapping: (!mapping_is_there).then(|| target.mapping.clone()),
        mapping_is_new: false,
        tables: changes.len(),
        locks: locks(&changes),
        pieces,
        row: RowChange {
            name: name.into(),
            route,
            warnings: Some(shown),
            imported: Some(Imported {
                schema_mode: Some(mode(target.dynamic)),
                schema_hash: shape::hash(&after, target.traits()),
                table_count: tables.len(),
            }),
            ..RowChange::default()
        },
        record: Bookkeeping::Made(record),
    }))
}

fn locks(changes: &[TableChange]) -> usize {
    let drops = |change: &&TableChange| !matches!(change, TableChange::Create(_));
    let drops = changes.iter().filter(drops).count();
    LOCKS_BESIDE_TABLES + changes.len() + drops * (LOCKS_OF_A_DROP - 1)
}

fn server_statements(name: &str, import: &Import, detail: &Detail, has_server: bool) -> String {
    let target = &import.target;
    let options = target.server_options();
    let create = || sql::create_server(name, &target.wrapper, &options);
    match &detail.server {
        Some((_, old)) if has_server && import.same_wrapper(detail) => {
            sql::alter_server(name, old, &options)
        }
        Some(_) if has_server => format!("{}{}", sql::drop_server(name), create()),
        _ => create(),
    }
}

fn grant(name: &str, schema: bool, tables: BTreeSet<&str>, sql: &mut String) {
    if schema {
        sql.push_str(&sql::grant_schema(name));
    }
    if !tables.is_empty() {
        sql.push_str(&sql::grant_tables(name, tables));
    }
}

/// The statements that let `spcd_users` read what is there.
pub fn grant_unit(name: &str, status: Status, tables: &[String]) -> Unit {
    let mut sql = String::new();
    grant(
        name,
        true,
        tables.iter().map(String::as_str).collect(),
        &mut sql,
    );
    Unit {
        name: name.into(),
        sql,
        row: RowChange {
            name: name.into(),
            route: match status {
                Status::Ready => vec![Status::Updating, Status::Ready],
                status => Status::route(Some(status), Status::Ready),
            },
            ..RowChange::default()
        },
        // Whoever took it away may do more: what it looks like is left for the next look to judge.
        record: Bookkeeping::Keep,
        ..Unit::default()
    }
}

/// The statements that take a connection away. They fail where people's objects hang on what
/// spcd made, unless these are to go too (`dependents`).
pub fn drop_unit(
    name: &str,
    status: Status,
    applied: &Applied,
    tables: &[String],
    keep: Option<&Written>,
    dependents: bool,
) -> Unit {
    let schema = applied.schema_of(name);
    let drop = |tables: &[String], sql: &mut String| match dependents {
        true => {
            let drops = tables.iter();
            sql.extend(drops.map(|table| sql::drop_with_dependents(schema, table)));
        }
        false => drop_tables(schema, tables, sql),
    };
    let mut sql = String::new();
    let mut pieces = Vec::new();
    let mut rest = tables;
    if applied.schema == Presence::Ours {
        match union::is_of_aggregator(&applied.target_hash) {
            true => sql.push_str(&sql::drop_views(name, dependents)),
            false => {
                while let Some((piece, more)) = rest.split_at_checked(TABLES_IN_A_PIECE) {
                    let mut sql = String::new();
                    drop(piece, &mut sql);
                    pieces.push(Piece {
                        sql,
                        record: String::new(),
                        locks: piece.len() * LOCKS_OF_A_DROP,
                    });
                    rest = more;
                }
                drop(rest, &mut sql);
            }
        }
        sql.push_str(&sql::drop_schema(schema));
    }
    if applied.server == Presence::Ours {
        sql.push_str(&sql::drop_server(name));
    }
    let row = RowChange {
        name: name.into(),
        ..RowChange::default()
    };
    Unit {
        // To drop a server or a table calls no function of its wrapper.
        library: None,
        name: name.into(),
        sql,
        mapping: None,
        mapping_is_new: false,
        tables: tables.len(),
        locks: LOCKS_BESIDE_TABLES + tables.len() * LOCKS_OF_A_DROP,
        pieces,
        row: match keep {
            Some(written) => RowChange {
                route: Status::route(Some(status), Status::Disabled),
                warnings: Some(Vec::new()),
                written: Some(written.clone().into()),
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

/// A change of nothing but a connection's row: what it could not become, and why.
pub fn error_unit(name: &str, status: Status, error: String) -> Unit {
    let mut route = Status::route(Some(status), Status::Error);
    if route.is_empty() {
        route = vec![Status::Error];
    }
    Unit {
        name: name.into(),
        row: RowChange {
            name: name.into(),
            route,
            error: Some(error),
            ..RowChange::default()
        },
        ..Unit::default()
    }
}
