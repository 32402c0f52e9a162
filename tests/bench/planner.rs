//! The pure part alone, at sizes beyond one hub: files loaded, passes planned, tables compared.

use std::time::{Duration, Instant};

use spcd_core::config::{Cache, DesiredState, LoadContext, SourceFile, load};
use spcd_core::diff::{Blockers, Column, Table};
use spcd_core::observed::{
    Applied, ConfigSnapshot, Detail, Extension, Observed, ObservedConnection,
};
use spcd_core::planner::{self, Import, Plan, Reason, Running, Task};
use spcd_core::remote_schema::RemoteSchema;
use spcd_protocol::Status;

use crate::language;
use crate::measure::{scaled, seconds};

const TABLES: usize = 50;
const COLUMNS: usize = 10;
const AIM: Duration = Duration::from_secs(2);
const AIM_MEGABYTES: u64 = 4096;

/// `planner`: load, plan and compare, without a database.
pub fn run() {
    let all = scaled(100_000);
    let tables = all * TABLES;
    println!("## the planner alone: {all} connections, {tables} tables of {COLUMNS} columns");
    let text: String = (0..all).map(language::connection).collect();
    let source = SourceFile {
        path: "/conf.d/all.spc".to_owned(),
        text: Ok(text),
    };
    let files = [source];
    let mut cache = Cache::default();
    let mut load_files = || {
        let mut context = LoadContext {
            lookup: None,
            has_gateway: false,
        };
        load(&files, &mut context, &mut cache).desired
    };
    timed("the files, first load", None, &mut load_files);
    let desired = timed("the files, unchanged", None, &mut load_files);

    let mut observed = Observed {
        admitted: true,
        ..Observed::default()
    };
    observed
        .extensions
        .insert("postgres_fdw".to_owned(), Extension::Installed);
    let plan = |observed: &Observed| planner::plan(&desired, observed, &Running::default());
    let new = timed("a plan, all new", Some(AIM), || plan(&observed));
    assert_eq!(new.work.len(), all);
    let remote = RemoteSchema::from(tables_of_one());
    let created = timed("all tables, new: their statements", None, || {
        statements(&new, &remote)
    });
    assert!(created > tables);
    record_all(&desired, &mut observed);
    let same = timed("a plan, nothing differs", Some(AIM), || plan(&observed));
    assert_eq!(same.work.len(), 0);
    let altered = timed("all tables, compared with their sources", None, || {
        compared(&new, &observed, &remote)
    });
    assert_eq!(altered, 0);
    let peak = peak_megabytes();
    let missed = if peak > AIM_MEGABYTES { " MISSED" } else { "" };
    println!("memory, at most: {peak} MB (aim: at most {AIM_MEGABYTES} MB){missed}");
}

/// Prints what a part took.
fn timed<T>(what: &str, aim: Option<Duration>, run: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = run();
    let took = began.elapsed();
    let missed = if aim.is_some_and(|aim| took > aim) {
        " MISSED"
    } else {
        ""
    };
    let aim = aim.map_or_else(String::new, |aim| {
        format!(" (aim: at most {}){missed}", seconds(aim))
    });
    println!("{what}: {}{aim}", seconds(took));
    result
}

fn tables_of_one() -> Vec<Table> {
    let column = |n: usize| Column {
        name: format!("column_{n}"),
        data_type: "text".to_owned(),
        ..Column::default()
    };
    let table = |n: usize| {
        let name = format!("table_{n}");
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Table {
            columns: (0..COLUMNS).map(column).collect(),
            options: [option("schema_name", "public"), option("table_name", &name)].into(),
            name,
            attribute_count: COLUMNS,
            ..Table::default()
        }
    };
    (0..TABLES).map(table).collect()
}

/// Records every connection as applied.
fn record_all(desired: &DesiredState, observed: &mut Observed) {
    for (name, connection) in &desired.connections {
        let known = ObservedConnection {
            status: Status::Ready,
            error: None,
            warnings: Vec::new(),
            comments_set: true,
            written: ConfigSnapshot::of(connection),
            schema_hash: Some("hash".to_owned()),
            applied: Some(Applied::complete(connection.target_hash())),
            waits_for: None,
        };
        observed.connections.insert(name.clone(), known);
    }
}

fn imports(plan: &Plan) -> impl Iterator<Item = (&str, &Import)> {
    plan.work.iter().filter_map(|work| match &work.task {
        Task::Import(import) => Some((work.name.as_str(), &**import)),
        _ => None,
    })
}

/// Writes the statements of all connections, one after the other, and returns their number.
fn statements(plan: &Plan, remote: &RemoteSchema) -> usize {
    let of_one = |(name, import)| {
        let (detail, blockers) = (Detail::default(), Blockers::default());
        let unit =
            planner::resolve_import(name, Status::Pending, import, &detail, remote, &blockers);
        let unit = unit.unwrap().unwrap();
        let chunks = unit.chunks.iter().map(|chunk| chunk.sql.as_str());
        let all = chunks.chain([unit.sql.as_str()]);
        all.map(|sql| sql.matches(";\n").count()).sum::<usize>()
    };
    imports(plan).map(of_one).sum()
}

/// Compares the tables of all connections with the answers of their sources, one after the other.
/// Returns the number of connections that differ.
fn compared(plan: &Plan, observed: &Observed, remote: &RemoteSchema) -> usize {
    let tables = tables_of_one();
    let differs = |(name, import): &(&str, &Import)| {
        let mut import = Import::clone(import);
        import.reason = Reason::Refresh;
        import
            .applied
            .clone_from(&observed.connections[*name].applied);
        let detail = Detail {
            tables: tables.clone(),
            ..Detail::default()
        };
        let blockers = Blockers::default();
        let unit =
            planner::resolve_import(name, Status::Ready, &import, &detail, remote, &blockers);
        unit.unwrap()
            .is_some_and(|unit| unit.chunks.iter().any(|chunk| !chunk.sql.is_empty()))
    };
    imports(plan).filter(differs).count()
}

/// The largest resident size of this process so far.
fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    kilobytes.unwrap().parse::<u64>().unwrap() / 1024
}
