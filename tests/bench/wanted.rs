//! One table of a source that has many, beside an import of that table alone.

use std::time::Instant;

use crate::measure::{
    TURNS, Turns, connection, frame, scaled, server, session, source, until_ready,
};
use crate::support::{Spcd, query, value};

/// `one_wanted`.
pub async fn run() {
    let all = scaled(10_000);
    println!("## one table of a Postgres source of {all} tables");
    let server = server(&["log_statement = 'all'"]);
    let source = source(&server, all).await;
    let first = "SELECT relname FROM pg_class WHERE relkind = 'r'
                 AND relnamespace = 'public'::regnamespace ORDER BY relname LIMIT 1";
    let table = value(&source.url, first).await;
    // Those that the source gets; what waits for the daemon asks the same server, too.
    let statements = || server.log().matches(" postgres_fdw LOG:").count();
    let mut took = Turns::default();
    let (mut ours, mut bare) = (0, 0);
    for _ in 0..TURNS {
        let (hub, reference) = (server.database().await, server.database().await);
        let mut spcd = Spcd::new(&hub.url);
        let block = |name: &str, tables: &str| {
            let block = connection(name, "postgres", server.port(), &source);
            let end = block.rfind('}').unwrap();
            format!(
                "{}  import {{\n    tables = {tables}\n  }}\n}}\n",
                &block[..end]
            )
        };
        // The daemon, its sessions and the extension are there before.
        spcd.write("keep.spc", &block("keep", "[\"none\"]"));
        spcd.start();
        until_ready(&hub, "keep", 1).await;
        let before = statements();
        let began = Instant::now();
        spcd.write("one.spc", &block("one", &format!("[{table:?}]")));
        until_ready(&hub, "one", 1).await;
        let ours_took = began.elapsed();
        ours = statements() - before;
        spcd.stop();

        query(
            &reference.url,
            "CREATE EXTENSION IF NOT EXISTS postgres_fdw",
        )
        .await;
        let client = session(&reference.url).await;
        let before = statements();
        let began = Instant::now();
        let import = format!(
            "{}IMPORT FOREIGN SCHEMA public LIMIT TO ({table:?}) FROM SERVER one INTO one",
            frame("one", &server, &source)
        );
        client.batch_execute(&import).await.unwrap();
        took.push(ours_took, began.elapsed());
        bare = statements() - before;
    }
    took.report("one_wanted", "IMPORT FOREIGN SCHEMA … LIMIT TO", 1.3);
    println!(
        "  the source gets {ours} statements, beside {bare}; the time begins when the file is saved"
    );
}
