//! `spcd completions`

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;

use super::{Cli, CompletionsArgs};

/// Prints a shell's completions.
pub fn run(args: CompletionsArgs) -> anyhow::Result<ExitCode> {
    // Generated in memory: the generator panics on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "spcd", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
