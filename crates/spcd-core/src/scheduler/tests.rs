//! Decisions, by value, under a clock that the test steps.

mod ended;
mod follow;
mod hear;
mod mirror;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spcd_protocol::Status;

use super::*;
use crate::config::{DesiredState, SourceFile, load_plain};
use crate::health::FailureKind;
use crate::observed::{Applied, ConfigSnapshot, Extension, Observed, ObservedConnection, Presence};

/// A scheduler, and what a look would find.
pub(super) struct Harness {
    pub state: State,
    pub desired: Arc<DesiredState>,
    pub observed: Observed,
    requests: Vec<(i64, Request)>,
    pub now: u64,
}

pub(super) fn desired(text: &str) -> Arc<DesiredState> {
    let source = SourceFile {
        path: "a.spc".into(),
        text: Ok(text.into()),
    };
    Arc::new(load_plain(&[source]))
}

pub(super) fn plain(names: &[&str]) -> String {
    let block = |name: &&str| {
        format!("connection \"{name}\" {{\n  plugin = \"postgres\"\n  host = \"h\"\n}}\n")
    };
    names.iter().map(block).collect()
}

fn new_row(status: Status, written: ConfigSnapshot) -> ObservedConnection {
    ObservedConnection {
        status,
        error: None,
        warnings: Vec::new(),
        comments_set: true,
        written,
        schema_hash: None,
        applied: None,
        waits_for: None,
    }
}

pub(super) fn failed(desired: &DesiredState, name: &str, kind: FailureKind) -> JobOutcome {
    JobOutcome::Failed {
        target_hash: desired.target_hash(name).to_owned(),
        error: kind.as_str().to_owned(),
        kind: Some(kind),
        is_unwritten: false,
    }
}

fn refresh(names: Option<&[&str]>) -> Request {
    Request {
        action: Action::Refresh,
        names: names.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        retries_refused: false,
    }
}

pub(super) fn started(commands: &[Command]) -> Vec<&str> {
    let works = commands.iter().filter_map(|command| match command {
        Command::Start { work, .. } => Some(work.name.as_str()),
        _ => None,
    });
    works.collect()
}

pub(super) fn rows(commands: &[Command]) -> Vec<(&str, Option<Status>)> {
    let published = commands.iter().filter_map(|command| match command {
        Command::Publish { rows, .. } => Some(rows),
        _ => None,
    });
    published
        .flatten()
        .map(|row| (row.name.as_str(), row.route.last().copied()))
        .collect()
}

impl Harness {
    pub fn new(text: &str) -> Self {
        Self::beginning_with(Start::default(), text)
    }

    fn beginning_with(start: Start, text: &str) -> Self {
        let mut observed = Observed {
            admitted: true,
            ..Observed::default()
        };
        (observed.extensions).insert("postgres_fdw".into(), Extension::Installed);
        Self {
            state: State::new(start).with_probes(),
            desired: desired(text),
            observed,
            requests: Vec::new(),
            now: 0,
        }
    }

    /// Everything is there already, and a first pass found that.
    pub fn settled(text: &str) -> Self {
        let mut harness = Self::new(text);
        let names: Vec<String> = harness.desired.connections.keys().cloned().collect();
        for name in &names {
            harness.made(name);
        }
        let commands = harness.pass(Some(&[]));
        assert_eq!(started(&commands), [""; 0]);
        harness
    }

    pub fn made(&mut self, name: &str) {
        let connection = &self.desired.connections[name];
        let applied = Applied::complete(connection.target_hash());
        let known = ObservedConnection {
            schema_hash: Some("shape".into()),
            applied: Some(applied),
            ..new_row(Status::Ready, ConfigSnapshot::of(connection))
        };
        self.observed.connections.insert(name.to_owned(), known);
    }

    fn publish(&mut self, row: RowChange) {
        let desired = &self.desired;
        let written = |name: &str| ConfigSnapshot::of(&desired.connections[name]);
        let known = (self.observed.connections.entry(row.name))
            .or_insert_with_key(|name| new_row(Status::Pending, written(name)));
        known.status = row.route.last().copied().unwrap_or(known.status);
        known.error = row.error;
    }

    pub fn step(&mut self, event: Event) -> Vec<Command> {
        step(&mut self.state, event, self.now)
    }

    pub fn ends(&mut self, name: &str, outcome: JobOutcome) -> Vec<Command> {
        let name = name.to_owned();
        self.step(Event::JobEnded { name, outcome })
    }

    fn drift(&self, names: &[&str]) -> DriftReport {
        let look = |name: &&str| ((*name).to_owned(), String::new());
        DriftReport {
            names: names.iter().map(look).collect(),
            pass: self.state.pass,
            took: 0,
        }
    }

    /// A whole pass. `drift`: what has drifted, if that is known.
    pub fn pass(&mut self, drift: Option<&[&str]>) -> Vec<Command> {
        self.step(Event::Woken);
        let commands = self.step(Event::Idle);
        assert!(
            matches!(&commands[..], [Command::ReadRequests { .. }]),
            "{commands:?}"
        );
        let requests = std::mem::take(&mut self.requests);
        let mut all = self.step(Event::Requested {
            requests,
            is_crowded: false,
        });
        let mut observed = self.observed.clone();
        let drift = drift.map(|names| self.drift(names));
        if let Some(drift) = &drift {
            observed.mark(drift.names.keys());
        }
        let commands = self.step(Event::AllObserved(Box::new(PassInput {
            desired: self.desired.clone(),
            observed,
            drift,
            ..PassInput::default()
        })));
        for command in commands {
            let published = match &command {
                Command::Publish { rows, .. } => Some(rows.clone()),
                _ => None,
            };
            all.push(command);
            if let Some(rows) = published {
                rows.into_iter().for_each(|row| self.publish(row));
                all.extend(self.step(Event::Published { generation: 1 }));
            }
        }
        all
    }

    fn request(&mut self, request: Request) {
        let id = self.state.requests.ids().len() as i64 + 1;
        self.requests.push((id, request));
    }
}

#[test]
fn a_connection_has_one_job_at_a_time() {
    let mut harness = Harness::new(&plain(&["a", "b"]));
    let commands = harness.pass(Some(&[]));
    assert_eq!(started(&commands), ["a", "b"]);
    harness.now = 1_000;
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    harness.made("a");
    harness.ends("a", JobOutcome::Done);
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    assert_eq!(harness.state.running_jobs(), 1);
}

#[test]
fn a_failed_import_is_repeated_after_its_pause_or_when_its_source_is_back() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    harness.now = 10;
    let outcome = failed(&harness.desired, "a", FailureKind::Refused);
    harness.ends("a", outcome.clone());
    assert_eq!(harness.state.wake_at(), 5_010);
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    harness.now = 5_010;
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
    harness.ends("a", outcome);
    assert_eq!(
        harness.state.wake_at(),
        15_010,
        "the second pause is twice as long"
    );
    harness.step(Event::SourceRestored("b".into()));
    assert!(!harness.state.is_pass_due(), "nothing of it failed");
    harness.step(Event::SourceRestored("a".into()));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
}

#[test]
fn rejected_credentials_are_sent_again_only_on_request() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    let outcome = failed(&harness.desired, "a", FailureKind::Authentication);
    let commands = harness.ends("a", outcome);
    let told = |command: &Command| {
        matches!(
            command,
            Command::Probe(ProbeCommand::CredentialsRejected { .. })
        )
    };
    assert!(commands.iter().any(told), "{commands:?}");
    harness.now = 10_000_000;
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    for (retries_refused, expected) in [(false, &[][..]), (true, &["a"][..])] {
        harness.request(Request {
            retries_refused,
            ..refresh(Some(&["a"]))
        });
        assert_eq!(started(&harness.pass(Some(&[]))), expected);
    }
}

#[test]
fn a_lock_is_left_to_its_holder_unless_a_client_asks() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    for pause in [1_000, 2_000, 4_000] {
        harness.ends(
            "a",
            JobOutcome::Later {
                reason: "session 7 holds it".into(),
                is_lock: true,
            },
        );
        assert_eq!(harness.state.wake_at(), harness.now + pause);
        assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
        harness.now += pause;
        assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
    }
    harness.ends(
        "a",
        JobOutcome::Later {
            reason: "session 7 holds it".into(),
            is_lock: true,
        },
    );
    harness.request(refresh(Some(&["a"])));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
}

#[test]
fn a_job_that_is_no_longer_desired_is_cancelled_once() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    harness.desired = desired("connection \"a\" {\n  plugin = \"postgres\"\n  host = \"i\"\n}\n");
    let cancel = Command::Cancel("a".into());
    assert!(harness.pass(Some(&[])).contains(&cancel));
    assert!(!harness.pass(Some(&[])).contains(&cancel));
    harness.ends("a", JobOutcome::Cancelled);
    assert!(harness.state.is_pass_due());
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
}

#[test]
fn without_knowing_what_drifted_nothing_becomes_ready() {
    let mut harness = Harness::settled(&plain(&["a"]));
    harness.observed.connections.get_mut("a").unwrap().status = Status::Updating;
    let commands = harness.pass(None);
    assert_eq!(rows(&commands), []);
    let pass = harness.state.pass;
    let is_urgent = true;
    let ask = Command::AskDrift { pass, is_urgent };
    assert!(commands.contains(&ask), "{commands:?}");
    // What was put off makes another pass, to which the answer is given.
    let drift = harness.drift(&[]);
    assert_eq!(harness.step(Event::DriftAnswered(drift)), []);
    assert!(harness.state.is_pass_due());
    let commands = harness.pass(Some(&[]));
    assert_eq!(rows(&commands), [("a", Some(Status::Ready))]);
}

#[test]
fn an_answer_that_nothing_drifted_makes_no_pass() {
    let mut harness = Harness::settled(&plain(&["a"]));
    let commands = harness.pass(None);
    let pass = harness.state.pass;
    let is_urgent = false;
    assert!(
        commands.contains(&Command::AskDrift { pass, is_urgent }),
        "{commands:?}"
    );
    let drift = harness.drift(&[]);
    let commands = harness.step(Event::DriftAnswered(drift));
    assert_eq!(commands, [Command::ReportNoDrift { pass }]);
    assert_eq!(harness.step(Event::Idle), []);
    let drift = harness.drift(&["a"]);
    harness.step(Event::DriftAnswered(drift));
    assert_eq!(started(&harness.pass(Some(&["a"]))), ["a"]);
}

#[test]
fn a_request_is_answered_when_its_jobs_have_ended() {
    let mut harness = Harness::settled(&plain(&["a", "b"]));
    harness.request(refresh(Some(&["a", "unknown"])));
    let commands = harness.pass(Some(&[]));
    assert_eq!(started(&commands), ["a"]);
    let answer = |commands: &[Command]| {
        let error = |command: &Command| match command {
            Command::Answer { error, .. } => Some(error.clone().unwrap_or_default()),
            _ => None,
        };
        commands.iter().find_map(error)
    };
    assert_eq!(answer(&commands), None);
    let outcome = failed(&harness.desired, "a", FailureKind::Dns);
    let told = answer(&harness.ends("a", outcome)).unwrap();
    assert_eq!(
        told,
        "no connection is named \"unknown\"; a: name not found"
    );
    // It could not be written: it is tried again in the next pass.
    harness.step(Event::ServerFull);
    assert_eq!(answer(&harness.pass(Some(&[]))), Some(told));
    harness.step(Event::Answered(1));
    assert!(harness.state.requests.ids().is_empty());
}

#[test]
fn a_pause_is_recorded_until_it_is() {
    let mut harness = Harness::settled(&plain(&["a", "b"]));
    harness.request(Request {
        action: Action::Disconnect,
        ..refresh(Some(&["a"]))
    });
    let record = Command::RecordPause {
        names: vec!["a".into()],
        is_pause: true,
    };
    assert!(harness.pass(Some(&[])).contains(&record));
    harness.step(Event::ServerFull);
    assert_eq!(harness.state.wake_at(), 1_000);
    harness.now = 1_000;
    assert!(harness.pass(Some(&[])).contains(&record));
    harness.step(Event::PausesRecorded(vec!["a".into()]));
    assert!(!harness.pass(Some(&[])).contains(&record));
    // All others are asked.
    harness.request(refresh(None));
    assert_eq!(started(&harness.pass(Some(&[]))), ["b"]);
}

#[test]
fn what_ended_the_server_is_asked_again_by_time_or_by_retry_alone() {
    let text = plain(&["a"]);
    let failure = Failure {
        target_hash: desired(&text).target_hash("a").to_owned(),
        error: "it ended the server".into(),
        times: 1,
        next: NextAttempt::At(60_000),
    };
    let begin = || {
        let start = Start {
            crashes: BTreeMap::from([("a".to_owned(), failure.clone())]),
            ..Start::default()
        };
        let mut harness = Harness::beginning_with(start, &text);
        harness.publish(RowChange {
            name: "a".into(),
            ..RowChange::default()
        });
        harness
    };
    let mut harness = begin();
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    harness.step(Event::SourceRestored("a".into()));
    harness.request(Request {
        retries_refused: true,
        ..refresh(Some(&["a"]))
    });
    assert_eq!(started(&harness.pass(Some(&[]))), [""; 0]);
    harness.request(Request {
        action: Action::Retry,
        ..refresh(Some(&["a"]))
    });
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
    let outcome = failed(&harness.desired, "a", FailureKind::Refused);
    let forget = Command::ForgetCrash("a".into());
    assert!(harness.ends("a", outcome).contains(&forget));
    assert!(
        harness.pass(Some(&[])).contains(&forget),
        "it is not forgotten yet"
    );
    harness.step(Event::CrashForgotten("a".into()));
    assert!(!harness.pass(Some(&[])).contains(&forget));
    let mut harness = begin();
    harness.pass(Some(&[]));
    harness.now = harness.state.wake_at();
    assert_eq!(harness.now, 60_000);
    assert_eq!(started(&harness.pass(Some(&[]))), ["a"]);
}

#[test]
fn aggregators_follow_when_no_member_is_about_to_change_but_for_slow_ones() {
    let all = "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
               connections = [\"*\"]\n}\n";
    let mut harness = Harness::new(&(plain(&["a", "b"]) + all));
    assert_eq!(started(&harness.pass(Some(&[]))), ["a", "b"]);
    harness.step(Event::SourceAsked("a".into()));
    harness.step(Event::SourceAsked("b".into()));
    harness.now = 100;
    harness.made("a");
    harness.ends("a", JobOutcome::Done);
    assert!(!harness.state.is_pass_due(), "b is about to change, too");
    assert_eq!(harness.state.wake_at(), 3_000, "and is waited for so long");
    harness.now = 3_000;
    assert_eq!(started(&harness.pass(Some(&[]))), ["all"]);
}

#[test]
fn dynamic_sources_are_asked_in_turn_from_a_spread_start_on() {
    let names: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut harness = Harness::settled(&plain(&names));
    let mut asked: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    while harness.now < 700_000 {
        harness.now = harness.state.wake_at();
        let commands = harness.pass(Some(&[]));
        for name in started(&commands)
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
        {
            harness.ends(&name, JobOutcome::Same);
            asked.entry(name).or_default().push(harness.now);
        }
    }
    assert_eq!(asked.len(), 100);
    let firsts: BTreeSet<u64> = asked.values().map(|times| times[0] / 30_000).collect();
    assert!(firsts.len() >= 9, "the first turns lie apart: {firsts:?}");
    for times in asked.values() {
        assert!(times[0] <= 310_000, "{times:?}");
        assert!(
            (295_000..=310_000).contains(&(times[1] - times[0])),
            "{times:?}"
        );
    }
}

#[test]
fn everything_is_looked_at_now_and_then_but_not_all_the_time() {
    let mut harness = Harness::settled("");
    assert_eq!(harness.state.wake_at(), 60_000);
    // A pass that takes a second and whose drift takes another is not repeated within 200 s.
    harness.step(Event::Woken);
    harness.step(Event::Idle);
    harness.step(Event::Requested {
        requests: Vec::new(),
        is_crowded: false,
    });
    harness.now = 1_000;
    let drift = DriftReport {
        took: 1_000,
        ..harness.drift(&[])
    };
    harness.step(Event::AllObserved(Box::new(PassInput {
        desired: harness.desired.clone(),
        observed: harness.observed.clone(),
        drift: Some(drift),
        ..PassInput::default()
    })));
    assert_eq!(harness.state.wake_at(), 201_000);
}

#[test]
fn what_a_row_repeats_of_its_file_follows_the_job_that_kept_it_back() {
    let mut harness = Harness::new(&plain(&["a"]));
    harness.pass(Some(&[]));
    harness.step(Event::SourceAsked("a".into()));
    harness.desired = desired(&("\n".to_owned() + &plain(&["a"])));
    assert_eq!(rows(&harness.pass(Some(&[]))), []);
    harness.ends("a", JobOutcome::Same);
    assert!(harness.state.is_pass_due());
    assert_eq!(rows(&harness.pass(Some(&[]))).len(), 1);
}

#[test]
fn a_requested_probe_that_waits_is_answered_by_a_rejection_that_comes_meanwhile() {
    let reconnect = |harness: &mut Harness| {
        harness.request(Request {
            action: Action::Reconnect,
            retries_refused: true,
            ..refresh(Some(&["a"]))
        });
    };
    let probes = |command: &Command| matches!(command, Command::Probe(ProbeCommand::Request(_)));
    for (rejected, is_probed) in [(false, true), (true, false)] {
        let mut harness = Harness::settled(&plain(&["a"]));
        reconnect(&mut harness);
        // The server is full before the pass comes to the probe.
        harness.step(Event::Woken);
        harness.step(Event::Idle);
        let requests = std::mem::take(&mut harness.requests);
        harness.step(Event::Requested {
            requests,
            is_crowded: false,
        });
        harness.step(Event::AllObserved(Box::new(PassInput {
            desired: harness.desired.clone(),
            observed: harness.observed.clone(),
            ..PassInput::default()
        })));
        harness.step(Event::ServerFull);
        for target in ["of another time", harness.desired.clone().target_hash("a")] {
            harness.step(Event::CredentialsRejected {
                name: "a".into(),
                target_hash: target.to_owned(),
                error: "rejected".into(),
            });
            if !rejected {
                break;
            }
        }
        let commands = harness.pass(Some(&[]));
        let is_asked = !started(&commands).is_empty();
        let ended = match is_asked {
            true => harness.ends("a", JobOutcome::Same),
            false => commands,
        };
        assert_eq!(is_asked, is_probed);
        assert_eq!(ended.iter().any(probes), is_probed);
    }
}
