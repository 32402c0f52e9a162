//! Runs a statement and decides what follows from its failure.

use spcd_protocol::CHANNEL;
use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::{ErrorPosition, SqlState};

use super::Client;
use crate::error::{Error, Problem, is_lost};
use crate::rules::{self, RetryDecision, RetryHistory};
use crate::session::LiveSession;
use crate::statement::{self, TableReference};
use crate::states;

/// Attempts at one statement. The statement is run again after a wait if a table or schema was
/// still being loaded. It is run once more with a new plan if a table changed while it ran
/// (`0A000`). A text of several statements, `CALL` and `DO` are never run twice, since part of them
/// may have taken effect. Neither is a statement inside a transaction block.
///
/// ```no_run
/// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
/// let sql = "SELECT * FROM sales.orders";
/// let mut attempts = client.attempts(sql);
/// let messages = loop {
///     match attempts.begin().await?.simple_query(sql).await {
///         Ok(messages) => break messages,
///         Err(error) => attempts.failed(error).await?,
///     }
/// };
/// # drop(messages); Ok(()) }
/// ```
pub struct Attempts<'a> {
    client: &'a mut Client,
    sql: &'a str,
    until: Instant,
    was_replanned: bool,
    memory: RetryHistory,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(client: &'a mut Client, sql: &'a str, until: Instant) -> Self {
        Self {
            client,
            sql,
            until,
            was_replanned: false,
            memory: RetryHistory::default(),
        }
    }

    /// Waits for the connections that the statement needs, and returns the session to run it on.
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// let mut attempts = client.attempts("SELECT 1");
    /// let session = attempts.begin().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connection`], [`Error::TimedOut`], [`Error::Connect`]
    pub async fn begin(&mut self) -> Result<&tokio_postgres::Client, Error> {
        self.client.wait_for_search_path(self.until).await?;
        let live = self.client.slot.get(self.until).await?;
        unlisten(live).await;
        Ok(&live.session.client)
    }

    /// Decides what follows from a failure; returns when the statement should be run again.
    ///
    /// ```no_run
    /// # async fn example(attempts: &mut spcd_client::Attempts<'_>) -> Result<(), spcd_client::Error> {
    /// let sql = "SELECT * FROM sales.orders";
    /// if let Err(error) = attempts.begin().await?.simple_query(sql).await {
    ///     attempts.failed(error).await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The statement's failure if it is final; see [`Client::query`].
    pub async fn failed(&mut self, error: tokio_postgres::Error) -> Result<(), Error> {
        let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
        let code = error.code();
        if code == Some(&SqlState::UNTRANSLATABLE_CHARACTER) {
            return Err(self.untranslatable(error).await);
        }
        let stale = code == Some(&SqlState::FEATURE_NOT_SUPPORTED) && !self.was_replanned;
        if !stale && !code.is_some_and(|code| missing.contains(code)) {
            return Err(Error::Database(error));
        }
        // Only the session on which the statement failed knows its transaction and search path.
        let Some(live) = self.client.slot.live() else {
            return Err(Error::Database(error));
        };
        if stale {
            self.was_replanned = true;
            let again = statement::is_repeatable(self.sql)
                && !is_in_transaction(&live.session.client).await?;
            return if again {
                Ok(())
            } else {
                Err(Error::Database(error))
            };
        }
        let Some(verdict) = decide_after_failure(live, self.sql, &error, &mut self.memory).await?
        else {
            return Err(Error::Database(error));
        };
        match verdict {
            RetryDecision::Fail(Some((name, problem))) => {
                let source = Some(error);
                Err(Error::Connection {
                    name,
                    problem,
                    source,
                })
            }
            RetryDecision::Fail(None) => Err(Error::Database(error)),
            _ if !statement::is_repeatable(self.sql) => Err(Error::Database(error)),
            RetryDecision::Wait(names) => {
                match self.client.wait_until_settled(&names, self.until).await {
                    Err(Error::TimedOut { waiting, .. }) => {
                        let source = Some(error);
                        Err(Error::TimedOut { waiting, source })
                    }
                    outcome => outcome,
                }
            }
            RetryDecision::Retry => Ok(()),
        }
    }

    /// Returns what the failure of a statement comes to that the database's encoding cannot hold: a
    /// table of such a name is left out.
    async fn untranslatable(&mut self, error: tokio_postgres::Error) -> Error {
        let names = statement::non_ascii_tables(self.sql);
        let Some(live) = self.client.slot.live().filter(|_| !names.is_empty()) else {
            return Error::Database(error);
        };
        let client = &live.session.client;
        let read = async {
            let mut schemas = names.schemas;
            if names.has_bare {
                schemas.extend(search_path(client).await?);
            }
            left_out(client, None, &schemas).await
        };
        match read.await {
            Ok(Some((name, problem))) => Error::Connection {
                name,
                problem,
                source: Some(error),
            },
            _ => Error::Database(error),
        }
    }
}

/// Sends UNLISTEN after a wait.
async fn unlisten(live: &mut LiveSession) {
    if live.has_listen {
        let sql = format!("UNLISTEN {}", CHANNEL);
        // A failed transaction refuses UNLISTEN; the next attempt sends it then.
        live.has_listen = live.session.client.batch_execute(&sql).await.is_err();
    }
}

/// Returns whether the session is inside a transaction block, including a failed one.
pub(crate) async fn is_in_transaction(session: &tokio_postgres::Client) -> Result<bool, Error> {
    // A statement outside a block starts its own transaction with the message that carries it. The
    // extended protocol sends two messages, so the simple protocol is used.
    let sql = "SELECT pg_catalog.now() OPERATOR(pg_catalog.<>) pg_catalog.statement_timestamp()";
    match session.simple_query(sql).await {
        Ok(rows) => Ok(rows.iter().any(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0) == Some("t"),
            _ => false,
        })),
        Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => Ok(true),
        Err(error) => Err(Error::Database(error)),
    }
}

/// Reads the states that explain why a statement did not find a table or schema. Returns `None` if
/// they cannot be read: inside a failed transaction block, or where spcd was never run.
async fn decide_after_failure(
    live: &mut LiveSession,
    sql: &str,
    error: &tokio_postgres::Error,
    memory: &mut RetryHistory,
) -> Result<Option<RetryDecision>, Error> {
    let client = &live.session.client;
    let reference = match error.as_db_error().and_then(|db_error| db_error.position()) {
        Some(ErrorPosition::Original(at)) => statement::reference_at(sql, *at),
        Some(ErrorPosition::Internal { position, query }) => {
            statement::reference_at(query, *position)
        }
        None => TableReference::Nothing,
    };
    let schemas = match &reference {
        TableReference::Qualified { schema, .. } => vec![schema.clone()],
        TableReference::Bare(_) => Vec::new(),
        TableReference::Nothing => statement::qualifiers(sql),
    };
    let read = async {
        if !schemas.is_empty() {
            let rows = states::read_table(client, Some(&schemas)).await?.rows;
            if !rows.is_empty() {
                let verdict = rules::decide_by_schemas(&schemas, &rows, memory);
                return with_left_out_warning(client, verdict, &reference, &schemas).await;
            }
            if matches!(reference, TableReference::Qualified { .. }) {
                return Ok(RetryDecision::Fail(None));
            }
        }
        let path = search_path(client).await?;
        let rows = states::read_table(client, Some(&path)).await?.rows;
        with_left_out_warning(
            client,
            rules::decide_by_search_path(&path, &rows, memory),
            &reference,
            &path,
        )
        .await
    };
    match read.await {
        Ok(found) => Ok(Some(found)),
        Err(Error::Database(error)) if is_lost(&error) => Err(Error::Database(error)),
        Err(_) => Ok(None),
    }
}

/// Returns the schemas of the session's search path.
async fn search_path(client: &tokio_postgres::Client) -> Result<Vec<String>, Error> {
    let sql = "SELECT pg_catalog.current_setting('search_path'), current_user::pg_catalog.text";
    let row = client.query_one(sql, &[]).await?;
    Ok(statement::path_names(row.try_get(0)?, row.try_get(1)?))
}

/// Adds the warning of a connection that has left the table out to a final failure.
async fn with_left_out_warning(
    client: &tokio_postgres::Client,
    verdict: RetryDecision,
    reference: &TableReference,
    connections: &[String],
) -> Result<RetryDecision, Error> {
    let (
        RetryDecision::Fail(None),
        TableReference::Qualified { table, .. } | TableReference::Bare(table),
    ) = (&verdict, reference)
    else {
        return Ok(verdict);
    };
    Ok(match left_out(client, Some(table), connections).await? {
        Some(problem) => RetryDecision::Fail(Some(problem)),
        None => verdict,
    })
}

/// Returns the first of these connections that has left a table out, and the warning about it. `None`
/// means a table whose name the database cannot hold.
async fn left_out(
    client: &tokio_postgres::Client,
    table: Option<&str>,
    connections: &[String],
) -> Result<Option<(String, Problem)>, Error> {
    let sql = "SELECT connection_name, warning FROM spcd.left_out_table
               WHERE connection_name OPERATOR(pg_catalog.=) ANY ($1)
                 AND table_name IS NOT DISTINCT FROM $2
               ORDER BY pg_catalog.array_position($1, connection_name), warning LIMIT 1";
    let row = client.query_opt(sql, &[&connections, &table]).await;
    let Some(row) = row.map_err(Error::reading)? else {
        return Ok(None);
    };
    Ok(Some((row.try_get(0)?, Problem::LeftOut(row.try_get(1)?))))
}
