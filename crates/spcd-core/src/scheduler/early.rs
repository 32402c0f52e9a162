//! The early part of a pass: connections that a saved file or a mirror's source changes start before the
//! full observation.
//!
//! The files and the last pass tell which connections these are. Their objects are observed again, so
//! that no decision rests on old knowledge. The full observation follows in the same pass, while their
//! jobs run.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::Command;
use super::state::{EarlyPass, State};
use crate::aggregator;
use crate::model::{Connection, ConnectionKind, DesiredState};
use crate::observed::Observed;
use crate::planner::{self, Plan};

/// Maximum number of changed connections. With more, the full observation costs little in comparison.
const MAX_EARLY: usize = 100;

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
    pub(super) fn files_read(&mut self, desired: &DesiredState) -> Vec<Command> {
        let changed = self.changed_connections(desired);
        if changed.is_empty() || changed.len() > MAX_EARLY {
            return self.observe_all.take().into_iter().collect();
        }
        let desired = desired.only(&changed);
        self.follow_sources(&desired);
        self.early = Some(EarlyPass {
            desired,
            work: Vec::new(),
        });
        vec![Command::Observe(changed)]
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
        if plan.work.is_empty() {
            return self.observe_all.take().into_iter().collect();
        }
        let Plan { rows, work, .. } = plan;
        early.work = work;
        self.early = Some(early);
        vec![Command::Publish {
            rows,
            refresh_fingerprints: Vec::new(),
            diagnostics: None,
        }]
    }

    /// Starts the jobs of connections that changed. The full observation follows.
    pub(super) fn start_early(&mut self, early: EarlyPass, generation: i64) -> Vec<Command> {
        self.started_early = early.work.len();
        let mut commands = Vec::with_capacity(early.work.len() + 1);
        for work in early.work {
            commands.push(self.start(work, &early.desired, generation));
        }
        commands.extend(self.observe_all.take());
        commands
    }

    /// Returns the connections that are new, have another source, or have other tables at their source,
    /// and whose jobs depend on no other work.
    fn changed_connections(&self, desired: &DesiredState) -> Vec<String> {
        let before = self.desired.as_deref();
        let is_changed = |(name, connection): &(&String, &Arc<Connection>)| {
            let before = before.and_then(|before| before.connections.get(*name));
            let is_same = before.is_some_and(|before| {
                Arc::ptr_eq(before, connection) || before.target_hash() == connection.target_hash()
            });
            let has_changed = !is_same || self.changed_stamp(name, connection).is_some();
            let is_plain = connection.enabled
                && !connection.awaits_source
                && connection.kind == ConnectionKind::Plugin
                && (connection.target.as_ref()).is_ok_and(|source| source.csv.is_none());
            let record = self.get(name);
            has_changed && is_plain && record.is_none_or(|one| one.job.is_none() && !one.paused)
        };
        let changed = desired.connections.iter().filter(is_changed);
        let mut changed: Vec<String> = changed.map(|(name, _)| name.clone()).collect();
        if !changed.is_empty() {
            // An aggregator is `updating` before one of its members is `ready` with other tables.
            let members = aggregator::members(desired, &BTreeMap::new());
            let members: HashSet<&str> = members.into_values().flatten().collect();
            changed.retain(|name| !members.contains(name.as_str()));
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use spcd_protocol::Status;

    use super::MAX_EARLY;
    use crate::observed::{Extension, Observed, Presence};
    use crate::scheduler::tests::{Harness, desired, plain, rows, started};
    use crate::scheduler::{Command, Event, Request};

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
        assert!(is_look(&commands[2..]), "{commands:?}");
        // The look finds their jobs running.
        let commands = harness.pass(Some(&[]));
        assert_eq!(started(&commands), [""; 0]);
        assert_eq!(harness.state.running_jobs(), 2);
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
