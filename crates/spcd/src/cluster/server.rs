//! Starts, adopts and stops the server's process.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{Layout, failed};
use super::make::{configuration, prepare_listen};
use super::owner::Owner;
use super::programs::Programs;
use super::{ClusterError, POLL_INTERVAL};

/// Ports of new clusters. The kernel does not use them for outgoing connections, so a port is still
/// free after a restart.
const PORTS: std::ops::Range<u16> = 15432..17432;

/// The server's process.
#[derive(Debug)]
pub struct Server {
    /// Its port on the loopback address.
    pub port: u16,
    pid: i32,
    data: PathBuf,
    uid: u32,
    /// The child process; `None` for an adopted server.
    child: Option<Child>,
    /// Whether dropping it leaves the server running.
    left: bool,
}

/// Contents of `postmaster.pid`.
struct PidFile {
    pid: i32,
    port: u16,
    status: String,
}

impl Server {
    /// Returns the server that already runs on this data, once it is ready. Waits for the end of one that
    /// is stopping. Removes the files that dead servers left.
    pub async fn adopt(layout: &Layout, owner: &Owner) -> Option<Self> {
        let mut turns: u32 = 0;
        loop {
            turns += 1;
            if turns.is_multiple_of(500) {
                tracing::warn!(directory = %layout.shown(), "waiting for the private cluster's old processes to end");
            }
            let found = PidFile::read(&layout.data);
            if let Some(found) = &found
                && is_server(found.pid, &layout.data, owner.uid)
            {
                if found.status == "ready" {
                    tracing::info!(
                        pid = found.pid,
                        "the private cluster's server is already running"
                    );
                    let (pid, port) = (found.pid, found.port);
                    return Some(Self {
                        port,
                        pid,
                        data: layout.data.clone(),
                        uid: owner.uid,
                        child: None,
                        left: false,
                    });
                }
            } else if orphans(&layout.data, owner.uid).is_empty() {
                // The process id in the file may belong to another process now, which Postgres would
                // take for a running server.
                let _ = fs::remove_file(layout.data.join("postmaster.pid"));
                if let Ok(entries) = fs::read_dir(layout.socket_dir()) {
                    for entry in entries.flatten() {
                        let _ = fs::remove_file(entry.path());
                    }
                }
                return None;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Starts the server and waits until it accepts sessions. Recovery may take any time.
    pub async fn start(
        layout: &Layout,
        owner: &Owner,
        programs: &Programs,
    ) -> Result<Self, ClusterError> {
        prepare_listen(layout, owner)?;
        layout.write("postgresql.conf", &configuration(layout), 0o644)?;
        let mut port = layout
            .preferred_port()
            .unwrap_or_else(|| first_port(&layout.data));
        // Another program may take the port between the check and the start.
        for attempt in 0..5 {
            let began = Instant::now();
            let preferred = port;
            if layout.port() == Some(preferred) {
                left_free(preferred).await;
            }
            let needs = |output: String| ClusterError::Failed {
                what: "the private cluster needs a port on 127.0.0.1".to_owned(),
                output,
            };
            port = free_port(preferred)
                .ok_or_else(|| needs(format!("every port from {preferred} on is in use")))?;
            if layout.listen.is_some() && port != preferred {
                return Err(needs(format!(
                    "another program uses the port {preferred} of `listen`"
                )));
            }
            if layout.port() != Some(port) {
                if layout.port().is_some_and(|port| port == preferred) {
                    tracing::warn!(
                        old = preferred,
                        new = port,
                        "another program uses the private cluster's port; moving to another port"
                    );
                }
                layout.remember_port(port)?;
            }
            if let Some(server) = Self::try_start(layout, owner, programs, port).await? {
                return Ok(server);
            }
            // A process that only tested whether the port is free has released it by now. Other
            // causes persist, and cost two more attempts.
            let is_free = TcpListener::bind(("127.0.0.1", port)).is_ok();
            if is_free && (attempt >= 2 || began.elapsed() > BIND_FAILURE_TIMEOUT) {
                break;
            }
        }
        Err(ClusterError::Failed {
            what: format!(
                "the private cluster's server in {} does not start{}",
                layout.shown(),
                layout.disk()
            ),
            output: layout.startup_log(),
        })
    }

    async fn try_start(
        layout: &Layout,
        owner: &Owner,
        programs: &Programs,
        port: u16,
    ) -> Result<Option<Self>, ClusterError> {
        let log_path = layout.dir.join("startup.log");
        let _ = fs::remove_file(&log_path);
        let log = File::options()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(failed("write", &log_path))?;
        let sockets = layout
            .usable_socket_dir()
            .map_or_else(String::new, |dir| dir.display().to_string());
        let mut command = owner.command(&programs.bindir.join("postgres"));
        command
            .arg("-D")
            .arg(&layout.data)
            .arg("-p")
            .arg(port.to_string())
            .arg("-c")
            .arg(format!("listen_addresses={}", addresses(layout)))
            .arg("-c")
            .arg(format!(
                "unix_socket_directories={}",
                quote_list_entry(&sockets)
            ))
            .arg("-c")
            .arg(format!(
                "config_file={}",
                layout.dir.join("postgresql.conf").display()
            ))
            .stdout(log.try_clone().map_err(failed("write", &log_path))?)
            .stderr(log)
            // Ctrl-C in the terminal must reach the daemon only, which then stops the server.
            .process_group(0);
        let child = command
            .spawn()
            .map_err(failed("start", &programs.bindir.join("postgres")))?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let mut server = Self {
            port,
            pid,
            data: layout.data.clone(),
            uid: owner.uid,
            child: Some(child),
            left: false,
        };
        let mut waited = Duration::ZERO;
        loop {
            if !server.is_alive() {
                return Ok(None);
            }
            match PidFile::read(&layout.data) {
                Some(found) if found.pid == pid && found.status == "ready" => {
                    return Ok(Some(server));
                }
                _ => {}
            }
            crate::service::alive();
            tokio::time::sleep(POLL_INTERVAL).await;
            waited += POLL_INTERVAL;
            if waited.as_secs() >= 10 {
                tracing::info!(
                    "the private cluster's server is still starting; it may be recovering"
                );
                waited = Duration::ZERO;
            }
        }
    }

    /// Whether its process runs.
    pub fn is_alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => is_server(self.pid, &self.data, self.uid),
        }
    }

    /// Stops the server, by an immediate shutdown if a fast one takes longer than `fast`.
    pub async fn stop(&mut self, fast: Duration) {
        self.signal(Signal::SIGINT);
        let started = tokio::time::Instant::now();
        let mut hurried = false;
        while self.is_alive() {
            tokio::time::sleep(POLL_INTERVAL).await;
            if !hurried && started.elapsed() > fast {
                tracing::warn!(
                    "the private cluster's server stops too slowly; ending it at once, it will recover at the next start"
                );
                self.signal(Signal::SIGQUIT);
                hurried = true;
            }
        }
        self.left = true;
    }

    /// Leaves the server running for other processes that use it.
    pub fn leave(&mut self) {
        self.left = true;
    }

    fn signal(&mut self, signal: Signal) {
        if self.is_alive() {
            // The process may have ended in the meantime.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Requests a shutdown without waiting, unless the server was stopped or left running.
impl Drop for Server {
    fn drop(&mut self) {
        if !self.left {
            self.signal(Signal::SIGINT);
        }
    }
}

/// Returns the value of `listen_addresses`.
fn addresses(layout: &Layout) -> String {
    let loopback = "127.0.0.1".to_owned();
    match &layout.listen {
        Some(listen) if listen.address.ip().to_string() != loopback => {
            format!("{loopback},{}", listen.address.ip())
        }
        _ => loopback,
    }
}

/// Maximum time to wait for the recorded port before the cluster moves to another one.
const PORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum time after which a server that could not bind its port has ended.
const BIND_FAILURE_TIMEOUT: Duration = Duration::from_secs(5);

impl PidFile {
    /// Reads the file; `None` if it does not exist or is incomplete.
    fn read(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        Some(Self {
            pid: lines.first()?.trim().parse().ok().filter(|pid| *pid > 1)?,
            port: lines
                .get(3)
                .and_then(|line| line.trim().parse().ok())
                .unwrap_or(0),
            status: lines
                .get(7)
                .map(|line| line.trim().to_owned())
                .unwrap_or_default(),
        })
    }
}

/// Whether a process is a server on this data: it runs in that directory, as that user. The process id
/// in a file may have been reused, and another program must not be signalled.
fn is_server(pid: i32, data: &Path, uid: u32) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let works_there = match (fs::read_link(process.join("cwd")), fs::canonicalize(data)) {
        (Ok(cwd), Ok(data)) => cwd == data,
        _ => false,
    };
    // A shell may have changed into the directory.
    let postgres =
        fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("postgres"));
    works_there && postgres && fs::metadata(process).is_ok_and(|found| found.uid() == uid)
}

/// Whether a server runs on the cluster's data.
pub fn runs(layout: &Layout) -> bool {
    match (PidFile::read(&layout.data), fs::metadata(&layout.data)) {
        (Some(found), Ok(data)) => is_server(found.pid, &layout.data, data.uid()),
        _ => false,
    }
}

/// Returns the processes that still run on this data. Those of a killed server soon end by themselves,
/// but use its shared memory until then.
fn orphans(data: &Path, uid: u32) -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_server(*pid, data, uid))
        .collect()
}

/// Returns the first port to try for a new cluster. It differs by cluster, so that the port of a
/// stopped one stays free.
fn first_port(data: &Path) -> u16 {
    let sum = data
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0_u16, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add((*byte).into())
        });
    PORTS.start + sum % (PORTS.end - PORTS.start)
}

/// Waits until a process that only tested whether a port is free has released it.
async fn left_free(port: u16) {
    let began = Instant::now();
    while TcpListener::bind(("127.0.0.1", port)).is_err() && began.elapsed() < PORT_TIMEOUT {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns the first free port from `first` on.
fn free_port(first: u16) -> Option<u16> {
    (first..=first.saturating_add(500)).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// Quotes an entry of a list setting: a path may contain commas and spaces.
fn quote_list_entry(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("\"{}\"", path.replace('"', "\"\""))
    }
}
