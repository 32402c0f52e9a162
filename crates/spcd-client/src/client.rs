//! A client that waits until the tables of a query are loaded.

mod attempts;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spcd_protocol::{ConnectionState, Status};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::error::{Error, Problem};
use crate::feed::Feed;
use crate::progress::Progress;
use crate::rules::{self, RetryDecision};
use crate::session::{Connector, SessionSlot};
use crate::states::{self, StateSummary};

pub use attempts::Attempts;
use attempts::is_in_transaction;

/// Default limit for waiting for connections.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A session with a database that spcd manages. A lost session is opened again. Settings and
/// temporary tables of the lost session are gone then; the search path of
/// [`Client::set_search_path`] is set again.
///
/// ```no_run
/// # async fn example() -> Result<(), spcd_client::Error> {
/// let mut client = spcd_client::Client::connect("postgres://me@localhost/hub").await?;
/// // Waits if `sales` is still being loaded.
/// let rows = client.query("SELECT id FROM sales.orders WHERE id > $1", &[&7_i32]).await?;
/// # drop(rows); Ok(()) }
/// ```
pub struct Client {
    pub(crate) slot: SessionSlot,
    timeout: Duration,
    search_path: Option<Vec<String>>,
    progress: Option<ProgressCallback>,
}

type ProgressCallback = Box<dyn FnMut(Progress<'_>) + Send>;

impl Client {
    /// Opens a session at a URL or keyword string, without TLS.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), spcd_client::Error> {
    /// let client = spcd_client::Client::connect("host=localhost dbname=hub").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`]
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::open(Connector::new(url)?).await
    }

    /// Opens a session by a connector.
    ///
    /// ```no_run
    /// # async fn example(connector: spcd_client::Connector) -> Result<(), spcd_client::Error> {
    /// let client = spcd_client::Client::open(connector).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`]
    pub async fn open(connector: Connector) -> Result<Self, Error> {
        let mut client = Self::new(connector);
        client.slot.open().await.map_err(Error::Connect)?;
        Ok(client)
    }

    /// Creates a client that opens its session when it is first needed, and waits for a database
    /// that is not up yet.
    ///
    /// ```no_run
    /// # fn example(connector: spcd_client::Connector) {
    /// let client = spcd_client::Client::new(connector);
    /// # }
    /// ```
    #[must_use]
    pub fn new(connector: Connector) -> Self {
        Self {
            slot: SessionSlot::new(connector),
            timeout: DEFAULT_TIMEOUT,
            search_path: None,
            progress: None,
        }
    }

    /// Limits how long a statement may wait for connections and for the database; the default is
    /// one minute. The run time of the statement itself does not count.
    ///
    /// ```no_run
    /// # fn example(client: &mut spcd_client::Client) {
    /// client.set_timeout(std::time::Duration::from_secs(5));
    /// # }
    /// ```
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sets a callback that is called when a wait begins and whenever its progress changes.
    ///
    /// ```no_run
    /// # fn example(client: &mut spcd_client::Client) {
    /// client.on_wait(|progress| eprintln!("{progress}"));
    /// # }
    /// ```
    pub fn on_wait(&mut self, progress: impl FnMut(Progress<'_>) + Send + 'static) {
        self.progress = Some(Box::new(progress));
    }

    /// Returns the session, for statements that need no waiting.
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// let cancel = client.session().await?.cancel_token();
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`] and [`Error::TimedOut`]
    pub async fn session(&mut self) -> Result<&tokio_postgres::Client, Error> {
        let until = self.until();
        Ok(&self.slot.get(until).await?.session.client)
    }

    /// Returns the rows of the named connections, or of all; see [`states()`](crate::states()).
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// let rows = client.states(Some(&["sales"])).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotKept`], [`Error::Database`] and [`Error::Row`]; [`Error::Connect`].
    pub async fn states<S: AsRef<str>>(
        &mut self,
        names: Option<&[S]>,
    ) -> Result<Vec<ConnectionState>, Error> {
        let names = names.map(owned);
        let until = self.until();
        let live = self.slot.get(until).await?;
        states::states(&live.session.client, names.as_deref()).await
    }

    /// Waits until all named connections are ready. Must not be called inside a transaction.
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// let minute = std::time::Duration::from_secs(60);
    /// client.wait_ready(&["sales", "stock"], minute).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connection`] at once when one is in error, disabled or unknown,
    /// [`Error::TimedOut`], and those of [`Client::states`].
    pub async fn wait_ready<S: AsRef<str>>(
        &mut self,
        names: &[S],
        timeout: Duration,
    ) -> Result<(), Error> {
        let names = owned(names);
        let until = Instant::now() + timeout;
        let judge = |known: &BTreeMap<String, StateSummary>| {
            let mut all = true;
            for name in &names {
                let status = known.get(name).map(|row| row.status);
                if !matches!(status, Some(Status::Ready)) {
                    all = false;
                }
                if matches!(status, None | Some(Status::Error | Status::Disabled)) {
                    return Some(Some(name.clone()));
                }
            }
            all.then_some(None)
        };
        let Some(name) = self.follow(&names, until, judge).await? else {
            return Ok(());
        };
        // Notifications shorten errors; the table has the whole text.
        let live = self.slot.get(until).await?;
        let mut rows = states::read_table(&live.session.client, Some(std::slice::from_ref(&name)))
            .await?
            .rows;
        let problem = match rows.remove(&name) {
            None => Problem::Unknown,
            Some(row) if row.status == Status::Disabled => Problem::Disabled,
            Some(row) => Problem::Error(row.error.unwrap_or_default()),
        };
        let source = None;
        Err(Error::Connection {
            name,
            problem,
            source,
        })
    }

    /// Waits until each named connection is ready, in error, disabled or absent.
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// client.wait_settled(&["sales"], std::time::Duration::from_secs(60)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::TimedOut`], and those of [`Client::states`].
    pub async fn wait_settled<S: AsRef<str>>(
        &mut self,
        names: &[S],
        timeout: Duration,
    ) -> Result<(), Error> {
        self.wait_until_settled(&owned(names), Instant::now() + timeout)
            .await
    }

    /// Sets the session's search path, now and after a lost session; `None` returns to the role's
    /// own path. From then on every statement waits for the connections on the path that decide
    /// what an unqualified name means. It fails if one of them is in error.
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// client.set_search_path(Some(&["sales", "public"])).await?;
    /// client.query("SELECT * FROM orders", &[]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Database`] and [`Error::Connect`]
    pub async fn set_search_path<S: AsRef<str>>(
        &mut self,
        path: Option<&[S]>,
    ) -> Result<(), Error> {
        let path = path.map(owned);
        let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
        let sql = match &path {
            // The only form of SET for an empty path.
            Some(path) if path.is_empty() => "SET search_path = ''".to_owned(),
            Some(path) => {
                let names: Vec<_> = path.iter().map(quoted).collect();
                format!("SET search_path = {}", names.join(", "))
            }
            None => "RESET search_path".to_owned(),
        };
        let until = self.until();
        let live = self.slot.get(until).await?;
        live.session.client.batch_execute(&sql).await?;
        self.slot.setup = path.is_some().then_some(sql);
        self.search_path = path;
        Ok(())
    }

    /// Runs one statement. If the statement fails because a table or schema of a loading connection
    /// is missing, waits for that connection and runs the statement again.
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// let rows = client.query("SELECT count(*) FROM sales.orders", &[]).await?;
    /// let count: i64 = rows[0].get(0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Database`] with what the server says; [`Error::Connection`] where a connection's
    /// state is the reason; [`Error::TimedOut`]; [`Error::Connect`].
    pub async fn query(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let mut attempts = self.attempts(sql);
        loop {
            match attempts.begin().await?.query(sql, params).await {
                Ok(rows) => return Ok(rows),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// Runs a statement that returns no rows, as [`Client::query`] does; returns the number of
    /// changed rows.
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// let sql = "INSERT INTO totals SELECT sum(total) FROM sales.orders";
    /// let count = client.execute(sql, &[]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Client::query`].
    pub async fn execute(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        let mut attempts = self.attempts(sql);
        loop {
            match attempts.begin().await?.execute(sql, params).await {
                Ok(count) => return Ok(count),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// Runs a statement by any other method of `tokio-postgres`, with the same waits and retries;
    /// see [`Attempts`].
    ///
    /// ```no_run
    /// # async fn example(client: &mut spcd_client::Client) -> Result<(), spcd_client::Error> {
    /// let sql = "COPY (SELECT * FROM sales.orders) TO STDOUT";
    /// let mut attempts = client.attempts(sql);
    /// let stream = loop {
    ///     match attempts.begin().await?.copy_out(sql).await {
    ///         Ok(stream) => break stream,
    ///         Err(error) => attempts.failed(error).await?,
    ///     }
    /// };
    /// # drop(stream); Ok(()) }
    /// ```
    pub fn attempts<'a>(&'a mut self, sql: &'a str) -> Attempts<'a> {
        let until = self.until();
        Attempts::new(self, sql, until)
    }

    fn until(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Waits for the connections that the chosen search path needs.
    pub(crate) async fn wait_for_search_path(&mut self, until: Instant) -> Result<(), Error> {
        let Some(path) = self.search_path.clone() else {
            return Ok(());
        };
        loop {
            let live = self.slot.get(until).await?;
            let rows = match states::read_table(&live.session.client, Some(&path)).await {
                Ok(table) => table.rows,
                Err(error) if error.is_lost() => {
                    self.slot.drop_session();
                    continue;
                }
                // spcd's table is missing or unreadable, or the transaction has failed. Nothing is
                // known then, and the statement itself reports the error.
                Err(_) => return Ok(()),
            };
            match rules::decide_before_statement(&path, &rows) {
                RetryDecision::Fail(Some((name, problem))) => {
                    let source = None;
                    return Err(Error::Connection {
                        name,
                        problem,
                        source,
                    });
                }
                RetryDecision::Wait(names) if !is_in_transaction(&live.session.client).await? => {
                    self.wait_until_settled(&names, until).await?;
                }
                _ => return Ok(()),
            }
        }
    }

    pub(crate) async fn wait_until_settled(
        &mut self,
        names: &[String],
        until: Instant,
    ) -> Result<(), Error> {
        // Each connection counts from the moment it was settled: they need not all be settled at
        // the same time.
        let mut left: BTreeSet<&String> = names.iter().collect();
        let settled = |known: &BTreeMap<String, StateSummary>| {
            left.retain(|name| known.get(*name).is_some_and(|row| !row.status.is_settled()));
            left.is_empty().then_some(())
        };
        self.follow(names, until, settled).await
    }

    /// Follows the named connections until `judge` returns an answer.
    async fn follow<T>(
        &mut self,
        names: &[String],
        until: Instant,
        mut judge: impl FnMut(&BTreeMap<String, StateSummary>) -> Option<T>,
    ) -> Result<T, Error> {
        let mut feed = Feed::new(Some(names.to_vec()));
        loop {
            match feed.next_changes(&mut self.slot, until).await {
                // The time-out is reported below, with the names.
                Ok(_) | Err(Error::TimedOut { .. }) => {}
                Err(error) => {
                    Feed::stop_listening(&mut self.slot);
                    return Err(error);
                }
            }
            if feed.has_begun() {
                if let Some(answer) = judge(&feed.known) {
                    Feed::stop_listening(&mut self.slot);
                    return Ok(answer);
                }
                self.report(names.len(), &feed.known);
            }
            if Instant::now() >= until {
                Feed::stop_listening(&mut self.slot);
                let settled = |name: &&String| {
                    feed.known
                        .get(*name)
                        .is_some_and(|row| row.status.is_settled())
                };
                let waiting = names
                    .iter()
                    .filter(|name| !settled(name))
                    .cloned()
                    .collect();
                let source = None;
                return Err(Error::TimedOut { waiting, source });
            }
        }
    }

    fn report(&mut self, total: usize, known: &BTreeMap<String, StateSummary>) {
        if let Some(progress) = &mut self.progress {
            let waiting: Vec<&str> = (known.iter())
                .filter(|(_, row)| !row.status.is_settled())
                .map(|(name, _)| name.as_str())
                .collect();
            let ready = total.saturating_sub(waiting.len());
            progress(Progress {
                waiting,
                ready,
                total,
            });
        }
    }
}

fn owned<S: AsRef<str>>(names: &[S]) -> Vec<String> {
    names.iter().map(|name| name.as_ref().to_owned()).collect()
}
