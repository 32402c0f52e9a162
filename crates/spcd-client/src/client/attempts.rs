//! Running a statement, and what is done about its failure.

use spcd_protocol::CHANNEL;
use tokio::time::Instant;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::{ErrorPosition, SqlState};

use super::Client;
use crate::error::{Error, Problem, is_lost};
use crate::rules::{self, Memory, Verdict};
use crate::session::Live;
use crate::statement::{self, Mention};
use crate::states;

/// The attempts at one statement: it is run again after a wait where it failed because something was
/// not there yet, and once more with a fresh plan where a table changed under it (`0A000`). More than
/// one statement in a text, `CALL` and `DO` are never run twice, since part of them may have
/// happened, and neither is anything inside a transaction block.
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
    replanned: bool,
    memory: Memory,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(client: &'a mut Client, sql: &'a str, until: Instant) -> Self {
        Self {
            client,
            sql,
            until,
            replanned: false,
            memory: Memory::default(),
        }
    }

    /// Waits for what has to be there before the statement runs, and returns the session to run
    /// it on.
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
        self.client.ready_path(self.until).await?;
        let live = self.client.slot.get(self.until).await?;
        unlisten(live).await;
        Ok(&live.session.client)
    }

    /// Returns once the statement should be run again.
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
    /// What the statement's failure comes to, if it stands; see [`Client::query`].
    pub async fn failed(&mut self, error: tokio_postgres::Error) -> Result<(), Error> {
        let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
        let code = error.code();
        let stale = code == Some(&SqlState::FEATURE_NOT_SUPPORTED) && !self.replanned;
        if !stale && !code.is_some_and(|code| missing.contains(code)) {
            return Err(Error::Database(error));
        }
        // The session that the statement failed on: another one would know nothing of it.
        let Some(live) = self.client.slot.live() else {
            return Err(Error::Database(error));
        };
        if stale {
            self.replanned = true;
            let again =
                statement::is_repeatable(self.sql) && !is_inside(&live.session.client).await?;
            return if again {
                Ok(())
            } else {
                Err(Error::Database(error))
            };
        }
        let Some(verdict) = look(live, self.sql, &error, &mut self.memory).await? else {
            return Err(Error::Database(error));
        };
        match verdict {
            Verdict::Stands(Some((name, problem))) => {
                let source = Some(error);
                Err(Error::Connection {
                    name,
                    problem,
                    source,
                })
            }
            Verdict::Stands(None) => Err(Error::Database(error)),
            _ if !statement::is_repeatable(self.sql) => Err(Error::Database(error)),
            Verdict::Wait(names) => match self.client.settle(&names, self.until).await {
                Err(Error::TimedOut { waiting, .. }) => {
                    let source = Some(error);
                    Err(Error::TimedOut { waiting, source })
                }
                outcome => outcome,
            },
            Verdict::Run => Ok(()),
        }
    }
}

/// Takes back the LISTEN of a wait that is over.
async fn unlisten(live: &mut Live) {
    if live.listens {
        let sql = format!("UNLISTEN {}", CHANNEL);
        // In a transaction that has failed it is refused; then it is done another time.
        live.listens = live.session.client.batch_execute(&sql).await.is_err();
    }
}

/// Whether the session is inside a transaction block, also one that has failed.
pub(crate) async fn is_inside(session: &tokio_postgres::Client) -> Result<bool, Error> {
    // A transaction of its own begins with the message that brings the statement. By the simple
    // protocol: in the other one planning and running a statement are two messages.
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

/// Reads what there is to know about a statement that did not find something: `None` where nothing
/// can be known, because it failed inside a transaction block, or spcd is not here.
async fn look(
    live: &mut Live,
    sql: &str,
    error: &tokio_postgres::Error,
    memory: &mut Memory,
) -> Result<Option<Verdict>, Error> {
    let client = &live.session.client;
    let mention = match error.as_db_error().and_then(|said| said.position()) {
        Some(ErrorPosition::Original(at)) => statement::mention_at(sql, *at),
        Some(ErrorPosition::Internal { position, query }) => {
            statement::mention_at(query, *position)
        }
        None => Mention::Nothing,
    };
    let schemas = match &mention {
        Mention::Qualified { schema, .. } => vec![schema.clone()],
        Mention::Bare(_) => Vec::new(),
        Mention::Nothing => statement::qualifiers(sql),
    };
    let read = async {
        if !schemas.is_empty() {
            let rows = states::seen(client, Some(&schemas)).await?.rows;
            if !rows.is_empty() {
                let verdict = rules::named(&schemas, &rows, memory);
                return explained(client, verdict, &mention, &schemas).await;
            }
            if matches!(mention, Mention::Qualified { .. }) {
                return Ok(Verdict::Stands(None));
            }
        }
        let sql = "SELECT pg_catalog.current_setting('search_path'), current_user::pg_catalog.text";
        let row = client.query_one(sql, &[]).await?;
        let path = statement::path_names(row.try_get(0)?, row.try_get(1)?);
        let rows = states::seen(client, Some(&path)).await?.rows;
        explained(
            client,
            rules::on_path(&path, &rows, memory),
            &mention,
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

/// Adds to a failure that stands whether one of these connections has left the table out. The texts
/// of warnings are only shown: nothing is decided by them.
async fn explained(
    client: &tokio_postgres::Client,
    verdict: Verdict,
    mention: &Mention,
    connections: &[String],
) -> Result<Verdict, Error> {
    let (Verdict::Stands(None), Mention::Qualified { table, .. } | Mention::Bare(table)) =
        (&verdict, mention)
    else {
        return Ok(verdict);
    };
    let sql = "SELECT s.connection_name, w.warning FROM spcd.connection_state s
               CROSS JOIN LATERAL pg_catalog.unnest(s.warnings) AS w (warning)
               WHERE s.connection_name OPERATOR(pg_catalog.=) ANY ($1)
                 AND pg_catalog.strpos(w.warning, $2) OPERATOR(pg_catalog.>) 0
               ORDER BY pg_catalog.array_position($1, s.connection_name),
                        pg_catalog.strpos(w.warning, $2), w.warning LIMIT 1";
    let quoted = format!("{table:?}");
    let row = client.query_opt(sql, &[&connections, &quoted]).await;
    let row = row.map_err(Error::reading)?;
    Ok(match row {
        Some(row) => Verdict::Stands(Some((row.try_get(0)?, Problem::LeftOut(row.try_get(1)?)))),
        None => verdict,
    })
}
