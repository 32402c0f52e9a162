//! Files that break, that cannot be opened, or that are no tables.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::Fixture;
use crate::support::hub::until_error;
use crate::support::{query, value};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_breaks_keeps_its_table() {
    let good = "id,name\n1,Ada\n";
    let mut fixture = Fixture::new("", &[("a.csv", good), ("b.csv", "x\n1\n")]).await;
    fixture.spcd.start();
    fixture.ready().await;
    for (broken, told) in [
        (
            "id,name\n1\n",
            "line 2 has 1 value where the first line has 2",
        ),
        ("", "it is empty"),
    ] {
        fixture.put("a.csv", broken);
        fixture
            .until_warning(&format!("table \"a\" stays as it was: a.csv: {told}"))
            .await;
        fixture.ready().await;
        assert_eq!(fixture.columns("a").await, ["id bigint", "name text"]);
        assert_eq!(value(&fixture.hub.url, "SELECT x FROM files.b").await, "1");
        fixture.put("a.csv", good);
        fixture.until_no_warning().await;
        assert_eq!(
            value(&fixture.hub.url, "SELECT name FROM files.a").await,
            "Ada"
        );
    }
    // A view that needs the table keeps it from being built anew, and what that means is told.
    query(
        &fixture.hub.url,
        "CREATE VIEW v AS SELECT name FROM files.a",
    )
    .await;
    fixture.put("a.csv", "id,town,name\n1,Rome,Ada\n");
    fixture
        .until_warning(
            "table \"a\" stays as it was: rebuilding it would break or lose view public.v",
        )
        .await;
    let warnings = fixture.warnings().await;
    assert!(
        warnings[0].contains("until then reading it fails or gives wrong values"),
        "{warnings:?}"
    );
    fixture.ready().await;
    query(&fixture.hub.url, "DROP VIEW v").await;
    fixture.put("a.csv", "id,town,name\n1,Rome,Eve\n");
    fixture.until_no_warning().await;
    assert_eq!(
        value(&fixture.hub.url, "SELECT name FROM files.a").await,
        "Eve"
    );
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_opened_are_named_with_the_user_who_lacks_what() {
    let mut fixture = Fixture::new("", &[("a.csv", "x\n1\n"), ("b.csv", "x\n2\n")]).await;
    let mode = |path: &str, mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(fixture.data.join(path), permissions).unwrap();
    };
    mode("a.csv", 0o000);
    let hub = fixture.hub.url.clone();
    fixture.spcd.start();
    fixture.ready().await;
    assert_eq!(fixture.tables().await, ["b"]);
    let warnings = fixture.warnings().await;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let told = warnings[0].strip_prefix("table \"a\" is left out: a.csv: the user ");
    let told = told.unwrap_or_else(|| panic!("{warnings:?}"));
    assert!(told.ends_with(" may not read a.csv (mode 0)"), "{told}");

    // With none left the source is out of reach, and what was there stays.
    mode("b.csv", 0o000);
    let error = until_error(&hub, "files", "may not read").await;
    assert!(error.ends_with("(and 1 more files)"), "{error}");
    assert_eq!(fixture.tables().await, ["b"]);
    mode("a.csv", 0o644);
    mode("b.csv", 0o644);
    fixture.ready().await;
    assert_eq!(fixture.tables().await, ["a", "b"]);
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_table_is_told() {
    let mut fixture = Fixture::new("", &[]).await;
    fixture.configure("\"../data/**/*.csv*\", \"../data/one.txt\"", "");
    fixture.put("b/x.csv", "b\n1\n");
    fixture.put("a/x.csv", "a\n1\n");
    fixture.put("a/y.csv.gz", "packed");
    fixture.put(&format!("{}.csv", "n".repeat(64)), "a\n1\n");
    fixture.spcd.start();
    fixture.ready().await;
    assert_eq!(fixture.tables().await, ["x"]);
    assert_eq!(fixture.columns("x").await, ["a bigint"]);
    let warnings = fixture.warnings().await;
    assert_eq!(
        warnings,
        [
            "a/y.csv.gz is left out: files packed with gzip are not supported here, unpack it".to_owned(),
            "b/x.csv is left out: a/x.csv has given its name to the table \"x\"; rename one of them, \
             or give each a connection of its own".to_owned(),
            format!("{}.csv is left out: its name is longer than 63 bytes, the limit of a table's name", "n".repeat(64)),
            "there is no file one.txt".to_owned(),
        ]
    );
    // A query for a table that one of them would be says why it is none.
    for (table, why) in [
        ("y", "y.csv.gz is left out: files packed with gzip"),
        ("one", "there is no file /"),
        (&"n".repeat(64), "is left out: its name is longer than"),
    ] {
        let asked = fixture
            .spcd
            .spcd(&["query", &format!("SELECT * FROM files.{table}")]);
        let said = &asked.stderr;
        let is_told = said.contains("connection \"files\" is ready, but ") && said.contains(why);
        assert!(is_told, "{table}: {said}");
    }

    // A directory that is missing is a source out of reach: nothing is dropped.
    let (data, aside) = (fixture.data.clone(), fixture.data.with_file_name("aside"));
    fs::rename(&data, &aside).unwrap();
    let error = until_error(&fixture.hub.url, "files", "is missing").await;
    assert!(error.starts_with("the directory "), "{error}");
    assert_eq!(fixture.tables().await, ["x"]);
    fs::rename(&aside, &data).unwrap();
    fixture.ready().await;

    // What is read elsewhere is said where it is written.
    fixture.configure("\"https://example.com/a.csv\"", "");
    let error = until_error(
        &fixture.hub.url,
        "files",
        "remote files are not supported here",
    )
    .await;
    assert!(error.contains("files.spc:3:"), "{error}");
    fixture.configure("\"../data/*.csv.gz\"", "");
    until_error(&fixture.hub.url, "files", "gzip are not supported here").await;
    assert_eq!(fixture.tables().await, ["x"]);
    fixture.spcd.stop();
}
