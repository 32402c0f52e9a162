//! The interactive shell: multi-line statements, history and meta-commands.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustyline::Editor;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use spcd_client::{Client, Error, statements};
use tokio_postgres::error::SqlState;

use super::completion::Completions;
use super::meta::{self, MetaCommand};
use super::{Cancel, Failure, ProgressLine, describe, execute, refresh_and_wait, tag};
use crate::cli::Output;
use crate::settings::Settings;

/// Reads and runs statements until the end of input.
pub async fn run(
    settings: &Settings,
    mut client: Client,
    cancel: Cancel,
    progress: ProgressLine,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut editor: Editor<Completions, FileHistory> = Editor::new()?;
    editor.set_helper(Some(Completions::default()));
    let history = history(settings);
    // A missing or unreadable history counts as empty.
    let _ = editor.load_history(&history);
    let mut shell = Shell {
        cancel,
        progress,
        output,
        before_expanded: output,
        timing: false,
    };
    let mut text = String::new();
    loop {
        if text.is_empty()
            && let Some(completions) = editor.helper_mut()
        {
            completions.refresh(&mut client).await;
        }
        let prompt = if text.is_empty() { "spcd> " } else { "   -> " };
        let line = match tokio::task::block_in_place(|| editor.readline(prompt)) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                text.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        let trimmed = line.trim();
        if text.is_empty() && (trimmed.starts_with('\\') || trimmed.starts_with('.')) {
            let _ = editor.add_history_entry(trimmed);
            if !shell.meta_command(&mut client, trimmed).await? {
                break;
            }
            continue;
        }
        text.push_str(&line);
        text.push('\n');
        let split = statements(&text);
        if split.complete.is_empty() {
            if split.rest.is_empty() {
                text.clear();
            }
            continue;
        }
        let whole: Vec<String> = split.complete.iter().map(|sql| (*sql).to_owned()).collect();
        let rest = split.rest.to_owned();
        for sql in whole {
            let _ = editor.add_history_entry(format!("{sql};"));
            if !shell.run(&mut client, &sql).await? {
                break;
            }
        }
        text = rest;
    }
    if let Some(dir) = history.parent() {
        // The statements have run: a history that cannot be saved is no error.
        let _ = std::fs::create_dir_all(dir);
        let _ = editor.save_history(&history);
    }
    Ok(ExitCode::SUCCESS)
}

/// Maximum time for which a failed statement waits until the daemon has read the files.
const WAIT: Duration = Duration::from_secs(60);

/// Whether a statement outside a transaction failed because a table or schema does not exist.
fn is_missing(error: &Error) -> bool {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    matches!(error, Error::Database(_)) && error.code().is_some_and(|code| missing.contains(code))
}

struct Shell {
    cancel: Cancel,
    progress: ProgressLine,
    output: Output,
    /// The format that `\x` returns to.
    before_expanded: Output,
    timing: bool,
}

impl Shell {
    /// Runs a statement and prints its result or error. Returns false after an error.
    async fn run(&mut self, client: &mut Client, sql: &str) -> io::Result<bool> {
        let begun = Instant::now();
        let mut out = super::output(self.output);
        let mut outcome = execute(client, &self.cancel, sql, self.output, &mut out).await;
        // The daemon may not have read a file that was just saved.
        if let Err(Failure::Statement(error)) = &outcome
            && is_missing(error)
            // Several statements may have committed a part.
            && !matches!(tag(sql, 0).as_str(), "CALL" | "DO")
            && refresh_and_wait(client, sql, WAIT).await
        {
            outcome = execute(client, &self.cancel, sql, self.output, &mut out).await;
        }
        self.progress.clear();
        out.flush()?;
        let ok = match outcome {
            Ok(()) => true,
            Err(Failure::Statement(error)) => {
                eprintln!("{}", describe(&error, sql));
                false
            }
            Err(Failure::Interrupted) => {
                eprintln!("stopped waiting");
                false
            }
            Err(Failure::Output(error)) => return Err(error),
        };
        if self.timing {
            writeln!(
                out,
                "Time: {:.3} ms",
                begun.elapsed().as_secs_f64() * 1000.0
            )?;
        }
        Ok(ok)
    }

    /// Runs a meta-command. Returns false to leave the shell.
    async fn meta_command(&mut self, client: &mut Client, line: &str) -> anyhow::Result<bool> {
        match meta::parse(line) {
            MetaCommand::Quit => return Ok(false),
            MetaCommand::Help => println!("{}", meta::HELP),
            MetaCommand::ToggleExpanded => self.toggle_expanded(),
            MetaCommand::ToggleTiming => {
                self.timing = !self.timing;
                println!("Timing is {}.", on_or_off(self.timing));
            }
            MetaCommand::SetOutput(output) => self.output = output,
            MetaCommand::SetSearchPath(names) => {
                if let Err(error) = client.set_search_path(Some(&names)).await {
                    eprintln!("{}", describe(&error, ""));
                }
            }
            MetaCommand::Query(sql) => drop(self.run(client, &sql).await?),
            MetaCommand::Describe(pattern) => {
                if any_relation(client, pattern).await {
                    self.run(client, &meta::columns(pattern)).await?;
                } else {
                    eprintln!("Did not find any relation named \"{pattern}\".");
                }
            }
            MetaCommand::Unusable(usage) => eprintln!("{usage}"),
            MetaCommand::Unknown(name) => {
                eprintln!("unknown command {name}; .help lists the commands");
            }
        }
        Ok(true)
    }

    fn toggle_expanded(&mut self) {
        let expanded = self.output != Output::Line;
        if expanded {
            self.before_expanded = self.output;
            self.output = Output::Line;
        } else {
            self.output = match self.before_expanded {
                Output::Line => Output::Table,
                output => output,
            };
        }
        println!("Expanded display is {}.", on_or_off(expanded));
    }
}

/// Returns whether a pattern matches a relation. True if the query fails.
async fn any_relation(client: &mut Client, pattern: &str) -> bool {
    let Ok(session) = client.session().await else {
        return true;
    };
    let found = session.query_opt(&meta::any_relation(pattern), &[]).await;
    !matches!(found, Ok(None))
}

fn on_or_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// Returns the history file: below `$XDG_STATE_HOME` or `~/.local/state`, else in the state
/// directory.
fn history(settings: &Settings) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let xdg = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    xdg.or_else(|| home.map(|home| home.join(".local/state")))
        .map_or_else(|| settings.state_dir.clone(), |dir| dir.join("spcd"))
        .join("history")
}
