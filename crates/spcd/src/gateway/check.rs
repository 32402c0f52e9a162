//! Checks of a gateway: that it is another database than the hub, that the hub reaches it, and that
//! it serves no other hub.

use std::convert::Infallible;
use std::time::Duration;

use spcd_core::secret::Secret;
use tokio_postgres::Client;

use super::UNREACHABLE_GRACE;
use crate::gateway_link::Link;
use crate::settings::Settings;
use spcd_postgres::connection::Endpoint;
use spcd_postgres::connection::context::{HubContext, HubState};
use spcd_postgres::gateway_reader::{self, CHECK, READER};

/// Interval of polling a state that has no event, and pause between attempts to reach the hub.
const POLL: Duration = Duration::from_millis(500);

/// Checks that the hub can reach a private gateway: if the hub is on another machine, the gateway must
/// not listen on this one alone.
pub fn ensure_reachable(settings: &Settings, hub: &Endpoint) -> anyhow::Result<()> {
    if let (Some(host), None) = (hub.remote_host(), &settings.gateway_listen) {
        anyhow::bail!(
            "the hub on {host} cannot reach a private gateway, which listens on this machine alone: \
             write a block `gateway` into the settings, give `gateway` the URL of a database that \
             both reach, or set it to \"off\""
        );
    }
    Ok(())
}

/// Checks that the gateway is neither the hub's own database nor that of another gateway. Returns the
/// hub's permanent identity.
pub async fn other_database(
    gateway: &Endpoint,
    hub: &Endpoint,
    link: &Link,
) -> anyhow::Result<Option<String>> {
    let gateway = gateway.connect(CHECK).await?;
    let gateway = gateway_reader::identify(&gateway.client).await?;
    if let Some(other) = link.set_identity(gateway.clone()) {
        anyhow::bail!("its URL leads to the same database as {other}: remove one of the two");
    }
    let hub = loop {
        // The hub's own loop reports why the hub cannot be reached.
        if let Ok(session) = hub.connect(CHECK).await {
            break gateway_reader::identify(&session.client).await?;
        }
        tokio::time::sleep(POLL).await;
    };
    if gateway.server_start == hub.server_start {
        anyhow::ensure!(
            gateway.database_oid != hub.database_oid,
            "its URL leads to the hub itself: give the URL of a database on another server, or set \
             `gateway` to \"private\" or \"off\""
        );
        tracing::warn!(
            "the gateway is a database of the hub's own server: a crash there ends the hub's \
             sessions, too"
        );
    }
    Ok(hub.lasting)
}

/// Records which hub the gateway serves, as long as this daemon leads on the gateway. Returns an error
/// as soon as the leader there is a daemon of another hub.
pub async fn serves_hub(gateway: &Endpoint, hub: Option<&str>) -> anyhow::Error {
    let Some(hub) = hub else {
        return std::future::pending().await;
    };
    let mut known = HubState::Connecting;
    loop {
        let state = gateway.context().state();
        if state != known {
            match other_hub(gateway, &state, hub).await {
                Ok(Some(leader)) => return other_hub_error(&leader),
                Ok(None) => known = state,
                // The next tick retries: the gateway may be restarting.
                Err(error) => tracing::debug!(%error, "cannot check which hub the gateway serves"),
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn other_hub_error(leader: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "the daemon {leader} leads there and serves another hub: give each hub a gateway of its own"
    )
}

/// Returns the daemon that leads on the gateway, if it serves another hub.
async fn other_hub(
    gateway: &Endpoint,
    state: &HubState,
    hub: &str,
) -> anyhow::Result<Option<String>> {
    let is_leading = match state {
        HubState::Leading { .. } => true,
        HubState::Following { .. } => false,
        HubState::Connecting | HubState::Lost { .. } => return Ok(None),
    };
    let session = gateway.connect(CHECK).await?;
    if is_leading {
        gateway_reader::record_hub(&session.client, hub).await?;
        return Ok(None);
    }
    let recorded = gateway_reader::recorded_hub(&session.client).await?;
    let other = recorded.filter(|(recorded, _)| recorded != hub);
    Ok(other.map(|(_, leader)| leader))
}

/// Shows the hub whether the gateway can be written.
pub async fn follow_writes(gateway: &HubContext, link: &Link) -> Infallible {
    loop {
        let lost = match gateway.state() {
            HubState::Lost { since, reason }
                if since.elapsed().is_ok_and(|lost| lost > UNREACHABLE_GRACE) =>
            {
                Some(reason)
            }
            _ => None,
        };
        let error = gateway.write_error().or(lost);
        if link.view().write_error != error {
            link.change(|view| view.write_error = error);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Sets the reader's password again if the gateway rejects it.
pub async fn reader(gateway: &Endpoint, client: &Client, password: Secret) -> anyhow::Result<()> {
    let reader = gateway.clone().with_role(READER, password);
    // Other errors are ignored: the hub connects from another address, which may be allowed.
    if let Err(error) = reader.connect(CHECK).await
        && error.is_wrong_password()
    {
        tracing::warn!(
            role = READER,
            "the gateway rejected the password of the hub's role, which another session changed; it \
             is set again"
        );
        gateway_reader::prepare(client).await?;
    }
    Ok(())
}
