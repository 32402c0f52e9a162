//! Many connections from one block, beside as many blocks.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::measure::{connection, name, scaled, seconds, server, source, until_ready};
use crate::support::hub::STATIC;
use crate::support::{Cluster, Database, Spcd};

/// Connections added one by one, of which the median is printed.
const CHANGES: usize = 11;

/// Where the connections are written.
#[derive(Clone, Copy)]
enum Form {
    /// In blocks of one file.
    Blocks,
    /// In a JSON file that a block reads.
    Elements,
}

/// `for_each`.
pub async fn run() {
    let all = scaled(1000);
    println!("## {all} connections of two tables, from one JSON file and from as many blocks");
    let server = server(&[]);
    let source = source(&server, 2).await;
    // Each form is measured twice, in turn, so that what warms up counts for both.
    for round in 1..=2 {
        let (blocks, block) = measure(&server, &source, all, Form::Blocks).await;
        let (elements, element) = measure(&server, &source, all, Form::Elements).await;
        let ratio = |one: Duration, other: Duration| one.as_secs_f64() / other.as_secs_f64();
        println!(
            "for_each, round {round}: all ready after {}, of blocks {} (ratio {:.2}, aim 0.90 to 1.10); \
             one added ready after {}, as a saved block {} (ratio {:.2}, aim 1)",
            seconds(elements),
            seconds(blocks),
            ratio(elements, blocks),
            seconds(element),
            seconds(block),
            ratio(element, block)
        );
    }
}

/// Returns the time until all are ready, and the median of the times until one more is.
async fn measure(
    server: &Cluster,
    source: &Database,
    all: usize,
    form: Form,
) -> (Duration, Duration) {
    let hub = server.database().await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("plugin.spc", STATIC);
    if matches!(form, Form::Elements) {
        spcd.write(
            "all.spc",
            "connection \"all\" {\n  for_each = jsondecode(file(\"accounts.json\"))\n  \
             name = each.key\n  plugin = \"app\"\n  host = \"127.0.0.1\"\n  port = each.value.port\n  \
             dbname = each.value.dbname\n  user = \"postgres\"\n}\n",
        );
    }
    let save = |spcd: &Spcd, count: usize| match form {
        Form::Blocks => {
            let blocks = (0..count).map(|n| connection(&name(n), "app", server.port(), source));
            spcd.write("all.spc", &blocks.collect::<String>());
        }
        Form::Elements => spcd.write("accounts.json", &accounts(server, source, count)),
    };
    save(&spcd, all);
    let began = Instant::now();
    spcd.start();
    until_ready(&hub, "%", all).await;
    let cold = began.elapsed();
    let mut times = Vec::new();
    for n in 1..=CHANGES {
        let began = Instant::now();
        save(&spcd, all + n);
        until_ready(&hub, "%", all + n).await;
        times.push(began.elapsed());
    }
    times.sort();
    spcd.stop();
    (cold, times[CHANGES / 2])
}

fn accounts(server: &Cluster, source: &Database, count: usize) -> String {
    let mut text = String::from("{");
    for n in 0..count {
        let comma = if n > 0 { "," } else { "" };
        let _ = write!(
            text,
            "{comma}\n  \"{}\": {{\"port\": {}, \"dbname\": \"{}\"}}",
            name(n),
            server.port(),
            source.name
        );
    }
    text + "\n}\n"
}
