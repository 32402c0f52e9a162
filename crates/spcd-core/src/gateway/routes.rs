//! The desired lanes, and the gateway to which each leads at present.
//!
//! A lane moves to another gateway once that gateway has the tables that the hub reads through the
//! lane.

use std::collections::{BTreeMap, BTreeSet};

use spcd_protocol::Status;

use super::aggregators::{DesiredLane, aggregator_lane, desired_lanes};
use super::lanes::{lane_counts, lane_of};
use super::placement::{Availability, Gateway, Gateways, HubLanes};
use super::{GatewayRow, is_in_gateway, lane_server};
use crate::model::{Connection, DesiredState, LaneServer};

/// Desired lanes of all connections and aggregators in gateways.
#[derive(Debug)]
pub(super) struct DesiredLanes {
    counts: BTreeMap<String, u32>,
    /// Server by which each connection is read. A connection whose block has an error keeps the server that
    /// the hub knows.
    pub servers: BTreeMap<String, String>,
    /// The lanes of each aggregator.
    pub aggregators: BTreeMap<String, Vec<DesiredLane>>,
}

impl DesiredLanes {
    pub fn of(desired: &DesiredState, hub: Option<&HubLanes>) -> Self {
        let counts = lane_counts(desired);
        let connections = desired.connections.values();
        let server = |connection: &Connection| {
            let known = hub.and_then(|hub| hub.servers.get(&connection.name));
            let Ok(target) = &connection.target else {
                return known.cloned();
            };
            let count = counts.get(&connection.plugin_instance).copied();
            let lane = lane_of(connection, &target.wrapper, count.unwrap_or(1));
            let kept = known.and_then(|server| lane.with_server(server));
            Some(kept.unwrap_or(lane).server())
        };
        Self {
            servers: connections
                .filter(|connection| is_in_gateway(connection))
                .filter_map(|connection| Some((connection.name.clone(), server(connection)?)))
                .collect(),
            aggregators: desired_lanes(desired, &counts),
            counts,
        }
    }

    /// Keeps only the lanes of these servers.
    pub fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.servers.retain(|_, server| is_kept(server));
        for lanes in self.aggregators.values_mut() {
            lanes.retain(|lane| is_kept(&lane.lane.server()));
        }
    }

    /// Returns the number of lanes of a plugin instance.
    pub fn count(&self, plugin_instance: &str) -> u32 {
        self.counts.get(plugin_instance).copied().unwrap_or(1)
    }

    /// Returns the members of aggregators, each with the server by which it is read there.
    pub fn members(&self) -> impl Iterator<Item = (&String, String)> {
        self.aggregator_lanes().flat_map(DesiredLane::members)
    }

    /// Returns the servers of aggregators' lanes by which each connection is read.
    pub fn also_read_by(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (member, server) in self.members() {
            all.entry(member.clone()).or_default().insert(server);
        }
        all
    }

    /// Returns the server of each connection, and of each schema of an aggregator's lane.
    pub fn into_servers(self) -> BTreeMap<String, String> {
        let lanes = self.aggregators.into_values().flatten();
        let schemas = lanes.map(|lane| (lane.schema.clone(), lane.lane.server()));
        self.servers.into_iter().chain(schemas).collect()
    }

    fn aggregator_lanes(&self) -> impl Iterator<Item = &DesiredLane> {
        self.aggregators.values().flatten()
    }
}

/// Gateway of each lane.
pub(super) struct Routes<'a> {
    gateways: &'a Gateways,
    of: BTreeMap<String, Route>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    gateway: usize,
    /// Whether the lane leads there or may move there.
    is_open: bool,
}

impl<'a> Routes<'a> {
    pub fn of(gateways: &'a Gateways, lanes: &DesiredLanes, desired: &DesiredState) -> Self {
        let of_aggregators = lanes.aggregator_lanes().map(|lane| lane.lane.server());
        let in_hub = gateways
            .hub
            .iter()
            .flat_map(|hub| hub.options.keys().cloned());
        let servers: BTreeSet<String> = (lanes.servers.values().cloned())
            .chain(of_aggregators)
            .chain(in_hub)
            .collect();
        let check = Check {
            gateways,
            lanes,
            desired,
        };
        let route = |server: String| {
            let route = check.route(&server);
            (server, route)
        };
        Self {
            gateways,
            of: servers.into_iter().map(route).collect(),
        }
    }

    /// Returns the gateway of a connection that is read by this server.
    pub fn gateway_of(&self, server: Option<&String>) -> usize {
        let route = server.and_then(|server| self.of.get(server));
        route.map_or(0, |route| route.gateway)
    }

    /// Returns the gateway of a lane.
    pub fn gateway(&self, server: &str) -> Option<&'a Gateway> {
        let route = self.of.get(server)?;
        self.gateways.list.get(route.gateway)
    }

    /// Returns the server and mapping of each lane whose gateway is known and answers.
    pub fn lane_servers(&self) -> BTreeMap<String, LaneServer> {
        let open = self.of.iter().filter(|(_, route)| route.is_open);
        let like = |(server, route): (&String, &Route)| {
            let view = &self.gateways.list.get(route.gateway)?.view;
            let address = view.address.as_ref().filter(|_| view.error.is_none())?;
            Some((server.clone(), lane_server(address)))
        };
        open.filter_map(like).collect()
    }
}

/// Finds the route of a lane.
struct Check<'a> {
    gateways: &'a Gateways,
    lanes: &'a DesiredLanes,
    desired: &'a DesiredState,
}

impl Check<'_> {
    fn route(&self, server: &str) -> Route {
        let (gateways, to) = (self.gateways, self.gateways.place(server));
        let current = gateways.current(server);
        if !gateways.is_in_hub(server)
            || current == Some(to)
            || self.is_complete(server, current, to)
        {
            return Route {
                gateway: to,
                is_open: true,
            };
        }
        Route {
            gateway: current.unwrap_or(to),
            is_open: current.is_some(),
        }
    }

    /// Returns whether a gateway has the tables that the hub reads through a lane that leads to another
    /// gateway. If the other one is away, it suffices that no connection is being changed.
    fn is_complete(&self, server: &str, from: Option<usize>, to: usize) -> bool {
        let list = &self.gateways.list;
        let (Some(to), Some(hub)) = (list.get(to), &self.gateways.hub) else {
            return false;
        };
        if to.view.address.is_none() || to.view.error.is_some() {
            return false;
        }
        let from = from.and_then(|from| list.get(from));
        let from = from.filter(|from| from.availability != Availability::Away);
        let mut read = hub.servers.iter().filter(|(_, by)| *by == server);
        read.all(|(name, _)| {
            let row = to.view.rows.get(name);
            let has_failed = row.is_some_and(|row| row.status == Status::Error);
            match from {
                None => {
                    let has_tables = row.is_some_and(|row| row.schema_hash.is_some());
                    has_tables || has_failed || !self.is_desired(name)
                }
                Some(from) => {
                    let fails_there = || {
                        let row = from.view.rows.get(name);
                        row.is_none_or(|row| row.status == Status::Error)
                    };
                    row.is_some_and(|row| self.is_current(name, row)) || has_failed && fails_there()
                }
            }
        })
    }

    fn is_desired(&self, name: &str) -> bool {
        let connection = self.desired.connections.get(name);
        connection.is_some_and(|connection| is_in_gateway(connection) && connection.enabled)
            || self.aggregator_lane(name).is_some()
    }

    /// Whether a row's tables or views are the desired ones.
    fn is_current(&self, name: &str, row: &GatewayRow) -> bool {
        if let Some(lane) = self.aggregator_lane(name) {
            return aggregator_lane(lane, row).is_some();
        }
        let connection = self.desired.connections.get(name);
        let hash = connection.map(|connection| connection.target_hash());
        let is_same =
            hash.is_none_or(|hash| hash.is_empty() || row.target_hash.as_deref() == Some(hash));
        is_same && row.schema_hash.is_some()
    }

    fn aggregator_lane(&self, schema: &str) -> Option<&DesiredLane> {
        let mut lanes = self.lanes.aggregator_lanes();
        lanes.find(|lane| lane.schema == schema)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{desired, lane_row};
    use super::super::{Address, GatewayView, HubParts, keep_gateway_part};
    use super::*;
    use crate::secret::Secret;

    const FILES: &str = "plugin \"cloud\" {\n  lanes = 1\n}\n\
        connection \"a\" {\n  plugin = \"cloud\"\n}\n\
        connection \"b\" {\n  plugin = \"cloud\"\n}\n";
    const ALL: &str = "connection \"all\" {\n  plugin = \"cloud\"\n  type = \"aggregator\"\n  \
                       connections = [\"*\"]\n}\n";

    /// Two gateways, the first of which suits the lane of all connections best, and a hub.
    struct World {
        desired: DesiredState,
        server: String,
        gateways: Gateways,
    }

    fn options(name: &str) -> BTreeMap<String, String> {
        let options = [("host", name), ("port", "5432"), ("dbname", "gw")];
        options
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    impl World {
        /// The hub's lane leads to one of them, which has all that the hub reads.
        fn new(files: &str, current: usize) -> Self {
            let desired = desired(files);
            let lanes = DesiredLanes::of(&desired, None);
            let server = lanes.servers["a"].clone();
            let gateway = |name: &str| Gateway {
                name: name.to_owned(),
                options: options(name),
                availability: Availability::Settled,
                view: Arc::new(GatewayView {
                    address: Some(Address {
                        options: options(name),
                        user: "r".into(),
                        password: Secret::new(format!("of {name}")),
                    }),
                    ..GatewayView::default()
                }),
            };
            let mut list = vec![gateway("x"), gateway("y")];
            let found = Gateways {
                list: list.clone(),
                hub: None,
            };
            if found.place(&server) == 1 {
                list.reverse();
            }
            let hub = HubLanes {
                options: [(server.clone(), list[current].options.clone())].into(),
                servers: lanes.into_servers(),
                ..HubLanes::default()
            };
            let mut world = Self {
                desired,
                server,
                gateways: Gateways {
                    list,
                    hub: Some(Arc::new(hub)),
                },
            };
            for name in ["a", "b", "spcd_lane_0_all"] {
                world.row(current, name, Some(Status::Ready));
            }
            world
        }

        fn view(&mut self, index: usize) -> &mut GatewayView {
            Arc::make_mut(&mut self.gateways.list[index].view)
        }

        /// Sets what a gateway says of a connection.
        fn row(&mut self, index: usize, name: &str, status: Option<Status>) {
            let hash = self.desired.target_hash(name).to_owned();
            let row = |status| match name.starts_with("spcd_lane") {
                true => GatewayRow {
                    connections: vec!["*".into(), "a".into(), "b".into()],
                    ..lane_row(&["a", "b"])
                },
                false => GatewayRow {
                    status,
                    error: (status == Status::Error).then(|| "no such host".into()),
                    schema_hash: (status != Status::Error).then(|| "shape".into()),
                    target_hash: Some(hash),
                    members: None,
                    connections: Vec::new(),
                    ..lane_row(&[])
                },
            };
            match status {
                Some(status) => self.view(index).rows.insert(name.to_owned(), row(status)),
                None => self.view(index).rows.remove(name),
            };
        }

        fn is_away(&mut self, index: usize) {
            self.gateways.list[index].availability = Availability::Away;
            self.view(index).error = Some("refused".into());
        }

        fn hub(&self) -> DesiredState {
            let mut hub = self.desired.clone();
            HubParts::default().apply(&mut hub, &Arc::new(self.gateways.clone()));
            hub
        }

        /// The gateway to which the lane is to be altered, if it is.
        fn leads_to(&self) -> Option<usize> {
            let hub = self.hub();
            let like = hub.lane_servers.get(&self.server)?;
            let list = self.gateways.list.iter();
            let found = list.enumerate().find(|(_, gateway)| {
                like.mapping["password"].expose() == format!("of {}", gateway.name)
                    && like.options["host"] == gateway.name
            });
            found.map(|(index, _)| index)
        }
    }

    #[test]
    fn a_lane_of_a_gateway_that_is_away_moves_once_another_one_has_its_tables() {
        let mut world = World::new(FILES, 0);
        let before = world.hub();
        assert_eq!(world.leads_to(), Some(0));
        world.is_away(0);
        // Nothing leads to a gateway that has nothing.
        assert_eq!(world.leads_to(), None);
        let waiting = world.hub();
        let error = waiting.connections["a"].target.as_ref().unwrap_err();
        assert_eq!(
            *error,
            format!("the gateway {}: refused", world.gateways.list[0].name)
        );
        world.row(1, "a", Some(Status::Ready));
        assert_eq!(world.leads_to(), None);
        world.row(1, "b", Some(Status::Ready));
        assert_eq!(world.leads_to(), Some(1));
        // The tables are the same: nothing is imported into the hub.
        let after = world.hub();
        for name in ["a", "b"] {
            assert_eq!(after.target_hash(name), before.target_hash(name));
            let target = after.connections[name].target.as_ref().unwrap();
            assert_eq!(target.server["host"].value, world.gateways.list[1].name);
        }
    }

    #[test]
    fn a_connection_that_fails_elsewhere_keeps_no_other_one_on_a_gateway_that_is_away() {
        let mut world = World::new(FILES, 0);
        world.is_away(0);
        world.row(1, "a", Some(Status::Ready));
        world.row(1, "b", Some(Status::Error));
        assert_eq!(world.leads_to(), Some(1));
        // While the other gateway cannot be reached, the lane stays.
        world.view(1).error = Some("refused".into());
        assert_eq!(world.leads_to(), None);
    }

    #[test]
    fn a_lane_comes_back_when_its_gateway_has_settled_and_has_what_the_other_one_has() {
        let mut world = World::new(FILES, 1);
        assert_eq!(world.leads_to(), Some(1));
        world.row(0, "a", Some(Status::Ready));
        world.row(0, "b", Some(Status::Error));
        assert_eq!(world.leads_to(), Some(1), "it works where it is");
        world.row(1, "b", Some(Status::Error));
        assert_eq!(world.leads_to(), Some(0), "it works nowhere");
        world.row(1, "b", Some(Status::Ready));
        world.row(0, "b", Some(Status::Ready));
        assert_eq!(world.leads_to(), Some(0));
        world.gateways.list[0].availability = Availability::Returning;
        assert_eq!(world.leads_to(), Some(1));
    }

    #[test]
    fn tables_of_an_earlier_configuration_do_not_count() {
        let mut world = World::new(FILES, 1);
        world.row(0, "a", Some(Status::Ready));
        world.row(0, "b", Some(Status::Ready));
        world.view(0).rows.get_mut("b").unwrap().target_hash = Some("before".into());
        assert_eq!(world.leads_to(), Some(1));
        // They do where nothing else can be read.
        world.gateways.list.reverse();
        world.is_away(0);
        assert_eq!(world.leads_to(), Some(1));
    }

    #[test]
    fn a_lane_that_leads_nowhere_is_opened_when_its_tables_are_there() {
        let mut world = World::new(FILES, 0);
        let hub = HubLanes {
            options: [(world.server.clone(), options("removed"))].into(),
            ..HubLanes::clone(world.gateways.hub.as_ref().unwrap())
        };
        world.gateways.hub = Some(Arc::new(hub));
        assert_eq!(world.leads_to(), Some(0));
        world.row(0, "b", None);
        assert_eq!(world.leads_to(), None);
        // A new lane has no table yet.
        world.gateways.hub = Some(Arc::default());
        assert_eq!(world.leads_to(), Some(0));
    }

    #[test]
    fn the_views_of_an_aggregator_move_with_their_lane() {
        let mut world = World::new(&(FILES.to_owned() + ALL), 0);
        let lanes = |world: &World| world.hub().connections["all"].gateway.clone();
        let before = lanes(&world).unwrap().lanes;
        assert_eq!(
            before[0].source.server["host"].value,
            world.gateways.list[0].name
        );
        world.is_away(0);
        for name in ["a", "b"] {
            world.row(1, name, Some(Status::Ready));
        }
        assert_eq!(world.leads_to(), None, "the views are not there yet");
        world.row(1, "spcd_lane_0_all", Some(Status::Ready));
        assert_eq!(world.leads_to(), Some(1));
        let after = lanes(&world).unwrap().lanes;
        assert_eq!(
            after[0].source.server["host"].value,
            world.gateways.list[1].name
        );
        assert_eq!(
            (&after[0].lane, &after[0].schema),
            (&before[0].lane, &before[0].schema)
        );
    }

    /// The connections that a gateway is to have.
    fn part(world: &World, index: usize) -> Vec<String> {
        let mut desired = world.desired.clone();
        keep_gateway_part(&mut desired, &world.gateways, index);
        desired.connections.into_keys().collect()
    }

    #[test]
    fn each_gateway_has_its_lanes_and_those_that_are_to_be_its_own() {
        let files = FILES.to_owned() + ALL;
        let all = ["a", "b", "spcd_lane_0_all"].map(str::to_owned).to_vec();
        let mut world = World::new(&files, 0);
        assert_eq!((part(&world, 0), part(&world, 1)), (all.clone(), vec![]));
        world.is_away(0);
        assert_eq!(
            (part(&world, 0), part(&world, 1)),
            (all.clone(), all.clone())
        );
        let mut world = World::new(&files, 1);
        assert_eq!(
            (part(&world, 0), part(&world, 1)),
            (all.clone(), all.clone())
        );
        world.gateways.list[0].availability = Availability::Away;
        assert_eq!((part(&world, 0), part(&world, 1)), (vec![], all.clone()));
        // It comes back, and makes its tables before it is read.
        world.gateways.list[0].availability = Availability::Returning;
        assert_eq!((part(&world, 0), part(&world, 1)), (all.clone(), all));
    }

    #[test]
    fn a_member_is_made_wherever_a_lane_of_its_aggregator_is() {
        let files = FILES.replace("lanes = 1", "lanes = 8") + ALL;
        let mut world = World::new(&files, 0);
        world.gateways.hub = Some(Arc::default());
        let parts = [0, 1].map(|index| part(&world, index));
        let lanes = DesiredLanes::of(&world.desired, None);
        for lane in lanes.aggregator_lanes() {
            let place = world.gateways.place(&lane.lane.server());
            assert!(parts[place].contains(&lane.schema));
            for member in &lane.members {
                assert!(parts[place].contains(member), "{member} in {place}");
            }
        }
        for (name, server) in &lanes.servers {
            assert!(parts[world.gateways.place(server)].contains(name));
        }
    }

    #[test]
    fn a_connection_whose_block_has_an_error_stays_where_the_hub_reads_it() {
        let mut world = World::new(FILES, 1);
        world.desired = desired(&FILES.replace("\"b\" {\n", "\"b\" {\n  import_schema = 3\n"));
        assert!(world.desired.connections["b"].target.is_err());
        assert!(part(&world, 1).contains(&"b".to_owned()));
    }
}
