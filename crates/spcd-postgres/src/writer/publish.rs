//! Writes rows of `spcd.connection_state` and announces them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use spcd_core::planner::RowChange;
use spcd_core::sql;
use tokio_postgres::Client;

use crate::{HubError, transaction};

/// Writes row changes, fingerprints (given, or computed if `None`) and diagnostics in one transaction.
pub async fn publish(
    client: &Client,
    epoch: i64,
    generation: i64,
    rows: &[RowChange],
    refreshed: &[(&str, Option<&str>)],
    diagnostics: Option<&Value>,
) -> Result<(), HubError> {
    transaction::begin(client, epoch).await?;
    let mut text = String::new();
    if let Some(diagnostics) = diagnostics {
        let _ = writeln!(
            text,
            "DELETE FROM spcd.config_diagnostic;
             INSERT INTO spcd.config_diagnostic
             SELECT * FROM pg_catalog.jsonb_populate_recordset(NULL::spcd.config_diagnostic, {}::jsonb);",
            sql::literal(&diagnostics.to_string())
        );
    }
    let fingerprints: BTreeMap<&str, &str> = (refreshed.iter())
        .filter_map(|(name, fingerprint)| Some((*name, (*fingerprint)?)))
        .collect();
    if !fingerprints.is_empty() {
        let _ = writeln!(
            text,
            "UPDATE spcd.applied a SET fingerprint = l.value
             FROM pg_catalog.jsonb_each_text({}::jsonb) l WHERE a.connection_name = l.key;",
            sql::literal(&json!(fingerprints).to_string())
        );
    }
    let unknown = refreshed
        .iter()
        .filter(|(_, fingerprint)| fingerprint.is_none());
    let unknown: Vec<&str> = unknown.map(|(name, _)| *name).collect();
    if !unknown.is_empty() {
        let names = sql::text_array(unknown);
        let _ = writeln!(text, "SELECT spcd.refresh_fingerprint({names});");
    }
    publish_statement(generation, rows.iter(), &mut text);
    let result = client.batch_execute(&text).await.map_err(HubError::from);
    transaction::end(client, result).await
}

pub(super) fn publish_statement<'a>(
    generation: i64,
    rows: impl Iterator<Item = &'a RowChange>,
    text: &mut String,
) {
    let rows: Vec<&RowChange> = rows.collect();
    if rows.is_empty() {
        return;
    }
    // Serializing strings, numbers and lists of strings cannot fail.
    let json = serde_json::to_string(&rows).unwrap_or_default();
    let _ = writeln!(
        text,
        "SELECT spcd.publish({generation}, {}::jsonb);",
        sql::literal(&json)
    );
}
