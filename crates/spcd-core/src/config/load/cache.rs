//! What was read before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::config::key::Key;
use crate::model::Connection;
use spcd_lang::block_splitter::Piece;
use spcd_lang::parse::Parsed;
use spcd_lang::syntax::Problem;

/// What the blocks said when they were read last, by their file and text.
///
/// A connection that is all right and whose block calls no function is kept as a whole, shared with
/// whoever has it. Of all other blocks only what was parsed is kept: what came from the environment
/// or a file may have changed.
#[derive(Default)]
pub struct Cache {
    files: HashMap<Key, (u64, Arc<Cut>)>,
    kept: HashMap<Key, (u64, Arc<Entry>)>,
    settled: HashMap<Key, (u64, Settled)>,
    /// What the plugin blocks say, on which those that are settled rest.
    instances: Key,
    /// Of each plugin instance: the attributes whose values may be shown.
    public: BTreeMap<String, BTreeSet<String>>,
    pass: u64,
    parsed: usize,
}

impl Cache {
    /// How many blocks the last pass had to parse.
    pub fn parsed(&self) -> usize {
        self.parsed
    }

    pub(super) fn begin(&mut self) {
        self.pass += 1;
        self.parsed = 0;
    }

    /// Forgets what the pass did not meet.
    pub(super) fn end(&mut self) {
        let current = self.pass;
        self.files.retain(|_, (used, _)| *used == current);
        self.kept.retain(|_, (used, _)| *used == current);
        self.settled.retain(|_, (used, _)| *used == current);
    }

    /// The pieces of a file, from memory if it was there before.
    pub(super) fn pieces(&mut self, key: Key, cut: impl FnOnce() -> Cut) -> Arc<Cut> {
        let (used, pieces) = (self.files.entry(key)).or_insert_with(|| (0, Arc::new(cut())));
        *used = self.pass;
        pieces.clone()
    }

    /// What a text says, from memory if it was there before.
    pub(super) fn entry(&mut self, key: Key, read: impl FnOnce() -> Entry) -> Arc<Entry> {
        if let Some((used, entry)) = self.kept.get_mut(&key) {
            *used = self.pass;
            return entry.clone();
        }
        self.parsed += 1;
        let entry = Arc::new(read());
        self.kept.insert(key, (self.pass, entry.clone()));
        entry
    }

    /// Forgets all connections that were read with other plugin blocks.
    pub(super) fn rest_on(&mut self, instances: Key) {
        if self.instances != instances {
            self.instances = instances;
            self.settled.clear();
            self.public.clear();
        }
    }

    /// The connection that a text is, if it was all right.
    pub(super) fn settled(&mut self, key: &Key) -> Option<Settled> {
        let (used, settled) = self.settled.get_mut(key)?;
        *used = self.pass;
        Some(settled.clone())
    }

    /// Keeps a connection instead of what was parsed.
    pub(super) fn settle(&mut self, key: Key, settled: Settled) {
        self.kept.remove(&key);
        self.settled.insert(key, (self.pass, settled));
    }

    /// The attributes of an instance whose values may be shown, as a settled connection found them.
    pub(super) fn public(&mut self, instance: &str) -> &mut BTreeSet<String> {
        self.public.entry(instance.to_owned()).or_default()
    }
}

/// A file's pieces with their keys, and what is wrong with the file as a whole.
pub(super) type Cut = (Vec<(Key, Piece)>, Option<Problem>);

/// The blocks of a text: one of a piece of native syntax, all of a JSON file.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) blocks: Vec<Parsed>,
    pub(super) broken: Option<Problem>,
}

/// A connection whose block says the same wherever the rest of its file goes.
#[derive(Clone)]
pub(super) struct Settled {
    /// The line on which its text begins; the connection's own lines are as of there.
    pub(super) line: u32,
    pub(super) connection: Arc<Connection>,
    /// What its values cost.
    pub(super) work: usize,
}

impl Settled {
    /// The same, its text beginning on another line.
    pub(super) fn moved(self, line: u32) -> Self {
        if self.line == line {
            return self;
        }
        let before = self.line;
        let Self {
            mut connection,
            work,
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
        }
    }
}
