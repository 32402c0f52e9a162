//! What commands say where there is no daemon, no connection, or no such name.

use crate::support::hub::{made_by, postgres, serving, until};
use crate::support::{Spcd, finish, shared};

#[test]
fn commands_that_only_look_make_no_private_cluster() {
    let spcd = Spcd::with_private_cluster();
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["events"],
        &["wait", "--timeout", "1ms"],
        &["refresh", "a"],
        &["reconnect", "a"],
        &["disconnect", "a"],
        &["retry", "a"],
        &["url"],
        &["doctor"],
        &["destroy", "--yes"],
    ] {
        let told = spcd.spcd(command);
        let said = told.stdout + &told.stderr;
        assert!(said.contains("private cluster"), "{command:?}: {said}");
        assert!(!spcd.state_dir().exists(), "{command:?}");
    }
}

#[test]
fn values_that_cannot_be_right_get_messages_of_their_own() {
    let mut spcd = Spcd::with_private_cluster();
    spcd.write(
        "a.spc",
        "connection \"a\" {\n  plugin = \"postgres\"\n  host = env(\"NO_SUCH\")\n  \
         password = trimspace(file(\"nowhere\"))\n  import {\n    tables = [credential(\"c\")]\n  }\n}\n\
         connection \"all\" {\n  type = \"aggregator\"\n  plugin = \"postgres\"\n  connections = [env(\"NO_SUCH\")]\n}\n",
    );
    assert_eq!(spcd.spcd(&["check"]).code, 1);
    let offline = spcd.spcd(&["check", "--offline"]);
    let counts = "1 file, 2 connections: 0 errors, 0 warnings\n";
    assert_eq!(
        (offline.stdout.as_str(), offline.code),
        (counts, 0),
        "{}",
        offline.stderr
    );
    // What does not depend on them is checked.
    spcd.write(
        "b.spc",
        "connection \"b\" {\n  plugin = \"postgres\"\n  hots = env(\"NO_SUCH\")\n}\n",
    );
    let wrong = spcd.spcd(&["check", "--offline"]);
    assert!(
        wrong.stderr.contains("no attribute `hots`"),
        "{}",
        wrong.stderr
    );

    let nowhere = spcd.spcd(&["check", "/nope.spc"]);
    assert_eq!(nowhere.code, 1);
    assert!(
        nowhere
            .stderr
            .contains("/nope.spc: there is no such file or directory")
    );
    let level = spcd.spcd(&["--log", "blah", "plugins"]);
    assert!(
        level.stderr.contains("`blah` is neither a level"),
        "{}",
        level.stderr
    );
    spcd.env("SPCD_DATABASE", "mysql://u:hunter2@h/d");
    let other = spcd.spcd(&["status"]);
    assert!(
        other
            .stderr
            .contains("`mysql://` is not the URL of a Postgres"),
        "{}",
        other.stderr
    );
    assert!(!other.stderr.contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_say_what_is_missing_and_what_to_do() {
    let hub = shared().database().await;
    let empty = Spcd::new(&hub.url);
    let next = "no connection is configured: write a .spc file in ";
    let plan = empty.spcd(&["plan"]);
    assert_eq!((plan.code, plan.stdout.as_str()), (0, "nothing to do\n"));
    assert!(plan.stderr.contains(next), "{plan:?}");
    assert!(plan.stderr.contains(empty.config_dir().to_str().unwrap()));
    assert_eq!(empty.spcd(&["migrate"]).code, 0);
    let status = empty.spcd(&["status"]);
    assert!(status.stderr.contains(next), "{status:?}");
    assert!(
        status
            .stderr
            .contains("no daemon runs on this database: none ever did")
    );

    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    let status = spcd.spcd(&["status"]);
    assert_eq!((status.code, status.stderr.as_str()), (0, ""));
    for command in [&["refresh", "nope"][..], &["refresh", "nope", "--wait"]] {
        let refused = spcd.spcd(command);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("\"nope\""), "{refused:?}");
    }
    // What destroys is said on the command line, and never by an environment.
    for variable in [
        "SPCD_YES",
        "SPCD_DROP_DEPENDENTS",
        "SPCD_ALLOW_EMPTY",
        "SPCD_ADOPT_CONFIG",
    ] {
        spcd.env(variable, "true");
    }
    let destroy = spcd.spcd(&["destroy"]);
    assert_ne!(destroy.code, 0, "{destroy:?}");
    let apply = spcd.spcd(&["apply"]);
    assert_eq!(
        apply.code, 0,
        "beside a daemon these flags are refused: {apply:?}"
    );
    spcd.stop();
    let status = spcd.spcd(&["status", "--json"]);
    assert!(
        status
            .stderr
            .contains("no daemon runs on this database: what is shown is from")
    );
    let rows: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 1);
    let destroy = spcd.spcd(&["destroy"]);
    assert!(destroy.stderr.contains("pass --yes"), "{destroy:?}");
    spcd.remove("a.spc");
    let apply = spcd.spcd(&["apply"]);
    assert_eq!(apply.code, 1, "{apply:?}");
    until(&hub.url, &["a error"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_with_other_directories_beside_a_daemon_says_whose_files_are_applied() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut spcd = serving(&hub, &source, &["a"]).await;
    let other = Spcd::new(&hub.url);
    other.write("b.spc", &postgres("b", &source));
    let applied = other.spcd(&["apply"]);
    assert_eq!(applied.code, 0, "{applied:?}");
    let own = spcd.config_dir();
    assert!(
        (applied.stderr).contains("a daemon leads, and applies its own files")
            && applied.stderr.contains(own.to_str().unwrap()),
        "{applied:?}"
    );
    for flag in ["--adopt-config", "--drop-dependents"] {
        let refused = other.spcd(&["apply", flag]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("stop it first"), "{refused:?}");
    }
    until(&hub.url, &["a ready"]).await;
    spcd.stop();
}

#[test]
fn the_readme_names_the_directory_that_is_read() {
    let spcd = Spcd::with_private_cluster();
    let mut check = spcd.command(&["check"]);
    check.env_remove("SPCD_CONFIG");
    let told = finish(check);
    let is_root = nix::unistd::geteuid().is_root();
    let dir = match is_root {
        true => "/etc/spcd/conf.d",
        false => "~/.config/spcd/conf.d",
    };
    let home = spcd.home();
    let read = dir.replace('~', home.to_str().unwrap());
    assert!(told.stderr.contains(&read), "{told:?}");
    let readme = include_str!("../README.md");
    assert!(readme.contains(&format!("`{dir}`")));
}
