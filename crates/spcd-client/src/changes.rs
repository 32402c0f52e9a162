//! For programs that run long: what happened to the connections they use.

use std::collections::VecDeque;
use std::time::Duration;

use spcd_protocol::Change;
use tokio::time::{Instant, sleep};

use crate::error::Error;
use crate::feed::Feed;
use crate::session::{Connector, Slot};

/// As good as never; the clock cannot be asked for more.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Between attempts when the database says no; someone may be changing that.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// The changes of connections, one after another, for as long as they are asked for. Each
/// connection's come in order; none is told twice. After a lost session, on a standby and behind a
/// transaction pooler several changes of one connection may be told as one, from the first status
/// to the last.
///
/// ```no_run
/// # use spcd_client::{Changes, Connector, Reported, Status};
/// # async fn example() -> Result<(), spcd_client::Error> {
/// let connector = Connector::new("postgres://me@localhost/hub")?;
/// let mut changes = Changes::of(connector, Some(&["sales"]));
/// loop {
///     let change = changes.next().await?;
///     if change.status != Reported::Status(Status::Ready) {
///         println!("{} is being changed: results may differ", change.connection);
///     }
/// }
/// # }
/// ```
pub struct Changes {
    slot: Slot,
    feed: Feed,
    queue: VecDeque<Change>,
    /// The table was read: from here on differences are changes.
    begun: bool,
}

impl Changes {
    /// Of the named connections, or of all, on a session of its own. What counts is what happens
    /// after [`Changes::begin`], or after the first call of [`Changes::next`].
    ///
    /// ```no_run
    /// # fn example(connector: spcd_client::Connector) {
    /// let all = spcd_client::Changes::of::<&str>(connector, None);
    /// # }
    /// ```
    #[must_use]
    pub fn of<S: AsRef<str>>(connector: Connector, names: Option<&[S]>) -> Self {
        let names = names.map(|names| names.iter().map(|name| name.as_ref().to_owned()).collect());
        Self {
            slot: Slot::new(connector),
            feed: Feed::new(names),
            queue: VecDeque::new(),
            begun: false,
        }
    }

    /// Connects and reads where the connections stand now, and returns it: everything after that
    /// is told by [`Changes::next`].
    ///
    /// ```no_run
    /// # async fn example(mut changes: spcd_client::Changes) -> Result<(), spcd_client::Error> {
    /// for (name, status) in changes.begin().await? {
    ///     println!("{name} is {status}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Changes::next`].
    pub async fn begin(&mut self) -> Result<Vec<(String, spcd_protocol::Status)>, Error> {
        while !self.begun {
            let changes = self.turn().await?;
            // Nothing at all comes back from a session that was lost; an empty table is known by
            // what was read of it.
            self.begun = self.feed.has_begun();
            drop(changes);
        }
        let known = self.feed.known.iter();
        Ok(known
            .map(|(name, row)| (name.clone(), row.status))
            .collect())
    }

    /// Waits for the next change. When the database is away, it waits for that too. It may be
    /// dropped and called again without losing a change (as in `select!`).
    ///
    /// ```no_run
    /// # async fn example(mut changes: spcd_client::Changes) -> Result<(), spcd_client::Error> {
    /// let change = changes.next().await?;
    /// println!("{}: {:?} -> {:?}", change.connection, change.previous, change.status);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotKept`], [`Error::Connect`] when the database refuses (the next call tries again,
    /// after a pause), and [`Error::Database`] when it refuses to show the table.
    pub async fn next(&mut self) -> Result<Change, Error> {
        self.begin().await?;
        loop {
            if let Some(change) = self.queue.pop_front() {
                return Ok(change);
            }
            let changes = self.turn().await?;
            self.queue.extend(changes);
        }
    }

    /// Whether changes are looked for in the table, because the server is a standby or a pooler is
    /// in between: they are then noticed up to a quarter of a second late.
    ///
    /// ```no_run
    /// # fn example(changes: &spcd_client::Changes) {
    /// if changes.polls() {
    ///     eprintln!("no LISTEN here: connect to the primary, past the pooler");
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn polls(&self) -> bool {
        self.feed.polls()
    }

    async fn turn(&mut self) -> Result<Vec<Change>, Error> {
        let outcome = self
            .feed
            .turn(&mut self.slot, Instant::now() + FOREVER)
            .await;
        if matches!(outcome, Err(Error::Connect(_))) {
            sleep(REFUSED_PAUSE).await;
        }
        outcome
    }
}
