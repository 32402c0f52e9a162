//! The role that the daemon connects as: a superuser, or the ordinary role that `SPCD_TEST_ROLE` names.
//!
//! With that variable set, the same tests run with a daemon whose role is no superuser. It owns the
//! database, may use the wrappers, and has CREATEROLE. postgres_fdw then refuses sources that ask for
//! no password, so each database gets a role of its own that must give one. What a test itself asks
//! the servers, it goes on asking as a superuser.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use spcd_core::sql::{ident, literal};

use super::postgres::{Database, bindir, shared};
use super::query;
use super::run::as_server_user;

/// The password of every source until a test changes it.
const PASSWORD: &str = "hunter2hunter2";

/// Members of this role must give a password over TCP.
const SOURCES: &str = "sources";

/// The role without superuser rights that the daemon shall connect as, if there is to be one.
pub fn ordinary() -> Option<String> {
    std::env::var("SPCD_TEST_ROLE")
        .ok()
        .filter(|role| !role.is_empty())
}

/// The URL by which the daemon reaches a hub of which this is the superuser's URL.
pub fn for_daemon(url: &str) -> String {
    match ordinary() {
        Some(role) => url.replacen("://postgres@", &format!("://{role}@"), 1),
        None => url.to_owned(),
    }
}

/// Statements that make a database.
pub fn create_database(name: &str) -> Vec<String> {
    let Some(role) = ordinary() else {
        return vec![format!("CREATE DATABASE {name}")];
    };
    vec![
        format!("CREATE DATABASE {name} OWNER {}", ident(&role)),
        format!(
            "CREATE ROLE {name} LOGIN SUPERUSER IN ROLE {SOURCES} PASSWORD {}",
            literal(PASSWORD)
        ),
    ]
}

/// The attributes by which a connection logs in to a database as a source, of which a test may
/// have written the password itself.
pub fn login(source: &Database, more: &str) -> String {
    if ordinary().is_none() {
        return "  user   = \"postgres\"\n".to_owned();
    }
    let user = format!("  user   = \"{}\"\n", source.name);
    if more.contains("password") {
        return user;
    }
    format!("{user}  password = \"{PASSWORD}\"\n")
}

/// Changes the password of a database of the shared cluster, if it asks for one; `None` gives back
/// the first one.
pub async fn change_password(source: &Database, password: Option<&str>) {
    if ordinary().is_some() {
        let password = literal(password.unwrap_or(PASSWORD));
        let change = format!("ALTER ROLE {} PASSWORD {password}", source.name);
        query(&shared().url("postgres"), &change).await;
    }
}

/// Lets the daemon's role act as other roles of the hub and, since Postgres 16, change their settings.
pub async fn grant_to_daemon(hub: &str, roles: &[&str]) {
    let Some(ordinary) = ordinary() else {
        return;
    };
    for role in roles {
        let grant = format!(
            "GRANT {} TO {} WITH ADMIN OPTION",
            ident(role),
            ident(&ordinary)
        );
        query(hub, &grant).await;
    }
}

/// Prepares a data directory that is copied for each server: makes the ordinary role, and what a
/// superuser has to make for it.
pub fn prepare(data: &Path) {
    let Some(role) = ordinary() else {
        return;
    };
    let role = ident(&role);
    let hba = data.join("pg_hba.conf");
    let open = fs::read_to_string(&hba).unwrap();
    let asks = format!("host all +{SOURCES} all scram-sha-256\n{open}");
    fs::write(&hba, asks).unwrap();
    let statements = [
        &format!("CREATE ROLE {role} LOGIN CREATEROLE"),
        &format!("CREATE ROLE {SOURCES}"),
        &format!("GRANT pg_read_server_files TO {role}"),
        &format!("ALTER DATABASE postgres OWNER TO {role}"),
        "CREATE EXTENSION postgres_fdw",
        "CREATE EXTENSION file_fdw",
        &format!("GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw, file_fdw TO {role}"),
    ];
    let mut server = Command::new(bindir().join("postgres"));
    server
        .args(["--single", "-j", "-D"])
        .arg(data)
        .arg("template1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut server = as_server_user(&mut server).spawn().unwrap();
    let mut input = server.stdin.take().unwrap();
    input
        .write_all((statements.join(";\n\n") + ";\n\n").as_bytes())
        .unwrap();
    drop(input);
    assert!(server.wait().unwrap().success());
}
