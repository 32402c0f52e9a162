//! Input that vanished deletes nothing, whenever it is noticed; what its user removes goes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::hub::{guarded, made_by, postgres, reader, serving, statuses, until};
use crate::support::{Database, Spcd, give_to_server, query, shared, steampipe, value};

const PASSWORD: &str = "hunter2hunter2";

async fn source() -> Database {
    made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (1)").await
}

/// Puts something else where a directory was.
type Replace = fn(&Path);

/// Applied once, without a daemon.
async fn applied(hub: &Database, source: &Database, names: &[&str]) -> Spcd {
    let spcd = Spcd::new(&hub.url);
    for name in names {
        let connection = name.rsplit('/').next().unwrap();
        spcd.write(&format!("{name}.spc"), &postgres(connection, source));
    }
    let done = spcd.spcd(&["apply"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    spcd
}

async fn error_of(hub: &Database, name: &str) -> String {
    let sql = format!(
        "SELECT coalesce(error, '') FROM spcd.connection_state WHERE connection_name = '{name}'"
    );
    value(&hub.url, &sql).await
}

async fn serves(hub: &Database, name: &str) {
    let sql = format!("SELECT count(*) FROM {name}.t");
    assert_eq!(value(&hub.url, &sql).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_config_directory_is_refused_until_it_is_adopted() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = applied(&hub, &source, &["a", "b"]).await;
    let before = query(&hub.url, "SELECT * FROM spcd.connection_state ORDER BY 1").await;

    let own = spcd.config_dir();
    let typo = spcd.dir().join("typo");
    let others = |args: &[&str]| {
        let typo = typo.to_str().unwrap();
        spcd.spcd(&[&["--config", typo], args].concat())
    };
    for command in [
        &["apply"][..],
        &["plan"],
        &["run"],
        &["apply", "--allow-empty"],
    ] {
        let refused = others(command);
        let told = &refused.stderr;
        assert_eq!(refused.code, 1, "{command:?}: {told}");
        for part in [
            own.to_str().unwrap(),
            typo.to_str().unwrap(),
            "--adopt-config",
        ] {
            assert!(told.contains(part), "{command:?}: {told}");
        }
    }
    // Nor is a directory adopted that holds nothing.
    assert_eq!(others(&["apply", "--adopt-config"]).code, 1);
    fs::create_dir(&typo).unwrap();
    assert_eq!(others(&["apply", "--adopt-config"]).code, 1);
    let now = query(&hub.url, "SELECT * FROM spcd.connection_state ORDER BY 1").await;
    assert_eq!(now, before);

    // More directories than before are no others, and a link to one is the same.
    let both = format!("{}:{}", own.display(), typo.display());
    assert_eq!(spcd.spcd(&["--config", &both, "apply"]).code, 0);
    let link = spcd.dir().join("link");
    symlink(&own, &link).unwrap();
    let linked = spcd.spcd(&["--config", link.to_str().unwrap(), "apply"]);
    assert_eq!(linked.code, 0, "{}", linked.stderr);
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    serves(&hub, "a").await;

    fs::write(typo.join("a.spc"), postgres("a", &source)).unwrap();
    let shown = others(&["plan", "--adopt-config"]);
    assert_eq!(shown.code, 2, "{}", shown.stderr);
    assert!(
        shown.stdout.contains("- connection \"b\""),
        "{}",
        shown.stdout
    );
    let moved = others(&["apply", "--adopt-config"]);
    assert_eq!(moved.code, 0, "{}", moved.stderr);
    until(&hub.url, &["a ready"]).await;
    // A daemon with the directory from before is refused now.
    spcd.start();
    assert_eq!(spcd.ended().code(), Some(1));
    assert!(spcd.log().contains("--adopt-config"), "{}", spcd.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vanished_before_the_first_look_is_an_error_and_stays() {
    let (hub, source) = (shared().database().await, source().await);
    let spcd = applied(&hub, &source, &["a", "sub/b"]).await;
    let (dir, aside) = (spcd.config_dir(), spcd.dir().join("aside"));
    let (sub, sub_aside) = (dir.join("sub"), spcd.dir().join("sub-aside"));
    let ways: [(&str, Replace); 5] = [
        // A link to itself: ELOOP.
        ("cannot be read", |path| symlink(path, path).unwrap()),
        ("no longer a directory", |path| fs::write(path, "").unwrap()),
        ("no longer a directory", |path| {
            symlink("/etc/hostname", path).unwrap();
        }),
        ("holds no file any more", |path| {
            fs::create_dir(path).unwrap();
        }),
        ("is missing", |_| {}),
    ];
    for (reason, replace) in ways {
        fs::rename(&dir, &aside).unwrap();
        replace(&dir);
        let planned = spcd.spcd(&["plan"]);
        assert_eq!(planned.code, 1, "{}", planned.stdout);
        assert!(planned.stderr.contains(reason), "{}", planned.stderr);
        assert!(
            !planned.stdout.contains("- connection"),
            "{}",
            planned.stdout
        );
        assert_eq!(spcd.spcd(&["apply"]).code, 1);
        until(&hub.url, &["a error", "b error"]).await;
        let error = error_of(&hub, "b").await;
        assert!(
            error.contains(reason) && error.contains("--allow-empty"),
            "{error}"
        );
        serves(&hub, "a").await;
        serves(&hub, "b").await;
        let _ = fs::remove_file(&dir).or_else(|_| fs::remove_dir(&dir));
        fs::rename(&aside, &dir).unwrap();
        assert_eq!(spcd.spcd(&["apply"]).code, 0);
        until(&hub.url, &["a ready", "b ready"]).await;
    }
    for (reason, replace) in &ways[..4] {
        fs::rename(&sub, &sub_aside).unwrap();
        replace(&sub);
        assert_eq!(spcd.spcd(&["apply"]).code, 1);
        until(&hub.url, &["a ready", "b error"]).await;
        let error = error_of(&hub, "b").await;
        assert!(error.contains(reason), "{error}");
        serves(&hub, "b").await;
        let _ = fs::remove_file(&sub).or_else(|_| fs::remove_dir(&sub));
        fs::rename(&sub_aside, &sub).unwrap();
        assert_eq!(spcd.spcd(&["apply"]).code, 0);
    }
    // A directory that its user removed is none that vanished, and neither is a file beside others.
    fs::remove_dir_all(&sub).unwrap();
    assert_eq!(spcd.spcd(&["apply"]).code, 0);
    assert_eq!(statuses(&hub.url).await.len(), 1);
    spcd.remove("a.spc");
    assert_eq!(spcd.spcd(&["apply"]).code, 1);
    assert_eq!(spcd.spcd(&["apply", "--allow-empty"]).code, 0);
    assert!(statuses(&hub.url).await.is_empty());
}

/// A user's mistake with `chmod`. Tests that run as root have the daemon run as another user.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_keeps_its_connections() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    spcd.unprivileged();
    spcd.write("a.spc", &postgres("a", &source));
    spcd.write("sub/b.spc", &postgres("b", &source));
    let dir = spcd.config_dir();
    let (file, sub) = (dir.join("a.spc"), dir.join("sub"));
    for path in [&file, &sub] {
        give_to_server(path);
    }
    spcd.start();
    until(&hub.url, &["a ready", "b ready"]).await;
    for (path, left) in [
        (&dir, ["a error", "b error"]),
        (&sub, ["a ready", "b error"]),
        (&file, ["a error", "b ready"]),
    ] {
        let before = fs::metadata(path).unwrap().permissions();
        fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
        // A change of permissions is no event for every kind of watch.
        spcd.spcd(&["refresh"]);
        until(&hub.url, &left).await;
        for state in left {
            if let Some(name) = state.strip_suffix(" error") {
                let error = error_of(&hub, name).await;
                assert!(error.contains("ermission denied"), "{error}");
            }
        }
        serves(&hub, "a").await;
        serves(&hub, "b").await;
        assert_eq!(spcd.spcd(&["plan"]).code, 1);
        fs::set_permissions(path, before).unwrap();
        spcd.spcd(&["refresh"]);
        until(&hub.url, &["a ready", "b ready"]).await;
    }
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vanished_while_a_daemon_runs_stays_until_it_is_back_or_given_up() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = serving(&hub, &source, &["a", "b"]).await;
    let (dir, aside) = (spcd.config_dir(), spcd.dir().join("aside"));
    fs::rename(&dir, &aside).unwrap();
    fs::create_dir(&dir).unwrap();
    until(&hub.url, &["a error", "b error"]).await;
    // A take-over knows it as well, and so does one who comes while the files come back one by one.
    spcd.stop();
    fs::rename(aside.join("a.spc"), dir.join("a.spc")).unwrap();
    spcd.write("c.spc", &postgres("c", &source));
    spcd.start();
    until(&hub.url, &["a ready", "b error", "c ready"]).await;
    let error = error_of(&hub, "b").await;
    assert!(error.contains("b.spc is not back"), "{error}");
    serves(&hub, "b").await;

    fs::rename(aside.join("b.spc"), dir.join("b.spc")).unwrap();
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;
    // One of several files is deleted: its user wants that.
    spcd.remove("c.spc");
    until(&hub.url, &["a ready", "b ready"]).await;
    spcd.remove("a.spc");
    spcd.remove("b.spc");
    let given_up = spcd.spcd(&["apply", "--allow-empty"]);
    assert_eq!(given_up.code, 0, "{}", given_up.stderr);
    until(&hub.url, &[]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_block_that_vanished_changes_no_connection_of_another_file() {
    let (hub, source) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    let plugin = "plugin \"postgres\" {\n  import_options = { import_not_null = \"false\" }\n  \
                  public = [\"host\"]\n}\nplugin \"other\" {\n  source = \"mysql\"\n}\n";
    spcd.write("plugins/p.spc", plugin);
    spcd.write("a.spc", &postgres("a", &source));
    spcd.write(
        "b.spc",
        &postgres("b", &source).replace("\"postgres\"\n  host", "plugin.postgres\n  host"),
    );
    spcd.start();
    until(&hub.url, &["a ready", "b ready"]).await;
    let applied = "SELECT a.*, s.plugin_instance, s.schema_hash, s.table_count
                   FROM spcd.applied a JOIN spcd.connection_state s USING (connection_name) ORDER BY 1";
    let before = query(&hub.url, applied).await;
    let (dir, aside) = (spcd.config_dir().join("plugins"), spcd.dir().join("aside"));
    let file = dir.join("p.spc");
    let broken = |path: &Path| fs::write(path, "plugin \"postgres\" {\n  x = \"\n").unwrap();
    for (reason, away, back) in [
        (
            "holds no file any more",
            (&|| {
                fs::rename(&file, &aside).unwrap();
            }) as &dyn Fn(),
            (&|| fs::rename(&aside, &file).unwrap()) as &dyn Fn(),
        ),
        (
            "no longer a directory",
            &|| {
                fs::rename(&dir, &aside).unwrap();
                fs::write(&dir, "").unwrap();
            },
            &|| {
                fs::remove_file(&dir).unwrap();
                fs::rename(&aside, &dir).unwrap();
            },
        ),
        ("never closed", &|| broken(&file), &|| {
            spcd.write("plugins/p.spc", plugin)
        }),
    ] {
        away();
        until(&hub.url, &["a error", "b error"]).await;
        for name in ["a", "b"] {
            let error = error_of(&hub, name).await;
            let said = format!("{name}.spc:1: its block `plugin \"postgres\"` is unknown: ");
            assert!(error.contains(&said) && error.contains(reason), "{error}");
            serves(&hub, name).await;
        }
        assert_eq!(query(&hub.url, applied).await, before, "{reason}");
        let plan = spcd.spcd(&["plan"]);
        assert!(!plan.stdout.contains("~ "), "{plan:?}");
        // What uses another plugin is made as ever.
        spcd.write(
            "c.spc",
            &postgres("c", &source).replace("\"postgres\"\n  host", "\"fdw\"\n  host"),
        );
        until(&hub.url, &["a error", "b error", "c error"]).await;
        spcd.remove("c.spc");
        back();
        until(&hub.url, &["a ready", "b ready"]).await;
    }
    // A user who deletes the file beside others wants the shipped definition.
    spcd.write("plugins/d.spc", "# nothing\n");
    assert_eq!(spcd.spcd(&["wait"]).code, 0);
    spcd.remove("plugins/p.spc");
    until(&hub.url, &["a ready", "b error"]).await;
    let error = error_of(&hub, "b").await;
    assert!(error.contains("there is no block"), "{error}");
    spcd.stop();
}

/// Without its block, the connection would no longer be one of the gateway's.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_block_that_vanished_deletes_nothing_behind_the_gateway() {
    let (hub, source, gateway) = (
        shared().database().await,
        guarded(PASSWORD).await,
        steampipe::gateway().await,
    );
    let mut spcd = Spcd::new(&hub.url);
    spcd.env("SPCD_GATEWAY", &gateway.url("postgres"));
    let plugin = "plugin \"postgres\" {\n  gateway = true\n}\n";
    spcd.write("plugins/p.spc", plugin);
    spcd.write("a.spc", &reader("a", source.port(), PASSWORD));
    spcd.start();
    until(&hub.url, &["a ready"]).await;
    let behind = gateway.url("postgres");
    until(&behind, &["a ready"]).await;
    let tables = "SELECT c.oid, c.relname, s.srvname, s.srvoptions
                  FROM pg_foreign_table t JOIN pg_class c ON c.oid = t.ftrelid
                  JOIN pg_foreign_server s ON s.oid = t.ftserver
                  WHERE c.relnamespace = 'a'::regnamespace ORDER BY 1";
    let look = async || [query(&hub.url, tables).await, query(&behind, tables).await];
    let before = look().await;
    assert!(before.iter().all(|tables| tables.len() == 1), "{before:?}");

    spcd.remove("plugins/p.spc");
    until(&hub.url, &["a error"]).await;
    let error = error_of(&hub, "a").await;
    let said = "its block `plugin \"postgres\"` is unknown: ";
    assert!(
        error.contains(said) && error.contains("holds no file any more"),
        "{error}"
    );
    // What needs the gateway and is known shows that both sides have made a whole pass since.
    let known = steampipe::plugins() + &steampipe::connection("c", "a", "token = \"one\"");
    spcd.write("c.spc", &known);
    until(&hub.url, &["a error", "c ready"]).await;
    assert_eq!(value(&behind, "SELECT count(*) FROM c.account").await, "1");
    assert_eq!(look().await, before);
    assert_eq!(value(&hub.url, "SELECT id FROM a.t").await, "7");
    // The daemon would also keep it because the hub reads it, which the plan leaves out of account.
    let plan = spcd.spcd(&["plan"]);
    assert_eq!(plan.stdout, "nothing to do\n", "{plan:?}");

    spcd.write("plugins/p.spc", plugin);
    until(&hub.url, &["a ready", "c ready"]).await;
    assert_eq!(look().await, before);
    spcd.stop();
}
