//! `spcd plan`

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{Desired, Doubt, Loaded, Severity};
use spcd_core::csv::keep_types;
use spcd_core::observed::{Ahead, Attempt, Detail, Extension, Observed};
use spcd_core::plan::{self, Plan, Task};
use spcd_core::shape::{self, Obstacles};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::PlanArgs;
use crate::config::Config;
use crate::csv;
use crate::hub;
use crate::hub::connect::Endpoint;
use crate::hub::{ahead, inputs, observe};
use crate::settings::Settings;
use crate::tunnel::Tunnels;

/// There is something to do.
const CHANGES: u8 = 2;

/// How many sources are asked at a time.
const AT_A_TIME: usize = 8;

/// Shows what a pass would do, and does nothing.
pub async fn run(settings: &Settings, args: PlanArgs) -> anyhow::Result<ExitCode> {
    let mut config = Config::new(&settings.config_dirs, false)
        .with_state(&settings.state_dir)
        .adopting(args.adopt_config);
    if args.adopt_config {
        config.ensure_adoptable()?;
    }
    let Loaded {
        mut desired,
        diagnostics,
        ..
    } = config.load();
    let (endpoint, cluster) = super::hub(settings).await?;
    let endpoint = Arc::new(endpoint);
    let session = endpoint.connect("plan").await?;
    if !hub::is_utf8(&session.client).await? {
        desired.adapt_to_other_encoding();
    }
    let tunnels = Tunnels::new(&settings.state_dir, &endpoint);
    let looked = match doubt_vanished(&mut config, &session.client, &mut desired).await {
        Ok(()) => look(&endpoint, &tunnels, &session.client, &desired, args.refresh).await,
        Err(error) => Err(error),
    };
    drop(tunnels);
    drop(session);
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    let (plan, observed) = looked?;
    let mut out = super::terminal::human();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &plan::show_json(&plan, &observed))?;
        writeln!(out)?;
    } else if args.sql {
        out.write_all(plan::show_sql(&plan, &observed).as_bytes())?;
    } else if plan.is_empty() {
        writeln!(out, "nothing to do")?;
        if desired.connections.is_empty() && observed.connections.is_empty() {
            eprintln!("{}", super::status::nothing_configured(settings));
        }
    } else {
        out.write_all(plan::show(&plan, &observed).as_bytes())?;
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
    Ok(ExitCode::from(match (errors, plan.is_empty()) {
        (0, true) => 0,
        (0, false) => CHANGES,
        _ => 1,
    }))
}

/// Puts in doubt what vanished since it was applied.
async fn doubt_vanished(
    config: &mut Config,
    client: &Client,
    desired: &mut Desired,
) -> anyhow::Result<()> {
    let mut known = inputs::read(client).await?;
    let mut names = Vec::new();
    if let Some(roots) = config.required_roots() {
        names = inputs::check(&known, roots)?;
        known = inputs::renamed(known, &names);
    }
    config.doubt_vanished(&known, desired);
    // The rows have the names as they were.
    for (from, to) in &names {
        let before = |doubt: &Doubt| {
            let rest = doubt.path.strip_prefix(to.as_str())?;
            let path = format!("{from}{rest}");
            Some(Doubt {
                path,
                ..doubt.clone()
            })
        };
        let more: Vec<Doubt> = desired.doubts.iter().filter_map(before).collect();
        desired.doubts.extend(more);
    }
    Ok(())
}

/// How long the files of a connection may keep us waiting where the configuration does not say.
const DEADLINE: Duration = Duration::from_secs(60);

/// Reads the files of csv connections, for which no source needs to be asked. Gives what there is of
/// those that were not looked at closely.
async fn read_files(
    client: &Client,
    desired: &Desired,
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
        let reading = csv::aside(name.clone(), move || csv::read(&csv, &import));
        let files = match tokio::time::timeout(deadline, reading).await {
            Ok(Some(files)) => files,
            _ => Err("its files do not answer".to_owned()),
        };
        let mut offer = match files {
            Ok(files) => files.offer,
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
        shape::normalize(&mut offer.tables, target.traits());
        let mut obstacles = Obstacles::default();
        let known = observed.connections.get(name);
        if let Some(applied) = known.and_then(|known| known.applied.as_ref()) {
            keep_types(&mut offer.tables, &applied.types);
            let found = observe::details(client, std::slice::from_ref(name), false).await?;
            for (name, mut detail) in found {
                shape::normalize(&mut detail.tables, target.traits());
                let changes = shape::diff(&detail.tables, &offer, target.traits());
                obstacles = ahead::in_the_way(client, &name, &changes, &Arc::default())
                    .await?
                    .obstacles;
                if !changes.is_empty() {
                    observed.ask.insert(name.clone());
                }
                if !observed.details.contains_key(&name) {
                    details.insert(name, detail);
                }
            }
        }
        let answer = Ahead {
            tables: Ok(offer),
            obstacles,
        };
        observed.answers.insert(name.clone(), answer);
    }
    Ok(details)
}

/// The plan, and what it was made from; with `refresh` also what the sources answer.
async fn look(
    endpoint: &Arc<Endpoint>,
    tunnels: &Arc<Tunnels>,
    client: &Client,
    desired: &Desired,
    refresh: bool,
) -> anyhow::Result<(Plan, Observed)> {
    let mut observed = observe::observe(client, desired).await?;
    let details = read_files(client, desired, &mut observed).await?;
    if !refresh {
        let plan = plan::plan(desired, &observed);
        observed.details.extend(details);
        return Ok((plan, observed));
    }
    observed.ask = desired.connections.keys().cloned().collect();
    let mut plan = plan::plan(desired, &observed);
    observed.details.extend(details);
    let imports = plan.work.iter().filter_map(|work| match &work.task {
        Task::Import(import) => Some((work.name.as_str(), &**import)),
        _ => None,
    });
    // A wrapper that is not there cannot ask yet.
    let can_ask = |extension: &str| {
        let found = observed.extensions.get(extension);
        found.is_none_or(|found| *found == Extension::Installed)
    };
    let imports: Vec<_> = imports
        .filter(|(_, import)| can_ask(&import.target.extension) && import.target.csv.is_none())
        .collect();
    let slots = Arc::new(Semaphore::new(AT_A_TIME));
    let mut asked = JoinSet::new();
    for (name, import) in imports {
        let (endpoint, slots) = (endpoint.clone(), slots.clone());
        let tunnels = tunnels.clone();
        let (name, import) = (name.to_owned(), import.clone());
        asked.spawn(async move {
            let _slot = slots.acquire().await;
            let led = tunnels.ready_unless_kept(&import.target).await;
            let mut answer = ahead::ask(&endpoint, &name, &import).await;
            // Without its tunnel the source could not answer.
            if let (Err(why), Ok((_, ahead))) = (&led, &mut answer)
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
