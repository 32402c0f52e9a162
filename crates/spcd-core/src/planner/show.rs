//! Prints a plan, for the dry run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    Alignment, Import, Plan, Reason, RowChange, Task, Work, drop_unit, grant_unit, resolve_import,
};
use crate::diff::{self, Blockers};
use crate::model::ForeignSource;
use crate::observed::{Applied, Detail, ImportPreview, Observed, Presence};
use crate::secret::masked;
use crate::sql;

/// Returns the plan as a diff of objects: `+` created, `~` altered, `-` dropped. Empty if there is
/// nothing to do. Shows public values only.
pub fn show(plan: &Plan, observed: &Observed) -> String {
    let mut out = String::new();
    if plan.admit {
        out.push_str("~ spcd_users may read the schema \"spcd\"\n");
    }
    for extension in &plan.extensions {
        let _ = writeln!(out, "+ extension {extension:?}");
    }
    for lane in &plan.lanes {
        let _ = writeln!(out, "{} server {:?}", lane.sign(), lane.server);
    }
    for work in &plan.work {
        out.push_str(&show_work(work, observed));
    }
    for (sign, role) in roles(plan) {
        let _ = writeln!(out, "{sign} search path of role {role:?}");
    }
    for row in plan.lone_rows() {
        let _ = match (&row.error, row.remove, row.route.last()) {
            (Some(error), _, _) => writeln!(out, "! connection {:?}\n    {error}", row.name),
            (None, true, _) => writeln!(out, "- connection {:?}", row.name),
            (None, false, None) => writeln!(out, "~ connection {:?}\n    ~ its row", row.name),
            (None, false, Some(status)) => {
                writeln!(out, "~ connection {:?}\n    ~ its row: {status}", row.name)
            }
        };
    }
    out
}

/// Returns the roles whose search path is set (`~`) or reset (`-`).
fn roles(plan: &Plan) -> impl Iterator<Item = (char, &String)> {
    let change = plan.search_path.iter();
    change.flat_map(|change| {
        let set = change.set.iter().map(|role| ('~', role));
        set.chain(change.reset.iter().map(|role| ('-', role)))
    })
}

/// Returns the plan for programs: `{"extensions":[…],"changes":[{"connection","action","why","detail"}]}`.
pub fn show_json(plan: &Plan, observed: &Observed) -> Value {
    let works = plan.work.iter().map(|work| {
        let (action, why) = match &work.task {
            Task::Import(import) => match import.reason {
                Reason::New => ("create", "new"),
                Reason::Changed => ("update", "changed"),
                Reason::Drift => ("update", "drift"),
                Reason::Refresh => ("update", "refresh"),
            },
            Task::SyncAggregator(sync) => match sync.reason {
                Reason::New => ("create", "new"),
                Reason::Changed | Reason::Refresh => ("update", "changed"),
                Reason::Drift => ("update", "drift"),
            },
            Task::Drop { keep: Some(_), .. } => ("disable", "disabled"),
            Task::Drop { keep: None, .. } => ("delete", "removed"),
            Task::Grant { .. } => ("update", "grants"),
        };
        let shown = show_work(work, observed);
        let detail: Vec<&str> = shown.lines().skip(1).map(str::trim_start).collect();
        json!({"connection": work.name, "action": action, "why": why, "detail": detail})
    });
    let rows = plan.lone_rows().map(|row| {
        let action = match (&row.error, row.remove) {
            (Some(_), _) => "error",
            (None, true) => "delete",
            (None, false) => "state",
        };
        let status = row.route.last();
        json!({"connection": row.name, "action": action, "status": status, "error": row.error})
    });
    let roles = roles(plan).map(|(sign, role)| {
        let action = if sign == '~' { "set" } else { "reset" };
        json!({"role": role, "action": action})
    });
    let roles: Vec<_> = roles.collect();
    json!({"extensions": plan.extensions, "search_path": roles, "changes": works.chain(rows).collect::<Vec<_>>()})
}

/// Returns the plan as statements, without secrets. Tables of sources that were not asked are missing.
pub fn show_sql(plan: &Plan, observed: &Observed) -> String {
    let mut out = String::new();
    for extension in &plan.extensions {
        let _ = writeln!(
            out,
            "CREATE EXTENSION IF NOT EXISTS {};",
            sql::ident(extension)
        );
    }
    for lane in &plan.lanes {
        let _ = writeln!(out, "-- {}", one_line(&lane.server));
        out.push_str(&lane.sql);
    }
    for work in &plan.work {
        let _ = writeln!(out, "-- {}", one_line(&work.name));
        let unit = match &work.task {
            Task::Drop {
                keep,
                applied,
                tables,
            } => drop_unit(
                &work.name,
                work.status,
                applied,
                tables,
                keep.as_deref(),
                false,
            ),
            Task::Grant { tables } => grant_unit(&work.name, work.status, tables),
            Task::SyncAggregator(_) => {
                let _ = writeln!(out, "-- its views: known once its members are looked at");
                continue;
            }
            Task::Import(import) => {
                let mut import = import.clone();
                let mut detail = observed
                    .details
                    .get(&work.name)
                    .cloned()
                    .unwrap_or_default();
                hide(&mut import.target, &mut detail);
                let ahead = observed.answers.get(&work.name);
                let answer = ahead.and_then(|ahead| ahead.tables.as_ref().ok());
                let none = Blockers::default();
                let known = super::RemoteSchema::from(detail.tables.clone());
                let remote = answer.unwrap_or(&known);
                let unit = resolve_import(
                    &work.name,
                    work.status,
                    &import,
                    &detail,
                    remote,
                    ahead.map_or(&none, |ahead| &ahead.blockers),
                );
                if answer.is_none() {
                    let _ = writeln!(out, "-- its tables: known after import");
                }
                unit.ok().flatten().unwrap_or_default()
            }
        };
        unit.chunks
            .iter()
            .for_each(|chunk| out.push_str(&chunk.sql));
        out.push_str(&unit.sql);
        if let Some(mapping) = &unit.mapping {
            let options: Vec<_> = mapping.keys().map(String::as_str).collect();
            let _ = writeln!(
                out,
                "-- user mapping for PUBLIC: {}",
                one_line(&options.join(", "))
            );
        }
    }
    out
}

/// Masks server options: those that are not public, and secrets within public ones. Equal values stay
/// equal, and different ones different.
fn hide(target: &mut ForeignSource, detail: &mut Detail) {
    for (name, option) in &mut target.server {
        let shown = match option.public {
            true => masked(&option.value),
            false => "***".into(),
        };
        if shown == option.value {
            continue;
        }
        let options = detail.server.as_mut().map(|(_, options)| options);
        if let Some(there) = options.and_then(|options| options.get_mut(name)) {
            *there = match *there == option.value {
                true => shown.clone(),
                false => format!("{shown} (old)"),
            };
        }
        option.value = shown;
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

impl Plan {
    /// Removes the imports whose answer is known and changes nothing.
    pub fn without_same_answers(&mut self, observed: &Observed) {
        let none = Detail::default();
        self.work.retain(|work| {
            let Task::Import(import) = &work.task else {
                return true;
            };
            let Some(ImportPreview {
                tables: Ok(tables),
                blockers,
            }) = observed.answers.get(&work.name)
            else {
                return true;
            };
            let detail = observed.details.get(&work.name).unwrap_or(&none);
            let unit = resolve_import(&work.name, work.status, import, detail, tables, blockers);
            unit != Ok(None)
        });
    }

    /// Returns the changed rows of connections without work.
    fn lone_rows(&self) -> impl Iterator<Item = &RowChange> {
        let works: BTreeSet<&str> = self.work.iter().map(|work| work.name.as_str()).collect();
        self.rows
            .iter()
            .filter(move |row| !works.contains(row.name.as_str()))
    }
}

fn show_work(work: &Work, observed: &Observed) -> String {
    let mut out = String::new();
    match &work.task {
        Task::Import(import) => {
            let detail = observed
                .details
                .get(&work.name)
                .cloned()
                .unwrap_or_default();
            let tables = observed
                .tables
                .get(&work.name)
                .map_or(&[][..], Vec::as_slice);
            show_import(&mut out, &work.name, import, &detail, tables);
            match observed.answers.get(&work.name) {
                Some(ahead) => show_answer(&mut out, import, &detail, ahead),
                None => show_no_answer(&mut out, import),
            }
        }
        Task::SyncAggregator(sync) => {
            let sign = if sync.reason == Reason::New { '+' } else { '~' };
            let _ = writeln!(out, "{sign} aggregator {:?}", work.name);
            let _ = writeln!(out, "    ~ its views follow {} members", sync.members.len());
        }
        Task::Drop { keep, tables, .. } => {
            let stays = if keep.is_some() { " (disabled)" } else { "" };
            let _ = writeln!(out, "- connection {:?}{stays}", work.name);
            for table in tables {
                let _ = writeln!(out, "    - table {table}");
            }
            let _ = writeln!(out, "    - schema, server, user mapping");
        }
        Task::Grant { tables } => {
            let _ = writeln!(out, "~ connection {:?}", work.name);
            let _ = writeln!(
                out,
                "    ~ spcd_users may read it ({} tables)",
                tables.len()
            );
        }
    }
    out
}

fn show_import(out: &mut String, name: &str, import: &Import, detail: &Detail, made: &[String]) {
    let target = &import.target;
    let applied = import.applied.as_ref();
    let has = |presence: Option<Presence>| presence == Some(Presence::Ours);
    let sign = match import.reason {
        Reason::New => '+',
        Reason::Changed | Reason::Drift | Reason::Refresh => '~',
    };
    let _ = writeln!(out, "{sign} connection {name:?}");
    if !has(applied.map(|applied| applied.schema)) {
        let _ = writeln!(out, "    + schema {name:?}");
    }
    match target.lane {
        Some(_) => {
            let server = target.server_name(name);
            let _ = writeln!(out, "      tables on server {server:?}");
        }
        None => show_server(out, name, import, detail),
    }
    for table in made {
        let is_there = detail.tables.iter().any(|there| there.name == *table);
        if applied.is_some() && !is_there {
            let _ = writeln!(out, "    + table {table} (it is gone)");
        }
    }
}

fn show_server(out: &mut String, name: &str, import: &Import, detail: &Detail) {
    let target = &import.target;
    let is_made = (import.applied.as_ref()).is_some_and(Applied::has_own_server);
    match &detail.server {
        Some((wrapper, options)) if is_made => {
            if *wrapper != target.wrapper {
                let _ = writeln!(out, "    ± server {name:?} {wrapper} → {}", target.wrapper);
            } else {
                show_options(out, options, target);
            }
            if detail.mapping.as_ref() != Some(&target.mapping) {
                let _ = writeln!(out, "    ~ user mapping");
            }
        }
        // The server is as desired, so that it was not observed in detail.
        None if is_made => {}
        _ => {
            let _ = writeln!(out, "    + server {name:?} ({})", target.wrapper);
            for (option, value) in &target.server {
                let value = match value.public {
                    true => masked(&value.value),
                    false => "***".into(),
                };
                let _ = writeln!(out, "        {option} = {value}");
            }
            if let Some(tunnel) = &target.tunnel {
                let _ = writeln!(out, "      reached by ssh through {tunnel}");
            }
            let options: Vec<_> = target.mapping.keys().map(String::as_str).collect();
            let _ = match options.is_empty() {
                true => writeln!(out, "    + user mapping"),
                false => writeln!(out, "    + user mapping ({})", options.join(", ")),
            };
        }
    }
}

fn show_no_answer(out: &mut String, import: &Import) {
    let _ = match import.applied {
        None => writeln!(
            out,
            "    + tables of schema {:?}: known after import",
            import.target.import.schema
        ),
        Some(_) => writeln!(out, "    ~ its tables are compared with the source's"),
    };
}

/// Appends the changes of the tables and the refused ones.
fn show_answer(out: &mut String, import: &Import, detail: &Detail, ahead: &ImportPreview) {
    let tables = match &ahead.tables {
        Ok(tables) => tables,
        Err(error) => {
            let _ = writeln!(out, "    ! its source does not answer: {}", one_line(error));
            return;
        }
    };
    let Alignment {
        detail,
        remote: tables,
        renames,
    } = import.align(detail, tables, &ahead.blockers.fixed);
    let lines = |text: String| -> String {
        let lines = text.lines().map(|line| format!("    {line}\n"));
        lines.collect()
    };
    for rename in renames.tables() {
        out.push_str(&lines(rename.to_string()));
    }
    let (changes, refused) =
        diff::separate_blocked(import.changes(&detail, &tables), &ahead.blockers);
    for change in changes {
        out.push_str(&lines(change.to_string()));
    }
    let invalid = diff::import_error_warnings(&detail.tables, &tables);
    let of_tables = refused.iter().chain(&invalid).chain(&tables.left_out);
    let of_tables = of_tables.map(|warning| &warning.text);
    for warning in of_tables.chain(&tables.warnings) {
        let _ = writeln!(out, "    ! {}", one_line(warning));
    }
}

fn show_options(out: &mut String, old: &BTreeMap<String, String>, target: &ForeignSource) {
    for name in old.keys().filter(|name| !target.server.contains_key(*name)) {
        let _ = writeln!(out, "    - server option {name}");
    }
    for (name, option) in &target.server {
        let (was, is) = (old.get(name), &option.value);
        let shown = |value: &str| match option.public {
            true => masked(value),
            false => "***".into(),
        };
        let _ = match was {
            Some(was) if was == is => Ok(()),
            Some(was) => {
                writeln!(
                    out,
                    "    ~ server option {name}: {} → {}",
                    shown(was),
                    shown(is)
                )
            }
            None => writeln!(out, "    + server option {name} = {}", shown(is)),
        };
    }
}
