//! Resolves the members of aggregators.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use crate::pattern::Pattern;

/// Properties of a connection that decide its membership.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemberCandidate {
    pub(crate) plugin_instance: String,
    /// `connections` of an aggregator as written; `None` for other connections.
    pub(crate) patterns: Option<Vec<String>>,
}

/// Members of all aggregators, and what prevents them.
#[derive(Debug, Default)]
pub(crate) struct ResolvedMembers {
    /// Members of every aggregator, in byte order.
    pub(crate) members: BTreeMap<String, Vec<String>>,
    /// Aggregators that are members of themselves, with the circle as text: `a → b → a`.
    pub(crate) circles: BTreeMap<String, String>,
    /// Aggregators that exceed the work allowed for a load; they have no members.
    pub(crate) excessive: BTreeSet<String>,
}

/// Work for comparing a name with a pattern, and for keeping a member, in steps of a `Budget`.
const MATCH_WORK: usize = 4;
const MEMBER_WORK: usize = 16;

/// Maximum number of steps of the search for shortest circles; after it, any circle is reported.
const MAX_SEARCH_STEPS: usize = 1 << 20;

/// Maximum number of names of a circle that are shown.
const MAX_SHOWN_NAMES: usize = 12;

/// Resolves the members of every aggregator. `spend` records work and returns whether more is
/// allowed.
pub(crate) fn resolve_members(
    candidates: &BTreeMap<&str, MemberCandidate>,
    spend: &mut dyn FnMut(usize) -> bool,
) -> ResolvedMembers {
    let mut chosen = ResolvedMembers::default();
    let names = names_by_instance(candidates);
    for (&name, candidate) in candidates {
        let Some(patterns) = &candidate.patterns else {
            continue;
        };
        let own = names.get(candidate.plugin_instance.as_str());
        let own = own.map_or(&[][..], Vec::as_slice);
        let members = members(patterns, own, candidates, spend);
        if members.is_none() {
            chosen.excessive.insert(name.to_owned());
        }
        let members = members.unwrap_or_default().into_iter().map(str::to_owned);
        chosen.members.insert(name.to_owned(), members.collect());
    }
    let components = {
        let edges = |name: &&str| inner(&chosen.members, name);
        let all = chosen.members.keys().map(String::as_str);
        components(all, &edges)
    };
    let components: Vec<Vec<String>> = (components.into_iter())
        .map(|names| names.into_iter().map(str::to_owned).collect())
        .collect();
    let mut left = MAX_SEARCH_STEPS;
    for component in &components {
        circles(component, &chosen.members, &mut left, &mut chosen.circles);
    }
    let excessive = excessive(&components, &chosen.members, spend);
    for name in &excessive {
        if let Some(members) = chosen.members.get_mut(name) {
            members.clear();
        }
    }
    chosen.excessive.extend(excessive);
    chosen
}

/// Returns the connections that patterns may match, in byte order: those that are not aggregators.
fn names_by_instance<'a>(
    candidates: &'a BTreeMap<&str, MemberCandidate>,
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, candidate) in candidates {
        if candidate.patterns.is_none() {
            let instance = candidate.plugin_instance.as_str();
            names.entry(instance).or_default().push(name);
        }
    }
    names
}

/// Returns the members of one aggregator; `None` if that takes too much work. An entry that equals
/// a connection's name means that connection, aggregator or not. Any other entry is a pattern,
/// which matches only non-aggregators of the same plugin instance.
fn members<'a>(
    patterns: &'a [String],
    own: &[&'a str],
    candidates: &BTreeMap<&str, MemberCandidate>,
    spend: &mut dyn FnMut(usize) -> bool,
) -> Option<BTreeSet<&'a str>> {
    let mut members = BTreeSet::new();
    for text in patterns {
        if !spend(MEMBER_WORK) {
            return None;
        }
        if candidates.contains_key(text.as_str()) {
            members.insert(text.as_str());
            continue;
        }
        let Ok(pattern) = Pattern::new(text) else {
            continue;
        };
        // Only names with the pattern's literal prefix are compared.
        let prefix = pattern.prefix();
        let from = own.partition_point(|name| *name < prefix.as_str());
        let possible = own[from..]
            .iter()
            .take_while(|name| name.starts_with(&prefix));
        for name in possible {
            let matches = pattern.matches(name);
            if !spend(if matches { MEMBER_WORK } else { MATCH_WORK }) {
                return None;
            }
            if matches {
                members.insert(*name);
            }
        }
    }
    Some(members)
}

/// Returns the aggregators among an aggregator's members.
fn inner<'a>(members: &'a BTreeMap<String, Vec<String>>, name: &str) -> Vec<&'a str> {
    let inner = members.get(name).into_iter().flatten();
    let inner = inner.filter_map(|member| members.get_key_value(member));
    inner.map(|(name, _)| name.as_str()).collect()
}

/// Returns the aggregators that show more than is allowed, nested members included.
fn excessive(
    components: &[Vec<String>],
    members: &BTreeMap<String, Vec<String>>,
    spend: &mut dyn FnMut(usize) -> bool,
) -> BTreeSet<String> {
    let mut excessive = BTreeSet::new();
    let mut shown: BTreeMap<&str, Rc<BTreeSet<&str>>> = BTreeMap::new();
    for component in components {
        let is_nested = |name: &String| !inner(members, name).is_empty();
        // The work for direct members was counted before.
        if component.len() == 1 && !component.iter().any(is_nested) {
            let leaves = component.iter().flat_map(|name| &members[name]);
            let leaves = leaves.map(String::as_str).collect();
            shown.insert(&component[0], Rc::new(leaves));
            continue;
        }
        let mut leaves = BTreeSet::new();
        let mut is_allowed = true;
        for member in component.iter().flat_map(|name| &members[name]) {
            let more = shown.get(member.as_str());
            is_allowed &= spend(MEMBER_WORK * more.map_or(1, |more| more.len()));
            if !is_allowed {
                break;
            }
            match more {
                Some(more) => leaves.extend(more.iter().copied()),
                None if members.contains_key(member) => {}
                None => drop(leaves.insert(member.as_str())),
            }
        }
        is_allowed &= spend(MEMBER_WORK.saturating_mul(leaves.len() * component.len()));
        let leaves = Rc::new(leaves);
        for name in component {
            if is_allowed {
                shown.insert(name, leaves.clone());
            } else {
                excessive.insert(name.clone());
            }
        }
    }
    excessive
}

/// Adds the circles through a component's aggregators.
fn circles(
    component: &[String],
    members: &BTreeMap<String, Vec<String>>,
    left: &mut usize,
    circles: &mut BTreeMap<String, String>,
) {
    let within: BTreeSet<&str> = component.iter().map(String::as_str).collect();
    // The last circle found, for the aggregators on it once the search is exhausted.
    let mut last: Vec<&str> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for start in &within {
        let found = circle(start, &within, members, left);
        if let Some(found) = found {
            circles.insert((*start).to_owned(), circle_text(&found, 0));
            if *left == 0 || last.is_empty() {
                places = found
                    .iter()
                    .enumerate()
                    .map(|(at, name)| (*name, at))
                    .collect();
                last = found;
            }
        } else if within.len() > 1 {
            let text = match places.get(start) {
                Some(at) => circle_text(&last, *at),
                None => format!("{start} → … → {start}"),
            };
            circles.insert((*start).to_owned(), text);
        }
    }
}

/// Returns a shortest circle through an aggregator, with its start named once; `None` if there is
/// none or the search is exhausted.
fn circle<'a>(
    start: &'a str,
    within: &BTreeSet<&'a str>,
    members: &'a BTreeMap<String, Vec<String>>,
    left: &mut usize,
) -> Option<Vec<&'a str>> {
    // Breadth first, so that the first circle found is a shortest one.
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(name) = queue.pop_front() {
        for member in inner(members, name) {
            if member == start {
                let mut path = vec![name];
                while let Some(name) = before.get(path[path.len() - 1]) {
                    path.push(name);
                }
                path.reverse();
                return Some(path);
            }
            *left = left.checked_sub(1)?;
            if within.contains(member) && !before.contains_key(member) {
                before.insert(member, name);
                queue.push_back(member);
            }
        }
    }
    None
}

/// Returns a circle as text, starting at index `from`.
fn circle_text(circle: &[&str], from: usize) -> String {
    let names = circle[from..].iter().chain(&circle[..from]);
    let mut names: Vec<String> = match circle.len() > MAX_SHOWN_NAMES {
        false => names.map(|name| (*name).to_owned()).collect(),
        true => {
            let names: Vec<&&str> = names.collect();
            let (first, rest) = names.split_at(MAX_SHOWN_NAMES / 2);
            let (left_out, last) = rest.split_at(rest.len() - MAX_SHOWN_NAMES / 2);
            let owned = |name: &&&str| (**name).to_string();
            let middle = format!("({} more)", left_out.len());
            let ends = first.iter().map(owned).chain([middle]);
            ends.chain(last.iter().map(owned)).collect()
        }
    };
    names.extend(circle.get(from).map(|name| (*name).to_owned()));
    names.join(" → ")
}

/// Returns the strongly connected components of the nodes reachable from `all`, each after those
/// that it leads to. (Tarjan's algorithm without recursion: a chain of aggregators may be long.)
pub(crate) fn components<'a>(
    all: impl Iterator<Item = &'a str>,
    edges: &dyn Fn(&&'a str) -> Vec<&'a str>,
) -> Vec<Vec<&'a str>> {
    /// Open node with the edges still to follow.
    struct Frame<'a> {
        name: &'a str,
        index: usize,
        low: usize,
        rest: std::vec::IntoIter<&'a str>,
    }
    let mut found = Vec::new();
    let mut indexes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut open: Vec<&str> = Vec::new();
    let mut is_open: BTreeSet<&str> = BTreeSet::new();
    for root in all {
        let mut frames: Vec<Frame<'a>> = Vec::new();
        let mut next = Some(root).filter(|root| !indexes.contains_key(root));
        loop {
            if let Some(name) = next.take() {
                let index = indexes.len();
                indexes.insert(name, index);
                open.push(name);
                is_open.insert(name);
                let rest = edges(&name).into_iter();
                frames.push(Frame {
                    name,
                    index,
                    low: index,
                    rest,
                });
            }
            let Some(frame) = frames.last_mut() else {
                break;
            };
            if let Some(to) = frame.rest.next() {
                match indexes.get(to) {
                    None => next = Some(to),
                    Some(index) if is_open.contains(to) => frame.low = frame.low.min(*index),
                    Some(_) => {}
                }
                continue;
            }
            let Some(Frame {
                name, index, low, ..
            }) = frames.pop()
            else {
                break;
            };
            if let Some(outer) = frames.last_mut() {
                outer.low = outer.low.min(low);
            }
            if low == index {
                let from = open.iter().rposition(|open| *open == name).unwrap_or(0);
                let component = open.split_off(from);
                for name in &component {
                    is_open.remove(name);
                }
                found.push(component);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{MemberCandidate, ResolvedMembers, resolve_members};
    use std::collections::BTreeMap;

    fn candidates<'a>(
        rows: &[(&'a str, &str, Option<&[&str]>)],
    ) -> BTreeMap<&'a str, MemberCandidate> {
        let candidate = |(name, instance, patterns): &(&'a str, &str, Option<&[&str]>)| {
            let patterns = patterns.map(|p| p.iter().map(|&text| text.to_owned()).collect());
            (
                *name,
                MemberCandidate {
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
        let ResolvedMembers {
            members, circles, ..
        } = resolve_members(&candidates, &mut |_| true);
        assert_eq!(members["all"], ["aws_a", "aws_b"]);
        assert_eq!(members["named"], ["all", "aws_c"]);
        assert!(circles.is_empty());
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
        let circles = resolve_members(&candidates, &mut |_| true).circles;
        assert_eq!(circles["a"], "a → b → c → a");
        assert_eq!(circles["c"], "c → a → b → c");
        assert_eq!(circles["self"], "self → self");
        assert!(!circles.contains_key("outside"));
    }
}
