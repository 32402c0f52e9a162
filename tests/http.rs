//! The API, the events, the probes and the metrics, over a socket as any client sees them.

mod documentation;
mod events;
mod metrics;
mod prometheus;
mod proxy;

use std::fs;
use std::io::Write as _;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::http::{Http, segment, until};
use crate::support::hub::{self, made_by, postgres};
use crate::support::{
    Cluster, DEADLINE, Database, Spcd, eventually, eventually_now, free_port, query, shared, value,
};

/// A name that every layer would like to take apart.
const HOSTILE: &str = "<img src=x>\"'/é %2f?#";

async fn source() -> Database {
    made_by("CREATE TABLE t (id integer)").await
}

/// A daemon with one connection, `a`, that is ready.
struct Served {
    hub: Database,
    source: Database,
    spcd: Spcd,
    http: Http,
}

impl Served {
    async fn start() -> Self {
        let (hub, source) = (shared().database().await, source().await);
        let mut spcd = Spcd::new(&hub.url);
        let http = Http::of(&mut spcd);
        spcd.write("a.spc", &postgres("a", &source));
        spcd.start();
        hub::until(&hub.url, &["a ready"]).await;
        http.is_there();
        Self {
            hub,
            source,
            spcd,
            http,
        }
    }
}

/// Names a connection as a block does.
fn quoted(connection: &str, name: &str) -> String {
    let name = name.replace('\\', "\\\\").replace('"', "\\\"");
    connection.replace("NAME", &name)
}

fn names(list: &Value) -> Vec<&str> {
    let rows = list["connections"].as_array().unwrap();
    rows.iter()
        .map(|row| row["connection_name"].as_str().unwrap())
        .collect()
}

/// Waits for the last thing that changes a row: the source's comments, which follow `ready`.
async fn commented(hub: &Database) {
    let sql = "SELECT bool_and(comments_set) FROM spcd.connection_state WHERE status = 'ready'";
    eventually("the comments are there", DEADLINE, || async {
        (value(&hub.url, sql).await == "t").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_told_as_the_table_has_them() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    let good = quoted(&postgres("NAME", &source), HOSTILE);
    spcd.write(
        "a.spc",
        &(good + "connection \"bad\" {\n  plugin = \"postgres\"\n  hots = 1\n}\n"),
    );
    spcd.start();
    hub::until(&hub.url, &[&format!("{HOSTILE} ready"), "bad error"]).await;
    commented(&hub).await;

    let list = http.get("/api/v1/connections");
    assert_eq!(list.status, 200, "{list:?}");
    let json = list.json();
    assert_eq!(names(&json), [HOSTILE, "bad"]);
    let row = &json["connections"][0];
    let status = spcd.spcd(&["status", "--json"]);
    let table: Value = serde_json::from_str(&status.stdout).unwrap();
    for (column, expected) in table[0].as_object().unwrap() {
        // Times are the same in both ways of writing them down to the second.
        match (&row[column], expected) {
            (Value::String(told), Value::String(expected))
                if column.starts_with("time") || column.starts_with("last") =>
            {
                assert_eq!(
                    told[..19].replace('T', " "),
                    expected[..19].replace('T', " "),
                    "{column}"
                );
            }
            (told, expected) => assert_eq!(told, expected, "{column}"),
        }
    }
    assert_eq!(row["table_count"], 1);
    assert!(row["labels"].is_object(), "{row}");
    let bad = &json["connections"][1];
    assert!(bad["error"].as_str().unwrap().contains("hots"), "{bad}");
    assert_eq!(
        (&bad["start_line"], &bad["end_line"]),
        (&8.into(), &11.into())
    );

    // As long as nothing changes it need not be sent again.
    let tag = list.header("etag").unwrap().to_owned();
    let head = ["Host: localhost", &format!("If-None-Match: {tag}")];
    let same = http.send("GET", "/api/v1/connections", &head);
    assert_eq!((same.status, same.body.as_str()), (304, ""));
    spcd.write(
        "b.spc",
        "connection \"off\" {\n  plugin = \"postgres\"\n  import_schema = \"disabled\"\n}\n",
    );
    let changed = eventually("the new one is told", DEADLINE, || async {
        let answer = http.send("GET", "/api/v1/connections", &head);
        (answer.status == 200 && names(&answer.json()).contains(&"off")).then_some(answer)
    })
    .await;
    assert_ne!(changed.header("etag"), Some(tag.as_str()));

    let one = http.get(&format!("/api/v1/connections/{}", segment(HOSTILE)));
    let json = one.json();
    assert_eq!(json["connection_name"], HOSTILE);
    let events = json["events"].as_array().unwrap();
    assert_eq!(events[0]["status"], "ready", "{json}");
    assert!(
        events.iter().any(|event| event["previous"].is_null()),
        "{json}"
    );
    let ids: Vec<i64> = events
        .iter()
        .map(|event| event["event"].as_i64().unwrap())
        .collect();
    assert!(
        ids.is_sorted_by(|a, b| a > b),
        "the last comes first: {ids:?}"
    );

    for path in [
        "/api/v1/connections/nobody",
        "/api/v1/connections/%00",
        "/nowhere",
        "/api/v1/",
    ] {
        let answer = http.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json()["error"].is_string(), "{path}");
    }
    assert_eq!(
        http.send("PUT", "/api/v1/connections", &["Host: localhost"])
            .status,
        403
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changes_something_shows_the_token() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_HEALTH_ENABLED", "true");
    let http = Http::of(&mut spcd);
    spcd.write("a.spc", &postgres("one", &source));
    spcd.start();
    hub::until(&hub.url, &["one ready"]).await;
    let path = "/api/v1/connections/one/refresh";
    let asked = "SELECT count(*) FROM spcd.refresh_request WHERE connections = '{one}'";

    let none = http.send(
        "POST",
        path,
        &["Host: localhost", "Authorization: Bearer x"],
    );
    assert_eq!(none.status, 403);
    assert!(
        none.json()["error"]
            .as_str()
            .unwrap()
            .contains("http_token_file"),
        "{none:?}"
    );
    spcd.stop();

    let file = spcd.dir().join("token");
    fs::write(&file, "s3cret\n").unwrap();
    spcd.env("SPCD_HTTP_TOKEN_FILE", &file.display().to_string());
    spcd.start();
    hub::until(&hub.url, &["one ready"]).await;
    http.is_there();
    let post =
        |path: &str, head: &[&str]| http.send("POST", path, &[&["Host: localhost"], head].concat());
    let right = "Authorization: Bearer s3cret";
    for head in [
        &[][..],
        &["Authorization: Bearer s3cre"],
        &["Authorization: Bearer s3crets"],
        &["Authorization: Bearer "],
        &["Authorization: Basic s3cret"],
    ] {
        let refused = post(path, head);
        assert_eq!(refused.status, 401, "{head:?}");
        assert!(
            refused
                .header("www-authenticate")
                .unwrap()
                .starts_with("Bearer")
        );
        assert!(!refused.body.contains("s3cret"), "{refused:?}");
    }
    for elsewhere in [
        "Origin: https://evil.example",
        "Origin: http://localhost:1",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        assert_eq!(post(path, &[right, elsewhere]).status, 403, "{elsewhere}");
        let read = http.send(
            "GET",
            "/api/v1/connections",
            &["Host: localhost", elsewhere],
        );
        assert_eq!(read.status, 403, "{elsewhere}");
    }
    assert_eq!(
        value(&hub.url, asked).await,
        "0",
        "nothing of all that was done"
    );

    for here in [
        &[right][..],
        &[
            right,
            "Origin: http://localhost",
            "Sec-Fetch-Site: same-origin",
        ],
    ] {
        let done = post(path, here);
        assert_eq!(done.status, 202, "{done:?}");
        let id = done.json()["request"].as_i64().unwrap();
        let answered =
            format!("SELECT done_at IS NOT NULL FROM spcd.refresh_request WHERE id = {id}");
        eventually("it is answered", DEADLINE, || async {
            (value(&hub.url, &answered).await == "t").then_some(())
        })
        .await;
    }
    assert_eq!(value(&hub.url, asked).await, "2");
    assert_eq!(
        post("/api/v1/connections/nobody/refresh", &[right]).status,
        404
    );

    // To be held, and to be tried again.
    // (A list whose statuses are right may be a second old in what it says of the sources.)
    let told = |is: &'static str, held: bool| {
        let metric =
            format!("spcd_connections{{plugin=\"postgres\",status=\"ready\",health=\"{is}\"}} 1");
        until(&http, "/metrics", |answer| answer.body.contains(&metric));
        until(&http, "/api/v1/connections", |answer| {
            answer.json()["connections"][0]["health"]["held"] == held
        });
    };
    assert_eq!(
        post("/api/v1/connections/one/disconnect", &[right]).status,
        202
    );
    told("held", true);
    assert_eq!(
        post("/api/v1/connections/one/reconnect", &[right]).status,
        202
    );
    told("reachable", false);

    // Another token holds at once.
    fs::write(&file, "other").unwrap();
    assert_eq!(post(path, &[right]).status, 401);
    assert_eq!(post(path, &["Authorization: bearer other"]).status, 202);
    fs::write(&file, " \n").unwrap();
    assert_eq!(post(path, &["Authorization: Bearer "]).status, 500);
    let log = spcd.log();
    assert!(!log.contains("s3cret"), "{log}");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_ours_are_not_answered() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    fs::write(
        spcd.dir().join("spcd.hcl"),
        "http_hosts = [\"spcd.example.com\"]\n",
    )
    .unwrap();
    spcd.start();
    http.is_there();
    for (host, status) in [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:7733", 200),
        ("[::1]:7733", 200),
        ("10.1.2.3", 200),
        ("spcd.example.com", 200),
        ("spcd.example.com:443", 200),
        ("evil.example", 421),
        ("evil.example:7733", 421),
        ("localhost.evil.example", 421),
        ("x.spcd.example.com", 421),
    ] {
        let host = format!("Host: {host}");
        for path in ["/livez", "/"] {
            assert_eq!(http.send("GET", path, &[&host]).status, status, "{host}");
        }
    }
    assert_eq!(http.send("GET", "/livez", &[]).status, 400);
    assert_eq!(
        http.send("GET", "/livez", &["Host: localhost", "Host: evil.example"])
            .status,
        400
    );
    // A whole URL says it too.
    assert_eq!(
        http.send("GET", "http://evil.example/livez", &["Host: localhost"])
            .status,
        421
    );

    let page = http.get("/");
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("default-src 'none'")
    );
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ] {
        assert_eq!(page.header(name), Some(value));
    }
    // Nothing is loaded from elsewhere.
    for path in ["/", "/page.css", "/page.js"] {
        let text = http.get(path).body;
        let foreign = text
            .split("http")
            .skip(1)
            .any(|rest| rest.starts_with("://") || rest.starts_with("s://"));
        assert!(!foreign, "{path}");
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_the_truth_while_the_database_comes_and_goes() {
    let mut cluster = Cluster::start(&[]);
    let mut spcd = Spcd::new(&cluster.url("postgres"));
    let http = Http::of(&mut spcd);
    spcd.write("a.spc", "");
    spcd.start();
    http.is_there();
    let checks = |answer: &crate::support::http::Answer| {
        let json = answer.json();
        ["lead", "hub", "files"].map(|name| json["checks"][name]["ok"] == true)
    };
    let ready = until(&http, "/readyz", |answer| answer.status == 200);
    assert_eq!(checks(&ready), [true; 3]);
    assert_eq!(ready.json()["checks"]["lead"]["reason"], "leads");
    let mut live = http.events("", &[]);
    live.until("it is open", |event| event.kind == "open");

    cluster.stop();
    let down = until(&http, "/readyz", |answer| {
        checks(answer) == [false, false, true]
    });
    assert_eq!(down.status, 503);
    assert_eq!(down.json()["ready"], false);
    let reason = down.json()["checks"]["hub"]["reason"].to_string();
    assert!(reason.contains("127.0.0.1"), "it says which one: {reason}");
    assert_eq!(
        http.get("/livez").status,
        200,
        "the loop turns all the same"
    );
    let away = http.get("/api/v1/connections");
    assert_eq!((away.status, away.header("retry-after")), (503, Some("1")));
    let metrics = http.get("/metrics");
    assert!(
        metrics.body.contains("\nspcd_hub_up 0\n"),
        "{}",
        metrics.body
    );
    let told = live.until("it is told", |event| event.kind == "hub");
    assert_eq!(told.data["reachable"], false);

    cluster.start_again();
    until(&http, "/readyz", |answer| answer.status == 200);
    live.until("it is back", |event| event.kind == "resync");
    let list = until(&http, "/api/v1/connections", |answer| answer.status == 200);
    assert_eq!(list.json()["connections"], serde_json::json!([]));

    // Files that are gone for all the daemon knows.
    let dir = spcd.config_dir();
    fs::rename(&dir, spcd.dir().join("away")).unwrap();
    let gone = until(&http, "/readyz", |answer| answer.status == 503);
    assert_eq!(checks(&gone), [true, true, false]);
    let reason = gone.json()["checks"]["files"]["reason"].to_string();
    assert!(reason.contains("conf.d"), "{reason}");
    fs::rename(spcd.dir().join("away"), &dir).unwrap();
    until(&http, "/readyz", |answer| answer.status == 200);

    // A leader whose heartbeat is older than 15 s leads in name only; the next one mends that.
    let url = cluster.url("postgres");
    let stale = "UPDATE spcd.daemon SET heartbeat = clock_timestamp() - interval '16 s'";
    let silent = eventually("a stale heartbeat is no lead", DEADLINE, || async {
        query(&url, stale).await;
        Some(http.get("/readyz")).filter(|answer| answer.status == 503)
    })
    .await;
    assert_eq!(checks(&silent), [false, true, true]);
    until(&http, "/readyz", |answer| answer.status == 200);

    // A second daemon follows, and is as ready.
    let mut second = Spcd::new(&cluster.url("postgres"));
    let other = Http::of(&mut second);
    second.start();
    other.is_there();
    let follows = until(&other, "/readyz", |answer| answer.status == 200);
    let reason = follows.json()["checks"]["lead"]["reason"].to_string();
    assert!(reason.contains("follows"), "{reason}");
    let lead = |http: &Http| http.get("/metrics").body.contains("\nspcd_lead 1\n");
    assert_eq!((lead(&http), lead(&other)), (true, false));
    spcd.stop();
    eventually_now("it takes over", || lead(&other).then_some(()));
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_this_machine_only_with_the_token() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let port = free_port();
    spcd.env("SPCD_HTTP", &format!("0.0.0.0:{port}"));
    let refused = spcd.spcd(&["run"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("--http-token-file"), "{refused:?}");

    let file = spcd.dir().join("token");
    fs::write(&file, "").unwrap();
    spcd.env("SPCD_HTTP_TOKEN_FILE", &file.display().to_string());
    let empty = spcd.spcd(&["run"]);
    assert_eq!(empty.code, 1, "{empty:?}");
    assert!(empty.stderr.contains("is empty"), "{empty:?}");

    fs::write(&file, "s3cret").unwrap();
    spcd.start();
    let get = |path: &str, head: &str| -> Option<(u16, String)> {
        use std::io::Read as _;
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{head}\r\n"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some((text.get(9..12)?.parse().ok()?, text))
    };
    eventually_now("it is ready", || {
        get("/readyz", "").filter(|(status, _)| *status == 200)
    });
    let right = "Authorization: Bearer s3cret\r\n";
    for path in ["/api/v1/connections", "/metrics"] {
        assert_eq!(get(path, "").unwrap().0, 401, "{path}");
        assert_eq!(get(path, right).unwrap().0, 200, "{path}");
    }
    // What holds no data is for all, and why something is not ready is not.
    for path in ["/", "/livez"] {
        assert_eq!(get(path, "").unwrap().0, 200, "{path}");
    }
    assert!(!get("/readyz", "").unwrap().1.contains("reason"));
    assert!(get("/readyz", right).unwrap().1.contains("reason"));
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_follows_the_settings_and_may_be_taken() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    // An empty variable is an unset one.
    spcd.env("SPCD_HTTP", "");
    let file = spcd.dir().join("spcd.hcl");
    let (one, two) = (
        Http::at(&spcd.dir().join("one")),
        Http::at(&spcd.dir().join("two")),
    );
    fs::write(&file, "http = \"unix:one\"\n").unwrap();
    spcd.start();
    one.is_there();
    fs::write(&file, "http = \"unix:two\"\n").unwrap();
    two.is_there();
    eventually_now("the first is gone", || one.is_gone().then_some(()));
    fs::write(&file, "http = \"off\"\n").unwrap();
    eventually_now("both are gone", || two.is_gone().then_some(()));
    // Nothing that could be reached without a token is opened by a reload.
    fs::write(&file, "http = \"0.0.0.0:1\"\n").unwrap();
    spcd.signal(Signal::SIGHUP);
    spcd.logged("cannot apply the settings of http");

    // What cannot be had yet is had as soon as it can be.
    fs::write(&file, "http = \"unix:two\"\nhttp_token_file = \"token\"\n").unwrap();
    spcd.logged("cannot read the token");
    assert!(two.is_gone());
    fs::write(spcd.dir().join("token"), "s3cret").unwrap();
    two.is_there();

    // A file that vanishes changes nothing until it exists again, or a user confirms its removal.
    let hidden = spcd.dir().join("hidden.hcl");
    fs::rename(&file, &hidden).unwrap();
    spcd.logged("is gone: settings stay as they were");
    assert_eq!(two.get("/livez").status, 200);
    fs::write(&hidden, "http = \"unix:one\"\n").unwrap();
    fs::rename(&hidden, &file).unwrap();
    one.is_there();
    fs::write(&file, "http = \"off\"\n").unwrap();
    eventually_now("it is off", || one.is_gone().then_some(()));

    let taken = std::os::unix::net::UnixListener::bind(spcd.dir().join("one")).unwrap();
    fs::write(&file, "http = \"unix:one\"\n").unwrap();
    spcd.logged("no page, API and metrics for now");
    // What the daemon is for goes on, and the address is taken as soon as it is free.
    spcd.write("a.spc", &postgres("a", &source));
    hub::until(&hub.url, &["a ready"]).await;
    drop(taken);
    eventually_now("it is had", || {
        (!one.is_gone() && one.get("/livez").status == 200).then_some(())
    });
    for wrong in ["7733", "example.com:80", "unix:"] {
        fs::write(&file, format!("http = \"{wrong}\"\n")).unwrap();
        let told = spcd.spcd(&["url"]);
        assert_eq!(told.code, 1, "{wrong}");
        assert!(told.stderr.contains("spcd.hcl:1:8"), "{told:?}");
    }
    fs::write(&file, "http = \"unix:one\"\n").unwrap();
    spcd.stop();
}
