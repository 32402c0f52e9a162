//! The daemon and its command line.

mod cli;
mod cluster;
mod config;
mod csv;
mod daemon;
mod files;
mod http;
mod hub;
mod service;
mod settings;
mod source;
mod telemetry;
mod tunnel;
mod watch;

fn main() -> std::process::ExitCode {
    cli::main()
}
