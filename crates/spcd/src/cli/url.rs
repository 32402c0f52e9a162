//! `spcd url`

use std::io::Write;
use std::process::ExitCode;

use crate::cluster;
use crate::settings::Settings;

/// Prints the hub's URL: as it was given, or the private cluster's, whose password stays in its
/// file.
pub fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let url = match &settings.database {
        Some(database) => database.expose().to_owned(),
        None => cluster::url(settings)?,
    };
    writeln!(std::io::stdout(), "{url}")?;
    Ok(ExitCode::SUCCESS)
}
