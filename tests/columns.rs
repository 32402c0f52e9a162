//! The columns of `spcd.connection_state` that say what the files and the last import say.

use serde_json::{Value, json};

use crate::support::hub::{STATIC, made_by, postgres, until};
use crate::support::{Database, Spcd, role, shared, value};

/// The columns of configuration and import of one row; of an import's hash and time only whether they are
/// there.
async fn row(hub: &Database, name: &str) -> Value {
    let sql = format!(
        "SELECT jsonb_build_object(
             'plugin', plugin, 'plugin_instance', plugin_instance, 'type', type,
             'connections', connections, 'import_schema', import_schema,
             'schema_mode', schema_mode, 'schema_hash', schema_hash IS NOT NULL,
             'table_count', table_count, 'last_ready', last_ready IS NOT NULL,
             'file_name', regexp_replace(file_name, '.*/', ''),
             'lines', ARRAY[start_line, end_line])
         FROM spcd.connection_state WHERE connection_name = {}",
        spcd_core::sql::literal(name)
    );
    serde_json::from_str(&value(&hub.url, &sql).await).unwrap()
}

/// The columns of a connection with tables.
fn imported(
    plugin: &str,
    instance: &str,
    mode: &str,
    tables: u64,
    file: &str,
    lines: [u64; 2],
) -> Value {
    json!({
        "plugin": plugin, "plugin_instance": instance, "type": "plugin", "connections": [],
        "import_schema": "enabled", "schema_mode": mode, "schema_hash": true, "table_count": tables,
        "last_ready": true, "file_name": file, "lines": lines,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn they_say_what_the_files_and_the_last_import_say() {
    let source = made_by("CREATE TABLE t (id integer); CREATE TABLE u (id integer)").await;
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let group = "connection \"g\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  connections = [\"a*\", \"zz\"]\n}\n";
    let off = "connection \"off\" {\n  plugin = \"postgres\"\n  import_schema = \"disabled\"\n}\n";
    let broken = "connection \"broken\" {\n  plugin = \"postgres\"\n  frob = 1\n}\n";
    let app = format!(
        "connection \"s\" {{\n  plugin = \"app\"\n  host   = \"127.0.0.1\"\n  port   = {}\n  dbname = \"{}\"\n{}}}\n",
        shared().port(),
        source.name,
        role::login(&source, "")
    );
    let (a, of_a) = (
        postgres("a", &source),
        postgres("a", &source).lines().count() as u64,
    );
    spcd.write("a.spc", &format!("# first\n{a}{group}"));
    spcd.write("off.spc", &format!("{off}{broken}"));
    spcd.write("s.spc", &format!("{STATIC}{app}"));
    spcd.start();
    until(
        &hub.url,
        &[
            "a ready",
            "broken error",
            "g ready",
            "off disabled",
            "s ready",
        ],
    )
    .await;
    let place = [2, of_a + 1];
    assert_eq!(
        row(&hub, "a").await,
        imported("postgres", "postgres", "dynamic", 2, "a.spc", place)
    );
    let mut expected = imported("postgres", "postgres", "", 2, "a.spc", [of_a + 2, of_a + 6]);
    expected["type"] = json!("aggregator");
    expected["connections"] = json!(["a*", "zz"]);
    expected["schema_mode"] = Value::Null;
    assert_eq!(row(&hub, "g").await, expected);
    let nothing = |mut expected: Value| {
        expected["schema_mode"] = Value::Null;
        expected["schema_hash"] = json!(false);
        expected["table_count"] = Value::Null;
        expected["last_ready"] = json!(false);
        expected
    };
    let mut expected = nothing(imported("postgres", "postgres", "", 0, "off.spc", [1, 4]));
    expected["import_schema"] = json!("disabled");
    assert_eq!(row(&hub, "off").await, expected);
    let expected = nothing(imported("postgres", "postgres", "", 0, "off.spc", [5, 8]));
    assert_eq!(row(&hub, "broken").await, expected);
    let above = STATIC.lines().count() as u64;
    let mut expected = row(&hub, "s").await;
    let lines = expected["lines"].take();
    assert_eq!(lines[0], json!(above + 1));
    expected["lines"] = json!([0, 0]);
    assert_eq!(
        expected,
        imported("app", "app", "static", 2, "s.spc", [0, 0])
    );

    // They follow the files: another file, another place, another import.
    spcd.write(
        "b.spc",
        &a.replace("\n}", "\n  import {\n    exclude = [\"u\"]\n  }\n}"),
    );
    spcd.write("a.spc", group);
    spcd.spcd(&["wait"]);
    assert_eq!(
        row(&hub, "a").await,
        imported("postgres", "postgres", "dynamic", 1, "b.spc", [1, of_a + 3])
    );
    assert_eq!(row(&hub, "g").await["lines"], json!([1, 5]));
    spcd.stop();
}
