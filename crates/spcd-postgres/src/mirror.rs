//! Mirrors: reads the lists of their sources, and records them in the hub.

mod identity;
mod record;
mod source;

pub use identity::{HubIdentity, identify};
pub use record::{Following, following, forget_stale, read, write};
pub use source::{Reader, SourceError};
