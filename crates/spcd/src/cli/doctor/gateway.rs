//! Checks that the gateway answers and that the hub reaches it.

use std::time::Duration;

use spcd_core::gateway::{Address, HubLanes, is_in_gateway, reader_target};
use spcd_core::health::{FailureKind, ProbeAnswer, ProbeFailure};
use spcd_core::secret::Secret;
use tokio_postgres::Client;

use super::{CheckResult, bad, good};
use crate::cluster;
use crate::gateway::{self, OneShotGateways, OpenGateway};
use crate::settings::Settings;
use spcd_core::config::DesiredState;
use spcd_postgres::gateway_reader::READER;
use spcd_postgres::probe::probe;
use spcd_postgres::{HubError, has_relation, secrets};

/// Time limit of the hub's attempt to reach the gateway.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Checks the gateways if a connection uses one. `hub` is a session with the hub, if it answers.
pub async fn check(
    settings: &Settings,
    desired: &DesiredState,
    hub: Option<&Client>,
) -> Vec<CheckResult> {
    let gateways = gateway::settings(settings);
    if gateways.is_empty() {
        return Vec::new();
    }
    let users = (desired.connections.values()).filter(|connection| is_in_gateway(connection));
    if users.count() == 0 {
        return vec![good("the gateway: no connection uses it")];
    }
    if let [gateway] = gateways.as_slice()
        && gateway.database.is_none()
        && !cluster::exists(gateway)
    {
        return vec![match cluster::inspect(gateway).programs {
            Ok(major) => good(format!(
                "the gateway: `spcd run` creates its private cluster, with Postgres {major}"
            )),
            Err(error) => bad("the gateway's server programs", error.to_string()),
        }];
    }
    match OneShotGateways::inspect(settings, HubLanes::default()).await {
        Err(error) => vec![bad("the gateway", format!("{error:#}"))],
        Ok(once) => {
            let mut findings = Vec::new();
            for gateway in &once.gateways {
                findings.extend(reach(gateway, hub).await);
            }
            once.stop().await;
            findings
        }
    }
}

async fn reach(gateway: &OpenGateway, hub: Option<&Client>) -> Vec<CheckResult> {
    let view = gateway.link.view();
    if let Some(error) = &view.error {
        return vec![bad(gateway.link.title(), error.clone())];
    }
    let Some(endpoint) = &gateway.endpoint else {
        return Vec::new();
    };
    let mut findings = vec![good(format!("the gateway: {endpoint}"))];
    let Some(address) = view.address.clone() else {
        findings.push(good("the gateway holds nothing yet: `spcd run` fills it"));
        return findings;
    };
    let guess = (endpoint.clone()).with_role(READER, Secret::new("a guess"));
    if guess.connect("doctor").await.is_ok() {
        findings.push(bad(
            "the gateway asks the hub's role for its password",
            format!(
                "its pg_hba.conf lets {READER} in without one, and postgres_fdw refuses that to \
                 ordinary roles (password_required): write scram-sha-256 there"
            ),
        ));
    }
    let Some(hub) = hub else {
        return findings;
    };
    let option = |name: &str| address.options.get(name).map_or("?", String::as_str);
    let what = format!(
        "the hub reaches the gateway at {}:{}",
        option("host"),
        option("port")
    );
    findings.push(match try_from_hub(hub, &address).await {
        Ok(None) => good("the hub holds nothing yet: `spcd run` fills it"),
        Ok(Some(ProbeAnswer::Reachable(_))) => good(what),
        Ok(Some(ProbeAnswer::Failed(failure))) => bad(what, advice(&failure)),
        Ok(Some(ProbeAnswer::Inconclusive(text))) => bad(what, text),
        Err(error) => bad(what, error.to_string()),
    });
    findings
}

/// Has the hub log in to the gateway, in a transaction that is rolled back. Returns `None` before the
/// first start, which creates the functions for the user mapping.
async fn try_from_hub(hub: &Client, address: &Address) -> Result<Option<ProbeAnswer>, HubError> {
    if !has_relation(hub, "spcd.migration").await? {
        return Ok(None);
    }
    hub.batch_execute("SET lock_timeout = '2s'; SET statement_timeout = '15s'")
        .await?;
    secrets::prepare(hub).await?;
    Ok(Some(
        probe(hub, None, &reader_target(address), REACH_TIMEOUT).await?,
    ))
}

fn advice(failure: &ProbeFailure) -> String {
    let what = match failure.kind {
        FailureKind::Refused | FailureKind::Timeout => {
            "nothing answers there from the hub's machine: have the gateway listen on that address \
             (`gateway { listen = … }`, or listen_addresses), and open its port in the firewall"
        }
        FailureKind::Dns => {
            "the hub's machine cannot resolve this name: set `host` in `gateway { … }`"
        }
        // An entry for hostssl does not admit unencrypted sessions.
        FailureKind::Authentication | FailureKind::Tls => {
            "the gateway's pg_hba.conf must admit this role from the hub's address: hostssl, \
             spcd_gateway_reader, scram-sha-256; and the hub must accept its certificate"
        }
        _ => "",
    };
    [failure.text.as_str(), what]
        .join("\n")
        .trim_end()
        .to_owned()
}
