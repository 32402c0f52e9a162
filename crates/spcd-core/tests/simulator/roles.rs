//! The roles whose search path is set.

use spcd_core::config::DesiredState;
use spcd_core::observed::Role;
use spcd_core::scheduler::Event;
use spcd_core::search_path::SearchPathChange;

use crate::hub::Hub;
use crate::script::RoleChange;
use crate::world::{Failed, World};

/// A login role.
#[derive(Debug, Default)]
pub struct ModelRole {
    /// It is a direct member of `spcd_users`.
    pub is_member: bool,
    /// The hash that is recorded of the path that was set.
    pub recorded: Option<String>,
    /// Its search path.
    pub path: Option<Path>,
    /// Its row is not the one that was recorded.
    pub is_touched: bool,
}

#[derive(Debug, PartialEq)]
pub enum Path {
    /// It set another itself.
    Own,
    Set(String),
}

impl Hub {
    /// What a look finds.
    pub fn roles(&self) -> Vec<Role> {
        let roles = self.roles.iter();
        let role = |(name, role): (&&str, &ModelRole)| {
            let is_there = matches!(role.path, Some(Path::Set(_))) && role.recorded.is_some();
            (role.is_member || role.recorded.is_some()).then(|| Role {
                name: (*name).to_owned(),
                member: role.is_member,
                own: role.path == Some(Path::Own),
                set: role.recorded.clone(),
                there: is_there,
                are_settings_changed: is_there && role.is_touched,
                refused: None,
            })
        };
        roles.filter_map(role).collect()
    }

    pub fn change_role(&mut self, name: &'static str, change: RoleChange) {
        let role = self.roles.entry(name).or_default();
        match change {
            RoleChange::Member(is_member) => role.is_member = is_member,
            RoleChange::Own(true) => role.path = Some(Path::Own),
            RoleChange::Own(false) => role.path = None,
            RoleChange::Touch => role.is_touched = true,
        }
    }

    /// Returns what is wrong with a role's search path.
    pub fn path_difference(&self, desired: &DesiredState) -> Option<String> {
        let connections = desired.connections.values();
        let enabled = connections.filter(|connection| connection.enabled);
        let names = enabled.map(|connection| connection.name.as_str());
        let names = ["public"].into_iter().chain(names).chain(["spcd"]);
        let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
        let expected = Some(Path::Set(names.join(", ")));
        for (name, role) in &self.roles {
            let is_right = match (&role.path, role.is_member) {
                (Some(Path::Own), _) => role.recorded.is_none(),
                (path, true) => *path == expected && role.recorded.is_some(),
                (path, false) => path.is_none() && role.recorded.is_none(),
            };
            if !is_right || (role.recorded.is_some() && role.is_touched) {
                return Some(format!("the search path of {name} is {:?}", role.path));
            }
        }
        None
    }
}

impl World {
    pub fn set_search_path(&mut self, change: SearchPathChange) -> Result<Event, Failed> {
        self.write()?;
        let SearchPathChange {
            path,
            hash,
            set,
            reset,
            release,
            refresh_fingerprint,
        } = change;
        let (mut refused, mut is_passing) = (Vec::new(), false);
        for name in set.iter().chain(&reset) {
            if self.hub.refuses_paths {
                refused.push(name.clone());
                continue;
            }
            // Another session changes the same catalog row.
            if self.has_faults && self.random.once_in(8) {
                is_passing = true;
                continue;
            }
            let Some(role) = self.hub.roles.get_mut(name.as_str()) else {
                return Err(format!("no role {name}").into());
            };
            let is_set = set.contains(name);
            role.path = is_set.then(|| Path::Set(path.clone()));
            role.recorded = is_set.then(|| hash.clone());
            role.is_touched = false;
        }
        for name in &release {
            if let Some(role) = self.hub.roles.get_mut(name.as_str()) {
                role.recorded = None;
            }
        }
        for name in &refresh_fingerprint {
            if let Some(role) = self.hub.roles.get_mut(name.as_str()) {
                role.is_touched = false;
            }
        }
        Ok(Event::SearchPathSet {
            hash,
            refused,
            is_passing,
        })
    }
}
