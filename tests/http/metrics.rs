//! The figures at `/metrics`.

use super::source;
use crate::support::http::{Http, until};
use crate::support::hub::{self, postgres};
use crate::support::{Spcd, shared};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    spcd.write("a.spc", "");
    spcd.start();
    http.is_there();
    // Messages are counted by who listens.
    let mut live = http.events("", &[]);
    live.until("it is open", |event| event.kind == "open");
    until(&http, "/readyz", |answer| answer.status == 200);
    spcd.write("a.spc", &(postgres("a", &source) + &postgres("b", &source)));
    hub::until(&hub.url, &["a ready", "b ready"]).await;
    let number = |text: &str, name: &str| -> f64 {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = lines.find_map(|rest| rest.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    };
    // The last event of two connections is heard a moment after it is committed.
    let text = until(&http, "/metrics", |answer| {
        number(&answer.body, "spcd_notified_changes_total") >= 4.0
    })
    .body;
    let status = "spcd_connections{plugin=\"postgres\",status=\"ready\",health=";
    let ready: f64 = (text.lines().filter(|line| line.starts_with(status)))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(ready, 2.0, "{text}");
    for (name, least) in [
        ("spcd_hub_up", 1.0),
        ("spcd_lead", 1.0),
        ("spcd_tables", 2.0),
        ("spcd_leads_taken_total", 1.0),
        ("spcd_pass_duration_seconds_count", 2.0),
        ("spcd_pass_jobs_total", 2.0),
        ("spcd_job_duration_seconds_count{outcome=\"done\"}", 2.0),
        ("spcd_import_duration_seconds_count", 2.0),
        ("spcd_written_connections_total", 2.0),
        ("spcd_written_tables_total", 2.0),
        ("spcd_statements_total", 4.0),
        ("spcd_transactions_total", 1.0),
        ("spcd_file_to_ready_seconds_count", 2.0),
        ("spcd_notifications_total", 1.0),
    ] {
        assert!(number(&text, name) >= least, "{name}: {text}");
    }
    assert!(number(&text, "spcd_heartbeat_age_seconds") >= 0.0);
    assert!(text.contains("spcd_build_info{version=\""), "{text}");
    spcd.stop();
}
