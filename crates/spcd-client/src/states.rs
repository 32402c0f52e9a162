//! Reads `spcd.connection_state` and `spcd.connection_event`.

use std::collections::BTreeMap;

use spcd_protocol::{Change, ConnectionState, HealthChange, Status};
use tokio_postgres::Client;

use crate::error::Error;

/// Returns the rows of the named connections, or of all, in byte order of their names. Unknown
/// names have no row.
///
/// ```no_run
/// # async fn example(client: &tokio_postgres::Client) -> Result<(), spcd_client::Error> {
/// for row in spcd_client::states(client, None).await? {
///     println!("{} is {}", row.connection_name, row.status);
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::NotKept`], [`Error::Database`] and [`Error::Row`].
pub async fn states(
    client: &Client,
    names: Option<&[String]>,
) -> Result<Vec<ConnectionState>, Error> {
    let sql = "SELECT pg_catalog.to_jsonb(s) FROM spcd.connection_state s
               WHERE $1::pg_catalog.text[] IS NULL
                  OR connection_name OPERATOR(pg_catalog.=) ANY ($1)
               ORDER BY connection_name";
    let rows = client.query(sql, &[&names]).await.map_err(Error::reading)?;
    rows.iter()
        .map(|row| serde_json::from_value(row.try_get(0)?).map_err(Error::Row))
        .collect()
}

/// Columns of a row that the rules use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateSummary {
    pub(crate) status: Status,
    pub(crate) error: Option<String>,
    /// Id of the row's last event; 0 if there is none.
    pub(crate) event: i64,
    pub(crate) time: String,
    pub(crate) is_static: bool,
    pub(crate) plugin_instance: String,
    /// Reachability in that event.
    pub(crate) health: Option<HealthChange>,
}

impl Default for StateSummary {
    fn default() -> Self {
        Self {
            status: Status::Pending,
            error: None,
            event: 0,
            time: String::new(),
            is_static: false,
            plugin_instance: String::new(),
            health: None,
        }
    }
}

/// Snapshot of the table.
pub(crate) struct StateTable {
    pub(crate) rows: BTreeMap<String, StateSummary>,
    /// Process id of the backend that read it.
    pub(crate) backend: i32,
    /// Time of the snapshot.
    pub(crate) time: String,
    /// Id of the last event of all connections.
    pub(crate) head: i64,
}

/// Reads the named rows, or all.
pub(crate) async fn read_table(
    client: &Client,
    names: Option<&[String]>,
) -> Result<StateTable, Error> {
    // The outer join returns one row even for an empty table.
    let sql = "SELECT pg_catalog.pg_backend_pid(),
                      pg_catalog.to_jsonb(pg_catalog.now()) #>> '{}',
                      s.connection_name, s.status, s.error,
                      pg_catalog.to_jsonb(s.time_changed) #>> '{}',
                      s.schema_mode, s.plugin_instance,
                      e.id, e.health,
                      (SELECT pg_catalog.max(id) FROM spcd.connection_event)
               FROM (VALUES (1)) one
               LEFT JOIN spcd.connection_state s
                   ON $1::pg_catalog.text[] IS NULL
                      OR s.connection_name OPERATOR(pg_catalog.=) ANY ($1)
               LEFT JOIN LATERAL (
                   SELECT id, health FROM spcd.connection_event e
                   WHERE e.connection_name OPERATOR(pg_catalog.=) s.connection_name
                   ORDER BY id DESC LIMIT 1) e ON true";
    let rows = client.query(sql, &[&names]).await.map_err(Error::reading)?;
    let mut table = StateTable {
        rows: BTreeMap::new(),
        backend: 0,
        time: String::new(),
        head: 0,
    };
    for row in &rows {
        table.head = row.try_get::<_, Option<i64>>(10)?.unwrap_or_default();
        table.backend = row.try_get(0)?;
        table.time = row.try_get::<_, Option<String>>(1)?.unwrap_or_default();
        let Some(name) = row.try_get::<_, Option<String>>(2)? else {
            continue;
        };
        let status: String = row.try_get(3)?;
        let status = serde_json::from_value(status.into()).map_err(Error::Row)?;
        let mode: Option<&str> = row.try_get(6)?;
        let seen = StateSummary {
            status,
            error: row.try_get(4)?,
            event: row.try_get::<_, Option<i64>>(8)?.unwrap_or_default(),
            time: row.try_get::<_, Option<String>>(5)?.unwrap_or_default(),
            is_static: mode == Some("static"),
            plugin_instance: row.try_get(7)?,
            health: (row.try_get::<_, Option<&str>>(9)?)
                .and_then(|word| serde_json::from_value(word.into()).ok()),
        };
        table.rows.insert(name, seen);
    }
    Ok(table)
}

/// Returns the id of the last event of each connection that has one.
pub(crate) async fn last_events(
    client: &Client,
    names: &[String],
) -> Result<BTreeMap<String, i64>, Error> {
    let sql = "SELECT e.connection_name, pg_catalog.max(e.id) FROM spcd.connection_event e
               WHERE e.connection_name OPERATOR(pg_catalog.=) ANY ($1) GROUP BY 1";
    let rows = client.query(sql, &[&names]).await.map_err(Error::reading)?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

/// Returns the events after `head` in order, of the named connections or of all.
pub(crate) async fn events(
    client: &Client,
    head: i64,
    names: Option<&[String]>,
) -> Result<Vec<Change>, Error> {
    let sql = "SELECT pg_catalog.jsonb_build_object(
                   'connection', e.connection_name, 'status', e.status, 'previous', e.previous,
                   'time', e.time, 'event', e.id, 'error', e.error, 'health', e.health)
               FROM spcd.connection_event e
               WHERE e.id OPERATOR(pg_catalog.>) $1 AND e.connection_name IS NOT NULL
                 AND ($2::pg_catalog.text[] IS NULL
                     OR e.connection_name OPERATOR(pg_catalog.=) ANY ($2))
               ORDER BY e.id";
    let rows = (client.query(sql, &[&head, &names]).await).map_err(Error::reading)?;
    rows.iter()
        .map(|row| serde_json::from_value(row.try_get(0)?).map_err(Error::Row))
        .collect()
}
