//! What commands say where there is no daemon, no connection, or no such name.

use crate::support::hub::{made_by, serving};
use crate::support::{Spcd, shared};

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
}
