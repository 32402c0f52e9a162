//! Opens sessions although the server's connection limit may be reached.

use std::time::{Duration, Instant};

use spcd_protocol::Backoff;
use tokio::time::sleep;

use super::{ConnectError, Endpoint, Session};

/// Pauses between attempts while the connection limit is reached.
const BACKOFF: Backoff = Backoff::new(100, 5_000);

/// Opens a session. While the connection limit is reached, logs that once and retries, at most `within`.
///
/// # Errors
/// As [`Endpoint::connect`].
pub async fn open_session(
    endpoint: &Endpoint,
    purpose: &str,
    within: Duration,
) -> Result<Session, ConnectError> {
    open(endpoint, purpose, within, true).await
}

/// Like [`open_session`], but logs nothing: for a session whose predecessor the daemon has just closed,
/// which the server may not have noticed yet.
///
/// # Errors
/// As [`Endpoint::connect`].
pub async fn open_next_session(
    endpoint: &Endpoint,
    purpose: &str,
    within: Duration,
) -> Result<Session, ConnectError> {
    open(endpoint, purpose, within, false).await
}

async fn open(
    endpoint: &Endpoint,
    purpose: &str,
    within: Duration,
    is_logged: bool,
) -> Result<Session, ConnectError> {
    let (began, mut times) = (Instant::now(), 0);
    loop {
        let result = endpoint.connect(purpose).await;
        let is_full = result.as_ref().is_err_and(ConnectError::is_full);
        let is_new = is_logged && endpoint.context().set_full(purpose, is_full);
        let Err(error) = result else { return result };
        if !is_full || (!is_new && began.elapsed() > within) {
            return Err(error);
        }
        if is_new {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(
                purpose,
                error,
                "the connection limit is reached; trying again (`spcd doctor` shows how many sessions \
                 are needed)"
            );
        }
        times += 1;
        sleep(Duration::from_millis(BACKOFF.pause(times))).await;
    }
}
