//! Lanes in the plan: servers that connections share are created before the work that uses them, and
//! dropped when no connection uses them any more.

use std::collections::{BTreeMap, BTreeSet};

use super::Plan;
use crate::model::{DesiredState, LaneServer, TOUCH_OPTION};
use crate::observed::{Applied, Extension, Observed, ObservedLane, Presence};
use crate::secret::Secret;
use crate::sql;

/// Wrapper of all lanes.
pub(crate) const LANE_WRAPPER: &str = "postgres_fdw";
/// The value of [`TOUCH_OPTION`] of a new lane.
const UNTOUCHED: &str = "spcd hub";

/// A change of a lane's server, one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneChange {
    /// The server.
    pub server: String,
    /// The statements; none of them contains a secret.
    pub sql: String,
    /// The mapping's options, if they are to be set.
    pub mapping: Option<BTreeMap<String, Secret>>,
    /// Statements that record it.
    pub record: String,
}

impl LaneChange {
    /// Returns the sign of the change in a diff of objects.
    pub fn sign(&self) -> char {
        match (self.sql.starts_with("CREATE"), self.sql.starts_with("DROP")) {
            (true, _) => '+',
            (_, true) => '-',
            _ => '~',
        }
    }
}

/// Plans the lanes.
pub(super) fn plan_lanes(plan: &mut Plan, desired: &DesiredState, observed: &Observed) {
    let used = used_servers(desired, observed);
    let is_usable = matches!(
        observed.extensions.get(LANE_WRAPPER),
        None | Some(Extension::Installed)
    );
    if is_usable {
        let is_there = |server: &String| {
            let lane = observed.lanes.get(server);
            lane.is_some_and(|lane| lane.presence == Presence::Ours && lane.in_use)
        };
        let known = desired.lane_servers.iter();
        let changes = known
            .filter(|(server, _)| used.contains(*server) || is_there(server))
            .filter_map(|(server, like)| change(server, observed.lanes.get(server), like));
        plan.lanes.extend(changes);
    }
    for (server, lane) in &observed.lanes {
        let is_droppable = !lane.in_use && lane.refused.is_none();
        if is_droppable && lane.presence != Presence::Foreign && !used.contains(server) {
            let sql = match lane.presence {
                Presence::Ours => sql::drop_server(server),
                Presence::Absent | Presence::Foreign => String::new(),
            };
            plan.lanes.push(LaneChange {
                server: server.clone(),
                sql,
                mapping: None,
                record: sql::forget_lane(server),
            });
        }
    }
}

/// Returns the servers that the tables of the desired connections use, or are to use.
fn used_servers(desired: &DesiredState, observed: &Observed) -> BTreeSet<String> {
    let connections = desired.connections.iter();
    let of_aggregators = (desired.connections.values())
        .filter_map(|connection| connection.gateway.as_ref())
        .flat_map(|gateway| &gateway.lanes)
        .map(|lane| lane.lane.server());
    let server = connections.filter_map(|(name, connection)| {
        let lane = connection.target.as_ref().ok()?.lane.as_ref()?;
        let known = observed.connections.get(name);
        let server = known.and_then(|known| known.applied.as_ref()?.server_name.as_ref());
        let kept = server.and_then(|server| lane.with_server(server));
        Some(kept.as_ref().unwrap_or(lane).server())
    });
    server.chain(of_aggregators).collect()
}

/// Returns the change from a lane's server to the desired one; `None` if they are equal, or if it
/// cannot be changed.
fn change(server: &str, lane: Option<&ObservedLane>, like: &LaneServer) -> Option<LaneChange> {
    if lane.is_some_and(|lane| lane.presence == Presence::Foreign || lane.refused.is_some()) {
        return None;
    }
    let lane = lane.filter(|lane| lane.presence == Presence::Ours);
    let value = lane.and_then(|lane| lane.options.get(TOUCH_OPTION));
    let mut options = like.options.clone();
    if !options.contains_key(TOUCH_OPTION) {
        options.insert(
            TOUCH_OPTION.to_owned(),
            value.map_or_else(|| UNTOUCHED.to_owned(), String::clone),
        );
    }
    let sql = match lane {
        None => sql::create_server(server, LANE_WRAPPER, &options),
        Some(lane) => sql::alter_server(server, &lane.options, &options),
    };
    let mapping = lane.and_then(|lane| lane.mapping.as_ref());
    let mapping = (mapping != Some(&like.mapping)).then(|| like.mapping.clone());
    (!sql.is_empty() || mapping.is_some()).then(|| LaneChange {
        server: server.to_owned(),
        sql,
        mapping,
        record: match lane {
            None => sql::record_lane(server),
            Some(_) => String::new(),
        },
    })
}

/// Returns the statements that make sessions of the gateway reconnect if they may have read an earlier
/// configuration of a connection. A wrapper reads the configuration once per session.
///
/// `also_read_by` are servers of other lanes by which it is read.
pub(super) fn touch(
    applied: Option<&Applied>,
    target_hash: &str,
    also_read_by: &BTreeSet<String>,
) -> String {
    let Some(applied) = applied.filter(|applied| applied.target_hash != target_hash) else {
        return String::new();
    };
    let servers: BTreeSet<&String> = applied.server_name.iter().chain(also_read_by).collect();
    servers
        .into_iter()
        .map(|server| sql::touch_lane(server, &hub_name(target_hash)))
        .collect()
}

/// Returns the value of [`TOUCH_OPTION`] for a hash.
fn hub_name(hash: &str) -> String {
    format!("{UNTOUCHED} {}", hash.get(..12).unwrap_or(hash))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{SourceFile, load_plain};
    use crate::model::Lane;
    use crate::planner::{Running, plan};

    const SERVER: &str = "spcd_gateway_p_1_0";

    /// Two connections on one lane.
    fn desired() -> DesiredState {
        let block = |name| format!("connection \"{name}\" {{\n plugin = \"postgres\"\n}}\n");
        let mut desired = load_plain(&[SourceFile {
            path: "a.spc".into(),
            text: Ok(["a", "b"].map(block).concat()),
        }]);
        for connection in desired.connections.values_mut() {
            let target = Arc::make_mut(connection).target.as_mut().unwrap();
            target.lane = Some(Lane {
                group: "spcd_gateway_p_1".into(),
                number: Some(0),
            });
        }
        let like = LaneServer {
            options: [("host".to_owned(), "g".to_owned())].into(),
            mapping: [("password".to_owned(), Secret::new("p"))].into(),
        };
        desired.lane_servers = [(SERVER.to_owned(), like)].into();
        desired
    }

    fn lane() -> ObservedLane {
        ObservedLane {
            presence: Presence::Ours,
            options: [("host", "g"), (TOUCH_OPTION, "spcd hub 123")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            mapping: Some([("password".to_owned(), Secret::new("p"))].into()),
            in_use: true,
            refused: None,
        }
    }

    /// The changes of lanes, and whether an error keeps connection `a` from being imported.
    fn planned(desired: &DesiredState, lane: Option<ObservedLane>) -> (Vec<String>, bool) {
        let observed = Observed {
            admitted: true,
            drift_known: true,
            extensions: [(LANE_WRAPPER.to_owned(), Extension::Installed)].into(),
            lanes: lane
                .map(|lane| (SERVER.to_owned(), lane))
                .into_iter()
                .collect(),
            ..Observed::default()
        };
        let plan = plan(desired, &observed, &Running::default());
        let text = |change: &LaneChange| {
            let mapping = if change.mapping.is_some() {
                "mapping"
            } else {
                ""
            };
            format!("{}{mapping}", change.sql)
        };
        let is_refused = plan.rows.iter().any(|row| row.error.is_some());
        (plan.lanes.iter().map(text).collect(), is_refused)
    }

    #[test]
    fn one_server_is_made_for_all_connections_of_a_lane() {
        let (changes, _) = planned(&desired(), None);
        assert_eq!(
            changes,
            [format!(
                "CREATE SERVER \"{SERVER}\" FOREIGN DATA WRAPPER \"postgres_fdw\" OPTIONS \
                 (\"application_name\" 'spcd hub', \"host\" 'g');\nmapping"
            )]
        );
        assert_eq!(planned(&desired(), Some(lane())), (vec![], false));
    }

    #[test]
    fn what_was_altered_by_hand_or_leads_elsewhere_is_altered_back() {
        let mut altered = lane();
        altered.options.insert("host".into(), "h".into());
        altered.mapping = None;
        let alter = format!("ALTER SERVER \"{SERVER}\" OPTIONS (SET \"host\" 'g');\nmapping");
        assert_eq!(planned(&desired(), Some(altered.clone())).0.concat(), alter);
        // Also one that no desired connection uses, as long as tables do.
        let nothing = DesiredState {
            lane_servers: desired().lane_servers,
            ..DesiredState::default()
        };
        assert_eq!(planned(&nothing, Some(altered)).0.concat(), alter);
    }

    #[test]
    fn a_lane_goes_with_its_last_table() {
        let unused = ObservedLane {
            in_use: false,
            ..lane()
        };
        let (changes, _) = planned(&DesiredState::default(), Some(unused.clone()));
        assert_eq!(changes, [sql::drop_server(SERVER)]);
        assert_eq!(planned(&DesiredState::default(), Some(lane())).0, [""; 0]);
        assert_eq!(planned(&desired(), Some(unused)).0, [""; 0]);
    }

    #[test]
    fn a_server_of_that_name_that_spcd_did_not_make_is_left_alone() {
        let foreign = ObservedLane {
            presence: Presence::Foreign,
            options: BTreeMap::new(),
            ..lane()
        };
        assert_eq!(planned(&desired(), Some(foreign.clone())), (vec![], true));
        let unused = ObservedLane {
            in_use: false,
            ..foreign
        };
        assert_eq!(planned(&DesiredState::default(), Some(unused)).0, [""; 0]);
        let refused = ObservedLane {
            refused: Some("no".into()),
            ..ObservedLane::default()
        };
        assert_eq!(planned(&desired(), Some(refused)), (vec![], true));
    }

    #[test]
    fn another_configuration_touches_the_lane_that_is_in_use() {
        let applied = |target_hash: &str, presence| Applied {
            schema: presence,
            server: presence,
            server_name: Some(SERVER.into()),
            ..Applied::complete(target_hash)
        };
        let touch_other =
            |applied: Option<&Applied>, hash| touch(applied, hash, &["other".to_owned()].into());
        let made = applied("one", Presence::Ours);
        let both = ["other", SERVER].map(|server| sql::touch_lane(server, "spcd hub two"));
        assert_eq!(touch_other(Some(&made), "two"), both.concat());
        assert_eq!(touch_other(Some(&made), "one"), "");
        assert_eq!(touch_other(None, "two"), "");
    }
}
