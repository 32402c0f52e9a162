//! Tables that are named are asked for; the others of the source are not described.

use crate::support::hub::{columns, until};
use crate::support::{Cluster, Spcd, query};

/// A connection to a source's database, of this plugin, with these tables.
fn importing(name: &str, plugin: &str, source: &Cluster, database: &str, tables: &str) -> String {
    format!(
        "connection \"{name}\" {{\n  plugin = {plugin}\n  host = \"127.0.0.1\"\n  port = {}\n  \
         dbname = \"{database}\"\n  user = \"postgres\"\n  password_required = false\n  \
         import {{\n    tables = {tables}\n  }}\n}}\n",
        source.port()
    )
}

/// A plugin whose tables come from an IMPORT FOREIGN SCHEMA.
const OWN: &str = "plugin \"own\" {
  extension      = \"postgres_fdw\"
  schema         = \"public\"
  column_name    = \"column_name\"
  server         = [\"host\", \"port\", \"dbname\"]
  mapping        = [\"user\", \"password_required\"]
  import_options = { import_not_null = \"false\" }
}
";

/// The lines of a log that contain both texts.
fn lines(log: &str, a: &str, b: &str) -> Vec<String> {
    let found = log
        .lines()
        .filter(|line| line.contains(a) && line.contains(b));
    found.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_wanted_tables_are_described() {
    let source = Cluster::start(&["log_statement = 'all'"]);
    let hub = Cluster::start(&["log_statement = 'all'"]);
    let (database, target) = (source.database().await, hub.database().await);
    query(
        &database.url,
        "CREATE TABLE one (id integer, note text); CREATE TABLE other (id integer);
         CREATE TABLE parts (id integer) PARTITION BY LIST (id);
         CREATE TABLE \"Part 1\" PARTITION OF parts FOR VALUES IN (1)",
    )
    .await;
    let mut spcd = Spcd::new(&target.url);
    let both = "[\"one\", \"Part 1\"]";
    let files = [
        importing("exact", "\"postgres\"", &source, &database.name, both),
        importing("own", "plugin.own", &source, &database.name, both),
        importing("some", "\"postgres\"", &source, &database.name, "[\"o*\"]"),
    ];
    spcd.write("a.spc", &(OWN.to_owned() + &files.concat()));
    spcd.start();
    until(&target.url, &["exact ready", "own ready", "some ready"]).await;
    let tables = "SELECT connection_name, tables, warnings FROM spcd.applied
                  JOIN spcd.connection_state USING (connection_name, warnings) ORDER BY 1";
    assert_eq!(
        query(&target.url, tables).await,
        [
            ["exact", "{\"Part 1\",one}", "{}"],
            ["own", "{\"Part 1\",one}", "{}"],
            ["some", "{one,other}", "{}"],
        ]
    );
    assert_eq!(
        columns(&target.url, "exact.one").await,
        ["id integer", "note text"]
    );
    let import = lines(&hub.log(), "IMPORT FOREIGN SCHEMA", "");
    assert!(!import.is_empty());
    assert!(
        import
            .iter()
            .all(|line| line.contains("LIMIT TO (\"Part 1\", \"one\")")),
        "{import:#?}"
    );
    // Columns are asked for by name, or by the OIDs of the tables that a pattern selects.
    let described = lines(&source.log(), "SELECT", "attnotnull");
    let is_limited = |line: &String| {
        line.contains("'one'") || line.contains("Part 1") || line.contains("oid = ANY")
    };
    assert!(described.len() >= 2, "{described:#?}");
    assert!(described.iter().all(is_limited), "{described:#?}");
    spcd.stop();
}
