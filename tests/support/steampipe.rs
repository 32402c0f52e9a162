//! A gateway with the stand-ins for two of Steampipe's wrappers.

use std::path::PathBuf;

use spcd_core::sql;

use super::{Cluster, fresh_dir, give_to_server, query};

/// The role by which a hub reads a gateway.
pub const READER: &str = "spcd_gateway_reader";

/// A server that asks a hub's role for its password, with the wrappers `steampipe_a` and
/// `steampipe_b`.
///
/// # Panics
/// When their libraries were not built (`scripts/lib.sh`: `need_c_wrappers`).
pub async fn gateway() -> Cluster {
    gateway_with(&[]).await
}

/// The same with more lines of `postgresql.conf`.
pub async fn gateway_with(conf: &[&str]) -> Cluster {
    let durable = ["synchronous_commit = on", "fsync = on"];
    let server = Cluster::start(&[&durable, conf].concat());
    let hba = format!("host all {READER} all scram-sha-256\nhost all all all trust\n");
    server.write("pg_hba.conf", &hba);
    server.reload();
    install(&server.url("postgres")).await;
    server
}

/// Makes the wrappers in a database.
pub async fn install(url: &str) {
    query(url, "CREATE EXTENSION ltree").await;
    for name in ["steampipe_a", "steampipe_b"] {
        let built = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../target/wrappers")
            .join(format!("{name}.so"));
        // The server's user may not reach the directory of the sources.
        let library = fresh_dir(name).join(format!("{name}.so"));
        std::fs::copy(&built, &library)
            .unwrap_or_else(|error| panic!("{}: {error} (scripts/test.sh)", built.display()));
        give_to_server(&library);
        let library = sql::literal(library.to_str().unwrap());
        let create = format!(
            "CREATE FUNCTION public.{name}_handler() RETURNS fdw_handler LANGUAGE C STRICT
                 AS {library}, 'steampipe_handler';
             CREATE FUNCTION public.{name}_validator(text[], oid) RETURNS void LANGUAGE C STRICT
                 AS {library}, 'steampipe_validator';
             CREATE FOREIGN DATA WRAPPER {name} HANDLER public.{name}_handler
                 VALIDATOR public.{name}_validator"
        );
        query(url, &create).await;
    }
}

/// A plugin for each of the wrappers, as the rule for Steampipe's plugins has them.
pub fn plugins() -> String {
    ["a", "b"]
        .map(|name| {
            format!(
                "plugin \"{name}\" {{\n  extension = \"plpgsql\"\n  wrapper = \"steampipe_{name}\"\n  \
                 body = \"config\"\n  probe = \"none\"\n  requires = [\"ltree\"]\n  gateway = true\n}}\n"
            )
        })
        .concat()
}

/// A connection of one of them.
pub fn connection(name: &str, plugin: &str, body: &str) -> String {
    format!("connection \"{name}\" {{\n  plugin = \"{plugin}\"\n  {body}\n}}\n")
}
