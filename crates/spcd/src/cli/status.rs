//! `spcd status`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use spcd_client::{AnnouncedStatus, Change, Changes, ConnectionState, Error, Status, states};
use spcd_core::terminal::escape_controls;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use super::StatusArgs;
use super::follow;
use super::health::{self, SourceHealth};
use super::query::Cancel;
use super::terminal;
use crate::gateway;
use crate::gateway_link::place_name;
use crate::settings::Settings;
use spcd_core::gateway::GatewayRow;
use spcd_postgres::catalog::lanes;
use spcd_postgres::connection::{Endpoint, Session};
use spcd_postgres::mirror;

/// Prints the states.
pub async fn run(settings: &Settings, args: StatusArgs) -> anyhow::Result<ExitCode> {
    if args.watch {
        return watch(settings, &args).await;
    }
    let session = super::endpoint(settings)?.connect("client").await?;
    let mut rows = states(&session.client, names(&args)).await?;
    rows.retain(|row| is_labelled(row, &args.labels));
    let health = health::rows(&session.client).await?;
    let mut out = terminal::output(args.json);
    if args.json {
        let gateways = match gateway::is_on(settings) {
            true => GatewayStates::read(settings, &session.client).await?,
            false => GatewayStates::default(),
        };
        serde_json::to_writer_pretty(&mut out, &with_health(&rows, &health, &gateways))?;
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
    for one in mirror::following(&session.client).await? {
        if let mirror::Following {
            name,
            error: Some(error),
            ..
        } = one
        {
            eprintln!("spcd: the mirror {name:?} does not follow its source: {error}");
        }
    }
    if let Some(age) = age_without_leader(&session.client).await? {
        eprintln!("spcd: no daemon runs on this database: {age}");
    }
    if rows.is_empty() && args.names.is_empty() && args.labels.is_empty() {
        eprintln!("{}", nothing_configured(settings));
    }
    Ok(ExitCode::from(u8::from(wrong)))
}

/// Returns the hint for a hub without connections.
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

/// Returns how old the state is; `None` if a daemon leads.
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

/// Prints the states whenever one changes, until Ctrl-C. On a terminal, redraws the table in place.
/// Otherwise prints a line or a JSON object for each change.
async fn watch(settings: &Settings, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    // Created once: no signal is lost between two iterations.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut watcher = Watcher::open(settings, args).await?;
    loop {
        tokio::select! {
            change = watcher.changes.next() => match change {
                Ok(change) => watcher.show(change).await?,
                // The next call tries again.
                Err(Error::Connect(_)) => {}
                Err(error) => return Err(error.into()),
            },
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Minimum interval between two redraws: a pass over many connections would otherwise redraw the table
/// for each of them.
const DRAW_INTERVAL: Duration = Duration::from_millis(30);

/// `status --watch`
struct Watcher<'a> {
    args: &'a StatusArgs,
    changes: Changes,
    client: spcd_client::Client,
    health: HealthReader,
    /// The rows that were printed last: those with the requested labels.
    rows: Vec<ConnectionState>,
    is_live: bool,
}

impl<'a> Watcher<'a> {
    /// Prints the current states.
    async fn open(settings: &Settings, args: &'a StatusArgs) -> anyhow::Result<Self> {
        let endpoint = Arc::new(super::endpoint(settings)?);
        let connector = super::query::connector(&endpoint, &Cancel::default());
        let mut changes = Changes::of(connector.clone(), names(args));
        changes.begin().await?;
        let mut watcher = Self {
            args,
            changes,
            client: spcd_client::Client::new(connector),
            health: HealthReader {
                endpoint,
                session: None,
            },
            rows: Vec::new(),
            is_live: std::io::stdout().is_terminal() && !args.json,
        };
        if watcher.is_live {
            terminal::control_stdout(terminal::CLEAR_SCREEN);
        }
        watcher.rows = watcher.client.states(names(args)).await?;
        watcher.draw().await?;
        Ok(watcher)
    }

    async fn show(&mut self, change: Change) -> anyhow::Result<()> {
        if self.is_live {
            let until = Instant::now() + DRAW_INTERVAL;
            while timeout_at(until, self.changes.next())
                .await
                .is_ok_and(|next| next.is_ok())
            {}
            if let Ok(rows) = self.client.states(names(self.args)).await {
                self.rows = rows;
            }
            self.draw().await?;
        } else if self.has_labels(&change).await {
            print_change(&change, self.args.json)?;
        }
        Ok(())
    }

    async fn draw(&mut self) -> std::io::Result<()> {
        let labels = &self.args.labels;
        self.rows.retain(|row| is_labelled(row, labels));
        let health = self.health.read().await;
        draw(&self.rows, &health, self.is_live, self.args.json)
    }

    /// Whether a changed connection has the requested labels. A deleted connection keeps its last ones.
    async fn has_labels(&mut self, change: &Change) -> bool {
        if self.args.labels.is_empty() {
            return true;
        }
        let name = &change.connection;
        let now = self.client.states(Some(std::slice::from_ref(name))).await;
        let before = self.rows.iter().find(|row| row.connection_name == *name);
        let row = now.unwrap_or_default().pop().or(before.cloned());
        let Some(row) = row.filter(|row| is_labelled(row, &self.args.labels)) else {
            return false;
        };
        self.rows.retain(|known| known.connection_name != *name);
        self.rows.push(row);
        true
    }
}

fn names(args: &StatusArgs) -> Option<&[String]> {
    (!args.names.is_empty()).then_some(args.names.as_slice())
}

fn print_change(change: &Change, json: bool) -> anyhow::Result<()> {
    let mut out = terminal::output(json);
    if json {
        serde_json::to_writer(&mut out, change)?;
        writeln!(out)?;
    } else {
        let status = match change.status {
            AnnouncedStatus::Status(status) => status.as_str(),
            AnnouncedStatus::Deleted(_) => "deleted",
        };
        write!(out, "{}  {}  {status}", change.time, change.connection)?;
        if let Some(health) = change.health {
            write!(out, ", its source is {}", health.as_str())?;
        }
        if let Some(error) = &change.error {
            write!(out, "  {error}")?;
        }
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

/// Reads the health of sources in its own session.
struct HealthReader {
    endpoint: Arc<Endpoint>,
    session: Option<Session>,
}

impl HealthReader {
    async fn session(&mut self) -> Option<&Session> {
        if (self.session.as_ref()).is_none_or(|session| session.client.is_closed()) {
            self.session = self.endpoint.connect("client").await.ok();
        }
        self.session.as_ref()
    }

    /// Returns the health by connection. Empty if the database cannot be reached.
    async fn read(&mut self) -> BTreeMap<String, SourceHealth> {
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

/// A connection's row, and the state of its source.
#[derive(Serialize)]
struct ConnectionRow<'a> {
    #[serde(flatten)]
    row: &'a ConnectionState,
    health: Option<&'a SourceHealth>,
    /// Its state in the gateway, if its wrapper runs there.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<GatewayState<'a>>,
}

#[derive(Serialize)]
struct GatewayState<'a> {
    /// The gateway's name, if there are several.
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    status: Status,
    error: Option<&'a str>,
}

/// States of connections in the gateways.
#[derive(Default)]
struct GatewayStates {
    /// By gateway, with its name.
    rows: Vec<(String, BTreeMap<String, GatewayRow>)>,
    /// Name of the gateway in which the hub reads a connection.
    read_in: BTreeMap<String, String>,
}

impl GatewayStates {
    async fn read(settings: &Settings, hub: &Client) -> anyhow::Result<Self> {
        let rows = gateway::states(settings).await;
        let lanes = lanes::hub_lanes(hub).await?;
        let name = |(connection, server): (&String, &String)| {
            let name = place_name(lanes.options.get(server)?);
            Some((connection.clone(), name))
        };
        Ok(Self {
            read_in: lanes.servers.iter().filter_map(name).collect(),
            rows,
        })
    }

    /// Returns the state of a connection in a gateway: that in which the hub reads it, if it answers.
    fn of(&self, connection: &str) -> Option<GatewayState<'_>> {
        let read_in = self.read_in.get(connection);
        let there = || (self.rows.iter()).filter(|(_, rows)| rows.contains_key(connection));
        let found = there().find(|(name, _)| Some(name) == read_in);
        let (name, rows) = found.or_else(|| there().next())?;
        let row = rows.get(connection)?;
        Some(GatewayState {
            name,
            status: row.status,
            error: row.error.as_deref(),
        })
    }
}

fn with_health<'a>(
    rows: &'a [ConnectionState],
    health: &'a BTreeMap<String, SourceHealth>,
    gateways: &'a GatewayStates,
) -> Vec<ConnectionRow<'a>> {
    let with = |row: &'a ConnectionState| ConnectionRow {
        row,
        health: health.get(&row.connection_name),
        gateway: gateways.of(&row.connection_name),
    };
    rows.iter().map(with).collect()
}

fn draw(
    rows: &[ConnectionState],
    health: &BTreeMap<String, SourceHealth>,
    is_live: bool,
    json: bool,
) -> std::io::Result<()> {
    let mut text = if json {
        serde_json::to_string(&with_health(rows, health, &GatewayStates::default()))? + "\n"
    } else {
        table(rows, health)
    };
    if is_live {
        // Overwrites from the top: clearing the screen first would flicker.
        text = escape_controls(&text).replace('\n', "\x1b[K\n");
        terminal::control_stdout(&format!("\x1b[H{text}\x1b[J"));
        return std::io::stdout().flush();
    }
    let mut out = terminal::output(json);
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Formats rows in aligned columns. Errors and warnings follow their connection. Omits the column SOURCE
/// if no source is probed.
fn table(rows: &[ConnectionState], health: &BTreeMap<String, SourceHealth>) -> String {
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
            (true, Some(source)) => format!("  {}", source.summary()),
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
        if let Some(problem) = source.and_then(SourceHealth::problem) {
            let _ = writeln!(out, "    {problem}");
        }
        for warning in &row.warnings {
            let _ = writeln!(out, "    warning: {warning}");
        }
    }
    out
}
