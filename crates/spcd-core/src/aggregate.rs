//! Members of aggregators.

use std::collections::{BTreeMap, BTreeSet};

use crate::pattern::Pattern;

/// What choosing members needs to know of a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Candidate {
    pub(crate) plugin_instance: String,
    /// An aggregator's `connections` as written; `None` for other connections.
    pub(crate) patterns: Option<Vec<String>>,
}

/// The members of every aggregator, in byte order. An entry that is a connection's very name
/// means that one, aggregator or not; else it is a pattern, which picks only non-aggregators of
/// the same plugin instance.
pub(crate) fn members(candidates: &BTreeMap<&str, Candidate>) -> BTreeMap<String, Vec<String>> {
    let mut result = BTreeMap::new();
    for (&name, candidate) in candidates {
        let Some(patterns) = &candidate.patterns else {
            continue;
        };
        let mut members = BTreeSet::new();
        for text in patterns {
            if candidates.contains_key(text.as_str()) {
                members.insert(text.clone());
                continue;
            }
            let Ok(pattern) = Pattern::new(text) else {
                continue;
            };
            let matching = candidates.iter().filter(|(name, other)| {
                other.patterns.is_none()
                    && other.plugin_instance == candidate.plugin_instance
                    && pattern.matches(name)
            });
            members.extend(matching.map(|(&name, _)| name.to_owned()));
        }
        result.insert(name.to_owned(), members.into_iter().collect());
    }
    result
}

/// Every aggregator that is, over others, its own member, with the circle as text: `a → b → a`.
pub(crate) fn circles(members: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, String> {
    let mut circles = BTreeMap::new();
    for start in members.keys() {
        // Breadth first, so that the circle shown is a shortest one.
        let mut before: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([start.as_str()]);
        'search: while let Some(name) = queue.pop_front() {
            for member in members.get(name).into_iter().flatten() {
                if member == start {
                    let mut path = vec![start.as_str(), name];
                    let mut at = name;
                    while at != start {
                        at = before.get(at).copied().unwrap_or(start);
                        path.push(at);
                    }
                    path.reverse();
                    if name == start {
                        path.truncate(2);
                    }
                    circles.insert(start.clone(), path.join(" → "));
                    break 'search;
                }
                if members.contains_key(member) && !before.contains_key(member.as_str()) {
                    before.insert(member, name);
                    queue.push_back(member);
                }
            }
        }
    }
    circles
}

#[cfg(test)]
mod tests {
    use super::{Candidate, circles, members};
    use std::collections::BTreeMap;

    fn candidates<'a>(rows: &[(&'a str, &str, Option<&[&str]>)]) -> BTreeMap<&'a str, Candidate> {
        let candidate = |(name, instance, patterns): &(&'a str, &str, Option<&[&str]>)| {
            let patterns = patterns.map(|p| p.iter().map(|&text| text.to_owned()).collect());
            (
                *name,
                Candidate {
                    plugin_instance: (*instance).to_owned(),
                    patterns,
                },
            )
        };
        rows.iter().map(candidate).collect()
    }

    #[test]
    fn patterns_pick_the_same_instance_and_names_pick_anything() {
        let candidates = candidates(&[
            ("aws_b", "aws", None),
            ("aws_a", "aws", None),
            ("aws_c", "other", None),
            ("all", "aws", Some(&["*"])),
            ("named", "aws", Some(&["all", "aws_c", "zzz*"])),
        ]);
        let members = members(&candidates);
        assert_eq!(members["all"], ["aws_a", "aws_b"]);
        assert_eq!(members["named"], ["all", "aws_c"]);
        assert!(circles(&members).is_empty());
    }

    #[test]
    fn a_circle_is_told_whole() {
        let candidates = candidates(&[
            ("a", "x", Some(&["b"])),
            ("b", "x", Some(&["c"])),
            ("c", "x", Some(&["a"])),
            ("outside", "x", Some(&["a"])),
            ("self", "x", Some(&["self"])),
        ]);
        let circles = circles(&members(&candidates));
        assert_eq!(circles["a"], "a → b → c → a");
        assert_eq!(circles["c"], "c → a → b → c");
        assert_eq!(circles["self"], "self → self");
        assert!(!circles.contains_key("outside"));
    }
}
