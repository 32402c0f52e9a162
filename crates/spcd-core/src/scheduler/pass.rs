//! A pass: observes everything, plans, publishes and starts jobs.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::record::{ManualProbe, NextAttempt, RunningJob};
use super::requests::{Action, Request};
use super::state::{PassInProgress, State};
use super::{Command, DriftReport, ProbeCommand, Urgency, WatchedSource};
use crate::config::DesiredState;
use crate::health::ProbeOptions;
use crate::observed::Observed;
use crate::planner::{self, Plan, Task, Work};

/// Input of a pass.
#[derive(Debug, Default)]
pub struct PassInput {
    /// The desired state.
    pub desired: Arc<DesiredState>,
    /// The observed state.
    pub observed: Observed,
    /// The diagnostics, as the rows of `spcd.config_diagnostic`.
    pub diagnostics: Value,
    /// The files of csv connections.
    pub files: Files,
    /// The health options of connections that have none.
    pub health: ProbeOptions,
    /// The drift, if it is known. It is marked in `observed`, too.
    pub drift: Option<DriftReport>,
}

/// Result of looking up the files of csv connections.
#[derive(Debug, Default)]
pub struct Files {
    /// Connections whose files have changed, and whether files had been read before.
    pub changed: Vec<(String, bool)>,
    /// Connections whose look-up has not ended yet.
    pub late: Vec<String>,
    /// Time until the next look-up is due, in milliseconds.
    pub again: Option<u64>,
}

/// Result of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassOutcome {
    /// Number of the pass since the lead was taken.
    pub pass: u64,
    /// Number of desired connections.
    pub connections: usize,
    /// Number of connections that have drifted, if known.
    pub drifted: Option<usize>,
    /// Number of changed rows.
    pub rows: usize,
    /// Number of started jobs.
    pub work: usize,
    /// Number of running jobs.
    pub running: usize,
    /// Nothing differed, and no job runs.
    pub is_idle: bool,
    /// Work waits for extensions or lanes that are being changed; the next pass starts it.
    pub awaits_preparation: bool,
}

impl State {
    /// Begins a pass. Requests are read first, so that the pass observes files that were saved before them.
    pub(super) fn begin_pass(&mut self, now: u64) -> Vec<Command> {
        self.is_pass_due = false;
        self.retry_at = None;
        self.pass += 1;
        self.pass_began = now;
        self.wake_at = u64::MAX;
        vec![Command::ReadRequests {
            open: self.requests.ids(),
        }]
    }

    /// Continues a pass whose requests are read.
    pub(super) fn requested(
        &mut self,
        requests: Vec<(i64, Request)>,
        is_crowded: bool,
    ) -> Vec<Command> {
        self.requests.is_crowded = is_crowded;
        for (id, request) in requests {
            self.requests.open(id, &request, self.pass);
            self.requested.push(request);
        }
        let waits = self.waits_for_drift || !self.has_passed;
        let drift = self.drift.take();
        let is_awaited = self.requests.is_pass_awaited();
        let mut commands = Vec::new();
        // Concurrently with the observation if a client waits for both.
        if waits && drift.is_none() || drift.is_none() && is_awaited {
            commands.push(Command::AskDrift {
                pass: self.pass,
                is_urgent: true,
            });
        }
        let command = Command::ObserveAll {
            waits_for_drift: waits && drift.is_none(),
            drift,
            is_awaited,
        };
        commands.push(self.begin_observation(command));
        commands
    }

    /// Plans after the observation.
    ///
    /// Drift detection takes about 10 times as long as the rest of the observation. Without its answer,
    /// the plan assumes that nothing has drifted, and defers what depends on that to another pass.
    pub(super) fn all_observed(&mut self, input: PassInput, now: u64) -> Vec<Command> {
        let PassInput {
            desired,
            mut observed,
            diagnostics,
            files,
            health,
            drift,
        } = input;
        if let Some(drift) = &drift {
            self.drift_took = drift.took;
        }
        self.desired = Some(desired.clone());
        self.confirm_at = None;
        // Before anything in this pass schedules another one, be it for this very moment.
        self.later = self.later.filter(|later| *later > now);
        self.lanes.are_there = !observed.lanes.is_empty();
        self.follow_members(&desired);
        // A client may send any names: unknown ones take no memory.
        let mut requested = std::mem::take(&mut self.requested);
        for names in requested.iter_mut().filter_map(|one| one.names.as_mut()) {
            names.retain(|name| is_known(&desired, &observed, name));
        }
        let requested = self.pause(requested);
        self.take_files(&desired, files, now);
        self.follow_mirrors(&desired);
        if !requested.is_empty() {
            let drops = self.retry_drops();
            self.await_found_work(drops, now);
        }
        self.reschedule(&desired, health, now);
        for request in requested {
            self.refresh(&desired, request);
        }
        self.merge_state(&desired, &mut observed, now);
        let connections = &self.connections;
        let is_paused = |name: &str| connections.get(name).is_some_and(|record| record.paused);
        (self.requests).check_names(|name| is_known(&desired, &observed, name), is_paused);
        let plan = planner::plan(&desired, &observed, &self.running(now));
        self.carry_out(plan, &desired, &observed, diagnostics, drift, now)
    }

    /// Turns a plan into commands, up to its publication.
    fn carry_out(
        &mut self,
        plan: Plan,
        desired: &Arc<DesiredState>,
        observed: &Observed,
        diagnostics: Value,
        drift: Option<DriftReport>,
        now: u64,
    ) -> Vec<Command> {
        self.drop_stale(observed, &plan, now);
        self.awaits_preparation = !plan.extensions.is_empty() || !plan.lanes.is_empty();
        let mut commands = self.unrecorded();
        commands.extend(self.follow_plan(&plan, now));
        if plan.admit {
            commands.push(Command::AdmitReaders);
        }
        commands.extend(plan.search_path.map(Command::SetSearchPath));
        let diagnostics = Some(diagnostics).filter(|new| self.diagnostics.as_ref() != Some(new));
        self.current = Some(PassInProgress {
            desired: desired.clone(),
            diagnostics: diagnostics.clone(),
            comments: match self.has_passed {
                true => Vec::new(),
                false => self.without_comments(observed),
            },
            rows: plan.rows.len(),
            is_complete: !plan.undecided,
            is_deferred: plan.defers_request,
            work: plan.work,
            drift: drift.clone(),
        });
        let is_empty =
            plan.rows.is_empty() && plan.refresh_fingerprints.is_empty() && diagnostics.is_none();
        let has_work = self
            .current
            .as_ref()
            .is_some_and(|pass| !pass.work.is_empty());
        match is_empty && !has_work {
            true => commands.extend(self.published(0, now)),
            false => commands.push(Command::Publish {
                refresh_fingerprints: with_fingerprints(plan.refresh_fingerprints, drift.as_ref()),
                rows: plan.rows,
                diagnostics,
            }),
        }
        if !plan.extensions.is_empty() {
            commands.push(Command::CreateExtensions(plan.extensions));
        }
        if !plan.lanes.is_empty() {
            commands.push(Command::ChangeLanes(plan.lanes));
        }
        commands
    }

    /// Records what a plan leaves to running jobs. Returns the commands that cancel jobs.
    fn follow_plan(&mut self, plan: &Plan, now: u64) -> Vec<Command> {
        if !plan.waiting.is_empty() {
            self.wake_by(State::found_until(now));
        }
        for name in &plan.waiting {
            self.record(name).waits_for_members = true;
        }
        let mut commands = Vec::new();
        for (name, record) in &mut self.connections {
            let Some(job) = &mut record.job else { continue };
            job.needs_follow_up |= plan.follow_up.contains(name);
            if plan.cancel.contains(name) {
                commands.extend(job.cancel(name));
            }
        }
        commands
    }

    /// Ends a pass whose changes are published: starts its jobs and answers requests.
    pub(super) fn published(&mut self, generation: i64, now: u64) -> Vec<Command> {
        if let Some(early) = self.early.take() {
            return self.start_early(early, generation, now);
        }
        let Some(pass) = self.current.take() else {
            return Vec::new();
        };
        let started = pass.work.len() + std::mem::take(&mut self.started_early);
        let mut commands = self.start_jobs(pass.work, &pass.desired, generation);
        if !pass.comments.is_empty() {
            commands.push(Command::Comment(pass.comments));
        }
        if self.has_probes {
            commands.extend(self.watch_sources(&pass.desired));
        }
        let (running, drift) = (self.running_jobs(), pass.drift);
        commands.push(Command::Report(PassOutcome {
            pass: self.pass,
            connections: pass.desired.connections.len(),
            drifted: drift.as_ref().map(|drift| drift.names.len()),
            rows: pass.rows,
            work: started,
            running,
            is_idle: pass.rows == 0 && started == 0 && running == 0 && !self.awaits_preparation,
            awaits_preparation: self.awaits_preparation,
        }));
        if pass.diagnostics.is_some() {
            self.diagnostics = pass.diagnostics;
        }
        let is_asked = self.waits_for_drift || !self.has_passed || self.requests.is_pass_awaited();
        self.failed_writes = 0;
        self.has_passed = true;
        self.needs_drift = !pass.is_complete;
        self.is_deferred = pass.is_deferred;
        self.schedule_next_pass(now);
        commands.extend(self.report_start(now));
        match drift {
            Some(drift) => {
                commands.extend(self.drift_settled(&drift, now));
                // A request that was read since then needs a detection of its own.
                if self.requests.has_newer_than(drift.pass) {
                    commands.push(self.ask_drift(true));
                }
            }
            None if is_asked => {}
            // Deferred work waits for the answer.
            None => commands.push(self.ask_drift(self.needs_drift)),
        }
        commands
    }

    fn start_jobs(
        &mut self,
        work: Vec<Work>,
        desired: &DesiredState,
        generation: i64,
    ) -> Vec<Command> {
        let mut commands = Vec::with_capacity(work.len());
        for work in work {
            commands.push(self.start(work, desired, generation));
        }
        for (name, record) in &mut self.connections {
            if record.urgent && record.job.is_some() {
                commands.push(Command::Prioritize(name.clone()));
            }
            record.urgent &= self.awaits_preparation;
        }
        commands
    }

    fn ask_drift(&self, is_urgent: bool) -> Command {
        Command::AskDrift {
            pass: self.pass,
            is_urgent,
        }
    }

    pub(super) fn start(&mut self, work: Work, desired: &DesiredState, generation: i64) -> Command {
        let health = desired.connections.get(&work.name);
        let health = health.map_or(ProbeOptions::default(), |connection| connection.health);
        let record = self.record(&work.name);
        record.health = health;
        record.job = Some(RunningJob::of(&work));
        // A grant is no import.
        if !matches!(&work.task, Task::Grant { .. }) {
            record.refresh = false;
        }
        let urgency = match (record.urgent, work.is_refresh()) {
            (true, _) => Urgency::Requested,
            (false, false) => Urgency::Change,
            (false, true) => Urgency::Refresh,
        };
        Command::Start {
            work,
            generation,
            urgency,
        }
    }

    /// Carries out the parts of requests that concern pauses. Returns the refreshes.
    fn pause(&mut self, requested: Vec<Request>) -> Vec<Request> {
        let mut rest = Vec::new();
        for mut request in requested {
            let is_pause = match request.action {
                Action::Refresh => {
                    rest.push(request);
                    continue;
                }
                Action::Retry => {
                    for name in request.names.iter().flatten() {
                        self.record(name).failure = None;
                    }
                    rest.push(request);
                    continue;
                }
                Action::Disconnect => true,
                Action::Reconnect => false,
            };
            let names = self.with_members(request.names.take().unwrap_or_default());
            let has_probes = self.has_probes;
            for name in &names {
                self.unrecorded_pauses.insert(name.clone(), is_pause);
                let record = self.record(name);
                record.paused = is_pause;
                record.probe = (!is_pause && has_probes).then_some(ManualProbe::Pending);
            }
            if !is_pause {
                request.names = Some(names.into_iter().collect());
                rest.push(request);
            }
        }
        rest
    }

    /// Returns commands that record what could not be recorded when it happened.
    fn unrecorded(&self) -> Vec<Command> {
        let crashes = self.unforgotten_crashes.iter().cloned();
        let mut commands: Vec<Command> = crashes.map(Command::ForgetCrash).collect();
        for is_pause in [true, false] {
            let names: Vec<String> = (self.unrecorded_pauses.iter())
                .filter(|(_, paused)| **paused == is_pause)
                .map(|(name, _)| name.clone())
                .collect();
            if !names.is_empty() {
                commands.push(Command::RecordPause { names, is_pause });
            }
        }
        commands
    }

    /// Makes csv connections due whose files changed, even after failures. A request that waits for the
    /// pass also waits until the changed files are read, including those that are being read.
    fn take_files(&mut self, desired: &DesiredState, files: Files, now: u64) {
        for record in self.connections.values_mut() {
            record.files_late = false;
        }
        if self.requests.is_pass_awaited() {
            let is_csv = |name: &str| {
                let target = desired.connections.get(name)?.target.as_ref().ok()?;
                target.csv.as_ref()
            };
            let running = (self.connections.iter())
                .filter(|(name, record)| record.job.is_some() && is_csv(name).is_some())
                .map(|(name, _)| name);
            let changed = files.changed.iter().map(|(name, _)| name);
            let found: BTreeSet<String> = (changed.chain(&files.late).chain(running))
                .cloned()
                .collect();
            if !found.is_empty() {
                self.wake_by(State::found_until(now));
            }
            self.await_found_work(found, now);
        }
        for name in files.late {
            self.record(&name).files_late = true;
        }
        for (name, was_read) in files.changed {
            let record = self.record(&name);
            record.urgent |= was_read;
            if let Some(failure) = &mut record.failure {
                failure.next = NextAttempt::Due;
            }
            record.refresh = true;
        }
        if let Some(pause) = files.again {
            self.wake_by(now + pause);
        }
    }

    fn await_found_work(&mut self, names: BTreeSet<String>, now: u64) {
        if !names.is_empty() {
            self.requests
                .await_found_work(&names, State::found_until(now));
        }
    }

    /// Returns the connections that an earlier daemon left without comments.
    fn without_comments(&self, observed: &Observed) -> Vec<String> {
        let is_without = |name: &&String| {
            let known = observed.connections.get(*name);
            known.is_some_and(|known| known.applied.is_some() && !known.comments_set)
                && self.get(name).is_none_or(|record| !record.paused)
        };
        let names = observed.connections.keys();
        names.filter(is_without).cloned().collect()
    }

    /// Returns what the probes are to know of targets that they did not watch when an import's
    /// credentials were rejected.
    fn newly_watched_rejections(&self, before: &[WatchedSource]) -> Vec<(String, ProbeCommand)> {
        let before: BTreeSet<(&str, &str)> = before.iter().map(watched_target).collect();
        let new = (self.watched.iter())
            .filter(|one| !before.contains(&watched_target(one)))
            .map(|one| &one.connection);
        new.filter_map(|connection| {
            let failure = self.get(&connection.name)?.failure.as_ref()?;
            let is_rejected = failure.next == NextAttempt::OnRequest
                && failure.target_hash == connection.target_hash();
            let rejected = || ProbeCommand::CredentialsRejected {
                name: connection.name.clone(),
                target_hash: failure.target_hash.clone(),
                error: failure.error.clone(),
                is_requested: false,
            };
            is_rejected.then(|| (connection.name.clone(), rejected()))
        })
        .collect()
    }

    /// Returns the commands that keep the probes up to date.
    fn watch_sources(&mut self, desired: &DesiredState) -> Vec<Command> {
        let is_left_alone = |name: &str, is_enabled: bool| {
            let record = self.get(name);
            let is_shown = record.is_some_and(|record| record.shown);
            record.is_some_and(|record| record.paused || record.crashed)
                || !(is_enabled || is_shown)
        };
        let watched =
            WatchedSource::of_desired(desired, self.health_defaults, |name, connection| {
                is_left_alone(name, connection.enabled)
            });
        let mut commands = Vec::new();
        if watched != self.watched {
            let before = std::mem::replace(&mut self.watched, watched.clone());
            let names = watched.iter().map(|one| one.connection.name.as_str());
            let importing = names.filter(|name| self.is_running(name));
            let mut importing: BTreeSet<String> = importing.map(str::to_owned).collect();
            let rejected = self.newly_watched_rejections(&before);
            // No probe may start before the next command.
            importing.extend(rejected.iter().map(|(name, _)| name.clone()));
            commands.push(Command::Probe(ProbeCommand::Watch { watched, importing }));
            commands.extend(
                rejected
                    .into_iter()
                    .map(|(_, rejection)| Command::Probe(rejection)),
            );
        }
        for (name, record) in &mut self.connections {
            let place = |one: &WatchedSource| one.connection.name.as_str().cmp(name);
            if record.probe.is_some() && self.watched.binary_search_by(place).is_err() {
                record.probe = None;
            }
        }
        let names = self.take_due_probes();
        if !names.is_empty() {
            commands.push(Command::Probe(ProbeCommand::Request(names)));
        }
        commands
    }
}

/// Returns the name and the target of a watched source.
fn watched_target(source: &WatchedSource) -> (&str, &str) {
    (&source.connection.name, source.connection.target_hash())
}

/// Whether a connection has a block or a row.
fn is_known(desired: &DesiredState, observed: &Observed, name: &str) -> bool {
    observed.connections.contains_key(name) || desired.connections.contains_key(name)
}

/// Adds the observed fingerprints, so that later alterations are still detected.
fn with_fingerprints(
    refresh_fingerprints: Vec<String>,
    drift: Option<&DriftReport>,
) -> Vec<(String, Option<String>)> {
    let with_fingerprint = |name: String| {
        let fingerprint = drift.and_then(|drift| drift.names.get(&name)).cloned();
        (name, fingerprint)
    };
    refresh_fingerprints
        .into_iter()
        .map(with_fingerprint)
        .collect()
}
