//! `spcd apply`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use spcd_client::{ConnectionState, Status, states};

use super::ApplyArgs;
use super::follow::{self, WaitOutcome};
use super::terminal::ProgressLine;
use crate::config::Config;
use crate::daemon::LeaderSession;
use crate::gateway::{ApplyOptions, OneShotGateways, hub_lanes};
use crate::gateway_link::Links;
use crate::settings::Settings;
use spcd_postgres::config_files;
use spcd_postgres::connection::Endpoint;

/// Maximum time to wait for the daemon. No import takes as long.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Runs one pass, or has the leading daemon run it.
pub async fn run(settings: &Settings, args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let (endpoint, cluster) = super::hub(settings).await?;
    let endpoint = Arc::new(endpoint);
    let options = ApplyOptions {
        allow_empty: args.allow_empty,
        adopts: args.adopt_config,
    };
    let gateways = OneShotGateways::apply(settings, options, hub_lanes(&endpoint).await?).await?;
    let applied = apply(settings, args, endpoint.clone(), gateways.links.clone()).await;
    if gateways.links.is_some() && applied.is_ok() {
        // The gateways may drop what the hub no longer reads.
        let again = OneShotGateways::apply(settings, options, hub_lanes(&endpoint).await?).await?;
        again.stop().await;
    }
    gateways.stop().await;
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    let Applied { rows, lost_input } = applied?;
    let count = |status: Status| rows.iter().filter(|row| row.status == status).count();
    println!(
        "{} ready, {} in error, {} disabled",
        count(Status::Ready),
        count(Status::Error),
        count(Status::Disabled)
    );
    let mut wrong = follow::report(&[], &rows);
    let is_shown = |error: &String| rows.iter().any(|row| row.error.as_ref() == Some(error));
    for error in lost_input.iter().filter(|error| !is_shown(error)) {
        eprintln!("spcd: {error}");
        wrong = true;
    }
    Ok(ExitCode::from(u8::from(wrong)))
}

/// Result of `apply`.
struct Applied {
    rows: Vec<ConnectionState>,
    /// Errors of missing config directories and files.
    lost_input: Vec<String>,
}

async fn apply(
    settings: &Settings,
    args: ApplyArgs,
    endpoint: Arc<Endpoint>,
    gateways: Option<Arc<Links>>,
) -> anyhow::Result<Applied> {
    let mut config = Config::new(&settings.config_dirs, settings.extensions, args.allow_empty)
        .with_state(&settings.state_dir)
        .beside(gateways)
        .adopting(args.adopt_config);
    if args.adopt_config && !args.allow_empty {
        config.ensure_adoptable()?;
    }
    let began = LeaderSession::begin_once(&endpoint, settings, &mut config).await?;
    let Some(mut leader) = began else {
        let rows = have_applied(&config, args, &endpoint).await?;
        let lost_input = Vec::new();
        return Ok(Applied { rows, lost_input });
    };
    if args.force {
        leader.refresh_all();
    }
    if args.drop_dependents {
        leader.drop_dependents();
    }
    let progress = ProgressLine::default();
    leader
        .run_until_settled(|left| show(&progress, left))
        .await?;
    progress.clear();
    leader.resign().await;
    let session = endpoint.connect("client").await?;
    Ok(Applied {
        rows: states(&session.client, None).await?,
        lost_input: config.lost_input().into_iter().map(str::to_owned).collect(),
    })
}

/// Has the leading daemon apply its own files.
async fn have_applied(
    config: &Config,
    args: ApplyArgs,
    endpoint: &Endpoint,
) -> anyhow::Result<Vec<ConnectionState>> {
    anyhow::ensure!(
        !args.adopt_config,
        "a daemon leads on this database, with its own config directories: stop it first"
    );
    anyhow::ensure!(
        !args.drop_dependents,
        "a daemon leads on this database, and never drops objects of other roles: stop it first"
    );
    let mut session = endpoint.connect("client").await?;
    if let Some(roots) = config.required_roots()
        && let Err(other) = config_files::check(&config_files::read(&session.client).await?, roots)
    {
        eprintln!(
            "spcd: a daemon leads, and applies its own files: {}",
            other.recorded()
        );
    }
    if args.allow_empty {
        // The daemon must notice the missing files before they can be given up.
        let id = follow::request(&session, Some(&[])).await?;
        follow::follow(&mut session, id, Some(&[]), MAX_WAIT, |_| ()).await?;
        config_files::give_up(&session.client).await?;
    }
    let ask: Option<&[String]> = if args.force { None } else { Some(&[]) };
    let id = follow::request(&session, ask).await?;
    let progress = ProgressLine::default();
    let watch = |rows: &[ConnectionState]| {
        let left = rows.iter().filter(|row| !row.status.is_settled());
        show(&progress, left.count());
    };
    let ended = follow::follow(&mut session, id, None, MAX_WAIT, watch).await?;
    progress.clear();
    Ok(match ended {
        WaitOutcome::Settled(rows, _) | WaitOutcome::TimedOut(rows) => rows,
    })
}

fn show(progress: &ProgressLine, left: usize) {
    progress.show(&format!("{left} connections in progress"));
}
