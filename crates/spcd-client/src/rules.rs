//! What a statement's failure means, given the states: wait and run it again, or not.

use std::collections::{BTreeMap, BTreeSet};

use spcd_protocol::Status;

use crate::error::Problem;
use crate::states::Seen;

/// What to do about a statement that did not find a table or a schema.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its failure stands; with the connection that explains it, if one does.
    Stands(Option<(String, Problem)>),
    /// These are on their way; it may run after that.
    Wait(Vec<String>),
    /// Nothing is on its way. What it needs may have come after it failed, so it may run.
    Run,
}

/// What the failures before this one have shown.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The states of the schemas that it named, when nothing was on its way.
    seen: Option<BTreeMap<String, Seen>>,
    /// The connections of the search path that were waited for, or needed no waiting. Each is
    /// waited for once, so that a database in which something always changes gives an answer.
    done: BTreeSet<String>,
}

/// When the statement named schemas.
pub(crate) fn named(
    schemas: &[String],
    rows: &BTreeMap<String, Seen>,
    memory: &mut Memory,
) -> Verdict {
    let known = || {
        schemas
            .iter()
            .filter_map(|name| rows.get(name).map(|row| (name, row)))
    };
    let waiting = unsettled(known());
    if !waiting.is_empty() {
        memory.seen = None;
        return Verdict::Wait(waiting);
    }
    if known().next().is_none() {
        return Verdict::Stands(None);
    }
    if let Some(problem) = known().find_map(|(name, row)| Some((name.clone(), problem(row)?))) {
        return Verdict::Stands(Some(problem));
    }
    if memory.seen.as_ref() == Some(rows) {
        // Nothing happened to them since before it was last run: it is not there.
        return Verdict::Stands(None);
    }
    memory.seen = Some(rows.clone());
    Verdict::Run
}

/// When it named none: `path` is the session's search path.
pub(crate) fn on_path(
    path: &[String],
    rows: &BTreeMap<String, Seen>,
    memory: &mut Memory,
) -> Verdict {
    let needed = needed(path, rows);
    let broken = needed
        .iter()
        .find(|(_, row)| row.is_static && row.status == Status::Error);
    let new: Vec<_> = (needed.iter().copied())
        .filter(|(name, _)| memory.done.insert((*name).clone()))
        .collect();
    let waiting = unsettled(new.iter().copied());
    if !waiting.is_empty() {
        Verdict::Wait(waiting)
    } else if let Some(problem) =
        broken.and_then(|(name, row)| Some(((*name).clone(), problem(row)?)))
    {
        Verdict::Stands(Some(problem))
    } else if new.is_empty() {
        Verdict::Stands(None)
    } else {
        Verdict::Run
    }
}

/// Before a statement runs with a search path that was asked for: every connection that it needs
/// must be there.
pub(crate) fn before(path: &[String], rows: &BTreeMap<String, Seen>) -> Verdict {
    let needed = needed(path, rows);
    let broken = needed.iter().find(|(_, row)| row.status == Status::Error);
    if let Some((name, row)) = broken {
        return Verdict::Stands(problem(row).map(|problem| ((*name).clone(), problem)));
    }
    let waiting = unsettled(needed.into_iter());
    if waiting.is_empty() {
        Verdict::Run
    } else {
        Verdict::Wait(waiting)
    }
}

fn unsettled<'a>(rows: impl Iterator<Item = (&'a String, &'a Seen)>) -> Vec<String> {
    rows.filter(|(_, row)| !row.status.is_settled())
        .map(|(name, _)| name.clone())
        .collect()
}

/// Of a search path's connections those that decide what a bare name means: every dynamic one, and
/// the first of each static plugin, since the others have the same tables. One whose mode is not
/// known yet counts as dynamic.
fn needed<'a>(path: &'a [String], rows: &'a BTreeMap<String, Seen>) -> Vec<(&'a String, &'a Seen)> {
    let (mut plugins, mut names) = (BTreeSet::new(), BTreeSet::new());
    (path.iter())
        .filter_map(|name| rows.get(name).map(|row| (name, row)))
        .filter(|(name, row)| row.status != Status::Disabled && names.insert(*name))
        .filter(|(_, row)| !row.is_static || plugins.insert(&row.plugin_instance))
        .collect()
}

fn problem(row: &Seen) -> Option<Problem> {
    match row.status {
        Status::Error => Some(Problem::Error(row.error.clone().unwrap_or_default())),
        Status::Disabled => Some(Problem::Disabled),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(&str, Status, &str)]) -> BTreeMap<String, Seen> {
        let row = |(name, status, plugin): &(&str, Status, &str)| {
            let seen = Seen {
                status: *status,
                error: (*status == Status::Error).then(|| format!("{name} is broken")),
                is_static: !plugin.is_empty(),
                plugin_instance: (*plugin).to_owned(),
                ..Seen::default()
            };
            ((*name).to_owned(), seen)
        };
        rows.iter().map(row).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn wait(waiting: &[&str]) -> Verdict {
        Verdict::Wait(names(waiting))
    }

    fn broken(name: &str) -> Verdict {
        let problem = Problem::Error(format!("{name} is broken"));
        Verdict::Stands(Some((name.to_owned(), problem)))
    }

    #[test]
    fn a_named_schema_is_waited_for_only_while_it_is_on_its_way() {
        for (status, expected) in [
            (Status::Pending, wait(&["a"])),
            (Status::Updating, wait(&["a"])),
            (Status::Deleting, wait(&["a"])),
            (Status::Ready, Verdict::Run),
            (Status::Error, broken("a")),
            (
                Status::Disabled,
                Verdict::Stands(Some(("a".into(), Problem::Disabled))),
            ),
        ] {
            let rows = rows(&[("a", status, ""), ("b", Status::Pending, "")]);
            assert_eq!(
                named(&names(&["a"]), &rows, &mut Memory::default()),
                expected
            );
        }
        assert_eq!(
            named(&names(&["x"]), &rows(&[]), &mut Memory::default()),
            Verdict::Stands(None)
        );
    }

    #[test]
    fn what_was_ready_all_along_is_not_run_for_a_third_time() {
        let (a, mut memory) = (names(&["a"]), Memory::default());
        let mut now = rows(&[("a", Status::Ready, "")]);
        assert_eq!(named(&a, &now, &mut memory), Verdict::Run);
        // Something happened to it in between.
        now.values_mut().for_each(|row| row.event = 7);
        assert_eq!(named(&a, &now, &mut memory), Verdict::Run);
        assert_eq!(named(&a, &now, &mut memory), Verdict::Stands(None));
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
        let first = |path: &[String], rows: &_| on_path(path, rows, &mut Memory::default());
        use Status::{Disabled, Error, Pending, Ready, Updating};
        let now = all(Pending, Pending, Ready, Updating, Pending);
        assert_eq!(first(&path, &now), wait(&["s1", "d1", "d2"]));
        assert_eq!(
            first(&path, &all(Ready, Pending, Ready, Ready, Ready)),
            Verdict::Run
        );
        assert_eq!(
            first(&path, &all(Ready, Ready, Ready, Error, Ready)),
            Verdict::Run
        );
        assert_eq!(
            first(&path, &all(Error, Ready, Ready, Ready, Ready)),
            broken("s1")
        );
        assert_eq!(
            first(&path, &all(Ready, Error, Ready, Ready, Ready)),
            Verdict::Run
        );
        // A disabled one has no schema, so the next is the first.
        assert_eq!(
            first(&path, &all(Disabled, Pending, Ready, Ready, Ready)),
            wait(&["s2"])
        );
        // What is not on the path is of no account.
        assert_eq!(first(&names(&["public"]), &now), Verdict::Stands(None));
    }

    #[test]
    fn each_connection_of_the_path_is_waited_for_once() {
        let (path, mut memory) = (names(&["a", "b"]), Memory::default());
        use Status::{Pending, Ready, Updating};
        let mut now = |a, b| on_path(&path, &rows(&[("a", a, ""), ("b", b, "")]), &mut memory);
        assert_eq!(now(Pending, Ready), wait(&["a"]));
        assert_eq!(now(Ready, Updating), Verdict::Stands(None));
        let mut memory = Memory::default();
        assert_eq!(
            on_path(&path, &rows(&[("a", Ready, "")]), &mut memory),
            Verdict::Run
        );
        // One that appeared meanwhile is new.
        let more = rows(&[("a", Ready, ""), ("b", Pending, "")]);
        assert_eq!(on_path(&path, &more, &mut memory), wait(&["b"]));
    }

    #[test]
    fn a_search_path_that_was_asked_for_must_be_whole() {
        let path = names(&["s1", "s2", "d1"]);
        use Status::{Error, Pending, Ready};
        let all = |s1, s2, d1| rows(&[("s1", s1, "s"), ("s2", s2, "s"), ("d1", d1, "")]);
        assert_eq!(before(&path, &all(Ready, Pending, Ready)), Verdict::Run);
        assert_eq!(before(&path, &all(Ready, Error, Ready)), Verdict::Run);
        assert_eq!(before(&path, &all(Ready, Ready, Error)), broken("d1"));
        assert_eq!(before(&path, &all(Error, Ready, Ready)), broken("s1"));
        assert_eq!(
            before(&path, &all(Pending, Ready, Pending)),
            wait(&["s1", "d1"])
        );
    }
}
