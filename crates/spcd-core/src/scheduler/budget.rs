//! Limits of concurrent work, and the order in which waiting jobs get permits.
//!
//! This state is separate from that of [`super::step`], since permits are granted between the events of
//! the loop: an observation of the database may take longer than an import, and no import waits for it.

use std::collections::BTreeMap;
use std::fmt;

/// How many sources that answer quickly are asked at a time: each keeps a core of the server busy, so
/// more would only be slower.
const MAX_QUICK: usize = 4;
/// Initial maximum number of tables on their way to the writers, which take some hundreds at a time:
/// enough to keep two busy, and no more than fit into memory as text.
const MAX_UNWRITTEN_TABLES: usize = 4_000;
/// Time for which a stuck session keeps its source from being asked again, in milliseconds. If the
/// network drops all packets silently, the session is stuck forever.
const STUCK_PAUSE: u64 = 3_600_000;
/// Initial estimate of how long an answer takes, in microseconds.
const INITIAL_LATENCY: u64 = 50_000;
/// A source is slow that takes so many times as long as others do, however fast (`MIN_SLOW`) and
/// however slow (`MAX_SLOW`, both in microseconds) these are.
const SLOW_FACTOR: u64 = 5;
const MIN_SLOW: u64 = 100_000;
const MAX_SLOW: u64 = 1_000_000;

/// Order of waiting jobs: the lowest first. No two jobs have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority {
    /// Urgency of the job.
    pub urgency: Urgency,
    /// Number by which jobs were started.
    pub number: u64,
}

/// Urgency of a job, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A client named the connection.
    Requested,
    /// Something differs from the desired state.
    Change,
    /// Nothing is known to differ.
    Refresh,
    /// Comments, for which no client waits.
    Comments,
}

/// What a permit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PermitKind {
    /// Work in the server: asking a source that is not known to be slow, or reading the catalog.
    Quick,
    /// Waiting for a slow source.
    Slow,
    /// Waiting for a source that could not be reached quickly.
    Unreachable,
    /// An open session.
    Session,
    /// Asking a source whose session may get stuck.
    Uncancellable,
    /// Tables on their way to the writer, one permit each.
    Unwritten,
}

/// Limits of concurrent work, and the permits in use.
#[derive(Debug)]
pub struct SessionBudget {
    queues: BTreeMap<PermitKind, PermitQueue>,
    max_uncancellable: usize,
    stuck: BTreeMap<u64, StuckSession>,
    next_stuck: u64,
    /// Moving average of the answer time, in microseconds.
    latency: u64,
}

/// Permits of one kind.
#[derive(Debug)]
struct PermitQueue {
    max: usize,
    /// Negative if the last permit was larger than the free rest.
    free: i64,
    waiting: BTreeMap<Priority, i64>,
}

/// A session that cannot be cancelled and does not end.
#[derive(Debug)]
struct StuckSession {
    wrapper: String,
    source: String,
    since: u64,
}

impl SessionBudget {
    /// Returns the budget of a leader that may open this many sessions to sources.
    pub fn new(sessions: usize) -> Self {
        let max_uncancellable = (sessions * 2 / 3).max(1);
        let queues = [
            (PermitKind::Quick, MAX_QUICK),
            (PermitKind::Slow, (sessions / 2).max(1)),
            (PermitKind::Unreachable, (sessions / 4).max(1)),
            (PermitKind::Session, sessions),
            (PermitKind::Uncancellable, max_uncancellable),
            (PermitKind::Unwritten, MAX_UNWRITTEN_TABLES),
        ];
        let queue = |(kind, max)| (kind, PermitQueue::new(max));
        Self {
            queues: queues.into_iter().map(queue).collect(),
            max_uncancellable,
            stuck: BTreeMap::new(),
            next_stuck: 0,
            latency: INITIAL_LATENCY,
        }
    }

    /// Requests a permit of this size. Returns whether it is granted at once; otherwise
    /// [`Self::give_back`] grants it later.
    pub fn request(&mut self, kind: PermitKind, priority: Priority, size: usize) -> bool {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        self.queue(kind).request(priority, size)
    }

    /// Gives a permit back. Returns the requests that are granted now, with their sizes.
    pub fn give_back(&mut self, kind: PermitKind, size: usize) -> Vec<(Priority, usize)> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        self.queue(kind).give_back(size)
    }

    /// Changes the number of permits of a kind. Returns the requests that are granted now, with their
    /// sizes.
    pub fn resize(&mut self, kind: PermitKind, max: usize) -> Vec<(Priority, usize)> {
        self.queue(kind).resize(max)
    }

    /// Lets a job go before all others. Returns the priorities of its requests before and after that.
    pub fn prioritize(&mut self, number: u64) -> Vec<(PermitKind, Priority, Priority)> {
        let urgency = Urgency::Requested;
        let after = Priority { urgency, number };
        let prioritized = |(kind, queue): (&PermitKind, &mut PermitQueue)| {
            Some((*kind, queue.prioritize(after)?, after))
        };
        self.queues.iter_mut().filter_map(prioritized).collect()
    }

    /// Returns the reason why a source must not be asked whose session may get stuck. A client's request
    /// may risk another stuck session.
    pub fn refuses_uncancellable(
        &self,
        wrapper: &str,
        source: &str,
        is_requested: bool,
        now: u64,
    ) -> Option<String> {
        let own = self.stuck.values().filter(|one| one.source == source);
        let last = own.map(|one| one.since).max();
        if last.is_some_and(|since| now - since < STUCK_PAUSE) && !is_requested {
            return Some(format!(
                "the source did not answer, and a session still waits for it in {wrapper}, which \
                 cannot be stopped while it connects; it is asked again when that session ends, when \
                 a client requests it, or after an hour"
            ));
        }
        let is_full = self.stuck.len() >= self.max_uncancellable;
        is_full.then(|| self.why_full(wrapper))
    }

    /// Returns the reason why a source got no permit in time.
    pub fn why_full(&self, wrapper: &str) -> String {
        let of_wrapper = |one: &&StuckSession| one.wrapper == wrapper;
        stuck_sessions(wrapper, self.stuck.values().filter(of_wrapper).count())
    }

    /// Records a session that is given up and does not end. Returns its number.
    pub fn stuck(&mut self, wrapper: String, source: String, now: u64) -> u64 {
        self.next_stuck += 1;
        let stuck = StuckSession {
            wrapper,
            source,
            since: now,
        };
        self.stuck.insert(self.next_stuck, stuck);
        self.next_stuck
    }

    /// Records the end of a stuck session.
    pub fn stuck_ended(&mut self, number: u64) {
        self.stuck.remove(&number);
    }

    /// Returns the time after which a source without an answer counts as slow, in microseconds.
    pub fn slow_after(&self) -> u64 {
        (self.latency.saturating_mul(SLOW_FACTOR)).clamp(MIN_SLOW, MAX_SLOW)
    }

    /// Records the time of an answer, in microseconds, capped at twice the maximum of a slow source.
    pub fn answered(&mut self, took: u64) {
        let took = took.min(2 * MAX_SLOW);
        self.latency = (self.latency * 7 + took) / 8;
    }

    fn queue(&mut self, kind: PermitKind) -> &mut PermitQueue {
        let queue = self.queues.entry(kind);
        queue.or_insert_with(|| PermitQueue::new(1))
    }
}

/// Shows the permits in use, for the log.
impl fmt::Display for SessionBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, queue) in &self.queues {
            let used = i64::try_from(queue.max).unwrap_or(i64::MAX) - queue.free;
            let waiting = queue.waiting.len();
            write!(f, "{kind:?} {used}/{} (+{waiting}), ", queue.max)?;
        }
        write!(f, "stuck {}", self.stuck.len())
    }
}

impl PermitQueue {
    fn new(max: usize) -> Self {
        Self {
            max,
            free: i64::try_from(max).unwrap_or(i64::MAX),
            waiting: BTreeMap::new(),
        }
    }

    /// A permit larger than the whole budget is granted as soon as any is free.
    fn request(&mut self, priority: Priority, size: i64) -> bool {
        // If any is free, no job waits.
        let is_given = self.free > 0;
        match is_given {
            true => self.free -= size,
            false => drop(self.waiting.insert(priority, size)),
        }
        is_given
    }

    fn resize(&mut self, max: usize) -> Vec<(Priority, usize)> {
        let size = |max: usize| i64::try_from(max).unwrap_or(i64::MAX);
        let more = size(max) - size(self.max);
        self.max = max;
        self.give_back(more)
    }

    fn give_back(&mut self, size: i64) -> Vec<(Priority, usize)> {
        self.free += size;
        let mut given = Vec::new();
        while self.free > 0 {
            let Some((priority, size)) = self.waiting.pop_first() else {
                break;
            };
            self.free -= size;
            given.push((priority, usize::try_from(size).unwrap_or_default()));
        }
        given
    }

    fn prioritize(&mut self, after: Priority) -> Option<Priority> {
        let mut waiting = self.waiting.keys();
        let before = *waiting.find(|priority| priority.number == after.number)?;
        let size = self.waiting.remove(&before)?;
        self.waiting.insert(after, size);
        Some(before)
    }
}

/// Returns the reason why a source of `wrapper` is not queried while `count` of its sessions are stuck.
pub fn stuck_sessions(wrapper: &str, count: usize) -> String {
    let sessions = match count {
        0 => {
            return "the source is not queried: the limit of concurrent queries is reached"
                .to_owned();
        }
        1 => "a session waits".to_owned(),
        count => format!("{count} sessions wait"),
    };
    format!(
        "the source is not queried: {sessions} in {wrapper} for sources that do not answer, and it \
         cannot be cancelled while it connects"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority(urgency: Urgency, number: u64) -> Priority {
        Priority { urgency, number }
    }

    fn change(number: u64) -> Priority {
        priority(Urgency::Change, number)
    }

    /// Gives a permit of size 1 back. Returns the number of the job that has it now.
    fn next(budget: &mut SessionBudget, kind: PermitKind) -> Option<u64> {
        let given = budget.give_back(kind, 1);
        assert!(given.len() < 2);
        given.first().map(|(priority, _)| priority.number)
    }

    #[test]
    fn the_sessions_are_shared_out_by_what_they_are_for() {
        let max = |sessions| {
            let budget = SessionBudget::new(sessions);
            let all = budget.queues.values().map(|queue| queue.max);
            all.collect::<Vec<_>>()
        };
        assert_eq!(max(33), [4, 16, 8, 33, 22, 4_000]);
        assert_eq!(max(1), [4, 1, 1, 1, 1, 4_000]);
    }

    #[test]
    fn a_resized_kind_grants_what_fits_and_takes_nothing_back() {
        let mut budget = SessionBudget::new(2);
        let kind = PermitKind::Session;
        let given = (1..=5).filter(|number| budget.request(kind, change(*number), 1));
        assert_eq!(given.count(), 2);
        let given = budget.resize(kind, 4);
        let given: Vec<_> = given.iter().map(|(priority, _)| priority.number).collect();
        assert_eq!(given, [3, 4]);
        assert_eq!(budget.resize(kind, 3), []);
        assert_eq!(next(&mut budget, kind), None);
        assert_eq!(next(&mut budget, kind), Some(5));
    }

    #[test]
    fn as_many_are_quick_at_a_time_as_are_worth_it() {
        let mut budget = SessionBudget::new(33);
        let given = (1..=6).filter(|number| budget.request(PermitKind::Quick, change(*number), 1));
        assert_eq!(given.count(), MAX_QUICK);
        assert_eq!(next(&mut budget, PermitKind::Quick), Some(5));
        assert_eq!(next(&mut budget, PermitKind::Quick), Some(6));
        assert_eq!(next(&mut budget, PermitKind::Quick), None);
    }

    #[test]
    fn slow_sources_take_no_permit_of_quick_ones() {
        let mut budget = SessionBudget::new(4);
        // All that may be slow are, and none of them keeps its other permit.
        for number in 1..=2 {
            assert!(budget.request(PermitKind::Quick, change(number), 1));
            assert!(budget.request(PermitKind::Slow, change(number), 1));
            assert_eq!(next(&mut budget, PermitKind::Quick), None);
        }
        assert!(!budget.request(PermitKind::Slow, change(3), 1));
        for number in 4..4 + MAX_QUICK as u64 {
            assert!(budget.request(PermitKind::Quick, change(number), 1));
        }
    }

    #[test]
    fn the_most_urgent_goes_first_and_a_job_can_be_prioritized() {
        let mut budget = SessionBudget::new(1);
        let kind = PermitKind::Session;
        assert!(budget.request(kind, change(0), 1));
        for waiting in [
            priority(Urgency::Refresh, 1),
            change(2),
            change(3),
            priority(Urgency::Comments, 4),
            priority(Urgency::Requested, 5),
        ] {
            assert!(!budget.request(kind, waiting, 1));
        }
        let (before, after) = (
            priority(Urgency::Comments, 4),
            priority(Urgency::Requested, 4),
        );
        assert_eq!(budget.prioritize(4), [(kind, before, after)]);
        assert_eq!(budget.prioritize(9), []);
        let mut order = Vec::new();
        while let Some(number) = next(&mut budget, kind) {
            order.push(number);
        }
        assert_eq!(order, [4, 5, 2, 3, 1]);
    }

    #[test]
    fn a_permit_bigger_than_the_budget_is_given_and_nothing_beside_it() {
        let mut budget = SessionBudget::new(1);
        let kind = PermitKind::Unwritten;
        assert!(budget.request(kind, change(0), 4));
        assert!(budget.request(kind, change(1), 10 * MAX_UNWRITTEN_TABLES));
        assert!(!budget.request(kind, change(2), 1));
        assert_eq!(budget.give_back(kind, 4), []);
        let given = budget.give_back(kind, 10 * MAX_UNWRITTEN_TABLES);
        assert_eq!(given, [(change(2), 1)]);
    }

    #[test]
    fn one_session_gets_stuck_for_a_source_and_so_many_in_all() {
        let mut budget = SessionBudget::new(4);
        let refuses = |budget: &SessionBudget, source, is_requested, now| {
            budget.refuses_uncancellable("mysql_fdw", source, is_requested, now)
        };
        assert_eq!(refuses(&budget, "a", false, 0), None);
        let first = budget.stuck("mysql_fdw".into(), "a".into(), 0);
        let why = refuses(&budget, "a", false, STUCK_PAUSE - 1).unwrap();
        assert!(why.contains("still waits for it in mysql_fdw"), "{why}");
        assert_eq!(refuses(&budget, "a", true, 1), None);
        assert_eq!(refuses(&budget, "a", false, STUCK_PAUSE), None);
        assert_eq!(refuses(&budget, "b", false, 1), None);
        let second = budget.stuck("mysql_fdw".into(), "b".into(), 2);
        for (source, is_requested) in [("c", false), ("a", true)] {
            let why = refuses(&budget, source, is_requested, 3).unwrap();
            assert!(why.contains("2 sessions wait in mysql_fdw"), "{why}");
        }
        budget.stuck_ended(first);
        budget.stuck_ended(second);
        assert_eq!(refuses(&budget, "a", false, 4), None);
    }

    #[test]
    fn what_is_slow_is_measured_by_the_others() {
        let mut budget = SessionBudget::new(4);
        assert_eq!(budget.slow_after(), 250_000);
        for _ in 0..100 {
            budget.answered(1_000);
        }
        assert_eq!(budget.slow_after(), MIN_SLOW);
        for _ in 0..100 {
            budget.answered(u64::MAX);
        }
        assert_eq!(budget.slow_after(), MAX_SLOW);
    }

    #[test]
    fn what_is_in_use_is_shown() {
        let mut budget = SessionBudget::new(1);
        budget.request(PermitKind::Session, change(0), 1);
        budget.request(PermitKind::Session, change(1), 1);
        budget.stuck("w".into(), "a".into(), 0);
        let shown = budget.to_string();
        assert!(shown.contains("Session 1/1 (+1), "), "{shown}");
        assert!(shown.ends_with("stuck 1"), "{shown}");
    }

    #[test]
    fn it_is_told_how_many_sessions_are_stuck() {
        let told = |count| stuck_sessions("w", count);
        assert!(told(0).ends_with("the limit of concurrent queries is reached"));
        assert!(told(1).starts_with("the source is not queried: a session waits in w for"));
        assert!(told(2).starts_with("the source is not queried: 2 sessions wait in w for"));
    }
}
