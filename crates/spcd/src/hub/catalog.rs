//! What another Postgres has, read from its catalog through its own wrapper.
//!
//! `IMPORT FOREIGN SCHEMA` costs mostly what it writes: an ALTER for each column, because it names
//! the remote column of each. Here three foreign tables over the source's catalog are joined over
//! there, in one statement, and nothing but types is looked up here.

mod collations;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::Target;
use spcd_core::shape::{Column, Table};
use spcd_core::sql;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::HubError;

/// What a look at a source's catalog gave.
#[derive(Debug, Default)]
pub struct Answer {
    /// The tables as an import would make them, without options that name columns.
    pub tables: Vec<Table>,
    /// Tables that only an import can tell: with columns of types that are not every server's own,
    /// of other collations, or generated.
    pub odd: Vec<String>,
    /// Tables of the source that are not wanted.
    pub others: BTreeSet<String>,
    /// Of tables that have no name here.
    pub warnings: Vec<String>,
}

/// The wrapper that this is about.
pub const WRAPPER: &str = "postgres_fdw";
/// Whether a source's catalog is read. What an import does by options of its own is not.
pub fn is_read(target: &Target) -> bool {
    target.import_options.is_empty() && target.extension == WRAPPER && target.wrapper == WRAPPER
}

/// How many columns the query returns.
const WIDTH: usize = 8;

/// A foreign table over one of a source's catalog, in a schema that exists, on a server that does;
/// both of that name.
pub(super) fn table(name: &str, table: &str, columns: &[(&str, &str)]) -> String {
    foreign(name, name, table, ("pg_catalog", table), columns)
}

/// The same over any table of the source, in another schema and under another name.
fn foreign(
    into: &str,
    name: &str,
    local: &str,
    (schema, table): (&str, &str),
    columns: &[(&str, &str)],
) -> String {
    let columns = columns.iter().map(|(name, data_type)| Column {
        name: (*name).into(),
        data_type: (*data_type).into(),
        ..Column::default()
    });
    // Whatever the server's options say: no EXPLAIN over there, and few round trips.
    let options = [
        ("schema_name", schema),
        ("table_name", table),
        ("use_remote_estimate", "false"),
        ("fetch_size", "10000"),
    ];
    let option = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let table = Table {
        name: local.into(),
        columns: columns.collect(),
        options: options.into_iter().map(option).collect(),
        ..Table::default()
    };
    let mut text = String::new();
    sql::create_table(into, name, &table, &mut text);
    text
}

/// The foreign tables for the question.
pub(super) fn tables(name: &str) -> String {
    let table = |table: &str, columns: &[(&str, &str)]| self::table(name, table, columns);
    // Names as text: a constant of the type name has a collation of its own, and what compares with
    // it would be done here.
    [
        table("pg_namespace", &[("oid", "oid"), ("nspname", "text")]),
        table(
            "pg_class",
            &[
                ("oid", "oid"),
                ("relname", "text"),
                ("relnamespace", "oid"),
                ("relkind", "\"char\""),
                ("relispartition", "boolean"),
            ],
        ),
        table(
            "pg_attribute",
            &[
                ("attrelid", "oid"),
                ("attnum", "smallint"),
                ("attname", "text"),
                ("atttypid", "oid"),
                ("atttypmod", "integer"),
                ("attnotnull", "boolean"),
                ("attcollation", "oid"),
                ("attgenerated", "\"char\""),
                ("attisdropped", "boolean"),
            ],
        ),
    ]
    .concat()
}

/// The foreign tables for the question who may read what, in a schema of their own.
pub(super) fn privilege_tables(into: &str, name: &str) -> String {
    let of = |local: &str, schema: &str, table: &str, columns: &[(&str, &str)]| {
        foreign(into, name, local, (schema, table), columns)
    };
    [
        of(
            "enabled_roles",
            "information_schema",
            "enabled_roles",
            &[("role_name", "text")],
        ),
        of(
            "pg_roles",
            "pg_catalog",
            "pg_roles",
            &[("oid", "oid"), ("rolname", "text")],
        ),
        of(
            "acl_namespace",
            "pg_catalog",
            "pg_namespace",
            &[
                ("oid", "oid"),
                ("nspname", "text"),
                ("nspowner", "oid"),
                ("nspacl", "text[]"),
            ],
        ),
        of(
            "acl_class",
            "pg_catalog",
            "pg_class",
            &[
                ("oid", "oid"),
                ("relname", "text"),
                ("relnamespace", "oid"),
                ("relkind", "\"char\""),
                ("relispartition", "boolean"),
                ("relowner", "oid"),
                ("relacl", "text[]"),
            ],
        ),
        of(
            "acl_attribute",
            "pg_catalog",
            "pg_attribute",
            &[
                ("attrelid", "oid"),
                ("attnum", "smallint"),
                ("attname", "text"),
                ("attisdropped", "boolean"),
                ("attacl", "text[]"),
            ],
        ),
    ]
    .concat()
}

/// What `format_type` says of a type that is not there.
const UNKNOWN_TYPE: &str = "???";

/// The question. Types below OID 10,000 are the same on every server; where the collation is not the
/// type's own it has to be named, which an import does. (Of these types `name` and its array have "C",
/// 950, and all others that have any the default, 100. To look each up in `pg_type` would take a third
/// of the processor time that this takes here.)
fn question(name: &str, target: &Target, only: Option<&[u32]>) -> String {
    let table = |table: &str| sql::qualified(name, table);
    format!(
        "SELECT c.relname, k.attnum, k.attname,
                pg_catalog.format_type(k.atttypid, k.atttypmod), k.attnotnull,
                CASE WHEN k.attgenerated <> '' OR k.attcollation NOT IN (0, 100, 950)
                       OR (k.attcollation = 950) <> (k.atttypid IN (19, 1003))
                     THEN k.attgenerated::pg_catalog.text || k.attcollation::pg_catalog.text END,
                CASE WHEN k.atttypid >= 10000 THEN k.atttypid END, k.atttypmod
         FROM {} n
         JOIN {} c ON c.relnamespace = n.oid
         LEFT JOIN {} k ON k.attrelid = c.oid AND k.attnum > 0 AND NOT k.attisdropped
         {}{};\n",
        table("pg_namespace"),
        table("pg_class"),
        table("pg_attribute"),
        of_schema(target),
        only.map(is_one_of).unwrap_or_default(),
    )
}

/// Selects the tables of the remote schema.
pub(super) fn of_schema(target: &Target) -> String {
    format!(
        "WHERE n.nspname = {} AND c.relkind IN ('r', 'v', 'f', 'm', 'p') AND NOT c.relispartition",
        sql::literal(&target.import.schema)
    )
}

/// Selects tables by their OIDs in the source.
pub(super) fn is_one_of(oids: &[u32]) -> String {
    let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
    format!(
        " AND c.oid = ANY ('{{{}}}'::pg_catalog.oid[])",
        oids.join(",")
    )
}

/// Asks a source for its tables: `before` makes schema, server and mapping of that name, in the
/// transaction that is open. Without any table in the answer it is not known whether the source has
/// the schema at all.
pub async fn look(
    client: &Client,
    name: &str,
    before: &str,
    target: &Target,
) -> Result<Answer, HubError> {
    let text = [before, &tables(name), &question(name, target, None)].concat();
    let mut rows = Rows::default();
    rows.add(&client.simple_query(&text).await?, target)?;
    types::resolve(client, name, target, &mut rows).await?;
    Ok(rows.into_answer(target))
}

/// [`look`] for a source of which the hub's encoding cannot hold every name. Schema and server are
/// there; nothing of what asks stays.
pub async fn look_in_parts(
    client: &Client,
    name: &str,
    target: &Target,
) -> Result<Answer, HubError> {
    let create = format!("SAVEPOINT spcd_parts;\n{}", tables(name));
    client.batch_execute(&create).await?;
    let part = |oids: &[u32]| question(name, target, Some(oids));
    let (messages, unheld) = in_parts(client, name, target, part).await?;
    let mut rows = Rows::default();
    rows.add(&messages, target)?;
    types::resolve(client, name, target, &mut rows).await?;
    let (mut bad, mut warnings) = (Vec::new(), Vec::new());
    for (oid, text) in unheld {
        let class = sql::qualified(name, "pg_class");
        let relname = format!("SELECT c.relname FROM {class} c WHERE c.oid = {oid}");
        match held(client, &relname).await? {
            Ok(messages) => bad.extend(messages.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(Table {
                    name: row.get(0)?.to_owned(),
                    unfit: Some(text.clone()),
                    ..Table::default()
                }),
                _ => None,
            })),
            Err(text) => warnings.push(format!(
                "the table with OID {oid} in the source is left out: its name: {text}"
            )),
        }
    }
    client.batch_execute("ROLLBACK TO spcd_parts").await?;
    let mut answer = rows.into_answer(target);
    bad.retain(|table| target.import.takes(&table.name));
    answer.tables.extend(bad);
    answer.warnings.extend(warnings);
    Ok(answer)
}

/// Asks for the remote schema's tables, given by their OIDs, in ever smaller parts, until those are
/// alone of which the hub's encoding cannot hold something. They come with the reason.
pub(super) async fn in_parts(
    client: &Client,
    name: &str,
    target: &Target,
    question: impl Fn(&[u32]) -> String,
) -> Result<(Vec<SimpleQueryMessage>, Vec<(u32, String)>), HubError> {
    let all = format!(
        "SELECT c.oid FROM {} n JOIN {} c ON c.relnamespace = n.oid {}",
        sql::qualified(name, "pg_namespace"),
        sql::qualified(name, "pg_class"),
        of_schema(target)
    );
    let oids = client.query(&all, &[]).await?;
    let oids = oids.iter().map(|row| row.try_get(0));
    let mut parts: Vec<Vec<u32>> = vec![oids.collect::<Result<_, _>>()?];
    let (mut answers, mut unheld) = (Vec::new(), Vec::new());
    while let Some(mut part) = parts.pop() {
        match held(client, &question(&part)).await? {
            Ok(messages) => answers.extend(messages),
            Err(text) if part.len() < 2 => unheld.extend(part.first().map(|oid| (*oid, text))),
            Err(_) => {
                parts.push(part.split_off(part.len() / 2));
                parts.push(part);
            }
        }
    }
    Ok((answers, unheld))
}

/// What the source answers, or why the hub's encoding cannot hold it.
async fn held(
    client: &Client,
    question: &str,
) -> Result<Result<Vec<SimpleQueryMessage>, String>, HubError> {
    client.batch_execute("SAVEPOINT spcd_part").await?;
    match client.simple_query(question).await.map_err(HubError::from) {
        Ok(messages) => {
            client.batch_execute("RELEASE spcd_part").await?;
            Ok(Ok(messages))
        }
        Err(error) if error.is_of_encoding() => {
            client.batch_execute("ROLLBACK TO spcd_part").await?;
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// The tables in the answers to [`question`].
#[derive(Default)]
struct Rows {
    others: BTreeSet<String>,
    columns: BTreeMap<String, BTreeMap<i16, Column>>,
    odd: Vec<String>,
    /// Columns whose types are not every server's own.
    of_source_types: Vec<OfSourceType>,
    /// Columns that are generated or of another collation than most.
    special: Vec<Special>,
    /// Tables that cannot be imported, and why.
    unfit: BTreeMap<String, String>,
    warnings: Vec<String>,
}

/// A column that is generated or of another collation than most.
struct Special {
    table: String,
    number: i16,
    is_generated: bool,
    /// The collation's OID in the source; 0 for a type without any.
    collation: u32,
}

impl Special {
    /// Reads `attgenerated`, if it is set, and the collation's OID.
    fn of(table: &str, number: i16, text: &str) -> Self {
        let collation = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        Self {
            table: table.to_owned(),
            number,
            is_generated: collation.len() < text.len(),
            collation: collation.parse().unwrap_or(0),
        }
    }
}

/// A column whose type is not every server's own.
struct OfSourceType {
    table: String,
    number: i16,
    /// The type's OID in the source.
    oid: u32,
    modifier: i32,
}

impl Rows {
    fn add(&mut self, messages: &[SimpleQueryMessage], target: &Target) -> Result<(), HubError> {
        for message in messages {
            let SimpleQueryMessage::Row(row) = message else {
                continue;
            };
            if row.len() != WIDTH {
                continue;
            }
            let table = row.try_get(0)?.unwrap_or_default();
            if !target.import.takes(table) {
                self.others.insert(table.to_owned());
                continue;
            }
            let data_type = row.try_get(3)?.unwrap_or_default();
            let oid = row.try_get(6)?.and_then(|oid| oid.parse().ok());
            let special = row.try_get(5)?;
            if special.is_some() || (oid.is_none() && data_type.starts_with(UNKNOWN_TYPE)) {
                self.odd.push(table.to_owned());
            }
            let columns = self.columns.entry(table.to_owned()).or_default();
            let Some(number) = row.try_get(1)?.and_then(|number| number.parse().ok()) else {
                continue;
            };
            let special = special.map(|text| Special::of(table, number, text));
            self.special.extend(special);
            if let Some(oid) = oid {
                let modifier = row.try_get(7)?.and_then(|modifier| modifier.parse().ok());
                self.of_source_types.push(OfSourceType {
                    table: table.to_owned(),
                    number,
                    oid,
                    modifier: modifier.unwrap_or(-1),
                });
            }
            let column = Column {
                name: row.try_get(2)?.unwrap_or_default().to_owned(),
                data_type: data_type.to_owned(),
                not_null: is_true(row, 4)?,
                ..Column::default()
            };
            columns.insert(number, column);
        }
        Ok(())
    }

    fn into_answer(mut self, target: &Target) -> Answer {
        self.odd.sort();
        self.odd.dedup();
        self.odd.retain(|name| !self.unfit.contains_key(name));
        let odd = &self.odd;
        self.columns
            .retain(|name, _| odd.binary_search(name).is_err() && !self.unfit.contains_key(name));
        let schema = &target.import.schema;
        let table = |(name, columns): (String, BTreeMap<i16, Column>)| Table {
            columns: columns.into_values().collect(),
            options: [("schema_name", schema), ("table_name", &name)]
                .map(|(option, value)| (option.to_owned(), value.clone()))
                .into(),
            name,
            ..Table::default()
        };
        let unfit = |(name, why)| Table {
            name,
            unfit: Some(why),
            ..Table::default()
        };
        let tables = self.columns.into_iter().map(table);
        Answer {
            tables: tables.chain(self.unfit.into_iter().map(unfit)).collect(),
            odd: self.odd,
            others: self.others,
            warnings: self.warnings,
        }
    }
}

fn is_true(row: &SimpleQueryRow, column: usize) -> Result<bool, HubError> {
    Ok(row.try_get(column)? == Some("t"))
}
