//! `spcd destroy`

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use spcd_client::states;
use spcd_core::config::Compat;
use spcd_core::planner::{self, Running};

use super::DestroyArgs;
use super::follow;
use crate::cluster;
use crate::config::Config;
use crate::daemon::LeaderSession;
use crate::gateway;
use crate::settings::Settings;
use spcd_postgres::catalog::observe;
use spcd_postgres::connection::Endpoint;
use spcd_postgres::{destroy, gateway_reader, has_relation, steampipe};

/// Removes all that spcd created in the hub and in the gateways, after showing it and asking.
pub async fn run(settings: &Settings, args: DestroyArgs) -> anyhow::Result<ExitCode> {
    let mut sides = Vec::new();
    for settings in std::iter::once(settings.clone()).chain(gateway::existing(settings)) {
        if let Some(side) = Side::open(settings).await? {
            sides.push(side);
        }
    }
    // Does not create a cluster only to remove it.
    if sides.is_empty() {
        println!(
            "nothing to remove: there is no private cluster in {}",
            settings.state_dir.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = remove_all(&sides, args).await;
    let mut left = Vec::new();
    for side in &sides {
        left.push(match outcome {
            Ok(true) => side.objects_of_users().await,
            _ => Ok(None),
        });
    }
    let mut settings = Vec::new();
    for side in sides {
        settings.push(side.stop().await);
    }
    if !outcome? {
        return Ok(ExitCode::FAILURE);
    }
    for (settings, left) in settings.iter().zip(left) {
        remove_cluster(settings, left?).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A database to clean: the hub or a gateway.
struct Side {
    settings: Settings,
    endpoint: Arc<Endpoint>,
    running: Option<cluster::Running>,
}

impl Side {
    async fn open(settings: Settings) -> anyhow::Result<Option<Self>> {
        if settings.database.is_none() && !cluster::exists(&settings) {
            return Ok(None);
        }
        let running = match settings.database {
            Some(_) => None,
            None => Some(cluster::join(&settings).await?),
        };
        let endpoint = Arc::new(super::endpoint(&settings)?);
        Ok(Some(Self {
            settings,
            endpoint,
            running,
        }))
    }

    /// Prints what will be removed. Returns whether spcd created anything.
    async fn show(&self) -> anyhow::Result<bool> {
        let session = self.endpoint.connect("destroy").await?;
        let place = match self.settings.is_gateway {
            true => gateway::title(&self.settings),
            false => "this database".to_owned(),
        };
        if !has_relation(&session.client, "spcd.migration").await? {
            println!("spcd created nothing in {place}");
            return Ok(false);
        }
        if self.settings.is_gateway {
            println!("in {}:", gateway::title(&self.settings));
        }
        let desired = Config::nothing().load().desired;
        let observed = observe::observe(&session.client, &desired).await?;
        let plan = planner::plan(&desired, &observed, &Running::default());
        print!("{}", planner::show(&plan, &observed));
        println!(
            "- schemas \"spcd\", \"spcd_union\", \"spcd_type\" and \"spcd_lock\", with the state and its history"
        );
        if self.settings.is_gateway {
            println!("- role \"{}\"", gateway_reader::READER);
        }
        if steampipe::is_installed(&session.client).await? {
            println!("- schema \"steampipe_internal\", and the roles that were created with it");
        }
        match self.settings.database {
            None => println!(
                "- the private cluster in {}, unless it holds objects of other roles",
                self.settings.state_dir.display()
            ),
            Some(_) => println!("  extensions that spcd created stay"),
        }
        Ok(true)
    }

    async fn remove(&self) -> anyhow::Result<()> {
        // Also removes what was created for Steampipe's clients.
        let mut alone = self.settings.clone();
        alone.compat = Compat::None;
        let mut config = Config::nothing();
        let begun = LeaderSession::begin_once(&self.endpoint, &alone, &mut config).await?;
        let Some(mut leader) = begun else {
            bail!(
                "a daemon leads on this database and would create everything again: stop it first (systemctl stop spcd)"
            );
        };
        let session = self.endpoint.connect("destroy").await?;
        ensure!(
            !destroy::has_waiting_daemon(&session.client).await?,
            "another daemon waits to lead on this database and would create everything again: stop it first"
        );
        ensure!(
            !steampipe::is_installed(&session.client).await?,
            "an object that spcd did not create depends on the schema steampipe_internal (see the log): drop it first"
        );
        leader.run_until_settled(|_| ()).await?;
        let rows = states(&session.client, None).await?;
        if !rows.is_empty() {
            follow::report(&[], &rows);
            bail!(
                "{} of the connections could not be removed; the rest is gone",
                rows.len()
            );
        }
        let lock = leader.into_lock_session().context("the lead is lost")?;
        let dropped = destroy::drop_schemas(&lock.client).await;
        dropped.context("every connection is removed, but the schema spcd is not")?;
        if self.settings.is_gateway {
            gateway_reader::remove(&session.client).await?;
        }
        Ok(())
    }

    /// Returns the objects of users in a private cluster.
    async fn objects_of_users(&self) -> anyhow::Result<Option<Vec<String>>> {
        if self.running.is_none() {
            return Ok(None);
        }
        let session = self.endpoint.connect("destroy").await?;
        Ok(Some(destroy::user_objects(&session.client).await?))
    }

    async fn stop(self) -> Settings {
        if let Some(running) = self.running {
            running.stop().await;
        }
        self.settings
    }
}

/// Returns whether everything was removed: the user may decline.
async fn remove_all(sides: &[Side], args: DestroyArgs) -> anyhow::Result<bool> {
    let mut made = Vec::new();
    for side in sides {
        if side.show().await? {
            made.push(side);
        }
    }
    if made.is_empty() {
        return Ok(true);
    }
    if !args.yes && !super::confirm("Remove all this?")? {
        println!("nothing was changed");
        return Ok(false);
    }
    // The hub first: its tables depend on the gateway's.
    for side in made {
        let place = match side.settings.is_gateway {
            true => gateway::title(&side.settings),
            false => "the database".to_owned(),
        };
        side.remove().await.with_context(|| place)?;
    }
    Ok(true)
}

/// Removes a private cluster that contains no objects of users. Prints the result.
async fn remove_cluster(settings: &Settings, left: Option<Vec<String>>) -> anyhow::Result<()> {
    let what = match settings.is_gateway {
        true => format!("{} is removed", gateway::title(settings)),
        false => "removed".to_owned(),
    };
    match left {
        None => println!("{what}"),
        Some(left) if left.is_empty() => {
            cluster::remove(settings).await?;
            if settings.is_gateway {
                // The directory may contain other files.
                let _ = std::fs::remove_dir(&settings.state_dir);
            }
            println!("{what}, with the private cluster");
        }
        Some(left) => println!(
            "{what}; the private cluster in {} stays, since it contains objects that spcd did not create: {}",
            settings.state_dir.display(),
            some_of(&left)
        ),
    }
    Ok(())
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
