//! Reads the list of a mirror's source, in a session with the source itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use spcd_core::config::ForeignSource;
use spcd_core::mirror::{
    Listed, MirrorView, SchemaDigest, SchemalessReads, SourceConnection, SourceKind, SourceState,
    read_list,
};
use spcd_core::sql;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::identity::{HubIdentity, identify};
use crate::HubError;
use crate::connection::{ConnectError, Endpoint, Session};

/// Time limit of each query.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Purpose in the session's `application_name`.
const PURPOSE: &str = "mirror";
/// Version of a row `s` of a table, which differs after each change of the row.
const VERSION: &str = "pg_catalog.concat_ws(' ', s.xmin, s.ctid)";
/// Trusted extensions of PostgreSQL that define types.
const TYPE_EXTENSIONS: [&str; 6] = ["citext", "cube", "hstore", "isn", "ltree", "seg"];

/// A source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No session could be opened.
    #[error("{0}")]
    NoSession(String),
    /// The source rejected the credentials.
    #[error("{0}")]
    Credentials(String),
    /// The source is of an unknown kind, or its tables are not supported.
    #[error("{0}")]
    Unusable(String),
    /// The source did not answer in time.
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The session ended, or a query failed.
    #[error("{0}")]
    Failed(String),
}

/// A session with a source, and what was read in it.
pub struct Reader {
    session: Session,
    kind: SourceKind,
    /// Columns of the list at the last read; `None` for a view, whose rows have no versions.
    columns: Option<String>,
    /// The source's database.
    pub identity: HubIdentity,
    listed: BTreeMap<String, Listed>,
    waits: SchemalessReads,
}

impl Reader {
    /// Opens a session and subscribes to the source's channel.
    ///
    /// # Errors
    /// A source that cannot be reached or is of an unknown kind.
    pub async fn open(source: &ForeignSource) -> Result<Self, SourceError> {
        let endpoint = Endpoint::of_source(source).map_err(connect_error)?;
        let session = endpoint.connect(PURPOSE).await.map_err(connect_error)?;
        let kind = limited(detect(&session.client)).await?;
        let Some(kind) = kind else {
            let looked_for = SourceKind::ALL.map(|kind| kind.table());
            let tables = looked_for.map(|(schema, table)| format!("{schema}.{table}"));
            return Err(SourceError::Unusable(format!(
                "its source is neither a hub of spcd nor a service of Steampipe: it has no {}",
                tables.join(" and no ")
            )));
        };
        limited(session.listen(kind.channel())).await?;
        let identity = limited(identify(&session.client)).await?;
        Ok(Self {
            session,
            kind,
            columns: None,
            identity,
            listed: BTreeMap::new(),
            waits: SchemalessReads::new(),
        })
    }

    /// Returns the databases from which the source's tables come: its own, and those that it mirrors.
    pub async fn origins(&self) -> Result<BTreeSet<String>, SourceError> {
        let mut origins = match self.kind {
            SourceKind::Steampipe => BTreeSet::new(),
            SourceKind::Spcd => limited(origins(&self.session.client)).await?,
        };
        origins.extend(self.identity.id.clone());
        Ok(origins)
    }

    /// Reads the list. `full` reads the catalog for all connections, instead of those whose rows have changed.
    pub async fn read(&mut self, full: bool) -> Result<MirrorView, SourceError> {
        let client = &self.session.client;
        let mut known = std::mem::take(&mut self.listed);
        let (kind, known_columns) = (self.kind, self.columns.take());
        let read = async {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            client.batch_execute(begin).await?;
            let columns = columns(client, kind).await?;
            if columns != known_columns {
                known.values_mut().for_each(|one| one.version = None);
            }
            let listed = list(client, kind, columns.is_some(), known, full).await;
            let extensions = match &listed {
                Ok(_) => extensions(client).await,
                Err(_) => Ok(BTreeSet::new()),
            };
            client.batch_execute("ROLLBACK").await?;
            Ok((columns, listed?, extensions?))
        };
        let extensions;
        (self.columns, self.listed, extensions) = limited(read).await?;
        let connections = read_list(kind, self.listed.values(), &mut self.waits)
            .map_err(SourceError::Unusable)?;
        Ok(MirrorView {
            kind: Some(kind),
            connections,
            extensions,
            origins: BTreeSet::new(),
            problem: None,
        })
    }

    /// Whether a change without a notification is expected: a Steampipe service announces only the first
    /// connection of each plugin, and a connection may be ready before its schema exists.
    pub fn is_waiting(&self, view: &MirrorView) -> bool {
        let is_at_work = |one: &Arc<SourceConnection>| one.state == SourceState::AtWork;
        let mut waits = self
            .waits
            .keys()
            .filter_map(|name| view.connections.get(name));
        waits.any(is_at_work)
            || self.kind == SourceKind::Steampipe && view.connections.values().any(is_at_work)
    }

    /// Waits for a notification, and consumes all that have arrived.
    ///
    /// # Errors
    /// The session ended.
    pub async fn notified(&mut self) -> Result<(), SourceError> {
        let ended = || SourceError::Failed("the session with it ended".to_owned());
        self.session.notified().await.ok_or_else(ended)
    }

    /// Checks that the source answers.
    pub async fn ping(&self) -> Result<(), SourceError> {
        limited(async { Ok(self.session.client.batch_execute("").await?) }).await
    }
}

fn connect_error(error: ConnectError) -> SourceError {
    let is_credentials = error.is_wrong_password();
    let text = match &error {
        ConnectError::Unreachable { target, source } => {
            format!("{target} cannot be reached: {}", chain(source.as_ref()))
        }
        ConnectError::Refused { target, source, .. } => {
            format!("{target} refuses the session: {}", chain(source.as_ref()))
        }
        ConnectError::Configuration(text) => text.clone(),
    };
    match is_credentials {
        true => SourceError::Credentials(text),
        false => SourceError::NoSession(text),
    }
}

/// Returns the text of an error and its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

/// Waits for an answer within the time limit.
async fn limited<T>(question: impl Future<Output = Result<T, HubError>>) -> Result<T, SourceError> {
    match timeout(ANSWER_TIMEOUT, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(HubError::StatementFailed { text, code })) => Err(match code {
            SqlState::INSUFFICIENT_PRIVILEGE => SourceError::Unusable(format!(
                "its role may not read the list of connections: {text} (make it a member of \
                 spcd_users or steampipe_users there)"
            )),
            _ => SourceError::Failed(text),
        }),
        Ok(Err(error)) => Err(SourceError::Failed(match error {
            HubError::ConnectionLost(error) => {
                format!("the session with it ended: {}", chain(&error))
            }
            error => error.to_string(),
        })),
        Err(_) => Err(SourceError::Silent),
    }
}

/// Returns the kind of a source. Reads only the catalog, which needs no privilege.
async fn detect(client: &Client) -> Result<Option<SourceKind>, HubError> {
    let sql = "SELECT EXISTS (
                   SELECT FROM pg_catalog.pg_class c
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = $1 AND c.relname = $2)";
    for kind in SourceKind::ALL {
        let (schema, table) = kind.table();
        if client
            .query_one(sql, &[&schema, &table])
            .await?
            .try_get(0)?
        {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// Returns the columns of the list if it is a table. Adding, dropping or renaming a column changes no
/// row's version.
async fn columns(client: &Client, kind: SourceKind) -> Result<Option<String>, HubError> {
    let sql = "SELECT pg_catalog.string_agg(
                   pg_catalog.concat_ws(' ', a.attnum, a.atttypid, a.attname), ',' ORDER BY a.attnum)
               FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
               WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'r'
                 AND a.attnum > 0 AND NOT a.attisdropped";
    let (schema, table) = kind.table();
    Ok(client
        .query_one(sql, &[&schema, &table])
        .await?
        .try_get(0)?)
}

/// Returns the rows of the list, with the digests of their schemas. If the list is a table, reads only
/// rows whose version differs from the `known` one. `full` computes all digests again.
async fn list(
    client: &Client,
    kind: SourceKind,
    is_table: bool,
    mut known: BTreeMap<String, Listed>,
    full: bool,
) -> Result<BTreeMap<String, Listed>, HubError> {
    let (schema, table) = kind.table();
    let [name_column, _] = kind.columns();
    let (from, column) = (sql::qualified(schema, table), sql::ident(name_column));
    let mut listed = BTreeMap::new();
    let mut changed: Option<Vec<String>> = None;
    if is_table {
        let sql = format!("SELECT s.{column}::text, {VERSION} FROM {from} s");
        let changed = changed.insert(Vec::new());
        for row in client.query(&sql, &[]).await? {
            let Some(name): Option<String> = row.try_get(0)? else {
                continue;
            };
            let version: Option<String> = row.try_get(1)?;
            match known.remove(&name).filter(|one| one.version == version) {
                Some(same) => drop(listed.insert(name, same)),
                None => changed.push(name),
            }
        }
    }
    let version = if is_table { VERSION } else { "NULL::text" };
    // Includes columns of other versions.
    let sql = format!(
        "SELECT pg_catalog.to_jsonb(s), {version} FROM {from} s
         WHERE $1::text[] IS NULL OR s.{column}::text = ANY ($1) OR s.{column} IS NULL"
    );
    let rows = client.query(&sql, &[&changed]).await?;
    for (number, row) in rows.into_iter().enumerate() {
        let (row, version): (Value, _) = (row.try_get(0)?, row.try_get(1)?);
        // One without a name is reported with the others.
        let name = row.get(name_column).and_then(Value::as_str);
        let name = name.map_or_else(|| format!("\0{number}"), str::to_owned);
        let same = known.remove(&name).filter(|known| known.row == row);
        let digest = same.and_then(|same| same.digest);
        listed.insert(
            name,
            Listed {
                row,
                version,
                digest,
            },
        );
    }
    let is_wanted = |(name, one): &(&String, &Listed)| {
        (full || one.digest.is_none()) && !name.starts_with('\0')
    };
    let names: Vec<String> = (listed.iter().filter(is_wanted))
        .map(|(name, _)| name.clone())
        .collect();
    let mut digests = digests(client, &names).await?;
    for name in names {
        if let Some(one) = listed.get_mut(&name) {
            one.digest = digests.remove(&name);
        }
    }
    Ok(listed)
}

/// Returns a text for each schema that differs after each change of its tables, by the versions of their
/// rows in the catalog. Goes through `pg_depend`, since `relnamespace` has no index.
async fn digests(
    client: &Client,
    names: &[String],
) -> Result<BTreeMap<String, SchemaDigest>, HubError> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT n.nspname::text, pg_catalog.concat_ws(' ', n.oid, count(c.oid),
                      sum(pg_catalog.hashtextextended(pg_catalog.concat_ws(
                          ' ', c.oid, c.xmin, c.relname, c.relnatts, c.relkind), 0))),
                      pg_catalog.concat_ws(' ', count(c.oid),
                      sum(pg_catalog.hashtextextended(pg_catalog.concat_ws(
                          ' ', c.relname, c.relnatts), 0)))
               FROM pg_catalog.pg_namespace n
               LEFT JOIN pg_catalog.pg_depend d
                    ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
                   AND d.refobjid = n.oid AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
               LEFT JOIN pg_catalog.pg_class c
                    ON c.oid = d.objid AND c.relkind IN ('r', 'v', 'f', 'm', 'p')
               WHERE n.nspname = ANY ($1::text[])
               GROUP BY n.oid, n.nspname";
    let rows = client.query(sql, &[&names]).await?;
    rows.iter()
        .map(|row| {
            let (version, names) = (row.try_get(1)?, row.try_get(2)?);
            Ok((row.try_get(0)?, SchemaDigest { version, names }))
        })
        .collect()
}

async fn extensions(client: &Client) -> Result<BTreeSet<String>, HubError> {
    let sql = "SELECT extname::text FROM pg_catalog.pg_extension WHERE extname = ANY ($1::text[])";
    let names: &[&str] = &TYPE_EXTENSIONS;
    let rows = client.query(sql, &[&names]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Returns the databases that a hub mirrors, directly or through others. Empty for an earlier version.
async fn origins(client: &Client) -> Result<BTreeSet<String>, HubError> {
    let is_there = "SELECT EXISTS (
                        SELECT FROM pg_catalog.pg_class c
                        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = 'spcd' AND c.relname = 'mirror')";
    if !client
        .query_one(is_there, &[])
        .await?
        .try_get::<_, bool>(0)?
    {
        return Ok(BTreeSet::new());
    }
    let sql = "SELECT DISTINCT o.origin FROM spcd.mirror m
               CROSS JOIN LATERAL pg_catalog.unnest(m.origins) AS o (origin)";
    let rows = client.query(sql, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
