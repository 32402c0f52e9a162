//! The requests of clients that have no answer yet (`spcd.refresh_request`).

use std::collections::{BTreeMap, BTreeSet};

/// So many names that no connection has are told; of the others, how many there are.
const TOLD: usize = 3;
/// Most errors that an answer names.
const MOST_ERRORS: usize = 100;
/// No connection's name is longer, in bytes; nor is one told with more characters.
const LONGEST: usize = 63;

/// The requests that were read and not answered yet.
#[derive(Debug, Default)]
pub struct Requests {
    open: BTreeMap<i64, OpenRequest>,
    /// More are queued than are held.
    pub(super) is_crowded: bool,
}

/// What a client requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub action: Action,
    /// The connections, in byte order, each once; `None`: all.
    pub names: Option<Vec<String>>,
    /// Whether credentials that were rejected are sent again.
    pub retries_refused: bool,
}

/// What is to be done with sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask them.
    Refresh,
    /// Leave them alone no longer, and ask them.
    Reconnect,
    /// Leave them alone.
    Disconnect,
    /// Ask them although that ended a server process.
    Retry,
}

#[derive(Debug)]
struct OpenRequest {
    action: Action,
    /// `None`: all. In byte order, each once; after a pass only those of connections.
    names: Option<Vec<String>>,
    /// Those of them that are paused, and were reported as that.
    paused: BTreeSet<String>,
    /// The pass that read the request.
    pass: u64,
    /// A pass since then put nothing off, and knew what had drifted.
    is_passed: bool,
    /// Connections for which the pass found work that their status does not show: other files, a drop
    /// that is tried again.
    found: BTreeSet<String>,
    /// When they are waited for no longer: a source that hangs delays no look at the others.
    found_until: u64,
    errors: Vec<String>,
    /// How many more there were.
    more_errors: usize,
    /// Its answer is being written.
    is_answering: bool,
}

/// What [`Requests::answer`] asks about connections.
pub(super) trait Progress {
    /// Whether anything is under way for a connection, or for any (`None`).
    fn is_open(&self, name: Option<&str>) -> bool;
    /// Whether what a pass found for a connection is under way.
    fn is_found_open(&self, name: &str) -> bool;
}

impl Requests {
    /// The identifiers of the requests that are held.
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
    pub(super) fn looked(
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
                open.tell(|| {
                    format!(
                        "{name}: its source is left alone since `spcd disconnect`: \
                         `spcd reconnect {name}` ends that"
                    )
                });
                open.paused.insert(name);
            }
        }
    }

    /// Has the requests that wait for a pass wait for these connections, at most until then.
    pub(super) fn await_found(&mut self, names: &BTreeSet<String>, until: u64) {
        for open in self.open.values_mut().filter(|open| !open.is_passed) {
            open.found.extend(names.iter().cloned());
            open.found_until = until;
        }
    }

    /// Takes note that nothing of what this pass or one before read is put off.
    pub(super) fn passed(&mut self, pass: u64) {
        for open in self.open.values_mut() {
            open.is_passed |= open.pass <= pass;
        }
    }

    /// Whether one was read after this pass.
    pub(super) fn came_after(&self, pass: u64) -> bool {
        let mut open = self.open.values();
        open.any(|open| !open.is_passed && open.pass > pass)
    }

    /// Whether a client waits for what a pass finds.
    pub(super) fn await_a_pass(&self) -> bool {
        self.open.values().any(|open| !open.is_passed)
    }

    /// Reports a failed job to the requests that concern it.
    pub(super) fn failed(&mut self, name: &str, error: &str) {
        let concerns = |open: &&mut OpenRequest| match &open.names {
            Some(names) => (names.binary_search_by(|one| one.as_str().cmp(name))).is_ok(),
            None => true,
        };
        for open in self.open.values_mut().filter(concerns) {
            open.tell(|| format!("{name}: {error}"));
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

    /// Takes note that an answer is written. Returns whether that makes room for a queued request.
    pub(super) fn answered(&mut self, id: i64) -> bool {
        self.open.remove(&id).is_some() && self.is_crowded
    }

    /// Has the answers that could not be written tried again.
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

    fn tell(&mut self, error: impl FnOnce() -> String) {
        match self.errors.len() < MOST_ERRORS {
            true => self.errors.push(error()),
            false => self.more_errors += 1,
        }
    }

    /// The answer's error; `None`: all went well.
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
    let told = |name: &String| match name.len() > LONGEST {
        true => format!(
            "{:?}",
            name.chars().take(LONGEST).chain(['…']).collect::<String>()
        ),
        false => format!("{name:?}"),
    };
    let first: Vec<String> = names.iter().take(TOLD).map(told).collect();
    let first = first.join(", ");
    match names.len() - names.len().min(TOLD) {
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
    fn names_that_no_connection_has_are_told_in_short_and_once() {
        let mut requests = asking(Action::Reconnect, &["a", "b", "c", "d", "e"]);
        for _ in 0..2 {
            requests.looked(|name| name == "c", |_| false);
            let open = &requests.open[&1];
            let told = "no connection is named \"a\", \"b\", \"d\" and 1 more";
            assert_eq!(open.errors, [told]);
            assert_eq!(open.names, Some(vec!["c".to_owned()]));
        }
        let mut requests = asking(Action::Refresh, &["ä".repeat(1_000_000).as_str()]);
        requests.looked(|_| false, |_| false);
        let told = format!("no connection is named \"{}…\"", "ä".repeat(LONGEST));
        assert_eq!(requests.open[&1].errors, [told]);
    }

    #[test]
    fn a_refresh_of_a_paused_connection_is_told_so_once() {
        for (action, told) in [(Action::Refresh, 1), (Action::Reconnect, 0)] {
            let mut requests = asking(action, &["a", "b"]);
            requests.looked(|_| true, |name| name == "b");
            requests.looked(|_| true, |name| name == "b");
            assert_eq!(requests.open[&1].errors.len(), told);
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
    fn what_a_pass_found_is_waited_for_only_so_long() {
        let mut requests = asking(Action::Refresh, &["a"]);
        requests.await_found(&BTreeSet::from(["z".to_owned()]), 100);
        requests.passed(1);
        assert!(requests.answer(&Open(&["z"]), 99).is_empty());
        assert_eq!(requests.answer(&Open(&["z"]), 100), [(1, None)]);
    }
}
