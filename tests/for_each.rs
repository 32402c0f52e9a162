//! Many connections from one block, whose elements are in a JSON file outside of the config directory.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::support::hub::{made_by, until, until_error};
use crate::support::{Database, Spcd, query, role, shared, value};

/// A list of accounts, and the block that reads it.
struct Accounts {
    path: PathBuf,
    source: Database,
}

impl Accounts {
    /// Writes the block, of which each connection is called by `name`.
    async fn of(spcd: &Spcd, name: &str) -> Self {
        let source = made_by("CREATE TABLE t (id integer); INSERT INTO t VALUES (7)").await;
        let path = spcd.dir().join("accounts.json");
        let text = format!(
            "connection \"shop\" {{\n  for_each = jsondecode(file(\"{}\"))\n  name     = {name}\n  \
             plugin   = \"postgres\"\n  host     = \"127.0.0.1\"\n  port     = {}\n  \
             dbname   = each.value.dbname\n{}}}\n",
            path.display(),
            shared().port(),
            role::login(&source, "")
        );
        spcd.write("shop.spc", &text);
        Self { path, source }
    }

    /// An account with the source's database, and more attributes.
    fn account(&self, key: &str, more: &str) -> String {
        format!("\"{key}\": {{\"dbname\": \"{}\"{more}}}", self.source.name)
    }

    fn write(&self, accounts: &[String]) {
        self.save(&format!("{{{}}}", accounts.join(",\n")));
    }

    /// Writes the text where it is, as editors do.
    fn save(&self, text: &str) {
        std::fs::write(&self.path, text).unwrap();
    }
}

/// The schemas that have a table, in byte order.
async fn imported(hub: &Database) -> String {
    let sql = "SELECT string_agg(schema, ' ' ORDER BY schema)
               FROM (SELECT relnamespace::regnamespace::text AS schema
                     FROM pg_class WHERE relkind = 'f' AND relname = 't') t";
    value(&hub.url, sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_elements_of_a_file_become_connections_and_follow_it() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let accounts = Accounts::of(&spcd, "\"shop_${each.key}\"").await;
    let [a, b, c] = ["a", "b", "c"].map(|key| accounts.account(key, ""));
    accounts.write(&[a.clone(), b.clone()]);
    spcd.start();
    until(&hub.url, &["shop_a ready", "shop_b ready"]).await;
    assert_eq!(value(&hub.url, "SELECT id FROM shop_b.t").await, "7");

    // A saved file is followed, wherever it is.
    accounts.write(&[a.clone(), b, c.clone()]);
    let all = ["shop_a ready", "shop_b ready", "shop_c ready"];
    until(&hub.url, &all).await;

    // A removed key removes its connection.
    accounts.write(&[a.clone(), c.clone()]);
    until(&hub.url, &["shop_a ready", "shop_c ready"]).await;
    assert_eq!(imported(&hub).await, "shop_a shop_c");

    // A bad element costs that element, which keeps what it has.
    accounts.write(&[a.clone(), "\"c\": {}".to_owned(), "\"d\": {}".to_owned()]);
    until(&hub.url, &["shop_a ready", "shop_c error", "shop_d error"]).await;
    let error = until_error(&hub.url, "shop_c", "no attribute of this name").await;
    assert!(error.contains("shop.spc:7:25: "), "{error}");
    assert_eq!(imported(&hub).await, "shop_a shop_c");

    accounts.write(&[a, c]);
    until(&hub.url, &["shop_a ready", "shop_c ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_half_written_or_gone_removes_nothing() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let accounts = Accounts::of(&spcd, "\"shop_${each.key}\"").await;
    let [a, b] = ["a", "b"].map(|key| accounts.account(key, ""));
    accounts.write(&[a.clone(), b.clone()]);
    spcd.start();
    until(&hub.url, &["shop_a ready", "shop_b ready"]).await;
    let before = query(&hub.url, "SELECT oid FROM pg_class WHERE relkind = 'f'").await;

    let in_error = ["shop_a error", "shop_b error"];
    let ready = ["shop_a ready", "shop_b ready"];
    let whole = format!("{{{a},\n{b}}}");
    for (text, reason) in [
        (Some(&whole[..whole.len() - 1]), "`jsondecode`: expected"),
        (Some(""), "found the end of the file"),
        (None, "is not available: "),
        (Some("{\"a\": {}, \"a\": {}}"), "written twice"),
        (Some("null"), "found null"),
    ] {
        match text {
            Some(text) => accounts.save(text),
            None => std::fs::remove_file(&accounts.path).unwrap(),
        }
        let error = until_error(&hub.url, "shop_a", reason).await;
        assert!(error.contains("shop.spc:2:"), "{error}");
        until(&hub.url, &in_error).await;
        assert_eq!(imported(&hub).await, "shop_a shop_b", "{reason}");
        // What is in error does not keep a new block from being followed.
        accounts.save(&whole);
        until(&hub.url, &ready).await;
    }
    let after = query(&hub.url, "SELECT oid FROM pg_class WHERE relkind = 'f'").await;
    assert_eq!(before, after);

    // An empty object is an answer.
    accounts.save("{}");
    until(&hub.url, &[]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_element_without_a_name_removes_no_connection() {
    let hub = shared().database().await;
    let mut spcd = Spcd::new(&hub.url);
    let accounts = Accounts::of(&spcd, "each.value.name").await;
    let account = |key: &str| accounts.account(key, &format!(", \"name\": \"{key}\""));
    accounts.write(&[account("a"), account("b"), account("c")]);
    spcd.start();
    until(&hub.url, &["a ready", "b ready", "c ready"]).await;

    // The name of the second is lost, so that it may be either of those that are missing.
    accounts.write(&[account("a"), accounts.account("b", "")]);
    until_error(&hub.url, "b", "no attribute of this name, at `b`").await;
    until(&hub.url, &["a ready", "b error", "c error"]).await;
    assert_eq!(imported(&hub).await, "a b c");

    // Two of one name are both in error, and what is applied stays: one of them had another name.
    accounts.write(&[account("a"), accounts.account("b", ", \"name\": \"a\"")]);
    until_error(&hub.url, "a", "2 elements of `for_each` give the name `a`").await;
    until(&hub.url, &["a error", "b error", "c error"]).await;
    assert_eq!(imported(&hub).await, "a b c");

    accounts.write(&[account("a")]);
    until(&hub.url, &["a ready"]).await;
    spcd.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_value_in_another_file_is_followed() {
    let hub = shared().database().await;
    let source = made_by("CREATE TABLE t (id integer)").await;
    let mut spcd = Spcd::new(&hub.url);
    let locals = |names: &str| format!("locals {{\n  names = [{names}]\n}}\n");
    spcd.write("locals.spc", &locals("\"a\""));
    let mut text = String::from("connection \"c\" {\n  for_each = local.names\n");
    let _ = write!(
        text,
        "  name = \"c_${{each.key}}\"\n  plugin = \"postgres\"\n  host = \"127.0.0.1\"\n  \
         port = {}\n  dbname = \"{}\"\n{}}}\n",
        shared().port(),
        source.name,
        role::login(&source, "")
    );
    spcd.write("shop.spc", &text);
    spcd.start();
    until(&hub.url, &["c_a ready"]).await;
    spcd.write("locals.spc", &locals("\"a\", \"b\""));
    until(&hub.url, &["c_a ready", "c_b ready"]).await;
    // Without its local value the block has no elements that are known.
    spcd.remove("locals.spc");
    until_error(&hub.url, "c_a", "there is no local value `names`").await;
    until(&hub.url, &["c_a error", "c_b error"]).await;
    assert_eq!(imported(&hub).await, "c_a c_b");
    spcd.write("locals.spc", &locals("\"b\""));
    until(&hub.url, &["c_b ready"]).await;
    spcd.stop();
}
