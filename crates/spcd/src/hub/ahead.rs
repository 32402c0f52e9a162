//! What a source would answer, and what stands in the way: for a dry run.

use std::sync::Arc;
use std::time::Duration;

use spcd_core::observed::{Ahead, Detail};
use spcd_core::plan::Import;
use spcd_core::shape::{self, Obstacles, TableChange};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;
use tokio_postgres::Client;

use super::connect::Endpoint;
use super::{HubError, apply, ask, dependents, observe, union};

/// How long a source may take where the configuration does not say.
const DEADLINE: Duration = Duration::from_secs(60);

/// Asks a connection's source, in a session of its own, and looks at what is there.
pub async fn ask(
    endpoint: &Endpoint,
    name: &str,
    import: &Import,
) -> anyhow::Result<(Detail, Ahead)> {
    let session = endpoint.connect("plan").await?;
    let client = &session.client;
    client.batch_execute("SET lock_timeout = '2s'").await?;
    apply::prepare_for_secrets(client).await?;
    let mut detail = Detail::default();
    if import.applied.is_some() {
        let found = observe::details(client, &[name.to_owned()], import.readers).await?;
        detail = found.into_values().next().unwrap_or_default();
        shape::normalize(&mut detail.tables, import.target.traits());
    }
    let seconds = import.target.import.timeout;
    let deadline = seconds.map_or(DEADLINE, Duration::from_secs);
    let answer = match timeout(deadline, ask::ask(&session, &import.target)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => {
            session.canceller().cancel().await?;
            Err(format!("no answer within {} s", deadline.as_secs()))
        }
    };
    let mut ahead = Ahead {
        tables: answer,
        obstacles: Obstacles::default(),
    };
    if let (Ok(tables), true) = (&ahead.tables, import.applied.is_some()) {
        let tables = tables.with_skipped(&detail.tables, &import.target.import);
        let changes = import.changes(&detail, &tables);
        ahead.obstacles = in_the_way(client, name, &changes, &Arc::default())
            .await?
            .obstacles;
    }
    Ok((detail, ahead))
}

/// What stands in the way of changes of a connection's tables.
pub struct InTheWay {
    /// What people made.
    pub obstacles: Obstacles,
    /// The aggregators that follow the tables.
    pub followers: Vec<union::Follower>,
    /// The turn of those who have followers.
    pub turn: Option<OwnedMutexGuard<()>>,
}

/// Looks for what stands in the way of changes of a connection's tables. Where aggregators follow
/// them, waits for one's turn in `following` first.
pub async fn in_the_way(
    client: &Client,
    name: &str,
    changes: &[TableChange],
    following: &Arc<Mutex<()>>,
) -> Result<InTheWay, HubError> {
    let risky: Vec<&str> = (changes.iter())
        .filter(|change| change.is_risky())
        .map(TableChange::table)
        .collect();
    let mut obstacles = Obstacles {
        dependents: dependents::of_tables(client, name, &risky).await?,
        ..Obstacles::default()
    };
    let followers = union::followers(client, name, &risky).await?;
    let mut turn = None;
    if !followers.is_empty() {
        turn = Some(following.clone().lock_owned().await);
        union::in_the_way(client, &followers, changes, &mut obstacles.dependents).await?;
    }
    Ok(InTheWay {
        obstacles,
        followers,
        turn,
    })
}
