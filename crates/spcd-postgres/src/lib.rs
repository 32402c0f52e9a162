//! Access to the Postgres servers that spcd manages: sessions, leader election, migrations, observation,
//! imports and writes. Makes no decisions: plans and commands come from `spcd-core`.

pub mod adopt;
pub mod catalog;
pub mod config_files;
pub mod connection;
pub mod crash_guard;
pub mod destroy;
mod error;
pub mod extension;
pub mod gateway;
pub mod gateway_reader;
pub mod import;
pub mod leader;
mod limits;
mod lock_holders;
pub mod migrations;
pub mod mirror;
pub mod probe;
pub mod search_path;
pub mod secrets;
pub mod steampipe;
mod transaction;
pub mod writer;

use tokio_postgres::Client;

pub use error::HubError;
use error::one_line;
pub use limits::Limits;

/// Returns whether a relation exists, given by its qualified name as SQL writes it.
pub async fn has_relation(client: &Client, name: &str) -> Result<bool, HubError> {
    let sql = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
    Ok(client.query_one(sql, &[&name]).await?.try_get(0)?)
}

/// Returns whether the encoding of the hub's database is UTF8.
pub async fn is_utf8(client: &Client) -> Result<bool, HubError> {
    let sql = "SELECT pg_catalog.current_setting('server_encoding') = 'UTF8'";
    Ok(client.query_one(sql, &[]).await?.try_get(0)?)
}
