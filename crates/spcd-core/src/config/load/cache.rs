//! What was parsed before.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::spc::parse::Parsed;
use crate::spc::syntax::Problem;

/// Blocks that were parsed before, by their text. Values are never kept: what came from the
/// environment or a file may have changed.
#[derive(Default)]
pub struct Cache {
    kept: HashMap<Key, (u64, Arc<Entry>)>,
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
        self.kept.retain(|_, (used, _)| *used == current);
    }

    /// What a text says, from memory if it was there before.
    pub(super) fn entry(&mut self, text: &str, read: impl FnOnce() -> Entry) -> Arc<Entry> {
        let digest = Sha256::digest(text.as_bytes());
        let mut key: Key = [0; 16];
        key.iter_mut()
            .zip(digest.iter())
            .for_each(|(to, from)| *to = *from);
        if let Some((used, entry)) = self.kept.get_mut(&key) {
            *used = self.pass;
            return entry.clone();
        }
        self.parsed += 1;
        let entry = Arc::new(read());
        self.kept.insert(key, (self.pass, entry.clone()));
        entry
    }
}

type Key = [u8; 16];

/// The blocks of a text: one of a piece of native syntax, all of a JSON file.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) blocks: Vec<Parsed>,
    pub(super) broken: Option<Problem>,
}
