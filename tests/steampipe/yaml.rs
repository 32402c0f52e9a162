//! Steampipe's YAML files beside `.spc` files.

use super::{hub, local};
use crate::support::hub::{until, until_error};
use crate::support::{Spcd, value};

#[tokio::test(flavor = "multi_thread")]
async fn its_yaml_files_are_read_and_vanish_as_any_other() {
    let (cluster, hub, data, mut spcd) = hub("CREATE TABLE t AS SELECT 1 AS id").await;
    let yaml = |name: &str| {
        format!(
            "connection:\n  {name}:\n    plugin: postgres\n    host: 127.0.0.1\n    port: {}\n    \
             dbname: {}\n    user: postgres\n    password_required: no\n",
            cluster.port(),
            data.name
        )
    };
    spcd.write("a.spc", &local("a", &cluster, &data));
    spcd.write("b.yml", &yaml("b"));
    let checked = spcd.spcd(&["check", "--json"]);
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    assert!(checked.stdout.contains("/b.yml\""), "{}", checked.stdout);
    let planned = spcd.spcd(&["plan"]);
    assert_eq!(planned.code, 2, "{}", planned.stderr);
    let stdout = &planned.stdout;
    assert!(stdout.contains("+ connection \"b\""), "{stdout}");
    spcd.start();
    until(&hub.url, &["a ready", "b ready"]).await;
    // The daemon notices a new one, one that is removed and one that is broken.
    spcd.write("c.yaml", &yaml("c"));
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;
    spcd.remove("c.yaml");
    until(&hub.url, &["a ready", "b ready"]).await;
    spcd.write("b.yml", "connection: [\n");
    until_error(&hub.url, "b", "b.yml:2:1: not YAML").await;
    spcd.write("b.yml", &yaml("b"));
    until(&hub.url, &["a ready", "b ready"]).await;
    spcd.stop();

    // Without `compat` the file is not read, which is no removal.
    let without = Spcd::beside(&spcd);
    let applied = without.spcd(&["apply"]);
    assert_eq!(applied.code, 1, "{}", applied.stderr);
    until_error(&hub.url, "b", "compat = \"steampipe\"").await;
    assert_eq!(value(&hub.url, "SELECT count(*) FROM b.t").await, "1");
    let given_up = without.spcd(&["apply", "--allow-empty"]);
    assert_eq!(given_up.code, 0, "{}", given_up.stderr);
    until(&hub.url, &["a ready"]).await;
}
