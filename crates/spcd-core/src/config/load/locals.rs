//! Local values: the attributes of `locals` blocks, which the files of a directory share.
//!
//! Every local value is its own error domain: one that has no value costs the blocks that use it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::budget::directory_of;
use super::local_values::Local;
use super::{FileEnvironment, LoadedBlock, Loader};
use spcd_lang::evaluate::{EvaluationError, evaluate};
use spcd_lang::references::references;
use spcd_lang::syntax::{Attribute, Problem};

/// Maximum number of names in a message.
const MAX_NAMES: usize = 8;

/// Local value that is not evaluated yet.
struct Definition<'i> {
    item: &'i LoadedBlock,
    attribute: &'i Attribute,
    /// Whether its block could be parsed in full.
    whole: bool,
}

impl Loader<'_, '_> {
    /// Reads all `locals` blocks.
    pub(super) fn locals(&mut self, items: Vec<LoadedBlock>) {
        let mut directories: BTreeMap<&str, BTreeMap<&str, Vec<Definition<'_>>>> = BTreeMap::new();
        for item in &items {
            let Some(whole) = self.report_locals_block(item) else {
                continue;
            };
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let of_directory = directories.entry(directory_of(path)).or_default();
            let attributes = item.block().map(|block| block.body.attributes.iter());
            for attribute in attributes.into_iter().flatten() {
                let definition = Definition {
                    item,
                    attribute,
                    whole,
                };
                let name = &*attribute.name;
                of_directory.entry(name).or_default().push(definition);
            }
        }
        for (directory, definitions) in directories {
            let single = self.report_duplicate_locals(directory, definitions);
            for group in dependency_order(&single) {
                self.evaluate_locals(directory, &single, &group);
            }
        }
    }

    /// Reports what is wrong with a block itself. Returns whether it could be parsed in full; `None`
    /// if its attributes are no local values.
    fn report_locals_block(&mut self, item: &LoadedBlock) -> Option<bool> {
        let parsed = item.parsed()?;
        let block = item.block()?;
        *self.suppressed.entry(item.file).or_default() += parsed.suppressed;
        let mut problems = parsed.problems.clone();
        problems.extend(item.extra.iter().cloned());
        let whole = problems.is_empty();
        if let Some(label) = block.labels.first() {
            let problem = Problem::new(label.span, "`locals` has no label");
            problems.push(problem.hint("write `locals {`"));
        }
        for nested in &block.body.blocks {
            let message = "`locals` has no blocks";
            let problem = Problem::new(nested.span, message);
            problems.push(problem.hint(format!("write `{} = {{ … }}`", nested.kind)));
        }
        self.report_errors(item, &problems, None);
        block.labels.is_empty().then_some(whole)
    }

    fn place(&self, definition: &Definition<'_>) -> String {
        let Some(text) = self.texts.get(definition.item.file) else {
            return String::new();
        };
        let offset = definition.item.base + definition.attribute.span.start as usize;
        let (line, column) = text.position(offset);
        format!("{}:{line}:{column}", text.path)
    }

    /// Reports local values that are written more than once; returns the others.
    fn report_duplicate_locals<'i>(
        &mut self,
        directory: &str,
        definitions: BTreeMap<&'i str, Vec<Definition<'i>>>,
    ) -> BTreeMap<&'i str, Definition<'i>> {
        let mut single = BTreeMap::new();
        for (name, mut twins) in definitions {
            if twins.len() == 1 {
                single.extend(twins.pop().map(|definition| (name, definition)));
                continue;
            }
            let places: Vec<String> = twins.iter().map(|twin| self.place(twin)).collect();
            for (index, twin) in twins.iter().enumerate() {
                let others = places
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != index);
                let others: Vec<&str> = others.map(|(_, place)| &**place).take(5).collect();
                let message = format!("`local.{name}` is also written at {}", others.join(", "));
                let problem = Problem::new(twin.attribute.span, message);
                let problem = problem.hint("rename or remove one of them");
                self.report_errors(twin.item, &[problem], None);
            }
            let first = places.into_iter().next().unwrap_or_default();
            self.locals.insert(directory, name, Local::Failed(first));
        }
        single
    }

    /// Evaluates local values whose dependencies have been evaluated: one, or several that need each
    /// other.
    fn evaluate_locals(
        &mut self,
        directory: &str,
        definitions: &BTreeMap<&str, Definition<'_>>,
        group: &Group<'_>,
    ) {
        for name in &group.names {
            let Some(definition) = definitions.get(name) else {
                continue;
            };
            let local = match group.is_circle {
                true => {
                    let problem = circle(&group.names, name, definition.attribute);
                    self.report_errors(definition.item, &[problem], None);
                    Local::Failed(self.place(definition))
                }
                false => self.evaluate_local(definition),
            };
            self.locals.insert(directory, name, local);
        }
    }

    fn evaluate_local(&mut self, definition: &Definition<'_>) -> Local {
        let (item, expression) = (definition.item, &definition.attribute.value);
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let locals = std::mem::take(&mut self.locals);
        let lookup = FileEnvironment::of(self.given, path, &mut self.budget);
        let result = evaluate(expression, &mut lookup.with_locals(&locals));
        self.locals = locals;
        match result {
            Ok(value) => return Local::Value(Arc::new(value)),
            Err(EvaluationError::Problem(problem)) => {
                self.report_errors(item, &[*problem], None);
            }
            Err(EvaluationError::Reported) if definition.whole => return Local::Unknown,
            Err(EvaluationError::Reported) => {}
        }
        Local::Failed(self.place(definition))
    }
}

/// Returns the problem of local values that need each other.
fn circle(names: &[&str], name: &str, attribute: &Attribute) -> Problem {
    let others = names.iter().filter(|other| **other != name);
    let listed = others.take(MAX_NAMES);
    let listed: Vec<String> = listed.map(|name| format!("`local.{name}`")).collect();
    let more = match names.len().saturating_sub(listed.len() + 1) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = match listed.is_empty() {
        true => format!("`local.{name}` is computed from itself"),
        false => {
            let listed = listed.join(", ");
            format!("`local.{name}` is computed from itself, through {listed}{more}")
        }
    };
    Problem::new(attribute.span, message).hint("give one of them a value of its own")
}

/// Local values that are evaluated together.
struct Group<'n> {
    names: Vec<&'n str>,
    /// Whether each of them needs itself.
    is_circle: bool,
}

/// Returns the names so that each comes after those that it needs: the strongly connected components
/// of the graph, by Tarjan's algorithm. Without recursion, since a chain has any length.
fn dependency_order<'n>(definitions: &BTreeMap<&'n str, Definition<'_>>) -> Vec<Group<'n>> {
    let names: Vec<&'n str> = definitions.keys().copied().collect();
    let indexes: HashMap<&str, usize> = names.iter().copied().zip(0..).collect();
    let needs: Vec<Vec<usize>> = definitions
        .values()
        .map(|definition| {
            let mut needed = Vec::new();
            references(&definition.attribute.value, &mut |root, attribute| {
                if let ("local", Some(name)) = (root, attribute) {
                    needed.extend(indexes.get(name));
                }
            });
            needed
        })
        .collect();
    let mut search = Search {
        needs: &needs,
        order: vec![None; names.len()],
        low: vec![0; names.len()],
        open: Vec::new(),
        is_open: vec![false; names.len()],
        visited: 0,
        found: Vec::new(),
    };
    (0..names.len()).for_each(|start| search.visit(start));
    let group = |members: Vec<usize>| Group {
        is_circle: match members.as_slice() {
            [single] => needs[*single].contains(single),
            _ => true,
        },
        names: members.into_iter().map(|index| names[index]).collect(),
    };
    search.found.into_iter().map(group).collect()
}

/// State of Tarjan's algorithm.
struct Search<'n> {
    needs: &'n [Vec<usize>],
    /// When a vertex was visited first.
    order: Vec<Option<usize>>,
    /// The lowest `order` that a vertex reaches.
    low: Vec<usize>,
    open: Vec<usize>,
    is_open: Vec<bool>,
    visited: usize,
    found: Vec<Vec<usize>>,
}

impl Search<'_> {
    fn visit(&mut self, start: usize) {
        if self.order[start].is_some() {
            return;
        }
        // Each vertex on the path, with the number of its edges that were followed.
        let mut path = vec![(start, 0)];
        self.open(start);
        while let Some((vertex, followed)) = path.last_mut() {
            let vertex = *vertex;
            let next = self.needs[vertex].get(*followed).copied();
            *followed += 1;
            match next {
                Some(next) if self.order[next].is_none() => {
                    self.open(next);
                    path.push((next, 0));
                }
                Some(next) => {
                    if let (true, Some(order)) = (self.is_open[next], self.order[next]) {
                        self.low[vertex] = self.low[vertex].min(order);
                    }
                }
                None => {
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        self.low[*parent] = self.low[*parent].min(self.low[vertex]);
                    }
                    self.close(vertex);
                }
            }
        }
    }

    fn open(&mut self, vertex: usize) {
        self.order[vertex] = Some(self.visited);
        self.low[vertex] = self.visited;
        self.visited += 1;
        self.open.push(vertex);
        self.is_open[vertex] = true;
    }

    /// Takes a component off the stack if this vertex is its first.
    fn close(&mut self, vertex: usize) {
        if self.order[vertex] != Some(self.low[vertex]) {
            return;
        }
        let mut members = Vec::new();
        while let Some(member) = self.open.pop() {
            self.is_open[member] = false;
            members.push(member);
            if member == vertex {
                break;
            }
        }
        members.sort_unstable();
        self.found.push(members);
    }
}
