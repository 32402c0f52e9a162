//! `spcd events`

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use serde_json::Value;
use tokio_postgres::Client;

use super::{EventsArgs, terminal};
use crate::settings::Settings;

/// Default number of events.
const LATEST: i64 = 100;

/// An event of a connection's status, error or source.
struct Event {
    time: String,
    connection: Option<String>,
    previous: Option<String>,
    status: String,
    error: Option<String>,
    duration: Option<String>,
    health: Option<String>,
}

/// Prints the events of connections, the latest last.
pub async fn run(settings: &Settings, args: EventsArgs) -> anyhow::Result<ExitCode> {
    let session = super::endpoint(settings)?.connect("client").await?;
    if args.json {
        let events = read_json(&session.client, &args).await?;
        let mut out = terminal::output(true);
        serde_json::to_writer_pretty(&mut out, &events)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let events = read(&session.client, &args).await?;
    if events.is_empty() {
        eprintln!("spcd: no event is recorded for this time and these connections");
    } else {
        print!("{}", table(&events));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the subquery `e` of the requested events and its parameters.
fn subquery(args: &EventsArgs) -> (String, Option<Vec<String>>, Option<f64>) {
    let names = (!args.names.is_empty()).then(|| args.names.clone());
    let since = args.since.map(|since| since.as_secs_f64());
    let limit = match since {
        Some(_) => "ALL".to_owned(),
        None => LATEST.to_string(),
    };
    let sql = format!(
        "(SELECT * FROM spcd.connection_event
          WHERE ($1::text[] IS NULL OR connection_name = ANY ($1))
            AND ($2::float8 IS NULL
                 OR time > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2))
          ORDER BY id DESC LIMIT {limit}) e"
    );
    (sql, names, since)
}

async fn read(client: &Client, args: &EventsArgs) -> anyhow::Result<Vec<Event>> {
    let (events, names, since) = subquery(args);
    let sql = format!(
        "SELECT pg_catalog.to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
                connection_name, previous, status, error,
                pg_catalog.date_trunc('milliseconds', duration)::text, health
         FROM {events} ORDER BY id"
    );
    let rows = client.query(&sql, &[&names, &since]).await;
    let rows = rows.map_err(spcd_client::Error::reading)?;
    rows.iter()
        .map(|row| {
            Ok(Event {
                time: row.try_get(0)?,
                connection: row.try_get(1)?,
                previous: row.try_get(2)?,
                status: row.try_get(3)?,
                error: row.try_get(4)?,
                duration: row.try_get(5)?,
                health: row.try_get(6)?,
            })
        })
        .collect()
}

async fn read_json(client: &Client, args: &EventsArgs) -> anyhow::Result<Value> {
    let (events, names, since) = subquery(args);
    let sql = format!(
        "SELECT coalesce(pg_catalog.json_agg(pg_catalog.to_json(e) ORDER BY id), '[]') FROM {events}"
    );
    Ok(client
        .query_one(&sql, &[&names, &since])
        .await?
        .try_get(0)?)
}

fn table(events: &[Event]) -> String {
    let name = |event: &Event| event.connection.clone().unwrap_or_else(|| "(all)".into());
    let width = events
        .iter()
        .map(|event| terminal::width(&name(event)))
        .max();
    let width = width.unwrap_or(0).max("CONNECTION".len());
    let mut out = format!("TIME                 {:width$}  CHANGE\n", "CONNECTION");
    for event in events {
        let change = match (&event.health, &event.previous) {
            (Some(health), _) => format!("source {health}"),
            (None, Some(previous)) => format!("{previous} -> {}", event.status),
            (None, None) => event.status.clone(),
        };
        let lasted = (event.duration.as_ref().zip(event.previous.as_ref()))
            .filter(|_| event.health.is_none())
            .map(|(duration, previous)| format!("  ({previous} for {duration})"))
            .unwrap_or_default();
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "{}  {}  {change}{lasted}",
            event.time,
            terminal::padded(&name(event), width)
        );
        if let Some(error) = &event.error {
            let _ = writeln!(out, "    {error}");
        }
    }
    out
}
