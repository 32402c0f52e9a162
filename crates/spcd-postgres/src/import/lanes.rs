//! Imports the views of the gateway that an aggregator reads.

use std::collections::BTreeMap;

use spcd_core::aggregator::{self, AggregatorInput};
use spcd_core::config::GatewayAggregator;

use super::fetch_remote_schema;
use crate::HubError;
use crate::connection::Session;

/// Replaces the members by lanes of the gateway, and imports their views. Lanes with equal hashes have
/// equal views, so one of them suffices.
pub async fn observe_lanes(
    session: &Session,
    gateway: &GatewayAggregator,
    target_hash: &str,
    found: &mut AggregatorInput,
) -> Result<(), HubError> {
    let mut shapes: BTreeMap<&str, usize> = BTreeMap::new();
    found.members.clear();
    found.shapes.clear();
    for lane in &gateway.lanes {
        let shape = match shapes.get(lane.shape_hash.as_str()) {
            Some(shape) => *shape,
            None => {
                let mut remote = fetch_remote_schema(session, &lane.source).await?;
                for table in &mut remote.tables {
                    table
                        .columns
                        .retain(|column| column.name != aggregator::CONNECTION_NAME);
                }
                found.shapes.push(remote.tables);
                shapes.insert(&lane.shape_hash, found.shapes.len() - 1);
                found.shapes.len() - 1
            }
        };
        let name = lane.schema.clone();
        found.members.push((name.clone(), name, shape));
    }
    found.lanes.clone_from(&gateway.lanes);
    target_hash.clone_into(&mut found.target_hash);
    Ok(())
}
