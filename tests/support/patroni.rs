//! Two Postgres nodes under Patroni, as `scripts/patroni.sh` starts them.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::http::send;
use super::run::{MARK, as_server_user, fresh_dir, mark};
use super::{DEADLINE, bindir, eventually_now, free_port};

/// A running cluster with its etcd. Dropping it ends all of it.
pub struct Patroni {
    dir: PathBuf,
    script: Child,
    nodes: [Node; 2],
}

/// A server, and the Patroni that runs it.
pub struct Node {
    name: &'static str,
    dir: PathBuf,
    postgres: u16,
    api: u16,
}

impl Patroni {
    /// A new cluster with a primary and a replica that follows it.
    ///
    /// `None` where `scripts/test.sh` found that the packages cannot be had, and said so.
    pub fn start() -> Option<Self> {
        if std::env::var_os("SPCD_TEST_WITHOUT_PATRONI").is_some() {
            eprintln!("skipped: the packages of Patroni and etcd cannot be had");
            return None;
        }
        let dir = fresh_dir("patroni");
        let ports: [u16; 6] = std::array::from_fn(|_| free_port());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/patroni.sh");
        let log = fs::File::create(dir.join("script.log")).unwrap();
        let mut command = Command::new(script);
        command
            .arg(&dir)
            .args(ports.map(|port| port.to_string()))
            .env("SPCD_TEST_BINDIR", bindir())
            .env(MARK, mark())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let script = as_server_user(&mut command).spawn().unwrap();
        let node = |name, postgres, api| Node {
            name,
            dir: dir.join(name),
            postgres,
            api,
        };
        let nodes = [
            node("one", ports[2], ports[4]),
            node("two", ports[3], ports[5]),
        ];
        let mut patroni = Self { dir, script, nodes };
        patroni.wait_for_replica();
        Some(patroni)
    }

    /// Waits until one node is the primary and the other one follows it.
    pub fn wait_for_replica(&mut self) {
        eventually_now("there are a primary and a replica", || {
            let ended = self.script.try_wait().unwrap();
            assert!(ended.is_none(), "scripts/patroni.sh has ended: {ended:?}");
            let follows = |node: &Node| {
                let status = node.status()?;
                (status["replication"][0]["state"] == "streaming").then_some(())
            };
            self.nodes.iter().find_map(follows)
        });
    }

    /// The node that is the primary, and the other one.
    pub fn roles(&self) -> (&Node, &Node) {
        let [one, two] = &self.nodes;
        match one
            .status()
            .is_some_and(|status| status["role"] == "master")
        {
            true => (one, two),
            false => (two, one),
        }
    }

    /// Both nodes.
    pub fn nodes(&self) -> &[Node; 2] {
        &self.nodes
    }

    /// The URL of a database with both hosts.
    pub fn url(&self, database: &str) -> String {
        let [one, two] = &self.nodes;
        format!(
            "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{database}",
            one.postgres, two.postgres
        )
    }

    /// Makes a node that is a replica the primary, as an operator does.
    pub fn switch_over(&self, from: &Node, to: &Node) {
        let body = format!(
            "{{\"leader\":\"{}\",\"candidate\":\"{}\"}}",
            from.name, to.name
        );
        let length = format!("Content-Length: {}", body.len());
        let head = ["Host: localhost", &length, "", &body];
        let stream = TcpStream::connect(("127.0.0.1", from.api)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let answer = send(stream, "POST", "/switchover", &head);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

impl Node {
    /// The port of its server.
    pub fn port(&self) -> u16 {
        self.postgres
    }

    /// The superuser's URL of a database there.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.postgres)
    }

    /// Waits until it takes writes as the primary.
    pub fn wait_until_primary(&self) {
        eventually_now("it is the primary", || {
            (self.status()?["role"] == "master").then_some(())
        });
    }

    /// What its Patroni says of it once its server runs.
    fn status(&self) -> Option<Value> {
        let stream = TcpStream::connect(("127.0.0.1", self.api)).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let answer = send(stream, "GET", "/patroni", &["Host: localhost"]);
        let status: Value = serde_json::from_str(&answer.body).ok()?;
        (status["state"] == "running").then_some(status)
    }

    /// Ends its server, and not its Patroni, as a power cut would.
    pub fn kill9(&self) {
        signal(&self.servers(), Signal::SIGKILL);
    }

    /// Stops all its processes where they are, as a machine that is paused.
    pub fn pause(&self) {
        signal(&[self.patroni()], Signal::SIGSTOP);
        // The postmaster first: it starts no more processes.
        signal(&[self.postmaster()], Signal::SIGSTOP);
        signal(&self.servers(), Signal::SIGSTOP);
    }

    /// Lets them go on: the servers first, as if Patroni were late.
    pub fn resume(&self) {
        signal(&self.servers(), Signal::SIGCONT);
        signal(&[self.patroni()], Signal::SIGCONT);
    }

    fn patroni(&self) -> Pid {
        let pid = fs::read_to_string(self.dir.join("pid")).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap())
    }

    fn postmaster(&self) -> Pid {
        self.running_postmaster().expect("its server is running")
    }

    fn running_postmaster(&self) -> Option<Pid> {
        let file = fs::read_to_string(self.dir.join("data/postmaster.pid")).ok()?;
        Some(Pid::from_raw(file.lines().next()?.parse().ok()?))
    }

    /// The postmaster and its processes.
    fn servers(&self) -> Vec<Pid> {
        self.processes_of(self.postmaster())
    }

    fn processes_of(&self, postmaster: Pid) -> Vec<Pid> {
        let mut servers = vec![postmaster];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // After the name in brackets: the state, then the parent.
            let parent = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1));
            if parent.is_some_and(|parent| parent == postmaster.to_string()) {
                servers.push(Pid::from_raw(pid));
            }
        }
        servers
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = fs::read_to_string(node.dir.join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                eprintln!(
                    "--- the end of Patroni's log of {}\n{}",
                    node.name,
                    tail.join("\n")
                );
            }
        }
        // What is paused cannot end in order.
        for node in &self.nodes {
            // Its file is gone if the server is just being restarted.
            if let Some(postmaster) = node.running_postmaster() {
                signal(&node.processes_of(postmaster), Signal::SIGKILL);
            }
            signal(&[node.patroni()], Signal::SIGKILL);
        }
        // With etcd, in the same process group.
        let group = Pid::from_raw(i32::try_from(self.script.id()).unwrap());
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.script.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Sends a signal to those processes that still are.
fn signal(processes: &[Pid], signal: Signal) {
    for process in processes {
        let _ = kill(*process, signal);
    }
}
