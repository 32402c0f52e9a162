//! The schedule under a clock that the test steps.

use super::{Breaker, FailureKind, HealthChange, ProbeOutcome, ProbeSchedule, SourceHealth};

const SECOND: u64 = 1_000;

/// A source and a clock that jumps to whenever it is to be asked.
struct Clock {
    now: u64,
    health: SourceHealth,
    schedule: ProbeSchedule,
}

impl Clock {
    fn new() -> Self {
        Self {
            now: 0,
            health: SourceHealth::new(None, 7 * SECOND),
            schedule: ProbeSchedule::default(),
        }
    }

    /// Runs the due probe; returns the seconds until it was due, and the announced change.
    fn step(&mut self, outcome: ProbeOutcome) -> (u64, Option<HealthChange>) {
        let due = self.health.next.expect("it is to be asked");
        let waited = due - self.now;
        self.now = due;
        let (health, turn) = self
            .health
            .probing()
            .after_probe(outcome, self.now, &self.schedule);
        self.health = health;
        (waited / SECOND, turn)
    }

    fn steps(
        &mut self,
        outcomes: &[ProbeOutcome],
    ) -> Vec<(u64, Option<HealthChange>, Breaker, u32)> {
        let step = |outcome: &ProbeOutcome| {
            let (waited, turn) = self.step(*outcome);
            (waited, turn, self.health.breaker, self.health.attempts)
        };
        outcomes.iter().map(step).collect()
    }
}

const WELL: ProbeOutcome = ProbeOutcome::Answered;
const GONE: ProbeOutcome = ProbeOutcome::Failed(FailureKind::Refused);

#[test]
fn one_that_answers_is_asked_once_an_interval() {
    let mut clock = Clock::new();
    assert_eq!(clock.health.reachable, None);
    let closed = Breaker::Closed;
    assert_eq!(
        clock.steps(&[WELL, WELL, WELL]),
        [
            (7, None, closed, 0),
            (30, None, closed, 0),
            (30, None, closed, 0)
        ]
    );
    assert_eq!(clock.health.reachable, Some(true));
}

/// For every kind of failure that may pass by itself.
#[test]
fn one_that_goes_is_tried_three_times_then_once_an_interval_until_it_is_back() {
    for kind in FailureKind::ALL {
        if kind == FailureKind::Authentication {
            continue;
        }
        let gone = ProbeOutcome::Failed(kind);
        let mut clock = Clock::new();
        clock.step(WELL);
        assert_eq!(
            clock.steps(&[gone, gone, gone, gone, gone, gone, WELL, WELL]),
            [
                (30, Some(HealthChange::Lost), Breaker::Closed, 1),
                (5, None, Breaker::Closed, 2),
                (10, None, Breaker::Closed, 3),
                (20, None, Breaker::Open, 4),
                (30, None, Breaker::Open, 5),
                (30, None, Breaker::Open, 6),
                (30, Some(HealthChange::Restored), Breaker::Closed, 0),
                (30, None, Breaker::Closed, 0),
            ],
            "{kind:?}"
        );
    }
}

#[test]
fn one_that_is_back_in_time_has_all_its_attempts_again() {
    let mut clock = Clock::new();
    assert_eq!(
        clock.steps(&[GONE, GONE, WELL, GONE, GONE, GONE, GONE]),
        [
            (7, Some(HealthChange::Lost), Breaker::Closed, 1),
            (5, None, Breaker::Closed, 2),
            (10, Some(HealthChange::Restored), Breaker::Closed, 0),
            (30, Some(HealthChange::Lost), Breaker::Closed, 1),
            (5, None, Breaker::Closed, 2),
            (10, None, Breaker::Closed, 3),
            (20, None, Breaker::Open, 4),
        ]
    );
}

#[test]
fn an_open_breaker_is_half_open_while_it_is_tried() {
    let mut clock = Clock::new();
    clock.steps(&[GONE; 4]);
    assert_eq!(clock.health.breaker, Breaker::Open);
    assert_eq!(clock.health.probing().breaker, Breaker::HalfOpen);
    assert_eq!(SourceHealth::default().probing().breaker, Breaker::Closed);
}

#[test]
fn refused_credentials_are_not_tried_again_until_something_changes() {
    let refused = ProbeOutcome::Failed(FailureKind::Authentication);
    let mut clock = Clock::new();
    clock.step(WELL);
    let (_, turn) = clock.step(refused);
    assert_eq!(turn, Some(HealthChange::Lost));
    assert_eq!(clock.health.next, None);
    assert_eq!(clock.health.breaker, Breaker::Open);
    // A requested probe fails, and the source stays lost.
    clock.now += 3_600 * SECOND;
    clock.health = clock.health.retry_at(clock.now);
    assert_eq!(clock.health.reachable, Some(false));
    assert_eq!(clock.step(refused), (0, None));
    assert_eq!(clock.health.next, None);
    // The configuration changes, and that was it.
    clock.health = clock.health.retry_at(clock.now);
    assert_eq!(clock.step(WELL), (0, Some(HealthChange::Restored)));
    assert_eq!(clock.step(WELL), (30, None));
}

#[test]
fn credentials_that_are_refused_in_the_midst_of_the_attempts_end_them() {
    let mut clock = Clock::new();
    clock.steps(&[
        GONE,
        GONE,
        ProbeOutcome::Failed(FailureKind::Authentication),
    ]);
    assert_eq!((clock.health.next, clock.health.attempts), (None, 3));
}

#[test]
fn one_that_could_not_be_asked_is_what_it_was() {
    let mut clock = Clock::new();
    assert_eq!(clock.step(ProbeOutcome::Inconclusive), (7, None));
    assert_eq!(clock.health.reachable, None);
    clock.steps(&[GONE; 4]);
    let before = clock.health;
    assert_eq!(clock.step(ProbeOutcome::Inconclusive), (30, None));
    assert_eq!(clock.health.reachable, Some(false));
    assert_eq!(
        (clock.health.breaker, clock.health.attempts),
        (before.breaker, before.attempts)
    );
    assert_eq!(clock.step(WELL), (30, Some(HealthChange::Restored)));
}

#[test]
fn every_number_is_a_setting() {
    let mut clock = Clock::new();
    clock.schedule = ProbeSchedule {
        interval: 60 * SECOND,
        attempts: 1,
        pause: 2 * SECOND,
        ..ProbeSchedule::default()
    };
    assert_eq!(
        clock.steps(&[GONE, GONE, GONE, WELL]),
        [
            (7, Some(HealthChange::Lost), Breaker::Closed, 1),
            (2, None, Breaker::Open, 2),
            (60, None, Breaker::Open, 3),
            (60, Some(HealthChange::Restored), Breaker::Closed, 0),
        ]
    );
    clock.schedule.attempts = 0;
    assert_eq!(
        clock.steps(&[GONE, GONE]),
        [
            (60, Some(HealthChange::Lost), Breaker::Open, 1),
            (60, None, Breaker::Open, 2),
        ]
    );
}

#[test]
fn pauses_do_not_overflow() {
    let schedule = ProbeSchedule {
        attempts: u32::MAX,
        pause: u64::MAX,
        ..ProbeSchedule::default()
    };
    assert_eq!(schedule.pause_after(u32::MAX), u64::MAX);
    let health = SourceHealth {
        attempts: u32::MAX,
        ..SourceHealth::default()
    };
    let (health, _) = health.after_probe(GONE, u64::MAX, &schedule);
    assert_eq!((health.attempts, health.next), (u32::MAX, Some(u64::MAX)));
}
