//! Where nothing differs, a pass only reads: counted by the server, statement by statement.

use crate::support::hub::{columns, made_by, postgres_with, serving, until, until_commented};
use crate::support::{Cluster, DEADLINE, Spcd, eventually, query, shared, value};

/// What was executed that does more than read. The daemon's heartbeat is none of a pass.
const WRITES: &str = "
    SELECT query FROM pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND query ~* '\\m(insert|update|delete|create|alter|drop|grant|revoke|comment|truncate|copy|import|notify|pg_notify|nextval|lock|reindex|refresh)\\M'
      AND query !~ '^UPDATE spcd.daemon SET heartbeat'
      AND query !~ 'pg_stat_statements'";

/// How often the database was looked at after the files had been read.
const LOOKS: &str = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
                     WHERE query ~ 'FROM pg_catalog.pg_extension\\s+WHERE extname'";

async fn looks(hub: &str) -> u64 {
    value(hub, LOOKS).await.parse().unwrap()
}

/// Does something after which a look follows, and waits until that and one more are over.
async fn passes(hub: &str, spcd: &Spcd, file: &str, texts: [&str; 2]) {
    for text in texts {
        let before = looks(hub).await;
        spcd.write(file, text);
        eventually(
            &format!("{file} was looked at, {before} looks before: {text}"),
            DEADLINE,
            || async { (looks(hub).await > before).then_some(()) },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_without_a_difference_only_reads() {
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'pg_stat_statements'",
        "pg_stat_statements.track = 'all'",
    ]);
    let (hub, source) = (cluster.database().await, cluster.database().await);
    query(
        &source.url,
        "CREATE TABLE t (id integer, gone text); CREATE TABLE u (id integer);
         COMMENT ON TABLE t IS 'of the source'",
    )
    .await;
    query(
        &hub.url,
        "CREATE EXTENSION pg_stat_statements; CREATE ROLE spcd_users;
         CREATE ROLE reader LOGIN IN ROLE spcd_users",
    )
    .await;
    let port = cluster.port().to_string();
    // Its source is asked on request only, and not by a timer during this test.
    let never = "  import {\n    refresh_interval = 0\n  }\n";
    let member = |name: &str, more: &str| {
        let more = [more, never].concat();
        postgres_with(name, &source, &more).replace(&shared().port().to_string(), &port)
    };
    let group = |patterns: &str| {
        format!(
            "connection \"g\" {{\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
             connections = [{patterns}]\n}}\n"
        )
    };
    let mut spcd = Spcd::new(&hub.url);
    let off = member("b2", "  import_schema = \"disabled\"\n");
    let members = [member("a1", ""), member("b1", ""), off].concat();
    spcd.write("m.spc", &members);
    spcd.write("g.spc", &group("\"a*\", \"b*\""));
    spcd.start();
    until(
        &hub.url,
        &["a1 ready", "b1 ready", "b2 disabled", "g ready"],
    )
    .await;
    // Something is refused and something is people's own: that is no difference either.
    query(
        &hub.url,
        "CREATE VIEW v AS SELECT gone FROM a1.t; CREATE TABLE a1.mine (x integer);
         COMMENT ON FOREIGN TABLE b1.u IS 'theirs'; GRANT SELECT ON g.t TO PUBLIC",
    )
    .await;
    query(&source.url, "ALTER TABLE t DROP COLUMN gone").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    for name in ["a1", "b1"] {
        until_commented(&hub.url, name).await;
    }

    // The daemon's sessions keep their DDL out of pg_stat_statements, for the sake of secrets.
    query(
        &hub.url,
        "CREATE TABLE ddl (tag text);
         CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql
             AS 'BEGIN INSERT INTO public.ddl VALUES (tg_tag); END';
         CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note();
         SELECT pg_stat_statements_reset()",
    )
    .await;
    let comments = ["# one\n", "# two\n"].map(|text| format!("{members}{text}"));
    passes(&hub.url, &spcd, "m.spc", [&comments[0], &comments[1]]).await;
    let patterns = ["\"b*\", \"a*\"", "\"a*\", \"b*\""].map(group);
    passes(&hub.url, &spcd, "g.spc", [&patterns[0], &patterns[1]]).await;
    let written = query(&hub.url, WRITES).await.concat();
    assert!(written.is_empty(), "{written:#?}");
    let ddl = "SELECT DISTINCT tag FROM ddl ORDER BY 1";
    assert_eq!(query(&hub.url, ddl).await.concat(), Vec::<String>::new());
    assert!(looks(&hub.url).await >= 4);

    // What does differ is counted, and so would have been.
    spcd.write("m.spc", &member("a1", ""));
    until(&hub.url, &["a1 ready", "g ready"]).await;
    let tags = query(&hub.url, ddl).await.concat();
    assert!(tags.contains(&"DROP FOREIGN TABLE".to_owned()), "{tags:?}");
    let written = query(&hub.url, WRITES).await.concat().join("\n");
    for word in ["pg_notify", "INSERT INTO spcd.connection_event"] {
        assert!(written.contains(word), "{word} is not in {written}");
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_order_of_the_sources_columns_is_no_change() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (a integer, b text)").await;
    let mut spcd = serving(&hub, &source, &["s"]).await;
    let state = "SELECT c.oid, c.xmin, s.generation, s.time_changed
                 FROM pg_class c, spcd.connection_state s WHERE c.oid = 's.t'::regclass";
    let before = query(&hub.url, state).await;
    let other = "ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD a integer";
    query(&source.url, other).await;
    assert_eq!(spcd.spcd(&["refresh", "s", "--wait"]).code, 0);
    assert_eq!(query(&hub.url, state).await, before);
    assert_eq!(columns(&hub.url, "s.t").await, ["a integer", "b text"]);
    spcd.stop();
}
