//! Reloads of the service under use: views, grants and clients that wait.

use super::mirroring;
use super::service::{Service, tables};
use crate::support::hub::until;
use crate::support::{DEADLINE, connect, eventually, query, value};

/// A small generator, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Reloads connections at random, and checks after each what users rely on.
async fn reload(times: u64, seed: u64) {
    let service = Service::start().await;
    for name in NAMES {
        service.load(name, &tables(name)).await;
    }
    let (hub, _spcd) = mirroring(&service, "").await;
    let ready = NAMES.map(|name| format!("{name} ready"));
    let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
    until(&hub.url, &ready).await;
    let role = format!("r_{}_{seed}", hub.name);
    query(&hub.url, &format!("CREATE ROLE {role}")).await;
    for name in NAMES {
        let sql = format!(
            "CREATE VIEW public.v_{name} AS SELECT id, title FROM {name}.account;
             GRANT SELECT ON {name}.bucket TO {role}"
        );
        query(&hub.url, &sql).await;
    }
    let waiter = connect(&hub.url).await.unwrap();
    let mut random = Random(seed);
    for _ in 0..times {
        let name = NAMES[random.below(4) as usize];
        let more = match random.below(3) {
            0 => String::new(),
            1 => "; ALTER TABLE bucket ADD region text".to_owned(),
            _ => format!("; CREATE TABLE t{} (id int)", random.below(3)),
        };
        let statements = tables(name) + &more;
        match random.below(4) {
            // Killed in the midst of it, and again.
            0 => {
                service.list(name, "pending", "").await;
                service.drop_schema(name).await;
                service.announce().await;
                tokio::task::yield_now().await;
                service.load(name, &statements).await;
            }
            // All are pending, as after a start of the service.
            1 => {
                for other in NAMES {
                    service.list(other, "pending", "").await;
                }
                service.announce().await;
                service.load(name, &statements).await;
                for other in NAMES {
                    service.list(other, "ready", "").await;
                }
                service.announce().await;
            }
            _ => service.load(name, &statements).await,
        }
        // A client waits, and then finds what it waited for.
        let wait = format!("SELECT status FROM spcd.wait_until_ready('{{{name}}}')");
        let row = waiter.query_one(&wait, &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "ready");
        for name in NAMES {
            let account = format!("SELECT to_regclass('{name}.account') IS NOT NULL");
            assert_eq!(value(&hub.url, &account).await, "t", "{name}");
            let title = format!("SELECT title FROM public.v_{name}");
            assert_eq!(value(&hub.url, &title).await, name);
            let granted =
                format!("SELECT has_table_privilege('{role}', '{name}.bucket', 'SELECT')");
            assert_eq!(value(&hub.url, &granted).await, "t", "{name}");
        }
    }
    until(&hub.url, &ready).await;
    for name in NAMES {
        let here = format!(
            "SELECT string_agg(format('%s.%s', relname, attname), ' ' ORDER BY relname, attnum)
             FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
             WHERE relnamespace = '{name}'::regnamespace AND attnum > 0 AND NOT attisdropped
               AND relkind IN ('r', 'f')"
        );
        let there = value(&service.url, &here).await;
        eventually("the tables are those of the service", DEADLINE, || async {
            (value(&hub.url, &here).await == there).then_some(())
        })
        .await;
    }
    query(&hub.url, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_lose_nothing_that_users_built() {
    reload(25, 0x5eed).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: 200 reloads"]
async fn two_hundred_reloads_lose_nothing_that_users_built() {
    reload(200, 0xfeed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_found_at_work_takes_nothing_away() {
    let service = Service::start().await;
    service.load("a", &tables("a")).await;
    query(
        &service.url,
        "ALTER ROLE steampipe SET log_statement = 'all'",
    )
    .await;
    let (hub, spcd) = mirroring(&service, "").await;
    until(&hub.url, &["a ready"]).await;
    let oid = "SELECT 'a.bucket'::regclass::oid";
    let before = value(&hub.url, oid).await;
    let questions = || service.server.log().matches("attnotnull").count();
    let asked = questions();
    // Nothing announces that the service begins to make the tables again.
    service.list("a", "updating", "").await;
    query(&service.url, "DROP TABLE a.bucket").await;
    query(&hub.url, "ALTER FOREIGN TABLE a.account DROP COLUMN title").await;
    let off = "connection \"off\" {\n  plugin = \"postgres\"\n  import_schema = \"disabled\"\n}\n";
    spcd.write("off.spc", off);
    eventually("the source is asked", DEADLINE, || async {
        (questions() > asked).then_some(())
    })
    .await;
    service.load("a", &tables("a")).await;
    until(&hub.url, &["a ready", "off disabled"]).await;
    let columns = crate::support::hub::columns(&hub.url, "a.account").await;
    assert_eq!(columns, ["id integer", "title text"]);
    assert_eq!(value(&hub.url, oid).await, before);
}
