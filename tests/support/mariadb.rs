//! A MariaDB server for tests, from the installed programs.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use super::run::{MARK, as_server_user, fresh_dir, mark};
use super::{eventually_now, free_port};

/// A server with its own data directory, port and socket; `root` needs no password there. Dropping
/// it ends it.
pub struct MariaDb {
    dir: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl MariaDb {
    /// Makes a data directory and starts a server on it.
    pub fn start() -> Self {
        let dir = fresh_dir("mariadb");
        let mut install = Command::new("mariadb-install-db");
        install
            .args(["--no-defaults", "--auth-root-authentication-method=normal"])
            .args(["--skip-test-db", "--skip-name-resolve", "--basedir=/usr"])
            .arg(format!("--datadir={}", dir.join("data").display()))
            // A server that starts removes the temporary tables of others in the same directory.
            .arg(format!("--tmpdir={}", dir.display()))
            // The one who runs it may not reach the directory of the tests.
            .current_dir(&dir)
            .stdin(Stdio::null());
        let output = as_server_user(&mut install)
            .output()
            .expect("mariadb-install-db (apt-get install mariadb-server-core)");
        assert!(output.status.success(), "{}", said(&output));
        let mut mariadb = Self {
            dir,
            port: free_port(),
            server: None,
        };
        // The port was free a moment ago; if another program took it since, take another one.
        for _ in 0..20 {
            if mariadb.try_start() {
                return mariadb;
            }
            mariadb.port = free_port();
        }
        panic!("MariaDB does not start: {}", mariadb.log());
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it as a power cut would.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Starts it again, on the same port.
    pub fn start_again(&mut self) {
        eventually_now("MariaDB starts again", || self.try_start().then_some(()));
    }

    /// Runs statements as `root`.
    pub fn run(&self, sql: &str) {
        let output = self.client(sql);
        assert!(output.status.success(), "{sql}: {}", said(&output));
    }

    fn client(&self, sql: &str) -> Output {
        Command::new("mariadb")
            .args([
                "--no-defaults",
                "--user=root",
                "--default-character-set=utf8mb4",
            ])
            .arg(format!("--socket={}", self.dir.join("socket").display()))
            .arg(format!("--execute={sql}"))
            .stdin(Stdio::null())
            .output()
            .expect("mariadb (apt-get install mariadb-client-core)")
    }

    /// Whether the server came up; if not, it is gone.
    fn try_start(&mut self) -> bool {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let path = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(program());
        command
            .args(["--no-defaults", "--bind-address=127.0.0.1"])
            .args(["--skip-name-resolve", "--skip-log-bin"])
            .args([
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-buffer-pool-size=8M",
            ])
            .args(["--character-set-server=utf8mb4", "--performance-schema=off"])
            .arg(format!("--port={}", self.port))
            .arg(format!("--datadir={}", path("data")))
            .arg(format!("--tmpdir={}", self.dir.display()))
            .arg(format!("--socket={}", path("socket")))
            .arg(format!("--pid-file={}", path("pid")))
            .env(MARK, mark())
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut server = as_server_user(&mut command).spawn().unwrap();
        let up = eventually_now("MariaDB starts or fails", || {
            if server.try_wait().unwrap().is_some() {
                return Some(false);
            }
            self.client("SELECT 1").status.success().then_some(true)
        });
        if up {
            self.server = Some(server);
        }
        up
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- MariaDB's log\n{}", self.log());
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A `mysql` connection to the database `shop` of a server on this port, with more lines.
pub fn mysql(name: &str, port: u16, more: &str) -> String {
    format!(
        "connection \"{name}\" {{\n  plugin   = \"mysql\"\n  port     = {port}\n  \
         database = \"shop\"\n{more}}}\n"
    )
}

/// The two lines of one who reads with a password.
pub fn reader(password: &str) -> String {
    format!("  user     = \"reader\"\n  password = \"{password}\"\n")
}

/// Where Debian puts it, which is not in everyone's path.
fn program() -> &'static str {
    match std::path::Path::new("/usr/sbin/mariadbd").exists() {
        true => "/usr/sbin/mariadbd",
        false => "mariadbd",
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
