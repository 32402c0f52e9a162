//! Comments on tables and columns, as a source has them, read through its own wrapper.

use spcd_core::config::Target;
use spcd_core::plan::Comment;
use spcd_core::shape::{Column, Table};
use spcd_core::sql;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::partial::remote_names::MYSQL;
use super::{HubError, ask, catalog, scratch, transaction};

/// Of a comment no more is taken than so many characters.
const LONGEST: usize = 10_000;
/// How many columns the query returns.
const WIDTH: usize = 3;

/// What differs between a connection's tables and its source.
pub struct Difference {
    /// What is to be set or taken away.
    pub changes: Vec<Comment>,
    /// Its row says already that all is there.
    pub known: bool,
    /// The generation of its row then.
    pub generation: i64,
}

/// Whether it can be asked which comments a source has. What all connections of a plugin share is
/// not asked of each.
pub fn are_offered(target: &Target) -> bool {
    let wrapper = target.wrapper.as_str();
    target.dynamic && target.csv.is_none() && [catalog::WRAPPER, MYSQL].contains(&wrapper)
}

/// Asks a source for the comments on the tables of which something is imported.
pub async fn ask(client: &Client, target: &Target) -> Result<Vec<Comment>, HubError> {
    let name = ask::fresh_name("spcd_comments");
    let answer = transaction::rolled_back(client, all(client, &name, target)).await;
    let answer = match answer {
        Err(error) if target.wrapper != MYSQL && error.is_of_encoding() => {
            transaction::rolled_back(client, held(client, &name, target)).await
        }
        answer => answer,
    };
    match answer {
        Ok(mut comments) => {
            comments.retain(|comment| target.import.takes(&comment.table));
            Ok(comments)
        }
        Err(error) => Err(ask::clean(error, &name, target)),
    }
}

async fn all(client: &Client, name: &str, target: &Target) -> Result<Vec<Comment>, HubError> {
    let before = scratch::prepare(client, name, target).await?;
    let (tables, question) = match target.wrapper == MYSQL {
        true => of_mysql(name, target),
        false => (of_postgres(name), of_postgres_tables(name, target, "")),
    };
    comments(&client.simple_query(&(before + &tables + &question)).await?)
}

/// Those on tables of which the hub's encoding can hold all names and comments.
async fn held(client: &Client, name: &str, target: &Target) -> Result<Vec<Comment>, HubError> {
    let before = scratch::prepare(client, name, target).await?;
    client.batch_execute(&(before + &of_postgres(name))).await?;
    let question = |oids: &[u32]| of_postgres_tables(name, target, &catalog::is_one_of(oids));
    let (messages, _) = catalog::in_parts(client, name, target, question).await?;
    comments(&messages)
}

fn comments(messages: &[SimpleQueryMessage]) -> Result<Vec<Comment>, HubError> {
    let mut comments = Vec::new();
    for message in messages {
        let SimpleQueryMessage::Row(row) = message else {
            continue;
        };
        // The mapping is made by a function, which answers too.
        if row.len() != WIDTH {
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

/// Compares what a source says with what is there; `None`: there is nothing to comment on now.
pub async fn compare(
    client: &Client,
    connection: &str,
    comments: &[Comment],
) -> Result<Option<Difference>, HubError> {
    let sql = "SELECT generation, comments_set FROM spcd.connection_state
               WHERE connection_name = $1 AND status = 'ready'";
    let Some(row) = client.query_opt(sql, &[&connection]).await? else {
        return Ok(None);
    };
    let (generation, known) = (row.try_get(0)?, row.try_get(1)?);
    // Texts and nothing else: this cannot fail.
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
    Ok(Some(Difference {
        changes,
        known,
        generation,
    }))
}

/// The foreign tables for the question.
fn of_postgres(name: &str) -> String {
    let description = [
        ("objoid", "oid"),
        ("classoid", "oid"),
        ("objsubid", "integer"),
        ("description", "text"),
    ];
    catalog::tables(name) + &catalog::table(name, "pg_description", &description)
}

/// The question, for those tables that `only` selects, too.
fn of_postgres_tables(name: &str, target: &Target, only: &str) -> String {
    let table = |table: &str| sql::qualified(name, table);
    format!(
        "SELECT c.relname, coalesce(k.attname, ''), pg_catalog.left(d.description, {LONGEST})
         FROM {} n
         JOIN {} c ON c.relnamespace = n.oid
         JOIN {} d ON d.objoid = c.oid AND d.classoid = {}
         LEFT JOIN {} k ON k.attrelid = c.oid AND k.attnum = d.objsubid AND d.objsubid > 0
         WHERE n.nspname = {} AND c.relkind IN ('r', 'v', 'f', 'm', 'p') AND NOT c.relispartition
           AND (d.objsubid = 0 OR k.attnum IS NOT NULL){only};\n",
        table("pg_namespace"),
        table("pg_class"),
        table("pg_description"),
        // The OID of pg_class is the same on every server.
        1259,
        table("pg_attribute"),
        sql::literal(&target.import.schema)
    )
}

fn of_mysql(name: &str, target: &Target) -> (String, String) {
    let foreign = |table: &str, columns: &[&str]| {
        let column = |name: &&str| Column {
            name: (*name).into(),
            data_type: "text".into(),
            ..Column::default()
        };
        let options = [("dbname", "information_schema"), ("table_name", table)];
        let option = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let table = Table {
            name: table.into(),
            columns: columns.iter().map(column).collect(),
            options: options.into_iter().map(option).collect(),
            ..Table::default()
        };
        let mut text = String::new();
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
    // A view's comment is the word VIEW.
    let question = format!(
        "SELECT \"TABLE_NAME\", '', pg_catalog.left(\"TABLE_COMMENT\", {LONGEST}) FROM {}
         WHERE \"TABLE_SCHEMA\" = {schema} AND \"TABLE_TYPE\" = 'BASE TABLE' AND \"TABLE_COMMENT\" <> ''
         UNION ALL
         SELECT \"TABLE_NAME\", \"COLUMN_NAME\", pg_catalog.left(\"COLUMN_COMMENT\", {LONGEST}) FROM {}
         WHERE \"TABLE_SCHEMA\" = {schema} AND \"COLUMN_COMMENT\" <> '';\n",
        sql::qualified(name, "TABLES"),
        sql::qualified(name, "COLUMNS"),
        schema = sql::literal(&target.import.schema),
    );
    (tables, question)
}
