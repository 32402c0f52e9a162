//! The search paths of roles: looked at in each pass, set only where they differ.

use spcd_core::observed::Role;
use spcd_core::search_path::PathChange;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{HubError, transaction};

/// A role whose path could not be set.
#[derive(Debug)]
pub struct Failed {
    /// The role.
    pub role: String,
    /// Why.
    pub reason: String,
    /// Somebody altered it at the same moment: it may succeed when tried again.
    pub passing: bool,
}

/// The roles whose path is spcd's to set, and those that have what it set.
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
                touched: row.try_get(5)?,
            })
        })
        .collect()
}

/// Sets and takes back paths, one role after the other: what fails costs its own role only.
pub async fn set(
    client: &Client,
    epoch: i64,
    change: &PathChange,
) -> Result<Vec<Failed>, HubError> {
    transaction::begin(client, epoch).await?;
    let result = async {
        let forget = "DELETE FROM spcd.role_search_path WHERE role_name = ANY ($1)";
        client.execute(forget, &[&change.forget]).await?;
        let touched = "SELECT spcd.record_search_path($1, NULL)";
        client.execute(touched, &[&change.touched]).await?;
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
            let passing = [
                SqlState::INTERNAL_ERROR,
                SqlState::T_R_DEADLOCK_DETECTED,
                SqlState::LOCK_NOT_AVAILABLE,
            ];
            Ok(Failed {
                role: row.try_get(0)?,
                reason: row.try_get(2)?,
                passing: passing.iter().any(|passing| passing.code() == state),
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
