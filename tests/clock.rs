//! The clock of the machine jumps: nothing is lost, nothing waits for the time to come back.

use crate::support::clock::Clock;
use crate::support::hub::{made_by, postgres, until};
use crate::support::{Cluster, DEADLINE, Spcd, connect, eventually, query, value};

/// Number of requests of a reader in a minute.
const REQUESTS: usize = 60;

const LEADER: &str = "SELECT leader FROM spcd.daemon";

/// Requests a refresh as a reader, and waits for the answer.
async fn refresh(reader: &str, hub: &str) -> Result<(), tokio_postgres::Error> {
    let session = connect(reader).await?;
    let row = session.query_one("SELECT spcd.refresh('{a}')", &[]).await?;
    let id: i64 = row.get(0);
    let answered = format!(
        "SELECT count(*) FROM spcd.refresh_request WHERE id = {id} AND done_at IS NOT NULL"
    );
    eventually("the request is answered", DEADLINE, || async {
        (value(hub, &answered).await == "1").then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_does_no_harm() {
    let Some(clock) = Clock::new() else { return };
    let server = Cluster::with_env(&clock.env(), &[]);
    let hub = server.database().await;
    let roles = "CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users";
    query(&hub.url, roles).await;
    let reader = server.url_as("reader", &hub.name);
    let source = made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (1)").await;
    let mut first = Spcd::new(&hub.url);
    for (name, value) in clock.env() {
        first.env(name, &value);
    }
    first.write("a.spc", &postgres("a", &source));
    first.start();
    until(&hub.url, &["a ready"]).await;
    let mut second = Spcd::beside(&first);
    for (name, value) in clock.env() {
        second.env(name, &value);
    }
    second.start();
    second.logged("another daemon leads");

    let mut ready = vec!["a ready".to_owned()];
    for (number, offset) in ["+2h", "-1d", "+3d"].into_iter().enumerate() {
        // What was requested within a minute of the old time is of no concern afterwards.
        let session = connect(&reader).await.unwrap();
        let mut requested = 0;
        while requested < REQUESTS
            && session
                .execute("SELECT spcd.refresh('{a}')", &[])
                .await
                .is_ok()
        {
            requested += 1;
            let open = "SELECT count(*) FROM spcd.refresh_request WHERE done_at IS NULL";
            eventually("few requests are open", DEADLINE, || async {
                (value(&hub.url, open).await.parse::<usize>().unwrap() < 20).then_some(())
            })
            .await;
        }
        assert!(requested > 0, "no request before the jump by {offset}");
        let before = value(&hub.url, "SELECT extract(epoch FROM clock_timestamp())").await;
        clock.jump(offset);
        let after = value(&hub.url, "SELECT extract(epoch FROM clock_timestamp())").await;
        let jumped = after.parse::<f64>().unwrap() - before.parse::<f64>().unwrap();
        assert!(jumped.abs() > 3600.0, "the clock did not jump: {jumped} s");

        // A file, a request, a change of the source and damage by hand are followed.
        let name = format!("b{number}");
        first.write(&format!("{name}.spc"), &postgres(&name, &source));
        ready.push(format!("{name} ready"));
        let wanted: Vec<&str> = ready.iter().map(String::as_str).collect();
        until(&hub.url, &wanted).await;
        refresh(&reader, &hub.url).await.unwrap();
        query(&source.url, &format!("CREATE TABLE t{number} (id integer)")).await;
        query(&hub.url, "DROP FOREIGN TABLE a.t").await;
        refresh(&reader, &hub.url).await.unwrap();
        let tables = "SELECT count(*) FROM pg_foreign_table f JOIN pg_class c ON c.oid = f.ftrelid
                      WHERE c.relnamespace = 'a'::regnamespace";
        let count = (number + 2).to_string();
        eventually("the tables of the source are there", DEADLINE, || async {
            (value(&hub.url, tables).await == count).then_some(())
        })
        .await;
        let waited = first.spcd(&["wait", &name]);
        assert_eq!(waited.code, 0, "{}", waited.stderr);
        let negative = "SELECT count(*) FROM spcd.connection_event WHERE duration < interval '0'";
        assert_eq!(value(&hub.url, negative).await, "0");
        let day = value(&hub.url, "SELECT to_char(clock_timestamp(), 'YYYY-MM-DD')").await;
        let log = [first.log(), second.log()].concat();
        assert!(
            log.contains(&day),
            "the daemons' clock did not jump to {day}"
        );

        // The other daemon takes over when the one that leads hangs up.
        let before = value(&hub.url, LEADER).await;
        first.kill9();
        eventually("the other daemon leads", DEADLINE, || async {
            let leader = value(&hub.url, LEADER).await;
            (!leader.is_empty() && leader != before).then_some(())
        })
        .await;
        until(&hub.url, &wanted).await;
        std::mem::swap(&mut first, &mut second);
        second.start();
    }
    first.stop();
    second.stop();
}
