//! `spcd url`

use std::io::Write;
use std::process::ExitCode;

use super::UrlArgs;
use crate::cluster;
use crate::settings::Settings;

/// Prints the hub's URL: the configured one, or that of the private cluster. The latter contains the
/// password only if requested.
pub fn run(settings: &Settings, args: &UrlArgs) -> anyhow::Result<ExitCode> {
    let url = match &settings.database {
        Some(database) => database.expose().to_owned(),
        None if args.with_password => cluster::url_with_password(settings)?,
        None => cluster::url(settings)?,
    };
    writeln!(std::io::stdout(), "{url}")?;
    Ok(ExitCode::SUCCESS)
}
