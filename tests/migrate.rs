//! spcd's own schema is brought up to date from wherever it is, also by two at once.

use std::fs;
use std::path::Path;

use crate::support::hub::{postgres, until};
use crate::support::{DEADLINE, Spcd, eventually, eventually_now, finish, query, shared, value};

/// The files, in order: number, name, text.
fn migrations() -> Vec<(usize, String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let (number, name) = stem.split_once('_').unwrap();
        (
            number.parse().unwrap(),
            name.to_owned(),
            fs::read_to_string(path).unwrap(),
        )
    };
    files.iter().map(read).collect()
}

/// Which were applied, in the order in which they were.
const APPLIED: &str = "SELECT string_agg(number || ' ' || name, ', ' ORDER BY applied_at, number) FROM spcd.migration";

#[tokio::test]
async fn two_daemons_at_once_go_on_from_every_earlier_number() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let migrations = migrations();
    assert!(migrations.len() >= 3);
    let numbers: Vec<usize> = migrations.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=migrations.len()).collect::<Vec<_>>());
    let all: Vec<String> = (migrations.iter())
        .map(|(number, name, _)| format!("{number} {name}"))
        .collect();
    for before in 0..=migrations.len() {
        let hub = shared().database().await;
        for (number, name, text) in &migrations[..before] {
            let sql = format!(
                "BEGIN; {text}; INSERT INTO spcd.migration (number, name) VALUES ({number}, '{name}'); COMMIT"
            );
            query(&hub.url, &sql).await;
        }
        let first = Spcd::new(&hub.url);
        first.write("a.spc", &postgres("one", &source));
        let second = Spcd::beside(&first);
        let mut daemons = [first, second];
        for spcd in &mut daemons {
            spcd.start();
        }
        until(&hub.url, &["one ready"]).await;
        // One leads, and the other has seen that and waits.
        eventually_now("one leads and one waits", || {
            let logs = daemons.each_ref().map(Spcd::log);
            let says = |text: &str| logs.iter().filter(|log| log.contains(text)).count();
            (says("this daemon leads") == 1 && says("waiting to take over") == 1).then_some(())
        });
        assert_eq!(
            value(&hub.url, APPLIED).await,
            all.join(", "),
            "from {before}"
        );
        for spcd in &mut daemons {
            spcd.stop();
        }
    }
}

#[tokio::test]
async fn a_schema_of_a_later_version_is_left_alone() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    let applied = value(&hub.url, APPLIED).await;
    query(
        &hub.url,
        "INSERT INTO spcd.migration (number, name) VALUES (9999, 'later')",
    )
    .await;
    for command in ["migrate", "apply"] {
        let refused = spcd.spcd(&[command]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("by a later version"), "{refused:?}");
    }
    // A daemon cannot help it either, and says so rather than try for ever.
    spcd.start();
    assert_eq!(spcd.ended().code(), Some(1));
    assert_eq!(
        value(&hub.url, APPLIED).await,
        format!("{applied}, 9999 later")
    );
}

#[tokio::test]
async fn a_schema_of_somebody_elses_is_left_alone() {
    let hub = shared().database().await;
    query(
        &hub.url,
        "CREATE SCHEMA spcd; CREATE TABLE spcd.theirs (id integer)",
    )
    .await;
    let spcd = Spcd::new(&hub.url);
    let refused = spcd.spcd(&["migrate"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("rename or drop it"), "{refused:?}");
    query(&hub.url, "SELECT FROM spcd.theirs").await;
}

#[tokio::test]
async fn who_waits_may_come_before_the_daemon_has_made_its_schema() {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("one", &source));
    let alone = spcd.spcd(&["wait", "--timeout", "100ms"]);
    assert_eq!(alone.code, 3, "{alone:?}");
    assert!(alone.stderr.contains("start `spcd run`"), "{alone:?}");

    let waiting = spcd.command(&["wait", "one"]);
    let waiter = std::thread::spawn(|| finish(waiting));
    let sessions = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'spcd client'";
    eventually("somebody waits", DEADLINE, || async {
        (value(&hub.url, sessions).await == "1").then_some(())
    })
    .await;
    spcd.start();
    let waited = waiter.join().unwrap();
    assert_eq!(waited.code, 0, "{waited:?}");
    query(&hub.url, "SELECT * FROM one.t").await;
    spcd.stop();
}
