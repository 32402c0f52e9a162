//! The page while the database or the daemon is away.

use super::{opened, row, served};
use crate::support::hub::{self, made_by, postgres};
use crate::support::{Cluster, query, shared};

const LAMP: &str = "document.querySelector('#live').dataset.state";
const BANNER: &str = "(document.querySelector('#banner').hidden ? '' : document.querySelector('#banner').textContent)";

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_is_away_and_is_right_when_it_is_back() {
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    let (mut spcd, address) = served(&hub.url);
    for name in ["goes", "stays"] {
        spcd.write(&format!("{name}.spc"), &postgres(name, &source));
    }
    spcd.start();
    hub::until(&hub.url, &["goes ready", "stays ready"]).await;
    let page = opened(&address);
    page.value("window.kept = 'the same page'");
    page.until(&format!("{LAMP} === 'on'"));
    page.until(&format!("{} !== undefined", row("goes")));

    // The database goes; what is shown stays, and is said to be old.
    cluster.stop();
    page.until(&format!("{LAMP} === 'off'"));
    page.until(&format!("/database/i.test({BANNER})"));
    page.until("document.querySelector('#live-text').textContent.includes('database')");
    assert_eq!(page.value("document.querySelectorAll('.row').length"), 2);
    cluster.start_again();
    page.until(&format!("{LAMP} === 'on' && {BANNER} === ''"));
    page.until(&format!(
        "{}?.children[0].textContent === 'ready'",
        row("goes")
    ));

    // The daemon goes, and other files are there when it is back.
    hub::until(&hub.url, &["goes ready", "stays ready"]).await;
    spcd.stop();
    page.until(&format!("{LAMP} === 'off'"));
    page.until(&format!(
        "{BANNER}.startsWith('The daemon cannot be reached')"
    ));
    page.until("document.querySelector('#live-text').textContent.includes('daemon')");
    assert_eq!(page.value("document.querySelectorAll('.row').length"), 2);
    spcd.remove("goes.spc");
    spcd.write("new.spc", &postgres("new", &source));
    spcd.start();
    page.until(&format!("{LAMP} === 'on' && {BANNER} === ''"));
    page.until(&format!(
        "{}?.children[0].textContent === 'ready'",
        row("new")
    ));
    page.until(&format!("{} === undefined", row("goes")));
    assert_eq!(page.value("document.querySelectorAll('.row').length"), 2);
    assert_eq!(page.value("window.kept"), "the same page");
    spcd.stop();
}

/// A network that loses what is sent, or a machine that slept: the end of the stream is not announced.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_silent_for_too_long_is_begun_anew() {
    let hub = shared().database().await;
    let (mut spcd, address) = served(&hub.url);
    spcd.start();
    let page = opened(&address);
    page.until(&format!("{LAMP} === 'on'"));
    // The daemon says at least every 15 s that it is there.
    assert!(page.value("state.silence").as_u64().unwrap() > 30_000);
    page.value("state.silence = 200");
    // From the next word on.
    let word = r#"SELECT pg_notify('connection_state', '{"version":1,"resync":true}')"#;
    query(&hub.url, word).await;
    page.until(&format!("{LAMP} === 'off'"));
    page.value("state.silence = 45000");
    page.until(&format!("{LAMP} === 'on' && {BANNER} === ''"));
    spcd.stop();
}
