//! What the channel carries: whole changes, in messages that are as few as they can be.

use serde_json::Value;
use tokio::time::timeout;

use crate::support::listen::listener;
use crate::support::{DEADLINE, Spcd, query, shared};

/// NOTIFY allows less than this.
const LIMIT: usize = 8000;

/// Announces so many changes in one transaction, each with this error; the messages that come.
async fn announced(url: &str, count: usize, error: &str) -> Vec<String> {
    let (_client, mut heard) = listener(url, "connection_state").await;
    // The longest name that there can be, and one that needs more room in JSON than elsewhere.
    query(
        url,
        &format!(
            "BEGIN; SELECT spcd.reset_event_buffer();
             INSERT INTO pg_temp.spcd_event
                 (n, step, connection_name, previous, status, error, duration)
             SELECT n, 1, left('c' || n || repeat(E'\\x01\"', 30), 63), 'updating', 'error', {error},
                    interval '1 s'
             FROM generate_series(1, {count}) n;
             SELECT spcd.announce(9223372036854775807, false); COMMIT"
        ),
    )
    .await;
    let (mut messages, mut changes) = (Vec::new(), 0);
    while changes < count {
        let message = timeout(DEADLINE, heard.recv()).await;
        let message = message.expect("all changes are announced").unwrap();
        let parsed: Value = serde_json::from_str(&message).unwrap();
        changes += parsed["changes"].as_array().unwrap().len();
        messages.push(message);
    }
    assert_eq!(changes, count);
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_within_the_limit_and_nearly_full() {
    let hub = shared().database().await;
    let spcd = Spcd::new(&hub.url);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    for (error, least) in [
        // A change is short: there is room for little more in any message but the last.
        ("NULL", LIMIT - 1000),
        // The longest errors, of characters that take six bytes in JSON, four, two and one.
        ("repeat(E'\\x01', 5000)", LIMIT - 3500),
        ("repeat('🙂', 5000)", LIMIT - 3500),
        ("repeat('é', n % 2000)", LIMIT - 3500),
        ("repeat('\"', n)", LIMIT - 3500),
    ] {
        let messages = announced(&hub.url, 300, error).await;
        let sizes: Vec<usize> = messages.iter().map(String::len).collect();
        assert!(sizes.iter().all(|size| *size < LIMIT), "{error}: {sizes:?}");
        let full = &sizes[..sizes.len() - 1];
        assert!(full.iter().all(|size| *size >= least), "{error}: {sizes:?}");
    }
}
