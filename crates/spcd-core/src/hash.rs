//! Hashes by which things are recognised: 128 bits of SHA-256, as text.

use sha2::{Digest, Sha256};

/// Takes one part after the other.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    /// A part; where it ends counts too.
    pub(crate) fn put(&mut self, part: &str) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part.as_bytes());
    }

    /// The hash of all parts.
    pub(crate) fn finish(self) -> String {
        let bytes = self.0.finalize();
        bytes[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// The hash of some parts.
pub(crate) fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Hasher::default();
    parts.into_iter().for_each(|part| hasher.put(part));
    hasher.finish()
}
