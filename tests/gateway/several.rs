//! Several gateways: lanes are spread over them, move when one is away, and come back.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::http::Http;
use crate::support::hub::{until, until_error};
use crate::support::steampipe::{connection, gateway, plugins};
use crate::support::{
    Cluster, DEADLINE, Spcd, connect, eventually, eventually_now, query, try_query, value,
};

/// How long a gateway may be away. All of them answer sooner when a daemon starts.
const PATIENCE: &str = "5s";

/// A daemon between a hub and gateways, not started.
fn beside(hub: &str, gateways: [&Cluster; 2]) -> Spcd {
    let mut spcd = Spcd::new(hub);
    let urls = gateways.map(|gateway| gateway.url("postgres"));
    spcd.env("SPCD_GATEWAY", &urls.join(" "))
        .env("SPCD_HUB_GATEWAY_PATIENCE", PATIENCE);
    spcd
}

/// Connections on as many lanes, so that both gateways have some, and an aggregator over them.
fn files() -> String {
    let plugins = plugins().replace("gateway = true", "gateway = true\n  lanes = 16");
    let all = "connection \"all\" {\n  plugin = \"a\"\n  type = \"aggregator\"\n  \
               connections = [\"a*\"]\n}\n";
    let members = names().map(|name| connection(&name, "a", &format!("token = \"of {name}\"")));
    plugins + all + &members.concat()
}

fn names() -> [String; 16] {
    std::array::from_fn(|n| format!("a{n:02}"))
}

async fn until_ready(hub: &str) {
    let ready: Vec<String> = (names().iter().chain(&["all".to_owned()]))
        .map(|name| format!("{name} ready"))
        .collect();
    until(hub, &ready.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

/// The port to which each lane leads.
async fn ports(hub: &str) -> BTreeMap<String, u16> {
    let sql = "SELECT srvname, substr(o, 6) FROM pg_foreign_server, unnest(srvoptions) o
               WHERE starts_with(srvname, 'spcd_gateway_') AND starts_with(o, 'port=')";
    let rows = query(hub, sql).await.into_iter();
    rows.map(|row| (row[0].clone(), row[1].parse().unwrap()))
        .collect()
}

/// Everything that clients may hold on to.
async fn relations(hub: &str) -> Vec<Vec<String>> {
    let sql = "SELECT oid, oid::regclass, relkind FROM pg_class
               WHERE relnamespace::regnamespace::text ~ '^(a.*|public|spcd_union)$' ORDER BY 1";
    query(hub, sql).await
}

/// Connections, and schemas of aggregators' lanes, that a gateway has.
async fn held(gateway: &Cluster) -> Vec<String> {
    let sql = "SELECT connection_name FROM spcd.connection_state ORDER BY 1";
    query(&gateway.url("postgres"), sql).await.concat()
}

const TOKENS: &str = "SELECT string_agg(connection_name || '=' || token, ' ' ORDER BY token)
                      FROM mine";

fn tokens() -> String {
    names().map(|name| format!("{name}=of {name}")).join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_of_a_gateway_that_is_away_are_made_on_another_and_come_back() {
    let (server, mut one, two) = (Cluster::start(&[]), gateway().await, gateway().await);
    let hub = server.database().await;
    let mut spcd = beside(&hub.url, [&one, &two]);
    spcd.write("all.spc", &files());
    spcd.start();
    until_ready(&hub.url).await;
    let at_first = ports(&hub.url).await;
    for gateway in [&one, &two] {
        let lanes = at_first.values().filter(|port| **port == gateway.port());
        assert!(lanes.count() > 0, "{at_first:?}");
    }
    let of_two = held(&two).await;
    assert_ne!(held(&one).await, of_two);
    query(
        &hub.url,
        "CREATE VIEW mine AS SELECT * FROM \"all\".account",
    )
    .await;
    assert_eq!(value(&hub.url, TOKENS).await, tokens());
    let before = relations(&hub.url).await;
    let session = connect(&hub.url).await.unwrap();
    session.query_one(TOKENS, &[]).await.unwrap();

    one.stop();
    eventually("all lanes lead to the other one", DEADLINE, || async {
        let ports = ports(&hub.url).await;
        ports.values().all(|port| *port == two.port()).then_some(())
    })
    .await;
    until_ready(&hub.url).await;
    let read: String = session.query_one(TOKENS, &[]).await.unwrap().get(0);
    assert_eq!(read, tokens(), "in a session that was open before");
    assert_eq!(relations(&hub.url).await, before);
    // A change reaches what was moved.
    spcd.write("all.spc", &files().replace("of a03", "other"));
    eventually("the change is read", DEADLINE, || async {
        (value(&hub.url, "SELECT token FROM a03.account").await == "other").then_some(())
    })
    .await;
    spcd.write("all.spc", &files());
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    // Another daemon goes on with what it finds.
    spcd.stop();
    spcd.start();
    until_ready(&hub.url).await;
    assert_eq!(value(&hub.url, TOKENS).await, tokens());

    // No query fails while they come back.
    let is_over = Arc::new(AtomicBool::new(false));
    let (over, url) = (is_over.clone(), hub.url.clone());
    let reader = tokio::spawn(async move {
        let session = connect(&url).await.unwrap();
        while !over.load(Ordering::Relaxed) {
            let read: String = session.query_one(TOKENS, &[]).await.unwrap().get(0);
            assert_eq!(read, tokens());
        }
    });
    one.start_again();
    eventually("the lanes are where they were", DEADLINE, || async {
        (ports(&hub.url).await == at_first).then_some(())
    })
    .await;
    eventually(
        "the other one drops what it does not serve",
        DEADLINE,
        || async { (held(&two).await == of_two).then_some(()) },
    )
    .await;
    is_over.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    until_ready(&hub.url).await;
    assert_eq!(relations(&hub.url).await, before);
    assert_eq!(spcd.spcd(&["plan"]).code, 0);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_metrics_tell_gateways_apart() {
    let (server, mut one, two) = (Cluster::start(&[]), gateway().await, gateway().await);
    let hub = server.database().await;
    let mut spcd = beside(&hub.url, [&one, &two]);
    let http = Http::of(&mut spcd);
    spcd.write("all.spc", &files());
    spcd.start();
    until_ready(&hub.url).await;
    let names_of = |gateway: &Cluster| format!("127.0.0.1:{}/postgres", gateway.port());
    let (name_of_one, name_of_two) = (names_of(&one), names_of(&two));

    let status = spcd.spcd(&["status", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    let own = rows.as_array().unwrap().iter();
    let own: Vec<&str> = own
        .filter_map(|row| row["gateway"]["name"].as_str())
        .collect();
    assert_eq!(own.len(), 16, "{status:?}");
    let is_one = |name: &&str| [name_of_one.as_str(), name_of_two.as_str()].contains(name);
    assert!(own.iter().all(is_one), "{own:?}");
    let doctor = spcd.spcd(&["doctor"]).stdout;
    for gateway in [&one, &two] {
        let reaches = format!(
            "the hub reaches the gateway at 127.0.0.1:{}",
            gateway.port()
        );
        assert!(doctor.contains(&format!("ok       {reaches}")), "{doctor}");
    }
    for name in names() {
        assert_eq!(spcd.spcd(&["test", &name]).code, 0);
    }
    // An aggregator's name stands for its members, on whichever gateway they are.
    assert_eq!(spcd.spcd(&["refresh", "all", "a00", "--wait"]).code, 0);
    assert_eq!(spcd.spcd(&["rotate-gateway"]).code, 0);
    let all = "SELECT count(*) FROM \"all\".account";
    assert_eq!(value(&hub.url, all).await, "16");
    let shows = |line: &str| {
        eventually_now(line, || {
            let text = http.get("/metrics").body;
            text.lines().any(|found| found == line).then_some(())
        });
    };
    let gauge = |gauge: &str, name: &str, value: u8| {
        format!("spcd_gateway_{gauge}{{gateway=\"{name}\"}} {value}")
    };
    shows(&gauge("up", &name_of_one, 1));
    shows(&gauge("up", &name_of_two, 1));
    shows(&gauge("away", &name_of_one, 0));

    one.stop();
    shows(&gauge("up", &name_of_one, 0));
    shows(&gauge("up", &name_of_two, 1));
    shows(&gauge("away", &name_of_one, 1));
    until_ready(&hub.url).await;
    let doctor = spcd.spcd(&["doctor"]);
    assert_eq!(doctor.code, 1);
    let away = format!("missing  the gateway {name_of_one}");
    assert!(doctor.stdout.contains(&away), "{doctor:?}");
    spcd.stop();

    // Without a daemon: what is on the other one is planned and applied.
    spcd.write("more.spc", &connection("b", "b", "token = \"more\""));
    let plan = spcd.spcd(&["plan"]);
    assert_eq!(plan.code, 2, "{plan:?}");
    assert!(
        plan.stderr
            .contains(&format!("the gateway {name_of_one}: ")),
        "{plan:?}"
    );
    one.start_again();
    let applied = spcd.spcd(&["apply"]);
    assert_eq!(applied.code, 0, "{applied:?}");
    assert_eq!(value(&hub.url, "SELECT token FROM b.account").await, "more");
    assert_eq!(value(&hub.url, all).await, "16");
    let destroyed = spcd.spcd(&["destroy", "--yes"]);
    assert_eq!(destroyed.code, 0, "{destroyed:?}");
    for url in [&hub.url, &one.url("postgres"), &two.url("postgres")] {
        let left = "SELECT count(*) FROM pg_namespace WHERE nspname ~ '^(spcd|a)'";
        assert_eq!(value(url, left).await, "0", "{destroyed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_away_from_the_start_is_named_and_done_without() {
    let (server, mut one, two) = (Cluster::start(&[]), gateway().await, gateway().await);
    let hub = server.database().await;
    let mut spcd = beside(&hub.url, [&one, &two]);
    // Long enough for the error to be seen.
    spcd.env("SPCD_HUB_GATEWAY_PATIENCE", "15s");
    one.stop();
    spcd.write("all.spc", &files());
    spcd.start();
    let name = format!("the gateway 127.0.0.1:{}/postgres: ", one.port());
    until_error(&hub.url, "all", &name).await;
    until_ready(&hub.url).await;
    let all = "SELECT count(*) FROM \"all\".account";
    assert_eq!(value(&hub.url, all).await, "16");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_daemon_that_leads_on_the_hub_has_the_gateways() {
    let (server, one, two) = (Cluster::start(&[]), gateway().await, gateway().await);
    let hub = server.database().await;
    let mut first = beside(&hub.url, [&one, &two]);
    first.write("all.spc", &files());
    first.start();
    until_ready(&hub.url).await;
    let mut second = Spcd::beside(&first);
    let urls = [&one, &two].map(|gateway| gateway.url("postgres"));
    second
        .env("SPCD_GATEWAY", &urls.join(" "))
        .env("SPCD_HUB_GATEWAY_PATIENCE", "4s");
    second.start();
    second.logged("another daemon leads");
    // Longer than a gateway may be away.
    let heartbeat = "SELECT heartbeat FROM spcd.daemon";
    for _ in 0..2 {
        let before = value(&hub.url, heartbeat).await;
        eventually("the first one leads on", DEADLINE, || async {
            (value(&hub.url, heartbeat).await != before).then_some(())
        })
        .await;
    }
    let made = async |gateway: &Cluster| {
        let sql = "SELECT DISTINCT connection_name FROM spcd.connection_event
                   WHERE connection_name <> 'b' ORDER BY 1";
        query(&gateway.url("postgres"), sql).await
    };
    let before = (made(&one).await, made(&two).await);
    first.kill9();
    second.write("more.spc", &connection("b", "b", "token = \"more\""));
    eventually(
        "the other daemon has taken over all of them",
        DEADLINE,
        || async {
            try_query(&hub.url, "SELECT token FROM b.account")
                .await
                .ok()
        },
    )
    .await;
    assert!(!second.log().contains("away"), "{}", second.log());
    assert_eq!((made(&one).await, made(&two).await), before);
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_gateway_twice_is_refused() {
    let (server, gateway) = (Cluster::start(&[]), gateway().await);
    let hub = server.database().await;
    let url = gateway.url("postgres");
    let mut spcd = Spcd::new(&hub.url);
    // Another spelling of the same place.
    spcd.env("SPCD_GATEWAY", "");
    let other = url.replace("postgres://postgres@", "postgres://postgres:x@");
    let text = format!("gateway = [\"{url}\", \"{other}\"]\n");
    fs::write(spcd.dir().join("spcd.hcl"), text).unwrap();
    let run = spcd.spcd(&["run"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.stderr.contains("has the same database twice"),
        "{run:?}"
    );

    // Another name of the same server.
    let other = url.replace("127.0.0.1", "localhost");
    let text = format!("gateway = [\"{url}\", \"{other}\"]\n");
    fs::write(spcd.dir().join("spcd.hcl"), text).unwrap();
    spcd.write("all.spc", &files());
    spcd.start();
    spcd.logged("leads to the same database as");
    spcd.stop();
}
