//! The server of a connection's tables, and its mapping.

use std::collections::BTreeMap;

use super::super::{Import, lanes};
use crate::model::Lane;
use crate::observed::{Applied, Detail, Presence};
use crate::sql;

impl Import {
    /// Returns whether the tables can stay on their server.
    pub fn keeps_server(&self, detail: &Detail) -> bool {
        let lane = self.target.lane.as_ref().map(Lane::server);
        let is_same =
            |applied: &Applied| applied.server == Presence::Absent || applied.server_name == lane;
        (self.applied.as_ref()).is_none_or(is_same)
            && (detail.server.as_ref()).is_none_or(|(wrapper, _)| *wrapper == self.target.wrapper)
    }
}

fn has_own_server(import: &Import) -> bool {
    (import.applied.as_ref()).is_some_and(Applied::has_own_server)
}

/// Returns whether the server has the desired mapping. The mapping of a lane is compared separately.
pub(super) fn has_mapping(import: &Import, detail: &Detail) -> bool {
    import.target.lane.is_some()
        || has_own_server(import)
            && import.keeps_server(detail)
            && detail.mapping.as_ref() == Some(&import.target.mapping)
}

/// Returns the statements that create or alter the server of a connection.
pub(super) fn server_statements(
    name: &str,
    import: &Import,
    detail: &Detail,
    options: &BTreeMap<String, String>,
) -> String {
    let target = &import.target;
    let has_server = has_own_server(import);
    if target.lane.is_some() {
        let own = match has_server {
            true => sql::drop_server(name),
            false => String::new(),
        };
        return own
            + &lanes::touch(
                import.applied.as_ref(),
                &import.target_hash,
                &target.also_read_by,
            );
    }
    let create = || sql::create_server(name, &target.wrapper, options);
    match &detail.server {
        Some((_, old)) if has_server && import.keeps_server(detail) => {
            sql::alter_server(name, old, options)
        }
        Some(_) if has_server => format!("{}{}", sql::drop_server(name), create()),
        _ => create(),
    }
}
