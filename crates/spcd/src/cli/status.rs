//! `spcd status`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use spcd_client::{Changes, ConnectionState, Error, Reported, Status, states};
use spcd_core::terminal::plain;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use super::StatusArgs;
use super::follow;
use super::health::{self, Row};
use super::query::Cancel;
use super::terminal;
use crate::hub::connect::{Endpoint, Session};
use crate::settings::Settings;

/// Prints the states.
pub async fn run(settings: &Settings, args: StatusArgs) -> anyhow::Result<ExitCode> {
    if args.watch {
        return watch(settings, &args).await;
    }
    let session = super::endpoint(settings)?.connect("client").await?;
    let names = (!args.names.is_empty()).then_some(args.names.as_slice());
    let mut rows = states(&session.client, names).await?;
    rows.retain(|row| is_labelled(row, &args.labels));
    let health = health::rows(&session.client).await?;
    let mut out = match args.json {
        true => terminal::machine(),
        false => terminal::human(),
    };
    if args.json {
        serde_json::to_writer_pretty(&mut out, &with_health(&rows, &health))?;
        writeln!(out)?;
    } else {
        out.write_all(table(&rows, &health).as_bytes())?;
    }
    let mut wrong = !args.names.is_empty() && rows.iter().any(|row| row.status == Status::Error);
    let unknown = match args.labels.is_empty() {
        true => follow::unknown(&args.names, &rows),
        false => Vec::new(),
    };
    for name in unknown {
        eprintln!("spcd: no connection is named {name:?}");
        wrong = true;
    }
    if let Some(age) = age_without_leader(&session.client).await? {
        eprintln!("spcd: no daemon runs on this database: {age}");
    }
    if rows.is_empty() && args.names.is_empty() && args.labels.is_empty() {
        eprintln!("{}", nothing_configured(settings));
    }
    Ok(ExitCode::from(u8::from(wrong)))
}

/// What to do where there is no connection.
pub fn nothing_configured(settings: &Settings) -> String {
    let dirs: Vec<String> = (settings.config_dirs.iter())
        .map(|dir| dir.display().to_string())
        .collect();
    format!(
        "spcd: no connection is configured: write a .spc file in {}, look at it with `spcd check`, \
         and start `spcd run`",
        dirs.join(" or ")
    )
}

/// How long ago a daemon was last there, where none leads.
async fn age_without_leader(client: &Client) -> anyhow::Result<Option<String>> {
    if follow::is_led(client).await? {
        return Ok(None);
    }
    let sql = "SELECT pg_catalog.date_trunc('second', pg_catalog.clock_timestamp() - greatest(
                   (SELECT max(heartbeat) FROM spcd.daemon),
                   (SELECT time FROM spcd.connection_event ORDER BY id DESC LIMIT 1),
                   (SELECT max(since) FROM spcd.daemon)))::text";
    let age: Option<String> = client.query_one(sql, &[]).await?.try_get(0)?;
    Ok(Some(match age {
        Some(age) => format!("what is shown is from {age} ago"),
        None => "none ever did".into(),
    }))
}

/// Prints the states again whenever one changes, until Ctrl-C. On a terminal the table stays in
/// its place; else each change is one line, or one JSON object.
async fn watch(settings: &Settings, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    // One for all turns: what arrives between two is not lost.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let endpoint = Arc::new(super::endpoint(settings)?);
    let names = (!args.names.is_empty()).then_some(args.names.as_slice());
    let connector = super::query::connector(&endpoint, &Cancel::default());
    let mut changes = Changes::of(connector.clone(), names);
    let mut client = spcd_client::Client::new(connector);
    changes.begin().await?;
    let live = std::io::stdout().is_terminal() && !args.json;
    if live {
        terminal::control_stdout(terminal::CLEAR_SCREEN);
    }
    let mut looker = Looker {
        endpoint,
        session: None,
    };
    let mut rows = client.states(names).await?;
    rows.retain(|row| is_labelled(row, &args.labels));
    show(&rows, &looker.health().await, live, args.json)?;
    loop {
        let change = tokio::select! {
            change = changes.next() => match change {
                Ok(change) => change,
                // The next call tries again.
                Err(Error::Connect(_)) => continue,
                Err(error) => return Err(error.into()),
            },
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        };
        if live {
            // One picture for what changed at once.
            let until = Instant::now() + TOGETHER;
            while timeout_at(until, changes.next())
                .await
                .is_ok_and(|next| next.is_ok())
            {}
            rows = client.states(names).await.unwrap_or(rows);
            rows.retain(|row| is_labelled(row, &args.labels));
            show(&rows, &looker.health().await, live, false)?;
            continue;
        }
        if !args.labels.is_empty() {
            let one = [change.connection.clone()];
            let now = client.states(Some(&one)).await.unwrap_or_default();
            // One that is gone has no labels any more, but was told of before, if at all.
            let was = rows
                .iter()
                .find(|row| row.connection_name == change.connection);
            let Some(row) = now.first().or(was) else {
                continue;
            };
            if !is_labelled(row, &args.labels) {
                continue;
            }
            let row = row.clone();
            rows.retain(|known| known.connection_name != row.connection_name);
            rows.push(row);
        }
        let mut out = match args.json {
            true => terminal::machine(),
            false => terminal::human(),
        };
        if args.json {
            serde_json::to_writer(&mut out, &change)?;
            writeln!(out)?;
        } else {
            let status = match change.status {
                Reported::Status(status) => status.as_str(),
                Reported::Deleted(_) => "deleted",
            };
            let status = match change.health {
                Some(health) => format!("{status}, its source is {}", health.as_str()),
                None => status.to_owned(),
            };
            let error = change
                .error
                .map(|error| format!("  {error}"))
                .unwrap_or_default();
            writeln!(
                out,
                "{}  {}  {status}{error}",
                change.time, change.connection
            )?;
        }
        out.flush()?;
    }
}

/// Changes so close to each other are shown together: a pass over many connections would else
/// draw the table once for each.
const TOGETHER: Duration = Duration::from_millis(30);

/// Reads the health beside the client, which reads states.
struct Looker {
    endpoint: Arc<Endpoint>,
    session: Option<Session>,
}

impl Looker {
    async fn session(&mut self) -> Option<&Session> {
        if (self.session.as_ref()).is_none_or(|session| session.client.is_closed()) {
            self.session = self.endpoint.connect("client").await.ok();
        }
        self.session.as_ref()
    }

    /// What is known; nothing where the database is away.
    async fn health(&mut self) -> BTreeMap<String, Row> {
        match self.session().await {
            Some(session) => health::rows(&session.client).await.unwrap_or_default(),
            None => BTreeMap::new(),
        }
    }
}

fn is_labelled(row: &ConnectionState, labels: &[(String, String)]) -> bool {
    labels
        .iter()
        .all(|(name, text)| row.labels.get(name) == Some(text))
}

/// A row with what is known of its source.
#[derive(Serialize)]
struct WithHealth<'a> {
    #[serde(flatten)]
    row: &'a ConnectionState,
    health: Option<&'a Row>,
}

fn with_health<'a>(
    rows: &'a [ConnectionState],
    health: &'a BTreeMap<String, Row>,
) -> Vec<WithHealth<'a>> {
    let with = |row: &'a ConnectionState| WithHealth {
        row,
        health: health.get(&row.connection_name),
    };
    rows.iter().map(with).collect()
}

fn show(
    rows: &[ConnectionState],
    health: &BTreeMap<String, Row>,
    live: bool,
    json: bool,
) -> std::io::Result<()> {
    let mut text = if json {
        serde_json::to_string(&with_health(rows, health))? + "\n"
    } else {
        table(rows, health)
    };
    if live {
        // From the top, over what is there: a screen that is cleared first would flicker.
        text = plain(&text).replace('\n', "\x1b[K\n");
        terminal::control_stdout(&format!("\x1b[H{text}\x1b[J"));
        return std::io::stdout().flush();
    }
    let mut out = match json {
        true => terminal::machine(),
        false => terminal::human(),
    };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Rows in aligned columns; errors and warnings below their connection. Where no source is watched
/// there is nothing to say of any.
fn table(rows: &[ConnectionState], health: &BTreeMap<String, Row>) -> String {
    let watched = rows
        .iter()
        .any(|row| health.contains_key(&row.connection_name));
    let width = rows.iter().map(|row| terminal::width(&row.connection_name));
    let width = width.max().unwrap_or(0).max("CONNECTION".len());
    let mut out = format!("{:width$}  STATUS    TABLES  SINCE", "CONNECTION");
    out.push_str(if watched {
        "                SOURCE\n"
    } else {
        "\n"
    });
    for row in rows {
        let tables = row
            .table_count
            .map_or("-".into(), |count| count.to_string());
        let since = row
            .time_changed
            .get(..19)
            .unwrap_or(&row.time_changed)
            .replace('T', " ");
        let source = health.get(&row.connection_name);
        let short = match (watched, source) {
            (false, _) => String::new(),
            (true, None) => "  -".into(),
            (true, Some(source)) => format!("  {}", source.in_short()),
        };
        let _ = writeln!(
            out,
            "{}  {:8}  {tables:>6}  {since}{short}",
            terminal::padded(&row.connection_name, width),
            row.status
        );
        if let Some(error) = &row.error {
            let _ = writeln!(out, "    {error}");
        }
        if let Some(trouble) = source.and_then(Row::trouble) {
            let _ = writeln!(out, "    {trouble}");
        }
        for warning in &row.warnings {
            let _ = writeln!(out, "    warning: {warning}");
        }
    }
    out
}
