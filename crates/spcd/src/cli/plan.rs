//! `spcd plan`

use std::io::Write as _;
use std::process::ExitCode;

use spcd_core::config::{Loaded, Severity};
use spcd_core::plan;

use super::PlanArgs;
use crate::config::Config;
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
    let observed = observe::observe(&session.client, &desired).await;
    drop(session);
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    let observed = observed?;
    let plan = plan::plan(&desired, &observed);
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
