//! Tables of a Postgres source, read from its catalog through postgres_fdw.
//!
//! Most of the cost of `IMPORT FOREIGN SCHEMA` is an ALTER for each column, which sets its remote name.
//! Here, one statement joins three foreign tables over the source's catalog at the source. Only types are
//! resolved on the hub.

mod collations;
mod many;
mod selection;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::ForeignSource;
use spcd_core::diff::{Column, Table, TableWarning};
use spcd_core::sql;
use spcd_core::tuning::TableStatistics;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::HubError;

pub(super) use many::read_many;
pub(super) use selection::table_condition;
use selection::{names_query, parse_names};

/// Tables of a source's catalog.
#[derive(Debug, Default)]
pub struct CatalogTables {
    /// Tables as an import would create them, without the column option `column_name`.
    pub tables: Vec<Table>,
    /// Tables that only an import can describe: their columns have types that are not built in,
    /// collations, or generated expressions.
    pub import_only: Vec<String>,
    /// Tables that the target does not select.
    pub unselected: BTreeSet<String>,
    /// Warnings that are about no table in particular.
    pub warnings: Vec<String>,
    /// Tables whose name the hub cannot represent.
    pub left_out: Vec<TableWarning>,
    /// Statistics of the tables that have any.
    pub statistics: BTreeMap<String, TableStatistics>,
}

/// Wrapper whose sources have PostgreSQL's catalog.
pub const POSTGRES_FDW: &str = "postgres_fdw";

/// Whether the source's catalog can replace an import. Options of the import are not implemented.
pub fn is_supported(target: &ForeignSource) -> bool {
    target.import_options.is_empty()
        && target.extension == POSTGRES_FDW
        && target.wrapper == POSTGRES_FDW
}

/// Number of columns of the query.
const COLUMN_COUNT: usize = 13;
/// Column of the schema.
const SCHEMA_COLUMN: usize = 8;
/// First of the four columns of the statistics.
const STATISTICS_COLUMN: usize = 9;

/// Returns the statement that creates a foreign table over a catalog table of the source. Schema and
/// server of that name exist.
pub(super) fn catalog_table(name: &str, table: &str, columns: &[(&str, &str)]) -> String {
    foreign_table(name, name, table, ("pg_catalog", table), columns)
}

/// Returns the statement for any remote table, with a schema and a local name of its own.
pub(super) fn foreign_table(
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
    // Overrides options of the server: no EXPLAIN at the source, and few round trips.
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

/// Returns the statements that create the foreign tables for [`tables_query`].
pub(super) fn catalog_tables(name: &str) -> String {
    let table = |table: &str, columns: &[(&str, &str)]| self::catalog_table(name, table, columns);
    // Names have type text: a constant of type name has a collation, and a comparison with it would
    // not be sent to the source.
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
                ("relpages", "integer"),
                ("reltuples", "real"),
                ("relallvisible", "integer"),
                ("reltoastrelid", "oid"),
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

/// Returns the statements that create the foreign tables for privileges, in a schema of their own.
pub(super) fn privilege_tables(into: &str, name: &str) -> String {
    let of = |local: &str, schema: &str, table: &str, columns: &[(&str, &str)]| {
        foreign_table(into, name, local, (schema, table), columns)
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

/// Result of `format_type` for an unknown type.
const UNKNOWN_TYPE: &str = "???";

/// Returns the query for the tables and columns. Types below OID 10,000 are the same on every server. A
/// collation other than the type's must be named, which an import does. Of the built-in types, `name`
/// and its array have "C" (950) and the others the default (100) or none. A lookup of each in `pg_type`
/// would take a third of the total processor time.
fn tables_query(
    name: &str,
    target: &ForeignSource,
    schemas: &[&str],
    only: Option<&[u32]>,
) -> String {
    let table = |table: &str| sql::qualified(name, table);
    let (statistics, toast) = match target.is_tuned() {
        true => (
            "c.relpages, c.reltuples, c.relallvisible, o.relpages",
            format!(
                "LEFT JOIN {} o ON o.oid = c.reltoastrelid ",
                table("pg_class")
            ),
        ),
        false => ("NULL, NULL, NULL, NULL", String::new()),
    };
    format!(
        "SELECT c.relname, k.attnum, k.attname,
                pg_catalog.format_type(k.atttypid, k.atttypmod), k.attnotnull,
                CASE WHEN k.attgenerated <> '' OR k.attcollation NOT IN (0, 100, 950)
                       OR (k.attcollation = 950) <> (k.atttypid IN (19, 1003))
                     THEN k.attgenerated::pg_catalog.text || k.attcollation::pg_catalog.text END,
                CASE WHEN k.atttypid >= 10000 THEN k.atttypid END, k.atttypmod, n.nspname,
                {}
         FROM {} n
         JOIN {} c ON c.relnamespace = n.oid
         LEFT JOIN {} k ON k.attrelid = c.oid AND k.attnum > 0 AND NOT k.attisdropped
         {}{}{};\n",
        statistics,
        table("pg_namespace"),
        table("pg_class"),
        table("pg_attribute"),
        toast,
        table_condition(schemas, &target.import),
        only.map(oid_condition).unwrap_or_default(),
    )
}

/// Returns a list of literals.
pub(super) fn literals(texts: &[&str]) -> String {
    let literals: Vec<String> = texts.iter().map(|text| sql::literal(text)).collect();
    literals.join(", ")
}

/// Returns the condition that selects tables by their OIDs in the source.
pub(super) fn oid_condition(oids: &[u32]) -> String {
    let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
    format!(
        " AND c.oid = ANY ('{{{}}}'::pg_catalog.oid[])",
        oids.join(",")
    )
}

/// Reads the tables of a source in the open transaction. The statements `before` create schema, server
/// and mapping of that name. An empty result may also mean that the source lacks the schema.
pub async fn read(
    client: &Client,
    name: &str,
    before: &str,
    target: &ForeignSource,
) -> Result<CatalogTables, HubError> {
    let before = [before, &catalog_tables(name)].concat();
    let schema = [target.import.schema.as_str()];
    let mut rows = CatalogRows::default();
    if !target.import.tables.is_empty() && target.import.exact_tables().is_none() {
        // The columns of the other tables are not asked for.
        let list = before + &names_query(name, target);
        let (selected, others) = parse_names(&client.simple_query(&list).await?)?
            .into_iter()
            .partition::<Vec<_>, _>(|(_, table)| target.import.selects(table));
        rows.unselected = others.into_iter().map(|(_, table)| table).collect();
        let oids: Vec<u32> = selected.into_iter().map(|(oid, _)| oid).collect();
        if oids.is_empty() {
            return Ok(rows.into_tables(target));
        }
        let query = tables_query(name, target, &schema, Some(&oids));
        rows.add(&client.simple_query(&query).await?, target)?;
    } else {
        let text = before + &tables_query(name, target, &schema, None);
        rows.add(&client.simple_query(&text).await?, target)?;
    }
    types::resolve(client, name, target, &mut rows).await?;
    let mut found = rows.into_tables(target);
    if found.lacks_exact_table(target) {
        // For the warning that a name matches no table.
        let all = client.simple_query(&names_query(name, target)).await?;
        let names = parse_names(&all)?.into_iter().map(|(_, table)| table);
        found.unselected = names
            .filter(|table| !target.import.selects(table))
            .collect();
    }
    Ok(found)
}

impl CatalogTables {
    /// Whether a table that the target names exactly is missing.
    fn lacks_exact_table(&self, target: &ForeignSource) -> bool {
        let exact = target.import.exact_tables().unwrap_or_default();
        let found = self.tables.iter().map(|table| &table.name);
        let found: BTreeSet<&String> = found.chain(&self.import_only).collect();
        exact.iter().any(|name| !found.contains(name))
    }
}

/// [`read`] for a source with names that the hub's encoding cannot represent. Schema and server exist;
/// the foreign tables are rolled back.
pub async fn read_in_parts(
    client: &Client,
    name: &str,
    target: &ForeignSource,
) -> Result<CatalogTables, HubError> {
    let create = format!("SAVEPOINT spcd_parts;\n{}", catalog_tables(name));
    client.batch_execute(&create).await?;
    let part = |oids: &[u32]| tables_query(name, target, &[&target.import.schema], Some(oids));
    let (messages, unrepresentable) = query_in_parts(client, name, target, part).await?;
    let mut rows = CatalogRows::default();
    rows.add(&messages, target)?;
    types::resolve(client, name, target, &mut rows).await?;
    let (mut failed, mut left_out) = (Vec::new(), Vec::new());
    for (oid, text) in unrepresentable {
        let class = sql::qualified(name, "pg_class");
        let relname = format!("SELECT c.relname FROM {class} c WHERE c.oid = {oid}");
        match query_representable(client, &relname).await? {
            Ok(messages) => failed.extend(messages.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(Table {
                    name: row.get(0)?.to_owned(),
                    import_error: Some(text.clone()),
                    ..Table::default()
                }),
                _ => None,
            })),
            Err(text) => left_out.push(TableWarning {
                table: None,
                text: format!(
                    "the table with OID {oid} in the source is skipped: its name: {text}"
                ),
            }),
        }
    }
    client.batch_execute("ROLLBACK TO spcd_parts").await?;
    let mut answer = rows.into_tables(target);
    failed.retain(|table| target.import.selects(&table.name));
    answer.tables.extend(failed);
    answer.left_out.extend(left_out);
    Ok(answer)
}

/// Runs a query for the OIDs of the remote schema's tables, and halves them after an encoding error,
/// until the tables that the hub's encoding cannot represent are isolated. Returns their errors too.
pub(super) async fn query_in_parts(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    query: impl Fn(&[u32]) -> String,
) -> Result<(Vec<SimpleQueryMessage>, Vec<(u32, String)>), HubError> {
    let all = format!(
        "SELECT c.oid FROM {} n JOIN {} c ON c.relnamespace = n.oid {}",
        sql::qualified(name, "pg_namespace"),
        sql::qualified(name, "pg_class"),
        table_condition(&[&target.import.schema], &target.import)
    );
    let oids = client.query(&all, &[]).await?;
    let oids = oids.iter().map(|row| row.try_get(0));
    let mut parts: Vec<Vec<u32>> = vec![oids.collect::<Result<_, _>>()?];
    let (mut answers, mut unrepresentable) = (Vec::new(), Vec::new());
    while let Some(mut part) = parts.pop() {
        match query_representable(client, &query(&part)).await? {
            Ok(messages) => answers.extend(messages),
            Err(text) if part.len() < 2 => {
                unrepresentable.extend(part.first().map(|oid| (*oid, text)))
            }
            Err(_) => {
                parts.push(part.split_off(part.len() / 2));
                parts.push(part);
            }
        }
    }
    Ok((answers, unrepresentable))
}

/// Runs a query. Returns the text of an encoding error.
async fn query_representable(
    client: &Client,
    query: &str,
) -> Result<Result<Vec<SimpleQueryMessage>, String>, HubError> {
    client.batch_execute("SAVEPOINT spcd_part").await?;
    match client.simple_query(query).await.map_err(HubError::from) {
        Ok(messages) => {
            client.batch_execute("RELEASE spcd_part").await?;
            Ok(Ok(messages))
        }
        Err(error) if error.is_encoding_error() => {
            client.batch_execute("ROLLBACK TO spcd_part").await?;
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// Rows of [`tables_query`], by table.
#[derive(Default)]
struct CatalogRows {
    unselected: BTreeSet<String>,
    columns: BTreeMap<String, BTreeMap<i16, Column>>,
    import_only: Vec<String>,
    /// Columns whose types are not built in.
    source_type_columns: Vec<SourceTypeColumn>,
    /// Columns that are generated or have another collation than the type.
    special_columns: Vec<SpecialColumn>,
    /// Errors of tables that cannot be imported.
    errors: BTreeMap<String, String>,
    warnings: Vec<String>,
    statistics: BTreeMap<String, TableStatistics>,
    /// No column is generated or has another collation than its type: names of types describe them.
    are_plain: bool,
}

/// A column that is generated or has another collation than its type.
struct SpecialColumn {
    table: String,
    number: i16,
    is_generated: bool,
    /// OID of the collation in the source; 0 for a type without collations.
    collation: u32,
}

impl SpecialColumn {
    /// Parses `attgenerated`, if it is set, followed by the collation's OID.
    fn parse(table: &str, number: i16, text: &str) -> Self {
        let collation = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        Self {
            table: table.to_owned(),
            number,
            is_generated: collation.len() < text.len(),
            collation: collation.parse().unwrap_or(0),
        }
    }
}

/// A column whose type is not built in.
struct SourceTypeColumn {
    table: String,
    number: i16,
    /// OID of the type in the source.
    oid: u32,
    modifier: i32,
}

impl CatalogRows {
    fn add(
        &mut self,
        messages: &[SimpleQueryMessage],
        target: &ForeignSource,
    ) -> Result<(), HubError> {
        for message in messages {
            match message {
                SimpleQueryMessage::Row(row) if row.len() == COLUMN_COUNT => {
                    self.add_row(row, target)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_row(&mut self, row: &SimpleQueryRow, target: &ForeignSource) -> Result<(), HubError> {
        let table = row.try_get(0)?.unwrap_or_default();
        if !target.import.selects(table) {
            self.unselected.insert(table.to_owned());
            return Ok(());
        }
        let data_type = row.try_get(3)?.unwrap_or_default();
        let oid = row.try_get(6)?.and_then(|oid| oid.parse().ok());
        let special = row.try_get(5)?;
        if special.is_some() || (oid.is_none() && data_type.starts_with(UNKNOWN_TYPE)) {
            self.import_only.push(table.to_owned());
        }
        if !self.statistics.contains_key(table)
            && let Some(statistics) = statistics(row)?
        {
            self.statistics.insert(table.to_owned(), statistics);
        }
        let columns = self.columns.entry(table.to_owned()).or_default();
        let Some(number) = row.try_get(1)?.and_then(|number| number.parse().ok()) else {
            return Ok(());
        };
        let special = special.map(|text| SpecialColumn::parse(table, number, text));
        self.special_columns.extend(special);
        if let Some(oid) = oid {
            let modifier = row.try_get(7)?.and_then(|modifier| modifier.parse().ok());
            self.source_type_columns.push(SourceTypeColumn {
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
        Ok(())
    }

    fn into_tables(mut self, target: &ForeignSource) -> CatalogTables {
        self.import_only.sort();
        self.import_only.dedup();
        self.import_only
            .retain(|name| !self.errors.contains_key(name));
        let import_only = &self.import_only;
        self.columns.retain(|name, _| {
            import_only.binary_search(name).is_err() && !self.errors.contains_key(name)
        });
        let schema = &target.import.schema;
        let table = |(name, columns): (String, BTreeMap<i16, Column>)| Table {
            columns: columns.into_values().collect(),
            options: [("schema_name", schema), ("table_name", &name)]
                .map(|(option, value)| (option.to_owned(), value.clone()))
                .into(),
            name,
            ..Table::default()
        };
        let failed = |(name, error)| Table {
            name,
            import_error: Some(error),
            ..Table::default()
        };
        let tables = self.columns.into_iter().map(table);
        CatalogTables {
            tables: tables.chain(self.errors.into_iter().map(failed)).collect(),
            import_only: self.import_only,
            unselected: self.unselected,
            warnings: self.warnings,
            left_out: Vec::new(),
            statistics: self.statistics,
        }
    }
}

/// Returns the statistics in a row of [`tables_query`].
fn statistics(row: &SimpleQueryRow) -> Result<Option<TableStatistics>, HubError> {
    let number = |at: usize| -> Result<Option<f64>, HubError> {
        let text = row.try_get(STATISTICS_COLUMN + at)?;
        Ok(text.and_then(|number| number.parse().ok()))
    };
    let (pages, rows) = (number(0)?, number(1)?);
    Ok(match (pages, rows) {
        (Some(pages), Some(rows)) => Some(TableStatistics {
            pages,
            rows,
            visible_pages: number(2)?.unwrap_or_default(),
            toast_pages: number(3)?.unwrap_or_default(),
        }),
        _ => None,
    })
}

fn is_true(row: &SimpleQueryRow, column: usize) -> Result<bool, HubError> {
    Ok(row.try_get(column)? == Some("t"))
}
