//! Flags and variables for the block `hub` of `spcd.hcl`.

use clap::Args;
use spcd_core::config::{HubOverrides, hub_value};

/// Clap fills them from the environment too.
#[derive(Debug, Clone, Default, Args)]
pub struct HubFlags {
    /// How many sessions all short work on the database shares
    #[arg(long = "hub-pool-size", env = "SPCD_HUB_POOL_SIZE", value_name = "NUMBER",
          value_parser = |text: &str| value("pool_size", text), global = true, hide_short_help = true)]
    pool_size: Option<Given>,
    /// How often an idle session is spoken to (60s)
    #[arg(long = "hub-keepalive", env = "SPCD_HUB_KEEPALIVE", value_name = "TIME",
          value_parser = |text: &str| value("keepalive", text), global = true, hide_short_help = true)]
    keepalive: Option<Given>,
    /// How long one statement of the daemon may take (5m; 0: as long as it wants)
    #[arg(long = "hub-statement-timeout", env = "SPCD_HUB_STATEMENT_TIMEOUT", value_name = "TIME",
          value_parser = |text: &str| value("statement_timeout", text), global = true, hide_short_help = true)]
    statement_timeout: Option<Given>,
    /// How long a write waits for a table that is in use (500ms)
    #[arg(long = "hub-lock-timeout", env = "SPCD_HUB_LOCK_TIMEOUT", value_name = "TIME",
          value_parser = |text: &str| value("lock_timeout", text), global = true, hide_short_help = true)]
    lock_timeout: Option<Given>,
    /// The pause before a database that went away is tried again (100ms)
    #[arg(long = "hub-backoff-min", env = "SPCD_HUB_BACKOFF_MIN", value_name = "TIME",
          value_parser = |text: &str| value("backoff_min", text), global = true, hide_short_help = true)]
    backoff_min: Option<Given>,
    /// The longest such pause (10s)
    #[arg(long = "hub-backoff-max", env = "SPCD_HUB_BACKOFF_MAX", value_name = "TIME",
          value_parser = |text: &str| value("backoff_max", text), global = true, hide_short_help = true)]
    backoff_max: Option<Given>,
    /// How long one of several gateways may be away before its lanes are made on another (60s)
    #[arg(long = "hub-gateway-patience", env = "SPCD_HUB_GATEWAY_PATIENCE", value_name = "TIME",
          value_parser = |text: &str| value("gateway_patience", text), global = true, hide_short_help = true)]
    gateway_patience: Option<Given>,
}

/// A value; `None` if the text is empty, which counts as unset.
#[derive(Debug, Clone, Copy)]
struct Given(Option<u64>);

impl HubFlags {
    /// Returns the given values, by name.
    pub fn given(&self) -> HubOverrides {
        [
            ("pool_size", self.pool_size),
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

fn value(name: &str, text: &str) -> Result<Given, String> {
    match text.trim() {
        "" => Ok(Given(None)),
        text => hub_value(name, text).map(|value| Given(Some(value))),
    }
}
