//! `spcd reconnect`, `spcd disconnect` and `spcd retry`

use std::process::ExitCode;

use anyhow::Context as _;
use spcd_client::{ConnectionState, Status, states};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use super::ReconnectArgs;
use super::follow::{self, TIME_OUT, WaitOutcome};
use super::health::{self, SourceHealth};
use crate::settings::Settings;
use spcd_postgres::connection::Session;

/// Resumes paused connections and tries their sources at once, also after failures. Prints the results.
pub async fn reconnect(settings: &Settings, args: ReconnectArgs) -> anyhow::Result<ExitCode> {
    try_now(settings, "spcd.reconnect", args).await
}

/// Imports connections again whose wrapper crashed its server process. Prints the results.
pub async fn retry(settings: &Settings, args: ReconnectArgs) -> anyhow::Result<ExitCode> {
    try_now(settings, "spcd.retry", args).await
}

async fn try_now(
    settings: &Settings,
    function: &str,
    args: ReconnectArgs,
) -> anyhow::Result<ExitCode> {
    let mut session = super::endpoint(settings)?.connect("client").await?;
    let answer = request(&mut session, function, &args).await?;
    let Some(error) = answer else {
        return Ok(ExitCode::from(TIME_OUT));
    };
    let rows = states(&session.client, Some(&args.names)).await?;
    let health = health::rows(&session.client).await?;
    let mut wrong = false;
    for row in &rows {
        let name = &row.connection_name;
        let (is_well, text) = outcome(row, health.get(name));
        match is_well {
            true => println!("{name}: {text}"),
            false => eprintln!("spcd: {name}: {text}"),
        }
        wrong |= !is_well;
    }
    if let Some(error) = error.filter(|_| !wrong) {
        eprintln!("spcd: {error}");
        wrong = true;
    }
    Ok(ExitCode::from(u8::from(wrong)))
}

/// Pauses connections until `reconnect`.
pub async fn disconnect(settings: &Settings, args: ReconnectArgs) -> anyhow::Result<ExitCode> {
    let mut session = super::endpoint(settings)?.connect("client").await?;
    let answer = request(&mut session, "spcd.disconnect", &args).await?;
    let Some(error) = answer else {
        return Ok(ExitCode::from(TIME_OUT));
    };
    if let Some(error) = &error {
        eprintln!("spcd: {error}");
        return Ok(ExitCode::FAILURE);
    }
    for name in &args.names {
        println!("{name}: paused until `spcd reconnect {name}`; its tables stay");
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the result of a connection's attempt.
fn outcome(row: &ConnectionState, health: Option<&SourceHealth>) -> (bool, String) {
    if let Some(SourceHealth {
        reachable: Some(false),
        last_failure,
        ..
    }) = health
    {
        let why = last_failure
            .as_deref()
            .unwrap_or("its source does not answer");
        return (false, why.to_owned());
    }
    match row.status {
        Status::Error => (false, row.error.clone().unwrap_or_default()),
        status => {
            let latency = health.and_then(|health| health.latency_ms);
            let answers = latency.map(|ms| format!(", its source answers in {ms:.1} ms"));
            (true, format!("{status}{}", answers.unwrap_or_default()))
        }
    }
}

/// Posts a request and waits for its answer: an error, or `Some(None)`. Prints a message and returns
/// `None` after a time-out.
async fn request(
    session: &mut Session,
    function: &str,
    args: &ReconnectArgs,
) -> anyhow::Result<Option<Option<String>>> {
    let until = Instant::now() + args.timeout;
    let sql = format!("SELECT {function}($1)");
    let row = match session.client.query_one(&sql, &[&args.names]).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            return Err(error).context(format!(
                "only the owner of the schema spcd, and roles that it permits, may do this: \
                 GRANT EXECUTE ON FUNCTION {function}(text[]) TO your role"
            ));
        }
        row => row.context("cannot ask the daemon (is spcd run on this database?)")?,
    };
    let id: i64 = row.try_get(0)?;
    let names = args.names.clone();
    let timeout = until.saturating_duration_since(Instant::now());
    match follow::follow(session, id, Some(&names), timeout, |_| ()).await? {
        WaitOutcome::Settled(_, error) => Ok(Some(error)),
        WaitOutcome::TimedOut(_) => {
            match follow::is_led(&session.client).await? {
                true => eprintln!("spcd: the daemon did not answer in time"),
                false => eprintln!(
                    "spcd: no daemon answers on this database; it will find the request when it starts"
                ),
            }
            Ok(None)
        }
    }
}
