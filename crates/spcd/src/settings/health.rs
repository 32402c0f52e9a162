//! Flags and variables for the block `health` of `spcd.hcl`.

use anyhow::Context as _;
use clap::Args;
use spcd_core::health::ProbeOptions;

/// Default options of probes. Connections and plugin blocks may override them.
#[derive(Debug, Clone, Default, Args)]
pub struct HealthFlags {
    /// Whether sources are probed (true, false)
    #[arg(long, env = "SPCD_HEALTH_ENABLED", value_name = "BOOL", global = true)]
    #[arg(hide_short_help = true)]
    health_enabled: Option<String>,
    /// Interval between two probes of a source [default: 30s]
    #[arg(long, env = "SPCD_HEALTH_INTERVAL", value_name = "TIME", global = true)]
    #[arg(hide_short_help = true)]
    health_interval: Option<String>,
    /// Number of further attempts after a failed probe, before the next interval [default: 3]
    #[arg(
        long,
        env = "SPCD_HEALTH_ATTEMPTS",
        value_name = "NUMBER",
        global = true
    )]
    #[arg(hide_short_help = true)]
    health_attempts: Option<String>,
    /// Pause before the first of these attempts; doubled after each [default: 5s]
    #[arg(long, env = "SPCD_HEALTH_PAUSE", value_name = "TIME", global = true)]
    #[arg(hide_short_help = true)]
    health_pause: Option<String>,
    /// Time limit of a probe [default: 10s]
    #[arg(long, env = "SPCD_HEALTH_TIMEOUT", value_name = "TIME", global = true)]
    #[arg(hide_short_help = true)]
    health_timeout: Option<String>,
}

impl HealthFlags {
    /// Returns the given options.
    ///
    /// # Errors
    /// An invalid value.
    pub fn options(&self) -> anyhow::Result<ProbeOptions> {
        let mut options = ProbeOptions::default();
        for (name, text) in [
            ("enabled", &self.health_enabled),
            ("interval", &self.health_interval),
            ("attempts", &self.health_attempts),
            ("pause", &self.health_pause),
            ("timeout", &self.health_timeout),
        ] {
            if let Some(text) = text.as_deref().filter(|text| !text.trim().is_empty()) {
                let origin = || format!("--health-{name} or SPCD_HEALTH_{}", name.to_uppercase());
                options.set(name, text).with_context(origin)?;
            }
        }
        Ok(options)
    }
}
