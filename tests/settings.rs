//! Flags, environment and settings file, as the binary sees them.

use std::fs;

use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;

use crate::support::{DEADLINE, Finished, Spcd, eventually_now, shared};

fn url(spcd: &Spcd, args: &[&str]) -> Finished {
    spcd.spcd(&[args, &["url"]].concat())
}

#[test]
fn a_flag_beats_the_environment_and_that_the_file() {
    let mut spcd = Spcd::with_private_cluster();
    let file = spcd.dir().join("spcd.hcl");
    fs::write(&file, "database = \"postgres://file/d\"\n").unwrap();
    assert_eq!(url(&spcd, &[]).stdout, "postgres://file/d\n");

    spcd.env("SPCD_DATABASE", "postgres://environment/d");
    assert_eq!(url(&spcd, &[]).stdout, "postgres://environment/d\n");
    assert_eq!(
        url(&spcd, &["--database", "postgres://flag/d"]).stdout,
        "postgres://flag/d\n"
    );

    // An empty variable is an unset one: systemd units and shells leave such behind.
    spcd.env("SPCD_DATABASE", "");
    assert_eq!(url(&spcd, &[]).stdout, "postgres://file/d\n");
}

#[test]
fn gateways_are_a_list_a_repeated_flag_or_words_of_a_variable() {
    let mut spcd = Spcd::with_private_cluster();
    spcd.env("SPCD_GATEWAY", "");
    let url = "postgres://somewhere/gw";
    let twice = |spcd: &Spcd, args: &[&str]| {
        let run = spcd.spcd(&[args, &["check"]].concat());
        assert!(
            run.stderr.contains("`gateway` has the same server twice"),
            "{run:?}"
        );
        assert!(!run.stderr.contains(url), "{run:?}");
    };
    twice(&spcd, &["--gateway", url, "--gateway", url]);
    let file = spcd.dir().join("spcd.hcl");
    fs::write(&file, format!("\ngateway = [\"{url}\", \"off\"]\n")).unwrap();
    let mixed = spcd.spcd(&["check"]);
    assert!(mixed.stderr.contains("spcd.hcl:2:11"), "{mixed:?}");
    assert!(
        mixed.stderr.contains("\"private\" and \"off\" alone"),
        "{mixed:?}"
    );
    assert!(!mixed.stderr.contains(url), "{mixed:?}");
    fs::write(&file, format!("gateway = [\"{url}\", \"{url}\"]\n")).unwrap();
    twice(&spcd, &[]);
    fs::remove_file(&file).unwrap();
    spcd.env("SPCD_GATEWAY", &format!("{url} {url}"));
    twice(&spcd, &[]);
}

#[test]
fn the_settings_file_can_be_named_and_must_then_be_there() {
    let spcd = Spcd::with_private_cluster();
    let named = spcd.dir().join("elsewhere.hcl");
    let path = named.display().to_string();
    let missing = url(&spcd, &["--settings", &path]);
    assert_eq!(missing.code, 1, "{missing:?}");
    assert!(missing.stderr.contains(&path), "{missing:?}");

    fs::write(&named, "database = \"postgres://named/d\"\n").unwrap();
    assert_eq!(
        url(&spcd, &["--settings", &path]).stdout,
        "postgres://named/d\n"
    );
}

#[test]
fn the_settings_file_is_written_in_the_language_of_the_connections() {
    let mut spcd = Spcd::with_private_cluster();
    let file = spcd.dir().join("spcd.hcl");
    fs::write(spcd.dir().join("host"), "from-a-file").unwrap();
    spcd.env("DB_NAME", "d");
    let text =
        "\u{feff}# where\r\ndatabase = \"postgres://${file(\"host\")}/${env(\"DB_NAME\")}\"\r\n";
    fs::write(&file, text).unwrap();
    assert_eq!(url(&spcd, &[]).stdout, "postgres://from-a-file/d\n");

    // As systemd hands secrets out.
    fs::write(spcd.dir().join("hub"), "postgres://credential/d\n").unwrap();
    let dir = spcd.dir().display().to_string();
    spcd.env("CREDENTIALS_DIRECTORY", &dir);
    fs::write(&file, "database = credential(\"hub\")\n").unwrap();
    assert_eq!(url(&spcd, &[]).stdout, "postgres://credential/d\n");
}

#[test]
fn what_is_wrong_in_the_settings_file_is_shown_in_its_place_without_secrets() {
    let spcd = Spcd::with_private_cluster();
    let file = spcd.dir().join("spcd.hcl");
    for (text, says) in [
        (
            "databse = \"hunter2\"\n",
            &[
                "spcd.hcl:1:1",
                "there is no setting `databse`",
                "did you mean `database`?",
                "1 | databse = ***",
            ][..],
        ),
        (
            "log = \"info\"\n\ndatabase = [\"hunter2\"]\n",
            &[
                "spcd.hcl:3:12",
                "expected a URL or keyword string in quotes for `database`, found a list",
            ],
        ),
        ("database = hunter2\n", &["spcd.hcl:1:12", "database = ***"]),
        ("database = \"${hunter2}\"\n", &["spcd.hcl:1:"]),
        (
            "config = 7\n",
            &[
                "spcd.hcl:1:10",
                "a directory in quotes, or a list of them",
                "config = 7",
                "^",
            ],
        ),
        ("config = [\"a\", 7]\n", &["spcd.hcl:1:10"]),
        (
            "hub {\n  keepalve = \"1m\"\n  pool_size = 0\n}\n",
            &[
                "spcd.hcl:2:3",
                "did you mean `keepalive`?",
                "spcd.hcl:3:15",
                "expected a number from 1 to 1000 for `pool_size`",
                "pool_size = 0",
            ],
        ),
        (
            "database = \"postgres://u:hunter2@h/d\n",
            &["spcd.hcl:1:12", "this quote is never closed"],
        ),
        (
            "log = \"info\"\nconnection \"a\" { password = \"hunter2\" }\n",
            &[
                "spcd.hcl:2:1",
                "settings are not written as blocks",
                "config directory",
            ],
        ),
        (
            "database = \"x\"\ndatabase = \"hunter2\"\n",
            &["spcd.hcl:2:1", "written twice"],
        ),
        (
            "log = \"info\"\n}\n",
            &["spcd.hcl:2:1", "this brace does not close anything"],
        ),
        (
            "database = credential(\"hub\")\n",
            &["spcd.hcl:1:", "CREDENTIALS_DIRECTORY"],
        ),
        ("database {\n", &["spcd.hcl:"]),
        // All of it at once.
        (
            "frob = 1\ninstance = \"a\\nb\"\nlog = 3\n",
            &["spcd.hcl:1:1", "spcd.hcl:2:12", "spcd.hcl:3:7"],
        ),
    ] {
        fs::write(&file, text).unwrap();
        let wrong = url(&spcd, &[]);
        assert_eq!(
            (wrong.code, wrong.stdout.as_str()),
            (1, ""),
            "{text}: {wrong:?}"
        );
        for says in says {
            assert!(
                wrong.stderr.contains(says),
                "{text}: {says}: {}",
                wrong.stderr
            );
        }
        assert!(!wrong.stderr.contains("hunter2"), "{text}: {wrong:?}");
    }

    // What cannot be read is said too, and never waited for.
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let strange = url(&spcd, &[]);
    assert_eq!(strange.code, 1);
    assert!(
        strange.stderr.contains("the settings file cannot be read"),
        "{strange:?}"
    );
}

#[test]
fn usage_errors_exit_64_and_help_exits_0() {
    let spcd = Spcd::with_private_cluster();
    for args in [
        &["--frob"][..],
        &["run", "--frob"],
        &["frob"],
        &[],
        &["wait", "--timeout", "soon"],
        &["test"],
    ] {
        assert_eq!(spcd.spcd(args).code, 64, "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["wait", "--help"]] {
        let help = spcd.spcd(args);
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{args:?}");
    }
}

#[tokio::test]
async fn settings_are_read_again_on_sighup_and_when_the_file_changes() {
    let database = shared().database().await;
    let mut spcd = Spcd::with_private_cluster();
    let file = spcd.dir().join("spcd.hcl");
    fs::write(&file, format!("database = \"{}\"\n", database.url)).unwrap();
    spcd.start();
    spcd.logged("this daemon leads");

    // By itself: what can be changed is changed, and the rest is named.
    fs::write(
        &file,
        "database = \"postgres://u:hunter2@elsewhere/d\"\ninstance = \"other\"\nlog = \"debug\"\n",
    )
    .unwrap();
    spcd.logged("database, instance");
    assert!(spcd.log().contains("need a restart"), "{}", spcd.log());
    spcd.logged("\"level\":\"DEBUG\"");

    // What is wrong changes nothing.
    fs::write(&file, "databse = \"hunter2\"\n").unwrap();
    spcd.logged("settings stay as they were");
    let again = |spcd: &Spcd| spcd.log().matches("settings read again").count();
    let before = again(&spcd);
    fs::write(&file, "log = \"info\"\n").unwrap();
    eventually_now("the file is taken", || {
        (again(&spcd) > before).then_some(())
    });

    // On demand, also when nothing differs.
    let before = again(&spcd);
    spcd.signal(Signal::SIGHUP);
    eventually_now("SIGHUP is heard", || (again(&spcd) > before).then_some(()));
    assert!(!spcd.log().contains("hunter2"));
    spcd.stop();
}

#[tokio::test]
async fn systemd_is_told_what_the_daemon_does() {
    let database = shared().database().await;
    let mut spcd = Spcd::new(&database.url);
    let path = spcd.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let hear = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("not told {wanted}: {error}"));
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    spcd.env("NOTIFY_SOCKET", &path.display().to_string());
    spcd.start();
    hear("READY=1");
    hear("STATUS=leading");
    // The working loop turns.
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    spcd.signal(Signal::SIGHUP);
    hear("RELOADING=1");
    hear("READY=1");
    spcd.signal(Signal::SIGTERM);
    hear("STOPPING=1");
    assert_eq!(spcd.ended().code(), Some(0));
}
