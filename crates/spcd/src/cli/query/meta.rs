//! The shell's meta-commands, a subset of those of psql and Steampipe.

use clap::ValueEnum as _;

use crate::cli::Output;

/// Text of `.help`.
pub(super) const HELP: &str = "\
  \\d [PATTERN]     tables, or a table's columns     .inspect PATTERN
  \\dt [PATTERN]    tables                           .tables [CONNECTION]
  \\dv [PATTERN]    views                            .views [CONNECTION]
  \\dn [PATTERN]    schemas                          .connections
  \\l, \\du          databases, roles                 .search_path [NAME,…]
  \\conninfo        this session
  \\x               a line for each value, or not    .output table|json|csv|line
  \\timing          how long statements take         .help
  \\q               leave (or Ctrl-D)                .quit
Statements end with a semicolon. A pattern is CONNECTION, TABLE or CONNECTION.TABLE, with * and ?.";

/// Commands that completion offers.
pub(super) const COMMANDS: [&str; 19] = [
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

/// Schemas that the lists hide.
pub(super) const INTERNAL_SCHEMAS: &str = "('pg_catalog', 'information_schema', 'spcd', 'spcd_union', 'spcd_type', 'spcd_lock', 'steampipe_internal')";

const VIEWS: &str = "AND c.relkind IN ('v', 'm')";

const CONNECTIONS: &str =
    "SELECT connection_name AS \"connection\", plugin, status, table_count AS \"tables\", error
     FROM spcd.connection_state ORDER BY 1";

const ROLES: &str =
    "SELECT rolname AS \"role\", rolsuper AS \"superuser\", rolcanlogin AS \"login\"
     FROM pg_catalog.pg_roles WHERE rolname !~ '^pg_' ORDER BY 1";

const DATABASES: &str =
    "SELECT datname AS \"database\", pg_catalog.pg_get_userbyid(datdba) AS \"owner\"
     FROM pg_catalog.pg_database WHERE NOT datistemplate ORDER BY 1";

const SESSION: &str = "SELECT current_database() AS \"database\", current_user AS \"user\",
            pg_catalog.inet_server_addr() AS \"address\",
            pg_catalog.current_setting('port') AS \"port\",
            pg_catalog.current_setting('server_version') AS \"version\"";

/// A parsed meta-command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MetaCommand<'a> {
    Quit,
    Help,
    ToggleExpanded,
    ToggleTiming,
    SetOutput(Output),
    SetSearchPath(Vec<&'a str>),
    /// Run this query.
    Query(String),
    /// Show the columns of the relations that a pattern matches.
    Describe(&'a str),
    /// Its argument is missing or wrong. Holds its usage.
    Unusable(&'static str),
    Unknown(&'a str),
}

/// Parses a line. Ignores a semicolon at its end.
pub(super) fn parse(line: &str) -> MetaCommand<'_> {
    let line = line.trim_end_matches(';').trim();
    let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let argument = argument.trim();
    // `\d+` shows the same as `\d`.
    let command = match command.strip_suffix('+') {
        Some(plain) if plain.starts_with("\\d") => plain,
        _ => command,
    };
    let query = |sql: &str| MetaCommand::Query(sql.to_owned());
    match (command, argument) {
        ("\\q" | ".quit" | ".exit", _) => MetaCommand::Quit,
        ("\\?" | "\\h" | ".help", _) => MetaCommand::Help,
        ("\\x", _) => MetaCommand::ToggleExpanded,
        ("\\timing", _) => MetaCommand::ToggleTiming,
        (".output", format) => match Output::from_str(format, true) {
            Ok(output) => MetaCommand::SetOutput(output),
            Err(_) => MetaCommand::Unusable(".output table, json, csv or line"),
        },
        (".search_path", "") => query("SHOW search_path"),
        (".search_path", names) => {
            let names = names.split(',').map(|name| name.trim().trim_matches('"'));
            MetaCommand::SetSearchPath(names.collect())
        }
        (".connections", _) => query(CONNECTIONS),
        (".tables" | "\\dt" | "\\d", "") => MetaCommand::Query(relations("")),
        (".tables" | "\\dt", pattern) => {
            MetaCommand::Query(relations(&format!("AND {}", matches(pattern))))
        }
        (".views" | "\\dv", "") => MetaCommand::Query(relations(VIEWS)),
        (".views" | "\\dv", pattern) => {
            MetaCommand::Query(relations(&format!("{VIEWS} AND {}", matches(pattern))))
        }
        (".inspect", "") => MetaCommand::Unusable(".inspect CONNECTION, TABLE or CONNECTION.TABLE"),
        (".inspect" | "\\d", pattern) => MetaCommand::Describe(pattern),
        ("\\dn", pattern) => MetaCommand::Query(schemas(pattern)),
        ("\\du", _) => query(ROLES),
        ("\\l", _) => query(DATABASES),
        ("\\conninfo", _) => query(SESSION),
        _ => MetaCommand::Unknown(command),
    }
}

/// Returns a row if a pattern matches any relation.
pub(super) fn any_relation(pattern: &str) -> String {
    format!(
        "SELECT FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'f', 'v', 'm', 'p') AND {} LIMIT 1",
        matches(pattern)
    )
}

/// Lists the columns of the relations that a pattern matches.
pub(super) fn columns(pattern: &str) -> String {
    format!(
        "SELECT n.nspname AS \"connection\", c.relname AS \"table\", a.attname AS \"column\",
                pg_catalog.format_type(a.atttypid, a.atttypmod) AS \"type\",
                CASE WHEN a.attnotnull THEN 'not null' END AS \"nullable\",
                pg_catalog.col_description(c.oid, a.attnum) AS \"comment\"
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_attribute a
           ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relkind IN ('r', 'f', 'v', 'm', 'p') AND {}
         ORDER BY 1, 2, a.attnum",
        matches(pattern)
    )
}

fn schemas(pattern: &str) -> String {
    format!(
        "SELECT n.nspname AS \"schema\", pg_catalog.pg_get_userbyid(n.nspowner) AS \"owner\"
         FROM pg_catalog.pg_namespace n
         WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND {} ORDER BY 1",
        like(pattern, "n.nspname")
    )
}

/// Lists relations; `more` restricts them.
fn relations(more: &str) -> String {
    format!(
        "SELECT n.nspname AS \"connection\", c.relname AS \"table\",
                CASE c.relkind WHEN 'f' THEN 'foreign table' WHEN 'v' THEN 'view'
                     WHEN 'm' THEN 'materialized view' ELSE 'table' END AS \"type\"
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'f', 'v', 'm', 'p') AND n.nspname NOT IN {INTERNAL_SCHEMAS}
           AND n.nspname !~ '^pg_' {more} ORDER BY 1, 2"
    )
}

/// Returns the SQL condition that a pattern names a schema, a table, or a table in a schema.
fn matches(pattern: &str) -> String {
    match split_pattern(pattern) {
        (Some(schema), part) => {
            format!(
                "{} AND {}",
                like(schema, "n.nspname"),
                like(part, "c.relname")
            )
        }
        (None, part) => format!(
            "({} OR {}) AND n.nspname !~ '^pg_(toast|temp)' AND n.nspname <> 'pg_catalog'",
            like(part, "n.nspname"),
            like(part, "c.relname")
        ),
    }
}

/// Splits a pattern at the dot between schema and table; both stay quoted.
fn split_pattern(pattern: &str) -> (Option<&str>, &str) {
    let mut quoted = false;
    for (at, c) in pattern.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => {
                return (Some(&pattern[..at]), &pattern[at + 1..]);
            }
            _ => {}
        }
    }
    (None, pattern)
}

/// Returns the condition that a column matches a part of a pattern: folded and with `*` and `?` as
/// in psql, unless it is quoted. An empty part matches everything.
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
    // The exact text matches too, as few users quote `Sales`.
    let exact = spcd_core::sql::literal(part.trim());
    let pattern = spcd_core::sql::literal(&text);
    format!("({column} LIKE {pattern} OR {column} = {exact})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_apart_by_name_and_argument() {
        for (line, expected) in [
            ("\\q;", MetaCommand::Quit),
            (".exit", MetaCommand::Quit),
            ("\\d+ sales.orders", MetaCommand::Describe("sales.orders")),
            (".inspect  sales ;", MetaCommand::Describe("sales")),
            (".output CSV", MetaCommand::SetOutput(Output::Csv)),
            (
                ".output x",
                MetaCommand::Unusable(".output table, json, csv or line"),
            ),
            (
                ".search_path a, \"b c\"",
                MetaCommand::SetSearchPath(vec!["a", "b c"]),
            ),
            (
                ".search_path",
                MetaCommand::Query("SHOW search_path".to_owned()),
            ),
            ("\\nope x", MetaCommand::Unknown("\\nope")),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
        assert_eq!(parse("\\dt"), parse("\\d"));
        assert_ne!(parse("\\dt x"), parse("\\d x"));
    }

    #[test]
    fn each_name_that_completes_is_a_command() {
        for name in COMMANDS {
            assert_ne!(parse(name), MetaCommand::Unknown(name));
        }
    }

    #[test]
    fn patterns_are_split_at_the_dot_that_is_not_quoted() {
        assert_eq!(split_pattern("a.b"), (Some("a"), "b"));
        assert_eq!(split_pattern("\"a.b\""), (None, "\"a.b\""));
        assert_eq!(like("Sa*", "x"), "(x LIKE 'sa%' OR x = 'Sa*')".to_owned());
    }
}
