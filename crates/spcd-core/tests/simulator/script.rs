//! What happens to the daemon from outside: a script of timed actions.

use spcd_core::health::FailureKind;
use spcd_core::scheduler::Action;

use crate::random::Random;

/// The connections of the model.
pub const NAMES: [&str; 5] = ["a", "b", "c", "z", "f"];
/// The index of the aggregator. Its members are the connections before it.
pub const AGGREGATOR: usize = 3;
/// The index of the connection whose source is a csv file.
pub const FILE: usize = 4;
/// The roles of the model.
pub const ROLES: [&str; 2] = ["r", "s"];

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
    Fails(FailureKind),
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
    /// The csv file has other rows in the same columns.
    Append,
    /// Another session alters what was made.
    Alter(usize),
    /// Another session writes catalog rows of it anew, and changes nothing that counts.
    Touch(usize),
    /// Another session revokes what `spcd_users` may read.
    Revoke(usize),
    /// The role `spcd_users` is created, or dropped.
    Readers(bool),
    Role(usize, RoleChange),
    /// Search paths are refused, or not.
    RefusePaths(bool),
    /// Another session locks it, or lets go of it.
    Lock(usize, bool),
    /// The server has no room to write.
    Full(bool),
    Request(Action, Option<usize>, bool),
    /// The daemon is killed; another one leads soon.
    Kill,
    /// Its session ends.
    LoseSession,
    /// Another daemon leads, and the one that led does not know it yet.
    Usurp,
    /// All is well, but for sources that hang: no other connection waits for them.
    OnlyHangs,
    /// A wrapper's extension is refused, or not.
    RefuseExtension(bool),
}

/// What becomes of a login role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoleChange {
    /// It is granted `spcd_users`, or that is revoked.
    Member(bool),
    /// It sets a search path itself, or resets it.
    Own(bool),
    /// Another of its settings changes.
    Touch,
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
    let source = *random.pick(&[0, 1, 2, FILE]);
    match random.below(32) {
        0..6 => Act::Write(index, definition(random)),
        6 => Act::Remove(index),
        7..11 => Act::Source(source, behaviour(source, random)),
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
        23 => Act::Usurp,
        24 => Act::OnlyHangs,
        25 => Act::Append,
        26 => Act::Touch(index),
        27 => Act::Revoke(index),
        28 => Act::Readers(!random.once_in(3)),
        29..31 => Act::Role(
            random.below(ROLES.len() as u64) as usize,
            *random.pick(&[
                RoleChange::Member(true),
                RoleChange::Member(true),
                RoleChange::Member(false),
                RoleChange::Own(true),
                RoleChange::Own(false),
                RoleChange::Touch,
            ]),
        ),
        _ => match random.once_in(2) {
            true => Act::RefusePaths(random.once_in(2)),
            false => Act::RefuseExtension(random.once_in(2)),
        },
    }
}

fn behaviour(source: usize, random: &mut Random) -> Behaviour {
    if source == FILE {
        // The file is there, it is not, or its file server hangs.
        let all = [
            Behaviour::Answers,
            Behaviour::Fails(FailureKind::Other),
            Behaviour::Hangs,
        ];
        return *random.pick(&all);
    }
    match random.below(10) {
        0..2 => Behaviour::Answers,
        2 => Behaviour::IsSlow,
        3..5 => Behaviour::Hangs,
        5 => Behaviour::Crashes,
        6..8 => Behaviour::Fails(FailureKind::Authentication),
        _ => Behaviour::Fails(*random.pick(&[
            FailureKind::Refused,
            FailureKind::Other,
            FailureKind::Timeout,
        ])),
    }
}
