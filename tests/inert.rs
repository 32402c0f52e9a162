//! Text from names, sources and data does not act on a terminal.

use crate::support::hub::{made_by, postgres, until};
use crate::support::{Finished, Spcd, query, shared};

/// An escape sequence, one that sets the title, a backspace, a C1 control and a bidi mark.
const HOSTILE: &str = "\u{1b}[31m\u{1b}]0;x\u{7}\u{8}\u{9b}1m\u{202e}\u{2066}";

fn acts(answer: &Finished) -> bool {
    let all = [answer.stdout.as_str(), answer.stderr.as_str()].concat();
    all.chars().any(spcd_core::terminal::is_terminal_control)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_hands_a_terminal_what_a_name_a_source_or_a_row_holds() {
    let hub = shared().database().await;
    let column = spcd_core::sql::ident(&format!("c{}", &HOSTILE[..16]));
    let source = made_by(&format!(
        "CREATE TABLE t ({column} text); INSERT INTO t VALUES ({})",
        spcd_core::sql::literal(HOSTILE)
    ))
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("a.spc", &postgres("a", &source));
    // Bidi marks may stand in a name; its source does not exist, which is said with its own name.
    let name = "bad\u{202e}\u{2066}";
    let bad = postgres(name, &source).replace(&source.name, &format!("none{HOSTILE}"));
    spcd.write("b.spc", &bad);
    spcd.start();
    until(&hub.url, &["a ready", &format!("{name} error")]).await;
    // A view with a hostile name is in the way of a removal that is only planned.
    query(
        &hub.url,
        &format!(
            "CREATE VIEW {} AS SELECT * FROM a.t",
            spcd_core::sql::ident("v\u{9b}1m\u{202e}")
        ),
    )
    .await;
    query(&source.url, "DROP TABLE t").await;
    spcd.spcd(&["refresh", "a", "--wait"]);
    for command in [
        &["status"][..],
        &["status", name],
        &["wait", "--timeout", "1s"],
        &["refresh", name, "--wait"],
        &["refresh", HOSTILE],
        &["test", name],
        &["reconnect", name, "--timeout", "1s"],
        &["query", "SELECT * FROM a.t"],
        &[
            "query",
            "SELECT 1 AS \"\u{9b}1m\u{202e}\", E'\\x1b[31m\\u202e' AS x",
        ],
        &[
            "query",
            "--output",
            "line",
            "SELECT E'\\x1b[31m\\u202e' AS x",
        ],
        &["query", "SELECT \u{202e}"],
        &["check"],
        &["check", "--show-values"],
        &["plan", "--refresh"],
        &["apply"],
        &["doctor"],
        &["destroy"],
    ] {
        let answer = spcd.spcd(command);
        assert!(!acts(&answer), "{command:?}: {answer:?}");
    }
    // A broken file is quoted.
    spcd.write(
        "c.spc",
        "connection \"c\" {\n  plugin = \u{9b}1m\u{202e} \u{1b}[31m\n}\n",
    );
    // So is a value that is public, and the name of its file.
    spcd.write(
        "d\u{9b}1m\u{202e}.spc",
        "connection \"d\" {\n  plugin = \"postgres\"\n  host   = \"\u{9b}1m\u{202e}:5432\"\n}\n",
    );
    let check = spcd.spcd(&["check"]);
    assert!(check.stderr.contains(":5432\""), "{check:?}");
    assert!(!acts(&check), "{check:?}");
    // What programs read is the data.
    let csv = spcd.spcd(&["query", "--output", "csv", "SELECT E'\\u202e' AS x"]);
    assert_eq!(csv.stdout, "x\n\u{202e}\n");
    spcd.stop();
}
