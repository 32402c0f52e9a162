//! Each wait of the daemon for a lock has a limit, whatever statement it is in.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::support::hub::{made_by, postgres, until, until_commented};
use crate::support::{Cluster, Spcd, query};

/// Settings each of which ends a statement that waits for a lock.
const LIMITS: [&str; 2] = ["lock_timeout", "statement_timeout"];

/// Limits of a session that are set, and those of its transaction.
#[derive(Default)]
struct Limits {
    session: BTreeMap<&'static str, bool>,
    transaction: BTreeMap<&'static str, bool>,
}

impl Limits {
    fn is_limited(&self) -> bool {
        LIMITS.iter().any(|name| {
            let own = self.transaction.get(name).or(self.session.get(name));
            own.copied().unwrap_or_default()
        })
    }

    /// Takes over what one statement of a message sets. Returns whether it did.
    fn set(&mut self, statement: &str) -> bool {
        let words: Vec<&str> = statement.split_whitespace().collect();
        let (limits, rest) = match words.as_slice() {
            ["SET", "LOCAL", rest @ ..] => (&mut self.transaction, rest),
            ["SET", rest @ ..] => (&mut self.session, rest),
            ["COMMIT" | "ROLLBACK", ..] => {
                self.transaction.clear();
                return true;
            }
            _ => return false,
        };
        if let [name, "=" | "TO", value] = rest {
            let known = LIMITS.into_iter().find(|limit| limit == name);
            known.map(|limit| limits.insert(limit, value.trim_matches('\'') != "0"));
        }
        true
    }
}

/// Sessions whose waits the daemon ends itself (`RESIGN_TIMEOUT`), and those of commands, which a user can
/// end.
const OTHERS: [&str; 2] = ["spcd resign", "spcd client"];

/// Whether a statement takes no lock that others hold, or does not wait for it. The daemon itself ends the
/// look into `pg_locks` of the session that holds the lead (`LOCK_CHECK_TIMEOUT`).
fn never_waits(statement: &str) -> bool {
    let reads_nothing = statement.starts_with("SELECT ")
        && !["FROM", "spcd"].iter().any(|word| statement.contains(word));
    statement == "BEGIN"
        || statement.ends_with(" NOWAIT")
        || reads_nothing
        || statement.contains("JOIN pg_catalog.pg_class c ON c.oid = l.relation")
            && statement.contains("FROM pg_catalog.pg_locks l")
}

/// The statements of the daemon that may wait for a lock for ever, from a server's log.
fn unlimited_statements(cluster: &Cluster) -> (usize, Vec<String>) {
    let mut sessions: BTreeMap<u64, Limits> = BTreeMap::new();
    let (mut limited, mut unlimited) = (0, Vec::new());
    let log = fs::read_to_string(cluster.data().join("statements.json")).unwrap();
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        let is_ours = entry["application_name"]
            .as_str()
            .is_some_and(|name| name.starts_with("spcd") && !OTHERS.contains(&name));
        let message = entry["message"].as_str().unwrap_or_default();
        let is_statement = message.starts_with("statement: ") || message.starts_with("execute ");
        let (true, true, Some((_, text))) = (is_ours, is_statement, message.split_once(": "))
        else {
            continue;
        };
        let limits = sessions.entry(entry["pid"].as_u64().unwrap()).or_default();
        for statement in text.split(';').map(str::trim) {
            if statement.is_empty() || limits.set(statement) {
                continue;
            }
            match limits.is_limited() {
                true => limited += 1,
                false if never_waits(statement) => {}
                false => unlimited.push(statement.to_owned()),
            }
        }
    }
    (limited, unlimited)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_statement_of_the_daemon_has_a_limit_for_locks() {
    let cluster = Cluster::start(&[
        "logging_collector = on",
        "log_destination = 'jsonlog'",
        "log_directory = '.'",
        "log_filename = 'statements'",
        "log_statement = 'all'",
    ]);
    let hub = cluster.database().await;
    let source = made_by("CREATE TABLE t (id integer); COMMENT ON TABLE t IS 'one'").await;
    let mut spcd = Spcd::new(&hub.url);
    let all = "connection \"all\" {\n  plugin = \"postgres\"\n  type = \"aggregator\"\n  \
               connections = [\"a\", \"b\"]\n}\n";
    spcd.write("a.spc", &postgres("a", &source));
    spcd.write("b.spc", &(postgres("b", &source) + all));
    spcd.start();
    until(&hub.url, &["a ready", "all ready", "b ready"]).await;
    until_commented(&hub.url, "b").await;
    query(&source.url, "ALTER TABLE t ADD COLUMN note text").await;
    assert_eq!(spcd.spcd(&["refresh", "--wait"]).code, 0);
    query(&hub.url, "DROP FOREIGN TABLE a.t CASCADE").await;
    assert_eq!(spcd.spcd(&["refresh", "a", "--wait"]).code, 0);
    assert_eq!(spcd.spcd(&["reconnect", "b"]).code, 0);
    spcd.remove("b.spc");
    until(&hub.url, &["a ready"]).await;
    spcd.stop();

    let (limited, unlimited) = unlimited_statements(&cluster);
    assert!(limited > 100, "{limited}");
    assert_eq!(unlimited, [""; 0]);
}
