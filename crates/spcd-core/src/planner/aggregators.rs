//! Planning of aggregators, and the statements for their views.

use std::collections::{BTreeMap, BTreeSet};

use spcd_protocol::Status;

use super::connection::status_at_work;
use super::{Bookkeeping, Record, WriteUnit};
use super::{Imported, Plan, Reason, RowChange, Task, Work, lanes, merged, resolve_import, set};
use crate::aggregator::{self, AggregatorInput};
use crate::diff::{self, WrapperTraits};
use crate::diff::{ColumnTypes, TableWarning};
use crate::model::{Connection, DesiredState, GatewayAggregator};
use crate::observed::{Applied, ConfigSnapshot, Observed, ObservedConnection, Presence};
use crate::sql;

/// Input of the views of an aggregator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregatorSync {
    /// Hash of its members and their tables when this was planned.
    pub target_hash: String,
    /// The connections whose tables it shows.
    pub members: Vec<String>,
    /// The existing objects, if any.
    pub applied: Option<Applied>,
    /// The reason.
    pub reason: Reason,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
    /// Foreign tables to drop: those of a former connection of this name.
    pub tables: Vec<String>,
    /// The role `spcd_users` exists.
    pub readers: bool,
    /// Views of the gateway that it reads instead of its members' tables.
    pub gateway: Option<GatewayAggregator>,
}

/// Plans the aggregators, after everything else.
pub(super) fn plan_aggregators(
    plan: &mut Plan,
    desired: &DesiredState,
    retained: &BTreeMap<&str, &ConfigSnapshot>,
    observed: &Observed,
) {
    let all = aggregator::members(desired, retained);
    if all.is_empty() {
        return;
    }
    // An aggregator waits for a member that is about to change, but not for one that has failed.
    let unsettled: BTreeSet<String> = (plan.work.iter())
        .filter(|work| match &work.task {
            Task::Import(import) => {
                import.reason != Reason::Refresh && work.status != Status::Error
            }
            _ => false,
        })
        .filter(|work| !observed.attempts.contains_key(&work.name))
        .map(|work| work.name.clone())
        .collect();
    for (name, members) in all {
        let Some(connection) = desired.connections.get(name) else {
            continue;
        };
        if connection.target.is_ok() {
            plan_aggregator(plan, connection, &members, &unsettled, observed);
        }
    }
}

fn plan_aggregator(
    plan: &mut Plan,
    connection: &Connection,
    members: &[&str],
    unsettled: &BTreeSet<String>,
    observed: &Observed,
) {
    let name = &connection.name;
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
        let error = super::name_taken("schema", name);
        return set(plan, connection, known, Status::Error, Some(&error));
    }
    let gateway = connection.gateway.as_ref();
    let about_to_change =
        |member: &&str| unsettled.contains(*member) && !observed.slow.contains(*member);
    let waits = gateway.is_none() && members.iter().any(about_to_change);
    let hash = match gateway {
        Some(gateway) => aggregator::lanes_hash(&gateway.lanes),
        None => target_hash(members, &observed.connections),
    };
    if connection.awaits_source {
        return wait_for_gateway(plan, connection, known, &hash);
    }
    let reason = match applied {
        None => Reason::New,
        Some(applied) => match verdict(plan, name, applied, members, &hash, waits, observed) {
            Verdict::Work(reason) => reason,
            Verdict::Settled(status) => return set(plan, connection, known, status, None),
        },
    };
    let attempt = observed.attempts.get(name);
    let failed = attempt.filter(|attempt| attempt.target_hash == hash);
    let (status, error) = match reason {
        // Only the members that its warnings name are checked again.
        Reason::Refresh => (Status::Ready, None),
        reason => status_at_work(reason, failed, known),
    };
    set(plan, connection, known, status, error);
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
        task: Task::SyncAggregator(Box::new(AggregatorSync {
            target_hash: hash,
            members: members.iter().map(|member| (*member).to_owned()).collect(),
            applied: applied.cloned(),
            reason,
            warnings: connection.warnings.clone(),
            tables: match applied.is_some_and(|applied| applied.server == Presence::Ours) {
                true => super::droppable(name, observed),
                false => Vec::new(),
            },
            readers: observed.readers,
            gateway: gateway.cloned(),
        })),
    });
}

/// Waits for the views of the gateway. Up-to-date views of the hub stay `ready`.
fn wait_for_gateway(
    plan: &mut Plan,
    connection: &Connection,
    known: Option<&ObservedConnection>,
    hash: &str,
) {
    let is_made = known.is_some_and(|known| {
        let applied = known.applied.as_ref();
        known.status == Status::Ready && applied.is_some_and(|applied| applied.target_hash == hash)
    });
    let (status, error) = match is_made {
        true => (Status::Ready, None),
        false => status_at_work(Reason::New, None, known),
    };
    set(plan, connection, known, status, error);
}

/// Decision about an existing aggregator.
enum Verdict {
    Work(Reason),
    Settled(Status),
}

fn verdict(
    plan: &mut Plan,
    name: &str,
    applied: &Applied,
    members: &[&str],
    hash: &str,
    waits: bool,
    observed: &Observed,
) -> Verdict {
    if aggregator::provisional_base(&applied.target_hash) == Some(hash) {
        return match repair(plan, members, observed) {
            Repair::Unknown => {
                plan.undecided = true;
                Verdict::Settled(Status::Updating)
            }
            Repair::UnderWay => {
                plan.waiting.insert(name.to_owned());
                Verdict::Settled(Status::Updating)
            }
            // The views over the existing tables stay.
            Repair::Failed => Verdict::Settled(Status::Ready),
            Repair::Done => Verdict::Work(Reason::Changed),
        };
    }
    if applied.target_hash != hash {
        return Verdict::Work(Reason::Changed);
    }
    let left = compare(name, applied, observed);
    if matches!(left, Drift::FingerprintOnly) {
        plan.refresh_fingerprints.push(name.to_owned());
    }
    match left {
        Drift::Unreadable | Drift::Changed => Verdict::Work(Reason::Drift),
        // It becomes `updating` together with its member.
        Drift::None | Drift::FingerprintOnly if waits => {
            plan.waiting.insert(name.to_owned());
            Verdict::Settled(Status::Updating)
        }
        // The dependent objects that blocked the change may be gone.
        Drift::None | Drift::FingerprintOnly
            if observed.ask.contains(name) && !applied.warnings.is_empty() =>
        {
            Verdict::Work(Reason::Refresh)
        }
        Drift::None | Drift::FingerprintOnly => Verdict::Settled(Status::Ready),
    }
}

/// Progress of repairing members that have drifted.
enum Repair {
    Unknown,
    UnderWay,
    Failed,
    Done,
}

fn repair(plan: &Plan, members: &[&str], observed: &Observed) -> Repair {
    if !observed.drift_known {
        return Repair::Unknown;
    }
    let is_drifted = |member: &&&str| {
        let known = observed.connections.get(**member);
        let applied = known.and_then(|known| known.applied.as_ref());
        applied.is_some_and(|applied| !applied.intact)
    };
    let drifted: Vec<&&str> = members.iter().filter(is_drifted).collect();
    if drifted.is_empty() {
        return Repair::Done;
    }
    let work = plan.work.iter().map(|work| &work.name);
    let planned: BTreeSet<&str> = work
        .chain(&plan.refresh_fingerprints)
        .map(String::as_str)
        .collect();
    // A member that is paused, or whose source rejects its credentials, is not repaired for now.
    let is_under_way =
        |member: &&&str| planned.contains(**member) && !observed.attempts.contains_key(**member);
    match drifted.iter().any(is_under_way) {
        true => Repair::UnderWay,
        false => Repair::Failed,
    }
}

/// Returns the hash of an aggregator's members and their recorded tables.
fn target_hash(members: &[&str], connections: &BTreeMap<String, ObservedConnection>) -> String {
    let shape = |name: &str| {
        let known = connections.get(name)?;
        let applied = known.applied.as_ref()?;
        let takes_part = applied.schema == Presence::Ours
            && !aggregator::is_aggregator_hash(&applied.target_hash);
        known.schema_hash.as_deref().filter(|_| takes_part)
    };
    aggregator::target_hash(members.iter().map(|name| (*name, shape(name))))
}

/// Result of comparing existing views with the recorded ones.
enum Drift {
    None,
    FingerprintOnly,
    Unreadable,
    Changed,
}

fn compare(name: &str, applied: &Applied, observed: &Observed) -> Drift {
    let ours = applied.schema == Presence::Ours;
    if ours && applied.intact && applied.readable {
        return Drift::None;
    }
    match observed.views.get(name) {
        _ if !ours => Drift::Changed,
        None => Drift::Changed,
        Some(views) if !views.altered.is_empty() => Drift::Changed,
        Some(views) if !views.unreadable.is_empty() || !applied.readable => Drift::Unreadable,
        Some(_) => Drift::FingerprintOnly,
    }
}

/// Share of the server's locks that one query may take, as a divisor. A query locks all tables under a
/// view, even if it reads only one.
const LOCK_SHARE_DIVISOR: usize = 4;
/// Maximum number of members without tables that a warning names.
const MAX_NAMED_MEMBERS: usize = 10;
/// Recorded until the last package of views is written. No target has this hash.
const INCOMPLETE: &str = "aggregator:incomplete";

/// Returns what to write for an aggregator whose members were observed: units in this order, the last of
/// which makes it `ready`. There is more than one only if one transaction would take too many locks,
/// and none if a refresh finds no difference.
pub fn resolve_aggregator(
    name: &str,
    status: Status,
    sync: &AggregatorSync,
    found: &AggregatorInput,
) -> Vec<WriteUnit> {
    let mut changes = aggregator::diff_views(name, found, None, false);
    let made = sync.applied.as_ref();
    let tables = std::mem::take(&mut changes.tables);
    let left_out = std::mem::take(&mut changes.left_out);
    let warnings = warnings(sync, found, &changes.warnings, &left_out);
    let names: Vec<String> = tables.iter().map(|table| table.name.clone()).collect();
    let record = |target_hash: &str| {
        Bookkeeping::Made(Box::new(Record {
            target_hash: target_hash.into(),
            tables: names.clone(),
            members: Some(sync.members.clone()),
            warnings: warnings.clone(),
            left_out: left_out.clone(),
            server_name: None,
            compare_again: sync.reason == Reason::Drift,
            hidden_schema: None,
            extension_version: None,
            columns: None,
            types: ColumnTypes::new(),
            tuning: None,
        }))
    };

    let mut first = before_views(name, sync, found);
    let mut units: Vec<WriteUnit> = Vec::new();
    let mut packages = changes.batches(found.lock_capacity / LOCK_SHARE_DIVISOR);
    let last = packages.pop().unwrap_or_default();
    for package in packages {
        units.push(WriteUnit {
            name: name.into(),
            sql: std::mem::take(&mut first) + &package.statements(name, found, sync.readers),
            tables: package.locks(),
            locks: package.locks(),
            row: RowChange {
                name: name.into(),
                ..RowChange::default()
            },
            record: record(INCOMPLETE),
            ..WriteUnit::default()
        });
    }
    let sql = first + &last.statements(name, found, sync.readers);
    if sync.reason == Reason::Refresh
        && sql.is_empty()
        && units.is_empty()
        && made.is_some_and(|applied| {
            applied.target_hash == found.target_hash
                && applied.warnings == warnings
                && applied.left_out == left_out.len()
        })
    {
        return units;
    }
    units.push(WriteUnit {
        name: name.into(),
        sql,
        tables: last.locks(),
        locks: last.locks(),
        row: RowChange {
            name: name.into(),
            route: route(status, found),
            warnings: Some(merged(warnings.iter().chain(&sync.warnings))),
            imported: Some(Imported {
                schema_mode: None,
                schema_hash: diff::hash(&tables, WrapperTraits::default()),
                table_count: tables.len(),
            }),
            ..RowChange::default()
        },
        record: record(&found.target_hash),
        ..WriteUnit::default()
    });
    units
}

/// Returns the statuses that an aggregator passes through.
fn route(status: Status, found: &AggregatorInput) -> Vec<Status> {
    match status {
        // Members that have drifted are repaired first.
        status if aggregator::provisional_base(&found.target_hash).is_some() => {
            Status::route(Some(status), Status::Updating)
        }
        Status::Ready | Status::Error => vec![Status::Updating, Status::Ready],
        status => Status::route(Some(status), Status::Ready),
    }
}

/// Returns the statements that precede an aggregator's views: they create its schema, drop the objects
/// of a former connection of its name, and grant missing privileges.
fn before_views(name: &str, sync: &AggregatorSync, found: &AggregatorInput) -> String {
    let made = sync.applied.as_ref();
    let has_schema = made.is_some_and(|applied| applied.schema == Presence::Ours);
    let mut first = String::new();
    if !has_schema {
        first.push_str(&sql::create_schema(name));
    }
    if let Some(applied) = made.filter(|applied| applied.server == Presence::Ours) {
        resolve_import::drop_tables(name, &sync.tables, &mut first);
        match applied.has_own_server() {
            true => first.push_str(&sql::drop_server(name)),
            false => first.push_str(&lanes::touch(Some(applied), name, &BTreeSet::new())),
        }
    }
    if sync.readers {
        if made.is_none_or(|applied| !applied.readable) || !has_schema {
            first.push_str(&sql::grant_schema(name));
        }
        let is_closed = |view: &&aggregator::ExistingView| view.exists && view.unreadable;
        let unreadable = found.existing_views.iter().filter(is_closed);
        let unreadable: Vec<&str> = unreadable.map(|view| view.name.as_str()).collect();
        if !unreadable.is_empty() {
            first.push_str(&sql::grant_tables(name, unreadable));
        }
    }
    first
}

/// Returns all warnings: those about views, and about members without tables and more members than
/// the server can lock.
fn warnings(
    sync: &AggregatorSync,
    found: &AggregatorInput,
    of_views: &[String],
    left_out: &[TableWarning],
) -> Vec<String> {
    let mut warnings = of_views.to_vec();
    warnings.extend(left_out.iter().map(|left_out| left_out.text.clone()));
    let there: BTreeSet<&str> = found
        .members
        .iter()
        .map(|(name, _, _)| name.as_str())
        .collect();
    // For members in the gateway, the gateway's own rows carry the warning.
    let is_without = |name: &&str| sync.gateway.is_none() && !there.contains(name);
    let without: Vec<&str> = (sync.members.iter().map(String::as_str))
        .filter(is_without)
        .collect();
    if !without.is_empty() {
        let more = match without.len().saturating_sub(MAX_NAMED_MEMBERS) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named: Vec<_> = (without.iter().take(MAX_NAMED_MEMBERS))
            .map(|name| format!("{name:?}"))
            .collect();
        warnings.push(format!(
            "connections without tables are not shown: {}{more}",
            named.join(", ")
        ));
    }
    let most = found.lock_capacity / LOCK_SHARE_DIVISOR;
    if found.members.len() > most {
        warnings.push(format!(
            "a query on a view of {} members locks each of them, and the server has room for {} \
             locks in all: raise max_locks_per_transaction",
            found.members.len(),
            found.lock_capacity
        ));
    }
    warnings
}
