//! The schema `spcd`: the numbered files in `migrations/` create it, and the functions there.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::HubError;
use crate::catalog::ownership;
use crate::leader;

/// A numbered file of `migrations/`. It never changes once it is released.
struct Migration {
    number: i32,
    name: &'static str,
    text: &'static str,
}

/// All migrations, in order. `build.rs` lists the files.
const MIGRATIONS: &[Migration] = include!(concat!(env!("OUT_DIR"), "/migrations.rs"));

/// The functions and views, which are applied again after a change.
const FUNCTIONS: &str = concat!(
    include_str!("../../../migrations/functions/fingerprint.sql"),
    include_str!("../../../migrations/functions/publish.sql"),
    include_str!("../../../migrations/functions/mappings.sql"),
    include_str!("../../../migrations/functions/leader.sql"),
    include_str!("../../../migrations/functions/requests.sql"),
    include_str!("../../../migrations/functions/wait.sql"),
    include_str!("../../../migrations/functions/aggregator.sql"),
    include_str!("../../../migrations/functions/search_path.sql"),
    include_str!("../../../migrations/functions/health.sql"),
    include_str!("../../../migrations/functions/comments.sql"),
    include_str!("../../../migrations/functions/rights.sql"),
);
/// Returns the revision of [`FUNCTIONS`]: the sum of the numbers in the files' `-- Revision N.` lines. It
/// grows with each release that changes a file, so that an older version does not replace the functions
/// of a newer one.
fn functions_revision() -> i32 {
    let lines = FUNCTIONS.lines();
    let revision = |line: &str| {
        let number = line.strip_prefix("-- Revision ")?.strip_suffix('.')?;
        number.parse::<i32>().ok()
    };
    lines.filter_map(revision).sum()
}

/// Creates the tables that only serve as locks, in a schema that no other role can use: a role that can
/// name a table can lock it with a prepared statement. A partitioned table has no storage, so VACUUM
/// does not wait for the locks.
const CREATE_LOCK_TABLES: &str = "
    CREATE SCHEMA spcd_lock;
    COMMENT ON SCHEMA spcd_lock IS 'locks of spcd: who leads, who migrates, whose turn it is to write events';
    CREATE TABLE spcd_lock.migration (nothing boolean) PARTITION BY LIST (nothing);
    CREATE TABLE spcd_lock.lead (nothing boolean) PARTITION BY LIST (nothing);
    CREATE TABLE spcd_lock.event_order (nothing boolean) PARTITION BY LIST (nothing);";

/// Time limit of an attempt to lock the migrations. After it, the holder is logged.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of such attempts.
const MAX_ATTEMPTS: u32 = 30;

/// Returns the texts of all scripts that create objects in the schema.
pub fn texts() -> impl Iterator<Item = &'static str> {
    let numbered = MIGRATIONS.iter().map(|migration| migration.text);
    numbered.chain([FUNCTIONS])
}

/// Applies missing migrations, each in its own transaction, and changed functions. Returns the names of
/// the applied scripts.
///
/// # Errors
/// Schemas or objects that belong to another role; a schema of a later version, or whose migrations had
/// another text; errors of the hub.
pub async fn migrate(client: &Client) -> Result<Vec<&'static str>, HubError> {
    ownership::check(client).await?;
    create_lock_tables(client).await?;
    let mut applied = Vec::new();
    for migration in MIGRATIONS {
        if current_version(client).await? < migration.number && apply(client, migration).await? {
            applied.push(migration.name);
        }
    }
    check(client).await?;
    if apply_functions(client).await? {
        applied.push("functions");
    }
    Ok(applied)
}

/// Compares the applied migrations with those of this version.
async fn check(client: &Client) -> Result<(), HubError> {
    let newest = MIGRATIONS.last().map_or(0, |migration| migration.number);
    let recorded = "SELECT number, to_jsonb(m)->>'sha256' FROM spcd.migration m ORDER BY number";
    for row in client.query(recorded, &[]).await? {
        let (number, recorded): (i32, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let Some(migration) = MIGRATIONS
            .iter()
            .find(|migration| migration.number == number)
        else {
            return refuse(format!(
                "the schema spcd was created by a later version (migration {number}; this one knows \
                 {newest}): install that version"
            ));
        };
        if recorded.as_deref() != Some(sha256(migration.text).as_str()) {
            return refuse(format!(
                "migration {number} was applied to the schema spcd with another text than this version \
                 has: it was created by a version that was not released, or changed by hand; install the \
                 version that made it, or run `spcd destroy` with that one and start anew"
            ));
        }
    }
    Ok(())
}

fn refuse<T>(text: String) -> Result<T, HubError> {
    let code = SqlState::FEATURE_NOT_SUPPORTED;
    Err(HubError::StatementFailed { text, code })
}

/// The SHA-256 of a text in hexadecimal.
fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Creates the schema of the locks. Of two daemons that start at once, one creates it and the other
/// waits for the commit.
async fn create_lock_tables(client: &Client) -> Result<(), HubError> {
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'spcd_lock')";
    for _ in 0..MAX_ATTEMPTS {
        if client.query_one(there, &[]).await?.try_get(0)? {
            return ownership::check(client).await;
        }
        begin_within(client, LOCK_TIMEOUT).await?;
        let made = client
            .batch_execute(CREATE_LOCK_TABLES)
            .await
            .map_err(HubError::from);
        match end(client, made).await {
            Err(HubError::StatementFailed { code, .. })
                if [
                    SqlState::UNIQUE_VIOLATION,
                    SqlState::DUPLICATE_SCHEMA,
                    SqlState::LOCK_NOT_AVAILABLE,
                ]
                .contains(&code) => {}
            made => return made,
        }
    }
    Err(HubError::StatementFailed {
        text: "another session creates the schema \"spcd_lock\" and does not finish".into(),
        code: SqlState::LOCK_NOT_AVAILABLE,
    })
}

/// Applies a migration under the lock, unless another daemon has applied it.
async fn apply(client: &Client, migration: &Migration) -> Result<bool, HubError> {
    let Migration { number, name, text } = migration;
    locked(client, async || {
        // Re-check: another session may have applied it meanwhile.
        if current_version(client).await? >= *number {
            return Ok(false);
        }
        client.batch_execute(text).await?;
        let record = "INSERT INTO spcd.migration (number, name, sha256) VALUES ($1, $2, $3)";
        client
            .execute(record, &[number, name, &sha256(text)])
            .await?;
        Ok(true)
    })
    .await
}

/// Applies the functions under the lock, unless the database has the same or a later revision.
async fn apply_functions(client: &Client) -> Result<bool, HubError> {
    let (revision, sha256) = (functions_revision(), sha256(FUNCTIONS));
    let current = async || {
        let sql = "SELECT EXISTS (SELECT FROM spcd.repeatable_script WHERE name = 'functions'
                                  AND (revision > $1 OR sha256 = $2))";
        let row = client.query_one(sql, &[&revision, &sha256]).await?;
        Ok::<bool, HubError>(row.try_get(0)?)
    };
    if current().await? {
        return Ok(false);
    }
    locked(client, async || {
        if current().await? {
            return Ok(false);
        }
        client.batch_execute(FUNCTIONS).await?;
        let record = "INSERT INTO spcd.repeatable_script (name, revision, sha256)
                      VALUES ('functions', $1, $2)
                      ON CONFLICT (name) DO UPDATE SET revision = excluded.revision,
                          sha256 = excluded.sha256, applied_at = pg_catalog.clock_timestamp()";
        client.execute(record, &[&revision, &sha256]).await?;
        Ok(true)
    })
    .await
}

/// Runs statements in a transaction under the lock of migrations. Logs the sessions that it waits for.
/// Fails after the maximum number of attempts.
async fn locked(
    client: &Client,
    work: impl AsyncFn() -> Result<bool, HubError>,
) -> Result<bool, HubError> {
    let mut attempts = 0;
    loop {
        begin_within(client, LOCK_TIMEOUT).await?;
        let lock = "LOCK TABLE spcd_lock.migration IN EXCLUSIVE MODE";
        let done = match client.batch_execute(lock).await {
            Ok(()) => work().await,
            Err(error) => Err(error.into()),
        };
        match end(client, done).await {
            Err(error) if error.is_lock_timeout() && attempts < MAX_ATTEMPTS => {
                attempts += 1;
                let holders = leader::lock_holders(client).await?;
                tracing::warn!(holders, "the schema spcd is locked; waiting to migrate it");
            }
            done => return done,
        }
    }
}

async fn begin_within(client: &Client, limit: Duration) -> Result<(), HubError> {
    let limit = limit.as_millis();
    let begin = format!("BEGIN; SET LOCAL lock_timeout = {limit}");
    Ok(client.batch_execute(&begin).await?)
}

async fn end<T>(client: &Client, result: Result<T, HubError>) -> Result<T, HubError> {
    let end = match &result {
        Ok(_) => "COMMIT",
        Err(_) => "ROLLBACK",
    };
    client.batch_execute(end).await?;
    result
}

/// Returns the number of the last applied migration, or 0.
async fn current_version(client: &Client) -> Result<i32, HubError> {
    // Reads the catalog, since to_regclass uses a cache that may predate the wait for another session's
    // lock in the same transaction.
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class AS c
                                JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                                WHERE n.nspname = 'spcd' AND c.relname = 'migration'),
                        EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'spcd')";
    let row = client.query_one(there, &[]).await?;
    if !row.get::<_, bool>(0) {
        if row.get::<_, bool>(1) {
            return Err(HubError::StatementFailed {
                text: "a schema named \"spcd\" exists that spcd did not create: rename or drop it"
                    .into(),
                code: SqlState::DUPLICATE_SCHEMA,
            });
        }
        return Ok(0);
    }
    let row = client
        .query_one("SELECT coalesce(max(number), 0) FROM spcd.migration", &[])
        .await?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests {
    use super::{FUNCTIONS, MIGRATIONS, functions_revision};

    #[test]
    fn migrations_are_numbered_without_a_gap() {
        let numbers: Vec<i32> = MIGRATIONS
            .iter()
            .map(|migration| migration.number)
            .collect();
        assert_eq!(numbers, (1..).take(numbers.len()).collect::<Vec<_>>());
        assert_eq!(MIGRATIONS[0].name, "state");
    }

    #[test]
    fn each_file_of_functions_has_a_revision() {
        let lines = FUNCTIONS.lines();
        let revisions = lines.filter(|line| line.starts_with("-- Revision "));
        assert_eq!(revisions.count(), 11);
        assert!(functions_revision() >= 11);
    }
}
