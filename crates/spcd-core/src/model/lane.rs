//! Lanes: servers of the hub that the connections of a plugin instance share to reach the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ForeignSource;
use crate::secret::Secret;

/// Maximum number of lanes of a plugin instance.
pub const MAX_LANES: u32 = 64;

/// Options of every lane's server, which the block of a mirror may replace. postgres_fdw of Postgres 15
/// cannot be interrupted while it connects. Its default of 100 rows per fetch costs a round trip for each.
pub const LANE_OPTIONS: [(&str, &str); 5] = [
    ("async_capable", "true"),
    ("connect_timeout", "10"),
    ("fetch_size", "1000"),
    ("truncatable", "false"),
    ("updatable", "false"),
];

/// A foreign server of the hub that several connections of one plugin instance share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Common part of the names of the servers of one plugin instance and one wrapper.
    pub group: String,
    /// Number of the lane, from 0. `None`: the group is one server, which has its name and whose options
    /// are compared by themselves.
    pub number: Option<u32>,
}

impl Lane {
    /// Returns the name of the server.
    pub fn server(&self) -> String {
        match self.number {
            Some(number) => format!("{}_{number}", self.group),
            None => self.group.clone(),
        }
    }

    /// Returns the lane of this server, if it belongs to the same group.
    pub fn with_server(&self, server: &str) -> Option<Self> {
        if self.number.is_none() {
            return (self.group == server).then(|| self.clone());
        }
        let number = server.strip_prefix(&self.group)?.strip_prefix('_')?;
        let lane = Self {
            group: self.group.clone(),
            number: Some(number.parse().ok().filter(|number| *number < MAX_LANES)?),
        };
        (lane.server() == server).then_some(lane)
    }
}

/// An aggregator whose views are in the gateway: one for each table and lane, over the members of the
/// lane. The hub reads them at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayAggregator {
    /// Its lanes; empty until the gateways have all desired views.
    pub lanes: Vec<AggregatorLane>,
}

/// Lane of an aggregator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregatorLane {
    /// The lane by which the hub reads it.
    pub lane: Lane,
    /// Schema of its views in the gateway.
    pub schema: String,
    /// Connections that the views show.
    pub members: Vec<String>,
    /// Hash of the views' columns.
    pub shape_hash: String,
    /// The gateway's views as a source of the hub.
    pub source: ForeignSource,
}

/// Connections of the gateway whose tables or views the hub reads. They are dropped in the hub first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HubUse {
    /// Nothing waits for a hub.
    #[default]
    None,
    /// The connections are not known yet: nothing is dropped.
    Unknown,
    /// These connections.
    Of(Arc<BTreeSet<String>>),
}

impl HubUse {
    /// Returns whether a connection's tables must stay for now.
    pub fn holds(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Unknown => true,
            Self::Of(names) => names.contains(name),
        }
    }
}

/// Server and mapping of a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneServer {
    /// Options of the server, without [`TOUCH_OPTION`].
    pub options: BTreeMap<String, String>,
    /// Options of the user mapping.
    pub mapping: BTreeMap<String, Secret>,
}

/// Option of a lane that is altered so that sessions reconnect at their next transaction. Its value has
/// no other effect.
pub const TOUCH_OPTION: &str = "application_name";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_lane_of_its_group_only() {
        let lane = Lane {
            group: "spcd_gateway_aws_1".into(),
            number: Some(3),
        };
        assert_eq!(lane.server(), "spcd_gateway_aws_1_3");
        assert_eq!(
            lane.with_server("spcd_gateway_aws_1_7").unwrap().number,
            Some(7)
        );
        for other in [
            "spcd_gateway_aws_1",
            "spcd_gateway_aws_1_",
            "spcd_gateway_aws_1_64",
            "spcd_gateway_aws_1_07",
            "spcd_gateway_aws_12_7",
            "aws",
        ] {
            assert_eq!(lane.with_server(other), None, "{other}");
        }
        let single = Lane {
            group: "spcd_mirror_a".into(),
            number: None,
        };
        assert_eq!(single.with_server(&single.server()), Some(single.clone()));
        assert_eq!(single.with_server("spcd_mirror_a_0"), None);
    }
}
