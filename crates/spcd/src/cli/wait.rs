//! `spcd wait` and `spcd refresh`

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_postgres::error::SqlState;

use super::follow::{self, Ended};
use super::{RefreshArgs, WaitArgs};
use crate::hub::connect::Session;
use crate::settings::Settings;

/// Time is up.
const TIME_OUT: u8 = 3;

/// How often to look whether the daemon's schema is there.
const LOOK: Duration = Duration::from_millis(50);

/// Asks for a look at the files, then waits until the connections are settled.
pub async fn wait(settings: &Settings, args: WaitArgs) -> anyhow::Result<ExitCode> {
    request_and_wait(settings, Some(&[]), &args.names, Some(args.timeout)).await
}

/// Asks the sources again; waits for what they say where that is asked for.
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
    let mut session = super::endpoint(settings)?.connect("client").await?;
    let Some(timeout) = timeout else {
        follow::request(&session, ask).await?;
        return Ok(ExitCode::SUCCESS);
    };
    let until = Instant::now() + timeout;
    let Some(id) = first_request(&session, ask, until).await? else {
        eprintln!("spcd: no daemon answers on this database: start `spcd run`");
        return Ok(ExitCode::from(TIME_OUT));
    };
    let timeout = until.saturating_duration_since(Instant::now());
    let of = (!names.is_empty()).then_some(names);
    match follow::follow(&mut session, id, of, timeout, |_| ()).await? {
        Ended::Settled(rows, error) => {
            let mut wrong = follow::report(names, &rows);
            if let Some(error) = error.filter(|_| !wrong) {
                eprintln!("spcd: {error}");
                wrong = true;
            }
            Ok(ExitCode::from(u8::from(wrong)))
        }
        Ended::TimeOut(left) => {
            let names: Vec<_> = (left.iter())
                .map(|row| format!("{} ({})", row.connection_name, row.status))
                .collect();
            if !follow::is_led(&session).await? {
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

/// Requests a look as soon as that is possible: a daemon that was started a moment ago may not have
/// made its schema yet. `None` when time is up.
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
        sleep_until(until.min(Instant::now() + LOOK)).await;
    }
}
