//! The schema `spcd`, made by the numbered files in `migrations/` and by the functions there.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{HubError, lead, ownership};

/// A numbered file of `migrations/`. Once it is released it never changes.
struct Migration {
    number: i32,
    name: &'static str,
    text: &'static str,
}

/// All of them, in order.
const MIGRATIONS: &[Migration] = &[
    Migration {
        number: 1,
        name: "state",
        text: include_str!("../../../../migrations/0001_state.sql"),
    },
    Migration {
        number: 2,
        name: "source_types",
        text: include_str!("../../../../migrations/0002_source_types.sql"),
    },
];

/// The functions and views: applied again whenever they change.
const FUNCTIONS: &str = concat!(
    include_str!("../../../../migrations/functions/fingerprint.sql"),
    include_str!("../../../../migrations/functions/publish.sql"),
    include_str!("../../../../migrations/functions/mappings.sql"),
    include_str!("../../../../migrations/functions/leader.sql"),
    include_str!("../../../../migrations/functions/requests.sql"),
    include_str!("../../../../migrations/functions/wait.sql"),
    include_str!("../../../../migrations/functions/aggregator.sql"),
    include_str!("../../../../migrations/functions/search_path.sql"),
    include_str!("../../../../migrations/functions/health.sql"),
    include_str!("../../../../migrations/functions/comments.sql"),
    include_str!("../../../../migrations/functions/rights.sql"),
);
/// Grows with each release that changes [`FUNCTIONS`]: while two versions run beside each other, the
/// older one does not replace what the newer one made.
const FUNCTIONS_REVISION: i32 = 1;

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

/// The text of everything that makes objects in the schema.
pub fn texts() -> impl Iterator<Item = &'static str> {
    let numbered = MIGRATIONS.iter().map(|migration| migration.text);
    numbered.chain([FUNCTIONS])
}

/// Applies what is missing, each file in its own transaction, then the functions if they changed.
/// Returns the names of what was applied.
///
/// # Errors
/// Schemas or objects in them that belong to another role; a schema of a later version, or one whose
/// migrations had another text; the hub's.
pub async fn migrate(client: &Client) -> Result<Vec<&'static str>, HubError> {
    ownership::check(client).await?;
    make_locks(client).await?;
    let mut applied = Vec::new();
    for migration in MIGRATIONS {
        if current(client).await? < migration.number && apply(client, migration).await? {
            applied.push(migration.name);
        }
    }
    check(client).await?;
    if apply_functions(client).await? {
        applied.push("functions");
    }
    Ok(applied)
}

/// Compares what was applied with the files of this version.
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
                "the schema spcd was made by a later version (migration {number}; this one knows \
                 {newest}): install that version"
            ));
        };
        if recorded.as_deref() != Some(sha256(migration.text).as_str()) {
            return refuse(format!(
                "migration {number} was applied to the schema spcd with another text than this version \
                 has: it was made by a version that was not released, or changed by hand; install the \
                 version that made it, or run `spcd destroy` with that one and start anew"
            ));
        }
    }
    Ok(())
}

fn refuse<T>(text: String) -> Result<T, HubError> {
    let code = SqlState::FEATURE_NOT_SUPPORTED;
    Err(HubError::Refused { text, code })
}

/// The SHA-256 of a text in hexadecimal.
fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
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
async fn apply(client: &Client, migration: &Migration) -> Result<bool, HubError> {
    let Migration { number, name, text } = migration;
    locked(client, async || {
        // Re-check: another session may have applied it meanwhile.
        if current(client).await? >= *number {
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

/// Applies the functions under the lock, unless they are there as this version has them, or as a later
/// one has.
async fn apply_functions(client: &Client) -> Result<bool, HubError> {
    let sha256 = sha256(FUNCTIONS);
    let current = async || {
        let sql = "SELECT EXISTS (SELECT FROM spcd.repeatable_script WHERE name = 'functions'
                                  AND (revision > $1 OR sha256 = $2))";
        let row = client
            .query_one(sql, &[&FUNCTIONS_REVISION, &sha256])
            .await?;
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
        client
            .execute(record, &[&FUNCTIONS_REVISION, &sha256])
            .await?;
        Ok(true)
    })
    .await
}

/// Runs statements in a transaction under the lock of migrations. Waits for another session that
/// has locked the schema, says which, and gives up in the end.
async fn locked(
    client: &Client,
    work: impl AsyncFn() -> Result<bool, HubError>,
) -> Result<bool, HubError> {
    let mut tries = 0;
    loop {
        begin_within(client, WAIT).await?;
        let lock = "LOCK TABLE spcd_lock.migration IN EXCLUSIVE MODE";
        let done = match client.batch_execute(lock).await {
            Ok(()) => work().await,
            Err(error) => Err(error.into()),
        };
        match end(client, done).await {
            Err(error) if error.is_blocked() && tries < TRIES => {
                tries += 1;
                let holders = lead::holders(client).await?;
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
