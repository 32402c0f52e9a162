//! Tables of one source whose names are one here.

use std::process::Command;

use super::{tables, warnings};
use crate::support::hub::{columns, until};
use crate::support::mariadb::{MariaDb, mysql};
use crate::support::script::Script;
use crate::support::{Spcd, fresh_dir, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn of_two_long_names_in_mysql_the_one_that_fits_is_kept() {
    let source = MariaDb::start();
    let (fits, long) = ("n".repeat(63), "n".repeat(64));
    source.run(&format!(
        "CREATE DATABASE shop; USE shop; CREATE TABLE good (id int);
         CREATE TABLE {fits} (id int, own int); CREATE TABLE {long} (id int);
         CREATE TABLE `it's` (id int); CREATE TABLE `back\\\\slash` (id int)"
    ));
    // MariaDB compares these as one in its catalog, and has both.
    source.run("USE shop; CREATE TABLE Users (a int); CREATE TABLE users (b int)");
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &mysql("c", source.port(), "  user = \"root\"\n"));
    spcd.start();
    until(&hub.url, &["c ready"]).await;
    let warned = warnings(&hub.url).await;
    assert_eq!(
        tables(&hub.url, "c").await,
        ["Users", "good", &fits, "users"],
        "{warned:?}"
    );
    assert_eq!(columns(&hub.url, "c.\"Users\"").await, ["a integer"]);
    assert_eq!(columns(&hub.url, "c.users").await, ["b integer"]);
    assert_eq!(
        columns(&hub.url, &format!("c.{fits}")).await,
        ["id integer", "own integer"]
    );
    assert_eq!(
        value(&hub.url, "SELECT count(*) FROM c.\"Users\"").await,
        "0"
    );
    assert!(
        warned
            .iter()
            .any(|text| text.contains(&format!("{long:?} is longer than 63 bytes"))),
        "{warned:?}"
    );
    assert!(
        warned
            .iter()
            .any(|text| text.starts_with("table \"it's\" is left out: ")),
        "{warned:?}"
    );
    assert_eq!(spcd.spcd(&["refresh", "c", "--wait"]).code, 0);
    assert_eq!(warnings(&hub.url).await, warned);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_layers_of_one_name_the_first_is_kept() {
    let dir = fresh_dir("layers");
    let (path, json) = (dir.join("a.gpkg"), dir.join("a.json"));
    for layer in ["mixed_case", "Mixed Case", "mixed-case", "towns"] {
        let text = format!(
            r#"{{"type":"FeatureCollection","features":[{{"type":"Feature","properties":{{"of":"{layer}"}},"geometry":{{"type":"Point","coordinates":[1,2]}}}}]}}"#
        );
        std::fs::write(&json, text).unwrap();
        let output = Command::new("ogr2ogr")
            .args(["-f", "GPKG", "-update", "-append", "-nln", layer])
            .args([&path, &json])
            .output()
            .expect("ogr2ogr (apt-get install gdal-bin)");
        assert!(output.status.success(), "{output:?}");
    }
    crate::support::give_to_server(&path);
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "a.spc",
        &format!(
            "connection \"maps\" {{\n  plugin = \"ogr\"\n  format = \"GPKG\"\n  datasource = \"{}\"\n}}\n",
            path.display()
        ),
    );
    spcd.start();
    until(&hub.url, &["maps ready"]).await;
    let warned = warnings(&hub.url).await;
    assert_eq!(
        tables(&hub.url, "maps").await,
        ["mixed_case", "towns"],
        "{warned:?}"
    );
    let layer = "SELECT \"of\" FROM maps.mixed_case";
    assert_eq!(value(&hub.url, layer).await, "Mixed Case");
    let left = |layer: &str| {
        format!(
            "layer {layer:?} is left out: its table would have the name \"mixed_case\", which that \
             of layer \"Mixed Case\" has"
        )
    };
    assert_eq!(warned, [left("mixed-case"), left("mixed_case")]);
    assert_eq!(spcd.spcd(&["refresh", "maps", "--wait"]).code, 0);
    assert_eq!(value(&hub.url, layer).await, "Mixed Case");
    assert_eq!(warnings(&hub.url).await, warned);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_table_of_a_name_is_told_where_the_wrapper_skips_it() {
    let hub = shared().database().await;
    let script = Script::wrapper(&hub.url).await;
    let create = "CREATE FOREIGN TABLE IF NOT EXISTS t (id int) SERVER {server}\n";
    script.says(&create.repeat(2));
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &script.connection("s", ""));
    spcd.start();
    until(&hub.url, &["s ready"]).await;
    assert_eq!(tables(&hub.url, "s").await, ["t"]);
    assert_eq!(
        warnings(&hub.url).await,
        ["the wrapper warns: relation \"t\" already exists, skipping"]
    );
    spcd.stop();
}
