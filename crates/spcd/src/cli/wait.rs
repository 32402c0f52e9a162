//! `spcd wait` and `spcd refresh`

use std::process::ExitCode;
use std::time::Duration;

use super::follow::{self, Ended};
use super::{RefreshArgs, WaitArgs};
use crate::settings::Settings;

/// Time is up.
const TIME_OUT: u8 = 3;

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
    let id = follow::request(&session, ask).await?;
    let Some(timeout) = timeout else {
        return Ok(ExitCode::SUCCESS);
    };
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
