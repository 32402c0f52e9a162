//! Hashes for comparison: 128 bits of SHA-256, as hexadecimal text.

use sha2::{Digest, Sha256};

/// Incremental hash of a list of texts.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    /// Adds a part; the boundary between parts is hashed too.
    pub(crate) fn put(&mut self, part: &str) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part.as_bytes());
    }

    /// Returns the hash of all parts.
    pub(crate) fn finish(self) -> String {
        let bytes = self.0.finalize();
        bytes[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Returns the hash of a list of parts.
pub(crate) fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Hasher::default();
    parts.into_iter().for_each(|part| hasher.put(part));
    hasher.finish()
}
