//! What was done to a file before a client asks for a look is in the answer.

use std::fs;

use super::Fixture;
use crate::support::hub::until;

/// Puts a file with a column of one name into the place of another, as `rm a.csv; cp new.csv a.csv`
/// does.
fn replace(fixture: &Fixture, column: &str) {
    let path = fixture.data.join("a.csv");
    fs::remove_file(&path).unwrap();
    fs::write(&path, format!("{column}\n1\n")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_covers_the_files_of_tables() {
    let mut fixture = Fixture::new("", &[("a.csv", "c\n1\n")]).await;
    let all = "connection \"all\" {\n  plugin = \"csv\"\n  type = \"aggregator\"\n  connections = [\"files\"]\n}\n";
    fixture.spcd.write("all.spc", all);
    fixture.spcd.start();
    until(&fixture.hub.url, &["all ready", "files ready"]).await;
    for n in 0..4 {
        for (command, args) in [
            ("wait", &[][..]),
            ("query", &["SELECT 1"][..]),
            ("apply", &[][..]),
        ] {
            let column = format!("{command}{n}");
            replace(&fixture, &column);
            let args: Vec<&str> = [command].into_iter().chain(args.iter().copied()).collect();
            let done = fixture.spcd.spcd(&args);
            assert_eq!(done.code, 0, "{done:?}");
            let wanted = [format!("{column} bigint")];
            assert_eq!(fixture.columns("a").await, wanted, "{command}");
            let shown = crate::support::hub::columns(&fixture.hub.url, "\"all\".a").await;
            assert!(shown.contains(&wanted[0]), "{command}: {shown:?}");
        }
    }
    fixture.spcd.stop();
}
