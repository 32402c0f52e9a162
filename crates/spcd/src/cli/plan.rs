//! `spcd plan`

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use spcd_core::config::{Desired, Loaded, Severity};
use spcd_core::observed::{Attempt, Detail, Observed};
use spcd_core::{plan, shape};
use tokio_postgres::Client;

use super::PlanArgs;
use crate::config::Config;
use crate::csv;
use crate::hub::observe;
use crate::settings::Settings;

/// There is something to do.
const CHANGES: u8 = 2;

/// Shows what a pass would do, and does nothing.
pub async fn run(settings: &Settings, args: PlanArgs) -> anyhow::Result<ExitCode> {
    let Loaded {
        desired,
        diagnostics,
        ..
    } = Config::new(&settings.config_dirs, false).load();
    let (endpoint, cluster) = super::hub(settings).await?;
    let session = endpoint.connect("plan").await?;
    let observed = look(&session.client, &desired).await;
    drop(session);
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    let (mut observed, details) = observed?;
    let plan = plan::plan(&desired, &observed);
    observed.details.extend(details);
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &plan::show_json(&plan, &observed))?;
        writeln!(out)?;
    } else if args.sql {
        out.write_all(plan::show_sql(&plan, &observed).as_bytes())?;
    } else if plan.is_empty() {
        writeln!(out, "nothing to do")?;
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
    Ok(ExitCode::from(match (errors, plan.is_empty()) {
        (0, true) => 0,
        (0, false) => CHANGES,
        _ => 1,
    }))
}

/// How long the files of a connection may keep us waiting where the configuration does not say.
const DEADLINE: Duration = Duration::from_secs(60);

/// Looks at the database, and at the files of csv connections, which no source needs to be asked
/// for. Beside that, what there is of those that were not looked at closely.
async fn look(
    client: &Client,
    desired: &Desired,
) -> anyhow::Result<(Observed, BTreeMap<String, Detail>)> {
    let mut observed = observe::observe(client, desired).await?;
    let mut details = BTreeMap::new();
    for (name, connection) in &desired.connections {
        let Some(target) = connection
            .target
            .as_ref()
            .ok()
            .filter(|_| connection.enabled)
        else {
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
        let names = [name.clone()];
        let is_known =
            (observed.connections.get(name)).is_some_and(|known| known.applied.is_some());
        let has_detail = observed.details.contains_key(name);
        if is_known && !has_detail {
            let found = observe::details(client, &names, false).await?;
            for (name, mut detail) in found {
                shape::normalize(&mut detail.tables, target.traits());
                if !shape::diff(&detail.tables, &offer, target.traits()).is_empty() {
                    observed.ask.insert(name.clone());
                }
                details.insert(name, detail);
            }
        }
        observed.offers.insert(name.clone(), offer);
    }
    Ok((observed, details))
}
