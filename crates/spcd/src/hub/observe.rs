//! One look at the database.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt as _;
use spcd_core::config::Desired;
use spcd_core::observed::{Applied, Detail, Extension, Known, Observed, Presence, Written};
use spcd_core::plan::{self, Needs};
use spcd_core::secret::Secret;
use spcd_core::shape;
use spcd_core::shape::KnownTypes;
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::tables::{self, RECORDED};
use super::{HubError, union};

/// Everything [`plan::plan`] decides by, except what the daemon itself remembers; also of a
/// database on which spcd was never run.
pub async fn observe(client: &Client, desired: &Desired) -> Result<Observed, HubError> {
    super::ownership::check(client).await?;
    let kept = "SELECT pg_catalog.to_regclass('spcd.applied') IS NOT NULL";
    let mut observed = match client.query_one(kept, &[]).await?.try_get(0)? {
        true => {
            let (first, drifted) = tokio::join!(first(client), drifted(client));
            let mut observed = first?;
            observed.mark(drifted?.keys());
            observed
        }
        false => Observed {
            admitted: true,
            ..Observed::default()
        },
    };
    complete(client, desired, &mut observed).await?;
    Ok(observed)
}

/// Adds what depends on the files: the [`first`] look can run while they are read.
pub async fn complete(
    client: &Client,
    desired: &Desired,
    observed: &mut Observed,
) -> Result<(), HubError> {
    let new = |name: &&String| {
        let known = observed.connections.get(*name);
        known.is_none_or(|known| known.applied.is_none())
    };
    let new: Vec<&String> = desired.connections.keys().filter(new).collect();
    observed.taken = taken(client, &new).await?;
    (observed.extensions, observed.versions) = extensions(client, desired).await?;
    let Needs {
        details,
        tables,
        views,
    } = plan::needs_detail(desired, observed);
    observed.views = union::views(client, &views, observed.readers).await?;
    observed.tables = recorded_tables(client, &tables).await?;
    observed.details = self::details(client, &details, observed.readers).await?;
    for (name, detail) in &mut observed.details {
        if let Some(Ok(target)) = desired.connections.get(name).map(|c| &c.target) {
            shape::normalize(&mut detail.tables, target.traits());
        }
    }
    Ok(())
}

/// Whether the role `spcd_users` exists, and whether it may use the schema `spcd`.
async fn readers(client: &Client) -> Result<(bool, bool), HubError> {
    let sql = "SELECT r.oid IS NOT NULL, coalesce(
                   pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE'), true)
               FROM (SELECT) one
               LEFT JOIN pg_catalog.pg_roles r ON r.rolname = 'spcd_users'
               LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'spcd'";
    let row = client.query_one(sql, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// A look at what does not depend on the files, as though nothing had [`drifted`].
pub async fn first(client: &Client) -> Result<Observed, HubError> {
    let (readers, admitted) = readers(client).await?;
    Ok(Observed {
        connections: connections(client, readers).await?,
        roles: super::search_path::roles(client).await?,
        readers,
        admitted,
        ..Observed::default()
    })
}

/// The connections of which something was altered or dropped since spcd wrote it, with what they
/// look like: the part of a look that takes long. Everything that is sent is sent when this is polled first.
pub async fn drifted(client: &Client) -> Result<BTreeMap<String, String>, HubError> {
    let sql =
        "SELECT connection_name, f.fingerprint FROM spcd.applied a JOIN spcd.fingerprint f USING (connection_name)
               WHERE a.fingerprint IS DISTINCT FROM f.fingerprint";
    let answer = client.simple_query(sql).await?;
    let name = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let look = row.get(1).unwrap_or_default();
            Some((row.get(0)?.to_owned(), look.to_owned()))
        }
        _ => None,
    };
    Ok(answer.iter().filter_map(name).collect())
}

/// Every row of the state with what was made for it.
async fn connections(client: &Client, readers: bool) -> Result<BTreeMap<String, Known>, HubError> {
    let readable = match readers {
        true => {
            "a.hidden_schema IS NOT NULL
             OR coalesce(pg_catalog.has_schema_privilege('spcd_users', n.oid, 'USAGE'), true)"
        }
        false => "true",
    };
    let sql = format!(
        "SELECT s.connection_name, s.status, s.error, s.warnings, s.plugin, s.plugin_instance,
                s.type, s.connections, s.import_schema, s.file_name, s.start_line, s.end_line,
                s.schema_hash, a.target_hash, a.warnings, n.oid,
                n.oid IS NOT DISTINCT FROM a.schema_oid, f.oid,
                f.oid IS NOT DISTINCT FROM a.server_oid, {readable},
                a.extension_version, a.hidden_schema, s.comments_set, s.labels, a.types
         FROM spcd.connection_state s
         LEFT JOIN spcd.applied a USING (connection_name)
         LEFT JOIN pg_catalog.pg_namespace n
              ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
         LEFT JOIN pg_catalog.pg_foreign_server f ON f.srvname = a.connection_name"
    );
    // Row by row: thousands of them at once would be there twice.
    let none: [&str; 0] = [];
    let rows = client.query_raw(&sql, none).await?;
    let mut rows = std::pin::pin!(rows);
    let mut found = BTreeMap::new();
    while let Some(row) = rows.try_next().await? {
        let (name, connection) = known(&row)?;
        found.insert(name, connection);
    }
    Ok(found)
}

fn known(row: &Row) -> Result<(String, Known), HubError> {
    let presence = |oid: Option<u32>, ours: Option<bool>| match (oid, ours) {
        (None, _) => Presence::Absent,
        (Some(_), Some(true)) => Presence::Ours,
        (Some(_), _) => Presence::Foreign,
    };
    let line = |n: usize| -> Result<u32, HubError> {
        Ok(row.try_get::<_, Option<i32>>(n)?.unwrap_or_default() as u32)
    };
    let applied = match row.try_get::<_, Option<String>>(13)? {
        None => None,
        Some(target_hash) => Some(Applied {
            target_hash,
            warnings: row.try_get(14)?,
            intact: true,
            schema: presence(row.try_get(15)?, row.try_get(16)?),
            server: presence(row.try_get(17)?, row.try_get(18)?),
            readable: row.try_get(19)?,
            version: row.try_get(20)?,
            hidden_schema: row.try_get(21)?,
            types: known_types(row.try_get(24)?),
        }),
    };
    let status: &str = row.try_get(1)?;
    let known = Known {
        // The table's CHECK allows no other word.
        status: status.parse().unwrap_or(spcd_protocol::Status::Pending),
        error: row.try_get(2)?,
        warnings: row.try_get(3)?,
        comments_set: row.try_get(22)?,
        written: Written {
            plugin: row.try_get(4)?,
            plugin_instance: row.try_get(5)?,
            kind: row.try_get(6)?,
            connections: row.try_get(7)?,
            import_schema: row.try_get(8)?,
            file: row.try_get::<_, Option<String>>(9)?.unwrap_or_default(),
            start_line: line(10)?,
            end_line: line(11)?,
            labels: labels(row.try_get(23)?),
        },
        shape_hash: row.try_get(12)?,
        applied,
        waits_for: None,
    };
    Ok((row.try_get(0)?, known))
}

/// The types that are remembered; where they are not what this version writes, none.
fn known_types(value: Option<serde_json::Value>) -> KnownTypes {
    value
        .and_then(|value| serde_json::from_value(value).ok())
        .unwrap_or_default()
}

/// What is no text in there is nobody's label.
fn labels(value: serde_json::Value) -> BTreeMap<String, String> {
    serde_json::from_value(value).unwrap_or_default()
}

async fn taken(client: &Client, names: &[&String]) -> Result<BTreeMap<String, String>, HubError> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT w.name, CASE WHEN n.oid IS NOT NULL THEN 'schema' ELSE 'server' END
               FROM pg_catalog.unnest($1::text[]) AS w (name)
               LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = w.name
               LEFT JOIN pg_catalog.pg_foreign_server s ON s.srvname = w.name
               WHERE n.oid IS NOT NULL OR s.oid IS NOT NULL";
    let rows = client.query(sql, &[&names]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

async fn extensions(
    client: &Client,
    desired: &Desired,
) -> Result<(BTreeMap<String, Extension>, BTreeMap<String, String>), HubError> {
    let targets = desired
        .connections
        .values()
        .filter_map(|c| c.target.as_ref().ok());
    let names: BTreeSet<&str> = targets
        .flat_map(|target| std::iter::once(&target.extension).chain(&target.requires))
        .map(String::as_str)
        .filter(|name| !name.is_empty())
        .collect();
    let mut found = BTreeMap::new();
    let all: Vec<&str> = names.into_iter().collect();
    let mut versions = BTreeMap::new();
    let sql = "SELECT extname::text, extversion FROM pg_catalog.pg_extension
               WHERE extname = ANY ($1::text[])";
    for row in client.query(sql, &[&all]).await? {
        found.insert(row.try_get(0)?, Extension::Installed);
        versions.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let missing: Vec<&str> = (all.into_iter())
        .filter(|name| !found.contains_key(*name))
        .collect();
    if missing.is_empty() {
        return Ok((found, versions));
    }
    let sql = "SELECT w.name, a.name IS NOT NULL FROM pg_catalog.unnest($1::text[]) AS w (name)
               LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = w.name";
    for row in client.query(sql, &[&missing]).await? {
        let state = match row.try_get(1)? {
            true => Extension::Available,
            false => Extension::Missing,
        };
        found.insert(row.try_get(0)?, state);
    }
    Ok((found, versions))
}

async fn recorded_tables(
    client: &Client,
    names: &[String],
) -> Result<BTreeMap<String, Vec<String>>, HubError> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT connection_name, tables FROM spcd.applied WHERE connection_name = ANY ($1)";
    let rows = client.query(sql, &[&names]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

/// What there is of some connections, in full. Their tables are not normalized yet.
pub async fn details(
    client: &Client,
    names: &[String],
    readers: bool,
) -> Result<BTreeMap<String, Detail>, HubError> {
    let mut details: BTreeMap<String, Detail> = BTreeMap::new();
    if names.is_empty() {
        return Ok(details);
    }
    for name in names {
        details.insert(name.clone(), Detail::default());
    }
    let sql =
        "SELECT s.srvname::text, w.fdwname::text, s.srvoptions, m.umid IS NOT NULL, m.umoptions
               FROM pg_catalog.pg_foreign_server s
               JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
               LEFT JOIN pg_catalog.pg_user_mappings m ON m.srvid = s.oid AND m.umuser = 0
               WHERE s.srvname = ANY ($1::text[])";
    for row in client.query(sql, &[&names]).await? {
        let detail = details.entry(row.try_get(0)?).or_default();
        detail.server = Some((row.try_get(1)?, tables::options(row.try_get(2)?)));
        if row.try_get(3)? {
            let options = tables::options(row.try_get(4)?).into_iter();
            detail.mapping = Some(options.map(|(k, v)| (k, Secret::new(v))).collect());
        }
    }
    for (key, table) in tables::tables(client, RECORDED, &names).await? {
        details.entry(key).or_default().tables.push(table);
    }
    if readers {
        let sql = format!(
            "SELECT t.key, t.name FROM ({RECORDED}) t
             WHERE NOT pg_catalog.has_table_privilege('spcd_users', t.oid, 'SELECT')"
        );
        for row in client.query(&sql, &[&names]).await? {
            let detail = details.entry(row.try_get(0)?).or_default();
            detail.unreadable.push(row.try_get(1)?);
        }
    }
    let sql = "SELECT a.connection_name, c.relname::text
               FROM spcd.applied a
               JOIN pg_catalog.pg_namespace n
                    ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
               JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass
                    AND d.refobjid = n.oid AND d.classid = 'pg_catalog.pg_class'::regclass
               JOIN pg_catalog.pg_class c ON c.oid = d.objid
               WHERE a.connection_name = ANY ($1::text[]) AND NOT EXISTS (
                   SELECT 1 FROM spcd.aggregator_view v
                   WHERE v.connection_name = n.nspname AND NOT v.hidden AND v.name = c.relname)";
    for row in client.query(sql, &[&names]).await? {
        let name: String = row.try_get(1)?;
        let detail = details.entry(row.try_get(0)?).or_default();
        if !detail.tables.iter().any(|table| table.name == name) {
            detail.others.push(name);
        }
    }
    Ok(details)
}
