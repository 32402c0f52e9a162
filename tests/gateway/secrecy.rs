//! A role of the hub searches all that it can read for a secret, and tries to reach the gateway.

use std::fs;

use spcd_core::sql;
use tokio_postgres::Client;

use super::SECRET;
use crate::support::hub::{guarded, postgres, reader, until};
use crate::support::steampipe::{READER, connection, gateway, plugins};
use crate::support::{
    Cluster, DEADLINE, Spcd, connect, eventually, query, shared, try_query, value,
};

/// Texts that the search must not find.
struct Secrets(Vec<String>);

impl Secrets {
    fn assert_absent(&self, place: &str, text: &str) {
        for secret in &self.0 {
            assert!(
                !text.contains(secret.as_str()),
                "{place} shows a secret: {text}"
            );
        }
    }

    /// A condition that holds where a text contains a secret. It does not itself contain one, since
    /// pg_stat_activity shows the statement.
    fn condition(&self, text: &str) -> String {
        let found = self.0.iter().map(|secret| {
            let (first, last) = secret.split_at(secret.len() / 2);
            let (first, last) = (sql::literal(first), sql::literal(last));
            format!("strpos({text}, {first} || {last}) > 0")
        });
        found.collect::<Vec<_>>().join(" OR ")
    }

    /// Runs a query that counts what was found; it may be refused.
    async fn search(&self, session: &Client, place: &str, query: &str) -> bool {
        match session.query_one(query, &[]).await {
            Ok(row) => {
                assert_eq!(row.get::<_, i64>(0), 0, "{place} shows a secret");
                true
            }
            Err(error) => {
                let said = error.as_db_error().map(|error| format!("{error:?}"));
                self.assert_absent(place, &said.unwrap_or_default());
                false
            }
        }
    }
}

/// Every relation outside the connections' schemas.
async fn search_relations(session: &Client, secrets: &Secrets) {
    let relations =
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                     WHERE relkind IN ('r', 'v', 'm', 'p', 't') AND nspname <> 'a' ORDER BY 1";
    let mut searched = 0;
    for row in session.query(relations, &[]).await.unwrap() {
        let relation: String = row.get(0);
        let found = secrets.condition("r::text");
        let query = format!("SELECT count(*) FROM {relation} r WHERE {found}");
        searched += usize::from(secrets.search(session, &relation, &query).await);
    }
    assert!(searched > 150, "only {searched} relations could be read");
}

/// Every function that can be called without arguments or with the OID of one of the connection's
/// objects.
async fn search_functions(session: &Client, secrets: &Secrets) {
    let functions = "
        SELECT p.oid::regproc::text,
               CASE WHEN pronargs = pronargdefaults THEN '' ELSE proargtypes[0]::regtype::text END
        FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
        WHERE prokind = 'f' AND has_function_privilege(p.oid, 'EXECUTE')
          AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype)
          AND (pronargs = pronargdefaults
               OR pronargs - pronargdefaults = 1
                  AND proargtypes[0] IN ('oid'::regtype, 'regclass'::regtype, 'name'::regtype,
                                         'text'::regtype, 'text[]'::regtype))
          AND proname NOT LIKE '%advisory%' AND proname NOT LIKE 'lo\\_%'
          AND proname NOT IN ('pg_sleep', 'pg_terminate_backend', 'pg_cancel_backend', 'refresh',
                              'reconnect', 'disconnect', 'retry', 'wait_until_ready')";
    let oids = "SELECT oid::text FROM pg_foreign_server UNION SELECT srvid::text FROM pg_user_mappings
                UNION SELECT umid::text FROM pg_user_mappings UNION SELECT 'a.account'::regclass::oid::text
                UNION SELECT 'a'::regnamespace::oid::text";
    let oids: Vec<String> = (session.query(oids, &[]).await.unwrap().iter())
        .map(|row| row.get(0))
        .collect();
    let mut called = 0;
    for row in session.query(functions, &[]).await.unwrap() {
        let (function, argument): (String, String) = (row.get(0), row.get(1));
        let arguments: Vec<String> = match argument.as_str() {
            "" => vec![String::new()],
            "oid" | "regclass" => oids
                .iter()
                .map(|oid| format!("{oid}::{argument}"))
                .collect(),
            _ => vec![format!("'a'::{argument}"), format!("'{{a}}'::{argument}")],
        };
        for argument in arguments {
            let found = secrets.condition("f::text");
            let query = format!("SELECT count(*) FROM {function}({argument}) f WHERE {found}");
            called += usize::from(secrets.search(session, &function, &query).await);
        }
    }
    assert!(called > 300, "only {called} functions answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_role_finds_no_secret_in_the_hub() {
    let server = Cluster::start(&["log_statement = all", "log_min_messages = debug1"]);
    let gateway = gateway().await;
    let hub = server.database().await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE ann LOGIN IN ROLE spcd_users",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", &gateway.url("postgres"))
        .env("SPCD_HEALTH_ENABLED", "true")
        .env("SPCD_HEALTH_INTERVAL", "1s");
    let plugins = plugins().replace("  probe = \"none\"\n", "");
    let other = shared().database().await;
    let file = |token: &str| {
        let a = connection("a", "a", &format!("token = \"{token}\""));
        plugins.clone() + &a + &postgres("other", &other)
    };
    spcd.write("a.spc", &file("another"));
    spcd.start();
    until(&hub.url, &["a ready", "other ready"]).await;
    // The hub waits for a gateway that cannot write, and goes on probing what it has itself.
    let mut behind = connect(&gateway.url("postgres")).await.unwrap();
    let lock = behind.transaction().await.unwrap();
    let hold = "LOCK TABLE spcd.connection_state IN EXCLUSIVE MODE";
    lock.batch_execute(hold).await.unwrap();
    spcd.write("a.spc", &file(SECRET));
    until(&hub.url, &["a updating", "other ready"]).await;
    for _ in 0..2 {
        let checked = "SELECT last_checked FROM spcd.connection_health
                       WHERE connection_name = 'other'";
        let before = query(&hub.url, checked).await;
        eventually("another connection is probed", DEADLINE, || async {
            (query(&hub.url, checked).await != before).then_some(())
        })
        .await;
    }
    lock.rollback().await.unwrap();
    let ann = server.url_as("ann", &hub.name);
    eventually("the token is read", DEADLINE, || async {
        (value(&ann, "SELECT token FROM a.account").await == SECRET).then_some(())
    })
    .await;
    for command in [["refresh", "a"], ["reconnect", "a"], ["test", "a"]] {
        assert_eq!(spcd.spcd(&command).code, 0);
    }
    until(&hub.url, &["a ready", "other ready"]).await;

    let kept = "SELECT password FROM spcd.gateway_reader";
    let password = value(&gateway.url("postgres"), kept).await;
    let secrets = Secrets(vec![SECRET.to_owned(), password.clone()]);
    let session = connect(&ann).await.unwrap();
    session
        .batch_execute("SET statement_timeout = '5s'")
        .await
        .unwrap();
    search_relations(&session, &secrets).await;
    search_functions(&session, &secrets).await;
    for query in [
        "EXPLAIN (VERBOSE) SELECT * FROM a.account",
        "EXPLAIN (VERBOSE, ANALYZE, SETTINGS, BUFFERS) SELECT id FROM a.account JOIN a.slow USING (id)",
    ] {
        let plan = try_query(&ann, query).await.unwrap().concat();
        let plan: String = plan.into_iter().flatten().collect();
        secrets.assert_absent(query, &plan);
    }
    for query in [
        "SELECT * FROM a.fails",
        "SELECT * FROM a.wants_id",
        "SELECT * FROM a.panic",
        "INSERT INTO a.account VALUES (1)",
        "IMPORT FOREIGN SCHEMA a FROM SERVER a INTO public",
        "CREATE USER MAPPING FOR CURRENT_USER SERVER a",
        "ALTER SERVER a OPTIONS (SET host 'elsewhere')",
        "CREATE FOREIGN TABLE a.mine (id integer) SERVER a",
        "SELECT spcd.refresh(ARRAY['no such'])",
    ] {
        let error = try_query(&ann, query).await.err();
        let said = error.as_ref().and_then(|error| error.as_db_error());
        secrets.assert_absent(query, &format!("{said:?}"));
    }
    spcd.stop();
    secrets.assert_absent("the daemon's log", &spcd.log());
    // What the query above read is in no statement; the rows themselves are not logged.
    secrets.assert_absent("the hub's log", &server.log());
    assert!(!gateway.log().contains(&password), "the gateway's log");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_the_password_lets_a_session_into_the_private_gateway() {
    let server = Cluster::start(&[]);
    let hub = server.database().await;
    let source = guarded("hunter2hunter2").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", "private");
    let block = reader("p", source.port(), "hunter2hunter2");
    spcd.write(
        "p.spc",
        &block.replace("plugin ", "gateway = true\n  plugin "),
    );
    spcd.start();
    until(&hub.url, &["p ready"]).await;
    let cluster = spcd.state_dir().join("gateway/cluster");
    let port: u16 = (fs::read_to_string(cluster.join("port"))
        .unwrap()
        .trim()
        .parse())
    .unwrap();
    let socket = cluster.join("socket").display().to_string();
    // The operating system's user of the test is the server's own, or root.
    for role in ["spcd", READER, "postgres", "root"] {
        for host in ["127.0.0.1", socket.as_str()] {
            for password in [
                "",
                " password=guess",
                " password=spcd",
                " password=hunter2hunter2",
            ] {
                for database in ["spcd", "postgres", "template1"] {
                    let login =
                        format!("host={host} port={port} user={role} dbname={database}{password}");
                    assert!(connect(&login).await.is_err(), "{login}");
                }
            }
        }
    }
    // The role that the hub uses reads tables, and nothing else.
    let passfile = fs::read_to_string(cluster.join("passfile")).unwrap();
    let password = passfile.trim().rsplit(':').next().unwrap().to_owned();
    let as_spcd = format!("host=127.0.0.1 port={port} user=spcd dbname=spcd password={password}");
    let kept = value(&as_spcd, "SELECT password FROM spcd.gateway_reader").await;
    let as_reader = format!("host=127.0.0.1 port={port} user={READER} dbname=spcd password={kept}");
    assert_eq!(value(&as_reader, "SELECT count(*) FROM p.t").await, "1");
    for refused in [
        "SELECT srvoptions FROM pg_foreign_server",
        "SELECT * FROM spcd.gateway_reader",
        "CREATE SCHEMA mine",
        "CREATE TABLE public.mine (id integer)",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('postgresql.conf')",
    ] {
        let error = try_query(&as_reader, refused).await.unwrap_err();
        let code = error
            .as_db_error()
            .map(|error| error.code().code().to_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{refused}: {error:?}");
    }
    let mappings = "SELECT count(*) FROM pg_user_mappings WHERE umoptions IS NOT NULL";
    assert_eq!(value(&as_reader, mappings).await, "0");
    let roles = "SELECT count(*) FROM pg_roles WHERE rolcanlogin";
    assert_eq!(value(&as_spcd, roles).await, "2");
    spcd.stop();
}
