//! Aggregators: when their views are looked at, and what is written then.

use spcd_protocol::Status;

use super::{World, aggregator as block_of_aggregator, block, table};
use crate::aggregator::{self, AggregatorInput, ExistingView};
use crate::observed::{Applied, Attempt, Presence, Views};
use crate::planner::{AggregatorSync, Bookkeeping, Reason, Task, resolve_aggregator};

/// Two members and their aggregator, all as they should be.
fn settled() -> World {
    let text = block("a", "") + &block("b", "") + &block_of_aggregator("z");
    let mut world = World::settled(&text);
    let hash = hash(&mut world);
    *world.made("z") = Applied::complete(&hash);
    world.made("z").server = Presence::Absent;
    assert!(world.plan().is_empty());
    world
}

/// The hash that the aggregator is to have.
fn hash(world: &mut World) -> String {
    let shape = |name: &str| world.observed.connections[name].schema_hash.clone();
    let shapes = [("a", shape("a")), ("b", shape("b"))];
    aggregator::target_hash(shapes.iter().map(|(name, shape)| (*name, shape.as_deref())))
}

fn why(world: &World) -> Reason {
    match world.work("z").task {
        Task::SyncAggregator(sync) => sync.reason,
        task => panic!("{task:?}"),
    }
}

fn refused(target_hash: &str) -> Attempt {
    Attempt {
        target_hash: target_hash.into(),
        error: "no".into(),
        due: false,
    }
}

#[test]
fn views_follow_members_and_what_became_of_them() {
    let mut world = settled();
    world.known("a").schema_hash = Some("other".into());
    assert_eq!(why(&world), Reason::Changed);
    let mut world = settled();
    world.made("z").intact = false;
    assert_eq!(why(&world), Reason::Drift, "nothing is known of the views");
    let views = |altered: bool, unreadable: bool| Views {
        altered: altered.then(|| "t".to_owned()).into_iter().collect(),
        unreadable: unreadable.then(|| "t".to_owned()).into_iter().collect(),
    };
    for (altered, unreadable, touched) in [
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        (world.observed.views).insert("z".into(), views(altered, unreadable));
        match touched {
            true => assert_eq!(world.plan().refresh_fingerprints, ["z"]),
            false => assert_eq!(why(&world), Reason::Drift),
        }
        assert_eq!(world.plan().work.is_empty(), touched);
    }
    world.made("z").readable = false;
    assert_eq!(why(&world), Reason::Drift);
}

#[test]
fn warnings_of_an_aggregator_are_looked_at_again_on_request() {
    let mut world = settled();
    world.observed.ask.insert("z".into());
    assert!(world.plan().is_empty());
    world.made("z").warnings = vec!["a view is in the way".into()];
    world.known("z").warnings = vec!["a view is in the way".into()];
    assert_eq!(why(&world), Reason::Refresh);
    assert_eq!(world.row("z"), None, "it stays ready");
}

#[test]
fn an_aggregator_waits_for_members_that_change_unless_they_are_slow_or_fail() {
    let mut world = settled();
    world.made("a").target_hash = "earlier".into();
    let plan = world.plan();
    assert_eq!(plan.waiting.len(), 1);
    assert_eq!(world.row("z"), Some((Status::Updating, String::new())));
    world.observed.slow.insert("a".into());
    assert!(world.plan().waiting.is_empty());
    world.observed.slow.clear();
    (world.observed.attempts).insert("a".into(), refused("another"));
    assert!(world.plan().waiting.is_empty());
    // Also where there are other members to be shown.
    let mut world = settled();
    world.made("a").target_hash = "earlier".into();
    world.known("b").schema_hash = Some("other".into());
    let plan = world.plan();
    assert!(plan.waiting.contains("z") && plan.work.iter().all(|work| work.name != "z"));
}

#[test]
fn an_attempt_that_failed_is_left_until_it_is_due() {
    let mut world = settled();
    world.known("a").schema_hash = Some("other".into());
    let hash = hash(&mut world);
    world.observed.attempts.insert("z".into(), refused(&hash));
    assert_eq!(world.row("z"), Some((Status::Error, "no".into())));
    assert!(world.plan().work.is_empty());
    let attempt = world.observed.attempts.get_mut("z").unwrap();
    attempt.due = true;
    assert_eq!(why(&world), Reason::Changed);
}

/// The aggregator was made while a member was altered.
fn provisional() -> World {
    let mut world = settled();
    let hash = hash(&mut world);
    world.made("z").target_hash = aggregator::provisional_hash(&hash, ["7"]);
    world.known("z").status = Status::Updating;
    world.made("a").intact = false;
    world
}

#[test]
fn an_aggregator_of_altered_members_waits_only_for_those_that_are_repaired() {
    let mut world = provisional();
    world.observed.drift_known = false;
    let plan = world.plan();
    assert!(plan.undecided && plan.work.iter().all(|work| work.name != "z"));
    world.observed.drift_known = true;
    // It looks as it was: that is recorded, and then it is repaired.
    assert_eq!(world.plan().refresh_fingerprints, ["a"]);
    assert!(world.plan().waiting.contains("z"));
    world.observed.details.clear();
    let plan = world.plan();
    assert!(plan.waiting.contains("z"), "its import is planned");
    let target = world.desired.target_hash("a").to_owned();
    world.observed.attempts.insert("a".into(), refused(&target));
    let ready = Some((Status::Ready, String::new()));
    assert_eq!(world.row("z"), ready, "its import failed");
    world.observed.attempts.clear();
    world.observed.paused.insert("a".into());
    assert_eq!(world.row("z"), ready, "it is paused");
    assert!(world.plan().waiting.is_empty());
    world.observed.paused.clear();
    world.made("a").intact = true;
    assert_eq!(why(&world), Reason::Changed);
}

fn input(members: &[&str]) -> AggregatorInput {
    let member = |name: &&str| ((*name).to_owned(), (*name).to_owned(), 0);
    AggregatorInput {
        members: members.iter().map(member).collect(),
        shapes: vec![vec![table("t", &["a"]), table("u", &["a"])]],
        lock_capacity: 1_000,
        target_hash: aggregator::target_hash(members.iter().map(|name| (*name, Some("s")))),
        ..AggregatorInput::default()
    }
}

fn sync(members: &[&str]) -> AggregatorSync {
    AggregatorSync {
        target_hash: "planned".into(),
        members: members.iter().map(|name| (*name).to_owned()).collect(),
        applied: None,
        reason: Reason::New,
        warnings: vec!["of the file".into()],
        tables: vec!["old".into()],
        readers: true,
        gateway: None,
    }
}

#[test]
fn a_new_aggregator_gets_a_schema_and_a_view_for_each_table() {
    let (sync, input) = (sync(&["a", "b"]), input(&["a", "b"]));
    let units = resolve_aggregator("z", Status::Pending, &sync, &input);
    let [unit] = &units[..] else {
        panic!("{units:?}")
    };
    let begin = "CREATE SCHEMA \"z\";\nGRANT USAGE ON SCHEMA \"z\" TO spcd_users;\n";
    assert!(unit.sql.starts_with(begin), "{}", unit.sql);
    assert_eq!(unit.row.route, [Status::Ready]);
    assert_eq!(unit.row.warnings, Some(vec!["of the file".to_owned()]));
    let Bookkeeping::Made(record) = &unit.record else {
        panic!("{:?}", unit.record)
    };
    assert_eq!(record.target_hash, input.target_hash);
    assert_eq!(record.members.as_ref(), Some(&sync.members));
    assert_eq!(record.tables, ["t", "u"]);
    assert!(!record.compare_again);
}

#[test]
fn what_a_connection_of_its_name_had_goes_first() {
    let mut sync = sync(&["a"]);
    sync.applied = Some(Applied::complete("of a source"));
    sync.reason = Reason::Drift;
    let units = resolve_aggregator("z", Status::Ready, &sync, &input(&["a"]));
    let begin = "DROP FOREIGN TABLE \"z\".\"old\";\n\
                 DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER \"z\";\nDROP SERVER \"z\";\n";
    assert!(units[0].sql.starts_with(begin), "{}", units[0].sql);
    assert_eq!(units[0].row.route, [Status::Updating, Status::Ready]);
    let Bookkeeping::Made(record) = &units[0].record else {
        panic!("{:?}", units[0].record)
    };
    assert!(record.compare_again);
}

#[test]
fn readers_get_back_what_they_lost() {
    let mut sync = sync(&[]);
    let mut input = input(&[]);
    let mut made = Applied::complete(&input.target_hash);
    made.server = Presence::Absent;
    made.readable = false;
    sync.applied = Some(made);
    let view = |name: &str, exists: bool| ExistingView {
        table: name.into(),
        name: name.into(),
        exists,
        unreadable: true,
        ..ExistingView::default()
    };
    input.existing_views = vec![view("t", true), view("u", false)];
    let units = resolve_aggregator("z", Status::Ready, &sync, &input);
    let sql: Vec<&str> = units[0].sql.lines().take(2).collect();
    let expected = [
        "GRANT USAGE ON SCHEMA \"z\" TO spcd_users;",
        "GRANT SELECT ON \"z\".\"t\" TO spcd_users;",
    ];
    assert_eq!(sql, expected);
}

#[test]
fn an_aggregator_that_is_asked_again_writes_only_what_differs() {
    let mut sync = sync(&[]);
    sync.reason = Reason::Refresh;
    sync.readers = false;
    let mut input = input(&[]);
    let mut made = Applied::complete(&input.target_hash);
    made.server = Presence::Absent;
    sync.applied = Some(made);
    assert_eq!(resolve_aggregator("z", Status::Ready, &sync, &input), []);
    input.target_hash = aggregator::provisional_hash(&input.target_hash, ["7"]);
    let units = resolve_aggregator("z", Status::Ready, &sync, &input);
    assert_eq!(units[0].row.route, [Status::Updating]);
}

#[test]
fn views_that_need_many_locks_are_written_in_batches() {
    let sync = sync(&["a", "b"]);
    let mut input = input(&["a", "b"]);
    input.shapes[0] = (0..20)
        .map(|n| table(&format!("t{n:02}"), &["a"]))
        .collect();
    input.lock_capacity = 40;
    let units = resolve_aggregator("z", Status::Pending, &sync, &input);
    assert!(units.len() > 1);
    let (last, first) = units.split_last().unwrap();
    for unit in first {
        assert!(unit.row.is_empty() && unit.locks <= 10, "{unit:?}");
        let Bookkeeping::Made(record) = &unit.record else {
            panic!("{:?}", unit.record)
        };
        assert_eq!(record.target_hash, "aggregator:incomplete");
    }
    assert!(units[0].sql.starts_with("CREATE SCHEMA"));
    assert!(!units[1].sql.contains("CREATE SCHEMA"));
    assert_eq!(last.row.route, [Status::Ready]);
}

#[test]
fn members_that_show_nothing_and_too_many_members_are_warnings() {
    let names: Vec<String> = (0..12).map(|n| format!("m{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let warnings = |input: &AggregatorInput| {
        let units = resolve_aggregator("z", Status::Pending, &sync(&names), input);
        units.last().unwrap().row.warnings.clone().unwrap()
    };
    let some = warnings(&input(&names[..3]));
    assert!(some[0].starts_with("connections without tables are not shown: \"m03\""));
    assert!(!some[0].contains("more"));
    let none = warnings(&input(&[]));
    assert!(none[0].ends_with("\"m09\" and 2 more"), "{none:?}");
    let mut few_locks = input(&names);
    let is_told = |input: &AggregatorInput| {
        let mut warnings = warnings(input).into_iter();
        warnings.any(|text| text.contains("raise max_locks_per_transaction"))
    };
    for (capacity, told) in [(47, true), (48, false)] {
        few_locks.lock_capacity = capacity;
        assert_eq!(is_told(&few_locks), told);
    }
}

#[test]
fn current_views_stay_ready_while_the_gateway_is_waited_for() {
    let mut world = settled();
    let waiting = world.desired.connections.get_mut("z").unwrap();
    std::sync::Arc::make_mut(waiting).awaits_source = true;
    assert!(world.plan().is_empty());
    world.known("a").schema_hash = Some("other".into());
    assert_eq!(world.row("z"), Some((Status::Updating, String::new())));
    assert!(world.plan().work.is_empty());
}

#[test]
fn a_disabled_member_whose_schema_cannot_be_hidden_is_in_error() {
    let text = block("a", "  import_schema = \"disabled\"\n") + &block_of_aggregator("z");
    let mut world = World::settled(&text);
    world.known("a").status = Status::Ready;
    assert_eq!(
        world.row("a"),
        None,
        "the commit that hides it changes its status"
    );
    let target = world.desired.target_hash("a").to_owned();
    world.observed.attempts.insert("a".into(), refused(&target));
    assert_eq!(world.row("a"), Some((Status::Error, "no".into())));
}
