//! The hub's record of its mirrors' sources.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spcd_core::mirror::{MirrorProblem, MirrorView, MirrorViews, SourceConnection, SourceKind};
use tokio_postgres::Client;

use crate::{HubError, has_relation, transaction};

/// Returns the last known lists of the sources. Empty if the table does not exist.
pub async fn read(client: &Client) -> Result<MirrorViews, HubError> {
    if !has_relation(client, "spcd.mirror").await? {
        return Ok(MirrorViews::new());
    }
    let sql = "SELECT name, kind, origins, extensions, connections, error FROM spcd.mirror";
    let mut views = MirrorViews::new();
    for row in client.query(sql, &[]).await? {
        let kind: Option<&str> = row.try_get(1)?;
        let error: Option<String> = row.try_get(5)?;
        let (origins, extensions): (Vec<String>, Vec<String>) = (row.try_get(2)?, row.try_get(3)?);
        // Another version may have written the row, which then counts as unknown.
        let connections: Option<BTreeMap<String, Arc<SourceConnection>>> = parse(row.try_get(4)?);
        let kind = kind.and_then(SourceKind::from_name);
        let view = MirrorView {
            kind: kind.filter(|_| connections.is_some()),
            connections: connections.unwrap_or_default(),
            extensions: extensions.into_iter().collect(),
            origins: origins.into_iter().collect(),
            problem: error.map(MirrorProblem::Unreachable),
        };
        views.insert(row.try_get(0)?, Arc::new(view));
    }
    Ok(views)
}

/// State of a mirror, as the leader recorded it.
#[derive(Debug)]
pub struct Following {
    /// Label of the block.
    pub name: String,
    /// Kind of the source; `None` if it has never answered.
    pub kind: Option<SourceKind>,
    /// Number of connections that it lists.
    pub connections: i64,
    /// Reason why it is not followed at present.
    pub error: Option<String>,
}

/// Returns the recorded state of each mirror.
pub async fn following(client: &Client) -> Result<Vec<Following>, HubError> {
    if !has_relation(client, "spcd.mirror").await? {
        return Ok(Vec::new());
    }
    let sql =
        "SELECT name, kind, (SELECT count(*) FROM pg_catalog.jsonb_object_keys(connections)), error
               FROM spcd.mirror ORDER BY name";
    let rows = client.query(sql, &[]).await?;
    let mirror = |row: &tokio_postgres::Row| {
        let kind: Option<&str> = row.try_get(1)?;
        Ok(Following {
            name: row.try_get(0)?,
            kind: kind.and_then(SourceKind::from_name),
            connections: row.try_get(2)?,
            error: row.try_get(3)?,
        })
    };
    rows.iter().map(mirror).collect()
}

fn parse(value: serde_json::Value) -> Option<BTreeMap<String, Arc<SourceConnection>>> {
    let connections: BTreeMap<String, SourceConnection> = serde_json::from_value(value).ok()?;
    let shared = |(name, one): (String, SourceConnection)| (name, Arc::new(one));
    Some(connections.into_iter().map(shared).collect())
}

/// Records a source's list, in the name of a leader's epoch.
pub async fn write(
    client: &Client,
    epoch: i64,
    name: &str,
    view: &MirrorView,
) -> Result<(), HubError> {
    let kind = view.kind.map(SourceKind::name);
    let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>();
    let (origins, extensions) = (list(&view.origins), list(&view.extensions));
    let recorded = view.connections.iter();
    let recorded: BTreeMap<&String, SourceConnection> =
        recorded.map(|(name, one)| (name, one.recorded())).collect();
    let connections = serde_json::to_value(recorded).unwrap_or_default();
    let error = view.problem.as_ref().map(MirrorProblem::text);
    transaction::begin(client, epoch).await?;
    let sql = "INSERT INTO spcd.mirror AS m (name, kind, origins, extensions, connections, error)
               VALUES ($1, $2, $3, $4, $5, $6)
               ON CONFLICT (name) DO UPDATE SET
                   kind = excluded.kind, origins = excluded.origins,
                   extensions = excluded.extensions, connections = excluded.connections,
                   error = excluded.error, time_changed = pg_catalog.clock_timestamp()";
    let written = client
        .execute(
            sql,
            &[&name, &kind, &origins, &extensions, &connections, &error],
        )
        .await;
    transaction::end(client, written.map(drop).map_err(HubError::from)).await
}

/// Deletes mirrors without a block and without connections. Returns the remaining ones.
pub async fn forget_stale(
    client: &Client,
    epoch: i64,
    names: &[&String],
) -> Result<BTreeSet<String>, HubError> {
    transaction::begin(client, epoch).await?;
    let sql = "DELETE FROM spcd.mirror m
               WHERE m.name <> ALL ($1) AND NOT EXISTS (
                   SELECT FROM spcd.connection_state s WHERE s.mirror = m.name)";
    let forgotten = client.execute(sql, &[&names]).await;
    transaction::end(client, forgotten.map(drop).map_err(HubError::from)).await?;
    let rows = client.query("SELECT name FROM spcd.mirror", &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
