//! Search paths of roles: read in each pass, and set only if they differ.

use spcd_core::observed::Role;
use spcd_core::search_path::SearchPathChange;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::{HubError, transaction};

/// A role whose path could not be set.
#[derive(Debug)]
pub struct FailedRole {
    /// The role.
    pub role: String,
    /// Error text.
    pub reason: String,
    /// Whether a retry may succeed, for example after a concurrent ALTER ROLE.
    pub is_transient: bool,
}

/// Returns the roles whose path spcd manages, and those whose path it has set.
pub async fn roles(client: &Client) -> Result<Vec<Role>, HubError> {
    let sql = "SELECT role_name::text, member, own, path_hash, there, touched
               FROM spcd.role_path ORDER BY role_name";
    let rows = client.query(sql, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Role {
                name: row.try_get(0)?,
                member: row.try_get(1)?,
                own: row.try_get(2)?,
                set: row.try_get(3)?,
                there: row.try_get(4)?,
                are_settings_changed: row.try_get(5)?,
                refused: None,
            })
        })
        .collect()
}

/// Sets and resets paths, one role at a time. A failure affects only its own role.
pub async fn set(
    client: &Client,
    epoch: i64,
    change: &SearchPathChange,
) -> Result<Vec<FailedRole>, HubError> {
    transaction::begin(client, epoch).await?;
    let result = async {
        let forget = "DELETE FROM spcd.role_search_path WHERE role_name = ANY ($1)";
        client.execute(forget, &[&change.release]).await?;
        let refresh = "SELECT spcd.record_search_path($1, NULL)";
        client
            .execute(refresh, &[&change.refresh_fingerprint])
            .await?;
        let set = "SELECT role_name, state, reason FROM spcd.set_search_path($1, $2, $3)";
        let path = Some(&change.path);
        let mut rows = client
            .query(set, &[&change.set, &path, &change.hash])
            .await?;
        let none: Option<&String> = None;
        rows.extend(
            client
                .query(set, &[&change.reset, &none, &change.hash])
                .await?,
        );
        let failed = rows.iter().map(|row| {
            let state: &str = row.try_get(1)?;
            let transient = [
                SqlState::INTERNAL_ERROR,
                SqlState::T_R_DEADLOCK_DETECTED,
                SqlState::LOCK_NOT_AVAILABLE,
            ];
            Ok(FailedRole {
                role: row.try_get(0)?,
                reason: row.try_get(2)?,
                is_transient: transient.iter().any(|code| code.code() == state),
            })
        });
        failed.collect::<Result<Vec<_>, HubError>>()
    };
    let (failed, result) = match result.await {
        Ok(failed) => (failed, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    transaction::end(client, result).await?;
    Ok(failed)
}
