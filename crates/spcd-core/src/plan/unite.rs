//! Aggregators in the plan: when their views are to be looked at, and what is written then.

use std::collections::{BTreeMap, BTreeSet};

use spcd_protocol::Status;

use super::connection::at_work;
use super::{Bookkeeping, Record, Unit};
use super::{Imported, Plan, RowChange, Task, Why, Work, merged, set, settle};
use crate::model::{Connection, Desired};
use crate::observed::{Applied, Known, Observed, Presence, Written};
use crate::shape::KnownTypes;
use crate::shape::{self, Traits};
use crate::sql;
use crate::union::{self, Found};

/// What an aggregator's views are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unite {
    /// The hash of its members and their shapes when this was planned.
    pub target_hash: String,
    /// The connections whose tables it shows.
    pub members: Vec<String>,
    /// What is there; `None`: nothing.
    pub applied: Option<Applied>,
    /// Why.
    pub why: Why,
    /// Warnings that come from the configuration.
    pub warnings: Vec<String>,
    /// The foreign tables of the connection that bore its name before, to be dropped.
    pub tables: Vec<String>,
    /// The role `spcd_users` exists.
    pub readers: bool,
}

/// Plans the aggregators; everything else is planned already.
pub(super) fn unite_all(
    plan: &mut Plan,
    desired: &Desired,
    kept: &BTreeMap<&str, &Written>,
    observed: &Observed,
) {
    let all = union::members(desired, kept);
    if all.is_empty() {
        return;
    }
    // A member that is about to change is waited for, but not one that fails again and again.
    let unsettled: BTreeSet<String> = (plan.work.iter())
        .filter(|work| match &work.task {
            Task::Import(import) => import.why != Why::Refresh && work.status != Status::Error,
            _ => false,
        })
        .filter(|work| !observed.attempts.contains_key(&work.name))
        .map(|work| work.name.clone())
        .collect();
    for (name, members) in all {
        let Some(wanted) = desired.connections.get(name) else {
            continue;
        };
        if wanted.target.is_ok() {
            unite(plan, wanted, &members, &unsettled, observed);
        }
    }
}

fn unite(
    plan: &mut Plan,
    wanted: &Connection,
    members: &[&str],
    unsettled: &BTreeSet<String>,
    observed: &Observed,
) {
    let name = &wanted.name;
    let known = observed.connections.get(name);
    let applied = known.and_then(|known| known.applied.as_ref());
    let taken = match applied {
        None => observed
            .taken
            .get(name)
            .is_some_and(|what| what == "schema"),
        Some(applied) => applied.schema == Presence::Foreign,
    };
    if taken {
        let error = super::taken("schema", name);
        return set(plan, wanted, known, Status::Error, Some(&error));
    }
    let about_to_change =
        |member: &&str| unsettled.contains(*member) && !observed.slow.contains(*member);
    let waits = members.iter().any(about_to_change);
    let hash = target_hash(members, &observed.connections);
    let why = match applied {
        None => Why::New,
        Some(applied) => match reason(plan, name, applied, members, &hash, waits, observed) {
            Verdict::Work(why) => why,
            Verdict::Settled(status) => return set(plan, wanted, known, status, None),
        },
    };
    let attempt = observed.attempts.get(name);
    let failed = attempt.filter(|attempt| attempt.target_hash == hash);
    let (status, error) = match why {
        // Only what it warns of is looked at again.
        Why::Refresh => (Status::Ready, None),
        why => at_work(why, failed, known),
    };
    set(plan, wanted, known, status, error);
    if failed.is_some_and(|attempt| !attempt.due) {
        return;
    }
    if waits {
        plan.waiting.insert(name.clone());
        return;
    }
    plan.work.push(Work {
        name: name.clone(),
        status,
        error: error.map(str::to_owned),
        task: Task::Unite(Box::new(Unite {
            target_hash: hash,
            members: members.iter().map(|member| (*member).to_owned()).collect(),
            applied: applied.cloned(),
            why,
            warnings: wanted.warnings.clone(),
            tables: match applied.is_some_and(|applied| applied.server == Presence::Ours) {
                true => super::droppable(name, observed),
                false => Vec::new(),
            },
            readers: observed.readers,
        })),
    });
}

/// What is to be done for an aggregator that is there.
enum Verdict {
    Work(Why),
    Settled(Status),
}

fn reason(
    plan: &mut Plan,
    name: &str,
    applied: &Applied,
    members: &[&str],
    hash: &str,
    waits: bool,
    observed: &Observed,
) -> Verdict {
    if union::provisional(&applied.target_hash) == Some(hash) {
        return match repair(members, observed) {
            Repair::Unknown => {
                plan.undecided = true;
                Verdict::Settled(Status::Updating)
            }
            Repair::UnderWay => {
                plan.waiting.insert(name.to_owned());
                Verdict::Settled(Status::Updating)
            }
            // What is there is shown.
            Repair::Failed => Verdict::Settled(Status::Ready),
            Repair::Done => Verdict::Work(Why::Changed),
        };
    }
    if applied.target_hash != hash {
        return Verdict::Work(Why::Changed);
    }
    let left = compare(name, applied, observed);
    if matches!(left, Left::Touched) {
        plan.touched.push(name.to_owned());
    }
    match left {
        Left::Unreadable | Left::Changed => Verdict::Work(Why::Drift),
        // It is told with its member, and not when that has changed already.
        Left::AsItWas | Left::Touched if waits => {
            plan.waiting.insert(name.to_owned());
            Verdict::Settled(Status::Updating)
        }
        // What stood in the way may be gone.
        Left::AsItWas | Left::Touched
            if observed.ask.contains(name) && !applied.warnings.is_empty() =>
        {
            Verdict::Work(Why::Refresh)
        }
        Left::AsItWas | Left::Touched => Verdict::Settled(Status::Ready),
    }
}

/// How far members that were altered by hand are mended.
enum Repair {
    Unknown,
    UnderWay,
    Failed,
    Done,
}

fn repair(members: &[&str], observed: &Observed) -> Repair {
    if !observed.drift_known {
        return Repair::Unknown;
    }
    let is_drifted = |member: &&&str| {
        let known = observed.connections.get(**member);
        let applied = known.and_then(|known| known.applied.as_ref());
        applied.is_some_and(|applied| !applied.intact)
    };
    let drifted: Vec<&&str> = members.iter().filter(is_drifted).collect();
    let has_failed = |member: &&&str| observed.attempts.contains_key(**member);
    match drifted.iter().all(has_failed) {
        _ if drifted.is_empty() => Repair::Done,
        true => Repair::Failed,
        false => Repair::UnderWay,
    }
}

/// The hash of an aggregator's members as the rows have them.
fn target_hash(members: &[&str], connections: &BTreeMap<String, Known>) -> String {
    let shape = |name: &str| {
        let known = connections.get(name)?;
        let applied = known.applied.as_ref()?;
        let takes_part =
            applied.schema == Presence::Ours && !union::is_of_aggregator(&applied.target_hash);
        known.shape_hash.as_deref().filter(|_| takes_part)
    };
    union::target_hash(members.iter().map(|name| (*name, shape(name))))
}

/// How what was made compares with what is there.
enum Left {
    AsItWas,
    Touched,
    Unreadable,
    Changed,
}

fn compare(name: &str, applied: &Applied, observed: &Observed) -> Left {
    let ours = applied.schema == Presence::Ours;
    if ours && applied.intact && applied.readable {
        return Left::AsItWas;
    }
    match observed.views.get(name) {
        _ if !ours => Left::Changed,
        None => Left::Changed,
        Some(views) if !views.altered.is_empty() => Left::Changed,
        Some(views) if !views.unreadable.is_empty() || !applied.readable => Left::Unreadable,
        Some(_) => Left::Touched,
    }
}

/// A view over many tables takes a lock on each, also where only one of them is asked for.
const SHARE_OF_LOCKS: usize = 4;
/// Members without tables are named up to here.
const MOST_NAMED: usize = 10;
/// Recorded while the views are written in packages: no target has it.
const INCOMPLETE: &str = "aggregator:incomplete";

/// What is written for an aggregator whose members were looked at: units to be written one after
/// the other, the last of which makes it ready. Only what needs too many locks for one transaction
/// is more than one. None at all: it was asked again, and nothing differs.
pub fn settle_union(name: &str, status: Status, unite: &Unite, found: &Found) -> Vec<Unit> {
    let mut changes = union::changes(name, found, None, false);
    let made = unite.applied.as_ref();
    let tables = std::mem::take(&mut changes.tables);
    let warnings = warnings(unite, found, std::mem::take(&mut changes.warnings));
    let names: Vec<String> = tables.iter().map(|table| table.name.clone()).collect();
    let record = |target_hash: &str| {
        Bookkeeping::Made(Record {
            target_hash: target_hash.into(),
            tables: names.clone(),
            members: Some(unite.members.clone()),
            warnings: warnings.clone(),
            look_again: unite.why == Why::Drift,
            hidden_schema: None,
            version: None,
            columns: None,
            types: KnownTypes::new(),
        })
    };

    let mut first = before_views(name, unite, found);
    let mut units: Vec<Unit> = Vec::new();
    let mut packages = changes.packages(found.locks / SHARE_OF_LOCKS);
    let last = packages.pop().unwrap_or_default();
    for package in packages {
        units.push(Unit {
            name: name.into(),
            sql: std::mem::take(&mut first) + &package.statements(name, found, unite.readers),
            tables: package.locks(),
            locks: package.locks(),
            row: RowChange {
                name: name.into(),
                ..RowChange::default()
            },
            record: record(INCOMPLETE),
            ..Unit::default()
        });
    }
    let sql = first + &last.statements(name, found, unite.readers);
    if unite.why == Why::Refresh
        && sql.is_empty()
        && units.is_empty()
        && made.is_some_and(|applied| {
            applied.target_hash == found.target_hash && applied.warnings == warnings
        })
    {
        return units;
    }
    let route = match status {
        // Members that users altered are to be mended first.
        status if union::provisional(&found.target_hash).is_some() => {
            Status::route(Some(status), Status::Updating)
        }
        Status::Ready | Status::Error => vec![Status::Updating, Status::Ready],
        status => Status::route(Some(status), Status::Ready),
    };
    units.push(Unit {
        name: name.into(),
        sql,
        tables: last.locks(),
        locks: last.locks(),
        row: RowChange {
            name: name.into(),
            route,
            warnings: Some(merged(warnings.iter().chain(&unite.warnings))),
            imported: Some(Imported {
                schema_mode: None,
                schema_hash: shape::hash(&tables, Traits::default()),
                table_count: tables.len(),
            }),
            ..RowChange::default()
        },
        record: record(&found.target_hash),
        ..Unit::default()
    });
    units
}

/// What is written before an aggregator's views: its schema, the end of what a plugin's connection of
/// its name had there, and what readers lack.
fn before_views(name: &str, unite: &Unite, found: &Found) -> String {
    let made = unite.applied.as_ref();
    let has_schema = made.is_some_and(|applied| applied.schema == Presence::Ours);
    let mut first = String::new();
    if !has_schema {
        first.push_str(&sql::create_schema(name));
    }
    if made.is_some_and(|applied| applied.server == Presence::Ours) {
        settle::drop_tables(name, &unite.tables, &mut first);
        first.push_str(&sql::drop_server(name));
    }
    if unite.readers {
        if made.is_none_or(|applied| !applied.readable) || !has_schema {
            first.push_str(&sql::grant_schema(name));
        }
        let is_closed = |view: &&union::Made| view.there && view.unreadable;
        let unreadable = found.made.iter().filter(is_closed);
        let unreadable: Vec<&str> = unreadable.map(|view| view.name.as_str()).collect();
        if !unreadable.is_empty() {
            first.push_str(&sql::grant_tables(name, unreadable));
        }
    }
    first
}

fn warnings(unite: &Unite, found: &Found, mut warnings: Vec<String>) -> Vec<String> {
    let there: BTreeSet<&str> = found
        .members
        .iter()
        .map(|(name, _, _)| name.as_str())
        .collect();
    let without: Vec<&str> = (unite.members.iter().map(String::as_str))
        .filter(|name| !there.contains(name))
        .collect();
    if !without.is_empty() {
        let more = match without.len().saturating_sub(MOST_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named: Vec<_> = (without.iter().take(MOST_NAMED))
            .map(|name| format!("{name:?}"))
            .collect();
        warnings.push(format!(
            "connections without tables so far are not shown: {}{more}",
            named.join(", ")
        ));
    }
    let most = found.locks / SHARE_OF_LOCKS;
    if found.members.len() > most {
        warnings.push(format!(
            "a query on a view of {} members locks each of them, and the server has room for {} \
             locks in all: raise max_locks_per_transaction",
            found.members.len(),
            found.locks
        ));
    }
    warnings
}
