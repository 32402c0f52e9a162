//! Statements that are repeated while a server is down, as a patient user repeats them.

use std::time::Instant;

use tokio_postgres::error::SqlState;

use crate::support::{DEADLINE, try_query};

/// Rows as text; NULL is an empty text.
pub type Rows = Vec<Vec<String>>;

/// Runs statements, again while the server is away, full or shutting down.
///
/// # Errors
/// The SQLSTATE and the message of another error.
///
/// # Panics
/// When the server does not come back.
pub async fn insist(url: &str, sql: &str) -> Result<Rows, (SqlState, String)> {
    let start = Instant::now();
    loop {
        let error = match try_query(url, sql).await {
            Ok(rows) => {
                let cells = |row: Vec<Option<String>>| {
                    row.into_iter().map(Option::unwrap_or_default).collect()
                };
                return Ok(rows.into_iter().map(cells).collect());
            }
            Err(error) => error,
        };
        if let Some(state) = error.code()
            && !is_passing(state)
        {
            return Err((state.clone(), format!("{:?}", error.as_db_error())));
        }
        assert!(start.elapsed() < DEADLINE, "{sql}: {error:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Whether an error goes away by itself: connection, resources, operator intervention, deadlock,
/// lock time-out.
fn is_passing(state: &SqlState) -> bool {
    let class = &state.code()[..2];
    ["08", "53", "57"].contains(&class)
        || *state == SqlState::T_R_DEADLOCK_DETECTED
        || *state == SqlState::LOCK_NOT_AVAILABLE
        // A catalog row that another session has changed meanwhile.
        || *state == SqlState::INTERNAL_ERROR
}

/// [`insist`] on statements that must succeed.
///
/// # Panics
/// When they fail.
pub async fn must(url: &str, sql: &str) -> Rows {
    match insist(url, sql).await {
        Ok(rows) => rows,
        Err((_, error)) => panic!("{sql}: {error}"),
    }
}

/// Rows, or the error as text: it may pass.
pub async fn read(url: &str, sql: &str) -> Result<Rows, String> {
    let rows = try_query(url, sql).await;
    let rows = rows.map_err(|error| match error.as_db_error() {
        Some(error) => format!("{sql}: {error:?}"),
        None => format!("{sql}: {error}"),
    })?;
    let cells = |row: Vec<Option<String>>| row.into_iter().map(Option::unwrap_or_default).collect();
    Ok(rows.into_iter().map(cells).collect())
}
