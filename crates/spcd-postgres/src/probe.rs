//! Probes of sources through the hub, by the method of the plugin's definition.

use std::time::{Duration, Instant};

use spcd_core::config::{ForeignSource, OptionValue, ProbeMethod};
use spcd_core::health::{FailureKind, ProbeAnswer, ProbeFailure};
use spcd_core::sql;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::import;
use crate::import::temporary_server;
use crate::{HubError, transaction};

/// Name of a table that no source is expected to have. If one has it, the probe still works.
const ABSENT_TABLE: &str = "spcd_no_such_table";
/// Wrapper that reuses its sessions, and its option for the connection time-out.
const POSTGRES_FDW: &str = "postgres_fdw";
const CONNECT_TIMEOUT: &str = "connect_timeout";
/// Minimum `connect_timeout` of libpq.
const MIN_CONNECT_TIMEOUT_SECONDS: u64 = 2;

/// Schema and server of a connection that can be used for its probe.
struct ExistingServer {
    schema: String,
    /// Statement that ends the wrapper's session, or an empty string.
    disconnect: String,
}

/// Probes the source of a connection, given by its name and target hash if spcd's schema exists. Leaves
/// no object behind. A caller that stops waiting must cancel the statement.
///
/// Uses the connection's server without writes if it matches the target. Otherwise creates a temporary
/// server, as an import does.
///
/// # Errors
/// A session that is lost. All other errors are answers.
pub async fn probe(
    client: &Client,
    connection: Option<(&str, &str)>,
    target: &ForeignSource,
    within: Duration,
) -> Result<ProbeAnswer, HubError> {
    if target.probe == ProbeMethod::None {
        return Ok(ProbeAnswer::Inconclusive(
            "its plugin's sources are not probed".into(),
        ));
    }
    if let Some((name, hash)) = connection
        && has_connect_timeout(target, within)
        && let Some(server) = find_existing_server(client, name, hash, target).await?
    {
        return probe_existing(client, name, target, &server).await;
    }
    let target = with_connect_timeout(target, within);
    let name = import::unique_name("spcd_probe");
    let mut began = Instant::now();
    let attempt = async {
        let prepared = async {
            let text = temporary_server::prepare(client, &name, &target).await?;
            Ok::<_, HubError>(client.batch_execute(&text).await?)
        };
        match prepared.await {
            Err(HubError::StatementFailed { text, .. }) => return Ok(Err(text)),
            prepared => prepared?,
        }
        began = Instant::now();
        let import = import_statement(&target, &name, &name);
        Ok(Ok(client
            .batch_execute(&import)
            .await
            .map_err(HubError::from)))
    };
    match transaction::rolled_back(client, attempt).await? {
        Err(text) => Ok(ProbeAnswer::Inconclusive(import::redact(
            &text, &name, &target,
        ))),
        Ok(result) => classify_result(result, Some(&name), &target, began),
    }
}

/// Probes through the connection's server.
async fn probe_existing(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    server: &ExistingServer,
) -> Result<ProbeAnswer, HubError> {
    client
        .batch_execute(&format!("{}BEGIN", server.disconnect))
        .await?;
    let began = Instant::now();
    let import = import_statement(target, name, &server.schema);
    let result = client.batch_execute(&import).await.map_err(HubError::from);
    if matches!(result, Ok(()) | Err(HubError::StatementFailed { .. })) {
        let answer = classify_result(result, None, target, began);
        let end = format!("ROLLBACK; {}", server.disconnect);
        client.batch_execute(&end).await?;
        return answer;
    }
    classify_result(result, None, target, began)
}

fn import_statement(target: &ForeignSource, server: &str, into: &str) -> String {
    let limit = sql::limit_to([ABSENT_TABLE]);
    let (schema, options) = (&target.import.schema, &target.import_options);
    sql::import(schema, server, into, &limit, options)
}

fn classify_result(
    result: Result<(), HubError>,
    temporary_name: Option<&str>,
    target: &ForeignSource,
    began: Instant,
) -> Result<ProbeAnswer, HubError> {
    // SQLSTATEs of the hub itself, not of the wrapper.
    let hub_codes = [
        SqlState::UNDEFINED_OBJECT,
        SqlState::INVALID_SCHEMA_NAME,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::FEATURE_NOT_SUPPORTED,
        SqlState::FDW_NO_SCHEMAS,
    ];
    match result {
        Err(HubError::StatementFailed { text, code }) => {
            let text = match temporary_name {
                Some(name) => import::redact(&text, name, target),
                None => import::mask_secrets(&text, target),
            };
            Ok(match hub_codes.contains(&code) {
                true => ProbeAnswer::Inconclusive(text),
                false => ProbeAnswer::Failed(ProbeFailure::classify(code.code(), &text)),
            })
        }
        result => to_answer(result, began, |_| ProbeFailure::timeout(Duration::ZERO)),
    }
}

/// Probes a source by an attempt whose errors are not classified.
///
/// # Errors
/// A session that is lost. All other errors are answers.
pub async fn probe_by(
    attempt: impl Future<Output = Result<(), HubError>>,
) -> Result<ProbeAnswer, HubError> {
    let began = Instant::now();
    let failure = |text| ProbeFailure {
        kind: FailureKind::Other,
        text,
    };
    to_answer(attempt.await, began, failure)
}

fn to_answer(
    result: Result<(), HubError>,
    began: Instant,
    failure: impl Fn(String) -> ProbeFailure,
) -> Result<ProbeAnswer, HubError> {
    match result {
        Ok(()) => Ok(ProbeAnswer::Reachable(began.elapsed())),
        Err(HubError::StatementFailed { text, .. }) => Ok(ProbeAnswer::Failed(failure(text))),
        Err(error) => Err(error),
    }
}

/// Returns the connection's server if it matches the target.
async fn find_existing_server(
    client: &Client,
    name: &str,
    hash: &str,
    target: &ForeignSource,
) -> Result<Option<ExistingServer>, HubError> {
    let sql = "SELECT n.nspname::text, x.nspname::text
               FROM spcd.applied a
               JOIN pg_catalog.pg_namespace n ON n.oid = a.schema_oid
               JOIN pg_catalog.pg_foreign_server s
                    ON s.oid = a.server_oid AND s.srvname = a.connection_name
               LEFT JOIN (
                   SELECT n.nspname
                   FROM pg_catalog.pg_extension e
                   JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
                   WHERE e.extname = $3 AND EXISTS (
                       -- to_regprocedure fails without USAGE on a schema, and the planner may call
                       -- it for every schema.
                       SELECT FROM pg_catalog.pg_proc p
                       WHERE p.pronamespace = n.oid AND p.proname = 'postgres_fdw_disconnect'
                         AND p.pronargs = 1)
               ) x ON true
               WHERE a.connection_name = $1 AND a.target_hash = $2";
    let Some(row) = client
        .query_opt(sql, &[&name, &hash, &POSTGRES_FDW])
        .await?
    else {
        return Ok(None);
    };
    let (schema, functions): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let disconnect = match (target.extension == POSTGRES_FDW, functions) {
        (false, _) => String::new(),
        // A wrapper that cannot end its session would not notice a changed password.
        (true, None) => return Ok(None),
        (true, Some(functions)) => format!(
            "SELECT {}({}); ",
            sql::qualified(&functions, "postgres_fdw_disconnect"),
            sql::literal(name)
        ),
    };
    Ok(Some(ExistingServer { schema, disconnect }))
}

/// Whether the server options limit the time to connect, during which postgres_fdw cannot be
/// canceled.
fn has_connect_timeout(target: &ForeignSource, within: Duration) -> bool {
    if target.extension != POSTGRES_FDW {
        return true;
    }
    let given = (target.server.get(CONNECT_TIMEOUT))
        .and_then(|option| option.value.trim().parse::<u64>().ok());
    given.is_some_and(|seconds| (1..=round_up_to_seconds(within)).contains(&seconds))
}

fn with_connect_timeout(target: &ForeignSource, within: Duration) -> ForeignSource {
    let mut limited = target.clone();
    if !has_connect_timeout(target, within) {
        let value = round_up_to_seconds(within).to_string();
        let option = OptionValue {
            value,
            public: true,
        };
        limited.server.insert(CONNECT_TIMEOUT.into(), option);
    }
    limited
}

fn round_up_to_seconds(time: Duration) -> u64 {
    time.as_millis()
        .div_ceil(1000)
        .try_into()
        .unwrap_or(u64::MAX)
        .max(MIN_CONNECT_TIMEOUT_SECONDS)
}

/// Records whether probes of sources are paused.
pub async fn set_paused(
    client: &Client,
    epoch: i64,
    names: &[String],
    is_paused: bool,
) -> Result<(), HubError> {
    let names = sql::text_array(names.iter().map(String::as_str));
    transaction::begin(client, epoch).await?;
    let sql = format!("SELECT spcd.set_paused({names}, {is_paused})");
    let result = client.batch_execute(&sql).await.map_err(HubError::from);
    transaction::end(client, result).await
}
