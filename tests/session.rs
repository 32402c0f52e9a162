//! A refresh breaks nothing: people build on imported tables, the source changes at random, and
//! after each pass theirs is as it was, everything else is as a fresh import would have it, and
//! what was refused says for whose sake.

mod model;
mod source;

use std::collections::BTreeMap;

use crate::support::hub::{columns, postgres, serving};
use crate::support::{Spcd, connect, query, shared};
use model::{Rows, Session, Shape, rows};
use source::Random;

/// How often the source changes.
const STEPS: usize = 100;
/// The first seed of the tests; `SPCD_SEED` takes another.
const SEED: u64 = 20_260_521;

#[tokio::test(flavor = "multi_thread")]
async fn what_people_built_outlives_a_hundred_changes_of_the_source() {
    let seed = std::env::var("SPCD_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    eprintln!("SPCD_SEED={seed}");
    let (hub, source) = (shared().database().await, shared().database().await);
    let source_client = connect(&source.url).await.unwrap();
    let mut random = Random::new(seed);
    source::first_tables(&source_client, &mut random).await;
    let mut spcd = serving(&hub, &source, &["sales"]).await;

    let hub_client = connect(&hub.url).await.unwrap();
    let mut session = Session::new(hub_client, source_client, &source, random).await;
    session.build().await;
    let mut refused_so_far = 0;
    for step in 0..STEPS {
        let theirs = session.theirs().await;
        let log = session.change_source().await;
        session.refresh().await;
        let at = format!("seed {seed}, step {step}: {}", log.join("; "));
        session.same_theirs(&theirs, &at).await;
        refused_so_far += session.compare(&at).await;
        if session.random.one_in(8) {
            session.people_change_their_minds().await;
        }
    }
    // Else it would have shown nothing.
    assert!(refused_so_far > STEPS / 4, "{refused_so_far} refusals");

    // Once no user's objects are in the way, nothing is refused.
    session.clear().await;
    session.refresh().await;
    assert_eq!(session.compare("at the end").await, 0);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_shows_what_a_source_changed_and_whose_objects_stand_in_the_way() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let make = "CREATE TABLE t (a integer, b text, c date); CREATE TABLE u (x integer, y text);
                CREATE TABLE gone (id integer)";
    query(&source.url, make).await;
    let spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    let ahead = spcd.spcd(&["apply"]);
    assert_eq!(ahead.code, 0, "{}", ahead.stderr);
    assert_eq!(spcd.spcd(&["plan", "--refresh"]).stdout, "nothing to do\n");
    query(
        &hub.url,
        "CREATE VIEW v AS SELECT x FROM a.u; GRANT INSERT ON a.gone TO PUBLIC",
    )
    .await;
    query(
        &source.url,
        "ALTER TABLE t ALTER COLUMN a TYPE bigint; ALTER TABLE t RENAME COLUMN b TO note;
         ALTER TABLE u DROP COLUMN x; DROP TABLE gone; CREATE TABLE new (id integer)",
    )
    .await;
    // Without asking, nothing is known to differ.
    assert_eq!(spcd.spcd(&["plan"]).stdout, "nothing to do\n");
    let plan = spcd.spcd(&["plan", "--refresh"]);
    assert_eq!(plan.code, 2, "{}", plan.stderr);
    assert_eq!(
        plan.stdout,
        "~ connection \"a\"\n    \
             + table new (1 columns)\n    \
             ~ table t\n        \
                 ~ column a integer → bigint\n        \
                 - column b (renamed to note? It is dropped, and note added)\n        \
                 + column note text\n    \
             ! table \"gone\" stays as it was: dropping it would break or lose a grant to PUBLIC\n    \
             ! table \"u\" stays as it was: dropping column x would break or lose view public.v\n"
    );
    let sql = spcd.spcd(&["plan", "--refresh", "--sql"]).stdout;
    assert!(sql.contains("CREATE FOREIGN TABLE \"a\".\"new\""), "{sql}");
    assert!(!sql.contains("\"gone\""), "{sql}");
    // It was only a plan.
    assert_eq!(
        columns(&hub.url, "a.t").await,
        ["a integer", "b text", "c date"]
    );
    assert_eq!(spcd.spcd(&["apply", "--force"]).code, 0);
    assert_eq!(
        columns(&hub.url, "a.t").await,
        ["a bigint", "c date", "note text"]
    );
    assert_eq!(spcd.spcd(&["plan", "--refresh"]).stdout, "nothing to do\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn dependents_go_with_their_connection_only_where_somebody_says_so() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let spcd = Spcd::new(&hub.url);
    let all = "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
               connections = [\"?\"]\n}\n";
    spcd.write("a.spc", &postgres("a", &source));
    spcd.write("b.spc", &postgres("b", &source));
    spcd.write("all.spc", all);
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    query(
        &hub.url,
        "CREATE VIEW v AS SELECT id FROM a.t; CREATE MATERIALIZED VIEW m AS SELECT * FROM v;
         CREATE VIEW w AS SELECT * FROM \"all\".t; CREATE VIEW x AS SELECT id FROM b.t;
         CREATE FUNCTION f() RETURNS SETOF a.t LANGUAGE sql BEGIN ATOMIC SELECT * FROM a.t; END;
         CREATE TABLE a.mine (id integer)",
    )
    .await;
    spcd.remove("a.spc");
    spcd.remove("all.spc");
    let refused = spcd.spcd(&["apply"]);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    let error = "SELECT error FROM spcd.connection_state WHERE connection_name =";
    for (name, view) in [("a", "aggregator \"all\""), ("all", "view public.w")] {
        let error = query(&hub.url, &format!("{error} '{name}'")).await.concat();
        assert!(error[0].contains(view), "{error:?}");
    }

    // Their own table in the schema is no dependent, and keeps the schema.
    let refused = spcd.spcd(&["apply", "--drop-dependents"]);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    let error = query(&hub.url, &format!("{error} 'a'")).await.concat();
    assert!(error[0].contains("a.mine"), "{error:?}");
    assert_eq!(query(&hub.url, "SELECT count(*) FROM v").await, [["0"]]);
    let left = "SELECT connection_name FROM spcd.connection_state ORDER BY 1";
    assert_eq!(query(&hub.url, left).await.concat(), ["a", "b"]);

    query(&hub.url, "DROP TABLE a.mine").await;
    let done = spcd.spcd(&["apply", "--drop-dependents"]);
    assert_eq!(done.code, 0, "{}", done.stdout);
    for what in [
        "view public.v",
        "materialized view public.m",
        "function public.f()",
    ] {
        assert!(done.stderr.contains(what), "{what}: {}", done.stderr);
    }
    assert_eq!(query(&hub.url, left).await.concat(), ["b"]);
    let views = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(query(&hub.url, views).await.concat(), ["x"]);
}

impl Session {
    /// Nothing of people's is lost or altered.
    async fn same_theirs(&self, before: &Rows, at: &str) {
        let after = self.theirs().await;
        let lost: Vec<_> = before.iter().filter(|row| !after.contains(row)).collect();
        let new: Vec<_> = after.iter().filter(|row| !before.contains(row)).collect();
        assert!(
            lost.is_empty() && new.is_empty(),
            "{at}\nlost: {lost:#?}\ninstead: {new:#?}"
        );
    }

    /// The tables are a fresh import's, except those that a warning names with what people have on
    /// them. Returns how many those are.
    async fn compare(&self, at: &str) -> usize {
        let state = "SELECT status, error, array_to_string(warnings, E'\\n')
                     FROM spcd.connection_state";
        let state = rows(&self.hub, state).await.remove(0);
        assert_eq!(state[0], "ready", "{at}: {}", state[1]);
        let warnings: Vec<&str> = state[2].lines().collect();
        let about = |table: &str| {
            let start = format!("table {table:?} ");
            let mut about = warnings
                .iter()
                .filter(|warning| warning.starts_with(&start));
            (about.next(), about.next())
        };
        let (there, fresh) = (self.shapes("sales").await, self.fresh().await);
        let mut refused = 0;
        let mut read = String::new();
        let names = there
            .keys()
            .chain(fresh.keys().filter(|name| !there.contains_key(*name)));
        for name in names {
            let (warning, second) = about(name);
            assert_eq!(second, None, "{at}: one warning a table");
            let (old, new) = (there.get(name), fresh.get(name));
            if old == new {
                assert_eq!(warning, None, "{at}: {name:?} is as it should be");
                let table = spcd_core::sql::qualified("sales", name);
                read.push_str(&format!("SELECT t::text FROM {table} t;"));
                continue;
            }
            let old = old.unwrap_or_else(|| panic!("{at}: {name:?} is missing"));
            let reasons = self.reasons(name, old, new);
            assert!(
                !reasons.is_empty(),
                "{at}: {name:?} differs without a reason: {old:#?} instead of {new:#?}"
            );
            let warning = warning.unwrap_or_else(|| panic!("{at}: no word on {name:?}"));
            for reason in &reasons {
                assert!(
                    warning.contains(reason),
                    "{at}: {reason:?} is not named in {warning:?}"
                );
            }
            refused += 1;
        }
        assert_eq!(refused, warnings.len(), "{at}: {warnings:#?}");
        rows(&self.hub, &read).await;
        refused
    }

    /// What people have on a table that a change from `old` to `new` would take or break.
    fn reasons(&self, table: &str, old: &Shape, new: Option<&Shape>) -> Vec<String> {
        let on_table = self
            .things
            .iter()
            .filter(|thing| thing.on.iter().any(|(t, _)| t == table));
        let Some(new) = new else {
            return on_table.map(|thing| thing.named(table)).collect();
        };
        let type_of = |shape: &BTreeMap<String, String>, column: &str| shape.get(column).cloned();
        let goes = |column: &str| !new.columns.contains_key(column);
        let retyped = |column: &str| {
            !goes(column) && type_of(&old.types, column) != type_of(&new.types, column)
        };
        let any_retyped = old.types.keys().any(|column| retyped(column));
        let broken = |thing: &&model::Thing| {
            thing
                .on
                .iter()
                .filter(|(t, _)| t == table)
                .any(|(_, column)| match column {
                    Some(column) => goes(column) || (thing.stops_retype && retyped(column)),
                    None => thing.stops_retype && any_retyped,
                })
        };
        on_table
            .filter(broken)
            .map(|thing| thing.named(table))
            .collect()
    }
}
