//! A client library for programs that query a database managed by `spcd`.
//!
//! A connection's tables come and go as files are saved, so a query may meet a schema that is still
//! being loaded. [`Client`] waits for it and runs the query again. [`Client::wait_ready`] waits for
//! connections by name. [`Changes`] reports the changes of connections to a long-running program.
//! [`states()`] reads their states on any session of `tokio-postgres`.
//!
//! ```no_run
//! # async fn example() -> Result<(), spcd_client::Error> {
//! let mut client = spcd_client::Client::connect("postgres://me@localhost/hub").await?;
//! for row in client.query("SELECT id, total::text FROM sales.orders", &[]).await? {
//!     println!("{} {}", row.get::<_, i32>(0), row.get::<_, String>(1));
//! }
//! # Ok(()) }
//! ```
//!
//! The library receives changes by LISTEN. A standby does not support LISTEN, and a transaction
//! pooler loses notifications: the library detects both and polls the table instead.
//!
//! The caller configures TLS: see [`Connector::with_tls`].

mod changes;
mod client;
mod error;
mod feed;
mod progress;
mod rules;
mod session;
mod statement;
mod states;

pub use changes::Changes;
pub use client::{Attempts, Client};
pub use error::{Cause, Error, Problem};
pub use progress::Progress;
pub use session::{Connector, Session};
pub use spcd_protocol::{
    AnnouncedStatus, CHANNEL, Change, ConnectionState, Deleted, HealthChange, Notification, Status,
};
pub use statement::{Statements, statements};
pub use states::states;
