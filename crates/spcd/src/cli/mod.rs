//! The command line: one file per command, with `run(&Settings, Args) -> Result<ExitCode>`.

// First: its macros shadow those of the standard library in the modules below.
#[macro_use]
mod terminal;

mod adopt;
mod apply;
mod check;
mod completions;
mod destroy;
mod doctor;
mod events;
mod follow;
mod health;
mod man;
mod migrate;
mod plan;
mod plugins;
mod query;
mod reconnect;
mod rotate_gateway;
mod run;
mod status;
mod test;
mod url;
mod wait;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use spcd_core::duration;
use tokio_postgres::error::SqlState;

use crate::cluster;
use crate::settings::{Flags, Settings, SettingsError};
use crate::telemetry;
use spcd_postgres::HubError;
use spcd_postgres::connection::{Endpoint, wait_until_closed};

/// EX_USAGE of sysexits.h.
const USAGE: u8 = 64;

/// Keeps the foreign schemas of a Postgres database in line with a directory of .spc files
#[derive(Debug, Parser)]
#[command(
    name = "spcd",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run(RunArgs),
    /// Read the files and print every diagnostic; needs no database
    Check(CheckArgs),
    /// Show what a pass would do; writes nothing
    Plan(PlanArgs),
    /// Run one pass
    Apply(ApplyArgs),
    /// Show the state of every connection
    Status(StatusArgs),
    /// Show the events of connections, the latest last
    Events(EventsArgs),
    /// Wait until connections are settled
    Wait(WaitArgs),
    /// Import the tables again
    Refresh(RefreshArgs),
    /// Try connections now, also those that failed or were disconnected
    Reconnect(ReconnectArgs),
    /// Pause connections until `reconnect`; their tables stay
    Disconnect(ReconnectArgs),
    /// Import connections again whose wrapper crashed its server process
    Retry(ReconnectArgs),
    /// Change the password of the hub's role in the gateway
    RotateGateway,
    /// Run SQL, waiting for connections that are not loaded yet
    Query(QueryArgs),
    /// Probe one source: latency, server version, table count
    Test(TestArgs),
    /// Print the hub's URL, for psql and other clients
    Url(UrlArgs),
    /// Show the plugin definitions
    Plugins,
    /// Migrate spcd's own schema in the database
    Migrate,
    /// Adopt an existing schema or server
    Adopt(AdoptArgs),
    /// Remove everything that spcd created, after showing it
    Destroy(DestroyArgs),
    /// Check this machine and the database, and print how to fix them
    Doctor,
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man(ManArgs),
}

/// `spcd run`
#[derive(Debug, Args)]
pub struct RunArgs {}

/// `spcd check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Files or directories [default: the config directories]
    pub paths: Vec<PathBuf>,
    /// Do not evaluate env(), file() and credential(), for a machine without their values
    #[arg(long, env = "SPCD_OFFLINE", value_parser = FalseyValueParser::new())]
    pub offline: bool,
    /// Print one JSON object
    #[arg(long, env = "SPCD_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// Print values, secrets included
    #[arg(long)]
    pub show_values: bool,
}

/// `spcd plan`
#[derive(Debug, Clone, Copy, Args)]
pub struct PlanArgs {
    /// Show what switching to these config directories would change
    #[arg(long)]
    pub adopt_config: bool,
    /// Import from the sources too, and show what their answers would change
    #[arg(long, env = "SPCD_REFRESH", value_parser = FalseyValueParser::new())]
    pub refresh: bool,
    /// Print the statements
    #[arg(long, env = "SPCD_SQL", value_parser = FalseyValueParser::new(), conflicts_with = "json")]
    pub sql: bool,
    /// Print one JSON object
    #[arg(long, env = "SPCD_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
}

/// `spcd apply`
#[derive(Debug, Default, Clone, Copy, Args)]
pub struct ApplyArgs {
    /// Import all tables again
    #[arg(long, env = "SPCD_FORCE", value_parser = FalseyValueParser::new())]
    pub force: bool,
    /// Remove the connections of missing files and config directories
    #[arg(long)]
    pub allow_empty: bool,
    /// Switch to these config directories: remove what only the previous ones contain
    #[arg(long)]
    pub adopt_config: bool,
    /// Also drop other roles' views on connections that are to be removed
    #[arg(long)]
    pub drop_dependents: bool,
}

/// `spcd status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Connections [default: all]
    pub names: Vec<String>,
    /// Only connections with this label; may be repeated
    #[arg(long = "label", value_name = "NAME=TEXT", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Keep running and show changes as they happen
    #[arg(long, env = "SPCD_WATCH", value_parser = FalseyValueParser::new())]
    pub watch: bool,
    /// Print an array of the table's rows
    #[arg(long, env = "SPCD_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
}

/// `spcd url`
#[derive(Debug, Args)]
pub struct UrlArgs {
    /// Put the private cluster's password into the URL, for drivers that read no password file
    #[arg(long)]
    pub with_password: bool,
}

/// `spcd events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Connections [default: all]
    pub names: Vec<String>,
    /// Events of this period [default: the latest 100] (30m, 12h)
    #[arg(long, value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Print an array of the table's rows
    #[arg(long, env = "SPCD_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
}

/// `spcd wait`
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Connections [default: all]
    pub names: Vec<String>,
    /// How long to wait at most (500ms, 60s, 5m, 1h)
    #[arg(long, env = "SPCD_TIMEOUT", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// `spcd refresh`
#[derive(Debug, Args)]
pub struct RefreshArgs {
    /// Connections [default: all]
    pub names: Vec<String>,
    /// Wait until they are settled
    #[arg(long, env = "SPCD_WAIT", value_parser = FalseyValueParser::new())]
    pub wait: bool,
    /// How long to wait at most (500ms, 60s, 5m, 1h)
    #[arg(long, env = "SPCD_TIMEOUT", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// `spcd reconnect`, `spcd disconnect` and `spcd retry`
#[derive(Debug, Args)]
pub struct ReconnectArgs {
    /// Connections
    #[arg(required = true)]
    pub names: Vec<String>,
    /// How long to wait for the daemon at most (500ms, 60s, 5m, 1h)
    #[arg(long, env = "SPCD_TIMEOUT", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// `spcd query`
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// The statements [default: on a terminal, start a shell]
    pub sql: Option<String>,
    /// Read the statements from a file (- for standard input)
    #[arg(short, long, conflicts_with = "sql")]
    pub file: Option<PathBuf>,
    /// Format of the results
    #[arg(long, env = "SPCD_OUTPUT", value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// How long to wait for connections at most (500ms, 60s, 5m, 1h)
    #[arg(long, env = "SPCD_TIMEOUT", default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Output format of `query`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns
    Table,
    /// An array of objects
    Json,
    /// Comma-separated, with a header
    Csv,
    /// One line per value
    Line,
}

/// `spcd test`
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The connection
    pub name: String,
    /// A file that contains its block, instead of the config directories
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `spcd adopt`
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The connection
    pub name: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// `spcd destroy`
#[derive(Debug, Args)]
pub struct DestroyArgs {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// `spcd completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `spcd man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory, which must exist
    pub dir: PathBuf,
}

/// Parses the arguments, runs the command and returns its exit code. The only place that prints errors
/// and their causes.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap also returns help and version as errors.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match start(cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<SettingsError>() {
                // The report escapes what it quotes. Its own colours must reach the terminal.
                Some(error) => {
                    terminal::control_stderr(&error.report(std::io::stderr().is_terminal()));
                }
                None => eprintln!("spcd: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn start(mut cli: Cli) -> anyhow::Result<ExitCode> {
    cli.flags.offline = matches!(&cli.command, Command::Check(args) if args.offline);
    let settings = Settings::load(cli.flags)?;
    if !matches!(cli.command, Command::Completions(_) | Command::Man(_)) {
        cluster::become_its_user(&settings)?;
    }
    let is_daemon = matches!(cli.command, Command::Run(_));
    telemetry::start(settings.log.as_deref(), is_daemon);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(dispatch(&settings, cli.command))
}

async fn dispatch(settings: &Settings, command: Command) -> anyhow::Result<ExitCode> {
    // Commands use the private cluster of the daemon, or start it while they run.
    if let (Command::Wait(args), None) = (&command, &settings.database) {
        cluster::wait_until_created(settings, args.timeout).await;
    }
    let cluster = match command.cluster_use() {
        _ if settings.database.is_some() => None,
        ClusterUse::Start if cluster::exists(settings) => Some(cluster::join(settings).await?),
        ClusterUse::Create => Some(cluster::join(settings).await?),
        ClusterUse::Start | ClusterUse::Own => None,
    };
    let outcome = run(settings, command).await;
    wait_until_closed().await;
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    outcome
}

async fn run(settings: &Settings, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Url(args) => url::run(settings, &args),
        Command::Run(_) => run::run(settings).await.map_err(missing_rights),
        Command::Check(args) => check::run(settings, &args),
        Command::Plan(args) => plan::run(settings, args).await,
        Command::Apply(args) => apply::run(settings, args).await.map_err(missing_rights),
        Command::Status(args) => status::run(settings, args).await,
        Command::Events(args) => events::run(settings, args).await,
        Command::Wait(args) => wait::wait(settings, args).await,
        Command::Refresh(args) => wait::refresh(settings, args).await,
        Command::Query(args) => query::run(settings, args).await,
        Command::Reconnect(args) => reconnect::reconnect(settings, args).await,
        Command::Disconnect(args) => reconnect::disconnect(settings, args).await,
        Command::Retry(args) => reconnect::retry(settings, args).await,
        Command::RotateGateway => rotate_gateway::run(settings).await,
        Command::Test(args) => test::run(settings, args).await,
        Command::Plugins => plugins::run(settings),
        Command::Migrate => migrate::run(settings).await.map_err(missing_rights),
        Command::Adopt(args) => adopt::run(settings, args).await,
        Command::Destroy(args) => destroy::run(settings, args).await,
        Command::Doctor => doctor::run(settings).await,
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(&args),
    }
}

/// Adds a hint to `spcd doctor` if the role lacks privileges.
fn missing_rights(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(HubError::StatementFailed { code, .. })
            if *code == SqlState::INSUFFICIENT_PRIVILEGE =>
        {
            anyhow!("{error:#}; `spcd doctor` shows the missing privileges and how to grant them")
        }
        _ => error,
    }
}

/// How a command uses the private cluster.
enum ClusterUse {
    /// Starts it; creates it if it does not exist.
    Create,
    /// Starts it if it exists: before a daemon has created it there is nothing to show.
    Start,
    /// Starts it itself if necessary, or needs no database.
    Own,
}

impl Command {
    fn cluster_use(&self) -> ClusterUse {
        match self {
            Self::Plan(_)
            | Self::Apply(_)
            | Self::Query(_)
            | Self::Test(_)
            | Self::Migrate
            | Self::Adopt(_) => ClusterUse::Create,
            Self::Events(_)
            | Self::Status(_)
            | Self::Wait(_)
            | Self::Refresh(_)
            | Self::Reconnect(_)
            | Self::Retry(_)
            | Self::Disconnect(_) => ClusterUse::Start,
            Self::Doctor
            | Self::RotateGateway
            | Self::Destroy(_)
            | Self::Run(_)
            | Self::Check(_)
            | Self::Url(_)
            | Self::Plugins
            | Self::Completions(_)
            | Self::Man(_) => ClusterUse::Own,
        }
    }
}

/// Returns the endpoint of the hub: `--database`, or the running private cluster.
fn endpoint(settings: &Settings) -> anyhow::Result<Endpoint> {
    Ok(match &settings.database {
        Some(database) => Endpoint::parse(database)?,
        None => cluster::endpoint(settings)?,
    })
}

/// Returns the endpoint of the hub. The private cluster is started temporarily if no daemon runs it.
async fn hub(settings: &Settings) -> anyhow::Result<(Endpoint, Option<cluster::Running>)> {
    let running = match settings.database {
        Some(_) => None,
        None => Some(cluster::join(settings).await?),
    };
    Ok((endpoint(settings)?, running))
}

/// Asks for confirmation on the terminal.
fn confirm(question: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    anyhow::ensure!(
        std::io::stdout().is_terminal() && input.is_terminal(),
        "standard input or output is not a terminal; pass --yes to go ahead"
    );
    print!("{question} Type yes: ");
    std::io::Write::flush(&mut std::io::stdout())?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Whether the error is a closed pipe, as after `spcd status | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Parses `name=text`.
fn parse_label(text: &str) -> Result<(String, String), String> {
    let (name, value) = (text.split_once('=')).ok_or("write name=text, as in team=data")?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    duration::milliseconds(text)
        .map(Duration::from_millis)
        .ok_or("write a whole number and a unit: 500ms, 60s, 5m, 1h, 1d")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
