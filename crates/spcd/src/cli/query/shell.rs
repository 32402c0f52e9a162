//! The shell: statements over several lines, history, completion, and the commands that users of
//! psql and Steampipe know.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};
use spcd_client::{Client, Error, statements};
use tokio_postgres::error::SqlState;

use super::{Cancel, Failure, Progress, describe, execute, look, tag};
use crate::cli::Output;
use crate::settings::Settings;

const HELP: &str = "\
  \\d [PATTERN]     tables, or a table's columns     .inspect PATTERN
  \\dt [PATTERN]    tables                           .tables [CONNECTION]
  \\dv [PATTERN]    views                            .views [CONNECTION]
  \\dn [PATTERN]    schemas                          .connections
  \\l, \\du          databases, roles                 .search_path [NAME,…]
  \\conninfo        where this is
  \\x               a line for each value, or not    .output table|json|csv|line
  \\timing          how long statements take         .help
  \\q               leave (or Ctrl-D)                .quit
Statements end with a semicolon. A pattern is CONNECTION, TABLE or CONNECTION.TABLE, with * and ?.";

/// Schemas that people did not configure.
const INNER: &str = "('pg_catalog', 'information_schema', 'spcd', 'spcd_union', 'spcd_type', 'spcd_lock', 'steampipe_internal')";

/// Reads statements until the end.
pub async fn run(
    settings: &Settings,
    mut client: Client,
    cancel: Cancel,
    progress: Progress,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut editor: Editor<Words, FileHistory> = Editor::new()?;
    editor.set_helper(Some(Words::default()));
    let history = history(settings);
    // None yet, or not to be read: then there is none.
    let _ = editor.load_history(&history);
    let mut shell = Shell {
        cancel,
        progress,
        output,
        last: output,
        timing: false,
    };
    let mut text = String::new();
    loop {
        if text.is_empty()
            && let Some(words) = editor.helper_mut()
        {
            words.learn(&mut client).await;
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
            if !shell.command(&mut client, trimmed).await? {
                break;
            }
            continue;
        }
        text.push_str(&line);
        text.push('\n');
        let cut = statements(&text);
        if cut.complete.is_empty() {
            if cut.rest.is_empty() {
                text.clear();
            }
            continue;
        }
        let whole: Vec<String> = cut.complete.iter().map(|sql| (*sql).to_owned()).collect();
        let rest = cut.rest.to_owned();
        for sql in whole {
            let _ = editor.add_history_entry(format!("{sql};"));
            if !shell.run(&mut client, &sql).await? {
                break;
            }
        }
        text = rest;
    }
    if let Some(dir) = history.parent() {
        // A history that cannot be kept is no reason to fail.
        let _ = std::fs::create_dir_all(dir);
        let _ = editor.save_history(&history);
    }
    Ok(ExitCode::SUCCESS)
}

/// How long a statement waits for a look at the files.
const WAIT: Duration = Duration::from_secs(60);

/// Whether a statement failed because a table or schema is not there, outside a transaction that it
/// ended by that.
fn is_missing(error: &Error) -> bool {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    matches!(error, Error::Database(_)) && error.code().is_some_and(|code| missing.contains(code))
}

struct Shell {
    cancel: Cancel,
    progress: Progress,
    output: Output,
    /// What `\x` goes back to.
    last: Output,
    timing: bool,
}

impl Shell {
    /// Runs a statement and shows its result or its error; false after an error.
    async fn run(&mut self, client: &mut Client, sql: &str) -> io::Result<bool> {
        let begun = Instant::now();
        let mut out = super::output(self.output);
        let mut outcome = execute(client, &self.cancel, sql, self.output, &mut out).await;
        // What was saved a moment ago may not be known yet: a look at the files tells.
        if let Err(Failure::Statement(error)) = &outcome
            && is_missing(error)
            // Part of these may have happened.
            && !matches!(tag(sql, 0).as_str(), "CALL" | "DO")
            && look(client, sql, WAIT).await
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
                eprintln!("not waited for any longer");
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

    /// Does what a line that begins with `\` or `.` says; false to leave.
    async fn command(&mut self, client: &mut Client, line: &str) -> anyhow::Result<bool> {
        let line = line.trim_end_matches(';').trim();
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        // `\d+` shows no more than `\d` here.
        let command = match command.strip_suffix('+') {
            Some(plain) if plain.starts_with("\\d") => plain,
            _ => command,
        };
        let sql = match (command, argument) {
            ("\\q" | ".quit" | ".exit", _) => return Ok(false),
            ("\\?" | "\\h" | ".help", _) => {
                println!("{HELP}");
                return Ok(true);
            }
            ("\\x", _) => {
                let line = self.output == Output::Line;
                if !line {
                    self.last = self.output;
                }
                let back = if self.last == Output::Line { Output::Table } else { self.last };
                self.output = if line { back } else { Output::Line };
                println!("Expanded display is {}.", if line { "off" } else { "on" });
                return Ok(true);
            }
            ("\\timing", _) => {
                self.timing = !self.timing;
                println!("Timing is {}.", if self.timing { "on" } else { "off" });
                return Ok(true);
            }
            (".output", _) => {
                match <Output as clap::ValueEnum>::from_str(argument, true) {
                    Ok(output) => self.output = output,
                    Err(_) => eprintln!(".output table, json, csv or line"),
                }
                return Ok(true);
            }
            (".search_path", names) if !names.is_empty() => {
                let names: Vec<&str> = names.split(',').map(|name| name.trim().trim_matches('"')).collect();
                if let Err(error) = client.set_search_path(Some(&names)).await {
                    eprintln!("{}", describe(&error, ""));
                }
                return Ok(true);
            }
            (".search_path", _) => "SHOW search_path".to_owned(),
            (".connections", _) => "SELECT connection_name AS \"connection\", plugin, status, table_count AS \"tables\", error
                 FROM spcd.connection_state ORDER BY 1".to_owned(),
            (".tables" | "\\dt" | "\\d", "") => tables(""),
            (".tables" | "\\dt", _) => tables(&format!("AND {}", matches(argument, "c"))),
            (".views" | "\\dv", "") => tables("AND c.relkind IN ('v', 'm')"),
            (".views" | "\\dv", _) => tables(&format!("AND c.relkind IN ('v', 'm') AND {}", matches(argument, "c"))),
            (".inspect", "") => {
                eprintln!(".inspect CONNECTION, TABLE or CONNECTION.TABLE");
                return Ok(true);
            }
            (".inspect" | "\\d", _) => {
                let found = matches(argument, "c");
                let any = format!("SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                                   WHERE c.relkind IN ('r', 'f', 'v', 'm', 'p') AND {found} LIMIT 1");
                if let Ok(session) = client.session().await
                    && let Ok(None) = session.query_opt(&any, &[]).await
                {
                    eprintln!("Did not find any relation named \"{argument}\".");
                    return Ok(true);
                }
                format!(
                    "SELECT n.nspname AS \"connection\", c.relname AS \"table\", a.attname AS \"column\",
                            pg_catalog.format_type(a.atttypid, a.atttypmod) AS \"type\",
                            CASE WHEN a.attnotnull THEN 'not null' END AS \"nullable\",
                            pg_catalog.col_description(c.oid, a.attnum) AS \"comment\"
                     FROM pg_catalog.pg_class c
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                     WHERE c.relkind IN ('r', 'f', 'v', 'm', 'p') AND {found}
                     ORDER BY 1, 2, a.attnum"
                )
            }
            ("\\dn", _) => format!(
                "SELECT n.nspname AS \"schema\", pg_catalog.pg_get_userbyid(n.nspowner) AS \"owner\"
                 FROM pg_catalog.pg_namespace n
                 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND {} ORDER BY 1",
                like(argument, "n.nspname")
            ),
            ("\\du", _) => "SELECT rolname AS \"role\", rolsuper AS \"superuser\", rolcanlogin AS \"login\"
                 FROM pg_catalog.pg_roles WHERE rolname !~ '^pg_' ORDER BY 1".to_owned(),
            ("\\conninfo", _) => "SELECT current_database() AS \"database\", current_user AS \"user\",
                        pg_catalog.inet_server_addr() AS \"address\",
                        pg_catalog.current_setting('port') AS \"port\",
                        pg_catalog.current_setting('server_version') AS \"version\"".to_owned(),
            ("\\l", _) => "SELECT datname AS \"database\", pg_catalog.pg_get_userbyid(datdba) AS \"owner\"
                 FROM pg_catalog.pg_database WHERE NOT datistemplate ORDER BY 1".to_owned(),
            _ => {
                eprintln!("{command} is not known here; .help shows what is");
                return Ok(true);
            }
        };
        self.run(client, &sql).await?;
        Ok(true)
    }
}

fn tables(more: &str) -> String {
    format!(
        "SELECT n.nspname AS \"connection\", c.relname AS \"table\",
                CASE c.relkind WHEN 'f' THEN 'foreign table' WHEN 'v' THEN 'view'
                     WHEN 'm' THEN 'materialized view' ELSE 'table' END AS \"type\"
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'f', 'v', 'm', 'p') AND n.nspname NOT IN {INNER}
           AND n.nspname !~ '^pg_' {more} ORDER BY 1, 2"
    )
}

/// The condition that a pattern names a schema, a table, or a table in a schema.
fn matches(pattern: &str, table: &str) -> String {
    let name = format!("{table}.relname");
    match cut(pattern) {
        (Some(schema), part) => {
            format!("{} AND {}", like(&schema, "n.nspname"), like(&part, &name))
        }
        (None, part) => format!(
            "({} OR {}) AND n.nspname !~ '^pg_(toast|temp)' AND n.nspname <> 'pg_catalog'",
            like(&part, "n.nspname"),
            like(&part, &name)
        ),
    }
}

/// A pattern's schema and table, still quoted as they were.
fn cut(pattern: &str) -> (Option<String>, String) {
    let mut quoted = false;
    for (at, c) in pattern.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => {
                return (Some(pattern[..at].to_owned()), pattern[at + 1..].to_owned());
            }
            _ => {}
        }
    }
    (None, pattern.to_owned())
}

/// The condition that a column is what a part of a pattern says: folded and with `*` and `?` as
/// psql does it, unless it is quoted; empty is anything.
fn like(part: &str, column: &str) -> String {
    let (mut text, mut quoted) = (String::new(), false);
    for c in part.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            '*' if !quoted => text.push('%'),
            '?' if !quoted => text.push('_'),
            '%' | '_' | '\\' => text.extend(['\\', c]),
            c if quoted => text.push(c),
            c => text.extend(c.to_lowercase()),
        }
    }
    if text.is_empty() {
        return "true".to_owned();
    }
    // What was typed as it is written counts too: few people quote `Sales`.
    let exact = spcd_core::sql::literal(part.trim());
    let pattern = spcd_core::sql::literal(&text);
    format!("({column} LIKE {pattern} OR {column} = {exact})")
}

/// In the state directory where it is the user's own, else where XDG says.
fn history(settings: &Settings) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let xdg = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    xdg.or_else(|| home.map(|home| home.join(".local/state")))
        .map_or_else(|| settings.state_dir.clone(), |dir| dir.join("spcd"))
        .join("history")
}

/// What can be completed: connections, tables, columns and commands.
#[derive(Default)]
struct Words {
    words: Vec<String>,
    /// The event up to which they were read.
    event: Option<i64>,
}

impl Words {
    async fn learn(&mut self, client: &mut Client) {
        let Ok(session) = client.session().await else {
            return;
        };
        let sql = "SELECT pg_catalog.max(id) FROM spcd.connection_event";
        let event = match session.query_one(sql, &[]).await {
            Ok(row) => row.try_get(0).ok().flatten(),
            Err(_) => None,
        };
        if event.is_some() && event == self.event {
            return;
        }
        let sql = format!(
            "SELECT DISTINCT pg_catalog.unnest(ARRAY[pg_catalog.quote_ident(table_schema),
                       pg_catalog.quote_ident(table_schema) || '.' || pg_catalog.quote_ident(table_name),
                       pg_catalog.quote_ident(table_name), pg_catalog.quote_ident(column_name)])
                   FROM information_schema.columns
                   WHERE table_schema NOT IN {INNER}
                   ORDER BY 1 LIMIT 100000"
        );
        if let Ok(rows) = session.query(&sql, &[]).await {
            self.words = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
            self.event = event;
        }
    }

    /// The words that continue what stands before the cursor, and where that begins.
    fn matching(&self, line: &str, at: usize) -> (usize, Vec<String>) {
        const COMMANDS: [&str; 19] = [
            "\\conninfo",
            "\\du",
            "\\dv",
            "\\d",
            "\\dn",
            "\\dt",
            "\\l",
            "\\q",
            "\\timing",
            "\\x",
            "\\?",
            ".connections",
            ".help",
            ".inspect",
            ".output",
            ".quit",
            ".search_path",
            ".tables",
            ".views",
        ];
        let before = line.get(..at).unwrap_or_default();
        let start = before
            .rfind([' ', ',', '(', ')', '=', '\n'])
            .map_or(0, |at| at + 1);
        let part = before.get(start..).unwrap_or_default();
        let commands = COMMANDS.iter().map(|command| (*command).to_owned());
        let found = (self.words.iter().cloned())
            .chain(commands.filter(|_| start == 0))
            .filter(|word| !part.is_empty() && word.starts_with(part))
            .take(200)
            .collect();
        (start, found)
    }
}

impl Helper for Words {}

impl Highlighter for Words {}

impl Validator for Words {}

impl Hinter for Words {
    type Hint = String;
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, words) = self.matching(line, at);
        let pair = |word: String| Pair {
            display: word.clone(),
            replacement: word,
        };
        Ok((start, words.into_iter().map(pair).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::Words;

    #[test]
    fn words_continue_what_stands_before_the_cursor() {
        let words = ["sales", "sales.orders", "stock"]
            .map(str::to_owned)
            .to_vec();
        let words = Words { words, event: None };
        let line = "SELECT * FROM sales.o WHERE";
        assert_eq!(
            words.matching(line, 21),
            (14, vec!["sales.orders".to_owned()])
        );
        assert_eq!(words.matching(".ta", 3), (0, vec![".tables".to_owned()]));
        assert_eq!(words.matching("SELECT ", 7).1, Vec::<String>::new());
    }
}
