//! Reading the list of a mirror's source, in a session with the source itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use spcd_core::config::ForeignSource;
use spcd_core::mirror::{
    Listed, MirrorView, SchemaDigest, SchemalessWait, SourceConnection, SourceKind, SourceState,
    read_list,
};
use spcd_core::sql;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::identity::{HubIdentity, identify};
use crate::HubError;
use crate::connection::{ConnectError, Endpoint, Session};

/// Time limit of each question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Purpose in the session's name.
const PURPOSE: &str = "mirror";
/// Extensions of PostgreSQL that bring types, and that any owner of a database may create.
const TYPE_EXTENSIONS: [&str; 6] = ["citext", "cube", "hstore", "isn", "ltree", "seg"];

/// A source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No session with it.
    #[error("{0}")]
    NoSession(String),
    /// It rejects the credentials.
    #[error("{0}")]
    Credentials(String),
    /// It is neither of the two kinds, or its tables are not understood.
    #[error("{0}")]
    Unusable(String),
    /// It did not answer in time.
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The session ended, or a question failed.
    #[error("{0}")]
    Failed(String),
}

/// A session with a source, and what was read in it.
pub struct Reader {
    session: Session,
    kind: SourceKind,
    /// The source's database.
    pub identity: HubIdentity,
    listed: BTreeMap<String, Listed>,
    waits: SchemalessWait,
}

impl Reader {
    /// Opens a session and subscribes to the source's channel.
    ///
    /// # Errors
    /// A source that cannot be reached or is of no known kind.
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
        let listen = format!("LISTEN {}", sql::ident(kind.channel()));
        let listen = async { Ok(session.client.batch_execute(&listen).await?) };
        limited(listen).await?;
        let identity = limited(identify(&session.client)).await?;
        Ok(Self {
            session,
            kind,
            identity,
            listed: BTreeMap::new(),
            waits: SchemalessWait::new(),
        })
    }

    /// Returns the databases that the source's tables come from: its own, and those that it mirrors.
    pub async fn origins(&self) -> Result<BTreeSet<String>, SourceError> {
        let mut origins = match self.kind {
            SourceKind::Steampipe => BTreeSet::new(),
            SourceKind::Spcd => limited(origins(&self.session.client)).await?,
        };
        origins.extend(self.identity.id.clone());
        Ok(origins)
    }

    /// Reads the list. `full` looks at the catalog of all connections, and not only of those whose rows
    /// differ.
    pub async fn read(&mut self, full: bool) -> Result<MirrorView, SourceError> {
        let client = &self.session.client;
        let known = std::mem::take(&mut self.listed);
        let kind = self.kind;
        let read = async {
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            client.batch_execute(begin).await?;
            let listed = list(client, kind, &known, full).await;
            let extensions = match &listed {
                Ok(_) => extensions(client).await,
                Err(_) => Ok(BTreeSet::new()),
            };
            client.batch_execute("ROLLBACK").await?;
            Ok((listed?, extensions?))
        };
        let (listed, extensions) = limited(read).await?;
        self.listed = listed;
        let rows: Vec<Listed> = self.listed.values().cloned().collect();
        let connections = read_list(kind, &rows, &mut self.waits).map_err(SourceError::Unusable)?;
        Ok(MirrorView {
            kind: Some(kind),
            connections,
            extensions,
            origins: BTreeSet::new(),
            problem: None,
        })
    }

    /// Whether something is to change there that is not announced: a service of Steampipe announces the
    /// first connection of each plugin only, and a connection may be ready before its schema is there.
    pub fn is_waiting(&self, view: &MirrorView) -> bool {
        let is_at_work = |one: &Arc<SourceConnection>| one.state == SourceState::AtWork;
        let mut waits = self
            .waits
            .keys()
            .filter_map(|name| view.connections.get(name));
        waits.any(is_at_work)
            || self.kind == SourceKind::Steampipe && view.connections.values().any(is_at_work)
    }

    /// Waits for a notification. Further ones that have arrived are taken with it.
    ///
    /// # Errors
    /// The session ended.
    pub async fn notified(&mut self) -> Result<(), SourceError> {
        let message = self.session.messages.recv().await;
        message.ok_or_else(|| SourceError::Failed("the session with it ended".to_owned()))?;
        while self.session.messages.try_recv().is_ok() {}
        Ok(())
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

/// Waits for an answer within the limit.
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

/// Returns the kind of a source. Only the catalog is read, which needs no privilege.
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

/// Returns the rows of the list, with the digests of their schemas.
async fn list(
    client: &Client,
    kind: SourceKind,
    known: &BTreeMap<String, Listed>,
    full: bool,
) -> Result<BTreeMap<String, Listed>, HubError> {
    let (schema, table) = kind.table();
    let [name_column, _] = kind.columns();
    // Whatever columns there are.
    let sql = format!(
        "SELECT pg_catalog.to_jsonb(s) FROM {} s",
        sql::qualified(schema, table)
    );
    let mut listed = BTreeMap::new();
    let mut names = Vec::new();
    for (number, row) in client.query(&sql, &[]).await?.into_iter().enumerate() {
        let row: Value = row.try_get(0)?;
        // One without a name is reported with the others.
        let name = row.get(name_column).and_then(Value::as_str);
        let name = name.map_or_else(|| format!("\0{number}"), str::to_owned);
        let same = known.get(&name).filter(|known| !full && known.row == row);
        let digest = same.and_then(|same| same.digest.clone());
        if digest.is_none() {
            names.push(name.clone());
        }
        listed.insert(name, Listed { row, digest });
    }
    names.retain(|name| !name.starts_with('\0'));
    for (name, digest) in digests(client, &names).await? {
        if let Some(one) = listed.get_mut(&name) {
            one.digest = Some(digest);
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

/// Returns the databases that a hub mirrors, also through others; none from an earlier version.
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
