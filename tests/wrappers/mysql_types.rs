//! Values of MySQL that only other types than the wrapper's hold.

use super::hub_with_reader;
use crate::support::hub::{columns, until};
use crate::support::mariadb::{MariaDb, mysql};
use crate::support::{Database, Spcd, query, shared, value};

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_mysql_is_read_as_it_is() {
    let source = MariaDb::start();
    source.run(
        "SET NAMES utf8mb4; CREATE DATABASE shop CHARACTER SET utf8mb4; USE shop;
         CREATE TABLE t (id int PRIMARY KEY, ti tinyint unsigned, si smallint unsigned,
             mi mediumint unsigned, i int unsigned, bi bigint unsigned, plain bigint, yes bit(1),
             b8 bit(8), b64 bit(64), y year, smile varchar(10));
         INSERT INTO t VALUES (1, 255, 65535, 16777215, 4294967295, 18446744073709551615, -1, 1,
             b'10101010', 18446744073709551615, 2026, CONVERT(UNHEX('F09F9880C3BC') USING utf8mb4));
         CREATE TABLE year (y year); INSERT INTO year VALUES (1999);
         CREATE TABLE shape (at geometry);
         CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'x'; GRANT SELECT ON shop.* TO reader@'127.0.0.1'",
    );
    let (_cluster, hub, reader) = hub_with_reader().await;
    let block = mysql(
        "shop",
        source.port(),
        "  user     = \"reader\"\n  password = \"x\"\n",
    );
    let mut spcd = Spcd::new(&hub);
    spcd.write("a.spc", &block);
    spcd.start();
    until(&hub, &["shop ready"]).await;
    assert_eq!(
        columns(&hub, "shop.t").await,
        [
            "id integer",
            "ti smallint",
            "si integer",
            "mi integer",
            "i bigint",
            "bi numeric(20,0)",
            "plain bigint",
            "yes bit(1)",
            "y smallint",
            "smile character varying(10)",
        ]
    );
    let rows = "SELECT ti, si, mi, i, bi, plain, yes, y, smile FROM shop.t";
    let row = [
        "255",
        "65535",
        "16777215",
        "4294967295",
        "18446744073709551615",
        "-1",
        "1",
        "2026",
        "😀ü",
    ];
    assert_eq!(query(&reader, rows).await, [row]);
    for condition in [
        "i = 4294967295",
        "bi = 18446744073709551615",
        "y = 2026",
        "smile = '😀ü'",
    ] {
        let count = format!("SELECT count(*) FROM shop.t WHERE {condition}");
        assert_eq!(value(&reader, &count).await, "1", "{condition}");
    }
    assert_eq!(value(&hub, "SELECT y FROM shop.year").await, "1999");
    let warned = "SELECT unnest(warnings) FROM spcd.connection_state ORDER BY 1";
    let warned = query(&hub, warned).await.concat();
    assert_eq!(warned.len(), 3, "{warned:?}");
    for (warned, part) in warned
        .iter()
        .zip(["\"shape\" is left out", "\"b64\"", "\"b8\""])
    {
        assert!(warned.contains(part), "{warned}");
    }
    assert_eq!(spcd.spcd(&["plan", "--refresh"]).stdout, "nothing to do\n");
    spcd.stop();

    // In another encoding the wrapper's own default is right, and stays.
    let name = format!("latin_{}", shared().database().await.name);
    let create = format!(
        "CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    );
    query(&shared().url("postgres"), &create).await;
    let url = shared().url(&name);
    let latin = Database { url, name };
    source.run("USE shop; UPDATE t SET smile = CONVERT(UNHEX('C3BC') USING utf8mb4)");
    let mut spcd = Spcd::new(&latin.url);
    spcd.write("a.spc", &block);
    spcd.start();
    until(&latin.url, &["shop ready"]).await;
    let option = "SELECT srvoptions::text FROM pg_foreign_server WHERE srvname = 'shop'";
    assert!(!value(&latin.url, option).await.contains("character_set"));
    assert_eq!(value(&latin.url, "SELECT smile FROM shop.t").await, "ü");
    assert_eq!(spcd.spcd(&["plan"]).stdout, "nothing to do\n");
    spcd.stop();
}
