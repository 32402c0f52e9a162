//! Twelve thousand connections, parsed and validated by `spcd check`: in one file, and in as many
//! files.

use std::time::{Duration, Instant};

use crate::support::{Spcd, finish};

const CONNECTIONS: usize = 12_000;
const RUNS: usize = 7;

pub fn run() {
    println!("## {CONNECTIONS} connections read by `spcd check`, of {RUNS} runs each");
    let one = Spcd::with_private_cluster();
    let all: String = (0..CONNECTIONS).map(connection).collect();
    one.write("all.spc", &all);
    measure(&one, "in one file", Duration::from_millis(500));

    let many = Spcd::with_private_cluster();
    for n in 0..CONNECTIONS {
        let path = many.config_dir().join(format!("{n:05}.spc"));
        std::fs::write(path, connection(n)).unwrap();
    }
    measure(&many, "in files of one", Duration::from_millis(1500));
}

pub fn connection(n: usize) -> String {
    format!(
        "# The shop of region {n}.\nconnection \"shop_{n:05}\" {{\n  plugin   = \"postgres\"\n  \
         host     = \"db-{n}.example.com\"\n  port     = {}\n  dbname   = \"shop_${{{n} + 1}}\"\n  \
         user     = \"reader\"\n  password = \"secret-{n}\"\n  sslmode  = \"require\"\n\n  \
         import {{\n    schema  = \"public\"\n    exclude = [\"*_old\", \"tmp_?\"]\n  }}\n}}\n\n",
        5432 + n % 10
    )
}

fn measure(spcd: &Spcd, what: &str, aim: Duration) {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let began = Instant::now();
            let check = finish(spcd.command(&["check"]));
            let took = began.elapsed();
            assert_eq!(check.code, 0, "{}{}", check.stdout, check.stderr);
            took
        })
        .collect();
    times.sort();
    println!(
        "{what}: median {} ms (aim {} ms), from {} to {} ms",
        times[RUNS / 2].as_millis(),
        aim.as_millis(),
        times[0].as_millis(),
        times[RUNS - 1].as_millis()
    );
}
