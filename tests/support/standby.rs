//! A hot standby of a test's server.

use std::fs;
use std::process::Command;

use super::postgres::{Cluster, bindir};
use super::run::as_server_user;

impl Cluster {
    /// Starts a server that follows this one.
    pub fn standby(&self) -> Cluster {
        let mut standby = Cluster::stopped(&[]);
        fs::remove_dir_all(standby.data()).unwrap();
        let mut copy = Command::new(bindir().join("pg_basebackup"));
        copy.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-c",
            "fast",
            "-R",
            "-p",
        ])
        .arg(self.port().to_string())
        .arg("-D")
        .arg(standby.data())
        .current_dir(standby.socket_dir());
        let copied = as_server_user(&mut copy).output().unwrap();
        assert!(copied.status.success(), "{copied:?}");
        let conf = format!(
            "port = {}\nprimary_conninfo = 'host=127.0.0.1 port={} user=postgres'\n",
            standby.port(),
            self.port()
        );
        standby.write("postgresql.auto.conf", &conf);
        standby.start_again();
        standby
    }
}
