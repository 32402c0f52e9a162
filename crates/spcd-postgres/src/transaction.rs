//! Transactions that assert the leader's epoch, and transactions that are always rolled back.

use tokio_postgres::Client;

use crate::HubError;
use crate::lock_holders::with_holders;

/// Begins a transaction and asserts that `epoch` is still the leader's.
pub(super) async fn begin(client: &Client, epoch: i64) -> Result<(), HubError> {
    let begun = client
        .batch_execute(&format!("BEGIN; SELECT spcd.assert_lead({epoch})"))
        .await;
    match begun {
        Ok(()) => Ok(()),
        Err(error) => end(client, Err(error.into())).await,
    }
}

/// Commits a transaction, or rolls it back after an error.
pub(super) async fn end(client: &Client, result: Result<(), HubError>) -> Result<(), HubError> {
    match result {
        Ok(()) => Ok(client.batch_execute("COMMIT").await?),
        Err(error) => {
            if !matches!(error, HubError::ConnectionLost(_)) {
                client.batch_execute("ROLLBACK").await?;
            }
            Err(error)
        }
    }
}

/// Runs statements in a transaction and rolls it back. A lock time-out names the sessions that hold
/// locks on catalogs.
pub(super) async fn rolled_back<T>(
    client: &Client,
    statements: impl Future<Output = Result<T, HubError>>,
) -> Result<T, HubError> {
    client.batch_execute("BEGIN").await?;
    let answer = statements.await;
    client.batch_execute("ROLLBACK").await?;
    match answer {
        // Only the catalogs are shared with other sessions.
        Err(error) => Err(with_holders(client, "", error).await),
        answer => answer,
    }
}
