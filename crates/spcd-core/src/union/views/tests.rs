use super::*;

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
fn alike(count: usize, tables: &[Table]) -> Found {
    let member = |n: usize| (format!("m{n:05}"), format!("m{n:05}"), 0);
    Found {
        members: (0..count).map(member).collect(),
        shapes: vec![tables.to_vec()],
        ..Found::default()
    }
}

/// What is there once changes are done, as a look would find it.
fn carried_out(mut found: Found, changes: &Changes) -> Found {
    changes.carry_out(&mut found);
    found
}

fn shown(changes: &Changes) -> Vec<String> {
    changes.views.iter().map(ToString::to_string).collect()
}

fn names(found: &mut Found, names: &[&str]) {
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
    let first = changes("all", &found, None, false);
    assert_eq!(shown(&first), ["+ view s (2)", "+ view t (2)"]);
    let sql = first.statements("all", &found, true);
    let statement = "CREATE OR REPLACE VIEW \"all\".\"s\" (\"connection_name\", \"x\") AS \
                     SELECT 'm00000'::text, \"x\" FROM \"m00000\".\"s\"\nUNION ALL \
                     SELECT 'm00001'::text, \"x\" FROM \"m00001\".\"s\";\n";
    assert!(sql.contains(statement), "{sql}");
    let found = carried_out(found, &first);
    let second = changes("all", &found, None, false);
    assert_eq!(second.views, []);
    assert_eq!(second.tables, first.tables);
    assert_eq!(second.statements("all", &found, true), "");
}

#[test]
fn a_member_that_comes_to_many_changes_one_part() {
    let found = alike(1000, &[table("t", &[("id", "integer")])]);
    let first = changes("all", &found, None, false);
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
    let more = changes("all", &found, None, false);
    assert_eq!(more.views.len(), 1, "{:?}", shown(&more));
    assert!(matches!(&more.views[0], ViewChange::Replace(view) if view.hidden));
    found.members.truncate(999);
    let less = changes("all", &found, None, false);
    assert_eq!(less.views.len(), 1);
}

#[test]
fn parts_are_divided_anew_only_when_they_must() {
    assert_eq!(parts(80, None), 1);
    assert_eq!(parts(81, None), 2);
    assert_eq!(parts(70, Some(2)), 2);
    assert_eq!(parts(29, Some(2)), 1);
    assert_eq!(parts(161, Some(2)), 2);
    assert_eq!(parts(162, Some(2)), 4);
    assert_eq!(parts(12_000, None), 256);
    for members in 0..3000 {
        let parts = parts(members, None);
        assert!(
            parts == 1 || members / parts <= 80 && members / parts >= 15,
            "{members}"
        );
    }
}

#[test]
fn other_columns_of_parts_are_other_parts() {
    let found = alike(100, &[table("t", &[("id", "integer")])]);
    let first = changes("all", &found, None, false);
    let mut found = carried_out(found, &first);
    found.shapes = vec![table("t", &[("id", "bigint")])]
        .into_iter()
        .map(|t| vec![t])
        .collect();
    let second = changes("all", &found, None, false);
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
        let mut found = carried_out(found.clone(), &changes("all", &found, None, false));
        found.shapes.push(vec![table("t", &[id])]);
        found
            .shapes
            .push(vec![table("t", &[id, ("x", "date"), ("new", "text")])]);
        for shape in [1, 2] {
            found.members[7].2 = shape;
            let held = changes("all", &found, None, true);
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
    found = carried_out(found.clone(), &changes("all", &found, None, false));
    found.shapes = vec![vec![table("t", &[("a", "text"), ("b", "text")])]];
    assert_eq!(
        shown(&changes("all", &found, None, false)),
        ["~ view t (2)"]
    );
    found.shapes = vec![vec![table("t", &[("a", "text")])]];
    assert_eq!(
        shown(&changes("all", &found, None, false)),
        ["± view t (2)"]
    );
}

#[test]
fn what_people_hang_on_a_view_keeps_it() {
    let mut found = alike(2, &[table("t", &[("b", "text")])]);
    found = carried_out(found.clone(), &changes("all", &found, None, false));
    found.made[0].dependents = BTreeSet::from(["view public.v".to_owned()]);
    found.shapes = vec![vec![]];
    let empty = changes("all", &found, None, false);
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
    found.made[0].dependents.clear();
    assert_eq!(shown(&changes("all", &found, None, false)), ["- view t"]);
}

#[test]
fn what_was_dropped_or_altered_by_hand_is_made_again() {
    let mut found = alike(2, &[table("t", &[("b", "text")])]);
    found = carried_out(found.clone(), &changes("all", &found, None, false));
    found.made[0].altered = true;
    assert_eq!(
        shown(&changes("all", &found, None, false)),
        ["~ view t (2)"]
    );
    found.made[0].columns.push(ViewColumn {
        name: "by hand".into(),
        data_type: "text".into(),
        collation: None,
    });
    assert_eq!(
        shown(&changes("all", &found, None, false)),
        ["± view t (2)"]
    );
    found.made[0].there = false;
    assert_eq!(
        shown(&changes("all", &found, None, false)),
        ["+ view t (2)"]
    );
    found.others = BTreeSet::from(["t".to_owned()]);
    let taken = changes("all", &found, None, false);
    assert_eq!(shown(&taken), ["- view t"]);
    assert_eq!(taken.warnings.len(), 1);
}

#[test]
fn names_are_quoted_wherever_they_stand() {
    let mut found = alike(0, &[table("t\"; DROP TABLE x; --", &[("a'b\"c", "text")])]);
    names(&mut found, &["it's \"me\".\\"]);
    let made = changes("Ä \"gg\" '", &found, None, false);
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
    let all = changes("all", &found, None, false);
    assert_eq!(all.clone().packages(usize::MAX).len(), 1);
    let packages = all.clone().packages(200);
    assert!(packages.len() > 5 && packages.iter().all(|package| package.locks() <= 200));
    let in_order: Vec<_> = packages.iter().flat_map(shown).collect();
    assert_eq!(in_order.len(), all.views.len());
    assert_eq!(in_order.last().map(String::as_str), Some("+ view t (32)"));
}
