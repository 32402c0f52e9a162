//! A thousand connections that are new, and the same dropped.

use std::time::{Duration, Instant};

use crate::measure::{
    COLUMNS, connection, daemon_cpu, frame, memory, name, report, scaled, seconds, server,
    server_cpu, session, source, tables, two_sessions, until_count, until_ready,
};
use crate::support::hub::STATIC;
use crate::support::{Cluster, Database, Spcd, connect, query};

const TABLES: usize = 50;
/// So many connections in one transaction of the reference: 500 tables, beyond which more does not
/// pay.
const TOGETHER: usize = 500 / TABLES;

/// What clones a schema table by table, as others do it: the text of each is made from the catalog.
const CLONE: &str = "
CREATE FUNCTION public.clone_schema(p_from text, p_to text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t record;
    columns text;
BEGIN
    EXECUTE format('CREATE SCHEMA %I', p_to);
    FOR t IN SELECT c.oid, c.relname, f.ftoptions
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_foreign_table f ON f.ftrelid = c.oid WHERE n.nspname = p_from LOOP
        SELECT string_agg(format('%I %s OPTIONS (column_name %L)', attname,
                                 format_type(atttypid, atttypmod), attname), ', ' ORDER BY attnum)
        INTO columns FROM pg_attribute WHERE attrelid = t.oid AND attnum > 0 AND NOT attisdropped;
        EXECUTE format('CREATE FOREIGN TABLE %I.%I (%s) SERVER %I OPTIONS (%s)', p_to, t.relname,
            columns, p_to, (SELECT string_agg(format('%I %L', split_part(o, '=', 1),
                substr(o, strpos(o, '=') + 1)), ', ') FROM unnest(t.ftoptions) o));
    END LOOP;
END $$";

/// `cold_static`, `cpu`, `drop`.
pub async fn fixed() {
    let all = scaled(1000);
    println!("## {all} static connections of {TABLES} tables x {COLUMNS} columns, all new");
    let server = server(&[]);
    let source = source(&server, TABLES).await;

    let bare = reference(&server).await;
    let batches = |text: &dyn Fn(&str) -> String| -> Vec<String> {
        let names: Vec<String> = (0..all).map(name).collect();
        let batch = |names: &[String]| names.iter().map(|name| text(name)).collect();
        names.chunks(TOGETHER).map(batch).collect()
    };
    let created = two_sessions(
        &bare.url,
        batches(&|name| frame(name, &server, &source) + &tables(name, TABLES)),
    )
    .await;

    let cloned = clone_by_function(&server, &source, all).await;

    let hub = server.database().await;
    let mut spcd = warmed_up(
        &hub,
        &(STATIC.to_owned() + &connection("keep", "app", server.port(), &source)),
    )
    .await;
    let text: String = (0..all)
        .map(|n| connection(&name(n), "app", server.port(), &source))
        .collect();
    let (daemon, backends) = (daemon_cpu(&spcd), server_cpu(&server));
    let began = Instant::now();
    spcd.write("all.spc", &text);
    until_ready(&hub, "c%", all).await;
    let took = began.elapsed();
    let daemon = daemon_cpu(&spcd) - daemon;
    let backends = server_cpu(&server) - backends;
    report(
        "cold_static",
        took,
        "the bare DDL over two sessions",
        created,
        1.15,
    );
    report(
        "cold_static, against clones made by a plpgsql function",
        took,
        "one transaction a connection, one session",
        cloned,
        0.25,
    );
    report(
        "cpu, the daemon's own",
        daemon,
        "the backends'",
        backends,
        0.05,
    );
    println!("at most {} MB resident", memory(&spcd, "VmHWM:"));

    let dropped = two_sessions(&bare.url, batches(&drops)).await;
    let began = Instant::now();
    spcd.remove("all.spc");
    until_count(&hub, "SELECT count(*) FROM spcd.connection_state", 1).await;
    report(
        &format!("drop of {all} connections"),
        began.elapsed(),
        "the bare DDL over two sessions",
        dropped,
        1.2,
    );
    spcd.stop();
}

/// Comes up with one connection, so that neither migrations nor the extension are measured.
async fn warmed_up(hub: &Database, keep: &str) -> Spcd {
    let mut spcd = Spcd::new(&hub.url);
    spcd.write("keep.spc", keep);
    spcd.start();
    until_ready(hub, "keep", 1).await;
    spcd
}

fn drops(name: &str) -> String {
    let tables: String = (0..TABLES)
        .map(|n| format!("DROP FOREIGN TABLE \"{name}\".table_number_{n};\n"))
        .collect();
    tables
        + &format!(
            "DROP SCHEMA \"{name}\"; DROP USER MAPPING FOR PUBLIC SERVER \"{name}\"; DROP SERVER \"{name}\";\n"
        )
}

/// A database in which the wrapper is there.
async fn reference(server: &Cluster) -> Database {
    let bare = server.database().await;
    query(&bare.url, "CREATE EXTENSION postgres_fdw").await;
    bare
}

/// A part of the connections, reckoned up to all of them: each costs the same.
async fn clone_by_function(server: &Cluster, source: &Database, all: usize) -> Duration {
    let part = all.div_ceil(5);
    let clones = reference(server).await;
    query(&clones.url, CLONE).await;
    let client = connect(&clones.url).await.unwrap();
    let exemplar = frame("exemplar", server, source) + &tables("exemplar", TABLES);
    client.batch_execute(&exemplar).await.unwrap();
    let began = Instant::now();
    for n in 0..part {
        let name = name(n);
        let text =
            frame(&name, server, source).replace(&format!("CREATE SCHEMA \"{name}\";\n"), "");
        let text =
            format!("BEGIN; {text} SELECT public.clone_schema('exemplar', '{name}'); COMMIT");
        client.batch_execute(&text).await.unwrap();
    }
    began.elapsed() * u32::try_from(all).unwrap() / u32::try_from(part).unwrap()
}

/// `cold_dynamic`.
pub async fn dynamic() {
    let all = scaled(1000);
    println!(
        "## {all} dynamic Postgres sources of {TABLES} tables x {COLUMNS} columns on loopback, all new"
    );
    let server = server(&[]);
    let source = source(&server, TABLES).await;
    let bare = reference(&server).await;
    let import = |n: usize| {
        let name = name(n);
        frame(&name, &server, &source)
            + &format!("IMPORT FOREIGN SCHEMA public FROM SERVER \"{name}\" INTO \"{name}\"")
    };
    let cpu = server_cpu(&server);
    let imported = two_sessions(&bare.url, (0..all).map(import).collect()).await;
    let import_cpu = server_cpu(&server) - cpu;

    let hub = server.database().await;
    let mut spcd = warmed_up(
        &hub,
        &connection("keep", "postgres", server.port(), &source),
    )
    .await;
    let text: String = (0..all)
        .map(|n| connection(&name(n), "postgres", server.port(), &source))
        .collect();
    let cpu = server_cpu(&server);
    let began = Instant::now();
    spcd.write("all.spc", &text);
    until_ready(&hub, "c%", all).await;
    let took = began.elapsed();
    report(
        "cold_dynamic",
        took,
        "IMPORT FOREIGN SCHEMA over two sessions",
        imported,
        0.5,
    );
    println!(
        "processor time of the servers: {} instead of {}",
        seconds(server_cpu(&server) - cpu),
        seconds(import_cpu)
    );
    spcd.stop();
}

/// `listeners`.
pub async fn listeners() {
    const FEW: usize = 10;
    const LISTENERS: usize = 500;
    let all = scaled(1000);
    println!(
        "## {all} static connections of {FEW} tables, without and with {LISTENERS} sessions that listen"
    );
    let server = server(&["max_connections = 700"]);
    let source = source(&server, FEW).await;
    let mut times = Vec::new();
    for listening in [0, LISTENERS] {
        let hub = server.database().await;
        let mut spcd = warmed_up(
            &hub,
            &(STATIC.to_owned() + &connection("keep", "app", server.port(), &source)),
        )
        .await;
        let mut sessions = Vec::new();
        for _ in 0..listening {
            let client = session(&hub.url).await;
            client
                .batch_execute("LISTEN connection_state")
                .await
                .unwrap();
            sessions.push(client);
        }
        let text: String = (0..all)
            .map(|n| connection(&name(n), "app", server.port(), &source))
            .collect();
        let began = Instant::now();
        spcd.write("all.spc", &text);
        until_ready(&hub, "c%", all).await;
        times.push(began.elapsed());
        spcd.stop();
    }
    report(
        "cold pass with listeners",
        times[1],
        "without",
        times[0],
        1.2,
    );
}

/// `slow_sources`.
pub async fn slow_sources() {
    const SILENT: usize = 50;
    const FEW: usize = 2;
    let all = scaled(1000);
    println!(
        "## {all} dynamic sources of {FEW} tables, without and with {SILENT} that accept and never answer"
    );
    let server = server(&[]);
    let source = source(&server, FEW).await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut times = Vec::new();
    for silent in [0, SILENT] {
        let hub = server.database().await;
        let mut spcd = warmed_up(
            &hub,
            &connection("keep", "postgres", server.port(), &source),
        )
        .await;
        // Among the others, as chance has it.
        let every = all / SILENT.max(1);
        let text: String = (0..all)
            .flat_map(|n| {
                let good = connection(&name(n), "postgres", server.port(), &source);
                let bad = (silent > 0 && n % every == 0)
                    .then(|| connection(&format!("{}_silent", name(n)), "postgres", port, &source));
                [Some(good), bad]
            })
            .flatten()
            .collect();
        let began = Instant::now();
        spcd.write("all.spc", &text);
        until_ready(&hub, "c_____", all).await;
        times.push(began.elapsed());
        spcd.kill9();
    }
    report(
        "good ones with silent ones among them",
        times[1],
        "without",
        times[0],
        1.2,
    );
    drop(silent);
}
