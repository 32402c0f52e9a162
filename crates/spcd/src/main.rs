//! The daemon and its command line.

mod cli;
mod cluster;
mod config;
mod daemon;
mod files;
mod gateway;
mod gateway_link;
mod http;
mod mirror;
mod service;
mod settings;
mod source;
mod telemetry;
mod tunnel;
mod watch;

fn main() -> std::process::ExitCode {
    cli::main()
}
