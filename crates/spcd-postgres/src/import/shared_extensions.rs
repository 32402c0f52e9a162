//! Extensions that both a Postgres source and the hub have: postgres_fdw sends their operators and
//! functions to the source.

use std::collections::BTreeMap;

use spcd_core::config::ForeignSource;
use spcd_core::sql;
use spcd_core::tuning;
use tokio_postgres::Client;

use super::source_catalog;
use crate::HubError;

/// Extensions of the hub that have an operator or an immutable function: postgres_fdw sends no others.
const HUB_EXTENSIONS: &str = r#"SELECT e.extname::text, e.extversion FROM pg_catalog.pg_extension e
    WHERE e.extname <> 'plpgsql' AND EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        LEFT JOIN pg_catalog.pg_proc p ON d.classid = 'pg_catalog.pg_proc'::regclass AND p.oid = d.objid
        WHERE d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.refobjid = e.oid
          AND d.deptype = 'e'
          AND (d.classid = 'pg_catalog.pg_operator'::regclass OR p.provolatile = 'i'))
    ORDER BY e.extname COLLATE "C""#;

/// Returns the extensions in byte order, in the open transaction in which server and schema of that name
/// exist. Returns `None` if the source does not list its extensions, or if spcd does not set the option.
pub(super) async fn find(
    client: &Client,
    name: &str,
    target: &ForeignSource,
) -> Result<Option<Vec<String>>, HubError> {
    if !target.is_tuned() || target.has_written_option("extensions") {
        return Ok(None);
    }
    let mut of_hub: Vec<(String, String)> = Vec::new();
    for row in client.query(HUB_EXTENSIONS, &[]).await? {
        of_hub.push((row.try_get(0)?, row.try_get(1)?));
    }
    if of_hub.is_empty() {
        return Ok(Some(Vec::new()));
    }
    client.batch_execute("SAVEPOINT spcd_extensions").await?;
    let of_source = match of_source(client, name).await {
        Ok(found) => found,
        Err(HubError::StatementFailed { .. }) => {
            client.batch_execute("ROLLBACK TO spcd_extensions").await?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let is_shared = |(extension, version): &(String, String)| {
        let there = of_source.get(extension);
        there.is_some_and(|there| tuning::is_shippable(version, there))
    };
    let shared = of_hub.into_iter().filter(is_shared);
    Ok(Some(shared.map(|(extension, _)| extension).collect()))
}

async fn of_source(client: &Client, name: &str) -> Result<BTreeMap<String, String>, HubError> {
    let columns = [("extname", "text"), ("extversion", "text")];
    let table = source_catalog::catalog_table(name, "pg_extension", &columns);
    client.batch_execute(&table).await?;
    let query = format!(
        "SELECT extname, extversion FROM {}",
        sql::qualified(name, "pg_extension")
    );
    let mut found = BTreeMap::new();
    for row in client.query(&query, &[]).await? {
        found.insert(row.try_get(0)?, row.try_get(1)?);
    }
    Ok(found)
}
