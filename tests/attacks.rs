//! What a role without rights can try against the hub: its own functions and operators in the place of
//! the catalog's, and floods of notifications. And what a source can try with its texts.

use spcd_core::sql::{ident, literal};

use crate::support::http::Http;
use crate::support::hub::{made_by, postgres, postgres_with, until, until_commented};
use crate::support::{
    Cluster, DEADLINE, Database, Spcd, connect, eventually, query, shared, try_query, value,
};

/// A hub with a role that may read, and that has a schema of its own.
async fn hub_with_attacker() -> (Cluster, Database, String) {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE attacker LOGIN IN ROLE spcd_users;
         CREATE SCHEMA evil AUTHORIZATION attacker",
    )
    .await;
    let attacker = server.url_as("attacker", &hub.name);
    (server, hub, attacker)
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_with_the_owners_rights_set_their_search_path() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_COMPAT", "steampipe");
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    let sql = "SELECT n.nspname || '.' || p.proname, coalesce(p.proconfig::text, '')
               FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
               WHERE p.prosecdef AND n.nspname <> 'pg_catalog' ORDER BY 1";
    let functions = query(&hub.url, sql).await;
    assert!(functions.len() >= 4, "{functions:?}");
    for function in &functions {
        assert_eq!(
            function[1], "{\"search_path=pg_catalog, pg_temp\"}",
            "{}",
            function[0]
        );
    }
}

/// Objects in a schema of the attacker's that record who runs them.
fn traps(schema: &str) -> String {
    let function = |name: &str, arguments: &str, returns: &str, result: &str| {
        let body = format!(
            "BEGIN INSERT INTO evil.seen VALUES (current_user, {}); RETURN {result}; END",
            literal(name)
        );
        format!(
            "CREATE FUNCTION {schema}.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS {};
             GRANT EXECUTE ON FUNCTION {schema}.{name}({arguments}) TO PUBLIC;",
            literal(&body)
        )
    };
    [
        function("pg_notify", "text, text", "void", "").replace("RETURN ;", "RETURN;"),
        function("cardinality", "text[]", "integer", "0"),
        function("asked_names", "text[]", "text[]", "$1"),
        function("limit_requests", "text[], integer", "void", "").replace("RETURN ;", "RETURN;"),
        function("same", "text, text", "boolean", "true"),
        function("more", "integer, integer", "boolean", "false"),
        function("has_schema_privilege", "name, text", "boolean", "true"),
        format!(
            "CREATE OPERATOR {schema}.= (LEFTARG = text, RIGHTARG = text, FUNCTION = {schema}.same);
             CREATE OPERATOR {schema}.> (LEFTARG = integer, RIGHTARG = integer, FUNCTION = {schema}.more);
             CREATE TABLE {schema}.refresh_request (connections text[], id bigint);
             CREATE TABLE {schema}.connection_state (connection_name text, status text);"
        ),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_makes_runs_with_its_own_rights_only() {
    let ((_server, hub, attacker), source) = (
        hub_with_attacker().await,
        made_by("CREATE TABLE t (id integer)").await,
    );
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let session = connect(&attacker).await.unwrap();
    let own = format!(
        "CREATE TABLE evil.seen (who name, what text); GRANT INSERT ON evil.seen TO PUBLIC;
         GRANT USAGE ON SCHEMA evil TO PUBLIC; {}
         CREATE VIEW evil.v AS SELECT id, evil.same(id::text, 'x') FROM a.t;
         SET search_path = evil, pg_catalog",
        traps("evil")
    );
    session.batch_execute(&own).await.unwrap();
    let in_temp = format!(
        "{} SET search_path = pg_temp, evil, pg_catalog",
        traps("pg_temp")
    );
    for (path, shadows) in [("evil", ""), ("pg_temp", in_temp.as_str())] {
        session.batch_execute(shadows).await.unwrap();
        for call in [
            "SELECT spcd.refresh('{a}')",
            "SELECT spcd.refresh()",
            "SELECT * FROM spcd.wait_until_ready('{a}', '1 second')",
        ] {
            // It may fail under such a path, and harms only the caller.
            let _ = session
                .batch_execute(call)
                .await
                .map_err(|error| (path, error));
        }
    }
    // The daemon changes, drops and makes tables under the attacker's view meanwhile.
    query(
        &source.url,
        "ALTER TABLE t ADD more text; CREATE TABLE u (id integer)",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    let others = "SELECT DISTINCT who, what FROM evil.seen WHERE who <> 'attacker'";
    assert_eq!(query(&hub.url, others).await, Vec::<Vec<String>>::new());
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_calls_its_things_is_never_run() {
    let hub = shared().database().await;
    // The hub has a function of the same name as one of the source's.
    let trap = "CREATE TABLE public.seen (what text);
        CREATE FUNCTION public.trap() RETURNS integer LANGUAGE sql
            AS $$ INSERT INTO public.seen VALUES ('default'); SELECT 1 $$";
    query(&hub.url, trap).await;
    let evil = "'; INSERT INTO public.seen VALUES ('text'); --";
    let (name, text) = (ident(evil), literal(evil));
    let kind = ident(&format!("kind{evil}"));
    let source = made_by(&format!(
        "CREATE FUNCTION public.trap() RETURNS integer LANGUAGE sql AS 'SELECT 1';
         CREATE TYPE {kind} AS ENUM ({text});
         CREATE DOMAIN short AS text CHECK (value <> {text});
         CREATE TABLE {name} (id integer PRIMARY KEY DEFAULT public.trap(),
                              {name} text DEFAULT {text}, e {kind}, s short);
         COMMENT ON TABLE {name} IS {text};
         COMMENT ON COLUMN {name}.{name} IS {text}",
    ))
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    until_commented(&hub.url, "a").await;
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM public.seen").await,
        "0"
    );
    let table = literal(&format!("a.{name}"));
    let comment = format!("SELECT obj_description({table}::regclass)");
    assert_eq!(value(&hub.url, &comment).await, evil);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_notifications_makes_few_passes() {
    let ((_server, hub, attacker), source) = (
        hub_with_attacker().await,
        made_by("CREATE TABLE t (id integer)").await,
    );
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let passes = || {
        let text = http.get("/metrics").body;
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix("spcd_pass_duration_seconds_count "));
        count
            .unwrap_or_else(|| panic!("{text}"))
            .parse::<u64>()
            .unwrap()
    };
    let flood = "SELECT pg_notify('spcd_wake', g::text), pg_notify('connection_state', g::text)
                 FROM generate_series(1, 50000) g";
    query(&attacker, flood).await;
    spcd.write("b.spc", &postgres("b", &source));
    until(&hub.url, &["a ready", "b ready"]).await;
    // One pass for each message would go on for minutes.
    let heartbeat = async || value(&hub.url, "SELECT heartbeat FROM spcd.daemon").await;
    let mut is_quiet = false;
    for _ in 0..8 {
        let (beat, count) = (heartbeat().await, passes());
        eventually("the next heartbeat", DEADLINE, || async {
            (heartbeat().await != beat).then_some(())
        })
        .await;
        is_quiet = passes() == count;
        if is_quiet {
            break;
        }
    }
    assert!(is_quiet, "passes go on");
    assert_eq!(value(&hub.url, "SELECT epoch FROM spcd.daemon").await, "1");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_cannot_use_the_server_or_the_mapping_of_a_connection() {
    let ((_server, hub, attacker), source) = (
        hub_with_attacker().await,
        made_by("CREATE TABLE t (id integer)").await,
    );
    let mut spcd = Spcd::new(&hub.url);
    let secret = "  password = \"hunter2hunter2\"\n";
    spcd.write("a.spc", &postgres_with("a", &source, secret));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    for statement in [
        "CREATE USER MAPPING FOR CURRENT_USER SERVER a",
        "ALTER USER MAPPING FOR PUBLIC SERVER a OPTIONS (SET user 'other')",
        "ALTER SERVER a OPTIONS (SET host 'elsewhere')",
        "CREATE FOREIGN TABLE evil.mine (id integer) SERVER a",
        "IMPORT FOREIGN SCHEMA public FROM SERVER a INTO evil",
        "CREATE TABLE a.mine (id integer)",
        "ALTER FOREIGN TABLE a.t OPTIONS (SET table_name 'other')",
    ] {
        let error = try_query(&attacker, statement).await.unwrap_err();
        let code = error.code().map(|code| code.code());
        assert_eq!(code, Some("42501"), "{statement}: {error:?}");
    }
    let options = "SELECT count(*), count(umoptions) FROM pg_user_mappings";
    assert_eq!(query(&attacker, options).await, [["1", "0"]]);
    spcd.stop();
}
