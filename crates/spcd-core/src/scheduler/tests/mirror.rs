//! Following the sources of mirrors.

use std::collections::BTreeMap;

use super::*;
use crate::mirror::{MirrorParts, MirrorView, SourceConnection, SourceKind, SourceState};
use crate::observed::ObservedLane;

const FILE: &str = "mirror \"m\" {\n  source = \"postgresql://u:p@h/d\"\n}\n";

/// What the file wants while the source says this.
fn desired_mirrored(text: &str, states: &[(&str, SourceState)]) -> Arc<DesiredState> {
    let mut desired = DesiredState::clone(&desired(text));
    let row = |(name, state): &(&str, SourceState)| {
        let row = SourceConnection {
            state: state.clone(),
            plugin: "aws".into(),
            kind: "aggregator".into(),
            connections: vec!["a*".into()],
            ..SourceConnection::default()
        };
        ((*name).to_owned(), Arc::new(row))
    };
    let view = MirrorView {
        kind: Some(SourceKind::Steampipe),
        connections: states.iter().map(row).collect(),
        ..MirrorView::default()
    };
    let views = BTreeMap::from([("m".to_owned(), Arc::new(view))]);
    MirrorParts::default().apply(&mut desired, &views);
    Arc::new(desired)
}

fn ready(stamp: &str) -> SourceState {
    SourceState::Ready(stamp.to_owned())
}

/// A hub that has the tables of these, on the mirror's server.
fn mirrored(states: &[(&str, SourceState)]) -> Harness {
    let mut harness = Harness::new("");
    harness.desired = desired_mirrored(FILE, states);
    let server = &harness.desired.lane_servers["spcd_mirror_m"];
    let mut options = server.options.clone();
    options.insert("application_name".into(), "spcd hub".into());
    let lane = ObservedLane {
        presence: Presence::Ours,
        options,
        mapping: Some(server.mapping.clone()),
        in_use: true,
        refused: None,
    };
    harness.observed.lanes.insert("spcd_mirror_m".into(), lane);
    for (name, _) in states {
        harness.made(name);
        let known = harness.observed.connections.get_mut(*name).unwrap();
        known.applied.as_mut().unwrap().server_name = Some("spcd_mirror_m".into());
    }
    harness
}

impl Harness {
    /// A pass after the source said this.
    fn says(&mut self, states: &[(&str, SourceState)]) -> Vec<Command> {
        self.desired = desired_mirrored(FILE, states);
        self.pass(Some(&[]))
    }
}

#[test]
fn a_connection_is_asked_for_once_for_each_change_at_the_source() {
    let mut hub = mirrored(&[("a", ready("1")), ("b", ready("1"))]);
    // Both are compared once after the daemon has started.
    let commands = hub.pass(Some(&[]));
    assert_eq!(started(&commands), ["a", "b"]);
    assert_eq!(rows(&commands), []);
    for name in ["a", "b"] {
        hub.ends(name, JobOutcome::Same);
    }
    let same = hub.says(&[("a", ready("1")), ("b", ready("1"))]);
    assert_eq!(started(&same), [""; 0]);
    let commands = hub.says(&[("a", ready("2")), ("b", ready("1"))]);
    assert_eq!(started(&commands), ["a"]);
    // It stays ready until a difference is found.
    assert_eq!(rows(&commands), []);
}

#[test]
fn a_source_at_work_is_left_alone_and_compared_when_it_is_ready() {
    let mut hub = mirrored(&[("a", SourceState::AtWork)]);
    assert_eq!(started(&hub.pass(Some(&[]))), [""; 0]);
    assert_eq!(hub.observed.connections["a"].status, Status::Ready);
    // Not even a new one is asked for.
    let commands = hub.says(&[("a", SourceState::AtWork), ("n", SourceState::AtWork)]);
    assert_eq!(started(&commands), [""; 0]);
    assert_eq!(rows(&commands), [("n", Some(Status::Pending))]);
    let commands = hub.says(&[("a", ready("1")), ("n", ready("1"))]);
    assert_eq!(started(&commands), ["n", "a"]);
}

#[test]
fn what_is_ready_at_the_source_is_asked_for_before_everything_is_looked_at() {
    let mut hub = mirrored(&[("a", ready("1")), ("b", ready("1"))]);
    hub.pass(Some(&[]));
    for name in ["a", "b"] {
        hub.ends(name, JobOutcome::Same);
    }
    let states = [
        ("a", ready("1")),
        ("b", ready("2")),
        ("n", SourceState::AtWork),
    ];
    hub.desired = desired_mirrored(FILE, &states);
    hub.step(Event::FilesChanged);
    hub.step(Event::Idle);
    let commands = hub.step(Event::Requested {
        requests: Vec::new(),
        is_crowded: false,
    });
    assert_eq!(commands, [Command::ReadFiles]);
    let commands = hub.step(Event::FilesRead(hub.desired.clone()));
    let names = ["b", "n"].map(str::to_owned);
    assert_eq!(commands, [Command::Observe(names.to_vec())]);
    let mut observed = hub.observed.clone();
    observed.connections.retain(|name, _| name == "b");
    let commands = hub.step(Event::Observed(Box::new(observed)));
    assert_eq!(rows(&commands), [("n", Some(Status::Pending))]);
    let commands = hub.step(Event::Published { generation: 2 });
    assert_eq!(started(&commands), ["b"]);
    assert_eq!(commands.len(), 1, "the look waits: {commands:?}");
    // It is asked for once.
    hub.pass(Some(&[]));
    hub.ends("b", JobOutcome::Same);
    assert_eq!(started(&hub.pass(Some(&[]))), [""; 0]);
}

#[test]
fn errors_and_disabled_connections_of_the_source_keep_their_tables() {
    let mut hub = mirrored(&[("a", ready("1"))]);
    hub.pass(Some(&[]));
    hub.ends("a", JobOutcome::Same);
    let commands = hub.says(&[("a", SourceState::Error("no token".into()))]);
    assert_eq!(rows(&commands), [("a", Some(Status::Error))]);
    let known = &hub.observed.connections["a"];
    assert_eq!(known.error.as_deref(), Some("no token"));
    let commands = hub.says(&[("a", SourceState::Disabled)]);
    assert_eq!(rows(&commands), [("a", Some(Status::Disabled))]);
    assert_eq!(started(&commands), [""; 0]);
    let commands = hub.says(&[("a", ready("1"))]);
    assert_eq!(rows(&commands), [("a", Some(Status::Ready))]);
}

#[test]
fn what_a_source_does_not_list_any_more_goes_and_a_source_that_never_answered_takes_nothing() {
    let mut hub = mirrored(&[("a", ready("1"))]);
    hub.pass(Some(&[]));
    hub.ends("a", JobOutcome::Same);
    // The record of what it said is lost, and the source is away.
    let mut unknown = DesiredState::clone(&desired(FILE));
    MirrorParts::default().apply(&mut unknown, &BTreeMap::new());
    hub.desired = Arc::new(unknown);
    assert_eq!(started(&hub.pass(Some(&[]))), [""; 0]);
    // The block is broken.
    let mut broken = DesiredState::clone(&desired("mirror \"m\" {\n  sauce = 1\n}\n"));
    MirrorParts::default().apply(&mut broken, &BTreeMap::new());
    hub.desired = Arc::new(broken);
    let commands = hub.pass(Some(&[]));
    assert_eq!(started(&commands), [""; 0]);
    assert_eq!(rows(&commands), [("a", Some(Status::Error))]);
    assert_eq!(started(&hub.says(&[])), ["a"]);
}

#[test]
fn a_new_stamp_ends_the_pause_after_the_source_was_found_at_work() {
    let mut hub = mirrored(&[("a", ready("1"))]);
    hub.pass(Some(&[]));
    let reason = "the source is changing its tables".to_owned();
    hub.ends(
        "a",
        JobOutcome::Later {
            reason,
            is_lock: false,
        },
    );
    assert_eq!(started(&hub.says(&[("a", ready("1"))])), [""; 0]);
    assert_eq!(started(&hub.says(&[("a", ready("2"))])), ["a"]);
}

#[test]
fn a_mirrored_row_is_that_of_the_source() {
    let desired = desired_mirrored(FILE, &[("a", ready("1"))]);
    let written = ConfigSnapshot::of(&desired.connections["a"]);
    assert_eq!(
        (written.plugin.as_str(), written.plugin_instance.as_str()),
        ("aws", "m")
    );
    assert_eq!(
        (written.kind.as_str(), written.mirror.as_str()),
        ("aggregator", "m")
    );
    assert_eq!(written.connections, ["a*"]);
}
