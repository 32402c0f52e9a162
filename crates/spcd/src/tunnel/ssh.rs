//! Runs the system's `ssh`: a master process in the background, which forwards a socket.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use openssh::{ControlPersist, Error, ForwardType, KnownHosts, Session, SessionBuilder, Socket};
use spcd_core::config::Tunnel;
use tokio::net::UnixStream;

/// Time limit for connecting to the ssh server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between keepalives to a silent server; after three unanswered ones it counts as lost.
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Time for which ssh continues after this process was killed.
const ORPHANED: NonZeroUsize = NonZeroUsize::new(30).expect("it is not zero");
/// Maximum length of the directory of ssh's sockets, whose paths have a limited length.
const MAX_DIR_BYTES: usize = 55;

/// An open tunnel to a source.
pub struct OpenTunnel {
    session: Session,
    socket: PathBuf,
    /// A connection to the master process. It ends with the master, which runs only as long as it has a
    /// connection.
    held: UnixStream,
}

/// Opens a tunnel to a source. Errors are worded for the user.
pub async fn open(tunnel: &Tunnel, state_dir: &Path) -> Result<OpenTunnel, String> {
    let dir = control_dir(state_dir)
        .map_err(|error| format!("cannot create the directory for ssh's sockets: {error}"))?;
    let ssh = &tunnel.ssh;
    let mut builder = SessionBuilder::default();
    builder
        .known_hosts_check(KnownHosts::Strict)
        .control_directory(&dir)
        .control_persist(ControlPersist::IdleFor(ORPHANED))
        .connect_timeout(CONNECT_TIMEOUT)
        .server_alive_interval(ALIVE_INTERVAL);
    if let Some(user) = &ssh.user {
        builder.user(user.clone());
    }
    if let Some(port) = ssh.port {
        builder.port(port);
    }
    if let Some(key) = &ssh.key {
        // ssh itself does not report the reason.
        if let Err(error) = fs::File::open(key) {
            return Err(format!("the key {key} cannot be read: {error}"));
        }
        builder.keyfile(key);
    }
    if let Some(known_hosts) = &ssh.known_hosts {
        builder.user_known_hosts_file(known_hosts);
    }
    let session = builder
        .connect(&ssh.host)
        .await
        .map_err(|error| explain(tunnel, &error))?;
    let control = session.control_socket().to_owned();
    let socket = control.with_file_name("source");
    let to = match tunnel.host.contains(':') {
        true => Socket::new(format!("[{}]", tunnel.host), tunnel.port),
        false => Socket::new(tunnel.host.as_str(), tunnel.port),
    };
    let opened = async {
        let held = UnixStream::connect(&control).await.map_err(Error::Ssh)?;
        let from = Socket::from(socket.as_path());
        session
            .request_port_forward(ForwardType::Local, from, to)
            .await?;
        Ok(held)
    };
    match opened.await {
        Ok(held) => Ok(OpenTunnel {
            session,
            socket,
            held,
        }),
        Err(error) => {
            let why = explain(tunnel, &error);
            // ssh may have ended in the meantime.
            let _ = session.close().await;
            Err(why)
        }
    }
}

impl OpenTunnel {
    /// Returns the socket through which the source is reached.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until ssh ends.
    pub async fn closed(&mut self) {
        super::ended(&mut self.held).await;
    }

    /// Stops ssh gracefully.
    pub async fn close(self) {
        // ssh has ended by itself.
        let _ = self.session.close().await;
    }
}

/// Returns a directory of this process. Removes those of ended processes, whose masters have ended or
/// will soon.
fn control_dir(state_dir: &Path) -> std::io::Result<PathBuf> {
    let mut all = state_dir.join("ssh");
    if all.as_os_str().len() > MAX_DIR_BYTES {
        let uid = nix::unistd::geteuid();
        all = std::env::temp_dir().join(format!("spcd-ssh-{uid}"));
    }
    make_private(&all)?;
    for entry in fs::read_dir(&all)?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid
            && kill(Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let own = all.join(std::process::id().to_string());
    make_private(&own)?;
    Ok(own)
}

fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    match fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
    {
        Ok(()) => {}
        Err(error) => return Err(error),
    }
    // Another user may have created it first, in a directory that all may write to.
    let found = fs::symlink_metadata(dir)?;
    match found.is_dir()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.mode() & 0o022 == 0
    {
        true => Ok(()),
        false => Err(std::io::Error::other(format!(
            "{} is not ours alone",
            dir.display()
        ))),
    }
}

/// Returns an explanation of ssh's error. ssh has no codes, only texts, which only this function reads.
/// Unknown texts are returned unchanged.
fn explain(tunnel: &Tunnel, error: &Error) -> String {
    use std::error::Error as _;
    let message = match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    };
    let ssh = &tunnel.ssh;
    let known_hosts = ssh.known_hosts.as_deref().unwrap_or("~/.ssh/known_hosts");
    let port = ssh
        .port
        .map(|port| format!("-p {port} "))
        .unwrap_or_default();
    let scan = format!("ssh-keyscan {port}{} >>{known_hosts}", ssh.host);
    if message.contains("IDENTIFICATION HAS CHANGED") || message.contains("HOST KEY DOES NOT MATCH")
    {
        return format!(
            "the server showed another host key than the one in {known_hosts}: another host may be in \
             between. If the server has a new key, replace the old one there"
        );
    }
    if message.contains("host key is known") || message.contains("Host key verification failed") {
        return format!(
            "the server's host key is not known: compare it with the server's own, then add it with \
             `{scan}`"
        );
    }
    if message.contains("Permission denied (") {
        let user = ssh.user.as_deref().unwrap_or("this user");
        return format!("the server does not let {user} in with this key");
    }
    // The last line is the reason. Notes precede it.
    let mut lines = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    lines
        .next_back()
        .unwrap_or("ssh ended without a word")
        .to_owned()
}
