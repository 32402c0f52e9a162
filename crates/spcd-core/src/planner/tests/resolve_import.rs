//! What a source's answer means for the database.

use std::collections::BTreeMap;

use spcd_protocol::Status;

use super::{World, block, table};
use crate::aggregator;
use crate::diff::{Blockers, BrokenBy, Dependent, Table, TableWarning};
use crate::model::ForeignSource;
use crate::observed::{Applied, ConfigSnapshot, Detail, OtherOwner, Presence};
use crate::planner::{
    Bookkeeping, Import, Reason, RemoteSchema, WriteUnit, drop_unit, error_unit, grant_unit,
    resolve_import, resolve_new_import,
};

fn written(import: &Import, detail: &Detail, tables: &[Table]) -> Option<WriteUnit> {
    answered(import, detail, tables, &Blockers::default()).unwrap()
}

fn answered(
    import: &Import,
    detail: &Detail,
    tables: &[Table],
    blockers: &Blockers,
) -> Result<Option<WriteUnit>, String> {
    let remote = RemoteSchema::from(tables.to_vec());
    resolve_import("a", Status::Ready, import, detail, &remote, blockers)
}

/// An import of what is there already.
fn refresh() -> (Import, Detail) {
    let mut world = World::settled(&block("a", "  user = \"u\"\n"));
    world.observed.ask.insert("a".into());
    (world.import("a"), world.observed.details["a"].clone())
}

fn record(unit: &WriteUnit) -> &crate::planner::Record {
    match &unit.record {
        Bookkeeping::Made(record) => record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_new_is_written_as_though_it_were_compared() {
    for readers in [false, true] {
        let mut world = World::new(&block("a", "  user = \"u\"\n"));
        world.observed.readers = readers;
        let import = world.import("a");
        let tables: Vec<Table> = (0..70)
            .map(|n| table(&format!("t{n:02}"), &["a", "b"]))
            .collect();
        let new = resolve_new_import("a", Status::Pending, &import, &tables, "hash".into());
        let remote = RemoteSchema::from(tables);
        let none = Detail::default();
        let blockers = Blockers::default();
        let compared = resolve_import("a", Status::Pending, &import, &none, &remote, &blockers);
        let compared = compared.unwrap().unwrap();
        assert_eq!(new.sql, compared.sql);
        assert_eq!(new.sql.contains("GRANT"), readers);
        assert_eq!(new.mapping, compared.mapping);
        assert!(new.mapping_is_new && !compared.mapping_is_new);
        assert_eq!((new.tables, new.locks), (70, 76));
        assert_eq!((compared.tables, compared.locks), (70, 76));
        assert_eq!(new.row.route, [Status::Ready]);
        assert_eq!(new.row.route, compared.row.route);
        assert_eq!(record(&new).columns, Some(140));
        assert_eq!(record(&compared).columns, None);
        // Pieces of 30 tables, each of which records what is there then, of no target.
        assert_eq!(new.chunks, compared.chunks);
        let locks: Vec<usize> = new.chunks.iter().map(|chunk| chunk.locks).collect();
        assert_eq!(locks, [36, 36]);
        assert!(new.chunks[0].sql.starts_with("CREATE SCHEMA"));
        assert!(new.chunks[0].record.contains("\"target_hash\":\"\""));
        assert!(
            new.chunks[1].record.contains("\"t59\"") && !new.sql.contains("TABLE \"a\".\"t59\"")
        );
    }
}

#[test]
fn tables_without_columns_leave_the_fingerprint_to_a_look() {
    let import = World::new(&block("a", "")).import("a");
    let unit = resolve_new_import(
        "a",
        Status::Error,
        &import,
        &[table("t", &[])],
        String::new(),
    );
    assert_eq!(record(&unit).columns, None);
    assert_eq!(unit.row.route, [Status::Updating, Status::Ready]);
}

#[test]
fn a_refresh_that_finds_nothing_new_writes_nothing() {
    let (import, detail) = refresh();
    let tables = detail.tables.clone();
    assert_eq!(written(&import, &detail, &tables), None);
    let differing: [fn(&mut Import); 4] = [
        |import| import.reason = Reason::Drift,
        |import| import.known_warnings = vec!["old".into()],
        // The row was changed by hand: an aggregator would take its members for equal.
        |import| import.known_schema_hash = Some("x".into()),
        |import| {
            if let Some(applied) = &mut import.applied {
                applied.extension_version = Some("1".into());
            }
        },
    ];
    for differ in differing {
        let mut import = import.clone();
        differ(&mut import);
        let unit = written(&import, &detail, &tables).unwrap();
        assert_eq!((unit.sql.as_str(), &unit.mapping), ("", &None));
        assert_eq!(unit.row.route, [Status::Ready; 0]);
        assert_eq!(record(&unit).compare_again, import.reason == Reason::Drift);
    }
    let remote = RemoteSchema::from(tables);
    let blockers = Blockers::default();
    let again = resolve_import("a", Status::Error, &import, &detail, &remote, &blockers);
    assert_eq!(again.unwrap().unwrap().row.route, [Status::Ready]);
}

#[test]
fn what_differs_is_altered_in_the_smallest_step() {
    let (mut import, mut detail) = refresh();
    detail.tables.push(table("u", &["a"]));
    import.readers = true;
    detail.unreadable = vec!["t".into(), "u".into()];
    let expected = [table("t", &["a", "b"]), table("v", &["a"])];
    let unit = written(&import, &detail, &expected).unwrap();
    let sql: Vec<&str> = unit.sql.lines().collect();
    let expected = [
        "DROP FOREIGN TABLE \"a\".\"u\";",
        "ALTER FOREIGN TABLE \"a\".\"t\" ADD COLUMN \"b\" integer;",
        "CREATE FOREIGN TABLE \"a\".\"v\" (\"a\" integer) SERVER \"a\";",
        "GRANT SELECT ON \"a\".\"t\", \"a\".\"v\" TO spcd_users;",
    ];
    assert_eq!(sql, expected);
    assert_eq!(unit.row.route, [Status::Updating, Status::Ready]);
    // A lock for each table, and two more for each that goes or is altered.
    assert_eq!((unit.tables, unit.locks), (3, 6 + 3 + 2 * 2));
    assert_eq!(record(&unit).tables, ["t", "v"]);
}

#[test]
fn another_user_needs_another_mapping_and_another_host_another_option() {
    let (mut import, detail) = refresh();
    let tables = detail.tables.clone();
    import.target.mapping = BTreeMap::new();
    let unit = written(&import, &detail, &tables).unwrap();
    assert_eq!(
        (unit.sql.as_str(), unit.mapping),
        ("", Some(BTreeMap::new()))
    );
    let (mut import, detail) = refresh();
    let host = import.target.server.get_mut("host").unwrap();
    host.value = "i".into();
    let unit = written(&import, &detail, &tables).unwrap();
    assert_eq!(unit.sql, "ALTER SERVER \"a\" OPTIONS (SET \"host\" 'i');\n");
    assert_eq!(unit.mapping, None);
}

#[test]
fn with_another_wrapper_everything_is_made_anew_or_nothing() {
    let (mut import, detail) = refresh();
    import.target = ForeignSource {
        wrapper: "other_fdw".into(),
        ..import.target.clone()
    };
    let tables = detail.tables.clone();
    let unit = written(&import, &detail, &tables).unwrap();
    let first: Vec<&str> = unit.sql.lines().take(3).collect();
    let gone = [
        "DROP FOREIGN TABLE \"a\".\"t\";",
        "DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER \"a\";",
        "DROP SERVER \"a\";",
    ];
    assert_eq!(first, gone);
    assert!(
        unit.sql
            .contains("CREATE SERVER \"a\" FOREIGN DATA WRAPPER \"other_fdw\"")
    );
    assert!(unit.mapping.is_some());
    assert_eq!(unit.library.as_deref(), Some("other_fdw"));
    let view = Dependent {
        description: "view public.v".into(),
        broken_by: BrokenBy::Retype,
    };
    let of_table = BTreeMap::from([(String::new(), [view].into())]);
    let blockers = Blockers {
        dependents: BTreeMap::from([("t".to_owned(), of_table)]),
        ..Blockers::default()
    };
    let error = answered(&import, &detail, &tables, &blockers).unwrap_err();
    assert!(error.contains("from postgres_fdw to other_fdw") && error.contains("public.v"));
}

#[test]
fn names_that_are_taken_and_changes_that_are_refused_are_warnings() {
    let (mut import, mut detail) = refresh();
    detail.others = vec!["v".into()];
    import.target.positional = true;
    let blockers = Blockers {
        refused: BTreeMap::from([("t".to_owned(), "it is full".to_owned())]),
        ..Blockers::default()
    };
    let expected = [table("t", &["a", "b"]), table("v", &["a"])];
    let unit = answered(&import, &detail, &expected, &blockers).unwrap();
    let unit = unit.unwrap();
    assert_eq!(unit.sql, "");
    let warnings = unit.row.warnings.unwrap();
    assert_eq!(warnings.len(), 2);
    assert!(
        warnings
            .iter()
            .any(|text| text.contains("something else in the schema"))
    );
    let positional = "until then reading it fails or gives wrong values";
    assert!(warnings.iter().any(|text| text.ends_with(positional)));
}

#[test]
fn the_schema_of_a_disabled_member_is_hidden_and_comes_back() {
    let (mut import, mut detail) = refresh();
    let tables = detail.tables.clone();
    import.readers = true;
    import.hidden = true;
    import.reason = Reason::Changed;
    let unit = written(&import, &detail, &tables).unwrap();
    let hidden = aggregator::hidden_schema("a");
    let sql: Vec<&str> = unit.sql.lines().collect();
    assert_eq!(
        sql[0],
        format!("ALTER SCHEMA \"a\" RENAME TO \"{hidden}\";")
    );
    assert!(sql[1].starts_with("REVOKE") && sql.len() == 2);
    assert_eq!(unit.row.route, [Status::Disabled]);
    assert_eq!(record(&unit).hidden_schema.as_ref(), Some(&hidden));
    // What users have in it would be moved along.
    detail.others = vec!["mine".into()];
    let refused = answered(&import, &detail, &tables, &Blockers::default()).unwrap_err();
    assert!(refused.contains("holds \"mine\""), "{refused}");
    detail.others.clear();
    import.hidden = false;
    import.applied.as_mut().unwrap().hidden_schema = Some(hidden.clone());
    detail.unreadable = vec!["t".into()];
    let unit = written(&import, &detail, &tables).unwrap();
    let sql: Vec<&str> = unit.sql.lines().collect();
    assert_eq!(
        sql[0],
        format!("ALTER SCHEMA \"{hidden}\" RENAME TO \"a\";")
    );
    assert_eq!(sql[1], "GRANT USAGE ON SCHEMA \"a\" TO spcd_users;");
    assert_eq!(sql[2], "GRANT SELECT ON \"a\".\"t\" TO spcd_users;");
}

#[test]
fn the_views_of_an_aggregator_that_bore_the_name_go_first() {
    let (mut import, _) = refresh();
    let made = import.applied.as_mut().unwrap();
    made.target_hash = aggregator::target_hash([("b", None)]);
    made.server = Presence::Absent;
    import.reason = Reason::Changed;
    let unit = written(&import, &Detail::default(), &[table("t", &["a"])]).unwrap();
    let sql: Vec<&str> = unit.sql.lines().collect();
    assert_eq!(sql[0], "SELECT spcd.drop_views('a', false);");
    assert!(sql[1].starts_with("CREATE SERVER \"a\""));
}

#[test]
fn a_file_keeps_the_types_that_its_tables_have() {
    let (mut import, _) = refresh();
    let integer = BTreeMap::from([("a".to_owned(), "integer".to_owned())]);
    let made = import.applied.as_mut().unwrap();
    made.types = BTreeMap::from([("t".to_owned(), integer)]);
    let mut wide = table("t", &["a"]);
    wide.columns[0].data_type = "bigint".into();
    wide.columns[0].inferred = Some(crate::diff::InferredType {
        accepted_by: &["integer", "bigint"],
        is_certain: false,
    });
    let mut remote = RemoteSchema::from(vec![wide]);
    import.keep_types(&mut remote);
    assert_eq!(remote.tables[0].columns[0].data_type, "integer");
    import.applied = None;
    remote.tables[0].columns[0].data_type = "bigint".into();
    import.keep_types(&mut remote);
    assert_eq!(remote.tables[0].columns[0].data_type, "bigint");
}

#[test]
fn a_grant_says_that_it_changes_something() {
    for (status, route) in [
        (Status::Ready, vec![Status::Updating, Status::Ready]),
        (Status::Pending, vec![Status::Ready]),
    ] {
        let unit = grant_unit("a", status, &["t".into()]);
        let sql = "GRANT USAGE ON SCHEMA \"a\" TO spcd_users;\n\
                   GRANT SELECT ON \"a\".\"t\" TO spcd_users;\n";
        assert_eq!((unit.sql.as_str(), unit.row.route), (sql, route));
        assert_eq!(unit.record, Bookkeeping::Keep);
    }
    assert!(!grant_unit("a", Status::Ready, &[]).sql.contains("SELECT"));
}

#[test]
fn a_connection_is_dropped_in_pieces_and_its_row_goes_or_stays() {
    let tables: Vec<String> = (0..61).map(|n| format!("t{n}")).collect();
    let made = Applied::complete("hash");
    let unit = drop_unit("a", Status::Ready, &made, &tables, None, false);
    let locks: Vec<usize> = unit.chunks.iter().map(|chunk| chunk.locks).collect();
    assert_eq!((locks, unit.locks), (vec![90, 90], 6 + 61 * 3));
    let expected = "DROP FOREIGN TABLE \"a\".\"t60\";\nDROP SCHEMA \"a\";\n\
                    DROP USER MAPPING IF EXISTS FOR PUBLIC SERVER \"a\";\nDROP SERVER \"a\";\n";
    assert_eq!(unit.sql, expected);
    assert!(unit.row.remove && unit.record == Bookkeeping::Forget);
    assert_eq!(unit.row.route, [Status::Deleting]);
    let gone = drop_unit("a", Status::Deleting, &made, &[], None, false);
    assert_eq!(gone.row.route, [Status::Ready; 0]);
    let written = ConfigSnapshot::default();
    let kept = drop_unit("a", Status::Ready, &made, &[], Some(&written), true);
    assert_eq!(kept.row.route, [Status::Disabled]);
    assert!(!kept.row.remove && kept.row.warnings == Some(Vec::new()));
    let with_dependents = drop_unit("a", Status::Ready, &made, &tables[..1], None, true);
    assert!(
        with_dependents
            .sql
            .starts_with("DROP FOREIGN TABLE \"a\".\"t0\" CASCADE;")
    );
    let mut views = made.clone();
    views.target_hash = aggregator::target_hash([("b", None)]);
    views.server = Presence::Absent;
    let unit = drop_unit("a", Status::Ready, &views, &[], None, false);
    assert_eq!(
        unit.sql,
        "SELECT spcd.drop_views('a', false);\nDROP SCHEMA \"a\";\n"
    );
    views.schema = Presence::Foreign;
    let unit = drop_unit("a", Status::Ready, &views, &tables, None, false);
    assert_eq!((unit.sql.as_str(), unit.chunks.len()), ("", 0));
}

#[test]
fn an_error_changes_the_row_alone() {
    for (status, route) in [
        (Status::Ready, vec![Status::Updating, Status::Error]),
        (Status::Error, vec![Status::Error]),
        (Status::Updating, vec![Status::Error]),
    ] {
        let unit = error_unit("a", status, "no".into());
        assert_eq!((unit.row.route, unit.row.error), (route, Some("no".into())));
        assert!(unit.sql.is_empty() && unit.record == Bookkeeping::Keep);
    }
}

#[test]
fn what_the_gateway_left_out_is_recorded_in_the_hub() {
    let left_out = TableWarning {
        table: Some("tree".into()),
        text: "its type ltree is nowhere".into(),
    };
    // One that is new, and one whose tables are there.
    let world = World::new(&block("a", ""));
    let mut new = world.import("a");
    new.left_out = vec![left_out.clone()];
    let unit = resolve_new_import(
        "a",
        Status::Pending,
        &new,
        &[table("t", &["a"])],
        "h".into(),
    );
    assert_eq!(record(&unit).left_out, std::slice::from_ref(&left_out));

    let (mut import, detail) = refresh();
    assert!(written(&import, &detail, &detail.tables).is_none());
    import.left_out = vec![left_out.clone()];
    let unit = written(&import, &detail, &detail.tables).unwrap();
    assert_eq!(
        (record(&unit).left_out.as_slice(), unit.sql.as_str()),
        (&[left_out][..], "")
    );
}

#[test]
fn a_closed_table_is_a_warning_only_where_readers_are_to_read_it() {
    let (mut import, mut detail) = refresh();
    detail.unreadable = vec!["t".into()];
    let other = OtherOwner {
        owner: "o".into(),
        role: "r".into(),
    };
    detail.other_owners.insert("t".into(), other);
    for (readers, hidden, is_warned) in [
        (true, false, true),
        (false, false, false),
        (true, true, false),
    ] {
        (import.readers, import.hidden) = (readers, hidden);
        let unit = written(&import, &detail, &detail.tables);
        let warnings = unit.and_then(|unit| unit.row.warnings).unwrap_or_default();
        assert_eq!(
            !warnings.is_empty(),
            is_warned,
            "{readers} {hidden}: {warnings:?}"
        );
    }
}
