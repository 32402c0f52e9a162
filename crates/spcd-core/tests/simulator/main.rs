//! The scheduler and the planner against a model of hub, sources and files, in virtual time.
//!
//! `SPCD_SIMULATE=N` runs N schedules instead of a few, `SPCD_SIMULATE_FROM` says from which seed on.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

mod check;
mod commands;
mod daemons;
mod faults;
mod files;
mod golden;
mod hub;
mod jobs;
mod objects;
mod pauses;
mod permits;
mod probes;
mod random;
mod roles;
mod script;
mod world;

use random::Random;
use script::{Timed, script};
use world::World;

/// Within so many milliseconds of virtual time everything converges once faults stopped and a client
/// asked for everything.
const SOON: u64 = 180_000;
/// The same where no client asks: the longest pause of a retry.
const AT_LAST: u64 = 2 * 3_600_000;

/// Runs a script.
fn play(seed: u64, script: &[Timed], trace: bool) -> Result<u64, (String, Vec<String>)> {
    let mut world = World::new(seed);
    world.trace = trace.then(Vec::new);
    let result = play_in(&mut world, script);
    let trace = world.trace.take().unwrap_or_default();
    match result {
        Ok(()) => Ok(world.passes),
        Err(what) => Err((what, trace)),
    }
}

fn play_in(world: &mut World, script: &[Timed]) -> Result<(), String> {
    for (pause, act) in script {
        world.run(world.now + pause, |_| false)?;
        world.act(act)?;
    }
    let asks = world.random.once_in(2);
    world.heal(asks)?;
    let limit = world.now + if asks { SOON } else { AT_LAST };
    loop {
        let until = (world.now + 1_000).min(limit);
        world.run(until, |_| false)?;
        match world.difference() {
            None => break,
            Some(what) if world.now >= limit => return Err(format!("{what} after all that time")),
            Some(_) => {}
        }
    }
    // Nothing differs: nothing is written any more.
    let (writes, passes) = (world.hub.writes, world.passes);
    world.run(world.now + 130_000, |_| false)?;
    if world.hub.writes != writes {
        return Err("something is written although nothing differs".to_owned());
    }
    match world.passes > passes {
        true => Ok(()),
        false => Err("no pass is made any more".to_owned()),
    }
}

/// Leaves out what is not needed for a failure.
fn minimal(seed: u64, mut script: Vec<Timed>) -> Vec<Timed> {
    let mut index = 0;
    while index < script.len() {
        let mut shorter = script.clone();
        let (pause, _) = shorter.remove(index);
        if let Some(next) = shorter.get_mut(index) {
            next.0 += pause;
        }
        match play(seed, &shorter, false) {
            Err(_) => script = shorter,
            Ok(_) => index += 1,
        }
    }
    script
}

fn check(seed: u64) {
    let script = script(&mut Random(seed));
    if play(seed, &script, false).is_ok() {
        return;
    }
    let script = minimal(seed, script);
    let (what, trace) = play(seed, &script, true).unwrap_err();
    let script: Vec<String> = script.iter().map(|step| format!("{step:?}")).collect();
    let (script, trace) = (script.join("\n"), trace.join("\n"));
    panic!("seed {seed}: {what}\nthe script:\n{script}\nwhat happened:\n{trace}");
}

#[test]
fn everything_converges_whatever_happens_in_between() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let from = number("SPCD_SIMULATE_FROM").unwrap_or(0);
    let count = number("SPCD_SIMULATE").unwrap_or(2_000);
    for seed in from..from + count {
        check(seed);
    }
}

#[test]
fn what_was_found_once_stays_mended() {
    for golden in golden::golden() {
        if let Err((what, trace)) = play(golden.seed, &golden.script, true) {
            let trace = trace.join("\n");
            panic!("{}: {what}\nwhat happened:\n{trace}", golden.what);
        }
    }
}
