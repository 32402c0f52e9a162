//! `spcd plan`

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{DesiredState, HubUse, Loaded, Severity, UnknownInput};
use spcd_core::csv::keep_column_types;
use spcd_core::diff::{self, Blockers, Renames};
use spcd_core::observed::{Attempt, Detail, Extension, ImportPreview, Observed};
use spcd_core::planner::{self, Plan, Running, Task};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::PlanArgs;
use crate::config::Config;
use crate::gateway::{self, OneShotGateways, OpenGateway, hub_lanes};
use crate::mirror;
use crate::settings::Settings;
use crate::source::csv;
use crate::tunnel::Tunnels;
use spcd_postgres as hub;
use spcd_postgres::catalog::observe;
use spcd_postgres::config_files;
use spcd_postgres::connection::Endpoint;
use spcd_postgres::import::preview;

/// Exit code if there are changes.
const CHANGES: u8 = 2;

/// Maximum number of sources asked at the same time.
const MAX_CONCURRENT_IMPORTS: usize = 8;

/// Shows what a pass would do. Changes nothing.
pub async fn run(settings: &Settings, args: PlanArgs) -> anyhow::Result<ExitCode> {
    let (endpoint, cluster) = super::hub(settings).await?;
    let endpoint = Arc::new(endpoint);
    let gateways = OneShotGateways::inspect(settings, hub_lanes(&endpoint).await?).await?;
    let mut config = Config::new(&settings.config_dirs, settings.extensions, false)
        .with_state(&settings.state_dir)
        .beside(gateways.links.clone())
        .adopting(args.adopt_config);
    if args.adopt_config {
        config.ensure_adoptable()?;
    }
    let Loaded {
        mut desired,
        mut diagnostics,
        ..
    } = config.load();
    let session = endpoint.connect("plan").await?;
    if !desired.mirrors.is_empty() {
        let views = mirror::observe_once(&session.client, &desired.mirrors).await?;
        config.set_mirror_views(views);
        let loaded = config.load();
        (desired, diagnostics) = (loaded.desired, loaded.diagnostics);
    }
    if !hub::is_utf8(&session.client).await? {
        desired.adapt_to_other_encoding();
    }
    let tunnels = Tunnels::new(&settings.state_dir, &endpoint);
    let planned = match keep_vanished_files(&mut config, &session.client, &mut desired).await {
        Ok(()) => plan_pass(&endpoint, &tunnels, &session.client, &desired, args.refresh).await,
        Err(error) => Err(error),
    };
    let gateway_previews = preview_gateways(&gateways, args).await;
    drop(tunnels);
    drop(session);
    gateways.stop().await;
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    let (plan, observed) = planned?;
    let gateway_previews = gateway_previews?;
    let is_nothing = plan.is_empty() && gateway_previews.iter().all(GatewayPreview::is_empty);
    if args.json {
        show_json(&plan, &observed, &gateway_previews)?;
    } else if args.sql {
        let mut out = super::terminal::output(false);
        out.write_all(planner::show_sql(&plan, &observed).as_bytes())?;
        for gateway_previews in &gateway_previews {
            out.write_all(gateway_previews.sql().as_bytes())?;
        }
    } else if is_nothing {
        writeln!(super::terminal::output(false), "nothing to do")?;
        if desired.connections.is_empty() && observed.connections.is_empty() {
            eprintln!("{}", super::status::nothing_configured(settings));
        }
    } else {
        let mut out = super::terminal::output(false);
        out.write_all(planner::show(&plan, &observed).as_bytes())?;
        for gateway_previews in &gateway_previews {
            out.write_all(gateway_previews.text().as_bytes())?;
        }
    }
    let mut errors = 0;
    for diagnostic in diagnostics.iter().filter(|d| d.severity == Severity::Error) {
        errors += 1;
        eprintln!(
            "{}:{}:{}: {}",
            diagnostic.file, diagnostic.line, diagnostic.column, diagnostic.message
        );
    }
    for error in config.lost_input() {
        errors += 1;
        eprintln!("error: {error}");
    }
    Ok(ExitCode::from(match (errors, is_nothing) {
        (0, true) => 0,
        (0, false) => CHANGES,
        _ => 1,
    }))
}

/// Changes that a pass would make in one gateway.
struct GatewayPreview {
    /// The gateway's name in messages.
    title: String,
    change: GatewayChange,
}

enum GatewayChange {
    /// No connection uses it.
    None,
    /// It creates a private cluster, for this number of connections.
    New(usize),
    /// It is one of several and cannot be reached.
    Away(String),
    Planned(Box<(Plan, Observed)>),
}

impl GatewayPreview {
    fn is_empty(&self) -> bool {
        match &self.change {
            GatewayChange::None | GatewayChange::Away(_) => true,
            GatewayChange::New(_) => false,
            GatewayChange::Planned(planned) => planned.0.is_empty(),
        }
    }

    fn text(&self) -> String {
        match &self.change {
            GatewayChange::New(count) => format!("+ a private gateway, for {count} connections\n"),
            GatewayChange::Planned(planned) if !self.is_empty() => {
                let plan = planner::show(&planned.0, &planned.1);
                format!("in {}:\n{plan}", self.title)
            }
            GatewayChange::None | GatewayChange::Away(_) | GatewayChange::Planned(_) => {
                String::new()
            }
        }
    }

    fn sql(&self) -> String {
        match &self.change {
            GatewayChange::Planned(planned) if !self.is_empty() => {
                let sql = planner::show_sql(&planned.0, &planned.1);
                format!("-- in {}\n{sql}", self.title)
            }
            _ => String::new(),
        }
    }

    fn json(&self) -> Option<serde_json::Value> {
        match &self.change {
            GatewayChange::None => None,
            GatewayChange::New(count) => Some(serde_json::json!({"new_connections": count})),
            GatewayChange::Away(error) => Some(serde_json::json!({"error": error})),
            GatewayChange::Planned(planned) => Some(planner::show_json(&planned.0, &planned.1)),
        }
    }
}

fn show_json(
    plan: &Plan,
    observed: &Observed,
    gateway_previews: &[GatewayPreview],
) -> anyhow::Result<()> {
    let mut shown = planner::show_json(plan, observed);
    // Several gateways are keyed by their names.
    let gateway = match gateway_previews {
        [] => None,
        [one] => one.json(),
        many => {
            let each = many.iter().map(|one| (one.title.clone(), one.json()));
            Some(serde_json::json!(each.collect::<BTreeMap<_, _>>()))
        }
    };
    if let (Some(gateway), Some(object)) = (gateway, shown.as_object_mut()) {
        object.insert("gateway".to_owned(), gateway);
    }
    let mut out = super::terminal::output(false);
    serde_json::to_writer_pretty(&mut out, &shown)?;
    Ok(writeln!(out)?)
}

/// Plans a pass in each gateway.
async fn preview_gateways(
    gateways: &OneShotGateways,
    args: PlanArgs,
) -> anyhow::Result<Vec<GatewayPreview>> {
    let mut all = Vec::new();
    for gateway in &gateways.gateways {
        all.push(GatewayPreview {
            title: gateway::title(&gateway.settings),
            change: preview_gateway(gateway, args).await?,
        });
    }
    Ok(all)
}

async fn preview_gateway(gateway: &OpenGateway, args: PlanArgs) -> anyhow::Result<GatewayChange> {
    let own = &gateway.settings;
    let mut config = Config::new(&own.config_dirs, own.extensions, false)
        .with_state(&own.state_dir)
        .adopting(args.adopt_config)
        .of_gateway(gateway.link.clone());
    let mut desired = config.load().desired;
    // Shows as dropped what the hub will no longer read.
    desired.hub_use = HubUse::None;
    if let Some(error) = &gateway.link.view().error {
        eprintln!("{}: {error}", gateway.link.title());
        return Ok(GatewayChange::Away(error.clone()));
    }
    let Some(endpoint) = &gateway.endpoint else {
        return Ok(match desired.connections.len() {
            0 => GatewayChange::None,
            count => GatewayChange::New(count),
        });
    };
    let endpoint = Arc::new(endpoint.clone());
    let session = endpoint.connect("plan").await?;
    let tunnels = Tunnels::new(&own.state_dir, &endpoint);
    keep_vanished_files(&mut config, &session.client, &mut desired).await?;
    let planned = plan_pass(&endpoint, &tunnels, &session.client, &desired, args.refresh).await?;
    Ok(GatewayChange::Planned(Box::new(planned)))
}

/// Marks connections of missing files as unknown, so that they are not dropped.
async fn keep_vanished_files(
    config: &mut Config,
    client: &Client,
    desired: &mut DesiredState,
) -> anyhow::Result<()> {
    let mut known = config_files::read(client).await?;
    let mut names = Vec::new();
    if let Some(roots) = config.required_roots() {
        names = config_files::check(&known, roots)?;
        known = config_files::renamed(known, &names);
    }
    config.keep_vanished(&known, desired);
    // The rows still have the old names.
    for (from, to) in &names {
        let before = |doubt: &UnknownInput| {
            let rest = doubt.path.strip_prefix(to.as_str())?;
            let path = format!("{from}{rest}");
            Some(UnknownInput {
                path,
                ..doubt.clone()
            })
        };
        let more: Vec<UnknownInput> = desired.unknown_inputs.iter().filter_map(before).collect();
        desired.unknown_inputs.extend(more);
    }
    Ok(())
}

/// Default time limit for reading the files of a connection.
const DEADLINE: Duration = Duration::from_secs(60);

/// Reads the files of csv connections, which need no session to a source.
async fn read_files(
    client: &Client,
    desired: &DesiredState,
    observed: &mut Observed,
) -> anyhow::Result<BTreeMap<String, Detail>> {
    let mut details = BTreeMap::new();
    for (name, connection) in &desired.connections {
        let (Ok(target), true) = (&connection.target, connection.enabled) else {
            continue;
        };
        let Some(csv) = target.csv.clone() else {
            continue;
        };
        let import = target.import.clone();
        let deadline = import.timeout.map_or(DEADLINE, Duration::from_secs);
        let reading = csv::run_in_thread(name.clone(), move || csv::read(&csv, &import));
        let files = match tokio::time::timeout(deadline, reading).await {
            Ok(Some(files)) => files,
            _ => Err("its files do not answer".to_owned()),
        };
        let mut remote = match files {
            Ok(files) => files.remote,
            Err(error) => {
                let attempt = Attempt {
                    target_hash: desired.target_hash(name).to_owned(),
                    error,
                    due: false,
                };
                observed.attempts.insert(name.clone(), attempt);
                continue;
            }
        };
        diff::normalize(&mut remote.tables, target.wrapper_traits());
        let mut blockers = Blockers::default();
        let known = observed.connections.get(name);
        if let Some(applied) = known.and_then(|known| known.applied.as_ref()) {
            keep_column_types(&mut remote.tables, &applied.types);
            let found = observe::details(client, std::slice::from_ref(name), false).await?;
            for (name, mut detail) in found {
                diff::normalize(&mut detail.tables, target.wrapper_traits());
                let changes = diff::diff(&detail.tables, &remote, target.wrapper_traits());
                let following = Arc::default();
                let none = Renames::default();
                let found =
                    preview::find_blockers(client, &name, &detail, &none, &changes, &following);
                blockers = found.await?.blockers;
                if !changes.is_empty() {
                    observed.ask.insert(name.clone());
                }
                if !observed.details.contains_key(&name) {
                    details.insert(name, detail);
                }
            }
        }
        let answer = ImportPreview {
            tables: Ok(remote),
            blockers,
        };
        observed.answers.insert(name.clone(), answer);
    }
    Ok(details)
}

/// Returns the plan and its inputs. With `refresh`, also asks the sources.
async fn plan_pass(
    endpoint: &Arc<Endpoint>,
    tunnels: &Arc<Tunnels>,
    client: &Client,
    desired: &DesiredState,
    refresh: bool,
) -> anyhow::Result<(Plan, Observed)> {
    let mut observed = observe::observe(client, desired).await?;
    let details = read_files(client, desired, &mut observed).await?;
    if !refresh {
        let plan = planner::plan(desired, &observed, &Running::default());
        observed.details.extend(details);
        return Ok((plan, observed));
    }
    observed.ask = desired.connections.keys().cloned().collect();
    let mut plan = planner::plan(desired, &observed, &Running::default());
    observed.details.extend(details);
    let imports = plan.work.iter().filter_map(|work| match &work.task {
        Task::Import(import) => Some((work.name.as_str(), &**import)),
        _ => None,
    });
    // A wrapper that is not installed cannot ask its source.
    let can_ask = |extension: &str| {
        let found = observed.extensions.get(extension);
        found.is_none_or(|found| *found == Extension::Installed)
    };
    let imports: Vec<_> = imports
        .filter(|(_, import)| can_ask(&import.target.extension) && import.target.csv.is_none())
        .collect();
    let slots = Arc::new(Semaphore::new(MAX_CONCURRENT_IMPORTS));
    let mut asked = JoinSet::new();
    for (name, import) in imports {
        let (endpoint, slots) = (endpoint.clone(), slots.clone());
        let tunnels = tunnels.clone();
        let (name, import) = (name.to_owned(), import.clone());
        asked.spawn(async move {
            let _slot = slots.acquire().await;
            let tunnel = tunnels.ready_unless_kept(&import.target).await;
            let mut answer = preview::preview_import(&endpoint, &name, &import).await;
            // The source is reachable only through its tunnel.
            if let (Err(why), Ok((_, ahead))) = (&tunnel, &mut answer)
                && ahead.tables.is_err()
            {
                ahead.tables = Err(why.to_string());
            }
            (name, answer)
        });
    }
    for (name, answer) in asked.join_all().await {
        let (detail, answer) = answer?;
        observed.details.insert(name.clone(), detail);
        observed.answers.insert(name, answer);
    }
    plan.without_same_answers(&observed);
    Ok((plan, observed))
}
