//! The schema `spcd`, made by the numbered files in `migrations/`.

use tokio_postgres::Client;

use super::HubError;

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

/// Any number that other programs are unlikely to lock. It is held for as long as the migrations
/// run, so that two daemons that start at once apply each file once.
const LOCK: i64 = 0x7370_6364;

/// The text of each migration.
pub fn texts() -> impl Iterator<Item = &'static str> {
    MIGRATIONS.iter().map(|(_, _, text)| *text)
}

/// Applies what is missing, each file in its own transaction; returns the names of what was
/// applied.
pub async fn migrate(client: &Client) -> Result<Vec<&'static str>, HubError> {
    let mut applied = Vec::new();
    for (number, name, text) in MIGRATIONS {
        let at = current(client).await?;
        if at >= *number {
            continue;
        }
        client
            .batch_execute(&format!(
                "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({LOCK})"
            ))
            .await?;
        let result = async {
            // Somebody else may have been faster.
            if current(client).await? >= *number {
                return Ok(false);
            }
            client.batch_execute(text).await?;
            let record = "INSERT INTO spcd.migration (number, name) VALUES ($1, $2)";
            client.execute(record, &[number, name]).await?;
            Ok::<_, HubError>(true)
        }
        .await;
        match result {
            Ok(new) => {
                client.batch_execute("COMMIT").await?;
                applied.extend(new.then_some(*name));
            }
            Err(error) => {
                client.batch_execute("ROLLBACK").await?;
                return Err(error);
            }
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
            code: tokio_postgres::error::SqlState::FEATURE_NOT_SUPPORTED,
        });
    }
    Ok(applied)
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
                code: tokio_postgres::error::SqlState::DUPLICATE_SCHEMA,
            });
        }
        return Ok(0);
    }
    let row = client
        .query_one("SELECT coalesce(max(number), 0) FROM spcd.migration", &[])
        .await?;
    Ok(row.get(0))
}
