//! `spcd test`

use std::process::ExitCode;
use std::time::Duration;

use spcd_core::config::{Connection, Kind as ConnectionKind, Loaded, Target};
use spcd_core::health::{Kind, ProbeAnswer, ProbeFailure};
use spcd_core::plan::Offer;
use spcd_core::sql;
use tokio::time::timeout;
use tokio_postgres::Client;

use super::TestArgs;
use crate::config::Config;
use crate::hub::connect::Session;
use crate::hub::facts::{Facts, facts};
use crate::hub::probe::probe;
use crate::hub::{HubError, apply, ask, migrate};
use crate::settings::Settings;
use crate::tunnel::Tunnels;

/// How long the list of tables may take where the configuration does not say.
const DEADLINE: Duration = Duration::from_secs(60);

/// What to do where ssh gets through, and nobody is there.
const BEHIND: &str = "ssh gets in, but its server does not get through to the source: is the source \
    running, and are `host` and `port` those it listens on, as seen from the ssh server?";

/// What a source that answers says.
struct Report {
    latency: Duration,
    facts: Facts,
    tables: Result<Offer, String>,
}

/// Asks one source, and says what it answers, or what stands in the way. It needs no daemon and
/// does not disturb one.
pub async fn run(settings: &Settings, args: TestArgs) -> anyhow::Result<ExitCode> {
    let dirs = match &args.file {
        Some(file) => {
            if let Err(error) = std::fs::metadata(file) {
                eprintln!("spcd: {} cannot be read: {error}", file.display());
                return Ok(ExitCode::FAILURE);
            }
            vec![std::path::absolute(file)?]
        }
        None => settings.config_dirs.clone(),
    };
    let Loaded {
        desired,
        diagnostics,
        ..
    } = Config::new(&dirs, false)
        .with_state(&settings.state_dir)
        .load();
    let name = args.name.as_str();
    let Some(connection) = desired.connections.get(name) else {
        let places: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        eprintln!(
            "spcd: no connection is named {name:?} in {}",
            places.join(", ")
        );
        // What is wrong in the one file may be why.
        for diagnostic in diagnostics.iter().filter(|_| args.file.is_some()) {
            eprintln!("spcd: {}", diagnostic.one_line());
        }
        return Ok(ExitCode::FAILURE);
    };
    let told = |text: &str| {
        eprintln!("spcd: {name}: {text}");
        Ok(ExitCode::FAILURE)
    };
    let target = match &connection.target {
        Ok(target) => target,
        Err(error) => return told(error),
    };
    if let ConnectionKind::Aggregator { members, .. } = &connection.kind {
        let members = match members.is_empty() {
            true => String::new(),
            false => format!(": test its members {}", members.join(", ")),
        };
        return told(&format!("an aggregator has no source of its own{members}"));
    }
    let endpoint = super::endpoint(settings)?;
    let tunnels = Tunnels::new(&settings.state_dir, &endpoint);
    let failed = |failure: &ProbeFailure, hint: Option<&str>| {
        eprintln!("spcd: {name}: {}: {}", failure.kind.as_str(), failure.text);
        if let Some(hint) = hint.or(failure.kind.hint()) {
            eprintln!("hint: {hint}");
        }
        Ok(ExitCode::FAILURE)
    };
    // First by itself: a daemon's port is there whether or not ssh gets through.
    let trial = match tunnels.trial(target).await {
        Err(HubError::Refused { text, code }) => {
            return failed(&ProbeFailure::of(code.code(), &text), None);
        }
        trial => trial?,
    };
    match tunnels.ready_unless_kept(target).await {
        Err(HubError::Refused { text, code }) => {
            return failed(&ProbeFailure::of(code.code(), &text), None);
        }
        ready => ready?,
    }
    let session = endpoint.connect("test").await?;
    let schedule = connection.health.or(settings.health).schedule();
    let within = Duration::from_millis(schedule.timeout);
    let code = match report(&session, target, within).await? {
        Ok(report) => {
            print!("{}", shown(connection, target, &report));
            Ok(ExitCode::from(u8::from(report.tables.is_err())))
        }
        Err(failure) => {
            let mut hint = None;
            if let Some(trial) = &trial
                && failure.kind == Kind::Refused
                && trial.leads_nowhere().await
            {
                hint = Some(BEHIND);
            }
            failed(&failure, hint)
        }
    };
    if let Some(trial) = trial {
        trial.close().await;
    }
    code
}

async fn report(
    session: &Session,
    target: &Target,
    within: Duration,
) -> anyhow::Result<Result<Report, ProbeFailure>> {
    let client = &session.client;
    let other = |text: String| ProbeFailure {
        kind: Kind::Other,
        text,
    };
    if let Some(missing) = extension(client, target).await? {
        return Ok(Err(other(missing)));
    }
    // Passwords reach the server by way of functions in there.
    let kept = "SELECT pg_catalog.to_regclass('spcd.migration') IS NOT NULL";
    if !client.query_one(kept, &[]).await?.try_get::<_, bool>(0)? {
        migrate::migrate(client).await?;
    }
    client.batch_execute("SET lock_timeout = '2s'").await?;
    apply::prepare_for_secrets(client).await?;
    let probed = probe(client, None, target, within);
    let latency = match timeout(within, probed).await {
        Err(_) => {
            let _ = session.canceller().cancel().await;
            return Ok(Err(ProbeFailure::timeout(within)));
        }
        Ok(Err(error)) => return Err(error.into()),
        Ok(Ok(ProbeAnswer::There(latency))) => latency,
        Ok(Ok(ProbeAnswer::Failed(failure))) => return Ok(Err(failure)),
        // Its list of tables tells all that there is to tell.
        Ok(Ok(ProbeAnswer::Unsure(_))) => Duration::ZERO,
    };
    let facts = match timeout(within, facts(client, target)).await {
        Ok(facts) => facts.or_else(|error| match error {
            HubError::Refused { .. } => Ok(Facts::default()),
            error => Err(error),
        })?,
        Err(_) => {
            let _ = session.canceller().cancel().await;
            return Ok(Err(ProbeFailure::timeout(within)));
        }
    };
    let deadline = target.import.timeout.map_or(DEADLINE, Duration::from_secs);
    let tables = match timeout(deadline, ask::ask(session, target)).await {
        Ok(Ok(offer)) => Ok(offer),
        Ok(Err(HubError::Refused { text, .. })) => Err(text),
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

/// Creates the extension if need be and possible; else says where to get it.
async fn extension(client: &Client, target: &Target) -> anyhow::Result<Option<String>> {
    if target.extension.is_empty() {
        return Ok(None);
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = $1),
                      EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = $1)";
    let row = client.query_one(sql, &[&target.extension]).await?;
    let name = &target.extension;
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (true, _) => None,
        (false, true) => {
            // As the daemon does before it imports.
            let create = format!(
                "SET search_path = public; CREATE EXTENSION IF NOT EXISTS {}; SET search_path = pg_catalog",
                sql::ident(name)
            );
            match client.batch_execute(&create).await.map_err(HubError::from) {
                Ok(()) => None,
                Err(HubError::Refused { text, .. }) => {
                    Some(format!("the extension {name} cannot be created: {text}"))
                }
                Err(error) => return Err(error.into()),
            }
        }
        (false, false) => {
            let package = match target.package.as_str() {
                "" => "its vendor",
                package => package,
            };
            Some(format!(
                "the extension {name} is not installed on the database's host: get it from {package}"
            ))
        }
    })
}

fn shown(connection: &Connection, target: &Target, report: &Report) -> String {
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
        Ok(offer) => {
            let unfit: Vec<_> = (offer.tables.iter())
                .filter_map(|table| Some((&table.name, table.unfit.as_ref()?)))
                .collect();
            line("tables", &(offer.tables.len() - unfit.len()).to_string());
            for (table, reason) in unfit {
                line("left out", &format!("{table}: {reason}"));
            }
            for warning in &offer.warnings {
                line("warning", warning);
            }
        }
        Err(error) => line("tables", &format!("cannot be listed: {error}")),
    }
    out
}

#[cfg(test)]
mod tests {
    use spcd_core::config::{Cache, Given, Source, load};

    use super::*;

    #[test]
    fn the_headline_says_whether_the_tables_are_listed() {
        let source = Source {
            path: "a.spc".to_owned(),
            text: Ok("connection \"a\" {\n  plugin = \"postgres\"\n}\n".to_owned()),
        };
        let mut lookup = |_, _: &str, _: &str| Err("it is not set".to_owned());
        let mut given = Given {
            lookup: Some(&mut lookup),
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
                true => Ok(Offer::default()),
                false => Err("no such file".to_owned()),
            };
            let report = Report {
                latency: Duration::from_millis(latency),
                facts: Facts::default(),
                tables,
            };
            let text = shown(connection, target, &report);
            assert!(text.starts_with(headline), "{text}");
            assert_eq!(text.contains("cannot be listed: no such file"), !lists);
        }
    }
}
