//! Flags and variables for the block `hub` of `spcd.hcl`.

use clap::Args;
use spcd_core::config::{HubOverrides, hub_value};

/// Flags, which clap also reads from the environment.
#[derive(Debug, Clone, Default, Args)]
pub struct HubFlags {
    /// Number of sessions that all short statements share
    #[arg(long = "hub-pool-size", env = "SPCD_HUB_POOL_SIZE", value_name = "NUMBER",
          value_parser = |text: &str| value("pool_size", text), global = true, hide_short_help = true)]
    pool_size: Option<OptionalSetting>,
    /// Number of sessions that write [default: as many as raise the throughput]
    #[arg(long = "hub-writers", env = "SPCD_HUB_WRITERS", value_name = "NUMBER",
          value_parser = |text: &str| value("writers", text), global = true, hide_short_help = true)]
    writers: Option<OptionalSetting>,
    /// Interval of a statement on idle sessions (60s)
    #[arg(long = "hub-keepalive", env = "SPCD_HUB_KEEPALIVE", value_name = "TIME",
          value_parser = |text: &str| value("keepalive", text), global = true, hide_short_help = true)]
    keepalive: Option<OptionalSetting>,
    /// Time limit of a statement of the daemon (5m; 0: none)
    #[arg(long = "hub-statement-timeout", env = "SPCD_HUB_STATEMENT_TIMEOUT", value_name = "TIME",
          value_parser = |text: &str| value("statement_timeout", text), global = true, hide_short_help = true)]
    statement_timeout: Option<OptionalSetting>,
    /// Time limit of a write's wait for a table in use (500ms)
    #[arg(long = "hub-lock-timeout", env = "SPCD_HUB_LOCK_TIMEOUT", value_name = "TIME",
          value_parser = |text: &str| value("lock_timeout", text), global = true, hide_short_help = true)]
    lock_timeout: Option<OptionalSetting>,
    /// First pause before reconnecting to a lost database (100ms)
    #[arg(long = "hub-backoff-min", env = "SPCD_HUB_BACKOFF_MIN", value_name = "TIME",
          value_parser = |text: &str| value("backoff_min", text), global = true, hide_short_help = true)]
    backoff_min: Option<OptionalSetting>,
    /// Longest pause before reconnecting (10s)
    #[arg(long = "hub-backoff-max", env = "SPCD_HUB_BACKOFF_MAX", value_name = "TIME",
          value_parser = |text: &str| value("backoff_max", text), global = true, hide_short_help = true)]
    backoff_max: Option<OptionalSetting>,
    /// Time without an answer after which another gateway takes over the lanes of one (60s)
    #[arg(long = "hub-gateway-patience", env = "SPCD_HUB_GATEWAY_PATIENCE", value_name = "TIME",
          value_parser = |text: &str| value("gateway_patience", text), global = true, hide_short_help = true)]
    gateway_patience: Option<OptionalSetting>,
}

/// A given value; `None` if the text is empty, which counts as unset.
#[derive(Debug, Clone, Copy)]
struct OptionalSetting(Option<u64>);

impl HubFlags {
    /// Returns the given values, by name.
    pub fn given(&self) -> HubOverrides {
        [
            ("pool_size", self.pool_size),
            ("writers", self.writers),
            ("keepalive", self.keepalive),
            ("statement_timeout", self.statement_timeout),
            ("lock_timeout", self.lock_timeout),
            ("backoff_min", self.backoff_min),
            ("backoff_max", self.backoff_max),
            ("gateway_patience", self.gateway_patience),
        ]
        .into_iter()
        .filter_map(|(name, given)| Some((name, given?.0?)))
        .collect()
    }
}

fn value(name: &str, text: &str) -> Result<OptionalSetting, String> {
    match text.trim() {
        "" => Ok(OptionalSetting(None)),
        text => hub_value(name, text).map(|value| OptionalSetting(Some(value))),
    }
}
