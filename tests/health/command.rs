//! `spcd test`: what a source says of itself, or what stands in the way.

use std::fs;

use super::{health, until_health, watching};
use crate::support::hub::{guarded, postgres, postgres_with, reader, until};
use crate::support::mariadb::{self, MariaDb, mysql};
use crate::support::proxy::Proxy;
use crate::support::{Spcd, free_port, query, shared, value};

/// The value of a line that begins with this.
fn line<'a>(text: &'a str, what: &str) -> &'a str {
    let found = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(what));
    found
        .unwrap_or_else(|| panic!("no line {what:?}: {text}"))
        .trim()
}

/// All that a hub could have kept of a test, beside spcd's own schema.
const LEFT: &str = "SELECT (SELECT count(*) FROM pg_foreign_server)
    + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'spcd%' AND nspname NOT IN ('spcd', 'spcd_union', 'spcd_type', 'spcd_lock'))";

#[tokio::test(flavor = "multi_thread")]
async fn a_block_in_a_file_is_tested_without_a_daemon() {
    let hub = shared().database().await;
    let source = guarded("hunter2").await;
    let spcd = Spcd::new(&hub.url);
    let file = spcd.dir().join("draft.spc");
    fs::write(&file, reader("shop", source.port(), "hunter2")).unwrap();
    let done = spcd.spcd(&["test", "shop", "--file", "draft.spc"]);
    assert_eq!(done.code, 0, "{done:?}");
    let text = &done.stdout;
    assert!(text.starts_with("shop: answers in "), "{text}");
    let version = value(&source.url("postgres"), "SHOW server_version").await;
    assert_eq!(line(text, "server"), format!("PostgreSQL {version}"));
    assert_eq!(line(text, "database"), "postgres");
    assert_eq!(line(text, "user"), "reader");
    assert!(line(text, "backend").parse::<u32>().is_ok(), "{text}");
    assert_eq!(line(text, "TLS"), "no");
    assert_eq!(line(text, "tables"), "1");
    // This role does not see when the server started; a superuser does.
    assert!(!text.contains("started"), "{text}");
    assert_eq!(value(&hub.url, LEFT).await, "0");

    // A file that is not there, and one without the block, which says why.
    fs::write(spcd.dir().join("wrong.spc"), "conection \"shop\" {\n}\n").unwrap();
    for (name, says) in [
        ("nowhere.spc", &["cannot read nowhere.spc: "][..]),
        (
            "wrong.spc",
            &["no connection is named \"shop\"", "wrong.spc:1:1: "],
        ),
    ] {
        let done = spcd.spcd(&["test", "shop", "--file", name]);
        assert_eq!(done.code, 1, "{done:?}");
        for says in says {
            assert!(done.stderr.contains(says), "{done:?}");
        }
    }

    let source = shared().database().await;
    fs::write(&file, postgres("own", &source)).unwrap();
    let done = spcd.spcd(&["test", "own", "--file", "draft.spc"]);
    assert_eq!(done.code, 0, "{done:?}");
    let started = "SELECT date_trunc('second', backend_start) FROM pg_stat_activity
                   WHERE backend_type = 'checkpointer'";
    assert_eq!(
        line(&done.stdout, "started"),
        value(&hub.url, started).await
    );
    assert_eq!(line(&done.stdout, "tables"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reason_has_a_name_and_a_hint() {
    let hub = shared().database().await;
    let source = guarded("hunter2").await;
    let admin = source.url("postgres");
    query(&admin, "CREATE DATABASE closed").await;
    query(&admin, "REVOKE CONNECT ON DATABASE closed FROM PUBLIC").await;
    let hung = Proxy::to(source.port()).await;
    hung.swallow(true);
    let good = reader("shop", source.port(), "hunter2");
    let with = |more: &str| good.replace("}\n", &format!("{more}}}\n"));
    let port = |port: u16| good.replace(&format!("= {}\n", source.port()), &format!("= {port}\n"));
    let spcd = Spcd::new(&hub.url);
    for (block, kind, hint) in [
        (
            good.replace("127.0.0.1", "no-such-host.invalid"),
            "name not found: ",
            "spelling of `host`",
        ),
        (
            port(free_port()),
            "connection refused: ",
            "is the source running",
        ),
        (
            port(hung.port()).replace("}\n", "  health {\n    timeout = \"1s\"\n  }\n}\n"),
            "no answer: ",
            "firewall",
        ),
        (with("  sslmode = \"require\"\n"), "TLS: ", "`sslmode`"),
        (
            good.replace("hunter2", "swordfish"),
            "authentication: ",
            "check `user` and `password`",
        ),
        (
            good.replace("\"postgres\"\n  user", "\"closed\"\n  user"),
            "permission: ",
            "grant the user CONNECT",
        ),
        (
            good.replace("\"postgres\"\n  user", "\"nowhere\"\n  user"),
            "wrong database: ",
            "names of the database",
        ),
        (
            with("  schema = \"nowhere\"\n"),
            "wrong database: ",
            "and of the schema",
        ),
    ] {
        spcd.write("a.spc", &block);
        let done = spcd.spcd(&["test", "shop"]);
        assert_eq!(done.code, 1, "{block}: {done:?}");
        let told = &done.stderr;
        assert!(
            told.starts_with(&format!("spcd: shop: {kind}")),
            "{block}: {told}"
        );
        assert!(
            told.contains("\nhint: ") && told.contains(hint),
            "{block}: {told}"
        );
        assert!(
            !told.contains("hunter2") && !told.contains("swordfish"),
            "{told}"
        );
        assert_eq!(done.stdout, "");
        assert_eq!(value(&hub.url, LEFT).await, "0");
    }
    spcd.write(
        "a.spc",
        "connection \"a\" {\n  plugin = \"postgres\"\n  hots = \"x\"\n}\n",
    );
    spcd.write(
        "b.spc",
        "connection \"b\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  connections = [\"a\"]\n}\n",
    );
    for (name, text) in [
        (
            "a",
            "a.spc:3:3: `postgres` has no attribute `hots` (did you mean `host`?)",
        ),
        (
            "b",
            "an aggregator has no source of its own: test its members a",
        ),
        ("c", "no connection is named \"c\""),
    ] {
        let done = spcd.spcd(&["test", name]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains(text), "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_is_not_disturbed() {
    let hub = shared().database().await;
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let mut spcd = watching(&hub.url);
    spcd.write("a.spc", &postgres_with("shop", &source, ""));
    spcd.start();
    until(&hub.url, &["shop ready"]).await;
    until_health(&hub.url, "shop", super::WELL).await;
    let before = "SELECT count(*) FROM spcd.connection_event";
    let events = value(&hub.url, before).await;
    let done = spcd.spcd(&["test", "shop"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(line(&done.stdout, "tables"), "1");
    assert_eq!(value(&hub.url, before).await, events);
    assert_eq!(health(&hub.url, "shop", "attempts").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_tells_of_itself_too() {
    let hub = shared().database().await;
    let source = MariaDb::start();
    source.run(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id int); CREATE TABLE shop.u (id int);
         CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'hunter2';
         GRANT SELECT ON shop.* TO reader@'127.0.0.1'",
    );
    let spcd = Spcd::new(&hub.url);
    let block = mysql("shop", source.port(), &mariadb::reader("hunter2"));
    spcd.write("a.spc", &block);
    let done = spcd.spcd(&["test", "shop"]);
    assert_eq!(done.code, 0, "{done:?}");
    let text = &done.stdout;
    assert!(line(text, "server").contains("MariaDB"), "{text}");
    assert!(line(text, "started").starts_with("20"), "{text}");
    assert_eq!(line(text, "database"), "shop");
    assert_eq!(line(text, "user"), "reader");
    assert!(line(text, "backend").parse::<u32>().is_ok(), "{text}");
    assert_eq!(line(text, "TLS"), "no");
    assert_eq!(line(text, "tables"), "2");
}
