//! Lanes: the servers by which the connections of a plugin instance reach the gateway, and those of
//! mirrors.

use std::collections::BTreeMap;

use spcd_core::gateway::HubLanes;
use spcd_core::observed::{ObservedLane, Presence};
use spcd_core::planner::LaneChange;
use spcd_core::secret::Secret;
use spcd_core::sql;
use tokio_postgres::Client;

use super::foreign_tables::options;
use crate::{HubError, has_relation, secrets, transaction};

/// Returns the servers that have names of lanes. Without spcd's schema, none of them counts as spcd's.
pub(super) async fn observe(client: &Client) -> Result<BTreeMap<String, ObservedLane>, HubError> {
    let mut lanes = BTreeMap::new();
    let recorded = match has_relation(client, "spcd.gateway_lane").await? {
        true => "spcd.gateway_lane",
        false => "(SELECT NULL::text AS server_name, NULL::oid AS server_oid WHERE false)",
    };
    let sql = format!(
        "SELECT coalesce(l.server_name, s.srvname::text), s.oid, s.oid = l.server_oid,
                s.srvoptions, m.umid IS NOT NULL, m.umoptions, EXISTS (
                    SELECT FROM pg_catalog.pg_depend d
                    WHERE d.refclassid = 'pg_catalog.pg_foreign_server'::pg_catalog.regclass
                      AND d.refobjid = s.oid AND d.objid IS DISTINCT FROM m.umid)
         FROM {recorded} l
         FULL JOIN (SELECT * FROM pg_catalog.pg_foreign_server
                    WHERE pg_catalog.starts_with(srvname::text, 'spcd_gateway_')
                       OR pg_catalog.starts_with(srvname::text, 'spcd_mirror_')) s
              ON s.srvname = l.server_name
         LEFT JOIN pg_catalog.pg_user_mappings m ON m.srvid = s.oid AND m.umuser = 0"
    );
    for row in client.query(&sql, &[]).await? {
        let presence = match (
            row.try_get::<_, Option<u32>>(1)?,
            row.try_get::<_, Option<bool>>(2)?,
        ) {
            (None, _) => Presence::Absent,
            (Some(_), Some(true)) => Presence::Ours,
            (Some(_), _) => Presence::Foreign,
        };
        let mapping = match row.try_get(4)? {
            true => {
                let options = options(row.try_get(5)?).into_iter();
                Some(options.map(|(k, v)| (k, Secret::new(v))).collect())
            }
            false => None,
        };
        let lane = ObservedLane {
            presence,
            options: options(row.try_get(3)?),
            mapping,
            in_use: row.try_get(6)?,
            refused: None,
        };
        lanes.insert(row.try_get(0)?, lane);
    }
    Ok(lanes)
}

/// Returns wrapper and options of the servers that connections share, by connection.
pub(super) async fn servers(
    client: &Client,
    names: &[String],
) -> Result<Vec<(String, (String, BTreeMap<String, String>))>, HubError> {
    let sql = "SELECT a.connection_name, w.fdwname::text, s.srvoptions
               FROM spcd.applied a
               JOIN pg_catalog.pg_foreign_server s ON s.srvname = a.server_name
               JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
               WHERE a.connection_name = ANY ($1::text[])";
    let rows = client.query(sql, &[&names]).await?;
    let server = |row: &tokio_postgres::Row| {
        Ok((row.try_get(0)?, (row.try_get(1)?, options(row.try_get(2)?))))
    };
    rows.iter().map(server).collect()
}

/// Returns the connections and schemas that the hub reads in gateways: those whose tables are on lanes,
/// and those of aggregators' lanes. Empty without spcd's schema.
pub async fn hub_lanes(hub: &Client) -> Result<HubLanes, HubError> {
    if !has_relation(hub, "spcd.gateway_lane").await? {
        return Ok(HubLanes::default());
    }
    let read = "SELECT connection_name, server_name FROM spcd.applied WHERE server_name IS NOT NULL
                UNION
                SELECT pg_catalog.substr(o.option, pg_catalog.length('schema_name=') + 1),
                       s.srvname::text
                FROM spcd.aggregator_view v
                JOIN pg_catalog.pg_class c ON c.relname = v.name AND c.relkind = 'f'
                     AND c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace
                                           WHERE nspname = 'spcd_union')
                JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = c.oid
                JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver
                CROSS JOIN LATERAL pg_catalog.unnest(f.ftoptions) AS o (option)
                WHERE v.hidden AND pg_catalog.starts_with(o.option, 'schema_name=')";
    let mut lanes = HubLanes::default();
    for row in hub.query(read, &[]).await? {
        lanes.servers.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let servers = "SELECT s.srvname::text, s.srvoptions FROM spcd.gateway_lane l
                   JOIN pg_catalog.pg_foreign_server s
                        ON s.srvname = l.server_name AND s.oid = l.server_oid";
    for row in hub.query(servers, &[]).await? {
        let options = options(row.try_get(1)?);
        lanes.options.insert(row.try_get(0)?, options);
    }
    Ok(lanes)
}

/// Creates, alters or drops the server of a lane, in the name of a leader's epoch.
///
/// # Errors
/// A statement that the server refuses, or a lost session or leadership.
pub async fn change(client: &Client, epoch: i64, change: &LaneChange) -> Result<(), HubError> {
    transaction::begin(client, epoch).await?;
    let changed = async {
        // Serializes with writers that touch the same server.
        let lock = "SELECT FROM spcd.gateway_lane WHERE server_name = $1 FOR UPDATE";
        client.query(lock, &[&change.server]).await?;
        let mut text = change.sql.clone();
        if let Some(mapping) = &change.mapping {
            secrets::prepare(client).await?;
            secrets::send(client, [(change.server.as_str(), mapping)]).await?;
            text.push_str(&sql::set_user_mapping(&change.server));
        }
        text.push_str(&change.record);
        Ok(client.batch_execute(&text).await?)
    };
    let changed = changed.await;
    transaction::end(client, changed).await
}
