//! `--compat steampipe`: what each of Steampipe's clients asks, as it asks it.

mod yaml;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_postgres::Client;

use crate::support::hub::{postgres_with, until};
use crate::support::listen::listener;
use crate::support::{Cluster, DEADLINE, Database, Spcd, eventually, query, try_query, value};

/// A hub of its own, because roles are a cluster's, with a daemon that has clients of Steampipe.
async fn hub(source: &str) -> (Cluster, Database, Database, Spcd) {
    let cluster = Cluster::start(&["timezone = 'Asia/Tokyo'"]);
    let (hub, data) = (cluster.database().await, cluster.database().await);
    query(&data.url, source).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_COMPAT", "steampipe");
    (cluster, hub, data, spcd)
}

/// A `postgres` connection to a database of this cluster.
fn local(name: &str, cluster: &Cluster, data: &Database) -> String {
    postgres_with(name, data, "  password_required = false\n").replace(
        &format!("port   = {}", crate::support::shared().port()),
        &format!("port   = {}", cluster.port()),
    )
}

async fn next(heard: &mut mpsc::UnboundedReceiver<String>) -> Value {
    let next = tokio::time::timeout(DEADLINE, heard.recv()).await;
    serde_json::from_str(&next.expect("a message").unwrap()).unwrap()
}

/// The columns of a statement's result: names and types.
async fn columns(client: &Client, sql: &str) -> Vec<String> {
    let statement = client.prepare(sql).await.unwrap();
    let column = |column: &tokio_postgres::Column| format!("{} {}", column.name(), column.type_());
    statement.columns().iter().map(column).collect()
}

fn schemas_changed() -> Value {
    json!({"StructVersion": 20_230_306, "Type": 1})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_client_finds_what_it_asks_for() {
    let (cluster, hub, data, mut spcd) =
        hub("CREATE TABLE orders (id integer); INSERT INTO orders VALUES (7)").await;
    // Settings that were there before its path are kept, behind it.
    query(
        &hub.url,
        "CREATE ROLE steampipe LOGIN; ALTER ROLE steampipe SET statement_timeout = '7min';
                     ALTER ROLE steampipe SET session_preload_libraries = 'auto_explain'",
    )
    .await;
    spcd.write("a.spc", &local("sales", &cluster, &data));
    spcd.write("b.spc", &local("stock", &cluster, &data));
    spcd.write("c.spc", "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  connections = [\"s*\"]\n}\n");
    spcd.start();
    until(&hub.url, &["all ready", "sales ready", "stock ready"]).await;

    let url = cluster.url_as("steampipe", &hub.name);
    let path = "public,\"all\",sales,stock,steampipe_internal";
    eventually("the role has its path", DEADLINE, || async {
        let rows = try_query(
            &url,
            "SELECT replace(current_setting('search_path'), ' ', '')",
        )
        .await
        .ok()?;
        (rows[0][0].as_deref() == Some(path)).then_some(())
    })
    .await;
    // A role that may read the connections in any other way may use these clients, too.
    query(&hub.url, "CREATE ROLE analyst LOGIN IN ROLE spcd_users").await;
    let analyst = cluster.url_as("analyst", &hub.name);
    for table in [
        "steampipe_connection",
        "steampipe_server_settings",
        "steampipe_plugin",
    ] {
        query(
            &analyst,
            &format!("SELECT * FROM steampipe_internal.{table}"),
        )
        .await;
    }
    let (client, mut heard) = listener(&url, "steampipe_notification").await;
    let settings = "SELECT * FROM steampipe_internal.steampipe_server_settings";
    assert_eq!(
        columns(&client, settings).await,
        [
            "start_time timestamptz",
            "steampipe_version text",
            "fdw_version text",
            "cache_max_ttl int4",
            "cache_max_size_mb int4",
            "cache_enabled bool"
        ]
    );
    let row = client.query(settings, &[]).await.unwrap();
    assert_eq!(row.len(), 1);
    assert!(!row[0].get::<_, bool>("cache_enabled"));
    let none = format!("SELECT count(*) FROM ({settings}) s WHERE NOT (s IS NOT NULL)");
    assert_eq!(value(&url, &none).await, "0");
    // It takes the first element of the first row.
    let setting =
        "SELECT setconfig[1] FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
                   WHERE r.rolname = 'steampipe'";
    assert_eq!(
        query(&url, setting).await,
        [["search_path=public, \"all\", sales, stock, steampipe_internal"]]
    );
    assert_eq!(value(&url, "SHOW statement_timeout").await, "7min");
    assert_eq!(
        value(&hub.url, "SELECT setconfig[3] FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = setrole WHERE rolname = 'steampipe'").await,
        "session_preload_libraries=auto_explain"
    );
    client
        .batch_execute("set search_path to \"sales\",\"steampipe_internal\"")
        .await
        .unwrap();
    let rows = client.query("select * from orders", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i32>(0), 7);
    let patterns = client.query("select glob('a*b?'), meta_cache('clear'), meta_cache_ttl(5), meta_connection_cache_clear('sales')", &[]).await.unwrap();
    assert_eq!(patterns[0].get::<_, &str>(0), "a%b_");

    // What it polls when a relation does not exist.
    for table in ["steampipe_connection", "steampipe_connection_state"] {
        let sql = format!("SELECT * FROM steampipe_internal.{table} ORDER BY name");
        assert_eq!(
            columns(&client, &sql).await,
            [
                "name text",
                "state text",
                "type text",
                "connections _text",
                "import_schema text",
                "error text",
                "plugin text",
                "plugin_instance text",
                "schema_mode text",
                "schema_hash text",
                "comments_set bool",
                "connection_mod_time timestamptz",
                "plugin_mod_time timestamptz",
                "file_name text",
                "start_line_number int4",
                "end_line_number int4"
            ]
        );
        let rows = client.query(&sql, &[]).await.unwrap();
        let all: Vec<&str> = rows.iter().map(|row| row.get("name")).collect();
        assert_eq!(all, ["all", "sales", "stock"]);
        let text = |n: usize, column: &str| rows[n].get::<_, Option<String>>(column);
        assert_eq!(text(0, "type").as_deref(), Some("aggregator"));
        assert_eq!(
            rows[0]
                .get::<_, Option<Vec<String>>>("connections")
                .unwrap(),
            ["sales", "stock"]
        );
        assert_eq!((text(1, "type"), text(1, "error")), (None, None));
        assert_eq!(rows[1].get::<_, Option<Vec<String>>>("connections"), None);
        assert_eq!(text(1, "state").as_deref(), Some("ready"));
        assert_eq!(
            text(1, "plugin").as_deref(),
            Some("hub.steampipe.io/plugins/turbot/postgres@latest")
        );
        assert_eq!(text(1, "plugin_instance").as_deref(), Some("postgres"));
        assert_eq!(text(1, "schema_mode").as_deref(), Some("dynamic"));
        assert!(text(1, "file_name").unwrap().ends_with("a.spc"));
        assert_eq!(rows[1].get::<_, i32>("start_line_number"), 1);
        let nulls = format!("SELECT count(*) FROM steampipe_internal.{table} s
             WHERE num_nulls(name, state, import_schema, plugin, schema_mode, schema_hash, comments_set,
                             connection_mod_time, plugin_mod_time, file_name, start_line_number, end_line_number) > 0");
        assert_eq!(value(&url, &nulls).await, "0");
    }

    // A schema that changes; a connection that breaks; one that goes.
    while heard.try_recv().is_ok() {}
    query(&data.url, "ALTER TABLE orders ADD COLUMN total numeric").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(next(&mut heard).await, schemas_changed());
    while heard.try_recv().is_ok() {}
    spcd.write(
        "b.spc",
        &local("stock", &cluster, &data).replace("host", "hots"),
    );
    let told = next(&mut heard).await;
    assert_eq!(
        (&told["Type"], &told["StructVersion"], &told["Warnings"]),
        (&json!(2), &json!(20_230_306), &Value::Null)
    );
    assert!(
        told["Errors"][0]
            .as_str()
            .unwrap()
            .starts_with("connection \"stock\": "),
        "{told}"
    );
    let broken = "SELECT state, error FROM steampipe_internal.steampipe_connection_state WHERE name = 'stock'";
    let rows = query(&url, broken).await;
    assert_eq!(rows[0][0], "error");
    assert!(rows[0][1].contains("hots"), "{rows:?}");
    spcd.remove("b.spc");
    while next(&mut heard).await != schemas_changed() {}
    eventually("its row is gone", DEADLINE, || async {
        query(&url, broken).await.is_empty().then_some(())
    })
    .await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn powerpipe_finds_plugins_and_tables() {
    let (cluster, hub, data, mut spcd) = hub("CREATE TABLE orders (id integer)").await;
    let url = cluster.url_as("steampipe", &hub.name);
    spcd.write("a.spc", &local("sales", &cluster, &data));
    spcd.start();
    until(&hub.url, &["sales ready"]).await;
    eventually("it may read", DEADLINE, || async {
        try_query(&url, "SELECT id FROM orders").await.ok()
    })
    .await;
    assert_eq!(
        value(&url, "SHOW search_path").await,
        "public, sales, steampipe_internal"
    );
    assert_eq!(value(&url, "SHOW timezone").await, "UTC");
    let schemas = query(&url, "SELECT schema_name FROM information_schema.schemata")
        .await
        .concat();
    for name in ["sales", "steampipe_internal", "public"] {
        assert!(schemas.iter().any(|schema| schema == name), "{schemas:?}");
    }
    let there = "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'steampipe_internal' AND tablename IN ('steampipe_plugin','steampipe_connection'))";
    assert_eq!(value(&url, there).await, "t");
    let plugins = "SELECT plugin, version FROM steampipe_internal.steampipe_plugin";
    let version = value(
        &hub.url,
        "SELECT extversion FROM pg_extension WHERE extname = 'postgres_fdw'",
    )
    .await;
    assert_eq!(
        query(&url, plugins).await,
        [[
            "hub.steampipe.io/plugins/turbot/postgres@latest".to_owned(),
            version
        ]]
    );
    let client = crate::support::connect(&url).await.unwrap();
    assert_eq!(
        columns(&client, "SELECT * FROM steampipe_internal.steampipe_plugin").await,
        [
            "plugin_instance text",
            "plugin text",
            "version text",
            "memory_max_mb int4",
            "limiters jsonb",
            "file_name text",
            "start_line_number int4",
            "end_line_number int4"
        ]
    );
    for (table, rows) in [
        ("steampipe_plugin_limiter", "0"),
        ("steampipe_plugin_column", "0"),
        ("steampipe_scan_metadata", "0"),
        ("steampipe_scan_metadata_summary", "1"),
    ] {
        let sql = format!("SELECT count(*) FROM steampipe_internal.{table}");
        assert_eq!(value(&url, &sql).await, rows, "{table}");
    }
    let sums = "SELECT uncached_rows_fetched, cached_rows_fetched, hydrate_calls, scan_count, connection_count
                FROM steampipe_internal.steampipe_scan_metadata_summary";
    assert!(
        columns(&client, sums)
            .await
            .iter()
            .all(|column| column.ends_with(" int8"))
    );

    // A second plugin of the same wrapper; then it goes.
    let plugin = "plugin \"mine\" {\n  source = \"acme/pg@2\"\n  wrapper = \"postgres_fdw\"\n}\n";
    let more =
        local("extra", &cluster, &data).replace("\"postgres\"\n  host", "plugin.mine\n  host");
    spcd.write("b.spc", &format!("{plugin}{more}"));
    let known = || async {
        query(
            &url,
            "SELECT plugin_instance FROM steampipe_internal.steampipe_plugin ORDER BY 1",
        )
        .await
        .concat()
    };
    eventually("the second plugin is there", DEADLINE, || async {
        (known().await == ["mine", "postgres"]).then_some(())
    })
    .await;
    spcd.remove("b.spc");
    eventually("the second plugin is gone", DEADLINE, || async {
        (known().await == ["postgres"]).then_some(())
    })
    .await;
    spcd.stop();
}

/// Publishes as a daemon would, on a database where the objects are.
async fn kept_with_clients() -> (Cluster, Database, Spcd) {
    let (cluster, hub, _, mut spcd) = hub("SELECT 1").await;
    spcd.start();
    eventually("the objects are there", DEADLINE, || async {
        let there = "SELECT first FROM spcd.steampipe";
        try_query(&hub.url, there)
            .await
            .ok()
            .filter(|rows| !rows.is_empty())
    })
    .await;
    spcd.stop();
    (cluster, hub, spcd)
}

fn row(name: &str, route: &[&str], hash: &str) -> Value {
    json!({"name": name, "route": route, "plugin": "postgres", "plugin_instance": "postgres", "schema_hash": hash})
}

#[tokio::test(flavor = "multi_thread")]
async fn states_follow_in_the_same_commit() {
    use crate::support::kept::publish_on;
    let (_cluster, hub, _spcd) = kept_with_clients().await;
    let session = crate::support::connect(&hub.url).await.unwrap();
    let states = || async {
        let sql = "SELECT name || ' ' || c.state || ' ' || s.state FROM steampipe_internal.steampipe_connection c
                   JOIN steampipe_internal.steampipe_connection_state s USING (name) ORDER BY name";
        query(&hub.url, sql).await.concat()
    };
    publish_on(
        &session,
        "",
        json!([row("a", &["pending"], ""), row("b", &["pending"], "")]),
    )
    .await;
    assert_eq!(states().await, ["a pending pending", "b pending pending"]);
    // Not before the commit, and not without it.
    session.batch_execute("BEGIN").await.unwrap();
    let sql = "SELECT spcd.publish(nextval('spcd.generation'), '[{\"name\": \"a\", \"route\": [\"updating\"]}]')";
    session.batch_execute(sql).await.unwrap();
    assert_eq!(states().await[0], "a pending pending");
    session.batch_execute("ROLLBACK").await.unwrap();
    for (route, expected) in [
        (&["updating"][..], "updating"),
        (&["ready"], "ready"),
        (&["deleting"], "deleting"),
        (&["pending"], "incomplete"),
        (&["disabled"], "disabled"),
    ] {
        publish_on(&session, "", json!([row("a", route, "1")])).await;
        assert_eq!(states().await[0], format!("a {expected} {expected}"));
        let moved = "SELECT c.connection_mod_time = s.time_changed FROM steampipe_internal.steampipe_connection c
                     JOIN spcd.connection_state s ON s.connection_name = c.name WHERE c.name = 'a'";
        assert_eq!(value(&hub.url, moved).await, "t");
    }
    publish_on(&session, "", json!([row("b", &["ready"], "1"), row("c", &["pending"], ""), {"name": "d", "route": ["error"], "error": "no"}])).await;
    // A service that starts: who was not ready is incomplete.
    query(&hub.url, "SELECT spcd.take_lead('spcd', 'test', '0')").await;
    assert_eq!(
        states().await,
        [
            "a disabled disabled",
            "b pending pending",
            "c pending pending",
            "d incomplete incomplete"
        ]
    );
    let gone = json!({"name": "b", "route": ["deleting"], "remove": true});
    publish_on(&session, "", json!([gone])).await;
    assert_eq!(states().await.len(), 3);

    // A user breaks it: the state itself is written all the same.
    query(
        &hub.url,
        "DROP TABLE steampipe_internal.steampipe_connection_state",
    )
    .await;
    publish_on(&session, "", json!([row("c", &["ready"], "1")])).await;
    assert_eq!(
        value(
            &hub.url,
            "SELECT status FROM spcd.connection_state WHERE connection_name = 'c'"
        )
        .await,
        "ready"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_are_announced_once_the_first_of_each_plugin_is_in() {
    use crate::support::kept::publish_on;
    let (_cluster, hub, _spcd) = kept_with_clients().await;
    query(&hub.url, "UPDATE spcd.steampipe SET first = '{first}'").await;
    let session = crate::support::connect(&hub.url).await.unwrap();
    let (_client, mut heard) = listener(&hub.url, "steampipe_notification").await;
    let publish = |changes: Value| publish_on(&session, "", changes);
    publish(json!([
        row("first", &["pending"], ""),
        row("other", &["pending"], "")
    ]))
    .await;
    publish(json!([row("other", &["updating", "ready"], "1")])).await;
    publish(json!([{"name": "first", "route": ["error"], "error": "no route"}])).await;
    let told = next(&mut heard).await;
    assert_eq!(
        told,
        json!({"StructVersion": 20_230_306, "Type": 2, "Errors": ["connection \"first\": no route"], "Warnings": null})
    );
    // What was owed since the other one changed.
    assert_eq!(next(&mut heard).await, schemas_changed());

    // A start at which nothing differs says nothing: the next to be heard is the warning.
    query(&hub.url, "SELECT spcd.take_lead('spcd', 'test', '0')").await;
    publish(json!([row("other", &["ready"], "1")])).await;
    publish(json!([{"name": "other", "route": [], "warnings": ["t1 left out", "t2 left out"]}]))
        .await;
    publish(json!([{"name": "other", "route": [], "warnings": ["t2 left out"]}])).await;
    publish(json!([row("first", &["ready"], "1")])).await;
    let told = next(&mut heard).await;
    assert_eq!(
        (&told["Errors"], &told["Warnings"]),
        (
            &Value::Null,
            &json!([
                "connection \"other\": t1 left out",
                "connection \"other\": t2 left out"
            ])
        )
    );
    assert_eq!(next(&mut heard).await, schemas_changed());

    // Many long errors: shortened, split, and each of them told.
    let long = "\"why\" ".repeat(600);
    let many: Vec<Value> = (0..40)
        .map(|n| json!({"name": format!("c{n:02}"), "route": ["error"], "error": long}))
        .collect();
    publish(Value::Array(many)).await;
    let mut told = Vec::new();
    while told.len() < 40 {
        let message = next(&mut heard).await;
        told.extend(
            message["Errors"]
                .as_array()
                .unwrap()
                .iter()
                .map(|text| text.as_str().unwrap()[..18].to_owned()),
        );
    }
    let expected: Vec<String> = (0..40)
        .map(|n| format!("connection \"c{n:02}\": "))
        .collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_taken_away_when_it_is_turned_off() {
    let (cluster, hub, data, mut spcd) = hub("CREATE TABLE orders (id integer)").await;
    spcd.write("a.spc", &local("sales", &cluster, &data));
    spcd.start();
    until(&hub.url, &["sales ready"]).await;
    let url = cluster.url_as("steampipe", &hub.name);
    eventually("it may read", DEADLINE, || async {
        try_query(&url, "SELECT id FROM orders").await.ok()
    })
    .await;
    // A part that goes is made again.
    query(&hub.url, "DROP TABLE steampipe_internal.steampipe_plugin").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    eventually("it is whole", DEADLINE, || async {
        try_query(
            &url,
            "SELECT plugin FROM steampipe_internal.steampipe_plugin",
        )
        .await
        .ok()
        .filter(|rows| rows.len() == 1)
    })
    .await;
    spcd.stop();

    let parts = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'steampipe_internal')
                      + (SELECT count(*) FROM pg_class WHERE relname LIKE 'steampipe%')
                      + (SELECT count(*) FROM pg_proc WHERE proname LIKE 'steampipe%')
                      + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'steampipe%')
                      + (SELECT count(*) FROM pg_roles WHERE rolname LIKE 'steampipe%')";
    // While a user's view depends on it, it stays complete and in use.
    query(
        &hub.url,
        "CREATE VIEW mine AS SELECT name, state FROM steampipe_internal.steampipe_connection",
    )
    .await;
    spcd.env("SPCD_COMPAT", "");
    spcd.start();
    spcd.logged("its objects cannot be removed");
    until(&hub.url, &["sales ready"]).await;
    eventually("the view follows", DEADLINE, || async {
        (query(&hub.url, "SELECT * FROM mine").await == [["sales", "ready"]]).then_some(())
    })
    .await;
    spcd.stop();
    query(&hub.url, "DROP VIEW mine").await;
    spcd.start();
    eventually("it is gone", DEADLINE, || async {
        (value(&hub.url, parts).await == "0").then_some(())
    })
    .await;
    until(&hub.url, &["sales ready"]).await;
    spcd.stop();

    // `destroy` takes it along.
    spcd.env("SPCD_COMPAT", "steampipe");
    spcd.start();
    eventually("it is made again", DEADLINE, || async {
        try_query(&url, "SELECT id FROM orders").await.ok()
    })
    .await;
    spcd.stop();
    let destroyed = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(destroyed.code, 0, "{}", destroyed.stderr);
    assert!(
        destroyed.stdout.contains("- schema \"steampipe_internal\""),
        "{}",
        destroyed.stdout
    );
    assert_eq!(value(&hub.url, parts).await, "0");

    // What others made is neither taken over nor taken away.
    query(
        &hub.url,
        "CREATE SCHEMA steampipe_internal; CREATE TABLE steampipe_internal.mine ()",
    )
    .await;
    spcd.env("SPCD_COMPAT", "steampipe");
    spcd.start();
    spcd.logged("exists that spcd did not create");
    until(&hub.url, &["sales ready"]).await;
    spcd.stop();
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM steampipe_internal.mine").await,
        "0"
    );
    let wrong = spcd.env("SPCD_COMPAT", "powerpipe").spcd(&["status"]);
    assert_eq!(wrong.code, 64);
    assert!(
        wrong.stderr.contains("compat must be \"steampipe\""),
        "{}",
        wrong.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_private_cluster_is_where_its_clients_look_for_it() {
    let mut spcd = Spcd::with_private_cluster();
    let database = |url: &str| {
        let url = url.split('?').next().unwrap();
        url.rsplit_once('/').unwrap().1.to_owned()
    };
    let wait = |spcd: &Spcd| {
        let asked = spcd.spcd(&["query", "SELECT count(*) FROM people", "--output", "csv"]);
        asked.stdout
    };
    spcd.start();
    crate::support::eventually_now("it is up", || {
        (spcd.spcd(&["status"]).code == 0).then_some(())
    });
    assert_eq!(
        spcd.spcd(&["query", "CREATE TABLE people (id integer)"])
            .code,
        0
    );
    spcd.stop();
    spcd.env("SPCD_COMPAT", "steampipe");
    spcd.start();
    crate::support::eventually_now("it has moved", || {
        (database(&spcd.spcd(&["url"]).stdout) == "steampipe").then_some(())
    });
    // A command that knows nothing of it finds it, too; what people made is still there.
    spcd.env("SPCD_COMPAT", "");
    assert_eq!(wait(&spcd), "count\n0\n");
    spcd.stop();
    spcd.start();
    crate::support::eventually_now("it has moved back", || {
        (database(&spcd.spcd(&["url"]).stdout) == "spcd").then_some(())
    });
    assert_eq!(wait(&spcd), "count\n0\n");
    spcd.stop();
}
