//! Clients that take their time, with a clock that goes as fast as there is nothing to do.
#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use spcd_core::config::HubSettings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{
    App, HEADERS_TIMEOUT, HubContext, Shared, answer, api, idle, listener, router, settings,
};

const SECOND: Duration = Duration::from_secs(1);
/// What lies between two ends: far less than a list, far more than a head.
const BETWEEN: usize = 4 << 10;

/// What answers, without a database, and with a list of so many bytes.
fn app(list: usize) -> Shared {
    let (_, settings) = watch::channel(Default::default());
    let (_, endpoint) = watch::channel(None);
    let mut app = App::new(
        settings,
        HubContext::new(HubSettings::default()),
        endpoint,
        None,
    );
    app.listing = api::Listing::of(Bytes::from(vec![b'x'; list]));
    Arc::new(app)
}

struct Client {
    stream: DuplexStream,
    served: JoinHandle<()>,
}

impl Client {
    fn of(app: &Shared) -> Self {
        let (stream, far) = duplex(BETWEEN);
        let activity = Arc::new(idle::IdleConnections::default()).add();
        let served = tokio::spawn(answer(
            far,
            router(app.clone()),
            HEADERS_TIMEOUT,
            Some(activity),
        ));
        Self { stream, served }
    }

    async fn asks(app: &Shared, path: &str) -> Self {
        let mut client = Self::of(app);
        client.send(&request(path)).await;
        client
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Whether the server no longer serves it.
    async fn is_cut_off(&self) -> bool {
        // Everybody else's turn first.
        sleep(Duration::from_millis(1)).await;
        self.served.is_finished()
    }

    /// All that comes until the other side ends it.
    async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

#[tokio::test(start_paused = true)]
async fn who_reads_nothing_is_cut_off() {
    let app = app(1 << 20);
    let mut client = Client::asks(&app, "/api/v1/connections").await;
    sleep(listener::STALL_TIMEOUT - SECOND).await;
    assert!(!client.is_cut_off().await);
    sleep(2 * SECOND).await;
    assert!(client.is_cut_off().await);
    let came = client.rest().await;
    assert!(came.len() <= BETWEEN, "{}", came.len());
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_gets_it_all() {
    let list = 16 << 10;
    let app = app(list);
    let mut client = Client::asks(&app, "/api/v1/connections").await;
    let (mut came, mut some, begun) = (0, [0; 1 << 10], Instant::now());
    loop {
        sleep(listener::STALL_TIMEOUT - SECOND).await;
        match client.stream.read(&mut some).await.unwrap() {
            0 => break,
            count => came += count,
        }
    }
    assert!(begun.elapsed() > 10 * listener::STALL_TIMEOUT);
    assert!(came > list, "a head and all of the list: {came}");
}

#[tokio::test(start_paused = true)]
async fn who_has_nothing_to_read_is_not_cut_off() {
    let app = app(0);
    let mut client = Client::asks(&app, "/api/v1/events").await;
    let (mut text, mut some, begun) = (String::new(), [0; 1 << 10], Instant::now());
    // The database is not there, which is told; then only that the stream is.
    while text.matches(": here").count() < 20 {
        let count = client.stream.read(&mut some).await.unwrap();
        assert!(count > 0, "it ended: {text}");
        text += std::str::from_utf8(&some[..count]).unwrap();
    }
    // Often enough for a proxy that gives up after a minute, and for the page.
    assert!(begun.elapsed() <= 20 * 15 * SECOND, "{:?}", begun.elapsed());
    assert!(text.contains("{\"reachable\":false}"), "{text}");
    assert!(!client.is_cut_off().await);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_say_what_he_wants_is_cut_off() {
    let app = app(0);
    for half in ["", "GET /livez HTTP/1.1\r\nHost: loc"] {
        let mut client = Client::of(&app);
        client.send(half).await;
        sleep(HEADERS_TIMEOUT - SECOND).await;
        assert!(!client.is_cut_off().await, "{half:?}");
        sleep(2 * SECOND).await;
        assert!(client.is_cut_off().await, "{half:?}");
    }
    // Nor may he be silent for longer once he was answered.
    let mut client = Client::of(&app);
    client
        .send(&request("/livez").replace("close", "keep-alive"))
        .await;
    sleep(HEADERS_TIMEOUT - SECOND).await;
    assert!(!client.is_cut_off().await);
    sleep(2 * SECOND).await;
    assert!(client.is_cut_off().await);
}

#[tokio::test(start_paused = true)]
async fn lists_that_are_not_read_make_others_wait_and_not_for_ever() {
    let app = app(64 << 10);
    let path = "/api/v1/connections";
    let mut unread = Vec::new();
    for _ in 0..api::MAX_SENDING {
        unread.push(Client::asks(&app, path).await);
    }
    // Each has begun, and sent as much as it can.
    sleep(SECOND).await;
    let begun = Instant::now();
    let refused = Client::asks(&app, path).await.rest().await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    assert!(refused.contains("too many lists"), "{refused}");
    assert!(
        begun.elapsed() >= api::SEND_TIMEOUT,
        "{:?}",
        begun.elapsed()
    );
    // Nothing else is refused meanwhile.
    let page = Client::asks(&app, "/").await.rest().await;
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");

    // One that arrives makes room for one, and so does one whose client goes.
    let whole = |text: &str| text.starts_with("HTTP/1.1 200 ") && text.len() > 64 << 10;
    let mut waiting = Client::asks(&app, path).await;
    sleep(SECOND).await;
    assert!(whole(&unread.pop().unwrap().rest().await));
    assert!(whole(&waiting.rest().await));
    unread.push(Client::asks(&app, path).await);
    let mut waiting = Client::asks(&app, path).await;
    sleep(SECOND).await;
    drop(unread.pop());
    assert!(whole(&waiting.rest().await));

    // The rest are cut off, and all is as it was.
    sleep(listener::STALL_TIMEOUT).await;
    let mut again = Vec::new();
    for _ in 0..api::MAX_SENDING {
        again.push(Client::asks(&app, path).await);
    }
    for client in &mut again {
        assert!(whole(&client.rest().await));
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_understood_is_answered_with_an_object() {
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "s3cret").unwrap();
    let settings = settings::Http {
        token_file: Some(token_file),
        ..Default::default()
    };
    let (_settings, settings) = watch::channel(settings);
    let (_, endpoint) = watch::channel(None);
    let context = HubContext::new(HubSettings::default());
    let app = Arc::new(App::new(settings, context, endpoint, None));
    let asked = [
        "GET /api/v1/events?since=abc",
        "GET /api/v1/events?since=",
        "GET /api/v1/events?since=-1",
        "GET /api/v1/events?since=1&since=2",
        "GET /api/v1/events?since=99999999999999999999",
        "GET /api/v1/connections/%ff",
        "POST /api/v1/connections/%ff/refresh",
        "POST /api/v1/connections/%ff/reconnect",
        "POST /api/v1/connections/%ff/disconnect",
    ];
    for line in asked {
        let mut client = Client::of(&app);
        let head = "Host: localhost\r\nConnection: close\r\nAuthorization: Bearer s3cret";
        client
            .send(&format!("{line} HTTP/1.1\r\n{head}\r\n\r\n"))
            .await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{line}: {answer}");
        let json = "\r\ncontent-type: application/json\r\n";
        assert!(answer.contains(json), "{line}: {answer}");
        let body = answer.rsplit("\r\n\r\n").next().unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["error"].is_string(), "{line}: {answer}");
    }
}

/// What a client has got within a moment of a clock that stands still for those who do something.
async fn got(stream: &UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 10];
    for _ in 0..1000 {
        sleep(Duration::from_millis(1)).await;
        match stream.try_read(&mut bytes) {
            Ok(count) => return bytes[..count].to_vec(),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    Vec::new()
}

/// A listener with these places, and how its clients reach it.
struct Accepting {
    dir: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Accepting {
    async fn start(places: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("http");
        // One that was left behind stands in no way.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listen = settings::Listen::Unix(path.display().to_string());
        let listener = listener::Listener::bind(&listen).await.unwrap();
        let app = app(0);
        let task =
            tokio::spawn(async move { match super::accept(&listener, &app, places).await {} });
        Self { dir, task }
    }

    async fn connects(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("http"))
            .await
            .unwrap()
    }

    /// A client that stays after its answer, and what it got.
    async fn asks(&self, path: &str) -> (UnixStream, String) {
        let stream = self.connects().await;
        let answer = asks_again(&stream, path).await;
        (stream, answer)
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn asks_again(stream: &UnixStream, path: &str) -> String {
    let request = request(path).replace("close", "keep-alive");
    assert_eq!(stream.try_write(request.as_bytes()).unwrap(), request.len());
    String::from_utf8_lossy(&got(stream).await).into_owned()
}

#[tokio::test(start_paused = true)]
async fn who_comes_when_all_are_busy_waits_until_one_goes() {
    let places = 4;
    let accepting = Accepting::start(places).await;
    let path = accepting.dir.path().join("http");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut clients = Vec::new();
    for _ in 0..places {
        let (client, begun) = accepting.asks("/api/v1/events").await;
        assert!(begun.starts_with("HTTP/1.1 200 "), "{begun}");
        clients.push(client);
    }
    // A place is kept for probes, and for nothing else.
    let (late, answer) = accepting.asks("/livez").await;
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    let (_, refused) = accepting.asks("/metrics").await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    // Those end after one answer, so that they are free for the next.
    let mut probes = vec![late];
    for _ in 0..2 * super::MAX_PROBES {
        let (probe, answer) = accepting.asks("/livez").await;
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        probes.push(probe);
    }
    // One that does not ask is cut off much earlier than elsewhere.
    for _ in 0..super::MAX_PROBES {
        probes.push(accepting.connects().await);
    }
    sleep(super::PROBE_HEADERS_TIMEOUT).await;
    let (_, answer) = accepting.asks("/livez").await;
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    drop(clients.pop());
    let (_, answer) = accepting.asks("/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn the_longest_idle_connection_gives_way_to_a_new_one() {
    let accepting = Accepting::start(4).await;
    let (busy, _) = accepting.asks("/api/v1/events").await;
    let (first, _) = accepting.asks("/none").await;
    let silent = accepting.connects().await;
    let (last, _) = accepting.asks("/none").await;
    // It has been idle for less time than the others now.
    assert!(
        asks_again(&first, "/none")
            .await
            .starts_with("HTTP/1.1 404 ")
    );

    let is_closed = |stream: &UnixStream| matches!(stream.try_read(&mut [0]), Ok(0));
    let mut new = Vec::new();
    for closed in [&silent, &last, &first] {
        assert!(!is_closed(closed));
        let (client, answer) = accepting.asks("/none").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(is_closed(closed));
        new.push(client);
    }
    assert!(!is_closed(&busy), "its answer has not ended");
    // One whose request never ends gives way, too, a little later.
    drop(new);
    let half = accepting.connects().await;
    half.try_write(b"GET /none HTTP/1.1\r\nHost: loc").unwrap();
    let mut others = Vec::new();
    for _ in 0..3 {
        let (client, answer) = accepting.asks("/none").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        others.push(client);
    }
    assert!(is_closed(&half));
}

#[tokio::test]
async fn what_is_not_our_socket_stays_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http");
    let listen = settings::Listen::Unix(path.display().to_string());
    let keep = dir.path().join("keep");
    std::fs::write(&keep, "kept").unwrap();
    let refused = async || {
        let Err(error) = listener::Listener::bind(&listen).await else {
            panic!("it listens");
        };
        let text = format!("{error:#}");
        assert!(text.contains("not a socket"), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
    };
    std::fs::write(&path, "precious").unwrap();
    refused().await;
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&keep, &path).unwrap();
    refused().await;
    assert!(path.is_symlink());
    std::fs::remove_file(&path).unwrap();

    // Nor does it go when something else has taken the socket's place.
    let listener = listener::Listener::bind(&listen).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = listener::Listener::bind(&listen).await.unwrap();
    drop(listener);
    UnixStream::connect(&path).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(other);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();

    // Its own does.
    drop(listener::Listener::bind(&listen).await.unwrap());
    assert!(!path.exists());
}
