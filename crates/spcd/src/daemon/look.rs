//! Reading the files and the database at once.

use spcd_core::config::{Desired, Diagnostic};
use spcd_core::observed::Observed;
use tokio_postgres::Client;

use crate::config::Config;
use crate::hub::{HubError, observe};
use crate::watch::Watcher;

/// One look at everything. The database answers while the files settle and are read.
pub async fn look(
    config: &mut Config,
    client: &Client,
    watcher: Option<&mut Watcher>,
) -> Result<(Desired, Vec<Diagnostic>, Observed), HubError> {
    let reading = async {
        if let Some(watcher) = watcher.filter(|watcher| watcher.is_stirred()) {
            watcher.settled().await;
        }
        tokio::task::block_in_place(|| config.load())
    };
    let (observed, loaded) = tokio::join!(observe::first(client), reading);
    let (mut observed, desired) = (observed?, loaded.desired);
    observe::complete(client, &desired, &mut observed).await?;
    Ok((desired, loaded.diagnostics, observed))
}
