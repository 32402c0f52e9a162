//! Whether a source that lists its connections has the tables of one.

use std::collections::BTreeSet;

use spcd_core::config::ForeignSource;
use spcd_core::sql;
use tokio_postgres::Client;

use crate::HubError;
use crate::import::source_catalog;

/// Fails unless the source says that the target's connection is ready. All questions of a transaction see
/// one state of the source, so its catalog, read in the same one, is complete. Schema and server of that
/// `name` exist.
///
/// # Errors
/// [`HubError::SourceAtWork`], and what the source refuses.
pub(super) async fn ensure_ready(
    client: &Client,
    name: &str,
    target: &ForeignSource,
) -> Result<(), HubError> {
    let schema = target.import.schema.as_str();
    match ready(client, name, target, &[schema]).await? {
        Some(ready) if !ready.contains(schema) => Err(HubError::SourceAtWork),
        _ => Ok(()),
    }
}

/// Returns which of these connections the source says are ready; `None`: it does not list them.
pub(super) async fn ready(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    schemas: &[&str],
) -> Result<Option<BTreeSet<String>>, HubError> {
    let Some(kind) = target.follows else {
        return Ok(None);
    };
    let [name_column, state_column] = kind.columns();
    let columns = [(name_column, "text"), (state_column, "text")];
    let local = "source_state";
    let create = source_catalog::foreign_table(name, name, local, kind.table(), &columns);
    let query = format!(
        "{create}SELECT {} FROM {} WHERE {} = 'ready' AND {} IN ({})",
        sql::ident(name_column),
        sql::qualified(name, local),
        sql::ident(state_column),
        sql::ident(name_column),
        source_catalog::literals(schemas)
    );
    let mut ready = BTreeSet::new();
    for message in client.simple_query(&query).await? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            ready.extend(row.try_get(0)?.map(str::to_owned));
        }
    }
    Ok(Some(ready))
}
