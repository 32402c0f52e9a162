//! Cache of blocks that were read before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::config::key::Key;
use crate::model::Connection;
use spcd_lang::block_splitter::Fragment;
use spcd_lang::parse::Parsed;
use spcd_lang::syntax::Problem;

/// Cache of blocks, by file and text.
///
/// A connection without problems whose block calls no function is kept as a whole and shared. Of
/// other blocks only the syntax tree is kept, since the environment or a file may have changed.
#[derive(Default)]
pub struct Cache {
    files: HashMap<Key, (u64, Arc<SplitFile>)>,
    parsed_texts: HashMap<Key, (u64, Arc<ParsedText>)>,
    connections: HashMap<Key, (u64, CachedConnection)>,
    /// Key of the plugin blocks with which the cached connections were read.
    instances: Key,
    /// Key of the local values with which they were read.
    locals: Key,
    /// Attributes whose values may be shown, by plugin instance.
    public: BTreeMap<String, BTreeSet<String>>,
    pass: u64,
    parsed: usize,
}

impl Cache {
    /// Number of blocks that the last load parsed.
    pub fn parsed(&self) -> usize {
        self.parsed
    }

    pub(super) fn begin(&mut self) {
        self.pass += 1;
        self.parsed = 0;
    }

    /// Drops entries that the load did not use.
    pub(super) fn end(&mut self) {
        let current = self.pass;
        self.files.retain(|_, (used, _)| *used == current);
        self.parsed_texts.retain(|_, (used, _)| *used == current);
        self.connections.retain(|_, (used, _)| *used == current);
    }

    /// Returns the fragments of a file, splitting it if it is new.
    pub(super) fn pieces(&mut self, key: Key, cut: impl FnOnce() -> SplitFile) -> Arc<SplitFile> {
        let (used, pieces) = (self.files.entry(key)).or_insert_with(|| (0, Arc::new(cut())));
        *used = self.pass;
        pieces.clone()
    }

    /// Returns the parsed text, parsing it if it is new.
    pub(super) fn entry(&mut self, key: Key, read: impl FnOnce() -> ParsedText) -> Arc<ParsedText> {
        if let Some((used, entry)) = self.parsed_texts.get_mut(&key) {
            *used = self.pass;
            return entry.clone();
        }
        self.parsed += 1;
        let entry = Arc::new(read());
        self.parsed_texts.insert(key, (self.pass, entry.clone()));
        entry
    }

    /// Drops all connections that were read with other plugin blocks.
    pub(super) fn use_instances(&mut self, instances: Key) {
        if self.instances != instances {
            self.instances = instances;
            self.connections.clear();
            self.public.clear();
        }
    }

    /// Drops the connections that were read with other local values.
    pub(super) fn use_locals(&mut self, locals: Key) {
        if self.locals != locals {
            self.locals = locals;
            self.connections
                .retain(|_, (_, settled)| !settled.uses_locals);
        }
    }

    /// Returns the cached connection of a text, if there is one.
    pub(super) fn connection(&mut self, key: &Key) -> Option<CachedConnection> {
        let (used, settled) = self.connections.get_mut(key)?;
        *used = self.pass;
        Some(settled.clone())
    }

    /// Keeps a connection in place of its syntax tree.
    pub(super) fn keep_connection(&mut self, key: Key, settled: CachedConnection) {
        self.parsed_texts.remove(&key);
        self.connections.insert(key, (self.pass, settled));
    }

    /// Returns the attributes of an instance whose values may be shown, as a cached connection
    /// found them.
    pub(super) fn public(&mut self, instance: &str) -> &mut BTreeSet<String> {
        self.public.entry(instance.to_owned()).or_default()
    }
}

/// Fragments of a file with their keys, and the problem of the file as a whole.
pub(super) type SplitFile = (Vec<(Key, Fragment)>, Option<Problem>);

/// Blocks of a text: one of a fragment in native syntax, all of a JSON file.
#[derive(Default)]
pub(super) struct ParsedText {
    pub(super) blocks: Vec<Parsed>,
    pub(super) broken: Option<Problem>,
}

/// Connection whose block does not depend on its position in the file.
#[derive(Clone)]
pub(super) struct CachedConnection {
    /// Line on which its text begins; the connection's own lines are relative to it.
    pub(super) line: u32,
    pub(super) connection: Arc<Connection>,
    /// Work that its values cost.
    pub(super) work: usize,
    /// Whether a value of it is computed from a local value.
    pub(super) uses_locals: bool,
}

impl CachedConnection {
    /// Returns the connection with its text moved to another line.
    pub(super) fn at_line(self, line: u32) -> Self {
        if self.line == line {
            return self;
        }
        let before = self.line;
        let Self {
            mut connection,
            work,
            uses_locals,
            ..
        } = self;
        let moved = Arc::make_mut(&mut connection);
        for at in [&mut moved.start_line, &mut moved.end_line] {
            *at = at.saturating_sub(before).saturating_add(line);
        }
        Self {
            line,
            connection,
            work,
            uses_locals,
        }
    }
}
