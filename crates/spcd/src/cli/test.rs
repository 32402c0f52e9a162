//! `spcd test`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::config::{Connection, ConnectionKind, ForeignSource, Loaded};
use spcd_core::health::{FailureKind, ProbeAnswer, ProbeFailure};
use spcd_core::observed::Extension;
use spcd_core::planner::RemoteSchema;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::TestArgs;
use crate::cluster;
use crate::config::Config;
use crate::gateway;
use crate::settings::Settings;
use crate::source::ask::probe;
use crate::tunnel::{TestTunnel, Tunnels};
use spcd_postgres::connection::Session;
use spcd_postgres::import;
use spcd_postgres::import::source_info::{SourceInfo, fetch_source_info};
use spcd_postgres::migrations;
use spcd_postgres::{HubError, extension, has_relation, secrets};

/// Default time limit for listing the tables.
const DEADLINE: Duration = Duration::from_secs(60);

/// Hint if ssh connects but the server behind it does not listen.
const UNREACHED_BY_SSH: &str = "ssh gets in, but its server does not get through to the source: is the source \
    running, and are `host` and `port` those it listens on, as seen from the ssh server?";

/// Answer of a source.
struct Report {
    latency: Duration,
    facts: SourceInfo,
    tables: Result<RemoteSchema, String>,
}

/// Tests one source and prints its answer or the error. Needs no daemon and does not disturb one.
pub async fn run(settings: &Settings, args: TestArgs) -> anyhow::Result<ExitCode> {
    let name = args.name.as_str();
    let Some(connection) = find(settings, &args)? else {
        return Ok(ExitCode::FAILURE);
    };
    let target = match target(&connection) {
        Ok(target) => target,
        Err(error) => {
            eprintln!("spcd: {name}: {error}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let gateway = match target.in_gateway {
        true => gateway::settings_of(settings, name).await,
        false => None,
    };
    let settings = gateway.as_ref().unwrap_or(settings);
    let running = match gateway.is_some() && settings.database.is_none() {
        true => Some(cluster::join(settings).await?),
        false => None,
    };
    let tested = test(settings, &connection, target).await;
    if let Some(running) = running {
        running.stop().await;
    }
    let (failure, hint) = match tested? {
        Ok(report) => {
            print!("{}", shown(&connection, target, &report));
            return Ok(ExitCode::from(u8::from(report.tables.is_err())));
        }
        Err(failed) => failed,
    };
    eprintln!("spcd: {name}: {}: {}", failure.kind.as_str(), failure.text);
    if let Some(hint) = hint.or(failure.kind.hint()) {
        eprintln!("hint: {hint}");
    }
    Ok(ExitCode::FAILURE)
}

/// Finds the connection in the file or the config directories. Prints the error if there is none.
fn find(settings: &Settings, args: &TestArgs) -> anyhow::Result<Option<Arc<Connection>>> {
    let dirs = match &args.file {
        Some(file) => {
            if let Err(error) = std::fs::metadata(file) {
                eprintln!("spcd: cannot read {}: {error}", file.display());
                return Ok(None);
            }
            vec![std::path::absolute(file)?]
        }
        None => settings.config_dirs.clone(),
    };
    let Loaded {
        desired,
        diagnostics,
        ..
    } = Config::new(&dirs, settings.extensions, false)
        .with_gateway(gateway::is_on(settings))
        .with_state(&settings.state_dir)
        .load();
    let connection = desired.connections.get(&args.name);
    if connection.is_none() {
        let places: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        eprintln!(
            "spcd: no connection is named {:?} in {}",
            args.name,
            places.join(", ")
        );
        // A diagnostic of the file may be the cause.
        for diagnostic in diagnostics.iter().filter(|_| args.file.is_some()) {
            eprintln!("spcd: {}", diagnostic.one_line());
        }
    }
    Ok(connection.cloned())
}

/// Returns the source to test, or why the connection has none.
fn target(connection: &Connection) -> Result<&ForeignSource, String> {
    if let (Ok(_), ConnectionKind::Aggregator { members, .. }) =
        (&connection.target, &connection.kind)
    {
        let members = match members.is_empty() {
            true => String::new(),
            false => format!(": test its members {}", members.join(", ")),
        };
        return Err(format!("an aggregator has no source of its own{members}"));
    }
    connection.target.as_ref().map_err(Clone::clone)
}

/// Connects to the source, through its tunnel if it has one. An error may have a hint.
async fn test(
    settings: &Settings,
    connection: &Connection,
    target: &ForeignSource,
) -> anyhow::Result<Result<Report, (ProbeFailure, Option<&'static str>)>> {
    let endpoint = super::endpoint(settings)?;
    let tunnels = Tunnels::new(&settings.state_dir, &endpoint);
    let trial = match open_tunnel(&tunnels, target).await {
        Err(HubError::StatementFailed { text, code }) => {
            return Ok(Err((ProbeFailure::classify(code.code(), &text), None)));
        }
        trial => trial?,
    };
    let session = endpoint.connect("test").await?;
    let schedule = connection.health.or(settings.health).schedule();
    let within = Duration::from_millis(schedule.timeout);
    let outcome = match report(&session, target, within).await? {
        Ok(report) => Ok(report),
        Err(failure) => {
            let hint = match &trial {
                Some(trial)
                    if failure.kind == FailureKind::Refused && trial.is_dead_end().await =>
                {
                    Some(UNREACHED_BY_SSH)
                }
                _ => None,
            };
            Err((failure, hint))
        }
    };
    if let Some(trial) = trial {
        trial.close().await;
    }
    Ok(outcome)
}

/// Tests the ssh connection, then opens the tunnel: the tunnel's local port accepts connections even if
/// ssh fails.
async fn open_tunnel(
    tunnels: &Tunnels,
    target: &ForeignSource,
) -> Result<Option<TestTunnel>, HubError> {
    let trial = tunnels.trial(target).await?;
    tunnels.ready_unless_kept(target).await?;
    Ok(trial)
}

async fn report(
    session: &Session,
    target: &ForeignSource,
    within: Duration,
) -> anyhow::Result<Result<Report, ProbeFailure>> {
    let client = &session.client;
    let other = |text: String| ProbeFailure {
        kind: FailureKind::Other,
        text,
    };
    if let Some(missing) = extension(client, target).await? {
        return Ok(Err(other(missing)));
    }
    // Its functions pass passwords to the server.
    if !has_relation(client, "spcd.migration").await? {
        migrations::migrate(client).await?;
    }
    client.batch_execute("SET lock_timeout = '2s'").await?;
    secrets::prepare(client).await?;
    let probed = probe(client, None, target, within);
    let latency = match timeout(within, probed).await {
        Err(_) => {
            let _ = session.canceller().cancel().await;
            return Ok(Err(ProbeFailure::timeout(within)));
        }
        Ok(Err(error)) => return Err(error.into()),
        Ok(Ok(ProbeAnswer::Reachable(latency))) => latency,
        Ok(Ok(ProbeAnswer::Failed(failure))) => return Ok(Err(failure)),
        // Listing its tables is the only test of such a source.
        Ok(Ok(ProbeAnswer::Inconclusive(_))) => Duration::ZERO,
    };
    let facts = match timeout(within, fetch_source_info(client, target)).await {
        Ok(facts) => facts.or_else(|error| match error {
            HubError::StatementFailed { .. } => Ok(SourceInfo::default()),
            error => Err(error),
        })?,
        Err(_) => {
            let _ = session.canceller().cancel().await;
            return Ok(Err(ProbeFailure::timeout(within)));
        }
    };
    let deadline = target.import.timeout.map_or(DEADLINE, Duration::from_secs);
    let tables = match timeout(deadline, import::fetch_remote_schema(session, target)).await {
        Ok(Ok(remote)) => Ok(remote),
        Ok(Err(HubError::StatementFailed { text, .. })) => Err(text),
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => {
            let _ = session.canceller().cancel().await;
            Err(ProbeFailure::timeout(deadline).text)
        }
    };
    Ok(Ok(Report {
        latency,
        facts,
        tables,
    }))
}

/// Creates the extension if necessary. Returns an error message if the source cannot use it.
async fn extension(client: &Client, target: &ForeignSource) -> anyhow::Result<Option<String>> {
    if target.extension.is_empty() {
        return Ok(None);
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = $1),
                      EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = $1)";
    let row = client.query_one(sql, &[&target.extension]).await?;
    let extension = match (row.try_get(0)?, row.try_get(1)?) {
        (true, _) => Extension::Installed,
        (false, true) => extension::create(client, None, &target.extension).await?,
        (false, false) => Extension::Missing,
    };
    Ok(extension.problem(target))
}

fn shown(connection: &Connection, target: &ForeignSource, report: &Report) -> String {
    let Report {
        latency,
        facts,
        tables,
    } = report;
    let name = &connection.name;
    let ms = latency.as_secs_f64() * 1000.0;
    let mut out = match (latency.is_zero(), tables) {
        (true, Ok(_)) => format!("{name}: answers\n"),
        (true, Err(_)) => format!("{name}: does not list its tables\n"),
        (false, Ok(_)) => format!("{name}: answers in {ms:.1} ms\n"),
        (false, Err(_)) => {
            format!("{name}: answers in {ms:.1} ms, but does not list its tables\n")
        }
    };
    let mut line = |what: &str, value: &str| out.push_str(&format!("  {what:8}  {value}\n"));
    let plugin = match target.wrapper == connection.plugin {
        true => connection.plugin.clone(),
        false => format!("{} ({})", connection.plugin, target.wrapper),
    };
    line("plugin", &plugin);
    if let Some(version) = &facts.version {
        line("server", version);
    }
    if let Some(started) = &facts.started {
        line("started", started);
    }
    if let Some(database) = &facts.database {
        line("database", database);
    }
    if let Some(user) = &facts.user {
        line("user", user);
    }
    if let Some(backend) = &facts.backend {
        line("backend", backend);
    }
    if let Some(tls) = &facts.tls {
        line("TLS", tls);
    }
    match tables {
        Ok(remote) => {
            let failed: Vec<_> = (remote.tables.iter())
                .filter_map(|table| Some((&table.name, table.import_error.as_ref()?)))
                .collect();
            line("tables", &(remote.tables.len() - failed.len()).to_string());
            for (table, reason) in failed {
                line("left out", &format!("{table}: {reason}"));
            }
            let left_out = remote.left_out.iter().map(|left_out| &left_out.text);
            for warning in left_out.chain(&remote.warnings) {
                line("warning", warning);
            }
        }
        Err(error) => line("tables", &format!("cannot be listed: {error}")),
    }
    out
}

#[cfg(test)]
mod tests {
    use spcd_core::config::{Cache, LoadContext, SourceFile, load};

    use super::*;

    #[test]
    fn the_headline_says_whether_the_tables_are_listed() {
        let source = SourceFile {
            path: "a.spc".to_owned(),
            text: Ok("connection \"a\" {\n  plugin = \"postgres\"\n}\n".to_owned()),
        };
        let mut lookup = |_, _: &str, _: &str| Err("it is not set".to_owned());
        let mut given = LoadContext {
            lookup: Some(&mut lookup),
            has_gateway: false,
        };
        let loaded = load(&[source], &mut given, &mut Cache::default());
        let connection = &loaded.desired.connections["a"];
        let target = connection.target.as_ref().unwrap();
        for (latency, lists, headline) in [
            (0, true, "a: answers\n"),
            (20, true, "a: answers in 20.0 ms\n"),
            (0, false, "a: does not list its tables\n"),
            (
                20,
                false,
                "a: answers in 20.0 ms, but does not list its tables\n",
            ),
        ] {
            let tables = match lists {
                true => Ok(RemoteSchema::default()),
                false => Err("no such file".to_owned()),
            };
            let report = Report {
                latency: Duration::from_millis(latency),
                facts: SourceInfo::default(),
                tables,
            };
            let text = shown(connection, target, &report);
            assert!(text.starts_with(headline), "{text}");
            assert_eq!(text.contains("cannot be listed: no such file"), !lists);
        }
    }
}
