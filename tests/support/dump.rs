//! Dump of a database, and its restoration into another one.

use std::fs;
use std::process::Command;

use super::postgres::{Database, bindir};
use super::run::fresh_dir;

/// Dumps a database with `pg_dump`, and restores it into an empty one with `psql`.
///
/// # Panics
/// When one of the programs fails.
pub fn restore(from: &Database, into: &Database) {
    let dump = Command::new(bindir().join("pg_dump"))
        .arg(&from.url)
        .output()
        .unwrap();
    assert!(dump.status.success(), "{dump:?}");
    let script = fresh_dir("dump").join("dump.sql");
    fs::write(&script, dump.stdout).unwrap();
    let restored = Command::new(bindir().join("psql"))
        .args(["--no-psqlrc", "--quiet", "--file"])
        .arg(&script)
        .arg(&into.url)
        .output()
        .unwrap();
    assert!(restored.status.success(), "{restored:?}");
}
