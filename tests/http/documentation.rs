//! What docs/api.md shows is what the daemon says.

use std::fs;

use serde_json::Value;

use super::commented;
use crate::support::http::Http;
use crate::support::hub::{self, postgres};
use crate::support::{Spcd, query, shared};

/// Two JSON values of one shape: the same names and kinds, and the same texts where they are short
/// words and no times.
fn is_alike(told: &Value, real: &Value, path: &str) {
    match (told, real) {
        (Value::Object(told), Value::Object(real)) => {
            let names = |object: &serde_json::Map<String, Value>| -> Vec<String> {
                object.keys().cloned().collect()
            };
            assert_eq!(names(told), names(real), "{path}");
            for (name, value) in told {
                is_alike(value, &real[name], &format!("{path}.{name}"));
            }
        }
        (Value::Array(told), Value::Array(real)) => {
            assert_eq!(told.len(), real.len(), "{path}");
            for (told, real) in told.iter().zip(real) {
                is_alike(told, real, path);
            }
        }
        (Value::Number(_), Value::Number(_)) => {}
        (Value::String(told), Value::String(real)) => {
            let varies = ["time", "last_ready", "schema_hash", "file_name"];
            if !varies.iter().any(|name| path.contains(name)) {
                assert_eq!(told, real, "{path}");
            }
        }
        (told, real) => assert_eq!(told, real, "{path}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_shows_what_is() {
    let text = include_str!("../../docs/api.md");
    let source = shared().database().await;
    query(
        &source.url,
        "CREATE TABLE orders (id integer); CREATE TABLE customers (id integer)",
    )
    .await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    fs::write(spcd.dir().join("token"), "t").unwrap();
    let token = spcd.dir().join("token").display().to_string();
    spcd.env("SPCD_HTTP_TOKEN_FILE", &token);
    spcd.write("sales.spc", &postgres("sales", &source));
    spcd.start();
    hub::until(&hub.url, &["sales ready"]).await;
    commented(&hub).await;
    http.is_there();
    let mut stream = http.events("?since=0", &[]);
    stream.until("it is open", |event| event.kind == "open");
    let (mut examples, mut streams) = (0, 0);
    for block in text.split("```sh\n").skip(1) {
        let (command, rest) = block.split_once("```\n").unwrap();
        let (url, is_post) = (
            command.split("http://127.0.0.1:7733").nth(1),
            command.contains("-X POST"),
        );
        let path = url
            .expect("each asks the daemon")
            .trim_end()
            .trim_end_matches('\'');
        if path.contains("/events") {
            let shown = rest
                .strip_prefix("```text\n")
                .unwrap()
                .split("```")
                .next()
                .unwrap();
            let mut real = http.events(path.trim_start_matches("/api/v1/events"), &[]);
            for block in shown.trim().split("\n\n") {
                let field = |name: &str| {
                    let mut lines = block.lines();
                    lines.find_map(|line| line.strip_prefix(name)).unwrap()
                };
                let told: Value = serde_json::from_str(field("data: ")).unwrap();
                let event = real.next().unwrap();
                assert_eq!(event.kind, field("event: "));
                assert!(event.id.is_some());
                is_alike(&told, &event.data, "event");
            }
            streams += 1;
            continue;
        }
        let head = ["Host: localhost", "Authorization: Bearer t"];
        let answer = match is_post {
            true => http.send("POST", path, &head),
            false => http.get(path),
        };
        let Some(shown) = rest.strip_prefix("```json\n") else {
            assert_eq!(answer.json()["events"][0]["status"], "ready");
            continue;
        };
        let told: Value = serde_json::from_str(shown.split("```").next().unwrap()).unwrap();
        is_alike(&told, &answer.json(), path);
        examples += 1;
    }
    assert_eq!((examples, streams), (4, 1));
    // Each metric that it names is there, and each that is there is named.
    let metrics = http.get("/metrics").body;
    let listed: Vec<&str> = (text.split('`'))
        .filter(|code| code.starts_with("spcd_"))
        .map(|code| code.split('{').next().unwrap())
        .collect();
    // Those that are there with gateways, mirrors and after a crash: tests/gateway/commands.rs, several.rs,
    // tests/mirror.rs.
    let later = [
        "spcd_gateway_up",
        "spcd_gateway_sessions",
        "spcd_gateway_away",
        "spcd_mirror_up",
        "spcd_wrapper_crashes_total",
    ];
    for name in listed.iter().filter(|name| !later.contains(name)) {
        assert!(metrics.contains(&format!("# TYPE {name} ")), "{name}");
    }
    for line in metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
    {
        let name = line.split(' ').next().unwrap();
        assert!(listed.contains(&name), "{name} is not in docs/api.md");
    }
    spcd.stop();
}
