//! Random faults on real servers: whatever happens, the promises hold throughout, and soon after the
//! last fault everything is as the files say.
//!
//! A seed decides a world and a schedule. `SPCD_FAULT_SEED` replays one, `SPCD_FAULT_STEPS` some of its
//! steps alone (`0,3-5`); `scripts/soak.sh` runs new seeds for a given time.

mod aftermath;
mod model;
mod oracle;
mod people;
mod random;
mod sabotage;
mod schedule;
mod servers;
mod sql_session;
mod steps;
mod watch;
mod world;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use random::Random;
use schedule::Schedule;
use servers::Servers;
use world::World;

use crate::support::DEADLINE;

/// Number of seeds in a run of the tests.
const SEEDS: u64 = 30;
/// Number of worlds at a time. Most of a schedule is waiting.
const LANES: u64 = 4;

/// Prints past the test runner, which shows nothing of a test that passes.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

fn schedule_of(seed: u64) -> Schedule {
    let schedule = Schedule::of(seed);
    match std::env::var("SPCD_FAULT_STEPS") {
        Ok(numbers) => schedule.only(&numbers),
        Err(_) => schedule,
    }
}

/// Runs one seed; returns how long it took after the last fault until everything was right.
async fn run(schedule: Schedule, servers: Arc<Servers>) -> Duration {
    let seed = schedule.seed;
    let mut pauses = Random::new(!schedule.seed);
    let mut world = World::new(schedule, servers).await;
    world.begin().await;
    if world.schedule.is_settled {
        let settled = world.settle(Instant::now(), DEADLINE).await;
        settled.expect("everything is made");
    }
    for step in world.schedule.steps.clone() {
        // Some steps come before the ones before have had an effect.
        let pause = if pauses.once_in(2) {
            0
        } else {
            pauses.between(1, 250)
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if world.is_verbose {
            say(&format!("{step:?}"));
        }
        world.step(&step).await;
    }
    let took = match world.check().await {
        Ok(took) => took,
        // The daemon's and the servers' logs are printed when they are dropped.
        Err(error) => panic!("{error}"),
    };
    if world.is_verbose {
        say(&format!("seed {seed}: right {took:?} after the last fault"));
    }
    took
}

/// Why a schedule failed. The test runner prints it with the logs, but only at the end.
fn reason(error: tokio::task::JoinError) -> String {
    let panic = error
        .try_into_panic()
        .unwrap_or_else(|error| panic!("{error}"));
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no reason").to_owned()
}

/// Runs seeds from `from` on until there are `count`, the time is over or, where `stops` says so, one
/// has failed. Returns the failed ones.
async fn run_many(from: u64, count: u64, until: Option<Instant>, stops: bool) -> Vec<u64> {
    let next = Arc::new(AtomicU64::new(from));
    let has_failed = Arc::new(AtomicBool::new(false));
    let lanes = (0..LANES.min(count)).map(|_| {
        let (next, has_failed) = (next.clone(), has_failed.clone());
        tokio::spawn(async move {
            let (mut failed, mut slowest) = (Vec::new(), Duration::ZERO);
            let mut servers = Arc::new(Servers::start().await);
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                let is_over = until.is_some_and(|until| Instant::now() > until);
                if is_over
                    || seed >= from.saturating_add(count)
                    || stops && has_failed.load(Ordering::Relaxed)
                {
                    return (failed, slowest);
                }
                match tokio::spawn(run(schedule_of(seed), servers.clone())).await {
                    Ok(took) => slowest = slowest.max(took),
                    Err(error) => {
                        let (listing, reason) = (schedule_of(seed).listing(), reason(error));
                        say(&format!(
                            "SPCD_FAULT_SEED={seed} fails: {reason}\n{listing}"
                        ));
                        failed.push(seed);
                        has_failed.store(true, Ordering::Relaxed);
                        // A server may be stopped.
                        servers = Arc::new(Servers::start().await);
                    }
                }
            }
        })
    });
    let (mut failed, mut slowest) = (Vec::new(), Duration::ZERO);
    for lane in lanes.collect::<Vec<_>>() {
        let (seeds, took) = lane.await.unwrap();
        failed.extend(seeds);
        slowest = slowest.max(took);
    }
    let last = next.load(Ordering::Relaxed).min(from.saturating_add(count));
    say(&format!(
        "{} schedules from seed {from}, {} failed; right at most {slowest:?} after the last fault",
        last - from,
        failed.len()
    ));
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn promises_hold_through_random_faults() {
    let failed = match number("SPCD_FAULT_SEED") {
        Some(seed) => run_many(seed, 1, None, true).await,
        None => run_many(0, number("SPCD_FAULT_SEEDS").unwrap_or(SEEDS), None, true).await,
    };
    assert!(failed.is_empty(), "SPCD_FAULT_SEED={failed:?}");
}

/// `scripts/soak.sh` runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
#[ignore = "takes as long as SPCD_FAULT_SECONDS says"]
async fn promises_hold_for_a_long_time() {
    let seconds = number("SPCD_FAULT_SECONDS").unwrap_or(60);
    let from = number("SPCD_FAULT_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_secs() % 1_000_000_000 * 1_000
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    let failed = run_many(from, u64::MAX, Some(until), false).await;
    assert!(failed.is_empty(), "SPCD_FAULT_SEED={failed:?}");
}
