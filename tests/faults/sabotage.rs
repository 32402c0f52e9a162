//! Each promise is broken by hand once, and the check of it says so.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::aftermath::illegal;
use super::model::SECRET;
use super::people::Thing;
use super::schedule::{Schedule, ThingKind};
use super::servers::Servers;
use super::sql_session::must;
use super::world::World;
use crate::support::{DEADLINE, connect, eventually};

/// Breaks something in the hub, and expects this to be said.
const DIFFERENCES: [(&str, &str, &str); 9] = [
    (
        "DROP VIEW people.v0",
        "CREATE VIEW people.v0 AS SELECT id FROM m0.t",
        "it is gone",
    ),
    (
        "REVOKE SELECT ON m0.t FROM guest1",
        "GRANT SELECT ON m0.t TO guest1",
        "it is gone",
    ),
    (
        "COMMENT ON FOREIGN TABLE m0.t IS NULL",
        "COMMENT ON FOREIGN TABLE m0.t IS 'of people, 2'",
        "it is gone",
    ),
    (
        "DROP TABLE m0.mine3",
        "CREATE TABLE m0.mine3 (id integer)",
        "it is gone",
    ),
    (
        "ALTER SERVER their_server OPTIONS (SET host 'other')",
        "ALTER SERVER their_server OPTIONS (SET host 'nowhere')",
        "theirs is",
    ),
    (
        "INSERT INTO theirs.t VALUES (2)",
        "DELETE FROM theirs.t WHERE id = 2",
        "theirs is",
    ),
    (
        "UPDATE spcd.connection_state SET status = 'updating' WHERE connection_name = 'm1'",
        "UPDATE spcd.connection_state SET status = 'ready' WHERE connection_name = 'm1'",
        "\"m1\": is Some((\"updating\"",
    ),
    (
        "ALTER FOREIGN TABLE m1.t ADD by_hand integer",
        "ALTER FOREIGN TABLE m1.t DROP by_hand",
        "\"m1\": has [",
    ),
    (
        "SELECT spcd.refresh('{m0}')",
        "UPDATE spcd.refresh_request SET done_at = now()",
        "requests without an answer",
    ),
];

/// A world in which everything is made, and whose daemon does nothing more.
async fn frozen() -> World {
    let mut schedule = Schedule::of(0);
    schedule.has_gateway = false;
    schedule.steps.clear();
    let mut world = World::new(schedule, Arc::new(Servers::start().await)).await;
    world.begin().await;
    eventually("everything is made", DEADLINE, || async {
        world
            .difference()
            .await
            .is_ok_and(|found| found.is_none())
            .then_some(())
    })
    .await;
    let kinds = [
        ThingKind::View,
        ThingKind::Grant,
        ThingKind::Comment,
        ThingKind::Table,
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        let thing = Thing::new(kind, "m0", n);
        must(&world.hub, &thing.make()).await;
        world.model.things.push(thing);
    }
    world.spcd.lock().await.signal(Signal::SIGSTOP);
    assert_eq!(world.difference().await, Ok(None));
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn whatever_is_not_as_it_has_to_be_is_noticed() {
    let mut world = frozen().await;
    let hub = world.hub.clone();
    for (damage, mend, expected) in DIFFERENCES {
        must(&hub, damage).await;
        let found = world.difference().await.unwrap().unwrap_or_default();
        assert!(found.contains(expected), "{damage}: {found:?}");
        must(&hub, mend).await;
    }
    must(&world.sources[0], "UPDATE t SET id = 7").await;
    let found = world.difference().await.unwrap().unwrap_or_default();
    assert!(found.contains("shows"), "{found:?}");
    must(&world.sources[0], "UPDATE t SET id = 0").await;
    assert_eq!(world.difference().await, Ok(None));

    assert_eq!(
        (world.check_watch(), world.check_events().await),
        (Ok(()), Ok(()))
    );
    must(&hub, "REVOKE SELECT ON m1.t FROM spcd_users").await;
    complains(&world, "\"m1\" was ready without table t").await;
    must(&hub, "DROP FOREIGN TABLE \"m 2\".t CASCADE").await;
    complains(&world, "\"m 2\" was ready without table t").await;
    complains(&world, "\"all\" was ready without table t").await;
    must(&hub, "REVOKE USAGE ON SCHEMA files FROM spcd_users").await;
    complains(&world, "\"files\" was ready without USAGE").await;
    must(&hub, "NOTIFY connection_state, 'what?'").await;
    complains(&world, "no notification: what?").await;

    must(
        &hub,
        "INSERT INTO spcd.connection_event (connection_name, previous, status, generation)
         VALUES ('m0', 'ready', 'updating', 1)",
    )
    .await;
    let events = must(&hub, "SELECT id FROM spcd.connection_event ORDER BY 1")
        .await
        .concat();
    let events: Vec<i64> = events.iter().map(|id| id.parse().unwrap()).collect();
    let unheard = world.watch.unheard(&events).unwrap_or_default();
    assert!(unheard.contains("was not announced"), "{unheard}");

    world
        .waiters
        .spawn(async { ("wait".to_owned(), Err("did not return".to_owned())) });
    assert_eq!(
        world.check_waiters().await,
        Err("wait: did not return".to_owned())
    );

    for (damage, mend, expected) in [
        (
            "CREATE SCHEMA spcd_ask",
            "DROP SCHEMA spcd_ask",
            "the schema \"spcd_ask\" is left",
        ),
        (
            "CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw",
            "DROP SERVER other",
            "the server \"other\" is left",
        ),
    ] {
        must(&hub, damage).await;
        assert_eq!(world.check_objects().await, Err(expected.to_owned()));
        must(&hub, mend).await;
    }
    assert_eq!(world.check_objects().await, Ok(()));

    world.spcd.lock().await.signal(Signal::SIGCONT);
    world.spcd.lock().await.stop();
    assert_eq!(world.check_sessions().await, Ok(()));
    world.leftover_limit = Duration::ZERO;
    let session = connect(&hub).await.unwrap();
    session
        .batch_execute("SET application_name = 'spcd ask'")
        .await
        .unwrap();
    let left = world.check_sessions().await.unwrap_err();
    assert!(left.contains("sessions are left"), "{left}");
    drop(session);

    assert_eq!(world.check_secrets().await, Ok(()));
    let told = format!("UPDATE spcd.connection_state SET warnings = ARRAY['{SECRET}']");
    must(&hub, &told).await;
    let found = world.check_secrets().await.unwrap_err();
    assert!(found.contains("spcd's tables"), "{found}");
    let logged = format!("DO $$ BEGIN RAISE LOG '{SECRET}'; END $$");
    must(&hub, &logged).await;
    let found = world.check_secrets().await.unwrap_err();
    assert!(found.contains("the hub's log"), "{found}");
}

async fn complains(world: &World, expected: &str) {
    eventually(expected, DEADLINE, || async {
        let complaint = world.watch.complaint().unwrap_or_default();
        complaint.contains(expected).then_some(())
    })
    .await;
}

/// Events from `name previous status`; an empty line is a resync.
fn events(lines: &[&str]) -> Vec<Vec<String>> {
    let event = |line: &&str| {
        let mut row = vec!["1".to_owned()];
        let words: Vec<&str> = line.split(' ').collect();
        let (name, health) = (words[0], words.get(3).copied().unwrap_or_default());
        let (previous, status) = match words.get(1..3) {
            Some(words) => (words[0], words[1]),
            None => ("", "resync"),
        };
        row.extend([name, previous, status, health].map(str::to_owned));
        row.iter().map(|word| word.replace("new", "")).collect()
    };
    lines.iter().map(event).collect()
}

#[test]
fn transitions_that_are_not_permitted_are_noticed() {
    let legal: [&[&str]; 4] = [
        &[
            "a new pending",
            "a pending updating",
            "a updating ready",
            "a ready ready lost",
        ],
        // A restart gives the row back without an event, or does not.
        &[
            "a new pending",
            "a pending ready",
            "",
            "a ready updating",
            "a updating ready",
        ],
        &["a new pending", "a pending ready", "", "a pending ready"],
        &[
            "a new disabled",
            "",
            "a disabled deleting",
            "a deleting deleted",
            "a new error",
        ],
    ];
    for lines in legal {
        assert_eq!(illegal(&events(lines)), None, "{lines:?}");
    }
    let others: [&[&str]; 7] = [
        &["a new ready"],
        &["a new pending", "a pending ready", "a ready error"],
        &["a new pending", "a updating ready"],
        &[
            "a new pending",
            "a pending ready",
            "a updating updating lost",
        ],
        &["a new pending", "a pending ready", "a ready deleted"],
        &["a new disabled", "", "a pending ready"],
        &["a new pending", "a pending ready", "a ready pending"],
    ];
    for lines in others {
        assert_ne!(illegal(&events(lines)), None, "{lines:?}");
    }
}
