//! Mirrors of the hub of another spcd.

use crate::support::hub::{made_by, postgres, until, until_error};
use crate::support::{Cluster, DEADLINE, Spcd, eventually, query, value};

/// A block that mirrors a hub.
fn mirror(name: &str, server: &Cluster, database: &str, more: &str) -> String {
    format!(
        "mirror \"{name}\" {{\n  source = \"postgresql://postgres@127.0.0.1:{}/{database}\"\n\
         {more}}}\n",
        server.port()
    )
}

/// What would change if a schema or one of its tables were made again or altered.
async fn versions(hub: &str, schema: &str) -> Vec<Vec<String>> {
    let sql = format!(
        "SELECT c.oid, c.xmin, n.xmin FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
         WHERE nspname = '{schema}' ORDER BY 1"
    );
    query(hub, &sql).await
}

async fn mirror_error(hub: &str, name: &str, part: &str) {
    let sql = format!("SELECT error FROM spcd.mirror WHERE name = '{name}'");
    eventually(&format!("the mirror says {part:?}"), DEADLINE, || async {
        let rows = crate::support::try_query(hub, &sql).await.ok()?;
        let error = rows.first()?.first()?.clone()?;
        error.contains(part).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_was_killed_and_restarted_costs_the_other_one_nothing() {
    let source = made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (7)").await;
    let (one, two) = (Cluster::start(&[]), Cluster::start(&[]));
    let (first, second) = (one.database().await, two.database().await);
    let mut at_first = Spcd::new(&first.url);
    at_first.write("a.spc", &postgres("a", &source));
    at_first.start();
    until(&first.url, &["a ready"]).await;
    let mut here = Spcd::new(&second.url);
    here.write(
        "m.spc",
        &mirror("site", &one, &first.name, "  prefix = \"s_\"\n"),
    );
    here.start();
    until(&second.url, &["s_a ready"]).await;
    assert_eq!(value(&second.url, "SELECT id FROM s_a.t").await, "7");

    at_first.write("b.spc", &postgres("b", &source));
    until(&second.url, &["s_a ready", "s_b ready"]).await;
    let before = versions(&second.url, "s_a").await;
    at_first.kill9();
    at_first.start();
    until(&first.url, &["a ready", "b ready"]).await;
    // What the first hub does now comes after its restart.
    query(&source.url, "ALTER TABLE t ADD more text").await;
    assert_eq!(at_first.spcd(&["refresh", "b", "--wait"]).code, 0);
    eventually("the column is here", DEADLINE, || async {
        let columns = crate::support::hub::columns(&second.url, "s_b.t").await;
        (columns.len() == 2).then_some(())
    })
    .await;
    assert_eq!(versions(&second.url, "s_a").await, before);

    // The daemon here starts while its source is away: what it has is ready, and nothing is dropped.
    here.kill9();
    let mut one = one;
    one.stop();
    here.start();
    until(&second.url, &["s_a ready", "s_b ready"]).await;
    mirror_error(&second.url, "site", "cannot be reached").await;
    assert_eq!(versions(&second.url, "s_a").await, before);
    one.start_again();
    let gone = "SELECT count(*) FROM spcd.mirror WHERE error IS NULL";
    eventually("the source is followed again", DEADLINE, || async {
        (value(&second.url, gone).await == "1").then_some(())
    })
    .await;
    assert_eq!(versions(&second.url, "s_a").await, before);
    // The block is broken: its connections say so, and keep what they have.
    here.write(
        "m.spc",
        &mirror("site", &one, &first.name, "  prefx = \"s_\"\n"),
    );
    let error = until_error(&second.url, "s_a", "m.spc:3:3").await;
    assert!(error.contains("did you mean `prefix`?"), "{error}");
    assert_eq!(versions(&second.url, "s_a").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn hubs_in_a_circle_are_refused_and_go_on() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let server = Cluster::start(&[]);
    let (a, b, c) = (
        server.database().await,
        server.database().await,
        server.database().await,
    );
    let daemon = |hub: &crate::support::Database, text: String| {
        let mut spcd = Spcd::new(&hub.url);
        spcd.write("all.spc", &text);
        spcd.start();
        spcd
    };
    let itself = mirror("me", &server, &a.name, "");
    let of_a = daemon(&a, postgres("own", &source) + &itself);
    until(&a.url, &["own ready"]).await;
    mirror_error(&a.url, "me", "would mirror itself").await;

    // b mirrors a, c mirrors b, and a is to mirror c.
    let _b = daemon(&b, mirror("of_a", &server, &a.name, "  prefix = \"b_\"\n"));
    until(&b.url, &["b_own ready"]).await;
    let transitive = "  prefix = \"c_\"\n  transitive = true\n";
    let of_c = daemon(&c, mirror("of_b", &server, &b.name, transitive));
    until(&c.url, &["c_b_own ready"]).await;
    let back = mirror("of_c", &server, &c.name, "");
    of_a.write("all.spc", &(postgres("own", &source) + &back));
    mirror_error(&a.url, "of_c", "that is a circle").await;
    until(&a.url, &["own ready"]).await;
    of_a.write("all.spc", &(postgres("own2", &source) + &back));
    until(&c.url, &["c_b_own2 ready"]).await;
    until(&a.url, &["own2 ready"]).await;
    // Not offered further without `transitive`.
    of_c.write(
        "all.spc",
        &mirror("of_b", &server, &b.name, "  prefix = \"c_\"\n"),
    );
    until(&c.url, &[]).await;
}
