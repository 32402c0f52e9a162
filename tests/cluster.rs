//! The private cluster, under the real binary.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    DEADLINE, Spcd, as_server_user, eventually, eventually_now, free_port, give_to_server, query,
    try_query, value,
};

/// How long one question to a server may take before it is asked again.
const ANSWER: Duration = Duration::from_secs(5);

/// What is on disk of one private cluster.
struct Files(PathBuf);

impl Files {
    /// With a port of its own, so that tests that run at the same time do not take it while the
    /// server is down.
    fn of(spcd: &Spcd) -> Self {
        let dir = spcd.state_dir().join("cluster");
        if !dir.exists() {
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("port"), format!("{}\n", free_port())).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }

    fn password(&self) -> String {
        self.read("passfile")
            .unwrap()
            .trim()
            .rsplit(':')
            .next()
            .unwrap()
            .to_owned()
    }

    fn port(&self) -> String {
        self.read("port").unwrap().trim().to_owned()
    }

    fn url(&self) -> String {
        format!(
            "postgres://spcd:{}@127.0.0.1:{}/spcd",
            self.password(),
            self.port()
        )
    }

    /// The server that the pid file names, if it is alive.
    fn server(&self) -> Option<Pid> {
        let pid = self
            .read("data/postmaster.pid")?
            .lines()
            .next()?
            .parse()
            .ok()?;
        is_alive(pid).then(|| Pid::from_raw(pid))
    }

    /// Waits until sessions are accepted.
    async fn up(&self) -> Pid {
        eventually("the private cluster accepts sessions", DEADLINE, || async {
            self.read("passfile").zip(self.read("port"))?;
            // What listens there may be another program, which never answers.
            let asked =
                tokio::time::timeout(ANSWER, async { try_query(&self.url(), "SELECT 1").await });
            asked.await.ok()?.ok()?;
            self.server()
        })
        .await
    }
}

/// Not gone, and not a zombie.
fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z')
    })
}

fn gone(pid: Pid) {
    eventually_now("the server ends", || {
        (!is_alive(pid.as_raw())).then_some(())
    });
}

#[tokio::test]
async fn a_daemon_without_a_database_makes_one_that_is_safe() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    fs::remove_file(files.path("port")).unwrap();
    let early = spcd.spcd(&["url"]);
    assert_eq!(early.code, 1);
    assert!(early.stderr.contains("spcd run"), "{early:?}");

    spcd.start();
    let server = files.up().await;
    let url = files.url();
    assert_eq!(value(&url, "SHOW data_checksums").await, "on");
    assert_eq!(value(&url, "SHOW max_locks_per_transaction").await, "512");
    assert_eq!(value(&url, "SHOW listen_addresses").await, "127.0.0.1");
    assert_ne!(fs::metadata(format!("/proc/{server}")).unwrap().uid(), 0);
    assert_eq!(
        (
            files.mode("passfile"),
            files.mode("data"),
            files.mode("socket")
        ),
        (0o600, 0o700, 0o700)
    );
    assert!(!files.path("initdb.password").exists());

    // The password is asked for, on TCP and on the socket.
    let wrong = url.replace(&files.password(), "wrong");
    let socket = format!(
        "host={} port={} user=spcd dbname=spcd password=wrong",
        files.path("socket").display(),
        files.port()
    );
    for url in [wrong, socket] {
        let error = try_query(&url, "SELECT 1").await.unwrap_err();
        assert_eq!(
            error.code().map(|code| code.code()),
            Some("28P01"),
            "{error:?}"
        );
    }

    // What `url` prints holds no password, and psql can use it.
    let printed = spcd.spcd(&["url"]).stdout.trim().to_owned();
    assert!(!printed.contains(&files.password()), "{printed}");
    let psql = Command::new("psql")
        .args(["-XAtc", "SELECT current_user", &printed])
        .env_remove("PGPASSWORD")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&psql.stdout), "spcd\n", "{psql:?}");

    // Drivers that read no password file get one with the password, if that is asked for.
    let with_password = spcd.spcd(&["url", "--with-password"]).stdout;
    let ask = "const client = new (require('pg').Client)(process.argv[1]);
        client.connect().then(() => client.query('SELECT current_user AS name'))
            .then(answer => console.log(answer.rows[0].name))
            .catch(error => console.log(error.message)).finally(() => client.end());";
    let node = |url: &str| {
        let mut node = crate::examples::node();
        node.args(["-e", ask, url.trim()]).env_remove("PGPASSWORD");
        String::from_utf8(node.output().unwrap().stdout).unwrap()
    };
    assert_ne!(node(&printed), "spcd\n");
    assert_eq!(node(&with_password), "spcd\n");

    spcd.stop();
    assert_eq!(files.server(), None, "it must stop with the daemon");
    assert!(!spcd.log().contains(&files.password()));
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_told_by_whom() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    spcd.start();
    files.up().await;
    let second = spcd.spcd(&["run"]);
    assert_eq!(second.code, 1);
    assert!(
        second.stderr.contains(&format!("pid {}", spcd.pid())),
        "{second:?}"
    );
    files.up().await;
    spcd.stop();
}

#[tokio::test]
async fn a_server_that_a_crashed_daemon_left_is_taken_over() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    spcd.start();
    let server = files.up().await;
    spcd.kill9();
    assert_eq!(files.server(), Some(server));
    spcd.start();
    spcd.logged("is already running");
    assert_eq!(files.up().await, server);
    spcd.stop();
    assert_eq!(
        files.server(),
        None,
        "also one that was taken over stops with the daemon"
    );
}

#[tokio::test]
async fn whatever_is_killed_in_whatever_order_nothing_is_lost() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    spcd.start();
    files.up().await;
    query(&files.url(), "CREATE TABLE public.kept (round integer)").await;
    let mut rounds = 0;
    for order in [
        "server first",
        "daemon first",
        "server only",
        "while it starts",
    ]
    .iter()
    .cycle()
    .take(20)
    {
        let server = files.up().await;
        query(
            &files.url(),
            "INSERT INTO public.kept SELECT count(*) FROM public.kept",
        )
        .await;
        rounds += 1;
        match *order {
            "server first" => {
                kill(server, Signal::SIGKILL).unwrap();
                spcd.kill9();
                spcd.start();
            }
            "daemon first" => {
                spcd.kill9();
                kill(server, Signal::SIGKILL).unwrap();
                spcd.start();
            }
            // Under the daemon's eyes: it starts the server again.
            "server only" => {
                kill(server, Signal::SIGKILL).unwrap();
                gone(server);
            }
            _ => {
                spcd.kill9();
                kill(server, Signal::SIGKILL).unwrap();
                gone(server);
                spcd.start();
                eventually_now("a new server", || {
                    files.server().filter(|new| *new != server)
                });
                spcd.kill9();
                if let Some(server) = files.server() {
                    kill(server, Signal::SIGKILL).unwrap();
                }
                spcd.start();
            }
        }
    }
    files.up().await;
    assert_eq!(
        value(&files.url(), "SELECT count(*) FROM public.kept").await,
        rounds.to_string()
    );
    spcd.stop();
}

#[tokio::test]
async fn a_pid_file_that_names_another_process_stops_none() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    spcd.start();
    let server = files.up().await;
    spcd.kill9();
    kill(server, Signal::SIGKILL).unwrap();
    gone(server);
    // After a power cut the number may belong to anyone, also to a process of the same user.
    let mut stranger = Command::new("sleep");
    let mut stranger = as_server_user(stranger.arg("600"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid_file = files.path("data/postmaster.pid");
    let text = fs::read_to_string(&pid_file).unwrap();
    for text in [
        text.replacen(&server.to_string(), &stranger.id().to_string(), 1),
        String::new(),
        "x\n".to_owned(),
    ] {
        fs::write(&pid_file, text).unwrap();
        give_to_server(&pid_file);
        spcd.start();
        files.up().await;
        spcd.stop();
    }
    assert!(
        stranger.try_wait().unwrap().is_none(),
        "the stranger was killed"
    );
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_command_starts_the_cluster_for_itself_and_leaves_nothing() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    let migrate = spcd.spcd(&["migrate"]);
    assert_eq!(migrate.code, 0, "{migrate:?}");
    assert_eq!(files.server(), None);

    // Beside a daemon it uses the daemon's, and leaves it running.
    spcd.start();
    let server = files.up().await;
    let migrate = spcd.spcd(&["migrate"]);
    assert_eq!(migrate.code, 0, "{migrate:?}");
    assert_eq!(files.server(), Some(server));
    spcd.stop();
}

#[tokio::test]
async fn commands_at_the_same_time_share_it() {
    let spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    std::thread::scope(|scope| {
        let commands: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| spcd.spcd(&["migrate"])))
            .collect();
        let done: Vec<_> = (commands.into_iter())
            .map(|command| command.join().unwrap())
            .collect();
        assert!(done.iter().all(|done| done.code == 0), "{done:#?}");
    });
    assert_eq!(files.server(), None, "the last one stops it");
}

#[tokio::test]
async fn the_port_is_remembered_and_changed_only_if_it_is_taken() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    spcd.start();
    files.up().await;
    let first = files.port();
    spcd.stop();
    spcd.start();
    files.up().await;
    assert_eq!(files.port(), first);
    spcd.stop();

    let _taken = eventually_now("the port is free", || {
        TcpListener::bind(format!("127.0.0.1:{first}")).ok()
    });
    spcd.start();
    spcd.logged("moving to another port");
    files.up().await;
    assert_ne!(files.port(), first);
    assert_eq!(value(&files.url(), "SHOW port").await, files.port());
    spcd.stop();
}

#[tokio::test]
async fn sigterm_while_the_server_starts_leaves_nothing() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);
    spcd.start();
    let server = eventually_now("the server process is there", || files.server());
    spcd.stop();
    gone(server);
}

#[test]
fn what_stands_in_the_way_is_said_with_the_way_out() {
    let spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);

    // Data of a version whose programs are gone.
    let version = files.path("data/PG_VERSION");
    let own = fs::read_to_string(&version).unwrap();
    fs::write(&version, "99\n").unwrap();
    let gone = spcd.spcd(&["run"]);
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.contains("postgresql-99"), "{gone:?}");
    fs::write(&version, own).unwrap();

    // The server says why it does not start, and the message hands it on.
    let control = files.path("data/global/pg_control");
    let bytes = fs::read(&control).unwrap();
    fs::write(&control, b"").unwrap();
    let damaged = spcd.spcd(&["run"]);
    assert_eq!(damaged.code, 1);
    assert!(damaged.stderr.contains("pg_control"), "{damaged:?}");
    fs::write(&control, bytes).unwrap();
    assert_eq!(spcd.spcd(&["migrate"]).code, 0);

    // A file where a directory is to be.
    let mut elsewhere = Spcd::with_private_cluster();
    fs::write(elsewhere.dir().join("file"), "").unwrap();
    let path = elsewhere.dir().join("file").display().to_string();
    elsewhere.env("SPCD_STATE_DIR", &path);
    let blocked = elsewhere.spcd(&["run"]);
    assert_eq!(blocked.code, 1);
    assert!(blocked.stderr.contains(&path), "{blocked:?}");

    // A way that is closed to the server's user.
    if nix::unistd::geteuid().is_root() {
        let closed = elsewhere.dir().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        elsewhere.env(
            "SPCD_STATE_DIR",
            &closed.join("state").display().to_string(),
        );
        let refused = elsewhere.spcd(&["run"]);
        assert_eq!(refused.code, 1);
        assert!(
            refused
                .stderr
                .contains(&format!("chmod o+x {}", closed.display())),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn root_goes_on_as_the_one_who_owns_the_state_directory() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut spcd = Spcd::with_private_cluster();
    fs::create_dir(spcd.state_dir()).unwrap();
    give_to_server(&spcd.state_dir());
    let owner = fs::metadata(spcd.state_dir()).unwrap().uid();
    let files = Files::of(&spcd);
    give_to_server(&files.0);
    // A command that comes first must leave nothing that the service could not use.
    let migrate = spcd.spcd(&["migrate"]);
    assert_eq!(migrate.code, 0, "{migrate:?}");
    spcd.start();
    files.up().await;
    let of = |path: &std::path::Path| fs::metadata(path).unwrap().uid();
    assert_eq!(of(format!("/proc/{}", spcd.pid()).as_ref()), owner);
    for name in [
        "daemon.lock",
        "users.lock",
        "start.lock",
        "passfile",
        "data",
        "socket",
    ] {
        assert_eq!(of(&files.path(name)), owner, "{name}");
    }
    assert_eq!(spcd.spcd(&["status"]).code, 0);
    spcd.stop();
}

#[tokio::test]
async fn a_lost_password_is_replaced() {
    let mut spcd = Spcd::with_private_cluster();
    let files = Files::of(&spcd);
    spcd.start();
    files.up().await;
    let (old, url) = (files.password(), files.url());
    spcd.stop();
    fs::remove_file(files.path("passfile")).unwrap();
    spcd.start();
    files.up().await;
    assert_ne!(files.password(), old);
    assert!(
        try_query(&url, "SELECT 1").await.is_err(),
        "the old one must not be good any more"
    );
    assert_eq!(files.mode("passfile"), 0o600);
    spcd.stop();
    assert!(!spcd.log().contains(&files.password()));
}
