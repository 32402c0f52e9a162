//! Dry run of an import: the source's tables and the objects that block their changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spcd_core::diff::{self, Blockers, Renames, TableChange};
use spcd_core::naming;
use spcd_core::observed::{Detail, ImportPreview};
use spcd_core::planner::Import;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::catalog::aggregators;
use crate::catalog::dependents;
use crate::catalog::observe;
use crate::connection::Endpoint;
use crate::import;
use crate::{HubError, secrets};

/// Default time limit of an import.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Fetches the source's tables in a session of its own, and observes the connection.
pub async fn preview_import(
    endpoint: &Endpoint,
    name: &str,
    import: &Import,
) -> anyhow::Result<(Detail, ImportPreview)> {
    let session = endpoint.connect("plan").await?;
    let client = &session.client;
    client.batch_execute("SET lock_timeout = '2s'").await?;
    secrets::prepare(client).await?;
    let mut detail = Detail::default();
    if import.applied.is_some() {
        let found = observe::details(client, &[name.to_owned()], import.readers).await?;
        detail = found.into_values().next().unwrap_or_default();
        diff::normalize(&mut detail.tables, import.target.wrapper_traits());
    }
    let seconds = import.target.import.timeout;
    let deadline = seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let fetched = async {
        let remote = import::fetch_remote_schema(&session, &import.target).await?;
        let remote = match import.target.dynamic || !import::reports_privileges(&import.target) {
            true => remote,
            false => import::check_privileges(client, &import.target, remote).await?,
        };
        Ok(naming::apply(&remote, &import.target).into_owned())
    };
    let answer = match timeout(deadline, fetched).await {
        Ok(answer) => answer.map_err(|error: HubError| error.to_string()),
        Err(_) => {
            session.canceller().cancel().await?;
            Err(format!("no answer within {} s", deadline.as_secs()))
        }
    };
    let mut ahead = ImportPreview {
        tables: answer,
        blockers: Blockers::default(),
    };
    if let (Ok(tables), true) = (&ahead.tables, import.applied.is_some()) {
        let aligned = import.align(&detail, tables, &BTreeMap::new());
        let changes = import.changes(&aligned.detail, &aligned.remote);
        let following = Arc::default();
        let (detail, renames) = (&aligned.detail, &aligned.renames);
        let found = find_blockers(client, name, detail, renames, &changes, &following);
        ahead.blockers = found.await?.blockers;
    }
    Ok((detail, ahead))
}

/// Objects that block or follow changes of a connection's tables.
pub struct FoundBlockers {
    /// Objects of users.
    pub blockers: Blockers,
    /// Aggregators that read the tables.
    pub followers: Vec<aggregators::Follower>,
    /// Held while aggregators follow, since they cannot follow two members at once.
    pub guard: Option<OwnedMutexGuard<()>>,
}

/// Finds the objects that block changes of a connection's tables. Locks `following` first if
/// aggregators read the tables. Tables and columns have their new names; in the catalog they still have
/// those before `renames`.
pub async fn find_blockers(
    client: &Client,
    name: &str,
    detail: &Detail,
    renames: &Renames,
    changes: &[TableChange],
    following: &Arc<Mutex<()>>,
) -> Result<FoundBlockers, HubError> {
    let tables: Vec<&str> = (changes.iter())
        .filter(|change| change.may_break_dependents())
        .map(|change| renames.present_table(change.table()))
        .collect();
    let dependents = dependents::of_tables(client, name, &tables).await?;
    let mut blockers = Blockers {
        dependents: renames.rename_dependents(dependents),
        refused: detail.refused_alterations(changes),
        fixed: BTreeMap::new(),
    };
    let followers = aggregators::followers(client, name, &tables).await?;
    let mut guard = None;
    if !followers.is_empty() {
        guard = Some(following.clone().lock_owned().await);
        aggregators::add_blockers(client, &followers, changes, &mut blockers.dependents).await?;
    }
    Ok(FoundBlockers {
        blockers,
        followers,
        guard,
    })
}
