//! The programs under examples/, as written, against the daemon.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::hub::{postgres, postgres_with, until};
use crate::support::{Cluster, Spcd, query, shared};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Node with its driver node-postgres.
pub fn node() -> Command {
    let mut node = Command::new("node");
    if std::env::var_os("NODE_PATH").is_none() {
        node.env("NODE_PATH", root().join("target/drivers/node/node_modules"));
    }
    node
}

/// The interpreter of an example, with its driver: where scripts/lib.sh puts it, unless the
/// environment says otherwise.
fn interpreter(script: &str) -> Command {
    let drivers = root().join("target/drivers");
    let mut command = if script.ends_with(".py") {
        let python = std::env::var_os("SPCD_PYTHON").map(PathBuf::from);
        Command::new(python.unwrap_or_else(|| drivers.join("python/bin/python")))
    } else {
        node()
    };
    command.arg(root().join("examples").join(script));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_listen_are_woken() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE orders (id integer)").await;
    for script in ["follow.py", "follow.js"] {
        let hub = shared().database().await;
        let mut spcd = Spcd::new(&hub.url);
        spcd.write("keep.spc", &postgres("keep", &source));
        spcd.start();
        until(&hub.url, &["keep ready"]).await;
        let mut command = interpreter(script);
        command.args([&hub.url, "sales"]);
        let mut child = (command.stdout(Stdio::piped()).spawn()).unwrap_or_else(|error| {
            panic!("{script}: {error}; scripts/test.sh installs what it needs")
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().map(Result::unwrap);
        let hint = "scripts/test.sh installs what the examples need";
        assert_eq!(first.as_deref(), Some("waiting for sales"), "{hint}");
        spcd.write("sales.spc", &postgres("sales", &source));
        let rest: Vec<String> = lines.map(Result::unwrap).collect();
        assert_eq!(rest.last().unwrap(), "sales is ready", "{rest:?}");
        assert!(rest.contains(&"sales: ready".to_owned()), "heard: {rest:?}");
        assert_eq!(child.wait().unwrap().code(), Some(0));

        spcd.write(
            "sales.spc",
            &postgres_with("sales", &source, "  hots = \"x\"\n"),
        );
        until(&hub.url, &["keep ready", "sales error"]).await;
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("sales is error: "), "{said}");
        assert!(said.contains("hots"), "{said}");
        assert_eq!(output.status.code(), Some(1));
        spcd.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_for_psql_waits() {
    let cluster = Cluster::start(&[]);
    let (hub, source) = (cluster.database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE orders (id integer); INSERT INTO orders VALUES (1), (2)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("sales.spc", &postgres("sales", &source));
    let mut psql = Command::new("psql");
    psql.args(["-At", "-v", "ON_ERROR_STOP=1"]);
    psql.args(["-v", "connection=sales", "-v", "table=orders", "-f"]);
    psql.arg(root().join("examples/wait.sql")).arg(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    // Not configured: it says so at once.
    let early = psql.output().unwrap();
    assert_eq!(early.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&early.stderr).contains("not configured"));
    spcd.start();
    until(&hub.url, &["sales ready"]).await;
    let output = psql.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "sales|ready|1\n2\n"
    );
    spcd.stop();
}
