//! Aggregators in the gateway.
//!
//! An aggregator whose members all belong to one plugin in the gateway is divided into lanes. For each
//! lane the gateway has an aggregator over that lane's members. The hub has a foreign table over each of
//! its views, and one view over the foreign tables, which reads them concurrently.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lanes::{lane_group, spread};
use super::{GatewayRow, is_in_gateway};
use crate::aggregator;
use crate::diff::MAX_NAME_BYTES;
use crate::hash::hash;
use crate::model::{AggregatorLane, Connection, ConnectionKind, DesiredState, ForeignSource, Lane};

/// Desired lane of an aggregator.
#[derive(Debug)]
pub(super) struct DesiredLane {
    pub(super) lane: Lane,
    /// Name of the aggregator in the gateway, and of its schema.
    pub(super) schema: String,
    pub(super) members: Vec<String>,
    /// Patterns of the aggregator in the gateway.
    patterns: Vec<String>,
}

impl DesiredLane {
    /// Returns the members, each with the server by which the hub reads it here.
    pub(super) fn members(&self) -> impl Iterator<Item = (&String, String)> {
        self.members.iter().map(|name| (name, self.lane.server()))
    }
}

/// Returns the lanes of each aggregator that belongs in the gateway.
pub(super) fn desired_lanes(
    desired: &DesiredState,
    counts: &BTreeMap<String, u32>,
) -> BTreeMap<String, Vec<DesiredLane>> {
    let mut all = BTreeMap::new();
    if counts.is_empty() {
        return all;
    }
    for (name, members) in aggregator::members(desired, &BTreeMap::new()) {
        let Some(connection) = desired.connections.get(name) else {
            continue;
        };
        let members: Vec<&Arc<Connection>> = (members.iter())
            .filter_map(|member| desired.connections.get(*member))
            .filter(|member| member.enabled)
            .collect();
        if connection.target.is_ok()
            && let Some(group) = common_group(&members)
        {
            let count = counts
                .get(&members[0].plugin_instance)
                .copied()
                .unwrap_or(1);
            all.insert(name.to_owned(), lanes(connection, &members, &group, count));
        }
    }
    all
}

/// Returns the group of lanes that all members share; `None` if there is none, if a member is not in the
/// gateway, or if its tables have other names in the hub.
fn common_group(members: &[&Arc<Connection>]) -> Option<String> {
    let first = members.first()?;
    let is_alike = |member: &&Arc<Connection>| {
        let target = member.target.as_ref();
        is_in_gateway(member)
            && member.plugin_instance == first.plugin_instance
            && target.map_or(true, |target| target.import.naming.is_none())
    };
    // An aggregator whose block has an error keeps its members.
    let mut wrappers: Vec<&str> = (members.iter())
        .filter_map(|member| Some(member.target.as_ref().ok()?.wrapper.as_str()))
        .collect();
    wrappers.dedup();
    match (members.iter().all(is_alike), wrappers.as_slice()) {
        (true, [wrapper]) => Some(lane_group(&first.plugin_instance, wrapper)),
        _ => None,
    }
}

fn lanes(
    aggregator: &Connection,
    members: &[&Arc<Connection>],
    group: &str,
    count: u32,
) -> Vec<DesiredLane> {
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let lanes = spread(&names, count).into_iter();
    lanes
        .enumerate()
        .map(|(n, (number, members))| {
            let members: Vec<String> = members.into_iter().map(str::to_owned).collect();
            let mut patterns = members.clone();
            // Connections whose files cannot be read now stay members of the first lane.
            if let (0, ConnectionKind::Aggregator { patterns: all, .. }) = (n, &aggregator.kind) {
                patterns.extend(all.iter().cloned());
            }
            patterns.sort();
            patterns.dedup();
            DesiredLane {
                lane: Lane {
                    group: group.to_owned(),
                    number: Some(number),
                },
                schema: lane_schema(&aggregator.name, number),
                members,
                patterns,
            }
        })
        .collect()
}

/// Returns the name of an aggregator's lane in the gateway. Its prefix is reserved.
fn lane_schema(aggregator: &str, number: u32) -> String {
    let name = format!("spcd_lane_{number}_{aggregator}");
    match name.len() <= MAX_NAME_BYTES {
        true => name,
        false => format!("spcd_lane_{number}_{}", hash([aggregator])),
    }
}

/// Returns the desired aggregators of the gateway.
pub(super) fn gateway_aggregators(
    desired: &DesiredState,
    lanes: BTreeMap<String, Vec<DesiredLane>>,
) -> Vec<Arc<Connection>> {
    let of_aggregator = |(name, lanes): (String, Vec<DesiredLane>)| {
        let aggregator = desired.connections.get(&name).cloned();
        lanes.into_iter().filter_map(move |lane| {
            let aggregator = aggregator.as_ref()?;
            Some(Arc::new(Connection {
                name: lane.schema,
                kind: ConnectionKind::Aggregator {
                    patterns: lane.patterns,
                    members: lane.members,
                },
                ..Connection::clone(aggregator)
            }))
        })
    };
    lanes.into_iter().flat_map(of_aggregator).collect()
}

/// Returns a lane as the gateway has it, without its source; `None` if it differs from the desired one.
pub(super) fn aggregator_lane(lane: &DesiredLane, row: &GatewayRow) -> Option<AggregatorLane> {
    let mut patterns = row.connections.clone();
    patterns.sort();
    let members = row.members.as_ref().filter(|_| patterns == lane.patterns)?;
    Some(AggregatorLane {
        lane: lane.lane.clone(),
        schema: lane.schema.clone(),
        members: members.clone(),
        shape_hash: row.schema_hash.clone()?,
        source: ForeignSource::default(),
    })
}

#[cfg(test)]
mod tests {
    use spcd_protocol::Status;

    use super::*;
    use crate::config::{Cache, LoadContext, SourceFile, load};
    use crate::gateway::{Address, GatewayView, Gateways, HubParts, keep_gateway_part};
    use crate::secret::Secret;

    fn desired(lanes: u32, more: &str) -> DesiredState {
        let members = ["a", "b", "c"]
            .map(|name| format!("connection \"{name}\" {{\n  plugin = \"cloud\"\n}}\n"));
        let all = "connection \"all\" {\n  plugin = \"cloud\"\n  type = \"aggregator\"\n  \
                   connections = [\"*\"]\n}\n";
        let plugin = format!("plugin \"cloud\" {{\n  lanes = {lanes}\n}}\n");
        let source = SourceFile {
            path: "/a.spc".into(),
            text: Ok(plugin + &members.concat() + all + more),
        };
        let mut given = LoadContext {
            lookup: None,
            has_gateway: true,
        };
        load(&[source], &mut given, &mut Cache::default()).desired
    }

    /// The aggregators that the gateway is to have, with their members.
    fn in_gateway(mut desired: DesiredState) -> Vec<(String, Vec<String>)> {
        keep_gateway_part(&mut desired, &Gateways::default(), 0);
        let aggregators = desired.connections.into_values();
        let members = |connection: Arc<Connection>| match &connection.kind {
            ConnectionKind::Aggregator { members, .. } => {
                Some((connection.name.clone(), members.clone()))
            }
            ConnectionKind::Plugin => None,
        };
        aggregators.filter_map(members).collect()
    }

    const ONE: &str = "connection \"one\" {\n  plugin = \"cloud\"\n  type = \"aggregator\"\n  \
                       connections = [\"x\"]\n}\n";

    #[test]
    fn the_gateway_has_an_aggregator_for_each_lane() {
        let one = in_gateway(desired(1, ""));
        let all = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(one, [("spcd_lane_0_all".to_owned(), all.clone())]);
        let three = in_gateway(desired(8, ""));
        let mut members: Vec<String> = three
            .iter()
            .flat_map(|(_, members)| members.clone())
            .collect();
        members.sort();
        assert_eq!((three.len(), members), (3, all));
        assert!(three.iter().all(|(name, _)| name.starts_with("spcd_lane_")));
    }

    #[test]
    fn an_aggregator_over_other_connections_too_stays_in_the_hub() {
        let x = |body: &str| format!("connection \"x\" {{\n  {body}\n}}\n") + ONE;
        let is_there = |body: &str| {
            let all = in_gateway(desired(1, &x(body)));
            all.iter().any(|(name, _)| name == "spcd_lane_0_one")
        };
        assert!(is_there("plugin = \"cloud\""));
        assert!(!is_there("plugin = \"cloud\"\n  gateway = false"));
        assert!(!is_there("plugin = \"postgres\"\n  dbname = \"x\""));
        assert!(!is_there(
            "plugin = \"cloud\"\n  import_schema = \"disabled\""
        ));
        assert!(!is_there(
            "plugin = \"cloud\"\n  import {\n    names = \"lower\"\n  }"
        ));
        // With another one, a disabled member is only left out.
        let mixed = x("plugin = \"postgres\"\n  dbname = \"x\"\n  gateway = true")
            .replace("[\"x\"]", "[\"x\", \"a\"]");
        assert_eq!(in_gateway(desired(1, &mixed)).len(), 1);
    }

    #[test]
    fn a_member_whose_block_has_an_error_keeps_its_tables_and_its_lane() {
        let broken = desired(
            1,
            "connection \"d\" {\n  plugin = \"cloud\"\n  import_schema = 3\n}\n",
        );
        assert!(broken.connections["d"].target.is_err());
        assert_eq!(in_gateway(broken.clone())[0].1, ["a", "b", "c", "d"]);
        let mut gateway = broken;
        keep_gateway_part(&mut gateway, &Gateways::default(), 0);
        assert!(gateway.connections.contains_key("d"));
    }

    fn row(status: Status, target: &str) -> GatewayRow {
        GatewayRow {
            status,
            error: None,
            warnings: Vec::new(),
            left_out: Vec::new(),
            target_hash: Some(target.to_owned()),
            schema_hash: Some("shape".into()),
            connections: Vec::new(),
            members: None,
        }
    }

    fn lane_row(status: Status, connections: &[&str]) -> GatewayRow {
        GatewayRow {
            connections: connections.iter().map(|name| (*name).to_owned()).collect(),
            members: Some(vec!["a".into(), "b".into()]),
            ..row(status, "aggregator:x")
        }
    }

    /// The aggregator `all` in the hub: whether it waits, and its lanes.
    fn in_hub(lane: Option<GatewayRow>, is_changed: bool) -> (bool, Vec<AggregatorLane>) {
        let mut desired = desired(1, "");
        let mut rows: BTreeMap<String, GatewayRow> = (desired.connections.iter())
            .filter(|(_, connection)| is_in_gateway(connection))
            .map(|(name, connection)| (name.clone(), row(Status::Ready, connection.target_hash())))
            .collect();
        if is_changed {
            rows.insert("c".into(), row(Status::Ready, "before"));
        }
        rows.extend(lane.map(|lane| ("spcd_lane_0_all".to_owned(), lane)));
        let view = GatewayView {
            address: Some(Address {
                options: BTreeMap::new(),
                user: "r".into(),
                password: Secret::new("p"),
            }),
            rows,
            error: None,
            write_error: None,
        };
        let gateways = Gateways::single(Arc::new(view));
        HubParts::default().apply(&mut desired, &Arc::new(gateways));
        let all = &desired.connections["all"];
        let gateway = all.gateway.as_ref().unwrap();
        let mut sources = gateway.lanes.iter().map(|lane| &lane.source);
        assert!(sources.all(|source| source.wrapper == "postgres_fdw"));
        (all.awaits_source, gateway.lanes.clone())
    }

    #[test]
    fn the_hub_waits_until_the_views_show_what_the_files_want() {
        let expected = ["*", "a", "b", "c"];
        for (lane, is_changed) in [
            (None, false),
            (Some(lane_row(Status::Ready, &expected[..3])), false),
            (Some(lane_row(Status::Ready, &expected)), true),
        ] {
            assert_eq!(in_hub(lane, is_changed), (true, vec![]));
        }
        let (waits, lanes) = in_hub(Some(lane_row(Status::Ready, &expected)), false);
        assert!(!waits);
        assert_eq!(lanes[0].schema, "spcd_lane_0_all");
        assert_eq!(
            lanes[0].members,
            ["a", "b"],
            "what the views show, not what they are to show"
        );
        // Existing views stay in use while the gateway checks them.
        let (waits, again) = in_hub(Some(lane_row(Status::Pending, &expected)), false);
        assert!(waits);
        assert_eq!(again, lanes);
    }
}
