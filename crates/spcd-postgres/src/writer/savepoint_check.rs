//! Finds the table changes that the server refuses, by trying each in a savepoint that is rolled back.

use std::collections::BTreeMap;

use spcd_core::diff::{Rename, Renames, TableChange, TableRename};
use spcd_core::observed::{Detail, Presence};
use spcd_core::planner::Import;
use spcd_core::sql;
use tokio_postgres::Client;

use crate::HubError;

/// Returns the tables whose change the server refuses, with its errors. Runs `first` before all changes.
pub async fn refused_changes(
    client: &Client,
    name: &str,
    import: &Import,
    detail: &Detail,
    first: &str,
    changes: &[TableChange],
) -> Result<BTreeMap<String, String>, HubError> {
    let (schema, setup) = match setup(name, import, detail) {
        Some((schema, setup)) => (schema, format!("BEGIN;\n{first}{setup}")),
        // A server cannot change its wrapper, so all tables are created again.
        None => return Ok(BTreeMap::new()),
    };
    let refused = async {
        client.batch_execute(&setup).await?;
        let server = import.target.server_name(name);
        check_each(client, &server, &schema, changes).await
    };
    let refused = refused.await;
    if !matches!(refused, Err(HubError::ConnectionLost(_))) {
        client.batch_execute("ROLLBACK").await?;
    }
    refused
}

/// Returns the tables whose columns the server refuses to rename, by their present names, with its errors.
pub async fn refused_renames(
    client: &Client,
    name: &str,
    import: &Import,
    renames: &Renames,
) -> Result<BTreeMap<String, String>, HubError> {
    client.batch_execute("BEGIN").await?;
    let refused = try_renames(client, name, import, renames).await;
    if !matches!(refused, Err(HubError::ConnectionLost(_))) {
        client.batch_execute("ROLLBACK").await?;
    }
    refused
}

async fn try_renames(
    client: &Client,
    name: &str,
    import: &Import,
    renames: &Renames,
) -> Result<BTreeMap<String, String>, HubError> {
    let mut refused = BTreeMap::new();
    for one in renames.tables() {
        // The new name of the table may still belong to another one, which is renamed as well.
        let (from, to) = (one.table.from.clone(), one.table.from.clone());
        let columns = Renames::new(vec![TableRename {
            table: Rename { from, to },
            columns: one.columns.clone(),
        }]);
        let statements = import.rename_statements(name, &columns);
        let text = format!("SAVEPOINT spcd_trial;\n{statements}");
        match client.batch_execute(&text).await.map_err(HubError::from) {
            Ok(()) => {}
            Err(error) if error.may_concern_one_table() => {
                refused.insert(one.table.from.clone(), error.to_string());
            }
            Err(error) => return Err(error),
        }
        client.batch_execute("ROLLBACK TO spcd_trial").await?;
    }
    Ok(refused)
}

/// Returns the schema of the tables, and the statements that prepare it and the server.
fn setup(name: &str, import: &Import, detail: &Detail) -> Option<(String, String)> {
    let applied = import.applied.as_ref();
    let mut schema = import.schema(name);
    let mut text = String::new();
    match applied.filter(|applied| applied.schema == Presence::Ours) {
        Some(applied) => schema = applied.schema_of(name).to_owned(),
        None => text.push_str(&sql::create_schema(&schema)),
    }
    let (wrapper, options) = (&import.target.wrapper, import.target.server_options());
    if import.target.lane.is_some() {
        // The server is there.
        return Some((schema, text)).filter(|_| import.keeps_server(detail));
    }
    match &detail.server {
        Some((_, old)) if import.keeps_server(detail) => {
            text.push_str(&sql::alter_server(name, old, &options));
        }
        Some(_) => return None,
        None => text.push_str(&sql::create_server(name, wrapper, &options)),
    }
    Some((schema, text))
}

async fn check_each(
    client: &Client,
    server: &str,
    schema: &str,
    changes: &[TableChange],
) -> Result<BTreeMap<String, String>, HubError> {
    let mut refused = BTreeMap::new();
    for change in changes {
        let mut text = "SAVEPOINT spcd_trial;\n".to_owned();
        sql::change_table(schema, server, change, &mut text);
        match client.batch_execute(&text).await.map_err(HubError::from) {
            Ok(()) => client.batch_execute("RELEASE spcd_trial").await?,
            Err(error) if error.may_concern_one_table() => {
                refused.insert(change.table().to_owned(), error.to_string());
                client.batch_execute("ROLLBACK TO spcd_trial").await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}
