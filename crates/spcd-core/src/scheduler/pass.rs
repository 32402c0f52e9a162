//! A pass: what is read, what follows from it, and what is put off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use spcd_protocol::Status;

use super::record::{ManualProbe, NextAttempt, RunningJob};
use super::requests::{Action, Request};
use super::state::{PassInProgress, State};
use super::{Command, DriftReport, ProbeCommand, WatchedSource};
use crate::config::Desired;
use crate::health::Options;
use crate::observed::Observed;
use crate::plan::{self, Plan, Task, Work};
use crate::search_path::PathChange;

/// What a pass reads.
#[derive(Debug, Default)]
pub struct Look {
    /// What the files want.
    pub desired: Arc<Desired>,
    /// What the database holds.
    pub observed: Observed,
    /// The diagnostics, as the rows of `spcd.config_diagnostic`.
    pub diagnostics: Value,
    /// The files of csv connections.
    pub files: Files,
    /// The health options of connections that have none.
    pub health: Options,
    /// What has drifted, if that is known. `observed` tells it, too.
    pub drift: Option<DriftReport>,
}

/// What a look at the files of csv connections found.
#[derive(Debug, Default)]
pub struct Files {
    /// Connections whose files are not those that were read, and whether any were.
    pub changed: Vec<(String, bool)>,
    /// Connections whose files have not shown up yet.
    pub late: Vec<String>,
    /// In how many milliseconds to look again although no event says so.
    pub again: Option<u64>,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassOutcome {
    /// Its number since the lead was taken.
    pub pass: u64,
    /// Connections that the files want.
    pub connections: usize,
    /// Connections that have drifted, if that is known.
    pub drifted: Option<usize>,
    /// Rows that it changed.
    pub rows: usize,
    /// Jobs that it started.
    pub work: usize,
    /// Running jobs.
    pub running: usize,
    /// Nothing differed and nothing is under way.
    pub is_idle: bool,
}

impl State {
    /// Begins a pass. Requests are read first: what was saved before one was made is then seen.
    pub(super) fn begin_pass(&mut self, now: u64) -> Vec<Command> {
        self.is_look_due = false;
        self.retry_at = None;
        self.pass += 1;
        self.pass_began = now;
        self.wake_at = u64::MAX;
        vec![Command::ReadRequests {
            open: self.requests.ids(),
        }]
    }

    /// Goes on with a pass whose requests are read.
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
        let is_awaited = self.requests.await_a_pass();
        let mut commands = Vec::new();
        // Beside the look, where a client waits for both.
        if waits && drift.is_none() || drift.is_none() && is_awaited {
            commands.push(Command::AskDrift {
                pass: self.pass,
                is_urgent: true,
            });
        }
        commands.push(Command::Look {
            waits_for_drift: waits && drift.is_none(),
            drift,
            is_awaited,
        });
        commands
    }

    /// Decides what follows from a look.
    ///
    /// To tell what has drifted takes about ten times as long as the rest of a look. What the files
    /// want is begun on the assumption that nothing has; what rests on it follows in another pass, to
    /// which the answer is given.
    pub(super) fn looked(&mut self, look: Look, now: u64) -> Vec<Command> {
        let Look {
            desired,
            mut observed,
            diagnostics,
            files,
            health,
            drift,
        } = look;
        if let Some(drift) = &drift {
            self.drift_took = drift.took;
        }
        self.follow_members(&desired);
        // Any client may name anything: nothing is kept for names that no connection has.
        let mut requested = std::mem::take(&mut self.requested);
        for names in requested.iter_mut().filter_map(|one| one.names.as_mut()) {
            names.retain(|name| is_known(&desired, &observed, name));
        }
        let requested = self.pause(requested);
        self.take_files(&desired, files, now);
        if !requested.is_empty() {
            let drops = self.retry_drops();
            self.await_found(drops, now);
        }
        self.reschedule(&desired, health, now);
        for request in requested {
            self.refresh(&desired, request);
        }
        self.merge_state(&desired, &mut observed, now);
        let connections = &self.connections;
        let is_paused = |name: &str| connections.get(name).is_some_and(|record| record.paused);
        (self.requests).looked(|name| is_known(&desired, &observed, name), is_paused);
        let plan = plan::plan(&desired, &observed);
        if !plan.extensions.is_empty() {
            // Their versions are recorded with what is asked of them: another look is needed.
            self.drift = drift;
            return vec![Command::CreateExtensions(plan.extensions)];
        }
        self.carry_out(plan, &desired, &observed, diagnostics, drift, now)
    }

    /// Turns a plan into commands, up to its publication.
    fn carry_out(
        &mut self,
        mut plan: Plan,
        desired: &Arc<Desired>,
        observed: &Observed,
        diagnostics: Value,
        drift: Option<DriftReport>,
        now: u64,
    ) -> Vec<Command> {
        self.drop_stale(observed, &plan, now);
        let mut commands = self.unrecorded();
        let (mut is_complete, is_deferred) =
            self.reconcile_jobs(&plan, desired, drift.is_some(), &mut commands);
        is_complete &= !plan.undecided;
        is_complete &= self.filter_plan(&mut plan, drift.is_some(), now);
        if plan.admit {
            commands.push(Command::AdmitReaders);
        }
        commands.extend(plan.search_path.and_then(|change| self.untried(change)));
        let diagnostics = Some(diagnostics).filter(|news| self.diagnostics.as_ref() != Some(news));
        self.current = Some(PassInProgress {
            desired: desired.clone(),
            diagnostics: diagnostics.clone(),
            comments: match self.has_passed {
                true => Vec::new(),
                false => self.without_comments(observed),
            },
            rows: plan.rows.len(),
            is_complete,
            is_deferred,
            work: plan.work,
            drift: drift.clone(),
        });
        let is_empty = plan.rows.is_empty() && plan.touched.is_empty() && diagnostics.is_none();
        let has_work = self
            .current
            .as_ref()
            .is_some_and(|pass| !pass.work.is_empty());
        match is_empty && !has_work {
            true => commands.extend(self.published(0, now)),
            false => commands.push(Command::Publish {
                touched: with_looks(plan.touched, drift.as_ref()),
                rows: plan.rows,
                diagnostics,
            }),
        }
        commands
    }

    /// Leaves out what has to wait. Returns whether nothing waits until it is known what has drifted.
    fn filter_plan(&mut self, plan: &mut Plan, is_drift_known: bool, now: u64) -> bool {
        if !plan.waiting.is_empty() {
            self.wake_by(State::found_until(now));
        }
        for name in &plan.waiting {
            self.record(name).waits_for_members = true;
        }
        plan.touched.retain(|name| !self.is_running(name));
        // A running job writes itself how it ends, and what the row repeats of the files comes after that.
        plan.rows.retain(|row| {
            let record = self.connections.get_mut(&row.name);
            let Some(job) = record.and_then(|record| record.job.as_mut()) else {
                return true;
            };
            job.look_again |= row.written.is_some() || row.warnings.is_some();
            false
        });
        // Whatever causes a pass, a lock is left to its holder until the pause is over.
        plan.work.retain(|work| {
            let record = self.get(&work.name);
            record.is_none_or(|record| record.job.is_none() && !record.waits_for_lock(now))
        });
        if is_drift_known {
            return true;
        }
        let all = plan.rows.len();
        (plan.rows).retain(|row| row.route.last() != Some(&Status::Ready));
        plan.rows.len() == all
    }

    /// Ends a pass whose changes are published: starts its jobs, and answers who waited for it.
    pub(super) fn published(&mut self, generation: i64, now: u64) -> Vec<Command> {
        let Some(pass) = self.current.take() else {
            return Vec::new();
        };
        let started = pass.work.len();
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
            is_idle: pass.rows == 0 && started == 0 && running == 0,
        }));
        if pass.diagnostics.is_some() {
            self.diagnostics = pass.diagnostics;
        }
        let is_asked = self.waits_for_drift || !self.has_passed || self.requests.await_a_pass();
        self.failed_writes = 0;
        self.has_passed = true;
        self.needs_drift = !pass.is_complete || pass.is_deferred;
        self.is_deferred = pass.is_deferred;
        self.schedule_next_look(now);
        commands.extend(self.report_start(now));
        match drift {
            Some(drift) => {
                commands.extend(self.drift_settled(&drift, now));
                // Who asked since then wants an answer of their own.
                if self.requests.came_after(drift.pass) {
                    commands.push(self.ask_drift(true));
                }
            }
            None if is_asked => {}
            None => commands.push(self.ask_drift(false)),
        }
        commands
    }

    fn start_jobs(&mut self, work: Vec<Work>, desired: &Desired, generation: i64) -> Vec<Command> {
        let mut commands = Vec::with_capacity(work.len());
        for work in work {
            commands.push(self.start(work, desired, generation));
        }
        for (name, record) in &mut self.connections {
            if std::mem::take(&mut record.urgent) && record.job.is_some() {
                commands.push(Command::Prioritize(name.clone()));
            }
        }
        commands
    }

    fn ask_drift(&self, is_urgent: bool) -> Command {
        Command::AskDrift {
            pass: self.pass,
            is_urgent,
        }
    }

    fn start(&mut self, work: Work, desired: &Desired, generation: i64) -> Command {
        let health = desired.connections.get(&work.name);
        let health = health.map_or(Options::default(), |connection| connection.health);
        let record = self.record(&work.name);
        record.health = health;
        record.job = Some(RunningJob::of(&work));
        if matches!(&work.task, Task::Import(_) | Task::Unite(_)) {
            record.refresh = false;
        }
        Command::Start {
            is_urgent: record.urgent,
            work,
            generation,
        }
    }

    /// Cancels running jobs that are not what the plan wants. Returns whether all of that could be
    /// decided, and whether something has to wait until a job has ended.
    ///
    /// A source that is asked although nothing differs is no work that a plan would name: it goes on as
    /// long as its target is wanted. As long as drift is unknown, no job seems needless.
    fn reconcile_jobs(
        &mut self,
        plan: &Plan,
        desired: &Desired,
        is_drift_known: bool,
        commands: &mut Vec<Command>,
    ) -> (bool, bool) {
        let (mut is_complete, mut is_deferred) = (true, false);
        let planned: BTreeMap<&str, &Work> =
            (plan.work.iter().map(|work| (work.name.as_str(), work))).collect();
        for (name, record) in &mut self.connections {
            let Some(job) = &mut record.job else { continue };
            let wanted = desired.connections.get(name);
            let is_wanted = (wanted.is_some_and(|connection| connection.enabled) || record.shown)
                && !record.paused;
            let target = if is_wanted {
                desired.target_hash(name)
            } else {
                ""
            };
            let is_same = match planned.get(name.as_str()) {
                Some(work) => RunningJob::of(work).key == job.key,
                None => job.is_refresh_of(target),
            };
            if is_same {
                job.look_again |= record.refresh;
                is_deferred |= record.refresh;
            } else if !planned.contains_key(name.as_str()) && !is_drift_known {
                is_complete = false;
            } else {
                commands.extend(job.cancel(name));
                is_deferred = true;
            }
        }
        (is_complete, is_deferred)
    }

    /// Carries out what requests say about pauses. Returns the requests to ask sources.
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
                record.probe = (!is_pause && has_probes).then_some(ManualProbe::Wanted);
            }
            if !is_pause {
                request.names = Some(names.into_iter().collect());
                rest.push(request);
            }
        }
        rest
    }

    /// Returns what is to be recorded, and could not be when it happened.
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

    /// Has csv connections asked whose files changed: now, whatever failed before. A client that waits
    /// for the pass waits until those that changed are read, too, also where that has begun already.
    fn take_files(&mut self, desired: &Desired, files: Files, now: u64) {
        for record in self.connections.values_mut() {
            record.files_late = false;
        }
        if self.requests.await_a_pass() {
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
            self.await_found(found, now);
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

    fn await_found(&mut self, names: BTreeSet<String>, now: u64) {
        if !names.is_empty() {
            self.requests.await_found(&names, State::found_until(now));
        }
    }

    /// Returns the command for search paths, without roles for which just that was refused before.
    fn untried(&self, mut change: PathChange) -> Option<Command> {
        let was_refused = |role: &String| self.refused_paths.get(role) == Some(&change.hash);
        change.set.retain(|role| !was_refused(role));
        change.reset.retain(|role| !was_refused(role));
        let is_idle = change.is_empty() && change.forget.is_empty() && change.touched.is_empty();
        (!is_idle).then_some(Command::SetSearchPath(change))
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

    /// Returns what the probes are to know of sources that they did not watch when an import's
    /// credentials were rejected.
    fn newly_watched_rejections(&self, before: &[WatchedSource]) -> Vec<ProbeCommand> {
        let names = before.iter().map(|one| one.connection.name.as_str());
        let before: BTreeSet<&str> = names.collect();
        let new = (self.watched.iter())
            .map(|one| &one.connection)
            .filter(|connection| !before.contains(connection.name.as_str()));
        new.filter_map(|connection| {
            let failure = self.get(&connection.name)?.failure.as_ref()?;
            let is_rejected = failure.next == NextAttempt::OnRequest
                && failure.target_hash == connection.target_hash();
            is_rejected.then(|| ProbeCommand::CredentialsRejected {
                name: connection.name.clone(),
                target_hash: failure.target_hash.clone(),
                error: failure.error.clone(),
                is_requested: false,
            })
        })
        .collect()
    }

    /// Returns the commands that keep the probes up to date.
    fn watch_sources(&mut self, desired: &Desired) -> Vec<Command> {
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
            let importing = importing.map(str::to_owned).collect();
            let rejected = self.newly_watched_rejections(&before);
            commands.push(Command::Probe(ProbeCommand::Watch { watched, importing }));
            commands.extend(rejected.into_iter().map(Command::Probe));
        }
        for (name, record) in &mut self.connections {
            let place = |one: &WatchedSource| one.connection.name.as_str().cmp(name);
            if record.probe.is_some() && self.watched.binary_search_by(place).is_err() {
                record.probe = None;
            }
        }
        let names = self.wanted_probes();
        if !names.is_empty() {
            commands.push(Command::Probe(ProbeCommand::Request(names)));
        }
        commands
    }
}

/// Whether the files or the database have a connection.
fn is_known(desired: &Desired, observed: &Observed, name: &str) -> bool {
    observed.connections.contains_key(name) || desired.connections.contains_key(name)
}

/// Returns the fingerprints that were found: what is altered after that is still found later.
fn with_looks(touched: Vec<String>, drift: Option<&DriftReport>) -> Vec<(String, Option<String>)> {
    let with_look = |name: String| {
        let look = drift.and_then(|drift| drift.names.get(&name)).cloned();
        (name, look)
    };
    touched.into_iter().map(with_look).collect()
}
