//! `/api/v1/connections`, and the actions on a connection.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;

use super::{App, Problem, Shared, json_answer};

/// SQL of a connection as JSON: its row and the health of its source.
const CONNECTION: &str = "
    SELECT s.connection_name, pg_catalog.row_to_json((SELECT c FROM (SELECT s.*,
        CASE WHEN h.connection_name IS NOT NULL THEN
            pg_catalog.row_to_json((SELECT x FROM (SELECT h.reachable, h.last_checked, h.latency_ms,
                h.attempts, h.last_failure, h.failed_at, h.next_attempt, h.breaker, h.held) x))
        END AS health) c)) AS connection
    FROM spcd.connection_state s
    LEFT JOIN spcd.connection_health h USING (connection_name)";

/// Returns the last event, and for the rows of the state (2 and 3) and of the health (4 and 5) their
/// number and the sum of their versions, which changes with any row.
const VERSION: &str = "
    SELECT coalesce((SELECT max(id) FROM spcd.connection_event), 0), s.n, s.v, h.n, h.v
    FROM (SELECT count(*) AS n, coalesce(sum((age('3'::xid)::bigint - age(xmin)) & 4294967295), 0)::bigint AS v
          FROM spcd.connection_state) s
    CROSS JOIN (SELECT count(*) AS n, coalesce(sum((age('3'::xid)::bigint - age(xmin)) & 4294967295), 0)::bigint AS v
          FROM spcd.connection_health) h";

/// Maximum age of a list whose statuses are current. With 10,000 probed sources the health of some
/// source changes all the time.
const MAX_HEALTH_AGE: Duration = Duration::from_secs(1);

/// Maximum number of lists being sent. A slow client keeps a whole list in memory, which may be
/// outdated.
pub const MAX_SENDING: usize = 32;
/// Maximum time for which a request waits until it may send a list.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Cached list. Building it takes about 100 times as long as checking that it is current.
pub struct Listing {
    made: Mutex<Option<Made>>,
    sending: Arc<Semaphore>,
}

impl Default for Listing {
    fn default() -> Self {
        Self {
            made: Mutex::default(),
            sending: Arc::new(Semaphore::new(MAX_SENDING)),
        }
    }
}

#[cfg(test)]
impl Listing {
    /// Returns a list that does not expire during a test.
    pub fn of(body: Bytes) -> Self {
        let checked = Instant::now() + Duration::from_secs(86_400);
        let made = Made {
            version: Version {
                event: 1,
                state: (1, 1),
                health: (0, 0),
            },
            body,
            when: checked,
            checked,
        };
        Self {
            made: Mutex::new(Some(made)),
            ..Self::default()
        }
    }
}

/// A list being sent. Dropping its last reference lets the next request send one.
struct Sent {
    body: Bytes,
    _turn: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

struct Made {
    version: Version,
    body: Bytes,
    when: Instant,
    /// Time of the last check that it is current.
    checked: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    event: i64,
    state: (i64, i64),
    health: (i64, i64),
}

impl Version {
    fn read(row: &Row) -> Result<Self, Problem> {
        let number = |at: usize| row.try_get::<_, i64>(at).map_err(|_| unreadable());
        Ok(Self {
            event: number(0)?,
            state: (number(1)?, number(2)?),
            health: (number(3)?, number(4)?),
        })
    }

    fn etag(&self) -> String {
        let (state, health) = (self.state, self.health);
        format!(
            "\"{:x}-{:x}-{:x}-{:x}-{:x}\"",
            self.event, state.0, state.1, health.0, health.1
        )
    }
}

/// Returns all connections.
pub async fn connections(
    State(app): State<Shared>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let turn = timeout(SEND_TIMEOUT, app.listing.sending.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        let error = "too many lists are being sent; try again later";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error));
    };
    let (version, body) = list(&app).await?;
    let etag = version.etag();
    let known = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|known| known.trim().trim_start_matches("W/") == etag);
    let tag = HeaderValue::from_str(&etag).map_err(|_| unreadable())?;
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => {
            let body = Bytes::from_owner(Sent { body, _turn: turn });
            ([(CONTENT_TYPE, "application/json")], body).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, tag);
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    Ok(response)
}

async fn list(app: &App) -> Result<(Version, Bytes), Problem> {
    let arrived = Instant::now();
    let mut made = app.listing.made.lock().await;
    // Re-check: another request may have read the list.
    if let Some(made) = made.as_ref()
        && made.checked > arrived
    {
        return Ok((made.version, made.body.clone()));
    }
    let checked = Instant::now();
    let version = Version::read(&app.hub.row(VERSION, &[]).await?)?;
    if let Some(made) = made.as_mut()
        && made.version.event == version.event
        && made.version.state == version.state
        && (made.version.health == version.health || made.when.elapsed() < MAX_HEALTH_AGE)
    {
        made.checked = checked;
        return Ok((made.version, made.body.clone()));
    }
    let all = format!(
        "SELECT v.*, coalesce((SELECT pg_catalog.string_agg(c.connection::text, E',\\n'
                                       ORDER BY c.connection_name) FROM ({CONNECTION}) c), '')
         FROM ({VERSION}) v (event, state_rows, state, health_rows, health)"
    );
    let row = app.hub.row(&all, &[]).await?;
    let version = Version::read(&row)?;
    let rows: &str = row.try_get(5).map_err(|_| unreadable())?;
    let event = version.event;
    let body = Bytes::from(format!("{{\"event\":{event},\"connections\":[{rows}]}}\n"));
    *made = Some(Made {
        version,
        body: body.clone(),
        when: Instant::now(),
        checked,
    });
    Ok((version, body))
}

/// Returns a connection and its last events.
pub async fn connection(State(app): State<Shared>, name: Name) -> Result<Response, Problem> {
    let name = storable_name(&name)?;
    let sql = format!(
        "SELECT c.connection::text, (
             SELECT coalesce('[' || pg_catalog.string_agg(e.event::text, ',' ORDER BY e.id DESC) || ']', '[]')
             FROM (SELECT id, {EVENT} AS event FROM spcd.connection_event e
                   WHERE connection_name = $1 ORDER BY id DESC LIMIT 50) e)
         FROM ({CONNECTION} WHERE s.connection_name = $1) c"
    );
    let rows = app.hub.query(&sql, &[&name]).await?;
    let Some(row) = rows.first() else {
        return Err(unknown(name));
    };
    let (connection, events): (&str, &str) = (
        row.try_get(0).map_err(|_| unreadable())?,
        row.try_get(1).map_err(|_| unreadable())?,
    );
    // Adds a member to the JSON object.
    let open = connection.strip_suffix('}').ok_or_else(unreadable)?;
    let body = format!("{open},\"events\":{events}}}\n");
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// SQL of an event as JSON, from a row `e` of `spcd.connection_event`.
pub const EVENT: &str = "pg_catalog.json_build_object(
    'event', e.id, 'time', e.time, 'connection', e.connection_name, 'previous', e.previous,
    'status', e.status, 'error', e.error, 'health', e.health, 'generation', e.generation,
    'duration_ms', pg_catalog.round(extract(epoch FROM e.duration)::numeric * 1000))";

/// Requests a refresh or another attempt.
async fn request(app: &App, name: &Name, function: &str) -> Result<Response, Problem> {
    let name = storable_name(name)?;
    let is_there = "SELECT EXISTS (
                        SELECT FROM spcd.connection_state WHERE connection_name = $1)";
    let row = app.hub.row(is_there, &[&name]).await?;
    if !row.try_get(0).unwrap_or(false) {
        return Err(unknown(name));
    }
    let sql = format!("SELECT spcd.{function}(ARRAY[$1::text])");
    let row = app.hub.row(&sql, &[&name]).await?;
    let id: i64 = row.try_get(0).map_err(|_| unreadable())?;
    Ok(json_answer(StatusCode::ACCEPTED, &json!({"request": id})))
}

/// Requests a refresh of the tables.
pub async fn refresh(State(app): State<Shared>, name: Name) -> Result<Response, Problem> {
    request(&app, &name, "refresh").await
}

/// Requests an attempt at once, also after failures.
pub async fn reconnect(State(app): State<Shared>, name: Name) -> Result<Response, Problem> {
    request(&app, &name, "reconnect").await
}

/// Pauses the connection: nothing is sent to its source until `reconnect`.
pub async fn disconnect(State(app): State<Shared>, name: Name) -> Result<Response, Problem> {
    request(&app, &name, "disconnect").await
}

/// A connection's name in a path.
type Name = Result<Path<String>, PathRejection>;

/// Returns the name if the database can hold it.
fn storable_name(name: &Name) -> Result<&str, Problem> {
    match name {
        Ok(Path(name)) if name.contains('\0') => Err(unknown(name)),
        Ok(Path(name)) => Ok(name),
        Err(_) => {
            let error = "a connection's name in the path must be UTF-8, percent-encoded";
            Err(Problem::new(StatusCode::BAD_REQUEST, error))
        }
    }
}

fn unknown(name: &str) -> Problem {
    let error = format!("no connection is named {name:?}");
    Problem::new(StatusCode::NOT_FOUND, error)
}

fn unreadable() -> Problem {
    let error = "unexpected row from the database";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}
