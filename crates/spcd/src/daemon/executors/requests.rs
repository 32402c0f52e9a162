//! Reading and answering the requests of clients (`spcd.refresh_request`).

use spcd_core::scheduler::{Action, Event, Request};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use spcd_postgres::HubError;

/// Maximum number of requests in memory, and of the names in them. The others stay queued in the table.
/// The oldest one is always in memory.
const MAX_OPEN_REQUESTS: i64 = 100;
const MAX_OPEN_NAMES: i64 = 200_000;
/// Maximum number of names that are kept of an answered request.
const MAX_ANSWERED_NAMES: i32 = 100;

/// Reads the requests that are not open.
pub async fn read(client: &Client, epoch: i64, open: &[i64]) -> Result<Event, HubError> {
    // The array may contain NULLs or nested arrays.
    let sql = r#"SELECT q.id, CASE WHEN f.fits AND q.connections IS NOT NULL THEN ARRAY(
                   SELECT DISTINCT name COLLATE "C" FROM pg_catalog.unnest(q.connections) AS n (name)
                   WHERE name IS NOT NULL) END, q.action, f.fits, q.retries_refused
               FROM (SELECT id, connections, action, retries_refused, row_number() OVER w AS n,
                            sum(name_count) OVER w AS names
                     FROM spcd.refresh_request
                     WHERE done_at IS NULL WINDOW w AS (ORDER BY id)) q
               CROSS JOIN LATERAL (
                   SELECT q.n = 1 OR (q.n <= $2 AND q.names <= $3) AS fits) f
               WHERE q.n <= $2 + 1 AND q.id <> ALL ($1)
               ORDER BY q.id"#;
    let rows = client
        .query(sql, &[&open, &MAX_OPEN_REQUESTS, &MAX_OPEN_NAMES])
        .await?;
    take_retries(client, epoch, &rows).await?;
    let (mut requests, mut is_crowded) = (Vec::new(), false);
    for row in rows {
        if !row.try_get::<_, bool>(3)? {
            is_crowded = true;
            break;
        }
        let (id, mut names): (i64, Option<Vec<String>>) = (row.try_get(0)?, row.try_get(1)?);
        if let Some(names) = &mut names {
            // The database sorts in another order.
            names.sort_unstable();
        }
        let action = match row.try_get(2)? {
            "reconnect" => Action::Reconnect,
            "disconnect" => Action::Disconnect,
            "retry" => Action::Retry,
            _ => Action::Refresh,
        };
        let request = Request {
            action,
            names,
            retries_refused: row.try_get(4)?,
        };
        requests.push((id, request));
    }
    Ok(Event::Requested {
        requests,
        is_crowded,
    })
}

/// Writes the answer to a request.
pub async fn answer(
    client: &Client,
    epoch: i64,
    id: i64,
    error: Option<String>,
) -> Result<(), HubError> {
    let sql = "UPDATE spcd.refresh_request
               SET done_at = pg_catalog.clock_timestamp(), error = $2,
                   connections = CASE WHEN name_count > $4 THEN connections[1:$4]
                                      ELSE connections END
               WHERE id = $1 AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = $3)";
    let params: [&(dyn ToSql + Sync); 4] = [&id, &error, &epoch, &MAX_ANSWERED_NAMES];
    client.execute(sql, &params).await?;
    Ok(())
}

/// Turns unanswered retries into refreshes for the next leader: a retry may crash the server again.
async fn take_retries(client: &Client, epoch: i64, rows: &[Row]) -> Result<(), HubError> {
    let mut ids: Vec<i64> = Vec::new();
    for row in rows {
        if row.try_get::<_, &str>(2)? == "retry" && row.try_get(3)? {
            ids.push(row.try_get(0)?);
        }
    }
    if !ids.is_empty() {
        let taken = "UPDATE spcd.refresh_request SET action = 'refresh'
                     WHERE id = ANY ($1) AND EXISTS (SELECT FROM spcd.daemon WHERE epoch = $2)";
        client.execute(taken, &[&ids, &epoch]).await?;
    }
    Ok(())
}
