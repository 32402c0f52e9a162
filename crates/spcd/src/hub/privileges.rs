//! Which tables and columns of a Postgres source its role may not read.
//!
//! The functions that tell are not run by the source for postgres_fdw, so its catalog is read: the
//! roles that the session has there, and the access lists of tables and columns.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::Target;
use spcd_core::shape::Column;
use spcd_core::shape::Table;
use spcd_core::sql;
use tokio_postgres::Client;

use super::{HubError, catalog};

/// A member of it may read every table.
const READS_ALL: &str = "pg_read_all_data";
/// Number of tables that are named; of the others, how many there are.
const MOST_NAMED: usize = 20;

/// Returns a warning for each of these tables that the source's role may not read, wholly or in some
/// columns. Schema, server and mapping of that `name` are there, in an open transaction of which
/// nothing stays. A source that does not tell has one warning that says so.
pub async fn warnings(
    client: &Client,
    name: &str,
    target: &Target,
    tables: &[Table],
) -> Result<Vec<String>, HubError> {
    client.batch_execute("SAVEPOINT spcd_privileges").await?;
    let found = ask(client, name, target).await;
    if let Err(error @ HubError::Lost(_)) = found {
        return Err(error);
    }
    client.batch_execute("ROLLBACK TO spcd_privileges").await?;
    let found = match found {
        Ok(Found::Columns(found)) => found,
        Ok(Found::ClosedSchema) => {
            return Ok(vec![format!(
                "no table can be read: the source's role has no USAGE on the schema {:?}",
                target.import.schema
            )]);
        }
        Err(error) => {
            let error = super::one_line(&error.to_string());
            return Ok(vec![format!(
                "it is not known whether the source's role may read the tables: {error}"
            )]);
        }
    };
    let mut warnings: Vec<String> = (tables.iter())
        .filter_map(|table| {
            let columns = found.get(&table.name)?;
            let is_there = |column: &&Column| columns.contains(&column.name);
            let unreadable: Vec<_> = (table.columns.iter().filter(is_there))
                .map(|column| column.name.as_str())
                .collect();
            match unreadable.len() {
                0 => None,
                all if all == table.columns.len() => Some(format!(
                    "table {:?} cannot be read: the source's role may not SELECT from it",
                    table.name
                )),
                _ => Some(format!(
                    "table {:?} cannot be read in full: the source's role may not SELECT {}",
                    table.name,
                    unreadable.join(", ")
                )),
            }
        })
        .collect();
    if let Some(more) = warnings.len().checked_sub(MOST_NAMED + 1) {
        warnings.truncate(MOST_NAMED);
        warnings.push(format!(
            "{} more tables cannot be read by the source's role",
            more + 1
        ));
    }
    Ok(warnings)
}

/// What the role may not read.
enum Found {
    /// These columns, by table.
    Columns(BTreeMap<String, BTreeSet<String>>),
    /// Nothing at all: it may not use the schema.
    ClosedSchema,
}

async fn ask(client: &Client, name: &str, target: &Target) -> Result<Found, HubError> {
    let into = format!("{name}_acl");
    let table = |table: &str| sql::qualified(&into, table);
    let create = sql::create_schema(&into) + &catalog::privilege_tables(&into, name);
    client.batch_execute(&create).await?;
    let roles = format!("SELECT role_name FROM {}", table("enabled_roles"));
    let roles: BTreeSet<String> = (client.query(&roles, &[]).await?.iter())
        .filter_map(|row| row.try_get(0).ok())
        .collect();
    if roles.is_empty() || roles.contains(READS_ALL) {
        return Ok(Found::Columns(BTreeMap::new()));
    }
    let schema = format!(
        "SELECT o.rolname, n.nspacl FROM {} n JOIN {} o ON o.oid = n.nspowner WHERE n.nspname = {}",
        table("acl_namespace"),
        table("pg_roles"),
        sql::literal(&target.import.schema)
    );
    if let Some(row) = client.query_opt(&schema, &[]).await? {
        let (owner, list): (String, Option<Vec<String>>) = (row.try_get(0)?, row.try_get(1)?);
        if !roles.contains(&owner) && !may('U', list.as_deref(), &roles) {
            return Ok(Found::ClosedSchema);
        }
    }
    let lists = format!(
        "SELECT c.oid, c.relname, o.rolname, c.relacl
         FROM {} n JOIN {} c ON c.relnamespace = n.oid JOIN {} o ON o.oid = c.relowner {}",
        table("acl_namespace"),
        table("acl_class"),
        table("pg_roles"),
        catalog::of_schema(target)
    );
    let mut closed: BTreeMap<u32, String> = BTreeMap::new();
    for row in client.query(&lists, &[]).await? {
        let owner: String = row.try_get(2)?;
        let list: Option<Vec<String>> = row.try_get(3)?;
        let name: String = row.try_get(1)?;
        if !roles.contains(&owner)
            && !may('r', list.as_deref(), &roles)
            && target.import.takes(&name)
        {
            closed.insert(row.try_get(0)?, name);
        }
    }
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    if closed.is_empty() {
        return Ok(Found::Columns(found));
    }
    let oids: Vec<u32> = closed.keys().copied().collect();
    let columns = format!(
        "SELECT c.attrelid, c.attname, c.attacl FROM {} c
         WHERE c.attnum > 0 AND NOT c.attisdropped {}",
        table("acl_attribute"),
        catalog::is_one_of(&oids).replace("c.oid", "c.attrelid")
    );
    for row in client.query(&columns, &[]).await? {
        let list: Option<Vec<String>> = row.try_get(2)?;
        if let Some(table) = closed.get(&row.try_get::<_, u32>(0)?)
            && !may('r', list.as_deref(), &roles)
        {
            let columns = found.entry(table.clone()).or_default();
            columns.insert(row.try_get(1)?);
        }
    }
    Ok(Found::Columns(found))
}

/// Whether an access list grants a right (`r`: SELECT, `U`: USAGE) to PUBLIC or to one of the roles.
/// (Without a list only the owner has a right.)
fn may(right: char, list: Option<&[String]>, roles: &BTreeSet<String>) -> bool {
    list.into_iter().flatten().any(|item| {
        let (grantee, rest) = grantee(item);
        let rights = rest.split('/').next().unwrap_or_default();
        rights.contains(right) && (grantee.is_empty() || roles.contains(&grantee))
    })
}

/// The role of an item `role=rights/grantor`, unquoted, and what follows the equals sign.
fn grantee(item: &str) -> (String, &str) {
    let Some(quoted) = item.strip_prefix('"') else {
        let (role, rest) = item.split_once('=').unwrap_or((item, ""));
        return (role.to_owned(), rest);
    };
    let mut role = String::new();
    let mut rest = quoted.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        match c {
            '"' if rest.next_if(|(_, next)| *next == '"').is_some() => role.push('"'),
            '"' => return (role, quoted.get(at + 2..).unwrap_or_default()),
            c => role.push(c),
        }
    }
    (role, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lists_are_read_as_the_server_writes_them() {
        let roles = BTreeSet::from(["reader".to_owned(), "my \"=role".to_owned()]);
        for (item, expected) in [
            ("reader=r/owner", true),
            ("reader=arwdDxt/owner", true),
            ("reader=r*w/owner", true),
            ("=r/owner", true),
            ("reader=aw/owner", false),
            ("reader=aw/r", false),
            ("other=r/owner", false),
            ("\"my \"\"=role\"=r/owner", true),
            ("\"my \"\"=role\"=w/owner", false),
        ] {
            let list = [item.to_owned()];
            assert_eq!(may('r', Some(&list), &roles), expected, "{item}");
        }
        assert!(!may('r', None, &roles));
        let list = ["reader=U/owner".to_owned()];
        assert!(may('U', Some(&list), &roles) && !may('r', Some(&list), &roles));
    }
}
