//! `spcd apply`

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use spcd_client::{ConnectionState, Status, states};

use super::ApplyArgs;
use super::follow::{self, Ended};
use crate::config::Config;
use crate::daemon::Reign;
use crate::hub::connect::Endpoint;
use crate::settings::Settings;

/// Longer than any import may take.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Does one pass by itself, or has the daemon that leads do it.
pub async fn run(settings: &Settings, args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let (endpoint, cluster) = super::hub(settings).await?;
    let applied = apply(settings, args, Arc::new(endpoint)).await;
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    let rows = applied?;
    let count = |status: Status| rows.iter().filter(|row| row.status == status).count();
    println!(
        "{} ready, {} in error, {} disabled",
        count(Status::Ready),
        count(Status::Error),
        count(Status::Disabled)
    );
    Ok(ExitCode::from(u8::from(follow::report(&[], &rows))))
}

async fn apply(
    settings: &Settings,
    args: ApplyArgs,
    endpoint: Arc<Endpoint>,
) -> anyhow::Result<Vec<ConnectionState>> {
    let mut config =
        Config::new(&settings.config_dirs, args.allow_empty).with_state(&settings.state_dir);
    let began = Reign::begin_once(&endpoint, settings, &mut config).await?;
    Ok(match began {
        Some(mut reign) => {
            if args.force {
                reign.ask_all();
            }
            if args.drop_dependents {
                reign.drop_dependents();
            }
            let mut progress = Progress::default();
            reign.settle(|left| progress.left(left)).await?;
            progress.end();
            reign.resign().await;
            let session = endpoint.connect("client").await?;
            states(&session.client, None).await?
        }
        None => {
            anyhow::ensure!(
                !args.allow_empty,
                "a daemon leads on this database, and decides by its own files: stop it first, \
                 or let one file exist"
            );
            anyhow::ensure!(
                !args.drop_dependents,
                "a daemon leads on this database, and never drops what people made: stop it first"
            );
            let mut session = endpoint.connect("client").await?;
            let ask: Option<&[String]> = if args.force { None } else { Some(&[]) };
            let id = follow::request(&session, ask).await?;
            let mut progress = Progress::default();
            let watch = |rows: &[ConnectionState]| {
                progress.left(rows.iter().filter(|row| !row.status.is_settled()).count());
            };
            let ended = follow::follow(&mut session, id, None, LIMIT, watch).await?;
            progress.end();
            match ended {
                Ended::Settled(rows, _) | Ended::TimeOut(rows) => rows,
            }
        }
    })
}

/// A line on the terminal that says how many are left.
#[derive(Default)]
struct Progress {
    shown: Option<usize>,
}

impl Progress {
    fn left(&mut self, left: usize) {
        if self.shown != Some(left) && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{left} connections under way");
            self.shown = Some(left);
        }
    }

    fn end(&self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
