//! Temporary schema, server and user mapping for queries of a source. They are never committed.

use spcd_core::config::ForeignSource;
use spcd_core::sql;
use tokio_postgres::Client;

use crate::{HubError, secrets};

/// Returns the statements that create schema, server and mapping under one name. Has already sent the
/// mapping's options.
pub(crate) async fn prepare(
    client: &Client,
    name: &str,
    target: &ForeignSource,
) -> Result<String, HubError> {
    let mut options = target.server_options();
    for (option, value) in &target.ask_options {
        options.insert(option.clone(), value.clone());
    }
    secrets::send(client, [(name, &target.mapping)]).await?;
    Ok([
        sql::create_schema(name),
        sql::create_server(name, &target.wrapper, &options),
        sql::create_user_mappings([name]),
    ]
    .concat())
}
