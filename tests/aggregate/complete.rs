//! An aggregator is `ready` only with the tables of all of its members, also those dropped by hand.

use super::aggregator;
use crate::support::hub::{made_by, postgres, until};
use crate::support::{Database, Spcd, query, shared, value};

/// Records, in the transaction that writes `g ready`, the schemas whose tables `g.t` then reads.
const RECORD: &str = "
    CREATE TABLE public.shown (schemas text);
    CREATE FUNCTION public.record() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.shown
        SELECT coalesce(string_agg(DISTINCT c.relnamespace::regnamespace::text, ' '), 'nothing')
        FROM pg_class v JOIN pg_rewrite r ON r.ev_class = v.oid
        JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid
        JOIN pg_class c ON c.oid = d.refobjid
        WHERE v.relnamespace = to_regnamespace('g') AND v.relname = 't';
        RETURN NULL;
    END $$;
    CREATE TRIGGER record AFTER INSERT OR UPDATE ON spcd.connection_state FOR EACH ROW
        WHEN (NEW.connection_name = 'g' AND NEW.status = 'ready') EXECUTE FUNCTION public.record()";

/// Drops the table of member `b` in the transaction that makes member `c` or `d` ready: after the
/// daemon asked what has drifted, and before it reads the members' tables for the aggregator.
const DROP_A_MOMENT_BEFORE: &str = "
    CREATE TABLE public.due AS SELECT unnest('{c,d}'::text[]) AS name;
    CREATE FUNCTION public.drop_b() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM public.due WHERE name = NEW.connection_name;
        IF FOUND THEN
            DROP FOREIGN TABLE b.t CASCADE;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER drop_b AFTER INSERT OR UPDATE ON spcd.connection_state FOR EACH ROW
        WHEN (NEW.status = 'ready') EXECUTE FUNCTION public.drop_b()";

/// Waits until `g` and its members are ready, and checks that it was never so without one of them.
async fn until_complete(hub: &Database, members: &[&str], what: &str) {
    let ready: Vec<String> = (members.iter().chain(&["g"]))
        .map(|name| format!("{name} ready"))
        .collect();
    until(
        &hub.url,
        &ready.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    let rows = "SELECT string_agg(connection_name, ' ' ORDER BY connection_name) FROM g.t";
    assert_eq!(value(&hub.url, rows).await, members.join(" "), "{what}");
    let shown = "SELECT DISTINCT schemas FROM public.shown";
    assert_eq!(
        query(&hub.url, shown).await.concat(),
        [members.join(" ")],
        "{what}"
    );
}

/// A daemon whose members of these names, before `g` in byte order, and whose aggregator `g` of them are
/// ready.
async fn united<const N: usize>(hub: &Database, source: &Database, members: [&str; N]) -> Spcd {
    let mut spcd = Spcd::new(&hub.url);
    let blocks = members.map(|name| postgres(name, source)).concat();
    spcd.write("m.spc", &(blocks + &aggregator("g", &members)));
    spcd.start();
    let ready = members.map(|name| format!("{name} ready"));
    let ready: Vec<&str> = ready
        .iter()
        .map(String::as_str)
        .chain(["g ready"])
        .collect();
    until(&hub.url, &ready).await;
    spcd
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_never_ready_without_a_table_that_was_dropped_a_moment_before() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (1)").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("m.spc", &(postgres("a", &source) + &postgres("b", &source)));
    spcd.start();
    until(&hub.url, &["a ready", "b ready"]).await;
    query(&hub.url, RECORD).await;
    query(&hub.url, DROP_A_MOMENT_BEFORE).await;
    let members = ["a", "b", "c", "d"];
    let block = aggregator("g", &members);
    spcd.write("g.spc", &(postgres("c", &source) + &block));
    until_complete(&hub, &members[..3], "a new aggregator").await;
    // Its view goes with the table.
    query(&hub.url, "TRUNCATE public.shown").await;
    spcd.write("d.spc", &postgres("d", &source));
    until_complete(&hub, &members, "a new member").await;
    let due = "SELECT count(*) FROM public.due";
    assert_eq!(value(&hub.url, due).await, "0");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_before_a_look_a_start_or_a_take_over_is_there_when_it_is_ready() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (1)").await;
    let members = ["a", "b"];
    let mut spcd = united(&hub, &source, members).await;
    query(&hub.url, RECORD).await;
    let drop = "DROP FOREIGN TABLE b.t CASCADE; TRUNCATE public.shown";
    for command in [
        &["wait"][..],
        &["refresh", "--wait"],
        &["refresh", "g", "--wait"],
    ] {
        query(&hub.url, drop).await;
        let done = spcd.spcd(command);
        assert_eq!(done.code, 0, "{command:?}: {done:?}");
        until_complete(&hub, &members, &format!("{command:?}")).await;
    }
    spcd.stop();
    query(&hub.url, drop).await;
    spcd.start();
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    until_complete(&hub, &members, "a start").await;
    let mut second = Spcd::beside(&spcd);
    second.start();
    second.logged("another daemon leads");
    query(&hub.url, drop).await;
    spcd.kill9();
    assert_eq!(second.spcd(&["wait"]).code, 0);
    until_complete(&hub, &members, "a take-over").await;
    second.stop();
}

/// Records, at the end of each transaction that changes a view, the views that the aggregator's record names
/// and that are not there. The row is `ready` then, as a client sees it.
const RECORD_LACKS: &str = "
    CREATE TABLE public.changes (lacks text);
    CREATE FUNCTION public.record_lacks() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.changes
        SELECT coalesce(string_agg(t.name, ' ') FILTER (WHERE v.oid IS NULL), '')
        FROM spcd.connection_state s JOIN spcd.applied a USING (connection_name)
        CROSS JOIN LATERAL unnest(a.tables) AS t (name)
        LEFT JOIN pg_class v ON v.relname = t.name AND v.relnamespace = to_regnamespace('g')
        WHERE s.connection_name = 'g' AND s.status = 'ready'
        HAVING count(*) > 0;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER record_lacks AFTER INSERT OR UPDATE OR DELETE ON spcd.aggregator_view
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.record_lacks()";

#[tokio::test(flavor = "multi_thread")]
async fn its_record_names_no_view_that_a_members_change_has_dropped() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer); CREATE TABLE x (id integer)").await;
    let mut spcd = united(&hub, &source, ["a", "b"]).await;
    query(&hub.url, RECORD_LACKS).await;
    let steps = [
        ("DROP TABLE x", "t"),
        ("CREATE TABLE y (id integer)", "t y"),
    ];
    for (change, expected) in steps {
        query(&source.url, change).await;
        for name in ["a", "b", "g"] {
            let done = spcd.spcd(&["refresh", name, "--wait"]);
            assert_eq!(done.code, 0, "{change}: {done:?}");
        }
        let tables = "SELECT array_to_string(tables, ' ') FROM spcd.applied
                      WHERE connection_name = 'g'";
        assert_eq!(value(&hub.url, tables).await, expected, "{change}");
    }
    let lacks = "SELECT DISTINCT lacks FROM public.changes";
    assert_eq!(query(&hub.url, lacks).await.concat(), [""]);
    spcd.stop();
}
