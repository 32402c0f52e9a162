//! Mirrors of a service of Steampipe, and of other hubs.

mod bad_input;
mod hubs;
mod reloads;
mod service;

use crate::support::http::Http;
use crate::support::hub::{until, until_commented, until_error};
use crate::support::{DEADLINE, Spcd, eventually, eventually_now, query, shared, value};
use service::{PASSWORD, Service, tables};

/// A hub with a daemon that mirrors the service.
async fn mirroring(service: &Service, more: &str) -> (crate::support::Database, Spcd) {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("cloud.spc", &service.mirror(more));
    spcd.start();
    (hub, spcd)
}

async fn count(hub: &str, sql: &str) -> String {
    value(hub, &format!("SELECT count(*) FROM {sql}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_of_a_service_is_one_here_and_follows_its_state() {
    let service = Service::start().await;
    for name in ["aws", "gcp"] {
        service.load(name, &tables(name)).await;
    }
    let (hub, spcd) = mirroring(&service, "  labels {\n    team = \"ops\"\n  }\n").await;
    until(&hub.url, &["aws ready", "gcp ready"]).await;
    for name in ["aws", "gcp"] {
        let title = format!("SELECT title FROM {name}.account");
        assert_eq!(value(&hub.url, &title).await, name);
    }
    let row = query(
        &hub.url,
        "SELECT plugin, plugin_instance, type, labels->>'team', mirror, schema_mode
         FROM spcd.connection_state WHERE connection_name = 'aws'",
    )
    .await;
    let plugin = "hub.steampipe.io/plugins/turbot/chaos@latest";
    assert_eq!(
        row,
        [[plugin, "cloud", "plugin", "ops", "cloud", "dynamic"]]
    );
    until_commented(&hub.url, "aws").await;
    let comment = "SELECT obj_description('aws.account'::regclass)";
    assert_eq!(value(&hub.url, comment).await, "An account.");
    // One server and one mapping serve all tables.
    assert_eq!(count(&hub.url, "pg_foreign_server").await, "1");
    assert_eq!(count(&hub.url, "pg_user_mappings").await, "1");
    let servers = "SELECT DISTINCT ftserver::oid FROM pg_foreign_table";
    assert_eq!(query(&hub.url, servers).await.len(), 1);

    service.load("oci", &tables("oci")).await;
    until(&hub.url, &["aws ready", "gcp ready", "oci ready"]).await;
    assert_eq!(
        value(&hub.url, "SELECT title FROM oci.account").await,
        "oci"
    );
    // What changes there changes here, and what was built on it stays.
    query(
        &hub.url,
        "CREATE VIEW titles AS SELECT title FROM gcp.account",
    )
    .await;
    let more = tables("gcp") + "; ALTER TABLE account ADD region text; CREATE TABLE zone (id int)";
    service.load("gcp", &more).await;
    eventually("the new table is here", DEADLINE, || async {
        let found = "pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                     WHERE nspname = 'gcp' AND relname = 'zone'";
        (count(&hub.url, found).await == "1").then_some(())
    })
    .await;
    assert_eq!(value(&hub.url, "SELECT title FROM titles").await, "gcp");

    service.list("aws", "error", "no credentials for aws").await;
    service.announce().await;
    assert_eq!(
        until_error(&hub.url, "aws", "").await,
        "no credentials for aws"
    );
    assert_eq!(
        value(&hub.url, "SELECT title FROM aws.account").await,
        "aws"
    );
    service.list("aws", "disabled", "").await;
    service.announce().await;
    until(&hub.url, &["aws disabled", "gcp ready", "oci ready"]).await;
    assert_eq!(
        value(&hub.url, "SELECT title FROM aws.account").await,
        "aws"
    );
    service.load("aws", &tables("aws")).await;
    until(&hub.url, &["aws ready", "gcp ready", "oci ready"]).await;

    service.remove("oci").await;
    until(&hub.url, &["aws ready", "gcp ready"]).await;
    assert_eq!(
        count(&hub.url, "pg_namespace WHERE nspname = 'oci'").await,
        "0"
    );
    query(&hub.url, "DROP VIEW titles").await;
    spcd.write("cloud.spc", "");
    until(&hub.url, &[]).await;
    eventually("the server is gone", DEADLINE, || async {
        (count(&hub.url, "pg_foreign_server").await == "0").then_some(())
    })
    .await;
    assert!(!spcd.log().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_share_a_question_and_a_session_of_a_client_opens_one() {
    let service = Service::start().await;
    let all = 60;
    let tree =
        "CREATE EXTENSION ltree SCHEMA public; ALTER ROLE steampipe SET log_statement = 'all'";
    query(&service.url, tree).await;
    for n in 0..all {
        let name = format!("c{n:02}");
        service.list(&name, "updating", "").await;
        let own = format!(
            "{}; CREATE TABLE own_{n} (path ltree, at timestamptz)",
            tables(&name)
        );
        service.make_schema(&name, &own).await;
        service.list(&name, "ready", "").await;
    }
    let (hub, _spcd) = mirroring(&service, "").await;
    let ready: Vec<String> = (0..all).map(|n| format!("c{n:02} ready")).collect();
    until(
        &hub.url,
        &ready.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    // Comments are asked for in another way.
    let questions = service.server.log().matches("attnotnull").count();
    assert!(questions <= 6, "{questions}");
    let titles: Vec<String> = (0..all)
        .map(|n| format!("SELECT title FROM c{n:02}.account"))
        .collect();
    let client = crate::support::connect(&hub.url).await.unwrap();
    let rows = client.query(&titles.join(" UNION "), &[]).await.unwrap();
    assert_eq!(rows.len(), all);
    let paths = "SELECT count(*) FROM pg_attribute WHERE atttypid = 'ltree'::regtype AND attnum > 0
                 AND attrelid IN (SELECT ftrelid FROM pg_foreign_table)";
    assert_eq!(value(&hub.url, paths).await, all.to_string());
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spcd hub'";
    assert_eq!(value(&service.url, sessions).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_notifications_are_those_of_any_connection() {
    let service = Service::start().await;
    service.load("aws", &tables("aws")).await;
    let hub = shared().database().await;
    let (_client, mut heard) = crate::support::listen::listener(&hub.url, "connection_state").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("cloud.spc", &service.mirror(""));
    spcd.start();
    until(&hub.url, &["aws ready"]).await;
    let is_told = |message: &String| {
        message.contains("\"connection\":\"aws\"") && message.contains("\"status\":\"ready\"")
    };
    let told = async {
        while !heard
            .recv()
            .await
            .is_some_and(|message| is_told(&message.replace(" ", "")))
        {}
    };
    tokio::time::timeout(DEADLINE, told).await.unwrap();
    let events = "SELECT string_agg(status, ' ' ORDER BY id) FROM spcd.connection_event
                  WHERE connection_name = 'aws'";
    assert_eq!(value(&hub.url, events).await, "pending ready");
    // The same tables again are no event, and a plan has nothing to do.
    service.load("aws", &tables("aws")).await;
    assert_eq!(spcd.spcd(&["refresh", "aws", "--wait"]).code, 0);
    assert_eq!(value(&hub.url, events).await, "pending ready");
    let plan = spcd.spcd(&["plan"]);
    assert_eq!(
        (plan.code, plan.stdout.as_str()),
        (0, "nothing to do\n"),
        "{plan:?}"
    );
    // A new one is in the plan of a command, and `apply` makes it without a daemon.
    spcd.stop();
    service.load("gcp", &tables("gcp")).await;
    let plan = spcd.spcd(&["plan"]);
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(plan.stdout.contains("gcp"), "{plan:?}");
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    until(&hub.url, &["aws ready", "gcp ready"]).await;
    let mut server = service.server;
    server.stop();
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    until(&hub.url, &["aws ready", "gcp ready"]).await;
    let status = spcd.spcd(&["status"]);
    assert!(
        status
            .stderr
            .contains("the mirror \"cloud\" does not follow its source"),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_doctor_and_check_show_the_mirror() {
    let mut service = Service::start().await;
    service.load("aws", &tables("aws")).await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    let block = service.mirror("  prefix = \"a_\"\n  exclude = [\"test_*\"]\n");
    spcd.write("cloud.spc", &block);
    spcd.start();
    until(&hub.url, &["a_aws ready"]).await;
    let metric = |value: u8| {
        let line = format!("\nspcd_mirror_up{{mirror=\"cloud\"}} {value}\n");
        let http = http.is_there();
        eventually_now(&line.clone(), || {
            http.get("/metrics").body.contains(&line).then_some(())
        });
    };
    metric(1);
    let shown = spcd.spcd(&["doctor"]).stdout;
    let follows = "the mirror \"cloud\" follows a service of Steampipe; connections there: 1";
    assert!(shown.contains(&format!("ok       {follows}")), "{shown}");

    service.server.stop();
    metric(0);
    let doctor = spcd.spcd(&["doctor"]);
    let lost = "missing  the mirror \"cloud\" does not follow its source\n         127.0.0.1:";
    assert!(doctor.stdout.contains(lost), "{doctor:?}");
    assert_eq!(doctor.code, 1, "{doctor:?}");
    service.server.start_again();
    metric(1);

    let report = spcd.spcd(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    let mirror = &report["mirrors"][0];
    let shown = [
        "name",
        "prefix",
        "exclude",
        "connections",
        "start_line",
        "error",
    ];
    assert_eq!(
        shown.map(|key| mirror[key].clone()),
        [
            "cloud".into(),
            "a_".into(),
            ["test_*"].into(),
            ["*"].into(),
            1.into(),
            serde_json::Value::Null
        ]
    );
    assert!(!report.to_string().contains(PASSWORD), "{report}");
    spcd.write("cloud.spc", "mirror \"cloud\" {\n  sauce = 1\n}\n");
    let report = spcd.spcd(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    let error = report["mirrors"][0]["error"].as_str().unwrap();
    assert!(
        error.contains("sauce") || error.contains("source"),
        "{error}"
    );
}
