//! The early part of a pass: connections that a saved file or a mirror's source changes start before the
//! full observation.
//!
//! The files and the last pass tell which connections these are. Their objects are observed again, so
//! that no decision rests on old knowledge. If nothing else differs, the full observation comes
//! [`CONFIRMATION_DELAY`] later: among thousands of connections it costs as much as the jobs, and would
//! delay them. After those of a gateway, it would delay the hub's jobs for the same connections.
//! Otherwise it follows at once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Command;
use super::state::{EarlyPass, State};
use crate::aggregator;
use crate::model::{ConnectionKind, DesiredState};
use crate::observed::Observed;
use crate::planner::{self, Plan};

/// Maximum number of changed connections. With more, the full observation costs little in comparison.
const MAX_EARLY: usize = 100;

/// Maximum time from an early part to the full observation that confirms it, in milliseconds.
const CONFIRMATION_DELAY: u64 = 250;

/// What a load of the files changes.
struct Changes {
    /// Connections that are new, have another source, or have other tables at their source, and whose jobs
    /// depend on no other work.
    early: Vec<String>,
    /// The full observation may find more to do.
    are_there_others: bool,
}

impl State {
    /// Returns the command that begins the observation: reading the files, if they may have changed, or
    /// `observe_all`.
    pub(super) fn begin_observation(&mut self, observe_all: Command) -> Command {
        let are_files_changed = std::mem::take(&mut self.are_files_changed);
        if !are_files_changed || self.desired.is_none() || self.waits_for_drift {
            return observe_all;
        }
        self.observe_all = Some(observe_all);
        Command::ReadFiles
    }

    /// Observes the connections that changed in the files.
    pub(super) fn files_read(&mut self, files: Arc<DesiredState>) -> Vec<Command> {
        let changes = self.changes(&files);
        if changes.early.is_empty() || changes.early.len() > MAX_EARLY {
            return self.observe_all.take().into_iter().collect();
        }
        let desired = files.only(&changes.early);
        self.follow_sources(&desired);
        self.early = Some(EarlyPass {
            files,
            desired,
            work: Vec::new(),
            is_all: !changes.are_there_others,
        });
        vec![Command::Observe(changes.early)]
    }

    /// Plans the connections that changed.
    pub(super) fn observed(&mut self, mut observed: Observed, now: u64) -> Vec<Command> {
        let Some(mut early) = self.early.take() else {
            return self.observe_all.take().into_iter().collect();
        };
        for name in early.desired.connections.keys() {
            self.record(name).merge_into(&mut observed, name, now);
        }
        let plan = planner::plan(&early.desired, &observed, &self.running(now));
        let connections = early.desired.connections.values();
        let waiting = connections.filter(|one| one.awaits_source).count();
        let is_handled = plan.work.len() + waiting == early.desired.connections.len();
        if plan.work.is_empty() && !(is_handled && early.is_all) {
            return self.observe_all.take().into_iter().collect();
        }
        let Plan { rows, work, .. } = plan;
        early.work = work;
        early.is_all &= is_handled;
        self.early = Some(early);
        vec![Command::Publish {
            rows,
            refresh_fingerprints: Vec::new(),
            diagnostics: None,
        }]
    }

    /// Starts the jobs of connections that changed. The full observation follows at once or later.
    pub(super) fn start_early(
        &mut self,
        early: EarlyPass,
        generation: i64,
        now: u64,
    ) -> Vec<Command> {
        self.started_early += early.work.len();
        let mut commands = Vec::with_capacity(early.work.len() + 1);
        for work in early.work {
            commands.push(self.start(work, &early.desired, generation));
        }
        let observe_all = self.observe_all.take();
        match early.is_all && self.is_confirmation_optional(observe_all.as_ref(), now) {
            true => {
                self.desired = Some(early.files);
                let at = *self.confirm_at.get_or_insert(now + CONFIRMATION_DELAY);
                self.wake_at = self.wake_at.min(at);
            }
            false => commands.extend(observe_all),
        }
        commands
    }

    /// Whether the full observation of this pass may be left to a later one.
    fn is_confirmation_optional(&self, observe_all: Option<&Command>, now: u64) -> bool {
        // Requests that the pass has read, and drift that was detected, concern all connections.
        let concerns_all = !self.requested.is_empty()
            || self.requests.is_pass_awaited()
            || !matches!(observe_all, Some(Command::ObserveAll { drift: None, .. }));
        !concerns_all && self.confirm_at.is_none_or(|at| now < at)
    }

    /// Returns what differs from the files that the last full observation, or an early part since, followed.
    fn changes(&self, desired: &DesiredState) -> Changes {
        let before = self.desired.as_deref();
        let mut early = Vec::new();
        let mut are_there_others = before.is_none_or(|before| {
            let is_gone = |name: &String| !desired.connections.contains_key(name);
            before.database != desired.database
                || before.unknown_inputs != desired.unknown_inputs
                || before.connections.keys().any(is_gone)
        });
        for (name, connection) in &desired.connections {
            let before = before.and_then(|before| before.connections.get(name));
            let is_same = before.is_some_and(|before| {
                Arc::ptr_eq(before, connection)
                    || before.target_hash() == connection.target_hash()
                        && before.enabled == connection.enabled
            });
            if is_same && self.changed_stamp(name, connection).is_none() {
                continue;
            }
            let is_plain = connection.enabled
                && connection.kind == ConnectionKind::Plugin
                && (connection.target.as_ref()).is_ok_and(|source| source.csv.is_none());
            let record = self.get(name);
            let is_left_alone = record.is_some_and(|one| one.job.is_some() || one.paused);
            match is_plain && !is_left_alone {
                true => early.push(name.clone()),
                false => are_there_others = true,
            }
        }
        if !early.is_empty() {
            // An aggregator is `updating` before one of its members is `ready` with other tables.
            let members = aggregator::members(desired, &BTreeMap::new());
            let members: HashSet<&str> = members.into_values().flatten().collect();
            let all = early.len();
            early.retain(|name| !members.contains(name.as_str()));
            are_there_others |= early.len() < all;
        }
        Changes {
            early,
            are_there_others,
        }
    }
}

#[cfg(test)]
mod tests {
    use spcd_protocol::Status;

    use super::{CONFIRMATION_DELAY, MAX_EARLY};
    use crate::health::FailureKind;
    use crate::observed::{Extension, Observed, Presence};
    use crate::scheduler::tests::{Harness, desired, failed, plain, rows, started};
    use crate::scheduler::{Action, Command, Event, JobOutcome, ProbeCommand, Request};

    impl Harness {
        /// Saves a file, up to the command that follows once it is read.
        fn save(&mut self, text: &str) -> Vec<Command> {
            self.desired = desired(text);
            self.step(Event::FilesChanged);
            self.step(Event::Idle);
            let commands = self.step(Event::Requested {
                requests: Vec::<(i64, Request)>::new(),
                is_crowded: false,
            });
            assert_eq!(commands, [Command::ReadFiles]);
            self.step(Event::FilesRead(self.desired.clone()))
        }

        /// Observes some connections.
        fn observe(&mut self, names: &[&str]) -> Vec<Command> {
            let mut observed = Observed {
                extensions: self.observed.extensions.clone(),
                admitted: true,
                ..Observed::default()
            };
            for name in names {
                if let Some(known) = self.observed.connections.get(*name) {
                    let name = (*name).to_owned();
                    observed.connections.insert(name, known.clone());
                }
            }
            self.step(Event::Observed(Box::new(observed)))
        }
    }

    fn block(name: &str, host: &str, more: &str) -> String {
        format!(
            "connection \"{name}\" {{\n plugin = \"postgres\"\n host = \"{host}\"\n{more}\n}}\n"
        )
    }

    fn observe(names: &[&str]) -> Vec<Command> {
        let names = names.iter().map(|name| (*name).to_owned());
        vec![Command::Observe(names.collect())]
    }

    fn is_look(commands: &[Command]) -> bool {
        matches!(commands, [Command::ObserveAll { .. }])
    }

    #[test]
    fn what_a_saved_file_changes_begins_before_everything_is_looked_at() {
        let mut harness = Harness::settled(&plain(&["a", "b"]));
        let text = block("a", "i", "") + &block("b", "h", "") + &block("c", "h", "");
        assert_eq!(harness.save(&text), observe(&["a", "c"]));
        let commands = harness.observe(&["a"]);
        let (a, c) = (Some(Status::Updating), Some(Status::Pending));
        assert_eq!(rows(&commands), [("a", a), ("c", c)]);
        let commands = harness.step(Event::Published { generation: 2 });
        assert_eq!(started(&commands), ["a", "c"]);
        // Nothing else differs: the look comes later, also when their jobs end earlier.
        assert_eq!(commands.len(), 2, "{commands:?}");
        harness.ends("c", JobOutcome::Done);
        harness.ends("a", JobOutcome::Done);
        assert!(!harness.state.is_pass_due());
        assert_eq!(harness.state.wake_at(), harness.now + CONFIRMATION_DELAY);
    }

    #[test]
    fn the_look_does_not_wait_for_a_job_that_takes_long() {
        let mut harness = Harness::settled(&plain(&["a", "b"]));
        let files = |a: &str, b: &str| block("a", a, "") + &block("b", b, "");
        let begin = |harness: &mut Harness, text: &str, name: &str| {
            assert_eq!(harness.save(text), observe(&[name]));
            harness.observe(&[name]);
            let mut commands = harness.step(Event::Published { generation: 2 });
            assert_eq!(started(&commands), [name]);
            commands.split_off(1)
        };
        let now = harness.now;
        assert!(begin(&mut harness, &files("i", "h"), "a").is_empty());
        assert_eq!(harness.state.wake_at(), now + CONFIRMATION_DELAY);
        // Another save does not postpone it, however many follow.
        harness.now += CONFIRMATION_DELAY - 1;
        assert!(begin(&mut harness, &files("i", "i"), "b").is_empty());
        assert_eq!(harness.state.wake_at(), now + CONFIRMATION_DELAY);
        harness.now += 1;
        let text = files("i", "i") + &block("c", "h", "");
        assert!(is_look(&begin(&mut harness, &text, "c")));
        // It finds their jobs running.
        let commands = harness.pass(Some(&[]));
        assert_eq!(started(&commands), [""; 0]);
        assert_eq!(harness.state.running_jobs(), 3);
    }

    #[test]
    fn the_look_follows_at_once_where_it_has_more_to_do() {
        let begun = || Harness::settled(&plain(&["a", "b"]));
        let begin = |harness: &mut Harness, text: &str| {
            assert_eq!(harness.save(text), observe(&["a"]));
            harness.observe(&["a"]);
            let mut commands = harness.step(Event::Published { generation: 2 });
            assert_eq!(started(&commands), ["a"]);
            is_look(&commands.split_off(1))
        };
        let a = block("a", "i", "");
        assert!(!begin(&mut begun(), &(a.clone() + &block("b", "h", ""))));
        assert!(begin(&mut begun(), &a), "b is gone");
        let disabled = block("b", "h", "import_schema = \"disabled\"");
        assert!(begin(&mut begun(), &(a.clone() + &disabled)));
        let path = "options \"database\" {\n search_path = \"a\"\n}\n";
        assert!(begin(&mut begun(), &(a + &block("b", "h", "") + path)));
    }

    #[test]
    fn the_look_follows_at_once_for_a_client_that_waits() {
        let mut harness = Harness::settled(&plain(&["a"]));
        harness.desired = desired(&block("a", "i", ""));
        harness.step(Event::FilesChanged);
        harness.step(Event::Idle);
        let request = Request {
            action: Action::Refresh,
            names: Some(Vec::new()),
            retries_refused: false,
        };
        let commands = harness.step(Event::Requested {
            requests: vec![(1, request)],
            is_crowded: false,
        });
        assert!(matches!(commands.last(), Some(Command::ReadFiles)));
        harness.step(Event::FilesRead(harness.desired.clone()));
        harness.observe(&["a"]);
        let commands = harness.step(Event::Published { generation: 2 });
        assert!(is_look(&commands[1..]), "{commands:?}");
    }

    #[test]
    fn what_the_database_holds_now_counts_and_not_the_memory_of_it() {
        let mut harness = Harness::settled(&plain(&["a"]));
        let applied = |harness: &mut Harness, schema| {
            let known = harness.observed.connections.get_mut("a").unwrap();
            known.applied.as_mut().unwrap().schema = schema;
        };
        applied(&mut harness, Presence::Foreign);
        assert_eq!(harness.save(&block("a", "i", "")), observe(&["a"]));
        assert!(is_look(&harness.observe(&["a"])));
        applied(&mut harness, Presence::Ours);
        let extension = (Extension::Available, "postgres_fdw".to_owned());
        harness.observed.extensions.insert(extension.1, extension.0);
        assert_eq!(harness.save(&block("a", "j", "")), observe(&["a"]));
        assert!(is_look(&harness.observe(&["a"])));
        assert_eq!(harness.state.running_jobs(), 0);
    }

    #[test]
    fn what_needs_more_than_its_own_connection_waits_for_the_look() {
        let mut harness = Harness::settled(&plain(&["a", "b"]));
        let both = |a: &str, b: &str| block("a", a, "") + &block("b", b, "");
        assert!(is_look(&harness.save(&both("h", "h"))), "nothing changed");
        assert!(is_look(&harness.save(&block("a", "h", ""))), "b is gone");
        let aggregator = "connection \"all\" {\n plugin = \"postgres\"\n type = \"aggregator\"\n \
                          connections = [\"*\"]\n}\n";
        assert!(is_look(&harness.save(&(both("h", "h") + aggregator))));
        let disabled = block("c", "h", "import_schema = \"disabled\"");
        assert!(is_look(&harness.save(&(both("h", "h") + &disabled))));
        let many: Vec<String> = (0..=MAX_EARLY)
            .map(|n| block(&format!("n{n}"), "h", ""))
            .collect();
        assert!(is_look(&harness.save(&(both("h", "h") + &many.concat()))));
        harness.state.record("b").paused = true;
        assert_eq!(harness.save(&both("i", "i")), observe(&["a"]));
    }

    #[test]
    fn a_member_of_an_aggregator_waits_for_the_look_which_has_both_updating() {
        let all = "connection \"all\" {\n plugin = \"postgres\"\n type = \"aggregator\"\n \
                   connections = [\"m*\"]\n}\n";
        let files = |m: &str, x: &str| block("m", m, "") + &block("x", x, "") + all;
        let begun = || {
            let mut harness = Harness::new(&files("h", "h"));
            harness.made("m");
            harness.made("x");
            assert_eq!(started(&harness.pass(Some(&[]))), ["all"]);
            harness
        };
        assert!(is_look(&begun().save(&files("i", "h"))));
        assert_eq!(begun().save(&files("i", "i")), observe(&["x"]));
        let new = files("h", "h") + &block("m2", "h", "");
        assert!(is_look(&begun().save(&new)), "a new member");
    }

    #[test]
    fn a_running_job_is_left_to_the_look() {
        let mut harness = Harness::settled(&plain(&["a"]));
        harness.desired = desired(&block("a", "i", ""));
        harness.pass(Some(&[]));
        assert_eq!(harness.state.running_jobs(), 1);
        assert!(is_look(&harness.save(&block("a", "j", ""))));
    }

    #[test]
    fn probes_that_learn_of_a_new_target_late_do_not_send_rejected_credentials_again() {
        let mut harness = Harness::settled(&plain(&["a"]));
        harness.save(&block("a", "i", ""));
        harness.observe(&["a"]);
        harness.step(Event::Published { generation: 2 });
        let outcome = failed(&harness.desired, "a", FailureKind::Authentication);
        harness.ends("a", outcome);
        let commands = harness.pass(Some(&[]));
        let mut probes = commands.iter().filter_map(|command| match command {
            Command::Probe(command) => Some(command),
            _ => None,
        });
        let Some(ProbeCommand::Watch { importing, .. }) = probes.next() else {
            panic!("{commands:?}");
        };
        assert!(importing.contains("a"), "it is probed at once");
        let Some(ProbeCommand::CredentialsRejected { target_hash, .. }) = probes.next() else {
            panic!("{commands:?}");
        };
        assert_eq!(target_hash, harness.desired.target_hash("a"));
    }

    #[test]
    fn a_server_without_room_costs_the_pass_and_no_more() {
        let mut harness = Harness::settled(&plain(&["a"]));
        harness.save(&block("a", "i", ""));
        harness.observe(&["a"]);
        harness.step(Event::ServerFull);
        assert_eq!(harness.state.running_jobs(), 0);
        let commands = harness.pass(Some(&[]));
        assert_eq!(started(&commands), ["a"]);
    }
}
