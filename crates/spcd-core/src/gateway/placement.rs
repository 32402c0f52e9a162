//! Chooses the gateway of a lane if there are several.
//!
//! Rendezvous hashing ranks the gateways for each lane. The lane leads to the first one that is not away. A
//! gateway that returns gets lanes only after it has answered for as long as it may be away, so that an
//! unstable gateway moves no lane. Its tables are created in the meantime.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::GatewayView;
use crate::hash::hash;
use crate::model::HubUse;

/// Options of a lane's server that identify its gateway.
const PLACE_OPTIONS: [&str; 3] = ["host", "port", "dbname"];

/// Availability of a gateway. The initial value is that of one that has just stopped answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Availability {
    /// It has answered for longer than `gateway_patience`.
    Settled,
    /// It answers, or stopped answering a short time ago.
    #[default]
    Present,
    /// It was away and answers again, for a short time.
    Returning,
    /// It has not answered for longer than `gateway_patience`. Other gateways take over its lanes.
    Away,
}

/// Derives a gateway's [`Availability`] from its answers. Times are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PresenceRecord {
    answers: bool,
    is_away: bool,
    since: u64,
}

impl PresenceRecord {
    /// Returns the state of a gateway that has not answered yet.
    pub fn new(now: u64) -> Self {
        Self {
            since: now,
            ..Self::default()
        }
    }

    /// Sets whether the gateway answers.
    pub fn set(&mut self, answers: bool, now: u64) {
        if self.answers != answers {
            self.answers = answers;
            self.since = now;
        }
    }

    /// Resets the time since the last change, after a period without attempts to connect.
    pub fn restart(&mut self, now: u64) {
        self.is_away = false;
        self.since = now;
    }

    /// Returns the availability. `patience` is the time after which a gateway that does not answer is away, and
    /// after which one that returns has settled.
    pub fn availability(&mut self, now: u64, patience: u64) -> Availability {
        let is_long = now.saturating_sub(self.since) >= patience;
        if is_long {
            self.is_away = !self.answers;
        }
        match (self.is_away, self.answers) {
            (true, true) => Availability::Returning,
            (true, false) => Availability::Away,
            (false, true) if is_long => Availability::Settled,
            (false, _) => Availability::Present,
        }
    }
}

/// Known state of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Its host, port and database, which determine its lanes. Empty if there is only one gateway.
    pub name: String,
    /// Options of the hub's servers that lead to it. Unused if there is only one gateway.
    pub options: BTreeMap<String, String>,
    /// Its availability.
    pub availability: Availability,
    /// Its rows.
    pub view: Arc<GatewayView>,
}

impl Gateway {
    /// Returns its name in messages.
    pub fn title(&self) -> String {
        match self.name.as_str() {
            "" => "the gateway".to_owned(),
            name => format!("the gateway {name}"),
        }
    }

    /// Returns why it cannot be reached.
    pub(super) fn error(&self) -> Option<String> {
        let error = self.view.error.as_ref()?;
        Some(format!("{}: {error}", self.title()))
    }
}

/// Lanes of the hub, and the connections that they read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubLanes {
    /// Server by which the hub reads a connection, or the schema of an aggregator's lane.
    pub servers: BTreeMap<String, String>,
    /// The same for those that the hub will read; `None` if the server is not known.
    pub to_read: BTreeMap<String, Option<String>>,
    /// Options of each server that exists.
    pub options: BTreeMap<String, BTreeMap<String, String>>,
}

/// All gateways, and the connections that the hub reads there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateways {
    /// The gateways, in the order of the settings.
    pub list: Vec<Gateway>,
    /// Lanes of the hub; `None` until they are known.
    pub hub: Option<Arc<HubLanes>>,
}

impl Gateways {
    /// Returns a single gateway, with unknown lanes of the hub.
    pub fn single(view: Arc<GatewayView>) -> Self {
        Self {
            list: vec![Gateway {
                view,
                ..Gateway::default()
            }],
            hub: None,
        }
    }

    /// Whether there are several gateways.
    pub fn are_several(&self) -> bool {
        self.list.len() > 1
    }

    /// Returns the gateway to which a lane should lead.
    pub fn place(&self, server: &str) -> usize {
        let ranked = self.ranked(server);
        let is_away = |index: usize| {
            matches!(
                self.availability(index),
                Availability::Away | Availability::Returning
            )
        };
        let current = self.current(server);
        // A returning gateway keeps the lanes that still lead to it.
        let can_stay = |index: &usize| self.availability(*index) != Availability::Away;
        if let Some(current) = current.filter(can_stay) {
            let better = ranked.iter().take_while(|index| **index != current);
            let mut settled =
                better.filter(|index| self.availability(**index) == Availability::Settled);
            return settled.next().copied().unwrap_or(current);
        }
        let present = ranked.iter().copied().find(|index| !is_away(*index));
        // If all are away, moving the lane gains nothing.
        present.or(current).or(ranked.first().copied()).unwrap_or(0)
    }

    /// Returns whether a gateway needs the connections of a lane: the lane leads to it, should lead to
    /// it, or will return to it if it continues to answer.
    pub fn serves(&self, index: usize, server: &str) -> bool {
        let answers = |index: &usize| self.availability(*index) != Availability::Away;
        self.place(server) == index
            || self.ranked(server).into_iter().find(answers) == Some(index)
            || self.leads_to(index, server)
    }

    /// Returns the connections that the hub reads in a gateway.
    pub fn hub_use(&self, index: usize) -> HubUse {
        let Some(hub) = &self.hub else {
            return HubUse::Unknown;
        };
        let read = hub
            .servers
            .iter()
            .filter(|(_, server)| !self.are_several() || self.leads_to(index, server));
        let to_read = hub.to_read.iter().filter(|(_, server)| {
            server
                .as_ref()
                .is_none_or(|server| self.serves(index, server))
        });
        let mut names: BTreeSet<String> = (read.map(|(name, _)| name))
            .chain(to_read.map(|(name, _)| name))
            .cloned()
            .collect();
        // The views of an aggregator's lane read the tables of its members.
        let rows = self.list.get(index).map(|gateway| &gateway.view.rows);
        let rows = rows.into_iter().flatten();
        let members = rows.filter(|(name, _)| names.contains(*name));
        let members: Vec<String> = (members.filter_map(|(_, row)| row.members.as_ref()))
            .flatten()
            .cloned()
            .collect();
        names.extend(members);
        HubUse::Of(Arc::new(names))
    }

    /// Returns the known gateways with a connection, starting with the one in which the hub reads it.
    pub fn read_in(&self, name: &str) -> Vec<usize> {
        let hub = self.hub.as_ref();
        let server = hub.and_then(|hub| hub.servers.get(name));
        let current = server.and_then(|server| self.current(server));
        let has_it = |index: &usize| {
            let gateway = self.list.get(*index);
            gateway.is_some_and(|gateway| {
                let answers =
                    gateway.view.error.is_none() && gateway.availability != Availability::Away;
                answers && gateway.view.rows.contains_key(name)
            })
        };
        let others = (0..self.list.len()).filter(|index| Some(*index) != current && has_it(index));
        let found: Vec<usize> = current.into_iter().chain(others).collect();
        if !found.is_empty() {
            return found;
        }
        let to_read = hub.and_then(|hub| hub.to_read.get(name)?.as_ref());
        vec![to_read.map_or(0, |server| self.place(server))]
    }

    /// Returns the gateway to which a lane of the hub leads; `None` if there is no such lane or gateway.
    pub(super) fn current(&self, server: &str) -> Option<usize> {
        (0..self.list.len()).find(|index| self.leads_to(*index, server))
    }

    /// Whether the hub has such a server.
    pub(super) fn is_in_hub(&self, server: &str) -> bool {
        let hub = self.hub.as_ref();
        hub.is_some_and(|hub| hub.options.contains_key(server))
    }

    fn leads_to(&self, index: usize, server: &str) -> bool {
        let (Some(gateway), Some(hub)) = (self.list.get(index), &self.hub) else {
            return false;
        };
        let options = hub.options.get(server);
        let known = match gateway.view.address.as_ref() {
            Some(address) => &address.options,
            None => &gateway.options,
        };
        let is_same = |name: &&str| match options {
            Some(options) => known.contains_key(*name) && options.get(*name) == known.get(*name),
            None => false,
        };
        PLACE_OPTIONS.iter().all(is_same)
    }

    fn availability(&self, index: usize) -> Availability {
        let gateway = self.list.get(index);
        gateway.map_or(Availability::Away, |gateway| gateway.availability)
    }

    /// Returns all gateways in the order of their rank for a lane. Adding or removing one does not reorder the
    /// others.
    fn ranked(&self, server: &str) -> Vec<usize> {
        let mut ranked: Vec<usize> = (0..self.list.len()).collect();
        let weight = |index: &usize| {
            let name = self.list.get(*index).map_or("", |gateway| &gateway.name);
            Reverse(hash([server, name]))
        };
        ranked.sort_by_cached_key(weight);
        ranked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(name: &str, availability: Availability) -> Gateway {
        Gateway {
            name: name.to_owned(),
            options: options(name),
            availability,
            view: Arc::default(),
        }
    }

    fn options(name: &str) -> BTreeMap<String, String> {
        let options = [("host", name), ("port", "5432"), ("dbname", "gw")];
        options
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    /// Gateways of these availabilities, and a hub whose lanes lead to some.
    fn gateways(list: &[(&str, Availability)], lanes: &[(&str, &str)]) -> Gateways {
        let lane = |(server, name): &(&str, &str)| ((*server).to_owned(), options(name));
        Gateways {
            list: (list.iter())
                .map(|(name, availability)| gateway(name, *availability))
                .collect(),
            hub: Some(Arc::new(HubLanes {
                options: lanes.iter().map(lane).collect(),
                ..HubLanes::default()
            })),
        }
    }

    fn lanes() -> Vec<String> {
        (0..100)
            .map(|n| format!("spcd_gateway_aws_1_{n}"))
            .collect()
    }

    fn placed(gateways: &Gateways) -> Vec<String> {
        let name = |lane: &String| gateways.list[gateways.place(lane)].name.clone();
        lanes().iter().map(name).collect()
    }

    use Availability::{Away, Present, Returning, Settled};

    #[test]
    fn lanes_are_spread_and_the_order_of_the_settings_does_not_count() {
        let abc = placed(&gateways(
            &[("a", Settled), ("b", Settled), ("c", Settled)],
            &[],
        ));
        assert_eq!(
            abc,
            placed(&gateways(
                &[("c", Present), ("a", Present), ("b", Present)],
                &[]
            ))
        );
        for name in ["a", "b", "c"] {
            let count = abc.iter().filter(|place| *place == name).count();
            assert!((20..50).contains(&count), "{name} has {count}");
        }
    }

    #[test]
    fn a_gateway_that_goes_moves_its_own_lanes_only() {
        let abc = placed(&gateways(
            &[("a", Settled), ("b", Settled), ("c", Settled)],
            &[],
        ));
        let ab = placed(&gateways(&[("a", Settled), ("b", Settled)], &[]));
        let away = placed(&gateways(
            &[("a", Settled), ("b", Settled), ("c", Away)],
            &[],
        ));
        assert_eq!(ab, away);
        for (before, after) in abc.iter().zip(&ab) {
            assert!(before == after || before == "c");
        }
    }

    /// A lane that belongs to `a` where both are well.
    fn lane_of_a() -> String {
        let both = gateways(&[("a", Settled), ("b", Settled)], &[]);
        lanes()
            .into_iter()
            .find(|lane| both.place(lane) == 0)
            .unwrap()
    }

    #[test]
    fn a_lane_moves_when_its_gateway_is_away_and_comes_back_when_that_has_settled() {
        let lane = lane_of_a();
        let place = |a: Availability, b: Availability, at: &str| {
            let gateways = gateways(&[("a", a), ("b", b)], &[(&lane, at)]);
            gateways.list[gateways.place(&lane)].name.clone()
        };
        for (a, b, at, expected) in [
            (Settled, Settled, "a", "a"),
            // It is silent for a short time only, or answers again.
            (Present, Settled, "a", "a"),
            (Away, Settled, "a", "b"),
            (Away, Present, "a", "b"),
            // A gateway that returns is not used at once, nor after a restart of the daemon.
            (Returning, Settled, "b", "b"),
            // It is back before its lanes have moved.
            (Returning, Settled, "a", "a"),
            (Present, Settled, "b", "b"),
            (Settled, Settled, "b", "a"),
            (Settled, Present, "b", "a"),
            // The other one goes meanwhile.
            (Present, Away, "b", "a"),
            // Both are away: there is nothing to gain.
            (Away, Away, "a", "a"),
            (Away, Away, "b", "b"),
            (Returning, Away, "a", "a"),
            // The lane leads to a gateway that is no more in the settings.
            (Present, Settled, "c", "a"),
            (Away, Settled, "c", "b"),
        ] {
            assert_eq!(place(a, b, at), expected, "{a:?} {b:?} {at}");
        }
    }

    #[test]
    fn a_gateway_that_returns_makes_its_tables_and_one_that_is_read_keeps_them() {
        let lane = lane_of_a();
        let serves = |a: Availability, b: Availability, at: &str| {
            let gateways = gateways(&[("a", a), ("b", b)], &[(&lane, at)]);
            [0, 1].map(|index| gateways.serves(index, &lane))
        };
        assert_eq!(serves(Settled, Settled, "a"), [true, false]);
        assert_eq!(serves(Away, Settled, "a"), [true, true]);
        assert_eq!(serves(Away, Settled, "b"), [false, true]);
        assert_eq!(serves(Returning, Settled, "b"), [true, true]);
        assert_eq!(serves(Settled, Settled, "b"), [true, true]);
    }

    #[test]
    fn what_the_hub_reads_is_kept_where_it_reads_it() {
        let lane = lane_of_a();
        let hub_use = |at: &str, index: usize| {
            let mut gateways = gateways(&[("a", Returning), ("b", Settled)], &[(&lane, at)]);
            let read = ["c", "spcd_lane_0_all"].map(|name| (name.to_owned(), lane.clone()));
            gateways.hub = Some(Arc::new(HubLanes {
                servers: read.into(),
                to_read: [("new".to_owned(), None)].into(),
                options: [(lane.clone(), options(at))].into(),
            }));
            let row = super::super::tests::lane_row(&["m"]);
            gateways.list[index].view = Arc::new(GatewayView {
                rows: [("spcd_lane_0_all".to_owned(), row)].into(),
                ..GatewayView::default()
            });
            gateways.hub_use(index)
        };
        for (at, index, is_held) in [
            ("a", 0, true),
            ("a", 1, false),
            ("b", 1, true),
            ("b", 0, false),
        ] {
            let found = hub_use(at, index);
            assert!(found.holds("new"));
            for name in ["c", "spcd_lane_0_all", "m"] {
                assert_eq!(found.holds(name), is_held, "{name}: {at} {index}");
            }
        }
        assert_eq!(Gateways::single(Arc::default()).hub_use(0), HubUse::Unknown);
    }

    #[test]
    fn a_single_gateway_has_every_lane() {
        let one = gateways(&[("", Away)], &[("x", "elsewhere")]);
        assert_eq!((one.place("x"), one.place("y")), (0, 0));
        assert!(one.serves(0, "x"));
    }

    #[test]
    fn a_gateway_is_away_after_a_while_and_settled_after_a_while() {
        let mut record = PresenceRecord::new(0);
        let mut at = |answers: Option<bool>, now| {
            if let Some(answers) = answers {
                record.set(answers, now);
            }
            record.availability(now, 60)
        };
        for (answers, now, expected) in [
            (None, 0, Present),
            (Some(true), 10, Present),
            (None, 69, Present),
            (None, 70, Settled),
            (Some(false), 80, Present),
            // A repeated report changes nothing.
            (Some(false), 100, Present),
            (None, 140, Away),
            (Some(true), 150, Returning),
            (None, 209, Returning),
            // It comes and goes.
            (Some(false), 209, Away),
            (Some(true), 210, Returning),
            (Some(true), 250, Returning),
            (None, 270, Settled),
        ] {
            assert_eq!(at(answers, now), expected, "{now}");
        }
        assert_eq!(PresenceRecord::new(5).availability(65, 60), Away);
        // A daemon that did not lead knows nothing.
        record.set(false, 300);
        assert_eq!(record.availability(400, 60), Away);
        record.restart(400);
        assert_eq!(record.availability(401, 60), Present);
        record.set(true, 402);
        assert_eq!(record.availability(462, 60), Settled);
    }
}
