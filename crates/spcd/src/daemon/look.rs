//! Reading the files and the database at once.

use spcd_core::config::{Desired, Diagnostic, Inputs};
use spcd_core::observed::Observed;
use tokio_postgres::Client;

use crate::config::Config;
use crate::hub::{HubError, inputs, observe};
use crate::watch::Watcher;

/// What a look found.
pub struct Look {
    pub desired: Desired,
    pub diagnostics: Vec<Diagnostic>,
    pub observed: Observed,
    /// The files that what follows comes from.
    pub inputs: Inputs,
}

/// One look at everything. The database answers while the files settle and are read. Of the `known`
/// files those are dropped that another session gave up.
pub async fn look(
    config: &mut Config,
    client: &Client,
    known: &mut Inputs,
    watcher: Option<&mut Watcher>,
) -> Result<Look, HubError> {
    let reading = async {
        if let Some(watcher) = watcher.filter(|watcher| watcher.is_stirred()) {
            watcher.settled().await;
        }
        tokio::task::block_in_place(|| config.load())
    };
    let (observed, vanished, loaded) =
        tokio::join!(observe::first(client), inputs::vanished(client), reading);
    let (mut observed, mut desired) = (observed?, loaded.desired);
    known.give_up(&vanished?);
    let inputs = config.doubt_vanished(known, &mut desired);
    observe::complete(client, &desired, &mut observed).await?;
    Ok(Look {
        desired,
        diagnostics: loaded.diagnostics,
        observed,
        inputs,
    })
}
