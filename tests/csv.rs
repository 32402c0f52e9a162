//! Files as tables: what is in them, which there are, and what is in the way.

mod agreement;
mod daily;
mod looked;
mod odd;
mod trouble;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::hub::{columns, until, until_error};
use crate::support::{Database, Spcd, eventually, query, shared, try_query, value};

/// How long a change may take to be noticed: less than it takes until the daemon looks at everything
/// without being woken.
const NOTICED: Duration = Duration::from_secs(30);

/// A daemon with a connection `files` over a directory `data`.
struct Fixture {
    hub: Database,
    spcd: Spcd,
    data: PathBuf,
}

impl Fixture {
    async fn new(more: &str, files: &[(&str, &str)]) -> Self {
        let hub = shared().database().await;
        let spcd = Spcd::new(&hub.url);
        let data = spcd.dir().join("data");
        fs::create_dir(&data).unwrap();
        let fixture = Self { hub, spcd, data };
        for (name, text) in files {
            fixture.put(name, text);
        }
        fixture.configure("\"../data/*.csv\"", more);
        fixture
    }

    fn configure(&self, paths: &str, more: &str) {
        let text = format!(
            "connection \"files\" {{\n  plugin = \"csv\"\n  paths  = [{paths}]\n{more}}}\n"
        );
        self.spcd.write("files.spc", &text);
    }

    /// Writes a file where it lies, as most programs do.
    fn put(&self, name: &str, text: &str) {
        let path = self.data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    async fn ready(&self) {
        until(&self.hub.url, &["files ready"]).await;
    }

    async fn columns(&self, table: &str) -> Vec<String> {
        columns(&self.hub.url, &format!("files.\"{table}\"")).await
    }

    async fn until_columns(&self, table: &str, wanted: &[&str]) {
        let sql = format!(
            "SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
             WHERE attrelid = to_regclass('files.\"{table}\"') AND attnum > 0 AND NOT attisdropped
             ORDER BY attnum"
        );
        eventually(&format!("{table}: {wanted:?}"), NOTICED, || async {
            (query(&self.hub.url, &sql).await.concat() == wanted).then_some(())
        })
        .await;
        self.ready().await;
    }

    /// The tables that are there, in order.
    async fn tables(&self) -> Vec<String> {
        let sql = "SELECT relname FROM pg_class WHERE relkind = 'f'
                   AND relnamespace = to_regnamespace('files') ORDER BY relname COLLATE \"C\"";
        query(&self.hub.url, sql).await.concat()
    }

    async fn warnings(&self) -> Vec<String> {
        let sql = "SELECT unnest(warnings) FROM spcd.connection_state ORDER BY 1";
        let here = format!("{}/", fs::canonicalize(&self.data).unwrap().display());
        let near = format!("{}/../data/", self.spcd.config_dir().display());
        let all = query(&self.hub.url, sql).await.concat();
        all.into_iter()
            .map(|text| text.replace(&near, "").replace(&here, ""))
            .collect()
    }

    async fn until_warning(&self, part: &str) {
        eventually(&format!("a warning says {part:?}"), NOTICED, || async {
            let warnings = self.warnings().await;
            warnings
                .iter()
                .any(|text| text.contains(part))
                .then_some(())
        })
        .await;
    }

    async fn until_no_warning(&self) {
        eventually("no warning is left", NOTICED, || async {
            self.warnings().await.is_empty().then_some(())
        })
        .await;
    }

    async fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        query(&self.hub.url, sql).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_a_table_with_its_types() {
    let mut fixture = Fixture::new(
        "",
        &[(
            "Orders 2024.csv",
            "id,total,paid,day,seen at,note,zip\n\
             1,9.50,true,2024-02-29,2024-03-01T10:20:30Z,\"a, \"\"b\"\"\nc\",01234\n\
             2,,false,2024-03-01,2024-03-01T10:20:31+02:00,größer,00501\n",
        )],
    )
    .await;
    fixture.spcd.start();
    fixture.ready().await;
    assert_eq!(
        fixture.columns("Orders 2024").await,
        [
            "id bigint",
            "total numeric",
            "paid boolean",
            "day date",
            "seen at timestamp with time zone",
            "note text",
            "zip text"
        ]
    );
    let rows = "SELECT id, total, paid, day, \"seen at\" AT TIME ZONE 'UTC', note, zip
                FROM files.\"Orders 2024\"";
    assert_eq!(
        fixture.rows(rows).await,
        [
            [
                "1",
                "9.50",
                "t",
                "2024-02-29",
                "2024-03-01 10:20:30",
                "a, \"b\"\nc",
                "01234"
            ],
            [
                "2",
                "",
                "f",
                "2024-03-01",
                "2024-03-01 08:20:31",
                "größer",
                "00501"
            ],
        ]
    );
    let row = "SELECT schema_mode, table_count, error IS NULL, warnings FROM spcd.connection_state";
    assert_eq!(fixture.rows(row).await, [["dynamic", "1", "t", "{}"]]);

    // Others may be made of the same files.
    let text = "connection \"NAME\" {\n  plugin = \"csv\"\n  paths  = [\"../data/*.csv\"]\n}\n";
    let twins = ["twin", "triplet"].map(|name| text.replace("NAME", name));
    fixture.spcd.write("twins.spc", &twins.concat());
    let all = ["files ready", "triplet ready", "twin ready"];
    until(&fixture.hub.url, &all).await;
    let twin = "SELECT count(*) FROM twin.\"Orders 2024\"";
    assert_eq!(value(&fixture.hub.url, twin).await, "2");
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_changed_and_removed_files_are_noticed() {
    let mut fixture = Fixture::new("", &[("a.csv", "id,name\n1,Ada\n")]).await;
    fixture.spcd.start();
    fixture.ready().await;
    assert_eq!(fixture.tables().await, ["a"]);

    fixture.put("b.csv", "x\n5\n");
    fixture.until_columns("b", &["x bigint"]).await;
    let oid = value(&fixture.hub.url, "SELECT 'files.a'::regclass::oid").await;

    // A column at the end is added, and the table stays the one it was.
    fixture.put("a.csv", "id,name,age\n1,Ada,36\n");
    let wanted = ["id bigint", "name text", "age bigint"];
    fixture.until_columns("a", &wanted).await;
    let now = "SELECT 'files.a'::regclass::oid";
    assert_eq!(value(&fixture.hub.url, now).await, oid);

    // One in the middle moves those behind it, which no ALTER does.
    fixture.put("a.csv", "id,town,name,age\n1,Rome,Ada,36\n");
    let wanted = ["id bigint", "town text", "name text", "age bigint"];
    fixture.until_columns("a", &wanted).await;
    let all = "SELECT * FROM files.a";
    assert_eq!(fixture.rows(all).await, [["1", "Rome", "Ada", "36"]]);

    // A value that is no number any more.
    fixture.put("a.csv", "id,town,name,age\n1,Rome,Ada,36\nx,Bonn,Bob,7\n");
    let wanted = ["id text", "town text", "name text", "age bigint"];
    fixture.until_columns("a", &wanted).await;

    fs::remove_file(fixture.data.join("b.csv")).unwrap();
    eventually("b is gone", NOTICED, || async {
        (fixture.tables().await == ["a"]).then_some(())
    })
    .await;
    fixture.ready().await;

    // Replaced by renaming, and of the same size.
    let new = fixture.data.join(".new");
    fs::write(&new, "no,town,name,age\n1,Rome,Ada,36\nx,Bonn,Bob,7\n").unwrap();
    fs::rename(&new, fixture.data.join("a.csv")).unwrap();
    let wanted = ["no text", "town text", "name text", "age bigint"];
    fixture.until_columns("a", &wanted).await;
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_a_table_can_be_read() {
    // The file, and what comes of it: its first row, or why it is no table.
    let cases = [
        ("plain", "a,b\n1,2\n", Ok("(1,2)")),
        ("crlf", "a,b\r\n1,x\r\n", Ok("(1,x)")),
        ("cr", "a,b\r1,x\r", Ok("(1,x)")),
        ("no_end", "a,b\n1,x", Ok("(1,x)")),
        ("mark", "\u{feff}a,b\n1,2\n", Ok("(1,2)")),
        ("quoted_mark", "\u{feff}\"a\nb\",b\n1,2\n", Ok("(1,2)")),
        ("mark_no_header", "\u{feff}1,2\n", Ok("(\u{feff}1,2)")),
        ("one_column", "name\n\nAda\n", Ok("()")),
        ("mid_quote", "a,b\nx\"1,\n2\"y,3\n", Ok("(\"x\"\"1\",)")),
        ("doubled", "a,b\n\"\"\"\",\"\"\n", Ok("(\"\"\"\",\"\")")),
        ("no_header", "1,x\n2,y\n", Ok("(1,x)")),
        ("twins", "a,a\n1,2\n", Ok("(a,a)")),
        ("only_header", "a,b\n", Ok("")),
        (
            "numbers",
            "n\n170141183460469231731687303715884105728\n",
            Ok("(170141183460469231731687303715884105728)"),
        ),
        ("tiny", "n\n1.5e-1000\n", Ok("")),
        ("zone", "t\n0001-01-01T00:00:00+14:59\n", Ok("")),
        ("system", "ctid,xmin\n1,2\n", Ok("(1,2)")),
        ("mixed", "a,b\n1,2\r\n3,4\n", Err("line 2 ends in CRLF")),
        ("blank", "a,b\n1,2\n\n", Err("line 3 is blank")),
        ("ragged", "a,b\n1,2\n3\n", Err("line 3 has 1 value")),
        ("wide_row", "a,b\n1,2,3\n", Err("line 2 has 3 values")),
        ("open", "a,b\n1,\"2\n", Err("the quote on line 2")),
        ("end_mark", "a\n\\.\nb\n", Err("line 2 is `\\.`")),
        ("nul", "a\n\0\n", Err("line 2 contains a NUL byte")),
        ("empty", "", Err("it is empty")),
    ];
    let files: Vec<_> = cases
        .iter()
        .map(|(name, text, _)| (format!("{name}.csv"), *text))
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| (name.as_str(), *text))
        .collect();
    let mut fixture = Fixture::new("", &files).await;
    fs::write(fixture.data.join("latin.csv"), b"a\n\xe4\n").unwrap();
    fixture.spcd.start();
    fixture.ready().await;
    let warnings = fixture.warnings().await;
    let tables = fixture.tables().await;
    for (name, _, wanted) in cases
        .into_iter()
        .chain([("latin", "", Err("line 2 is not UTF-8"))])
    {
        match wanted {
            Ok(row) => {
                assert!(tables.contains(&name.to_owned()), "{name}: {warnings:?}");
                // All rows are read; the first is compared.
                let sql = format!("SELECT string_agg(t::text, '|') FROM files.\"{name}\" t");
                let all = value(&fixture.hub.url, &sql).await;
                assert!(all.starts_with(row), "{name}: {all}");
            }
            Err(part) => {
                let wanted = format!("table {name:?} is left out: {name}.csv: {part}");
                let told = warnings.iter().any(|text| text.starts_with(&wanted));
                assert!(told, "{wanted:?} is not in {warnings:#?}");
                assert!(!tables.contains(&name.to_owned()), "{name}");
            }
        }
    }
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_connection_says_of_its_files_is_followed() {
    let text = "#,x;y\n1,5;2\n";
    let mut fixture = Fixture::new("", &[("a.csv", text)]).await;
    fixture.spcd.start();
    fixture.until_columns("a", &["# bigint", "x;y text"]).await;
    fixture.configure("\"../data/*.csv\"", "  separator = \";\"\n");
    fixture.until_columns("a", &["#,x text", "y bigint"]).await;
    fixture.configure("\"../data/*.csv\"", "  header = \"off\"\n");
    fixture.until_columns("a", &["a text", "b text"]).await;
    let rows = "SELECT * FROM files.a";
    assert_eq!(fixture.rows(rows).await, [["#", "x;y"], ["1", "5;2"]]);

    // A file that a value is read from is watched as well, wherever it lies.
    let sign = fixture.spcd.dir().join("separator");
    fs::write(&sign, ",").unwrap();
    fixture.configure(
        "\"../data/*.csv\"",
        "  separator = file(\"../separator\")\n",
    );
    fixture.until_columns("a", &["# bigint", "x;y text"]).await;
    fs::write(&sign, ";").unwrap();
    fixture.until_columns("a", &["#,x text", "y bigint"]).await;

    fixture.configure(
        "\"../data/*.csv\"",
        "  separator = \";\"\n  comment = \"#\"\n",
    );
    fixture
        .until_warning("line 1 begins with the comment sign `#`")
        .await;
    fixture.ready().await;
    fixture.configure(
        "\"../data/*.csv\"",
        "  import {\n    exclude = [\"a\"]\n  }\n",
    );
    eventually("a is left out", NOTICED, || async {
        fixture.tables().await.is_empty().then_some(())
    })
    .await;
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_large_file_only_the_beginning_is_read_and_it_stays_readable() {
    // What contradicts the beginning comes last.
    let mut text = "id,amount\n".to_owned();
    let rows = 1_500_000;
    for n in 0..rows {
        text.push_str(&format!("{},1.5\n", 1_000_000 + n));
    }
    text.push_str("none,\"all, of it\"\n");
    assert!(text.len() > 16 << 20);
    let mut fixture = Fixture::new("", &[("big.csv", &text)]).await;
    fixture.spcd.start();
    fixture.ready().await;
    assert_eq!(fixture.columns("big").await, ["id text", "amount text"]);
    let sql = "SELECT count(*), max(id), max(amount) FROM files.big";
    let wanted = (rows + 1).to_string();
    assert_eq!(
        fixture.rows(sql).await,
        [[wanted.as_str(), "none", "all, of it"]]
    );
    fixture.spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_where_nothing_differs() {
    let mut fixture = Fixture::new("", &[("a.csv", "x\n1\n")]).await;
    fixture.spcd.start();
    fixture.ready().await;
    let events = "SELECT count(*) FROM spcd.connection_event WHERE status = 'updating'";
    // More rows of the same kind are no difference; and a start is none either.
    fixture.put("a.csv", "x\n1\n2\n");
    let wait = fixture.spcd.spcd(&["refresh", "files", "--wait"]);
    assert_eq!(wait.code, 0, "{}", wait.stderr);
    assert_eq!(
        value(&fixture.hub.url, "SELECT sum(x) FROM files.a").await,
        "3"
    );
    assert_eq!(value(&fixture.hub.url, events).await, "0");
    fixture.spcd.stop();
    fixture.spcd.start();
    fixture.ready().await;
    let wait = fixture.spcd.spcd(&["refresh", "files", "--wait"]);
    assert_eq!(wait.code, 0, "{}", wait.stderr);
    assert_eq!(value(&fixture.hub.url, events).await, "0");
    fixture.spcd.stop();

    // Changes while no daemon ran are found by the next start.
    fixture.put("a.csv", "x,y\n1,2\n");
    fixture.spcd.start();
    fixture.until_columns("a", &["x bigint", "y bigint"]).await;
    fixture.spcd.stop();
    assert!(
        try_query(&fixture.hub.url, "SELECT y FROM files.a")
            .await
            .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_shows_what_the_files_change_and_the_documentation_is_right() {
    let page = fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plugins.md"),
    )
    .unwrap();
    let section = page.split("### csv\n").nth(1).unwrap();
    let block = |language: &str| {
        let fence = format!("```{language}\n");
        let (text, _) = section
            .split_once(&fence)
            .unwrap()
            .1
            .split_once("```")
            .unwrap();
        text.to_owned()
    };
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let data = spcd.config_dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("orders.csv"), block("csv")).unwrap();
    spcd.write("imports.spc", &block("hcl"));
    let plan = |code: i32, wanted: &[&str]| {
        let plan = spcd.spcd(&["plan"]);
        assert_eq!(plan.code, code, "{}{}", plan.stdout, plan.stderr);
        for line in wanted {
            assert!(
                plan.stdout.contains(line),
                "{line:?} is not in {}",
                plan.stdout
            );
        }
    };
    plan(2, &["    + table orders (6 columns)\n"]);
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    plan(0, &["nothing to do"]);
    fs::write(data.join("towns.csv"), "name\nBonn\n").unwrap();
    fs::write(data.join("orders.csv"), block("csv").replace("id,", "no,")).unwrap();
    plan(
        2,
        &["    + table towns (1 columns)\n", "    ± table orders"],
    );
    fs::write(data.join("orders.csv"), block("csv")).unwrap();
    fs::remove_file(data.join("towns.csv")).unwrap();
    plan(0, &["nothing to do"]);
    fs::rename(&data, data.with_file_name("aside")).unwrap();
    plan(
        2,
        &[
            "! connection \"imports\"\n    the directory ",
            " is missing\n",
        ],
    );
    fs::rename(data.with_file_name("aside"), &data).unwrap();

    spcd.start();
    until(&hub.url, &["imports ready"]).await;
    let shown = spcd.spcd(&["query", "SELECT * FROM imports.orders"]);
    assert_eq!(shown.stdout, block("text"), "{}", shown.stderr);
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_no_superuser_needs_one_membership() {
    let hub = shared().database().await;
    let role = format!("role_{}", hub.name);
    query(
        &hub.url,
        &format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role};
             CREATE EXTENSION file_fdw; GRANT USAGE ON FOREIGN DATA WRAPPER file_fdw TO {role}",
            hub.name
        ),
    )
    .await;
    let mut spcd = Spcd::new(&shared().url_as(&role, &hub.name));
    let data = spcd.config_dir().join("data");
    fs::create_dir(&data).unwrap();
    for name in ["a", "b"] {
        fs::write(data.join(format!("{name}.csv")), "x\n1\n").unwrap();
    }
    fs::set_permissions(data.join("a.csv"), fs::Permissions::from_mode(0o000)).unwrap();
    let text = "connection \"files\" {\n  plugin = \"csv\"\n  paths  = [\"data/*.csv\"]\n}\n";
    spcd.write("files.spc", text);
    spcd.start();
    let error = until_error(&hub.url, "files", "pg_read_server_files").await;
    assert!(
        error.starts_with(&format!("the role {role:?} is not allowed to read files")),
        "{error}"
    );
    query(&hub.url, &format!("GRANT pg_read_server_files TO {role}")).await;
    assert_eq!(spcd.spcd(&["refresh", "files", "--wait"]).code, 0);
    let state = "SELECT status, warnings::text FROM spcd.connection_state";
    let state = query(&hub.url, state).await.concat();
    assert_eq!(state[0], "ready");
    assert!(state[1].contains(" may not read "), "{state:?}");
    assert_eq!(value(&hub.url, "SELECT x FROM files.b").await, "1");

    // And who reads needs no more than the grants on the tables.
    query(
        &hub.url,
        &format!(
            "CREATE ROLE {role}_reader LOGIN; GRANT USAGE ON SCHEMA files TO {role}_reader;
             GRANT SELECT ON files.b TO {role}_reader"
        ),
    )
    .await;
    let reader = shared().url_as(&format!("{role}_reader"), &hub.name);
    assert_eq!(value(&reader, "SELECT x FROM files.b").await, "1");
    spcd.stop();
    query(
        &hub.url,
        &format!(
            "DROP OWNED BY {role}, {role}_reader CASCADE; DROP EXTENSION file_fdw;
             DROP ROLE {role}, {role}_reader"
        ),
    )
    .await;
}
