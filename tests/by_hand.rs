//! What people do by hand to what spcd made: it is mended or told, and what is theirs stays.

use crate::support::hub::{columns, postgres, serving, until};
use crate::support::{Cluster, Database, Spcd, query, role, shared, value};

/// Everything of the connection `s` that counts: server, mapping, tables, columns, and who may read.
const STATE: &str = "
    SELECT concat_ws(' ', 'server', w.fdwname, (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(s.srvoptions) o)) FROM pg_foreign_server s
    JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE s.srvname = 's'
    UNION ALL
    SELECT concat_ws(' ', 'mapping', usename, (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(umoptions) o)) FROM pg_user_mappings WHERE srvname = 's'
    UNION ALL
    SELECT concat_ws(' ', 'table', c.relname, s.srvname, (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(f.ftoptions) o),
                     has_table_privilege('spcd_users', c.oid, 'SELECT'))
    FROM pg_class c JOIN pg_foreign_table f ON f.ftrelid = c.oid
    JOIN pg_foreign_server s ON s.oid = f.ftserver
    WHERE c.relnamespace = to_regnamespace('s')
    UNION ALL
    SELECT concat_ws(' ', 'column', c.relname, k.attname, format_type(k.atttypid, k.atttypmod), k.attnotnull,
                     (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(k.attfdwoptions) o), pg_get_expr(d.adbin, d.adrelid))
    FROM pg_class c JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum > 0 AND NOT k.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = k.attnum
    WHERE c.relnamespace = to_regnamespace('s') AND c.relkind = 'f'
    UNION ALL
    SELECT concat_ws(' ', 'schema', has_schema_privilege('spcd_users', 's', 'USAGE'))
    ORDER BY 1";

/// What people keep in the schema, and what they built upon it.
const THEIRS: &str = "
    SELECT 'row ' || x FROM s.mine
    UNION ALL SELECT 'view ' || note FROM s.seen
    UNION ALL SELECT 'owner ' || pg_get_userbyid(relowner) FROM pg_class
              WHERE relnamespace = 's'::regnamespace AND relname = 'kept'
    UNION ALL SELECT 'comment ' || obj_description('s.kept'::regclass)
    UNION ALL SELECT 'grant ' || has_column_privilege('somebody', 's.kept', 'a', 'SELECT')
    UNION ALL SELECT 'schema grant ' || has_schema_privilege('somebody', 's', 'CREATE')
    UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgrelid = 's.kept'::regclass
    ORDER BY 1";

async fn source() -> Database {
    let source = shared().database().await;
    query(
        &source.url,
        "CREATE TABLE t (a integer, b text); CREATE TABLE u (x integer); CREATE TABLE kept (a integer, note text);
         INSERT INTO t VALUES (1, 'one'); INSERT INTO kept VALUES (1, 'kept')",
    )
    .await;
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_altered_by_hand_is_mended_and_what_people_made_stays() {
    let cluster = Cluster::start(&[]);
    let (hub, source) = (cluster.database().await, source().await);
    query(&hub.url, "CREATE ROLE spcd_users; CREATE ROLE somebody").await;
    role::grant_to_daemon(&hub.url, &["somebody"]).await;
    let mut spcd = serving(&hub, &source, &["s"]).await;
    query(
        &hub.url,
        "CREATE TABLE s.mine (x integer); INSERT INTO s.mine VALUES (5);
         CREATE VIEW s.seen AS SELECT note FROM s.kept; COMMENT ON FOREIGN TABLE s.kept IS 'mine';
         GRANT SELECT (a) ON s.kept TO somebody; GRANT CREATE ON SCHEMA s TO somebody;
         CREATE FUNCTION s.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER theirs BEFORE INSERT ON s.kept FOR EACH ROW EXECUTE FUNCTION s.nothing();
         ALTER FOREIGN TABLE s.kept OWNER TO somebody",
    )
    .await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let (state, theirs) = (query(&hub.url, STATE).await, query(&hub.url, THEIRS).await);
    assert_eq!(theirs.len(), 7, "{theirs:?}");
    let altered = "SELECT count(*) FROM spcd.connection_event WHERE status = 'updating'";
    let mut times: i32 = value(&hub.url, altered).await.parse().unwrap();
    let password = if role::ordinary().is_some() {
        "ALTER USER MAPPING FOR PUBLIC SERVER s OPTIONS (DROP password)"
    } else {
        "ALTER USER MAPPING FOR PUBLIC SERVER s OPTIONS (ADD password 'x')"
    };
    for sql in [
        "DROP FOREIGN TABLE s.u",
        "DROP FOREIGN TABLE s.t, s.u",
        "ALTER FOREIGN TABLE s.t DROP COLUMN b",
        "ALTER FOREIGN TABLE s.t ADD COLUMN extra integer",
        "ALTER FOREIGN TABLE s.t ALTER COLUMN b TYPE varchar(3)",
        "ALTER FOREIGN TABLE s.t RENAME COLUMN b TO c",
        "ALTER FOREIGN TABLE s.t ALTER COLUMN a SET NOT NULL, ALTER COLUMN b SET DEFAULT 'x'",
        "ALTER FOREIGN TABLE s.t OPTIONS (SET table_name 'u')",
        "ALTER FOREIGN TABLE s.t OPTIONS (ADD batch_size '1', DROP schema_name)",
        "ALTER FOREIGN TABLE s.t ALTER COLUMN a OPTIONS (ADD column_name 'b')",
        "ALTER FOREIGN TABLE s.kept ADD COLUMN extra integer",
        "ALTER SERVER s OPTIONS (SET port '1')",
        "ALTER SERVER s OPTIONS (ADD batch_size '7', DROP dbname)",
        "DROP USER MAPPING FOR PUBLIC SERVER s",
        "ALTER USER MAPPING FOR PUBLIC SERVER s OPTIONS (SET user 'nobody')",
        password,
        "REVOKE SELECT ON s.t FROM spcd_users",
        "REVOKE USAGE ON SCHEMA s FROM spcd_users",
        "REVOKE SELECT ON ALL TABLES IN SCHEMA s FROM spcd_users",
    ] {
        query(&hub.url, sql).await;
        let done = spcd.spcd(&["wait"]);
        assert_eq!(done.code, 0, "{sql}: {done:?}");
        assert_eq!(query(&hub.url, STATE).await, state, "{sql}");
        assert_eq!(query(&hub.url, THEIRS).await, theirs, "{sql}");
        assert_eq!(value(&hub.url, "SELECT b FROM s.t").await, "one", "{sql}");
        let now: i32 = value(&hub.url, altered).await.parse().unwrap();
        assert_eq!(now, times + 1, "{sql}: it is mended once, and that is told");
        times = now;
        until(&hub.url, &["s ready"]).await;
    }
    assert_eq!(spcd.spcd(&["plan"]).stdout, "nothing to do\n");

    // What hangs on it stands in the way of mending too, and that is told.
    query(
        &hub.url,
        "ALTER FOREIGN TABLE s.t ADD COLUMN extra integer; CREATE VIEW s.upon AS SELECT extra FROM s.t",
    )
    .await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let warnings = "SELECT array_to_string(warnings, '|') FROM spcd.connection_state";
    assert_eq!(
        value(&hub.url, warnings).await,
        "table \"t\" stays as it was: dropping column extra would break or lose view s.upon"
    );
    query(&hub.url, "DROP VIEW s.upon").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(query(&hub.url, STATE).await, state);
    assert_eq!(value(&hub.url, warnings).await, "");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_moved_renamed_or_replaced_by_hand_is_made_again_beside_it() {
    let cluster = Cluster::start(&[]);
    let (hub, source) = (cluster.database().await, source().await);
    query(&hub.url, "CREATE ROLE spcd_users").await;
    let mut spcd = serving(&hub, &source, &["s"]).await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    let state = query(&hub.url, STATE).await;
    // What is moved away is people's from then on: it is still there, and read.
    for (sql, moved, clean) in [
        (
            "ALTER FOREIGN TABLE s.t RENAME TO other",
            "s.other",
            "DROP FOREIGN TABLE s.other",
        ),
        (
            "ALTER FOREIGN TABLE s.t SET SCHEMA public",
            "public.t",
            "DROP FOREIGN TABLE public.t",
        ),
        (
            "ALTER SCHEMA s RENAME TO elsewhere",
            "elsewhere.t",
            "DROP SCHEMA elsewhere CASCADE",
        ),
        ("DROP SCHEMA s CASCADE", "s.t", ""),
        ("DROP SERVER s CASCADE", "s.t", ""),
        ("DROP SCHEMA s CASCADE; DROP SERVER s CASCADE", "s.t", ""),
    ] {
        query(&hub.url, sql).await;
        let done = spcd.spcd(&["wait"]);
        assert_eq!(done.code, 0, "{sql}: {done:?}");
        let read = value(&hub.url, &format!("SELECT b FROM {moved}")).await;
        assert_eq!(read, "one", "{sql}");
        query(&hub.url, clean).await;
        assert_eq!(spcd.spcd(&["wait"]).code, 0, "{clean}");
        assert_eq!(query(&hub.url, STATE).await, state, "{sql}");
    }

    // The tables go on being read by the server that was given another name; that they are not the
    // ones that were made is told.
    let warnings = "SELECT array_to_string(warnings, '|') FROM spcd.connection_state";
    query(&hub.url, "ALTER SERVER s RENAME TO other").await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(
        value(&hub.url, warnings).await,
        ["kept", "t", "u"]
            .map(|table| format!(
                "table {table:?} is left out: something else in the schema has its name"
            ))
            .join("|")
    );
    assert_eq!(value(&hub.url, "SELECT b FROM s.t").await, "one");
    query(&hub.url, "DROP SERVER other CASCADE").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(query(&hub.url, STATE).await, state);

    // In the place of a table, of the server, of the schema: it stays, and the connection says so.
    query(
        &hub.url,
        "DROP FOREIGN TABLE s.t; CREATE TABLE s.t (theirs integer); INSERT INTO s.t VALUES (9)",
    )
    .await;
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(
        value(&hub.url, warnings).await,
        "table \"t\" is left out: something else in the schema has its name"
    );
    assert_eq!(value(&hub.url, "SELECT theirs FROM s.t").await, "9");
    query(&hub.url, "DROP TABLE s.t").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(query(&hub.url, STATE).await, state);
    assert_eq!(value(&hub.url, warnings).await, "");
    for (make, of, clean) in [
        (
            "DROP SCHEMA s CASCADE; CREATE SCHEMA s; CREATE TABLE s.t (theirs integer)",
            "a schema named \"s\" exists that spcd did not create",
            "DROP SCHEMA s CASCADE",
        ),
        (
            "DROP SERVER s CASCADE; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'theirs')",
            "a server named \"s\" exists that spcd did not create",
            "DROP SERVER s",
        ),
    ] {
        query(&hub.url, make).await;
        let done = spcd.spcd(&["wait", "s"]);
        assert_eq!(done.code, 1, "{make}: {done:?}");
        let error = value(&hub.url, "SELECT error FROM spcd.connection_state").await;
        assert!(error.starts_with(of), "{make}: {error}");
        query(&hub.url, clean).await;
        assert_eq!(spcd.spcd(&["wait", "s"]).code, 0, "{make}");
        assert_eq!(query(&hub.url, STATE).await, state, "{make}");
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_rebuilt_before_its_attribute_numbers_run_out() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE t (a integer); CREATE TABLE u (a integer); INSERT INTO t VALUES (1)",
    )
    .await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    // As years of refreshes leave it: columns that came and went.
    query(
        &hub.url,
        "DO $$ DECLARE t text; BEGIN
            FOREACH t IN ARRAY ARRAY['t', 'u'] LOOP
                FOR n IN 1 .. 13 LOOP
                    EXECUTE (SELECT format('ALTER FOREIGN TABLE a.%I ', t)
                                 || string_agg(format('ADD COLUMN x%s integer', i), ', ')
                             FROM generate_series(1, 123) i);
                    EXECUTE (SELECT format('ALTER FOREIGN TABLE a.%I ', t)
                                 || string_agg(format('DROP COLUMN x%s', i), ', ')
                             FROM generate_series(1, 123) i);
                END LOOP;
            END LOOP;
         END $$; CREATE VIEW upon AS SELECT a FROM a.u",
    )
    .await;
    let used = "SELECT string_agg(relname || ' ' || relnatts, ', ' ORDER BY relname) FROM pg_class
                WHERE relnamespace = 'a'::regnamespace";
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    assert_eq!(value(&hub.url, used).await, "t 1600, u 1600");

    query(
        &source.url,
        "ALTER TABLE t ADD COLUMN b integer DEFAULT 2; ALTER TABLE u ADD COLUMN b integer DEFAULT 2",
    )
    .await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    until(&hub.url, &["a ready"]).await;
    assert_eq!(columns(&hub.url, "a.t").await, ["a integer", "b integer"]);
    assert_eq!(value(&hub.url, "SELECT b FROM a.t").await, "2");
    // A view that a rebuilding would break keeps its table as it was.
    assert_eq!(value(&hub.url, used).await, "t 2, u 1600");
    assert_eq!(
        value(
            &hub.url,
            "SELECT array_to_string(warnings, '|') FROM spcd.connection_state"
        )
        .await,
        "table \"u\" stays as it was: rebuilding it would break or lose view public.upon"
    );
    query(&hub.url, "DROP VIEW upon").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    assert_eq!(value(&hub.url, used).await, "t 2, u 2");
    assert_eq!(
        value(&hub.url, "SELECT warnings FROM spcd.connection_state").await,
        "{}"
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_too_big_for_the_lock_table_is_made_in_parts() {
    let cluster = Cluster::start(&["max_locks_per_transaction = 10", "max_connections = 20"]);
    let (hub, source) = (cluster.database().await, shared().database().await);
    let small = shared().database().await;
    query(
        &small.url,
        "CREATE TABLE t (id integer); INSERT INTO t VALUES (1)",
    )
    .await;
    for part in 0..30 {
        let make = format!(
            "DO $$ BEGIN FOR n IN 1 .. 200 LOOP
                EXECUTE format('CREATE TABLE t%s (id integer)', {part} * 200 + n); END LOOP; END $$"
        );
        query(&source.url, &make).await;
    }
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &small));
    spcd.write("big.spc", &postgres("big", &source));
    spcd.start();
    until(&hub.url, &["a ready", "big ready"]).await;
    let there = "SELECT count(*) FROM pg_class WHERE relnamespace = 'big'::regnamespace";
    assert_eq!(value(&hub.url, there).await, "6000");
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "1");
    // At no time was the table full for others.
    let log = cluster.log();
    assert!(!log.contains("out of shared memory"), "{log}");
    assert_eq!(spcd.spcd(&["plan"]).stdout, "nothing to do\n");

    // Dropped in parts, too.
    spcd.remove("big.spc");
    until(&hub.url, &["a ready"]).await;
    let schema = "SELECT count(*) FROM pg_namespace WHERE nspname = 'big'";
    assert_eq!(value(&hub.url, schema).await, "0");
    spcd.stop();
}
