//! What most tests ask a hub, and the files they give the daemon.

use super::postgres::{Cluster, Database, shared};
use super::{DEADLINE, Spcd, eventually, query, role, try_query};

/// A `postgres` connection to a database of the shared cluster.
pub fn postgres(name: &str, source: &Database) -> String {
    postgres_with(name, source, "")
}

/// The same with more attributes.
pub fn postgres_with(name: &str, source: &Database, more: &str) -> String {
    format!(
        "connection \"{name}\" {{\n  plugin = \"postgres\"\n  host   = \"127.0.0.1\"\n  \
         port   = {}\n  dbname = \"{}\"\n{}{more}}}\n",
        shared().port(),
        source.name,
        role::login(source, more)
    )
}

/// A database of the shared cluster in which these statements were run.
pub async fn made_by(sql: &str) -> Database {
    let database = shared().database().await;
    query(&database.url, sql).await;
    database
}

/// A plugin whose connections share their tables.
pub const STATIC: &str = r#"
plugin "app" {
  extension   = "postgres_fdw"
  schema_mode = "static"
  column_name = "column_name"
  server      = ["host", "port", "dbname"]
  mapping     = ["user"]
  public      = ["host", "port", "dbname"]
  ask         = { keep_connections = "off" }
}
"#;

/// A daemon whose connections of these names, in byte order, over one source are all ready.
pub async fn serving(hub: &Database, source: &Database, names: &[&str]) -> Spcd {
    let mut spcd = Spcd::new(&hub.url);
    for name in names {
        spcd.write(&format!("{name}.spc"), &postgres(name, source));
    }
    spcd.start();
    let ready: Vec<String> = names.iter().map(|name| format!("{name} ready")).collect();
    let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
    until(&hub.url, &ready).await;
    spcd
}

/// The status of every connection, by name; empty where spcd was never run.
pub async fn statuses(hub: &str) -> Vec<(String, String)> {
    let sql = "SELECT connection_name, status FROM spcd.connection_state ORDER BY 1";
    let rows = try_query(hub, sql).await.unwrap_or_default();
    let text = |cell: &Option<String>| cell.clone().unwrap_or_default();
    rows.iter()
        .map(|row| (text(&row[0]), text(&row[1])))
        .collect()
}

/// Waits until the states are these, given as `name status` in byte order of the names.
///
/// # Panics
/// When they do not become so.
pub async fn until(hub: &str, wanted: &[&str]) {
    let mut last = Vec::new();
    let mut look = async || {
        let rows = statuses(hub).await;
        last = rows
            .iter()
            .map(|(name, status)| format!("{name} {status}"))
            .collect();
        (last == wanted).then_some(())
    };
    let start = std::time::Instant::now();
    while look().await.is_none() {
        if start.elapsed() > DEADLINE {
            let errors = query(
                hub,
                "SELECT connection_name, error, warnings FROM spcd.connection_state",
            )
            .await;
            panic!(
                "waited in vain for {wanted:?}, the last was {:?} {errors:?}",
                statuses(hub).await
            );
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Waits until a connection's error contains a text; returns the whole error.
pub async fn until_error(hub: &str, name: &str, part: &str) -> String {
    let sql = format!(
        "SELECT error FROM spcd.connection_state WHERE status = 'error' AND connection_name = {}",
        spcd_core::sql::literal(name)
    );
    eventually(&format!("{name} says {part:?}"), DEADLINE, || async {
        let rows = try_query(hub, &sql).await.ok()?;
        let error = rows.first()?.first()?.clone()?;
        error.contains(part).then_some(error)
    })
    .await
}

/// Waits until the comments of a connection's source are on its tables: what follows `ready` by
/// itself is then over.
pub async fn until_commented(hub: &str, name: &str) {
    let sql = format!(
        "SELECT comments_set FROM spcd.connection_state WHERE connection_name = {}",
        spcd_core::sql::literal(name)
    );
    eventually(
        &format!("the comments of {name} are set"),
        DEADLINE,
        || async { (super::value(hub, &sql).await == "t").then_some(()) },
    )
    .await;
}

/// The columns of a foreign table, in order, with their types.
pub async fn columns(hub: &str, table: &str) -> Vec<String> {
    let sql = format!(
        "SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    );
    query(hub, &sql).await.concat()
}

/// A source that asks its role `reader` for a password, as sources do, and has one table `t`.
pub async fn guarded(password: &str) -> Cluster {
    let source = Cluster::start(&[]);
    let sql = format!(
        "CREATE ROLE reader LOGIN PASSWORD '{password}'; CREATE TABLE t (id integer);
         GRANT SELECT ON t TO reader; INSERT INTO t VALUES (7)"
    );
    query(&source.url("postgres"), &sql).await;
    let hba = "host all reader all scram-sha-256\nhost all all all trust\n";
    source.write("pg_hba.conf", hba);
    source.reload();
    source
}

/// A `postgres` connection as its `reader`.
pub fn reader(name: &str, port: u16, password: &str) -> String {
    format!(
        "connection \"{name}\" {{\n  plugin   = \"postgres\"\n  host     = \"127.0.0.1\"\n  \
         port     = {port}\n  dbname   = \"postgres\"\n  user     = \"reader\"\n  \
         password = \"{password}\"\n}}\n"
    )
}
