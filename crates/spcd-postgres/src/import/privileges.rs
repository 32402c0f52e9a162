//! Tables and columns of a Postgres source that its role has no privilege to read.
//!
//! postgres_fdw does not run `has_table_privilege` at the source. Instead, the roles of the session and
//! the access lists of tables and columns are read from the source's catalog.

use std::collections::{BTreeMap, BTreeSet};

use spcd_core::config::ForeignSource;
use spcd_core::diff::Column;
use spcd_core::diff::Table;
use spcd_core::planner::RemoteSchema;
use spcd_core::sql;
use tokio_postgres::Client;

use crate::HubError;
use crate::import::source_catalog;

/// Predefined role whose members can read every table.
const READ_ALL_ROLE: &str = "pg_read_all_data";
/// Maximum number of tables that get a warning of their own. One warning counts the others.
const MAX_WARNINGS: usize = 20;

/// Adds a warning for each remote table that the source's role may not read, wholly or in some
/// columns. Schema, server and mapping of that `name` exist, in an open transaction that is rolled
/// back. If the source's catalog cannot be read, one warning says so.
///
/// # Errors
/// The session to the hub is lost.
pub async fn check(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    remote: &mut RemoteSchema,
) -> Result<(), HubError> {
    let schema = target.import.schema.clone();
    let mut remote_schemas = BTreeMap::from([(schema.clone(), std::mem::take(remote))]);
    let checked = check_many(client, name, target, &mut remote_schemas).await;
    *remote = remote_schemas.remove(&schema).unwrap_or_default();
    checked
}

/// Like [`check`], for several schemas.
pub async fn check_many(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    remote_schemas: &mut BTreeMap<String, RemoteSchema>,
) -> Result<(), HubError> {
    client.batch_execute("SAVEPOINT spcd_privileges").await?;
    let schemas: Vec<&str> = remote_schemas.keys().map(String::as_str).collect();
    let found = find_unreadable(client, name, target, &schemas).await;
    if let Err(error @ HubError::ConnectionLost(_)) = found {
        return Err(error);
    }
    client.batch_execute("ROLLBACK TO spcd_privileges").await?;
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let text = crate::one_line(&error.to_string());
            for remote in remote_schemas.values_mut() {
                remote.privileges_are_unknown(&text);
            }
            return Ok(());
        }
    };
    for (schema, found) in found {
        let Some(remote) = remote_schemas.get_mut(&schema) else {
            continue;
        };
        match found {
            Unreadable::Columns(found) => remote.warnings.extend(warnings(&found, &remote.tables)),
            Unreadable::ClosedSchema => remote.warnings.push(format!(
                "no table can be read: the source's role has no USAGE on the schema {schema:?}"
            )),
        }
    }
    Ok(())
}

/// Returns a warning for each table that has unreadable columns.
fn warnings(unreadable: &BTreeMap<String, BTreeSet<String>>, tables: &[Table]) -> Vec<String> {
    let mut warnings: Vec<String> = (tables.iter())
        .filter_map(|table| {
            let columns = unreadable.get(&table.name)?;
            let is_unreadable = |column: &&Column| columns.contains(&column.name);
            let unreadable: Vec<_> = (table.columns.iter().filter(is_unreadable))
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
    if let Some(more) = warnings.len().checked_sub(MAX_WARNINGS + 1) {
        warnings.truncate(MAX_WARNINGS);
        warnings.push(format!(
            "{} more tables cannot be read by the source's role",
            more + 1
        ));
    }
    warnings
}

/// Objects that the role cannot read.
enum Unreadable {
    /// Columns by table.
    Columns(BTreeMap<String, BTreeSet<String>>),
    /// The whole schema: the role has no USAGE on it.
    ClosedSchema,
}

/// Returns the unreadable objects, by schema.
async fn find_unreadable(
    client: &Client,
    name: &str,
    target: &ForeignSource,
    schemas: &[&str],
) -> Result<BTreeMap<String, Unreadable>, HubError> {
    let into = format!("{name}_acl");
    let table = |table: &str| sql::qualified(&into, table);
    let create = sql::create_schema(&into) + &source_catalog::privilege_tables(&into, name);
    client.batch_execute(&create).await?;
    let roles = format!("SELECT role_name FROM {}", table("enabled_roles"));
    let roles: BTreeSet<String> = (client.query(&roles, &[]).await?.iter())
        .filter_map(|row| row.try_get(0).ok())
        .collect();
    let mut unreadable = BTreeMap::new();
    if schemas.is_empty() || roles.is_empty() || roles.contains(READ_ALL_ROLE) {
        return Ok(unreadable);
    }
    let owners = format!(
        "SELECT o.rolname, n.nspacl, n.nspname
         FROM {} n JOIN {} o ON o.oid = n.nspowner WHERE n.nspname IN ({})",
        table("acl_namespace"),
        table("pg_roles"),
        source_catalog::literals(schemas)
    );
    for row in client.query(&owners, &[]).await? {
        let (owner, list): (String, Option<Vec<String>>) = (row.try_get(0)?, row.try_get(1)?);
        if !roles.contains(&owner) && !is_granted('U', list.as_deref(), &roles) {
            unreadable.insert(row.try_get(2)?, Unreadable::ClosedSchema);
        }
    }
    let lists = format!(
        "SELECT c.oid, c.relname, o.rolname, c.relacl, n.nspname
         FROM {} n JOIN {} c ON c.relnamespace = n.oid JOIN {} o ON o.oid = c.relowner {}",
        table("acl_namespace"),
        table("acl_class"),
        table("pg_roles"),
        source_catalog::table_condition(schemas, &target.import)
    );
    let mut closed: BTreeMap<u32, (String, String)> = BTreeMap::new();
    for row in client.query(&lists, &[]).await? {
        let owner: String = row.try_get(2)?;
        let list: Option<Vec<String>> = row.try_get(3)?;
        let (name, schema): (String, String) = (row.try_get(1)?, row.try_get(4)?);
        if !roles.contains(&owner)
            && !is_granted('r', list.as_deref(), &roles)
            && target.import.selects(&name)
            && !unreadable.contains_key(&schema)
        {
            closed.insert(row.try_get(0)?, (schema, name));
        }
    }
    if closed.is_empty() {
        return Ok(unreadable);
    }
    let oids: Vec<u32> = closed.keys().copied().collect();
    let columns = format!(
        "SELECT c.attrelid, c.attname, c.attacl FROM {} c
         WHERE c.attnum > 0 AND NOT c.attisdropped {}",
        table("acl_attribute"),
        source_catalog::oid_condition(&oids).replace("c.oid", "c.attrelid")
    );
    for row in client.query(&columns, &[]).await? {
        let list: Option<Vec<String>> = row.try_get(2)?;
        if let Some((schema, table)) = closed.get(&row.try_get::<_, u32>(0)?)
            && !is_granted('r', list.as_deref(), &roles)
        {
            let found = unreadable
                .entry(schema.clone())
                .or_insert_with(|| Unreadable::Columns(BTreeMap::new()));
            if let Unreadable::Columns(found) = found {
                let columns: &mut BTreeSet<String> = found.entry(table.clone()).or_default();
                columns.insert(row.try_get(1)?);
            }
        }
    }
    Ok(unreadable)
}

/// Whether an access list grants a right (`r`: SELECT, `U`: USAGE) to PUBLIC or to one of the roles.
/// Without a list only the owner has it.
fn is_granted(right: char, list: Option<&[String]>, roles: &BTreeSet<String>) -> bool {
    list.into_iter().flatten().any(|item| {
        let (grantee, rest) = parse_grantee(item);
        let rights = rest.split('/').next().unwrap_or_default();
        rights.contains(right) && (grantee.is_empty() || roles.contains(&grantee))
    })
}

/// Splits an item `role=rights/grantor` into the unquoted role and the rest after the equals sign.
fn parse_grantee(item: &str) -> (String, &str) {
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
            assert_eq!(is_granted('r', Some(&list), &roles), expected, "{item}");
        }
        assert!(!is_granted('r', None, &roles));
        let list = ["reader=U/owner".to_owned()];
        assert!(is_granted('U', Some(&list), &roles) && !is_granted('r', Some(&list), &roles));
    }
}
