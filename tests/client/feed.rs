//! Hearing of changes: over lost sessions, on a standby, and behind a pooler.

use std::collections::BTreeMap;

use serde_json::json;
use spcd_client::{AnnouncedStatus, Changes, Client, Connector, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{LONG, count_waits, waits};
use crate::support::kept::{load, migrate, publish, to};
use crate::support::{Cluster, DEADLINE, eventually, value};

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_once_and_in_order_over_lost_sessions() {
    let mut cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    migrate(&url);
    load(&url, "a").await;
    load(&url, "b").await;
    let mut changes = Changes::of(Connector::new(&url).unwrap(), Some(&["a", "new"]));
    assert_eq!(
        changes.begin().await.unwrap(),
        [("a".to_owned(), Status::Ready)]
    );
    publish(
        &url,
        "",
        json!([
            to("b", &["updating"]),
            to("a", &["updating", "ready"]),
            to("new", &["pending"])
        ]),
    )
    .await;
    let mut told = Vec::new();
    for _ in 0..3 {
        let change = changes.next().await.unwrap();
        told.push((change.connection, change.previous, change.status));
    }
    let status = AnnouncedStatus::Status;
    assert_eq!(
        told,
        [
            (
                "a".to_owned(),
                Some(Status::Ready),
                status(Status::Updating)
            ),
            (
                "a".to_owned(),
                Some(Status::Updating),
                status(Status::Ready)
            ),
            ("new".to_owned(), None, status(Status::Pending)),
        ]
    );
    assert!(!changes.polls());

    // Without a listener: a is broken, new goes.
    cluster.stop();
    cluster.start_again();
    publish(&url, "", json!([{"name": "a", "route": ["updating", "error"], "error": "x"}, {"name": "new", "route": ["deleting"], "remove": true}])).await;
    let mut after = BTreeMap::new();
    while after.len() < 2 {
        let change = changes.next().await.unwrap();
        // Either as one change each, from before to after, or as it happened.
        after.insert(
            change.connection,
            serde_json::to_value(change.status).unwrap(),
        );
        if after.get("a").is_some_and(|a| a == "updating") {
            after.remove("a");
        }
        if after.get("new").is_some_and(|new| new == "deleting") {
            after.remove("new");
        }
    }
    assert_eq!(
        serde_json::to_value(after).unwrap(),
        json!({"a": "error", "new": "deleted"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_standby_the_table_is_polled() {
    let cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    migrate(&url);
    publish(&url, "", json!([to("a", &["pending"])])).await;
    let standby = cluster.standby();
    let mut client = Client::connect(&standby.url("postgres")).await.unwrap();
    let count = count_waits(&mut client);
    let mut changes = Changes::of(
        Connector::new(&standby.url("postgres")).unwrap(),
        Some(&["a"]),
    );
    changes.begin().await.unwrap();
    assert!(changes.polls());
    let asked = tokio::spawn(async move { client.query("SELECT id FROM a.t", &[]).await });
    waits(&count).await;
    load(&url, "a").await;
    assert_eq!(asked.await.unwrap().unwrap().len(), 1);
    assert_eq!(
        changes.next().await.unwrap().status,
        AnnouncedStatus::Status(Status::Ready)
    );
}

/// A pooler's way with LISTEN: what the server says unasked goes nowhere. With `old`, sessions are
/// served by backends that were opened before.
async fn pooler(port: u16, old: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let mut ready = Vec::new();
    if old {
        for _ in 0..4 {
            ready.push(backend(port, None).await);
        }
        // Until each is clearly older than the session it will serve.
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
                   AND clock_timestamp() - backend_start > interval '300 ms'";
        eventually("the backends are old", DEADLINE, || async {
            (value(&url, sql).await.parse::<i32>().unwrap() >= 4).then_some(())
        })
        .await;
    }
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let startup = startup(&mut client).await;
            let (server, greeting) = match ready.pop() {
                Some(backend) => backend,
                None => backend(port, Some(startup)).await,
            };
            client.write_all(&greeting).await.unwrap();
            tokio::spawn(pump(client, server));
        }
    });
    own
}

async fn startup(client: &mut TcpStream) -> Vec<u8> {
    loop {
        let length = client.read_u32().await.unwrap();
        let mut message = length.to_be_bytes().to_vec();
        message.resize(length as usize, 0);
        client.read_exact(&mut message[4..]).await.unwrap();
        // An SSLRequest is answered with no.
        if message[4..8] != 80_877_103_u32.to_be_bytes() {
            return message;
        }
        client.write_all(b"N").await.unwrap();
    }
}

/// A session with the server, and all that it said until it was ready.
async fn backend(port: u16, startup: Option<Vec<u8>>) -> (TcpStream, Vec<u8>) {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let startup = startup.unwrap_or_else(|| {
        let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        [
            &(u32::try_from(body.len() + 4).unwrap()).to_be_bytes()[..],
            body,
        ]
        .concat()
    });
    server.write_all(&startup).await.unwrap();
    let mut said = Vec::new();
    loop {
        let message = message(&mut server).await.unwrap();
        said.extend_from_slice(&message);
        if message[0] == b'Z' {
            return (server, said);
        }
    }
}

async fn message(server: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let kind = server.read_u8().await?;
    let length = server.read_u32().await?;
    let mut message = vec![kind];
    message.extend_from_slice(&length.to_be_bytes());
    message.resize(length as usize + 1, 0);
    server.read_exact(&mut message[5..]).await?;
    Ok(message)
}

async fn pump(client: TcpStream, server: TcpStream) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    while let Ok(message) = message(&mut from_server).await {
        const NOTIFICATION: u8 = b'A';
        if message[0] != NOTIFICATION && to_client.write_all(&message).await.is_err() {
            break;
        }
    }
    up.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_that_loses_notifications_the_table_is_read() {
    let cluster = Cluster::start(&[]);
    let url = cluster.url("postgres");
    migrate(&url);
    for old in [true, false] {
        let name = format!("old_{old}");
        publish(&url, "", json!([to(&name, &["pending"])])).await;
        let port = pooler(cluster.port(), old).await;
        let through = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let connector = Connector::new(&through).unwrap();
        let mut changes = Changes::of(connector.clone(), Some(&[&name]));
        changes.begin().await.unwrap();
        assert_eq!(changes.polls(), old);
        let mut client = Client::open(connector).await.unwrap();
        let count = count_waits(&mut client);
        let asked = {
            let name = name.clone();
            tokio::spawn(async move { client.wait_ready(&[name], LONG).await })
        };
        waits(&count).await;
        load(&url, &name).await;
        asked.await.unwrap().unwrap();
        assert_eq!(
            changes.next().await.unwrap().status,
            AnnouncedStatus::Status(Status::Ready)
        );
    }
}
