//! One seed's databases, files and daemon.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::sql::literal;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::model::{Addresses, Model, SECRET};
use super::people::AGGREGATOR;
use super::schedule::{MEMBERS, SOURCES, Schedule};
use super::servers::Servers;
use super::watch::Watch;
use crate::support::link::Link;
use crate::support::{DEADLINE, Spcd, give_to_server, query, steampipe};

/// Everything that one seed uses.
pub struct World {
    pub schedule: Schedule,
    pub servers: Arc<Servers>,
    /// The superuser's URLs, around the links.
    pub hub: String,
    pub sources: [String; SOURCES],
    pub gateway: Option<String>,
    pub addresses: Addresses,
    pub hub_link: Arc<Link>,
    pub source_link: Arc<Link>,
    pub gateway_link: Option<Arc<Link>>,
    pub spcd: Arc<Mutex<Spcd>>,
    /// A second daemon, which waits to take over.
    pub second: Option<Spcd>,
    /// Daemons that were stopped, for their logs.
    pub retired: Vec<Arc<Mutex<Spcd>>>,
    /// Settings of each daemon.
    pub env: Vec<(&'static str, String)>,
    /// Whether a config directory was away.
    pub has_vanished: bool,
    /// Whether a file was removed or renamed.
    pub has_removed: bool,
    pub config_dir: PathBuf,
    pub model: Model,
    pub watch: Arc<Watch>,
    /// Faults that go on beside the steps.
    pub faults: JoinSet<()>,
    /// Clients that wait: what they waited for, and how it ended.
    pub waiters: JoinSet<(String, Result<(), String>)>,
    /// How long sessions may take to end.
    pub leftover_limit: Duration,
    /// Whether to print what is waited for.
    pub is_verbose: bool,
    /// What users had before spcd came.
    pub theirs: Vec<Vec<String>>,
}

/// Objects of users that have nothing to do with spcd.
const THEIRS: &str = "
    CREATE SCHEMA people; CREATE SCHEMA theirs; CREATE TABLE theirs.t (id integer PRIMARY KEY);
    INSERT INTO theirs.t VALUES (1); CREATE VIEW theirs.v AS SELECT * FROM theirs.t;
    COMMENT ON TABLE theirs.t IS 'theirs'; GRANT SELECT ON theirs.t TO guest0;
    CREATE EXTENSION postgres_fdw;
    CREATE SERVER their_server FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'nowhere');
    CREATE USER MAPPING FOR reader SERVER their_server OPTIONS (user 'x');
    CREATE FOREIGN TABLE theirs.f (id integer) SERVER their_server";

/// All that a change of theirs would change.
pub const THEIR_STATE: &str = "
    SELECT c.oid, c.relname, c.relkind, c.relacl, obj_description(c.oid, 'pg_class'), f.ftoptions,
           pg_get_viewdef(CASE c.relkind WHEN 'v' THEN c.oid END)
    FROM pg_class c LEFT JOIN pg_foreign_table f ON f.ftrelid = c.oid
    WHERE c.relnamespace = 'theirs'::regnamespace ORDER BY 1;
    SELECT s.oid, s.srvname, s.srvoptions, s.srvacl FROM pg_foreign_server s WHERE s.srvname = 'their_server';
    SELECT umid, usename, umoptions FROM pg_user_mappings WHERE srvname = 'their_server';
    SELECT id FROM theirs.t";

impl World {
    pub async fn new(schedule: Schedule, servers: Arc<Servers>) -> Self {
        let (hub, hub_port) = {
            let hub = servers.hub.lock().await;
            (hub.database().await, hub.port())
        };
        query(&hub.url, THEIRS).await;
        let theirs = query(&hub.url, THEIR_STATE).await;
        let password = format!("{SECRET}-{}", schedule.seed);
        let source = servers.source.lock().await;
        let (source_link, hub_link) = (Link::to(source.port()).await, Link::to(hub_port).await);
        let role = format!("ALTER ROLE source_reader PASSWORD {}", literal(&password));
        query(&source.url("postgres"), &role).await;
        let mut sources = Vec::new();
        for n in 0..SOURCES {
            let database = source.database().await;
            let tables = format!(
                "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO source_reader;
                 CREATE TABLE t (id integer, note text); INSERT INTO t VALUES ({n}, 'of source {n}')"
            );
            query(&database.url, &tables).await;
            sources.push(database);
        }
        drop(source);
        let (mut gateway, mut gateway_link) = (None, None);
        let mut env: Vec<(&str, String)> = [
            ("SPCD_HEALTH_ENABLED", "true"),
            ("SPCD_HEALTH_INTERVAL", "500ms"),
            ("SPCD_HEALTH_TIMEOUT", "2s"),
            ("SPCD_HEALTH_PAUSE", "200ms"),
            ("SPCD_HUB_BACKOFF_MAX", "1s"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec();
        if schedule.has_gateway {
            let (url, port) = servers.gateway_database().await;
            let link = Link::to(port).await;
            let through_link = url.replace(&format!(":{port}/"), &format!(":{}/", link.port()));
            env.push(("SPCD_GATEWAY", through_link));
            (gateway, gateway_link) = (Some(url), Some(Arc::new(link)));
        }
        let addresses = Addresses {
            source_port: source_link.port(),
            source_databases: [0, 1].map(|n| sources[n].name.clone()),
            password,
        };
        let through_link = hub
            .url
            .replace(&format!(":{hub_port}/"), &format!(":{}/", hub_link.port()));
        let mut spcd = Spcd::new(&through_link);
        for (name, value) in &env {
            spcd.env(name, value);
        }
        let watch = Watch::start(hub.url.clone());
        Self {
            config_dir: spcd.config_dir(),
            schedule,
            servers,
            sources: [0, 1].map(|n| sources[n].url.clone()),
            hub: hub.url,
            gateway,
            addresses,
            hub_link: Arc::new(hub_link),
            source_link: Arc::new(source_link),
            gateway_link,
            second: None,
            retired: Vec::new(),
            env,
            has_vanished: false,
            has_removed: false,
            spcd: Arc::new(Mutex::new(spcd)),
            model: Model::new(),
            watch,
            faults: JoinSet::new(),
            waiters: JoinSet::new(),
            leftover_limit: DEADLINE,
            is_verbose: std::env::var_os("SPCD_FAULT_VERBOSE").is_some(),
            theirs,
        }
    }

    /// Writes all files, and starts the daemon.
    pub async fn begin(&mut self) {
        let data = self.data_dir();
        fs::create_dir(&data).unwrap();
        give_to_server(&data);
        fs::write(data.join("c.csv"), "id,name\n1,one\n2,two\n").unwrap();
        self.save_base();
        if self.gateway.is_some() {
            self.save_wrapper(0);
            self.save_wrapper(1);
        }
        for member in 0..MEMBERS.len() {
            self.save_member(member);
        }
        self.spcd.lock().await.start();
    }

    /// Writes the file of the connections that no step changes.
    pub fn save_base(&self) {
        let base = format!(
            "{}connection \"{AGGREGATOR}\" {{\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
             connections = [\"[mM]*\"]\n}}\n\
             connection \"files\" {{\n  plugin = \"csv\"\n  paths = [\"../data/*.csv\"]\n}}\n{}",
            steampipe::plugins(),
            self.addresses
                .block("off", 0, "  import_schema = \"disabled\"\n"),
        );
        self.save("base.spc", &base);
    }

    /// The directory of the csv connection.
    pub fn data_dir(&self) -> PathBuf {
        self.config_dir.with_file_name("data")
    }

    /// Writes a file by renaming it into place.
    pub fn save(&self, name: &str, text: &str) {
        let new = self.config_dir.join(".new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, self.config_dir.join(name)).unwrap();
    }

    pub fn save_member(&self, member: usize) {
        let text = self.model.file_text(member, &self.addresses);
        self.save(&self.model.file_name(member), &text);
    }

    pub fn save_wrapper(&self, wrapper: usize) {
        let token = format!("token = \"{}\"", self.model.token(wrapper));
        self.save_wrapper_with(wrapper, &token);
    }

    pub fn save_wrapper_with(&self, wrapper: usize, body: &str) {
        let text = steampipe::connection(&format!("w{wrapper}"), ["a", "b"][wrapper], body);
        self.save(&format!("w{wrapper}.spc"), &text);
    }
}
