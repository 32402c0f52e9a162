//! Keeps the gateway: a Postgres for wrappers that must not run in the hub.
//!
//! A loop of its own reconciles it, as for a hub, with the connections whose wrappers run there. The
//! hub's loop reads its state from a [`spcd_core::gateway::GatewayView`], which a listening session
//! keeps current. With several gateways, `spcd_core::gateway` assigns connections to them.

mod check;
mod once;

pub use once::{ApplyOptions, OneShotGateways, OpenGateway, hub_lanes, open};

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use spcd_core::config::{Compat, GatewayPlace};
use spcd_core::gateway::{Address, GatewayRow};
use spcd_core::health::ProbeOptions;
use spcd_core::secret::Secret;
use spcd_protocol::Backoff;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::error::{DbError, SqlState};

use crate::cluster::{self, ClusterError, Running};
use crate::config::Config;
use crate::daemon;
use crate::gateway_link::{Link, Links, place_name};
use crate::settings::Settings;
use crate::watch::Watcher;
use spcd_postgres::connection::Endpoint;
use spcd_postgres::connection::context::{HubContext, HubState};
use spcd_postgres::connection::pool::Pool;
use spcd_postgres::migrations;
use spcd_postgres::{gateway, gateway_reader};

/// Time for which the gateway may be unreachable before the hub's connections are in error.
const UNREACHABLE_GRACE: Duration = Duration::from_secs(10);
/// The same while the server restarts, as it does after a panic of a wrapper.
const RESTART_GRACE: Duration = Duration::from_secs(60);
/// Pause between attempts to open a session. Between the restarts of a crashing server there may be
/// only some milliseconds in which it accepts one.
const RECONNECT: Duration = Duration::from_millis(50);

/// Interval of attempts while the gateway's server restarts.
const RESTART_POLL: Duration = Duration::from_millis(250);
/// Pauses between attempts to start the gateway, in milliseconds.
const RETRY: Backoff = Backoff::new(500, 30_000);
/// Pause between attempts while another daemon uses the private cluster.
const TAKEN_POLL: Duration = Duration::from_millis(500);
/// Interval of updates of the gateways' availability and of checks whether this daemon leads.
const AVAILABILITY_POLL: Duration = Duration::from_millis(200);
/// Interval of checks that the hub's role can log in.
const READER_CHECK: Duration = Duration::from_secs(15);

/// Returns whether wrappers can run outside the hub.
pub fn is_on(hub: &Settings) -> bool {
    place(hub) != GatewayPlace::Off
}

/// Returns the place of wrappers that must not run in the hub. The default is a private gateway. Where
/// that is impossible, because the hub is on another machine or the server's programs are not
/// installed, the default is the hub.
fn place(hub: &Settings) -> GatewayPlace {
    match (&hub.gateway, &hub.database) {
        (Some(place), _) => place.clone(),
        // The private hub needs the same programs.
        (None, None) => GatewayPlace::Private,
        (None, Some(database)) => {
            let hub = Endpoint::parse(database);
            let is_local = hub.is_ok_and(|hub| hub.remote_host().is_none());
            match is_local && cluster::has_programs() {
                true => GatewayPlace::Private,
                false => GatewayPlace::Off,
            }
        }
    }
}

/// Returns the settings for the loop of each gateway.
pub fn settings(hub: &Settings) -> Vec<Settings> {
    let urls: Vec<Option<Secret>> = match place(hub) {
        GatewayPlace::Off => Vec::new(),
        GatewayPlace::Private => vec![None],
        GatewayPlace::Servers(urls) => urls.into_iter().map(Some).collect(),
    };
    let are_several = urls.len() > 1;
    let of_one = |(n, database): (usize, Option<Secret>)| {
        let mut settings = hub.clone();
        settings.state_dir = hub.state_dir.join("gateway");
        if let Some(url) = database.as_ref().filter(|_| are_several) {
            settings.gateway_name = name(url).unwrap_or_else(|| format!("number {}", n + 1));
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
            let directory = settings.gateway_name.replace(|c| !is_plain(c), "_");
            settings.state_dir.push(directory);
        }
        settings.database = database;
        settings.compat = Compat::None;
        settings.is_gateway = true;
        settings
    };
    urls.into_iter().enumerate().map(of_one).collect()
}

/// Returns host, port and database of a URL, which are the gateway's name among several.
fn name(url: &Secret) -> Option<String> {
    Some(place_name(&Endpoint::parse(url).ok()?.server_options()))
}

/// Returns the settings of a gateway that has the connection; if there is none, of one that answers.
pub async fn settings_of(hub: &Settings, connection: &str) -> Option<Settings> {
    let all = settings(hub);
    if all.len() < 2 {
        return all.into_iter().next();
    }
    let states = states(hub).await;
    let has_it = |settings: &&Settings| {
        let mut states = states.iter();
        states.any(|(name, rows)| *name == settings.gateway_name && rows.contains_key(connection))
    };
    let answers = |settings: &&Settings| {
        states
            .iter()
            .any(|(name, _)| *name == settings.gateway_name)
    };
    let mut found = all.iter().find(has_it);
    found = found.or_else(|| all.iter().find(answers));
    found.or(all.first()).cloned()
}

/// Checks that no two gateways have the same name.
///
/// # Errors
/// The name.
pub fn ensure_distinct(settings: &[Settings]) -> anyhow::Result<()> {
    let mut names: Vec<&str> = settings
        .iter()
        .map(|one| one.gateway_name.as_str())
        .collect();
    names.sort_unstable();
    let twice = |pair: &&[&str]| pair.first() == pair.last();
    if let Some(name) = names.windows(2).find(twice).and_then(<[_]>::first) {
        anyhow::bail!("`gateway` has the same database twice: {name}");
    }
    Ok(())
}

/// Returns the state that the hub's loop shares with those of the gateways; `None` without a gateway.
pub fn links(settings: &[Settings], waker: Arc<Notify>) -> Option<Arc<Links>> {
    let options = |settings: &Settings| {
        let endpoint = Endpoint::parse(settings.database.as_ref()?).ok()?;
        Some(endpoint.server_options())
    };
    let one = |settings: &Settings| {
        let options = options(settings).unwrap_or_default();
        (settings.gateway_name.clone(), options)
    };
    let list: Vec<_> = settings.iter().map(one).collect();
    (!list.is_empty()).then(|| Links::new(list, waker))
}

/// Returns the gateway's name in messages.
pub fn title(settings: &Settings) -> String {
    match settings.gateway_name.as_str() {
        "" => "the gateway".to_owned(),
        name => format!("the gateway {name}"),
    }
}

/// Returns the settings of gateways in which spcd may have created objects, whatever the current value
/// of `gateway` is.
pub fn existing(hub: &Settings) -> Vec<Settings> {
    let mut private = hub.clone();
    private.gateway = Some(GatewayPlace::Private);
    let mut made = settings(&private);
    made.retain(cluster::exists);
    let servers = settings(hub).into_iter();
    made.extend(servers.filter(|settings| settings.database.is_some()));
    made
}

/// Time limit for reading the states of a gateway.
const STATES_TIMEOUT: Duration = Duration::from_secs(3);

/// Returns the name and the states of each gateway that answers.
pub async fn states(hub: &Settings) -> Vec<(String, BTreeMap<String, GatewayRow>)> {
    let mut all = Vec::new();
    for settings in settings(hub) {
        let read = async {
            let endpoint = match &settings.database {
                Some(database) => Endpoint::parse(database)?,
                None => cluster::endpoint(&settings)?,
            };
            let session = endpoint.connect("gateway view").await?;
            anyhow::Ok(gateway::rows(&session.client).await?)
        };
        let read = tokio::time::timeout(STATES_TIMEOUT, read).await;
        if let Ok(Ok(rows)) = read {
            all.push((settings.gateway_name.clone(), rows));
        }
    }
    all
}

/// Runs a gateway as soon as a connection needs one. An error is shown by the hub's connections, and
/// the start is retried. The caller owns `cluster`, so that it can stop it after everything else.
pub async fn run(
    settings: &Settings,
    link: &Link,
    cluster: &mut Option<Running>,
    health: &watch::Receiver<ProbeOptions>,
    mut hub: watch::Receiver<Option<Arc<Endpoint>>>,
) -> Infallible {
    // An existing gateway may hold objects that the files no longer need.
    if settings.database.is_some() || cluster::exists(settings) {
        link.links().request();
    }
    let mut requested = link.links().requested.subscribe();
    // The link holds the sender.
    let _ = requested.wait_for(|requested| *requested).await;
    let hub = loop {
        if let Some(hub) = &*hub.borrow_and_update() {
            break hub.clone();
        }
        // The sender is gone when the daemon ends.
        if hub.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    if !link.has_others() {
        return keep_trying(settings, link, cluster, health, &hub).await;
    }
    loop {
        // Only the daemon that leads on the hub assigns connections to gateways.
        until(&hub, |state| matches!(state, HubState::Leading { .. })).await;
        link.until_hub_is_known().await;
        tokio::select! {
            never = keep_trying(settings, link, cluster, health, &hub) => match never {},
            () = until(&hub, |state| matches!(state, HubState::Following { .. })) => {}
        }
        link.set_endpoint(None);
        link.set_answers(false);
    }
}

/// Waits until the hub's state fulfils a condition.
async fn until(hub: &Endpoint, is_so: impl Fn(&HubState) -> bool) {
    while !is_so(&hub.context().state()) {
        tokio::time::sleep(AVAILABILITY_POLL).await;
    }
}

/// Keeps the availability of several gateways current. A daemon that does not lead connects to no
/// gateway, and so cannot observe them.
pub async fn track_availability(links: &Links, hub: &HubContext) -> Infallible {
    let mut has_led = false;
    loop {
        let leads = match hub.state() {
            HubState::Leading { .. } => true,
            HubState::Lost { .. } => has_led,
            HubState::Connecting | HubState::Following { .. } => false,
        };
        if leads && !has_led {
            links.restart_presences();
        }
        has_led = leads;
        if leads {
            let patience = Duration::from_millis(hub.settings().gateway_patience);
            links.update_availability(patience);
        }
        tokio::time::sleep(AVAILABILITY_POLL).await;
    }
}

async fn keep_trying(
    settings: &Settings,
    link: &Link,
    cluster: &mut Option<Running>,
    health: &watch::Receiver<ProbeOptions>,
    hub: &Endpoint,
) -> Infallible {
    let mut failures = 0_u32;
    let mut restarting: Option<Instant> = None;
    loop {
        let began = Instant::now();
        let Err(error) = serve(settings, link, cluster, health, hub).await;
        link.set_answers(false);
        if let Some(gone) = cluster.take_if(|cluster| !cluster.is_alive()) {
            gone.stop().await;
        }
        if is_taken(&error) && !leads_for_long(hub) {
            tracing::debug!("another daemon uses the gateway's private cluster");
            tokio::time::sleep(TAKEN_POLL).await;
            continue;
        }
        if began.elapsed() > UNREACHABLE_GRACE {
            (failures, restarting) = (0, None);
        }
        // It will accept sessions soon, and a growing pause would delay that.
        if is_restarting(&error)
            && restarting.get_or_insert_with(Instant::now).elapsed() < RESTART_GRACE
        {
            tracing::debug!(error = format!("{error:#}"), "the gateway restarts");
            tokio::time::sleep(RESTART_POLL).await;
            continue;
        }
        failures = failures.saturating_add(1);
        let pause = Duration::from_millis(RETRY.pause(failures));
        let text = format!("{error:#}");
        let gateway = settings.gateway_name.as_str();
        tracing::error!(gateway, error = text, pause = ?pause, "cannot run the gateway");
        link.change(|view| view.error = Some(text));
        tokio::time::sleep(pause).await;
    }
}

/// Returns whether another daemon uses the private cluster, as the leader does while this one is a
/// follower.
fn is_taken(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClusterError::Taken { .. }))
}

/// Returns whether this daemon has led on the hub for so long that its predecessor must have ended.
fn leads_for_long(hub: &Endpoint) -> bool {
    let HubState::Leading { since, .. } = hub.context().state() else {
        return false;
    };
    since.elapsed().is_ok_and(|led| led > UNREACHABLE_GRACE)
}

async fn serve(
    settings: &Settings,
    link: &Link,
    cluster: &mut Option<Running>,
    health: &watch::Receiver<ProbeOptions>,
    hub: &Endpoint,
) -> anyhow::Result<Infallible> {
    if settings.database.is_none() {
        check::ensure_reachable(settings, hub)?;
        if cluster.is_none() {
            *cluster = Some(cluster::ensure(settings).await?);
        }
    }
    let endpoint = match &settings.database {
        Some(database) => Endpoint::parse(database)?,
        None => cluster::endpoint(settings)?,
    };
    let endpoint = Arc::new(endpoint.with_context(HubContext::new(settings.hub)));
    let hub_identity = check::other_database(&endpoint, hub, link).await?;
    prepare(&endpoint).await?;
    let pool = Pool::new(endpoint.clone());
    let mut config = Config::new(&settings.config_dirs, settings.extensions, false)
        .with_state(&settings.state_dir)
        .of_gateway(link.clone());
    let mut watcher = Watcher::new();
    let waker = watcher.waker();
    link.set_endpoint(Some(endpoint.clone()));
    tokio::select! {
        ended = daemon::run(endpoint.clone(), &pool, settings, &mut config, &mut watcher, health) => {
            ended?;
            anyhow::bail!("its loop ended")
        }
        never = follow(settings, &endpoint, link) => match never {},
        () = link.wake_on_changes(waker) => anyhow::bail!("the daemon ends"),
        never = check::follow_writes(endpoint.context(), link) => match never {},
        error = check::serves_hub(&endpoint, hub_identity.as_deref()) => Err(error),
        error = keep(cluster) => Err(error),
    }
}

async fn keep(cluster: &mut Option<Running>) -> anyhow::Error {
    match cluster {
        Some(cluster) => cluster.keep().await.into(),
        None => std::future::pending().await,
    }
}

/// Creates spcd's schema and the role with which the hub reads, unless they exist.
async fn prepare(endpoint: &Endpoint) -> anyhow::Result<()> {
    let session = endpoint.connect("gateway").await?;
    migrations::migrate(&session.client).await?;
    gateway_reader::prepare(&session.client).await?;
    Ok(())
}

/// Returns how the hub reaches the gateway.
fn address(settings: &Settings, endpoint: &Endpoint, password: Secret) -> anyhow::Result<Address> {
    Ok(Address {
        options: server_options(settings, endpoint)?,
        user: gateway_reader::READER.to_owned(),
        password,
    })
}

fn server_options(
    settings: &Settings,
    endpoint: &Endpoint,
) -> anyhow::Result<BTreeMap<String, String>> {
    Ok(match &settings.database {
        Some(_) => endpoint.server_options(),
        // The hub's server may run as a user that cannot reach the socket.
        None => cluster::tcp_options(settings)?,
    })
}

/// Keeps the view current.
async fn follow(settings: &Settings, endpoint: &Endpoint, link: &Link) -> Infallible {
    let mut lost: Option<Instant> = None;
    loop {
        let Err(error) = follow_session(settings, endpoint, link, &mut lost).await;
        link.set_answers(false);
        let since = *lost.get_or_insert_with(Instant::now);
        let patience = match is_restarting(&error) {
            true => RESTART_GRACE,
            false => UNREACHABLE_GRACE,
        };
        if since.elapsed() > patience {
            link.change(|view| view.error = Some(format!("{error:#}")));
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Returns whether the server is starting or recovering, or has just ended a session.
fn is_restarting(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let says_so = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(error) = cause.downcast_ref::<DbError>() {
            return *error.code() == SqlState::CANNOT_CONNECT_NOW;
        }
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&error.kind());
        }
        let driver = cause.downcast_ref::<tokio_postgres::Error>();
        driver.is_some_and(tokio_postgres::Error::is_closed)
    };
    error.chain().any(says_so)
}

async fn follow_session(
    settings: &Settings,
    endpoint: &Endpoint,
    link: &Link,
    lost: &mut Option<Instant>,
) -> anyhow::Result<Infallible> {
    let mut session = endpoint.connect("gateway view").await?;
    // The gateway answers, even if it ends this session at once.
    *lost = None;
    link.set_answers(true);
    gateway::listen(&session).await?;
    let mut checks = tokio::time::interval(READER_CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let rows = gateway::rows(&session.client).await?;
        let password = gateway_reader::password(&session.client).await?;
        let password = password.context("it has no password for the hub")?;
        link.set(address(settings, endpoint, password.clone())?, rows);
        tokio::select! {
            // All notifications that arrived meanwhile cause one read.
            notified = session.notified() => notified.context("its session ended")?,
            () = link.until_rows_are_written() => {}
            _ = checks.tick() => check::reader(endpoint, &session.client, password).await?,
        }
    }
}
