//! Handling of ended jobs, and of answers of drift detection and probes.

use super::probes::PROBES_PER_SECOND;
use super::record::{Failure, JobOutcome, ManualProbe, RunningJob};
use super::state::State;
use super::{Command, DriftReport, ProbeCommand, WatchedSource};
use crate::health::FailureKind;

impl State {
    /// Handles the end of a job.
    pub(super) fn job_ended(&mut self, name: &str, outcome: JobOutcome, now: u64) -> Vec<Command> {
        let is_done = outcome == JobOutcome::Done;
        let record = self.record(name);
        let job = record.job.take();
        let is_aggregator = record.members.is_some();
        let is_shown = record.shown;
        let mut again = record.refresh || job.as_ref().is_some_and(|job| job.needs_follow_up);
        // The server of a lane may be left without tables.
        again |=
            self.lanes.are_there && is_done && job.as_ref().is_some_and(|job| job.does.is_drop());
        let is_import = job.is_some_and(|job| job.does.is_import());
        let waits = |record: &super::record::ConnectionRecord| record.waits_for_members;
        self.are_members_due |= is_shown && (is_done || self.connections.values().any(waits));
        again |= self.can_aggregators_follow(now);
        // Tables that the aggregator no longer uses can be dropped, and its members may have changed
        // meanwhile: requests for it wait for one more pass.
        if is_aggregator {
            self.are_members_due = true;
            again |= !matches!(outcome, JobOutcome::Later { .. } | JobOutcome::Same);
        }
        let mut commands = self.crash_is_over(name, &outcome);
        if !matches!(outcome, JobOutcome::Later { .. } | JobOutcome::Cancelled) {
            self.record(name).locks.holder = None;
        }
        match outcome {
            JobOutcome::Done | JobOutcome::Same => {
                let record = self.record(name);
                record.locks = Default::default();
                // Nothing else sent the credentials that were rejected.
                if is_import || !record.is_rejected() {
                    record.failure = None;
                }
                if is_import {
                    commands.extend(self.import_ended(name, true));
                }
            }
            JobOutcome::Failed {
                target_hash,
                error,
                kind,
                is_unwritten,
            } => {
                again |= is_unwritten;
                commands.extend(self.job_failed(name, target_hash, error, kind, now));
            }
            JobOutcome::Later { reason, is_lock } => {
                let record = self.record(name);
                // The drift may be one that only an import can show.
                record.refresh = true;
                let pause = record.lock_timed_out(reason, is_lock, now);
                self.wake_at = self.wake_at.min(now + pause);
            }
            JobOutcome::Waits => {
                self.record(name).refresh = true;
                self.wake_soon(now);
            }
            JobOutcome::Cancelled => {
                commands.push(Command::FilesUnread(name.to_owned()));
                again = true;
                self.wake_soon(now);
            }
        }
        let record = self.record(name);
        if record.probe == Some(ManualProbe::AfterImport) {
            record.probe = Some(ManualProbe::Requested);
            let names = vec![name.to_owned()];
            commands.push(Command::Probe(ProbeCommand::Request(names)));
        }
        self.is_pass_due |= again;
        commands.extend(self.report_start(now));
        commands.extend(self.answers(now));
        commands
    }

    /// Removes the record of a crash once a later attempt of the connection has ended.
    fn crash_is_over(&mut self, name: &str, outcome: &JobOutcome) -> Vec<Command> {
        let is_answered = matches!(
            outcome,
            JobOutcome::Done | JobOutcome::Same | JobOutcome::Failed { kind: Some(_), .. }
        );
        if !is_answered || !std::mem::take(&mut self.record(name).crashed) {
            return Vec::new();
        }
        self.unforgotten_crashes.insert(name.to_owned());
        vec![Command::ForgetCrash(name.to_owned())]
    }

    fn job_failed(
        &mut self,
        name: &str,
        target_hash: String,
        error: String,
        kind: Option<FailureKind>,
        now: u64,
    ) -> Option<Command> {
        self.requests.failed(name, &error);
        let schedule = self.schedule(name);
        // The retries of many failed attempts are spread over time.
        let least_pause = self.failures() as u64 * 1_000 / u64::from(PROBES_PER_SECOND);
        let record = self.record(name);
        let failure = Failure::after(
            record.failure.as_ref(),
            target_hash.clone(),
            error.clone(),
            kind.map(|kind| (kind, schedule)),
            least_pause,
            now,
        );
        record.failure = Some(failure);
        if let Some(at) = record.next_due() {
            self.wake_at = self.wake_at.min(at);
        }
        match kind {
            Some(FailureKind::Authentication) => self.report_rejection(name, target_hash, error),
            Some(FailureKind::Other) | None => None,
            Some(_) => self.import_ended(name, false),
        }
    }

    fn import_ended(&self, name: &str, answered: bool) -> Option<Command> {
        let name = name.to_owned();
        let ended = ProbeCommand::ImportEnded { name, answered };
        self.has_probes.then_some(Command::Probe(ended))
    }

    fn report_rejection(
        &mut self,
        name: &str,
        target_hash: String,
        error: String,
    ) -> Option<Command> {
        let record = self.record(name);
        let is_requested = record
            .probe
            .is_some_and(|probe| probe != ManualProbe::Requested);
        if is_requested {
            record.probe = Some(ManualProbe::Requested);
        }
        let rejected = ProbeCommand::CredentialsRejected {
            name: name.to_owned(),
            target_hash,
            error,
            is_requested,
        };
        self.has_probes.then_some(Command::Probe(rejected))
    }

    /// Records that a probe's credentials were rejected. No import sends them again: a job that has
    /// not asked its source yet is cancelled.
    pub(super) fn credentials_rejected(
        &mut self,
        name: &str,
        target_hash: String,
        error: String,
        now: u64,
    ) -> Vec<Command> {
        let waits =
            |job: &&mut RunningJob| job.asked_at.is_none() && job.does.imports(&target_hash);
        let running = (self.connections.get_mut(name)).and_then(|record| record.job.as_mut());
        let cancelled = running.filter(waits).and_then(|job| job.cancel(name));
        let place = |one: &WatchedSource| one.connection.name.as_str().cmp(name);
        let watched = (self.watched.binary_search_by(place)).map(|place| &self.watched[place]);
        // The answer may concern an earlier target, whose job may still be waiting.
        if watched.map_or("", |one| one.connection.target_hash()) != target_hash {
            return cancelled.into_iter().collect();
        }
        let import = Some((FailureKind::Authentication, self.schedule(name)));
        let record = self.record(name);
        // A client waits for this answer.
        let is_awaited = (record.probe).take_if(|probe| *probe != ManualProbe::Requested);
        let before = record.failure.as_ref();
        let failure = Failure::after(before, target_hash.clone(), error.clone(), import, 0, now);
        record.failure = Some(failure);
        if is_awaited.is_some() || cancelled.is_some() {
            self.requests.failed(name, &error);
        }
        // The probe may have begun before its source was watched again.
        let rejected = self.report_rejection(name, target_hash, error);
        cancelled.into_iter().chain(rejected).collect()
    }

    /// Handles the answer of drift detection. Another pass is needed if something was deferred for it, or
    /// if a connection without a running job has drifted.
    pub(super) fn drift_answered(&mut self, drift: DriftReport, now: u64) -> Vec<Command> {
        self.drift_took = drift.took;
        if self.needs_drift || drift.names.keys().any(|name| !self.is_running(name)) {
            self.drift = Some(drift);
            self.is_pass_due = true;
            return Vec::new();
        }
        let mut commands = self.drift_settled(&drift, now);
        commands.push(Command::ReportNoDrift { pass: drift.pass });
        commands
    }

    /// Answers requests that waited for drift detection.
    pub(super) fn drift_settled(&mut self, drift: &DriftReport, now: u64) -> Vec<Command> {
        if !self.is_deferred {
            self.requests.passed(drift.pass);
        }
        self.answers(now)
    }

    /// Records that a connection's requested probe is answered.
    pub(super) fn probe_answered(&mut self, name: &str, now: u64) -> Vec<Command> {
        if let Some(record) = self.connections.get_mut(name) {
            record.probe = None;
        }
        self.answers(now)
    }

    /// Returns the answers to requests whose work has ended.
    fn answers(&mut self, now: u64) -> Vec<Command> {
        let mut requests = std::mem::take(&mut self.requests);
        let answers = requests.answer(self, now);
        self.requests = requests;
        (answers.into_iter())
            .map(|(id, error)| Command::Answer { id, error })
            .collect()
    }

    /// Reports the start once the jobs of the first pass have ended, except slow ones.
    pub(super) fn report_start(&mut self, now: u64) -> Option<Command> {
        let is_over = || {
            !self
                .connections
                .values()
                .any(|record| record.has_fast_job(now))
        };
        if self.is_start_reported || self.awaits_preparation || !is_over() {
            return None;
        }
        self.is_start_reported = true;
        let running = self.running_jobs();
        Some(Command::ReportStart { running })
    }
}
