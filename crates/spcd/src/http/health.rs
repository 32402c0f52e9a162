//! `/livez` and `/readyz`.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio_postgres::Row;

use super::{Shared, guard, json_answer};
use crate::service;
use spcd_postgres::HubError;
use spcd_postgres::connection::context::HubState;

/// Time without an iteration after which the loop counts as stuck: `WatchdogSec` of the unit.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// Deadline of the query that checks whether the database answers.
const HUB_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether new sessions of the server accept writes. This session's own settings do not count.
const WRITABLE: &str = "
    SELECT NOT pg_catalog.pg_is_in_recovery() AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_settings
        WHERE name = 'default_transaction_read_only' AND reset_val = 'on')";
/// Whether the leader's session exists on this server: the leader may have connected to another one.
const LEADS: &str = "
    EXISTS (
        SELECT FROM spcd.daemon d
        CROSS JOIN LATERAL pg_catalog.jsonb_to_recordset(d.backends)
             AS b (pid integer, backend_start timestamptz)
        JOIN pg_catalog.pg_stat_activity a
             ON a.pid = b.pid AND a.backend_start = b.backend_start
        WHERE d.epoch = $1 AND a.application_name = 'spcd lead')
    -- A leader that waits for a lock on a table of its own leads in name only.
    AND NOT EXISTS (
        SELECT FROM spcd.daemon
        WHERE heartbeat < pg_catalog.clock_timestamp() - interval '15 s')";

/// `/livez`: whether the loop runs. If it does not, only a restart helps.
pub async fn live() -> Response {
    let since = service::last_alive().unwrap_or_default();
    let alive = since < STUCK_AFTER;
    let body = json!({"alive": alive, "last_turn_seconds": since.as_secs_f64()});
    json_answer(status(alive), &body)
}

/// `/readyz`: whether the daemon can do its work, and the reasons if not.
pub async fn ready(State(app): State<Shared>, headers: HeaderMap) -> Response {
    let check = |problem: Option<String>, fine: &str| match problem {
        None => json!({"ok": true, "reason": fine}),
        Some(problem) => json!({"ok": false, "reason": problem}),
    };
    let state = app.context.state();
    let takes_writes = |row: &Row| row.try_get(0).unwrap_or(false);
    let asked = match &state {
        HubState::Leading { epoch, .. } => {
            let sql = format!("{WRITABLE}, {LEADS}");
            (app.hub
                .row_within(HUB_TIMEOUT, &sql, &[epoch], takes_writes))
            .await
        }
        _ => (app.hub.row_within(HUB_TIMEOUT, WRITABLE, &[], takes_writes)).await,
    };
    // The daemon may have lost the lead without noticing.
    let has_lead = |row: &Row| row.try_get(1).unwrap_or(false);
    let lead = match (state, &asked) {
        (HubState::Leading { .. }, Ok(row)) if has_lead(row) => check(None, "leads"),
        (HubState::Leading { .. }, Ok(_)) => check(
            Some("the leader's session has ended, or sent no heartbeat for 15 s".into()),
            "",
        ),
        (HubState::Leading { .. }, Err(_)) => check(
            Some("cannot check whether this daemon still leads".into()),
            "",
        ),
        (HubState::Following { .. }, _) => check(None, "follows: another daemon leads"),
        (HubState::Connecting, _) => check(Some("not connected to the database yet".into()), ""),
        (HubState::Lost { reason, .. }, _) => check(Some(reason), ""),
    };
    let hub = match &asked {
        Ok(row) if takes_writes(row) => None,
        Ok(_) => Some(HubError::ReadOnly.to_string()),
        Err(problem) => Some(problem.error.clone()),
    };
    let unreadable = service::unreadable();
    let files = (!unreadable.is_empty()).then(|| unreadable.join("; "));
    let mut checks = json!({
        "lead": lead,
        "hub": check(hub, "answers"),
        "files": check(files, "can be read"),
    });
    let all = checks.as_object().into_iter().flatten();
    let ready = all.into_iter().all(|(_, check)| check["ok"] == true);
    // Reasons contain names, which a client without the token must not see.
    let settings = app.settings.borrow().clone();
    if !settings.listen.is_local() && !guard::knows_token(&settings, &headers) {
        for check in checks.as_object_mut().into_iter().flatten() {
            if let Value::Object(check) = check.1 {
                check.remove("reason");
            }
        }
    }
    json_answer(status(ready), &json!({"ready": ready, "checks": checks}))
}

fn status(good: bool) -> StatusCode {
    match good {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}
