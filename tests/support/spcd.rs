//! The built binary, with directories of its own.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::role;
use super::run::{MARK, as_server_user, fresh_dir, give_to_server, mark};
use super::{DEADLINE, eventually_now};

/// A config directory, a state directory, and the daemon and commands that use them. Dropping it
/// kills the daemon; a failing test prints its log.
pub struct Spcd {
    dir: PathBuf,
    config_dir: PathBuf,
    database: Option<String>,
    env: Vec<(String, String)>,
    is_unprivileged: bool,
    daemon: Option<Child>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Spcd {
    /// With the hub at this URL; where it is the superuser's, the daemon may connect as another role
    /// (`super::role`). Nothing is started yet.
    pub fn new(database: &str) -> Self {
        let mut spcd = Self::with_private_cluster();
        spcd.database = Some(role::for_daemon(database));
        spcd
    }

    /// With the database and the config directory of another: a standby.
    pub fn beside(other: &Self) -> Self {
        let mut spcd = Self::with_private_cluster();
        spcd.database.clone_from(&other.database);
        spcd.config_dir.clone_from(&other.config_dir);
        spcd
    }

    /// With a private cluster.
    pub fn with_private_cluster() -> Self {
        let dir = fresh_dir("spcd");
        for name in ["conf.d", "home"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        Self {
            config_dir: dir.join("conf.d"),
            dir,
            database: None,
            env: Vec::new(),
            is_unprivileged: false,
            daemon: None,
        }
    }

    /// Sets an environment variable for all that is started from now on.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets all that is started from now on run as the server's user, and gives it the config directory:
    /// root can read every file.
    pub fn unprivileged(&mut self) -> &mut Self {
        give_to_server(&self.config_dir);
        self.is_unprivileged = true;
        self
    }

    /// The config directory.
    pub fn config_dir(&self) -> PathBuf {
        self.config_dir.clone()
    }

    /// The state directory; it is not made beforehand.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The home directory of its environment.
    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// The directory that holds all of these.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file below the config directory, by renaming it into place.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.config_dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = path.with_file_name(".new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &path).unwrap();
    }

    /// Removes a file below the config directory.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.config_dir().join(name)).unwrap();
    }

    /// The command, not started, with nothing of the tester's own environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spcd"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home())
            .env("LANG", "C.UTF-8")
            .env("RUST_BACKTRACE", "1")
            .env(MARK, mark())
            .env("SPCD_CONFIG", self.config_dir())
            .env("SPCD_STATE_DIR", self.state_dir())
            // Sources are asked when a test wants it, and not by the clock in the midst of one.
            .env("SPCD_HEALTH_ENABLED", "false")
            // A private gateway takes a second to start; tests that want one say so.
            .env("SPCD_GATEWAY", "off")
            // One address is not enough for all daemons of the tests; who wants HTTP says where.
            .env("SPCD_HTTP", "off")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        if let Some(database) = &self.database {
            command.env("SPCD_DATABASE", database);
        }
        if self.is_unprivileged {
            as_server_user(&mut command);
        }
        command
    }

    /// Runs a command to its end.
    pub fn spcd(&self, args: &[&str]) -> Finished {
        finish(self.command(args))
    }

    /// Starts the daemon.
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let mut command = self.command(&["run"]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Pid {
        let daemon = self.daemon.as_ref().expect("a daemon");
        Pid::from_raw(i32::try_from(daemon.id()).unwrap())
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Stops the daemon as systemd does, and checks that it says all is well.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended();
        assert_eq!(
            status.code(),
            Some(0),
            "SIGTERM must end it with 0, not {status}: {}",
            self.log()
        );
    }

    /// Kills the daemon without warning.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended();
    }

    /// Waits until the daemon has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let daemon = self.daemon.as_mut().expect("a daemon");
        let status = eventually_now("the daemon ends", || daemon.try_wait().unwrap());
        self.daemon = None;
        status
    }

    /// Everything the daemon has written, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Waits until the daemon's log contains a text.
    pub fn logged(&self, text: &str) {
        eventually_now(&format!("the log says {text:?}"), || {
            self.log().contains(text).then_some(())
        });
    }
}

impl Drop for Spcd {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            eprintln!(
                "--- the daemon's log ({})\n{}",
                self.dir.display(),
                self.log()
            );
        }
    }
}

/// Runs a command to its end; one that never ends fails the test.
pub fn finish(mut command: Command) -> Finished {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().map(read_aside);
    let stderr = child.stderr.take().map(read_aside);
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > DEADLINE * 2 {
            let _ = child.kill();
            panic!("{command:?} did not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let text = |reader: Option<std::thread::JoinHandle<String>>| {
        reader.map(|r| r.join().unwrap()).unwrap_or_default()
    };
    Finished {
        code: status.code().unwrap_or(-1),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// A pipe that is not read would fill and stop the command.
fn read_aside(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
