//! A thousand connections that are new, and the same dropped.

use std::time::{Duration, Instant};

use crate::measure::{
    COLUMNS, TURNS, Turns, connection, daemon_cpu, frame, memory, name, scaled, server, server_cpu,
    session, source, tables, two_sessions, until_count, until_ready,
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
    let text: String = (0..all)
        .map(|n| connection(&name(n), "app", server.port(), &source))
        .collect();
    let [mut created, mut cloned, mut cpu, mut dropped] = [(); 4].map(|()| Turns::default());
    let mut resident = 0;
    for turn in 0..TURNS {
        let (bare, clones) = (reference(&server).await, reference(&server).await);
        let hub = server.database().await;
        let mut spcd = warmed_up(
            &hub,
            &(STATIC.to_owned() + &connection("keep", "app", server.port(), &source)),
        )
        .await;
        let (mut bare_took, mut took, mut spent) =
            (Duration::ZERO, Duration::ZERO, [Duration::ZERO; 2]);
        for ours in order(turn) {
            if ours {
                let (daemon, backends) = (daemon_cpu(&spcd), server_cpu(&server));
                took = saved(&spcd, &hub, &text, "c%", all).await;
                spent = [daemon_cpu(&spcd) - daemon, server_cpu(&server) - backends];
            } else {
                let text = |name: &str| frame(name, &server, &source) + &tables(name, TABLES);
                bare_took = two_sessions(&bare.url, batches(all, &text)).await;
            }
        }
        created.push(took, bare_took);
        cpu.push(spent[0], spent[1]);
        cloned.push(
            took,
            clone_by_function(&clones, &server, &source, all).await,
        );
        resident = resident.max(memory(&spcd, "VmHWM:"));

        for ours in order(turn) {
            if ours {
                let began = Instant::now();
                spcd.remove("all.spc");
                until_count(&hub, "SELECT count(*) FROM spcd.connection_state", 1).await;
                took = began.elapsed();
            } else {
                bare_took = two_sessions(&bare.url, batches(all, &drops)).await;
            }
        }
        dropped.push(took, bare_took);
        spcd.stop();
    }
    let bare = "the bare DDL over two sessions";
    created.report("cold_static", bare, 1.15);
    cloned.report(
        "cold_static, against clones made by a plpgsql function",
        "one transaction a connection, one session",
        0.25,
    );
    cpu.report("cpu, the daemon's own", "the backends'", 0.05);
    println!("at most {resident} MB resident");
    dropped.report(&format!("drop of {all} connections"), bare, 1.2);
}

/// How long it takes from a save until so many connections of a pattern are ready.
async fn saved(spcd: &Spcd, hub: &Database, text: &str, like: &str, all: usize) -> Duration {
    let began = Instant::now();
    spcd.write("all.spc", text);
    until_ready(hub, like, all).await;
    began.elapsed()
}

/// What is done to each connection, in transactions as big as pays.
fn batches(all: usize, text: &dyn Fn(&str) -> String) -> Vec<String> {
    let names: Vec<String> = (0..all).map(name).collect();
    let batch = |names: &[String]| names.iter().map(|name| text(name)).collect();
    names.chunks(TOGETHER).map(batch).collect()
}

/// Whose turn comes first, us or the reference: who comes second finds the server's memory and files
/// used to work.
fn order(turn: usize) -> [bool; 2] {
    let ours_first = turn % 2 == 1;
    [ours_first, !ours_first]
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
async fn clone_by_function(
    clones: &Database,
    server: &Cluster,
    source: &Database,
    all: usize,
) -> Duration {
    let part = all.div_ceil(5);
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
    let import = |n: usize| {
        let name = name(n);
        frame(&name, &server, &source)
            + &format!("IMPORT FOREIGN SCHEMA public FROM SERVER \"{name}\" INTO \"{name}\"")
    };
    let text: String = (0..all)
        .map(|n| connection(&name(n), "postgres", server.port(), &source))
        .collect();
    let [mut times, mut cpu] = [(); 2].map(|()| Turns::default());
    for turn in 0..TURNS {
        let (bare, hub) = (reference(&server).await, server.database().await);
        let keep = connection("keep", "postgres", server.port(), &source);
        let mut spcd = warmed_up(&hub, &keep).await;
        let [mut imported, mut ours] = [(Duration::ZERO, Duration::ZERO); 2];
        for is_ours in order(turn) {
            let before = server_cpu(&server);
            if is_ours {
                let took = saved(&spcd, &hub, &text, "c%", all).await;
                ours = (took, server_cpu(&server) - before);
            } else {
                let took = two_sessions(&bare.url, (0..all).map(import).collect()).await;
                imported = (took, server_cpu(&server) - before);
            }
        }
        times.push(ours.0, imported.0);
        cpu.push(ours.1, imported.1);
        spcd.stop();
    }
    let import = "IMPORT FOREIGN SCHEMA over two sessions";
    times.report("cold_dynamic", import, 0.5);
    cpu.report("processor time of the servers", import, 0.5);
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
    let [mut times, mut idle] = [(); 2].map(|()| Turns::default());
    let text = |n| connection(&name(n), "app", server.port(), &source);
    let text: String = (0..all).map(text).collect();
    for turn in 0..=TURNS {
        let mut took = [Duration::ZERO; 3];
        // Without, with sessions that do nothing, and with sessions that listen.
        for with in [turn % 3, (turn + 1) % 3, (turn + 2) % 3] {
            let hub = server.database().await;
            let keep = STATIC.to_owned() + &connection("keep", "app", server.port(), &source);
            let mut spcd = warmed_up(&hub, &keep).await;
            let mut sessions = Vec::new();
            for _ in 0..with.min(1) * LISTENERS {
                let client = session(&hub.url).await;
                if with == 2 {
                    let listen = "LISTEN connection_state";
                    client.batch_execute(listen).await.unwrap();
                }
                sessions.push(client);
            }
            took[with] = saved(&spcd, &hub, &text, "c%", all).await;
            spcd.stop();
        }
        // The first has the server's memory made, and counts for nothing.
        if turn > 0 {
            times.push(took[2], took[0]);
            idle.push(took[1], took[0]);
        }
    }
    times.report("cold pass with listeners", "without", 1.2);
    idle.report("cold pass with as many idle sessions", "without", 1.2);
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
    let mut times = Turns::default();
    for turn in 0..=TURNS {
        let mut took = [Duration::ZERO; 2];
        for with in [turn % 2, (turn + 1) % 2] {
            let hub = server.database().await;
            let keep = connection("keep", "postgres", server.port(), &source);
            let mut spcd = warmed_up(&hub, &keep).await;
            // Among the others, as chance has it.
            let every = all.div_ceil(SILENT);
            let text: String = (0..all)
                .flat_map(|n| {
                    let good = connection(&name(n), "postgres", server.port(), &source);
                    let bad = (with == 1 && n % every == 0).then(|| {
                        connection(&format!("{}_silent", name(n)), "postgres", port, &source)
                    });
                    [Some(good), bad]
                })
                .flatten()
                .collect();
            took[with] = saved(&spcd, &hub, &text, "c_____", all).await;
            spcd.kill9();
        }
        if turn > 0 {
            times.push(took[1], took[0]);
        }
    }
    times.report("good ones with silent ones among them", "without", 1.2);
    drop(silent);
}
