//! The gateway's states, and requests to its daemon.

use std::collections::BTreeMap;

use spcd_core::diff::TableWarning;
use spcd_core::gateway::GatewayRow;
use spcd_core::scheduler::Action;
use tokio_postgres::Client;

use crate::connection::Session;
use crate::{HubError, gateway_reader, has_relation};

/// Subscribes to changes of the gateway's states and of its reader's password.
pub async fn listen(session: &Session) -> Result<(), HubError> {
    session.listen(spcd_protocol::CHANNEL).await?;
    session.listen(gateway_reader::CHANNEL).await
}

/// Returns the gateway's states, by connection.
pub async fn rows(client: &Client) -> Result<BTreeMap<String, GatewayRow>, HubError> {
    if !has_relation(client, "spcd.left_out_table").await? {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT s.connection_name, s.status, s.error, s.warnings,
                      a.target_hash, s.schema_hash, s.connections, a.members,
                      l.tables, l.texts
               FROM spcd.connection_state s
               LEFT JOIN spcd.applied a USING (connection_name)
               LEFT JOIN (SELECT connection_name,
                                 pg_catalog.array_agg(table_name ORDER BY table_name, warning) AS tables,
                                 pg_catalog.array_agg(warning ORDER BY table_name, warning) AS texts
                          FROM spcd.left_out_table GROUP BY 1) l USING (connection_name)";
    let mut rows = BTreeMap::new();
    for row in client.query(sql, &[]).await? {
        let status: String = row.try_get(1)?;
        // Skips a status of a newer version.
        let Ok(status) = status.parse() else {
            continue;
        };
        rows.insert(
            row.try_get(0)?,
            GatewayRow {
                status,
                error: row.try_get(2)?,
                warnings: row.try_get(3)?,
                left_out: left_out(row.try_get(8)?, row.try_get(9)?),
                target_hash: row.try_get(4)?,
                schema_hash: row.try_get(5)?,
                connections: row.try_get(6)?,
                members: row.try_get(7)?,
            },
        );
    }
    Ok(rows)
}

fn left_out(tables: Option<Vec<Option<String>>>, texts: Option<Vec<String>>) -> Vec<TableWarning> {
    let tables = tables.unwrap_or_default().into_iter();
    let pairs = tables.zip(texts.unwrap_or_default());
    pairs
        .map(|(table, text)| TableWarning { table, text })
        .collect()
}

/// Writes a request for the gateway's daemon. Returns its number.
pub async fn request(client: &Client, action: Action, names: &[String]) -> Result<i64, HubError> {
    let sql = match action {
        Action::Refresh => "SELECT spcd.refresh($1)",
        Action::Reconnect => "SELECT spcd.reconnect($1)",
        Action::Disconnect => "SELECT spcd.disconnect($1)",
        Action::Retry => "SELECT spcd.retry($1)",
    };
    Ok(client.query_one(sql, &[&names]).await?.try_get(0)?)
}

/// Returns the error of an answered request, `Some(None)` if it succeeded, and `None` before the answer.
pub async fn answer(client: &Client, id: i64) -> Result<Option<Option<String>>, HubError> {
    let sql = "SELECT error FROM spcd.refresh_request WHERE id = $1 AND done_at IS NOT NULL";
    let row = client.query_opt(sql, &[&id]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}
