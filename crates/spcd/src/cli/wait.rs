//! `spcd wait` and `spcd refresh`

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_postgres::error::SqlState;

use super::follow::{self, TIME_OUT, WaitOutcome};
use super::{RefreshArgs, WaitArgs};
use crate::cluster::ClusterError;
use crate::settings::Settings;
use spcd_postgres::connection::{ConnectError, Session};

/// Interval between checks for the daemon's schema.
const SCHEMA_POLL: Duration = Duration::from_millis(50);

/// Interval between attempts to reach a server that stopped answering.
const RECONNECT: Duration = Duration::from_millis(250);

/// Requests a pass, then waits until the connections are settled.
pub async fn wait(settings: &Settings, args: WaitArgs) -> anyhow::Result<ExitCode> {
    request_and_wait(settings, Some(&[]), &args.names, Some(args.timeout)).await
}

/// Requests a refresh of the connections. With `--wait`, waits until they are settled.
pub async fn refresh(settings: &Settings, args: RefreshArgs) -> anyhow::Result<ExitCode> {
    let ask = (!args.names.is_empty()).then_some(args.names.as_slice());
    request_and_wait(
        settings,
        ask,
        &args.names,
        args.wait.then_some(args.timeout),
    )
    .await
}

async fn request_and_wait(
    settings: &Settings,
    ask: Option<&[String]>,
    names: &[String],
    timeout: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    let Some(timeout) = timeout else {
        let session = connect(settings).await?;
        let rows = spcd_client::states(&session.client, Some(names)).await?;
        let unknown = follow::unknown(names, &rows);
        for name in &unknown {
            eprintln!("spcd: no connection is named {name:?}");
        }
        follow::request(&session, ask).await?;
        return Ok(ExitCode::from(u8::from(!unknown.is_empty())));
    };
    let until = Instant::now() + timeout;
    let mut is_known = false;
    loop {
        let mut session = match connect_until(settings, until, is_known).await? {
            Ok(session) => session,
            Err(error) => {
                eprintln!("spcd: {error:#}");
                return Ok(ExitCode::from(TIME_OUT));
            }
        };
        is_known = true;
        match wait_until(&mut session, ask, names, until).await {
            // The request may be lost with the server: post it again.
            Err(error) if is_lost(&error) && Instant::now() < until => {}
            ended => return ended,
        }
    }
}

async fn connect(settings: &Settings) -> anyhow::Result<Session> {
    Ok(super::endpoint(settings)?.connect("client").await?)
}

/// Opens a session as soon as the hub answers. `is_known`: it has answered before, so every error counts
/// as transient. Returns the last error as `Ok(Err(_))` after the time-out.
async fn connect_until(
    settings: &Settings,
    until: Instant,
    is_known: bool,
) -> anyhow::Result<Result<Session, anyhow::Error>> {
    loop {
        let error = match connect(settings).await {
            Ok(session) => return Ok(Ok(session)),
            Err(error) => error,
        };
        if !is_known && !is_away(&error) {
            return Err(error);
        }
        if Instant::now() >= until {
            return Ok(Err(error));
        }
        sleep_until(until.min(Instant::now() + RECONNECT)).await;
    }
}

/// Whether the hub may still be starting: a server that cannot be reached, or a private cluster that no
/// daemon has created or started.
fn is_away(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ConnectError::Unreachable { .. }))
        || error.downcast_ref::<ClusterError>().is_some()
}

/// Whether the session was lost, or the server no longer accepts writes.
fn is_lost(error: &anyhow::Error) -> bool {
    let gone = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ];
    let error = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    error.is_some_and(|error| error.code().is_none_or(|code| gone.contains(code)))
}

async fn wait_until(
    session: &mut Session,
    ask: Option<&[String]>,
    names: &[String],
    until: Instant,
) -> anyhow::Result<ExitCode> {
    let Some(id) = first_request(session, ask, until).await? else {
        eprintln!("spcd: no daemon answers on this database: start `spcd run`");
        return Ok(ExitCode::from(TIME_OUT));
    };
    let timeout = until.saturating_duration_since(Instant::now());
    let of = (!names.is_empty()).then_some(names);
    match follow::follow(session, id, of, timeout, |_| ()).await? {
        WaitOutcome::Settled(rows, error) => {
            let mut wrong = follow::report(names, &rows);
            if let Some(error) = error.filter(|_| !wrong) {
                eprintln!("spcd: {error}");
                wrong = true;
            }
            Ok(ExitCode::from(u8::from(wrong)))
        }
        WaitOutcome::TimedOut(left) => {
            let names: Vec<_> = (left.iter())
                .map(|row| format!("{} ({})", row.connection_name, row.status))
                .collect();
            if !follow::is_led(&session.client).await? {
                eprintln!("spcd: no daemon answers on this database: start `spcd run`");
            } else if names.is_empty() {
                eprintln!("spcd: the daemon did not answer in time");
            } else {
                eprintln!("spcd: not settled in time: {}", names.join(", "));
            }
            Ok(ExitCode::from(TIME_OUT))
        }
    }
}

/// Posts a request as soon as the schema exists, which a new daemon may not have created yet. `None`
/// after the time-out.
async fn first_request(
    session: &Session,
    ask: Option<&[String]>,
    until: Instant,
) -> anyhow::Result<Option<i64>> {
    loop {
        let error = match follow::request(session, ask).await {
            Ok(id) => return Ok(Some(id)),
            Err(error) => error,
        };
        let code = error
            .downcast_ref::<tokio_postgres::Error>()
            .and_then(tokio_postgres::Error::code);
        let not_yet = [SqlState::INVALID_SCHEMA_NAME, SqlState::UNDEFINED_FUNCTION];
        if !code.is_some_and(|code| not_yet.contains(code)) {
            return Err(error);
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        sleep_until(until.min(Instant::now() + SCHEMA_POLL)).await;
    }
}
