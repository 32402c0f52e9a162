//! Opening a session although the server may have no room for it now.

use std::time::{Duration, Instant};

use spcd_protocol::Backoff;
use tokio::time::sleep;

use super::{ConnectError, Endpoint, Session};

/// The pauses before a server that had no room for a session is asked again.
const BACKOFF: Backoff = Backoff::new(100, 5_000);

/// Opens a session. Where the server has no room for it now, logs that once and tries again, at most
/// `within`.
///
/// # Errors
/// As [`Endpoint::connect`].
pub async fn open_session(
    endpoint: &Endpoint,
    purpose: &str,
    within: Duration,
) -> Result<Session, ConnectError> {
    let (began, mut times) = (Instant::now(), 0);
    loop {
        let result = endpoint.connect(purpose).await;
        let full = result.as_ref().is_err_and(ConnectError::is_full);
        let news = endpoint.context().set_full(purpose, full);
        let Err(error) = result else { return result };
        if !full {
            return Err(error);
        }
        if !news && began.elapsed() > within {
            return Err(error);
        }
        if news {
            let told = anyhow::Error::from(error);
            tracing::warn!(
                "there is no room for another session ({purpose}): {told:#}; trying again \
                 until there is (`spcd doctor` says how many there should be)"
            );
        }
        times += 1;
        sleep(Duration::from_millis(BACKOFF.pause(times))).await;
    }
}

/// Opens a session as [`open_session`] does, but logs nothing: for a session that another one of the
/// daemon has just left room for, which the server may not have noticed yet.
///
/// # Errors
/// As [`Endpoint::connect`].
pub async fn open_next_session(
    endpoint: &Endpoint,
    purpose: &str,
    within: Duration,
) -> Result<Session, ConnectError> {
    let (began, mut times) = (Instant::now(), 0);
    loop {
        let result = endpoint.connect(purpose).await;
        let is_full = result.as_ref().is_err_and(ConnectError::is_full);
        if !is_full || began.elapsed() > within {
            return result;
        }
        times += 1;
        sleep(Duration::from_millis(BACKOFF.pause(times))).await;
    }
}
