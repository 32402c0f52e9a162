//! Connection poolers between spcd and the server.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command};

use crate::support::{
    Spcd, as_server_user, eventually_now, free_port, fresh_dir, give_to_server, shared, value,
};

/// pgbouncer before the shared cluster.
struct Pooler {
    process: Child,
    port: u16,
}

impl Pooler {
    fn start(mode: &str) -> Self {
        let (dir, port) = (fresh_dir("pooler"), free_port());
        let conf = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {dir}/users\npool_mode = {mode}\nlogfile = {dir}/log\n",
            shared().port(),
            dir = dir.display(),
        );
        for (name, text) in [
            ("ini", conf.as_str()),
            ("users", "\"postgres\" \"\"\n"),
            ("log", ""),
        ] {
            fs::write(dir.join(name), text).unwrap();
            give_to_server(&dir.join(name));
        }
        let mut command = Command::new("pgbouncer");
        let command = as_server_user(command.arg("-q").arg(dir.join("ini")));
        let process = command
            .spawn()
            .expect("pgbouncer, which scripts/test.sh provides");
        eventually_now("pgbouncer listens", || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self { process, port }
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attribute_is_named_that_a_pooler_before_the_source_refuses() {
    let (hub, source) = (shared().database().await, shared().database().await);
    let pooler = Pooler::start("session");
    let spcd = Spcd::new(&hub.url);
    spcd.write(
        "a.spc",
        &format!(
            "connection \"a\" {{\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  port = {}\n  \
             dbname = \"{}\"\n  user = \"postgres\"\n  statement_timeout = \"5s\"\n}}\n",
            pooler.port, source.name
        ),
    );
    spcd.spcd(&["apply"]);
    let error = value(&hub.url, "SELECT error FROM spcd.connection_state").await;
    assert!(
        error.contains("`statement_timeout` is sent as the parameter `options`"),
        "{error}"
    );
}

#[tokio::test]
async fn a_pooler_is_refused_if_it_mixes_up_sessions() {
    let database = shared().database().await;
    let mixing = Pooler::start("transaction");
    for _ in 0..5 {
        let refused = Spcd::new(&mixing.url(&database.name)).spcd(&["migrate"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(
            refused.stderr.contains("pool_mode = session"),
            "{refused:?}"
        );
    }
    // And nothing was set on connections that others use.
    assert_eq!(
        value(&mixing.url(&database.name), "SHOW search_path").await,
        "\"$user\", public"
    );

    let honest = Pooler::start("session");
    let done = Spcd::new(&honest.url(&database.name)).spcd(&["migrate"]);
    assert_eq!(done.code, 0, "{done:?}");
}
