//! Takes the lead again after the database was lost, or after another daemon led.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use spcd_core::config::HubSettings;
use spcd_core::health::ProbeOptions;
use spcd_protocol::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;

use super::LeaderSession;
use crate::config::Config;
use crate::service;
use crate::settings::Settings;
use crate::telemetry::{Observation, observe};
use crate::watch::Watcher;
use spcd_postgres::HubError;
use spcd_postgres::config_files;
use spcd_postgres::connection::Endpoint;
use spcd_postgres::connection::pool::Pool;
use spcd_postgres::leader;

/// Interval of checks whether a rejected password has changed.
const LOOK_FOR_PASSWORD: Duration = Duration::from_millis(500);

/// Returns the pause before the next attempt after this number of failures.
fn back_off(times: u32, settings: &HubSettings) -> Duration {
    let share = RandomState::new().hash_one(times) as f64 / u64::MAX as f64;
    let backoff = Backoff::new(settings.backoff_min, settings.backoff_max);
    Duration::from_millis(backoff.jittered(times, share))
}

/// Keeps a database in line with the files: takes the lead, serves, and starts again when the database
/// was lost. Returns only if it cannot start.
pub async fn run(
    endpoint: Arc<Endpoint>,
    pool: &Pool,
    settings: &Settings,
    config: &mut Config,
    watcher: &mut Watcher,
    health: &watch::Receiver<ProbeOptions>,
) -> anyhow::Result<()> {
    let hub = endpoint.context().clone();
    let mut times = 0_u32;
    let mut has_led = false;
    loop {
        service::alive();
        let mut served = None;
        let error = match LeaderSession::begin(
            &endpoint,
            pool,
            settings,
            config,
            health.clone(),
            Some(watcher),
        )
        .await
        {
            Ok(None) => continue,
            Ok(Some(mut leader)) => {
                has_led = true;
                let began = served.insert(Instant::now());
                match leader.serve().await {
                    Ok(()) => continue,
                    Err(error) => {
                        // Resets the back-off after a session that lasted.
                        if began.elapsed() > Duration::from_millis(hub.settings().backoff_max) {
                            times = 0;
                        }
                        anyhow::Error::from(error)
                    }
                }
            }
            // A configuration that has worked before can work again.
            Err(error) if !has_led && is_final(&error) => {
                return Err(error).context("cannot start");
            }
            Err(error) => error,
        };
        // Open sessions may belong to a server that is no longer the primary.
        pool.clear();
        let reason = format!("{error:#}");
        hub.set_lost(&reason);
        service::status(&format!("waiting for the database: {reason}"));
        if endpoint.is_authentication_refused() {
            tracing::warn!(
                "{reason}; trying again when the password or the settings change, and now and then"
            );
            wait_for_password(&endpoint).await;
            continue;
        }
        times = times.saturating_add(1);
        let pause = back_off(times, &hub.settings());
        observe(Observation::Lost {
            why: &reason,
            pause,
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = hub.retry_requested() => {}
        }
    }
}

/// Waits until another attempt may succeed after the server refused the session.
async fn wait_for_password(endpoint: &Endpoint) {
    while endpoint.is_authentication_refused() {
        service::alive();
        tokio::select! {
            () = tokio::time::sleep(LOOK_FOR_PASSWORD) => {}
            () = endpoint.context().retry_requested() => {}
        }
    }
}

/// Whether the error is permanent.
fn is_final(error: &anyhow::Error) -> bool {
    use spcd_postgres::connection::ConnectError;
    if let Some(error @ HubError::StatementFailed { .. }) = error.downcast_ref() {
        return !error.is_transient() && !error.is_of_the_server();
    }
    matches!(error.downcast_ref(), Some(ConnectError::Configuration(_)))
        || error.downcast_ref::<leader::OtherInstance>().is_some()
        || error.downcast_ref::<config_files::OtherConfig>().is_some()
}
