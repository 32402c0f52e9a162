//! Requests of clients (`spcd.refresh_request`) until they are answered.

use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of unknown names in an error; further ones are counted.
const MAX_UNKNOWN_NAMES: usize = 3;
/// Maximum number of errors in an answer; further ones are counted.
const MAX_ERRORS: usize = 100;
/// Maximum length of a connection's name, in bytes. Longer names are cut in errors, after as many
/// characters.
const MAX_NAME_LENGTH: usize = 63;

/// Requests that were read and not answered yet.
#[derive(Debug, Default)]
pub struct Requests {
    open: BTreeMap<i64, OpenRequest>,
    /// More requests are queued than can be held.
    pub(super) is_crowded: bool,
}

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// The connections, in byte order and without duplicates; `None` means all.
    pub names: Option<Vec<String>>,
    /// Whether credentials that were rejected are sent again.
    pub retries_refused: bool,
}

/// What to do with sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Refresh them.
    Refresh,
    /// End their pause and refresh them.
    Reconnect,
    /// Pause them.
    Disconnect,
    /// Import them although that ended a server process before.
    Retry,
}

#[derive(Debug)]
struct OpenRequest {
    action: Action,
    /// As in [`Request`]. Unknown names are removed by the first pass.
    names: Option<Vec<String>>,
    /// Paused connections among them that are reported already.
    paused: BTreeSet<String>,
    /// The pass that read the request.
    pass: u64,
    /// A pass since then deferred nothing, and drift was known.
    is_passed: bool,
    /// Connections for which the pass found work that their status does not show: changed files, a
    /// repeated drop.
    found: BTreeSet<String>,
    /// Until when the answer waits for them, at most: a source that hangs does not delay it further.
    found_until: u64,
    errors: Vec<String>,
    /// Number of errors that are only counted.
    more_errors: usize,
    /// Its answer is being written.
    is_answering: bool,
}

/// Progress of connections, for [`Requests::answer`].
pub(super) trait Progress {
    /// Whether work is outstanding for a connection, or for any (`None`).
    fn is_open(&self, name: Option<&str>) -> bool;
    /// Whether work that a pass found is outstanding for a connection.
    fn is_found_open(&self, name: &str) -> bool;
}

impl Requests {
    /// Returns the identifiers of the requests that are held.
    pub fn ids(&self) -> Vec<i64> {
        self.open.keys().copied().collect()
    }

    /// Holds a request that a pass read.
    pub(super) fn open(&mut self, id: i64, request: &Request, pass: u64) {
        self.open.entry(id).or_insert_with(|| OpenRequest {
            action: request.action,
            names: request.names.clone(),
            paused: BTreeSet::new(),
            pass,
            is_passed: false,
            found: BTreeSet::new(),
            found_until: 0,
            errors: Vec::new(),
            more_errors: 0,
            is_answering: false,
        });
    }

    /// Reports names that no connection has, and refreshes of connections that are paused.
    pub(super) fn check_names(
        &mut self,
        is_known: impl Fn(&str) -> bool,
        is_paused: impl Fn(&str) -> bool,
    ) {
        for open in self.open.values_mut().filter(|open| !open.is_passed) {
            let Some(names) = &mut open.names else {
                continue;
            };
            let unknown: Vec<String> = names.extract_if(.., |name| !is_known(name)).collect();
            if !unknown.is_empty() {
                open.errors.push(no_connection(&unknown));
            }
            if open.action != Action::Refresh {
                continue;
            }
            let paused: Vec<String> = (names.iter())
                .filter(|name| is_paused(name) && !open.paused.contains(*name))
                .cloned()
                .collect();
            for name in paused {
                open.report(|| {
                    format!(
                        "{name}: paused by `spcd disconnect`: run `spcd reconnect {name}` to resume"
                    )
                });
                open.paused.insert(name);
            }
        }
    }

    /// Makes the requests that wait for a pass also wait for these connections, at most until `until`.
    pub(super) fn await_found_work(&mut self, names: &BTreeSet<String>, until: u64) {
        for open in self.open.values_mut().filter(|open| !open.is_passed) {
            open.found.extend(names.iter().cloned());
            open.found_until = until;
        }
    }

    /// Records that nothing is deferred for the requests that this pass or an earlier one read.
    pub(super) fn passed(&mut self, pass: u64) {
        for open in self.open.values_mut() {
            open.is_passed |= open.pass <= pass;
        }
    }

    /// Whether a request was read after this pass.
    pub(super) fn has_newer_than(&self, pass: u64) -> bool {
        let mut open = self.open.values();
        open.any(|open| !open.is_passed && open.pass > pass)
    }

    /// Whether a request waits for a pass.
    pub(super) fn is_pass_awaited(&self) -> bool {
        self.open.values().any(|open| !open.is_passed)
    }

    /// Reports a failed job to the requests that concern it.
    pub(super) fn failed(&mut self, name: &str, error: &str) {
        let concerns = |open: &&mut OpenRequest| match &open.names {
            Some(names) => (names.binary_search_by(|one| one.as_str().cmp(name))).is_ok(),
            None => true,
        };
        for open in self.open.values_mut().filter(concerns) {
            open.report(|| format!("{name}: {error}"));
        }
    }

    /// Returns the answers that can be written: the request, and its error.
    pub(super) fn answer(
        &mut self,
        progress: &impl Progress,
        now: u64,
    ) -> Vec<(i64, Option<String>)> {
        let mut answers = Vec::new();
        for (id, open) in &mut self.open {
            if open.is_passed && !open.is_answering && !open.waits(progress, now) {
                open.is_answering = true;
                answers.push((*id, open.error()));
            }
        }
        answers
    }

    /// Removes a request whose answer is written. Returns whether queued requests can be read now.
    pub(super) fn answered(&mut self, id: i64) -> bool {
        self.open.remove(&id).is_some() && self.is_crowded
    }

    /// Records that answers could not be written: they are returned again.
    pub(super) fn answers_failed(&mut self) {
        for open in self.open.values_mut() {
            open.is_answering = false;
        }
    }
}

impl OpenRequest {
    fn waits(&self, progress: &impl Progress, now: u64) -> bool {
        let finds = self.found_until > now;
        (finds && self.found.iter().any(|name| progress.is_found_open(name)))
            || match &self.names {
                Some(names) => names.iter().any(|name| progress.is_open(Some(name))),
                None => progress.is_open(None),
            }
    }

    fn report(&mut self, error: impl FnOnce() -> String) {
        match self.errors.len() < MAX_ERRORS {
            true => self.errors.push(error()),
            false => self.more_errors += 1,
        }
    }

    /// Returns the answer's error, if any.
    fn error(&self) -> Option<String> {
        let errors = self.errors.join("; ");
        match self.more_errors {
            0 => Some(errors).filter(|errors| !errors.is_empty()),
            more => Some(format!("{errors}; and {more} more")),
        }
    }
}

/// Returns the message about names that no connection has.
fn no_connection(names: &[String]) -> String {
    let quoted = |name: &String| match name.len() > MAX_NAME_LENGTH {
        true => format!(
            "{:?}",
            name.chars()
                .take(MAX_NAME_LENGTH)
                .chain(['…'])
                .collect::<String>()
        ),
        false => format!("{name:?}"),
    };
    let first: Vec<String> = names.iter().take(MAX_UNKNOWN_NAMES).map(quoted).collect();
    let first = first.join(", ");
    match names.len() - names.len().min(MAX_UNKNOWN_NAMES) {
        0 => format!("no connection is named {first}"),
        more => format!("no connection is named {first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(action: Action, names: &[&str]) -> Requests {
        let request = Request {
            action,
            names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            retries_refused: false,
        };
        let mut requests = Requests::default();
        requests.open(1, &request, 1);
        requests
    }

    #[test]
    fn unknown_names_are_reported_once_and_cut() {
        let mut requests = asking(Action::Reconnect, &["a", "b", "c", "d", "e"]);
        for _ in 0..2 {
            requests.check_names(|name| name == "c", |_| false);
            let open = &requests.open[&1];
            let expected = "no connection is named \"a\", \"b\", \"d\" and 1 more";
            assert_eq!(open.errors, [expected]);
            assert_eq!(open.names, Some(vec!["c".to_owned()]));
        }
        let mut requests = asking(Action::Refresh, &["ä".repeat(1_000_000).as_str()]);
        requests.check_names(|_| false, |_| false);
        let expected = format!(
            "no connection is named \"{}…\"",
            "ä".repeat(MAX_NAME_LENGTH)
        );
        assert_eq!(requests.open[&1].errors, [expected]);
    }

    #[test]
    fn a_refresh_of_a_paused_connection_is_reported_once() {
        for (action, expected) in [(Action::Refresh, 1), (Action::Reconnect, 0)] {
            let mut requests = asking(action, &["a", "b"]);
            requests.check_names(|_| true, |name| name == "b");
            requests.check_names(|_| true, |name| name == "b");
            assert_eq!(requests.open[&1].errors.len(), expected);
        }
    }

    struct Open(&'static [&'static str]);

    impl Progress for Open {
        fn is_open(&self, name: Option<&str>) -> bool {
            name.map_or(!self.0.is_empty(), |name| self.0.contains(&name))
        }

        fn is_found_open(&self, name: &str) -> bool {
            self.0.contains(&name)
        }
    }

    #[test]
    fn an_answer_waits_for_its_pass_and_its_connections() {
        let mut requests = asking(Action::Refresh, &["a", "b"]);
        assert!(requests.answer(&Open(&[]), 0).is_empty(), "no pass yet");
        requests.passed(1);
        assert!(requests.answer(&Open(&["b"]), 0).is_empty());
        requests.failed("c", "of another");
        requests.failed("a", "no answer");
        let answer = (1, Some("a: no answer".to_owned()));
        assert_eq!(
            requests.answer(&Open(&["c"]), 0),
            std::slice::from_ref(&answer)
        );
        assert!(requests.answer(&Open(&[]), 0).is_empty(), "written twice");
        requests.answers_failed();
        assert_eq!(requests.answer(&Open(&[]), 0), [answer]);
        assert!(!requests.answered(1));
        assert!(requests.ids().is_empty());
    }

    #[test]
    fn an_answer_waits_for_found_work_for_a_limited_time() {
        let mut requests = asking(Action::Refresh, &["a"]);
        requests.await_found_work(&BTreeSet::from(["z".to_owned()]), 100);
        requests.passed(1);
        assert!(requests.answer(&Open(&["z"]), 99).is_empty());
        assert_eq!(requests.answer(&Open(&["z"]), 100), [(1, None)]);
    }
}
