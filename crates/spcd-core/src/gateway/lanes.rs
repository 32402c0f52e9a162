//! Chooses the lane of a connection.
//!
//! A session of the gateway loads the library of one wrapper only, so each plugin instance and wrapper has
//! its own lanes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::hash::hash;
use crate::model::{Connection, ConnectionKind, DesiredState, Lane, MAX_LANES};

use super::is_in_gateway;

/// Default number of lanes of a plugin instance with an aggregator. Calls of an API mostly wait, and lanes
/// are read concurrently.
const LANES_OF_AGGREGATED: u32 = 8;

/// Longest part of a plugin instance's name in the names of its servers: with prefix, hash and number
/// these have at most 63 bytes.
const READABLE_BYTES: usize = 38;

/// Returns the number of lanes of each plugin instance that has connections in the gateway.
pub(super) fn lane_counts(desired: &DesiredState) -> BTreeMap<String, u32> {
    let connections = || desired.connections.values();
    let aggregated: BTreeSet<&str> = connections()
        .filter(|connection| matches!(connection.kind, ConnectionKind::Aggregator { .. }))
        .map(|connection| connection.plugin_instance.as_str())
        .collect();
    let mut counts: BTreeMap<String, Option<u32>> = BTreeMap::new();
    for connection in connections().filter(|connection| is_in_gateway(connection)) {
        let count = counts
            .entry(connection.plugin_instance.clone())
            .or_default();
        // A connection whose block has an error does not have its plugin's definition.
        *count = count.or(connection
            .target
            .as_ref()
            .ok()
            .and_then(|target| target.lanes));
    }
    let count = |(instance, count): (String, Option<u32>)| {
        let default = match aggregated.contains(instance.as_str()) {
            true => LANES_OF_AGGREGATED,
            false => 1,
        };
        (instance, count.unwrap_or(default))
    };
    counts.into_iter().map(count).collect()
}

/// Returns the common part of the names of the servers of a plugin instance and a wrapper.
pub(super) fn lane_group(instance: &str, wrapper: &str) -> String {
    let end = instance.floor_char_boundary(READABLE_BYTES);
    let (readable, hash) = (&instance[..end], hash([instance, wrapper]));
    format!("spcd_gateway_{readable}_{}", &hash[..8])
}

/// Returns the lane of a new connection. It does not depend on other connections.
pub(super) fn lane_of(connection: &Connection, wrapper: &str, count: u32) -> Lane {
    Lane {
        group: lane_group(&connection.plugin_instance, wrapper),
        number: Some(
            preferred_lanes(&connection.name, count)
                .first()
                .copied()
                .unwrap_or(0),
        ),
    }
}

/// Distributes names over lanes, so that none has more than its share. Each name gets the lane that ranks
/// highest for it among those with room, so that adding or removing a name moves few others. Omits lanes
/// without names.
pub(super) fn spread<'a>(names: &[&'a str], count: u32) -> BTreeMap<u32, Vec<&'a str>> {
    let count = count.clamp(1, MAX_LANES);
    let share = names.len().div_ceil(count as usize);
    let mut lanes: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for name in names {
        let has_room = |lane: &u32| lanes.get(lane).is_none_or(|names| names.len() < share);
        let lane = preferred_lanes(name, count).into_iter().find(has_room);
        lanes.entry(lane.unwrap_or(0)).or_default().push(name);
    }
    lanes
}

/// Returns all lanes in the order of their rank for a name (rendezvous hashing). A change of their number
/// does not reorder the others.
fn preferred_lanes(name: &str, count: u32) -> Vec<u32> {
    let mut lanes: Vec<u32> = (0..count.clamp(1, MAX_LANES)).collect();
    lanes.sort_by_cached_key(|lane| Reverse(hash([name, &lane.to_string()])));
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers_fit_and_differ_by_wrapper() {
        let long = "é".repeat(31);
        for instance in ["aws", "", &long] {
            let group = lane_group(instance, "w");
            let last = Lane {
                group: group.clone(),
                number: Some(MAX_LANES - 1),
            };
            assert!(last.server().len() <= 63, "{}", last.server());
            assert_ne!(group, lane_group(instance, "v"));
        }
        assert_ne!(lane_group("a", "bc"), lane_group("ab", "c"));
    }

    #[test]
    fn more_lanes_take_over_some_connections_and_move_no_other() {
        let names: Vec<String> = (0..100).map(|n| format!("c{n}")).collect();
        let first = |count| move |name: &String| preferred_lanes(name, count)[0];
        let four: Vec<u32> = names.iter().map(first(4)).collect();
        let five: Vec<u32> = names.iter().map(first(5)).collect();
        let moved = four.iter().zip(&five).filter(|(four, five)| four != five);
        assert!(moved.clone().all(|(_, five)| *five == 4));
        assert!((10..35).contains(&moved.count()));
        assert!((0..4).all(|lane| four.contains(&lane)));
    }

    #[test]
    fn members_are_spread_evenly_and_few_move() {
        let names: Vec<String> = (0..80).map(|n| format!("m{n:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let lane_of = |lanes: &BTreeMap<u32, Vec<&str>>, name: &str| {
            *lanes
                .iter()
                .find(|(_, names)| names.contains(&name))
                .unwrap()
                .0
        };
        for count in [1, 2, 8] {
            let lanes = spread(&names[..8], count);
            let most = lanes.values().map(Vec::len).max();
            assert_eq!(most, Some(8 / count as usize), "{lanes:?}");
        }
        let before = spread(&names[..79], 8);
        let after = spread(&names, 8);
        assert!(after.values().all(|names| names.len() == 10));
        let moved = names[..79]
            .iter()
            .filter(|name| lane_of(&before, name) != lane_of(&after, name));
        assert_eq!(moved.count(), 0);
    }
}
