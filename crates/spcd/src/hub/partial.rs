//! An import of everything that can be imported. IMPORT FOREIGN SCHEMA is all or nothing: a table
//! of a type that the hub does not know stops it, so it is done again without that one.

use std::collections::BTreeMap;

use spcd_core::config::Target;
use spcd_core::shape::{self, Table};
use spcd_core::sql;
use tokio_postgres::Client;
use tokio_postgres::error::{DbError, ErrorPosition};

use super::{HubError, observe};

/// So many tables that cannot be imported are told one by one; beyond that it is the source's
/// fault as a whole.
const MOST_UNFIT: usize = 200;

/// Imports the tables that a target takes (`only` those, if given) into a schema that is there,
/// inside a transaction. Those that cannot be imported are in the answer too, and say why.
pub async fn import(
    client: &Client,
    target: &Target,
    server: &str,
    into: &str,
    only: Option<&[String]>,
) -> Result<Vec<Table>, HubError> {
    let mut unfit: BTreeMap<String, String> = BTreeMap::new();
    // Cut, such a name would mean another table or none; that it is too long is told below.
    let is_long = |name: &&String| name.len() > shape::LONGEST_NAME;
    loop {
        let names = || unfit.keys().map(String::as_str);
        let limit = match only {
            Some(only) => {
                let left: Vec<&str> = (only.iter())
                    .filter(|name| !is_long(name) && !unfit.contains_key(*name))
                    .map(String::as_str)
                    .collect();
                if left.is_empty() {
                    break;
                }
                sql::limit_to(left)
            }
            None if unfit.is_empty() => String::new(),
            None => sql::except(names()),
        };
        client.batch_execute("SAVEPOINT spcd_import").await?;
        let (schema, options) = (&target.import.schema, &target.import_options);
        let import = sql::import(schema, server, into, &limit, options);
        let Err(error) = client.batch_execute(&import).await else {
            break;
        };
        let culprit = error.as_db_error().and_then(culprit);
        let error = HubError::from(error);
        match culprit {
            Some(table) if error.is_of_a_table() && unfit.len() < MOST_UNFIT => {
                client.batch_execute("ROLLBACK TO spcd_import").await?;
                // Named again: leaving it out does not help.
                if unfit.insert(table, error.to_string()).is_some() {
                    return Err(error);
                }
            }
            _ => return Err(error),
        }
    }
    let mut tables = observe::tables_of_schema(client, into, target.traits()).await?;
    let long = only.into_iter().flatten().filter(is_long);
    tables.extend(long.map(|name| Table {
        name: name.clone(),
        ..Table::default()
    }));
    tables.extend(unfit.into_iter().map(|(name, reason)| Table {
        name,
        unfit: Some(reason),
        ..Table::default()
    }));
    tables.retain(|table| target.import.takes(&table.name));
    shape::normalize(&mut tables, target.traits());
    Ok(tables)
}

/// The table at which an import stopped: from the statement that the wrapper wrote, or from where
/// the server says it happened, whatever language it says it in.
fn culprit(error: &DbError) -> Option<String> {
    if let Some(ErrorPosition::Internal { query, .. }) = error.position() {
        return created(query);
    }
    error.where_()?.lines().rev().find_map(quoted)
}

/// The name in `CREATE FOREIGN TABLE name (…`.
fn created(statement: &str) -> Option<String> {
    const CREATE: &str = "create foreign table ";
    let statement = statement.trim_start();
    let name = match statement.split_at_checked(CREATE.len()) {
        Some((start, name)) if start.eq_ignore_ascii_case(CREATE) => name.trim_start(),
        _ => return None,
    };
    let Some(mut rest) = name.strip_prefix('"') else {
        let end = name.find(|c: char| c.is_whitespace() || c == '(')?;
        return Some(name[..end].to_lowercase());
    };
    let mut found = String::new();
    loop {
        let end = rest.find('"')?;
        found.push_str(&rest[..end]);
        rest = rest[end + 1..].strip_prefix('"').unwrap_or("");
        match rest {
            "" => return Some(found),
            _ => found.push('"'),
        }
    }
}

/// What stands between the first and the last quotation mark of a line.
fn quoted(line: &str) -> Option<String> {
    let mark = |c: char| "\"«»„“”「」".contains(c);
    let (start, end) = (line.find(mark)?, line.rfind(mark)?);
    let first = line[start..].chars().next()?.len_utf8();
    let inside = line.get(start + first..end)?;
    Some(inside.trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{created, quoted};

    #[test]
    fn the_table_is_found_in_what_the_wrapper_wrote() {
        let of = |text: &str| created(text).unwrap_or_default();
        assert_eq!(
            of("CREATE FOREIGN TABLE \"a \"\"b\"\" c\" (\n  x int\n)"),
            "a \"b\" c"
        );
        assert_eq!(of("CREATE FOREIGN TABLE \"\"\"\" (x int)"), "\"");
        assert_eq!(of("create foreign table Plain(x int)"), "plain");
        assert_eq!(of("SELECT 1"), "");
        assert_eq!(of("CREATE FOREIGN TABLE \"open"), "");
    }

    #[test]
    fn the_table_is_found_in_the_context_whatever_the_language() {
        let of = |text: &str| quoted(text).unwrap_or_default();
        assert_eq!(of("importing foreign table \"a \"b\"\""), "a \"b\"");
        assert_eq!(of("importation de la table distante « t »"), "t");
        assert_eq!(of("importiere Fremdtabelle „t“"), "t");
        assert_eq!(of("nothing"), "");
    }
}
