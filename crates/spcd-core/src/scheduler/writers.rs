//! The number of writing sessions, which follows the throughput that they reach together.
//!
//! This is hill climbing: a trial with more or fewer writers is kept if the throughput says so, and taken
//! back otherwise. Only times during which no writer waits for work count, since otherwise the
//! throughput is that of the jobs that hand work to the writers. This state is separate from that of
//! [`super::step`], as [`super::SessionBudget`] is.

/// Least duration of a window, in milliseconds: shorter ones measure the noise of single commits.
const MIN_WINDOW: u64 = 250;
/// Least number of commits of a window, for each writer and in all.
const COMMITS_PER_WRITER: u64 = 4;
const MIN_COMMITS: u64 = 8;
/// Number of windows of a trial, except while steps are large.
const TRIAL_WINDOWS: u64 = 2;
/// Fewest and most windows between two trials. The number doubles with each trial that is taken back.
const REST_WINDOWS: (u64, u64) = (2, 64);
/// Maximum weight of the earlier windows in the moving average of the throughput.
const MAX_WEIGHT: u64 = 3;
/// A further writer is worth it from this fraction of the throughput of the others on (1/4): below,
/// measurements cannot tell it from noise, and it takes the cores from queries.
const WORTH: u64 = 4;
/// The throughput has fallen if it is below 3/4 of its average in this many windows in a row.
const FALLEN_WINDOWS: u64 = 2;
/// Time without a commit after which earlier measurements are void, in milliseconds. The next work may be
/// of another kind.
const STALE: u64 = 5_000;
/// Number of times that writers of a trial may wait for work before the trial ends: they are not needed.
const MAX_WAITS: u64 = 8;

/// Number of writers, and the measurements that it follows.
#[derive(Debug, Clone)]
pub struct WriterCount {
    min: usize,
    max: usize,
    count: usize,
    /// Number by which the next trial changes the count.
    step: usize,
    direction: Direction,
    /// Whether no trial has been taken back since the start or a fall of the throughput: steps are half
    /// of the count, and a trial is one window.
    is_climbing: bool,
    trial: Option<Trial>,
    rest: Rest,
    /// Throughput of the present count while no trial runs.
    average: Average,
    fallen: Average,
    window: Window,
    last_commit: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

#[derive(Debug, Clone)]
struct Trial {
    /// The count before.
    from: usize,
    /// The throughput before.
    before: u64,
    measured: Average,
    /// Number of times that a writer waited for work.
    waits: u64,
}

/// Windows until the next trial.
#[derive(Debug, Clone, Copy)]
struct Rest {
    left: u64,
    length: u64,
}

/// Average throughput of some windows, in units of work per 1,000 seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Average {
    rate: u64,
    windows: u64,
}

/// Commits that are being measured.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// Number of commits that are not counted: those that began before the last change of the count.
    skip: u64,
    since: Option<u64>,
    commits: u64,
    work: u64,
}

impl WriterCount {
    /// Starts with the smallest number of writers. If both are the same, the number is fixed.
    pub fn new(min: usize, max: usize) -> Self {
        let min = min.max(1);
        let (length, _) = REST_WINDOWS;
        Self {
            min,
            max: max.max(min),
            count: min,
            step: (min / 2).max(1),
            direction: Direction::Up,
            is_climbing: true,
            trial: None,
            rest: Rest {
                left: length,
                length,
            },
            average: Average::default(),
            fallen: Average::default(),
            window: Window::default(),
            last_commit: None,
        }
    }

    /// Returns the number of writers that are to work now.
    pub fn get(&self) -> usize {
        self.count
    }

    /// Records that a writer found the queue empty.
    pub fn waited(&mut self) {
        self.window = Window::default();
        if let Some(trial) = &mut self.trial {
            trial.waits += 1;
            if trial.waits > MAX_WAITS {
                self.take_back();
            }
        }
    }

    /// Records a commit of this much work. `now` is in milliseconds since an arbitrary moment.
    pub fn committed(&mut self, work: u64, now: u64) {
        let last = self.last_commit.replace(now);
        if last.is_some_and(|last| now.saturating_sub(last) > STALE) {
            self.start_over();
        }
        let writers = self.count as u64;
        let commits = (writers * COMMITS_PER_WRITER).max(MIN_COMMITS);
        if let Some(rate) = self.window.committed(work, commits, now) {
            self.measured(rate);
        }
    }

    /// Evaluates the throughput of a window.
    fn measured(&mut self, rate: u64) {
        if let Some(trial) = &mut self.trial {
            trial.measured.add(rate);
            if self.is_climbing || trial.measured.windows >= TRIAL_WINDOWS {
                self.end_trial();
            }
            return;
        }
        if self.average.windows > 0 && rate < self.average.rate / 4 * 3 {
            self.fallen.add(rate);
            if self.fallen.windows >= FALLEN_WINDOWS {
                self.average = std::mem::take(&mut self.fallen);
                // Halves the number as long as that costs little, then climbs again.
                self.direction = Direction::Down;
                self.is_climbing = true;
                self.step = (self.count / 2).max(1);
                self.begin_trial();
            }
            return;
        }
        self.fallen = Average::default();
        self.average.add(rate);
        self.rest.left = self.rest.left.saturating_sub(1);
        if self.rest.left == 0 {
            self.begin_trial();
        }
    }

    fn begin_trial(&mut self) {
        if self.target() == self.count {
            self.direction = self.direction.opposite();
        }
        let target = self.target();
        if target != self.count {
            self.trial = Some(Trial {
                from: self.count,
                before: self.average.rate,
                measured: Average::default(),
                waits: 0,
            });
        }
        self.set(target);
    }

    fn target(&self) -> usize {
        match self.direction {
            Direction::Up => (self.count + self.step).min(self.max),
            Direction::Down => self.count.saturating_sub(self.step).max(self.min),
        }
    }

    fn end_trial(&mut self) {
        let Some(trial) = &self.trial else { return };
        if !trial.is_worth(self.count) {
            return self.take_back();
        }
        self.average = trial.measured;
        self.trial = None;
        if self.is_climbing {
            self.step = (self.count / 2).max(1);
        }
        let (length, _) = REST_WINDOWS;
        self.rest.length = length;
        match self.is_climbing {
            // The windows of the trial are those before the next one.
            true => self.begin_trial(),
            false => self.rest.left = length,
        }
    }

    fn take_back(&mut self) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        self.set(trial.from);
        self.is_climbing = false;
        self.step = (self.step / 2).max(1);
        self.direction = self.direction.opposite();
        self.rest.left = self.rest.length;
        self.rest.length = (self.rest.length * 2).min(REST_WINDOWS.1);
    }

    /// Forgets what was measured, and ends a trial without a result.
    fn start_over(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.count = trial.from;
        }
        self.average = Average::default();
        self.fallen = Average::default();
        self.rest.left = self.rest.length;
        self.window = Window::default();
    }

    fn set(&mut self, count: usize) {
        self.count = count;
        self.window = Window {
            skip: count as u64,
            ..Window::default()
        };
    }
}

impl Direction {
    fn opposite(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

impl Trial {
    /// Whether `count` writers are better than those before.
    fn is_worth(&self, count: usize) -> bool {
        let (from, count) = (self.from as u128, count as u128);
        let worth = u128::from(WORTH);
        // The least throughput is `before * (1 + (count - from) / from / WORTH)`.
        let least = u128::from(self.before) * (from * worth + count - from);
        u128::from(self.measured.rate) * from * worth >= least
    }
}

impl Average {
    fn add(&mut self, rate: u64) {
        let weight = self.windows.min(MAX_WEIGHT);
        self.rate = (self.rate * weight + rate) / (weight + 1);
        self.windows += 1;
    }
}

impl Window {
    /// Adds a commit. Returns the throughput if that ends the window.
    fn committed(&mut self, work: u64, min_commits: u64, now: u64) -> Option<u64> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let Some(since) = self.since else {
            // Work before the first commit began at an unknown time.
            self.since = Some(now);
            return None;
        };
        self.commits += 1;
        self.work += work;
        let took = now.saturating_sub(since);
        if took < MIN_WINDOW || self.commits < min_commits {
            return None;
        }
        let rate = self.work.saturating_mul(1_000_000) / took;
        *self = Self {
            since: Some(now),
            ..Self::default()
        };
        Some(rate)
    }
}

#[cfg(test)]
mod tests;
