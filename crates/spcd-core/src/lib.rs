//! The pure part of spcd, and the map of the house.
//!
//! # One way through it
//!
//! Whatever happens, the same things follow, in this order:
//!
//! 1. **files** ([`config`]): the texts of all `.spc` files become [`model::Desired`], and a list
//!    of diagnostics. A bad block is a diagnostic and never stops another.
//! 2. **database** ([`observed`]): one query gives [`observed::Observed`]: every row of the state,
//!    and whether what was made for it is still as it was left.
//! 3. **plan** ([`plan::plan`]): a pure function of the two. Empty when nothing differs.
//! 4. **apply**: what needs no source is written at once; for the rest there is a job a
//!    connection, which asks its source (an import that is rolled back), has [`plan::settle`]
//!    turn the answer into statements, and hands them to the writer.
//! 5. **publish**: the writer commits the statements of many connections together with their
//!    states, events and notifications. A connection is `ready` in the same commit as its tables;
//!    the comments of its source come after that, when nobody waits for anything else.
//!
//! [`scheduler::step`] decides all of it: it takes an event and returns commands, with the time as an
//! argument. The daemon's loop carries the commands out and decides nothing. A wake (file event, timer,
//! request, reconnect) carries nothing and is never branched on. It says "look again".
//!
//! # What always holds
//!
//! - Equal in, nothing out: no statement, no write, no notification.
//! - Nothing here knows the time, the file system, the environment or the network: the manifest
//!   lists what this crate may use, and `tests/purity.rs` reads it.
//! - Input that vanished deletes nothing: [`config::Inputs`] tells a deleted file from a directory that
//!   is not there.
//! - Statuses change only along the table in `spcd-protocol`; [`plan`] goes by
//!   [`spcd_protocol::Status::route`].
//! - Names and literals reach SQL through [`sql`] only. (The functions in `migrations/` build
//!   statements by `format`'s `%I` and `%L`.)
//! - No secret is in a statement. Options of user mappings travel by COPY into a temporary table,
//!   from which a function in the database makes the mapping.
//! - What spcd made is what `spcd.applied` lists *and* still has the OID it was made with. After
//!   a restore from a dump (`spcd.daemon.identity` tells) the OIDs are taken anew, by name. A
//!   comment as the mark would be lost as soon as somebody comments on their schema.
//! - Whether something was altered is told by sums of the catalog's row versions
//!   (`spcd.fingerprint`). Only where they differ is a connection looked at in full, and only
//!   where that differs is its source asked.
//!
//! # Why it is as it is
//!
//! - The parser of `.spc` files is our own ([`spcd_lang`]). `hcl-rs` stops at the first error of a text,
//!   takes a newline inside quotes, so that a missing quote is reported lines too late, rounds
//!   integers beyond 64 bits, and calls only bare function pointers, while the contract promises
//!   all mistakes at their places, exact numbers, and functions that the edge hands in. It is the
//!   second opinion on the language in the tests.
//! - A pass begins what the files want before it knows what was altered behind its back: the sums of
//!   row versions take ten times as long as all else of a look. What rests on them waits for them,
//!   above all whatever would be called `ready`. An answer that is older than the end of a job of one
//!   of those it names is asked for anew: it may tell what the job has mended.
//! - An aggregator becomes `updating` in the same commit as a member that changes, though its views
//!   are looked at only when the member is ready: who waits for it waits for what they will show.
//! - A connection that is all right is kept as it was read, and shared by all passes until its text
//!   or its plugin changes: ten thousand of them need not be made anew for one that changed.
//! - A source is asked by an import that is rolled back, in a schema and with a server of a name
//!   of its own: nobody waits for its locks, and what is there stays as it is until the answer is
//!   known. The tables are then written as text, many connections in one transaction.
//! - The lead is a lock on a partitioned table without partitions: it has no storage, so vacuum
//!   never waits for it. The epoch is the key of `spcd.daemon`'s only row: writers take `FOR KEY
//!   SHARE`, which conflicts with a new leader's change of the key and not with the heartbeat.
//!
//! # The rooms
//!
//! | crate | room | what is in it |
//! |---|---|---|
//! | `spcd-protocol` | | what daemon and clients share: statuses, rows, notifications |
//! | `spcd-lang` | | the language of `.spc` files: blocks, expressions, values, JSON form |
//! | `spcd-core` | [`config`], [`plugin`], [`pattern`], [`report`] | from blocks to connections, and what is wrong in them |
//! | | [`model`], [`observed`], [`offer`], [`shape`] | plain data that the others share: what is wanted, what the database holds, what a source has, tables |
//! | | [`csv`] | what a file holds, as the server reads it |
//! | | [`plan`], [`sql`] | from what is wanted and what is there to statements |
//! | | [`union`], [`search_path`] | aggregators' views; the path of members of `spcd_users` |
//! | | [`scheduler`] | what is known of each connection between events, and every decision: passes, jobs, retries, requests, probes |
//! | | [`health`] | whether a source answers: the schedule, the breaker, the kinds of failure |
//! | `spcd` | `cli/` | one file a command |
//! | | `daemon/` | the loop (`mod.rs`), and who carries out its commands (`executors/`: a look, writing, requests, a file for each kind of job) |
//! | | `hub/` | the Postgres that holds the schemas: connect, lead, observe, ask (`catalog.rs`, `partial.rs`, `comments.rs`, in the `scratch.rs` schema), apply, what people hung on it (`dependents.rs`), how many sessions may wait for sources and how many of them hang (`waiting.rs`), what Steampipe's clients look for |
//! | | `csv.rs`, `files.rs`, `watch.rs`, `cluster.rs`, `settings.rs` | the machine |
//! | | `source/` | the task that probes sources beside the loop, and its sessions (`session.rs`) |
//! | | `tunnel/` | ways to sources by ssh, kept open beside the loop |
//! | | `http/`, `telemetry/` | what people look at: page, API, events, metrics; log and what is counted |
//! | `spcd-client` | | for programs that query |
//!
//! No rooms use each other in a circle, no file is longer than 600 lines: `tests/structure.rs` reads
//! the source.
//!
//! Tests of pure things lie beside them; `tests/` drives the built binary against real servers.

mod aggregate;
pub mod backoff;
pub mod config;
pub mod csv;
mod duration;
mod hash;
pub mod health;
pub mod model;
pub mod observed;
pub mod offer;
pub mod pattern;
pub mod plan;
pub mod plugin;
pub mod report;
pub mod scheduler;
pub mod search_path;
pub mod secret;
pub mod shape;
pub mod sql;
pub mod terminal;
pub mod union;
