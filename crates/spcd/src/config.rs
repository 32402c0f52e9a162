//! What the files want now: the edge around `spcd_core::config`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use spcd_core::config::{
    Cache, Desired, Doubt, Given, Inputs, Inspection, Loaded, Seen, inspect, load,
};
use spcd_lang::evaluate::Function;
use tokio_postgres::Client;

use crate::files::{DirState, Files, Look, Place, Places};
use crate::hub::HubError;
use crate::service;
use crate::tunnel;

/// What cannot be read, and why.
fn unreadable(look: &Look) -> Vec<String> {
    let files = look.sources.iter().filter_map(|source| {
        let reason = source.text.as_ref().err()?;
        Some(format!("{}: {reason}", source.path))
    });
    let missing = |doubt: &Doubt| match &doubt.error {
        Some(error) => error.clone(),
        None => format!("{}: it cannot be told what is there", doubt.path),
    };
    files.chain(look.doubts.iter().map(missing)).collect()
}

/// Reads and understands the config directories, again and again.
pub struct Config {
    /// The config directories as they are recorded.
    roots: Vec<String>,
    files: Files,
    /// What the last load found.
    look: Arc<Look>,
    /// Why files that were known are not known to be removed, as of then.
    vanished: Vec<String>,
    cache: Cache,
    places: Vec<Place>,
    /// Input that vanished counts as removed.
    allow_empty: bool,
    /// The applied state may come from other directories: from now on it comes from these.
    adopts: bool,
    /// Nothing is wanted, not even search paths.
    nothing: bool,
    /// Where tunnels write down the ports at which they end.
    state_dir: Option<PathBuf>,
    /// The hub has another encoding than UTF8.
    other_encoding: bool,
}

impl Config {
    /// For these directories (or single files).
    pub fn new(dirs: &[PathBuf], allow_empty: bool) -> Self {
        Self {
            roots: dirs.iter().map(|dir| dir.display().to_string()).collect(),
            files: Files::new(dirs),
            look: Arc::default(),
            vanished: Vec::new(),
            cache: Cache::default(),
            places: Vec::new(),
            allow_empty,
            adopts: false,
            nothing: false,
            state_dir: None,
            other_encoding: false,
        }
    }

    /// Takes note of the hub's encoding.
    pub async fn learn_encoding(&mut self, hub: &Client) -> Result<(), HubError> {
        self.other_encoding = !crate::hub::is_utf8(hub).await?;
        Ok(())
    }

    /// With what a daemon has written down in its state directory.
    pub fn with_state(mut self, state_dir: &Path) -> Self {
        self.state_dir = Some(state_dir.to_owned());
        self
    }

    /// Whether the applied state is to come from these directories whatever it came from before.
    pub fn adopting(mut self, adopts: bool) -> Self {
        self.adopts = adopts;
        self
    }

    /// That nothing is there any more, whatever the files say.
    pub fn nothing() -> Self {
        Self {
            nothing: true,
            adopts: true,
            ..Self::new(&[], true)
        }
    }

    /// What they want now, and what is wrong in them. It blocks on the file system.
    pub fn load(&mut self) -> Loaded {
        let look = self.files.look();
        self.look = look.clone();
        service::cannot_read(unreadable(&look));
        let mut named = Places::default();
        let mut lookup = |function: Function, directory: &str, argument: &str| {
            if let Some(path) = file_of(function, directory, argument) {
                named.way_to(&path);
            }
            look_up(function, directory, argument)
        };
        let mut given = Given {
            lookup: Some(&mut lookup),
        };
        let mut loaded = load(&look.sources, &mut given, &mut self.cache);
        if self.nothing {
            loaded.desired.database.manage_search_path = Some(false);
        }
        self.lead_through_tunnels(&mut loaded);
        if self.other_encoding {
            loaded.desired.adapt_to_other_encoding();
        }
        named.add(self.files.places());
        self.places = named.list();
        // Of one that never came to rest nothing is said, and nothing follows.
        let restless = look.doubts.iter().filter(|doubt| doubt.error.is_none());
        loaded.desired.doubts.extend(restless.cloned());
        loaded
    }

    /// Puts what was recorded and vanished in doubt, as of the last load; returns what is known then.
    pub fn doubt_vanished(&mut self, known: &Inputs, desired: &mut Desired) -> Inputs {
        let exists = |path: &str| std::fs::symlink_metadata(path).is_ok();
        let connections = desired.connections.values().map(|c| c.file.as_str());
        // Of a file that cannot be read in full only the record tells.
        let unread = desired.doubts.iter().map(|doubt| doubt.path.as_str());
        let sets_path = desired.database.file.as_deref();
        let seen = Seen {
            roots: &self.roots,
            files: (self.look.sources.iter())
                .map(|source| source.path.as_str())
                .collect(),
            holding: connections.chain(sets_path).collect(),
            unread: unread.collect(),
            sets_path,
            listed: &self.look.listed,
            elsewhere: &self.look.elsewhere,
            doubts: &self.look.doubts,
            exists: &exists,
        };
        let (now, doubts) = known.after(&seen, self.allow_empty);
        let is_unknown = now.path_is_unknown(&seen);
        self.vanished = doubts.iter().filter_map(|d| d.error.clone()).collect();
        desired.doubts.extend(doubts);
        desired.database.is_unknown = is_unknown;
        now
    }

    /// The config directories, unless it does not matter what the applied state came from.
    pub fn required_roots(&self) -> Option<&[String]> {
        (!self.adopts).then_some(self.roots.as_slice())
    }

    /// What vanished or could not be read by the last load, and why.
    pub fn lost_input(&self) -> Vec<&str> {
        let vanished = self.vanished.iter().map(String::as_str);
        // One that held files is among those already.
        let is_new = |error: &&str| !self.vanished.iter().any(|told| told.starts_with(error));
        let unreadable = self.look.doubts.iter().filter_map(|d| d.error.as_deref());
        vanished.chain(unreadable.filter(is_new)).collect()
    }

    /// Refuses to move over to directories that hold nothing.
    pub fn ensure_adoptable(&mut self) -> anyhow::Result<()> {
        let look = self.files.look();
        for (dir, state) in &look.dirs {
            let dir = dir.display();
            match state {
                DirState::Filled => {}
                DirState::Missing => anyhow::bail!("cannot move over to {dir}: it cannot be read"),
                DirState::Empty => anyhow::bail!("cannot move over to {dir}: it holds no file"),
            }
        }
        Ok(())
    }

    /// Has servers point at the ports at which their tunnels end, where those are not the usual ones.
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

    /// The same with all values, for `check`, and the sources themselves.
    pub fn inspect(&mut self, offline: bool) -> (Inspection, Arc<Look>) {
        let look = self.files.look();
        let mut lookup = look_up;
        let inspection = inspect(
            &look.sources,
            &mut Given {
                lookup: (!offline).then_some(&mut lookup),
            },
        );
        (inspection, look)
    }

    /// Where a change may matter, as of the last look: also that of a file that a value is read
    /// from.
    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

/// The file that a function reads.
fn file_of(function: Function, directory: &str, argument: &str) -> Option<PathBuf> {
    let directory = match function {
        Function::Env => return None,
        Function::File => PathBuf::from(directory),
        Function::Credential => PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?),
    };
    std::path::absolute(directory.join(argument)).ok()
}

/// A function's result, for a value in a file of that directory.
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

/// The largest file that a value may be: what is larger is a mistake.
const LARGEST: u64 = 1 << 20;

/// Reads a small file; an error is the reason why it cannot be read.
pub fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !size.is_file() || size.len() > LARGEST {
        return Err(format!("it is no file of at most {LARGEST} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// A secret as the service manager hands it out; its last newline is not part of it.
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
