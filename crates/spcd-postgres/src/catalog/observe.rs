//! The observed state of the database.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt as _;
use serde::Deserialize as _;
use serde::de::value::MapDeserializer;
use serde_json::Value;
use spcd_core::config::DesiredState;
use spcd_core::diff;
use spcd_core::diff::ColumnTypes;
use spcd_core::observed::{
    Applied, ConfigSnapshot, Detail, Extension, Observed, ObservedConnection, OtherOwner, Presence,
};
use spcd_core::planner::{self, Needs};
use spcd_core::secret::Secret;
use spcd_core::sql;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use crate::HubError;
use crate::catalog::aggregators;
use crate::catalog::foreign_tables::{self, RECORDED};
use crate::catalog::lanes;

/// Returns the observed state for [`planner::plan`], also of a database without spcd's schema.
pub async fn observe(client: &Client, desired: &DesiredState) -> Result<Observed, HubError> {
    crate::catalog::ownership::check(client).await?;
    let mut observed = match crate::has_relation(client, "spcd.applied").await? {
        true => {
            let (first, drifted) = tokio::join!(observe_database(client), drifted(client));
            let mut observed = first?;
            observed.mark(drifted?.keys());
            observed
        }
        false => Observed {
            admitted: true,
            drift_known: true,
            ..Observed::default()
        },
    };
    complete_observation(client, desired, &mut observed).await?;
    Ok(observed)
}

/// Adds the part that depends on the files to the result of [`observe_database`].
pub async fn complete_observation(
    client: &Client,
    desired: &DesiredState,
    observed: &mut Observed,
) -> Result<(), HubError> {
    let new = |name: &&String| {
        let known = observed.connections.get(*name);
        known.is_none_or(|known| known.applied.is_none())
    };
    let new: Vec<&String> = desired.connections.keys().filter(new).collect();
    observed.taken = occupied_names(client, &new).await?;
    observed.lanes = lanes::observe(client).await?;
    (observed.extensions, observed.versions) = extensions(client, desired).await?;
    let Needs {
        details,
        tables,
        views,
    } = planner::needs_detail(desired, observed);
    observed.views = aggregators::view_drift(client, &views, observed.readers).await?;
    observed.tables = recorded_tables(client, &tables).await?;
    observed.details = self::details(client, &details, observed.readers).await?;
    for (name, detail) in &mut observed.details {
        if let Some(Ok(target)) = desired.connections.get(name).map(|c| &c.target) {
            diff::normalize(&mut detail.tables, target.wrapper_traits());
        }
    }
    Ok(())
}

/// Returns whether the role `spcd_users` exists, and whether it has USAGE on the schema `spcd`.
async fn readers(client: &Client) -> Result<(bool, bool), HubError> {
    let sql = "SELECT r.oid IS NOT NULL, coalesce(
                   pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE'), true)
               FROM (SELECT) one
               LEFT JOIN pg_catalog.pg_roles r ON r.rolname = 'spcd_users'
               LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'spcd'";
    let row = client.query_one(sql, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Returns the part that does not depend on the files, without the [`drifted`] connections.
pub async fn observe_database(client: &Client) -> Result<Observed, HubError> {
    let (readers, admitted) = readers(client).await?;
    Ok(Observed {
        connections: connections(client, readers, None).await?,
        roles: crate::search_path::roles(client).await?,
        readers,
        admitted,
        ..Observed::default()
    })
}

/// Returns the same for these connections only, and without the roles.
pub async fn observe_connections(client: &Client, names: &[String]) -> Result<Observed, HubError> {
    let (readers, admitted) = readers(client).await?;
    Ok(Observed {
        connections: connections(client, readers, Some(names)).await?,
        readers,
        admitted,
        ..Observed::default()
    })
}

/// Returns the connections with objects that another session altered or dropped, with their current
/// fingerprints. Takes about 10 times as long as the rest of the observation. The first poll sends the
/// query.
pub async fn drifted(client: &Client) -> Result<BTreeMap<String, String>, HubError> {
    let sql =
        "SELECT connection_name, f.fingerprint FROM spcd.applied a JOIN spcd.fingerprint f USING (connection_name)
               WHERE a.fingerprint IS DISTINCT FROM f.fingerprint";
    let answer = client.simple_query(sql).await?;
    let name = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let fingerprint = row.get(1).unwrap_or_default();
            Some((row.get(0)?.to_owned(), fingerprint.to_owned()))
        }
        _ => None,
    };
    Ok(answer.iter().filter_map(name).collect())
}

/// Returns the rows of `spcd.connection_state` with the objects that exist for them: all rows, or those
/// of `names`.
async fn connections(
    client: &Client,
    readers: bool,
    names: Option<&[String]>,
) -> Result<BTreeMap<String, ObservedConnection>, HubError> {
    let readable = match readers {
        true => {
            "a.hidden_schema IS NOT NULL
             OR coalesce(pg_catalog.has_schema_privilege('spcd_users', n.oid, 'USAGE'), true)"
        }
        false => "true",
    };
    let written = written_columns();
    let named = match names {
        Some(_) => "WHERE s.connection_name = ANY ($1)",
        None => "",
    };
    let sql = format!(
        "SELECT s.connection_name, s.status, s.error, s.warnings, s.comments_set, s.schema_hash,
                a.target_hash, a.warnings, n.oid, n.oid IS NOT DISTINCT FROM a.schema_oid,
                f.oid, f.oid IS NOT DISTINCT FROM coalesce(g.server_oid, a.server_oid), {readable},
                a.extension_version, a.hidden_schema, a.types, coalesce(l.left_out, 0),
                a.server_name, {written}
         FROM spcd.connection_state s
         LEFT JOIN spcd.applied a USING (connection_name)
         LEFT JOIN (SELECT connection_name, count(*) AS left_out FROM spcd.left_out_table GROUP BY 1) l
              USING (connection_name)
         LEFT JOIN pg_catalog.pg_namespace n
              ON n.nspname = coalesce(a.hidden_schema, a.connection_name)
         LEFT JOIN spcd.gateway_lane g ON g.server_name = a.server_name
         LEFT JOIN pg_catalog.pg_foreign_server f
              ON f.srvname = coalesce(a.server_name, a.connection_name)
         {named}"
    );
    // Streams the rows, since thousands of them would otherwise be in memory twice.
    let names = names.as_ref().map(|names| names as &(dyn ToSql + Sync));
    let rows = client.query_raw(&sql, names).await?;
    let mut rows = std::pin::pin!(rows);
    let mut found = BTreeMap::new();
    while let Some(row) = rows.try_next().await? {
        let (name, connection) = parse_connection(&row)?;
        found.insert(name, connection);
    }
    Ok(found)
}

fn parse_connection(row: &Row) -> Result<(String, ObservedConnection), HubError> {
    let presence = |oid: Option<u32>, is_own: Option<bool>| match (oid, is_own) {
        (None, _) => Presence::Absent,
        (Some(_), Some(true)) => Presence::Ours,
        (Some(_), _) => Presence::Foreign,
    };
    let applied = match row.try_get::<_, Option<String>>(6)? {
        None => None,
        Some(target_hash) => Some(Applied {
            target_hash,
            warnings: row.try_get(7)?,
            intact: true,
            schema: presence(row.try_get(8)?, row.try_get(9)?),
            server: presence(row.try_get(10)?, row.try_get(11)?),
            readable: row.try_get(12)?,
            extension_version: row.try_get(13)?,
            hidden_schema: row.try_get(14)?,
            types: parse_types(row.try_get(15)?),
            left_out: usize::try_from(row.try_get::<_, i64>(16)?).unwrap_or_default(),
            server_name: row.try_get(17)?,
        }),
    };
    let status: &str = row.try_get(1)?;
    let known = ObservedConnection {
        // A CHECK constraint allows only these values.
        status: status.parse().unwrap_or(spcd_protocol::Status::Pending),
        error: row.try_get(2)?,
        warnings: row.try_get(3)?,
        comments_set: row.try_get(4)?,
        written: parse_written(row)?,
        schema_hash: row.try_get(5)?,
        applied,
        waits_for: None,
    };
    Ok((row.try_get(0)?, known))
}

/// Parses recorded types. Returns none if another version wrote them.
fn parse_types(value: Option<serde_json::Value>) -> ColumnTypes {
    value
        .and_then(|value| serde_json::from_value(value).ok())
        .unwrap_or_default()
}

/// Index of the first column of [`ConfigSnapshot`] in a row.
const FIRST_WRITTEN: usize = 18;

/// Returns the names of the columns that [`ConfigSnapshot`] has.
fn written_columns() -> String {
    let fields = serde_json::to_value(ConfigSnapshot::default()).unwrap_or_default();
    let names = fields.as_object().into_iter().flatten();
    let columns: Vec<String> = names
        .map(|(name, _)| format!("s.{}", sql::ident(name)))
        .collect();
    columns.join(", ")
}

/// Reads the columns of [`ConfigSnapshot`]. Values that were changed by hand and cannot be parsed
/// differ from the files, so the next pass writes them again.
fn parse_written(row: &Row) -> Result<ConfigSnapshot, HubError> {
    let mut columns = Vec::new();
    for (at, column) in row.columns().iter().enumerate().skip(FIRST_WRITTEN) {
        let value = match *column.type_() {
            Type::TEXT => row.try_get::<_, Option<String>>(at)?.map(Value::from),
            Type::TEXT_ARRAY => row.try_get::<_, Option<Vec<String>>>(at)?.map(Value::from),
            Type::INT4 => row.try_get::<_, Option<i32>>(at)?.map(Value::from),
            Type::BOOL => row.try_get::<_, Option<bool>>(at)?.map(Value::from),
            _ => row.try_get::<_, Option<Value>>(at)?,
        };
        columns.extend(value.map(|value| (column.name(), value)));
    }
    let columns = MapDeserializer::<_, serde_json::Error>::new(columns.into_iter());
    Ok(ConfigSnapshot::deserialize(columns).unwrap_or_default())
}

async fn occupied_names(
    client: &Client,
    names: &[&String],
) -> Result<BTreeMap<String, String>, HubError> {
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
    desired: &DesiredState,
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

/// Returns server, mapping and tables of some connections. The tables are not normalized.
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
    details.extend(servers(client, names).await?);
    for (name, server) in lanes::servers(client, names).await? {
        details.entry(name).or_default().server = Some(server);
    }
    for (key, table) in foreign_tables::tables(client, RECORDED, &names).await? {
        details.entry(key).or_default().tables.push(table);
    }
    read_tuning(client, names, &mut details).await?;
    read_privileges(client, names, readers, &mut details).await?;
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

/// Adds the options for speed that spcd has set. A value that another version wrote counts as none.
async fn read_tuning(
    client: &Client,
    names: &[String],
    details: &mut BTreeMap<String, Detail>,
) -> Result<(), HubError> {
    let sql = "SELECT connection_name, tuning FROM spcd.applied
               WHERE connection_name = ANY ($1) AND tuning IS NOT NULL";
    for row in client.query(sql, &[&names]).await? {
        // With a record that cannot be read, all values count as the user's and stay.
        let tuning = serde_json::from_value(row.try_get(1)?).unwrap_or_default();
        details.entry(row.try_get(0)?).or_default().tuning = tuning;
    }
    Ok(())
}

/// Adds the tables that readers cannot read, and those that the session's role does not own.
async fn read_privileges(
    client: &Client,
    names: &[String],
    readers: bool,
    details: &mut BTreeMap<String, Detail>,
) -> Result<(), HubError> {
    let is_closed = match readers {
        true => "NOT pg_catalog.has_table_privilege('spcd_users', t.oid, 'SELECT')",
        false => "false",
    };
    let sql = format!(
        "SELECT p.* FROM (
             SELECT t.key, t.name, {is_closed} AS is_closed,
                    CASE WHEN NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
                         THEN pg_catalog.pg_get_userbyid(c.relowner)::text END AS owner,
                    current_user::text
             FROM ({RECORDED}) t
             JOIN pg_catalog.pg_class c ON c.oid = t.oid) p
         WHERE p.is_closed OR p.owner IS NOT NULL"
    );
    for row in client.query(&sql, &[&names]).await? {
        let detail = details.entry(row.try_get(0)?).or_default();
        let table: String = row.try_get(1)?;
        if row.try_get(2)? {
            detail.unreadable.push(table.clone());
        }
        if let Some(owner) = row.try_get(3)? {
            let role = row.try_get(4)?;
            detail
                .other_owners
                .insert(table, OtherOwner { owner, role });
        }
    }
    Ok(())
}

/// Returns wrapper, options and public mapping of the servers of these names.
pub async fn servers(
    client: &Client,
    names: &[String],
) -> Result<BTreeMap<String, Detail>, HubError> {
    let mut details: BTreeMap<String, Detail> = BTreeMap::new();
    let sql =
        "SELECT s.srvname::text, w.fdwname::text, s.srvoptions, m.umid IS NOT NULL, m.umoptions
               FROM pg_catalog.pg_foreign_server s
               JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
               LEFT JOIN pg_catalog.pg_user_mappings m ON m.srvid = s.oid AND m.umuser = 0
               WHERE s.srvname = ANY ($1::text[])";
    for row in client.query(sql, &[&names]).await? {
        let detail = details.entry(row.try_get(0)?).or_default();
        detail.server = Some((row.try_get(1)?, foreign_tables::options(row.try_get(2)?)));
        if row.try_get(3)? {
            let options = foreign_tables::options(row.try_get(4)?).into_iter();
            detail.mapping = Some(options.map(|(k, v)| (k, Secret::new(v))).collect());
        }
    }
    Ok(details)
}
