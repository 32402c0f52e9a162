//! Every wrapper that ships with a definition, against the real one; and wrappers without a
//! shipped definition.

mod mysql_types;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use spcd_core::plugin::{PluginDefinition, shipped_definitions};
use spcd_core::sql;

use crate::support::hub::{columns, postgres, until, until_error};
use crate::support::mariadb::{MariaDb, mysql};
use crate::support::{Cluster, Spcd, fresh_dir, query, server_user_name, shared, try_query, value};

/// A hub with a reader: a member of `spcd_users` and nothing more.
async fn hub_with_reader() -> (Cluster, String, String) {
    let cluster = Cluster::start(&[]);
    let hub = cluster.database().await;
    query(
        &hub.url,
        "CREATE ROLE spcd_users; CREATE ROLE reader LOGIN IN ROLE spcd_users",
    )
    .await;
    let reader = cluster.url_as("reader", &hub.name);
    (cluster, hub.url, reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_reads_a_mariadb() {
    let source = MariaDb::start();
    source.run(
        "CREATE DATABASE shop CHARACTER SET utf8mb4; USE shop;
         CREATE TABLE customer (id int PRIMARY KEY, name varchar(40) NOT NULL, born date,
             vip tinyint(1), balance decimal(10,2), kind enum('person','firm'), note longtext,
             seen datetime);
         INSERT INTO customer VALUES
             (1, 'Zoë', '1990-02-03', 1, 12.50, 'person', 'a\\nb', '2024-05-06 07:08:09'),
             (2, 'ACME', NULL, 0, NULL, 'firm', NULL, NULL);
         CREATE TABLE `order items` (`line no` int, `wert` varchar(10));
         CREATE TABLE place (id int, at geometry);
         CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'hunter2hunter2';
         GRANT SELECT ON shop.* TO reader@'127.0.0.1'",
    );
    let (_cluster, hub, reader) = hub_with_reader().await;
    let connection = |name: &str, password: &str| {
        let more = format!("  user     = \"reader\"\n  password = env(\"{password}\")\n");
        mysql(name, source.port(), &more)
    };
    let mut spcd = Spcd::new(&hub);
    spcd.env("GOOD", "hunter2hunter2").env("BAD", "swordfish");
    spcd.write("a.spc", &connection("shop", "GOOD"));
    spcd.write("b.spc", &connection("locked", "BAD"));
    spcd.start();
    until(&hub, &["locked error", "shop ready"]).await;
    assert_eq!(
        columns(&hub, "shop.customer").await,
        [
            "id integer",
            "name character varying(40)",
            "born date",
            "vip smallint",
            "balance numeric",
            "kind text",
            "note text",
            "seen timestamp without time zone",
        ]
    );
    let rows = "SELECT name, born, balance, kind, note, seen FROM shop.customer ORDER BY id";
    assert_eq!(
        query(&reader, rows).await,
        [
            [
                "Zoë",
                "1990-02-03",
                "12.50",
                "person",
                "a\nb",
                "2024-05-06 07:08:09"
            ],
            ["ACME", "", "", "firm", "", ""],
        ]
    );
    let odd = "SELECT count(\"line no\") FROM shop.\"order items\"";
    assert_eq!(value(&reader, odd).await, "0");
    // A type that Postgres does not know costs its table only.
    let warnings =
        "SELECT warnings::text FROM spcd.connection_state WHERE connection_name = 'shop'";
    let warnings = value(&hub, warnings).await;
    assert!(
        warnings.contains("place") && warnings.contains("geometry"),
        "{warnings}"
    );
    // The password is in the mapping alone, which the reader does not see.
    let seen = "SELECT string_agg(srvoptions::text, '') FROM pg_foreign_server";
    assert!(!value(&hub, seen).await.contains("hunter2"));
    let mapping = "SELECT count(umoptions) FROM pg_user_mappings WHERE srvname = 'shop'";
    assert_eq!(value(&reader, mapping).await, "0");
    let error = until_error(&hub, "locked", "Access denied").await;
    assert!(!error.contains("swordfish"), "{error}");

    source.run(
        "USE shop; ALTER TABLE customer ADD COLUMN added bigint, DROP COLUMN note;
         DROP TABLE `order items`; CREATE TABLE fresh (x json)",
    );
    assert_eq!(spcd.spcd(&["refresh", "shop", "--wait"]).code, 0);
    let tables = "SELECT string_agg(relname, ' ' ORDER BY relname COLLATE \"C\") FROM pg_class
                  WHERE relnamespace = 'shop'::regnamespace";
    assert_eq!(value(&hub, tables).await, "customer fresh");
    let columns = columns(&hub, "shop.customer").await;
    assert!(columns.contains(&"added bigint".to_owned()), "{columns:?}");
    assert!(!columns.iter().any(|column| column.starts_with("note ")));
    spcd.stop();
    for secret in ["hunter2", "swordfish"] {
        assert!(!spcd.log().contains(secret));
    }
}

/// A GeoPackage with a layer of towns and one of trees.
fn geopackage(dir: &Path) -> PathBuf {
    let path = dir.join("städte & more.gpkg");
    let feature = |properties: &str| {
        format!(
            r#"{{"type":"Feature","properties":{{{properties}}},"geometry":{{"type":"Point","coordinates":[13.4,52.5]}}}}"#
        )
    };
    for (layer, properties) in [
        (
            "towns",
            r#""name":"Köln","people":1087863,"area":405.2,"founded":"1881-03-04""#,
        ),
        ("Alte Bäume", r#""art":"Linde""#),
    ] {
        let json = dir.join("layer.json");
        let text = format!(
            r#"{{"type":"FeatureCollection","features":[{}]}}"#,
            feature(properties)
        );
        std::fs::write(&json, text).unwrap();
        let output = Command::new("ogr2ogr")
            .args(["-f", "GPKG", "-update", "-append", "-nln", layer])
            .args([&path, &json])
            .output()
            .expect("ogr2ogr (apt-get install gdal-bin)");
        assert!(output.status.success(), "{output:?}");
    }
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn ogr_reads_a_geopackage() {
    let (_cluster, hub, reader) = hub_with_reader().await;
    let mut spcd = Spcd::new(&hub);
    let file = geopackage(&spcd.config_dir());
    // A relative path begins at the directory of the file it is written in.
    std::fs::create_dir(spcd.config_dir().join("maps")).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let closed = crate::support::free_port();
    spcd.write(
        "maps/a.spc",
        &format!(
            "connection \"maps\" {{\n  plugin = \"ogr\"\n  datasource = \"../{name}\"\n  format = \"GPKG\"\n}}\n\
             connection \"towns\" {{\n  plugin = \"ogr\"\n  datasource = \"../{name}\"\n  layers = \"to\"\n}}\n\
             connection \"none\" {{\n  plugin = \"ogr\"\n  datasource = \"../{name}\"\n  layers = \"village\"\n}}\n\
             connection \"nowhere\" {{\n  plugin = \"ogr\"\n  datasource = \"nowhere.gpkg\"\n}}\n\
             connection \"url\" {{\n  plugin = \"ogr\"\n  datasource = \"/vsicurl/http://me:hunter2@127.0.0.1:{closed}/x.gpkg\"\n}}\n\
             connection \"driver\" {{\n  plugin = \"ogr\"\n  datasource = \"PG:host=127.0.0.1 port={closed} password=hunter2\"\n}}\n"
        ),
    );
    spcd.start();
    let wanted = [
        "driver error",
        "maps ready",
        "none ready",
        "nowhere error",
        "towns ready",
        "url error",
    ];
    until(&hub, &wanted).await;
    // A path may be shown, but not what may hold a password.
    until_error(&hub, "nowhere", "maps/nowhere.gpkg").await;
    for (name, part) in [("url", "***"), ("driver", "127.0.0.1")] {
        let error = until_error(&hub, name, part).await;
        assert!(!error.contains("hunter2"), "{error}");
    }
    let warned = "SELECT warnings[1] FROM spcd.connection_state WHERE connection_name = 'none'";
    assert_eq!(
        value(&hub, warned).await,
        "no layer of the source has a name that begins with \"village\" (attribute `layers`)"
    );
    let tables =
        "SELECT string_agg(relnamespace::regnamespace::text || '.' || relname, ' ' ORDER BY 1)
                  FROM pg_class WHERE relkind = 'f'";
    let tables = value(&hub, tables).await;
    assert!(
        tables.contains("maps.towns") && tables.contains("towns.towns"),
        "{tables}"
    );
    assert_eq!(tables.split(' ').count(), 3, "{tables}");
    assert_eq!(
        columns(&hub, "maps.towns").await,
        [
            "fid bigint",
            "geom bytea",
            "name character varying",
            "people integer",
            "area double precision",
            "founded date",
        ]
    );
    let row = "SELECT name, people, area, founded, length(geom) > 0 FROM maps.towns";
    assert_eq!(
        query(&reader, row).await,
        [["Köln", "1087863", "405.2", "1881-03-04", "t"]]
    );
    spcd.stop();
}

/// A wrapper without a definition: postgres_fdw's functions under another name.
async fn unheard_of(hub: &str) {
    query(
        hub,
        "CREATE EXTENSION postgres_fdw;
         CREATE FOREIGN DATA WRAPPER \"Un\"\"heard of\"
             HANDLER postgres_fdw_handler VALIDATOR postgres_fdw_validator",
    )
    .await;
}

async fn source() -> crate::support::Database {
    let source = shared().database().await;
    query(
        &source.url,
        "CREATE SCHEMA s; CREATE TABLE s.t (id integer, \"Odd name\" text); INSERT INTO s.t VALUES (7, 'x')",
    )
    .await;
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn fdw_takes_any_wrapper_with_its_options_as_they_are() {
    let (hub, source) = (shared().database().await, source().await);
    unheard_of(&hub.url).await;
    let mut spcd = Spcd::new(&hub.url);
    let text = |option: &str| {
        format!(
            "connection \"any\" {{\n  plugin = \"fdw\"\n  extension = \"postgres_fdw\"\n  \
             wrapper = \"Un\\\"heard of\"\n  schema = \"s\"\n  column_name = \"column_name\"\n  server {{\n    \
             host = \"127.0.0.1\"\n    port = {}\n    dbname = \"{}\"\n    {option}\n  }}\n  \
             mapping {{\n    user = \"postgres\"\n    password = \"hunter2hunter2\"\n  }}\n}}\n",
            shared().port(),
            source.name
        )
    };
    spcd.write("a.spc", &text("fetch_size = 7"));
    spcd.start();
    until(&hub.url, &["any ready"]).await;
    assert_eq!(
        query(&hub.url, "SELECT id, \"Odd name\" FROM \"any\".t").await,
        [["7", "x"]]
    );
    let of_server = "SELECT fdwname || array_to_string(srvoptions, ',') FROM pg_foreign_server s
                     JOIN pg_foreign_data_wrapper w ON w.oid = srvfdw";
    let server = value(&hub.url, of_server).await;
    assert!(server.starts_with("Un\"heard of"), "{server}");
    assert!(server.contains("fetch_size=7"), "{server}");
    assert!(!server.contains("hunter2"), "{server}");
    // What the wrapper refuses, it says itself; what was there stays.
    spcd.write("a.spc", &text("fetch_size = 7\n    speed = \"warp\""));
    until(&hub.url, &["any error"]).await;
    let error = until_error(&hub.url, "any", "invalid option \"speed\"").await;
    assert!(!error.contains("warp"), "{error}");
    assert_eq!(value(&hub.url, "SELECT id FROM \"any\".t").await, "7");
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_definition_for_an_unknown_wrapper() {
    let (hub, source) = (shared().database().await, source().await);
    unheard_of(&hub.url).await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "plugins.spc",
        "plugin \"mine\" {\n  extension = \"postgres_fdw\"\n  wrapper = \"Un\\\"heard of\"\n  \
         server = { address = \"host\", port = \"port\", base = \"dbname\", speed = \"speed\" }\n  \
         mapping = [\"user\", \"password\"]\n  public = [\"address\", \"base\"]\n  required = [\"base\"]\n  \
         defaults = { fetch_size = 9 }\n  schema_attribute = \"area\"\n  schema_mode = \"dynamic\"\n  \
         column_name = \"column_name\"\n  since = { speed = \"version 99\" }\n}\n",
    );
    let connection = |name: &str, more: &str| {
        format!(
            "connection \"{name}\" {{\n  plugin = \"mine\"\n  address = \"127.0.0.1\"\n  port = {}\n  \
             area = \"s\"\n  user = \"postgres\"\n{more}\n}}\n",
            shared().port()
        )
    };
    let base = format!("  base = \"{}\"", source.name);
    spcd.write(
        "a.spc",
        &[
            connection("good", &base),
            connection("fast", &format!("{base}\n  speed = \"warp\"")),
            connection("baseless", ""),
            connection("typing", &format!("{base}\n  adress = \"x\"")),
        ]
        .concat(),
    );
    spcd.start();
    let wanted = ["baseless error", "fast error", "good ready", "typing error"];
    until(&hub.url, &wanted).await;
    assert_eq!(
        value(&hub.url, "SELECT \"Odd name\" FROM good.t").await,
        "x"
    );
    let options =
        "SELECT array_to_string(srvoptions, ',') FROM pg_foreign_server WHERE srvname = 'good'";
    assert!(value(&hub.url, options).await.contains("fetch_size=9"));
    until_error(&hub.url, "baseless", "`mine` needs the attribute `base`").await;
    until_error(&hub.url, "typing", "did you mean `address`?").await;
    until_error(&hub.url, "fast", "`speed` needs version 99 or later").await;
    let shown = spcd.spcd(&["check", "--json"]).stdout;
    assert!(
        shown.contains("\"base\"") && shown.contains(&source.name),
        "{shown}"
    );
    spcd.stop();
}

/// A stand-in for a Steampipe extension: it takes any option, and its tables are postgres_fdw's.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_becomes_an_option_and_one_set_of_tables_serves_all() {
    let cluster = Cluster::start(&[]);
    let (hub, source) = (cluster.database().await, cluster.database().await);
    // Without a user mapping's option, libpq takes the name of the one who runs the server.
    let user = server_user_name();
    query(
        &hub.url,
        &format!(
            "DO $$ BEGIN CREATE ROLE {user} SUPERUSER LOGIN; EXCEPTION WHEN duplicate_object THEN END $$;
             CREATE EXTENSION postgres_fdw;
             CREATE FOREIGN DATA WRAPPER likewise HANDLER postgres_fdw_handler NO VALIDATOR",
            user = sql::ident(&user)
        ),
    )
    .await;
    query(
        &source.url,
        "CREATE TABLE account (id integer); INSERT INTO account VALUES (3)",
    )
    .await;
    let mut spcd = Spcd::new(&hub.url);
    spcd.write(
        "plugins.spc",
        &format!(
            "plugin \"cloud\" {{\n  extension = \"postgres_fdw\"\n  wrapper = \"likewise\"\n  body = \"config\"\n  \
             public = [\"regions\"]\n  schema_mode = \"static\"\n  \
             defaults = {{ host = \"127.0.0.1\", port = {}, dbname = \"{}\" }}\n}}\n",
            cluster.port(),
            source.name
        ),
    );
    spcd.write(
        "a.spc",
        "connection \"prod\" {\n  plugin = \"cloud\"\n  regions = [ \"eu-*\", # all\n  \"us\" ]\n}\n\
         connection \"test\" {\n  plugin = \"cloud\"\n}\n\
         connection \"keys\" {\n  plugin = \"cloud\"\n  token = \"hunter2hunter2\"\n}\n\
         connection \"seen\" {\n  plugin = \"cloud\"\n  retry {\n    times = 3\n  }\n  token = \"a\\\"b\"\n  \
         allow_visible_secrets = true\n}\n",
    );
    spcd.start();
    let wanted = ["keys error", "prod ready", "seen ready", "test ready"];
    until(&hub.url, &wanted).await;
    let config = |name: &str| {
        format!(
            "SELECT option_value FROM pg_foreign_server, pg_options_to_table(srvoptions)
             WHERE srvname = '{name}' AND option_name = 'config'"
        )
    };
    assert_eq!(
        value(&hub.url, &config("prod")).await,
        "regions = [\"eu-*\", \"us\"]\n"
    );
    assert_eq!(
        value(&hub.url, &config("seen")).await,
        "token = \"a\\\"b\"\nretry {\n  times = 3\n}\n"
    );
    assert!(query(&hub.url, &config("test")).await.is_empty());
    // The wrapper takes a connection's name from the schema of its tables: they are where the
    // name says, whichever schema they were asked into.
    for name in ["prod", "test", "seen"] {
        assert_eq!(
            value(&hub.url, &format!("SELECT id FROM {name}.account")).await,
            "3"
        );
    }
    let modes = "SELECT DISTINCT schema_mode FROM spcd.connection_state WHERE status = 'ready'";
    assert_eq!(query(&hub.url, modes).await, [["static"]]);
    let error = until_error(&hub.url, "keys", "allow_visible_secrets = true").await;
    assert!(!error.contains("hunter2"), "{error}");
    spcd.stop();
    assert!(!cluster.log().contains("hunter2") && !spcd.log().contains("hunter2"));
}

/// A value of the kind that an option takes.
fn value_for(option: &str, datasource: &str) -> String {
    let value = match option {
        "datasource" => datasource,
        "format" => "GPKG",
        "msg_handler" => "notice",
        "row_estimate_method" => "execute",
        "extensions" => "postgres_fdw",
        "options" => "-c jit=off",
        "host" | "hostaddr" | "servername" => "127.0.0.1",
        "port" => "4711",
        "tds_version" => "7.4",
        "config_options" => "GDAL_CACHEMAX=64",
        "open_options" => "LIST_ALL_TABLES=YES",
        "fetch_size" | "batch_size" | "fdw_startup_cost" | "fdw_tuple_cost" => "10",
        flag if [
            "able",
            "reconnect",
            "secure_auth",
            "keep_connections",
            "async_capable",
        ]
        .iter()
        .any(|part| flag.ends_with(part))
            || flag.starts_with("parallel_")
            || flag == "use_remote_estimate" =>
        {
            "true"
        }
        _ => "1",
    };
    value.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrappers_take_every_option_that_their_definitions_offer() {
    let hub = shared().database().await;
    let dir = fresh_dir("maps");
    let file = geopackage(&dir);
    let file = file.to_str().unwrap();
    for name in ["postgres", "mysql", "mssql", "ogr"] {
        let definition: &PluginDefinition = &shipped_definitions()[name];
        query(
            &hub.url,
            &format!("CREATE EXTENSION {}", sql::ident(&definition.extension)),
        )
        .await;
        let mut options: Vec<_> = definition.server.iter().collect();
        let offered: Vec<&String> = definition
            .defaults
            .keys()
            .chain(definition.ask_options.keys())
            .collect();
        options.extend(offered.into_iter().map(|option| (option, option)));
        for (attribute, option) in options {
            let mut with: BTreeMap<String, String> = BTreeMap::new();
            if name == "ogr" {
                with.insert("datasource".into(), value_for("datasource", file));
            }
            with.insert(option.clone(), value_for(option, file));
            let text = sql::create_server("tried", &definition.wrapper, &with);
            let tried = try_query(&hub.url, &format!("{text}DROP SERVER tried")).await;
            let refused = tried
                .err()
                .map(|error| format!("{:?}", error.as_db_error()));
            // An older wrapper may refuse what the definition says is newer.
            if refused.is_some() && definition.since.contains_key(attribute) {
                continue;
            }
            assert!(refused.is_none(), "{name}: {attribute}: {refused:?}");
        }
        for (attribute, option) in &definition.mapping {
            let mut text = "CREATE SERVER tried FOREIGN DATA WRAPPER ".to_owned()
                + &sql::ident(&definition.wrapper);
            if name == "ogr" {
                text.push_str(&format!(" OPTIONS (datasource {})", sql::literal(file)));
            }
            let setting = match option.as_str() {
                "password_required" => "false",
                _ => "x",
            };
            text.push_str(&format!(
                "; CREATE USER MAPPING FOR PUBLIC SERVER tried OPTIONS ({} '{setting}'); DROP SERVER tried CASCADE",
                sql::ident(option)
            ));
            let tried = try_query(&hub.url, &text).await;
            let refused = tried
                .err()
                .map(|error| format!("{:?}", error.as_db_error()));
            assert!(refused.is_none(), "{name}: {attribute}: {refused:?}");
        }
    }
}

/// tds_fdw has no server to talk to here; what it can check without one, it does.
#[tokio::test(flavor = "multi_thread")]
async fn mssql_is_what_tds_fdw_takes() {
    let (hub, good) = (shared().database().await, source().await);
    let mut spcd = Spcd::new(&hub.url);
    let closed = crate::support::free_port();
    let connection = |name: &str, more: &str| {
        format!(
            "connection \"{name}\" {{\n  plugin = \"mssql\"\n  host = \"127.0.0.1\"\n  port = {closed}\n  \
             database = \"erp\"\n  user = \"reader\"\n  password = \"hunter2hunter2\"\n{more}}}\n"
        )
    };
    spcd.write(
        "a.spc",
        &[
            connection("erp", ""),
            connection("twice", "  servername = \"other\"\n"),
            connection("method", "  row_estimate_method = \"guess\"\n"),
            postgres("good", &good),
        ]
        .concat(),
    );
    spcd.start();
    until(
        &hub.url,
        &["erp error", "good ready", "method error", "twice error"],
    )
    .await;
    // It has taken server and mapping, and got as far as the network.
    let error = until_error(&hub.url, "erp", "DB-Library").await;
    assert!(!error.contains("hunter2"), "{error}");
    until_error(&hub.url, "twice", "`host` and `servername` mean the same").await;
    until_error(&hub.url, "method", "row_estimate_method").await;
    spcd.stop();
}
