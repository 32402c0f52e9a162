use super::*;
use crate::model::OptionValue;

fn column(data_type: &str) -> Column {
    Column {
        name: data_type.to_owned(),
        data_type: data_type.to_owned(),
        ..Column::default()
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}

fn table(fetch_size: Option<&str>) -> Table {
    Table {
        name: "t".into(),
        options: fetch_size
            .map(|rows| (FETCH_SIZE.to_owned(), rows.to_owned()))
            .into_iter()
            .collect(),
        ..Table::default()
    }
}

/// A target whose only default is `async_capable`.
fn target() -> ForeignSource {
    let value = OptionValue {
        value: "true".into(),
        public: true,
    };
    ForeignSource {
        has_tuned_wrapper: true,
        dynamic: true,
        server: [("async_capable".to_owned(), value)].into(),
        default_options: ["async_capable".to_owned()].into(),
        ..ForeignSource::default()
    }
}

fn written(mut target: ForeignSource, option: &str, value: &str) -> ForeignSource {
    target.default_options.remove(option);
    let value = OptionValue {
        value: value.into(),
        public: true,
    };
    target.server.insert(option.into(), value);
    target
}

#[test]
fn a_fetch_takes_about_four_mebibytes() {
    let of = |pages: f64, rows: f64, visible_pages: f64, toast_pages: f64| {
        default_fetch_size(
            &[column("text")],
            Some(TableStatistics {
                pages,
                rows,
                visible_pages,
                toast_pages,
            }),
        )
    };
    let statistics = |pages, rows, toast_pages| of(pages, rows, 0.0, toast_pages);
    // 100 bytes a row, of which some may be out of line, none is, and some are.
    assert_eq!(statistics(12_208.0, 1_000_000.0, 0.0), 10_000);
    assert_eq!(of(12_204.0, 1_000_000.0, 9_000.0, 0.0), 41_000);
    assert_eq!(statistics(12_204.0, 1_000_000.0, 1.0), 41_000);
    // 8,192 bytes a row, and as much out of line.
    assert_eq!(statistics(1_000.0, 1_000.0, 0.0), 510);
    assert_eq!(statistics(1_000.0, 1_000.0, 1_000.0), 100);
    assert_eq!(statistics(1_000.0, 100_000_000.0, 1.0), 50_000);
    // Nearly empty pages tell nothing, nor does a table that was never analyzed.
    assert_eq!(statistics(1.0, 1.0, 0.0), 1_000);
    assert_eq!(statistics(1_000.0, -1.0, 0.0), 1_000);
}

#[test]
fn without_statistics_the_types_decide() {
    let of = |types: &[&str]| {
        let columns: Vec<Column> = types.iter().map(|name| column(name)).collect();
        default_fetch_size(&columns, None)
    };
    assert_eq!(of(&["integer", "bigint"]), 50_000);
    assert_eq!(
        of(&[
            "integer",
            "timestamp(3) with time zone",
            "character varying(400)"
        ]),
        9_500
    );
    assert_eq!(of(&["character varying(40000)"]), 100);
    for unbounded in ["text", "integer[]", "character varying", "public.odd"] {
        assert_eq!(of(&["integer", unbounded]), 1_000, "{unbounded}");
    }
}

#[test]
fn a_users_fetch_size_stays_and_spcds_own_follows_the_source() {
    // What the table has, what spcd has set, the default, and the result.
    for (has, ours, default, result) in [
        (None, None, "5000", "5000"),
        (Some("5000"), Some("5000"), "9000", "5000"),
        (Some("5000"), Some("5000"), "11000", "11000"),
        (Some("5000"), Some("5000"), "2000", "2000"),
        (Some("77"), Some("5000"), "5000", "77"),
        (Some("77"), None, "5000", "77"),
        // Dropped by a user.
        (None, Some("5000"), "9000", "9000"),
    ] {
        let tuning = Tuning {
            tables: ours
                .map(|ours| ("t".to_owned(), ours.to_owned()))
                .into_iter()
                .collect(),
            ..Tuning::default()
        };
        let tables = [table(has)];
        let server = map(&[("async_capable", "true")]);
        let existing = Existing {
            server: Some(&server),
            tables: &tables,
            tuning: &tuning,
        };
        let desired = [table(Some(default))];
        let tuned = tuned_tables(&target(), existing, &desired);
        assert_eq!(tuned[0].options[FETCH_SIZE], result, "{has:?} {ours:?}");
        let again = Existing {
            tables: &tuned,
            ..existing
        };
        assert_eq!(tuned_tables(&target(), again, &desired), tuned);
        let after = tuning_after(&target(), existing, &server, &tuned);
        let is_users = result == "77";
        assert_eq!(after.tables.is_empty(), is_users);
    }
}

#[test]
fn a_fetch_size_of_the_server_applies_to_the_tables() {
    let mut tables = [table(None)];
    let by_file = written(target(), FETCH_SIZE, "50");
    set_fetch_sizes(&mut tables, &BTreeMap::new(), &by_file);
    assert_eq!(tables[0], table(None));
    set_fetch_sizes(&mut tables, &BTreeMap::new(), &target());
    let default = tables[0].options[FETCH_SIZE].clone();
    // A user has altered the server: spcd's value is taken from the tables.
    let tuning = Tuning {
        tables: map(&[("t", default.as_str())]),
        ..Tuning::default()
    };
    let server = map(&[("async_capable", "true"), (FETCH_SIZE, "77")]);
    let existing = Existing {
        server: Some(&server),
        tables: &tables,
        tuning: &tuning,
    };
    assert!(!is_tuned_as_desired(&target(), existing));
    let tuned = tuned_tables(&target(), existing, &tables).into_owned();
    assert_eq!(tuned[0], table(None));
    assert_eq!(server_options(&target(), existing, None), server);
    let tuning = tuning_after(&target(), existing, &server, &tuned);
    assert_eq!(tuning.server, map(&[("async_capable", "true")]));
    let existing = Existing {
        server: Some(&server),
        tables: &tuned,
        tuning: &tuning,
    };
    assert!(is_tuned_as_desired(&target(), existing));
    // The block `import` wins over all.
    let mut fixed = target();
    fixed.import.fetch_size = Some(9);
    set_fetch_sizes(&mut tables, &BTreeMap::new(), &fixed);
    assert_eq!(tables[0], table(Some("9")));
    assert!(!is_tuned_as_desired(&fixed, existing));
}

#[test]
fn options_of_the_server_are_defaults() {
    let names = ["ltree".to_owned(), "Odd".to_owned()];
    let both = map(&[("async_capable", "true"), ("extensions", "ltree, \"Odd\"")]);
    let nothing = Tuning::default();
    let new = Existing {
        server: None,
        tables: &[],
        tuning: &nothing,
    };
    assert_eq!(server_options(&target(), new, Some(&names)), both);
    let ours = Tuning {
        server: both.clone(),
        ..Tuning::default()
    };
    let existing = Existing {
        server: Some(&both),
        tables: &[],
        tuning: &ours,
    };
    // Unknown: it stays. None in common: it goes.
    assert_eq!(server_options(&target(), existing, None), both);
    assert_eq!(
        server_options(&target(), existing, Some(&[])),
        map(&[("async_capable", "true")])
    );
    // A user's values stay, whatever the source has.
    let users = map(&[("async_capable", "false"), ("extensions", "cube")]);
    let existing = Existing {
        server: Some(&users),
        tables: &[],
        tuning: &ours,
    };
    assert_eq!(server_options(&target(), existing, Some(&names)), users);
    assert!(is_tuned_as_desired(&target(), existing));
    assert_eq!(tuning_after(&target(), existing, &users, &[]), nothing);
    // The file wins.
    let file = written(target(), "async_capable", "maybe");
    assert_eq!(
        server_options(&file, existing, None)["async_capable"],
        "maybe"
    );
    assert!(!is_tuned_as_desired(&file, existing));
    // A line that was removed from the file: what it set was no user's.
    let ours = Tuning {
        server: users.clone(),
        ..Tuning::default()
    };
    let existing = Existing {
        server: Some(&users),
        tables: &[],
        tuning: &ours,
    };
    assert_eq!(server_options(&target(), existing, Some(&names)), both);
}

#[test]
fn missing_defaults_are_no_drift_and_other_options_are() {
    let nothing = Tuning::default();
    for (options, is_same) in [
        (map(&[]), true),
        (map(&[("async_capable", "false")]), true),
        (map(&[("host", "x")]), false),
    ] {
        let existing = Existing {
            server: Some(&options),
            tables: &[],
            tuning: &nothing,
        };
        assert_eq!(
            is_tuned_as_desired(&target(), existing),
            is_same,
            "{options:?}"
        );
    }
}

#[test]
fn a_default_does_not_change_the_hash_of_a_target() {
    let mut without = target();
    without.server.clear();
    without.default_options.clear();
    assert_eq!(without.hash(), target().hash());
    assert_ne!(
        written(target(), "async_capable", "true").hash(),
        target().hash()
    );
    let mut fixed = target();
    fixed.import.fetch_size = Some(9);
    assert_ne!(fixed.hash(), target().hash());
}

#[test]
fn an_extension_is_shipped_to_the_same_or_a_later_version() {
    assert!(is_shippable("1.2", "1.2"));
    assert!(is_shippable("1.2", "1.10"));
    assert!(is_shippable("odd", "odd"));
    assert!(!is_shippable("1.2", "1.1"));
    assert!(!is_shippable("1.2", "2.0"));
    assert!(!is_shippable("odd", "even"));
}
