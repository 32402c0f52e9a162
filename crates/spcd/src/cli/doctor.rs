//! `spcd doctor`: shows what is missing on this machine and in the database, and how to fix it.

mod database;
mod gateway;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use spcd_core::config::{DesiredState, Loaded, Severity};

use crate::cluster::{self, Running};
use crate::config::Config;
use crate::files::{ConfigReader, DirState};
use crate::settings::Settings;
use spcd_postgres::connection::Session;

/// Minimum free space for a private cluster, in MB: its write-ahead log alone may take as much.
const MIN_FREE_DISK_MB: u64 = 1024;

/// Result of one check.
struct CheckResult {
    what: String,
    /// What to do; `None` if the check passed.
    advice: Option<String>,
}

/// Prints one line for each check. Returns 1 if any fails.
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let (mut findings, desired) = files(settings);
    let running = match settings.database {
        Some(_) => None,
        None => private(settings, &mut findings).await,
    };
    let mut session = None;
    if settings.database.is_some() || running.is_some() {
        findings.extend(hub(settings, &desired, &mut session).await?);
    }
    let client = session.as_ref().map(|session| &session.client);
    findings.extend(gateway::check(settings, &desired, client).await);
    drop(session);
    if let Some(running) = running {
        running.stop().await;
    }
    let mut out = super::terminal::output(false);
    let mut missing = false;
    for CheckResult { what, advice } in findings {
        match advice {
            None => writeln!(out, "ok       {what}")?,
            Some(advice) => {
                missing = true;
                writeln!(out, "missing  {what}")?;
                for line in advice.lines() {
                    writeln!(out, "         {line}")?;
                }
            }
        }
    }
    Ok(ExitCode::from(u8::from(missing)))
}

fn good(what: impl Into<String>) -> CheckResult {
    CheckResult {
        what: what.into(),
        advice: None,
    }
}

fn bad(what: impl Into<String>, advice: impl Into<String>) -> CheckResult {
    CheckResult {
        what: what.into(),
        advice: Some(advice.into()),
    }
}

/// Checks the config directories and their files.
fn files(settings: &Settings) -> (Vec<CheckResult>, DesiredState) {
    let scan = ConfigReader::new(&settings.config_dirs, settings.extensions).scan();
    let mut findings: Vec<CheckResult> = scan
        .dirs
        .iter()
        .map(|(dir, state)| {
            let shown = format!("config directory {}", dir.display());
            match state {
                DirState::Missing if dir.exists() => bad(shown, unreadable(dir)),
                DirState::Missing => bad(shown, format!("mkdir -p {}", dir.display())),
                DirState::Empty => bad(shown, "it contains no .spc file yet"),
                DirState::Filled => good(shown),
            }
        })
        .collect();
    findings.extend(scan.sources.iter().filter_map(|source| {
        let error = source.text.as_ref().err()?;
        Some(bad(&source.path, error))
    }));
    let Loaded {
        desired,
        diagnostics,
        ..
    } = Config::new(&settings.config_dirs, settings.extensions, false)
        .with_gateway(crate::gateway::is_on(settings))
        .load();
    let errors = diagnostics.iter().filter(|d| d.severity == Severity::Error);
    findings.push(match errors.count() {
        0 => good(format!(
            "{} connections, no errors in the files",
            desired.connections.len()
        )),
        1 => bad("1 error in the files", "spcd check"),
        errors => bad(format!("{errors} errors in the files"), "spcd check"),
    });
    (findings, desired)
}

fn unreadable(dir: &Path) -> String {
    match std::fs::read_dir(dir) {
        Ok(_) => "it cannot be read".to_owned(),
        Err(error) => format!("{error}: let this user read it"),
    }
}

/// Checks what the private cluster needs from the machine. An existing cluster without a daemon is
/// started temporarily; none is created.
async fn private(settings: &Settings, findings: &mut Vec<CheckResult>) -> Option<Running> {
    let state = cluster::inspect(settings);
    findings.push(match state.user {
        Ok(user) => good(format!("the private cluster runs as {user}")),
        Err(error) => bad("a user for the private cluster", error.to_string()),
    });
    let may_run = state.programs.is_ok();
    findings.push(match state.programs {
        Ok(major) => good(format!("the server's programs, Postgres {major}")),
        Err(error) => bad("the server's programs", error.to_string()),
    });
    let dir = settings.state_dir.display();
    findings.push(match state.free_mb {
        None => good(format!("state directory {dir}: not created yet")),
        Some(free) if free < MIN_FREE_DISK_MB => bad(
            format!("only {free} MB are free in {dir}"),
            "make room, or give --state-dir another disk",
        ),
        Some(free) => good(format!("state directory {dir}: {free} MB are free")),
    });
    if !cluster::exists(settings) {
        findings.push(good("the private cluster: `spcd run` creates it"));
        return None;
    }
    if !may_run {
        return None;
    }
    match cluster::join(settings).await {
        Ok(running) => Some(running),
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            findings.push(bad("the private cluster", error));
            None
        }
    }
}

async fn hub(
    settings: &Settings,
    desired: &DesiredState,
    opened: &mut Option<Session>,
) -> anyhow::Result<Vec<CheckResult>> {
    let endpoint = match super::endpoint(settings) {
        Ok(endpoint) => endpoint,
        Err(error) => return Ok(vec![bad("the database", format!("{error:#}"))]),
    };
    match endpoint.connect("doctor").await {
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            Ok(vec![bad(endpoint.to_string(), error)])
        }
        Ok(session) => {
            let reached = good(format!("{endpoint}: Postgres {}", session.server_version));
            let session = opened.insert(session);
            let found = database::check(&session.client, desired).await?;
            Ok(std::iter::once(reached).chain(found).collect())
        }
    }
}
