//! `spcd run`

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::Context as _;
use spcd_core::health::ProbeOptions;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::{self, ClusterError, Running};
use crate::config::Config;
use crate::daemon;
use crate::files::{ConfigReader, Extensions};
use crate::gateway;
use crate::gateway_link::{Link, Links};
use crate::http;
use crate::service;
use crate::settings::{self, Settings};
use crate::telemetry;
use crate::watch::Watcher;
use spcd_postgres::connection::Endpoint;
use spcd_postgres::connection::context::HubContext;
use spcd_postgres::connection::pool::Pool;
use spcd_postgres::leader;

/// Keeps the database true to the files until SIGTERM or SIGINT.
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    usable(&settings.http)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut cluster = None;
    let mut gateway_cluster = None;
    let hub = HubContext::new(settings.hub);
    let mut watcher = Watcher::new();
    let waker = watcher.waker();
    let gateways = gateway::settings(settings);
    gateway::ensure_distinct(&gateways)?;
    let links = gateway::links(&gateways, waker.clone());
    let all = links.iter().flat_map(Links::all);
    let gateways: Vec<(Settings, Link)> = gateways.into_iter().zip(all).collect();
    let shown_gateways = links.clone();
    let (http, shown) = watch::channel(settings.http.clone());
    let (there, endpoint) = watch::channel(None);
    let hub_endpoint = endpoint.clone();
    let (schedule, health) = watch::channel(settings.health);
    service::ready();
    let outcome = tokio::select! {
        ended = work(settings, &hub, &mut cluster, &mut watcher, &there, &health, links) => ended,
        never = keep_gateways(&gateways, &hub, &mut gateway_cluster, &health, hub_endpoint) => match never {},
        ended = follow_settings(settings, &hub, &waker, &http, &schedule) => ended,
        // Beside the loop: neither waits for the other.
        ended = beside(http::serve(shown, hub.clone(), endpoint, shown_gateways)) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if outcome.is_ok() {
        tracing::info!("stopping");
        service::stopping();
        // A server that is not there needs no word.
        let _ = timeout(RESIGN, resign(settings)).await;
    }
    let stop_gateway = async {
        if let Some(cluster) = gateway_cluster {
            cluster.stop().await;
        }
    };
    let stop_hub = async {
        match cluster {
            Some(cluster) => cluster.stop().await,
            // The signal came while it was starting.
            None if outcome.is_ok() && settings.database.is_none() => cluster::gone(settings).await,
            None => {}
        }
    };
    // Together they have as long as one: a service is to end within five seconds.
    tokio::join!(stop_gateway, stop_hub);
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Keeps the gateways, where there are to be some. Only one that stands alone has a cluster.
async fn keep_gateways(
    gateways: &[(Settings, Link)],
    hub: &HubContext,
    cluster: &mut Option<Running>,
    health: &watch::Receiver<ProbeOptions>,
    endpoint: watch::Receiver<Option<Arc<Endpoint>>>,
) -> Infallible {
    if let [(settings, link)] = gateways {
        return gateway::run(settings, link, cluster, health, endpoint).await;
    }
    let mut clusters: Vec<Option<Running>> = gateways.iter().map(|_| None).collect();
    let mut all: Vec<Pin<Box<dyn Future<Output = Infallible> + '_>>> = Vec::new();
    for ((settings, link), cluster) in gateways.iter().zip(&mut clusters) {
        let run = gateway::run(settings, link, cluster, health, endpoint.clone());
        all.push(Box::pin(run));
    }
    if let Some((_, link)) = gateways.first() {
        let follow = gateway::follow_standings(link.links(), hub);
        all.push(Box::pin(follow));
    }
    poll_fn(|context| {
        for one in &mut all {
            match one.as_mut().poll(context) {
                Poll::Ready(never) => match never {},
                Poll::Pending => {}
            }
        }
        Poll::Pending
    })
    .await
}

/// How long saying so may take.
const RESIGN: Duration = Duration::from_millis(500);

/// Records that no daemon leads.
async fn resign(settings: &Settings) -> anyhow::Result<()> {
    let session = super::endpoint(settings)?.connect("resign").await?;
    Ok(leader::resign(&session.client).await?)
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
    hub: &HubContext,
    waker: &Notify,
    http: &watch::Sender<settings::Http>,
    health: &watch::Sender<ProbeOptions>,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut files = ConfigReader::new(std::slice::from_ref(&settings.file), Extensions::Spc);
    let mut watcher = Watcher::new();
    let mut last = files.scan();
    let mut current = settings.clone();
    watcher.follow(files.watch_points());
    // HTTP settings that failed when the file was read.
    let mut unusable: Option<settings::Http> = None;
    let mut again = tokio::time::interval(http::LISTEN_RETRY_PAUSE);
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
        let scan = files.scan();
        watcher.follow(files.watch_points());
        if asked {
            waker.notify_one();
            hub.retry_now();
        }
        if !asked && std::sync::Arc::ptr_eq(&scan, &last) {
            continue;
        }
        last = scan;
        service::reloading();
        match current.reload() {
            // The file may be replaced in two steps: its absence does not mean the defaults.
            Ok(new) if !asked && current.is_written && !new.is_written => tracing::warn!(
                file = %settings.file.display(),
                "the settings file is gone: settings stay as they were until it is back, or until \
                 SIGHUP or a restart"
            ),
            Ok(new) => {
                apply_to_log(settings, &current, &new);
                hub.set_settings(new.hub);
                hub.retry_now();
                // What was waited for may be due by now.
                health.send_replace(new.health);
                waker.notify_one();
                unusable = None;
                match usable(&new.http) {
                    Ok(()) => show(http, &new.http),
                    Err(error) => {
                        let every = http::LISTEN_RETRY_PAUSE.as_secs();
                        tracing::error!(
                            error = format!("{error:#}"),
                            retry_seconds = every,
                            "http stays as it was; it is tried again"
                        );
                        unusable = Some(new.http.clone());
                    }
                }
                current = new;
                tracing::info!("settings read again");
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "settings stay as they were");
            }
        }
        service::ready();
    }
}

/// Sets the log's filter, and logs which of the new settings need a restart.
fn apply_to_log(started: &Settings, current: &Settings, new: &Settings) {
    let restart = started.needs_restart(new);
    if !restart.is_empty() {
        tracing::warn!(
            settings = restart.join(", "),
            "changed settings need a restart"
        );
    }
    if new.log != current.log
        && let Err(error) = telemetry::set_filter(new.log.as_deref().unwrap_or("info"))
    {
        tracing::warn!(
            error,
            "the log filter cannot be used; logging continues as before"
        );
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
    hub: &Arc<HubContext>,
    cluster: &mut Option<Running>,
    watcher: &mut Watcher,
    there: &watch::Sender<Option<Arc<Endpoint>>>,
    health: &watch::Receiver<ProbeOptions>,
    gateways: Option<Arc<Links>>,
) -> anyhow::Result<()> {
    if settings.database.is_none() {
        service::status("starting the private cluster");
        *cluster = Some(cluster::ensure(settings).await?);
    }
    let endpoint = super::endpoint(settings)?.with_context(hub.clone());
    let endpoint = Arc::new(endpoint);
    let pool = Pool::new(endpoint.clone());
    there.send_replace(Some(endpoint.clone()));
    let mut config = Config::new(&settings.config_dirs, settings.extensions, false)
        .with_state(&settings.state_dir)
        .beside(gateways);
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
