//! Search paths of the members of `spcd_users`.
//!
//! Postgres does not inherit role settings, so the path is set on each login role that is a direct
//! member of `spcd_users`, for this database only. A role that has a search path from another
//! source keeps it.

use std::collections::{BTreeMap, BTreeSet};

use crate::hash::hash;
use crate::model::DesiredState;
use crate::observed::{ConfigSnapshot, Role};
use crate::sql;

/// Schema of spcd's state, last on every path.
const STATE_SCHEMA: &str = "spcd";

/// Changes to the roles' search paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SearchPathChange {
    /// Path as the value of the setting.
    pub path: String,
    /// Hash of the path.
    pub hash: String,
    /// Roles whose path is set.
    pub set: Vec<String>,
    /// Roles whose path is reset, because spcd set it.
    pub reset: Vec<String>,
    /// Roles whose path was replaced by hand: spcd no longer manages them.
    pub release: Vec<String>,
    /// Roles whose path is right but whose fingerprint has changed.
    pub refresh_fingerprint: Vec<String>,
}

impl SearchPathChange {
    /// Returns whether no role's path changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.reset.is_empty()
    }
}

/// Returns the path: the prefix, then the configured path or `public` and every enabled connection
/// in byte order, then `spcd`. `retained` are rows of further connections whose configuration cannot be
/// read now.
pub fn search_path<'a>(
    desired: &'a DesiredState,
    retained: &BTreeMap<&'a str, &'a ConfigSnapshot>,
) -> Vec<&'a str> {
    let database = &desired.database;
    let mut names: Vec<&str> = database
        .search_path_prefix
        .iter()
        .map(String::as_str)
        .collect();
    if database.search_path.is_empty() {
        let enabled = desired
            .connections
            .values()
            .filter(|connection| connection.enabled);
        let enabled = enabled.map(|connection| connection.name.as_str());
        let retained = retained
            .iter()
            .filter(|(_, written)| written.import_schema != "disabled");
        let retained = retained.map(|(name, _)| *name);
        let connections: BTreeSet<&str> = enabled.chain(retained).collect();
        names.push("public");
        names.extend(connections);
    } else {
        names.extend(database.search_path.iter().map(String::as_str));
    }
    names.push(STATE_SCHEMA);
    let mut seen = BTreeSet::from([STATE_SCHEMA]);
    let last = names.len() - 1;
    let mut n = 0;
    names.retain(|name| {
        n += 1;
        n > last || seen.insert(name)
    });
    names
}

/// Returns the changes to the roles' paths; `None` if there are none.
pub fn search_path_change(
    desired: &DesiredState,
    retained: &BTreeMap<&str, &ConfigSnapshot>,
    roles: &[Role],
) -> Option<SearchPathChange> {
    if roles.is_empty() || desired.database.is_unknown {
        return None;
    }
    let manage = desired.database.manage_search_path.unwrap_or(true);
    let names = search_path(desired, retained);
    let mut change = SearchPathChange {
        hash: hash(names.iter().copied()),
        ..SearchPathChange::default()
    };
    for role in roles {
        let name = || role.name.clone();
        let is_tried = role.refused.as_ref() != Some(&change.hash);
        match &role.set {
            Some(_) if !role.there && role.own => change.release.push(name()),
            Some(_) if !manage || !role.member || role.own => {
                change.reset.extend(is_tried.then(name));
            }
            Some(set) if role.there && *set == change.hash => {
                change
                    .refresh_fingerprint
                    .extend(role.are_settings_changed.then(name));
            }
            None if role.own || !role.member || !manage => {}
            _ => change.set.extend(is_tried.then(name)),
        }
    }
    if change.is_empty() && change.release.is_empty() && change.refresh_fingerprint.is_empty() {
        return None;
    }
    let names: Vec<_> = names.into_iter().map(sql::ident).collect();
    change.path = names.join(", ");
    Some(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SourceFile, load_plain};

    fn desired(options: &str) -> DesiredState {
        let text = format!(
            "connection \"b\" {{\n plugin = \"postgres\"\n}}\n\
             connection \"a\\\"x\" {{\n plugin = \"postgres\"\n}}\n\
             connection \"off\" {{\n plugin = \"postgres\"\n import_schema = \"disabled\"\n}}\n\
             options \"database\" {{\n{options}\n}}\n"
        );
        load_plain(&[SourceFile {
            path: "x.spc".into(),
            text: Ok(text),
        }])
    }

    const NONE: BTreeMap<&str, &ConfigSnapshot> = BTreeMap::new();

    fn retained<'a>(
        name: &'a str,
        written: &'a ConfigSnapshot,
    ) -> BTreeMap<&'a str, &'a ConfigSnapshot> {
        BTreeMap::from([(name, written)])
    }

    fn role(name: &str) -> Role {
        Role {
            name: name.into(),
            member: true,
            ..Role::default()
        }
    }

    #[test]
    fn the_path_is_prefix_then_connections_then_spcd() {
        let of = |options: &str| search_path(&desired(options), &NONE).join(" ").to_owned();
        assert_eq!(of(""), "public a\"x b spcd");
        assert_eq!(
            of("search_path_prefix = \"b, mine\""),
            "b mine public a\"x spcd"
        );
        assert_eq!(of("search_path = \"b,spcd,public\""), "b public spcd");
        assert_eq!(
            of("search_path = [\"x\", \"y\"]\nsearch_path_prefix = \"y\""),
            "y x spcd"
        );
        assert_eq!(of("search_path = \"\""), "public a\"x b spcd");
        let (desired, written) = (desired(""), ConfigSnapshot::default());
        assert_eq!(
            search_path(&desired, &retained("az", &written)).join(" "),
            "public a\"x az b spcd"
        );
    }

    #[test]
    fn who_has_it_is_left_alone_and_whose_own_it_is_too() {
        let (desired, written) = (desired(""), ConfigSnapshot::default());
        let first = search_path_change(&desired, &NONE, &[role("r")]).unwrap();
        assert_eq!(first.path, r#""public", "a""x", "b", "spcd""#);
        assert_eq!(first.set, ["r"]);
        let set = Role {
            set: Some(first.hash.clone()),
            there: true,
            ..role("r")
        };
        let own = Role {
            own: true,
            ..role("own")
        };
        assert_eq!(
            search_path_change(&desired, &NONE, &[set.clone(), own]),
            None
        );
        assert_eq!(search_path_change(&desired, &NONE, &[]), None);
        // Removed by hand: it is set again. Replaced by hand: the role keeps it.
        let gone = Role {
            there: false,
            ..set.clone()
        };
        assert_eq!(
            search_path_change(&desired, &NONE, std::slice::from_ref(&gone))
                .unwrap()
                .set,
            ["r"]
        );
        // A refused path is tried again only after it changes.
        let refused = |hash: &str| Role {
            refused: Some(hash.to_owned()),
            ..gone.clone()
        };
        let again =
            |role| search_path_change(&desired, &NONE, &[role]).map(|change| change.set.len());
        assert_eq!(again(refused(&first.hash)), None);
        assert_eq!(again(refused("another")), Some(1));
        let replaced = Role { own: true, ..gone };
        assert_eq!(
            search_path_change(&desired, &NONE, &[replaced])
                .unwrap()
                .release,
            ["r"]
        );
        // Another path.
        assert_eq!(
            search_path_change(
                &desired,
                &retained("zz", &written),
                std::slice::from_ref(&set)
            )
            .unwrap()
            .set,
            ["r"]
        );
        // No longer a member, or a path of its own for all databases.
        let left = Role {
            member: false,
            ..set.clone()
        };
        assert_eq!(
            search_path_change(&desired, &NONE, &[left]).unwrap().reset,
            ["r"]
        );
        let own = Role { own: true, ..set };
        assert_eq!(
            search_path_change(&desired, &NONE, &[own]).unwrap().reset,
            ["r"]
        );
    }

    #[test]
    fn not_managed_means_taken_back() {
        let desired = desired("manage_search_path = false");
        let set = Role {
            set: Some("any".into()),
            there: true,
            ..role("r")
        };
        let change = search_path_change(&desired, &NONE, &[set, role("new")]).unwrap();
        assert_eq!((change.set.len(), change.reset), (0, vec!["r".to_owned()]));
    }
}
