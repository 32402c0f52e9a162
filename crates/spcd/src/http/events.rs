//! `/api/v1/events`: all events, sent as they are committed.
//!
//! One session listens for all streams. Events are committed in the order of their ids (see the
//! migration), so a client that has received one has received all earlier ones and can resume from it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client};

use super::{Problem, Shared, api};
use crate::telemetry::{Observation, observe};
use spcd_postgres::connection::Endpoint;

/// Maximum number of events kept in memory, for streams that are slightly behind.
const MAX_RECENT: usize = 4096;
/// Maximum number of events per query.
const PAGE_SIZE: i64 = 500;
/// Maximum number of missed events that are sent. A client that missed more reads the list instead.
const MAX_MISSED: i64 = 5000;
/// Interval between comments that keep proxies from closing a stream.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Pause before another attempt to connect to the database.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Interval of checks that the listening session is alive.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Source of all streams.
pub struct Feed {
    recent: Mutex<Recent>,
    state: watch::Sender<FeedState>,
}

/// Position for which streams wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FeedState {
    /// The last committed event; `None` before the first connection to the database.
    head: Option<i64>,
    /// Number of times that all clients had to read the list again.
    resyncs: u64,
    /// Whether the database answers.
    up: bool,
}

#[derive(Default)]
struct Recent {
    /// Id of the last event before `events`, which has no gap.
    after: i64,
    events: VecDeque<(i64, Bytes)>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            state: watch::Sender::new(FeedState::default()),
        }
    }
}

impl Feed {
    /// Listens forever.
    pub async fn run(
        &self,
        mut endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
    ) -> std::convert::Infallible {
        loop {
            let current = endpoint.borrow_and_update().clone();
            let Some(current) = current else {
                if endpoint.changed().await.is_err() {
                    return std::future::pending().await;
                }
                continue;
            };
            if let Err(error) = self.listen(&current).await {
                tracing::debug!(error = format!("{error:#}"), "cannot read events");
            }
            self.state.send_if_modified(|state| {
                let was = state.up;
                state.up = false;
                was
            });
            sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn listen(&self, endpoint: &Endpoint) -> anyhow::Result<()> {
        let mut session = endpoint.connect("events").await?;
        session.listen(spcd_protocol::CHANNEL).await?;
        // Notifications were lost while no session listened: all clients read the list again.
        self.start_over(&session.client).await?;
        loop {
            let Ok(message) = timeout(CHECK_INTERVAL, session.messages.recv()).await else {
                session.ping().await?;
                continue;
            };
            let mut messages = vec![message];
            while let Ok(message) = session.messages.try_recv() {
                messages.push(Some(message));
            }
            let mut resync = false;
            for message in messages {
                resync |= receive(message)?;
            }
            match resync {
                true => self.start_over(&session.client).await?,
                false => self.read_on(&session.client).await?,
            }
        }
    }

    async fn start_over(&self, client: &Client) -> anyhow::Result<()> {
        let last = "SELECT coalesce(max(id), 0) FROM spcd.connection_event";
        let head: i64 = client.query_one(last, &[]).await?.try_get(0)?;
        *self.recent.lock() = Recent {
            after: head,
            events: VecDeque::new(),
        };
        self.state.send_modify(|state| {
            *state = FeedState {
                head: Some(head),
                resyncs: state.resyncs + 1,
                up: true,
            };
        });
        Ok(())
    }

    async fn read_on(&self, client: &Client) -> anyhow::Result<()> {
        loop {
            let after = self.state.borrow().head.unwrap_or_default();
            let rows = client.query(&page(), &[&after, &PAGE_SIZE]).await?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            let head: i64 = last.try_get(0)?;
            {
                let mut recent = self.recent.lock();
                for row in &rows {
                    let id: i64 = row.try_get(0)?;
                    recent.events.push_back((id, frame(id, row.try_get(1)?)));
                }
                while recent.events.len() > MAX_RECENT {
                    if let Some((id, _)) = recent.events.pop_front() {
                        recent.after = id;
                    }
                }
            }
            self.state.send_modify(|state| state.head = Some(head));
        }
    }
}

/// Handles a message. Returns whether all clients must read the list again.
fn receive(message: Option<AsyncMessage>) -> anyhow::Result<bool> {
    let message = message.ok_or_else(|| anyhow::anyhow!("the session ended"))?;
    let AsyncMessage::Notification(notification) = message else {
        return Ok(false);
    };
    // A payload that cannot be parsed may have announced any change.
    let Ok(heard) = serde_json::from_str::<ReceivedNotification>(notification.payload()) else {
        return Ok(true);
    };
    observe(Observation::Announced {
        changes: heard.changes.len(),
        resync: heard.resync,
    });
    Ok(heard.resync)
}

/// The fields of a notification that matter here.
#[derive(Deserialize)]
struct ReceivedNotification {
    #[serde(default)]
    resync: bool,
    #[serde(default)]
    changes: Vec<serde::de::IgnoredAny>,
}

fn page() -> String {
    let event = api::EVENT;
    format!(
        "SELECT e.id, CASE WHEN e.connection_name IS NOT NULL THEN {event}::text END
         FROM spcd.connection_event e WHERE e.id > $1 ORDER BY e.id LIMIT $2"
    )
}

/// Formats an event of the stream. One without a connection concerns all of them.
fn frame(id: i64, json: Option<&str>) -> Bytes {
    match json {
        Some(json) => Bytes::from(format!("id: {id}\nevent: change\ndata: {json}\n\n")),
        None => message("resync", id),
    }
}

/// Query parameters of the stream.
#[derive(Deserialize)]
pub struct StreamParams {
    since: Option<i64>,
}

/// `/api/v1/events`: opens a stream.
pub async fn stream(
    State(app): State<Shared>,
    since: Result<Query<StreamParams>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wrong = |what: &str| {
        let error = format!("{what} must be the number of an event");
        Problem::new(StatusCode::BAD_REQUEST, error)
    };
    let Query(since) = since.map_err(|_| wrong("since"))?;
    // A browser that reconnects repeats the query, and sends its last position in the header.
    let since = match headers.get("last-event-id") {
        Some(id) => {
            let id = id.to_str().ok().and_then(|id| id.trim().parse().ok());
            Some(id.ok_or_else(|| wrong("Last-Event-ID"))?)
        }
        None => since.since,
    };
    if since.is_some_and(|since| since < 0) {
        return Err(wrong("since"));
    }
    let Ok(permit) = app.streams.clone().try_acquire_owned() else {
        let error = "too many streams are open; try again later";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error));
    };
    let state = app.feed.state.subscribe();
    let seen = *state.borrow();
    let reader = Reader {
        seen,
        state,
        app,
        at: since,
        opened: false,
        sent_up: true,
        _permit: permit,
    };
    let body = stream::unfold(reader, |mut reader| async move {
        let chunk = reader.next().await;
        Some((Ok::<_, std::convert::Infallible>(chunk), reader))
    });
    let head = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        // Keeps nginx from buffering the stream.
        ("x-accel-buffering", "no"),
    ];
    Ok((head, Body::from_stream(body)).into_response())
}

/// State of one stream.
struct Reader {
    app: Shared,
    state: watch::Receiver<FeedState>,
    /// The state that was sent on this stream.
    seen: FeedState,
    /// Id of the last event sent; `None` if the stream starts with the next one.
    at: Option<i64>,
    opened: bool,
    sent_up: bool,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// Returns the next bytes to send. Returns nothing forever once the feed has ended.
    async fn next(&mut self) -> Bytes {
        loop {
            let now = *self.state.borrow_and_update();
            if now.up != self.sent_up {
                self.sent_up = now.up;
                let up = now.up;
                return Bytes::from(format!("event: hub\ndata: {{\"reachable\":{up}}}\n\n"));
            }
            if let Some(head) = now.head.filter(|_| now.up)
                && let Some(bytes) = self.advance(now, head).await
            {
                return bytes;
            }
            tokio::select! {
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                }
                () = sleep(KEEPALIVE_INTERVAL) => return Bytes::from_static(b": here\n\n"),
            }
        }
    }

    async fn advance(&mut self, now: FeedState, head: i64) -> Option<Bytes> {
        if !self.opened {
            self.opened = true;
            let first = self.at.is_none();
            let at = *self.at.get_or_insert(head);
            // A client that resumes needs only later events.
            self.seen = now;
            if first || (at <= head && head - at <= MAX_MISSED) {
                return Some(message("open", at));
            }
            return Some(self.resync(head));
        }
        if self.seen.resyncs != now.resyncs {
            self.seen = now;
            return Some(self.resync(head));
        }
        let at = self.at.unwrap_or(head);
        if at >= head {
            return None;
        }
        if head - at > MAX_MISSED {
            return Some(self.resync(head));
        }
        if let Some((last, bytes)) = self.buffered(at) {
            self.at = Some(last);
            return Some(bytes);
        }
        match self.app.hub.query(&page(), &[&at, &PAGE_SIZE]).await {
            Ok(rows) if !rows.is_empty() => {
                let mut bytes = Vec::new();
                for row in &rows {
                    let (Ok(id), Ok(json)) = (row.try_get(0), row.try_get(1)) else {
                        return Some(self.resync(head));
                    };
                    bytes.extend_from_slice(&frame(id, json));
                    self.at = Some(id);
                }
                Some(Bytes::from(bytes))
            }
            // They were deleted, or cannot be read now.
            _ => Some(self.resync(head)),
        }
    }

    fn buffered(&self, at: i64) -> Option<(i64, Bytes)> {
        let recent = self.app.feed.recent.lock();
        if at < recent.after {
            return None;
        }
        let from = recent.events.partition_point(|(id, _)| *id <= at);
        let some: Vec<_> = recent
            .events
            .range(from..)
            .take(PAGE_SIZE as usize)
            .collect();
        let (last, _) = some.last()?;
        let bytes: Vec<u8> = some
            .iter()
            .flat_map(|(_, bytes)| bytes.iter().copied())
            .collect();
        Some((*last, Bytes::from(bytes)))
    }

    fn resync(&mut self, head: i64) -> Bytes {
        self.at = Some(head);
        message("resync", head)
    }
}

fn message(kind: &str, id: i64) -> Bytes {
    Bytes::from(format!(
        "id: {id}\nevent: {kind}\ndata: {{\"event\":{id}}}\n\n"
    ))
}
