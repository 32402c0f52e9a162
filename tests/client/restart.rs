//! What waits when the daemon or the server is killed.

use serde_json::json;
use spcd_client::Client;

use super::{LONG, broken, count_waits, waits};
use crate::support::Cluster;
use crate::support::kept::{load, migrate, publish, to};

#[tokio::test(flavor = "multi_thread")]
async fn waiting_clients_get_their_answer_over_a_restart_of_the_server() {
    let mut cluster = Cluster::start(&["max_connections = 300"]);
    let url = cluster.url("postgres");
    migrate(&url);
    publish(
        &url,
        "",
        json!([to("a", &["pending"]), to("b", &["pending"])]),
    )
    .await;
    let mut waiters = Vec::new();
    let mut counts = Vec::new();
    for n in 0..100 {
        let mut client = Client::connect(&url).await.unwrap();
        client.set_timeout(LONG);
        counts.push(count_waits(&mut client));
        let name = if n % 2 == 0 { "a" } else { "b" };
        waiters.push(tokio::spawn(async move {
            match n % 4 {
                0 | 1 => client.wait_ready(&[name], LONG).await.map(|()| 1),
                _ => client
                    .query(&format!("SELECT id FROM {name}.t"), &[])
                    .await
                    .map(|rows| rows.len()),
            }
        }));
    }
    for count in &counts {
        waits(count).await;
    }
    cluster.kill9();
    cluster.start_again();
    load(&url, "a").await;
    publish(&url, "", json!([broken("b", "gave up")])).await;
    for (n, waiter) in waiters.into_iter().enumerate() {
        match waiter.await.unwrap() {
            Ok(rows) => assert_eq!((n % 2, rows), (0, 1)),
            Err(error) => {
                assert_eq!(n % 2, 1, "{error:?}");
                assert!(error.to_string().contains("gave up"), "{error}");
            }
        }
    }
}
