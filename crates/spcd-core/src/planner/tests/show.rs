//! The dry run.

use std::collections::BTreeMap;

use serde_json::json;

use super::{World, aggregator, block, table};
use crate::diff::{Blockers, BrokenBy, Dependent};
use crate::observed::{Applied, Attempt, Extension, ImportPreview, Presence, Role, Views};
use crate::planner::{RemoteSchema, show, show_json, show_sql};

/// A little of everything: what each part of the plan shows as.
fn changed() -> World {
    let mut names = ["a", "b", "c", "d", "e"].map(|name| block(name, ""));
    names[2] = block("c", "  import_schema = \"disabled\"\n");
    let disabled = "  import_schema = \"disabled\"\n";
    let mut world = World::settled(&(names.concat() + &aggregator("z")));
    // New.
    world.observed.connections.remove("a");
    world.observed.details.remove("a");
    // Another target: one option is another, one is gone, one is new.
    let made = world.observed.details.get_mut("b").unwrap();
    let (_, options) = made.server.as_mut().unwrap();
    options.insert("host".into(), "old".into());
    options.insert("gone".into(), "x".into());
    options.remove("connect_timeout");
    made.mapping = None;
    world.made("b").target_hash = "earlier".into();
    (world.observed.tables).insert("b".into(), vec!["t".into(), "lost".into()]);
    // Disabled, though an aggregator of others shows nothing of it.
    world.desired = super::load(
        &(block("a", "")
            + &block("b", "")
            + &block("c", disabled)
            + &block("e", "")
            + "connection \"z\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
               connections = [\"e\"]\n}\n"),
    );
    // Unreadable.
    world.observed.readers = true;
    world.observed.admitted = false;
    world.made("e").readable = false;
    world.observed.details.get_mut("e").unwrap().unreadable = vec!["t".into()];
    let role = |name: &str, set: Option<&str>, member: bool| Role {
        name: name.into(),
        member,
        set: set.map(str::to_owned),
        there: set.is_some(),
        ..Role::default()
    };
    world.observed.roles = vec![role("r", None, true), role("s", Some("x"), false)];
    world
}

#[test]
fn every_change_has_a_line_for_people_a_member_for_programs_and_a_statement() {
    let mut world = changed();
    let postgres_fdw = world.observed.extensions.get_mut("postgres_fdw").unwrap();
    *postgres_fdw = Extension::Available;
    let plan = world.plan();
    let text = show(&plan, &world.observed);
    for line in [
        "~ spcd_users may read the schema \"spcd\"\n",
        "+ extension \"postgres_fdw\"\n",
        "+ connection \"a\"\n    + schema \"a\"\n    + server \"a\" (postgres_fdw)\n",
        "    + user mapping\n    + tables of schema \"public\": known after import\n",
        "~ connection \"b\"\n",
        "    - server option gone\n",
        "    ~ server option host: old → h\n",
        "    + server option connect_timeout = 10\n",
        "    ~ user mapping\n",
        "    + table lost (it is gone)\n",
        "    ~ its tables are compared with the source's\n",
        "- connection \"c\" (disabled)\n    - table t\n    - schema, server, user mapping\n",
        "- connection \"d\"\n",
        "~ connection \"e\"\n    ~ spcd_users may read it (1 tables)\n",
        "~ aggregator \"z\"\n    ~ its views follow 1 members\n",
        "~ search path of role \"r\"\n",
        "- search path of role \"s\"\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let json = show_json(&plan, &world.observed);
    let action = |name: &str| {
        let changes = json["changes"].as_array().unwrap();
        let change = changes.iter().find(|change| change["connection"] == name);
        let change = change.unwrap();
        (change["action"].clone(), change["why"].clone())
    };
    assert_eq!(action("a"), (json!("create"), json!("new")));
    assert_eq!(action("b"), (json!("update"), json!("changed")));
    assert_eq!(action("c"), (json!("disable"), json!("disabled")));
    assert_eq!(action("d"), (json!("delete"), json!("removed")));
    assert_eq!(action("e"), (json!("update"), json!("grants")));
    assert_eq!(action("z"), (json!("update"), json!("changed")));
    assert_eq!(json["extensions"], json!(["postgres_fdw"]));
    let roles = json!([{"role": "r", "action": "set"}, {"role": "s", "action": "reset"}]);
    assert_eq!(json["search_path"], roles);
    let sql = show_sql(&plan, &world.observed);
    for line in [
        "CREATE EXTENSION IF NOT EXISTS \"postgres_fdw\";\n",
        "-- a\n-- its tables: known after import\nCREATE SCHEMA \"a\";\n",
        "SET \"host\" 'h'",
        "-- c\nDROP FOREIGN TABLE",
        "DROP SERVER \"d\";\n",
        "-- e\nGRANT USAGE",
        "-- z\n-- its views: known once its members are looked at\n",
        "-- user mapping for PUBLIC: ",
    ] {
        assert!(sql.contains(line), "{line:?} is not in\n{sql}");
    }
}

#[test]
fn why_something_is_done_is_told() {
    let mut world = World::settled(&(block("a", "") + &aggregator("z")));
    let shape = world.observed.connections["a"].schema_hash.clone();
    let hash = crate::aggregator::target_hash([("a", shape.as_deref())]);
    *world.made("z") = Applied::complete(&hash);
    world.made("z").server = Presence::Absent;
    let whys = |world: &World| {
        let json = show_json(&world.plan(), &world.observed);
        let changes = json["changes"].as_array().unwrap().clone();
        let why = |change: &serde_json::Value| change["why"].as_str().map(str::to_owned);
        changes.iter().filter_map(why).collect::<Vec<String>>()
    };
    world.observed.ask.insert("a".into());
    assert_eq!(whys(&world), ["refresh"]);
    world.observed.ask.clear();
    world.made("a").intact = false;
    world.observed.details.clear();
    assert_eq!(whys(&world), ["drift"]);
    world.made("a").intact = true;
    world.made("z").intact = false;
    (world.observed.views).insert(
        "z".into(),
        Views {
            altered: vec!["t".into()],
            unreadable: Vec::new(),
        },
    );
    assert_eq!(whys(&world), ["drift"]);
    world.observed.connections.remove("z");
    let json = show_json(&world.plan(), &world.observed);
    assert_eq!(json["changes"][0]["action"], "create");
    assert!(show(&world.plan(), &world.observed).starts_with("+ aggregator \"z\""));
}

#[test]
fn rows_without_work_are_shown_by_themselves() {
    let text = block("a", "") + &block("b", "") + &block("c", "") + &block("d", "");
    let mut world = World::settled(&text);
    world.desired =
        super::load(&("\n".to_owned() + &block("a", "") + &block("b", "") + &block("d", "")));
    world.known("c").applied = None;
    world.known("b").status = spcd_protocol::Status::Updating;
    (world.observed.extensions).insert("postgres_fdw".into(), Extension::Installed);
    world.made("d").schema = Presence::Foreign;
    let plan = world.plan();
    let text = show(&plan, &world.observed);
    for line in [
        "~ connection \"a\"\n    ~ its row\n",
        "~ connection \"b\"\n    ~ its row: ready\n",
        "- connection \"c\"\n",
        "! connection \"d\"\n    a schema named \"d\" exists",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let json = show_json(&plan, &world.observed);
    let actions: Vec<_> = (json["changes"].as_array().unwrap().iter())
        .map(|change| change["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["state", "state", "delete", "error"]);
}

#[test]
fn what_sources_answered_ahead_is_shown_or_left_out() {
    let mut world = World::settled(&(block("a", "") + &block("b", "") + &block("c", "")));
    for name in ["a", "b", "c"] {
        world.observed.ask.insert(name.into());
    }
    let ahead = |tables: Result<Vec<_>, String>, blockers: Blockers| ImportPreview {
        tables: tables.map(RemoteSchema::from),
        blockers,
    };
    let same = ahead(Ok(vec![table("t", &["a"])]), Blockers::default());
    world.observed.answers.insert("a".into(), same);
    let view = Dependent {
        description: "view public.v".into(),
        broken_by: BrokenBy::Retype,
    };
    let of_table = BTreeMap::from([(String::new(), [view].into())]);
    let blockers = Blockers {
        dependents: BTreeMap::from([("t".to_owned(), of_table)]),
        ..Blockers::default()
    };
    let other = ahead(Ok(vec![table("u", &["a"])]), blockers);
    world.observed.answers.insert("b".into(), other);
    let none = ahead(Err("no\nroute".into()), Blockers::default());
    world.observed.answers.insert("c".into(), none);
    let mut plan = world.plan();
    plan.without_same_answers(&world.observed);
    let names: Vec<&str> = plan.work.iter().map(|work| work.name.as_str()).collect();
    assert_eq!(names, ["b", "c"], "what changes nothing is left out");
    let text = show(&plan, &world.observed);
    assert!(
        text.contains("! its source does not answer: no route\n"),
        "{text}"
    );
    assert!(
        text.contains("table u") && text.contains("public.v"),
        "{text}"
    );
    let sql = show_sql(&plan, &world.observed);
    assert!(sql.contains("CREATE FOREIGN TABLE \"b\".\"u\""), "{sql}");
    // What is not asked of a source stays.
    let mut world = World::settled(&block("a", ""));
    world.made("a").readable = false;
    world.observed.readers = true;
    world.observed.details.get_mut("a").unwrap().unreadable = vec!["t".into()];
    let mut plan = world.plan();
    plan.without_same_answers(&world.observed);
    assert_eq!(plan.work.len(), 1);
}

#[test]
fn secrets_are_masked_and_still_tell_what_differs() {
    let text = "connection \"a\" {\n  plugin = \"fdw\"\n  wrapper = \"own_fdw\"\n  schema = \"s\"\n  \
                server {\n    endpoint = \"/secret/key\"\n  }\n}\n";
    let mut world = World::new(text);
    let Some(connection) = world.desired.connections.get("a") else {
        panic!("{:?}", world.desired)
    };
    let target = connection.target.clone().unwrap();
    let secret = |world: &World| {
        let plan = world.plan();
        let all = show(&plan, &world.observed)
            + &show_sql(&plan, &world.observed)
            + &show_json(&plan, &world.observed).to_string();
        assert!(!all.contains("/secret/"), "{all}");
        all
    };
    secret(&world);
    let hidden = target.server.iter().find(|(_, option)| !option.public);
    let hidden = hidden.map(|(name, _)| name.clone());
    for there in ["/secret/key", "/secret/old"] {
        world = World::settled(text);
        world.made("a").target_hash = "earlier".into();
        if let Some(name) = &hidden {
            let detail = world.observed.details.get_mut("a").unwrap();
            let (_, options) = detail.server.as_mut().unwrap();
            options.insert(name.clone(), there.into());
            let all = secret(&world);
            assert_eq!(all.contains("SET"), there.ends_with("old"), "{all}");
        }
    }
    assert!(hidden.is_some(), "{:?}", target.server);
}

#[test]
fn another_wrapper_and_a_tunnel_are_told() {
    let mut world = World::settled(&block("a", ""));
    world.made("a").target_hash = "earlier".into();
    let detail = world.observed.details.get_mut("a").unwrap();
    detail.server = Some(("other_fdw".into(), BTreeMap::new()));
    let text = show(&world.plan(), &world.observed);
    assert!(
        text.contains("± server \"a\" other_fdw → postgres_fdw"),
        "{text}"
    );
    let tunnel = "  user = \"u\"\n  ssh {\n    host = \"gate\"\n    user = \"me\"\n  }\n";
    let world = World::new(&block("a", tunnel));
    let text = show(&world.plan(), &world.observed);
    assert!(text.contains("reached by ssh through "), "{text}");
    assert!(text.contains("    + user mapping (user)\n"), "{text}");
    let mut world = World::settled(&block("a", ""));
    let attempt = Attempt {
        target_hash: "another".into(),
        error: "no".into(),
        due: true,
    };
    world.observed.attempts.insert("a".into(), attempt);
    world.observed.ask.insert("a".into());
    world.observed.details.clear();
    assert_eq!(
        show(&world.plan(), &world.observed),
        "~ connection \"a\"\n    ~ its tables are compared with the source's\n"
    );
}
