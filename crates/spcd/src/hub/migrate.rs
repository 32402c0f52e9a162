//! The schema `spcd`, made by the numbered files in `migrations/`.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{HubError, lead, ownership};

/// Number, name and text of each file, in order.
const MIGRATIONS: &[(i32, &str, &str)] = &[
    (
        1,
        "state",
        include_str!("../../../../migrations/0001_state.sql"),
    ),
    (
        2,
        "aggregator",
        include_str!("../../../../migrations/0002_aggregator.sql"),
    ),
    (
        3,
        "search_path",
        include_str!("../../../../migrations/0003_search_path.sql"),
    ),
    (
        4,
        "health",
        include_str!("../../../../migrations/0004_health.sql"),
    ),
    (
        5,
        "comments",
        include_str!("../../../../migrations/0005_comments.sql"),
    ),
];

/// Locks lie where no other role can reach them: a role that may name a table can hold a lock on it, with
/// a statement that is only prepared. A partitioned table has no storage, so vacuum never waits.
const LOCKS: &str = "
    CREATE SCHEMA spcd_lock;
    COMMENT ON SCHEMA spcd_lock IS 'locks of spcd: who leads, who migrates, whose turn it is to write events';
    CREATE TABLE spcd_lock.migration (nothing boolean) PARTITION BY LIST (nothing);
    CREATE TABLE spcd_lock.lead (nothing boolean) PARTITION BY LIST (nothing);
    CREATE TABLE spcd_lock.event_order (nothing boolean) PARTITION BY LIST (nothing);";

/// How long a daemon waits for another one that migrates, before it says who that is and waits on.
const WAIT: Duration = Duration::from_secs(10);
/// How often it does so before it gives up.
const TRIES: u32 = 30;

/// The text of each migration.
pub fn texts() -> impl Iterator<Item = &'static str> {
    MIGRATIONS.iter().map(|(_, _, text)| *text)
}

/// Applies what is missing, each file in its own transaction; returns the names of what was applied.
///
/// # Errors
/// Schemas or objects in them that belong to another role; a schema of a later version; the hub's.
pub async fn migrate(client: &Client) -> Result<Vec<&'static str>, HubError> {
    ownership::check(client).await?;
    make_locks(client).await?;
    let mut applied = Vec::new();
    for migration in MIGRATIONS {
        if current(client).await? < migration.0 && apply(client, migration).await? {
            applied.push(migration.1);
        }
    }
    let (newest, _, _) = MIGRATIONS[MIGRATIONS.len() - 1];
    let at = current(client).await?;
    if at > newest {
        return Err(HubError::Refused {
            text: format!(
                "the schema spcd was made by a later version (migration {at}; this one knows {newest}): \
                 install that version"
            ),
            code: SqlState::FEATURE_NOT_SUPPORTED,
        });
    }
    Ok(applied)
}

/// Makes the schema of the locks. Of two daemons that start at once, one creates it and the other
/// waits for its commit.
async fn make_locks(client: &Client) -> Result<(), HubError> {
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'spcd_lock')";
    for _ in 0..TRIES {
        if client.query_one(there, &[]).await?.try_get(0)? {
            return ownership::check(client).await;
        }
        begin_within(client, WAIT).await?;
        let made = client.batch_execute(LOCKS).await.map_err(HubError::from);
        match end(client, made).await {
            Err(HubError::Refused { code, .. })
                if [
                    SqlState::UNIQUE_VIOLATION,
                    SqlState::DUPLICATE_SCHEMA,
                    SqlState::LOCK_NOT_AVAILABLE,
                ]
                .contains(&code) => {}
            made => return made,
        }
    }
    Err(HubError::Refused {
        text: "another session is making the schema \"spcd_lock\" and does not end".into(),
        code: SqlState::LOCK_NOT_AVAILABLE,
    })
}

/// Applies one file under the lock, unless another daemon did so first.
async fn apply(
    client: &Client,
    (number, name, text): &(i32, &str, &str),
) -> Result<bool, HubError> {
    let mut tries = 0;
    loop {
        begin_within(client, WAIT).await?;
        let applied = async {
            let lock = "LOCK TABLE spcd_lock.migration IN EXCLUSIVE MODE";
            client.batch_execute(lock).await?;
            // Re-check: another session may have applied it meanwhile.
            if current(client).await? >= *number {
                return Ok(false);
            }
            client.batch_execute(text).await?;
            let record = "INSERT INTO spcd.migration (number, name) VALUES ($1, $2)";
            client.execute(record, &[number, name]).await?;
            Ok::<_, HubError>(true)
        }
        .await;
        match end(client, applied).await {
            Err(error) if error.is_blocked() && tries < TRIES => {
                tries += 1;
                let holders = lead::holders(client).await?;
                tracing::warn!(holders, "the schema spcd is locked; waiting to migrate it");
            }
            applied => return applied,
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

/// The number of the last file that was applied; 0: none.
async fn current(client: &Client) -> Result<i32, HubError> {
    // By reading the catalog: to_regclass and its like answer from a cache, which within a
    // transaction still says what was true before another session's lock was waited for.
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class AS c
                                JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                                WHERE n.nspname = 'spcd' AND c.relname = 'migration'),
                        EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'spcd')";
    let row = client.query_one(there, &[]).await?;
    if !row.get::<_, bool>(0) {
        if row.get::<_, bool>(1) {
            return Err(HubError::Refused {
                text: "a schema named \"spcd\" exists that spcd did not make: rename or drop it"
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
