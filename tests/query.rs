//! `spcd query`

use std::fs;
use std::process::Stdio;

use serde_json::json;

use crate::support::hub::{postgres, serving, until};
use crate::support::kept::{kept, load, publish, to};
use crate::support::{DEADLINE, Spcd, eventually, query, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_saved_and_then_queried() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE orders (id integer); INSERT INTO orders VALUES (7)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.start();
    spcd.write("keep.spc", &postgres("keep", &source));
    until(&hub.url, &["keep ready"]).await;
    for n in 0..5 {
        let name = format!("sales{n}");
        spcd.write("sales.spc", &postgres(&name, &source));
        let asked = spcd.spcd(&[
            "query",
            &format!("SELECT id FROM {name}.orders"),
            "--output",
            "csv",
        ]);
        assert_eq!(
            (asked.code, asked.stdout.as_str()),
            (0, "id\n7\n"),
            "{}",
            asked.stderr
        );
    }
    spcd.remove("sales.spc");
    let gone = spcd.spcd(&["query", "SELECT id FROM sales4.orders"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (1, ""));
    assert!(
        gone.stderr
            .contains("LINE 1: SELECT id FROM sales4.orders\n                       ^"),
        "{}",
        gone.stderr
    );
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_those_of_psql() {
    let hub = kept().await;
    let spcd = Spcd::new(&hub.url);
    let ok = spcd.spcd(&[
        "query",
        "CREATE TABLE t (id integer); INSERT INTO t VALUES (1), (2); SELECT * FROM t",
    ]);
    assert_eq!(ok.code, 0, "{}", ok.stderr);
    assert_eq!(
        ok.stdout,
        "CREATE\nINSERT 2\n id\n----\n  1\n  2\n(2 rows)\n"
    );
    assert_eq!(spcd.spcd(&["query", "SELECT 1/0"]).code, 1);

    let script = spcd.dir().join("script.sql");
    fs::write(
        &script,
        "INSERT INTO t VALUES (3);\nSELECT 1/0;\nINSERT INTO t VALUES (4);",
    )
    .unwrap();
    let failed = spcd.spcd(&["query", "-f", script.to_str().unwrap()]);
    assert_eq!((failed.code, failed.stdout.as_str()), (3, "INSERT 1\n"));
    assert_eq!(value(&hub.url, "SELECT max(id) FROM t").await, "3");
    assert_eq!(spcd.spcd(&["query", "-f", "/nowhere.sql"]).code, 1);

    let lost = spcd.spcd(&["query", "SELECT pg_terminate_backend(pg_backend_pid())"]);
    assert_eq!(lost.code, 2, "{}", lost.stderr);
    let elsewhere = Spcd::new(&format!("{}_not_there", hub.url));
    assert_eq!(elsewhere.spcd(&["query", "SELECT 1"]).code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_have_the_form_that_was_asked_for() {
    let hub = kept().await;
    let spcd = Spcd::new(&hub.url);
    let sql = "SELECT 1 AS id, 'a,\"b\"' AS text, NULL AS none, 1.50::numeric AS n, true AS yes";
    let asked = |output: &str| spcd.spcd(&["query", sql, "--output", output]).stdout;
    let read: serde_json::Value = serde_json::from_str(&asked("json")).unwrap();
    assert_eq!(
        read,
        json!([{"id": 1, "text": "a,\"b\"", "none": null, "n": 1.5, "yes": true}])
    );
    assert_eq!(
        asked("csv"),
        "id,text,none,n,yes\n1,\"a,\"\"b\"\"\",,1.50,t\n"
    );
    assert_eq!(
        asked("line"),
        "-[ RECORD 1 ]-\nid   | 1\ntext | a,\"b\"\nnone | \nn    | 1.50\nyes  | t\n"
    );
    // The role's own settings hold, not those of the daemon's sessions.
    query(
        &hub.url,
        &format!("ALTER DATABASE {} SET search_path = spcd", hub.name),
    )
    .await;
    let path = spcd.spcd(&["query", "SHOW search_path", "--output", "csv"]);
    assert_eq!(path.stdout, "search_path\nspcd\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_waits_and_tells_why_it_cannot_be_answered() {
    let hub = kept().await;
    publish(&hub.url, "", json!([to("sales", &["pending"])])).await;
    let spcd = Spcd::new(&hub.url);
    let late = spcd.spcd(&["query", "SELECT * FROM sales.t", "--timeout", "100ms"]);
    assert_eq!(late.code, 1);
    assert!(
        late.stderr.contains("not ready in time: sales"),
        "{}",
        late.stderr
    );

    let mut command = spcd.command(&["query", "SELECT * FROM sales.t", "--output", "csv"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spcd query'";
    eventually("it is there", DEADLINE, || async {
        (value(&hub.url, listens).await == "1").then_some(())
    })
    .await;
    load(&hub.url, "sales").await;
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "id\n1\n");

    let gone =
        json!({"name": "sales", "route": ["updating", "error"], "error": "no route to host"});
    publish(&hub.url, "DROP TABLE sales.t", json!([gone])).await;
    let asked = spcd.spcd(&["query", "SELECT * FROM sales.t"]);
    assert_eq!(asked.code, 1);
    assert!(
        asked
            .stderr
            .contains("connection \"sales\" is in error: no route to host"),
        "{}",
        asked.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_cancels_the_statement_in_the_server() {
    let hub = kept().await;
    let spcd = Spcd::new(&hub.url);
    let mut command = spcd.command(&["query", "SELECT pg_sleep(1000)"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("it sleeps", DEADLINE, || async {
        (value(&hub.url, sleeps).await == "1").then_some(())
    })
    .await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("canceling statement"));
    assert_eq!(value(&hub.url, sleeps).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_it_does_all_by_itself() {
    let source = shared().database().await;
    query(
        &source.url,
        "CREATE TABLE orders (id integer); INSERT INTO orders VALUES (7)",
    )
    .await;
    let spcd = Spcd::with_private_cluster();
    let user = "  password = \"x\"\n}\n";
    spcd.write(
        "sales.spc",
        &postgres("sales", &source).replace("}\n", user),
    );
    let config = spcd.config_dir();
    let config = config.to_str().unwrap();
    for _ in 0..2 {
        let sql = "SELECT id FROM sales.orders";
        let asked = spcd.spcd(&["query", "--config", config, sql, "--output", "csv"]);
        let answer = (asked.code, asked.stdout.as_str());
        assert_eq!(answer, (0, "id\n7\n"), "{}", asked.stderr);
    }
    let find = |name: &str| {
        let mut find = std::process::Command::new("find");
        let output = find
            .arg(spcd.state_dir())
            .args(["-name", name])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // The cluster is there, and stopped.
    assert_ne!(find("global"), "");
    assert_eq!(find("postmaster.pid"), "");
}

/// The shell on a terminal of its own: what is typed goes in, what is shown comes out.
struct Terminal {
    child: std::process::Child,
    keys: std::process::ChildStdin,
    shown: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Terminal {
    /// The shell, at its prompt.
    fn open(spcd: &Spcd) -> Self {
        let mut terminal = Self::run(spcd, "query");
        terminal.until("spcd> ");
        terminal
    }

    fn run(spcd: &Spcd, args: &str) -> Self {
        use std::io::Read as _;
        let mut command = spcd.command(&[]);
        let shell = command.get_program().to_owned();
        let mut script = std::process::Command::new("script");
        script
            .env_clear()
            .env("TERM", "xterm")
            .env("COLUMNS", "200");
        for (name, value) in command.get_envs() {
            script.env(name, value.unwrap());
        }
        script
            .arg("-qfec")
            .arg(format!("exec {} {args}", shell.to_str().unwrap()))
            .arg("/dev/null");
        command = script;
        let mut child = (command.stdin(Stdio::piped()).stdout(Stdio::piped()))
            .spawn()
            .expect("script, of util-linux");
        let keys = child.stdin.take().unwrap();
        let mut screen = child.stdout.take().unwrap();
        let shown = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let sink = shown.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut bytes) {
                sink.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Self { child, keys, shown }
    }

    /// Waits until a text is shown; forgets all up to there.
    fn until(&mut self, text: &str) {
        crate::support::eventually_now(&format!("the terminal shows {text:?}"), || {
            let mut shown = self.shown.lock().unwrap();
            let end = shown.find(text)? + text.len();
            shown.drain(..end);
            Some(())
        });
    }

    fn keys(&mut self, keys: &str) {
        use std::io::Write as _;
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until the shell has ended; its exit code.
    fn ended(&mut self) -> Option<i32> {
        crate::support::eventually_now("the shell ends", || self.child.try_wait().unwrap()).code()
    }

    /// Types a line, and waits for what it brings.
    fn types(&mut self, line: &str, shows: &str) {
        self.keys(&format!("{line}\r"));
        self.until(shows);
        self.until("spcd> ");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shell_completes_remembers_and_shows() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(
        &source.url,
        "CREATE TABLE orders (id integer, \"Total\" numeric); INSERT INTO orders VALUES (7, 1.5); CREATE TABLE stock ()",
    )
    .await;
    let mut spcd = serving(&hub, &source, &["sales"]).await;
    query(
        &hub.url,
        "CREATE VIEW public.mine AS SELECT id FROM sales.orders",
    )
    .await;
    let mut shell = Terminal::open(&spcd);
    shell.types("SELECT id FROM sales.ord\t WHERE id = 7;", "(1 row)");
    // Over several lines; Ctrl-C forgets what was begun.
    shell.keys("SELECT 1\r");
    shell.until("-> ");
    shell.keys("\x03");
    shell.until("spcd> ");
    shell.types("SELECT 'one' || 'two';", "onetwo");
    // The line before this one.
    shell.types("\x1b[A", "onetwo");
    shell.types(".connections", "| ready");
    shell.types(".tables", "foreign table");
    shell.types(".tables sales", "stock");
    shell.types(".views", "mine");
    shell.types(".inspect sales.orders", "Total");
    shell.types("\\d orders", "numeric");
    shell.types("\\d Sales.ord*", "integer");
    shell.types(
        "\\d nothing",
        "Did not find any relation named \"nothing\".",
    );
    shell.types("\\dn", "sales");
    shell.types("\\dt s*.st*", "stock");
    shell.types("\\dv", "view");
    shell.types("\\conninfo", "postgres");
    shell.types("\\x", "Expanded display is on.");
    shell.types("SELECT 5 AS five;", "five | 5");
    shell.types(".output json", "");
    shell.types("SELECT 5 AS five;", "\"five\"");
    shell.types(".output csv", "");
    shell.types(".search_path sales", "");
    shell.types("SELECT id FROM orders;", "7");
    shell.types("\\foo", "unknown command \\foo");
    shell.types(
        "SELECT * FROM nowhere;",
        "relation \"nowhere\" does not exist",
    );
    // What is saved while it is open is known to the next statement.
    spcd.write("late.spc", &postgres("late", &source));
    shell.types("SELECT 'it is ' || id FROM late.orders;", "it is 7");
    // Ctrl-C ends the statement and not the shell.
    shell.keys("SELECT pg_sleep(1000);\r");
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("it sleeps", DEADLINE, || async {
        (value(&hub.url, sleeps).await == "1").then_some(())
    })
    .await;
    shell.keys("\x03");
    shell.until("canceling statement");
    shell.until("spcd> ");
    shell.keys(".quit\r");
    assert_eq!(shell.ended(), Some(0));

    let mut again = Terminal::open(&spcd);
    again.keys("\x1b[A");
    again.until(".quit");
    again.keys("\x03");
    again.until("spcd> ");
    again.keys("\x04");
    assert_eq!(again.ended(), Some(0));
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_what_is_waited_for() {
    let hub = kept().await;
    publish(&hub.url, "", json!([to("sales", &["pending"])])).await;
    let spcd = Spcd::new(&hub.url);
    let mut shell = Terminal::open(&spcd);
    shell.keys("SELECT 'got ' || id FROM sales.t;\r");
    shell.until("waiting for sales: 0 of 1 connection ready");
    // Ctrl+C ends the wait.
    shell.keys("\x03");
    shell.until("stopped waiting");
    shell.until("spcd> ");
    shell.keys("SELECT 'got ' || id FROM sales.t;\r");
    shell.until("waiting for sales: 0 of 1 connection ready");
    load(&hub.url, "sales").await;
    shell.until("got 1");
    shell.until("spcd> ");
    shell.keys("\x04");
    assert_eq!(shell.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_status_on_a_terminal_is_a_table_that_stays_in_its_place() {
    let hub = kept().await;
    load(&hub.url, "sales").await;
    let spcd = Spcd::new(&hub.url);
    let mut watch = Terminal::run(&spcd, "status --watch");
    watch.until("\x1b[H");
    watch.until("sales       ready");
    watch.until("\x1b[J");
    let error = "no \x1b[31m\u{202e}route";
    let gone = json!({"name": "sales", "route": ["updating", "error"], "error": error});
    publish(&hub.url, "", json!([gone, to("stock", &["pending"])])).await;
    watch.until("\x1b[HCONNECTION");
    watch.until("sales       error");
    watch.until("no \\u{1b}[31m\\u{202e}route");
    watch.until("stock       pending");
    watch.keys("\x03");
    assert_eq!(watch.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_no_control_sequences_in_what_programs_read_and_in_the_log() {
    let hub = kept().await;
    load(&hub.url, "sales").await;
    let error =
        json!({"name": "sales", "route": ["updating", "error"], "error": "\x1b[31m\u{202e}x"});
    publish(&hub.url, "", json!([error])).await;
    let spcd = Spcd::new(&hub.url);
    for args in [
        "query --output csv \"SELECT U&'\\202e\\009b' AS x\"",
        "query --output json \"SELECT U&'\\202e\\009b' AS x\"",
    ] {
        let mut terminal = Terminal::run(&spcd, &args.replace('\\', "\\\\"));
        terminal.until("\\u{202e}\\u{9b}");
        assert_eq!(terminal.ended(), Some(0));
    }
    for args in ["status --json", "events"] {
        let mut terminal = Terminal::run(&spcd, args);
        terminal.until("\\u{202e}x");
        assert_eq!(terminal.ended(), Some(0));
    }
    // The daemon's log, which has colours of its own there.
    let spcd = Spcd::new(&shared().database().await.url);
    spcd.write(
        "a.spc",
        "connection \"a\" {\n  plugin = \"no\u{202e}ne\"\n}\n",
    );
    let mut daemon = Terminal::run(&spcd, "run");
    daemon.until("\\u{202e}");
    daemon.keys("\x03");
    assert_eq!(daemon.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_status_tells_each_change() {
    use std::io::{BufRead as _, BufReader};
    let hub = kept().await;
    load(&hub.url, "sales").await;
    let spcd = Spcd::new(&hub.url);
    let mut command = spcd.command(&["status", "--watch"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert!(line().starts_with("CONNECTION"));
    assert!(line().starts_with("sales"));
    let gone = json!({"name": "sales", "route": ["updating", "error"], "error": "no route"});
    publish(&hub.url, "", json!([gone])).await;
    assert!(line().ends_with("sales  updating"));
    assert!(line().ends_with("sales  error  no route"));
    let remove = json!({"name": "sales", "route": ["deleting"], "remove": true});
    publish(&hub.url, "", json!([remove])).await;
    assert!(line().ends_with("sales  deleting"));
    assert!(line().ends_with("sales  deleted"));
    // Any role can send on the channel. A message about an event that does not exist, or that differs
    // from what is recorded, is not shown: the next line is the next change.
    let forged = |connection: &str, event: &str| {
        format!(
            "SELECT pg_notify('connection_state', json_build_object('version', 1, 'generation', 1,
                 'changes', json_build_array(json_build_object('connection', '{connection}',
                     'status', 'error', 'previous', 'ready', 'time', 'now', 'error', 'forged',
                     'event', {event})))::text)"
        )
    };
    let last = "(SELECT max(id) FROM spcd.connection_event)";
    for event in ["9000000000000000000", "-1", "1", last] {
        query(&hub.url, &forged("stock", event)).await;
    }
    // A message may announce the second of two events before the first is read.
    let second = format!("{last} + 2");
    query(&hub.url, &forged("stock", &second)).await;
    publish(&hub.url, "", json!([to("stock", &["pending", "updating"])])).await;
    assert!(line().ends_with("stock  pending"));
    assert!(line().ends_with("stock  updating"));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
