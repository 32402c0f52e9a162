//! Transactions of the leader, and those of which nothing stays.

use tokio_postgres::Client;

use super::HubError;

/// Begins a transaction that only the leader of this epoch may make.
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
            if !matches!(error, HubError::Lost(_)) {
                client.batch_execute("ROLLBACK").await?;
            }
            Err(error)
        }
    }
}

/// Runs statements in a transaction of which nothing stays.
pub(super) async fn rolled_back<T>(
    client: &Client,
    statements: impl Future<Output = Result<T, HubError>>,
) -> Result<T, HubError> {
    client.batch_execute("BEGIN").await?;
    let answer = statements.await;
    client.batch_execute("ROLLBACK").await?;
    answer
}
