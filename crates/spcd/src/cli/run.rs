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

/// Keeps the database in line with the files until SIGTERM or SIGINT.
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    check_http(&settings.http)?;
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
        // In a task of its own: neither it nor the loop waits for the other.
        ended = beside(http::serve(shown, hub.clone(), endpoint, shown_gateways)) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if outcome.is_ok() {
        tracing::info!("stopping");
        service::stopping();
        // An unreachable server cannot be told that the daemon stops.
        let _ = timeout(RESIGN_TIMEOUT, resign(settings)).await;
    }
    let stop_gateway = async {
        if let Some(cluster) = gateway_cluster {
            cluster.stop().await;
        }
    };
    let stop_hub = async {
        match cluster {
            Some(cluster) => cluster.stop().await,
            // The signal arrived while the cluster was starting.
            None if outcome.is_ok() && settings.database.is_none() => {
                cluster::wait_until_stopped(settings).await
            }
            None => {}
        }
    };
    // In parallel: a service must end within five seconds.
    tokio::join!(stop_gateway, stop_hub);
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Runs the loops of the gateways. Only a single gateway can have a private cluster.
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
        let follow = gateway::track_availability(link.links(), hub);
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

/// Time limit for resigning.
const RESIGN_TIMEOUT: Duration = Duration::from_millis(500);

/// Records that no daemon leads.
async fn resign(settings: &Settings) -> anyhow::Result<()> {
    let session = super::endpoint(settings)?.connect("resign").await?;
    Ok(leader::resign(&session.client).await?)
}

/// Runs a task that is aborted when this future is dropped.
async fn beside(task: impl Future<Output = Infallible> + Send + 'static) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(task);
    match tasks.join_next().await {
        Some(Ok(never)) => match never {},
        Some(Err(error)) => Err(error).context("HTTP"),
        None => std::future::pending().await,
    }
}

/// Reads the settings file again when it changes and on SIGHUP. Applies what can be applied, and logs
/// what needs a restart. SIGHUP also requests a pass. Never returns without an error.
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
                if let Some(new) = unusable.take_if(|new| check_http(new).is_ok()) {
                    tracing::info!("the settings of http are valid now");
                    apply_http(http, &new);
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
            // An editor may replace the file in two steps: its absence does not mean the defaults.
            Ok(new) if !asked && current.is_written && !new.is_written => tracing::warn!(
                file = %settings.file.display(),
                "the settings file is gone: settings stay as they were until it is back, or until \
                 SIGHUP or a restart"
            ),
            Ok(new) => {
                apply_to_log(settings, &current, &new);
                hub.set_settings(new.hub);
                hub.retry_now();
                // Shorter intervals may already have elapsed.
                health.send_replace(new.health);
                waker.notify_one();
                unusable = None;
                match check_http(&new.http) {
                    Ok(()) => apply_http(http, &new.http),
                    Err(error) => {
                        let every = http::LISTEN_RETRY_PAUSE.as_secs();
                        tracing::error!(
                            error = format!("{error:#}"),
                            retry_seconds = every,
                            "cannot apply the settings of http; trying again"
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
        tracing::warn!(error, "cannot use the log filter; keeping the previous one");
    }
}

/// Checks the settings of HTTP.
fn check_http(settings: &settings::Http) -> anyhow::Result<()> {
    http::check(settings)?;
    http::check_token(settings)
}

/// Applies the settings of HTTP.
fn apply_http(http: &watch::Sender<settings::Http>, new: &settings::Http) {
    http.send_if_modified(|http| {
        let differs = http != new;
        http.clone_from(new);
        differs
    });
}

/// Runs the daemon. `cluster` receives the private cluster, so that the caller can stop it after
/// everything that uses it.
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
