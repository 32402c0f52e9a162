//! The search path of those who query, and whose it is to set.
//!
//! Postgres does not inherit settings of roles, so the path is set on each login role that is a
//! direct member of `spcd_users`, for this database only. A role that carries a search path of its
//! own making keeps it.

use std::collections::{BTreeMap, BTreeSet};

use crate::hash::hash;
use crate::model::Desired;
use crate::observed::{Role, Written};
use crate::sql;

/// The schema of the state, last on every path.
const LAST: &str = "spcd";

/// What is to be done to roles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathChange {
    /// The path as a setting's value.
    pub path: String,
    /// The hash of it.
    pub hash: String,
    /// Roles that get it.
    pub set: Vec<String>,
    /// Roles that lose what spcd set.
    pub reset: Vec<String>,
    /// Roles that set something else themselves.
    pub forget: Vec<String>,
    /// Roles that have what they should, but are to be looked at less closely from now on.
    pub touched: Vec<String>,
}

impl PathChange {
    /// Whether anybody's path changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.reset.is_empty()
    }
}

/// The path: the prefix, then what the configuration says or `public` and every enabled
/// connection in byte order, then `spcd`. `kept` are further connections, as their rows have them,
/// whose configuration cannot be read now.
pub fn path<'a>(desired: &'a Desired, kept: &BTreeMap<&'a str, &'a Written>) -> Vec<&'a str> {
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
        let kept = kept
            .iter()
            .filter(|(_, written)| written.import_schema != "disabled");
        let kept = kept.map(|(name, _)| *name);
        let connections: BTreeSet<&str> = enabled.chain(kept).collect();
        names.push("public");
        names.extend(connections);
    } else {
        names.extend(database.search_path.iter().map(String::as_str));
    }
    names.push(LAST);
    let mut seen = BTreeSet::from([LAST]);
    let last = names.len() - 1;
    let mut n = 0;
    names.retain(|name| {
        n += 1;
        n > last || seen.insert(name)
    });
    names
}

/// What is to become of the roles' paths; `None`: nothing.
pub fn change(
    desired: &Desired,
    kept: &BTreeMap<&str, &Written>,
    roles: &[Role],
) -> Option<PathChange> {
    if roles.is_empty() || desired.database.is_unknown {
        return None;
    }
    let manage = desired.database.manage_search_path.unwrap_or(true);
    let names = path(desired, kept);
    let mut change = PathChange {
        hash: hash(names.iter().copied()),
        ..PathChange::default()
    };
    for role in roles {
        let name = || role.name.clone();
        match &role.set {
            Some(_) if !role.there && role.own => change.forget.push(name()),
            Some(_) if !manage || !role.member || role.own => change.reset.push(name()),
            Some(set) if role.there && *set == change.hash => {
                change.touched.extend(role.touched.then(name));
            }
            None if role.own || !role.member || !manage => {}
            _ => change.set.push(name()),
        }
    }
    if change.is_empty() && change.forget.is_empty() && change.touched.is_empty() {
        return None;
    }
    let names: Vec<_> = names.into_iter().map(sql::ident).collect();
    change.path = names.join(", ");
    Some(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, load_plain};

    fn desired(options: &str) -> Desired {
        let text = format!(
            "connection \"b\" {{\n plugin = \"postgres\"\n}}\n\
             connection \"a\\\"x\" {{\n plugin = \"postgres\"\n}}\n\
             connection \"off\" {{\n plugin = \"postgres\"\n import_schema = \"disabled\"\n}}\n\
             options \"database\" {{\n{options}\n}}\n"
        );
        load_plain(&[Source {
            path: "x.spc".into(),
            text: Ok(text),
        }])
    }

    const NONE: BTreeMap<&str, &Written> = BTreeMap::new();

    fn kept<'a>(name: &'a str, written: &'a Written) -> BTreeMap<&'a str, &'a Written> {
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
        let of = |options: &str| path(&desired(options), &NONE).join(" ").to_owned();
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
        let (desired, written) = (desired(""), Written::default());
        assert_eq!(
            path(&desired, &kept("az", &written)).join(" "),
            "public a\"x az b spcd"
        );
    }

    #[test]
    fn who_has_it_is_left_alone_and_whose_own_it_is_too() {
        let (desired, written) = (desired(""), Written::default());
        let first = change(&desired, &NONE, &[role("r")]).unwrap();
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
        assert_eq!(change(&desired, &NONE, &[set.clone(), own]), None);
        assert_eq!(change(&desired, &NONE, &[]), None);
        // Gone by hand: set again. Replaced by hand: theirs.
        let gone = Role {
            there: false,
            ..set.clone()
        };
        assert_eq!(
            change(&desired, &NONE, std::slice::from_ref(&gone))
                .unwrap()
                .set,
            ["r"]
        );
        let replaced = Role { own: true, ..gone };
        assert_eq!(change(&desired, &NONE, &[replaced]).unwrap().forget, ["r"]);
        // Another path.
        assert_eq!(
            change(&desired, &kept("zz", &written), std::slice::from_ref(&set))
                .unwrap()
                .set,
            ["r"]
        );
        // No member any more, or a path of its own for all databases.
        let left = Role {
            member: false,
            ..set.clone()
        };
        assert_eq!(change(&desired, &NONE, &[left]).unwrap().reset, ["r"]);
        let own = Role { own: true, ..set };
        assert_eq!(change(&desired, &NONE, &[own]).unwrap().reset, ["r"]);
    }

    #[test]
    fn not_managed_means_taken_back() {
        let desired = desired("manage_search_path = false");
        let set = Role {
            set: Some("any".into()),
            there: true,
            ..role("r")
        };
        let change = change(&desired, &NONE, &[set, role("new")]).unwrap();
        assert_eq!((change.set.len(), change.reset), (0, vec!["r".to_owned()]));
    }
}
