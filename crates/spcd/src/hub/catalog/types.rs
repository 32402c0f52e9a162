//! Types that a source has and the hub may not have: what a column of one becomes here.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::{Target, UnknownTypes};
use spcd_core::sql;
use tokio_postgres::types::Oid;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Rows, collations, table};
use crate::hub::HubError;

/// A value of the source as text. Conditions on it are not sent to the source.
const TEXT: &str = "spcd_type.text";
/// How many domains may lie on each other before a type counts as unknown.
const MAX_DEPTH: usize = 8;
/// The first OID that is not every server's own.
const FIRST_OF_SOURCE: Oid = 10_000;

/// A type of the source, as its `pg_type` has it.
#[derive(Debug, Clone)]
struct SourceType {
    schema: String,
    name: String,
    /// `typtype`: `b`, `c`, `d`, `e`, `m`, `p` or `r`.
    kind: String,
    /// Of a domain: the type below it.
    base: Oid,
    modifier: i32,
    /// Of an array: the type of its elements.
    element: Oid,
}

/// A type of the hub with the name of one of the source.
struct HubType {
    oid: Oid,
    /// It may hold the values: it is no table's row type where the source has another kind of type.
    is_fit: bool,
}

/// What a column of a type becomes.
enum Here {
    /// The same type, which the hub has.
    Same(String),
    /// Another type that holds its values.
    Instead(String),
    /// Nothing: the hub has no such type.
    Nothing,
    /// Nothing: the hub has another type of that name.
    Another(String),
}

/// Gives columns of types that only the source has the types that `unknown_types` says. Tables of
/// which some column gets none, or all of whose types the hub has, are odd: an import tells.
pub(super) async fn resolve(
    client: &Client,
    name: &str,
    target: &Target,
    rows: &mut Rows,
) -> Result<(), HubError> {
    let columns = std::mem::take(&mut rows.of_source_types);
    if columns.is_empty() {
        return Ok(());
    }
    let rule = target.import.unknown_types.unwrap_or_default();
    let oids = columns.iter().map(|column| column.oid).collect();
    let known = of_source(client, name, oids).await?;
    let hub = on_hub(client, &known).await?;
    let mut tables: BTreeMap<&str, Vec<(i16, Here)>> = BTreeMap::new();
    for column in &columns {
        let here = match hub.get(&column.oid) {
            Some(here) if here.is_fit => {
                Here::Same(formatted(client, here.oid, column.modifier).await?)
            }
            there => {
                let here = instead(client, &known, &hub, column.oid, rule).await?;
                match (here, there) {
                    (Here::Nothing, Some(other)) => {
                        Here::Another(formatted(client, other.oid, -1).await?)
                    }
                    (here, _) => here,
                }
            }
        };
        let table = tables.entry(&column.table).or_default();
        table.push((column.number, here));
    }
    let mut read = BTreeSet::new();
    for (table, columns) in tables {
        if rows.give(table, &columns) {
            read.insert(table.to_owned());
        }
    }
    collations::resolve(client, name, rows, &read).await
}

impl Rows {
    /// Gives a table's columns their types here. Returns whether the catalog tells all of them: an
    /// import could not, since it needs the types that the source has.
    fn give(&mut self, table: &str, columns: &[(i16, Here)]) -> bool {
        let another = columns.iter().find_map(|(_, here)| match here {
            Here::Another(name) => Some(name),
            _ => None,
        });
        if let Some(another) = another {
            let why = format!(
                "the type {another} in this database is a table's row type, in the source it is \
                 another (rename the table, or read the type as text: write \
                 `unknown_types = \"text\"` in the block `import`)"
            );
            self.unfit.insert(table.to_owned(), why);
            return false;
        }
        let is_any = |is: fn(&Here) -> bool| columns.iter().any(|(_, here)| is(here));
        let is_odd = is_any(|here| matches!(here, Here::Nothing))
            || !is_any(|here| matches!(here, Here::Instead(_)));
        if is_odd {
            self.odd.push(table.to_owned());
            return false;
        }
        let there = self.columns.get_mut(table).into_iter().flatten();
        for (number, column) in there {
            let here = columns.iter().find(|(other, _)| other == number);
            if let Some((_, Here::Same(data_type) | Here::Instead(data_type))) = here {
                column.data_type.clone_from(data_type);
            }
        }
        true
    }
}

/// What a column of a type becomes that the hub does not have.
async fn instead(
    client: &Client,
    known: &BTreeMap<Oid, SourceType>,
    hub: &BTreeMap<Oid, HubType>,
    oid: Oid,
    rule: UnknownTypes,
) -> Result<Here, HubError> {
    let as_text = |is_array: bool| {
        Here::Instead(match is_array {
            true => format!("{TEXT}[]"),
            false => TEXT.to_owned(),
        })
    };
    if rule == UnknownTypes::Skip {
        return Ok(Here::Nothing);
    }
    let (mut at, mut modifier) = (oid, -1);
    for _ in 0..MAX_DEPTH {
        let here = match at < FIRST_OF_SOURCE {
            true => Some(at),
            false => (hub.get(&at).filter(|here| here.is_fit)).map(|here| here.oid),
        };
        if let Some(here) = here {
            return Ok(Here::Instead(formatted(client, here, modifier).await?));
        }
        let Some(found) = known.get(&at) else { break };
        match found.kind.as_str() {
            "e" => return Ok(as_text(false)),
            "d" => {
                modifier = found.modifier;
                at = found.base;
            }
            _ => {
                let element = known.get(&found.element);
                let is_of_enum = element.is_some_and(|element| element.kind == "e");
                // A domain over an array, too, reads as one.
                let is_array = is_of_enum || (found.element != 0 && rule == UnknownTypes::Text);
                match rule {
                    _ if is_of_enum => return Ok(as_text(true)),
                    UnknownTypes::Text => return Ok(as_text(is_array)),
                    _ => break,
                }
            }
        }
    }
    Ok(Here::Nothing)
}

/// Types of the source, with those that they are made of.
async fn of_source(
    client: &Client,
    name: &str,
    oids: BTreeSet<Oid>,
) -> Result<BTreeMap<Oid, SourceType>, HubError> {
    let columns = [
        ("oid", "oid"),
        ("typname", "text"),
        ("typnamespace", "oid"),
        ("typtype", "\"char\""),
        ("typbasetype", "oid"),
        ("typtypmod", "integer"),
        ("typelem", "oid"),
    ];
    client
        .batch_execute(&table(name, "pg_type", &columns))
        .await?;
    let mut known = BTreeMap::new();
    let mut open = oids;
    for _ in 0..MAX_DEPTH {
        open.retain(|oid| *oid >= FIRST_OF_SOURCE && !known.contains_key(oid));
        if open.is_empty() {
            break;
        }
        let list: Vec<String> = open.iter().map(Oid::to_string).collect();
        let question = format!(
            "SELECT t.oid, n.nspname, t.typname, t.typtype, t.typbasetype, t.typtypmod, t.typelem
             FROM {} t JOIN {} n ON n.oid = t.typnamespace
             WHERE t.oid = ANY ('{{{}}}'::pg_catalog.oid[])",
            sql::qualified(name, "pg_type"),
            sql::qualified(name, "pg_namespace"),
            list.join(",")
        );
        open.clear();
        for message in client.simple_query(&question).await? {
            let SimpleQueryMessage::Row(row) = message else {
                continue;
            };
            let text = |column: usize| row.try_get(column).map(Option::unwrap_or_default);
            let number = |column: usize| text(column).map(|text| text.parse().unwrap_or(0));
            let found = SourceType {
                schema: text(1)?.to_owned(),
                name: text(2)?.to_owned(),
                kind: text(3)?.to_owned(),
                base: number(4)?,
                modifier: text(5)?.parse().unwrap_or(-1),
                element: number(6)?,
            };
            open.extend([found.base, found.element]);
            known.insert(number(0)?, found);
        }
    }
    Ok(known)
}

/// The types of the same names that the hub has, by their OIDs in the source. Those of extensions
/// may be in another schema here.
async fn on_hub(
    client: &Client,
    known: &BTreeMap<Oid, SourceType>,
) -> Result<BTreeMap<Oid, HubType>, HubError> {
    // An array says nothing of its elements.
    let kind = |found: &SourceType| match known.get(&found.element) {
        Some(element) => element.kind.clone(),
        None => found.kind.clone(),
    };
    let column = |of: fn(&SourceType) -> &str| -> Vec<&str> { known.values().map(of).collect() };
    let oids: Vec<Oid> = known.keys().copied().collect();
    let (schemas, names) = (column(|t| &t.schema), column(|t| &t.name));
    let kinds: Vec<String> = known.values().map(kind).collect();
    let sql = "SELECT DISTINCT ON (s.oid) s.oid, t.oid,
                      coalesce(e.typtype, t.typtype) NOT IN ('c', 'p')
                      OR coalesce(e.typtype, t.typtype)::pg_catalog.text = s.kind
               FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.oid[]),
                               pg_catalog.unnest($2::pg_catalog.text[]),
                               pg_catalog.unnest($3::pg_catalog.text[]),
                               pg_catalog.unnest($4::pg_catalog.text[]))
                    AS s (oid, schema, name, kind)
               JOIN pg_catalog.pg_type t ON t.typname = s.name
               JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
               LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
               WHERE n.nspname = s.schema OR EXISTS (
                   SELECT FROM pg_catalog.pg_depend d
                   WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
                     AND d.objid IN (t.oid, e.oid) AND d.deptype = 'e')
               ORDER BY s.oid, n.nspname <> s.schema";
    let rows = client
        .query(sql, &[&oids, &schemas, &names, &kinds])
        .await?;
    let found = rows.iter().map(|row| {
        let (oid, is_fit) = (row.try_get(1)?, row.try_get(2)?);
        Ok((row.try_get(0)?, HubType { oid, is_fit }))
    });
    found.collect()
}

/// A type of the hub as the catalog writes it.
async fn formatted(client: &Client, oid: Oid, modifier: i32) -> Result<String, HubError> {
    let sql = "SELECT pg_catalog.format_type($1, $2)";
    let row = client.query_one(sql, &[&oid, &modifier]).await?;
    Ok(row.try_get(0)?)
}
