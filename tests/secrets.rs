//! What carries a password to the server leaves no trace of it, whatever the server writes down.

use crate::support::hub::{guarded, reader, until, until_error};
use crate::support::{
    Cluster, DEADLINE, Spcd, connect, eventually, query, shared, try_query, value,
};

/// A server that writes down all that it can.
fn talkative() -> Cluster {
    Cluster::start(&[
        "shared_preload_libraries = 'pg_stat_statements'",
        "pg_stat_statements.track = 'all'",
        "pg_stat_statements.track_utility = on",
        "track_activity_query_size = 64kB",
        "log_statement = 'all'",
        "log_min_duration_statement = 0",
        "log_min_error_statement = 'debug5'",
        "log_min_messages = 'debug1'",
        "log_error_verbosity = 'verbose'",
        "log_parameter_max_length = -1",
        "log_parameter_max_length_on_error = -1",
        "debug_print_parse = on",
        "debug_print_rewritten = on",
        "debug_print_plan = on",
    ])
}

/// Everything that a session with the server's own rights can read, but for the catalog of mappings.
const SEEN: &str = "
    SELECT string_agg(line, E'\\n') FROM (
        SELECT query FROM pg_stat_statements UNION ALL SELECT query FROM pg_stat_activity
        UNION ALL SELECT t::text FROM spcd.connection_state t
        UNION ALL SELECT t::text FROM spcd.connection_event t
        UNION ALL SELECT t::text FROM spcd.config_diagnostic t
        UNION ALL SELECT t::text FROM spcd.applied t
        UNION ALL SELECT t::text FROM spcd.daemon t
        UNION ALL SELECT t::text FROM spcd.refresh_request t
        UNION ALL SELECT array_to_string(srvoptions, ' ') FROM pg_foreign_server
    ) AS all_of_it (line)";

fn connection(name: &str, port: u16, user: &str, password: &str) -> String {
    format!(
        "connection \"{name}\" {{\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = {port}\n  \
         dbname = \"postgres\"\n  user = \"{user}\"\n  password = \"{password}\"\n}}\n"
    )
}

#[tokio::test]
async fn no_secret_is_in_the_log_or_the_views_of_a_server_that_writes_all_down() {
    let cluster = talkative();
    let hub = cluster.database().await;
    query(&hub.url, "CREATE EXTENSION pg_stat_statements").await;
    let mut spcd = Spcd::new(&hub.url);
    let port = shared().port();
    spcd.write(
        "good.spc",
        &connection("good", port, "postgres", "hunter2-first"),
    );
    // The wrapper refuses the mapping's option, and would say so with the statement as context.
    spcd.write(
        "refused.spc",
        "connection \"refused\" {\n  plugin = \"fdw\"\n  wrapper = \"postgres_fdw\"\n  schema = \"public\"\n  \
         mapping {\n    frob = \"hunter2-refused\"\n  }\n}\n",
    );
    // The source cannot be reached, and the wrapper says where it was looked for.
    spcd.write(
        "away.spc",
        &connection("away", port, "postgres", "hunter2-away")
            .replace("127.0.0.1", "no-such-host.invalid"),
    );
    spcd.start();
    until(&hub.url, &["away error", "good ready", "refused error"]).await;
    until_error(&hub.url, "refused", "frob").await;
    // Altered, too.
    spcd.write(
        "good.spc",
        &connection("good", port, "postgres", "hunter2-second"),
    );
    let changed = "SELECT umoptions::text FROM pg_user_mappings WHERE srvname = 'good'";
    eventually("the mapping is altered", DEADLINE, || async {
        value(&hub.url, changed)
            .await
            .contains("hunter2-second")
            .then_some(())
    })
    .await;
    until(&hub.url, &["away error", "good ready", "refused error"]).await;

    let seen = value(&hub.url, SEEN).await;
    // What was looked for is there to be seen.
    assert!(seen.contains("spcd.set_user_mapping"), "{seen}");
    let log = cluster.log();
    assert!(log.contains("spcd.set_user_mapping") && log.contains("parse tree"));
    spcd.stop();
    for (place, text) in [
        ("views", &seen),
        ("log", &cluster.log()),
        ("daemon's log", &spcd.log()),
    ] {
        for line in text.lines() {
            assert!(!line.contains("hunter2"), "{place}: {line}");
        }
    }

    // Only a role that may read the mapping's options can read them; a reader may not.
    query(&hub.url, "CREATE ROLE somebody LOGIN").await;
    let theirs = cluster.url_as("somebody", &hub.name);
    let hidden = try_query(&theirs, "SELECT umoptions FROM pg_user_mappings")
        .await
        .unwrap();
    assert!(hidden.iter().all(|row| row[0].is_none()), "{hidden:?}");
}

#[tokio::test]
async fn a_role_that_may_not_switch_statistics_off_is_told_so_by_the_doctor() {
    let (cluster, source) = (talkative(), guarded("hunter2-first").await);
    let hub = cluster.database().await;
    let setup = format!(
        "CREATE EXTENSION pg_stat_statements; CREATE EXTENSION postgres_fdw; CREATE ROLE keeper LOGIN;
         GRANT CREATE ON DATABASE \"{}\" TO keeper;
         GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO keeper",
        hub.name
    );
    query(&hub.url, &setup).await;
    let spcd = Spcd::new(&cluster.url_as("keeper", &hub.name));
    spcd.write("a.spc", "");
    let ill = spcd.spcd(&["doctor"]);
    assert_eq!(ill.code, 1, "{ill:?}");
    let cure = "ALTER ROLE \"keeper\" SET pg_stat_statements.track_utility = off;";
    assert!(ill.stdout.contains(cure), "{ill:?}");
    query(&hub.url, cure).await;
    let well = spcd.spcd(&["doctor"]);
    assert_eq!(well.code, 0, "{well:?}");

    spcd.write(
        "good.spc",
        &connection("good", source.port(), "reader", "hunter2-first"),
    );
    let applied = spcd.spcd(&["apply"]);
    assert_eq!(applied.code, 0, "{applied:?}");
    let seen = value(&hub.url, SEEN).await;
    assert!(
        seen.contains("spcd.create_user_mappings") && !seen.contains("hunter2"),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_context_of_a_lock_or_a_cancelled_statement() {
    for role in ["postgres", "keeper"] {
        no_secret_is_in_a_context(role).await;
    }
}

/// What a role does about the context differs: only a superuser may switch messages off.
async fn no_secret_is_in_a_context(role: &str) {
    let cluster = Cluster::start(&[
        "log_lock_waits = on",
        "deadlock_timeout = '200ms'",
        "log_min_messages = 'debug5'",
        "log_error_verbosity = 'verbose'",
    ]);
    let source = guarded("hunter2-first").await;
    let hub = cluster.database().await;
    query(
        &hub.url,
        &format!(
            "CREATE ROLE keeper LOGIN CREATEROLE; ALTER DATABASE {} OWNER TO keeper;
             CREATE EXTENSION postgres_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO keeper",
            hub.name
        ),
    )
    .await;
    let mut spcd = Spcd::new(&cluster.url_as(role, &hub.name));
    spcd.write("a.spc", &reader("a", source.port(), "hunter2-first"));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let holder = connect(&hub.url).await.unwrap();
    let pid = "SELECT pg_backend_pid()";
    let pid: i32 = holder.query_one(pid, &[]).await.unwrap().get(0);
    let lock = "SET application_name = 'backup'; BEGIN; LOCK TABLE pg_catalog.pg_user_mapping IN SHARE MODE";
    holder.batch_execute(lock).await.unwrap();
    let password = "ALTER ROLE reader PASSWORD 'hunter2-second'";
    query(&source.url("postgres"), password).await;
    spcd.write("a.spc", &reader("a", source.port(), "hunter2-second"));
    spcd.logged(&format!(
        "the server's catalogs are locked: process {pid} of postgres (backup) holds a lock on \
         pg_catalog.pg_user_mapping"
    ));
    let cancel = "DO $$ DECLARE p integer; BEGIN
        LOOP
            SELECT pid INTO p FROM pg_locks
            WHERE relation = 'pg_catalog.pg_user_mapping'::regclass AND NOT granted;
            EXIT WHEN p IS NOT NULL;
            PERFORM pg_sleep(0.01);
        END LOOP;
        PERFORM pg_cancel_backend(p);
    END $$";
    query(&hub.url, cancel).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    let changed = "SELECT umoptions::text FROM pg_user_mappings WHERE srvname = 'a'";
    eventually("the mapping is altered", DEADLINE, || async {
        (value(&hub.url, changed).await.contains("hunter2-second")).then_some(())
    })
    .await;
    spcd.stop();
    for line in cluster.log().lines() {
        assert!(!line.contains("hunter2"), "{role}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_secret_that_a_driver_quotes_are_masked() {
    let hub = crate::support::shared().database().await;
    let mut spcd = crate::support::Spcd::new(&hub.url);
    for (name, source) in [
        ("odbc", "ODBC:DRIVER=nothing;UID=u;PWD=hunter2-odbc,hunter2"),
        (
            "brace",
            "ODBC:DRIVER=nothing;UID=u;PWD={hunter2;hunter2};X=y",
        ),
        ("dsn", "ODBC:u/hunter2-dsn@nowhere"),
        (
            "pg",
            "PG:host=127.0.0.1 port=1 user=u password='hunter2 hunter2'",
        ),
        (
            "my",
            "MYSQL:shop,host=127.0.0.1,port=1,user=u,password=hunter2-my",
        ),
    ] {
        spcd.write(
            &format!("{name}.spc"),
            &format!(
                "connection \"{name}\" {{\n  plugin = \"ogr\"\n  datasource = \"{source}\"\n}}\n"
            ),
        );
    }
    let named = |name: &str| {
        let more = format!("  application_name = \"x?password={name}\"\n}}\n");
        connection("named", shared().port(), "postgres", "hunter2").replace("}\n", &more)
    };
    spcd.write("named.spc", &named("hunter2-before"));
    spcd.start();
    crate::support::hub::until(
        &hub.url,
        &[
            "brace error",
            "dsn error",
            "my error",
            "named ready",
            "odbc error",
            "pg error",
        ],
    )
    .await;
    spcd.stop();
    // A value that is public may hold a secret as well.
    spcd.write("named.spc", &named("hunter2-after"));
    spcd.write(
        "open.spc",
        "connection \"open\" {\n  plugin = \"postgres\"\n  host = \"nowhere?password=hunter2\"\n}\n",
    );
    let check = spcd.spcd(&["check", "--json"]);
    assert!(
        check.stdout.contains("nowhere?password=***"),
        "{}",
        check.stdout
    );
    let told = "SELECT string_agg(e, ' ') FROM (SELECT error FROM spcd.connection_state
                UNION ALL SELECT error FROM spcd.connection_event) x (e)";
    let told = crate::support::value(&hub.url, told).await;
    let plan = spcd.spcd(&["plan"]);
    let change = "~ server option application_name: x?password=*** → x?password=***";
    assert!(plan.stdout.contains(change), "{plan:?}");
    let sql = spcd.spcd(&["plan", "--sql"]);
    let all = [
        told,
        spcd.log(),
        check.stdout,
        plan.stdout,
        plan.stderr,
        sql.stdout,
    ]
    .concat();
    assert!(!all.contains("hunter2"), "{all}");
}
