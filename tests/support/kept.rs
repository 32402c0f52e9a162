//! A database that spcd keeps, without a daemon: the tests publish what a daemon would.

use serde_json::{Value, json};
use tokio_postgres::Client;

use super::{Database, Spcd, connect, shared};

/// A database with spcd's own schema in it.
pub async fn kept() -> Database {
    let database = shared().database().await;
    migrate(&database.url);
    database
}

/// Makes spcd's own schema in a database.
pub fn migrate(url: &str) {
    let migrate = Spcd::new(url).spcd(&["migrate"]);
    assert_eq!(migrate.code, 0, "{}", migrate.stderr);
}

/// One transaction as the daemon's: statements, and the states that go with them.
pub async fn publish(url: &str, sql: &str, changes: Value) {
    publish_on(&connect(url).await.unwrap(), sql, changes).await;
}

/// The same on a session that is there already, which saves connecting.
pub async fn publish_on(session: &Client, sql: &str, changes: Value) {
    let changes = spcd_core::sql::literal(&changes.to_string());
    let batch =
        format!("BEGIN; {sql}; SELECT spcd.publish(nextval('spcd.generation'), {changes}); COMMIT");
    if let Err(error) = session.batch_execute(&batch).await {
        panic!("{batch}: {error:?}");
    }
}

/// A change of one connection.
pub fn to(name: &str, route: &[&str]) -> Value {
    json!({"name": name, "route": route})
}

/// A database in which connections of these names are yet to be made.
pub async fn pending(names: &[&str]) -> Database {
    let hub = kept().await;
    let changes = names.iter().map(|name| to(name, &["pending"])).collect();
    publish(&hub.url, "", changes).await;
    hub
}

/// The schema and a table of a connection, and that it is ready.
pub async fn load(url: &str, name: &str) {
    let schema = spcd_core::sql::ident(name);
    let sql = format!(
        "CREATE SCHEMA {schema}; CREATE TABLE {schema}.t (id integer); INSERT INTO {schema}.t VALUES (1)"
    );
    publish(url, &sql, json!([to(name, &["updating", "ready"])])).await;
}
