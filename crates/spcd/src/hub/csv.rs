//! The tables of a csv connection: this process reads the files, and the server says whether it
//! can open them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use spcd_core::config::{Csv, Target};
use spcd_core::plan::Offer;
use spcd_core::shape::{self, Table};
use spcd_core::sql;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{HubError, scratch, transaction};
use crate::csv::access::Who;
use crate::csv::{Files, aside, openable, read};

/// What the files hold, as far as the server can read them. `name` is that of the schema and server
/// by which it is tried.
pub async fn ask(
    client: &Client,
    name: &str,
    target: &Target,
    csv: &Csv,
) -> Result<Offer, HubError> {
    let (csv, import) = (csv.clone(), target.import.clone());
    let key = format!("read {csv:?} {import:?}");
    let Some(files) = aside(key, move || read(&csv, &import)).await else {
        return Err(refused(
            "its files cannot be read now: there is no thread for it".into(),
        ));
    };
    let Files {
        mut offer,
        paths,
        mut closed,
    } = files.map_err(refused)?;
    may_name_files(client).await?;

    let fit: Vec<&Table> = (offer.tables.iter())
        .filter(|table| table.unfit.is_none())
        .collect();
    let failed = match all_open(client, &fit, &paths).await? {
        true => BTreeMap::new(),
        false => transaction::rolled_back(client, try_all(client, name, target, &fit)).await?,
    };
    if !failed.is_empty() {
        let server = server(client).await?;
        for table in &mut offer.tables {
            let (Some((code, text)), Some(path)) =
                (failed.get(&table.name), paths.get(&table.name))
            else {
                continue;
            };
            let lacks = || server.as_ref().and_then(|server| server.lacks(path));
            let reason = match *code {
                SqlState::INSUFFICIENT_PRIVILEGE => {
                    closed.insert(table.name.clone());
                    lacks().unwrap_or_else(|| format!("the server's user may not read it: {text}"))
                }
                SqlState::UNDEFINED_FILE => {
                    closed.insert(table.name.clone());
                    "the server finds no such file: it must lie on the server's host, at the same path"
                        .to_owned()
                }
                _ => text.clone(),
            };
            table.unfit = Some(format!("{}: {reason}", path.display()));
        }
    }
    // Where nothing can be opened the source is out of reach.
    if let (Some(first), true) = (
        offer.tables.first(),
        offer
            .tables
            .iter()
            .all(|table| closed.contains(&table.name)),
    ) {
        let mut text = first.unfit.clone().unwrap_or_default();
        if offer.tables.len() > 1 {
            text.push_str(&format!(" (and {} more files)", offer.tables.len() - 1));
        }
        return Err(refused(text));
    }
    shape::normalize(&mut offer.tables, target.traits());
    Ok(offer)
}

/// Of files that the server cannot all open, so many are tried one by one.
const TRIED: usize = 20;

/// Whether the files are there, and some of them can be opened by this process and by the server: an
/// import leaves out the others.
pub async fn open(client: &Client, csv: &Csv) -> Result<(), HubError> {
    let csv = csv.clone();
    let key = format!("open {csv:?}");
    let Some(found) = aside(key, move || openable(&csv.paths)).await else {
        return Err(refused(
            "its files cannot be looked at now: there is no thread for it".into(),
        ));
    };
    let paths = found.map_err(refused)?;
    if !may_read_files(client).await? || paths.is_empty() {
        return Ok(());
    }
    let Err(error) = client
        .query_one(OPEN, &[&paths])
        .await
        .map_err(HubError::from)
    else {
        return Ok(());
    };
    for path in paths.iter().take(TRIED) {
        match client
            .query_one(OPEN, &[&[path].as_slice()])
            .await
            .map_err(HubError::from)
        {
            Ok(_) => return Ok(()),
            Err(HubError::Refused { code, .. }) if code != SqlState::QUERY_CANCELED => {}
            Err(error) => return Err(error),
        }
    }
    Err(error)
}

fn refused(text: String) -> HubError {
    HubError::Refused {
        text,
        code: SqlState::FDW_ERROR,
    }
}

/// Fails where the role may not make tables of files at all.
async fn may_name_files(client: &Client) -> Result<(), HubError> {
    let sql = "SELECT current_user::text,
                      pg_catalog.pg_has_role(current_user, 'pg_read_server_files', 'USAGE')";
    let row = client.query_one(sql, &[]).await?;
    let role: String = row.try_get(0)?;
    match row.try_get(1)? {
        true => Ok(()),
        false => Err(refused(format!(
            "the role {role:?} may not make tables of files; a superuser can let it: GRANT \
             pg_read_server_files TO {}",
            sql::ident(&role)
        ))),
    }
}

/// Whether the server can open all files, where the role may ask it so: a table costs a hundred times
/// as much. `false`: look closer.
async fn all_open(
    client: &Client,
    tables: &[&Table],
    paths: &BTreeMap<String, PathBuf>,
) -> Result<bool, HubError> {
    let paths: Vec<&str> = (tables.iter())
        .filter_map(|table| paths.get(&table.name)?.to_str())
        .collect();
    if !may_read_files(client).await? {
        return Ok(false);
    }
    match client
        .query_one(OPEN, &[&paths])
        .await
        .map_err(HubError::from)
    {
        Ok(_) => Ok(true),
        Err(HubError::Refused { code, text }) if code == SqlState::QUERY_CANCELED => {
            Err(HubError::Refused { text, code })
        }
        Err(HubError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens files and reads nothing of them.
const OPEN: &str = "SELECT pg_catalog.count(pg_catalog.pg_read_binary_file(p, 0, 0))
                    FROM pg_catalog.unnest($1::text[]) AS p";

/// Whether the role may have the server open files.
async fn may_read_files(client: &Client) -> Result<bool, HubError> {
    let may = "SELECT pg_catalog.has_function_privilege(
                   'pg_catalog.pg_read_binary_file(text, bigint, bigint)', 'EXECUTE')";
    Ok(client.query_one(may, &[]).await?.try_get(0)?)
}

/// Makes the tables and opens their files; those that fail, with the SQLSTATE and what the server
/// says.
async fn try_all(
    client: &Client,
    name: &str,
    target: &Target,
    tables: &[&Table],
) -> Result<BTreeMap<String, (SqlState, String)>, HubError> {
    let mut failed = BTreeMap::new();
    let before = scratch::prepare(client, name, target).await?;
    client.batch_execute(&before).await?;
    let statements = |table: &Table| {
        let mut text = String::new();
        sql::create_table(name, name, table, &mut text);
        // The file is opened, and no row of it is read.
        text.push_str(&format!(
            "SELECT FROM {} LIMIT 0;\n",
            sql::qualified(name, &table.name)
        ));
        text
    };
    // Usually all can be opened, and one round trip says so.
    for some in tables.chunks(100) {
        let all: String = some.iter().map(|table| statements(table)).collect();
        let all = format!("SAVEPOINT spcd_try;\n{all}ROLLBACK TO spcd_try;\n");
        match client.batch_execute(&all).await.map_err(HubError::from) {
            Ok(()) => continue,
            Err(HubError::Refused { .. }) => {
                client.batch_execute("ROLLBACK TO spcd_try").await?;
            }
            Err(error) => return Err(error),
        }
        for table in some {
            let tried = client.batch_execute(&statements(table)).await;
            match tried.map_err(HubError::from) {
                Ok(()) => {}
                Err(HubError::Refused { code, .. }) if code == SqlState::QUERY_CANCELED => {
                    return Err(refused("it took too long to open the files".into()));
                }
                Err(HubError::Refused { text, code }) => {
                    failed.insert(table.name.clone(), (code, text));
                }
                Err(error) => return Err(error),
            }
            client.batch_execute("ROLLBACK TO spcd_try").await?;
        }
    }
    Ok(failed)
}

/// Whom the server is to the file system, if it runs on this host.
async fn server(client: &Client) -> Result<Option<Who>, HubError> {
    let row = client
        .query_one("SELECT pg_catalog.pg_backend_pid()", &[])
        .await?;
    Ok(Who::of_server(row.try_get(0)?))
}
