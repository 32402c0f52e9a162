//! Planning of one connection.

use std::collections::BTreeSet;

use spcd_protocol::Status;

use super::{GRANT, Import, Plan, Reason, RowChange, Task, Work};
use crate::diff::{self, TableWarning};
use crate::model::{Connection, ConnectionKind, DesiredState, ForeignSource, UnknownInput};
use crate::observed::{
    Applied, Attempt, ConfigSnapshot, Detail, Extension, Observed, ObservedConnection, Presence,
};
use crate::tuning;

pub(super) fn plan_desired(
    plan: &mut Plan,
    desired: &DesiredState,
    connection: &Connection,
    known: Option<&ObservedConnection>,
    observed: &Observed,
    // An aggregator shows it: even a disabled connection then has tables.
    shown: bool,
) {
    let target = match &connection.target {
        Err(error) => return set(plan, connection, known, Status::Error, Some(error)),
        Ok(target) => target,
    };
    let is_plugin = connection.kind == ConnectionKind::Plugin;
    let hidden = !connection.enabled && shown && is_plugin;
    if !connection.enabled && !hidden {
        disable(plan, connection, known, observed);
    } else if is_plugin {
        let importer = Importer {
            connection,
            target,
            target_hash: desired.target_hash(&connection.name),
            known,
            observed,
            hidden,
        };
        importer.plan(plan);
    }
    // Aggregators are planned after all others.
}

/// Plans a disabled connection that no aggregator shows: its objects are dropped.
fn disable(
    plan: &mut Plan,
    connection: &Connection,
    known: Option<&ObservedConnection>,
    observed: &Observed,
) {
    let objects = known.and_then(|known| Some((known, known.applied.as_ref()?)));
    // The source disabling a mirrored connection must not drop objects that users built on it.
    let Some((known, applied)) = objects.filter(|_| connection.mirror.is_none()) else {
        return set(plan, connection, known, Status::Disabled, None);
    };
    let attempt = observed.attempts.get(&connection.name);
    if let Some(attempt) = attempt.filter(|attempt| attempt.is_of_drop() && !attempt.due) {
        return set(
            plan,
            connection,
            Some(known),
            Status::Error,
            Some(&attempt.error),
        );
    }
    plan.work.push(Work {
        name: connection.name.clone(),
        status: known.status,
        error: known.error.clone(),
        task: Task::Drop {
            keep: Some(Box::new(ConfigSnapshot::of(connection))),
            applied: applied.clone(),
            tables: droppable(&connection.name, observed),
        },
    });
}

/// Planner of a connection whose tables are desired.
struct Importer<'a> {
    connection: &'a Connection,
    target: &'a ForeignSource,
    target_hash: &'a str,
    known: Option<&'a ObservedConnection>,
    observed: &'a Observed,
    /// It is disabled: its tables are for aggregators only.
    hidden: bool,
}

impl<'a> Importer<'a> {
    fn plan(&self, plan: &mut Plan) {
        if self.connection.awaits_source {
            return self.plan_wait(plan);
        }
        if let Some(error) =
            import_error(self.connection, self.target, self.applied(), self.observed)
        {
            return self.fail(plan, &error);
        }
        let reason = match self.compare() {
            Drift::None => self.refresh(),
            Drift::FingerprintOnly => {
                plan.refresh_fingerprints.push(self.connection.name.clone());
                self.refresh()
            }
            Drift::Unreadable(tables) => return self.plan_grant(plan, tables),
            Drift::Changed(reason) => Some(reason),
        };
        let is_paused = self.observed.paused.contains(&self.connection.name);
        match reason {
            // Only an import from the paused source could show the difference.
            Some(Reason::New | Reason::Changed | Reason::Drift) if is_paused => {
                self.fail(plan, &paused_error(&self.connection.name));
            }
            Some(reason) if !is_paused => self.plan_import(plan, reason),
            _ if self.hidden => self.set(plan, Status::Disabled, None),
            _ => {
                let (status, error) = self.kept_status();
                self.set(plan, status, error);
            }
        }
    }

    /// Waits for the tables of the gateway. Up-to-date tables of the hub stay `ready` while the gateway
    /// checks its own.
    fn plan_wait(&self, plan: &mut Plan) {
        if self.hidden {
            return self.set(plan, Status::Disabled, None);
        }
        let is_ready = self
            .known
            .is_some_and(|known| known.status == Status::Ready);
        let is_made =
            (self.applied()).is_some_and(|applied| applied.target_hash == self.target_hash);
        let (status, error) = match is_ready && is_made {
            true => (Status::Ready, None),
            false => status_at_work(Reason::New, None, self.known),
        };
        self.set(plan, status, error);
    }

    fn plan_grant(&self, plan: &mut Plan, tables: Vec<String>) {
        // A client that waits for `ready` waits for the grant, too.
        let failed = self.attempt(GRANT);
        let (status, error) = status_at_work(Reason::Drift, failed, self.known);
        self.set(plan, status, error);
        if failed.is_none_or(|attempt| attempt.due) {
            plan.work.push(Work {
                name: self.connection.name.clone(),
                status,
                error: error.map(str::to_owned),
                task: Task::Grant { tables },
            });
        }
    }

    fn plan_import(&self, plan: &mut Plan, reason: Reason) {
        let (status, error) = self.import_status(reason);
        self.set(plan, status, error);
        if self.failure().is_some_and(|attempt| !attempt.due) {
            return;
        }
        let available = self.target.extensions().filter(|extension| {
            self.observed.extensions.get(*extension) == Some(&Extension::Available)
        });
        plan.extensions.extend(available.cloned());
        plan.work.push(Work {
            name: self.connection.name.clone(),
            status,
            error: error.map(str::to_owned),
            task: Task::Import(Box::new(Import {
                target: self.target_on_kept_lane(),
                target_hash: self.target_hash.to_owned(),
                applied: self.applied().cloned(),
                reason,
                warnings: self.connection.warnings.clone(),
                left_out: self.connection.left_out.clone(),
                known_warnings: self
                    .known
                    .map(|known| known.warnings.clone())
                    .unwrap_or_default(),
                known_schema_hash: self.known.and_then(|known| known.schema_hash.clone()),
                readers: self.observed.readers,
                instance: self.connection.plugin_instance.clone(),
                extension_version: self.version().cloned(),
                hidden: self.hidden,
            })),
        });
    }

    /// Returns the target on the lane that the connection has: the server of a table cannot change.
    fn target_on_kept_lane(&self) -> ForeignSource {
        let mut target = self.target.clone();
        if let Some(lane) = &mut target.lane
            && let Some(server) = (self.applied()).and_then(|applied| applied.server_name.as_ref())
            && let Some(kept) = lane.with_server(server)
        {
            *lane = kept;
        }
        target
    }

    /// Returns the row's status and error during the import.
    fn import_status(&self, reason: Reason) -> (Status, Option<&'a str>) {
        let failed = self.failure();
        let is_shown = (self.applied()).is_some_and(|applied| applied.hidden_schema.is_none());
        match (reason, self.known) {
            // Its schema is renamed and its status changed in one commit, after the import.
            (_, Some(known)) if self.hidden && is_shown => match failed {
                Some(attempt) => (Status::Error, Some(&attempt.error)),
                None => (known.status, known.error.as_deref()),
            },
            _ if self.hidden => (Status::Disabled, None),
            (Reason::Refresh, _) => self.kept_status(),
            (reason, known) => status_at_work(reason, failed, known),
        }
    }

    /// Returns the status if nothing differs. Tables of an unreachable source stay valid, but tables over
    /// unreadable files do not.
    fn kept_status(&self) -> (Status, Option<&'a str>) {
        match self.failure().filter(|_| self.target.csv.is_some()) {
            Some(attempt) => (Status::Error, Some(&attempt.error)),
            None => (Status::Ready, None),
        }
    }

    /// Returns whether to import although nothing differs: a client requested it, or another version of
    /// the extension may have other tables.
    fn refresh(&self) -> Option<Reason> {
        let version = self.version();
        let applied = self
            .applied()
            .and_then(|applied| applied.extension_version.as_ref());
        let updated = !self.target.dynamic && version.is_some() && version != applied;
        (updated || self.observed.ask.contains(&self.connection.name)).then_some(Reason::Refresh)
    }

    /// Result of comparing existing objects with the desired ones.
    fn compare(&self) -> Drift {
        let Some(applied) = self.applied() else {
            return Drift::Changed(Reason::New);
        };
        if applied.target_hash != self.target_hash || applied.hidden_schema.is_some() != self.hidden
        {
            return Drift::Changed(Reason::Changed);
        }
        let ours = applied.schema == Presence::Ours && applied.server == Presence::Ours;
        if ours && applied.intact && applied.readable {
            return Drift::None;
        }
        let detail = self.observed.details.get(&self.connection.name);
        let detail = detail.filter(|detail| ours && self.is_same(detail));
        match detail {
            None => Drift::Changed(Reason::Drift),
            Some(_) if self.hidden => Drift::FingerprintOnly,
            Some(detail) => {
                let tables: Vec<String> = detail.grantable().cloned().collect();
                let is_warned_of =
                    |warning: &TableWarning| applied.warnings.contains(&warning.text);
                match applied.readable && tables.is_empty() {
                    false => Drift::Unreadable(tables),
                    true if detail.closed_tables().iter().all(is_warned_of) => {
                        Drift::FingerprintOnly
                    }
                    // An import writes the warnings.
                    true => Drift::Changed(Reason::Drift),
                }
            }
        }
    }

    /// Whether server, mapping and tables are as spcd created them.
    fn is_same(&self, detail: &Detail) -> bool {
        let hash = diff::hash(&detail.tables, self.target.wrapper_traits());
        // The server that a lane shares is compared by itself.
        let is_server_same = self.target.lane.is_some()
            || tuning::is_tuned_as_desired(self.target, detail.existing(self.target))
                && detail.mapping.as_ref() == Some(&self.target.mapping);
        is_server_same && self.known.and_then(|known| known.schema_hash.as_ref()) == Some(&hash)
    }

    fn applied(&self) -> Option<&'a Applied> {
        self.known.and_then(|known| known.applied.as_ref())
    }

    fn version(&self) -> Option<&'a String> {
        self.observed.versions.get(&self.target.extension)
    }

    fn attempt(&self, target_hash: &str) -> Option<&'a Attempt> {
        let attempt = self.observed.attempts.get(&self.connection.name);
        attempt.filter(|attempt| attempt.target_hash == target_hash)
    }

    /// The last attempt to import this target, if it failed.
    fn failure(&self) -> Option<&'a Attempt> {
        self.attempt(self.target_hash)
    }

    /// Ends in an error, unless the connection is disabled.
    fn fail(&self, plan: &mut Plan, error: &str) {
        match self.hidden {
            true => self.set(plan, Status::Disabled, None),
            false => self.set(plan, Status::Error, Some(error)),
        }
    }

    fn set(&self, plan: &mut Plan, status: Status, error: Option<&str>) {
        set(plan, self.connection, self.known, status, error);
    }
}

/// Returns the error of a connection that cannot be imported into this database.
fn import_error(
    connection: &Connection,
    target: &ForeignSource,
    applied: Option<&Applied>,
    observed: &Observed,
) -> Option<String> {
    let taken = match applied {
        None => observed.taken.get(&connection.name).map(String::as_str),
        Some(applied) if applied.schema == Presence::Foreign => Some("schema"),
        Some(applied) if applied.server == Presence::Foreign && applied.server_name.is_none() => {
            Some("server")
        }
        Some(_) => None,
    };
    if let Some(what) = taken {
        return Some(name_taken(what, &connection.name));
    }
    if let Some(error) = lane_error(target, applied, observed) {
        return Some(error);
    }
    observed.extensions.get(&target.extension)?.problem(target)
}

/// Returns why the server that a connection shares cannot be used, if it cannot.
fn lane_error(
    target: &ForeignSource,
    applied: Option<&Applied>,
    observed: &Observed,
) -> Option<String> {
    let lane = target.lane.as_ref()?;
    let kept = applied.and_then(|applied| lane.with_server(applied.server_name.as_ref()?));
    let server = kept.as_ref().unwrap_or(lane).server();
    let found = observed.lanes.get(&server)?;
    match (&found.refused, found.presence) {
        (Some(reason), _) => Some(format!("the server {server:?}: {reason}")),
        (None, Presence::Foreign) => Some(format!(
            "a server named {server:?} exists that spcd did not create, and is left alone: rename or \
             drop it"
        )),
        (None, Presence::Ours | Presence::Absent) => None,
    }
}

fn paused_error(name: &str) -> String {
    format!(
        "paused by `spcd disconnect`, so that its tables cannot be updated: \
         run `spcd reconnect {name}` to resume"
    )
}

pub(super) fn name_taken(what: &str, name: &str) -> String {
    format!(
        "a {what} named {name:?} exists that spcd did not create, and is left alone: \
         rename the connection, or let `spcd adopt {name}` take it over"
    )
}

/// Result of comparing existing objects with the desired ones.
enum Drift {
    None,
    /// Row versions differ, but no object has drifted.
    FingerprintOnly,
    /// Members of `spcd_users` cannot read these tables.
    Unreadable(Vec<String>),
    Changed(Reason),
}

/// Returns the tables that may be dropped: those that spcd created and still owns.
pub(super) fn droppable(name: &str, observed: &Observed) -> Vec<String> {
    match observed.details.get(name) {
        Some(detail) => detail
            .tables
            .iter()
            .map(|table| table.name.clone())
            .collect(),
        None => observed.tables.get(name).cloned().unwrap_or_default(),
    }
}

pub(super) fn plan_removed(
    plan: &mut Plan,
    desired: &DesiredState,
    observed: &Observed,
    name: &str,
    known: &ObservedConnection,
) {
    if let Some(input) = unknown_input_of(desired, known) {
        let (status, error) = status_while_unknown(known, input);
        plan.rows
            .extend(row_change(name, known, status, error, None, None));
        return;
    }
    let Some(applied) = &known.applied else {
        plan.rows.push(RowChange {
            name: name.into(),
            route: match known.status {
                Status::Deleting => vec![],
                _ => vec![Status::Deleting],
            },
            remove: true,
            ..RowChange::default()
        });
        return;
    };
    // Users' views in the hub may still read it.
    if desired.hub_use.holds(name) {
        return;
    }
    let failed = observed
        .attempts
        .get(name)
        .filter(|attempt| attempt.is_of_drop());
    let (status, error) = match failed {
        Some(attempt) => (Status::Error, Some(attempt.error.clone())),
        None => (Status::Deleting, None),
    };
    let of_import = applied.warnings.iter();
    let warnings = merged(of_import.chain(&known.waits_for));
    let warnings = (known.warnings != warnings).then_some(warnings);
    plan.rows.extend(row_change(
        name,
        known,
        status,
        error.clone(),
        None,
        warnings,
    ));
    if failed.is_none_or(|attempt| attempt.due) {
        plan.work.push(Work {
            name: name.into(),
            status,
            error,
            task: Task::Drop {
                keep: None,
                applied: applied.clone(),
                tables: droppable(name, observed),
            },
        });
    }
}

/// Returns the row's status and error while a difference is being applied. A new connection stays
/// `pending`, one that exists becomes `updating`, and one that failed before stays in `error`.
pub(super) fn status_at_work<'a>(
    reason: Reason,
    failed: Option<&'a Attempt>,
    known: Option<&ObservedConnection>,
) -> (Status, Option<&'a str>) {
    match (reason, failed, known.map(|known| known.status)) {
        (_, Some(attempt), _) => (Status::Error, Some(attempt.error.as_str())),
        (_, None, None) | (Reason::New, None, Some(Status::Pending)) => (Status::Pending, None),
        (_, None, Some(_)) => (Status::Updating, None),
    }
}

/// Returns the status of a connection whose block may be in an unreadable file: its tables stay.
fn status_while_unknown(
    known: &ObservedConnection,
    input: &UnknownInput,
) -> (Status, Option<String>) {
    if let Some(error) = &input.error {
        return (Status::Error, Some(error.clone()));
    }
    let whole = (known.applied.as_ref())
        .is_some_and(|applied| applied.schema == Presence::Ours && applied.intact);
    match known.status {
        Status::Pending | Status::Deleting | Status::Updating if whole => (Status::Ready, None),
        Status::Pending | Status::Deleting | Status::Updating => {
            let error = format!("{}: no longer there", known.written.file);
            (Status::Error, Some(error))
        }
        status => (status, known.error.clone()),
    }
}

/// Returns the unreadable file or directory that may hold a connection's block.
pub(super) fn unknown_input_of<'a>(
    desired: &'a DesiredState,
    known: &ObservedConnection,
) -> Option<&'a UnknownInput> {
    let file = known.written.file.as_str();
    desired.unknown_inputs.iter().find(|doubt| {
        let is_of_mirror = |name: &String| *name == known.written.mirror;
        doubt.holds(file) && doubt.mirror.as_ref().is_none_or(is_of_mirror)
    })
}

/// Plans the change of a desired connection's row to a status, if it has another one.
pub(super) fn set(
    plan: &mut Plan,
    connection: &Connection,
    known: Option<&ObservedConnection>,
    status: Status,
    error: Option<&str>,
) {
    let written = ConfigSnapshot::of(connection);
    let error = error.map(str::to_owned);
    let Some(known) = known else {
        plan.rows.push(RowChange {
            name: connection.name.clone(),
            route: Status::route(None, status),
            error,
            warnings: (!connection.warnings.is_empty()).then(|| connection.warnings.clone()),
            written: Some(written),
            ..RowChange::default()
        });
        return;
    };
    let written = (!written.is_equivalent(&known.written)).then_some(written);
    let of_import = known.applied.iter().flat_map(|applied| &applied.warnings);
    let warnings = connection.warnings.iter().chain(of_import);
    let warnings = merged(warnings.chain(&known.waits_for));
    let warnings = (known.warnings != warnings).then_some(warnings);
    plan.rows.extend(row_change(
        &connection.name,
        known,
        status,
        error,
        written,
        warnings,
    ));
}

fn row_change(
    name: &str,
    known: &ObservedConnection,
    status: Status,
    error: Option<String>,
    written: Option<ConfigSnapshot>,
    warnings: Option<Vec<String>>,
) -> Option<RowChange> {
    let mut route = Status::route(Some(known.status), status);
    if route.is_empty() && known.error != error {
        route = vec![status];
    }
    if route.is_empty() && written.is_none() && warnings.is_none() {
        return None;
    }
    Some(RowChange {
        name: name.into(),
        route,
        error,
        warnings,
        written,
        ..RowChange::default()
    })
}

/// Returns warnings in the order in which they are stored, without duplicates.
pub(super) fn merged<'a>(warnings: impl Iterator<Item = &'a String>) -> Vec<String> {
    warnings
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}
