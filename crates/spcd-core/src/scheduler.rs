//! What is decided between passes: which sources are probed, and when a failed attempt is repeated.
//!
//! Time is handed in, in milliseconds since any moment.

mod backoff;
mod probes;

pub use backoff::Backoff;
pub use probes::{HealthBatch, MAX_WELL_PROBES, PROBES_PER_SECOND, ProbeScheduler, WatchedSource};

/// Returns why a source of `wrapper` is not asked while `count` of its sessions are stuck.
pub fn stuck_sessions(wrapper: &str, count: usize) -> String {
    let sessions = match count {
        0 => return "it is not asked: as many sources are asked as may be at a time".to_owned(),
        1 => "a session waits".to_owned(),
        count => format!("{count} sessions wait"),
    };
    format!(
        "it is not asked: {sessions} in {wrapper} for sources that do not answer, which cannot be \
         stopped while it connects"
    )
}
