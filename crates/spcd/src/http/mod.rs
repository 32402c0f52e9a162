//! The HTTP server: the page, the API, the metrics and the health endpoints.
//!
//! It runs beside the loop and reads the database in its own session, like any client. It cannot delay
//! a pass, and slow clients cannot use more than the resources reserved for them.

mod api;
mod events;
mod guard;
mod health;
mod hub;
mod idle;
mod listener;
mod metrics;
mod page;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::gateway_link::Links;
use crate::settings;
use events::Feed;
use hub::Hub;
use idle::{Activity, IdleConnections};
use listener::{Listener, StallTimeout};
use spcd_postgres::connection::Endpoint;
use spcd_postgres::connection::context::HubContext;

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 256;
/// Maximum number of further connections when no other is idle. They reach the health endpoints only: a
/// service manager that had to wait would consider the daemon dead.
const MAX_PROBES: usize = 16;
/// Maximum time for the head of a request on such a connection.
const PROBE_HEADERS_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum time for which a new connection waits until an idle one is closed.
const IDLE_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum time for which an idle connection that is closed may send the rest of its last response.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum number of event streams. The other connections remain free for requests.
const MAX_STREAMS: usize = 128;
/// Maximum time for the head of a request, and between two requests of a connection.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before another attempt to listen on an address.
pub const LISTEN_RETRY_PAUSE: Duration = Duration::from_secs(5);

/// State that all handlers share.
struct App {
    context: Arc<HubContext>,
    gateways: Option<Arc<Links>>,
    settings: watch::Receiver<settings::Http>,
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    listing: api::Listing,
    streams: Arc<Semaphore>,
}

type Shared = Arc<App>;

impl App {
    fn new(
        settings: watch::Receiver<settings::Http>,
        context: Arc<HubContext>,
        endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
        gateways: Option<Arc<Links>>,
    ) -> Self {
        Self {
            gateways,
            hub: Arc::new(Hub::new(endpoint, context.clone())),
            context,
            settings,
            feed: Arc::default(),
            listing: api::Listing::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

/// Refuses to listen for other machines without a token.
///
/// # Errors
/// Names the setting that is missing.
pub fn check(settings: &settings::Http) -> anyhow::Result<()> {
    if settings.listen.is_local() {
        return Ok(());
    }
    let settings::Listen::Tcp(address) = &settings.listen else {
        return Ok(());
    };
    ensure!(
        settings.token_file.is_some(),
        "http = \"{address}\" can be reached from other machines, so it needs a token: put one into \
         a file (openssl rand -hex 32) and give --http-token-file, or listen on 127.0.0.1 and put a \
         proxy with TLS before it"
    );
    guard::token(settings).map_err(anyhow::Error::msg)?;
    Ok(())
}

/// Serves forever. Follows changes of the settings. Retries an address on which it cannot listen: the
/// daemon works without it.
pub async fn serve(
    mut settings: watch::Receiver<settings::Http>,
    context: Arc<HubContext>,
    endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
    gateways: Option<Arc<Links>>,
) -> Infallible {
    let app = App::new(settings.clone(), context, endpoint.clone(), gateways);
    let app = Arc::new(app);
    let for_feed = settings.clone();
    let follow = async {
        let mut is_logged = false;
        loop {
            let current = settings.borrow_and_update().clone();
            if current.listen == settings::Listen::Off {
                changed(&mut settings).await;
                continue;
            }
            match Listener::bind(&current.listen).await {
                Ok(listener) => {
                    is_logged = false;
                    tracing::info!(address = %listener, "HTTP");
                    tokio::select! {
                        never = accept(&listener, &app, MAX_CONNECTIONS) => match never {},
                        () = moved(&mut settings, &current.listen) => {}
                    }
                }
                Err(error) => {
                    if !is_logged {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "no page, API and metrics for now; set http to another address, or to \
                             \"off\""
                        );
                    }
                    is_logged = true;
                    let _ = tokio::time::timeout(LISTEN_RETRY_PAUSE, changed(&mut settings)).await;
                }
            }
        }
    };
    // The feed costs a session and nothing else while nothing happens.
    tokio::select! {
        never = follow => never,
        never = feed(&app, endpoint, for_feed) => never,
    }
}

/// Reads events as long as the server listens on an address.
async fn feed(
    app: &App,
    endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
    mut settings: watch::Receiver<settings::Http>,
) -> Infallible {
    loop {
        if settings.borrow_and_update().listen == settings::Listen::Off {
            changed(&mut settings).await;
            continue;
        }
        tokio::select! {
            never = app.feed.run(endpoint.clone()) => match never {},
            () = async {
                while settings.borrow_and_update().listen != settings::Listen::Off {
                    changed(&mut settings).await;
                }
            } => {}
        }
    }
}

/// Waits until the settings change. Waits forever once their sender is gone.
async fn changed(settings: &mut watch::Receiver<settings::Http>) {
    if settings.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Waits until the address changes.
async fn moved(settings: &mut watch::Receiver<settings::Http>, from: &settings::Listen) {
    while settings.borrow_and_update().listen == *from {
        changed(settings).await;
    }
}

/// Serves up to `places` connections, and health checks beyond that. Closes the connection that has been
/// idle longest for a new one.
async fn accept(listener: &Listener, app: &Shared, places: usize) -> Infallible {
    let (router, probes_only) = (router(app.clone()), probes(app.clone()));
    let room = Arc::new(Semaphore::new(places));
    let kept = Arc::new(Semaphore::new(MAX_PROBES));
    let idle = Arc::new(IdleConnections::default());
    // Dropping it ends the streams: the daemon does not wait for them when it stops.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (mut permit, mut is_full) = tokio::select! {
            biased;
            permit = room.clone().acquire_owned() => (permit, false),
            permit = kept.clone().acquire_owned() => (permit, true),
        };
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                // For example too many open files: wait until other connections end.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Another connection may have ended.
        if is_full && let Ok(free) = room.clone().try_acquire_owned() {
            (permit, is_full) = (Ok(free), false);
        }
        let gives_way = is_full && idle.close_longest();
        let (router, probes_only) = (router.clone(), probes_only.clone());
        let (room, idle) = (room.clone(), idle.clone());
        connections.spawn(async move {
            let mut _permit = permit;
            if gives_way && let Ok(free) = timeout(IDLE_CLOSE_TIMEOUT, room.acquire_owned()).await {
                (_permit, is_full) = (free, false);
            }
            match is_full {
                false => answer(stream, router, HEADERS_TIMEOUT, Some(idle.add())).await,
                true => answer(stream, probes_only, PROBE_HEADERS_TIMEOUT, None).await,
            }
        });
    }
}

/// Serves one client until the connection ends. Without `activity`, answers one request.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    router: Router,
    headers: Duration,
    activity: Option<Arc<Activity>>,
) {
    let router = TowerToHyperService::new(router);
    let of_service = activity.clone();
    let service = service_fn(move |request| {
        let active = of_service.as_ref().map(Activity::begin);
        let answered = router.call(request);
        async move {
            let response = answered.await?;
            let body = |body| match active {
                Some(active) => Body::new(active.until_end_of(body)),
                None => body,
            };
            Ok::<_, Infallible>(response.map(body))
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(activity.is_some())
        .header_read_timeout(headers)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(StallTimeout::new(stream)), service);
    let mut served = pin!(served);
    let ended = match activity {
        None => served.await,
        Some(activity) => tokio::select! {
            ended = &mut served => ended,
            () = activity.closing() => {
                served.as_mut().graceful_shutdown();
                // The client may never complete the head of a request that it has begun.
                match timeout(DRAIN_TIMEOUT, &mut served).await {
                    Ok(ended) => ended,
                    Err(_) if activity.is_idle() => Ok(()),
                    Err(_) => served.await,
                }
            }
        },
    };
    if let Err(error) = ended {
        tracing::trace!("a client's connection: {error}");
    }
}

fn router(app: Shared) -> Router {
    let api = Router::new()
        .route("/connections", get(api::connections))
        .route("/connections/{name}", get(api::connection))
        .route("/connections/{name}/refresh", post(api::refresh))
        .route("/connections/{name}/reconnect", post(api::reconnect))
        .route("/connections/{name}/disconnect", post(api::disconnect))
        .route("/events", get(events::stream));
    Router::new()
        .nest("/api/v1", api)
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .merge(page::routes())
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// Returns the routes that are served when all connections are taken.
fn probes(app: Shared) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .fallback(async || {
            let taken = format!("all {MAX_CONNECTIONS} connections are in use; try again");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, taken)
        })
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// An error response.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    error: String,
}

impl Problem {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = json_answer(self.status, &json!({"error": self.error}));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
        }
        response
    }
}

fn json_answer(status: StatusCode, value: &serde_json::Value) -> Response {
    let head = [(CONTENT_TYPE, "application/json")];
    (status, head, format!("{value}\n")).into_response()
}

/// Checks at the start that the token can be read.
///
/// # Errors
/// The token cannot be read.
pub fn check_token(settings: &settings::Http) -> anyhow::Result<()> {
    match &settings.token_file {
        None => Ok(()),
        Some(_) => guard::token(settings)
            .map(drop)
            .map_err(anyhow::Error::msg)
            .context("the token for HTTP"),
    }
}
