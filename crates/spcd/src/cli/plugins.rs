//! `spcd plugins`

use std::io::Write as _;
use std::process::ExitCode;

use crate::config::Config;
use crate::gateway;
use crate::settings::Settings;

/// Prints the shipped definitions as text of a `.spc` file, and names the user's own.
pub fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut out = super::terminal::output(false);
    out.write_all(spcd_core::plugin::SHIPPED_TEXT.as_bytes())?;
    let loaded = Config::new(&settings.config_dirs, settings.extensions, false)
        .with_gateway(gateway::is_on(settings))
        .load();
    if !loaded.plugins.is_empty() {
        writeln!(out, "\n# Your own blocks:")?;
    }
    for block in &loaded.plugins {
        let error = block.error.as_deref().map(|error| format!(": {error}"));
        let error = error.unwrap_or_default();
        let (label, source) = (&block.label, &block.source);
        writeln!(
            out,
            "# plugin {label:?} ({source}), {}:{}{error}",
            block.file, block.start_line
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
