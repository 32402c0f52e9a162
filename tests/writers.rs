//! The number of sessions that write, as the setting fixes it.

use std::fs;

use crate::support::hub::{made_by, postgres};
use crate::support::{DEADLINE, Spcd, connect, eventually, shared, value};

/// Enough for several batches.
const CONNECTIONS: usize = 60;

const WRITERS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE application_name = 'spcd writer' AND datname = current_database()";
const READY: &str = "SELECT count(*) FROM spcd.connection_state WHERE status = 'ready'";

async fn until_there_are(url: &str, sql: &str, count: usize) {
    eventually(sql, DEADLINE, || async {
        (value(url, sql).await == count.to_string()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_sessions_write_as_the_setting_says() {
    let tables: String = (0..20)
        .map(|n| format!("CREATE TABLE t{n} (id integer);"))
        .collect();
    let source = made_by(&tables).await;
    for writers in [1, 4] {
        let hub = shared().database().await;
        let mut spcd = Spcd::new(&hub.url);
        let file = spcd.dir().join("spcd.hcl");
        fs::write(&file, format!("hub {{\n  writers = {writers}\n}}\n")).unwrap();
        let files: String = (0..CONNECTIONS)
            .map(|n| postgres(&format!("c{n:02}"), &source))
            .collect();
        spcd.write("all.spc", &files);
        spcd.start();
        let client = connect(&hub.url).await.unwrap();
        let mut most = 0;
        let ready = async {
            loop {
                let count: i64 = client.query_one(WRITERS, &[]).await.unwrap().get(0);
                most = count.max(most);
                let ready = client.query_one(READY, &[]).await;
                let ready = ready.map_or(0, |row| row.get::<_, i64>(0));
                if ready == i64::try_from(CONNECTIONS).unwrap() {
                    return;
                }
            }
        };
        let ready = tokio::time::timeout(DEADLINE, ready).await;
        assert!(ready.is_ok(), "not all connections are ready");
        assert!(most <= writers, "{most} sessions write, not {writers}");
        until_there_are(&hub.url, WRITERS, writers.try_into().unwrap()).await;
        assert_eq!(
            value(&hub.url, "SELECT count(*) FROM pg_foreign_table").await,
            (CONNECTIONS * 20).to_string()
        );

        // A running daemon follows the setting, and goes on writing.
        fs::write(&file, "hub {\n  writers = 3\n}\n").unwrap();
        until_there_are(&hub.url, WRITERS, 3).await;
        spcd.write("late.spc", &postgres("late", &source));
        until_there_are(&hub.url, READY, CONNECTIONS + 1).await;
        assert!(!spcd.log().contains("need a restart"), "{}", spcd.log());
        assert_eq!(spcd.spcd(&["plan"]).code, 0);
        spcd.stop();
    }
}
