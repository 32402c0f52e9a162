//! For programs that query a database kept by `spcd`.
//!
//! A connection's tables come and go as files are saved, so a query may meet a schema that is being
//! loaded. [`Client`] waits for it and answers as if it had been there; [`Client::wait_ready`] waits
//! for connections by name; [`Changes`] tells a program that runs long what happened to the
//! connections it uses; [`states()`] reads where they stand, on any session of `tokio-postgres`.
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
//! Changes are heard by LISTEN. On a standby that is impossible, and behind a transaction pooler
//! what is said is lost: both are noticed, and the table is polled instead.
//!
//! TLS is the caller's business: see [`Connector::with_tls`].

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
    CHANNEL, Change, ConnectionState, Deleted, Health, Notification, Reported, Status,
};
pub use statement::{Statements, statements};
pub use states::states;
