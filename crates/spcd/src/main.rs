//! The daemon and its command line.

// Until the commands that use them are there.
#![allow(dead_code)]

mod cli;
mod cluster;
mod config;
mod csv;
mod daemon;
mod files;
mod hub;
mod service;
mod settings;
mod telemetry;
mod watch;

fn main() -> std::process::ExitCode {
    cli::main()
}
