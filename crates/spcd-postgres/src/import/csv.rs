//! The tables of a csv connection. The caller reads the files; this module checks that the server can
//! open them.

pub mod file_access;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use spcd_core::config::ForeignSource;
use spcd_core::diff::{self, Table};
use spcd_core::planner::RemoteSchema;
use spcd_core::sql;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::import::temporary_server;
use crate::import::unique_name;
use crate::{HubError, transaction};
use file_access::FileAccessor;

/// Files of a connection, as this process reads them.
#[derive(Debug, Default)]
pub struct CsvFiles {
    /// One table for each file, or the reason why the file has none.
    pub remote: RemoteSchema,
    /// File of each table.
    pub paths: BTreeMap<String, PathBuf>,
    /// Tables whose file this process cannot read.
    pub unreadable: BTreeSet<String>,
}

/// Returns the tables of the files that the server can open, normalized.
pub async fn check_files(
    client: &Client,
    target: &ForeignSource,
    files: CsvFiles,
) -> Result<RemoteSchema, HubError> {
    let name = unique_name("spcd_ask");
    let CsvFiles {
        mut remote,
        paths,
        mut unreadable,
    } = files;
    check_file_role(client).await?;

    let fit: Vec<&Table> = (remote.tables.iter())
        .filter(|table| table.import_error.is_none())
        .collect();
    let failed = match can_open_all(client, &fit, &paths).await? {
        true => BTreeMap::new(),
        false => {
            transaction::rolled_back(client, create_and_open(client, &name, target, &fit)).await?
        }
    };
    if !failed.is_empty() {
        let server = server_process(client).await?;
        for table in &mut remote.tables {
            let (Some((code, text)), Some(path)) =
                (failed.get(&table.name), paths.get(&table.name))
            else {
                continue;
            };
            let missing = || {
                server
                    .as_ref()
                    .and_then(|server| server.missing_permission(path))
            };
            let reason = match *code {
                SqlState::INSUFFICIENT_PRIVILEGE => {
                    unreadable.insert(table.name.clone());
                    missing().unwrap_or_else(|| format!("the server's user cannot read it: {text}"))
                }
                SqlState::UNDEFINED_FILE => {
                    unreadable.insert(table.name.clone());
                    "the server finds no such file: it must lie on the server's host, at the same path"
                        .to_owned()
                }
                _ => text.clone(),
            };
            table.import_error = Some(format!("{}: {reason}", path.display()));
        }
    }
    // Without any file that can be opened, the source as a whole fails.
    if let (Some(first), true) = (
        remote.tables.first(),
        remote
            .tables
            .iter()
            .all(|table| unreadable.contains(&table.name)),
    ) {
        let mut text = first.import_error.clone().unwrap_or_default();
        if remote.tables.len() > 1 {
            text.push_str(&format!(" (and {} more files)", remote.tables.len() - 1));
        }
        return Err(source_error(text));
    }
    diff::normalize(&mut remote.tables, target.wrapper_traits());
    Ok(remote)
}

/// Maximum number of files that are opened one by one after opening all of them has failed.
const MAX_SINGLE_ATTEMPTS: usize = 20;

/// Checks that the server can open at least one of the files. An import skips the others.
pub async fn check_any_opens(client: &Client, paths: &[String]) -> Result<(), HubError> {
    if !can_read_files(client).await? || paths.is_empty() {
        return Ok(());
    }
    let Err(error) = client
        .query_one(OPEN_FILES, &[&paths])
        .await
        .map_err(HubError::from)
    else {
        return Ok(());
    };
    for path in paths.iter().take(MAX_SINGLE_ATTEMPTS) {
        match client
            .query_one(OPEN_FILES, &[&[path].as_slice()])
            .await
            .map_err(HubError::from)
        {
            Ok(_) => return Ok(()),
            Err(HubError::StatementFailed { code, .. }) if code != SqlState::QUERY_CANCELED => {}
            Err(error) => return Err(error),
        }
    }
    Err(error)
}

/// Returns an error with the SQLSTATE of a source's errors.
pub fn source_error(text: String) -> HubError {
    HubError::StatementFailed {
        text,
        code: SqlState::FDW_ERROR,
    }
}

/// Checks that the role is allowed to create tables of file_fdw.
async fn check_file_role(client: &Client) -> Result<(), HubError> {
    let sql = "SELECT current_user::text,
                      pg_catalog.pg_has_role(current_user, 'pg_read_server_files', 'USAGE')";
    let row = client.query_one(sql, &[]).await?;
    let role: String = row.try_get(0)?;
    match row.try_get(1)? {
        true => Ok(()),
        false => Err(source_error(format!(
            "the role {role:?} is not allowed to read files; let a superuser run GRANT \
             pg_read_server_files TO {}",
            sql::ident(&role)
        ))),
    }
}

/// Whether the server can open all files. Returns `false` also if the role is not allowed to call the
/// function for it, which costs a hundredth of creating a table.
async fn can_open_all(
    client: &Client,
    tables: &[&Table],
    paths: &BTreeMap<String, PathBuf>,
) -> Result<bool, HubError> {
    let paths: Vec<&str> = (tables.iter())
        .filter_map(|table| paths.get(&table.name)?.to_str())
        .collect();
    if !can_read_files(client).await? {
        return Ok(false);
    }
    match client
        .query_one(OPEN_FILES, &[&paths])
        .await
        .map_err(HubError::from)
    {
        Ok(_) => Ok(true),
        Err(HubError::StatementFailed { code, text }) if code == SqlState::QUERY_CANCELED => {
            Err(HubError::StatementFailed { text, code })
        }
        Err(HubError::StatementFailed { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens files without reading them.
const OPEN_FILES: &str = "SELECT pg_catalog.count(pg_catalog.pg_read_binary_file(p, 0, 0))
                    FROM pg_catalog.unnest($1::text[]) AS p";

/// Whether the role is allowed to call `pg_read_binary_file`.
async fn can_read_files(client: &Client) -> Result<bool, HubError> {
    let may = "SELECT pg_catalog.has_function_privilege(
                   'pg_catalog.pg_read_binary_file(text, bigint, bigint)', 'EXECUTE')";
    Ok(client.query_one(may, &[]).await?.try_get(0)?)
}

/// Creates the tables and opens their files. Returns the SQLSTATE and text of each failure.
async fn create_and_open(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    tables: &[&Table],
) -> Result<BTreeMap<String, (SqlState, String)>, HubError> {
    let mut failed = BTreeMap::new();
    let before = temporary_server::prepare(client, name, target).await?;
    client.batch_execute(&before).await?;
    let statements = |table: &Table| {
        let mut text = String::new();
        sql::create_table(name, name, table, &mut text);
        // Opens the file without reading rows.
        text.push_str(&format!(
            "SELECT FROM {} LIMIT 0;\n",
            sql::qualified(name, &table.name)
        ));
        text
    };
    // One round trip is enough if all files can be opened.
    for some in tables.chunks(100) {
        let all: String = some.iter().map(|table| statements(table)).collect();
        let all = format!("SAVEPOINT spcd_try;\n{all}ROLLBACK TO spcd_try;\n");
        match client.batch_execute(&all).await.map_err(HubError::from) {
            Ok(()) => continue,
            Err(HubError::StatementFailed { .. }) => {
                client.batch_execute("ROLLBACK TO spcd_try").await?;
            }
            Err(error) => return Err(error),
        }
        for table in some {
            let tried = client.batch_execute(&statements(table)).await;
            match tried.map_err(HubError::from) {
                Ok(()) => {}
                Err(HubError::StatementFailed { code, .. }) if code == SqlState::QUERY_CANCELED => {
                    return Err(source_error("opening the files took too long".into()));
                }
                Err(HubError::StatementFailed { text, code }) => {
                    failed.insert(table.name.clone(), (code, text));
                }
                Err(error) => return Err(error),
            }
            client.batch_execute("ROLLBACK TO spcd_try").await?;
        }
    }
    Ok(failed)
}

/// Returns the operating system user of the server process if it runs on this host.
async fn server_process(client: &Client) -> Result<Option<FileAccessor>, HubError> {
    let row = client
        .query_one("SELECT pg_catalog.pg_backend_pid()", &[])
        .await?;
    Ok(FileAccessor::server_process(row.try_get(0)?))
}
