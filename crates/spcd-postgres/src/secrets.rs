//! Sends secrets to a session so that no statement, log or view of the server shows them.

use std::collections::BTreeMap;

use spcd_core::secret::Secret;
use tokio_postgres::Client;

use crate::HubError;

/// Prepares a session for [`send`]. Disables the features of the server that would record the statement
/// which spcd's function executes: `pg_stat_statements.track = all` and dumps of parse trees.
pub async fn prepare(client: &Client) -> Result<(), HubError> {
    if crate::has_relation(client, "pg_temp.spcd_secret").await? {
        return Ok(());
    }
    let prepare = "
        CREATE TEMP TABLE spcd_secret
            (server text, option text, value text) ON COMMIT DELETE ROWS;
        SET debug_print_parse = off;
        SET debug_print_rewritten = off;
        SET debug_print_plan = off;
        DO $$ BEGIN
            -- NULL if the extension is not loaded.
            IF pg_catalog.current_setting('pg_stat_statements.track_utility', true) = 'on' THEN
                PERFORM pg_catalog.set_config('pg_stat_statements.track_utility', 'off', false);
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            -- `spcd doctor` reports it.
            NULL;
        END $$;
        DO $$ BEGIN
            -- The CONTEXT of a message during COPY contains the current line.
            PERFORM pg_catalog.set_config('log_error_verbosity', 'terse', false);
        EXCEPTION WHEN insufficient_privilege THEN
            -- docs/operations.md describes the remaining risk.
            NULL;
        END $$";
    Ok(client.batch_execute(prepare).await?)
}

/// Sends the options of user mappings by COPY, inside a transaction. Copied rows are not part of a
/// statement, so neither the log nor `pg_stat_activity` contains them.
pub async fn send<'a>(
    client: &Client,
    mappings: impl IntoIterator<Item = (&'a str, &'a BTreeMap<String, Secret>)>,
) -> Result<(), HubError> {
    let mut rows = String::new();
    for (server, options) in mappings {
        for (option, value) in options {
            for (text, end) in [
                (server, '\t'),
                (option.as_str(), '\t'),
                (value.expose(), '\n'),
            ] {
                copy_escape(text, &mut rows);
                rows.push(end);
            }
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    use futures_util::SinkExt as _;
    let sink = client
        .copy_in("COPY pg_temp.spcd_secret FROM STDIN")
        .await?;
    let mut sink = std::pin::pin!(sink);
    sink.send(bytes::Bytes::from(rows)).await?;
    sink.finish().await?;
    Ok(())
}

fn copy_escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
}
