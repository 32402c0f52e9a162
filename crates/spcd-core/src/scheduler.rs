//! The scheduler: when a pass runs, which jobs start, wait or are cancelled, when a failed attempt is
//! repeated, which sources are probed, and when a request is answered.
//!
//! [`step`] takes an event and returns commands. The daemon's loop carries them out and decides
//! nothing. Time is an argument, in milliseconds since an arbitrary moment.
//!
//! The commands of one step are carried out in their order before the next event is taken. [`Command`]
//! says which of them report an event; what [`Command::Start`] starts ends with [`Event::JobEnded`].

mod budget;
mod early;
mod ended;
mod mirrors;
mod pass;
mod probes;
mod record;
mod requests;
mod state;
#[cfg(test)]
mod tests;
mod writers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

pub use budget::{PermitKind, Priority, SessionBudget, Urgency};
pub use pass::{Files, PassInput, PassOutcome};
pub use probes::{HealthBatch, MAX_HEALTHY_PROBES, ProbeCommand, ProbeScheduler, WatchedSource};
pub use record::{Failure, JobOutcome, NextAttempt};
pub use requests::{Action, Request};
pub use state::{Start, State};
pub use writers::WriterCount;

use crate::model::DesiredState;
use crate::observed::Observed;
use crate::planner::{LaneChange, RowChange, Work};
use crate::search_path::SearchPathChange;

/// Input of [`step`].
#[derive(Debug)]
pub enum Event {
    /// Something may have changed, or [`State::wake_at`] has come.
    Woken,
    /// Files may have changed: work for changed connections starts before the full observation.
    FilesChanged,
    /// No other event is queued: a pass begins if one is due. Simultaneous events thus cause one pass.
    Idle,
    /// New requests were read.
    Requested {
        /// The requests, by identifier.
        requests: Vec<(i64, Request)>,
        /// More requests are queued than can be held.
        is_crowded: bool,
    },
    /// The files were read.
    FilesRead(Arc<DesiredState>),
    /// Some connections were observed, on the assumption that nothing has drifted.
    Observed(Box<Observed>),
    /// Files and database were observed.
    AllObserved(Box<PassInput>),
    /// Drift detection has answered.
    DriftAnswered(DriftReport),
    /// Extensions were created, except these, with the reasons.
    ExtensionsCreated(BTreeMap<String, String>),
    /// Servers of lanes were changed, except these, with the reasons.
    LanesChanged(BTreeMap<String, String>),
    /// Search paths were set.
    SearchPathSet {
        /// The hash of the path.
        hash: String,
        /// Roles for which it failed for good.
        refused: Vec<String>,
        /// For other roles a retry may succeed.
        is_passing: bool,
    },
    /// Pauses were recorded.
    PausesRecorded(Vec<String>),
    /// The record that a connection ended a server process was removed.
    CrashForgotten(String),
    /// A pass's changes were published.
    Published {
        /// The generation that its jobs write.
        generation: i64,
    },
    /// A job has sent its request to the source.
    SourceAsked(String),
    /// A job has ended.
    JobEnded {
        /// Its connection.
        name: String,
        /// Its result.
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
    /// The server has no room, so commands of the last step that write have failed.
    ServerFull,
}

/// Output of [`step`].
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Read the requests that are not held yet: [`Event::Requested`].
    ReadRequests {
        /// The requests that are held already.
        open: Vec<i64>,
    },
    /// Detect drift: [`Event::DriftAnswered`], some time later.
    AskDrift {
        /// On behalf of this pass.
        pass: u64,
        /// A client or the pass waits for the answer.
        is_urgent: bool,
    },
    /// Read the files: [`Event::FilesRead`].
    ReadFiles,
    /// Observe these connections of the files, and no others: [`Event::Observed`].
    Observe(Vec<String>),
    /// Read files and database: [`Event::AllObserved`].
    ObserveAll {
        /// Wait for drift detection first.
        waits_for_drift: bool,
        /// The drift, if it is known.
        drift: Option<DriftReport>,
        /// A client waits for the result.
        is_awaited: bool,
    },
    /// Create extensions: [`Event::ExtensionsCreated`].
    CreateExtensions(BTreeSet<String>),
    /// Create, alter and drop the servers of lanes: [`Event::LanesChanged`].
    ChangeLanes(Vec<LaneChange>),
    /// Record which connections are paused: [`Event::PausesRecorded`].
    RecordPause {
        /// The connections.
        names: Vec<String>,
        /// Whether they are paused or resumed.
        is_pause: bool,
    },
    /// Grant `spcd_users` access to the schema `spcd`.
    AdmitReaders,
    /// Set search paths: [`Event::SearchPathSet`].
    SetSearchPath(SearchPathChange),
    /// Publish the row changes that need no job, and take a generation: [`Event::Published`].
    Publish {
        /// Changes of rows.
        rows: Vec<RowChange>,
        /// Connections whose fingerprints are recorded again, with the observed fingerprints.
        refresh_fingerprints: Vec<(String, Option<String>)>,
        /// New diagnostics.
        diagnostics: Option<Value>,
    },
    /// Start a job: [`Event::JobEnded`], some time later.
    Start {
        /// Its work.
        work: Work,
        /// The generation that it writes.
        generation: i64,
        /// Its urgency.
        urgency: Urgency,
    },
    /// Cancel a connection's job. It ends in its own time.
    Cancel(String),
    /// Move a connection's job to the front of all queues.
    Prioritize(String),
    /// Set the comments that an earlier daemon did not set.
    Comment(Vec<String>),
    /// Record that a connection's files were not read.
    FilesUnread(String),
    /// Remove the record that a connection ended a server process: [`Event::CrashForgotten`].
    ForgetCrash(String),
    /// Answer a request: [`Event::Answered`].
    Answer {
        /// The request.
        id: i64,
        /// The error; `None` if the request succeeded.
        error: Option<String>,
    },
    /// Pass a command to the probes.
    Probe(ProbeCommand),
    /// Report the end of a pass.
    Report(PassOutcome),
    /// Report that the drift changes nothing for this pass.
    ReportNoDrift {
        /// Its number.
        pass: u64,
    },
    /// Report that the jobs of the first pass have ended, except slow ones.
    ReportStart {
        /// The number of running jobs.
        running: usize,
    },
}

/// The connections whose objects were altered since spcd wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftReport {
    /// The connections and their observed fingerprints.
    pub names: BTreeMap<String, String>,
    /// The pass that asked for the detection: it observed the database before the detection began.
    pub pass: u64,
    /// Duration of the detection, in milliseconds.
    pub took: u64,
}

/// Applies an event to the state. Returns what to do.
pub fn step(state: &mut State, event: Event, now: u64) -> Vec<Command> {
    match event {
        Event::Woken => state.is_pass_due = true,
        Event::FilesChanged => {
            state.is_pass_due = true;
            state.are_files_changed = true;
        }
        Event::Idle if state.is_pass_due => return state.begin_pass(now),
        Event::Idle => {}
        Event::Requested {
            requests,
            is_crowded,
        } => return state.requested(requests, is_crowded),
        Event::FilesRead(desired) => return state.files_read(desired),
        Event::Observed(observed) => return state.observed(*observed, now),
        Event::AllObserved(input) => return state.all_observed(*input, now),
        Event::DriftAnswered(drift) => return state.drift_answered(drift, now),
        Event::ExtensionsCreated(refused) => {
            state.refused_extensions.extend(refused);
            state.is_pass_due = true;
        }
        Event::LanesChanged(refused) => {
            state.lanes.refused.extend(refused);
            state.is_pass_due = true;
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
        Event::SourceRestored(name) => state.is_pass_due |= state.source_restored(&name, now),
        Event::CredentialsRejected {
            name,
            target_hash,
            error,
        } => return state.credentials_rejected(&name, target_hash, error, now),
        Event::ProbeAnswered(name) => return state.probe_answered(&name, now),
        Event::Answered(id) => state.is_pass_due |= state.requests.answered(id),
        Event::ServerFull => state.server_full(now),
    }
    Vec::new()
}
