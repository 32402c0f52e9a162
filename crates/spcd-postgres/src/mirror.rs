//! Mirrors: what their sources list, and what the hub has recorded of it.

mod identity;
mod record;
mod source;

pub use identity::{HubIdentity, identify};
pub use record::{Following, following, forget_stale, read, write};
pub use source::{Reader, SourceError};
