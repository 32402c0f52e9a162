//! Queries of a source: through the hub, or for a csv connection by reading its files in this process.

use std::time::Duration;

use spcd_core::config::{CsvSettings, ForeignSource};
use spcd_core::health::ProbeAnswer;
use spcd_core::planner::RemoteSchema;
use spcd_postgres::connection::Session;
use spcd_postgres::import;
use spcd_postgres::import::csv::{self as hub_csv, source_error};
use spcd_postgres::{HubError, probe};
use tokio_postgres::Client;

use super::csv;

/// Returns the tables of a source, normalized.
pub async fn tables(session: &Session, target: &ForeignSource) -> Result<RemoteSchema, HubError> {
    let Some(csv) = &target.csv else {
        return import::fetch_remote_schema(session, target).await;
    };
    let (csv, import) = (csv.clone(), target.import.clone());
    let key = format!("read {csv:?} {import:?}");
    let read = csv::run_in_thread(key, move || csv::read(&csv, &import)).await;
    let files = read.ok_or_else(thread_error)?.map_err(source_error)?;
    hub_csv::check_files(&session.client, target, files).await
}

/// Probes a source; see [`probe::probe`].
///
/// # Errors
/// A session that is lost. All other errors are answers.
pub async fn probe(
    client: &Client,
    connection: Option<(&str, &str)>,
    target: &ForeignSource,
    within: Duration,
) -> Result<ProbeAnswer, HubError> {
    match &target.csv {
        None => probe::probe(client, connection, target, within).await,
        Some(csv) => probe::probe_by(check_any_opens(client, csv)).await,
    }
}

/// Checks that this process and the server can open at least one of the files.
async fn check_any_opens(client: &Client, csv: &CsvSettings) -> Result<(), HubError> {
    let csv = csv.clone();
    let key = format!("open {csv:?}");
    let found = csv::run_in_thread(key, move || csv::openable(&csv.paths)).await;
    let paths = found.ok_or_else(thread_error)?.map_err(source_error)?;
    hub_csv::check_any_opens(client, &paths).await
}

fn thread_error() -> HubError {
    source_error("its files cannot be read now: no thread can be started".into())
}
