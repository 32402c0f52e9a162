//! What people look at, with ten thousand connections: the list under load, the page, and what it
//! costs without viewers and events.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::chromium::Chromium;
use crate::fill::Filled;
use crate::measure::{
    connection, daemon_cpu, memory, name, scaled, seconds, server, server_cpu, source, until_count,
    until_ready,
};
use crate::support::hub::STATIC;
use crate::support::{Spcd, eventually_now, free_port, value};

/// Requests a second, and for how long.
const RATE: u32 = 50;
const LOAD: Duration = Duration::from_secs(20);
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(60);
/// How often the page is opened.
const TIMES: usize = 7;

/// `page`
pub async fn page() {
    let all = scaled(10_000);
    println!("## {all} connections, of which {RATE} lists a second are asked for");
    let filled = Filled::with(all).await;
    let mut spcd = Spcd::new(&filled.hub.url);
    let socket = spcd.dir().join("http");
    spcd.env("SPCD_HTTP", &format!("unix:{}", socket.display()));
    spcd.start();
    eventually_now("it answers", || {
        std::os::unix::net::UnixStream::connect(&socket).ok()
    });
    let (first, bytes) = ask(&socket).await;
    println!(
        "the first list: {} for {:.1} MB",
        seconds(first),
        bytes as f64 / 1e6
    );
    load("unchanged", &socket).await;
    // One row changes ten times a second, so that every fifth list is made anew.
    let change = "UPDATE spcd.connection_state SET generation = generation + 1
                  WHERE connection_name = (SELECT min(connection_name) FROM spcd.connection_state)";
    let url = filled.hub.url.clone();
    let writer = tokio::spawn(async move {
        let session = crate::support::connect(&url).await.unwrap();
        let mut every = tokio::time::interval(Duration::from_millis(100));
        loop {
            every.tick().await;
            session.batch_execute(change).await.unwrap();
        }
    });
    load("with a change every 100 ms", &socket).await;
    writer.abort();
    println!("the daemon: {} MB resident", memory(&spcd, "VmRSS:"));
    spcd.stop();

    let address = format!("127.0.0.1:{}", free_port());
    spcd.env("SPCD_HTTP", &address);
    spcd.start();
    eventually_now("it answers", || std::net::TcpStream::connect(&address).ok());
    let page = Chromium::start().page();
    page.size(1280, 800);
    let mut times = Vec::new();
    for _ in 0..TIMES {
        page.open("about:blank");
        page.open(&format!("http://{address}/"));
        page.until("document.body?.dataset.ready === 'true'");
        let ready = page.value("performance.getEntriesByName('ready')[0].startTime");
        times.push(Duration::from_secs_f64(ready.as_f64().unwrap() / 1000.0));
    }
    times.sort();
    println!(
        "page: its rows are there after {} (median), {} (worst of {TIMES}); aim: less than 1 s",
        seconds(times[TIMES / 2]),
        seconds(times[TIMES - 1])
    );
    spcd.stop();
}

/// Asks at a steady rate, however long the answers take.
async fn load(what: &str, socket: &std::path::Path) {
    let began = Instant::now();
    let count = RATE * u32::try_from(LOAD.as_secs()).unwrap();
    let mut asked = Vec::new();
    for n in 0..count {
        let due = began + LOAD * n / count;
        tokio::time::sleep_until(due.into()).await;
        let socket = socket.to_owned();
        asked.push(tokio::spawn(async move {
            ask(&socket).await;
            due.elapsed()
        }));
    }
    let mut times = Vec::new();
    for one in asked {
        times.push(one.await.unwrap());
    }
    times.sort();
    let at = |part: usize| seconds(times[(times.len() * part / 1000).min(times.len() - 1)]);
    println!(
        "list, {what}: p50 {}, p99 {}, worst {} of {count}",
        at(500),
        at(990),
        at(1000)
    );
}

/// One list, read to its end; how long that took, and how big it is.
async fn ask(socket: &std::path::Path) -> (Duration, usize) {
    let began = Instant::now();
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let request =
        "GET /api/v1/connections HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 256 << 10];
    let (mut all, mut is_first) = (0, true);
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        if read == 0 {
            break;
        }
        if std::mem::take(&mut is_first) {
            assert!(buffer.starts_with(b"HTTP/1.1 200 "));
        }
        all += read;
    }
    (began.elapsed(), all)
}

/// `idle`
pub async fn idle() {
    let all = scaled(10_000);
    println!("## {all} static connections of 2 tables, of which nothing is asked for {IDLE:?}");
    let server = server(&["log_min_duration_statement = 0"]);
    let source = source(&server, 2).await;
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    let socket = spcd.dir().join("http");
    spcd.env("SPCD_HTTP", &format!("unix:{}", socket.display()));
    spcd.write("plugin.spc", STATIC);
    let files: String = (0..all)
        .map(|n| connection(&name(n), "app", server.port(), &source))
        .collect();
    spcd.write("all.spc", &files);
    spcd.start();
    until_ready(&hub, "%", all).await;
    // What follows the import: comments, the look after the last job.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (cpu, hub_cpu, log, began) = (
        daemon_cpu(&spcd),
        server_cpu(&server),
        server.log().len(),
        Instant::now(),
    );
    tokio::time::sleep(IDLE).await;
    let passed = began.elapsed().as_secs_f64();
    let percent = |now: Duration, before: Duration| (now - before).as_secs_f64() / passed * 100.0;
    let statements = (server.log()[log..].lines())
        .filter(|line| line.contains(" spcd ") && line.contains("duration: "))
        // A statement with parameters is told three times: parse, bind, execute.
        .filter(|line| !line.contains("  parse ") && !line.contains("  bind "))
        .count();
    println!(
        "idle: the daemon takes {:.2} % of a core (aim: at most 0.5), the hub {:.2} %; {:.2} statements a second (aim: at most 2)",
        percent(daemon_cpu(&spcd), cpu),
        percent(server_cpu(&server), hub_cpu),
        statements as f64 / passed
    );
    spcd.stop();
}

/// `probed`
pub async fn probed() {
    let all = scaled(1_000);
    println!("## {all} dynamic sources of 2 tables, on a server of their own, probed every 30 s");
    let (hub_server, source_server) = (server(&[]), server(&[]));
    let source = source(&source_server, 2).await;
    let hub = hub_server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_HEALTH_ENABLED", "true")
        .env("SPCD_HEALTH_INTERVAL", "30s");
    let one = |n| {
        let text = connection(&name(n), "postgres", source_server.port(), &source);
        // What is asked is whether it is there, and nothing else.
        text.replace("\n}", "\n  import { refresh_interval = \"never\" }\n}")
    };
    let files: String = (0..all).map(one).collect();
    spcd.write("all.spc", &files);
    spcd.start();
    until_ready(&hub, "%", all).await;
    // Each has answered once, and no job looks for comments any more.
    let reachable = "SELECT count(*) FROM spcd.connection_health WHERE reachable";
    until_count(&hub, reachable, all).await;
    let count = "SELECT count(*) FROM spcd.connection_health
                 WHERE last_checked > clock_timestamp() - interval '60 s'";
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'spcd%'";
    let spent = || {
        [
            daemon_cpu(&spcd),
            server_cpu(&hub_server),
            server_cpu(&source_server),
        ]
    };
    let (before, began) = (spent(), Instant::now());
    let mut most = 0;
    while began.elapsed() < IDLE {
        tokio::time::sleep(Duration::from_secs(1)).await;
        most = most.max(value(&hub.url, sessions).await.parse::<usize>().unwrap());
    }
    let passed = began.elapsed().as_secs_f64();
    let now = spent();
    let percent = |n: usize| (now[n] - before[n]).as_secs_f64() / passed * 100.0;
    println!(
        "probed: {} of {all} asked in the last minute; of a core the daemon takes {:.1} %, the hub {:.1} %, \
         the sources' server {:.1} %; at most {most} sessions on the hub",
        value(&hub.url, count).await,
        percent(0),
        percent(1),
        percent(2)
    );
    spcd.stop();
}
