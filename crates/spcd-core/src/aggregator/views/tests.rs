use super::*;
use crate::model::{AggregatorLane, Lane};

fn column(name: &str, data_type: &str) -> Column {
    Column {
        name: name.into(),
        data_type: data_type.into(),
        ..Column::default()
    }
}

fn table(name: &str, columns: &[(&str, &str)]) -> Table {
    Table {
        name: name.into(),
        columns: columns.iter().map(|(name, of)| column(name, of)).collect(),
        ..Table::default()
    }
}

/// Members that all have these tables.
fn alike(count: usize, tables: &[Table]) -> AggregatorInput {
    let member = |n: usize| (format!("m{n:05}"), format!("m{n:05}"), 0);
    AggregatorInput {
        members: (0..count).map(member).collect(),
        shapes: vec![tables.to_vec()],
        ..AggregatorInput::default()
    }
}

/// What is there once changes are done, as a look would find it.
fn carried_out(mut found: AggregatorInput, changes: &ViewChanges) -> AggregatorInput {
    changes.apply_to(&mut found);
    found
}

fn shown(changes: &ViewChanges) -> Vec<String> {
    changes.views.iter().map(ToString::to_string).collect()
}

fn names(found: &mut AggregatorInput, names: &[&str]) {
    let of = |name: &&str| ((*name).to_owned(), (*name).to_owned(), 0);
    found.members = names.iter().map(of).collect();
}

#[test]
fn few_members_are_one_view_each_table() {
    let tables = [
        table("s", &[("x", "text")]),
        table("t", &[("id", "integer")]),
    ];
    let found = alike(2, &tables);
    let first = diff_views("all", &found, None, false);
    assert_eq!(shown(&first), ["+ view s (2)", "+ view t (2)"]);
    let sql = first.statements("all", &found, true);
    let statement = "CREATE OR REPLACE VIEW \"all\".\"s\" (\"connection_name\", \"x\") AS \
                     SELECT 'm00000'::text, \"x\" FROM \"m00000\".\"s\"\nUNION ALL \
                     SELECT 'm00001'::text, \"x\" FROM \"m00001\".\"s\";\n";
    assert!(sql.contains(statement), "{sql}");
    let found = carried_out(found, &first);
    let second = diff_views("all", &found, None, false);
    assert_eq!(second.views, []);
    assert_eq!(second.tables, first.tables);
    assert_eq!(second.statements("all", &found, true), "");
}

#[test]
fn a_member_that_comes_to_many_changes_one_part() {
    let found = alike(1000, &[table("t", &[("id", "integer")])]);
    let first = diff_views("all", &found, None, false);
    assert_eq!(first.views.len(), 33);
    let sizes: Vec<usize> = (first.views.iter())
        .filter_map(|change| match change {
            ViewChange::Create(view) if view.hidden => Some(view.branches),
            _ => None,
        })
        .collect();
    assert_eq!(sizes.iter().sum::<usize>(), 1000);
    assert!(
        sizes.iter().all(|size| (15..=50).contains(size)),
        "{sizes:?}"
    );

    let mut found = carried_out(found, &first);
    found.members.push(("zz".into(), "zz".into(), 0));
    let more = diff_views("all", &found, None, false);
    assert_eq!(more.views.len(), 1, "{:?}", shown(&more));
    assert!(matches!(&more.views[0], ViewChange::Replace(view) if view.hidden));
    found.members.truncate(999);
    let less = diff_views("all", &found, None, false);
    assert_eq!(less.views.len(), 1);
}

#[test]
fn parts_are_divided_anew_only_when_they_must() {
    assert_eq!(part_count(80, None), 1);
    assert_eq!(part_count(81, None), 2);
    assert_eq!(part_count(70, Some(2)), 2);
    assert_eq!(part_count(29, Some(2)), 1);
    assert_eq!(part_count(161, Some(2)), 2);
    assert_eq!(part_count(162, Some(2)), 4);
    assert_eq!(part_count(12_000, None), 256);
    for members in 0..3000 {
        let parts = part_count(members, None);
        assert!(
            parts == 1 || members / parts <= 80 && members / parts >= 15,
            "{members}"
        );
    }
}

#[test]
fn other_columns_of_parts_are_other_parts() {
    let found = alike(100, &[table("t", &[("id", "integer")])]);
    let first = diff_views("all", &found, None, false);
    let mut found = carried_out(found, &first);
    found.shapes = vec![table("t", &[("id", "bigint")])]
        .into_iter()
        .map(|t| vec![t])
        .collect();
    let second = diff_views("all", &found, None, false);
    let count = |sign: &str| {
        shown(&second)
            .iter()
            .filter(|line| line.starts_with(sign))
            .count()
    };
    assert_eq!(
        (count("+ part"), count("- part"), count("± view t")),
        (2, 2, 1)
    );
    let sql = second.statements("all", &found, true);
    let order: Vec<_> = [
        "spcd.claim_views",
        "spcd.set_aside('all', 't')",
        "CREATE OR REPLACE VIEW \"spcd_union\"",
        "CREATE OR REPLACE VIEW \"all\"",
        "spcd.restore('all', 't')",
        "spcd.drop_view",
        "spcd.record_views",
    ]
    .map(|part| sql.find(part))
    .into_iter()
    .collect();
    assert!(order.is_sorted() && order[0] == Some(7), "{order:?} {sql}");
}

#[test]
fn one_member_that_changes_lets_go_and_moves_nothing_else() {
    let (id, both) = (("id", "integer"), [("id", "integer"), ("x", "text")]);
    for count in [100, 1000] {
        let found = alike(count, &[table("t", &both)]);
        let mut found = carried_out(found.clone(), &diff_views("all", &found, None, false));
        found.shapes.push(vec![table("t", &[id])]);
        found
            .shapes
            .push(vec![table("t", &[id, ("x", "date"), ("new", "text")])]);
        for shape in [1, 2] {
            found.members[7].2 = shape;
            let held = diff_views("all", &found, None, true);
            assert_eq!(held.views.len(), 1);
            let ViewChange::Replace(view) = &held.views[0] else {
                panic!("{:?}", shown(&held));
            };
            let branch = "SELECT 'm00007'::text, \"id\", NULL::text FROM";
            assert_eq!(view.query.contains(branch), shape == 1);
            assert_eq!(view.query.contains("'m00007'"), shape == 1);
            assert_eq!(held.warnings, [""; 0]);
        }
    }
}

#[test]
fn a_new_column_is_appended_where_the_view_is() {
    let mut found = alike(2, &[table("t", &[("b", "text")])]);
    found = carried_out(found.clone(), &diff_views("all", &found, None, false));
    found.shapes = vec![vec![table("t", &[("a", "text"), ("b", "text")])]];
    assert_eq!(
        shown(&diff_views("all", &found, None, false)),
        ["~ view t (2)"]
    );
    found.shapes = vec![vec![table("t", &[("a", "text")])]];
    assert_eq!(
        shown(&diff_views("all", &found, None, false)),
        ["± view t (2)"]
    );
}

#[test]
fn what_people_hang_on_a_view_keeps_it() {
    let mut found = alike(2, &[table("t", &[("b", "text")])]);
    found = carried_out(found.clone(), &diff_views("all", &found, None, false));
    found.existing_views[0].dependents = BTreeSet::from(["view public.v".to_owned()]);
    found.shapes = vec![vec![]];
    let empty = diff_views("all", &found, None, false);
    assert_eq!(shown(&empty), ["~ view t (0)"]);
    let sql = empty.statements("all", &found, true);
    let statement = "AS SELECT NULL::text, NULL::text WHERE false;";
    assert!(sql.contains(statement), "{sql}");
    assert!(
        empty
            .warnings
            .iter()
            .any(|warning| warning.contains("view public.v"))
    );
    found.existing_views[0].dependents.clear();
    assert_eq!(shown(&diff_views("all", &found, None, false)), ["- view t"]);
}

#[test]
fn what_was_dropped_or_altered_by_hand_is_made_again() {
    let mut found = alike(2, &[table("t", &[("b", "text")])]);
    found = carried_out(found.clone(), &diff_views("all", &found, None, false));
    found.existing_views[0].altered = true;
    assert_eq!(
        shown(&diff_views("all", &found, None, false)),
        ["~ view t (2)"]
    );
    found.existing_views[0].columns.push(ViewColumn {
        name: "by hand".into(),
        data_type: "text".into(),
        collation: None,
    });
    assert_eq!(
        shown(&diff_views("all", &found, None, false)),
        ["± view t (2)"]
    );
    found.existing_views[0].exists = false;
    assert_eq!(
        shown(&diff_views("all", &found, None, false)),
        ["+ view t (2)"]
    );
    found.taken_names = BTreeSet::from(["t".to_owned()]);
    let taken = diff_views("all", &found, None, false);
    assert_eq!(shown(&taken), ["- view t"]);
    assert_eq!(taken.left_out.len(), 1);
}

#[test]
fn names_are_quoted_wherever_they_stand() {
    let mut found = alike(0, &[table("t\"; DROP TABLE x; --", &[("a'b\"c", "text")])]);
    names(&mut found, &["it's \"me\".\\"]);
    let made = diff_views("Ä \"gg\" '", &found, None, false);
    let sql = made.statements("Ä \"gg\" '", &found, true);
    assert!(
        sql.contains(
            "CREATE OR REPLACE VIEW \"Ä \"\"gg\"\" '\".\"t\"\"; DROP TABLE x; --\" \
             (\"connection_name\", \"a'b\"\"c\") AS SELECT E'it''s \"me\".\\\\'::text, \
             \"a'b\"\"c\" FROM \"it's \"\"me\"\".\\\".\"t\"\"; DROP TABLE x; --\";\n"
        ),
        "{sql}"
    );
}

#[test]
fn what_needs_too_many_locks_is_done_in_packages() {
    let found = alike(1000, &[table("t", &[("id", "integer")])]);
    let all = diff_views("all", &found, None, false);
    assert_eq!(all.clone().batches(usize::MAX).len(), 1);
    let packages = all.clone().batches(200);
    assert!(packages.len() > 5 && packages.iter().all(|package| package.locks() <= 200));
    let in_order: Vec<_> = packages.iter().flat_map(shown).collect();
    assert_eq!(in_order.len(), all.views.len());
    assert_eq!(in_order.last().map(String::as_str), Some("+ view t (32)"));
}

/// Lanes of the gateway that show these members.
fn lanes(members: &[&[&str]]) -> AggregatorInput {
    let lane = |(n, members): (usize, &&[&str])| AggregatorLane {
        lane: Lane {
            group: "spcd_gateway_p".into(),
            number: Some(n as u32),
        },
        schema: format!("spcd_lane_{n}_all"),
        members: members.iter().map(|name| (*name).to_owned()).collect(),
        shape_hash: "shape".into(),
        source: Default::default(),
    };
    let lanes: Vec<AggregatorLane> = members.iter().enumerate().map(lane).collect();
    AggregatorInput {
        members: (lanes.iter())
            .map(|lane| (lane.schema.clone(), lane.schema.clone(), 0))
            .collect(),
        shapes: vec![vec![table("t", &[("id", "integer")])]],
        lanes,
        ..AggregatorInput::default()
    }
}

#[test]
fn lanes_of_the_gateway_are_foreign_tables_below_one_view() {
    let found = lanes(&[&["a", "b"], &["c"]]);
    let first = diff_views("all", &found, None, false);
    assert_eq!(first.tables.len(), 1);
    let sql = first.statements("all", &found, false);
    let part = first
        .views
        .iter()
        .find(|change| change.key().0)
        .unwrap()
        .key()
        .1;
    let made = format!(
        "CREATE FOREIGN TABLE \"spcd_union\".\"{part}\" (\"connection_name\" text, \"id\" integer) \
         SERVER \"spcd_gateway_p_0\" OPTIONS (\"schema_name\" 'spcd_lane_0_all', \"table_name\" 't');\n\
         ALTER FOREIGN TABLE \"spcd_union\".\"{part}\" ADD CHECK (\"connection_name\" = ANY \
         (ARRAY['a','b']::text[]));\n"
    );
    assert!(sql.contains(&made), "{sql}");
    let view =
        format!("SELECT \"connection_name\", \"id\" FROM \"spcd_union\".\"{part}\"\nUNION ALL ");
    assert!(sql.contains(&view), "{sql}");
    let touched = sql::touch_lane("spcd_gateway_p_1", "spcd hub");
    assert!(sql.contains(&touched), "{sql}");
    let found = carried_out(found, &first);
    assert_eq!(diff_views("all", &found, None, false).views, []);

    // A member that comes makes one lane anew; the view stays.
    let more = lanes(&[&["a", "b"], &["c", "d"]]);
    let more = AggregatorInput {
        existing_views: found.existing_views.clone(),
        ..more
    };
    let changes = diff_views("all", &more, None, false);
    let mut signs: Vec<String> = (changes.views.iter())
        .map(|change| change.to_string().chars().take(6).collect())
        .collect();
    signs.sort();
    assert_eq!(signs, ["+ part", "- part", "~ view"]);

    // One that was altered by hand is replaced under another name.
    let mut altered = found.clone();
    altered.existing_views[0].altered = true;
    let changes = diff_views("all", &altered, None, false);
    let new = changes
        .views
        .iter()
        .find(|change| change.to_string().starts_with("+ part"));
    assert_ne!(new.unwrap().key().1, part);
    let altered = carried_out(altered, &changes);
    assert_eq!(diff_views("all", &altered, None, false).views, []);
}

#[test]
fn aggregators_of_members_become_ones_of_lanes_in_place() {
    let tables = [table("t", &[("id", "integer")])];
    let mut found = alike(2, &tables);
    let first = diff_views("all", &found, None, false);
    found = carried_out(found, &first);
    let moved = AggregatorInput {
        existing_views: found.existing_views,
        ..lanes(&[&["m00000", "m00001"]])
    };
    assert_eq!(
        shown(&diff_views("all", &moved, None, false))[1],
        "~ view t (1)"
    );
}
