//! Reads the files and loads them by `spcd_core::config`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spcd_core::config::{
    AppliedFiles, Cache, Connection, DesiredState, DirectoryScan, Inspection, LoadContext, Loaded,
    PluginBlock, UnknownInput, inspect, load,
};
use spcd_core::gateway::{HubParts, keep_gateway_part};
use spcd_core::mirror::{MirrorParts, MirrorViews};
use spcd_lang::evaluate::Function;
use tokio_postgres::Client;

use crate::files::{ConfigReader, ConfigScan, DirState, Extensions, WatchPoint, WatchPoints};
use crate::gateway_link::{Link, Links};
use crate::service;
use crate::tunnel;
use spcd_postgres::HubError;
use spcd_postgres::catalog::lanes;

/// Returns what cannot be read, with the reasons.
fn unreadable(scan: &ConfigScan) -> Vec<String> {
    let files = scan.sources.iter().filter_map(|source| {
        let reason = source.text.as_ref().err()?;
        Some(format!("{}: {reason}", source.path))
    });
    let missing = |input: &UnknownInput| match &input.error {
        Some(error) => error.clone(),
        None => format!("{}: its contents cannot be determined", input.path),
    };
    files
        .chain(scan.unknown_inputs.iter().map(missing))
        .collect()
}

/// Loads the config directories repeatedly.
pub struct Config {
    /// The config directories, as recorded in the database.
    roots: Vec<String>,
    files: ConfigReader,
    /// The files of the last load.
    scan: Arc<ConfigScan>,
    /// Errors of vanished files in the last load.
    vanished: Vec<String>,
    cache: Cache,
    /// The valid `plugin` blocks of the last load.
    plugins: Vec<PluginBlock>,
    /// The connections of all files, some of which belong to the gateway.
    connections: BTreeMap<String, Arc<Connection>>,
    watch_points: Vec<WatchPoint>,
    /// Whether vanished input counts as removed.
    allow_empty: bool,
    /// Whether these directories may replace others, from which the applied state came.
    adopts: bool,
    /// Whether the desired state is empty, without search paths.
    nothing: bool,
    /// Directory in which tunnels record their ports.
    state_dir: Option<PathBuf>,
    /// Whether the hub's encoding is not UTF8.
    other_encoding: bool,
    side: Side,
    /// Last known lists of the mirrors' sources.
    mirror_views: MirrorViews,
    mirrors: MirrorParts,
}

/// The database for which the files are loaded.
enum Side {
    /// The hub, without a gateway.
    Alone,
    /// The hub, with its links to the gateways.
    Hub(Arc<Links>, HubParts),
    /// A gateway.
    Gateway(Link),
    /// No database: the files are only checked.
    Both,
}

impl Config {
    /// Returns the configuration of these directories or single files.
    pub fn new(dirs: &[PathBuf], extensions: Extensions, allow_empty: bool) -> Self {
        Self {
            roots: dirs.iter().map(|dir| dir.display().to_string()).collect(),
            files: ConfigReader::new(dirs, extensions),
            scan: Arc::default(),
            vanished: Vec::new(),
            cache: Cache::default(),
            plugins: Vec::new(),
            connections: BTreeMap::new(),
            watch_points: Vec::new(),
            allow_empty,
            adopts: false,
            nothing: false,
            state_dir: None,
            other_encoding: false,
            side: Side::Alone,
            mirror_views: MirrorViews::new(),
            mirrors: MirrorParts::default(),
        }
    }

    /// Sets the lists of the mirrors' sources.
    pub fn set_mirror_views(&mut self, views: MirrorViews) {
        self.mirror_views = views;
    }

    /// Sets whether the hub's encoding is UTF8.
    pub async fn learn_encoding(&mut self, hub: &Client) -> Result<(), HubError> {
        self.other_encoding = !spcd_postgres::is_utf8(hub).await?;
        Ok(())
    }

    /// Uses the ports of tunnels that a daemon recorded in its state directory.
    pub fn with_state(mut self, state_dir: &Path) -> Self {
        self.state_dir = Some(state_dir.to_owned());
        self
    }

    /// Loads for a hub with gateways, if there are any.
    pub fn beside(mut self, gateways: Option<Arc<Links>>) -> Self {
        self.side = gateways.map_or(Side::Alone, |links| Side::Hub(links, HubParts::default()));
        self
    }

    /// Loads for checking the files: connections keep the targets of their blocks.
    pub fn with_gateway(mut self, has_gateway: bool) -> Self {
        if has_gateway {
            self.side = Side::Both;
        }
        self
    }

    /// Loads for a gateway.
    pub fn of_gateway(mut self, gateway: Link) -> Self {
        self.side = Side::Gateway(gateway);
        self
    }

    /// Returns the links to the gateways, and the hub's parts of the connections behind them.
    pub fn gateways(&self) -> Option<(&Arc<Links>, &HubParts)> {
        match &self.side {
            Side::Hub(links, parts) => Some((links, parts)),
            Side::Alone | Side::Gateway(_) | Side::Both => None,
        }
    }

    /// Returns the gateway for which it loads.
    pub fn gateway(&self) -> Option<&Link> {
        match &self.side {
            Side::Gateway(link) => Some(link),
            Side::Alone | Side::Hub(..) | Side::Both => None,
        }
    }

    /// Sets what the hub reads in gateways.
    pub async fn learn_lanes(&self, hub: &Client) -> Result<(), HubError> {
        if let Some((links, _)) = self.gateways() {
            links.set_hub(lanes::hub_lanes(hub).await?);
        }
        Ok(())
    }

    /// Sets whether these directories may replace those that the applied state came from.
    pub fn adopting(mut self, adopts: bool) -> Self {
        self.adopts = adopts;
        self
    }

    /// Returns an empty configuration, which removes everything.
    pub fn nothing() -> Self {
        Self {
            nothing: true,
            adopts: true,
            ..Self::new(&[], Extensions::default(), true)
        }
    }

    /// Loads the files. Blocks on the file system.
    pub fn load(&mut self) -> Loaded {
        let scan = self.files.scan();
        self.scan = scan.clone();
        service::cannot_read(unreadable(&scan));
        let mut named = WatchPoints::default();
        let mut lookup = |function: Function, directory: &str, argument: &str| {
            if let Some(path) = file_of(function, directory, argument) {
                named.way_to(&path);
            }
            look_up(function, directory, argument)
        };
        let mut given = LoadContext {
            lookup: Some(&mut lookup),
            has_gateway: !matches!(self.side, Side::Alone),
        };
        let mut loaded = load(&scan.sources, &mut given, &mut self.cache);
        if self.nothing {
            loaded.desired.database.manage_search_path = Some(false);
        }
        self.lead_through_tunnels(&mut loaded);
        match &mut self.side {
            Side::Alone | Side::Both => {}
            Side::Gateway(link) => {
                self.connections.clone_from(&loaded.desired.connections);
                let gateways = link.links().gateways();
                keep_gateway_part(&mut loaded.desired, &gateways, link.index());
            }
            Side::Hub(links, parts) => {
                if parts.apply(&mut loaded.desired, &links.gateways()) {
                    links.request();
                }
            }
        }
        match self.side {
            Side::Alone | Side::Hub(..) => {
                let found = self.mirrors.apply(&mut loaded.desired, &self.mirror_views);
                loaded.diagnostics.extend(found);
            }
            Side::Gateway(_) | Side::Both => loaded.desired.mirrors.clear(),
        }
        if self.other_encoding {
            loaded.desired.adapt_to_other_encoding();
        }
        self.plugins.clone_from(&loaded.plugins);
        named.add(self.files.watch_points());
        self.watch_points = named.list();
        // A directory that keeps changing is not reported and removes nothing.
        let restless = scan
            .unknown_inputs
            .iter()
            .filter(|input| input.error.is_none());
        loaded.desired.unknown_inputs.extend(restless.cloned());
        loaded
    }

    /// Adds files that were recorded and have vanished to the unknown inputs of the last load. Returns
    /// the record of the files that are known after it.
    pub fn keep_vanished(
        &mut self,
        known: &AppliedFiles,
        desired: &mut DesiredState,
    ) -> AppliedFiles {
        let exists = |path: &str| std::fs::symlink_metadata(path).is_ok();
        let connections = desired.connections.values().map(|c| c.file.as_str());
        // The content of a file that cannot be read in full is known from the record only.
        let unread = (desired.unknown_inputs.iter())
            .filter(|input| input.mirror.is_none())
            .map(|input| input.path.as_str());
        let sets_path = desired.database.file.as_deref();
        let seen = DirectoryScan {
            roots: &self.roots,
            files: (self.scan.sources.iter())
                .map(|source| source.path.as_str())
                .collect(),
            relevant: connections.chain(sets_path).collect(),
            incomplete: unread.collect(),
            sets_path,
            plugins: &self.plugins,
            listed: &self.scan.listed,
            aliased: &self.scan.elsewhere,
            unreadable: &self.scan.unknown_inputs,
            skipped: &self.scan.skipped,
            exists: &exists,
        };
        let (now, unknown_inputs) = known.after_scan(&seen, self.allow_empty);
        let is_unknown = now.path_is_unknown(&seen);
        self.vanished = unknown_inputs
            .iter()
            .filter_map(|d| d.error.clone())
            .collect();
        desired.unknown_inputs.extend(unknown_inputs);
        desired.database.is_unknown = is_unknown;
        let lost = now.lost_plugins(&self.plugins, &desired.unknown_inputs);
        let all = match self.side {
            Side::Gateway(_) => self.connections.clone(),
            _ => desired.connections.clone(),
        };
        desired.leave_connections_of(&lost, &self.plugins, all.values());
        now
    }

    /// Returns the config directories from which the applied state must come, if that matters.
    pub fn required_roots(&self) -> Option<&[String]> {
        (!self.adopts).then_some(self.roots.as_slice())
    }

    /// Returns the errors of files that vanished or could not be read in the last load.
    pub fn lost_input(&self) -> Vec<&str> {
        let vanished = self.vanished.iter().map(String::as_str);
        // A directory that contained files is already among the vanished input.
        let is_new = |error: &&str| !self.vanished.iter().any(|known| known.starts_with(error));
        let unreadable = self
            .scan
            .unknown_inputs
            .iter()
            .filter_map(|d| d.error.as_deref());
        vanished.chain(unreadable.filter(is_new)).collect()
    }

    /// Refuses to switch to directories without files.
    pub fn ensure_adoptable(&mut self) -> anyhow::Result<()> {
        let scan = self.files.scan();
        for (dir, state) in &scan.dirs {
            let dir = dir.display();
            match state {
                DirState::Filled => {}
                DirState::Missing => anyhow::bail!("cannot move over to {dir}: it cannot be read"),
                DirState::Empty => anyhow::bail!("cannot switch to {dir}: it contains no file"),
            }
        }
        Ok(())
    }

    /// Sets the ports of tunnels that differ from the default ones.
    fn lead_through_tunnels(&self, loaded: &mut Loaded) {
        let Some(state_dir) = &self.state_dir else {
            return;
        };
        let mut ports = None;
        for connection in loaded.desired.connections.values_mut() {
            let Ok(Some(tunnel)) = connection.target.as_ref().map(|target| &target.tunnel) else {
                continue;
            };
            let ports = ports.get_or_insert_with(|| tunnel::ports(state_dir));
            if let Some(port) = ports.get(&tunnel.key())
                && let Ok(target) = &mut Arc::make_mut(connection).target
            {
                target.set_tunnel_port(*port);
            }
        }
    }

    /// Like [`Self::load`], with all values and the texts of the files, for `check`.
    pub fn inspect(&mut self, offline: bool) -> (Inspection, Arc<ConfigScan>) {
        let scan = self.files.scan();
        let mut lookup = look_up;
        let inspection = inspect(
            &scan.sources,
            &mut LoadContext {
                lookup: (!offline).then_some(&mut lookup),
                has_gateway: !matches!(self.side, Side::Alone),
            },
        );
        (inspection, scan)
    }

    /// Returns the directories to watch, including those of files that values are read from.
    pub fn watch_points(&self) -> &[WatchPoint] {
        &self.watch_points
    }
}

/// Returns the file that a function reads.
fn file_of(function: Function, directory: &str, argument: &str) -> Option<PathBuf> {
    let directory = match function {
        Function::Env => return None,
        Function::File => PathBuf::from(directory),
        Function::Credential => PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?),
    };
    std::path::absolute(directory.join(argument)).ok()
}

/// Returns the result of a function for a value in a file of that directory.
pub fn look_up(function: Function, directory: &str, argument: &str) -> Result<String, String> {
    match function {
        Function::Env => std::env::var(argument).map_err(|error| match error {
            std::env::VarError::NotPresent => "it is not set".to_owned(),
            std::env::VarError::NotUnicode(_) => "its value is not UTF-8".to_owned(),
        }),
        Function::File => read(&Path::new(directory).join(argument)),
        Function::Credential => credential(argument),
    }
}

/// Maximum size of a file that holds a value, in bytes. A larger file is a mistake.
const MAX_VALUE_FILE_BYTES: u64 = 1 << 20;

/// Reads a small file. The error is the reason why it cannot be read.
pub fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !size.is_file() || size.len() > MAX_VALUE_FILE_BYTES {
        return Err(format!(
            "it is not a file of at most {MAX_VALUE_FILE_BYTES} bytes"
        ));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// Returns a secret that the service manager passes, without its final newline.
fn credential(name: &str) -> Result<String, String> {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        return Err(
            "$CREDENTIALS_DIRECTORY is not set: spcd was not started with credentials".into(),
        );
    };
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err("a credential's name is a file's name".into());
    }
    let text = read(&Path::new(&directory).join(name))?;
    Ok(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
}
