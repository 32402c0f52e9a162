//! Keys of the caches.

use sha2::{Digest as _, Sha256};

/// Hash of a text and its file, or of another text that identifies a result.
pub(super) type Key = [u8; 16];

pub(super) fn key<'p>(parts: impl IntoIterator<Item = &'p str>) -> Key {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut key = Key::default();
    key.iter_mut()
        .zip(hash.finalize())
        .for_each(|(to, from)| *to = from);
    key
}
