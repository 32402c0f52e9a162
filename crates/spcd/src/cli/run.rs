//! `spcd run`

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use spcd_core::health::Options;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::{self, ClusterError, Running};
use crate::config::Config;
use crate::daemon;
use crate::files::Files;
use crate::http;
use crate::hub::connect::Endpoint;
use crate::hub::lead;
use crate::hub::pool::Pool;
use crate::hub::state::Shared;
use crate::service;
use crate::settings::{self, Settings};
use crate::telemetry;
use crate::watch::Watcher;

/// Keeps the database true to the files until SIGTERM or SIGINT.
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    usable(&settings.http)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut cluster = None;
    let hub = Shared::new(settings.hub);
    let mut watcher = Watcher::new();
    let waker = watcher.waker();
    let (http, shown) = watch::channel(settings.http.clone());
    let (there, endpoint) = watch::channel(None);
    let (schedule, health) = watch::channel(settings.health);
    service::ready();
    let outcome = tokio::select! {
        ended = work(settings, &hub, &mut cluster, &mut watcher, &there, &health) => ended,
        ended = follow_settings(settings, &hub, &waker, &http, &schedule) => ended,
        // Beside the loop: neither waits for the other.
        ended = beside(http::serve(shown, hub.clone(), endpoint)) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if outcome.is_ok() {
        tracing::info!("stopping");
        service::stopping();
        // A server that is not there needs no word.
        let _ = timeout(RESIGN, resign(settings)).await;
    }
    match cluster {
        Some(cluster) => cluster.stop().await,
        // The signal came while it was starting.
        None if outcome.is_ok() && settings.database.is_none() => cluster::gone(settings).await,
        None => {}
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

/// How long saying so may take.
const RESIGN: Duration = Duration::from_millis(500);

/// Says that nobody leads any more.
async fn resign(settings: &Settings) -> anyhow::Result<()> {
    let session = super::endpoint(settings)?.connect("resign").await?;
    Ok(lead::resign(&session.client).await?)
}

/// Runs in a task of its own, which ends with this.
async fn beside(task: impl Future<Output = Infallible> + Send + 'static) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(task);
    match tasks.join_next().await {
        Some(Ok(never)) => match never {},
        Some(Err(error)) => Err(error).context("HTTP"),
        None => std::future::pending().await,
    }
}

/// Reads the settings file again when it changes and on SIGHUP: takes what can be taken, and says
/// what needs a restart. SIGHUP is a wake, too. It does not end by itself.
async fn follow_settings(
    settings: &Settings,
    hub: &Shared,
    waker: &Notify,
    http: &watch::Sender<settings::Http>,
    health: &watch::Sender<Options>,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut files = Files::new(std::slice::from_ref(&settings.file));
    let mut watcher = Watcher::new();
    let mut last = files.look();
    let mut current = settings.clone();
    watcher.follow(files.places());
    // What is wanted of HTTP and could not be had when the file was read.
    let mut unusable: Option<settings::Http> = None;
    let mut again = tokio::time::interval(http::AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            () = watcher.settled() => false,
            _ = again.tick(), if unusable.is_some() => {
                if let Some(new) = unusable.take_if(|new| usable(new).is_ok()) {
                    tracing::info!("http can be as it is set");
                    show(http, &new);
                }
                continue;
            }
        };
        let look = files.look();
        watcher.follow(files.places());
        if asked {
            waker.notify_one();
            hub.retry_now();
        }
        if !asked && std::sync::Arc::ptr_eq(&look, &last) {
            continue;
        }
        last = look;
        service::reloading();
        match current.reload() {
            // Replaced in two steps, or by mistake: nobody said that the defaults are wanted.
            Ok(new) if !asked && current.is_written && !new.is_written => tracing::warn!(
                "{} is gone: settings stay as they were until it is there again, or until SIGHUP \
                 or a restart",
                settings.file.display()
            ),
            Ok(new) => {
                let restart = settings.needs_restart(&new);
                if !restart.is_empty() {
                    tracing::warn!(
                        "changed settings that need a restart: {}",
                        restart.join(", ")
                    );
                }
                if new.log != current.log
                    && let Err(error) = telemetry::set_filter(new.log.as_deref().unwrap_or("info"))
                {
                    tracing::warn!(
                        "the log filter cannot be used: {error}; logging goes on as before"
                    );
                }
                hub.tune(new.hub);
                hub.retry_now();
                // What was waited for may be due by now.
                health.send_replace(new.health);
                waker.notify_one();
                unusable = None;
                match usable(&new.http) {
                    Ok(()) => show(http, &new.http),
                    Err(error) => {
                        let every = http::AGAIN.as_secs();
                        tracing::error!(
                            "http stays as it was: {error:#}; trying again every {every} s"
                        );
                        unusable = Some(new.http.clone());
                    }
                }
                current = new;
                tracing::info!("settings read again");
            }
            Err(error) => tracing::error!("settings stay as they were: {error:#}"),
        }
        service::ready();
    }
}

/// Whether HTTP may be so.
fn usable(settings: &settings::Http) -> anyhow::Result<()> {
    http::check(settings)?;
    http::check_token(settings)
}

/// Has HTTP be so.
fn show(http: &watch::Sender<settings::Http>, new: &settings::Http) {
    http.send_if_modified(|http| {
        let differs = http != new;
        http.clone_from(new);
        differs
    });
}

/// The cluster is handed out so that it is stopped in order after everything that uses it.
async fn work(
    settings: &Settings,
    hub: &Arc<Shared>,
    cluster: &mut Option<Running>,
    watcher: &mut Watcher,
    there: &watch::Sender<Option<Arc<Endpoint>>>,
    health: &watch::Receiver<Options>,
) -> anyhow::Result<()> {
    if settings.database.is_none() {
        service::status("starting the private cluster");
        *cluster = Some(cluster::ensure(settings).await?);
    }
    let endpoint = super::endpoint(settings)?.with_shared(hub.clone());
    let endpoint = Arc::new(endpoint);
    let pool = Pool::new(endpoint.clone());
    there.send_replace(Some(endpoint.clone()));
    let mut config = Config::new(&settings.config_dirs, false).with_state(&settings.state_dir);
    tokio::select! {
        ended = daemon::run(endpoint, &pool, settings, &mut config, watcher, health) => {
            ended?;
            Ok(())
        }
        error = keep(cluster) => Err(error.into()),
    }
}

async fn keep(cluster: &mut Option<Running>) -> ClusterError {
    match cluster {
        Some(cluster) => cluster.keep().await,
        None => std::future::pending().await,
    }
}
