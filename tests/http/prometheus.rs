//! The metrics, alerts and dashboard, as Prometheus reads them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Served;
use crate::support::http::until;
use crate::support::prometheus::promtool;

const RULES: &str = include_str!("../../config/prometheus/spcd.rules.yml");
const DASHBOARD: &str = include_str!("../../config/grafana/spcd.json");

/// The expressions of the dashboard, with something where Grafana puts its own.
fn expressions(of: &Value, found: &mut Vec<String>) {
    match of {
        Value::Array(list) => list.iter().for_each(|one| expressions(one, found)),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.as_str().filter(|_| name == "expr") {
                    Some(expression) => {
                        found.push(expression.replace("$__rate_interval", "5m"));
                    }
                    None => expressions(field, found),
                }
            }
        }
        _ => {}
    }
}

/// The words of a text that may be metrics.
fn named(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("spcd_"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_takes_the_metrics_and_everything_asked_of_them_is_there() {
    let Served { mut spcd, http, .. } = Served::start().await;
    let job = "spcd_job_duration_seconds_count{outcome=\"done\"}";
    let metrics = until(&http, "/metrics", |answer| answer.body.contains(job)).body;
    let (said, good) = promtool(&["check", "metrics"], &[], &metrics);
    assert!(good && said.is_empty(), "{said}");
    // Prometheus itself asks for the newer format, which is read where samples have times.
    let accept =
        "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    let open = http.send("GET", "/metrics", &["Host: localhost", accept]);
    assert!(
        open.header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text;")
    );
    let mut timed = String::new();
    for line in open.body.lines() {
        let time = if line.starts_with('#') {
            ""
        } else {
            " 1700000000"
        };
        writeln!(timed, "{line}{time}").unwrap();
    }
    let import = [
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        "metrics",
        "blocks",
    ];
    let (said, good) = promtool(&import, &[("metrics", &timed)], "");
    assert!(good, "{said}\n{timed}");

    let mut asked = Vec::new();
    expressions(&serde_json::from_str(DASHBOARD).unwrap(), &mut asked);
    assert!(asked.len() > 20, "{asked:?}");
    let there: BTreeSet<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.split(['{', ' ']).next())
        .collect();
    for text in asked.iter().map(String::as_str).chain([RULES]) {
        // What concerns gateways and mirrors is there with one: tests/gateway/commands.rs, tests/mirror.rs.
        let of_gateway = [
            "spcd_gateway_up",
            "spcd_mirror_up",
            "spcd_wrapper_crashes_total",
        ];
        for name in named(text) {
            assert!(
                there.contains(name) || of_gateway.contains(&name),
                "{name} in {text}"
            );
        }
    }
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (n, expression) in asked.iter().enumerate() {
        let expression = Value::from(expression.as_str());
        writeln!(rules, "  - record: panel{n}\n    expr: {expression}").unwrap();
    }
    for (name, text) in [("dashboard.yml", rules.as_str()), ("rules.yml", RULES)] {
        let (said, good) = promtool(&["check", "rules", name], &[(name, text)], "");
        assert!(good && said.contains("SUCCESS"), "{text}: {said}");
    }
    spcd.stop();
}

/// An alert, what it is about, and what it is not about.
struct Alert {
    name: &'static str,
    /// Series, and their values, one a minute.
    fires: &'static [(&'static str, &'static str)],
    /// Its labels besides the severity, and what it then says.
    labels: Value,
    severity: &'static str,
    says: Value,
    quiet: &'static [&'static [(&'static str, &'static str)]],
}

fn alerts() -> Vec<Alert> {
    vec![
        Alert {
            name: "SpcdDown",
            fires: &[("up{job='spcd', instance='a'}", "1 0x60")],
            labels: json!({"job": "spcd", "instance": "a"}),
            severity: "critical",
            says: json!({"summary": "spcd on a does not answer"}),
            quiet: &[
                &[("up{job='spcd', instance='a'}", "1x60")],
                &[("up{job='other', instance='a'}", "0x60")],
                // Restarted now and then.
                &[("up{job='spcd', instance='a'}", "0 0 1 1 0 0 1x55")],
            ],
        },
        Alert {
            name: "SpcdHubDown",
            fires: &[("spcd_hub_up{instance='a'}", "1 0x60")],
            labels: json!({"instance": "a"}),
            severity: "critical",
            says: json!({"summary": "spcd on a cannot reach its database",
                         "description": "/readyz says why."}),
            quiet: &[
                &[("spcd_hub_up{instance='a'}", "1x60")],
                &[("spcd_hub_up{instance='a'}", "0 0 1 0 0 1x56")],
            ],
        },
        Alert {
            name: "SpcdNobodyLeads",
            fires: &[
                ("spcd_lead{job='spcd', instance='a'}", "1 0x60"),
                ("spcd_lead{job='spcd', instance='b'}", "0x60"),
            ],
            labels: json!({"job": "spcd"}),
            severity: "critical",
            says: json!({"summary": "no spcd leads: changed files are not followed"}),
            quiet: &[&[
                ("spcd_lead{job='spcd', instance='a'}", "1 0x60"),
                ("spcd_lead{job='spcd', instance='b'}", "0 1x60"),
            ]],
        },
        Alert {
            name: "SpcdHeartbeatStale",
            fires: &[
                (
                    "spcd_heartbeat_age_seconds{job='spcd', instance='a'}",
                    "1 90x60",
                ),
                (
                    "spcd_heartbeat_age_seconds{job='spcd', instance='b'}",
                    "1 90x60",
                ),
            ],
            labels: json!({"job": "spcd"}),
            severity: "critical",
            says: json!({"summary": "the leading spcd was not heard of for 1m 30s"}),
            quiet: &[
                &[("spcd_heartbeat_age_seconds{instance='a'}", "5x60")],
                // One whose clock or answer is late is not the leader's fault.
                &[
                    ("spcd_heartbeat_age_seconds{instance='a'}", "90x60"),
                    ("spcd_heartbeat_age_seconds{instance='b'}", "5x60"),
                ],
            ],
        },
        Alert {
            name: "SpcdLoopStuck",
            fires: &[("spcd_loop_age_seconds{instance='a'}", "1 180x60")],
            labels: json!({"instance": "a"}),
            severity: "critical",
            says: json!({"summary": "the loop of spcd on a does not turn"}),
            quiet: &[&[("spcd_loop_age_seconds{instance='a'}", "60x60")]],
        },
        Alert {
            name: "SpcdConnectionsInError",
            // Two daemons that tell of the same database, and two kinds of connection.
            fires: &[
                (
                    "spcd_connections{instance='a', plugin='csv', status='error', health='unknown'}",
                    "0 2x60",
                ),
                (
                    "spcd_connections{instance='b', plugin='csv', status='error', health='unknown'}",
                    "0 2x60",
                ),
                (
                    "spcd_connections{instance='a', plugin='mysql', status='error', health='unreachable'}",
                    "0 1x60",
                ),
            ],
            labels: json!({"status": "error"}),
            severity: "warning",
            says: json!({"summary": "3 connections are in error",
                         "description": "The page and `spcd status` say why."}),
            quiet: &[
                &[(
                    "spcd_connections{instance='a', plugin='csv', status='ready', health='unknown'}",
                    "9x60",
                )],
                // Mended within ten minutes, again and again.
                &[(
                    "spcd_connections{instance='a', plugin='csv', status='error', health='unknown'}",
                    "1x8 0 1x8 0 1x8 0 1x8 0 1x8 0 1x8 0",
                )],
            ],
        },
        Alert {
            name: "SpcdSourcesUnreachable",
            fires: &[
                (
                    "spcd_connections{instance='a', plugin='mysql', status='ready', health='unreachable'}",
                    "0 2x60",
                ),
                (
                    "spcd_connections{instance='b', plugin='mysql', status='ready', health='unreachable'}",
                    "0 2x60",
                ),
            ],
            labels: json!({"health": "unreachable"}),
            severity: "warning",
            says: json!({"summary": "2 sources do not answer"}),
            quiet: &[&[
                (
                    "spcd_connections{instance='a', plugin='mysql', status='ready', health='reachable'}",
                    "2x60",
                ),
                (
                    "spcd_connections{instance='a', plugin='mysql', status='ready', health='held'}",
                    "2x60",
                ),
            ]],
        },
        Alert {
            name: "SpcdGatewayDown",
            fires: &[
                ("spcd_gateway_up{instance='a', gateway='x'}", "1 0x60"),
                ("spcd_gateway_up{instance='a', gateway='y'}", "1x60"),
            ],
            labels: json!({"gateway": "x"}),
            severity: "critical",
            says: json!({
                "summary": "the gateway x does not answer",
                "description": "Its connections are in error, or another gateway has taken them over. `spcd doctor` says why."
            }),
            quiet: &[
                &[("spcd_gateway_up{instance='a', gateway='x'}", "1x60")],
                // It restarts now and then, after a panic of a wrapper.
                &[("spcd_gateway_up{instance='a', gateway='x'}", "1 0 1 0 1x57")],
                // One of two daemons reaches it.
                &[
                    ("spcd_gateway_up{instance='a', gateway='x'}", "0x60"),
                    ("spcd_gateway_up{instance='b', gateway='x'}", "1x60"),
                ],
            ],
        },
        Alert {
            name: "SpcdMirrorDown",
            fires: &[
                ("spcd_mirror_up{instance='a', mirror='x'}", "1 0x60"),
                ("spcd_mirror_up{instance='a', mirror='y'}", "1x60"),
            ],
            labels: json!({"mirror": "x"}),
            severity: "warning",
            says: json!({
                "summary": "the mirror x does not follow its source",
                "description": "Its connections stay as they are. `spcd doctor` says why."
            }),
            quiet: &[
                &[("spcd_mirror_up{instance='a', mirror='x'}", "1x60")],
                // Its source restarts.
                &[("spcd_mirror_up{instance='a', mirror='x'}", "1 0x5 1x54")],
            ],
        },
        Alert {
            name: "SpcdWrapperCrashed",
            fires: &[(
                "spcd_wrapper_crashes_total{instance='a', plugin='aws'}",
                "_ 1x60",
            )],
            labels: json!({"plugin": "aws"}),
            severity: "warning",
            says: json!({
                "summary": "a wrapper of aws ended its server process",
                "description": "`spcd status` says which connection it was asked for, and `spcd retry NAME` asks it again."
            }),
            quiet: &[&[(
                "spcd_wrapper_crashes_total{instance='a', plugin='aws'}",
                "_x60",
            )]],
        },
        Alert {
            name: "SpcdSlowToFollow",
            fires: &[
                ("spcd_file_to_ready_seconds_bucket{le='30.0'}", "0x120"),
                ("spcd_file_to_ready_seconds_bucket{le='60.0'}", "0+4x120"),
                ("spcd_file_to_ready_seconds_bucket{le='+Inf'}", "0+4x120"),
            ],
            labels: json!({}),
            severity: "warning",
            says: json!({"summary": "it takes 58.5s until a saved file holds"}),
            quiet: &[
                &[
                    ("spcd_file_to_ready_seconds_bucket{le='1.0'}", "0+4x120"),
                    ("spcd_file_to_ready_seconds_bucket{le='30.0'}", "0+4x120"),
                    ("spcd_file_to_ready_seconds_bucket{le='+Inf'}", "0+4x120"),
                ],
                // Nothing was saved.
                &[
                    ("spcd_file_to_ready_seconds_bucket{le='30.0'}", "9x120"),
                    ("spcd_file_to_ready_seconds_bucket{le='+Inf'}", "99x120"),
                ],
            ],
        },
    ]
}

#[test]
fn alerts_fire_when_they_should_and_not_otherwise() {
    let alerts = alerts();
    let all: Vec<&str> = (RULES.split("alert: ").skip(1))
        .map(|rule| rule.lines().next().unwrap())
        .collect();
    let tested: Vec<&str> = alerts.iter().map(|alert| alert.name).collect();
    assert_eq!(tested, all);
    let mut tests = Vec::new();
    for alert in &alerts {
        let series = |of: &[(&str, &str)]| -> Value {
            let one = |(series, values): &(&str, &str)| json!({"series": series, "values": values});
            of.iter().map(one).collect()
        };
        let mut labels = alert.labels.clone();
        labels["severity"] = alert.severity.into();
        let fired = json!([{"exp_labels": labels, "exp_annotations": alert.says}]);
        let at = |time: &str, fired: Value| json!({"eval_time": time, "alertname": alert.name, "exp_alerts": fired});
        // Before it begins, and when it has lasted.
        tests.push(json!({
            "interval": "1m",
            "input_series": series(alert.fires),
            "alert_rule_test": [at("0m", json!([])), at("55m", fired)],
        }));
        for quiet in alert.quiet {
            let times = (0..60).map(|minute| at(&format!("{minute}m"), json!([])));
            tests.push(json!({
                "interval": "1m",
                "input_series": series(quiet),
                "alert_rule_test": times.collect::<Value>(),
            }));
        }
    }
    // What is JSON is YAML.
    let tests = json!({
        "rule_files": ["spcd.rules.yml"],
        "evaluation_interval": "1m",
        "tests": tests,
    });
    let tests = tests.to_string();
    let files = [("spcd.rules.yml", RULES), ("alerts.yml", tests.as_str())];
    let (said, good) = promtool(&["test", "rules", "alerts.yml"], &files, "");
    assert!(good && said.contains("SUCCESS"), "{said}");
}
