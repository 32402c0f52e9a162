//! Events: resumed at the last position, in order, and without delaying others.

use std::io::Write as _;

use super::{Served, source};
use crate::support::http::{Event, Events, Http, until};
use crate::support::hub::{self, postgres};
use crate::support::kept::{publish, to};
use crate::support::{
    Cluster, DEADLINE, Spcd, eventually, eventually_now, query, shared, try_query, value,
};

fn changes(events: &[Event]) -> Vec<(&str, &str)> {
    events
        .iter()
        .map(|event| {
            let of = |name: &str| event.data[name].as_str().unwrap();
            (of("connection"), of("status"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_on_where_one_was() {
    let Served {
        hub,
        source,
        mut spcd,
        http,
    } = Served::start().await;

    let mut live = http.events("", &[]);
    let open = live.until("it is open", |event| event.kind == "open");
    let begin = open.id.unwrap();
    assert_eq!(open.data["event"], begin);
    spcd.write("b.spc", &postgres("b", &source));
    let mut seen = Vec::new();
    let ready = |event: &Event| event.data["connection"] == "b" && event.data["status"] == "ready";
    while !seen.last().is_some_and(ready) {
        let event = live.next().unwrap();
        if event.kind == "change" {
            seen.push(event);
        }
    }
    assert_eq!(changes(&seen), [("b", "pending"), ("b", "ready")]);
    let ids: Vec<i64> = seen.iter().map(|event| event.id.unwrap()).collect();
    assert!(
        ids.is_sorted_by(|a, b| a < b) && ids[0] > begin,
        "{begin} {ids:?}"
    );

    // A client that was away gets the later events once, by either way of sending its position.
    spcd.remove("b.spc");
    live.until("it goes", |event| event.data["status"] == "deleted");
    let last = format!("Last-Event-ID: {}", ids[0]);
    for (query, head) in [
        (format!("?since={}", ids[0]), &[][..]),
        (String::new(), &[last.as_str()]),
        ("?since=0".into(), &[last.as_str()]),
    ] {
        let mut again = http.events(&query, head);
        assert_eq!(again.next().unwrap().kind, "open");
        let mut missed = Vec::new();
        while !missed
            .last()
            .is_some_and(|event: &Event| event.data["status"] == "deleted")
        {
            let event = again.next().unwrap();
            assert_eq!(event.kind, "change", "{event:?}");
            missed.push(event);
        }
        assert_eq!(
            changes(&missed),
            [("b", "ready"), ("b", "deleting"), ("b", "deleted")]
        );
    }
    // One who claims to have seen what is yet to come has another database in mind.
    let mut ahead = http.events("?since=999999999", &[]);
    let resync = ahead.until("it says so", |event| event.kind != "hub");
    assert_eq!(resync.kind, "resync");
    for wrong in ["?since=x", "?since=-1"] {
        assert_eq!(http.events(wrong, &[]).status, 400);
    }
    assert_eq!(http.events("", &["Last-Event-ID: x"]).status, 400);

    // Another daemon that takes over makes everything pending at once: read it again.
    spcd.stop();
    let other = http.is_gone();
    assert!(other);
    spcd.start();
    http.is_there();
    let mut live = http.events("", &[]);
    live.until("it is open", |event| event.kind == "open");
    hub::until(&hub.url, &["a ready"]).await;
    query(
        &hub.url,
        "SELECT pg_notify('connection_state', '{\"version\":1,\"resync\":true}')",
    )
    .await;
    live.until("it is told", |event| event.kind == "resync");
    spcd.stop();
}

/// The numbers of all events after one, as the table has them.
async fn written(hub: &str, after: i64) -> Vec<i64> {
    let sql = format!("SELECT id FROM spcd.connection_event WHERE id > {after} ORDER BY id");
    let rows = query(hub, &sql).await;
    rows.concat().iter().map(|id| id.parse().unwrap()).collect()
}

/// The numbers of the events that a client gets which goes on after one, up to the last: a start is
/// one of them. Others in between say that the daemon takes the lead just then.
fn resumed(http: &Http, after: i64, last: i64) -> Option<Vec<i64>> {
    let mut stream = http.events("", &[&format!("Last-Event-ID: {after}")]);
    let mut ids = Vec::new();
    while ids.last() != Some(&last) {
        let event = stream.next()?;
        match event.kind.as_str() {
            "change" | "resync" => ids.push(event.id.unwrap()),
            _ => {}
        }
    }
    Some(ids)
}

/// Reads a stream until it has come to an event. Nothing is left out unless it says so.
fn follow(stream: &mut Events, written: &[i64], mut at: i64) {
    while written.iter().any(|id| *id > at) {
        let event = stream.next().expect("the stream goes on");
        match event.kind.as_str() {
            "change" => {
                let next = written.iter().find(|id| **id > at);
                assert_eq!(event.id.as_ref(), next, "after {at}");
                at = event.id.unwrap();
            }
            "resync" => at = event.id.unwrap(),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_on_where_one_was_over_restarts_of_the_daemon_and_the_database() {
    let source = source().await;
    let mut cluster = Cluster::start(&[]);
    let hub = cluster.database().await.url;
    let mut spcd = Spcd::new(&hub);
    let http = Http::of(&mut spcd);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.start();
    hub::until(&hub, &["a ready"]).await;
    // Ready once more, and the daemon that leads now found it so.
    let ready_again = async |after: i64| {
        let sql = format!(
            "SELECT status = 'ready' AND EXISTS (
                 SELECT FROM spcd.connection_event WHERE id > {after} AND status = 'resync')
             FROM spcd.connection_state"
        );
        eventually("it is ready again", DEADLINE, || async {
            let rows = try_query(&hub, &sql).await.ok()?;
            (rows[0][0].as_deref() == Some("t")).then_some(())
        })
        .await;
    };

    // The daemon goes. Something happens while it is away, and more when it is back.
    let begin = *written(&hub, 0).await.last().unwrap();
    spcd.stop();
    let away = serde_json::json!([to("a", &["updating", "ready"])]);
    publish(&hub, "", away).await;
    spcd.start();
    http.is_there();
    ready_again(begin).await;
    let ids = written(&hub, begin).await;
    let last = *ids.last().unwrap();
    eventually_now("nothing is left out", || {
        resumed(&http, begin, last).filter(|got| *got == ids)
    });

    // The database goes, under a stream that is open.
    let mut open = http.events("", &[&format!("Last-Event-ID: {begin}")]);
    open.until("it is open", |event| event.kind == "open");
    cluster.stop();
    let hub_is = |stream: &mut Events, there: bool| {
        stream.until("it is told", |event| {
            event.kind == "hub" && event.data["reachable"] == there
        });
    };
    hub_is(&mut open, false);
    // Who comes back just then is told so, too, and goes on when the database is back.
    let mut meanwhile = http.events("", &[&format!("Last-Event-ID: {last}")]);
    hub_is(&mut meanwhile, false);
    cluster.start_again();
    for stream in [&mut open, &mut meanwhile] {
        hub_is(stream, true);
    }
    ready_again(last).await;
    let more = written(&hub, last).await;
    let resync = open.until("what was missed is not known", |event| {
        event.kind == "resync"
    });
    follow(&mut open, &more, resync.id.unwrap());
    follow(&mut meanwhile, &more, last);
    eventually_now("nothing is left out", || {
        resumed(&http, last, *more.last().unwrap()).filter(|got| *got == more)
    });
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_committed_in_their_order() {
    let hub = shared().database().await;
    let spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    let first = crate::support::connect(&hub.url).await.unwrap();
    let insert = "INSERT INTO spcd.connection_event (connection_name, status, generation) VALUES ('a', 'ready', 1)";
    first
        .batch_execute(&format!("BEGIN; {insert}"))
        .await
        .unwrap();
    let second = crate::support::connect(&hub.url).await.unwrap();
    let waiting = tokio::spawn(async move { second.batch_execute(insert).await });
    // It waits, and so has no number yet that a client could see before the other's.
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'spcd_lock.event_order'::regclass";
    eventually("the second waits", DEADLINE, || async {
        (value(&hub.url, waits).await == "1").then_some(())
    })
    .await;
    assert_eq!(
        value(
            &hub.url,
            "SELECT last_value FROM spcd.connection_event_id_seq"
        )
        .await,
        "1"
    );
    first.batch_execute("COMMIT").await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(
        value(
            &hub.url,
            "SELECT array_agg(id ORDER BY id) FROM spcd.connection_event"
        )
        .await,
        "{1,2}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_slow_clients_delay_no_shutdown_and_no_other_client() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let http = Http::of(&mut spcd);
    spcd.start();
    http.is_there();
    let mut streams = Vec::new();
    let refused = loop {
        let stream = http.events("", &[]);
        if stream.status != 200 {
            break stream.status;
        }
        streams.push(stream);
        assert!(streams.len() < 1000, "there is no end to it");
    };
    assert_eq!(refused, 503);
    // Half a request, and half of another's head.
    let mut half = http.connect();
    half.write_all(b"GET /api/v1/conn").unwrap();
    assert_eq!(http.get("/livez").status, 200);
    // Requested lists that are not read yet do no harm either.
    let mut unread = Vec::new();
    for _ in 0..40 {
        let mut one = http.connect();
        one.write_all(b"GET /api/v1/connections HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        unread.push(one);
    }
    assert_eq!(http.get("/livez").status, 200);
    until(&http, "/api/v1/connections", |answer| answer.status == 200);
    // One that goes makes room.
    streams.pop();
    eventually_now("there is room again", || {
        let stream = http.events("", &[]);
        (stream.status == 200).then(|| streams.push(stream))
    });
    spcd.stop();
    for stream in &mut streams {
        while stream.next().is_some() {}
    }
    assert!(http.is_gone());
}
