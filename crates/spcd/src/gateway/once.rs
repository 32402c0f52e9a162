//! Gateways of one-shot commands.

use std::sync::Arc;

use spcd_core::gateway::HubLanes;
use tokio::sync::Notify;

use super::{address, ensure_distinct, links, prepare, settings};
use crate::cluster::{self, Running};
use crate::config::Config;
use crate::daemon::LeaderSession;
use crate::gateway_link::{Link, Links};
use crate::settings::Settings;
use spcd_postgres::catalog::lanes;
use spcd_postgres::connection::Endpoint;
use spcd_postgres::{gateway, gateway_reader};

/// The gateways of a one-shot command, such as `spcd apply`.
pub struct OneShotGateways {
    /// State of the gateways for reading the hub's configuration; `None` without a gateway.
    pub links: Option<Arc<Links>>,
    /// The gateways, in the order of the settings.
    pub gateways: Vec<OpenGateway>,
}

/// A gateway of a one-shot command.
pub struct OpenGateway {
    /// Its settings.
    pub settings: Settings,
    /// Its state, as the hub's configuration reads it.
    pub link: Link,
    /// Endpoint of its sessions; `None` if it does not exist yet or does not answer.
    pub endpoint: Option<Endpoint>,
    running: Option<Running>,
}

/// Options of `spcd apply`.
#[derive(Debug, Clone, Copy)]
pub struct ApplyOptions {
    /// Treat vanished input as removed.
    pub allow_empty: bool,
    /// Accept that the applied state comes from other directories.
    pub adopts: bool,
}

/// Returns the connections that a hub reads in gateways.
///
/// # Errors
/// A hub that cannot be reached.
pub async fn hub_lanes(hub: &Endpoint) -> anyhow::Result<HubLanes> {
    let session = hub.connect("gateway use").await?;
    Ok(lanes::hub_lanes(&session.client).await?)
}

impl OneShotGateways {
    /// Reads the state of the gateways. Changes nothing.
    pub async fn inspect(hub: &Settings, lanes: HubLanes) -> anyhow::Result<Self> {
        let mut one_shot = Self::new(hub, lanes)?;
        for gateway in &mut one_shot.gateways {
            let read = gateway.inspect().await;
            gateway.tolerate_one_of_several(read)?;
        }
        Ok(one_shot)
    }

    /// Runs one pass in each gateway, unless a daemon leads there or no connection needs it. Drops
    /// nothing that the hub uses.
    pub async fn apply(
        hub: &Settings,
        options: ApplyOptions,
        lanes: HubLanes,
    ) -> anyhow::Result<Self> {
        let mut one_shot = Self::new(hub, lanes)?;
        for gateway in &mut one_shot.gateways {
            let applied = gateway.apply(options).await;
            gateway.tolerate_one_of_several(applied)?;
        }
        Ok(one_shot)
    }

    fn new(hub: &Settings, lanes: HubLanes) -> anyhow::Result<Self> {
        let settings = settings(hub);
        ensure_distinct(&settings)?;
        let links = links(&settings, Arc::new(Notify::new()));
        if let Some(links) = &links {
            links.set_hub(lanes);
        }
        let all = links.iter().flat_map(Links::all);
        let gateway = |(settings, link)| OpenGateway {
            settings,
            link,
            endpoint: None,
            running: None,
        };
        Ok(Self {
            gateways: settings.into_iter().zip(all).map(gateway).collect(),
            links,
        })
    }

    /// Stops the private cluster, unless a daemon or another command uses it.
    pub async fn stop(self) {
        for gateway in self.gateways {
            if let Some(running) = gateway.running {
                running.stop().await;
            }
        }
    }
}

impl OpenGateway {
    async fn inspect(&mut self) -> anyhow::Result<()> {
        if self.settings.database.is_none() && !cluster::exists(&self.settings) {
            return Ok(());
        }
        let endpoint = self.open().await?;
        self.read(endpoint).await
    }

    async fn apply(&mut self, options: ApplyOptions) -> anyhow::Result<()> {
        let settings = &self.settings;
        let dirs = &settings.config_dirs;
        let mut config = Config::new(dirs, settings.extensions, options.allow_empty)
            .with_state(&settings.state_dir)
            .adopting(options.adopts)
            .of_gateway(self.link.clone());
        let is_desired = !config.load().desired.connections.is_empty();
        if !is_desired && settings.database.is_none() && !cluster::exists(settings) {
            return Ok(());
        }
        let endpoint = self.open().await?;
        let leader = LeaderSession::begin_once(&endpoint, &self.settings, &mut config).await?;
        if let Some(mut leader) = leader {
            prepare(&endpoint).await?;
            leader.run_until_settled(|_| ()).await?;
            leader.resign().await;
        }
        self.read(endpoint).await
    }

    async fn open(&mut self) -> anyhow::Result<Endpoint> {
        let (endpoint, running) = open(&self.settings).await?;
        self.running = running;
        Ok(endpoint)
    }

    async fn read(&mut self, endpoint: Endpoint) -> anyhow::Result<()> {
        let session = endpoint.connect("gateway view").await?;
        // Without a password no daemon has prepared the gateway.
        if let Some(password) = gateway_reader::password(&session.client).await? {
            let rows = gateway::rows(&session.client).await?;
            self.link
                .set(address(&self.settings, &endpoint, password)?, rows);
        }
        self.endpoint = Some(endpoint);
        Ok(())
    }

    /// Tolerates the failure of one of several gateways: its connections are in error.
    fn tolerate_one_of_several(&mut self, result: anyhow::Result<()>) -> anyhow::Result<()> {
        match result {
            Err(error) if self.link.has_others() => {
                let text = format!("{error:#}");
                self.link.change(|view| view.error = Some(text));
                Ok(())
            }
            result => result,
        }
    }
}

/// Opens a gateway. Starts a private one temporarily, unless a daemon runs it.
pub async fn open(settings: &Settings) -> anyhow::Result<(Endpoint, Option<Running>)> {
    Ok(match &settings.database {
        Some(database) => (Endpoint::parse(database)?, None),
        None => {
            let running = cluster::join(settings).await?;
            (cluster::endpoint(settings)?, Some(running))
        }
    })
}
