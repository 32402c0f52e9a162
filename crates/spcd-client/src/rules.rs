//! Decides from the states whether a failed statement is run again.

use std::collections::{BTreeMap, BTreeSet};

use spcd_protocol::Status;

use crate::error::Problem;
use crate::states::StateSummary;

/// Decision about a statement that did not find a table or schema.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RetryDecision {
    /// The failure is final; with the connection that explains it, if one does.
    Fail(Option<(String, Problem)>),
    /// Wait for these connections, then run the statement again.
    Wait(Vec<String>),
    /// Run the statement again: no connection is loading, and what it needs may have been created
    /// after it failed.
    Retry,
}

/// Facts that earlier failures of the statement have shown.
#[derive(Debug, Default)]
pub(crate) struct RetryHistory {
    /// States of the named schemas when no connection was loading.
    seen: Option<BTreeMap<String, StateSummary>>,
    /// Connections of the search path that were waited for, or needed no wait. Each is waited for
    /// once, so that a statement ends also on a database that changes all the time.
    done: BTreeSet<String>,
}

/// Decides for a statement that names schemas.
pub(crate) fn decide_by_schemas(
    schemas: &[String],
    rows: &BTreeMap<String, StateSummary>,
    memory: &mut RetryHistory,
) -> RetryDecision {
    let known = || {
        schemas
            .iter()
            .filter_map(|name| rows.get(name).map(|row| (name, row)))
    };
    let waiting = unsettled(known());
    if !waiting.is_empty() {
        memory.seen = None;
        return RetryDecision::Wait(waiting);
    }
    if known().next().is_none() {
        return RetryDecision::Fail(None);
    }
    if let Some(problem) = known().find_map(|(name, row)| Some((name.clone(), problem(row)?))) {
        return RetryDecision::Fail(Some(problem));
    }
    if memory.seen.as_ref() == Some(rows) {
        // The states are as before the last run: the object does not exist.
        return RetryDecision::Fail(None);
    }
    memory.seen = Some(rows.clone());
    RetryDecision::Retry
}

/// Decides for a statement without schema names; `path` is the session's search path.
pub(crate) fn decide_by_search_path(
    path: &[String],
    rows: &BTreeMap<String, StateSummary>,
    memory: &mut RetryHistory,
) -> RetryDecision {
    let needed = needed(path, rows);
    let broken = needed
        .iter()
        .find(|(_, row)| row.is_static && row.status == Status::Error);
    let new: Vec<_> = (needed.iter().copied())
        .filter(|(name, _)| memory.done.insert((*name).clone()))
        .collect();
    let waiting = unsettled(new.iter().copied());
    if !waiting.is_empty() {
        RetryDecision::Wait(waiting)
    } else if let Some(problem) =
        broken.and_then(|(name, row)| Some(((*name).clone(), problem(row)?)))
    {
        RetryDecision::Fail(Some(problem))
    } else if new.is_empty() {
        RetryDecision::Fail(None)
    } else {
        RetryDecision::Retry
    }
}

/// Decides before a statement runs on a chosen search path: every connection that it needs must be
/// ready.
pub(crate) fn decide_before_statement(
    path: &[String],
    rows: &BTreeMap<String, StateSummary>,
) -> RetryDecision {
    let needed = needed(path, rows);
    let broken = needed.iter().find(|(_, row)| row.status == Status::Error);
    if let Some((name, row)) = broken {
        return RetryDecision::Fail(problem(row).map(|problem| ((*name).clone(), problem)));
    }
    let waiting = unsettled(needed.into_iter());
    if waiting.is_empty() {
        RetryDecision::Retry
    } else {
        RetryDecision::Wait(waiting)
    }
}

fn unsettled<'a>(rows: impl Iterator<Item = (&'a String, &'a StateSummary)>) -> Vec<String> {
    rows.filter(|(_, row)| !row.status.is_settled())
        .map(|(name, _)| name.clone())
        .collect()
}

/// Returns the connections of a search path that decide what an unqualified name means: every
/// dynamic one, and the first of each static plugin, since the others have the same tables. A
/// connection whose mode is unknown counts as dynamic.
fn needed<'a>(
    path: &'a [String],
    rows: &'a BTreeMap<String, StateSummary>,
) -> Vec<(&'a String, &'a StateSummary)> {
    let (mut plugins, mut names) = (BTreeSet::new(), BTreeSet::new());
    (path.iter())
        .filter_map(|name| rows.get(name).map(|row| (name, row)))
        .filter(|(name, row)| row.status != Status::Disabled && names.insert(*name))
        .filter(|(_, row)| !row.is_static || plugins.insert(&row.plugin_instance))
        .collect()
}

fn problem(row: &StateSummary) -> Option<Problem> {
    match row.status {
        Status::Error => Some(Problem::Error(row.error.clone().unwrap_or_default())),
        Status::Disabled => Some(Problem::Disabled),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(&str, Status, &str)]) -> BTreeMap<String, StateSummary> {
        let row = |(name, status, plugin): &(&str, Status, &str)| {
            let seen = StateSummary {
                status: *status,
                error: (*status == Status::Error).then(|| format!("{name} is broken")),
                is_static: !plugin.is_empty(),
                plugin_instance: (*plugin).to_owned(),
                ..StateSummary::default()
            };
            ((*name).to_owned(), seen)
        };
        rows.iter().map(row).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn wait(waiting: &[&str]) -> RetryDecision {
        RetryDecision::Wait(names(waiting))
    }

    fn broken(name: &str) -> RetryDecision {
        let problem = Problem::Error(format!("{name} is broken"));
        RetryDecision::Fail(Some((name.to_owned(), problem)))
    }

    #[test]
    fn a_named_schema_is_waited_for_only_while_it_is_on_its_way() {
        for (status, expected) in [
            (Status::Pending, wait(&["a"])),
            (Status::Updating, wait(&["a"])),
            (Status::Deleting, wait(&["a"])),
            (Status::Ready, RetryDecision::Retry),
            (Status::Error, broken("a")),
            (
                Status::Disabled,
                RetryDecision::Fail(Some(("a".into(), Problem::Disabled))),
            ),
        ] {
            let rows = rows(&[("a", status, ""), ("b", Status::Pending, "")]);
            assert_eq!(
                decide_by_schemas(&names(&["a"]), &rows, &mut RetryHistory::default()),
                expected
            );
        }
        assert_eq!(
            decide_by_schemas(&names(&["x"]), &rows(&[]), &mut RetryHistory::default()),
            RetryDecision::Fail(None)
        );
    }

    #[test]
    fn what_was_ready_all_along_is_not_run_for_a_third_time() {
        let (a, mut memory) = (names(&["a"]), RetryHistory::default());
        let mut now = rows(&[("a", Status::Ready, "")]);
        assert_eq!(
            decide_by_schemas(&a, &now, &mut memory),
            RetryDecision::Retry
        );
        // Its state changed in between.
        now.values_mut().for_each(|row| row.event = 7);
        assert_eq!(
            decide_by_schemas(&a, &now, &mut memory),
            RetryDecision::Retry
        );
        assert_eq!(
            decide_by_schemas(&a, &now, &mut memory),
            RetryDecision::Fail(None)
        );
    }

    #[test]
    fn a_bare_name_waits_for_the_first_of_each_static_plugin_and_every_dynamic_one() {
        let path = names(&["public", "s1", "s2", "t1", "d1", "d2", "spcd"]);
        let all = |s1, s2, t1, d1, d2| {
            rows(&[
                ("s1", s1, "s"),
                ("s2", s2, "s"),
                ("t1", t1, "t"),
                ("d1", d1, ""),
                ("d2", d2, ""),
            ])
        };
        let first = |path: &[String], rows: &_| {
            decide_by_search_path(path, rows, &mut RetryHistory::default())
        };
        use Status::{Disabled, Error, Pending, Ready, Updating};
        let now = all(Pending, Pending, Ready, Updating, Pending);
        assert_eq!(first(&path, &now), wait(&["s1", "d1", "d2"]));
        assert_eq!(
            first(&path, &all(Ready, Pending, Ready, Ready, Ready)),
            RetryDecision::Retry
        );
        assert_eq!(
            first(&path, &all(Ready, Ready, Ready, Error, Ready)),
            RetryDecision::Retry
        );
        assert_eq!(
            first(&path, &all(Error, Ready, Ready, Ready, Ready)),
            broken("s1")
        );
        assert_eq!(
            first(&path, &all(Ready, Error, Ready, Ready, Ready)),
            RetryDecision::Retry
        );
        // A disabled connection has no schema, so the next one comes first.
        assert_eq!(
            first(&path, &all(Disabled, Pending, Ready, Ready, Ready)),
            wait(&["s2"])
        );
        // Connections outside the path do not count.
        assert_eq!(first(&names(&["public"]), &now), RetryDecision::Fail(None));
    }

    #[test]
    fn each_connection_of_the_path_is_waited_for_once() {
        let (path, mut memory) = (names(&["a", "b"]), RetryHistory::default());
        use Status::{Pending, Ready, Updating};
        let mut now =
            |a, b| decide_by_search_path(&path, &rows(&[("a", a, ""), ("b", b, "")]), &mut memory);
        assert_eq!(now(Pending, Ready), wait(&["a"]));
        assert_eq!(now(Ready, Updating), RetryDecision::Fail(None));
        let mut memory = RetryHistory::default();
        assert_eq!(
            decide_by_search_path(&path, &rows(&[("a", Ready, "")]), &mut memory),
            RetryDecision::Retry
        );
        // A connection that appeared meanwhile is new.
        let more = rows(&[("a", Ready, ""), ("b", Pending, "")]);
        assert_eq!(
            decide_by_search_path(&path, &more, &mut memory),
            wait(&["b"])
        );
    }

    #[test]
    fn a_search_path_that_was_asked_for_must_be_whole() {
        let path = names(&["s1", "s2", "d1"]);
        use Status::{Error, Pending, Ready};
        let all = |s1, s2, d1| rows(&[("s1", s1, "s"), ("s2", s2, "s"), ("d1", d1, "")]);
        assert_eq!(
            decide_before_statement(&path, &all(Ready, Pending, Ready)),
            RetryDecision::Retry
        );
        assert_eq!(
            decide_before_statement(&path, &all(Ready, Error, Ready)),
            RetryDecision::Retry
        );
        assert_eq!(
            decide_before_statement(&path, &all(Ready, Ready, Error)),
            broken("d1")
        );
        assert_eq!(
            decide_before_statement(&path, &all(Error, Ready, Ready)),
            broken("s1")
        );
        assert_eq!(
            decide_before_statement(&path, &all(Pending, Ready, Pending)),
            wait(&["s1", "d1"])
        );
    }
}
