//! `/livez` and `/readyz`.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use super::{Shared, guard, json_answer};
use crate::hub::state::HubState;
use crate::service;

/// A loop that has not turned for so long will not turn again: `WatchdogSec` of the unit.
const STUCK: Duration = Duration::from_secs(120);
/// How long the database has for an answer that says that it is there.
const HUB: Duration = Duration::from_secs(2);

/// Whether the loop turns. If not, starting the daemon anew is all that helps.
pub async fn live() -> Response {
    let since = service::last_alive().unwrap_or_default();
    let alive = since < STUCK;
    let body = json!({"alive": alive, "last_turn_seconds": since.as_secs_f64()});
    json_answer(status(alive), &body)
}

/// Whether the daemon does what it is for, and if not, why.
pub async fn ready(State(app): State<Shared>, headers: HeaderMap) -> Response {
    let check = |problem: Option<String>, fine: &str| match problem {
        None => json!({"ok": true, "reason": fine}),
        Some(problem) => json!({"ok": false, "reason": problem}),
    };
    let lead = match app.standing.state() {
        HubState::Leading { .. } => check(None, "leads"),
        HubState::Following { .. } => check(None, "follows: another daemon leads"),
        HubState::Connecting => check(Some("has not got to the database yet".into()), ""),
        HubState::Lost { reason, .. } => check(Some(reason), ""),
    };
    let asked = tokio::time::timeout(HUB, app.hub.query("SELECT 1", &[])).await;
    let hub = match asked {
        Ok(Ok(_)) => None,
        Ok(Err(problem)) => Some(problem.error),
        Err(_) => Some("the database does not answer in time".into()),
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
    // Strangers learn no names.
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
