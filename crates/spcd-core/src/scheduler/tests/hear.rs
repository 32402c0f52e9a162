//! What files, clients and probes cause, and when a client is answered.

use super::follow::{answers, look, seen};
use super::*;

const FILE: &str = "connection \"f\" {\n  plugin = \"csv\"\n  paths = [\"/files/*.csv\"]\n}\n";
const ALL: &str = "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
                   connections = [\"*\"]\n}\n";

/// A member and its aggregator, both as they should be.
fn aggregating() -> Harness {
    let mut harness = Harness::new(&(plain(&["a"]) + ALL));
    harness.made("a");
    harness.made("all");
    shows(&mut harness, "shape");
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    harness
}

/// The aggregator shows tables of this shape.
fn shows(harness: &mut Harness, shape: &str) {
    let known = harness.observed.connections.get_mut("all").unwrap();
    known.applied.as_mut().unwrap().target_hash =
        crate::aggregator::target_hash([("a", Some(shape))]);
    known.status = Status::Ready;
}

/// A pass whose look finds that the file changed.
fn changed(harness: &mut Harness, was_read: bool) -> Vec<Command> {
    let mut seen = seen(harness);
    seen.files.changed = vec![("f".to_owned(), was_read)];
    let mut commands = look(harness, seen);
    commands.extend(harness.step(Event::Published { generation: 1 }));
    commands
}

fn urgency(commands: &[Command]) -> Option<Urgency> {
    commands.iter().find_map(|command| match command {
        Command::Start { urgency, .. } => Some(*urgency),
        _ => None,
    })
}

#[test]
fn a_file_that_was_read_before_goes_first_when_it_changes() {
    for (was_read, expected) in [(false, Urgency::Refresh), (true, Urgency::Requested)] {
        let mut harness = Harness::settled(FILE);
        assert_eq!(urgency(&changed(&mut harness, was_read)), Some(expected));
    }
}

#[test]
fn a_file_that_changes_is_read_whatever_failed_before() {
    let mut harness = Harness::settled(FILE);
    changed(&mut harness, true);
    let outcome = failed(&harness.desired, "f", FailureKind::Other);
    harness.ends("f", outcome);
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    assert_eq!(started(&changed(&mut harness, true)), ["f"]);
}

#[test]
fn files_that_are_to_be_read_later_have_another_pass_whenever_that_is() {
    for pause in [0, 1, 300] {
        let mut harness = Harness::settled(FILE);
        let mut seen = seen(&harness);
        seen.files.again = Some(pause);
        look(&mut harness, seen);
        harness.step(Event::Published { generation: 1 });
        assert_eq!(harness.state.wake_at(), harness.now + pause);
    }
}

#[test]
fn files_of_a_cancelled_job_are_not_read() {
    let mut harness = Harness::settled(FILE);
    changed(&mut harness, true);
    let commands = harness.ends("f", JobOutcome::Cancelled);
    assert!(commands.contains(&Command::FilesUnread("f".into())));
}

#[test]
fn a_client_that_waits_waits_for_changed_files_too() {
    let mut harness = Harness::settled(&(plain(&["a"]) + FILE));
    harness.request(refresh(Some(&["a"])));
    assert_eq!(started(&changed(&mut harness, true)), ["a", "f"]);
    assert_eq!(answers(&harness.ends("a", JobOutcome::Same)), []);
    assert_eq!(answers(&harness.ends("f", JobOutcome::Same)), [None]);
}

#[test]
fn an_aggregator_stands_for_its_members_where_sources_are_paused() {
    let mut harness = aggregating();
    harness.request(Request {
        action: Action::Disconnect,
        ..refresh(Some(&["all"]))
    });
    let record = Command::RecordPause {
        names: vec!["a".into()],
        is_pause: true,
    };
    assert!(harness.pass(Some(&[])).contains(&record));
}

#[test]
fn a_request_that_comes_after_the_question_has_drift_asked_again() {
    let mut harness = Harness::settled(&plain(&["a"]));
    harness.pass(None);
    let drift = harness.drift(&["a"]);
    harness.step(Event::DriftAnswered(drift.clone()));
    harness.step(Event::Idle);
    harness.step(Event::Requested {
        requests: vec![(1, refresh(Some(&["a"])))],
        is_crowded: false,
    });
    let mut seen = seen(&harness);
    seen.drift = Some(drift.clone());
    harness.step(Event::AllObserved(Box::new(seen)));
    let commands = harness.step(Event::Published { generation: 1 });
    let again = Command::AskDrift {
        pass: drift.pass + 1,
        is_urgent: true,
    };
    assert!(commands.contains(&again), "{commands:?}");
}

#[test]
fn what_ended_the_server_is_not_probed() {
    let failure = Failure {
        target_hash: String::new(),
        error: "it ended the server".into(),
        times: 1,
        next: NextAttempt::At(60_000),
    };
    let start = Start {
        crashes: BTreeMap::from([("a".to_owned(), failure)]),
        ..Start::default()
    };
    let mut harness = Harness::beginning_with(start, &plain(&["a", "b"]));
    let commands = harness.pass(Some(&[]));
    let watched = commands.iter().find_map(|command| match command {
        Command::Probe(ProbeCommand::Watch { watched, .. }) => Some(watched),
        _ => None,
    });
    let names: Vec<&str> = (watched.unwrap().iter())
        .map(|one| one.connection.name.as_str())
        .collect();
    assert_eq!(names, ["b"]);
}

#[test]
fn a_pass_is_idle_when_nothing_differs_and_nothing_runs() {
    let mut harness = Harness::new(&plain(&["a"]));
    let is_idle = |commands: &[Command]| {
        commands.iter().find_map(|command| match command {
            Command::Report(outcome) => Some(outcome.is_idle),
            _ => None,
        })
    };
    assert_eq!(is_idle(&harness.pass(Some(&[]))), Some(false));
    assert_eq!(is_idle(&harness.pass(Some(&[]))), Some(false), "a job runs");
    harness.made("a");
    harness.ends("a", JobOutcome::Done);
    assert_eq!(is_idle(&harness.pass(Some(&[]))), Some(true));
}

#[test]
fn a_client_waits_for_one_more_pass_after_an_aggregator() {
    let mut harness = aggregating();
    shows(&mut harness, "another shape");
    harness.request(refresh(None));
    assert_eq!(started(&harness.pass(Some(&[]))), ["all", "a"]);
    harness.ends("a", JobOutcome::Same);
    shows(&mut harness, "shape");
    assert_eq!(answers(&harness.ends("all", JobOutcome::Same)), []);
    harness.step(Event::Woken);
    assert_eq!(answers(&harness.pass(Some(&[]))), [None]);
}

#[test]
fn a_refresh_that_met_a_lock_is_made_again() {
    let mut harness = Harness::settled(&plain(&["a"]));
    harness.request(refresh(Some(&["a"])));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
    let reason = "session 7 holds it".into();
    harness.ends(
        "a",
        JobOutcome::Later {
            reason,
            is_lock: true,
        },
    );
    harness.now = harness.state.wake_at();
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
}

#[test]
fn time_outs_become_rare_once_the_attempts_are_used_up() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let outcome = failed(&harness.desired, "a", FailureKind::Timeout);
        harness.ends("a", outcome);
        let record = &harness.state.connections["a"];
        let next = record.failure.as_ref().unwrap().next;
        let NextAttempt::At(at) = next else {
            panic!("{next:?}")
        };
        pauses.push((at - harness.now) / 1_000);
        harness.now = at;
        harness.pass(Some(&[]));
    }
    let expected = [5, 10, 20, 60, 120, 240, 480, 960, 1_920, 3_600];
    assert_eq!(pauses, expected);
}

#[test]
fn queued_requests_are_read_once_one_that_is_held_is_answered() {
    for is_crowded in [true, false] {
        let mut harness = Harness::settled(&plain(&["a"]));
        harness.step(Event::Woken);
        harness.step(Event::Idle);
        harness.step(Event::Requested {
            requests: vec![(1, refresh(Some(&["unknown"])))],
            is_crowded,
        });
        let mut seen = seen(&harness);
        seen.drift = Some(harness.drift(&[]));
        harness.step(Event::AllObserved(Box::new(seen)));
        assert!(!harness.state.is_pass_due());
        harness.step(Event::Answered(1));
        assert_eq!(harness.state.is_pass_due(), is_crowded);
    }
}

#[test]
fn a_refresh_of_an_aggregator_repeats_the_failed_imports_of_its_members() {
    let mut harness = aggregating();
    harness.request(refresh(Some(&["a"])));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
    let outcome = failed(&harness.desired, "a", FailureKind::Timeout);
    harness.ends("a", outcome);
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    harness.request(refresh(Some(&["all"])));
    assert!(started(&harness.pass(Some(&[]))).contains(&"a"));
}

#[test]
fn an_aggregator_that_waits_goes_on_when_its_member_has_not_changed() {
    let mut harness = aggregating();
    shows(&mut harness, "other");
    assert_eq!(started(&harness.pass(Some(&["a"]))), ["a"]);
    harness.ends("a", JobOutcome::Same);
    assert!(harness.state.is_pass_due());
    assert_eq!(started(&harness.pass(Some(&[]))), ["all"]);
}
