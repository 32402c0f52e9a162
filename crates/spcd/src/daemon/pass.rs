//! A pass: a look, a plan, and the work that follows from it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde_json::{Value, json};
use spcd_core::config::{Connection, Desired, Diagnostic, Severity};
use spcd_core::health::Kind;
use spcd_core::observed::Observed;
use spcd_core::plan::{self, Plan, Task, Work};
use spcd_core::search_path::PathChange;
use spcd_core::sql;
use spcd_protocol::Status;
use tokio::time::Instant;

use super::drift::Altered;
use super::jobs::{self, Failure, Finished, Outcome};
use super::look::{self, Look};
use super::memory::{Aggregators, Memory};
use super::requests::{Action, Asked};
use super::{Passed, Reign};
use crate::hub::{HubError, apply, crash, inputs, observe, probe, search_path, steampipe};
use crate::telemetry::{self, Observation};
use crate::watch::Watcher;

/// What came of one plan.
#[derive(Default)]
struct Carried {
    /// Nothing was held back for want of knowing what was altered.
    complete: bool,
    /// Connections for which something else has to end first.
    deferred: BTreeSet<String>,
    rows: usize,
    work: usize,
}

impl Reign<'_> {
    /// One look, and what follows from it.
    ///
    /// Whether something was altered behind our back takes ten times as long to tell as what the
    /// files want. So what they want is begun on the assumption that nothing was, and what rests on
    /// it follows in another pass, to which the answer is given. One that is to `wait` does it all.
    pub(super) async fn pass(
        &mut self,
        watcher: Option<&mut Watcher>,
        altered: Option<Altered>,
        wait: bool,
    ) -> Result<Passed, HubError> {
        let began = Instant::now();
        self.passes += 1;
        let client = &self.lead.control.client;
        // Requests first: what was saved before one was made is then seen by this pass.
        let mut asked = self.requests.read(client, self.passes).await?;
        // Beside the look, where somebody waits for both.
        let asked_early = wait || (altered.is_none() && self.requests.await_a_look());
        if asked_early {
            self.drift.ask(self.passes, began, false);
        }
        let Look {
            desired,
            diagnostics,
            mut observed,
            inputs,
        } = look::look(self.config, client, &mut self.inputs, watcher).await?;
        if inputs != self.inputs {
            // Before anything is made of it: what follows must not vanish unseen.
            let epoch = self.lead.epoch;
            inputs::write(client, epoch, &self.inputs, &inputs).await?;
            self.inputs = inputs;
        }
        let diagnostics = diagnostics_json(&diagnostics);
        self.memory.aggregators = Aggregators::of(&desired);
        // Anybody may ask for anything: nothing is done for names that no connection has.
        let is_known = |name: &str| {
            observed.connections.contains_key(name) || desired.connections.contains_key(name)
        };
        for names in asked.iter_mut().filter_map(|asked| asked.names.as_mut()) {
            names.retain(|name| is_known(name));
        }
        let (asked, reconnected) = self.hold(asked).await?;
        self.tunnels.keep(&desired);
        self.look_at_files(&desired).await;
        if !asked.is_empty() {
            let until = Instant::now() + jobs::PATIENCE;
            let drops = self.memory.retry_drops();
            self.requests.await_found(drops.iter(), until);
        }
        let defaults = *self.health.borrow();
        self.memory.reschedule(&desired, defaults);
        self.memory.recall(&desired, &mut observed, asked);
        self.jobs.recall_blocked(&mut observed);
        let is_known = |name: &str| {
            observed.connections.contains_key(name) || desired.connections.contains_key(name)
        };
        self.requests.looked(is_known, &self.memory.held);
        let looked = began.elapsed();

        let altered = match altered {
            None if wait => Some(self.drift.answer().await?),
            altered => altered,
        };
        if let Some(altered) = &altered {
            observed.mark(altered.names.keys());
            let client = &self.lead.control.client;
            observe::complete(client, &desired, &mut observed).await?;
        }
        let carried = self
            .carry_out(&desired, &mut observed, &diagnostics, altered.as_ref())
            .await?;
        self.memory.urgent.clear();
        self.failed_writes = 0;
        if self.passes == 1 {
            self.comment(&desired, &observed);
        }
        self.watch_sources(&desired, &reconnected);
        self.noticed = None;
        telemetry::observe(Observation::Passed {
            pass: self.passes,
            connections: desired.connections.len(),
            altered: altered.as_ref().map(|altered| altered.names.len()),
            rows: carried.rows,
            work: carried.work,
            under_way: self.jobs.len(),
            look: looked,
            took: began.elapsed(),
        });
        self.log_first_pass().await?;
        let idle = carried.rows == 0 && carried.work == 0 && self.jobs.len() == 0;
        self.held = !carried.complete || !carried.deferred.is_empty();
        self.is_deferred = !carried.deferred.is_empty();
        match altered {
            Some(altered) => {
                if self.passed(&altered).await? {
                    self.memory.wake_after(Duration::ZERO);
                }
                // Who asked since then wants an answer of their own.
                if self.requests.came_after(altered.pass) {
                    self.drift.ask(self.passes, began, false);
                }
            }
            None if asked_early => {}
            None => self.drift.ask(self.passes, began, true),
        }
        Ok(Passed { idle })
    }

    /// Looks at the files of csv connections. A client that asked for a look waits until those that
    /// changed are read, too, also where that has begun already.
    async fn look_at_files(&mut self, desired: &Desired) {
        let awaited = self.requests.await_a_look();
        let changed = self.csv.look(desired, awaited).await;
        if awaited {
            let names = changed.names.iter().map(|(name, _)| name);
            let read = self.csv.names().filter(|name| self.jobs.is_running(name));
            let found: Vec<&String> = names.chain(&changed.late).chain(read).collect();
            let until = Instant::now() + jobs::PATIENCE;
            self.requests.await_found(found.iter().copied(), until);
            if !found.is_empty() {
                self.memory.wake_after(jobs::PATIENCE);
            }
        }
        self.memory.notice(changed);
    }

    /// Leaves sources alone as somebody asked, or no longer. Returns what else was asked for, and whom
    /// to try now.
    async fn hold(
        &mut self,
        asked: Vec<Asked>,
    ) -> Result<(Vec<Asked>, BTreeSet<String>), HubError> {
        let (mut rest, mut reconnected) = (Vec::new(), BTreeSet::new());
        for mut asked in asked {
            if asked.action == Action::Retry {
                for name in asked.names.iter().flatten() {
                    self.memory.retry(name);
                }
            }
            if matches!(asked.action, Action::Refresh | Action::Retry) {
                rest.push(asked);
                continue;
            }
            let names = asked.names.take().unwrap_or_default();
            let names = self.memory.aggregators.with_members(names);
            let held = asked.action == Action::Disconnect;
            let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
            probe::hold(client, epoch, &names, held).await?;
            for name in &names {
                match held {
                    true => {
                        tracing::info!(connection = name, "its source is left alone from now on");
                        reconnected.remove(name);
                        self.memory.held.insert(name.clone());
                        self.jobs.leave_comments(name);
                    }
                    false => {
                        tracing::info!(connection = name, "its source is to be tried now");
                        reconnected.insert(name.clone());
                        self.memory.held.remove(name);
                    }
                }
            }
            if !held {
                asked.names = Some(names);
                rest.push(asked);
            }
        }
        Ok((rest, reconnected))
    }

    /// Says whose source is to be watched from now on.
    fn watch_sources(&mut self, desired: &Desired, again: &BTreeSet<String>) {
        let Some(probes) = &mut self.probes else {
            return;
        };
        let Memory {
            held,
            crashed,
            aggregators,
            ..
        } = &self.memory;
        let is_left_alone = |name: &str, connection: &Connection| {
            held.contains(name)
                || crashed.contains(name)
                || !(connection.enabled || aggregators.show(name))
        };
        let is_running = |name: &str| self.jobs.is_running(name);
        let defaults = self.memory.health.defaults;
        probes.follow(desired, defaults, is_left_alone, is_running);
        probes.request(again, is_running);
    }

    /// Whether another pass is needed now that it is known what was altered. If not, that is what
    /// those who asked for a look waited for.
    pub(super) async fn follow(&mut self, altered: &Altered) -> Result<bool, HubError> {
        if self.held || altered.names.keys().any(|name| !self.jobs.is_running(name)) {
            return Ok(true);
        }
        if self.passed(altered).await? {
            return Ok(true);
        }
        tracing::debug!(
            pass = altered.pass,
            micros = altered.since().as_micros() as u64,
            "nothing was altered"
        );
        Ok(false)
    }

    /// Returns whether the answers made room for requests that are queued.
    async fn passed(&mut self, altered: &Altered) -> Result<bool, HubError> {
        if !self.is_deferred {
            self.requests.passed(altered.pass);
        }
        self.answer_requests().await
    }

    /// Plans, publishes, and begins the work. Without knowing what was `altered` nothing
    /// that is said becomes `ready`, and nothing under way is stopped because it seems needless.
    async fn carry_out(
        &mut self,
        desired: &Desired,
        observed: &mut Observed,
        diagnostics: &Value,
        altered: Option<&Altered>,
    ) -> Result<Carried, HubError> {
        let sure = altered.is_some();
        observed.slow = self.jobs.brisk_and_slow().1.cloned().collect();
        let mut plan = plan::plan(desired, observed);
        if !plan.extensions.is_empty() {
            self.create_extensions(&plan.extensions).await?;
            // Their versions are recorded with what is asked of them, so they must be known first.
            let client = &self.lead.control.client;
            observe::complete(client, desired, observed).await?;
            self.memory.recall_extensions(observed);
            plan = plan::plan(desired, observed);
        }
        self.memory.forget(observed, &plan, &self.jobs);
        if self.jobs.forget_blocked(&plan) {
            self.memory.wake_later();
        }
        let mut carried = Carried {
            complete: true,
            ..Carried::default()
        };
        let running: Vec<String> = self.jobs.names().cloned().collect();
        let planned: HashMap<&str, &Work> = match running.is_empty() {
            true => HashMap::new(),
            false => (plan.work.iter().map(|work| (work.name.as_str(), work))).collect(),
        };
        for name in running {
            let work = planned.get(name.as_str()).copied();
            let wanted = desired.connections.get(&name);
            let is_wanted = (wanted.is_some_and(|connection| connection.enabled)
                || self.memory.aggregators.show(&name))
                && !self.memory.held.contains(&name);
            let target = match is_wanted {
                true => desired.target_hash(&name),
                false => "",
            };
            let ask = self.memory.ask.contains(&name);
            if work.is_none() && !sure && !self.jobs.is_refresh(&name, target) {
                carried.complete = false;
            } else if self.jobs.settle_with(&name, work, target, ask) {
                carried.deferred.insert(name);
            }
        }
        let Plan {
            admit,
            extensions: _,
            mut rows,
            mut touched,
            work,
            search_path,
            waiting,
            undecided,
        } = plan;
        carried.complete &= !undecided;
        touched.retain(|name| !self.jobs.is_running(name));
        if !waiting.is_empty() {
            self.memory.wake_after(jobs::PATIENCE);
        }
        self.memory.aggregators.waiting = waiting;
        // What is under way says itself how it ends.
        rows.retain(|row| !self.jobs.is_running(&row.name));
        if !sure {
            let all = rows.len();
            rows.retain(|row| row.route.last() != Some(&Status::Ready));
            carried.complete &= rows.len() == all;
        }
        // Whatever wakes the loop, what stood in the way is left alone until its pause is over.
        let now = Instant::now();
        let work: Vec<Work> = (work.into_iter())
            .filter(|work| {
                !self.jobs.is_running(&work.name) && !self.memory.is_paused(&work.name, now)
            })
            .collect();

        if admit {
            let admit = "SELECT spcd.admit_readers()";
            self.lead.control.client.batch_execute(admit).await?;
        }
        if let Some(change) = search_path {
            self.set_search_path(change).await?;
        }
        if let Some(steampipe) = &mut self.steampipe {
            let wanted = steampipe::Wanted::of(desired, observed);
            let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
            steampipe.follow(client, epoch, wanted).await?;
        }
        let news = (self.memory.diagnostics.as_ref() != Some(diagnostics)).then_some(diagnostics);
        let writes = !rows.is_empty() || !touched.is_empty() || news.is_some();
        let mut generation = 0;
        if writes || !work.is_empty() {
            let next = "SELECT pg_catalog.nextval('spcd.generation')";
            generation = self.lead.control.client.query_one(next, &[]).await?.get(0);
        }
        if writes {
            let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
            // As they were before they were looked at: what was altered since then is still to be found.
            let looks = altered.map(|altered| &altered.names);
            let look = |name: &String| looks.and_then(|looks| looks.get(name)).map(String::as_str);
            let touched: Vec<_> = touched
                .iter()
                .map(|name| (name.as_str(), look(name)))
                .collect();
            apply::publish(client, epoch, generation, &rows, &touched, news).await?;
            self.memory.diagnostics = Some(diagnostics.clone());
            self.log_rows(desired, &rows);
        }
        (carried.rows, carried.work) = (rows.len(), work.len());
        for work in work {
            if let Task::Import(_) = &work.task {
                self.csv.reading(&work.name);
            }
            if matches!(&work.task, Task::Import(_) | Task::Unite(_)) {
                self.memory.ask.remove(&work.name);
            }
            let refresh =
                matches!(&work.task, Task::Import(import) if import.why == plan::Why::Refresh);
            if let Some(noticed) = self.noticed.filter(|_| !refresh) {
                self.following.insert(work.name.clone(), noticed);
            }
            let urgent = self.memory.urgent.contains(&work.name);
            let connection = desired.connections.get(&work.name).cloned();
            self.jobs.start(work, connection, generation, urgent);
        }
        for name in &self.memory.urgent {
            self.jobs.hurry(name);
        }
        Ok(carried)
    }

    /// Has the comments looked for of connections that are there without: a daemon before this one
    /// did not come to it.
    fn comment(&mut self, desired: &Desired, observed: &Observed) {
        for (name, known) in &observed.connections {
            let without = known.applied.is_some() && !known.comments_set;
            let wanted = without && !self.memory.held.contains(name);
            if let Some(connection) = desired.connections.get(name).filter(|_| wanted) {
                self.jobs.comment(name, connection);
            }
        }
    }

    /// Takes note of a job's end; true if another look is needed.
    pub(super) async fn finish(&mut self, finished: Finished) -> Result<bool, HubError> {
        Self::log_job(&finished);
        let Finished { name, outcome, .. } = finished;
        self.drift.ended(&name);
        let over = name.clone();
        let mut again = self.memory.ask.contains(&name);
        let done = matches!(outcome, Outcome::Done);
        again |= self.memory.aggregators.follow(&name, done, &self.jobs);
        // What an aggregator let go of can be dropped, and its members may have changed meanwhile:
        // who waits for it waits for one more look.
        if self.memory.aggregators.members.contains_key(&name) {
            self.memory.aggregators.due = true;
            again |= !matches!(outcome, Outcome::Later(_) | Outcome::Same);
        }
        match outcome {
            Outcome::Later(_) | Outcome::Waits | Outcome::Cancelled => {}
            Outcome::Done => {
                if let Some(noticed) = self.following.remove(&name) {
                    let lag = noticed.elapsed();
                    telemetry::observe(Observation::Followed { lag });
                }
            }
            Outcome::Same | Outcome::Failed { .. } => drop(self.following.remove(&name)),
        }
        let answered = matches!(
            outcome,
            Outcome::Done | Outcome::Same | Outcome::Failed { kind: Some(_), .. }
        );
        if answered && self.memory.crashed.remove(&name) {
            crash::forget(&self.lead.control.client, self.lead.epoch, &name).await?;
        }
        match outcome {
            Outcome::Done | Outcome::Same => {
                self.memory.failures.remove(&name);
                self.memory.blocked.remove(&name);
                self.heard(&name, true);
            }
            Outcome::Failed {
                target_hash,
                error,
                kind,
            } => {
                self.requests.failed(&name, &error);
                let before = self.memory.failures.get(&name);
                let import = kind.map(|kind| (kind, self.memory.schedule(&name)));
                let others = self.memory.failures.len();
                match kind {
                    Some(Kind::Authentication) => {
                        if let Some(probes) = &mut self.probes {
                            probes.credentials_rejected(&name, &target_hash, &error);
                        }
                    }
                    Some(Kind::Other) | None => {}
                    Some(_) => self.heard(&name, false),
                }
                let failure = Failure::after(before, target_hash, error, import, others);
                self.memory.failures.insert(name, failure);
            }
            Outcome::Later(_) => {
                let blocked = self.memory.blocked.entry(name.clone()).or_default();
                let pause = jobs::later(blocked.times);
                blocked.times = blocked.times.saturating_add(1);
                blocked.until = Some(Instant::now() + pause);
                // Also where nothing but a source's answer would tell that something differs.
                self.memory.ask.insert(name);
                self.memory.wake_after(pause);
            }
            Outcome::Waits => {
                self.memory.ask.insert(name);
                self.memory.wake_later();
            }
            Outcome::Cancelled => {
                self.csv.unread(&name);
                again = true;
                self.memory.wake_later();
            }
        }
        if let Some(probes) = &mut self.probes {
            probes.job_ended(&over);
        }
        self.log_first_pass().await?;
        Ok(self.answer_requests().await? || again)
    }

    /// Who watches the sources is told what an import met.
    fn heard(&self, name: &str, answered: bool) {
        if let Some(probes) = &self.probes {
            probes.import_ended(name, answered);
        }
    }

    /// Returns whether the answers made room for requests that are queued.
    pub(super) async fn answer_requests(&mut self) -> Result<bool, HubError> {
        let (jobs, ask) = (&self.jobs, &self.memory.ask);
        let aggregators = &self.memory.aggregators;
        let is_asking =
            |name: &str| (self.probes.as_ref()).is_some_and(|probes| probes.is_asking(name));
        let one = |name: &str| jobs.is_running(name) || ask.contains(name) || is_asking(name);
        let open = |name: Option<&str>| match name {
            Some(name) => match aggregators.members.get(name) {
                Some(members) => {
                    let waits = aggregators.due || aggregators.waiting.contains(name);
                    waits || one(name) || members.iter().any(|member| one(member))
                }
                None => one(name),
            },
            None => jobs.len() > 0 || !ask.is_empty() || aggregators.due,
        };
        let csv = &self.csv;
        let found = |name: &str| {
            one(name) || csv.is_late(name) || (aggregators.due && aggregators.show(name))
        };
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        self.requests.answer(client, epoch, open, found).await
    }

    /// Sets search paths, unless just that was refused before.
    async fn set_search_path(&mut self, mut change: PathChange) -> Result<(), HubError> {
        let refused = &mut self.memory.refused_paths;
        let hash = change.hash.clone();
        let tried = |role: &String| refused.get(role) == Some(&hash);
        change.set.retain(|role| !tried(role));
        change.reset.retain(|role| !tried(role));
        if change.is_empty() && change.forget.is_empty() && change.touched.is_empty() {
            return Ok(());
        }
        let (client, epoch) = (&self.lead.control.client, self.lead.epoch);
        for failed in search_path::set(client, epoch, &change).await? {
            if failed.passing {
                self.memory.wake_later();
                continue;
            }
            tracing::warn!(
                role = failed.role,
                "its search path cannot be set: {}",
                failed.reason
            );
            let refused = &mut self.memory.refused_paths;
            refused.insert(failed.role, hash.clone());
        }
        Ok(())
    }

    /// Creates extensions, each by itself: one that is refused costs only its own connections.
    async fn create_extensions(&mut self, names: &BTreeSet<String>) -> Result<(), HubError> {
        for name in names {
            // Where people expect it, and not in pg_catalog, which is our sessions' path.
            let create = format!(
                "SET search_path = public, spcd; CREATE EXTENSION IF NOT EXISTS {}; SET search_path = pg_catalog",
                sql::ident(name)
            );
            // In a session of its own: the script loads the wrapper's library, and two of them may
            // end the server process.
            let session = self.endpoint.connect("extension").await;
            let session = session.map_err(|error| {
                tracing::warn!("cannot open a session: {error:#}");
                HubError::NoSession
            })?;
            let created = session.client.batch_execute(&create).await;
            match created.map_err(HubError::from) {
                Ok(()) => tracing::info!(extension = name, "created"),
                Err(HubError::Refused { text, .. }) => {
                    tracing::warn!(extension = name, "cannot be created: {text}");
                    self.memory.refused_extensions.insert(name.clone(), text);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The rows of `spcd.config_diagnostic`.
fn diagnostics_json(diagnostics: &[Diagnostic]) -> Value {
    let row = |diagnostic: &Diagnostic| {
        json!({
            "severity": match diagnostic.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            "file_name": diagnostic.file,
            "line": diagnostic.line,
            "column_number": diagnostic.column,
            "message": diagnostic.message,
            "hint": diagnostic.hint,
            "connection_name": diagnostic.connection,
        })
    };
    Value::Array(diagnostics.iter().map(row).collect())
}
