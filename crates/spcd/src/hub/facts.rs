//! What a source tells of itself, where its wrapper can be made to ask: for people.

use std::collections::BTreeMap;

use spcd_core::config::{OptionValue, Target};
use spcd_core::shape::{Column, Table};
use spcd_core::sql;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{HubError, ask, scratch, transaction};

/// What is known of a source; `None`: it does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The product and its version.
    pub version: Option<String>,
    /// The database.
    pub database: Option<String>,
    /// As whom it is asked.
    pub user: Option<String>,
    /// The process or thread that serves us there.
    pub backend: Option<String>,
    /// When the server started, by its own clock.
    pub started: Option<String>,
    /// Whether the connection is encrypted, and how.
    pub tls: Option<String>,
}

/// Asks a source that is known to answer. Nothing of it stays.
pub async fn facts(client: &Client, target: &Target) -> Result<Facts, HubError> {
    let name = ask::fresh_name("spcd_test");
    match target.extension.as_str() {
        "postgres_fdw" => {
            let mut named = target.clone();
            let option = OptionValue {
                value: name.clone(),
                public: true,
            };
            // By which our own session is found over there.
            named.server.insert("application_name".into(), option);
            transaction::rolled_back(client, of_postgres(client, &name, &named)).await
        }
        "mysql_fdw" => transaction::rolled_back(client, of_mysql(client, &name, target)).await,
        _ => Ok(Facts::default()),
    }
}

async fn of_postgres(client: &Client, name: &str, target: &Target) -> Result<Facts, HubError> {
    let mut text = scratch::prepare(client, name, target).await?;
    // What a server's own setting says would count more than the option.
    text.push_str("SET LOCAL postgres_fdw.application_name = '';\n");
    let (text_type, time) = ("text", "timestamp with time zone");
    for (table, columns) in [
        (
            "pg_stat_activity",
            &[
                ("pid", "integer"),
                ("datname", text_type),
                ("usename", text_type),
                ("application_name", text_type),
                ("backend_type", text_type),
                ("backend_start", time),
            ][..],
        ),
        (
            "pg_stat_ssl",
            &[
                ("pid", "integer"),
                ("ssl", "boolean"),
                ("version", text_type),
                ("cipher", text_type),
            ],
        ),
        (
            "pg_settings",
            &[("name", text_type), ("setting", text_type)],
        ),
    ] {
        let options = [("schema_name", "pg_catalog"), ("table_name", table)];
        create(name, table, columns, &options, &mut text);
    }
    client.batch_execute(&text).await?;
    let table = |table: &str| sql::qualified(name, table);
    let (activity, ssl) = (table("pg_stat_activity"), table("pg_stat_ssl"));
    let session = format!(
        "SELECT pid, datname, usename FROM {activity} WHERE application_name = {}",
        sql::literal(name)
    );
    let tls = format!(
        "SELECT CASE WHEN s.ssl THEN pg_catalog.concat(s.version, ' (', s.cipher, ')') ELSE 'no' END
         FROM {activity} a JOIN {ssl} s ON s.pid = a.pid WHERE a.application_name = {}",
        sql::literal(name)
    );
    let version = format!(
        "SELECT 'PostgreSQL ' || setting FROM {} WHERE name = 'server_version'",
        table("pg_settings")
    );
    // It starts with the server, and is seen only by those who may see all.
    let started = format!(
        "SELECT pg_catalog.date_trunc('second', min(backend_start)) FROM {activity}
         WHERE backend_type = 'checkpointer'"
    );
    let session = row(client, &session).await?;
    let cell = |n: usize| session.get(n).cloned().flatten();
    Ok(Facts {
        backend: cell(0),
        database: cell(1),
        user: cell(2),
        tls: one(client, &tls).await?,
        version: one(client, &version).await?,
        started: one(client, &started).await?,
    })
}

async fn of_mysql(client: &Client, name: &str, target: &Target) -> Result<Facts, HubError> {
    let mut text = scratch::prepare(client, name, target).await?;
    // MariaDB has these, MySQL has those.
    let (maria, mysql) = ("information_schema", "performance_schema");
    let variable = &[("variable_name", "text"), ("variable_value", "text")][..];
    for (table, schema, there, columns) in [
        (
            "processlist",
            maria,
            "processlist",
            &[("id", "bigint"), ("user", "text"), ("info", "text")][..],
        ),
        (
            "variables_a",
            maria,
            "system_variables",
            &[("variable_name", "text"), ("global_value", "text")],
        ),
        ("status_a", maria, "session_status", variable),
        ("variables_b", mysql, "global_variables", variable),
        ("status_b", mysql, "session_status", variable),
    ] {
        let options = [("dbname", schema), ("table_name", there)];
        create(name, table, columns, &options, &mut text);
    }
    client.batch_execute(&text).await?;
    let table = |table: &str| sql::qualified(name, table);
    // The statement that asks is the one that is shown as being asked.
    let session = format!(
        "SELECT id, \"user\" FROM {} WHERE info LIKE '%processlist%'",
        table("processlist")
    );
    let variable = |which: &'static str, value: &'static str, name: &'static str| {
        format!(
            "SELECT {value} FROM {} WHERE pg_catalog.upper(variable_name) = {}",
            table(which),
            sql::literal(name)
        )
    };
    let session = row(client, &session).await?;
    let cell = |n: usize| session.get(n).cloned().flatten();
    let mut facts = Facts {
        backend: cell(0),
        user: cell(1),
        database: Some(target.import.schema.clone()),
        ..Facts::default()
    };
    for (variables, value, status) in [
        ("variables_a", "global_value", "status_a"),
        ("variables_b", "variable_value", "status_b"),
    ] {
        if let Some(version) = one(client, &variable(variables, value, "VERSION")).await? {
            let product = match version.contains("MariaDB") {
                true => "",
                false => "MySQL ",
            };
            facts.version = Some(format!("{product}{version}"));
            let uptime = variable(status, "variable_value", "UPTIME");
            let started = format!(
                "SELECT pg_catalog.date_trunc('second', pg_catalog.now()
                     - pg_catalog.make_interval(secs => variable_value::float8))
                 FROM ({uptime}) u"
            );
            facts.started = one(client, &started).await?;
            let cipher = one(client, &variable(status, "variable_value", "SSL_CIPHER")).await?;
            let protocol = one(client, &variable(status, "variable_value", "SSL_VERSION")).await?;
            facts.tls = cipher.map(|cipher| match (cipher.is_empty(), protocol) {
                (true, _) => "no".into(),
                (false, Some(protocol)) => format!("{protocol} ({cipher})"),
                (false, None) => cipher,
            });
            break;
        }
    }
    Ok(facts)
}

fn create(
    name: &str,
    table: &str,
    columns: &[(&str, &str)],
    options: &[(&str, &str)],
    out: &mut String,
) {
    let column = |(name, data_type): &(&str, &str)| Column {
        name: (*name).into(),
        data_type: (*data_type).into(),
        ..Column::default()
    };
    let option = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let table = Table {
        name: table.into(),
        columns: columns.iter().map(column).collect(),
        options: options.iter().map(option).collect::<BTreeMap<_, _>>(),
        ..Table::default()
    };
    sql::create_table(name, name, &table, out);
}

/// The first row; nothing where the source refuses.
async fn row(client: &Client, sql: &str) -> Result<Vec<Option<String>>, HubError> {
    client.batch_execute("SAVEPOINT spcd_fact").await?;
    match client.simple_query(sql).await.map_err(HubError::from) {
        Ok(answer) => Ok(answer
            .into_iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .map(|column| row.get(column).map(str::to_owned))
                        .collect(),
                ),
                _ => None,
            })
            .unwrap_or_default()),
        Err(HubError::Refused { .. }) => {
            client.batch_execute("ROLLBACK TO spcd_fact").await?;
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

async fn one(client: &Client, sql: &str) -> Result<Option<String>, HubError> {
    Ok(row(client, sql).await?.into_iter().next().flatten())
}
