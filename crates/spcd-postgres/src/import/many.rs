//! The tables of many schemas of one source.

use std::collections::BTreeMap;

use spcd_core::config::ForeignSource;
use spcd_core::diff;
use spcd_core::planner::RemoteSchema;

use super::{is_source_error, privileges, redact_error, redact_schema, source_catalog};
use super::{source_state, temporary_server, unique_name};
use crate::HubError;
use crate::connection::Session;
use crate::transaction::rolled_back;

/// Returns the tables of schemas of a source, normalized. Omits schemas that the catalog does not describe
/// completely: each of them needs an import.
///
/// # Errors
/// The source answers no query.
pub async fn fetch_remote_schemas(
    session: &Session,
    target: &ForeignSource,
    schemas: &[&str],
) -> Result<BTreeMap<String, RemoteSchema>, HubError> {
    let name = unique_name("spcd_ask");
    if !source_catalog::is_supported(target) {
        return Ok(BTreeMap::new());
    }
    let read = rolled_back(&session.client, read(session, &name, target, schemas)).await;
    match read {
        Ok(found) => {
            let redact = |(schema, remote)| (schema, redact_schema(remote, &name, target));
            Ok(found.into_iter().map(redact).collect())
        }
        Err(error) if is_source_error(&error) => Err(redact_error(error, &name, target)),
        Err(_) => Ok(BTreeMap::new()),
    }
}

async fn read(
    session: &Session,
    name: &str,
    target: &ForeignSource,
    schemas: &[&str],
) -> Result<BTreeMap<String, RemoteSchema>, HubError> {
    let client = &session.client;
    let before = temporary_server::prepare(client, name, target).await?;
    let found = source_catalog::read_many(client, name, &before, target, schemas).await?;
    let ready = source_state::ready(client, name, target, schemas).await?;
    let is_ready = |schema: &str| ready.as_ref().is_none_or(|ready| ready.contains(schema));
    let mut remote_schemas: BTreeMap<String, RemoteSchema> = BTreeMap::new();
    for (schema, catalog) in found {
        if !is_ready(&schema) {
            continue;
        }
        let mut remote = RemoteSchema {
            tables: catalog.tables,
            warnings: catalog.warnings,
            left_out: catalog.left_out,
            ..RemoteSchema::default()
        };
        diff::normalize(&mut remote.tables, target.wrapper_traits());
        remote_schemas.insert(schema, remote);
    }
    if target.dynamic {
        privileges::check_many(client, name, target, &mut remote_schemas).await?;
    }
    Ok(remote_schemas)
}
