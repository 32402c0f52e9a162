//! Which changes of tables the server refuses: each is tried by itself, and nothing of it stays.

use std::collections::BTreeMap;

use spcd_core::observed::{Detail, Presence};
use spcd_core::plan::Import;
use spcd_core::shape::TableChange;
use spcd_core::sql;
use tokio_postgres::Client;

use super::HubError;

/// The tables whose change the server refuses, and why. `first` is what makes room for all of them.
pub async fn refused(
    client: &Client,
    name: &str,
    import: &Import,
    detail: &Detail,
    first: &str,
    changes: &[TableChange],
) -> Result<BTreeMap<String, String>, HubError> {
    let (schema, frame) = match frame(name, import, detail) {
        Some((schema, frame)) => (schema, format!("BEGIN;\n{first}{frame}")),
        // Everything is made anew: a server cannot change its wrapper.
        None => return Ok(BTreeMap::new()),
    };
    let refused = async {
        client.batch_execute(&frame).await?;
        try_each(client, name, &schema, changes).await
    };
    let refused = refused.await;
    if !matches!(refused, Err(HubError::Lost(_))) {
        client.batch_execute("ROLLBACK").await?;
    }
    refused
}

/// The schema in which the tables are tried, and what makes it and the server what they are to be.
fn frame(name: &str, import: &Import, detail: &Detail) -> Option<(String, String)> {
    let made = import.applied.as_ref();
    let mut schema = import.schema(name);
    let mut text = String::new();
    match made.filter(|applied| applied.schema == Presence::Ours) {
        Some(applied) => schema = applied.schema_of(name).to_owned(),
        None => text.push_str(&sql::create_schema(&schema)),
    }
    let (wrapper, options) = (&import.target.wrapper, import.target.server_options());
    match &detail.server {
        Some((old_wrapper, old)) if old_wrapper == wrapper => {
            text.push_str(&sql::alter_server(name, old, &options));
        }
        Some(_) => return None,
        None => text.push_str(&sql::create_server(name, wrapper, &options)),
    }
    Some((schema, text))
}

async fn try_each(
    client: &Client,
    name: &str,
    schema: &str,
    changes: &[TableChange],
) -> Result<BTreeMap<String, String>, HubError> {
    let mut refused = BTreeMap::new();
    for change in changes {
        let mut text = "SAVEPOINT spcd_trial;\n".to_owned();
        sql::change_table(schema, name, change, &mut text);
        match client.batch_execute(&text).await.map_err(HubError::from) {
            Ok(()) => client.batch_execute("RELEASE spcd_trial").await?,
            Err(error) if error.is_of_a_table() => {
                refused.insert(change.table().to_owned(), error.to_string());
                client.batch_execute("ROLLBACK TO spcd_trial").await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}
