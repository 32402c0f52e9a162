//! `spcd query`

use std::fs;
use std::process::Stdio;

use serde_json::json;

use crate::support::hub::{postgres, until};
use crate::support::kept::{kept, load, publish, to};
use crate::support::{DEADLINE, Spcd, eventually, query, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_saved_and_then_queried() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE orders (id integer); INSERT INTO orders VALUES (7)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.start();
    spcd.write("keep.spc", &postgres("keep", &source));
    until(&hub.url, &["keep ready"]).await;
    for n in 0..5 {
        let name = format!("sales{n}");
        spcd.write("sales.spc", &postgres(&name, &source));
        let asked = spcd.spcd(&[
            "query",
            &format!("SELECT id FROM {name}.orders"),
            "--output",
            "csv",
        ]);
        assert_eq!(
            (asked.code, asked.stdout.as_str()),
            (0, "id\n7\n"),
            "{}",
            asked.stderr
        );
    }
    spcd.remove("sales.spc");
    let gone = spcd.spcd(&["query", "SELECT id FROM sales4.orders"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (1, ""));
    assert!(
        gone.stderr
            .contains("LINE 1: SELECT id FROM sales4.orders\n                       ^"),
        "{}",
        gone.stderr
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_those_of_psql() {
    let hub = kept().await;
    let spcd = Spcd::new(&hub.url);
    let ok = spcd.spcd(&[
        "query",
        "CREATE TABLE t (id integer); INSERT INTO t VALUES (1), (2); SELECT * FROM t",
    ]);
    assert_eq!(ok.code, 0, "{}", ok.stderr);
    assert_eq!(
        ok.stdout,
        "CREATE\nINSERT 2\n id\n----\n  1\n  2\n(2 rows)\n"
    );
    assert_eq!(spcd.spcd(&["query", "SELECT 1/0"]).code, 1);

    let script = spcd.dir().join("script.sql");
    fs::write(
        &script,
        "INSERT INTO t VALUES (3);\nSELECT 1/0;\nINSERT INTO t VALUES (4);",
    )
    .unwrap();
    let failed = spcd.spcd(&["query", "-f", script.to_str().unwrap()]);
    assert_eq!((failed.code, failed.stdout.as_str()), (3, "INSERT 1\n"));
    assert_eq!(value(&hub.url, "SELECT max(id) FROM t").await, "3");
    assert_eq!(spcd.spcd(&["query", "-f", "/nowhere.sql"]).code, 1);

    let lost = spcd.spcd(&["query", "SELECT pg_terminate_backend(pg_backend_pid())"]);
    assert_eq!(lost.code, 2, "{}", lost.stderr);
    let elsewhere = Spcd::new(&format!("{}_not_there", hub.url));
    assert_eq!(elsewhere.spcd(&["query", "SELECT 1"]).code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_have_the_form_that_was_asked_for() {
    let hub = kept().await;
    let spcd = Spcd::new(&hub.url);
    let sql = "SELECT 1 AS id, 'a,\"b\"' AS text, NULL AS none, 1.50::numeric AS n, true AS yes";
    let asked = |output: &str| spcd.spcd(&["query", sql, "--output", output]).stdout;
    let read: serde_json::Value = serde_json::from_str(&asked("json")).unwrap();
    assert_eq!(
        read,
        json!([{"id": 1, "text": "a,\"b\"", "none": null, "n": 1.5, "yes": true}])
    );
    assert_eq!(
        asked("csv"),
        "id,text,none,n,yes\n1,\"a,\"\"b\"\"\",,1.50,t\n"
    );
    assert_eq!(
        asked("line"),
        "-[ RECORD 1 ]-\nid   | 1\ntext | a,\"b\"\nnone | \nn    | 1.50\nyes  | t\n"
    );
    // The role's own settings hold, not those of the daemon's sessions.
    query(
        &hub.url,
        &format!("ALTER DATABASE {} SET search_path = spcd", hub.name),
    )
    .await;
    let path = spcd.spcd(&["query", "SHOW search_path", "--output", "csv"]);
    assert_eq!(path.stdout, "search_path\nspcd\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_waits_and_tells_why_it_cannot_be_answered() {
    let hub = kept().await;
    publish(&hub.url, "", json!([to("sales", &["pending"])])).await;
    let spcd = Spcd::new(&hub.url);
    let late = spcd.spcd(&["query", "SELECT * FROM sales.t", "--timeout", "100ms"]);
    assert_eq!(late.code, 1);
    assert!(
        late.stderr.contains("not ready in time: sales"),
        "{}",
        late.stderr
    );

    let mut command = spcd.command(&["query", "SELECT * FROM sales.t", "--output", "csv"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spcd query'";
    eventually("it is there", DEADLINE, || async {
        (value(&hub.url, listens).await == "1").then_some(())
    })
    .await;
    load(&hub.url, "sales").await;
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "id\n1\n");

    let gone =
        json!({"name": "sales", "route": ["updating", "error"], "error": "no route to host"});
    publish(&hub.url, "DROP TABLE sales.t", json!([gone])).await;
    let asked = spcd.spcd(&["query", "SELECT * FROM sales.t"]);
    assert_eq!(asked.code, 1);
    assert!(
        asked
            .stderr
            .contains("connection \"sales\" is in error: no route to host"),
        "{}",
        asked.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_cancels_the_statement_in_the_server() {
    let hub = kept().await;
    let spcd = Spcd::new(&hub.url);
    let mut command = spcd.command(&["query", "SELECT pg_sleep(1000)"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("it sleeps", DEADLINE, || async {
        (value(&hub.url, sleeps).await == "1").then_some(())
    })
    .await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("canceling statement"));
    assert_eq!(value(&hub.url, sleeps).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_it_does_all_by_itself() {
    let source = shared().database().await;
    query(
        &source.url,
        "CREATE TABLE orders (id integer); INSERT INTO orders VALUES (7)",
    )
    .await;
    let spcd = Spcd::with_private_cluster();
    let user = "  password = \"x\"\n}\n";
    spcd.write(
        "sales.spc",
        &postgres("sales", &source).replace("}\n", user),
    );
    let asked = spcd.spcd(&["query", "SELECT id FROM sales.orders", "--output", "csv"]);
    assert_eq!(
        (asked.code, asked.stdout.as_str()),
        (0, "id\n7\n"),
        "{}",
        asked.stderr
    );
    let find = |name: &str| {
        let mut find = std::process::Command::new("find");
        let output = find
            .arg(spcd.state_dir())
            .args(["-name", name])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // The cluster is there, and stopped.
    assert_ne!(find("global"), "");
    assert_eq!(find("postmaster.pid"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_status_tells_each_change() {
    use std::io::{BufRead as _, BufReader};
    let hub = kept().await;
    load(&hub.url, "sales").await;
    let spcd = Spcd::new(&hub.url);
    let mut command = spcd.command(&["status", "--watch"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert!(line().starts_with("CONNECTION"));
    assert!(line().starts_with("sales"));
    let gone = json!({"name": "sales", "route": ["updating", "error"], "error": "no route"});
    publish(&hub.url, "", json!([gone])).await;
    assert!(line().ends_with("sales  updating"));
    assert!(line().ends_with("sales  error  no route"));
    let remove = json!({"name": "sales", "route": ["deleting"], "remove": true});
    publish(&hub.url, "", json!([remove])).await;
    assert!(line().ends_with("sales  deleting"));
    assert!(line().ends_with("sales  deleted"));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
