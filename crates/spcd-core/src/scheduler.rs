//! What is decided between the files and the databases: when to look, what to start, cancel and put
//! off, when a failed attempt is repeated, which sources are probed, and when a client is answered.
//!
//! [`step`] takes an event and returns commands. The daemon's loop carries them out and decides
//! nothing. Time is handed in, in milliseconds since any moment.
//!
//! The commands of one step are carried out in their order before the next event is taken. [`Command`]
//! says which of them report an event; what [`Command::Start`] starts ends with [`Event::JobEnded`].

mod ended;
mod pass;
mod probes;
mod record;
mod requests;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

pub use pass::{Files, Look, PassOutcome};
pub use probes::{HealthBatch, MAX_WELL_PROBES, ProbeCommand, ProbeScheduler, WatchedSource};
pub use record::{Failure, JobOutcome, NextAttempt, is_refresh};
pub use requests::{Action, Request};
pub use state::{Start, State};

use crate::plan::{RowChange, Work};
use crate::search_path::PathChange;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Something may have changed, or [`State::wake_at`] is over.
    Woken,
    /// No other event waits: a pass begins if one is due. What happened at once is looked at once.
    Idle,
    /// New requests were read.
    Requested {
        /// By identifier.
        requests: Vec<(i64, Request)>,
        /// More are queued than are held.
        is_crowded: bool,
    },
    /// Files and database were read.
    Looked(Box<Look>),
    /// It is known what has drifted.
    DriftAnswered(DriftReport),
    /// Extensions were created, but for these, which were refused with this reason.
    ExtensionsCreated(BTreeMap<String, String>),
    /// Search paths were set, but for these roles.
    SearchPathSet {
        /// The hash of the path.
        hash: String,
        /// The roles for which it was refused.
        refused: Vec<String>,
        /// For others it may succeed later.
        is_passing: bool,
    },
    /// Pauses were recorded.
    PausesRecorded(Vec<String>),
    /// It was forgotten that a connection ended a server process.
    CrashForgotten(String),
    /// A pass's changes were published.
    Published {
        /// The generation that its jobs write.
        generation: i64,
    },
    /// A job asks its source.
    SourceAsked(String),
    /// A job has ended.
    JobEnded {
        /// Its connection.
        name: String,
        /// What came of it.
        outcome: JobOutcome,
    },
    /// A probe says that a source answers again.
    SourceRestored(String),
    /// A probe's credentials were rejected.
    CredentialsRejected {
        /// Its connection.
        name: String,
        /// The target that was asked.
        target_hash: String,
        /// The wrapper's message.
        error: String,
    },
    /// A requested probe is answered.
    ProbeAnswered(String),
    /// A request's answer is written.
    Answered(i64),
    /// The server has no room: commands of the last step that write have failed.
    ServerFull,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Read the requests that are not open: [`Event::Requested`].
    ReadRequests {
        /// The requests that are held.
        open: Vec<i64>,
    },
    /// Find out what has drifted: [`Event::DriftAnswered`], some time later.
    AskDrift {
        /// On behalf of this pass.
        pass: u64,
        /// A client or the pass waits for the answer.
        is_urgent: bool,
    },
    /// Read files and database: [`Event::Looked`].
    Look {
        /// Wait until it is known what has drifted.
        waits_for_drift: bool,
        /// It is known.
        drift: Option<DriftReport>,
        /// A client waits for what the look finds.
        is_awaited: bool,
    },
    /// Create extensions: [`Event::ExtensionsCreated`].
    CreateExtensions(BTreeSet<String>),
    /// Record which sources are left alone: [`Event::PausesRecorded`].
    RecordPause {
        /// The connections.
        names: Vec<String>,
        /// Whether they are left alone.
        is_pause: bool,
    },
    /// Open spcd's own schema to `spcd_users`.
    AdmitReaders,
    /// Set search paths: [`Event::SearchPathSet`].
    SetSearchPath(PathChange),
    /// Publish what needs no job, and take a generation: [`Event::Published`].
    Publish {
        /// Changes of rows.
        rows: Vec<RowChange>,
        /// Connections whose fingerprint is recorded anew, and the one that was found.
        touched: Vec<(String, Option<String>)>,
        /// New diagnostics.
        diagnostics: Option<Value>,
    },
    /// Start a job: [`Event::JobEnded`], some time later.
    Start {
        /// What it does.
        work: Work,
        /// The generation that it writes.
        generation: i64,
        /// A client named it.
        is_urgent: bool,
    },
    /// Cancel a connection's job. It ends in its own time.
    Cancel(String),
    /// Have a connection's job go before all others.
    Prioritize(String),
    /// Look for comments that an earlier daemon did not set.
    Comment(Vec<String>),
    /// A connection's files were not read after all.
    FilesUnread(String),
    /// Forget that a connection ended a server process: [`Event::CrashForgotten`].
    ForgetCrash(String),
    /// Answer a request: [`Event::Answered`].
    Answer {
        /// The request.
        id: i64,
        /// `None`: all went well.
        error: Option<String>,
    },
    /// Tell the probes.
    Probe(ProbeCommand),
    /// A pass has ended.
    Report(PassOutcome),
    /// Nothing has drifted that this pass had to wait for.
    ReportNoDrift {
        /// Its number.
        pass: u64,
    },
    /// What the first pass began has ended, but for this many jobs that take long.
    ReportStart {
        /// The number of running jobs.
        running: usize,
    },
}

/// What has drifted: what was altered in the database since spcd wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftReport {
    /// The connections, with the fingerprint that was found.
    pub names: BTreeMap<String, String>,
    /// The pass that asked: what it saw was there when the question was asked.
    pub pass: u64,
    /// How long the answer took, in milliseconds.
    pub took: u64,
}

/// Takes an event. Returns what is to be done about it.
pub fn step(state: &mut State, event: Event, now: u64) -> Vec<Command> {
    match event {
        Event::Woken => state.is_look_due = true,
        Event::Idle if state.is_look_due => return state.begin_pass(now),
        Event::Idle => {}
        Event::Requested {
            requests,
            is_crowded,
        } => return state.requested(requests, is_crowded),
        Event::Looked(look) => return state.looked(*look, now),
        Event::DriftAnswered(drift) => return state.drift_answered(drift, now),
        Event::ExtensionsCreated(refused) => {
            state.refused_extensions.extend(refused);
            state.is_look_due = true;
        }
        Event::SearchPathSet {
            hash,
            refused,
            is_passing,
        } => {
            let refused = refused.into_iter().map(|role| (role, hash.clone()));
            state.refused_paths.extend(refused);
            if is_passing {
                state.wake_soon(now);
            }
        }
        Event::PausesRecorded(names) => {
            for name in names {
                state.unrecorded_pauses.remove(&name);
            }
        }
        Event::CrashForgotten(name) => drop(state.unforgotten_crashes.remove(&name)),
        Event::Published { generation } => return state.published(generation, now),
        Event::SourceAsked(name) => state.source_asked(&name, now),
        Event::JobEnded { name, outcome } => return state.job_ended(&name, outcome, now),
        Event::SourceRestored(name) => state.is_look_due |= state.source_restored(&name, now),
        Event::CredentialsRejected {
            name,
            target_hash,
            error,
        } => return state.credentials_rejected(&name, target_hash, error, now),
        Event::ProbeAnswered(name) => return state.probe_answered(&name, now),
        Event::Answered(id) => state.is_look_due |= state.requests.answered(id),
        Event::ServerFull => state.server_full(now),
    }
    Vec::new()
}

/// Returns why a source of `wrapper` is not asked while `count` of its sessions are stuck.
pub fn stuck_sessions(wrapper: &str, count: usize) -> String {
    let sessions = match count {
        0 => return "it is not asked: as many sources are asked as may be at a time".to_owned(),
        1 => "a session waits".to_owned(),
        count => format!("{count} sessions wait"),
    };
    format!(
        "it is not asked: {sessions} in {wrapper} for sources that do not answer, which cannot be \
         stopped while it connects"
    )
}
