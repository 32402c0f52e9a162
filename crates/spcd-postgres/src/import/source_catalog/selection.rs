//! Which tables of a source's catalog are asked for.

use spcd_core::config::{ForeignSource, Import};
use spcd_core::sql;
use tokio_postgres::SimpleQueryMessage;

use super::literals;
use crate::HubError;

/// Returns the condition that selects the tables of remote schemas. Where each is named exactly, only those:
/// as in an import, a partition is one of them.
pub(in crate::import) fn table_condition(schemas: &[&str], import: &Import) -> String {
    let tables = match import.exact_tables() {
        Some(names) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!("c.relname IN ({})", literals(&names))
        }
        None => "NOT c.relispartition".to_owned(),
    };
    format!(
        "WHERE n.nspname IN ({}) AND c.relkind IN ('r', 'v', 'f', 'm', 'p') AND {tables}",
        literals(schemas)
    )
}

/// Returns the query for OIDs and names of all tables of the target's schema.
pub(super) fn names_query(name: &str, target: &ForeignSource) -> String {
    format!(
        "SELECT c.oid, c.relname FROM {} n JOIN {} c ON c.relnamespace = n.oid {};\n",
        sql::qualified(name, "pg_namespace"),
        sql::qualified(name, "pg_class"),
        table_condition(&[&target.import.schema], &Import::default()),
    )
}

/// Returns OIDs and names in the rows of [`names_query`].
pub(super) fn parse_names(messages: &[SimpleQueryMessage]) -> Result<Vec<(u32, String)>, HubError> {
    let mut names = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message
            && row.len() == 2
            && let (Some(oid), Some(table)) = (row.try_get(0)?, row.try_get(1)?)
        {
            names.extend(oid.parse().ok().map(|oid| (oid, table.to_owned())));
        }
    }
    Ok(names)
}
