//! `spcd query`

mod completion;
mod meta;
mod print;
mod shell;

use std::cell::Cell;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use parking_lot::Mutex;
use spcd_client::{Client, Connector, Error, Session, statements};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::{DbError, ErrorPosition};
use tokio_postgres::{AsyncMessage, SimpleQueryMessage};

use super::terminal::{self, ProgressLine};
use super::{Output, QueryArgs};
use crate::config::Config;
use crate::daemon::LeaderSession;
use crate::gateway::{ApplyOptions, OneShotGateways, hub_lanes};
use crate::settings::Settings;
use print::{Column, Printer};
use spcd_postgres::connection::{Canceller, Endpoint};

/// psql's exit code of a fatal error of its own, or an error of a statement in an argument.
const FAILED: u8 = 1;

/// psql's exit code of a lost connection.
const LOST_EXIT_CODE: u8 = 2;

/// psql's exit code of an error in a script.
const SCRIPT_FAILED: u8 = 3;

/// Runs statements, waiting for the connections that they need.
pub async fn run(settings: &Settings, args: QueryArgs) -> anyhow::Result<ExitCode> {
    let endpoint = Arc::new(super::endpoint(settings)?);
    let gateways = match settings.database {
        Some(_) => None,
        None => Some(lead_once(settings, &endpoint).await?),
    };
    let code = query(settings, &endpoint, args).await;
    if let Some(gateways) = gateways {
        gateways.stop().await;
    }
    code
}

async fn query(
    settings: &Settings,
    endpoint: &Arc<Endpoint>,
    args: QueryArgs,
) -> anyhow::Result<ExitCode> {
    let cancel = Cancel::default();
    let mut client = match Client::open(connector(endpoint, &cancel)).await {
        Ok(client) => client,
        Err(error) => {
            eprintln!("spcd: {:#}", anyhow::Error::from(error));
            return Ok(ExitCode::from(LOST_EXIT_CODE));
        }
    };
    client.set_timeout(args.timeout);
    let progress = ProgressLine::default();
    let line = progress.clone();
    client.on_wait(move |progress| match progress.waiting.is_empty() {
        true => line.clear(),
        false => line.show(&progress.to_string()),
    });
    let (text, failed) = match (args.sql, &args.file) {
        (Some(sql), _) => (sql, FAILED),
        (None, Some(path)) if path.as_os_str() != "-" => {
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            (text, SCRIPT_FAILED)
        }
        (None, file) => {
            if file.is_none() && io::stdin().is_terminal() {
                refresh_and_wait(&mut client, "", args.timeout).await;
                progress.clear();
                return shell::run(settings, client, cancel, progress, args.output).await;
            }
            let mut text = String::new();
            io::stdin()
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            (text, SCRIPT_FAILED)
        }
    };
    refresh_and_wait(&mut client, &text, args.timeout).await;
    let cut = statements(&text);
    let rest = Some(cut.rest).filter(|rest| !rest.is_empty());
    let mut out = output(args.output);
    for sql in cut.complete.into_iter().chain(rest) {
        match execute(&mut client, &cancel, sql, args.output, &mut out).await {
            Ok(()) => {}
            Err(Failure::Statement(error)) => {
                progress.clear();
                out.flush()?;
                eprintln!("{}", describe(&error, sql));
                let lost = matches!(&error, Error::Connect(_)) || is_lost(&error);
                return Ok(ExitCode::from(if lost { LOST_EXIT_CODE } else { failed }));
            }
            Err(Failure::Interrupted) => {
                progress.clear();
                eprintln!("Cancel request sent");
                return Ok(ExitCode::from(failed));
            }
            Err(Failure::Output(error)) => return Err(error.into()),
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Why a statement has no result.
enum Failure {
    Statement(Error),
    /// Ctrl-C before it was sent.
    Interrupted,
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Statement(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

/// Runs one pass if no daemon runs on the private cluster. Returns the gateways, which the tables need.
async fn lead_once(
    settings: &Settings,
    endpoint: &Arc<Endpoint>,
) -> anyhow::Result<OneShotGateways> {
    let options = ApplyOptions {
        allow_empty: false,
        adopts: false,
    };
    let gateways = OneShotGateways::apply(settings, options, hub_lanes(endpoint).await?).await?;
    let mut config = Config::new(&settings.config_dirs, settings.extensions, false)
        .with_state(&settings.state_dir)
        .beside(gateways.links.clone());
    if let Some(mut leader) = LeaderSession::begin_once(endpoint, settings, &mut config).await? {
        leader.run_until_settled(|_| ()).await?;
        leader.resign().await;
    }
    Ok(gateways)
}

/// Cancels the statement of the newest session, over TLS if the session uses it.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Mutex<Option<Canceller>>>);

impl Cancel {
    fn set(&self, canceller: Canceller) {
        *self.0.lock() = Some(canceller);
    }

    async fn cancel(&self) {
        let canceller = (self.0.lock()).clone();
        if let Some(canceller) = canceller {
            // The server answers the statement with 57014. If it cannot be reached, the statement has ended.
            let _ = canceller.cancel().await;
        }
    }
}

/// Opens sessions with the role's settings instead of the daemon's.
pub fn connector(endpoint: &Arc<Endpoint>, cancel: &Cancel) -> Connector {
    let (endpoint, cancel) = (endpoint.clone(), cancel.clone());
    Connector::from_fn(move || {
        let (endpoint, cancel) = (endpoint.clone(), cancel.clone());
        async move {
            let mut session = endpoint.connect("query").await?;
            cancel.set(session.canceller());
            session.client.batch_execute("RESET ALL").await?;
            let (sender, messages) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Some(message) = session.messages.recv().await {
                    if let AsyncMessage::Notice(notice) = &message {
                        eprintln!("{}:  {}", notice.severity(), notice.message());
                    }
                    if sender.send(message).is_err() {
                        break;
                    }
                }
            });
            Ok(Session::from_messages(session.client, messages))
        }
    })
}

/// Requests that the daemon reads the files, then waits for the connections that the text mentions or
/// the search path contains. Returns `false` without a daemon or the right to post a request: the
/// statements then see the current tables.
async fn refresh_and_wait(client: &mut Client, text: &str, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    let Some(names) = request_pass(client, text, until).await else {
        return false;
    };
    // A statement that uses a failed connection reports its error.
    let _ = client
        .wait_settled(&names, until.saturating_duration_since(Instant::now()))
        .await;
    true
}

/// Requests that the daemon reads the files, and waits for that. Returns the connections to wait for.
async fn request_pass(client: &mut Client, text: &str, until: Instant) -> Option<Vec<String>> {
    let session = client.session().await.ok()?;
    let row = session
        .query_one("SELECT spcd.refresh('{}')", &[])
        .await
        .ok()?;
    let id: i64 = row.try_get(0).ok()?;
    let mut pause = Duration::from_millis(5);
    loop {
        let sql = "SELECT done_at IS NOT NULL,
                          EXISTS (SELECT FROM spcd.daemon
                                  WHERE heartbeat > pg_catalog.clock_timestamp() - interval '20 seconds')
                   FROM spcd.refresh_request WHERE id = $1";
        let row = session.query_one(sql, &[&id]).await.ok()?;
        let (done, led): (bool, bool) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
        if done {
            break;
        }
        if !led || Instant::now() >= until {
            return None;
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
    let sql = "SELECT connection_name FROM spcd.connection_state
               WHERE status IN ('pending', 'updating', 'deleting')
                 AND (pg_catalog.strpos(pg_catalog.lower($1), pg_catalog.lower(connection_name)) > 0
                      OR connection_name = ANY (spcd.path_names(pg_catalog.current_setting('search_path'))))";
    let rows = session.query(sql, &[&text]).await.ok()?;
    rows.iter().map(|row| row.try_get(0).ok()).collect()
}

/// Runs one statement and prints its result. Ctrl-C cancels it in the server.
async fn execute(
    client: &mut Client,
    cancel: &Cancel,
    sql: &str,
    output: Output,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = Cell::new(false);
    let mut work = pin!(attempt(client, sql, output, out, &running));
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            _ = interrupt.recv() => {
                if !running.get() {
                    return Err(Failure::Interrupted);
                }
                cancel.cancel().await;
            }
        }
    }
}

async fn attempt(
    client: &mut Client,
    sql: &str,
    output: Output,
    out: &mut impl Write,
    running: &Cell<bool>,
) -> Result<(), Failure> {
    let mut attempts = client.attempts(sql);
    // The statement can be retried until its first row has arrived. Later rows may be printed already.
    let (kinds, mut messages, mut next) = loop {
        let session = attempts.begin().await?;
        running.set(true);
        let begun = async {
            // The simple protocol returns values as the server formats them, but no types.
            let kinds = session.prepare(sql).await?;
            let mut messages = Box::pin(session.simple_query_raw(sql).await?);
            let mut first = messages.try_next().await?;
            let mut described = None;
            if let Some(SimpleQueryMessage::RowDescription(_)) = &first {
                described = first;
                first = messages.try_next().await?;
            }
            Ok::<_, tokio_postgres::Error>((kinds, messages, (described, first)))
        };
        match begun.await {
            Ok(begun) => break begun,
            Err(error) => {
                running.set(false);
                attempts.failed(error).await?;
            }
        }
    };
    let mut printer = None;
    if let Some(SimpleQueryMessage::RowDescription(columns)) = &next.0 {
        let kinds = kinds.columns();
        let columns = columns.iter().enumerate().map(|(n, column)| Column {
            name: column.name().to_owned(),
            kind: kinds.get(n).map(|column| column.type_().clone()),
        });
        printer = Some(Printer::new(out, output, columns.collect())?);
    }
    let mut changed = 0;
    while let Some(message) = next.1 {
        match (&mut printer, message) {
            (Some(printer), SimpleQueryMessage::Row(row)) => {
                printer.row(
                    (0..row.len())
                        .map(|n| row.get(n).map(str::to_owned))
                        .collect(),
                )?;
            }
            (_, SimpleQueryMessage::CommandComplete(count)) => changed = count,
            _ => {}
        }
        next.1 = messages.try_next().await.map_err(Error::Database)?;
    }
    match printer {
        Some(printer) => printer.end()?,
        None if output == Output::Table => writeln!(out, "{}", tag(sql, changed))?,
        None => {}
    }
    Ok(())
}

/// Returns the command tag of a statement without rows.
fn tag(sql: &str, changed: u64) -> String {
    let word = sql
        .split(|c: char| !c.is_ascii_alphabetic())
        .find(|word| !word.is_empty());
    let word = word.unwrap_or_default().to_ascii_uppercase();
    match word.as_str() {
        "INSERT" | "UPDATE" | "DELETE" | "MERGE" | "WITH" => format!("{word} {changed}"),
        _ => word,
    }
}

/// Formats an error like psql, and adds the state of the connections involved.
fn describe(error: &Error, sql: &str) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut server = None;
    while let Some(at) = cause {
        server = server.or_else(|| at.downcast_ref::<DbError>());
        cause = at.source();
    }
    let mut lines = Vec::new();
    if let Some(error) = server {
        lines.push(format!("{}:  {}", error.severity(), error.message()));
        if let Some(ErrorPosition::Original(at)) = error.position() {
            lines.extend(marked(sql, *at));
        }
        lines.extend(error.detail().map(|detail| format!("DETAIL:  {detail}")));
        lines.extend(error.hint().map(|hint| format!("HINT:  {hint}")));
    }
    match error {
        Error::Connection { .. } | Error::TimedOut { .. } => lines.push(format!("spcd: {error}")),
        _ if lines.is_empty() => {
            let mut text = format!("spcd: {error}");
            let mut cause = std::error::Error::source(error);
            while let Some(at) = cause {
                text = format!("{text}: {at}");
                cause = at.source();
            }
            lines.push(text);
        }
        _ => {}
    }
    lines.join("\n")
}

/// Returns the line that contains a position (in characters, from 1), and a marker below it.
fn marked(sql: &str, position: u32) -> Option<String> {
    let skip = usize::try_from(position).ok()?.checked_sub(1)?;
    let before: String = sql.chars().take(skip).collect();
    let number = before.matches('\n').count();
    let line = sql.split('\n').nth(number)?;
    let column = terminal::width(before.rsplit('\n').next()?);
    let head = format!("LINE {}: ", number + 1);
    Some(format!(
        "{head}{line}\n{}^",
        " ".repeat(head.len() + column)
    ))
}

fn is_lost(error: &Error) -> bool {
    let Error::Database(error) = error else {
        return false;
    };
    error.is_closed()
        || error
            .code()
            .is_some_and(|code| code.code().starts_with("57P"))
}

/// Returns standard output for results. Formats for programs keep the data unchanged.
fn output(format: Output) -> terminal::EscapingWriter<io::StdoutLock<'static>> {
    terminal::output(matches!(format, Output::Json | Output::Csv))
}

#[cfg(test)]
mod tests {
    use super::marked;

    #[test]
    fn the_marker_stands_under_the_place() {
        let sql = "SELECT 'é',\n  FROM x";
        let at = u32::try_from(sql.chars().position(|c| c == 'F').unwrap() + 1).unwrap();
        assert_eq!(marked(sql, at).unwrap(), "LINE 2:   FROM x\n          ^");
        assert_eq!(
            marked(sql, 900),
            Some("LINE 2:   FROM x\n                ^".to_owned())
        );
    }
}
