//! The hub's parts of aggregators in gateways.

use std::collections::{BTreeMap, BTreeSet};

use spcd_protocol::Status;

use super::aggregators::{DesiredLane, aggregator_lane};
use super::routes::Routes;
use super::{Gateway, hub_source};
use crate::model::{
    AggregatorLane, Connection, ForeignSource, GatewayAggregator, Import, TargetHash,
    UnknownTypePolicy,
};

/// Returns the hub's part of an aggregator in gateways. `parts` are those of its members.
pub(super) fn hub_aggregator(
    aggregator: &Connection,
    lanes: &[DesiredLane],
    routes: &Routes<'_>,
    parts: &BTreeMap<&str, &Connection>,
) -> Connection {
    let mut part = aggregator.clone();
    part.hash = TargetHash::default();
    let gateway = |lane: &DesiredLane| routes.gateway(&lane.lane.server());
    let row = |lane: &DesiredLane| gateway(lane)?.view.rows.get(&lane.schema);
    for lane in lanes {
        let warnings = row(lane).into_iter().flat_map(|row| &row.warnings);
        part.warnings.extend(warnings.cloned());
    }
    part.warnings.sort();
    part.warnings.dedup();
    let error = (lanes.iter().find_map(|lane| gateway(lane)?.error()))
        .or_else(|| lanes.iter().find_map(|lane| row(lane)?.error.clone()));
    if let Some(error) = error {
        part.target = Err(error);
        return part;
    }
    // A member has no target in the hub until the gateway has its new configuration.
    let members = lanes.iter().flat_map(|lane| &lane.members);
    let is_stale = |name: &String| {
        let member = parts.get(name.as_str());
        member.is_some_and(|member| {
            let is_made = (member.target.as_ref()).is_ok_and(|target| target.lane.is_some());
            member.awaits_source && !is_made
        })
    };
    let is_stale = members.clone().any(is_stale);
    let like = Like::of(members, parts);
    let found: Option<Vec<AggregatorLane>> = (lanes.iter())
        .map(|lane| {
            let mut found = aggregator_lane(lane, row(lane)?)?;
            found.source = like.source(gateway(lane)?, &lane.schema);
            Some(found)
        })
        .collect();
    let is_ready = |lane| row(lane).is_some_and(|row| row.status == Status::Ready);
    part.awaits_source = is_stale || found.is_none() || !lanes.iter().all(is_ready);
    part.gateway = Some(GatewayAggregator {
        lanes: found.filter(|_| !is_stale).unwrap_or_default(),
    });
    part
}

/// Common part of the sources of an aggregator's lanes.
struct Like {
    requires: BTreeSet<String>,
    unknown_types: Option<UnknownTypePolicy>,
}

impl Like {
    fn of<'a>(
        members: impl Iterator<Item = &'a String>,
        parts: &BTreeMap<&str, &Connection>,
    ) -> Self {
        let targets = members.filter_map(|name| parts.get(name.as_str())?.target.as_ref().ok());
        let targets: Vec<&ForeignSource> = targets.collect();
        let requires = targets.iter().flat_map(|target| target.requires.iter());
        Self {
            requires: requires.cloned().collect(),
            unknown_types: targets
                .first()
                .and_then(|target| target.import.unknown_types),
        }
    }

    /// Returns the source for importing the views of a schema of the gateway.
    fn source(&self, gateway: &Gateway, schema: &str) -> ForeignSource {
        let import = Import {
            schema: schema.to_owned(),
            unknown_types: self.unknown_types,
            ..Import::default()
        };
        let address = gateway.view.address.as_ref();
        address.map_or_else(ForeignSource::default, |address| {
            hub_source(address, self.requires.clone(), import)
        })
    }
}
