//! The number of writers on models of hubs: sessions that share cores, with noise, in virtual time.

use super::WriterCount;

/// Throughput of a hub by its number of writers, in tables per second.
type Throughput = fn(usize) -> f64;

/// Two cores, as measured: two sessions are 1.3 times as fast as one, four are slower than two.
fn two_cores(writers: usize) -> f64 {
    7_000.0 * [0.77, 1.0, 0.97, 0.92, 0.87, 0.82][writers.min(6) - 1]
}

/// Sixteen cores: each writer up to sixteen adds nearly its own share; contention costs 2 % for each
/// further one.
fn sixteen_cores(writers: usize) -> f64 {
    let useful = writers.min(16) as f64;
    5_400.0 * useful.powf(0.95) * 0.98_f64.powf(writers as f64 - useful)
}

/// A repeatable source of noise (xorshift).
struct Noise(u64);

impl Noise {
    /// Returns a number between 0 and 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Writers that always find work in the queue.
struct Hub {
    throughput: Throughput,
    noise: Noise,
    /// What is left of the batch of each writer, in tables.
    batches: Vec<(f64, u64)>,
    /// Virtual time in milliseconds.
    now: f64,
    /// Tables written, including those of unfinished batches.
    written: f64,
    /// The number of writers after each change, with the time.
    changes: Vec<(f64, usize)>,
}

impl Hub {
    fn new(throughput: Throughput, seed: u64) -> Self {
        Self {
            throughput,
            noise: Noise(seed * 2_654_435_761 + 88_172_645_463_325_252),
            batches: Vec::new(),
            now: 0.0,
            written: 0.0,
            changes: Vec::new(),
        }
    }

    /// Writes until this time, with batches of 1,000 tables that take up to a fifth more or less time.
    fn run(&mut self, count: &mut WriterCount, until: f64) {
        while self.now < until {
            while self.batches.len() < count.get() {
                self.batches
                    .push((1_000.0 * (0.8 + 0.4 * self.noise.next()), 1_000));
            }
            let writers = self.batches.len();
            let speed = (self.throughput)(writers) / 1_000.0 / writers as f64;
            let (next, left) = (self.batches.iter().enumerate())
                .map(|(index, (left, _))| (index, *left))
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .unwrap();
            self.now += left / speed;
            self.batches.iter_mut().for_each(|batch| batch.0 -= left);
            self.written += left * writers as f64;
            let (_, tables) = self.batches.swap_remove(next);
            let before = count.get();
            count.committed(tables, self.now as u64);
            if count.get() != before {
                self.changes.push((self.now, count.get()));
            }
        }
    }
}

const SEEDS: u64 = 50;

#[test]
fn on_two_cores_two_writers_stay_and_nothing_is_lost() {
    for until in [7_000.0, 60_000.0, 600_000.0] {
        let mut all = 0.0;
        for seed in 0..SEEDS {
            let mut count = WriterCount::new(2, 16);
            let mut hub = Hub::new(two_cores, seed);
            hub.run(&mut count, until);
            let share = hub.written / hub.now * 1000.0 / two_cores(2);
            all += share / SEEDS as f64;
            let changes = &hub.changes;
            assert!(
                share >= 0.95,
                "seed {seed}, {until} ms: {share} {changes:?}"
            );
            let most = changes.iter().map(|change| change.1).max();
            assert!(most <= Some(4), "seed {seed}: {changes:?}");
        }
        // Less than what two measurements of the same differ by.
        assert!(all >= 0.985, "{until} ms: {all}");
    }
}

#[test]
fn on_sixteen_cores_the_writers_grow_to_about_as_many_and_settle() {
    let mut early = 0.0;
    for seed in 0..SEEDS {
        let mut count = WriterCount::new(2, 32);
        let mut hub = Hub::new(sixteen_cores, seed);
        hub.run(&mut count, 10_000.0);
        early += hub.written / hub.now * 1000.0 / SEEDS as f64;
        hub.run(&mut count, 60_000.0);
        let (written, now, changes) = (hub.written, hub.now, hub.changes.len());
        hub.run(&mut count, 360_000.0);
        let settled = &hub.changes[changes..];
        let share = (hub.written - written) / (hub.now - now) * 1000.0 / sixteen_cores(16);
        assert!(share > 0.95, "seed {seed}: {share} {:?}", hub.changes);
        // A trial and its end are two changes.
        assert!(settled.len() <= 40, "seed {seed}: {settled:?}");
        let counts = || settled.iter().map(|change| change.1);
        assert!(
            counts().all(|count| (12..=24).contains(&count)),
            "seed {seed}: {settled:?}"
        );
        assert!((13..=22).contains(&count.get()), "seed {seed}: {settled:?}");
    }
    // The growth takes a few seconds.
    assert!(early >= 2.0 * sixteen_cores(2), "{early}");
}

#[test]
fn a_bound_is_kept_and_one_number_is_fixed() {
    for (min, max) in [(1, 1), (4, 4), (2, 5), (0, 0)] {
        let mut count = WriterCount::new(min, max);
        let mut hub = Hub::new(sixteen_cores, 1);
        hub.run(&mut count, 60_000.0);
        assert_eq!(count.get(), max.max(1));
        if min == max {
            assert_eq!(hub.changes, []);
        }
    }
}

#[test]
fn writers_are_taken_back_when_the_throughput_falls() {
    let mut count = WriterCount::new(2, 16);
    let mut hub = Hub::new(sixteen_cores, 1);
    hub.run(&mut count, 60_000.0);
    assert!(count.get() >= 13, "{:?}", hub.changes);
    // Other work takes fourteen of the cores.
    hub.throughput = two_cores;
    hub.run(&mut count, 300_000.0);
    assert!(count.get() <= 4, "{:?}", hub.changes);
}

#[test]
fn a_queue_that_runs_empty_measures_nothing() {
    let mut count = WriterCount::new(2, 16);
    for now in 0..10_000 {
        if now % 7 == 0 {
            count.waited();
        }
        count.committed(1_000, now * 100);
        assert_eq!(count.get(), 2);
    }
}

#[test]
fn a_trial_ends_when_its_writers_wait_for_work_or_the_work_ends() {
    let in_trial = || {
        let mut count = WriterCount::new(2, 16);
        let mut now = 0;
        while count.get() == 2 {
            now += 100;
            count.committed(1_000, now);
        }
        (count, now)
    };
    let (mut count, _) = in_trial();
    for _ in 0..=super::MAX_WAITS {
        assert_eq!(count.get(), 3);
        count.waited();
    }
    assert_eq!(count.get(), 2);

    let (mut count, now) = in_trial();
    count.committed(1_000, now + super::STALE);
    assert_eq!(count.get(), 3);
    count.committed(1_000, now + 2 * super::STALE + 1);
    assert_eq!(count.get(), 2);
}
