//! Changes of connections, for long-running programs.

use std::collections::VecDeque;
use std::time::Duration;

use spcd_protocol::Change;
use tokio::time::{Instant, sleep};

use crate::error::Error;
use crate::feed::Feed;
use crate::session::{Connector, SessionSlot};

/// Practically unlimited: a longer time would overflow the clock.
const MAX_WAIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Pause after the database rejected a session: an administrator may be correcting the cause.
const CONNECT_ERROR_PAUSE: Duration = Duration::from_secs(5);

/// A stream of the connections' changes. The changes of one connection come in order, and each is
/// reported once. After a lost session, on a standby and behind a transaction pooler, several
/// changes of one connection may be merged into one, from the first status to the last.
///
/// ```no_run
/// # use spcd_client::{Changes, Connector, AnnouncedStatus, Status};
/// # async fn example() -> Result<(), spcd_client::Error> {
/// let connector = Connector::new("postgres://me@localhost/hub")?;
/// let mut changes = Changes::of(connector, Some(&["sales"]));
/// loop {
///     let change = changes.next().await?;
///     if change.status != AnnouncedStatus::Status(Status::Ready) {
///         println!("{} is being changed: results may differ", change.connection);
///     }
/// }
/// # }
/// ```
pub struct Changes {
    slot: SessionSlot,
    feed: Feed,
    queue: VecDeque<Change>,
    /// Whether the table was read: differences after that are changes.
    begun: bool,
}

impl Changes {
    /// Creates a stream of the changes of the named connections, or of all, on its own session. It
    /// reports what happens after [`Changes::begin`], or after the first call of [`Changes::next`].
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
            slot: SessionSlot::new(connector),
            feed: Feed::new(names),
            queue: VecDeque::new(),
            begun: false,
        }
    }

    /// Connects and returns the connections' current statuses. [`Changes::next`] reports every
    /// later change.
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
            let changes = self.next_changes().await?;
            // A lost session returns no changes. `has_begun` tells it from an empty table.
            self.begun = self.feed.has_begun();
            drop(changes);
        }
        let known = self.feed.known.iter();
        Ok(known
            .map(|(name, row)| (name.clone(), row.status))
            .collect())
    }

    /// Waits for the next change, and for the database when it is away. The future may be dropped
    /// and called again without losing a change, as in `select!`.
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
            let changes = self.next_changes().await?;
            self.queue.extend(changes);
        }
    }

    /// Returns whether the table is polled, because the server is a standby or a pooler is in
    /// between. Changes then arrive up to a quarter of a second late.
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

    async fn next_changes(&mut self) -> Result<Vec<Change>, Error> {
        let outcome = self
            .feed
            .next_changes(&mut self.slot, Instant::now() + MAX_WAIT)
            .await;
        if matches!(outcome, Err(Error::Connect(_))) {
            sleep(CONNECT_ERROR_PAUSE).await;
        }
        outcome
    }
}
