//! Local types for columns whose type is not built in.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::{ForeignSource, UnknownTypePolicy};
use spcd_core::sql;
use tokio_postgres::types::Oid;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{CatalogRows, catalog_table, collations};
use crate::HubError;

/// Domain for values that are read as text. Conditions on it are not sent to the source.
const TEXT_DOMAIN: &str = "spcd_type.text";
/// Array of that domain.
const TEXT_DOMAIN_ARRAY: &str = "spcd_type.text[]";
/// Maximum depth of nested domains. A deeper type is unknown.
const MAX_DEPTH: usize = 8;
/// First OID that is not assigned to built-in objects.
const FIRST_CUSTOM_OID: Oid = 10_000;

/// A type of the source, from its `pg_type`.
#[derive(Debug, Clone)]
struct SourceType {
    schema: String,
    name: String,
    /// `typtype`.
    kind: String,
    /// Base type of a domain.
    base: Oid,
    modifier: i32,
    /// Element type of an array.
    element: Oid,
}

/// A type of the hub with the same name as a type of the source.
struct HubType {
    oid: Oid,
    /// False if it is a table's row type and the source's is another kind of type.
    is_compatible: bool,
}

/// A type of the hub with a modifier, as `format_type` takes them.
type ModifiedType = (Oid, i32);

/// Local type of a column.
enum LocalType {
    /// The type itself, which the hub has.
    Same(ModifiedType),
    /// Another type that can represent its values.
    Substitute(ModifiedType),
    /// The domain for values that are read as text.
    Text {
        /// An array of it.
        is_array: bool,
    },
    /// The hub has no such type.
    Missing,
    /// The hub has an incompatible type of the same name.
    Conflicting(ModifiedType),
}

impl LocalType {
    /// Returns the type of the hub whose name is needed.
    fn named(&self) -> Option<ModifiedType> {
        match self {
            Self::Same(found) | Self::Substitute(found) | Self::Conflicting(found) => Some(*found),
            Self::Text { .. } | Self::Missing => None,
        }
    }
}

/// Names of the hub's types.
type TypeNames = BTreeMap<ModifiedType, String>;

/// Replaces types that only the source has, as `unknown_types` says. A table becomes `import_only` if a
/// column has no local type, or if the hub has all types, unless the tables are plain.
pub(super) async fn resolve(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    rows: &mut CatalogRows,
) -> Result<(), HubError> {
    let columns = std::mem::take(&mut rows.source_type_columns);
    if columns.is_empty() {
        return Ok(());
    }
    let rule = target.import.unknown_types.unwrap_or_default();
    let oids = columns.iter().map(|column| column.oid).collect();
    let known = fetch_source_types(client, name, oids).await?;
    let hub = fetch_hub_types(client, &known).await?;
    let mut tables: BTreeMap<&str, Vec<(i16, LocalType)>> = BTreeMap::new();
    for column in &columns {
        let here = match hub.get(&column.oid) {
            Some(here) if here.is_compatible => LocalType::Same((here.oid, column.modifier)),
            there => match (find_substitute(&known, &hub, column.oid, rule), there) {
                (LocalType::Missing, Some(other)) => LocalType::Conflicting((other.oid, -1)),
                (here, _) => here,
            },
        };
        let table = tables.entry(&column.table).or_default();
        table.push((column.number, here));
    }
    let named = (tables.values().flatten()).filter_map(|(_, here)| here.named());
    let names = fetch_type_names(client, &named.collect()).await?;
    let mut described = BTreeSet::new();
    for (table, columns) in tables {
        if rows.set_types(table, &columns, &names) {
            described.insert(table.to_owned());
        }
    }
    collations::resolve(client, name, rows, &described).await
}

impl CatalogRows {
    /// Sets the local types of a table's columns. Returns whether the table is complete without an
    /// import, which would need the types of the source.
    fn set_types(&mut self, table: &str, columns: &[(i16, LocalType)], names: &TypeNames) -> bool {
        let another = columns.iter().find_map(|(_, here)| match here {
            LocalType::Conflicting(found) => names.get(found),
            _ => None,
        });
        if let Some(another) = another {
            let why = format!(
                "the type {another} in this database is a table's row type, in the source it is \
                 another (rename the table, or read the type as text: write \
                 `unknown_types = \"text\"` in the block `import`)"
            );
            self.errors.insert(table.to_owned(), why);
            return false;
        }
        let is_any = |is: fn(&LocalType) -> bool| columns.iter().any(|(_, here)| is(here));
        let is_replaced =
            || is_any(|here| matches!(here, LocalType::Substitute(_) | LocalType::Text { .. }));
        let is_odd =
            is_any(|here| matches!(here, LocalType::Missing)) || !self.are_plain && !is_replaced();
        if is_odd {
            self.import_only.push(table.to_owned());
            return false;
        }
        let there = self.columns.get_mut(table).into_iter().flatten();
        for (number, column) in there {
            let here = columns.iter().find(|(other, _)| other == number);
            let name = match here.map(|(_, here)| here) {
                Some(LocalType::Text { is_array: true }) => Some(TEXT_DOMAIN_ARRAY),
                Some(LocalType::Text { is_array: false }) => Some(TEXT_DOMAIN),
                here => {
                    let found = here.and_then(LocalType::named);
                    found
                        .and_then(|found| names.get(&found))
                        .map(String::as_str)
                }
            };
            if let Some(name) = name {
                name.clone_into(&mut column.data_type);
            }
        }
        true
    }
}

/// Finds a local type for a type that the hub does not have.
fn find_substitute(
    known: &BTreeMap<Oid, SourceType>,
    hub: &BTreeMap<Oid, HubType>,
    oid: Oid,
    rule: UnknownTypePolicy,
) -> LocalType {
    if rule == UnknownTypePolicy::Skip {
        return LocalType::Missing;
    }
    let (mut at, mut modifier) = (oid, -1);
    for _ in 0..MAX_DEPTH {
        let here = match at < FIRST_CUSTOM_OID {
            true => Some(at),
            false => (hub.get(&at).filter(|here| here.is_compatible)).map(|here| here.oid),
        };
        if let Some(here) = here {
            return LocalType::Substitute((here, modifier));
        }
        let Some(found) = known.get(&at) else { break };
        match found.kind.as_str() {
            "e" => return LocalType::Text { is_array: false },
            "d" => {
                modifier = found.modifier;
                at = found.base;
            }
            _ => {
                let element = known.get(&found.element);
                let is_of_enum = element.is_some_and(|element| element.kind == "e");
                // A domain over an array is read as an array.
                let is_array =
                    is_of_enum || (found.element != 0 && rule == UnknownTypePolicy::Text);
                match is_of_enum || rule == UnknownTypePolicy::Text {
                    true => return LocalType::Text { is_array },
                    false => break,
                }
            }
        }
    }
    LocalType::Missing
}

/// Returns types of the source, with their base and element types.
async fn fetch_source_types(
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
        .batch_execute(&catalog_table(name, "pg_type", &columns))
        .await?;
    let mut known = BTreeMap::new();
    let mut pending = oids;
    for _ in 0..MAX_DEPTH {
        pending.retain(|oid| *oid >= FIRST_CUSTOM_OID && !known.contains_key(oid));
        if pending.is_empty() {
            break;
        }
        let list: Vec<String> = pending.iter().map(Oid::to_string).collect();
        let query = format!(
            "SELECT t.oid, n.nspname, t.typname, t.typtype, t.typbasetype, t.typtypmod, t.typelem
             FROM {} t JOIN {} n ON n.oid = t.typnamespace
             WHERE t.oid = ANY ('{{{}}}'::pg_catalog.oid[])",
            sql::qualified(name, "pg_type"),
            sql::qualified(name, "pg_namespace"),
            list.join(",")
        );
        pending.clear();
        for message in client.simple_query(&query).await? {
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
            pending.extend([found.base, found.element]);
            known.insert(number(0)?, found);
        }
    }
    Ok(known)
}

/// Returns the hub's types of the same names, by their OIDs in the source. Types of extensions may be in
/// another schema.
async fn fetch_hub_types(
    client: &Client,
    known: &BTreeMap<Oid, SourceType>,
) -> Result<BTreeMap<Oid, HubType>, HubError> {
    // The `typtype` of an array does not describe its elements.
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
        let (oid, is_compatible) = (row.try_get(1)?, row.try_get(2)?);
        Ok((row.try_get(0)?, HubType { oid, is_compatible }))
    });
    found.collect()
}

/// Returns the names of the hub's types, in one statement however many there are.
async fn fetch_type_names(
    client: &Client,
    types: &BTreeSet<ModifiedType>,
) -> Result<TypeNames, HubError> {
    if types.is_empty() {
        return Ok(TypeNames::new());
    }
    let (oids, modifiers): (Vec<Oid>, Vec<i32>) = types.iter().copied().unzip();
    let sql = "SELECT t.oid, t.modifier, pg_catalog.format_type(t.oid, t.modifier)
               FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.oid[]),
                               pg_catalog.unnest($2::pg_catalog.int4[])) AS t (oid, modifier)";
    let rows = client.query(sql, &[&oids, &modifiers]).await?;
    let found = rows
        .iter()
        .map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?)));
    found.collect()
}
