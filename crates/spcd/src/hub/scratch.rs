//! The schema, server and user mapping through which a source is asked. They are never committed.

use spcd_core::config::Target;
use spcd_core::sql;
use tokio_postgres::Client;

use super::{HubError, apply};

/// The statements that make schema, server and mapping, all of one name; the mapping's options are
/// on their way already.
pub(super) async fn prepare(
    client: &Client,
    name: &str,
    target: &Target,
) -> Result<String, HubError> {
    let mut options = target.server_options();
    for (option, value) in &target.ask {
        options.insert(option.clone(), value.clone());
    }
    apply::send_secrets(client, [(name, &target.mapping)]).await?;
    Ok([
        sql::create_schema(name),
        sql::create_server(name, &target.wrapper, &options),
        sql::create_user_mappings([name]),
    ]
    .concat())
}
