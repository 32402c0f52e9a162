//! What follows later: drops, probes, comments, locks and requests that wait.

use super::*;
use crate::health::ProbeOptions;

fn dropped(error: &str) -> JobOutcome {
    JobOutcome::Failed {
        target_hash: String::new(),
        error: error.into(),
        kind: None,
        is_unwritten: false,
    }
}

pub(super) fn answers(commands: &[Command]) -> Vec<Option<String>> {
    let answer = |command: &Command| match command {
        Command::Answer { error, .. } => Some(error.clone()),
        _ => None,
    };
    commands.iter().filter_map(answer).collect()
}

/// Runs a pass up to its look, which is not published.
pub(super) fn look(harness: &mut Harness, mut look: PassInput) -> Vec<Command> {
    harness.step(Event::Woken);
    harness.step(Event::Idle);
    let requests = std::mem::take(&mut harness.requests);
    harness.step(Event::Requested {
        requests,
        is_crowded: false,
    });
    if let Some(drift) = &mut look.drift {
        drift.pass = harness.state.pass;
    }
    harness.step(Event::AllObserved(Box::new(look)))
}

pub(super) fn seen(harness: &Harness) -> PassInput {
    PassInput {
        desired: harness.desired.clone(),
        observed: harness.observed.clone(),
        drift: Some(harness.drift(&[])),
        ..PassInput::default()
    }
}

#[test]
fn a_drop_that_failed_is_repeated_later_each_time_or_on_any_request() {
    let mut harness = Harness::settled(&plain(&["a", "b"]));
    let without_a = desired(&("\n\n\n\n".to_owned() + &plain(&["b"])));
    harness.desired = without_a.clone();
    // `publish` looks up what the files say of a row.
    let drops = |commands: &[Command]| started(commands) == ["a"];
    let pass = |harness: &mut Harness| {
        let seen = seen(harness);
        let mut commands = look(harness, seen);
        commands.extend(harness.step(Event::Published { generation: 1 }));
        commands
    };
    assert!(drops(&pass(&mut harness)));
    for pause in [5_000, 10_000] {
        harness.ends("a", dropped("in use"));
        assert_eq!(harness.state.wake_at(), harness.now + pause);
        assert!(!drops(&pass(&mut harness)));
        harness.now += pause;
        assert!(drops(&pass(&mut harness)));
    }
    harness.ends("a", dropped("in use"));
    harness.request(refresh(Some(&["b"])));
    let commands = pass(&mut harness);
    assert_eq!(
        started(&commands),
        ["b", "a"],
        "what stood in the way may be gone"
    );
    assert_eq!(
        answers(&harness.ends("b", JobOutcome::Same)),
        [],
        "it waits"
    );
    let told = answers(&harness.ends("a", JobOutcome::Done));
    assert_eq!(told, [None]);
}

#[test]
fn a_shorter_schedule_has_failures_repeated_sooner() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    for _ in 0..3 {
        let outcome = failed(&harness.desired, "a", FailureKind::Refused);
        harness.ends("a", outcome);
        harness.now = harness.state.wake_at();
        harness.pass(Some(&[]));
    }
    let outcome = failed(&harness.desired, "a", FailureKind::Refused);
    harness.ends("a", outcome);
    assert_eq!(harness.state.wake_at(), harness.now + 30_000);
    let mut health = ProbeOptions::default();
    health.set("interval", "7s").unwrap();
    let seen = PassInput {
        health,
        ..seen(&harness)
    };
    look(&mut harness, seen);
    assert_eq!(harness.state.wake_at(), harness.now + 7_000);
}

#[test]
fn a_command_that_leads_for_one_run_waits_for_drift_and_asks_everything() {
    let mut harness = Harness::settled(&plain(&["a", "b"]));
    let start = Start::default();
    harness.state = State::new(start).waiting_for_drift();
    harness.state.refresh_all();
    for _ in 0..2 {
        harness.step(Event::Woken);
        harness.step(Event::Idle);
        let commands = harness.step(Event::Requested {
            requests: Vec::new(),
            is_crowded: false,
        });
        let [
            Command::AskDrift {
                is_urgent: true, ..
            },
            Command::ObserveAll {
                waits_for_drift: true,
                ..
            },
        ] = &commands[..]
        else {
            panic!("{commands:?}")
        };
        let seen = seen(&harness);
        let commands = harness.step(Event::AllObserved(Box::new(seen)));
        let is_publish = |command: &Command| matches!(command, Command::Publish { .. });
        let mut all = match commands.iter().any(is_publish) {
            true => harness.step(Event::Published { generation: 1 }),
            false => commands,
        };
        all.retain(|command| matches!(command, Command::Start { .. } | Command::Probe(_)));
        let is_first = harness.state.pass == 1;
        let expected = if is_first { vec!["a", "b"] } else { vec![] };
        assert_eq!(started(&all), expected);
        assert_eq!(all.len(), expected.len(), "no source is probed: {all:?}");
    }
}

#[test]
fn a_client_that_reconnects_what_cannot_be_imported_gets_a_probe() {
    let mut harness = Harness::settled(&plain(&["a"]));
    let made = harness.observed.connections.get_mut("a").unwrap();
    made.applied.as_mut().unwrap().schema = Presence::Foreign;
    harness.pass(Some(&[]));
    harness.request(Request {
        action: Action::Reconnect,
        retries_refused: true,
        ..refresh(Some(&["a"]))
    });
    let commands = harness.pass(Some(&[]));
    let probe = Command::Probe(ProbeCommand::Request(vec!["a".into()]));
    assert!(commands.contains(&probe), "{commands:?}");
    assert_eq!(answers(&commands), [], "the probe is the answer");
    let told = answers(&harness.step(Event::ProbeAnswered("a".into())));
    assert_eq!(told, [None]);
}

#[test]
fn comments_that_an_earlier_daemon_left_out_are_looked_for_once_unless_paused() {
    let text = plain(&["a", "b", "c"]);
    let mut harness = Harness::settled(&text);
    let start = Start {
        paused: BTreeSet::from(["b".to_owned()]),
        ..Start::default()
    };
    harness.state = State::new(start);
    for name in ["a", "b"] {
        let known = harness.observed.connections.get_mut(name).unwrap();
        known.comments_set = false;
    }
    let comment = Command::Comment(vec!["a".into()]);
    assert!(harness.pass(Some(&[])).contains(&comment));
    assert!(!harness.pass(Some(&[])).contains(&comment));
}

#[test]
fn a_pass_that_was_given_up_is_not_published() {
    let mut harness = Harness::new(&plain(&["a"]));
    let seen = seen(&harness);
    look(&mut harness, seen);
    harness.step(Event::ServerFull);
    assert_eq!(harness.step(Event::Published { generation: 1 }), []);
    assert_eq!(harness.state.wake_at(), 1_000);
    harness.step(Event::Woken);
    assert_eq!(harness.state.wake_at(), 0, "a pass is due");
}

#[test]
fn where_the_server_is_full_passes_become_rare() {
    let mut harness = Harness::settled(&plain(&["a"]));
    let mut pauses = Vec::new();
    for _ in 0..6 {
        harness.step(Event::Woken);
        harness.step(Event::Idle);
        harness.step(Event::ServerFull);
        pauses.push(harness.state.wake_at() - harness.now);
        harness.now = harness.state.wake_at();
    }
    assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
}

#[test]
fn the_end_of_a_lock_outlasts_an_earlier_pass() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    for _ in 0..3 {
        let reason = "session 7 holds it".into();
        harness.ends(
            "a",
            JobOutcome::Later {
                reason,
                is_lock: true,
            },
        );
        harness.now = harness.state.wake_at();
        harness.pass(Some(&[]));
    }
    let later = JobOutcome::Later {
        reason: "the server is full".into(),
        is_lock: false,
    };
    harness.ends("a", later);
    let end = harness.now + 8_000;
    assert_eq!(harness.state.wake_at(), end);
    harness.now += 3_000;
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    assert_eq!(harness.state.wake_at(), end);
    harness.now = end;
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
}

#[test]
fn fingerprints_are_recorded_as_they_were_found() {
    let mut harness = Harness::settled(&plain(&["a"]));
    let connection = harness.desired.connections["a"].clone();
    let target = connection.target.as_ref().unwrap();
    let detail = crate::observed::Detail {
        server: Some((target.wrapper.clone(), target.server_options())),
        mapping: Some(target.mapping.clone()),
        ..Default::default()
    };
    let known = harness.observed.connections.get_mut("a").unwrap();
    known.schema_hash = Some(crate::diff::hash(&[], target.wrapper_traits()));
    harness.observed.details.insert("a".into(), detail);
    let mut seen = seen(&harness);
    let found = BTreeMap::from([("a".to_owned(), "42".to_owned())]);
    seen.observed.mark(found.keys());
    seen.drift = Some(DriftReport {
        names: found,
        pass: 2,
        took: 0,
    });
    let commands = look(&mut harness, seen);
    let recorded = commands.iter().find_map(|command| match command {
        Command::Publish {
            refresh_fingerprints,
            ..
        } => Some(refresh_fingerprints.clone()),
        _ => None,
    });
    let expected = vec![("a".to_owned(), Some("42".to_owned()))];
    assert_eq!(recorded, Some(expected), "{commands:?}");
}

#[test]
fn a_role_whose_path_is_refused_is_left_until_a_client_asks() {
    let mut harness = Harness::settled(&plain(&["a"]));
    harness.observed.roles.push(crate::observed::Role {
        name: "r".into(),
        member: true,
        ..Default::default()
    });
    let hash = |commands: &[Command]| {
        commands.iter().find_map(|command| match command {
            Command::SetSearchPath(change) => Some(change.hash.clone()),
            _ => None,
        })
    };
    let tried = hash(&harness.pass(Some(&[]))).unwrap();
    harness.step(Event::SearchPathSet {
        hash: tried.clone(),
        refused: Vec::new(),
        is_passing: true,
    });
    assert_eq!(harness.state.wake_at(), harness.now + 1_000);
    assert!(
        hash(&harness.pass(Some(&[]))).is_some(),
        "another session met it"
    );
    harness.step(Event::SearchPathSet {
        hash: tried.clone(),
        refused: vec!["r".into()],
        is_passing: false,
    });
    assert_eq!(hash(&harness.pass(Some(&[]))), None);
    harness.request(refresh(None));
    assert_eq!(hash(&harness.pass(Some(&[]))), Some(tried));
}

#[test]
fn outcomes_have_names_for_metrics() {
    let later = JobOutcome::Later {
        reason: String::new(),
        is_lock: false,
    };
    let all = [
        (JobOutcome::Done, "done"),
        (JobOutcome::Same, "same"),
        (dropped("no"), "failed"),
        (later, "later"),
        (JobOutcome::Waits, "waits"),
        (JobOutcome::Cancelled, "cancelled"),
    ];
    for (outcome, name) in all {
        assert_eq!(outcome.name(), name);
    }
}

#[test]
fn of_many_errors_an_answer_names_a_hundred() {
    let names: Vec<String> = (0..103).map(|number| format!("c{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = Harness::settled(&plain(&names));
    harness.request(refresh(None));
    assert_eq!(started(&harness.pass(Some(&[]))).len(), 103);
    let mut told = Vec::new();
    for name in names {
        let outcome = failed(&harness.desired, name, FailureKind::Dns);
        told.extend(answers(&harness.ends(name, outcome)));
    }
    let [Some(error)] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(error.contains("c099: ") && !error.contains("c100: "));
    assert!(error.ends_with("; and 3 more"), "{error}");
}

#[test]
fn only_work_that_needs_an_extension_waits_until_it_is_created() {
    let other = "connection \"m\" {\n plugin = \"mysql\"\n host = \"h\"\n database = \"d\"\n}\n";
    let mut harness = Harness::new(&(plain(&["a"]) + other));
    let extensions = &mut harness.observed.extensions;
    extensions.insert("postgres_fdw".into(), Extension::Available);
    extensions.insert("mysql_fdw".into(), Extension::Installed);
    let create = Command::CreateExtensions(["postgres_fdw".to_owned()].into());
    harness.request(refresh(Some(&["a"])));
    let commands = harness.pass(Some(&[]));
    assert!(commands.contains(&create));
    assert_eq!(started(&commands), ["m"]);
    let is_idle = |command: &Command| matches!(command, Command::Report(pass) if pass.is_idle);
    assert!(!commands.iter().any(is_idle));
    let is_end = |command: &Command| {
        matches!(
            command,
            Command::ReportStart { .. } | Command::Answer { .. }
        )
    };
    let commands = harness.ends("m", JobOutcome::Same);
    assert!(!commands.iter().any(is_end), "{commands:?}");
    harness.observed.connections.clear();
    harness.desired = desired(&plain(&["a"]));
    let refused = [("postgres_fdw".to_owned(), "no right".to_owned())];
    harness.step(Event::ExtensionsCreated(refused.into()));
    assert!(harness.state.is_pass_due());
    let commands = harness.pass(Some(&[]));
    assert_eq!(rows(&commands), [("a", Some(Status::Error))]);
    // A request has it tried again.
    harness.request(refresh(Some(&["a"])));
    assert!(harness.pass(Some(&[])).contains(&create));
}

#[test]
fn a_pause_that_ends_while_a_pass_is_published_is_not_lost() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    let later = JobOutcome::Later {
        reason: "session 7 holds it".into(),
        is_lock: true,
    };
    harness.ends("a", later);
    harness.now += 999;
    let seen = seen(&harness);
    look(&mut harness, seen);
    harness.now += 5;
    let commands = harness.step(Event::Published { generation: 2 });
    assert_eq!(started(&commands), [""; 0], "the plan was made before");
    assert_eq!(harness.state.wake_at(), harness.now - 4);
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
}
