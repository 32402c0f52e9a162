//! What a pass is to do for one connection.

use std::collections::BTreeSet;

use spcd_protocol::Status;

use super::{GRANT, Import, Plan, RowChange, Task, Why, Work, WrittenJson};
use crate::model::{Connection, Desired, Doubt, Kind, Target};
use crate::observed::{Applied, Attempt, Detail, Extension, Known, Observed, Presence, Written};
use crate::shape;

pub(super) fn wanted_connection(
    plan: &mut Plan,
    desired: &Desired,
    wanted: &Connection,
    known: Option<&Known>,
    observed: &Observed,
    // Aggregators show it, also if it is disabled.
    shown: bool,
) {
    let target = match &wanted.target {
        Err(error) => return set(plan, wanted, known, Status::Error, Some(error)),
        Ok(target) => target,
    };
    let applied = known.and_then(|known| known.applied.as_ref());
    let detail = observed.details.get(&wanted.name);
    let attempt = observed.attempts.get(&wanted.name);
    let hidden = !wanted.enabled && shown && wanted.kind == Kind::Plugin;
    if !wanted.enabled && !hidden {
        let Some(applied) = applied else {
            return set(plan, wanted, known, Status::Disabled, None);
        };
        if let Some(attempt) = attempt.filter(|attempt| attempt.is_of_drop() && !attempt.due) {
            return set(plan, wanted, known, Status::Error, Some(&attempt.error));
        }
        plan.work.push(Work {
            name: wanted.name.clone(),
            status: known.map_or(Status::Pending, |known| known.status),
            error: known.and_then(|known| known.error.clone()),
            task: Task::Drop {
                keep: Some(Box::new(Written::of(wanted))),
                applied: applied.clone(),
                tables: droppable(&wanted.name, observed),
            },
        });
        return;
    }
    if matches!(wanted.kind, Kind::Aggregator { .. }) {
        // After all others.
        return;
    }
    if let Some(error) = cannot(wanted, target, applied, observed) {
        return match hidden {
            true => set(plan, wanted, known, Status::Disabled, None),
            false => set(plan, wanted, known, Status::Error, Some(&error)),
        };
    }

    let hash = desired.target_hash(&wanted.name);
    let why = match applied {
        None => Some(Why::New),
        Some(applied) if applied.target_hash != hash => Some(Why::Changed),
        Some(applied) if applied.hidden_schema.is_some() != hidden => Some(Why::Changed),
        Some(applied) => match compare(applied, known, detail, target) {
            Left::AsItWas => asks(wanted, target, applied, observed),
            Left::Touched => {
                plan.touched.push(wanted.name.clone());
                asks(wanted, target, applied, observed)
            }
            Left::Unreadable(tables) => {
                // Who waits until all is ready waits for this, too.
                let failed = attempt.filter(|attempt| attempt.target_hash == GRANT);
                let (status, error) = at_work(Why::Drift, failed, known);
                set(plan, wanted, known, status, error);
                if failed.is_some_and(|attempt| !attempt.due) {
                    return;
                }
                plan.work.push(Work {
                    name: wanted.name.clone(),
                    status,
                    error: error.map(str::to_owned),
                    task: Task::Grant { tables },
                });
                return;
            }
            Left::Changed => Some(Why::Drift),
        },
    };
    // What differs cannot be told without asking.
    let held = observed.held.contains(&wanted.name);
    let why = why.filter(|why| !(held && *why == Why::Refresh));
    if held && why.is_some() {
        return match hidden {
            true => set(plan, wanted, known, Status::Disabled, None),
            false => set(
                plan,
                wanted,
                known,
                Status::Error,
                Some(&left_alone(&wanted.name)),
            ),
        };
    }
    let failed = attempt.filter(|attempt| attempt.target_hash == hash);
    // What is there of a source that cannot be reached is as good as before; but tables over files
    // that cannot be read cannot be read either.
    let unreadable = failed.filter(|_| target.csv.is_some());
    let Some(why) = why else {
        return match unreadable {
            _ if hidden => set(plan, wanted, known, Status::Disabled, None),
            Some(attempt) => set(plan, wanted, known, Status::Error, Some(&attempt.error)),
            None => set(plan, wanted, known, Status::Ready, None),
        };
    };
    let has_schema = applied.is_some_and(|applied| applied.hidden_schema.is_none());
    let known_error = known.and_then(|known| known.error.as_deref());
    let (status, error) = match (why, failed, known.map(|known| known.status)) {
        // Its schema is there until that is over: both in one commit.
        (_, None, Some(status)) if hidden && has_schema => (status, known_error),
        _ if hidden => (Status::Disabled, None),
        (Why::Refresh, _, _) => match unreadable {
            Some(attempt) => (Status::Error, Some(attempt.error.as_str())),
            None => (Status::Ready, None),
        },
        (why, failed, _) => at_work(why, failed, known),
    };
    set(plan, wanted, known, status, error);
    if failed.is_some_and(|attempt| !attempt.due) {
        return;
    }
    for extension in std::iter::once(&target.extension).chain(&target.requires) {
        if observed.extensions.get(extension) == Some(&Extension::Available) {
            plan.extensions.insert(extension.clone());
        }
    }
    plan.work.push(Work {
        name: wanted.name.clone(),
        status,
        error: error.map(str::to_owned),
        task: Task::Import(Box::new(Import {
            target: target.clone(),
            target_hash: hash.to_owned(),
            applied: applied.cloned(),
            why,
            warnings: wanted.warnings.clone(),
            known_warnings: known
                .map(|known| known.warnings.clone())
                .unwrap_or_default(),
            readers: observed.readers,
            instance: wanted.plugin_instance.clone(),
            version: observed.versions.get(&target.extension).cloned(),
            hidden,
        })),
    });
}

/// Whether the source is to be asked although nothing differs: somebody wants it, or another
/// version of the extension may have other tables.
fn asks(
    wanted: &Connection,
    target: &Target,
    applied: &Applied,
    observed: &Observed,
) -> Option<Why> {
    let version = observed.versions.get(&target.extension);
    let updated = !target.dynamic && version.is_some() && version != applied.version.as_ref();
    (updated || observed.ask.contains(&wanted.name)).then_some(Why::Refresh)
}

/// Why nothing can be done for a connection as the database is.
fn cannot(
    wanted: &Connection,
    target: &Target,
    applied: Option<&Applied>,
    observed: &Observed,
) -> Option<String> {
    let taken = match applied {
        None => observed.taken.get(&wanted.name).map(String::as_str),
        Some(applied) if applied.schema == Presence::Foreign => Some("schema"),
        Some(applied) if applied.server == Presence::Foreign => Some("server"),
        Some(_) => None,
    };
    if let Some(what) = taken {
        return Some(self::taken(what, &wanted.name));
    }
    match observed.extensions.get(&target.extension) {
        None | Some(Extension::Installed | Extension::Available) => None,
        Some(Extension::Missing) => Some(format!(
            "the extension {} is not installed on the database's host: get it from {}",
            target.extension,
            match target.package.as_str() {
                "" => "its vendor",
                package => package,
            }
        )),
        Some(Extension::Refused(reason)) => Some(format!(
            "the extension {} cannot be created: {reason}",
            target.extension
        )),
    }
}

fn left_alone(name: &str) -> String {
    format!(
        "its source is left alone since somebody said `spcd disconnect`, so that its tables cannot \
         follow: `spcd reconnect {name}` ends that"
    )
}

pub(super) fn taken(what: &str, name: &str) -> String {
    format!(
        "a {what} named {name:?} exists that spcd did not make, and is left alone: \
         rename the connection, or let `spcd adopt {name}` take it over"
    )
}

/// How what was made compares with what is there.
enum Left {
    AsItWas,
    /// Row versions differ, and nothing that counts.
    Touched,
    /// `spcd_users` came into being, or lost what it was granted.
    Unreadable(Vec<String>),
    Changed,
}

fn compare(
    applied: &Applied,
    known: Option<&Known>,
    detail: Option<&Detail>,
    target: &Target,
) -> Left {
    let ours = applied.schema == Presence::Ours && applied.server == Presence::Ours;
    if ours && applied.intact && applied.readable {
        return Left::AsItWas;
    }
    let Some(detail) = detail.filter(|_| ours) else {
        return Left::Changed;
    };
    let hash = shape::hash(&detail.tables, target.traits());
    let same = detail.server == Some((target.wrapper.clone(), target.server_options()))
        && detail.mapping.as_ref() == Some(&target.mapping)
        && known.and_then(|known| known.shape_hash.as_ref()) == Some(&hash);
    match same {
        false => Left::Changed,
        true if applied.hidden_schema.is_some() => Left::Touched,
        true if !applied.readable || !detail.unreadable.is_empty() => {
            Left::Unreadable(detail.unreadable.clone())
        }
        true => Left::Touched,
    }
}

/// The tables that may be dropped: those that were made and are still spcd's.
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

pub(super) fn unwanted_connection(
    plan: &mut Plan,
    desired: &Desired,
    observed: &Observed,
    name: &str,
    known: &Known,
) {
    if let Some(doubt) = doubt_of(desired, known) {
        let (status, error) = in_doubt(known, doubt);
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

/// What the row says of a difference while it is being applied: a new connection goes from pending
/// to ready, one that was there says that it changes, and one that is tried again stays in error
/// until that is over.
pub(super) fn at_work<'a>(
    why: Why,
    failed: Option<&'a Attempt>,
    known: Option<&Known>,
) -> (Status, Option<&'a str>) {
    match (why, failed, known.map(|known| known.status)) {
        (_, Some(attempt), _) => (Status::Error, Some(attempt.error.as_str())),
        (_, None, None) | (Why::New, None, Some(Status::Pending)) => (Status::Pending, None),
        (_, None, Some(_)) => (Status::Updating, None),
    }
}

/// Where a connection stands of which nobody knows whether it is still wanted: what is there goes
/// on serving.
fn in_doubt(known: &Known, doubt: &Doubt) -> (Status, Option<String>) {
    if let Some(error) = &doubt.error {
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

/// The doubtful input from which a connection came.
pub(super) fn doubt_of<'a>(desired: &'a Desired, known: &Known) -> Option<&'a Doubt> {
    let file = known.written.file.as_str();
    let holds = |doubt: &&Doubt| match file.strip_prefix(&doubt.path) {
        Some("") => true,
        Some(rest) => doubt.directory && (rest.starts_with('/') || doubt.path.ends_with('/')),
        None => false,
    };
    desired.doubts.iter().find(holds)
}

/// Brings a wanted connection's row to a status, if it is not there yet.
pub(super) fn set(
    plan: &mut Plan,
    wanted: &Connection,
    known: Option<&Known>,
    status: Status,
    error: Option<&str>,
) {
    let written = Written::of(wanted);
    let error = error.map(str::to_owned);
    let Some(known) = known else {
        plan.rows.push(RowChange {
            name: wanted.name.clone(),
            route: Status::route(None, status),
            error,
            warnings: (!wanted.warnings.is_empty()).then(|| wanted.warnings.clone()),
            written: Some(written.into()),
            ..RowChange::default()
        });
        return;
    };
    let written = (!written.says_the_same(&known.written)).then_some(written);
    let of_import = known.applied.iter().flat_map(|applied| &applied.warnings);
    let warnings = wanted.warnings.iter().chain(of_import);
    let warnings = merged(warnings.chain(&known.waits_for));
    let warnings = (known.warnings != warnings).then_some(warnings);
    plan.rows.extend(row_change(
        &wanted.name,
        known,
        status,
        error,
        written,
        warnings,
    ));
}

fn row_change(
    name: &str,
    known: &Known,
    status: Status,
    error: Option<String>,
    written: Option<Written>,
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
        written: written.map(WrittenJson::from),
        ..RowChange::default()
    })
}

/// Warnings in the order in which they are stored.
pub(super) fn merged<'a>(warnings: impl Iterator<Item = &'a String>) -> Vec<String> {
    warnings
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}
