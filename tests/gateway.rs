//! Wrappers in a Postgres of their own: what ends or shows there does neither in the hub.

mod bad_input;
mod commands;
mod crashes;
mod managed;
mod renamed;
mod secrecy;
mod several;
mod shared_tables;

use crate::support::hub::{guarded, postgres_with, reader, until, until_error};
use crate::support::steampipe::{READER, connection, gateway, plugins};
use crate::support::{
    Cluster, DEADLINE, Spcd, connect, eventually, query, shared, try_query, value,
};

const SECRET: &str = "s3cret-t0ken-of-an-api";

fn ended_processes(server: &Cluster) -> usize {
    let log = server.log();
    log.matches("was terminated by signal").count() + log.matches("exited with exit code 2").count()
}

/// A daemon between a hub and a gateway.
async fn daemon(hub: &str, gateway: &Cluster) -> Spcd {
    let mut spcd = Spcd::new(hub);
    spcd.env("SPCD_GATEWAY", &gateway.url("postgres"));
    spcd.start();
    spcd
}

#[tokio::test(flavor = "multi_thread")]
async fn two_plugins_are_joined_in_one_session_and_no_process_ends() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE ann LOGIN IN ROLE spcd_users",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", &gateway.url("postgres"));
    let file = |token: &str| {
        let blocks = (0..10).flat_map(|n| {
            ["a", "b"].map(|plugin| {
                let body = format!("token = \"{token}{n}\"");
                connection(&format!("{plugin}{n}"), plugin, &body)
            })
        });
        plugins() + &blocks.collect::<String>()
    };
    let ready: Vec<String> = (["a", "b"].into_iter())
        .flat_map(|plugin| (0..10).map(move |n| format!("{plugin}{n} ready")))
        .collect();
    let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
    spcd.write("all.spc", &file(SECRET));
    spcd.start();
    until(&hub.url, &ready).await;

    let ann = server.url_as("ann", &hub.name);
    let join = "SELECT a.sp_connection_name || ' ' || b.sp_connection_name
                FROM a3.account a JOIN b4.account b USING (id)";
    assert_eq!(value(&ann, join).await, "a3 b4");

    for n in 0..5 {
        spcd.write("all.spc", &file(&format!("other{n}-")));
        assert_eq!(spcd.spcd(&["wait"]).code, 0);
    }
    let token = "SELECT token FROM b9.account";
    eventually("the last token is read", DEADLINE, || async {
        (value(&ann, token).await == "other4-9").then_some(())
    })
    .await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(spcd.spcd(&["test", "a1"]).code, 0);
    spcd.stop();
    spcd.start();
    until(&hub.url, &ready).await;
    spcd.write("all.spc", &plugins());
    until(&hub.url, &[]).await;
    until(&gateway.url("postgres"), &[]).await;
    assert_eq!(
        (ended_processes(&server), ended_processes(&gateway)),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_of_the_hub_finds_a_secret_that_is_in_the_gateway() {
    let (server, gateway) = (Cluster::start(&["log_statement = all"]), gateway().await);
    let hub = server.database().await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE ann LOGIN IN ROLE spcd_users",
    )
    .await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let body = format!("token = \"{SECRET}\"");
    spcd.write("a.spc", &(plugins() + &connection("a", "a", &body)));
    until(&hub.url, &["a ready"]).await;

    let ann = server.url_as("ann", &hub.name);
    assert_eq!(value(&ann, "SELECT token FROM a.account").await, SECRET);
    // The table that shows it is this test's own; what else can be read of it holds nothing.
    for relation in [
        "pg_foreign_server",
        "pg_foreign_table",
        "pg_foreign_data_wrapper",
        "pg_user_mappings",
        "pg_stat_activity",
        "pg_settings",
        "information_schema.foreign_server_options",
        "spcd.connection_state",
        "spcd.connection_event",
        "spcd.config_diagnostic",
    ] {
        for role in [&ann, &hub.url] {
            // In two parts, so that the statement itself is not found in pg_stat_activity.
            let (first, last) = SECRET.split_at(8);
            let found = format!(
                "SELECT count(*) FROM {relation} r WHERE strpos(r::text, '{first}' || '{last}') > 0"
            );
            assert_eq!(value(role, &found).await, "0", "{relation}");
        }
    }
    let explained = query(&ann, "EXPLAIN VERBOSE SELECT * FROM a.account")
        .await
        .concat()
        .join("\n");
    let failed = try_query(&ann, "SELECT * FROM a.fails")
        .await
        .unwrap_err()
        .to_string();
    for (place, text) in [
        ("EXPLAIN", explained),
        ("an error", failed),
        ("the daemon's log", spcd.log()),
    ] {
        assert!(!text.contains(SECRET), "{place}: {text}");
    }

    // The role that the hub uses can read rows, and no configuration; a guess at its password fails.
    let kept = "SELECT password FROM spcd.gateway_reader";
    let password = value(&gateway.url("postgres"), kept).await;
    let as_reader = |password: &str| {
        format!(
            "postgres://{READER}:{password}@127.0.0.1:{}/postgres",
            gateway.port()
        )
    };
    let reader = as_reader(&password);
    let options = "SELECT srvoptions FROM pg_foreign_server";
    let refused = try_query(&reader, options).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "42501");
    let rows = "SELECT count(*) FROM information_schema.foreign_server_options";
    assert_eq!(value(&reader, rows).await, "0");
    assert!(connect(&as_reader("guess")).await.is_err());
    assert!(!server.log().contains(&password) && !gateway.log().contains(&password));
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_session_reads_with_a_new_configuration() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let file = |token: &str| plugins() + &connection("a", "a", &format!("token = \"{token}\""));
    spcd.write("a.spc", &file("one"));
    until(&hub.url, &["a ready"]).await;
    let session = connect(&hub.url).await.unwrap();
    let token = async || {
        let row = session
            .query_one("SELECT token FROM a.account", &[])
            .await
            .unwrap();
        row.get::<_, String>(0)
    };
    assert_eq!(token().await, "one");
    let before = value(&hub.url, "SELECT 'a.account'::regclass::oid").await;
    spcd.write("a.spc", &file("two"));
    eventually("the session reads with the new token", DEADLINE, || async {
        (token().await == "two").then_some(())
    })
    .await;
    assert_eq!(
        value(&hub.url, "SELECT 'a.account'::regclass::oid").await,
        before
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_a_wrapper_fails_one_query_and_nothing_else() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let source = shared().database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let blocks = [
        plugins(),
        connection("a", "a", "token = \"one\""),
        connection("b", "b", "token = \"two\""),
        postgres_with("other", &source, ""),
    ];
    spcd.write("all.spc", &blocks.concat());
    let ready = ["a ready", "b ready", "other ready"];
    until(&hub.url, &ready).await;
    let last = value(&hub.url, "SELECT max(id) FROM spcd.connection_event").await;
    let session = connect(&hub.url).await.unwrap();
    for panics in 1..=3 {
        eventually("the wrapper panics", DEADLINE, || async {
            let panic = session.query("SELECT * FROM a.panic", &[]).await;
            panic.unwrap_err();
            (ended_processes(&gateway) >= panics).then_some(())
        })
        .await;
        // The gateway restarts by itself; the session lives.
        eventually("the next query is answered", DEADLINE, || async {
            session.query("SELECT * FROM b.account", &[]).await.ok()
        })
        .await;
    }
    assert_eq!(ended_processes(&server), 0);
    assert!(ended_processes(&gateway) >= 3);
    until(&gateway.url("postgres"), &["a ready", "b ready"]).await;
    until(&hub.url, &ready).await;
    let events = format!(
        "SELECT connection_name, status, error FROM spcd.connection_event WHERE id > {last}"
    );
    assert_eq!(query(&hub.url, &events).await, Vec::<Vec<String>>::new());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_wrapper_says_of_a_configuration_is_the_connections_error() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write(
        "a.spc",
        &(plugins() + &connection("a", "a", "tokn = \"one\"")),
    );
    let error = until_error(&hub.url, "a", "Unsupported argument").await;
    assert!(error.contains("tokn"), "{error}");
    spcd.write(
        "a.spc",
        &(plugins() + &connection("a", "a", "token = \"one\"")),
    );
    until(&hub.url, &["a ready"]).await;
    // What is right stays while something else is wrong.
    spcd.write(
        "a.spc",
        &(plugins() + &connection("a", "a", "tokn = \"one\"")),
    );
    until_error(&hub.url, "a", "Unsupported argument").await;
    assert_eq!(value(&hub.url, "SELECT token FROM a.account").await, "one");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_asks_the_source_behind_the_gateway() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let source = guarded("hunter2hunter2").await;
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let block = reader("a", source.port(), "hunter2hunter2");
    spcd.write(
        "a.spc",
        &block.replace("plugin ", "gateway = true\n  plugin "),
    );
    until(&hub.url, &["a ready"]).await;
    let more = "CREATE TABLE two (id integer); GRANT SELECT ON two TO reader";
    query(&source.url("postgres"), more).await;
    let refreshed = spcd.spcd(&["refresh", "a", "--wait"]);
    assert_eq!(
        refreshed.code, 0,
        "{}{}",
        refreshed.stdout, refreshed.stderr
    );
    assert_eq!(value(&hub.url, "SELECT count(*) FROM a.two").await, "0");

    // An aggregator has no source of its own: its members are asked.
    let all = "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
               connections = [\"*\"]\n}\n";
    spcd.write("all.spc", all);
    until(&hub.url, &["a ready", "all ready"]).await;
    let more = "CREATE TABLE three (id integer); GRANT SELECT ON three TO reader";
    query(&source.url("postgres"), more).await;
    let refreshed = spcd.spcd(&["refresh", "all", "--wait"]);
    assert_eq!(refreshed.code, 0, "{refreshed:?}");
    for schema in ["a", "\"all\""] {
        let count = format!("SELECT count(*) FROM {schema}.three");
        eventually("the new table is there", DEADLINE, || async {
            try_query(&hub.url, &count).await.ok()
        })
        .await;
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_away_is_said_and_found_again() {
    let (server, mut gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    spcd.write(
        "a.spc",
        &(plugins() + &connection("a", "a", "token = \"one\"")),
    );
    until(&hub.url, &["a ready"]).await;
    gateway.stop();
    until_error(&hub.url, "a", "the gateway").await;
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM pg_foreign_table").await,
        "6"
    );
    gateway.start_again();
    until(&hub.url, &["a ready"]).await;
    assert_eq!(value(&hub.url, "SELECT token FROM a.account").await, "one");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_reach_the_private_gateway_without_a_daemon() {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE one (id integer)").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", "private");
    spcd.write("a.spc", &postgres_with("a", &source, "  gateway = true\n"));
    let plan = spcd.spcd(&["plan"]);
    assert_eq!(plan.code, 2, "{}{}", plan.stdout, plan.stderr);
    assert!(!spcd.state_dir().join("gateway").exists());
    let applied = spcd.spcd(&["apply"]);
    assert_eq!(applied.code, 0, "{}{}", applied.stdout, applied.stderr);
    until(&hub.url, &["a ready"]).await;
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    assert_eq!(spcd.spcd(&["test", "a"]).code, 0);
}

/// Number of the gateway's sessions that the hub holds for its clients.
async fn sessions(gateway: &Cluster) -> String {
    // The daemon checks now and then that this role can log in.
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE usename = '{READER}' AND application_name <> 'spcd gateway check'"
    );
    value(&gateway.url("postgres"), &sql).await
}

/// The servers of lanes, with the number of connections on each.
async fn lanes(hub: &str) -> Vec<String> {
    let sql = "SELECT count(DISTINCT relnamespace)
               FROM pg_foreign_server s
               LEFT JOIN pg_foreign_table f ON f.ftserver = s.oid
               LEFT JOIN pg_class c ON c.oid = f.ftrelid
               WHERE starts_with(srvname, 'spcd_gateway_') GROUP BY srvname ORDER BY srvname";
    query(hub, sql).await.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_opens_one_session_of_the_gateway_for_each_lane() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let file = |lanes: &str, names: &[&str]| {
        let plugins = plugins().replace("gateway = true", &format!("gateway = true\n{lanes}"));
        let blocks = (names.iter()).map(|name| connection(name, &name[..1], "token = \"t\""));
        plugins + &blocks.collect::<String>()
    };
    let names = ["a1", "a2", "a3", "b1"];
    spcd.write("all.spc", &file("", &names));
    until(
        &hub.url,
        &names
            .map(|name| format!("{name} ready"))
            .each_ref()
            .map(String::as_str),
    )
    .await;
    assert_eq!(lanes(&hub.url).await, ["3", "1"]);
    let read = "SELECT count(*) FROM a1.account, a2.account, a3.account, b1.account";
    let session = connect(&hub.url).await.unwrap();
    session.query_one(read, &[]).await.unwrap();
    assert_eq!(sessions(&gateway).await, "2");

    // More lanes are for new connections: a table keeps its server.
    let tables = "SELECT string_agg(ftrelid::text, ' ' ORDER BY ftrelid) FROM pg_foreign_table";
    let before = value(&hub.url, tables).await;
    query(&hub.url, "CREATE VIEW mine AS SELECT * FROM a1.account").await;
    spcd.write("all.spc", &file("lanes = 8", &names));
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(value(&hub.url, tables).await, before);
    let more: Vec<String> = (0..8).map(|n| format!("b_{n}")).collect();
    let more: Vec<&str> = names
        .into_iter()
        .chain(more.iter().map(String::as_str))
        .collect();
    spcd.write("all.spc", &file("lanes = 8", &more));
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert!(
        lanes(&hub.url).await.len() > 3,
        "{:?}",
        lanes(&hub.url).await
    );
    assert_eq!(value(&hub.url, "SELECT token FROM mine").await, "t");

    // The last connection takes its lane with it.
    query(&hub.url, "DROP VIEW mine").await;
    spcd.write("all.spc", &file("lanes = 8", &["b1"]));
    eventually("the lanes are gone", DEADLINE, || async {
        (lanes(&hub.url).await == ["1"]).then_some(())
    })
    .await;
    spcd.write("all.spc", "");
    eventually("all lanes are gone", DEADLINE, || async {
        lanes(&hub.url).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM spcd.gateway_lane").await,
        "0"
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_altered_or_dropped_by_hand_is_mended() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let blocks = ["a1", "a2"].map(|name| connection(name, "a", "token = \"one\""));
    spcd.write("a.spc", &(plugins() + &blocks.concat()));
    until(&hub.url, &["a1 ready", "a2 ready"]).await;
    let lane = value(&hub.url, "SELECT server_name FROM spcd.gateway_lane").await;
    for damage in [
        "ALTER SERVER lane OPTIONS (SET port '1', DROP application_name)",
        "ALTER SERVER lane OPTIONS (SET fetch_size '7')",
        "DROP USER MAPPING FOR PUBLIC SERVER lane",
        "DROP SERVER lane CASCADE",
    ] {
        query(&hub.url, &damage.replace("lane", &format!("\"{lane}\""))).await;
        assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0, "{damage}");
        let token = "SELECT a.token || b.token FROM a1.account a, a2.account b";
        assert_eq!(value(&hub.url, token).await, "oneone", "{damage}");
        let fetch_size = "SELECT count(*) FROM pg_foreign_server
                          WHERE srvoptions @> '{fetch_size=1000}' AND srvname ~ 'spcd_gateway_'";
        assert_eq!(value(&hub.url, fetch_size).await, "1", "{damage}");
    }
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_is_read_by_its_lanes_at_once() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let file = |token: &str, members: &[&str]| {
        let aggregator = "connection \"all\" {\n  plugin = \"a\"\n  type = \"aggregator\"\n  \
                          connections = [\"*\"]\n}\n";
        let members = members
            .iter()
            .map(|name| connection(name, "a", &format!("token = \"{token}\"")));
        plugins() + aggregator + &members.collect::<String>()
    };
    let three = ["a1", "a2", "a3"];
    spcd.write("all.spc", &file("one", &three));
    until(&hub.url, &["a1 ready", "a2 ready", "a3 ready", "all ready"]).await;

    let explain = async |sql: &str| {
        let lines = query(&hub.url, &format!("EXPLAIN (VERBOSE, COSTS OFF) {sql}")).await;
        lines.concat().join("\n")
    };
    let plan = explain("SELECT token FROM \"all\".account WHERE id = 1").await;
    assert_eq!(plan.matches("Async Foreign Scan").count(), 3, "{plan}");
    assert_eq!(plan.matches("WHERE ((id = 1))").count(), 3, "{plan}");
    let plan = explain("SELECT * FROM \"all\".account WHERE connection_name = 'a2'").await;
    assert_eq!(plan.matches("Foreign Scan").count(), 1, "{plan}");

    // What users make of it stays while members change, come and go.
    let users = "CREATE ROLE bob; GRANT SELECT ON \"all\".account TO bob;
                 COMMENT ON VIEW \"all\".account IS 'ours'; CREATE VIEW mine AS SELECT * FROM \"all\".account";
    query(&hub.url, users).await;
    let session = connect(&hub.url).await.unwrap();
    let tokens = async || {
        let sql = "SELECT string_agg(connection_name || '=' || token, ' ' ORDER BY connection_name)
                   FROM mine";
        session
            .query_one(sql, &[])
            .await
            .unwrap()
            .get::<_, String>(0)
    };
    assert_eq!(tokens().await, "a1=one a2=one a3=one");
    assert_eq!(sessions(&gateway).await, "3");
    spcd.write("all.spc", &file("two", &["a1", "a2", "a3", "a4"]));
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(tokens().await, "a1=two a2=two a3=two a4=two");
    // One whose block has an error keeps what it has.
    let broken = file("two", &["a1", "a2", "a3"]) + &connection("a4", "a", "import_schema = 3");
    spcd.write("all.spc", &broken);
    until_error(&hub.url, "a4", "import_schema").await;
    assert_eq!(tokens().await, "a1=two a2=two a3=two a4=two");
    spcd.write("all.spc", &file("two", &["a1", "a3"]));
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(tokens().await, "a1=two a3=two");

    let part =
        "SELECT c.oid::regclass FROM pg_class c WHERE relnamespace = 'spcd_union'::regnamespace
                  AND relkind = 'f' AND EXISTS (SELECT FROM pg_foreign_table
                      WHERE ftrelid = c.oid AND ftoptions @> '{table_name=account}') LIMIT 1";
    let part = value(&hub.url, part).await;
    let damage = format!("ALTER FOREIGN TABLE {part} OPTIONS (SET table_name 'fails')");
    query(&hub.url, &damage).await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(tokens().await, "a1=two a3=two");

    let kept = "SELECT has_table_privilege('bob', 'all.account', 'SELECT')::text
                    || obj_description('all.account'::regclass)";
    assert_eq!(value(&hub.url, kept).await, "trueours");
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    query(&hub.url, "DROP VIEW mine").await;
    spcd.write("all.spc", &plugins());
    until(&hub.url, &[]).await;
    until(&gateway.url("postgres"), &[]).await;
    let left = "SELECT count(*) FROM pg_foreign_server WHERE srvname ~ 'spcd'";
    eventually("nothing is left", DEADLINE, || async {
        (value(&hub.url, left).await == "0").then_some(())
    })
    .await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_type_is_nowhere_is_left_out_on_both_sides() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let (hub, behind) = (server.database().await, gateway.url("postgres"));
    query(&behind, "DROP EXTENSION ltree").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", &behind);
    let with_type = plugins();
    let plugins = with_type.replace("  requires = [\"ltree\"]\n", "");
    let connection = connection("a", "a", "token = \"t\"");
    spcd.write("a.spc", &(plugins + &connection));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    assert_eq!(value(&hub.url, "SELECT token FROM a.account").await, "t");
    let left_out = "SELECT table_name FROM spcd.left_out_table WHERE connection_name = 'a'";
    assert_eq!(query(&behind, left_out).await, [["tree"]]);
    assert_eq!(query(&hub.url, left_out).await, [["tree"]]);
    // A query on it explains itself as it does without a gateway.
    let asked = spcd.spcd(&["query", "SELECT * FROM a.tree"]);
    let why = "connection \"a\" is ready, but table \"tree\" is left out: ";
    assert!(asked.stderr.contains(why), "{}", asked.stderr);
    // The block now names what provides the type.
    spcd.write("a.spc", &(with_type + &connection));
    eventually("the table is there", DEADLINE, || async {
        try_query(&hub.url, "SELECT * FROM a.tree").await.ok()
    })
    .await;
    until(&hub.url, &["a ready"]).await;
    assert!(query(&hub.url, left_out).await.is_empty());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_still_reads_is_not_dropped_in_the_gateway() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let mut spcd = daemon(&hub.url, &gateway).await;
    let a = connection("a", "a", "token = \"one\"");
    spcd.write("all.spc", &(plugins() + &a));
    until(&hub.url, &["a ready"]).await;
    query(&hub.url, "CREATE VIEW mine AS SELECT token FROM a.account").await;
    // One that comes shows that the gateway has looked at the files.
    spcd.write("all.spc", &(plugins() + &connection("b", "b", "")));
    until_error(&hub.url, "a", "mine").await;
    until(&hub.url, &["a error", "b ready"]).await;
    assert_eq!(value(&hub.url, "SELECT token FROM mine").await, "one");
    until(&gateway.url("postgres"), &["a ready", "b ready"]).await;
    query(&hub.url, "DROP VIEW mine").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    until(&hub.url, &["b ready"]).await;
    until(&gateway.url("postgres"), &["b ready"]).await;
    spcd.stop();
}
