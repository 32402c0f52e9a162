//! Checks the state of a connection at a source that lists its connections.

use std::collections::BTreeSet;

use spcd_core::config::ForeignSource;
use spcd_core::sql;
use tokio_postgres::Client;

use crate::HubError;
use crate::import::source_catalog;

/// Fails unless the source's list says that the target's connection is ready. All queries of a transaction
/// see the same snapshot of the source, so a catalog that is read in it is complete. Schema and server of
/// that `name` exist.
///
/// # Errors
/// [`HubError::SourceAtWork`], and errors of the source.
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

/// Returns which of these connections are ready according to the source; `None` if it does not list them.
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
