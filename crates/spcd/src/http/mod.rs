//! What people and monitoring look at: a page, an API, metrics, probes.
//!
//! It stands beside the loop and reads the database in a session of its own: what it shows is what
//! any client would read. Nothing that happens here can hold up a pass, and no number of clients,
//! however slow, takes more than is set aside for them.

mod api;
mod events;
mod guard;
mod health;
mod hub;
mod listener;
mod metrics;
mod page;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::hub::connect::Endpoint;
use crate::hub::state::Shared as Standing;
use crate::settings;
use events::Feed;
use hub::Hub;
use listener::{Listener, Patient};

/// Connections at a time.
const CONNECTIONS: usize = 256;
/// Connections beyond that, for probes alone: a service manager that waits for a place would take the
/// daemon for dead.
const PROBES: usize = 16;
/// How long a client among those may take for the head of its request.
const PROBE_HEADERS: Duration = Duration::from_secs(1);
/// Event streams at a time, which leaves room for requests.
const STREAMS: usize = 128;
/// How long a client may take for the head of a request, and for the next one on its connection.
const HEADERS: Duration = Duration::from_secs(15);
/// How often an address is tried again that is not to be had.
pub const AGAIN: Duration = Duration::from_secs(5);

/// What the answers are made of.
struct App {
    standing: Arc<Standing>,
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
        standing: Arc<Standing>,
        endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
    ) -> Self {
        Self {
            hub: Arc::new(Hub::new(endpoint, standing.clone())),
            standing,
            settings,
            feed: Arc::default(),
            listing: api::Listing::default(),
            streams: Arc::new(Semaphore::new(STREAMS)),
        }
    }
}

/// Refuses what would let strangers in.
///
/// # Errors
/// What is wrong with the settings, and the way out.
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

/// Answers for ever. Settings that change are followed; an address that cannot be had is tried again
/// and again: what the daemon is for does not hang on it.
pub async fn serve(
    mut settings: watch::Receiver<settings::Http>,
    standing: Arc<Standing>,
    endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
) -> Infallible {
    let app = Arc::new(App::new(settings.clone(), standing, endpoint.clone()));
    let for_feed = settings.clone();
    let follow = async {
        let mut told = false;
        loop {
            let current = settings.borrow_and_update().clone();
            if current.listen == settings::Listen::Off {
                changed(&mut settings).await;
                continue;
            }
            match Listener::bind(&current.listen).await {
                Ok(listener) => {
                    told = false;
                    tracing::info!(address = %listener, "HTTP");
                    tokio::select! {
                        never = accept(&listener, &app) => match never {},
                        () = moved(&mut settings, &current.listen) => {}
                    }
                }
                Err(error) => {
                    if !told {
                        tracing::warn!(
                            "no page, API and metrics for now: {error:#}; set http to another \
                             address, or to \"off\""
                        );
                    }
                    told = true;
                    let _ = tokio::time::timeout(AGAIN, changed(&mut settings)).await;
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

/// Keeps the events coming for as long as anybody may ask for them.
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

/// Waits until the settings are others; for ever once nobody can change them.
async fn changed(settings: &mut watch::Receiver<settings::Http>) {
    if settings.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Waits until it is to be somewhere else.
async fn moved(settings: &mut watch::Receiver<settings::Http>, from: &settings::Listen) {
    while settings.borrow_and_update().listen == *from {
        changed(settings).await;
    }
}

async fn accept(listener: &Listener, app: &Shared) -> Infallible {
    let (router, probes_only) = (router(app.clone()), probes(app.clone()));
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let kept = Arc::new(Semaphore::new(PROBES));
    // They end with this: nobody waits for a stream when the daemon stops.
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
                tracing::debug!("a connection cannot be taken: {error}");
                // Out of files, for example: give the others time to end.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Another may have ended since.
        if is_full && let Ok(free) = room.clone().try_acquire_owned() {
            (permit, is_full) = (Ok(free), false);
        }
        let (router, headers) = match is_full {
            false => (router.clone(), HEADERS),
            true => (probes_only.clone(), PROBE_HEADERS),
        };
        connections.spawn(async move {
            let _permit = permit;
            answer(stream, router, headers, !is_full).await;
        });
    }
}

/// Answers one client until it goes, or is cut off.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    router: Router,
    headers: Duration,
    keep_alive: bool,
) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(keep_alive)
        .header_read_timeout(headers)
        .max_buf_size(64 << 10)
        .serve_connection(
            TokioIo::new(Patient::new(stream)),
            TowerToHyperService::new(router),
        );
    if let Err(error) = served.await {
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
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this cannot be done here")
        })
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// What is answered where all connections are taken.
fn probes(app: Shared) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .fallback(async || {
            let taken = format!("all {CONNECTIONS} connections are taken; try again");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, taken)
        })
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// Why there is no other answer.
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

/// Reads the token, so that it is wrong at the start rather than at the first request.
///
/// # Errors
/// Why it cannot be read.
pub fn check_token(settings: &settings::Http) -> anyhow::Result<()> {
    match &settings.token_file {
        None => Ok(()),
        Some(_) => guard::token(settings)
            .map(drop)
            .map_err(anyhow::Error::msg)
            .context("the token for HTTP"),
    }
}
