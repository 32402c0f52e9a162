//! `spcd destroy`

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use spcd_client::states;
use spcd_core::config::Compat;
use spcd_core::plan;

use super::DestroyArgs;
use super::follow;
use crate::cluster;
use crate::config::Config;
use crate::daemon::LeaderSession;
use crate::hub::connect::Endpoint;
use crate::hub::{destroy, observe, steampipe};
use crate::settings::Settings;

/// Removes all that spcd made, once it has shown it and was told to.
pub async fn run(settings: &Settings, args: DestroyArgs) -> anyhow::Result<ExitCode> {
    // A cluster that is not there is not made in order to be removed.
    if settings.database.is_none() && !cluster::is_made(settings) {
        println!(
            "nothing to remove: there is no private cluster in {}",
            settings.state_dir.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let running = match settings.database {
        Some(_) => None,
        None => Some(cluster::join(settings).await?),
    };
    let endpoint = Arc::new(super::endpoint(settings)?);
    let outcome = remove(settings, args, &endpoint).await;
    let remove_cluster = match (&outcome, &running) {
        (Ok(Removed::All), Some(_)) => left_in_cluster(&endpoint).await,
        _ => Ok(None),
    };
    if let Some(running) = running {
        running.stop().await;
    }
    match (outcome?, remove_cluster?) {
        (Removed::Nothing, _) => Ok(ExitCode::FAILURE),
        (Removed::All, None) => {
            println!("removed");
            Ok(ExitCode::SUCCESS)
        }
        (Removed::All, Some(left)) if left.is_empty() => {
            cluster::remove(settings).await?;
            println!("removed, with the private cluster");
            Ok(ExitCode::SUCCESS)
        }
        (Removed::All, Some(left)) => {
            println!(
                "removed; the private cluster in {} stays, for it holds what spcd did not make: {}",
                settings.state_dir.display(),
                some_of(&left)
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What became of it.
enum Removed {
    /// Somebody said no.
    Nothing,
    All,
}

async fn remove(
    settings: &Settings,
    args: DestroyArgs,
    endpoint: &Arc<Endpoint>,
) -> anyhow::Result<Removed> {
    let mut config = Config::nothing();
    let session = endpoint.connect("destroy").await?;
    let kept = "SELECT pg_catalog.to_regclass('spcd.migration') IS NOT NULL";
    if !session
        .client
        .query_one(kept, &[])
        .await?
        .try_get::<_, bool>(0)?
    {
        println!("spcd made nothing in this database");
        return Ok(Removed::All);
    }
    let desired = config.load().desired;
    let observed = observe::observe(&session.client, &desired).await?;
    print!(
        "{}",
        plan::show(&plan::plan(&desired, &observed), &observed)
    );
    println!(
        "- schemas \"spcd\", \"spcd_union\", \"spcd_type\" and \"spcd_lock\", with the state and its history"
    );
    if steampipe::is_there(&session.client).await? {
        println!("- schema \"steampipe_internal\", and the roles that were made with it");
    }
    if settings.database.is_none() {
        println!(
            "- the private cluster in {}, unless people's own objects are in it",
            settings.state_dir.display()
        );
    } else {
        println!("  extensions that spcd created stay");
    }
    if !args.yes && !super::confirm("Remove all this?")? {
        println!("nothing was changed");
        return Ok(Removed::Nothing);
    }
    // Which also takes away what was made for other programs' clients.
    let mut alone = settings.clone();
    alone.compat = Compat::None;
    let begun = LeaderSession::begin_once(endpoint, &alone, &mut config).await?;
    let Some(mut leader) = begun else {
        bail!(
            "a daemon leads on this database and would make it all again: stop it first (systemctl stop spcd)"
        );
    };
    ensure!(
        !destroy::has_heir(&session.client).await?,
        "another daemon waits to lead on this database and would make it all again: stop it first"
    );
    ensure!(
        !steampipe::is_there(&session.client).await?,
        "something that spcd did not make hangs on the schema steampipe_internal (the log says what): drop it first"
    );
    leader.settle(|_| ()).await?;
    let rows = states(&session.client, None).await?;
    if !rows.is_empty() {
        follow::report(&[], &rows);
        bail!(
            "{} of the connections could not be removed; the rest is gone",
            rows.len()
        );
    }
    let lock = leader.abdicate().context("the lead is lost")?;
    let dropped = destroy::drop_own(&lock.client).await;
    dropped.context("every connection is removed, but the schema spcd is not")?;
    Ok(Removed::All)
}

async fn left_in_cluster(endpoint: &Endpoint) -> anyhow::Result<Option<Vec<String>>> {
    let session = endpoint.connect("destroy").await?;
    Ok(Some(destroy::of_people(&session.client).await?))
}

fn some_of(list: &[String]) -> String {
    let shown: Vec<&str> = list.iter().take(10).map(String::as_str).collect();
    let more = if list.len() > shown.len() {
        ", …"
    } else {
        ""
    };
    format!("{}{more}", shown.join(", "))
}
