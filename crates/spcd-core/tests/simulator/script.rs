//! What happens to the daemon from outside: a script of timed actions.

use spcd_core::health::Kind;
use spcd_core::scheduler::Action;

use crate::random::Random;

/// The connections of the model. The last one is an aggregator of all others.
pub const NAMES: [&str; 4] = ["a", "b", "c", "z"];
/// The index of the aggregator.
pub const AGGREGATOR: usize = 3;

/// What the file of a connection says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Definition {
    /// The database that is named: another one is another target.
    pub database: u8,
    pub enabled: bool,
}

/// How a source behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Answers,
    /// It answers after many seconds.
    IsSlow,
    Fails(Kind),
    /// It says nothing until the deadline.
    Hangs,
    /// Its wrapper ends the server process.
    Crashes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    Write(usize, Definition),
    Remove(usize),
    Source(usize, Behaviour),
    /// The source has other tables.
    Reshape(usize),
    /// Another session alters what was made.
    Alter(usize),
    /// Another session locks it, or lets go of it.
    Lock(usize, bool),
    /// The server has no room to write.
    Full(bool),
    Request(Action, Option<usize>, bool),
    /// The daemon is killed; another one leads soon.
    Kill,
    /// Its session ends.
    LoseSession,
    /// A wrapper's extension is refused, or not.
    RefuseExtension(bool),
}

/// An action, and how long after the one before.
pub type Timed = (u64, Act);

/// Makes a script from a seed.
pub fn script(random: &mut Random) -> Vec<Timed> {
    let mut script: Vec<Timed> = (0..NAMES.len())
        .map(|index| (0, Act::Write(index, definition(random))))
        .collect();
    for _ in 0..3 + random.below(10) {
        let pause = match random.below(8) {
            0 => random.below(5),
            1 => random.below(400_000),
            2..4 => random.below(20_000),
            _ => random.below(1_500),
        };
        script.push((pause, act(random)));
    }
    script
}

fn definition(random: &mut Random) -> Definition {
    Definition {
        database: random.below(2) as u8,
        enabled: !random.once_in(5),
    }
}

fn act(random: &mut Random) -> Act {
    let index = random.below(NAMES.len() as u64) as usize;
    let source = random.below(AGGREGATOR as u64) as usize;
    match random.below(24) {
        0..6 => Act::Write(index, definition(random)),
        6 => Act::Remove(index),
        7..11 => Act::Source(source, behaviour(random)),
        11..13 => Act::Reshape(source),
        13..15 => Act::Alter(index),
        15 => Act::Lock(index, !random.once_in(3)),
        16 => Act::Full(!random.once_in(3)),
        17..21 => Act::Request(
            *random.pick(&[
                Action::Refresh,
                Action::Refresh,
                Action::Refresh,
                Action::Reconnect,
                Action::Disconnect,
                Action::Retry,
            ]),
            (!random.once_in(4)).then_some(index),
            random.once_in(3),
        ),
        21 => Act::Kill,
        22 => Act::LoseSession,
        _ => Act::RefuseExtension(random.once_in(2)),
    }
}

fn behaviour(random: &mut Random) -> Behaviour {
    match random.below(10) {
        0..2 => Behaviour::Answers,
        2 => Behaviour::IsSlow,
        3..5 => Behaviour::Hangs,
        5 => Behaviour::Crashes,
        6..8 => Behaviour::Fails(Kind::Authentication),
        _ => Behaviour::Fails(*random.pick(&[Kind::Refused, Kind::Other, Kind::Timeout])),
    }
}
