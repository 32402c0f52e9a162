//! The wrappers of tests/wrappers that share a server process with no other of their kind.

use std::path::PathBuf;

use spcd_core::sql;

use super::{fresh_dir, give_to_server, query};

/// Makes the wrappers `alone_a` and `alone_b` in a hub's database, each from a session of its own.
///
/// # Panics
/// When their libraries were not built (`scripts/lib.sh`: `need_c_wrappers`).
pub async fn wrappers(hub: &str) {
    for name in ["alone_a", "alone_b"] {
        let dir = fresh_dir(name);
        let built = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../target/wrappers")
            .join(format!("{name}.so"));
        // The server's user may not reach the directory of the sources.
        let library = dir.join(format!("{name}.so"));
        std::fs::copy(&built, &library)
            .unwrap_or_else(|error| panic!("{}: {error} (scripts/test.sh)", built.display()));
        give_to_server(&library);
        let library = sql::literal(library.to_str().unwrap());
        let create = format!(
            "CREATE FUNCTION public.{name}_handler() RETURNS fdw_handler LANGUAGE C STRICT
                 AS {library}, 'alone_handler';
             CREATE FUNCTION public.{name}_validator(text[], oid) RETURNS void LANGUAGE C STRICT
                 AS {library}, 'alone_validator';
             CREATE FOREIGN DATA WRAPPER {name} HANDLER public.{name}_handler
                 VALIDATOR public.{name}_validator"
        );
        query(hub, &create).await;
    }
}

/// A plugin for each of the wrappers, whose connections are asked each for itself.
pub fn plugins() -> String {
    ["alone_a", "alone_b"]
        .map(|name| {
            format!(
                "plugin \"{name}\" {{\n  extension = \"plpgsql\"\n  wrapper = \"{name}\"\n  \
                 server = [\"crash\", \"other\"]\n  public = [\"crash\", \"other\"]\n  \
                 schema_mode = \"dynamic\"\n}}\n"
            )
        })
        .concat()
}

/// A connection of one of them; its import ends the server process while the file `crash` exists.
pub fn connection(name: &str, wrapper: &str, crash: &str, other: &str) -> String {
    format!(
        "connection \"{name}\" {{\n  plugin = \"{wrapper}\"\n  crash = \"{crash}\"\n  \
         other = \"{other}\"\n}}\n"
    )
}
