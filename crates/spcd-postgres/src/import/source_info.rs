//! Version, session and TLS of a source, as far as its wrapper can read them.

use std::collections::BTreeMap;

use spcd_core::config::{ForeignSource, OptionValue};
use spcd_core::diff::{Column, Table};
use spcd_core::sql;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::import;
use crate::import::temporary_server;
use crate::{HubError, transaction};

/// Properties of a source; `None` where it does not report them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceInfo {
    /// Product and version.
    pub version: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// User of the session.
    pub user: Option<String>,
    /// Process or thread that serves the session.
    pub backend: Option<String>,
    /// Start of the server, by its own clock.
    pub started: Option<String>,
    /// TLS version and cipher, or `no`.
    pub tls: Option<String>,
}

/// Queries a source that is known to answer, in a transaction that is rolled back.
pub async fn fetch_source_info(
    client: &Client,
    target: &ForeignSource,
) -> Result<SourceInfo, HubError> {
    let name = import::unique_name("spcd_test");
    match target.extension.as_str() {
        "postgres_fdw" => {
            let mut named = target.clone();
            let option = OptionValue {
                value: name.clone(),
                public: true,
            };
            // Identifies the session in the source's pg_stat_activity.
            named.server.insert("application_name".into(), option);
            transaction::rolled_back(client, fetch_postgres(client, &name, &named)).await
        }
        "mysql_fdw" => transaction::rolled_back(client, fetch_mysql(client, &name, target)).await,
        _ => Ok(SourceInfo::default()),
    }
}

async fn fetch_postgres(
    client: &Client,
    name: &str,
    target: &ForeignSource,
) -> Result<SourceInfo, HubError> {
    let mut text = temporary_server::prepare(client, name, target).await?;
    // The setting would take precedence over the option.
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
        create_table(name, table, columns, &options, &mut text);
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
    // The checkpointer starts with the server. Only privileged roles can see it.
    let started = format!(
        "SELECT pg_catalog.date_trunc('second', min(backend_start)) FROM {activity}
         WHERE backend_type = 'checkpointer'"
    );
    let session = fetch_row(client, &session).await?;
    let cell = |n: usize| session.get(n).cloned().flatten();
    Ok(SourceInfo {
        backend: cell(0),
        database: cell(1),
        user: cell(2),
        tls: fetch_value(client, &tls).await?,
        version: fetch_value(client, &version).await?,
        started: fetch_value(client, &started).await?,
    })
}

async fn fetch_mysql(
    client: &Client,
    name: &str,
    target: &ForeignSource,
) -> Result<SourceInfo, HubError> {
    let mut text = temporary_server::prepare(client, name, target).await?;
    // MariaDB has the variables in information_schema, MySQL in performance_schema.
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
        create_table(name, table, columns, &options, &mut text);
    }
    client.batch_execute(&text).await?;
    let table = |table: &str| sql::qualified(name, table);
    // This statement is the one that the process list shows for the session.
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
    let session = fetch_row(client, &session).await?;
    let cell = |n: usize| session.get(n).cloned().flatten();
    let mut info = SourceInfo {
        backend: cell(0),
        user: cell(1),
        database: Some(target.import.schema.clone()),
        ..SourceInfo::default()
    };
    for (variables, value, status) in [
        ("variables_a", "global_value", "status_a"),
        ("variables_b", "variable_value", "status_b"),
    ] {
        let version = variable(variables, value, "VERSION");
        let Some(version) = fetch_value(client, &version).await? else {
            continue;
        };
        let product = match version.contains("MariaDB") {
            true => "",
            false => "MySQL ",
        };
        info.version = Some(format!("{product}{version}"));
        let status = |name| variable(status, "variable_value", name);
        let uptime = status("UPTIME");
        let started = format!(
            "SELECT pg_catalog.date_trunc('second', pg_catalog.now()
                 - pg_catalog.make_interval(secs => variable_value::float8))
             FROM ({uptime}) u"
        );
        info.started = fetch_value(client, &started).await?;
        let cipher = fetch_value(client, &status("SSL_CIPHER")).await?;
        let protocol = fetch_value(client, &status("SSL_VERSION")).await?;
        info.tls = cipher.map(|cipher| tls_text(cipher, protocol));
        break;
    }
    Ok(info)
}

/// Describes the encryption of a session by the status variables of MySQL and MariaDB.
fn tls_text(cipher: String, protocol: Option<String>) -> String {
    match (cipher.is_empty(), protocol) {
        (true, _) => "no".into(),
        (false, Some(protocol)) => format!("{protocol} ({cipher})"),
        (false, None) => cipher,
    }
}

fn create_table(
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

/// Returns the first row, or an empty one if the source refuses the statement.
async fn fetch_row(client: &Client, sql: &str) -> Result<Vec<Option<String>>, HubError> {
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
        Err(HubError::StatementFailed { .. }) => {
            client.batch_execute("ROLLBACK TO spcd_fact").await?;
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

async fn fetch_value(client: &Client, sql: &str) -> Result<Option<String>, HubError> {
    Ok(fetch_row(client, sql).await?.into_iter().next().flatten())
}
