//! Whatever is wrong costs its own connection: the others are ready, and nothing is lost.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::hub::{made_by, postgres, postgres_with, serving, until, until_error};
use crate::support::{Database, Spcd, as_server_user, finish, query, shared, try_query, value};

async fn source() -> Database {
    made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (7)").await
}

/// A connection with these lines.
fn connection(name: &str, lines: &str) -> String {
    format!("connection \"{name}\" {{\n  plugin = \"postgres\"\n{lines}\n}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_cannot_be_used() {
    let (hub, source) = (shared().database().await, source().await);
    // It accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let port = shared().port();
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("good.spc", &postgres("good", &source));
    spcd.write(
        "bad.spc",
        &[
            connection("closed", &format!("  host = \"127.0.0.1\"\n  port = {closed}\n  password = \"hunter2hunter2\"")),
            connection("hangs", &format!(
                "  host = \"127.0.0.1\"\n  port = {}\n  connect_timeout = 2",
                silent.local_addr().unwrap().port()
            )),
            connection("nodb", &format!("  host = \"127.0.0.1\"\n  port = {port}\n  dbname = \"no such\"\n  user = \"postgres\"")),
            connection("nohost", "  host = \"no-such-host.invalid\"\n"),
            connection("norole", &format!(
                "  host = \"127.0.0.1\"\n  port = {port}\n  dbname = \"{}\"\n  user = \"unknown_user\"\n  password = \"hunter2hunter2\"",
                source.name
            )),
            postgres_with("noschema", &source, "  import {\n    schema = \"nowhere\"\n  }\n"),
        ]
        .concat(),
    );
    spcd.start();
    until(
        &hub.url,
        &[
            "closed error",
            "good ready",
            "hangs error",
            "nodb error",
            "nohost error",
            "norole error",
            "noschema error",
        ],
    )
    .await;
    for (name, part) in [
        ("closed", "Connection refused"),
        ("hangs", "timeout expired"),
        ("nodb", "database \"no such\" does not exist"),
        ("nohost", "no-such-host.invalid"),
        ("norole", "does not exist"),
        ("noschema", "schema \"nowhere\" is not present"),
    ] {
        let error = until_error(&hub.url, name, part).await;
        assert!(
            !error.contains("hunter2") && !error.contains("spcd_ask"),
            "{error}"
        );
    }
    assert_eq!(value(&hub.url, "SELECT id FROM good.t").await, "7");
    assert!(!spcd.log().contains("hunter2"), "{}", spcd.log());
    // Nothing of the attempts stays.
    let left = "SELECT nspname FROM pg_namespace WHERE nspname ~ '^(spcd_ask|closed|hangs|no)'
                UNION ALL SELECT srvname FROM pg_foreign_server WHERE srvname <> 'good'";
    assert!(query(&hub.url, left).await.is_empty());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_source_keeps_what_was_imported() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    spcd.write(
        "a.spc",
        &postgres_with("a", &source, "  sslmode = \"require\"\n"),
    );
    let error = until_error(&hub.url, "a", "SSL").await;
    assert!(error.contains("does not support SSL"), "{error}");
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "7");
    spcd.write("a.spc", &postgres("a", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_other_owners_are_never_touched() {
    let (hub, source) = (shared().database().await, source().await);
    query(
        &hub.url,
        "CREATE SCHEMA theirs; CREATE TABLE theirs.precious (x integer);
         CREATE EXTENSION postgres_fdw;
         CREATE SERVER theirserver FOREIGN DATA WRAPPER postgres_fdw",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    for name in ["theirs", "theirserver", "good"] {
        spcd.write(&format!("{name}.spc"), &postgres(name, &source));
    }
    spcd.start();
    until(
        &hub.url,
        &["good ready", "theirs error", "theirserver error"],
    )
    .await;
    until_error(&hub.url, "theirs", "spcd adopt theirs").await;
    until_error(&hub.url, "theirserver", "a server named").await;
    spcd.remove("theirs.spc");
    spcd.remove("theirserver.spc");
    until(&hub.url, &["good ready"]).await;
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM theirs.precious").await,
        "0"
    );
    assert_eq!(
        value(
            &hub.url,
            "SELECT count(*) FROM pg_foreign_server WHERE srvname = 'theirserver'"
        )
        .await,
        "1"
    );

    // Created by spcd, then dropped and created again by a user: no longer spcd's.
    query(
        &hub.url,
        "DROP SCHEMA good CASCADE; CREATE SCHEMA good; CREATE TABLE good.mine (x integer)",
    )
    .await;
    assert_eq!(spcd.spcd(&["wait"]).code, 1);
    until_error(&hub.url, "good", "spcd did not create").await;
    assert_eq!(value(&hub.url, "SELECT count(*) FROM good.mine").await, "0");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_connection_with_peoples_views_on_it_stays_until_they_are_gone() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    for name in ["good", "viewed", "crowded"] {
        spcd.write(&format!("{name}.spc"), &postgres(name, &source));
    }
    spcd.start();
    until(&hub.url, &["crowded ready", "good ready", "viewed ready"]).await;
    query(
        &hub.url,
        "CREATE VIEW v AS SELECT * FROM viewed.t; CREATE TABLE crowded.mine (x integer)",
    )
    .await;
    spcd.remove("viewed.spc");
    spcd.remove("crowded.spc");
    until(&hub.url, &["crowded error", "good ready", "viewed error"]).await;
    let error = until_error(&hub.url, "viewed", "view public.v").await;
    assert!(!error.contains("CASCADE"), "{error}");
    until_error(&hub.url, "crowded", "mine").await;
    assert_eq!(value(&hub.url, "SELECT id FROM v").await, "7");
    query(&hub.url, "DROP VIEW v; DROP TABLE crowded.mine").await;
    assert_eq!(
        spcd.spcd(&["refresh", "viewed", "crowded", "--wait"]).code,
        1,
        "they are unknown then"
    );
    until(&hub.url, &["good ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_values_are_only_names_and_values() {
    let hub = shared().database().await;
    let source = shared().database().await;
    let names = [
        "a\"b",
        "a.b",
        "a b",
        "a'b",
        "ünï",
        "x; DROP SCHEMA spcd CASCADE; --",
        "a\\b",
        "$$",
        "%I %s",
        "SELECT",
        "UPPER",
    ];
    let quoted: Vec<_> = names
        .iter()
        .map(|name| spcd_core::sql::ident(name))
        .collect();
    for table in &quoted {
        query(
            &source.url,
            &format!("CREATE TABLE {table} ({table} integer, \"col umn\" text)"),
        )
        .await;
    }
    let mut spcd = Spcd::new(&hub.url);
    for (n, name) in names.iter().enumerate() {
        let label = name
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace("%", "%%")
            .replace("%%I", "%I")
            .replace("%%s", "%s");
        let evil = "  application_name = \"'); DROP SCHEMA spcd CASCADE; -- \\\\ \\\" $$\"\n  password = \"'); DROP SCHEMA spcd CASCADE; -- \\\\ \\t\"\n";
        spcd.write(&format!("{n}.spc"), &postgres_with(&label, &source, evil));
    }
    spcd.start();
    let mut wanted: Vec<String> = names.iter().map(|name| format!("{name} ready")).collect();
    wanted.sort();
    until(
        &hub.url,
        &wanted.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    for schema in &quoted {
        for table in &quoted {
            assert!(
                query(&hub.url, &format!("SELECT {table} FROM {schema}.{table}"))
                    .await
                    .is_empty()
            );
        }
    }
    let password = "SELECT umoptions::text FROM pg_user_mappings WHERE srvname = 'a.b'";
    assert!(
        value(&hub.url, password)
            .await
            .contains("DROP SCHEMA spcd CASCADE")
    );
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nul_costs_its_block() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "a.spc",
        &format!(
            "{}{}",
            postgres("good", &source),
            connection("nul", "  host = \"a\\u0000b\"")
        ),
    );
    spcd.start();
    until(&hub.url, &["good ready", "nul error"]).await;
    until_error(&hub.url, "nul", "NUL").await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_vanishes_and_a_file_that_cannot_be_read_delete_nothing() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    std::fs::write(
        spcd.config_dir().join("b.spc"),
        b"connection \"b\" { x = \"\xff\xfe\" }",
    )
    .unwrap();
    until(&hub.url, &["a ready", "b error"]).await;
    until_error(&hub.url, "b", "UTF-8").await;
    assert_eq!(value(&hub.url, "SELECT id FROM b.t").await, "7");

    let (there, away) = (spcd.config_dir(), spcd.dir().join("away"));
    std::fs::rename(&there, &away).unwrap();
    until(&hub.url, &["a error", "b error"]).await;
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "7");
    spcd.stop();
    spcd.start();
    until(&hub.url, &["a error", "b error"]).await;
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "7");

    std::fs::rename(&away, &there).unwrap();
    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    assert!(try_query(&hub.url, "SELECT id FROM a.t").await.is_ok());
    spcd.stop();
}

#[test]
fn files_that_cannot_be_used_are_told_each_with_its_reason() {
    let spcd = Spcd::with_private_cluster();
    let conf = spcd.config_dir();
    let good = connection("good", "  host = \"db.example.com\"");
    spcd.write("good.spc", &good);
    std::fs::write(conf.join("latin1.spc"), b"connection \"\xe9\" {\n}\n").unwrap();
    spcd.write("secret.spc", &connection("unseen", ""));
    let closed = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(conf.join("secret.spc"), closed).unwrap();
    spcd.write("directory.spc/inner.spc", &connection("inner", ""));
    symlink("loop.spc", conf.join("loop.spc")).unwrap();
    symlink("..", conf.join("directory.spc/up")).unwrap();
    symlink("nowhere", conf.join("dangling.spc")).unwrap();
    let huge = std::fs::File::create(conf.join("huge.spc")).unwrap();
    huge.set_len(100 << 20).unwrap();

    // The user of the tests may be able to read everything; another user may not even reach
    // the directory that the program was built in.
    let program = spcd.dir().join("spcd");
    std::fs::copy(env!("CARGO_BIN_EXE_spcd"), &program).unwrap();
    let mut check = std::process::Command::new(program);
    check.env_clear().env("HOME", spcd.home());
    check.current_dir(spcd.dir()).arg("--config").arg(&conf);
    as_server_user(check.arg("check"));
    let shown = finish(check);
    let said = shown.stdout + &shown.stderr;
    assert_eq!(shown.code, 1, "{said}");
    for (file, reason) in [
        ("latin1.spc", "not UTF-8 from byte 12"),
        ("secret.spc", "Permission denied"),
        ("loop.spc", "symbolic links"),
        ("dangling.spc", "leads nowhere"),
        ("huge.spc", "larger than 16 MiB"),
    ] {
        let told = said.split("error: ").find(|part| part.contains(file));
        let told = told.unwrap_or_else(|| panic!("{file}: {said}"));
        assert!(told.contains(reason), "{file}: {told}");
    }
    assert_eq!(said.matches("error: ").count(), 5, "{said}");

    let json = spcd.spcd(&["check", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names: Vec<&str> = (json["connections"].as_array().unwrap().iter())
        .filter_map(|connection| connection["name"].as_str())
        .collect();
    assert!(
        names.contains(&"good") && names.contains(&"inner"),
        "{names:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_sixty_three_bytes_is_one_and_of_sixty_four_is_none() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    let longest = format!("{}x", "é".repeat(31));
    let (twin, too_long) = (format!("{}y", "é".repeat(31)), "é".repeat(32));
    let text = [&longest, &twin, &too_long].map(|name| postgres(name, &source));
    spcd.write("a.spc", &text.concat());
    spcd.start();
    let wanted = [format!("{longest} ready"), format!("{twin} ready")];
    until(&hub.url, &wanted.each_ref().map(String::as_str)).await;
    for name in [&longest, &twin] {
        let sql = format!("SELECT id FROM {}.t", spcd_core::sql::ident(name));
        assert_eq!(value(&hub.url, &sql).await, "7");
    }
    let told = "SELECT message FROM spcd.config_diagnostic";
    let told = value(&hub.url, told).await;
    assert!(told.contains("at most 63 bytes, this one has 64"), "{told}");
    spcd.stop();
}
