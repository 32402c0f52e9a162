//! Many sources under a clock that the test steps.

use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{ProbeCapacity, ProbeScheduler, WatchedSource};
use crate::config::{SourceFile, load_plain};
use crate::health::{FailureKind, HealthChange, ProbeAnswer, ProbeFailure, ProbeSchedule};

const ALL: ProbeCapacity = ProbeCapacity {
    healthy: true,
    unreachable: true,
    retry: true,
    more_stuck: true,
};

fn watched(text: &str) -> Vec<WatchedSource> {
    let source = SourceFile {
        path: "a.spc".into(),
        text: Ok(text.into()),
    };
    let desired = load_plain(&[source]);
    let one = |connection: &Arc<_>| WatchedSource {
        connection: Arc::clone(connection),
        schedule: ProbeSchedule::default(),
    };
    desired.connections.values().map(one).collect()
}

fn sources(names: &[&str]) -> Vec<WatchedSource> {
    let block = |name: &&str| format!("connection \"{name}\" {{\n  plugin = \"postgres\"\n}}\n");
    watched(&names.iter().map(block).collect::<String>())
}

fn scheduler(names: &[&str]) -> ProbeScheduler {
    let mut probes = ProbeScheduler::default();
    probes.watch(sources(names), &BTreeSet::new(), 0, |_| 1_000);
    probes
}

fn there() -> ProbeAnswer {
    ProbeAnswer::Reachable(Duration::from_millis(3))
}

fn gone(kind: FailureKind) -> ProbeAnswer {
    ProbeAnswer::Failed(ProbeFailure {
        kind,
        text: "gone".into(),
    })
}

/// Asks the next one at once, whatever the time.
fn ask(probes: &mut ProbeScheduler, answer: ProbeAnswer) -> (String, u64, Option<HealthChange>) {
    ask_at(probes, 0, answer)
}

/// Asks the next one, not before this.
fn ask_at(
    probes: &mut ProbeScheduler,
    now: u64,
    answer: ProbeAnswer,
) -> (String, u64, Option<HealthChange>) {
    let now = probes.next(ALL).expect("one is due").max(now);
    let (number, watched) = probes.start_within(ALL, now).expect("it is asked");
    let name = watched.connection.name.clone();
    let turn = probes.answered(number, &name, answer, now);
    probes.session_ended(number, &name, now);
    (name, now, turn)
}

#[test]
fn no_source_is_probed_before_it_is_due_or_twice_at_a_time() {
    let mut probes = scheduler(&["a", "b"]);
    assert_eq!(probes.next(ALL), Some(1_000));
    assert!(probes.start_within(ALL, 999).is_none());
    let (first, one) = probes.start_within(ALL, 1_000).unwrap();
    let (second, other) = probes.start_within(ALL, 1_000).unwrap();
    assert_ne!(one.connection.name, other.connection.name);
    assert!(probes.start_within(ALL, 100_000).is_none() && probes.next(ALL).is_none());
    assert_eq!(probes.sessions().healthy, 2);
    probes.answered(first, "a", there(), 1_010);
    probes.session_ended(first, "a", 1_010);
    assert_eq!(probes.next(ALL), Some(31_010));
    // Its session was lost: it says nothing of the source.
    probes.session_ended(second, "b", 2_000);
    assert_eq!(probes.next(ALL), Some(3_000));
    assert_eq!(probes.sessions().healthy, 0);
    let rows = probes.take_batch(3_000).json();
    assert_eq!(rows[0]["reachable"], true);
    assert_eq!(rows[0]["latency"], 3.0);
    assert_eq!(
        (&rows[0]["checked"], &rows[0]["next"]),
        (&1.99.into(), &28.01.into())
    );
    assert_eq!(rows[1]["reachable"], serde_json::Value::Null);
}

#[test]
fn a_lost_source_delays_no_other_probe() {
    let mut probes = scheduler(&["a", "b"]);
    assert_eq!(
        ask(&mut probes, gone(FailureKind::Refused)).2,
        Some(HealthChange::Lost)
    );
    ask(&mut probes, there());
    let healthy = ProbeCapacity {
        unreachable: false,
        ..ALL
    };
    // a is due after 5 s, b after 30.
    assert_eq!(probes.next(ALL), Some(6_000));
    assert_eq!(probes.next(healthy), Some(31_000));
    let (number, _) = probes.start_within(healthy, 31_000).unwrap();
    assert_eq!(probes.sessions().healthy, 1);
    probes.slow(number);
    let busy = probes.sessions();
    assert_eq!((busy.healthy, busy.unreachable), (0, 1));
}

#[test]
fn sessions_that_hang_become_rare_and_are_counted() {
    let mut probes = scheduler(&["a"]);
    let mut began = Vec::new();
    let mut now = 0;
    while now < 24 * 3_600_000 {
        now = probes.next(ALL).unwrap();
        let Some((number, _)) = probes.start_within(ALL, now) else {
            continue;
        };
        began.push(number);
        probes.answered(number, "a", gone(FailureKind::Timeout), now + 10_000);
    }
    assert!((8..=12).contains(&began.len()), "{}", began.len());
    assert_eq!(probes.sessions().stuck, began.len());
    let mut answers = probes;
    answers.request("a", now);
    ask_at(&mut answers, now, there());
    let (_, at, turn) = ask(&mut answers, there());
    assert_eq!(
        (at, turn),
        (now + 30_000, None),
        "what hangs is of another time"
    );
    let mut probes = answers;
    let turn = ask(&mut probes, gone(FailureKind::Timeout)).2;
    assert_eq!(turn, Some(HealthChange::Lost));
    now = probes.next(ALL).unwrap();
    let (number, _) = probes.start_within(ALL, now).unwrap();
    began.push(number);
    probes.answered(number, "a", gone(FailureKind::Timeout), now);
    let row = &probes.take_batch(now).json()[0];
    assert_eq!(row["reachable"], false);
    assert_eq!(row["attempts"], 2, "{row}");
    // No more of them, if there is no room for it.
    let crowded = ProbeCapacity {
        retry: false,
        ..ALL
    };
    let later = now + 48 * 3_600_000;
    assert!(probes.start_within(crowded, later).is_none());
    // One that ends makes room, and one that answers is all it takes.
    for number in &began {
        probes.session_ended(*number, "a", later);
    }
    assert_eq!(probes.sessions().stuck, 0);
    assert_eq!(ask(&mut probes, there()).2, Some(HealthChange::Restored));
}

#[test]
fn few_probes_hang_in_a_wrapper_and_other_sources_do_not_wait() {
    let block = |(name, plugin): (&str, &str)| {
        let more = match plugin {
            "mysql" => "  database = \"d\"\n",
            _ => "",
        };
        format!("connection \"{name}\" {{\n  plugin = \"{plugin}\"\n{more}}}\n")
    };
    let all = [("a", "mysql"), ("b", "mysql"), ("c", "postgres")];
    let mut probes = ProbeScheduler::default();
    let text: String = all.into_iter().map(block).collect();
    probes.watch(watched(&text), &BTreeSet::new(), 0, |_| 1_000);
    let (number, first) = probes.start_within(ALL, 1_000).unwrap();
    assert_eq!(first.connection.name, "a");
    probes.answered(number, "a", gone(FailureKind::Timeout), 1_000);
    let crowded = ProbeCapacity {
        more_stuck: false,
        ..ALL
    };
    // The second is told why it is not asked, and stays as it was; the third is asked.
    assert!(probes.start_within(crowded, 1_000).is_none());
    let (_, third) = probes.start_within(crowded, 1_000).unwrap();
    assert_eq!(third.connection.name, "c");
    let rows = probes.take_batch(1_000).json();
    let second = &rows[1];
    assert_eq!(second["name"], "b");
    assert_eq!(second["reachable"], serde_json::Value::Null);
    let why = second["failure"].as_str().unwrap();
    assert!(why.contains("a session waits in mysql_fdw"), "{why}");
    // Once that one has ended it is asked.
    probes.session_ended(number, "a", 2_000);
    assert_eq!(probes.next(ALL), Some(6_000));
    ask(&mut probes, there());
    let (name, at, _) = ask(&mut probes, there());
    assert_eq!((name.as_str(), at), ("b", 31_000));
}

#[test]
fn who_asks_gets_an_answer_that_was_found_afterwards() {
    let mut probes = scheduler(&["a"]);
    let (before, _) = probes.start_within(ALL, 1_000).unwrap();
    assert!(probes.request("a", 2_000));
    assert!(!probes.request("unknown", 2_000));
    assert_eq!(
        probes.answered(before, "a", gone(FailureKind::Refused), 2_500),
        None
    );
    probes.session_ended(before, "a", 2_500);
    assert_eq!(probes.take_batch(2_500).answered_requests().count(), 0);
    ask(&mut probes, there());
    let told: Vec<_> = probes.take_batch(2_500).answered_requests().collect();
    assert_eq!(told, ["a"]);
    ask(&mut probes, there());
    assert_eq!(probes.take_batch(90_000).answered_requests().count(), 0);
}

#[test]
fn who_asks_goes_before_all_that_are_due() {
    let mut probes = scheduler(&["a", "b", "c"]);
    assert!(probes.request("b", 90_000));
    assert_eq!(ask_at(&mut probes, 90_000, there()).0, "b");
    assert_ne!(ask(&mut probes, there()).0, "b");
}

#[test]
fn what_was_not_written_is_written_later() {
    let mut probes = scheduler(&["a"]);
    ask(&mut probes, gone(FailureKind::Refused));
    probes.request("a", 1_500);
    let page = probes.take_batch(2_000);
    assert!(probes.write_at().is_none());
    ask(&mut probes, there());
    probes.write_failed(page, 3_000);
    let page = probes.take_batch(3_000);
    let row = &page.json()[0];
    assert_eq!(row["health"], serde_json::json!(["lost", "restored"]));
    assert_eq!(
        (&row["reachable"], &row["latency"]),
        (&true.into(), &3.0.into())
    );
    assert!(row["failure"].as_str().unwrap().starts_with("gone ("));
    assert_eq!(page.answered_requests().count(), 1);
    assert!(probes.write_at().is_none());
}

#[test]
fn another_target_is_asked_at_once_and_what_goes_is_forgotten() {
    let mut probes = scheduler(&["a", "b"]);
    ask(&mut probes, gone(FailureKind::Authentication));
    ask(&mut probes, there());
    assert_eq!(
        probes.next(ALL),
        Some(31_000),
        "refused credentials are not tried again"
    );
    probes.take_batch(1_000);
    // The same again, and a label more: nothing changes.
    probes.watch(sources(&["a", "b"]), &BTreeSet::new(), 2_000, |_| 9_000);
    assert_eq!(
        (probes.next(ALL), probes.write_at().is_some()),
        (Some(31_000), false)
    );
    let other = "connection \"a\" {\n  plugin = \"postgres\"\n  password = \"new\"\n}\n";
    probes.watch(watched(other), &BTreeSet::new(), 3_000, |_| 9_000);
    assert_eq!(
        ask(&mut probes, there()),
        ("a".into(), 3_000, Some(HealthChange::Restored))
    );
    let rows = probes.take_batch(4_000).json();
    assert_eq!(rows[1]["name"], "b");
    assert_eq!(rows[1]["reachable"], serde_json::Value::Null);
    assert_eq!(rows[1]["next"], serde_json::Value::Null);
}

#[test]
fn an_import_that_says_otherwise_is_believed_enough_to_ask() {
    let mut probes = scheduler(&["a"]);
    probes.import_ended("a", true, 10);
    assert_eq!(probes.next(ALL), Some(1_000), "nothing was known anyway");
    probes.import_ended("a", false, 10);
    assert_eq!(ask(&mut probes, gone(FailureKind::Authentication)).1, 10);
    probes.import_ended("a", false, 20);
    assert_eq!(probes.next(ALL), None);
    probes.import_ended("a", true, 20);
    assert_eq!(
        ask(&mut probes, there()),
        ("a".into(), 20, Some(HealthChange::Restored))
    );
}

#[test]
fn what_an_earlier_leader_knew_is_gone_on_from() {
    let known = [
        ("a".to_owned(), false),
        ("b".to_owned(), true),
        ("c".to_owned(), true),
    ];
    let mut probes = ProbeScheduler::new(known.into(), 10);
    probes.watch(sources(&["a", "b"]), &BTreeSet::new(), 5, |_| 1_000);
    assert_eq!(
        ask(&mut probes, there()),
        ("a".into(), 5, Some(HealthChange::Restored))
    );
    assert_eq!(ask(&mut probes, there()), ("b".into(), 1_000, None));
    let names: Vec<_> = (probes.take_batch(2_000).json().as_array().unwrap().iter())
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["a", "b", "c"], "c is not watched any more");
}

#[test]
fn what_was_found_of_another_target_is_not_told_of_this_one() {
    let mut probes = scheduler(&["a"]);
    ask(&mut probes, gone(FailureKind::Refused));
    probes.take_batch(1_000);
    ask(&mut probes, gone(FailureKind::Refused));
    let other = watched("connection \"a\" {\n  plugin = \"postgres\"\n  host = \"b\"\n}\n");
    // Its import is under way: that asks first.
    probes.watch(other, &BTreeSet::from(["a".into()]), 3_000, |_| 9_000);
    let page = probes.take_batch(3_000);
    let row = &page.json()[0];
    for (fact, expected) in [
        ("forget", true.into()),
        ("reachable", serde_json::Value::Null),
        ("failure", serde_json::Value::Null),
        ("checked", serde_json::Value::Null),
    ] {
        assert_eq!(row[fact], expected, "{fact}: {row}");
    }
    // It could not be written, and is not lost by that.
    probes.write_failed(page, 3_000);
    probes.import_ended("a", true, 4_000);
    assert_eq!(
        ask(&mut probes, there()),
        ("a".into(), 4_000, Some(HealthChange::Restored))
    );
    let row = &probes.take_batch(5_000).json()[0];
    assert_eq!(
        (&row["forget"], &row["reachable"], &row["failure"]),
        (&true.into(), &true.into(), &serde_json::Value::Null)
    );
}

#[test]
fn probes_start_apart_and_few_of_them_run_at_a_time() {
    let names: Vec<String> = (0..10).map(|number| format!("c{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut probes = ProbeScheduler::new([("c9".to_owned(), false)].into(), 1);
    probes.watch(sources(&names), &BTreeSet::new(), 0, |_| 1_000);
    let mut started = Vec::new();
    while let Some(at) = probes.next_start(2_000) {
        let (number, watched) = probes.start(false, at).unwrap();
        started.push((at, watched.connection.name.clone(), number));
    }
    let times: Vec<u64> = started.iter().map(|(at, ..)| *at).collect();
    assert_eq!(
        times,
        [0, 1_000, 1_020, 1_040, 1_060],
        "four that may answer, and one that did not answer before"
    );
    // A slow probe counts as one of a source that did not answer, until its session is free.
    let (_, name, number) = &started[1];
    probes.session_ended(started[0].2, "c9", 2_000);
    probes.slow(*number);
    assert_eq!(probes.next_start(2_000), Some(1_080));
    assert!(probes.start(false, 2_000).is_some());
    assert_eq!(probes.next_start(2_010), None);
    probes.answered(*number, name, there(), 2_010);
    assert_eq!(probes.next_start(2_010), Some(3_000), "c9 finds room again");
}

#[test]
fn probes_are_rare_beside_many_jobs_for_a_while() {
    let mut probes = scheduler(&["a"]);
    let mut starts = Vec::new();
    let mut now = 0;
    while now < 64_000 {
        probes.request("a", now);
        now = now.max(probes.next_start(now).unwrap());
        if let Some((number, watched)) = probes.start(true, now) {
            starts.push(now);
            probes.answered(number, &watched.connection.name, there(), now);
        }
        now += 1;
    }
    let beside = starts.iter().filter(|at| **at < 60_000).count();
    assert_eq!(beside, 120, "two a second");
    assert!(starts.len() - beside > 100, "{}", starts.len());
}

#[test]
fn a_rejection_of_an_earlier_target_is_no_answer_to_a_client() {
    let mut probes = scheduler(&["a"]);
    ask(&mut probes, there());
    let failure = ProbeFailure {
        kind: FailureKind::Authentication,
        text: "rejected".into(),
    };
    let rejected = |probes: &mut ProbeScheduler, is_requested| {
        probes.credentials_rejected("a", "earlier", failure.clone(), is_requested, 5_000)
    };
    assert_eq!(rejected(&mut probes, false), None);
    assert_eq!(probes.next(ALL), Some(31_000));
    assert_eq!(rejected(&mut probes, true), None);
    assert_eq!(probes.next(ALL), Some(0), "it is asked at once");
    assert!(
        probes
            .take_batch(6_000)
            .answered_requests()
            .next()
            .is_none()
    );
}

#[test]
fn a_breaker_that_could_not_be_tried_stays_open() {
    let mut probes = scheduler(&["a"]);
    for _ in 0..4 {
        ask(&mut probes, gone(FailureKind::Refused));
    }
    let breaker = |probes: &mut ProbeScheduler| {
        let rows = probes.take_batch(0).json();
        rows[0]["breaker"].as_str().map(str::to_owned)
    };
    assert_eq!(breaker(&mut probes).as_deref(), Some("open"));
    let now = probes.next(ALL).unwrap();
    let (number, _) = probes.start_within(ALL, now).unwrap();
    assert_eq!(breaker(&mut probes).as_deref(), Some("half_open"));
    probes.session_ended(number, "a", now);
    assert_eq!(breaker(&mut probes).as_deref(), Some("open"));
    assert_eq!(probes.next(ALL), Some(now + 1_000));
}

#[test]
fn half_of_the_permits_are_left_to_sources_without_a_stuck_session() {
    let mut probes = ProbeScheduler::new(Default::default(), 4);
    probes.watch(sources(&["a", "b", "c", "d"]), &BTreeSet::new(), 0, |_| 0);
    for (number, again) in [(1, true), (2, false), (3, false)] {
        let (started, watched) = probes.start_within(ALL, 0).unwrap();
        assert_eq!(started, number);
        let timeout = gone(FailureKind::Timeout);
        probes.answered(started, &watched.connection.name, timeout, 0);
        let capacity = probes.capacity(0);
        assert_eq!((capacity.retry, capacity.more_stuck), (again, true));
    }
    let (started, watched) = probes.start_within(ALL, 0).unwrap();
    probes.answered(
        started,
        &watched.connection.name,
        gone(FailureKind::Timeout),
        0,
    );
    assert!(!probes.capacity(0).more_stuck);
}

#[test]
fn what_could_not_be_written_of_an_earlier_target_is_dropped() {
    let mut probes = scheduler(&["a"]);
    ask(&mut probes, gone(FailureKind::Refused));
    let unwritten = probes.take_batch(1_000);
    let other = watched("connection \"a\" {\n  plugin = \"postgres\"\n  host = \"i\"\n}\n");
    probes.watch(other, &BTreeSet::new(), 2_000, |_| 0);
    probes.write_failed(unwritten, 2_000);
    let row = &probes.take_batch(3_000).json()[0];
    assert_eq!(
        (&row["forget"], &row["failure"]),
        (&true.into(), &().into())
    );
    assert_eq!(
        (&row["checked"], &row["reachable"]),
        (&().into(), &().into())
    );
}
