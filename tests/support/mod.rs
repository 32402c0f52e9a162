//! What the tests stand on: servers of their own, the built binary, and waiting without sleeping.

#![allow(dead_code, reason = "not every helper is used by every set of tests")]

pub mod alone;
pub mod authority;
pub mod clock;
pub mod dump;
pub mod http;
pub mod hub;
pub mod kept;
pub mod link;
pub mod listen;
pub mod mariadb;
pub mod nginx;
pub mod patroni;
pub mod pooler;
mod postgres;
pub mod prometheus;
pub mod proxy;
pub mod role;
mod run;
pub mod script;
mod spcd;
pub mod sshd;
mod standby;
pub mod steampipe;

use std::future::Future;
use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "as above")]
pub use postgres::{Cluster, Database, bindir, free_port, shared};
#[allow(unused_imports, reason = "as above")]
pub use run::{as_server_user, fresh_dir, give_to_server, server_user_name};
#[allow(unused_imports, reason = "as above")]
pub use spcd::{Finished, Spcd, finish};

/// How long anything that must happen may take before a test is given up. It says nothing about
/// how fast the program is: the machine may be busy with other work.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within `deadline`; `what` says what was waited for.
pub async fn eventually<T, F>(what: &str, deadline: Duration, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            start.elapsed() < deadline,
            "waited {deadline:?} in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// [`eventually`] for conditions that need no runtime.
///
/// # Panics
/// When the condition does not come true within [`DEADLINE`].
pub fn eventually_now<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < DEADLINE,
            "waited {DEADLINE:?} in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Opens a session without any of the program's own settings.
///
/// # Errors
/// As the server or the driver says.
pub async fn connect(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(async move {
        // Its end shows at the client.
        let _ = connection.await;
    });
    Ok(client)
}

/// Runs statements in a session of their own; the rows of all of them, as text.
///
/// # Errors
/// As the server or the driver says.
pub async fn try_query(
    url: &str,
    sql: &str,
) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
    let client = connect(url).await?;
    let rows = client.simple_query(sql).await?;
    Ok(rows
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|column| row.get(column).map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        })
        .collect())
}

/// [`try_query`] that must succeed; NULL is shown as an empty text.
///
/// # Panics
/// When it fails.
pub async fn query(url: &str, sql: &str) -> Vec<Vec<String>> {
    match try_query(url, sql).await {
        Ok(rows) => rows
            .into_iter()
            .map(|row| row.into_iter().map(Option::unwrap_or_default).collect())
            .collect(),
        Err(error) => panic!("{sql}: {error}: {:?}", error.as_db_error()),
    }
}

/// The first column of the first row.
///
/// # Panics
/// When the query fails or has no row.
pub async fn value(url: &str, sql: &str) -> String {
    let rows = query(url, sql).await;
    rows.into_iter()
        .flatten()
        .next()
        .unwrap_or_else(|| panic!("no row: {sql}"))
}
