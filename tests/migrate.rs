//! spcd's own schema is brought up to date from wherever it is, also by two at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::support::hub::{postgres, until};
use crate::support::{
    DEADLINE, Database, Spcd, eventually, eventually_now, finish, query, role, shared, value,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Paths below a directory of the project, in order.
fn listed(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(directory)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    files
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Which were applied.
const APPLIED: &str =
    "SELECT string_agg(number || ' ' || name, ', ' ORDER BY number) FROM spcd.migration";

/// The files of migrations/ as a database lists them.
fn all() -> String {
    let name = |path: &PathBuf| {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let (number, name) = stem.split_once('_').unwrap();
        format!("{} {name}", number.parse::<u32>().unwrap())
    };
    let names: Vec<String> = listed("migrations").iter().map(name).collect();
    names.join(", ")
}

#[test]
fn a_migration_that_was_released_does_not_change() {
    let released = fs::read_to_string(root().join("tests/migrations/SHA256SUMS")).unwrap();
    let now: String = (listed("migrations").iter())
        .map(|path| {
            format!(
                "{}  {}\n",
                sha256(path),
                path.file_name().unwrap().to_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        now, released,
        "a released migration never changes: write a new one, and add its line to SHA256SUMS"
    );
}

/// Stands for the config directory in a dump.
const CONFIG_DIR: &str = "/CONFIG_DIR";

/// Two daemons start at once on a database; one of them brings the schema up to date and leads.
async fn brought_up_to_date_by_two(hub: &Database, dump: Option<&Path>) {
    let source = shared().database().await;
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let first = Spcd::new(&hub.url);
    first.write("one.spc", &postgres("one", &source));
    let second = Spcd::beside(&first);
    let events = "SELECT count(*) FROM spcd.connection_event WHERE connection_name = 'one'";
    let mut kept = 0;
    if let Some(dump) = dump {
        let text = fs::read_to_string(dump).unwrap();
        let config_dir = first.config_dir();
        let text = text.replace(CONFIG_DIR, config_dir.to_str().unwrap());
        // Only an extension's owner may comment on it.
        let text = text.replace("COMMENT ON EXTENSION", "-- COMMENT ON EXTENSION");
        query(&role::for_daemon(&hub.url), &text).await;
        kept = value(&hub.url, events).await.parse().unwrap();
        assert!(kept > 1, "{kept}");
    }
    let mut daemons = [first, second];
    for spcd in &mut daemons {
        spcd.start();
    }
    // The dump's connection was ready: now it has another source.
    eventually("it is updated", DEADLINE, || async {
        let made = value(
            &hub.url,
            "SELECT count(*) FROM pg_namespace WHERE nspname = 'spcd'",
        )
        .await;
        if made == "0" {
            return None;
        }
        (value(&hub.url, events).await.parse::<u32>().unwrap() > kept).then_some(())
    })
    .await;
    until(&hub.url, &["one ready"]).await;
    // One leads, and the other has seen that and waits.
    eventually_now("one leads and one waits", || {
        let logs = daemons.each_ref().map(Spcd::log);
        let says = |text: &str| logs.iter().filter(|log| log.contains(text)).count();
        (says("this daemon leads") == 1 && says("waiting to take over") == 1).then_some(())
    });
    assert_eq!(value(&hub.url, APPLIED).await, all(), "from {dump:?}");
    query(&hub.url, "SELECT id FROM one.t").await;
    for spcd in &mut daemons {
        spcd.stop();
    }
}

#[tokio::test]
async fn two_daemons_at_once_go_on_from_every_earlier_number() {
    brought_up_to_date_by_two(&shared().database().await, None).await;
    let dumps = listed("tests/migrations");
    assert_eq!(
        dumps.len(),
        listed("migrations").len(),
        "one dump for each migration"
    );
    for dump in dumps {
        brought_up_to_date_by_two(&shared().database().await, Some(&dump)).await;
    }
}

/// A database as the newest migration leaves it, for the upgrade tests of later ones: a connection
/// that is ready, its events, and a request.
#[tokio::test]
#[ignore = "writes the dump of a new migration"]
async fn dump() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(&source.url, "CREATE TABLE t (id integer)").await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("one.spc", &postgres("one", &source));
    spcd.start();
    until(&hub.url, &["one ready"]).await;
    assert_eq!(spcd.spcd(&["refresh", "one", "--wait"]).code, 0);
    spcd.stop();
    let dumped = Command::new("pg_dump")
        .args(["--no-owner", "--no-acl", "--inserts", &hub.url])
        .output()
        .unwrap();
    assert!(dumped.status.success(), "{dumped:?}");
    let text = String::from_utf8(dumped.stdout).unwrap();
    // What only psql understands, what names this machine, and what hides the schema public.
    let kept =
        |line: &&str| !line.starts_with(['\\', '-']) && !line.contains("set_config('search_path'");
    let lines: Vec<&str> = text
        .lines()
        .filter(kept)
        .filter(|line| !line.is_empty())
        .collect();
    let config_dir = spcd.config_dir();
    let text = lines
        .join("\n")
        .replace(config_dir.to_str().unwrap(), CONFIG_DIR)
        + "\n";
    let number = listed("migrations").len();
    let path = root().join(format!("tests/migrations/{number:04}.sql"));
    fs::write(path, text).unwrap();
}

#[tokio::test]
async fn changed_texts_are_refused_and_changed_functions_made_again() {
    let hub = shared().database().await;
    let spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    let functions = "SELECT prosrc FROM pg_proc WHERE oid = 'spcd.shortened(text)'::regprocedure";
    let made = value(&hub.url, functions).await;
    let stale = "CREATE OR REPLACE FUNCTION spcd.shortened(p_text text) RETURNS text
                 LANGUAGE sql IMMUTABLE AS 'SELECT NULL::text';
                 UPDATE spcd.repeatable_script SET sha256 = 'another'";
    query(&hub.url, stale).await;
    // Made by a later version, which may run beside this one: they stay.
    query(
        &hub.url,
        "UPDATE spcd.repeatable_script SET revision = revision + 1",
    )
    .await;
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    assert_ne!(value(&hub.url, functions).await, made);
    // Made by an earlier one.
    query(&hub.url, "UPDATE spcd.repeatable_script SET revision = 0").await;
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    assert_eq!(value(&hub.url, functions).await, made);

    query(&hub.url, "UPDATE spcd.migration SET sha256 = 'another'").await;
    for command in ["migrate", "apply"] {
        let refused = spcd.spcd(&[command]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("with another text"), "{refused:?}");
    }
}

#[tokio::test]
async fn every_column_that_clients_read_has_a_comment() {
    let hub = shared().database().await;
    assert_eq!(Spcd::new(&hub.url).spcd(&["migrate"]).code, 0);
    let bare = "SELECT c.relname || '.' || a.attname FROM pg_class c
                JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
                WHERE c.relnamespace = 'spcd'::regnamespace AND c.relkind = 'r'
                  AND col_description(c.oid, a.attnum) IS NULL";
    assert_eq!(query(&hub.url, bare).await.concat(), [""; 0]);
}

#[tokio::test]
async fn a_schema_of_a_later_version_is_left_alone() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    let applied = value(&hub.url, APPLIED).await;
    query(
        &hub.url,
        "INSERT INTO spcd.migration (number, name, sha256) VALUES (9999, 'later', '')",
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
async fn a_schema_of_another_owner_is_not_changed() {
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
    eventually("a daemon waits", DEADLINE, || async {
        (value(&hub.url, sessions).await == "1").then_some(())
    })
    .await;
    spcd.start();
    let waited = waiter.join().unwrap();
    assert_eq!(waited.code, 0, "{waited:?}");
    query(&hub.url, "SELECT * FROM one.t").await;
    spcd.stop();
}
