//! `spcd status`

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use spcd_client::{Changes, Client, ConnectionState, Error, Reported, Status, states};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};

use super::StatusArgs;
use super::follow;
use super::query::Cancel;
use crate::settings::Settings;

/// Prints the states.
pub async fn run(settings: &Settings, args: StatusArgs) -> anyhow::Result<ExitCode> {
    if args.watch {
        return watch(settings, &args).await;
    }
    let session = super::endpoint(settings)?.connect("client").await?;
    let names = (!args.names.is_empty()).then_some(args.names.as_slice());
    let rows = states(&session.client, names).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        writeln!(out)?;
    } else {
        out.write_all(table(&rows).as_bytes())?;
    }
    let mut wrong = !args.names.is_empty() && rows.iter().any(|row| row.status == Status::Error);
    for name in follow::unknown(&args.names, &rows) {
        eprintln!("spcd: no connection is named {name:?}");
        wrong = true;
    }
    Ok(ExitCode::from(u8::from(wrong)))
}

/// Prints the states again whenever one changes, until Ctrl-C. On a terminal the table stays in
/// its place; else each change is one line, or one JSON object.
async fn watch(settings: &Settings, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    // One for all turns: what arrives between two is not lost.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let endpoint = super::endpoint(settings)?;
    let names = (!args.names.is_empty()).then_some(args.names.as_slice());
    let connector = super::query::connector(&endpoint.into(), &Cancel::default());
    let mut changes = Changes::of(connector.clone(), names);
    let mut client = Client::new(connector);
    changes.begin().await?;
    let live = std::io::stdout().is_terminal() && !args.json;
    if live {
        print!("\x1b[2J");
    }
    let mut rows = client.states(names).await?;
    show(&rows, live, args.json)?;
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
            show(&rows, live, false)?;
            continue;
        }
        let mut out = std::io::stdout().lock();
        if args.json {
            serde_json::to_writer(&mut out, &change)?;
            writeln!(out)?;
        } else {
            let status = match change.status {
                Reported::Status(status) => status.as_str(),
                Reported::Deleted(_) => "deleted",
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

fn show(rows: &[ConnectionState], live: bool, json: bool) -> std::io::Result<()> {
    let mut text = if json {
        serde_json::to_string(rows)? + "\n"
    } else {
        table(rows)
    };
    if live {
        // From the top, over what is there: a screen that is cleared first would flicker.
        text = format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Rows in aligned columns; errors and warnings below their connection.
fn table(rows: &[ConnectionState]) -> String {
    let width = rows.iter().map(|row| row.connection_name.chars().count());
    let width = width.max().unwrap_or(0).max("CONNECTION".len());
    let mut out = format!("{:width$}  STATUS    TABLES  SINCE\n", "CONNECTION");
    for row in rows {
        let tables = row
            .table_count
            .map_or("-".into(), |count| count.to_string());
        let since = row
            .time_changed
            .get(..19)
            .unwrap_or(&row.time_changed)
            .replace('T', " ");
        let _ = writeln!(
            out,
            "{:width$}  {:8}  {tables:>6}  {since}",
            row.connection_name, row.status
        );
        if let Some(error) = &row.error {
            let _ = writeln!(out, "    {error}");
        }
        for warning in &row.warnings {
            let _ = writeln!(out, "    warning: {warning}");
        }
    }
    out
}
