//! Consequences of the end of a job.

use super::follow::{answers, look, seen};
use super::*;
use crate::observed::ObservedLane;
use crate::scheduler::NextAttempt;

#[test]
fn a_drop_causes_another_pass_only_where_a_lane_may_be_left_without_tables() {
    for has_lanes in [true, false] {
        let mut harness = Harness::settled(&plain(&["a", "b"]));
        if has_lanes {
            let lane = ObservedLane::default();
            harness.observed.lanes.insert("lane".into(), lane);
        }
        harness.desired = desired(&plain(&["b"]));
        harness.step(Event::Woken);
        harness.step(Event::Idle);
        harness.step(Event::Requested {
            requests: Vec::new(),
            is_crowded: false,
        });
        harness.step(Event::AllObserved(Box::new(seen(&harness))));
        let commands = harness.step(Event::Published { generation: 1 });
        assert_eq!(started(&commands), ["a"]);
        harness.ends("a", JobOutcome::Done);
        assert_eq!(harness.state.is_pass_due(), has_lanes);
    }
}

#[test]
fn a_job_that_waits_imports_again_although_nothing_is_known_to_differ() {
    let mut harness = Harness::settled(&plain(&["a"]));
    harness.request(refresh(Some(&["a"])));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
    harness.ends("a", JobOutcome::Waits);
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
}

#[test]
fn an_error_that_could_not_be_written_is_written_by_another_pass() {
    for is_lost in [true, false] {
        let mut harness = Harness::settled(&plain(&["a"]));
        harness.request(refresh(Some(&["a"])));
        assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
        let mut outcome = failed(&harness.desired, "a", FailureKind::Dns);
        if let JobOutcome::Failed { is_unwritten, .. } = &mut outcome {
            *is_unwritten = is_lost;
        }
        harness.ends("a", outcome);
        assert_eq!(harness.state.is_pass_due(), is_lost);
    }
}

#[test]
fn the_repetitions_of_many_failed_imports_are_spread() {
    let names: Vec<String> = (0..600).map(|n| format!("c{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = Harness::settled(&plain(&names));
    harness.request(refresh(None));
    assert_eq!(started(&harness.pass(Some(&[]))).len(), names.len());
    for name in &names {
        let outcome = failed(&harness.desired, name, FailureKind::Dns);
        harness.ends(name, outcome);
    }
    let due = |name: &str| match &harness.state.get(name).unwrap().failure {
        Some(Failure {
            next: NextAttempt::At(at),
            ..
        }) => *at,
        other => panic!("{other:?}"),
    };
    let alone = due(names[0]);
    assert_eq!(due(names[9]), alone);
    // 50 probes in a second: the last of 600 failures waits 12 s.
    assert_eq!((due(names[599]), alone < 12_000), (11_980, true));
}

#[test]
fn a_rejected_probe_is_an_error_of_a_request_only_if_the_request_waits_for_it() {
    let mut harness = Harness::settled(&plain(&["a", "b"]));
    harness.request(refresh(Some(&["a", "b"])));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a", "b"]);
    harness.ends("a", JobOutcome::Same);
    harness.step(Event::CredentialsRejected {
        name: "a".into(),
        target_hash: harness.desired.target_hash("a").to_owned(),
        error: "rejected".into(),
    });
    assert_eq!(answers(&harness.ends("b", JobOutcome::Same)), [None]);
}

#[test]
fn the_start_is_reported_once() {
    let is_report = |command: &Command| matches!(command, Command::ReportStart { .. });
    let mut harness = Harness::new(&plain(&["a", "b"]));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a", "b"]);
    assert!(!harness.ends("a", JobOutcome::Done).iter().any(is_report));
    assert!(harness.ends("b", JobOutcome::Done).iter().any(is_report));
    assert!(!harness.ends("b", JobOutcome::Done).iter().any(is_report));
}

#[test]
fn an_import_that_succeeds_outweighs_a_probe_that_was_rejected_meanwhile() {
    let mut harness = Harness::settled(&plain(&["a"]));
    harness.request(refresh(Some(&["a"])));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
    harness.step(Event::SourceAsked("a".into()));
    harness.step(Event::CredentialsRejected {
        name: "a".into(),
        target_hash: harness.desired.target_hash("a").to_owned(),
        error: "rejected".into(),
    });
    assert_eq!(harness.state.failures(), 1);
    harness.ends("a", JobOutcome::Same);
    assert_eq!(harness.state.failures(), 0);
}

#[test]
fn a_rejection_of_earlier_credentials_says_nothing_of_the_new_ones() {
    let with_user = |user: &str| {
        let block = plain(&["a"]).replace("host", &format!("user = {user:?}\n  host"));
        desired(&block)
    };
    let mut harness = Harness::settled(&plain(&["a"]));
    harness.request(refresh(Some(&["a"])));
    harness.pass(Some(&[]));
    let outcome = failed(&harness.desired, "a", FailureKind::Authentication);
    harness.ends("a", outcome);
    harness.desired = with_user("u");
    let rejects = |command: &Command| {
        matches!(
            command,
            Command::Probe(ProbeCommand::CredentialsRejected { .. })
        )
    };
    assert!(!harness.pass(Some(&[])).iter().any(rejects));
}

#[test]
fn a_request_waits_for_files_that_are_searched_and_for_nothing_else() {
    let file = "connection \"f\" {\n  plugin = \"csv\"\n  paths = [\"/files/*.csv\"]\n}\n";
    for is_late in [true, false] {
        let mut harness = Harness::settled(file);
        harness.request(refresh(Some(&["unknown"])));
        let mut seen = seen(&harness);
        seen.files.late = is_late.then(|| "f".to_owned()).into_iter().collect();
        look(&mut harness, seen);
        harness.step(Event::Published { generation: 1 });
        assert_eq!(harness.state.wake_at() <= State::found_until(0), is_late);
    }
}

#[test]
fn a_request_may_name_a_connection_that_only_the_files_have() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.request(refresh(Some(&["a"])));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
    assert_eq!(answers(&harness.ends("a", JobOutcome::Done)), [None]);
}
