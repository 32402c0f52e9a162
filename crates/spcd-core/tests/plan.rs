//! Golden files: tests/plan/*.spc say what was applied, what happened meanwhile, and what is desired
//! now; the `.plan` beside each is what a pass does then. UPDATE_GOLDEN=1 writes them anew.
//!
//! A case is one file of three parts, each begun by a line `#### before`, `#### meanwhile`,
//! `#### now`. The second has a fact a line:
//!
//! ```text
//! tables NAME t(a integer, b text) …   what was imported (else: one table t(id integer))
//! answer NAME t(a integer) …           what its source has now
//! view NAME t.a public.v               a view of people's on a column
//! altered NAME                         a user altered its server
//! touched NAME                         a user granted a privilege
//! lost NAME TABLE                      a user dropped a table
//! replaced NAME                        a user dropped the schema and created another one
//! taken NAME schema|server             another object has that name
//! status NAME STATUS [ERROR]           what its row says
//! failed NAME now|later ERROR          the last attempt; whether another is due
//! ask NAME                             its turn has come
//! doubt PATH [ERROR]                   a directory that is not what it was
//! extension NAME missing|available     (else: installed)
//! readers new|there                    spcd_users exists
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use spcd_core::config::{DesiredState, SourceFile, UnknownInput};
use spcd_core::diff::{self, Blockers, BrokenBy, Column, Dependent, Dependents, Table};
use spcd_core::observed::{
    Applied, Attempt, ConfigSnapshot, Detail, Extension, Observed, ObservedConnection, Presence,
};
use spcd_core::planner::{self, Plan, RowChange, Running, Task};
use spcd_protocol::Status;

#[test]
fn plans_are_as_the_golden_files_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/plan");
    let entries = std::fs::read_dir(&dir).unwrap();
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "spc"));
    cases.sort();
    assert!(cases.len() > 10, "the cases are in {}", dir.display());
    let mut wrong = Vec::new();
    for case in cases {
        let shown = World::of(&std::fs::read_to_string(&case).unwrap()).show();
        let golden = case.with_extension("plan");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &shown).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if shown != expected {
            let case = case.display();
            wrong.push(format!("{case}\n--- is\n{shown}--- should be\n{expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A case as data.
struct World {
    now: DesiredState,
    observed: Observed,
    /// Of every connection, while `observed` has only those that plan() asks for.
    details: BTreeMap<String, Detail>,
    answers: BTreeMap<String, Vec<Table>>,
    views: BTreeMap<String, Dependents>,
}

impl World {
    fn of(text: &str) -> Self {
        let part = |name: &str| -> String {
            let mut lines = text
                .lines()
                .skip_while(|line| *line != format!("#### {name}"));
            lines.next();
            lines
                .take_while(|line| !line.starts_with("#### "))
                .fold(String::new(), |text, line| text + line + "\n")
        };
        let before = load(&part("before"));
        let mut world = World {
            now: load(&part("now")),
            observed: Observed {
                admitted: true,
                drift_known: true,
                ..Observed::default()
            },
            details: BTreeMap::new(),
            answers: BTreeMap::new(),
            views: BTreeMap::new(),
        };
        world.apply(&before);
        let mut touched = BTreeSet::new();
        for line in part("meanwhile").lines() {
            touched.extend(world.fact(line));
        }
        for name in &touched {
            world.made(name).intact = false;
        }
        let needs = planner::needs_detail(&world.now, &world.observed);
        world.observed.details = world.details.clone();
        world
            .observed
            .details
            .retain(|name, _| needs.details.contains(name));
        world
            .observed
            .tables
            .retain(|name, _| needs.tables.contains(name));
        world
    }

    /// Fills the database with what is desired.
    fn apply(&mut self, desired: &DesiredState) {
        for (name, connection) in &desired.connections {
            let mut known = ObservedConnection {
                comments_set: false,
                status: Status::Ready,
                error: None,
                warnings: connection.warnings.clone(),
                written: ConfigSnapshot::of(connection),
                schema_hash: None,
                applied: None,
                waits_for: None,
            };
            match &connection.target {
                _ if !connection.enabled => known.status = Status::Disabled,
                Err(error) => {
                    known.status = Status::Error;
                    known.error = Some(error.clone());
                }
                Ok(target) => {
                    known.applied = Some(Applied::complete(desired.target_hash(name)));
                    let detail = Detail {
                        server: Some((target.wrapper.clone(), target.server_options())),
                        mapping: Some(target.mapping.clone()),
                        ..Detail::default()
                    };
                    self.details.insert(name.clone(), detail);
                }
            }
            let imported = known.applied.is_some();
            self.observed.connections.insert(name.clone(), known);
            if imported {
                self.import(name, tables("t(id integer)"));
            }
        }
    }

    fn import(&mut self, name: &str, tables: Vec<Table>) {
        let names = tables.iter().map(|table| table.name.clone()).collect();
        self.observed.tables.insert(name.into(), names);
        let hash = diff::hash(&tables, diff::WrapperTraits::default());
        self.observed.connections.get_mut(name).unwrap().schema_hash = Some(hash);
        self.detail(name).tables = tables;
    }

    fn made(&mut self, name: &str) -> &mut Applied {
        let known = self.observed.connections.get_mut(name).unwrap();
        known.applied.as_mut().unwrap()
    }

    fn detail(&mut self, name: &str) -> &mut Detail {
        self.details.get_mut(name).unwrap()
    }

    /// Lets a fact be true; returns the connection if its row versions differ by it.
    fn fact(&mut self, line: &str) -> Option<String> {
        let (fact, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (name, more) = rest.split_once(' ').unwrap_or((rest, ""));
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        match fact {
            "tables" => self.import(name, tables(more)),
            "answer" => {
                self.answers.insert(name.into(), tables(more));
            }
            "view" => {
                let (column, view) = more.split_once(' ').unwrap();
                let (table, column) = column.split_once('.').unwrap();
                let of_connection = self.views.entry(name.into()).or_default();
                let of_table = of_connection.entry(table.into()).or_default();
                let of_column = of_table.entry(column.into()).or_default();
                of_column.insert(Dependent {
                    description: format!("view {view}"),
                    broken_by: BrokenBy::Retype,
                });
            }
            "altered" => {
                let (_, options) = self.detail(name).server.as_mut().unwrap();
                options.insert("port".into(), "1".into());
                return some(name);
            }
            "touched" => return some(name),
            "lost" => {
                self.detail(name).tables.retain(|table| table.name != more);
                return some(name);
            }
            "replaced" => self.made(name).schema = Presence::Foreign,
            "taken" => {
                self.observed.taken.insert(name.into(), more.into());
            }
            "status" => {
                let (status, error) = more.split_once(' ').unwrap_or((more, ""));
                let known = self.observed.connections.get_mut(name).unwrap();
                known.status = status.parse().unwrap();
                known.error = some(error);
            }
            "failed" => {
                let (due, error) = more.split_once(' ').unwrap();
                let is_desired = self.now.connections.get(name).is_some_and(|c| c.enabled);
                let hash = self.now.target_hash(name);
                let attempt = Attempt {
                    target_hash: if is_desired {
                        hash.to_owned()
                    } else {
                        String::new()
                    },
                    error: error.into(),
                    due: due == "now",
                };
                self.observed.attempts.insert(name.into(), attempt);
            }
            "urgent" => {
                self.observed.ask.insert(name.into());
                self.observed.urgent.insert(name.into());
            }
            "ask" => {
                self.observed.ask.insert(name.into());
            }
            "doubt" => self.now.unknown_inputs.push(UnknownInput {
                mirror: None,
                path: name.into(),
                is_directory: true,
                error: some(more),
            }),
            "extension" => {
                let state = match more {
                    "missing" => Extension::Missing,
                    _ => Extension::Available,
                };
                self.observed.extensions.insert(name.into(), state);
            }
            "readers" => {
                self.observed.readers = true;
                self.observed.admitted = name == "there";
                let names: Vec<String> = self.details.keys().cloned().collect();
                for name in names.iter().filter(|_| name == "new") {
                    self.made(name).readable = false;
                    let detail = self.detail(name);
                    detail.unreadable = detail.tables.iter().map(|t| t.name.clone()).collect();
                }
            }
            fact => panic!("{fact:?} is no fact"),
        }
        None
    }

    fn show(&self) -> String {
        let plan = planner::plan(&self.now, &self.observed, &Running::default());
        let mut out = match plan.is_empty() {
            true => "nothing to do\n".to_owned(),
            false => planner::show(&plan, &self.observed),
        };
        if !plan.refresh_fingerprints.is_empty() {
            let _ = writeln!(
                out,
                "(recorded anew: {})",
                plan.refresh_fingerprints.join(", ")
            );
        }
        for row in &plan.rows {
            show_row(row, &mut out);
        }
        self.show_answers(&plan, &mut out);
        out
    }

    fn show_answers(&self, plan: &Plan, out: &mut String) {
        for work in &plan.work {
            let (Task::Import(import), Some(answer)) = (&work.task, self.answers.get(&work.name))
            else {
                continue;
            };
            let none = Detail::default();
            let detail = self.details.get(&work.name).unwrap_or(&none);
            let blockers = Blockers {
                dependents: self.views.get(&work.name).cloned().unwrap_or_default(),
                ..Blockers::default()
            };
            let unit = planner::resolve_import(
                &work.name,
                work.status,
                import,
                detail,
                &answer.clone().into(),
                &blockers,
            );
            let _ = writeln!(out, "\nthe source of {} answers, and then:", work.name);
            let unit = match unit {
                Ok(Some(unit)) => unit,
                Ok(None) => {
                    out.push_str("nothing\n");
                    continue;
                }
                Err(error) => {
                    let _ = writeln!(out, "error: {error}");
                    continue;
                }
            };
            unit.chunks
                .iter()
                .for_each(|chunk| out.push_str(&chunk.sql));
            out.push_str(&unit.sql);
            if let Some(mapping) = &unit.mapping {
                let options: Vec<_> = mapping.keys().map(String::as_str).collect();
                let _ = writeln!(out, "(user mapping: {})", options.join(", "));
            }
            for warning in unit.row.warnings.iter().flatten() {
                let _ = writeln!(out, "warning: {warning}");
            }
            show_row(&unit.row, out);
        }
    }
}

fn show_row(row: &RowChange, out: &mut String) {
    let mut route: Vec<_> = row.route.iter().map(|status| status.as_str()).collect();
    if row.route.is_empty() {
        route.push("(stays)");
    }
    if row.remove {
        route.push("gone");
    }
    let _ = writeln!(out, "row {}: {}", row.name, route.join(" → "));
}

fn load(text: &str) -> DesiredState {
    let source = SourceFile {
        path: "conf.d/case.spc".into(),
        text: Ok(text.to_owned()),
    };
    spcd_core::config::load_plain(&[source])
}

/// `t(a integer, b text) u(x date)`
fn tables(text: &str) -> Vec<Table> {
    let column = |text: &str| {
        let (name, data_type) = text.split_once(' ').unwrap();
        Column {
            name: name.into(),
            data_type: data_type.into(),
            ..Column::default()
        }
    };
    // A type's modifier has parentheses of its own: a table ends where one is closed before a
    // space or the end.
    let mut tables = Vec::new();
    for text in text.replace(") ", ")\n").lines() {
        let (name, columns) = text.trim_end_matches(')').split_once('(').unwrap();
        let columns = columns.replace(", ", "\n");
        let closed = |text: &str| match text.contains('(') {
            true => format!("{text})"),
            false => text.to_owned(),
        };
        tables.push(Table {
            name: name.into(),
            columns: columns
                .lines()
                .map(|text| column(&closed(text.trim_end_matches(')'))))
                .collect(),
            options: BTreeMap::new(),
            ..Table::default()
        });
    }
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    tables
}
