//! Whether a source is there, asked through the hub in the way that its plugin's definition says.

use std::time::{Duration, Instant};

use spcd_core::config::{OptionValue, Probe, Target};
use spcd_core::health::{Kind, ProbeAnswer, ProbeFailure};
use spcd_core::sql;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{HubError, ask, csv, scratch, transaction};

/// No source has it; if one does, nothing comes of that.
const NO_TABLE: &str = "spcd_no_such_table";
/// The wrapper that keeps its sessions, and the option by which it can be told how long to try.
const KEEPS_SESSIONS: &str = "postgres_fdw";
const CONNECT_TIMEOUT: &str = "connect_timeout";
/// The shortest time to connect that libpq knows, in seconds.
const SHORTEST: u64 = 2;

/// Where what was made for a connection can be used for its probe.
struct Place {
    schema: String,
    /// The statement that ends the wrapper's own sessions.
    disconnect: String,
}

/// Asks the source of the connection `name` (with the hash of its target, where spcd's own schema is
/// there) whether it answers. Nothing of it stays, here or there. Who gives up waiting has to cancel.
///
/// What was made for the connection is used where that is what is wanted, so that nothing is written;
/// else a server of its own, as an import does.
///
/// # Errors
/// A session that is lost. All else is an answer.
pub async fn probe(
    client: &Client,
    connection: Option<(&str, &str)>,
    target: &Target,
    within: Duration,
) -> Result<ProbeAnswer, HubError> {
    if let Some(csv) = &target.csv {
        let began = Instant::now();
        return answer(csv::open(client, csv).await, began, |text| ProbeFailure {
            kind: Kind::Other,
            text,
        });
    }
    if target.probe == Probe::None {
        return Ok(ProbeAnswer::Unsure(
            "its plugin's sources are not probed".into(),
        ));
    }
    if let Some((name, hash)) = connection
        && connects_within(target, within)
        && let Some(place) = place(client, name, hash, target).await?
    {
        return in_place(client, name, target, &place).await;
    }
    let target = limited(target, within);
    let name = ask::fresh_name("spcd_probe");
    let mut began = Instant::now();
    let asked = async {
        let prepared = async {
            let text = scratch::prepare(client, &name, &target).await?;
            Ok::<_, HubError>(client.batch_execute(&text).await?)
        };
        match prepared.await {
            Err(HubError::Refused { text, .. }) => return Ok(Err(text)),
            prepared => prepared?,
        }
        began = Instant::now();
        let import = import(&target, &name, &name);
        Ok(Ok(client
            .batch_execute(&import)
            .await
            .map_err(HubError::from)))
    };
    match transaction::rolled_back(client, asked).await? {
        Err(text) => Ok(ProbeAnswer::Unsure(ask::in_public(&text, &name, &target))),
        Ok(result) => of_source(result, Some(&name), &target, began),
    }
}

/// By the server that was made.
async fn in_place(
    client: &Client,
    name: &str,
    target: &Target,
    place: &Place,
) -> Result<ProbeAnswer, HubError> {
    client
        .batch_execute(&format!("{}BEGIN", place.disconnect))
        .await?;
    let began = Instant::now();
    let import = import(target, name, &place.schema);
    let result = client.batch_execute(&import).await.map_err(HubError::from);
    if matches!(result, Ok(()) | Err(HubError::Refused { .. })) {
        let answer = of_source(result, None, target, began);
        let end = format!("ROLLBACK; {}", place.disconnect);
        client.batch_execute(&end).await?;
        return answer;
    }
    of_source(result, None, target, began)
}

fn import(target: &Target, server: &str, into: &str) -> String {
    let limit = sql::limit_to([NO_TABLE]);
    let (schema, options) = (&target.import.schema, &target.import_options);
    sql::import(schema, server, into, &limit, options)
}

fn of_source(
    result: Result<(), HubError>,
    own: Option<&str>,
    target: &Target,
    began: Instant,
) -> Result<ProbeAnswer, HubError> {
    // Said by the hub of what it has, and not by the wrapper.
    let of_hub = [
        SqlState::UNDEFINED_OBJECT,
        SqlState::INVALID_SCHEMA_NAME,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::FEATURE_NOT_SUPPORTED,
        SqlState::FDW_NO_SCHEMAS,
    ];
    match result {
        Err(HubError::Refused { text, code }) => {
            let text = match own {
                Some(name) => ask::in_public(&text, name, target),
                None => ask::without(&text, target),
            };
            Ok(match of_hub.contains(&code) {
                true => ProbeAnswer::Unsure(text),
                false => ProbeAnswer::Failed(ProbeFailure::of(code.code(), &text)),
            })
        }
        result => answer(result, began, |_| ProbeFailure::timeout(Duration::ZERO)),
    }
}

fn answer(
    result: Result<(), HubError>,
    began: Instant,
    failure: impl Fn(String) -> ProbeFailure,
) -> Result<ProbeAnswer, HubError> {
    match result {
        Ok(()) => Ok(ProbeAnswer::There(began.elapsed())),
        Err(HubError::Refused { text, .. }) => Ok(ProbeAnswer::Failed(failure(text))),
        Err(error) => Err(error),
    }
}

/// Whether what is wanted is what is there, and where.
async fn place(
    client: &Client,
    name: &str,
    hash: &str,
    target: &Target,
) -> Result<Option<Place>, HubError> {
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
                       -- to_regprocedure fails where the role may not use a schema, and the planner
                       -- may ask it about every schema.
                       SELECT FROM pg_catalog.pg_proc p
                       WHERE p.pronamespace = n.oid AND p.proname = 'postgres_fdw_disconnect'
                         AND p.pronargs = 1)
               ) x ON true
               WHERE a.connection_name = $1 AND a.target_hash = $2";
    let Some(row) = client
        .query_opt(sql, &[&name, &hash, &KEEPS_SESSIONS])
        .await?
    else {
        return Ok(None);
    };
    let (schema, functions): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let disconnect = match (target.extension == KEEPS_SESSIONS, functions) {
        (false, _) => String::new(),
        // One that cannot be told to end its session would not notice a changed password.
        (true, None) => return Ok(None),
        (true, Some(functions)) => format!(
            "SELECT {}({}); ",
            sql::qualified(&functions, "postgres_fdw_disconnect"),
            sql::literal(name)
        ),
    };
    Ok(Some(Place { schema, disconnect }))
}

/// Whether its server has a limit of its own to the time it tries to connect: while it does, it
/// cannot be stopped.
fn connects_within(target: &Target, within: Duration) -> bool {
    if target.extension != KEEPS_SESSIONS {
        return true;
    }
    let given = (target.server.get(CONNECT_TIMEOUT))
        .and_then(|option| option.value.trim().parse::<u64>().ok());
    given.is_some_and(|seconds| (1..=whole_seconds(within)).contains(&seconds))
}

fn limited(target: &Target, within: Duration) -> Target {
    let mut limited = target.clone();
    if !connects_within(target, within) {
        let value = whole_seconds(within).to_string();
        let option = OptionValue {
            value,
            public: true,
        };
        limited.server.insert(CONNECT_TIMEOUT.into(), option);
    }
    limited
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_millis()
        .div_ceil(1000)
        .try_into()
        .unwrap_or(u64::MAX)
        .max(SHORTEST)
}

/// Records that sources are left alone from now on, or no longer.
pub async fn hold(
    client: &Client,
    epoch: i64,
    names: &[String],
    held: bool,
) -> Result<(), HubError> {
    let names = sql::text_array(names.iter().map(String::as_str));
    transaction::begin(client, epoch).await?;
    let hold = format!("SELECT spcd.hold({names}, {held})");
    let result = client.batch_execute(&hold).await.map_err(HubError::from);
    transaction::end(client, result).await
}
