//! What systemd hands in and hears, without systemd: credentials, the watchdog, SIGHUP.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::hub::{columns, guarded, serving, until, until_error};
use crate::support::{Cluster, DEADLINE, Spcd, eventually, query, shared, value};

/// How long what a signal brings about may take: less than it takes until the daemon looks at
/// everything without being woken.
const NOTICED: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_password_can_come_as_a_credential() {
    let hub = shared().database().await;
    let source = guarded("hunter2hunter2").await;
    let mut spcd = Spcd::new(&hub.url);
    // As systemd creates them: read-only, and only for the service.
    let dir = spcd.dir().join("credentials");
    fs::create_dir(&dir).unwrap();
    let put = |password: &str| {
        let (new, file) = (dir.join(".new"), dir.join("sales"));
        fs::write(&new, password).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o400)).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    put("hunter2hunter2\n");
    spcd.env("CREDENTIALS_DIRECTORY", &dir.display().to_string());
    let connection = |name: &str, credential: &str| {
        format!(
            "connection \"{name}\" {{\n  plugin   = \"postgres\"\n  host     = \"127.0.0.1\"\n  port     = {}\n  \
             dbname   = \"postgres\"\n  user     = \"reader\"\n  password = credential(\"{credential}\")\n}}\n",
            source.port()
        )
    };
    spcd.write("a.spc", &connection("a", "sales"));
    spcd.write("b.spc", &connection("b", "not_there"));
    spcd.write("c.spc", &connection("c", "../a"));
    spcd.start();
    until(&hub.url, &["a ready", "b error", "c error"]).await;
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "7");
    let error = until_error(&hub.url, "b", "not_there").await;
    assert!(error.contains("b.spc:7:"), "{error}");

    // Another password, another credential; a look is asked for.
    query(
        &source.url("postgres"),
        "ALTER ROLE reader PASSWORD 'swordfish99'",
    )
    .await;
    put("swordfish99");
    spcd.signal(Signal::SIGHUP);
    let mapping = "SELECT 1 FROM pg_user_mappings WHERE srvname = 'a' AND umoptions @> '{password=swordfish99}'";
    eventually("the new one is used", NOTICED, || async {
        query(&hub.url, mapping).await.pop()
    })
    .await;
    until(&hub.url, &["a ready", "b error", "c error"]).await;
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "7");
    let shown = spcd.spcd(&["plan", "--sql"]);
    for text in [shown.stdout, shown.stderr, spcd.log()] {
        assert!(
            !text.contains("hunter2hunter2") && !text.contains("swordfish99"),
            "{text}"
        );
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_makes_a_look() {
    let (hub, source) = (shared().database().await, shared().database().await);
    query(&source.url, "CREATE TABLE t (id integer, name text)").await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    // More often than the daemon would come to it by itself. No event tells it of a DDL in the hub.
    for _ in 0..3 {
        query(&hub.url, "ALTER FOREIGN TABLE a.t DROP COLUMN name").await;
        spcd.signal(Signal::SIGHUP);
        eventually("the look mends it", NOTICED, || async {
            (columns(&hub.url, "a.t").await == ["id integer", "name text"]).then_some(())
        })
        .await;
        until(&hub.url, &["a ready"]).await;
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_hears_nothing_while_the_loop_hangs() {
    // Of its own: a backend that is stopped keeps whole servers from dropping databases.
    let cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    let mut spcd = Spcd::new(&hub.url);
    let path = spcd.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    spcd.env("NOTIFY_SOCKET", &path.display().to_string());
    spcd.start();
    let heard = |wait: Option<Duration>| {
        socket.set_nonblocking(wait.is_none()).unwrap();
        socket.set_read_timeout(wait).unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Some(text.lines().any(|line| line == "WATCHDOG=1"))
    };
    let beats = || {
        std::iter::from_fn(|| heard(None))
            .filter(|beat| *beat)
            .count()
    };
    let beat = || {
        let start = Instant::now();
        while !heard(Some(DEADLINE)).expect("a message") {
            assert!(start.elapsed() < DEADLINE, "no word to the watchdog");
        }
    };
    beat();
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    // Each wait wakes the loop, which says so.
    beats();
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    beat();

    // The session of the loop no longer answers.
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'spcd control'";
    let backend = Pid::from_raw(value(&hub.url, sql).await.parse().unwrap());
    kill(backend, Signal::SIGSTOP).unwrap();
    let wait = |timeout: &str| spcd.spcd(&["wait", "--timeout", timeout]).code;
    assert_eq!(wait("1s"), 3);
    beats();
    assert_eq!(wait("3s"), 3);
    let heard_of_it = beats();
    kill(backend, Signal::SIGCONT).unwrap();
    assert_eq!(
        heard_of_it, 0,
        "the loop hangs and systemd is told that it lives"
    );
    beat();
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    spcd.stop();
}
