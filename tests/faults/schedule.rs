//! Worlds and schedules that follow from a seed alone, so that a seed can be replayed.

use super::random::Random;
use crate::support::link::Traffic;

/// Connections of the plugin `postgres` in a world.
pub const MEMBERS: [&str; 4] = ["m0", "m1", "m 2", "M\"3"];
/// Number of source databases in a world.
pub const SOURCES: usize = 2;

/// What follows from one seed.
#[derive(Debug, Clone)]
pub struct Schedule {
    pub seed: u64,
    /// Whether two connections run behind a gateway.
    pub has_gateway: bool,
    /// Whether everything is made before the first step.
    pub is_settled: bool,
    pub steps: Vec<Step>,
}

/// One action of a user, or one fault. A member is an index of [`MEMBERS`]; times are milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A block is saved with another option, and perhaps another source.
    Edit { member: usize, source: usize },
    /// A block gets an unknown attribute, or loses it.
    Break { member: usize, broken: bool },
    /// A file is removed.
    Remove { member: usize },
    /// A removed file is written again.
    Restore { member: usize },
    /// A file gets another name.
    Rename { member: usize },
    /// A block is disabled or enabled.
    Enable { member: usize, enabled: bool },
    /// A file is written in two parts.
    HalfWrite { member: usize, pause: u64 },
    /// The token of a connection behind the gateway changes.
    Token { wrapper: usize },
    /// A statement changes a source.
    Source { source: usize, sql: String },
    /// A user creates an object on a connection.
    Make { member: usize, thing: ThingKind },
    /// A user drops one of the objects that users made.
    Unmake { pick: u64 },
    /// A statement changes an object of spcd in a way that drops nothing of a user.
    Damage { member: usize, sql: String },
    /// A client requests a refresh.
    Refresh { member: Option<usize> },
    /// A client waits for connections.
    Wait { member: Option<usize> },
    /// The daemon is killed and started again.
    Kill { pause: u64 },
    /// The daemon is stopped by SIGSTOP for a time.
    Freeze { pause: u64 },
    /// A server is stopped at once or killed, and started again.
    Crash {
        server: Server,
        kill: bool,
        pause: u64,
    },
    /// All processes of a server are stopped by SIGSTOP for a time.
    FreezeServer { server: Server, pause: u64 },
    /// Sessions of spcd are terminated.
    Terminate { pick: u64 },
    /// The way to a server is slow, held or refused for a time, and perhaps cut at its end.
    Disturb {
        server: Server,
        traffic: Traffic,
        pause: u64,
        cut: bool,
    },
    /// All connections on a way are closed, or only their direction to the server.
    Cut { server: Server, half: bool },
    /// A config directory is replaced by something else for a time.
    Replace { by: Stray, pause: u64 },
    /// A second daemon starts, or the one that leads is killed and the other takes over.
    Second { stop: bool },
    /// A user's transaction holds the locks of a statement.
    Lock {
        member: usize,
        sql: String,
        pause: u64,
    },
    /// The source's password changes, and later the files follow.
    Password { pause: u64 },
    /// A file of the csv connection is written, or removed.
    Csv { name: u64, exists: bool },
    /// A client reads a table that ends its server process in the gateway.
    Panic { wrapper: usize },
    /// A block makes the import end its server process in the gateway, until it is mended.
    BadWrapper { wrapper: usize, pause: u64 },
    /// Nothing happens.
    Rest { pause: u64 },
}

/// An object that a user creates on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThingKind {
    View,
    ViewOfAggregator,
    Grant,
    GrantOnAggregator,
    Comment,
    Table,
}

/// What takes the place of a config directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    Nothing,
    EmptyDirectory,
    File,
    /// A link that leads to itself.
    LinkToItself,
    /// A link to a file.
    LinkToFile,
    /// A link to the directory itself, which changes nothing.
    LinkToDirectory,
}

/// A server of a world, to which a link leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Hub,
    Source,
    Gateway,
}

const THINGS: [ThingKind; 6] = [
    ThingKind::View,
    ThingKind::ViewOfAggregator,
    ThingKind::Grant,
    ThingKind::GrantOnAggregator,
    ThingKind::Comment,
    ThingKind::Table,
];

/// Changes of a source; `t` keeps its columns `id` and `note`, since users build on them.
const CHANGES: [&str; 9] = [
    "CREATE TABLE IF NOT EXISTS x1 (a integer, b text)",
    "CREATE TABLE IF NOT EXISTS x2 (a numeric(8,2), \"B c\" date)",
    "DROP TABLE IF EXISTS x1",
    "DROP TABLE IF EXISTS x2",
    "ALTER TABLE IF EXISTS x1 ADD COLUMN IF NOT EXISTS c timestamptz",
    "ALTER TABLE IF EXISTS x1 DROP COLUMN IF EXISTS c",
    "ALTER TABLE IF EXISTS x1 ALTER COLUMN a TYPE bigint",
    "ALTER TABLE t ADD COLUMN IF NOT EXISTS extra integer",
    "ALTER TABLE t DROP COLUMN IF EXISTS extra",
];

/// Damages of a member, of which `{}` is the quoted name.
const DAMAGES: [&str; 8] = [
    "ALTER FOREIGN TABLE {}.t OPTIONS (SET table_name 'gone')",
    "ALTER FOREIGN TABLE {}.t ADD by_hand integer",
    "ALTER FOREIGN TABLE {}.t ALTER COLUMN note SET NOT NULL",
    "ALTER SERVER {} OPTIONS (SET dbname 'gone')",
    "ALTER USER MAPPING FOR PUBLIC SERVER {} OPTIONS (SET user 'gone')",
    "DROP USER MAPPING FOR PUBLIC SERVER {}",
    "DROP FOREIGN TABLE IF EXISTS {}.x1 CASCADE",
    "REVOKE ALL ON SCHEMA {} FROM spcd_users",
];

/// Statements that lock objects of a member, of which `{}` is the quoted name.
const LOCKS: [&str; 4] = [
    "EXPLAIN SELECT * FROM {}.t",
    "ALTER FOREIGN TABLE {}.t OPTIONS (ADD batch_size '7')",
    "LOCK TABLE \"all\".t IN ACCESS EXCLUSIVE MODE",
    "ALTER SERVER {} OPTIONS (ADD batch_size '7')",
];

impl Schedule {
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let has_gateway = random.once_in(3);
        let is_settled = !random.once_in(4);
        let length = random.between(8, 15);
        let steps = (0..length).map(|_| step(&mut random, has_gateway));
        Self {
            seed,
            has_gateway,
            is_settled,
            steps: steps.collect(),
        }
    }

    /// The same with the steps of these numbers alone: `0,3-5`.
    pub fn only(mut self, numbers: &str) -> Self {
        let parse = |number: &str| number.trim().parse::<usize>().expect("a number of a step");
        let ranges: Vec<(usize, usize)> = (numbers.split(','))
            .filter(|range| !range.trim().is_empty())
            .map(|range| match range.split_once('-') {
                Some((from, to)) => (parse(from), parse(to)),
                None => (parse(range), parse(range)),
            })
            .collect();
        let is_kept = |n: usize| ranges.iter().any(|(from, to)| (*from..=*to).contains(&n));
        let mut n = 0;
        self.steps.retain(|_| {
            n += 1;
            is_kept(n - 1)
        });
        self
    }

    /// The numbered steps, one a line.
    pub fn listing(&self) -> String {
        let lines = self.steps.iter().enumerate();
        lines
            .map(|(n, step)| format!("  {n}: {step:?}\n"))
            .collect()
    }
}

fn step(random: &mut Random, has_gateway: bool) -> Step {
    let member = random.below(MEMBERS.len() as u64) as usize;
    // Aggregator and users' objects on it need one member that stays.
    let loose = random.between(1, MEMBERS.len() as u64 - 1) as usize;
    let source = random.below(SOURCES as u64) as usize;
    let pause = random.between(0, 400);
    let long = random.between(100, 1_000);
    let server = random.pick(match has_gateway {
        true => &[Server::Hub, Server::Source, Server::Gateway],
        false => &[Server::Hub, Server::Source],
    });
    match random.below(if has_gateway { 138 } else { 132 }) {
        0..10 => Step::Edit { member, source },
        10..14 => Step::Break {
            member: loose,
            broken: random.once_in(2),
        },
        14..19 => Step::Remove { member: loose },
        19..22 => Step::Restore { member: loose },
        22..25 => Step::Rename { member },
        25..30 => Step::Enable {
            member: loose,
            enabled: random.once_in(2),
        },
        30..34 => Step::HalfWrite { member, pause },
        34..38 if has_gateway => Step::Token {
            wrapper: random.below(2) as usize,
        },
        34..46 => Step::Source {
            source,
            sql: random.pick(&CHANGES).to_owned(),
        },
        46..56 => Step::Make {
            member,
            thing: random.pick(&THINGS),
        },
        56..58 => Step::Unmake {
            pick: random.below(1_000),
        },
        58..64 => Step::Damage {
            member,
            sql: random.pick(&DAMAGES).to_owned(),
        },
        64..69 => Step::Refresh {
            member: random.once_in(2).then_some(member),
        },
        69..74 => Step::Wait {
            member: random.once_in(2).then_some(member),
        },
        74..80 => Step::Kill { pause },
        80..83 => Step::Freeze { pause: long },
        83..89 => Step::Crash {
            server,
            kill: random.once_in(3),
            pause: long,
        },
        89..94 => Step::Terminate {
            pick: random.below(1_000),
        },
        94..101 => Step::Disturb {
            server,
            traffic: match random.below(3) {
                0 => Traffic::Slow(random.between(2, 60)),
                1 => Traffic::Held,
                _ => Traffic::Refused,
            },
            pause: 2 * long,
            cut: random.once_in(2),
        },
        101..106 => Step::Cut {
            server,
            half: random.once_in(2),
        },
        106..108 => Step::FreezeServer {
            server,
            pause: long,
        },
        108..112 => Step::Replace {
            by: random.pick(&[
                Stray::Nothing,
                Stray::EmptyDirectory,
                Stray::File,
                Stray::LinkToItself,
                Stray::LinkToFile,
                Stray::LinkToDirectory,
            ]),
            pause: long,
        },
        112..117 => Step::Second {
            stop: random.once_in(2),
        },
        117..122 => Step::Lock {
            member,
            sql: random.pick(&LOCKS).to_owned(),
            pause: 2 * long,
        },
        122..124 => Step::Password { pause },
        124..127 => Step::Csv {
            name: random.below(2),
            exists: random.once_in(2),
        },
        127..132 => Step::Rest { pause: long },
        132..135 => Step::Panic {
            wrapper: random.below(2) as usize,
        },
        _ => Step::BadWrapper {
            wrapper: random.below(2) as usize,
            pause: long,
        },
    }
}
