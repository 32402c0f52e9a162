//! What is decided between passes: when a failed attempt is repeated.
//!
//! Time is handed in, in milliseconds since any moment.

mod backoff;

pub use backoff::Backoff;
