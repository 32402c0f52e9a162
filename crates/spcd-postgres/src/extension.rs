//! Creation of extensions.

use spcd_core::observed::Extension;
use spcd_core::sql;
use tokio_postgres::Client;

use crate::{HubError, transaction};

/// Creates an extension, as the leader of `epoch` if one is given. Returns whether it is installed
/// then.
///
/// The schema is `public`, as with `CREATE EXTENSION` in psql, and not the `pg_catalog` of spcd's
/// sessions. The script loads the wrapper's library, so the session must not be used for another one.
///
/// # Errors
/// [`HubError::LeadershipLost`] if another daemon leads, and errors of the session.
pub async fn create(
    client: &Client,
    epoch: Option<i64>,
    name: &str,
) -> Result<Extension, HubError> {
    match epoch {
        Some(epoch) => transaction::begin(client, epoch).await?,
        None => client.batch_execute("BEGIN").await?,
    }
    let create = format!(
        "SET LOCAL search_path = public, spcd; CREATE EXTENSION IF NOT EXISTS {}",
        sql::ident(name)
    );
    let created = client.batch_execute(&create).await.map_err(HubError::from);
    match transaction::end(client, created).await {
        Ok(()) => Ok(Extension::Installed),
        Err(HubError::StatementFailed { text, .. }) => Ok(Extension::Refused(text)),
        Err(error) => Err(error),
    }
}
