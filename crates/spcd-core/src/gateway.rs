//! The gateway: a separate Postgres for wrappers that must not run in the hub.
//!
//! A connection whose wrapper runs there becomes two connections. In the gateway it has an extension, a
//! server, a mapping and foreign tables, as it would have in a hub. In the hub it is a connection to
//! another Postgres, the gateway, whose schema of the same name postgres_fdw imports. The rules for
//! connections thus apply to both sides.

mod aggregators;
mod hub_aggregators;
mod lanes;
mod placement;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spcd_protocol::Status;

use crate::aggregator;
use crate::diff::TableWarning;
use crate::hash::Hasher;
use crate::model::{
    Connection, ConnectionKind, DesiredState, ForeignSource, Import, LANE_OPTIONS, LaneServer,
    OptionValue, ProbeMethod, TOUCH_OPTION, TargetHash,
};
use crate::planner::LANE_WRAPPER;
use crate::secret::Secret;

pub use placement::{Availability, Gateway, Gateways, HubLanes, PresenceRecord};

use aggregators::gateway_aggregators;
use hub_aggregators::hub_aggregator;
use lanes::lane_of;
use routes::{DesiredLanes, Routes};

/// How a server of the hub reaches the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Options of postgres_fdw's server: `host`, `port`, `dbname` and those of TLS.
    pub options: BTreeMap<String, String>,
    /// The role that can only read.
    pub user: String,
    /// Its password.
    pub password: Secret,
}

/// A connection's row in the gateway's `spcd.connection_state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRow {
    /// Its status.
    pub status: Status,
    /// Its error, for the status `error`.
    pub error: Option<String>,
    /// Its warnings.
    pub warnings: Vec<String>,
    /// The tables that were left out.
    pub left_out: Vec<TableWarning>,
    /// Hash of the target of its tables.
    pub target_hash: Option<String>,
    /// The hash of its tables' shapes.
    pub schema_hash: Option<String>,
    /// Patterns of an aggregator.
    pub connections: Vec<String>,
    /// Members of an aggregator; `None` for other connections.
    pub members: Option<Vec<String>>,
}

/// The gateway's state, as the hub knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayView {
    /// Address; `None` until the gateway has started.
    pub address: Option<Address>,
    /// Rows by connection.
    pub rows: BTreeMap<String, GatewayRow>,
    /// Why the gateway cannot be reached.
    pub error: Option<String>,
    /// Why the gateway cannot be written. Its tables can be read.
    pub write_error: Option<String>,
}

impl GatewayView {
    /// Whether the difference to `before` may change the hub's plan. While the gateway changes a connection,
    /// the hub waits.
    pub fn differs_for_hub(&self, before: &Self) -> bool {
        let differs = |(name, row): (&String, &GatewayRow)| {
            let is_settled = matches!(row.status, Status::Ready | Status::Error | Status::Disabled);
            is_settled && before.rows.get(name) != Some(row)
        };
        self.address != before.address
            || self.error != before.error
            || self.write_error != before.write_error
            || self.rows.iter().any(differs)
            || before.rows.keys().any(|name| !self.rows.contains_key(name))
    }
}

/// Returns the connections that each aggregator shows.
fn members(desired: &DesiredState) -> BTreeMap<String, Vec<String>> {
    let members = aggregator::members(desired, &BTreeMap::new()).into_iter();
    let owned = |members: Vec<&str>| members.into_iter().map(str::to_owned).collect();
    members
        .map(|(name, members)| (name.to_owned(), owned(members)))
        .collect()
}

/// Returns whether a connection's wrapper runs in the gateway.
pub fn is_in_gateway(connection: &Connection) -> bool {
    connection.kind == ConnectionKind::Plugin && connection.in_gateway
}

/// Returns the connections that the hub reads in gateways, according to its desired state.
fn read_by_hub(desired: &DesiredState) -> BTreeSet<String> {
    let connections = || desired.connections.values();
    let lanes = connections().flat_map(|connection| {
        let lanes = connection.gateway.iter().flat_map(|gateway| &gateway.lanes);
        lanes.map(|lane| lane.schema.clone())
    });
    connections()
        .filter(|connection| is_in_gateway(connection))
        .map(|connection| connection.name.clone())
        .chain(lanes)
        .collect()
}

/// Reduces the desired state to what belongs to a gateway. A connection whose block has an error keeps its
/// objects.
pub fn keep_gateway_part(desired: &mut DesiredState, gateways: &Gateways, index: usize) {
    desired.hub_use = gateways.hub_use(index);
    let mut lanes = DesiredLanes::of(desired, gateways.hub.as_deref());
    let are_several = gateways.are_several();
    if are_several {
        lanes.retain(|server| gateways.serves(index, server));
    }
    let members: BTreeSet<String> = lanes.members().map(|(name, _)| name.clone()).collect();
    let servers = std::mem::take(&mut lanes.servers);
    let is_here =
        |name: &String| !are_several || servers.contains_key(name) || members.contains(name);
    let aggregators = gateway_aggregators(desired, lanes.aggregators);
    desired.connections.retain(|name, connection| {
        is_in_gateway(connection) && connection.enabled && is_here(name)
    });
    (desired.connections).extend(aggregators.into_iter().map(|one| (one.name.clone(), one)));
    desired.database.manage_search_path = Some(false);
}

/// Returns the hub's part of a connection whose wrapper runs in the gateway.
fn hub_part(connection: &Connection, gateway: &Gateway, lanes: &LanesOf) -> Connection {
    let view = &*gateway.view;
    let mut part = connection.clone();
    part.hash = TargetHash::default();
    let Ok(target) = &connection.target else {
        return part;
    };
    let row = view.rows.get(&connection.name);
    if let Some(row) = row {
        part.warnings.extend(row.warnings.iter().cloned());
        part.left_out.clone_from(&row.left_out);
    }
    if let Some(error) = gateway.error() {
        part.target = Err(error);
        return part;
    }
    let (Some(address), Some(row)) = (&view.address, row) else {
        part.target = waiting_target(target, gateway);
        part.awaits_source = true;
        return part;
    };
    if let (Status::Error, Some(error)) = (row.status, &row.error) {
        part.target = Err(error.clone());
        return part;
    }
    let is_made = row.target_hash.as_deref() == Some(connection.target_hash());
    part.target = match is_made && row.schema_hash.is_some() {
        true => {
            let mut part = hub_target(connection, target, address, row);
            part.lane = Some(lane_of(connection, &target.wrapper, lanes.count));
            part.also_read_by = lanes.also_read_by.clone();
            Ok(part)
        }
        false => waiting_target(target, gateway),
    };
    part.awaits_source = !is_made || row.status != Status::Ready;
    part
}

/// Returns the hub's part of a connection until the gateway has its tables. Its target has no wrapper and
/// no options, since nothing in the hub may use them, not even a probe.
fn waiting_target(target: &ForeignSource, gateway: &Gateway) -> Result<ForeignSource, String> {
    if let Some(error) = &gateway.view.write_error {
        return Err(format!("{} cannot write: {error}", gateway.title()));
    }
    Ok(ForeignSource {
        extension: LANE_WRAPPER.to_owned(),
        requires: target.requires.clone(),
        wrapper: LANE_WRAPPER.to_owned(),
        dynamic: true,
        probe: ProbeMethod::None,
        ..ForeignSource::default()
    })
}

/// Returns the hub's part of a connection: tables of postgres_fdw over those of the gateway.
fn hub_target(
    connection: &Connection,
    target: &ForeignSource,
    address: &Address,
    row: &GatewayRow,
) -> ForeignSource {
    let import = Import {
        schema: connection.name.clone(),
        timeout: target.import.timeout,
        unknown_types: target.import.unknown_types,
        naming: target.import.naming.clone(),
        ..Import::default()
    };
    let mut source = hub_source(address, target.requires.clone(), import);
    // The connections of a static plugin have the same tables, which exist in the gateway already.
    source.shared_shape = row.schema_hash.clone().filter(|_| !target.dynamic);
    let version = OptionValue {
        value: version(connection, row),
        public: true,
    };
    source.server.insert(TOUCH_OPTION.to_owned(), version);
    source
}

/// Returns how the hub reads tables of the gateway.
fn hub_source(address: &Address, requires: BTreeSet<String>, import: Import) -> ForeignSource {
    let like = lane_server(address);
    let public = true;
    let option = |(name, value)| (name, OptionValue { value, public });
    ForeignSource {
        extension: LANE_WRAPPER.to_owned(),
        requires,
        wrapper: LANE_WRAPPER.to_owned(),
        default_options: BTreeSet::new(),
        server: like.options.into_iter().map(option).collect(),
        mapping: like.mapping,
        ask_options: [("keep_connections".to_owned(), "off".to_owned())].into(),
        import: Import {
            // Refreshed when the gateway's tables change.
            refresh_interval: Some(0),
            ..import
        },
        dynamic: true,
        table_name_option: Some("table_name".to_owned()),
        column_name_option: Some("column_name".to_owned()),
        probe: ProbeMethod::None,
        ..ForeignSource::default()
    }
}

/// Returns the gateway as a source of the hub, for a probe.
pub fn reader_target(address: &Address) -> ForeignSource {
    let public = |(name, value): (&String, &String)| {
        let (value, public) = (value.clone(), true);
        (name.clone(), OptionValue { value, public })
    };
    ForeignSource {
        extension: LANE_WRAPPER.to_owned(),
        wrapper: LANE_WRAPPER.to_owned(),
        server: address.options.iter().map(public).collect(),
        mapping: lane_server(address).mapping,
        ask_options: [("keep_connections".to_owned(), "off".to_owned())].into(),
        import: Import {
            schema: "pg_catalog".to_owned(),
            ..Import::default()
        },
        dynamic: true,
        ..ForeignSource::default()
    }
}

/// Returns the server and mapping of every lane to the gateway.
fn lane_server(address: &Address) -> LaneServer {
    let fixed = LANE_OPTIONS.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mapping = [
        ("user", Secret::new(address.user.clone())),
        ("password", address.password.clone()),
    ];
    LaneServer {
        options: address.options.clone().into_iter().chain(fixed).collect(),
        mapping: mapping.map(|(name, value)| (name.to_owned(), value)).into(),
    }
}

/// Returns a text that differs for each configuration and each set of tables of a connection. When it
/// changes, the planner touches the lane, so that sessions reconnect at their next transaction. A wrapper
/// reads the configuration only once per session.
fn version(connection: &Connection, row: &GatewayRow) -> String {
    let mut hasher = Hasher::default();
    hasher.put(connection.target_hash());
    hasher.put(row.schema_hash.as_deref().unwrap_or_default());
    for left_out in &row.left_out {
        hasher.put(&left_out.text);
    }
    let hash = hasher.finish();
    format!("spcd hub {}", hash.get(..12).unwrap_or(&hash))
}

/// Replaces the connections whose wrappers run in a gateway by the hub's parts of them. Rebuilds a part
/// only if its configuration or the known state of its gateway differs.
#[derive(Debug, Default)]
pub struct HubParts {
    gateways: Arc<Gateways>,
    parts: BTreeMap<String, HubPart>,
    /// Server by which the hub reads each connection, or the schema of an aggregator's lane.
    servers: BTreeMap<String, String>,
    /// Connections that each aggregator shows.
    members: BTreeMap<String, Vec<String>>,
}

/// A connection of the files, and the hub's part of it.
#[derive(Debug)]
struct HubPart {
    of: Arc<Connection>,
    lanes: LanesOf,
    part: Arc<Connection>,
}

/// The lanes that lead to a connection's tables in the gateways.
#[derive(Debug, Default, PartialEq, Eq)]
struct LanesOf {
    /// The gateway in which the hub reads it.
    gateway: usize,
    /// Number of lanes of the plugin instance.
    count: u32,
    /// Servers of the lanes of aggregators.
    also_read_by: BTreeSet<String>,
}

impl HubParts {
    /// Replaces the connections. Returns whether there are any.
    pub fn apply(&mut self, desired: &mut DesiredState, gateways: &Arc<Gateways>) -> bool {
        let before = std::mem::take(&mut self.parts);
        self.members = members(desired);
        let lanes = DesiredLanes::of(desired, gateways.hub.as_deref());
        let mut also_read_by = lanes.also_read_by();
        let routes = Routes::of(gateways, &lanes, desired);
        let unknown = Gateway::default();
        desired.lane_servers = routes.lane_servers();
        for (name, connection) in &mut desired.connections {
            if !is_in_gateway(connection) {
                continue;
            }
            let lanes = LanesOf {
                gateway: routes.gateway_of(lanes.servers.get(name)),
                count: lanes.count(&connection.plugin_instance),
                also_read_by: also_read_by.remove(name).unwrap_or_default(),
            };
            let is_kept = |before: &&HubPart| {
                before.lanes == lanes
                    && Arc::ptr_eq(&before.of, connection)
                    && self.is_same(gateways, lanes.gateway, name)
            };
            let part = match before.get(name).filter(is_kept) {
                Some(before) => before.part.clone(),
                None => {
                    let gateway = gateways.list.get(lanes.gateway).unwrap_or(&unknown);
                    Arc::new(hub_part(connection, gateway, &lanes))
                }
            };
            let of = std::mem::replace(connection, part.clone());
            self.parts.insert(name.clone(), HubPart { of, lanes, part });
        }
        self.apply_to_aggregators(desired, &lanes, &routes);
        self.gateways = gateways.clone();
        self.servers = lanes.into_servers();
        !self.is_empty()
    }

    /// Whether the known state of a connection in its gateway is unchanged.
    fn is_same(&self, gateways: &Gateways, index: usize, name: &str) -> bool {
        let (Some(before), Some(now)) = (self.gateways.list.get(index), gateways.list.get(index))
        else {
            return false;
        };
        let (before, now) = (&*before.view, &*now.view);
        before.address == now.address
            && before.error == now.error
            && before.write_error == now.write_error
            && before.rows.get(name) == now.rows.get(name)
    }

    fn apply_to_aggregators(
        &self,
        desired: &mut DesiredState,
        lanes: &DesiredLanes,
        routes: &Routes<'_>,
    ) {
        let parts: BTreeMap<&str, &Connection> = (self.parts.iter())
            .map(|(name, part)| (name.as_str(), &*part.part))
            .collect();
        for (name, lanes) in &lanes.aggregators {
            if let Some(connection) = desired.connections.get_mut(name) {
                *connection = Arc::new(hub_aggregator(connection, lanes, routes, &parts));
            }
        }
    }

    /// Whether no connection's wrapper runs in a gateway.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns their names, in byte order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// Returns the connections of the gateways that a request names, in byte order. An aggregator stands for
    /// its members, `None` for all connections.
    pub fn named(&self, names: Option<&[String]>) -> Vec<String> {
        let Some(names) = names else {
            return self.parts.keys().cloned().collect();
        };
        let with_members = names.iter().flat_map(|name| {
            let members = self.members.get(name).map(Vec::as_slice);
            members.unwrap_or(std::slice::from_ref(name))
        });
        let named: BTreeSet<&String> = with_members
            .filter(|name| self.parts.contains_key(*name))
            .collect();
        named.into_iter().cloned().collect()
    }

    /// Returns the connections and schemas that the hub will read, with their servers if known.
    pub fn servers_to_read(&self, desired: &DesiredState) -> BTreeMap<String, Option<String>> {
        let server = |name: String| {
            let server = self.servers.get(&name).cloned();
            (name, server)
        };
        read_by_hub(desired).into_iter().map(server).collect()
    }
}

#[cfg(test)]
mod tests;
