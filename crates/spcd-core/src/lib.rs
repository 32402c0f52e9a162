//! The pure part of spcd, and a map of the workspace.
//!
//! # Data flow
//!
//! Every event leads to the same steps, in this order:
//!
//! 1. **files** ([`config`]): the texts of all `.spc` files become the [`model::DesiredState`] and a
//!    list of diagnostics. A bad block becomes a diagnostic and never stops another one.
//! 2. **database** ([`observed`]): one query returns [`observed::Observed`]: every row of the state,
//!    and whether its objects are unchanged.
//! 3. **plan** ([`planner::plan`]): a pure function of the two. The plan is empty when nothing differs.
//! 4. **apply**: changes that need no source are written at once. For the rest there is one job per
//!    connection: it asks its source (an import that is rolled back), [`planner::resolve_import`] turns the
//!    answer into statements, and the job hands them to the writer.
//! 5. **publish**: the writer commits the statements of many connections together with their states,
//!    events and notifications. A connection is `ready` in the same commit as its tables. Comments of
//!    the source are written later, when no other work waits.
//!
//! [`scheduler::step`] takes an event and the time, and returns commands. The daemon's loop carries
//! them out and decides nothing. A wake-up (file event, timer, request, reconnect) carries no data: it
//! only means "look again".
//!
//! # Invariants
//!
//! - Equal in, nothing out: no statement, no write, no notification.
//! - This crate has no access to the time, the file system, the environment or the network. The
//!   manifest lists its dependencies, and `tests/purity.rs` checks it.
//! - Input that vanished deletes nothing: [`config::AppliedFiles`] tells a deleted file from a missing
//!   directory.
//! - Statuses change only by the table in `spcd-protocol`; [`planner`] uses
//!   [`spcd_protocol::Status::route`].
//! - Names and literals reach SQL through [`sql`] only. (The functions in `migrations/` build
//!   statements by `format`'s `%I` and `%L`.)
//! - No statement contains a secret. Options of user mappings travel by COPY into a temporary table,
//!   from which a function in the database creates the mapping.
//! - spcd owns an object if `spcd.applied` lists it *and* it still has the OID with which spcd created
//!   it. After a restore from a dump (`spcd.daemon.identity` tells) the OIDs are looked up again by
//!   name. A comment as the mark would be lost when a user comments on the schema.
//! - Drift is detected by sums of the catalog's row versions (`spcd.fingerprint`). A connection is
//!   compared in full only if its sum differs, and its source is asked only if the comparison differs.
//!
//! # Decisions
//!
//! - spcd has its own parser of `.spc` files ([`spcd_lang`]). `hcl-rs` stops at the first error of a
//!   text, accepts a newline inside quotes (so a missing quote is reported lines too late), rounds
//!   integers beyond 64 bits, and calls only bare function pointers. The contract promises all errors
//!   at their places, exact numbers, and functions that the caller supplies. The tests compare the two.
//! - A pass starts the work that follows from the files before drift is known: drift detection takes
//!   about 10 times as long as the rest of the observation. Work that depends on drift waits for it,
//!   above all `ready`. If a job of a reported connection ended after the detection began, the
//!   detection is repeated: the job may have repaired the drift.
//! - An aggregator becomes `updating` in the same commit as a member that changes, although its views
//!   are compared only when the member is ready. A client that waits for the aggregator thus waits for
//!   the new views.
//! - A connection without problems is cached and shared by all passes until its text or its plugin
//!   changes: a change of one connection does not rebuild 10,000 others.
//! - A source is asked by an import that is rolled back, into a separate schema and with a separate
//!   server. No other session waits for its locks, and existing tables stay until the answer is known.
//!   The tables are then written as text, many connections in one transaction.
//! - The leader holds a lock on a partitioned table without partitions: it has no storage, so vacuum
//!   never waits for it. The epoch is the key of the only row of `spcd.daemon`. Writers take `FOR KEY
//!   SHARE`, which conflicts with a new leader's change of the key and not with the heartbeat.
//!
//! # Modules
//!
//! | crate | module | contents |
//! |---|---|---|
//! | `spcd-protocol` | | types that daemon and clients share: statuses, rows, notifications, the back-off of every retry |
//! | `spcd-lang` | | the language of `.spc` files: blocks, expressions, values, JSON form |
//! | `spcd-core` | [`config`], [`plugin`], [`pattern`], [`report`] | from blocks to connections and diagnostics |
//! | | [`model`], [`observed`], [`remote_schema`], [`diff`] | plain data that the others share: desired state, observed state, a source's tables, changes of tables |
//! | | [`csv`] | columns and types of CSV files, by the rules of the server's COPY |
//! | | [`naming`] | names of a source's tables and columns in the hub |
//! | | [`tuning`] | options that make queries of Postgres sources fast |
//! | | [`planner`], [`sql`] | from desired and observed state to statements |
//! | | [`aggregator`], [`search_path`] | views of aggregators; search paths of the members of `spcd_users` |
//! | | [`scheduler`] | state of each connection between events, and every decision: passes, jobs, retries, requests, probes |
//! | | [`gateway`] | which connections live in the gateway, and what the hub has of them |
//! | | [`mirror`] | which connections a mirror makes of what its source lists |
//! | | [`health`] | health of sources: the probe schedule, the circuit breaker, the kinds of failure |
//! | `spcd-postgres` | `connection/` | sessions: parameters, TLS, the pool |
//! | | `leader.rs`, `migrations.rs`, `config_files.rs` | the leader's epoch, the schema `spcd`, the files of the applied state |
//! | | `catalog/` | observed state of the database, and users' dependent objects |
//! | | `import/` | a source's tables: its catalog, or an import that is rolled back |
//! | | `writer/`, `secrets.rs` | units of statements, many in a transaction; secrets outside of statements |
//! | | `probe.rs`, `limits.rs` | probes of sources; the server's limits of sessions and locks |
//! | | `mirror/` | the lists of mirrors' sources, and what the hub recorded of them |
//! | `spcd` | `cli/` | one file per command |
//! | | `daemon/` | the loop (`mod.rs`) and the executors of its commands (`executors/`: one file per kind) |
//! | | `files.rs`, `watch.rs`, `cluster.rs`, `settings.rs` | files, file events, private clusters, settings |
//! | | `gateway.rs`, `gateway_link.rs` | the gateway's loop, and the state that the loops share |
//! | | `source/` | access to sources: CSV files (`csv.rs`), the sessions of probes (`probe_sessions.rs`) |
//! | | `mirror/` | the task that follows a mirror's source |
//! | | `tunnel/` | ssh tunnels to sources |
//! | | `http/`, `telemetry/` | page, API, events, metrics; logs and counters |
//! | `spcd-client` | | a library for programs that query |
//!
//! No modules import each other in a circle, and no file is longer than 600 lines:
//! `tests/structure.rs` checks the source.
//!
//! Unit tests are next to the code; `tests/` runs the built binary against real servers.

pub mod aggregator;
pub mod config;
pub mod conninfo;
pub mod csv;
pub mod diff;
pub mod duration;
pub mod gateway;
mod hash;
pub mod health;
pub mod mirror;
pub mod model;
pub mod naming;
pub mod observed;
pub mod pattern;
pub mod planner;
pub mod plugin;
pub mod remote_schema;
pub mod report;
pub mod scheduler;
pub mod search_path;
pub mod secret;
pub mod sql;
pub mod terminal;
pub mod tuning;
