//! The dry run: a plan as people read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Import, Plan, RowChange, Task, Why, Work, drop_unit, grant_unit, settle};
use crate::model::Target;
use crate::observed::{Ahead, Detail, Observed, Presence};
use crate::secret::masked;
use crate::shape::{self, Obstacles};
use crate::sql;

/// The plan as a diff of objects, `+` made, `~` altered, `-` dropped; empty if there is nothing
/// to do. Shows no value that is not public.
pub fn show(plan: &Plan, observed: &Observed) -> String {
    let mut out = String::new();
    if plan.admit {
        out.push_str("~ spcd_users may read the schema \"spcd\"\n");
    }
    for extension in &plan.extensions {
        let _ = writeln!(out, "+ extension {extension:?}");
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

/// The roles whose search path is set (`~`) or taken back (`-`).
fn roles(plan: &Plan) -> impl Iterator<Item = (char, &String)> {
    let change = plan.search_path.iter();
    change.flat_map(|change| {
        let set = change.set.iter().map(|role| ('~', role));
        set.chain(change.reset.iter().map(|role| ('-', role)))
    })
}

/// The plan for programs: `{"extensions":[…],"changes":[{"connection","action","why","detail"}]}`.
pub fn show_json(plan: &Plan, observed: &Observed) -> Value {
    let works = plan.work.iter().map(|work| {
        let (action, why) = match &work.task {
            Task::Import(import) => match import.why {
                Why::New => ("create", "new"),
                Why::Changed => ("update", "changed"),
                Why::Drift => ("update", "drift"),
                Why::Refresh => ("update", "refresh"),
            },
            Task::Unite(unite) => match unite.why {
                Why::New => ("create", "new"),
                Why::Changed | Why::Refresh => ("update", "changed"),
                Why::Drift => ("update", "drift"),
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

/// The plan as statements. What is secret is not in it, and what a source says is not known.
pub fn show_sql(plan: &Plan, observed: &Observed) -> String {
    let mut out = String::new();
    for extension in &plan.extensions {
        let _ = writeln!(
            out,
            "CREATE EXTENSION IF NOT EXISTS {};",
            sql::ident(extension)
        );
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
            Task::Unite(_) => {
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
                let none = Obstacles::default();
                let known = super::Offer::from(detail.tables.clone());
                let offer = answer.unwrap_or(&known);
                let unit = settle(
                    &work.name,
                    work.status,
                    &import,
                    &detail,
                    offer,
                    ahead.map_or(&none, |ahead| &ahead.obstacles),
                );
                if answer.is_none() {
                    let _ = writeln!(out, "-- its tables: known after import");
                }
                unit.ok().flatten().unwrap_or_default()
            }
        };
        unit.pieces
            .iter()
            .for_each(|piece| out.push_str(&piece.sql));
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

/// Masks server options: those that are not public, and secrets within those that are. Values that
/// are equal stay so, and those that differ stay different.
fn hide(target: &mut Target, detail: &mut Detail) {
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
    /// Leaves out the sources that were asked ahead and whose answer changes nothing.
    pub fn without_same_answers(&mut self, observed: &Observed) {
        let none = Detail::default();
        self.work.retain(|work| {
            let Task::Import(import) = &work.task else {
                return true;
            };
            let Some(Ahead {
                tables: Ok(tables),
                obstacles,
            }) = observed.answers.get(&work.name)
            else {
                return true;
            };
            let detail = observed.details.get(&work.name).unwrap_or(&none);
            let unit = settle(&work.name, work.status, import, detail, tables, obstacles);
            unit != Ok(None)
        });
    }

    /// The rows that do not go with work: those say what the work is about to do.
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
        Task::Unite(unite) => {
            let sign = if unite.why == Why::New { '+' } else { '~' };
            let _ = writeln!(out, "{sign} aggregator {:?}", work.name);
            let _ = writeln!(
                out,
                "    ~ its views follow {} members",
                unite.members.len()
            );
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
    let sign = match import.why {
        Why::New => '+',
        Why::Changed | Why::Drift | Why::Refresh => '~',
    };
    let _ = writeln!(out, "{sign} connection {name:?}");
    if !has(applied.map(|applied| applied.schema)) {
        let _ = writeln!(out, "    + schema {name:?}");
    }
    match &detail.server {
        Some((wrapper, options)) if has(applied.map(|applied| applied.server)) => {
            if *wrapper != target.wrapper {
                let _ = writeln!(out, "    ± server {name:?} {wrapper} → {}", target.wrapper);
            } else {
                show_options(out, options, target);
            }
            if detail.mapping.as_ref() != Some(&target.mapping) {
                let _ = writeln!(out, "    ~ user mapping");
            }
        }
        // It is as it should be: nobody looked closer.
        None if has(applied.map(|applied| applied.server)) => {}
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
    for table in made {
        let is_there = detail.tables.iter().any(|there| there.name == *table);
        if applied.is_some() && !is_there {
            let _ = writeln!(out, "    + table {table} (it is gone)");
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

/// What becomes of its tables, and what does not, for whose sake.
fn show_answer(out: &mut String, import: &Import, detail: &Detail, ahead: &Ahead) {
    let tables = match &ahead.tables {
        Ok(tables) => tables,
        Err(error) => {
            let _ = writeln!(out, "    ! its source does not answer: {}", one_line(error));
            return;
        }
    };
    let (changes, kept) = shape::guard(import.changes(detail, tables), &ahead.obstacles);
    for change in changes {
        for line in change.to_string().lines() {
            let _ = writeln!(out, "    {line}");
        }
    }
    let unfit = shape::unfit(&detail.tables, tables);
    let left_out = tables.warnings.iter().cloned();
    for warning in kept.into_iter().chain(unfit).chain(left_out) {
        let _ = writeln!(out, "    ! {}", one_line(&warning));
    }
}

fn show_options(out: &mut String, old: &BTreeMap<String, String>, target: &Target) {
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
