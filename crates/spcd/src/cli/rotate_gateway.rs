//! `spcd rotate-gateway`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use spcd_core::secret::Secret;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::{ApplyArgs, apply, follow};
use crate::gateway;
use crate::settings::Settings;
use spcd_postgres::gateway_reader;

/// Maximum time for the daemon to alter the hub's user mappings.
const ROTATE_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of checks of the user mappings: there is no notification.
const POLL: Duration = Duration::from_millis(100);

/// Changes the password of the role with which the hub reads a gateway, in each gateway and then in the
/// hub's user mappings. Open sessions continue.
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let gateways = gateway::settings(settings);
    if gateways.is_empty() {
        bail!("`gateway` is \"off\": there is no password to change");
    }
    for gateway in &gateways {
        rotate_one(settings, gateway)
            .await
            .with_context(|| gateway.gateway_name.clone())?;
        println!(
            "the hub uses a new password for {}",
            gateway::title(gateway)
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn rotate_one(hub: &Settings, gateway: &Settings) -> anyhow::Result<()> {
    let (endpoint, running) = gateway::open(gateway).await?;
    let old = rotate(&endpoint).await;
    // Keeps the private cluster running if no daemon does.
    let ended = match old {
        Ok(old) => update_hub(hub, &old).await,
        Err(error) => Err(error),
    };
    if let Some(running) = running {
        running.stop().await;
    }
    ended
}

/// Changes the password. Returns the old one.
async fn rotate(endpoint: &spcd_postgres::connection::Endpoint) -> anyhow::Result<Secret> {
    let session = endpoint.connect("rotate").await?;
    let old = gateway_reader::password(&session.client).await?;
    let old = old.context("no hub uses the gateway yet; run `spcd run` or `spcd apply` first")?;
    gateway_reader::rotate(&session.client).await?;
    Ok(old)
}

async fn update_hub(settings: &Settings, old: &Secret) -> anyhow::Result<()> {
    let (endpoint, running) = super::hub(settings).await?;
    let updated = async {
        let session = endpoint.connect("rotate").await?;
        if !follow::is_led(&session.client).await? {
            let _ = apply::run(settings, ApplyArgs::default()).await?;
        }
        until_updated(&session.client, old).await
    };
    let updated = updated.await;
    if let Some(running) = running {
        running.stop().await;
    }
    updated
}

/// Waits until no mapping has the old password.
async fn until_updated(hub: &Client, old: &Secret) -> anyhow::Result<()> {
    let began = Instant::now();
    while has_mapping_with(hub, old).await? {
        if began.elapsed() > ROTATE_TIMEOUT {
            bail!(
                "the gateway has a new password, and the hub's user mappings still have the old one: \
                 see the daemon's log, or stop the daemon and run `spcd apply`"
            );
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

async fn has_mapping_with(hub: &Client, password: &Secret) -> anyhow::Result<bool> {
    let sql = "SELECT umoptions FROM pg_catalog.pg_user_mappings WHERE umoptions IS NOT NULL";
    let option = format!("password={}", password.expose());
    for row in hub.query(sql, &[]).await? {
        if row.try_get::<_, Vec<String>>(0)?.contains(&option) {
            return Ok(true);
        }
    }
    Ok(false)
}
