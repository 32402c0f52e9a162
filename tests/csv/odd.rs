//! Files as spreadsheets and old programs write them: read right, or named with the line.

use std::fs;

use super::Fixture;
use crate::support::{query, value};

#[tokio::test(flavor = "multi_thread")]
async fn other_separators_are_found_and_named() {
    let files = [
        ("comma.csv", "a,b\n1,2\n"),
        ("semicolon.csv", "name;price\nBolt;9,50\nNut;0,10\n"),
        ("semicolon2.csv", "name;price\nBolt;9,50\n"),
        ("tab.csv", "name\tn\nBolt\t3\n"),
    ];
    let mut fixture = Fixture::new("", &files).await;
    fixture.spcd.start();
    fixture.ready().await;
    let price = "SELECT string_agg(price, ' ') FROM files.semicolon";
    assert_eq!(value(&fixture.hub.url, price).await, "9,50 0,10");
    let n = "SELECT n + 1 FROM files.tab";
    assert_eq!(value(&fixture.hub.url, n).await, "4");
    let told = |files: &str, sign: &str| {
        format!(
            "{files}: the values are separated by \"{sign}\", not by commas; write \
             `separator = \"{sign}\"` to confirm it"
        )
    };
    assert_eq!(
        fixture.warnings().await,
        [
            told("semicolon.csv (and 1 more)", ";"),
            told("tab.csv", "\\t")
        ]
    );

    // A connection that says so is not warned, and no file has another then.
    fixture.configure("\"../data/semi*.csv\"", "  separator = \";\"\n");
    fixture.until_no_warning().await;
    assert_eq!(fixture.tables().await, ["semicolon", "semicolon2"]);
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_inside_a_value_merges_no_rows() {
    let files = [
        ("inch.csv", "id,what\n1,27\" wide\n2,\n3,30\" deep\n"),
        (
            "both.csv",
            "id,what\n1,\"a, b\"\n2,27\" wide\n3,30\" deep\n",
        ),
    ];
    let mut fixture = Fixture::new("", &files).await;
    fixture.spcd.start();
    fixture.ready().await;
    let rows = "SELECT id, what, what IS NULL FROM files.inch ORDER BY id";
    assert_eq!(
        fixture.rows(rows).await,
        [
            ["1", "27\" wide", "f"],
            ["2", "", "t"],
            ["3", "30\" deep", "f"]
        ]
    );
    assert_eq!(fixture.tables().await, ["inch"]);
    let warnings = fixture.warnings().await;
    let told = "table \"both\" is left out: both.csv: line 3 has a quote in the middle of a value";
    assert!(warnings[0].starts_with(told), "{warnings:?}");
    // The day on which a value is in quotes, the table follows.
    fixture.put("inch.csv", "id,what\n1,\"27\"\" wide\"\n");
    assert_eq!(fixture.spcd.spcd(&["wait"]).code, 0);
    let all = "SELECT id, what, what IS NULL FROM files.inch";
    assert_eq!(fixture.rows(all).await, [["1", "27\" wide", "f"]]);
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_encodings_and_signs_for_null_are_read() {
    let more = "  encoding = \"latin1\"\n  null = \"NA\"\n";
    let mut fixture = Fixture::new(more, &[]).await;
    fs::write(
        fixture.data.join("a.csv"),
        b"gr\xf6\xdfe,stadt\n1,K\xf6ln\nNA,NA\n",
    )
    .unwrap();
    fixture.spcd.start();
    fixture.ready().await;
    assert_eq!(fixture.columns("a").await, ["größe bigint", "stadt text"]);
    let rows = "SELECT \"größe\", stadt, stadt IS NULL FROM files.a";
    assert_eq!(
        fixture.rows(rows).await,
        [["1", "Köln", "f"], ["", "", "t"]]
    );
    assert!(fixture.warnings().await.is_empty());

    // What does not say how it is encoded is named, with the way out.
    fixture.configure("\"../data/*.csv\"", "");
    fixture
        .until_warning("line 1 is not UTF-8; save it as UTF-8, or say how it is encoded")
        .await;
    let wrong = "connection \"x\" {\n  plugin = \"csv\"\n  paths = [\"a.csv\"]\n  encoding = \"klingon\"\n  null = \"\\\"\"\n}\n";
    fixture.spcd.write("wrong.spc", wrong);
    let check = fixture.spcd.spcd(&["check"]);
    assert_eq!(check.code, 1);
    for told in [
        "this is not a value for `encoding`",
        "this is not a value for `null`",
    ] {
        assert!(
            check.stderr.contains(told) || check.stdout.contains(told),
            "{check:?}"
        );
    }
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_may_begin_at_the_home_directory() {
    let mut fixture = Fixture::new("", &[]).await;
    fs::write(fixture.spcd.home().join("a.csv"), "x\n1\n").unwrap();
    fixture.configure("\"~/*.csv\"", "");
    assert_eq!(fixture.spcd.spcd(&["check"]).code, 0);
    fixture.spcd.start();
    fixture.ready().await;
    assert_eq!(value(&fixture.hub.url, "SELECT x FROM files.a").await, "1");
    let file = "SELECT array_to_string(ftoptions, ' ') FROM pg_foreign_table
                WHERE ftrelid = 'files.a'::regclass";
    let options = query(&fixture.hub.url, file).await.concat().concat();
    assert!(!options.contains('~'), "{options}");
    fixture.spcd.stop();
}
