//! What is planned and written, by value.

mod resolve_import;
mod show;
mod sync;

use std::collections::BTreeSet;

use spcd_protocol::Status;

use super::{Import, Job, Plan, Running, Task, Work, needs_detail, plan};
use crate::config::{SourceFile, load_plain};
use crate::diff::{self, Column, Table};
use crate::model::{DesiredState, UnknownInput};
use crate::observed::{
    Applied, Attempt, ConfigSnapshot, Detail, Extension, Observed, ObservedConnection, Presence,
    Role,
};
use crate::tuning;

/// What the files want, and what the database holds.
struct World {
    desired: DesiredState,
    observed: Observed,
}

/// Returns a connection's block.
fn block(name: &str, rest: &str) -> String {
    format!("connection \"{name}\" {{\n  plugin = \"postgres\"\n  host = \"h\"\n{rest}}}\n")
}

/// Returns the block of an aggregator of everything.
fn aggregator(name: &str) -> String {
    let kind = "  type = \"aggregator\"\n  connections = [\"*\"]\n";
    format!("connection \"{name}\" {{\n  plugin = \"postgres\"\n{kind}}}\n")
}

fn load(text: &str) -> DesiredState {
    load_plain(&[SourceFile {
        path: "conf.d/a.spc".into(),
        text: Ok(text.into()),
    }])
}

fn table(name: &str, columns: &[&str]) -> Table {
    let column = |name: &&str| Column {
        name: (*name).into(),
        data_type: "integer".into(),
        ..Column::default()
    };
    Table {
        name: name.into(),
        columns: columns.iter().map(column).collect(),
        ..Table::default()
    }
}

impl World {
    /// Nothing is there yet.
    fn new(text: &str) -> Self {
        let mut observed = Observed {
            admitted: true,
            drift_known: true,
            ..Observed::default()
        };
        for extension in ["postgres_fdw", "file_fdw", "mysql_fdw"] {
            let installed = Extension::Installed;
            observed.extensions.insert(extension.into(), installed);
        }
        let desired = load(text);
        Self { desired, observed }
    }

    /// Everything is there as the files want it, with one table.
    fn settled(text: &str) -> Self {
        let mut world = Self::new(text);
        for (name, connection) in &world.desired.connections {
            let traits = connection.target.as_ref().map(|one| one.wrapper_traits());
            let tables = [table("t", &["a"])];
            let known = ObservedConnection {
                status: Status::Ready,
                error: None,
                warnings: Vec::new(),
                comments_set: true,
                written: ConfigSnapshot::of(connection),
                schema_hash: Some(diff::hash(&tables, traits.unwrap_or_default())),
                applied: Some(Applied::complete(connection.target_hash())),
                waits_for: None,
            };
            world.observed.connections.insert(name.clone(), known);
            let server = connection.target.as_ref().ok();
            let nothing = Detail::default();
            let tuning = server.map(|target| {
                let options = target.server_options();
                tuning::tuning_after(target, nothing.existing(target), &options, &tables)
            });
            let detail = Detail {
                tuning: tuning.unwrap_or_default(),
                server: server.map(|target| (target.wrapper.clone(), target.server_options())),
                mapping: server.map(|target| target.mapping.clone()),
                tables: tables.to_vec(),
                ..Detail::default()
            };
            world.observed.details.insert(name.clone(), detail);
        }
        world
    }

    fn known(&mut self, name: &str) -> &mut ObservedConnection {
        self.observed.connections.get_mut(name).unwrap()
    }

    fn made(&mut self, name: &str) -> &mut Applied {
        self.known(name).applied.as_mut().unwrap()
    }

    fn plan(&self) -> Plan {
        plan(&self.desired, &self.observed, &Running::default())
    }

    fn work(&self, name: &str) -> Work {
        let mut works = self.plan().work.into_iter();
        works.find(|work| work.name == name).unwrap()
    }

    fn import(&self, name: &str) -> Import {
        match self.work(name).task {
            Task::Import(import) => *import,
            task => panic!("{task:?}"),
        }
    }

    /// Returns the status to which the plan brings a row, and its error; `None`: it stays.
    fn row(&self, name: &str) -> Option<(Status, String)> {
        let rows = self.plan().rows;
        let row = rows.into_iter().find(|row| row.name == name)?;
        Some((*row.route.last()?, row.error.unwrap_or_default()))
    }
}

#[test]
fn a_drop_that_failed_is_an_error_until_it_is_due() {
    for rest in ["  import_schema = \"disabled\"\n", ""] {
        let mut world = World::settled(&block("a", rest));
        if rest.is_empty() {
            world.desired = load("");
        }
        let attempt = |due| Attempt {
            target_hash: String::new(),
            error: "in use".into(),
            due,
        };
        world.observed.attempts.insert("a".into(), attempt(false));
        assert_eq!(world.row("a"), Some((Status::Error, "in use".into())));
        assert!(world.plan().work.is_empty());
        world.observed.attempts.insert("a".into(), attempt(true));
        assert!(matches!(world.work("a").task, Task::Drop { .. }));
    }
}

#[test]
fn what_another_role_made_is_left_alone() {
    let takings: [fn(&mut Applied); 2] = [
        |made| made.schema = Presence::Foreign,
        |made| made.server = Presence::Foreign,
    ];
    for (what, take) in ["schema", "server"].into_iter().zip(takings) {
        let mut world = World::settled(&block("a", ""));
        take(world.made("a"));
        let (status, error) = world.row("a").unwrap();
        assert_eq!(status, Status::Error);
        assert!(error.starts_with(&format!("a {what} named \"a\" exists")));
        assert!(world.plan().work.is_empty());
    }
    let mut world = World::new(&aggregator("all"));
    (world.observed.taken).insert("all".into(), "schema".into());
    assert_eq!(world.row("all").unwrap().0, Status::Error);
    let mut world = World::settled(&aggregator("all"));
    world.made("all").schema = Presence::Foreign;
    assert_eq!(world.row("all").unwrap().0, Status::Error);
}

#[test]
fn an_extension_that_is_missing_says_where_it_comes_from() {
    let mut world = World::new(&block("a", ""));
    let extension = world.observed.extensions.get_mut("postgres_fdw").unwrap();
    *extension = Extension::Missing;
    let package = "get it from Debian's package postgresql-contrib";
    assert!(world.row("a").unwrap().1.ends_with(package));
    let own = "plugin \"own\" {\n  wrapper = \"own_fdw\"\n}\n\
               connection \"b\" {\n  plugin = plugin.own\n}\n";
    let mut world = World::new(own);
    (world.observed.extensions).insert("own_fdw".into(), Extension::Missing);
    let (status, error) = world.row("b").unwrap();
    assert_eq!(status, Status::Error);
    assert!(error.ends_with("get it from its vendor"), "{error}");
}

#[test]
fn what_came_from_an_unknown_input_stays() {
    let unknown = |path: &str, is_directory: bool| UnknownInput {
        mirror: None,
        path: path.into(),
        is_directory,
        error: None,
    };
    let mut world = World::settled(&block("a", ""));
    world.desired = load("");
    for (path, is_directory, stays) in [
        ("conf.d", true, true),
        ("conf.d/", true, true),
        ("conf.d/a.spc", false, true),
        ("conf.d", false, false),
        ("conf", true, false),
        ("other", true, false),
    ] {
        world.desired.unknown_inputs = vec![unknown(path, is_directory)];
        assert_eq!(world.plan().is_empty(), stays, "{path}");
    }
    world.desired.unknown_inputs = vec![unknown("conf.d", true)];
    for (status, intact, becomes) in [
        (Status::Pending, true, Some((Status::Ready, String::new()))),
        (
            Status::Updating,
            false,
            Some((Status::Error, "conf.d/a.spc: no longer there".into())),
        ),
        (Status::Error, true, None),
        (Status::Disabled, true, None),
    ] {
        world.known("a").status = status;
        world.made("a").intact = intact;
        assert_eq!(world.row("a"), becomes);
    }
    world.desired.unknown_inputs[0].error = Some("it is unreadable".into());
    let expected = (Status::Error, "it is unreadable".to_owned());
    assert_eq!(world.row("a"), Some(expected));
}

#[test]
fn a_row_of_which_nothing_was_made_goes_at_once() {
    let mut world = World::settled(&block("a", ""));
    world.desired = load("");
    world.known("a").applied = None;
    for (status, route) in [
        (Status::Ready, vec![Status::Deleting]),
        (Status::Deleting, vec![]),
    ] {
        world.known("a").status = status;
        let rows = world.plan().rows;
        assert_eq!((rows.len(), &rows[0].route), (1, &route));
        assert!(rows[0].remove);
    }
}

#[test]
fn the_tables_of_a_plugin_are_asked_again_with_another_version_of_its_extension() {
    let own = "plugin \"own\" {\n  wrapper = \"own_fdw\"\n  schema_mode = \"static\"\n}\n\
               connection \"a\" {\n  plugin = plugin.own\n}\n";
    let mut world = World::settled(own);
    assert!(world.plan().is_empty(), "no version is known");
    (world.observed.versions).insert("own_fdw".into(), "2".into());
    assert!(world.work("a").is_refresh());
    world.made("a").extension_version = Some("2".into());
    assert!(world.plan().is_empty());
}

#[test]
fn a_paused_source_is_not_asked_and_what_differs_says_so() {
    let mut world = World::settled(&block("a", ""));
    world.observed.paused.insert("a".into());
    world.observed.ask.insert("a".into());
    assert!(world.plan().is_empty());
    world.made("a").target_hash = "another".into();
    let (status, error) = world.row("a").unwrap();
    assert_eq!(status, Status::Error);
    assert!(error.contains("spcd reconnect a"), "{error}");
    assert!(world.plan().work.is_empty());
}

#[test]
fn work_begins_with_what_a_client_named_and_ends_with_what_is_only_asked_again() {
    let names = ["a", "b", "c", "d", "e"];
    let text: String = names.map(|name| block(name, "")).concat();
    let mut world = World::settled(&text);
    let works = |world: &World| -> Vec<String> {
        let works = world.plan().work.into_iter();
        works.map(|work| work.name).collect()
    };
    for name in ["a", "b", "c"] {
        world.made(name).target_hash = "another".into();
    }
    let attempt = Attempt {
        target_hash: "another".into(),
        error: "no".into(),
        due: true,
    };
    world.observed.attempts.insert("b".into(), attempt);
    world.observed.ask.insert("d".into());
    assert_eq!(works(&world), ["a", "c", "b", "d"]);
    world.observed.urgent.insert("d".into());
    assert_eq!(works(&world), ["d", "a", "c", "b"]);
}

#[test]
fn readers_and_paths_follow_the_role() {
    let mut world = World::settled(&block("a", ""));
    world.observed.readers = true;
    world.observed.admitted = false;
    let role = Role {
        name: "r".into(),
        member: true,
        ..Role::default()
    };
    world.observed.roles.push(role);
    let plan = world.plan();
    assert!(plan.admit && !plan.is_empty());
    let set: BTreeSet<String> = plan.search_path.unwrap().set.into_iter().collect();
    assert_eq!(set, BTreeSet::from(["r".to_owned()]));
}

#[test]
fn what_another_role_altered_is_asked_again_and_what_it_touched_is_recorded() {
    let mut world = World::settled(&block("a", "  user = \"u\"\n"));
    world.made("a").intact = false;
    assert_eq!(world.plan().refresh_fingerprints, ["a"]);
    let alterations: [fn(&mut Detail); 3] = [
        |detail| detail.mapping = None,
        |detail| detail.server = None,
        |detail| detail.tables.clear(),
    ];
    for alter in alterations {
        let mut detail = world.observed.details["a"].clone();
        alter(&mut detail);
        let before = world.observed.details.insert("a".into(), detail);
        assert_eq!(world.import("a").reason, super::Reason::Drift);
        world
            .observed
            .details
            .extend(before.map(|detail| ("a".into(), detail)));
    }
    // What runs writes the fingerprint itself.
    world.observed.ask.insert("a".into());
    let job = Job::of(&world.work("a"));
    let running = Running {
        jobs: [("a".to_owned(), job)].into(),
        ..Running::default()
    };
    assert!(
        plan(&world.desired, &world.observed, &running)
            .refresh_fingerprints
            .is_empty()
    );
}

#[test]
fn a_closer_look_is_taken_where_something_may_differ() {
    let mut world = World::settled(&(block("a", "") + &aggregator("z")));
    let hash = crate::aggregator::target_hash([("a", Some("s"))]);
    world.made("z").target_hash = hash;
    let needs = |world: &World| {
        let needs = needs_detail(&world.desired, &world.observed);
        [needs.details, needs.tables, needs.views].map(|names| names.concat())
    };
    assert_eq!(needs(&world), ["", "", ""]);
    for name in ["a", "z"] {
        world.made(name).intact = false;
    }
    assert_eq!(needs(&world), ["a", "a", "z"]);
    for name in ["a", "z"] {
        world.made(name).intact = true;
        world.made(name).readable = false;
    }
    assert_eq!(needs(&world), ["a", "a", "z"]);
    world.made("a").readable = true;
    world.made("z").readable = true;
    world.made("a").target_hash = "earlier".into();
    assert_eq!(needs(&world), ["a", "a", ""]);
    world.desired = load("");
    assert_eq!(needs(&world), ["", "a", ""], "its tables are to be dropped");
}

#[test]
fn a_connection_that_is_disabled_for_its_aggregator_keeps_its_status_until_it_is_hidden() {
    let mut world = World::settled(&(block("a", "") + &aggregator("z")));
    world.desired = load(&(block("a", "  import_schema = \"disabled\"\n") + &aggregator("z")));
    assert!(world.import("a").hidden);
    // Renaming its schema makes the row `disabled`, in the same commit.
    assert_eq!(world.row("a"), None);
    let hidden = crate::aggregator::hidden_schema("a");
    world.made("a").hidden_schema = Some(hidden);
    world.observed.ask.insert("a".into());
    assert_eq!(world.row("a"), Some((Status::Disabled, String::new())));
}
