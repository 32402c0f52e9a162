//! Running jobs, and the work that a plan leaves to them.

use std::collections::{BTreeMap, BTreeSet};

use spcd_protocol::Status;

use super::{Plan, Task, Work};
use crate::model::{DesiredState, Lane};
use crate::observed::Observed;

/// The running jobs, as an input of the planner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// The running jobs, by connection.
    pub jobs: BTreeMap<String, Job>,
    /// Connections that pause after a lock time-out.
    pub locked: BTreeSet<String>,
    /// Extensions and lanes are changed while the plan is carried out. Work that needs one of them waits
    /// for the next pass, which observes the change. False in a dry run, which shows that work.
    pub prepares: bool,
}

/// The work of a running job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    key: Key,
    /// Whether it imports although nothing is known to differ.
    pub is_refresh: bool,
}

/// Identity of a job's work.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Import { hash: String, hidden: bool },
    SyncAggregator(String),
    Drop { stays: bool },
    Grant,
}

impl Job {
    /// Returns the job that does this work.
    pub fn of(work: &Work) -> Self {
        let key = match &work.task {
            Task::Import(import) => Key::Import {
                hash: import.target_hash.clone(),
                hidden: import.hidden,
            },
            Task::SyncAggregator(sync) => Key::SyncAggregator(sync.target_hash.clone()),
            Task::Drop { keep, .. } => Key::Drop {
                stays: keep.is_some(),
            },
            Task::Grant { .. } => Key::Grant,
        };
        Self {
            key,
            is_refresh: work.is_refresh(),
        }
    }

    /// Whether it imports.
    pub fn is_import(&self) -> bool {
        matches!(self.key, Key::Import { .. })
    }

    /// Returns whether it drops objects.
    pub fn is_drop(&self) -> bool {
        matches!(self.key, Key::Drop { .. })
    }

    /// Whether it imports the target with this hash.
    pub fn imports(&self, target_hash: &str) -> bool {
        matches!(&self.key, Key::Import { hash, .. } if hash == target_hash)
    }

    /// Whether `work` is the same work.
    fn does(&self, work: &Work) -> bool {
        self.key == Self::of(work).key
    }
}

/// Plans the cancellation of running jobs that do something else than planned, and another pass after
/// those that a client requested again.
///
/// No plan contains a running refresh again: it continues as long as its target is desired. As long as
/// drift is unknown, no job is considered needless.
pub(super) fn reconcile_jobs(
    plan: &mut Plan,
    desired: &DesiredState,
    shown: &BTreeSet<&str>,
    observed: &Observed,
    running: &Running,
) {
    let planned: BTreeMap<&str, &Work> =
        (plan.work.iter().map(|work| (work.name.as_str(), work))).collect();
    for (name, job) in &running.jobs {
        let is_enabled = |name| {
            let connection = desired.connections.get(name);
            connection.is_some_and(|connection| connection.enabled)
        };
        let is_desired =
            (is_enabled(name) || shown.contains(name.as_str())) && !observed.paused.contains(name);
        let work = planned.get(name.as_str());
        let is_same = match work {
            Some(work) => job.does(work),
            None => is_desired && job.is_refresh && job.imports(desired.target_hash(name)),
        };
        if is_same {
            if observed.ask.contains(name) {
                plan.follow_up.insert(name.clone());
                plan.defers_request = true;
            }
        } else if work.is_none() && !observed.drift_known {
            plan.undecided = true;
        } else {
            plan.cancel.insert(name.clone());
            plan.defers_request = true;
        }
    }
}

/// Defers work that has to wait for a job, a lock, an extension or a lane, or until drift is known.
pub(super) fn defer_waiting(plan: &mut Plan, observed: &Observed, running: &Running) {
    let is_running = |name: &String| running.jobs.contains_key(name);
    plan.refresh_fingerprints.retain(|name| !is_running(name));
    // A running job writes its row's status itself, but for a refresh that finds nothing. The other
    // columns are written after that.
    for row in plan.rows.extract_if(.., |row| is_running(&row.name)) {
        let is_refresh = (running.jobs.get(&row.name)).is_some_and(|job| job.is_refresh);
        let is_left = is_refresh && !row.route.is_empty();
        if is_left || row.written.is_some() || row.warnings.is_some() {
            plan.follow_up.insert(row.name);
        }
    }
    // After a lock time-out, no pass tries again before the pause is over, unless a client names the
    // connection.
    let waits = |name: &String| {
        is_running(name) || running.locked.contains(name) && !observed.urgent.contains(name)
    };
    let (extensions, lanes) = (&plan.extensions, &plan.lanes);
    let is_changing = |lane: &Lane| {
        let server = lane.server();
        lanes.iter().any(|change| change.server == server)
    };
    let needs_preparation = |work: &Work| match &work.task {
        Task::Import(import) => {
            let target = &import.target;
            (target.extensions()).any(|one| extensions.contains(one))
                || target.lane.as_ref().is_some_and(is_changing)
        }
        Task::SyncAggregator(sync) => (sync.gateway.iter())
            .flat_map(|gateway| &gateway.lanes)
            .any(|one| is_changing(&one.lane)),
        Task::Drop { .. } | Task::Grant { .. } => false,
    };
    plan.defers_request |= running.prepares && !(extensions.is_empty() && lanes.is_empty());
    let is_deferred =
        |work: &mut Work| waits(&work.name) || running.prepares && needs_preparation(work);
    let deferred = plan.work.extract_if(.., is_deferred);
    plan.deferred = deferred.map(|work| work.name).collect();
    if !observed.drift_known {
        let all = plan.rows.len();
        (plan.rows).retain(|row| row.route.last() != Some(&Status::Ready));
        plan.undecided |= plan.rows.len() != all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SourceFile, load_plain};
    use crate::observed::{Applied, ConfigSnapshot, Extension, ObservedConnection};
    use crate::planner::plan;

    /// Two connections: `a` exists as desired, `b` is new.
    struct World {
        desired: DesiredState,
        observed: Observed,
        running: Running,
    }

    impl World {
        fn new() -> Self {
            let block = |name| {
                format!("connection \"{name}\" {{\n plugin = \"postgres\"\n host = \"h\"\n}}\n")
            };
            let desired = load_plain(&[SourceFile {
                path: "a.spc".into(),
                text: Ok(["a", "b"].map(block).concat()),
            }]);
            let a = &desired.connections["a"];
            let known = ObservedConnection {
                status: Status::Ready,
                error: None,
                warnings: Vec::new(),
                comments_set: true,
                written: ConfigSnapshot::of(a),
                schema_hash: None,
                waits_for: None,
                applied: Some(Applied::complete(a.target_hash())),
            };
            let observed = Observed {
                admitted: true,
                drift_known: true,
                connections: [("a".to_owned(), known)].into(),
                extensions: [("postgres_fdw".to_owned(), Extension::Installed)].into(),
                ..Observed::default()
            };
            Self {
                desired,
                observed,
                running: Running::default(),
            }
        }

        fn plan(&self) -> Plan {
            plan(&self.desired, &self.observed, &self.running)
        }

        /// Starts what the plan names.
        fn start(&mut self) {
            for work in self.plan().work {
                self.running.jobs.insert(work.name.clone(), Job::of(&work));
            }
        }

        fn known(&mut self) -> &mut ObservedConnection {
            self.observed.connections.get_mut("a").unwrap()
        }
    }

    fn names(names: &BTreeSet<String>) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }

    #[test]
    fn work_that_runs_is_planned_only_once() {
        let mut world = World::new();
        assert_eq!(world.plan().work.len(), 1);
        world.start();
        let plan = world.plan();
        assert_eq!((plan.work.len(), plan.rows.len()), (0, 0));
        assert_eq!(names(&plan.deferred), ["b"]);
        assert_eq!(names(&plan.cancel), [""; 0]);
        assert!(!plan.defers_request);
    }

    #[test]
    fn a_request_for_what_runs_is_followed_by_another_pass() {
        let mut world = World::new();
        world.start();
        world.observed.ask.insert("b".into());
        let plan = world.plan();
        assert_eq!(names(&plan.follow_up), ["b"]);
        assert!(plan.defers_request && plan.cancel.is_empty());
    }

    #[test]
    fn a_job_for_another_target_is_cancelled() {
        let mut world = World::new();
        world.start();
        let jobs = world.running.jobs.values_mut();
        for job in jobs {
            job.key = Key::Grant;
        }
        let plan = world.plan();
        assert_eq!(names(&plan.cancel), ["b"]);
        assert_eq!(names(&plan.deferred), ["b"]);
        assert!(plan.defers_request && !plan.is_empty());
    }

    #[test]
    fn a_refresh_goes_on_as_long_as_its_target_is_desired() {
        let mut world = World::new();
        world.observed.ask.insert("a".into());
        world.start();
        world.observed.ask.clear();
        assert!(world.running.jobs["a"].is_refresh);
        assert_eq!(names(&world.plan().cancel), [""; 0]);
        world.observed.paused.insert("a".into());
        assert_eq!(names(&world.plan().cancel), ["a"]);
    }

    #[test]
    fn a_refresh_that_may_write_nothing_is_followed_by_a_pass_that_writes_the_row() {
        let mut world = World::new();
        world.observed.ask.insert("a".into());
        world.start();
        world.observed.ask.clear();
        assert!(!world.plan().follow_up.contains("a"));
        // It began before it was known that the pending connection is as it should be.
        world.known().status = Status::Pending;
        let plan = world.plan();
        assert!(plan.rows.is_empty() && plan.cancel.is_empty());
        assert!(plan.follow_up.contains("a"));
    }

    #[test]
    fn no_job_is_needless_until_it_is_known_what_has_drifted() {
        let mut world = World::new();
        let applied = world.known().applied.as_mut().unwrap();
        applied.intact = false;
        world.start();
        let applied = world.known().applied.as_mut().unwrap();
        applied.intact = true;
        world.observed.drift_known = false;
        let plan = world.plan();
        assert!(plan.undecided && plan.cancel.is_empty());
        world.observed.drift_known = true;
        let plan = world.plan();
        assert_eq!(names(&plan.cancel), ["a"]);
        assert!(!plan.undecided);
    }

    #[test]
    fn nothing_becomes_ready_until_it_is_known_what_has_drifted() {
        let mut world = World::new();
        world.known().status = Status::Pending;
        world.observed.drift_known = false;
        let plan = world.plan();
        assert!(plan.undecided);
        assert!(plan.rows.iter().all(|row| row.name != "a"));
        world.observed.drift_known = true;
        let plan = world.plan();
        assert!(plan.rows.iter().any(|row| row.name == "a"));
    }

    #[test]
    fn a_lock_is_left_to_its_holder_unless_a_client_names_the_connection() {
        let mut world = World::new();
        world.running.locked.insert("b".into());
        let plan = world.plan();
        assert_eq!((plan.work.len(), names(&plan.deferred)), (0, vec!["b"]));
        world.observed.urgent.insert("b".into());
        assert_eq!(world.plan().work.len(), 1);
    }

    #[test]
    fn work_waits_for_its_extension_except_in_a_dry_run() {
        let mut world = World::new();
        let extension = ("postgres_fdw".to_owned(), Extension::Available);
        world.observed.extensions.extend([extension]);
        let plan = world.plan();
        assert_eq!((plan.extensions.len(), plan.work.len()), (1, 1));
        assert!(plan.deferred.is_empty() && !plan.defers_request);
        world.running.prepares = true;
        let plan = world.plan();
        assert_eq!((plan.extensions.len(), plan.work.len()), (1, 0));
        assert_eq!(
            (names(&plan.deferred), plan.defers_request),
            (vec!["b"], true)
        );
        assert_eq!(plan.rows.len(), 1, "its row does not wait");
        (world.observed.extensions).insert("postgres_fdw".into(), Extension::Installed);
        let plan = world.plan();
        assert_eq!((plan.extensions.len(), plan.work.len()), (0, 1));
        assert!(!plan.defers_request);
    }

    #[test]
    fn work_waits_for_its_lane_and_other_work_does_not() {
        let mut world = World::new();
        let connection = world.desired.connections.get_mut("b").unwrap();
        let connection = std::sync::Arc::make_mut(connection);
        connection.target.as_mut().unwrap().lane = Some(Lane {
            group: "spcd_gateway_p_1".into(),
            number: Some(0),
        });
        let server = "spcd_gateway_p_1_0".to_owned();
        world.desired.lane_servers = [(server, Default::default())].into();
        world.observed.ask.insert("a".into());
        let plan = world.plan();
        assert_eq!((plan.lanes.len(), plan.work.len()), (1, 2));
        world.running.prepares = true;
        let plan = world.plan();
        let work: Vec<&str> = plan.work.iter().map(|work| work.name.as_str()).collect();
        assert_eq!((plan.lanes.len(), work), (1, vec!["a"]));
        assert_eq!(
            (names(&plan.deferred), plan.defers_request),
            (vec!["b"], true)
        );
    }

    #[test]
    fn the_row_of_a_running_job_is_written_after_it() {
        let mut world = World::new();
        world.observed.ask.insert("a".into());
        world.start();
        world.observed.ask.clear();
        world.known().written.end_line += 1;
        let plan = world.plan();
        assert!(plan.rows.iter().all(|row| row.name != "a"));
        assert!(plan.follow_up.contains("a"));
    }
}
