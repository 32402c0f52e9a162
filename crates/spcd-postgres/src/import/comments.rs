//! Comments on tables and columns of a source, read through its wrapper.

use std::collections::BTreeMap;

use spcd_core::config::ForeignSource;
use spcd_core::planner::Comment;
use spcd_core::sql;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::catalog::foreign_tables;
use crate::import;
use crate::import::partial::remote_names::{self, MYSQL_WRAPPER};
use crate::import::source_catalog;
use crate::import::temporary_server;
use crate::{HubError, transaction};

/// Maximum length of a comment in characters. The rest is cut off.
const MAX_COMMENT_CHARS: usize = 10_000;
/// Number of columns of the query.
const COLUMN_COUNT: usize = 3;

/// Differences between the comments of a connection's tables and of its source.
pub struct CommentDiff {
    /// Comments to set or remove.
    pub changes: Vec<Comment>,
    /// Whether the connection's row records the comments as set.
    pub is_recorded: bool,
    /// Generation of the row that was compared.
    pub generation: i64,
}

/// Whether comments can be read from the source. They are not read if all connections of a plugin
/// share their tables.
pub fn are_supported(target: &ForeignSource) -> bool {
    let wrapper = target.wrapper.as_str();
    target.dynamic
        && target.csv.is_none()
        && [source_catalog::POSTGRES_FDW, MYSQL_WRAPPER].contains(&wrapper)
}

/// Returns the comments on the tables that the target selects.
pub async fn fetch(client: &Client, target: &ForeignSource) -> Result<Vec<Comment>, HubError> {
    let name = import::unique_name("spcd_comments");
    let answer = transaction::rolled_back(client, fetch_all(client, &name, target)).await;
    let answer = match answer {
        Err(error) if target.wrapper != MYSQL_WRAPPER && error.is_encoding_error() => {
            transaction::rolled_back(client, fetch_representable(client, &name, target)).await
        }
        answer => answer,
    };
    match answer {
        Ok(mut comments) => {
            comments.retain(|comment| target.import.selects(&comment.table));
            Ok(comments)
        }
        Err(error) => Err(import::redact_error(error, &name, target)),
    }
}

async fn fetch_all(
    client: &Client,
    name: &str,
    target: &ForeignSource,
) -> Result<Vec<Comment>, HubError> {
    let before = temporary_server::prepare(client, name, target).await?;
    let (tables, query) = match target.wrapper == MYSQL_WRAPPER {
        true => mysql_query(name, target),
        false => (postgres_catalog(name), postgres_query(name, target, "")),
    };
    parse_comments(&client.simple_query(&(before + &tables + &query)).await?)
}

/// Returns the comments on tables whose names and comments the hub's encoding can represent.
async fn fetch_representable(
    client: &Client,
    name: &str,
    target: &ForeignSource,
) -> Result<Vec<Comment>, HubError> {
    let before = temporary_server::prepare(client, name, target).await?;
    client
        .batch_execute(&(before + &postgres_catalog(name)))
        .await?;
    let query = |oids: &[u32]| postgres_query(name, target, &source_catalog::oid_condition(oids));
    let (messages, _) = source_catalog::query_in_parts(client, name, target, query).await?;
    parse_comments(&messages)
}

fn parse_comments(messages: &[SimpleQueryMessage]) -> Result<Vec<Comment>, HubError> {
    let mut comments = Vec::new();
    for message in messages {
        let SimpleQueryMessage::Row(row) = message else {
            continue;
        };
        // The function that creates the mapping returns a row, too.
        if row.len() != COLUMN_COUNT {
            continue;
        }
        if let (Some(table), Some(column)) = (row.try_get(0)?, row.try_get(1)?) {
            comments.push(Comment {
                table: table.to_owned(),
                column: column.to_owned(),
                text: row.try_get(2)?.map(str::to_owned),
            });
        }
    }
    Ok(comments)
}

/// Compares a source's comments with those of the tables. Returns `None` unless the connection is ready.
pub async fn compare(
    client: &Client,
    connection: &str,
    target: &ForeignSource,
    comments: Vec<Comment>,
) -> Result<Option<CommentDiff>, HubError> {
    let sql = "SELECT generation, comments_set FROM spcd.connection_state
               WHERE connection_name = $1 AND status = 'ready'";
    let Some(row) = client.query_opt(sql, &[&connection]).await? else {
        return Ok(None);
    };
    let (generation, is_recorded) = (row.try_get(0)?, row.try_get(1)?);
    let comments = match target.naming() {
        Some(_) => under_names_here(client, connection, target, comments).await?,
        None => comments,
    };
    // Serializing strings cannot fail.
    let texts = serde_json::to_value(comments).unwrap_or_default();
    let sql = "SELECT * FROM spcd.comment_changes($1, $2)";
    let mut changes = Vec::new();
    for row in client.query(sql, &[&connection, &texts]).await? {
        changes.push(Comment {
            table: row.try_get(0)?,
            column: row.try_get(1)?,
            text: row.try_get(2)?,
        });
    }
    Ok(Some(CommentDiff {
        changes,
        is_recorded,
        generation,
    }))
}

/// Returns the comments under the names of the connection's tables and columns. Omits those on columns that
/// are left out.
async fn under_names_here(
    client: &Client,
    connection: &str,
    target: &ForeignSource,
    comments: Vec<Comment>,
) -> Result<Vec<Comment>, HubError> {
    let names = [connection.to_owned()];
    let mut tables = foreign_tables::recorded(client, &names).await?;
    let tables = tables.remove(connection).unwrap_or_default();
    let traits = target.wrapper_traits();
    let mut here: BTreeMap<(&str, &str), (&str, &str)> = BTreeMap::new();
    for table in &tables {
        let remote = table.remote_name(traits.table_name_option);
        here.insert((remote, ""), (&table.name, ""));
        for column in &table.columns {
            let remote_column = column.remote_name(traits.column_name_option);
            here.insert((remote, remote_column), (&table.name, &column.name));
        }
    }
    let comment = |comment: Comment| {
        let (table, column) = here.get(&(comment.table.as_str(), comment.column.as_str()))?;
        Some(Comment {
            table: (*table).to_owned(),
            column: (*column).to_owned(),
            ..comment
        })
    };
    Ok(comments.into_iter().filter_map(comment).collect())
}

/// Returns the statements that create the foreign tables for [`postgres_query`].
fn postgres_catalog(name: &str) -> String {
    let description = [
        ("objoid", "oid"),
        ("classoid", "oid"),
        ("objsubid", "integer"),
        ("description", "text"),
    ];
    source_catalog::catalog_tables(name)
        + &source_catalog::catalog_table(name, "pg_description", &description)
}

/// Returns the query. `only` is a further condition on the tables.
fn postgres_query(name: &str, target: &ForeignSource, only: &str) -> String {
    let table = |table: &str| sql::qualified(name, table);
    format!(
        "SELECT c.relname, coalesce(k.attname, ''), pg_catalog.left(d.description, {MAX_COMMENT_CHARS})
         FROM {} n
         JOIN {} c ON c.relnamespace = n.oid
         JOIN {} d ON d.objoid = c.oid AND d.classoid = {}
         LEFT JOIN {} k ON k.attrelid = c.oid AND k.attnum = d.objsubid AND d.objsubid > 0
         {} AND (d.objsubid = 0 OR k.attnum IS NOT NULL){only};\n",
        table("pg_namespace"),
        table("pg_class"),
        table("pg_description"),
        // OID of pg_class, the same on every server.
        1259,
        table("pg_attribute"),
        source_catalog::table_condition(&[&target.import.schema], &target.import)
    )
}

fn mysql_query(name: &str, target: &ForeignSource) -> (String, String) {
    let foreign = |table: &str, columns: &[&str]| {
        let mut text = String::new();
        let table = remote_names::information_schema_table(table, table, columns);
        sql::create_table(name, name, &table, &mut text);
        text
    };
    let of_table = ["TABLE_SCHEMA", "TABLE_NAME", "TABLE_TYPE", "TABLE_COMMENT"];
    let of_column = [
        "TABLE_SCHEMA",
        "TABLE_NAME",
        "COLUMN_NAME",
        "COLUMN_COMMENT",
    ];
    let tables = foreign("TABLES", &of_table) + &foreign("COLUMNS", &of_column);
    // MySQL returns VIEW as the comment of a view.
    let query = format!(
        "SELECT \"TABLE_NAME\", '', pg_catalog.left(\"TABLE_COMMENT\", {MAX_COMMENT_CHARS}) FROM {}
         WHERE \"TABLE_SCHEMA\" = {schema} AND \"TABLE_TYPE\" = 'BASE TABLE' AND \"TABLE_COMMENT\" <> ''
         UNION ALL
         SELECT \"TABLE_NAME\", \"COLUMN_NAME\", pg_catalog.left(\"COLUMN_COMMENT\", {MAX_COMMENT_CHARS}) FROM {}
         WHERE \"TABLE_SCHEMA\" = {schema} AND \"COLUMN_COMMENT\" <> '';\n",
        sql::qualified(name, "TABLES"),
        sql::qualified(name, "COLUMNS"),
        schema = sql::literal(&target.import.schema),
    );
    (tables, query)
}
