//! `/metrics`: counters of the process, and gauges read from the database.

use std::collections::HashMap;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use spcd_core::gateway::Availability;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{App, Problem, Shared};
use crate::service;
use crate::telemetry;
use spcd_postgres::connection::context::HubState;

/// Maximum number of plugins with a series of their own; the others are counted as `other`.
const PLUGINS: i64 = 50;

/// Media type in `Accept` of a client that reads the OpenMetrics format.
const OPENMETRICS: &[u8] = b"application/openmetrics-text";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    plugin: String,
    status: String,
    health: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GatewayLabels {
    gateway: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MirrorLabels {
    mirror: String,
}

type Number = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Returns all metrics: in the OpenMetrics text format if the client accepts it, else in that of
/// Prometheus.
pub async fn metrics(State(app): State<Shared>, headers: HeaderMap) -> Response {
    let mut text = String::new();
    let mut now = Registry::with_prefix("spcd");
    let hub = Gauge::<i64>::default();
    now.register("hub_up", "Whether the database answers", hub.clone());
    let lead = Gauge::<i64>::default();
    let leads = matches!(app.context.state(), HubState::Leading { .. });
    lead.set(i64::from(leads));
    now.register("lead", "Whether this daemon leads", lead);
    let turned = Number::default();
    turned.set(service::last_alive().unwrap_or_default().as_secs_f64());
    now.register_with_unit(
        "loop_age",
        "Time since the last turn of the loop",
        Unit::Seconds,
        turned,
    );
    gateways(&app, &mut now).await;
    match ask(&app, &mut now).await {
        Ok(()) => {
            hub.set(1);
        }
        Err(problem) => tracing::debug!(
            error = problem.error,
            "cannot read metrics from the database"
        ),
    }
    // Writing to a string cannot fail.
    let _ = telemetry::encode(&mut text);
    let _ = encode_registry(&mut text, &now);
    let _ = encode_eof(&mut text);
    let mut accepted = headers.get_all(ACCEPT).iter();
    if accepted.any(|kinds| {
        kinds
            .as_bytes()
            .windows(OPENMETRICS.len())
            .any(|kind| kind == OPENMETRICS)
    }) {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        return ([(CONTENT_TYPE, kind)], text).into_response();
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, kind)], older(&text)).into_response()
}

/// Converts OpenMetrics text to the Prometheus format, in which a counter has the name of its samples
/// and there are no units and no end marker.
fn older(text: &str) -> String {
    let kinds: HashMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let mut plain = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let parts = (words.next(), words.next(), words.next(), words.next());
        let (Some("#"), Some(what), Some(name), Some(rest)) = parts else {
            if line != "# EOF" {
                plain.extend([line, "\n"]);
            }
            continue;
        };
        let (end, kind) = match kinds.get(name).copied() {
            Some("counter") => ("_total", "counter"),
            Some("info") => ("_info", "gauge"),
            kind => ("", kind.unwrap_or("untyped")),
        };
        match what {
            "HELP" => plain.extend(["# HELP ", name, end, " ", rest, "\n"]),
            "TYPE" => plain.extend(["# TYPE ", name, end, " ", kind, "\n"]),
            _ => {}
        }
    }
    plain
}

/// Time limit of the question how many sessions the gateway has.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(2);

/// Registers the gauges of the gateways, where a connection uses one.
async fn gateways(app: &App, now: &mut Registry) {
    let Some(links) = &app.gateways else {
        return;
    };
    let links = links.all();
    // Only the daemon that leads connects to several.
    if links.len() > 1 && !matches!(app.context.state(), HubState::Leading { .. }) {
        return;
    }
    let up = Family::<GatewayLabels, Gauge>::default();
    let away = Family::<GatewayLabels, Gauge>::default();
    let sessions = Family::<GatewayLabels, Gauge>::default();
    let mut counts = JoinSet::new();
    for link in &links {
        let Some(is_up) = link.is_up() else {
            return;
        };
        let labels = GatewayLabels {
            gateway: link.label(),
        };
        up.get_or_create(&labels).set(i64::from(is_up));
        let is_away = matches!(
            link.availability(),
            Availability::Away | Availability::Returning
        );
        away.get_or_create(&labels).set(i64::from(is_away));
        let link = link.clone();
        counts.spawn(async move { (labels, timeout(GATEWAY_TIMEOUT, link.sessions()).await) });
    }
    now.register("gateway_up", "Whether the gateway answers", up);
    if links.len() > 1 {
        let help = "Whether other gateways have taken over the lanes of one of several gateways";
        now.register("gateway_away", help, away);
    }
    for (labels, count) in counts.join_all().await {
        if let Ok(Ok(count)) = count {
            sessions.get_or_create(&labels).set(count);
        }
    }
    let help = "Number of sessions in which hubs read the gateway";
    now.register("gateway_sessions", help, sessions);
}

async fn ask(app: &App, now: &mut Registry) -> Result<(), Problem> {
    let sql = "
        SELECT CASE WHEN p.rank <= $1 THEN s.plugin ELSE 'other' END, s.status,
               CASE WHEN h.held THEN 'held' WHEN h.reachable THEN 'reachable'
                    WHEN NOT h.reachable THEN 'unreachable' ELSE 'unknown' END,
               count(*), coalesce(sum(s.table_count), 0)::bigint
        FROM spcd.connection_state s
        LEFT JOIN spcd.connection_health h USING (connection_name)
        JOIN (SELECT plugin, row_number() OVER (ORDER BY count(*) DESC, plugin) AS rank
              FROM spcd.connection_state GROUP BY plugin) p USING (plugin)
        GROUP BY 1, 2, 3";
    let rows = app.hub.query(sql, &[&PLUGINS]).await?;
    let connections = Family::<Labels, Gauge>::default();
    let mut tables = 0;
    for row in &rows {
        let text = |at: usize| row.try_get::<_, String>(at).unwrap_or_default();
        let labels = Labels {
            plugin: text(0),
            status: text(1),
            health: text(2),
        };
        let count: i64 = row.try_get(3).unwrap_or_default();
        connections.get_or_create(&labels).set(count);
        tables += row.try_get::<_, i64>(4).unwrap_or_default();
    }
    let help = "Number of connections by plugin, status and reachability of the source";
    now.register("connections", help, connections);
    let all = Gauge::<i64>::default();
    all.set(tables);
    now.register("tables", "Number of tables of all connections", all);
    let sql = "
        SELECT extract(epoch FROM pg_catalog.clock_timestamp() - heartbeat)::float8
        FROM spcd.daemon";
    if let Some(row) = app.hub.query(sql, &[]).await?.first()
        && let Ok(Some(age)) = row.try_get::<_, Option<f64>>(0)
    {
        let heartbeat = Number::default();
        heartbeat.set(age.max(0.0));
        let help = "Time since the last heartbeat of the leader";
        now.register_with_unit("heartbeat_age", help, Unit::Seconds, heartbeat);
    }
    mirrors(app, now).await
}

/// Registers the gauge of the mirrors, where there are any.
async fn mirrors(app: &App, now: &mut Registry) -> Result<(), Problem> {
    let sql = "SELECT name, error IS NULL AND kind IS NOT NULL FROM spcd.mirror";
    let rows = app.hub.query(sql, &[]).await?;
    if rows.is_empty() {
        return Ok(());
    }
    let up = Family::<MirrorLabels, Gauge>::default();
    for row in &rows {
        let labels = MirrorLabels {
            mirror: row.try_get(0).unwrap_or_default(),
        };
        let is_up: bool = row.try_get(1).unwrap_or_default();
        up.get_or_create(&labels).set(i64::from(is_up));
    }
    now.register("mirror_up", "Whether a mirror follows its source", up);
    Ok(())
}
