//! The servers that the seeds of a lane share, one after the other.

use tokio::sync::Mutex;

use super::schedule::Server;
use crate::support::{Cluster, query, steampipe};

/// A hub, a source and perhaps a gateway, each a server of its own.
pub struct Servers {
    pub hub: Mutex<Cluster>,
    pub source: Mutex<Cluster>,
    pub gateway: Mutex<Option<Cluster>>,
}

impl Servers {
    /// Runs an action on one of the servers, and nothing else meanwhile.
    pub async fn with(&self, server: Server, action: impl AsyncFnOnce(&mut Cluster)) {
        match server {
            Server::Hub => action(&mut *self.hub.lock().await).await,
            Server::Source => action(&mut *self.source.lock().await).await,
            Server::Gateway => {
                if let Some(gateway) = self.gateway.lock().await.as_mut() {
                    action(gateway).await;
                }
            }
        }
    }

    pub async fn start() -> Self {
        // What is committed must outlive an immediate stop, else events would vanish.
        let durable = "synchronous_commit = on";
        let hub = Cluster::start(&[durable, "max_connections = 120"]);
        let guests: String = (0..32).map(|n| format!("CREATE ROLE guest{n};")).collect();
        let roles = format!(
            "CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users; {guests}"
        );
        query(&hub.url("postgres"), &roles).await;
        let source = Cluster::start(&[durable, "max_connections = 120"]);
        let hba = "host all source_reader all scram-sha-256\nhost all all all trust\n";
        source.write("pg_hba.conf", hba);
        source.reload();
        query(&source.url("postgres"), "CREATE ROLE source_reader LOGIN").await;
        Self {
            hub: Mutex::new(hub),
            source: Mutex::new(source),
            gateway: Mutex::new(None),
        }
    }

    /// A new database of the gateway, which is started by the first call; its URL and port.
    pub async fn gateway_database(&self) -> (String, u16) {
        let mut gateway = self.gateway.lock().await;
        if gateway.is_none() {
            *gateway = Some(steampipe::gateway().await);
        }
        let gateway = gateway.as_ref().expect("a gateway");
        let database = gateway.database().await;
        steampipe::install(&database.url).await;
        (database.url, gateway.port())
    }
}
