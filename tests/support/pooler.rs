//! pgbouncer between a client and a server.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command};

use super::{as_server_user, eventually_now, free_port, fresh_dir, give_to_server};

/// A running pgbouncer. Dropping it ends it.
pub struct Pooler {
    process: Child,
    port: u16,
}

impl Pooler {
    /// Before the server on this port of the local host, with this `pool_mode`.
    pub fn start(mode: &str, server: u16) -> Self {
        let (dir, port) = (fresh_dir("pooler"), free_port());
        let conf = format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {dir}/users\npool_mode = {mode}\n\
             default_pool_size = 90\nlogfile = {dir}/log\n",
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

    /// The port on which it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's URL of a database through it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
