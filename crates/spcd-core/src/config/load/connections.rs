//! Reads `connection` blocks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::blocks::duplicate_problem;
use super::budget::Each;
use super::cache::{Cache, CachedConnection};
use super::elements::{Element, listed};
use super::{FileEnvironment, LoadedBlock, Loader};
use crate::config::connection::{self, InspectedConnection, ParsedConnection, invalid_name};
use crate::config::key::Key;
use crate::config::{Connection, ConnectionKind, Severity};
use spcd_lang::syntax::{Block, Problem, Span};
use spcd_lang::value::Value;

/// Aggregators, and where their `connections` are written.
pub(super) type Aggregators = BTreeMap<String, (LoadedBlock, Span)>;

/// Block with its connections.
struct ConnectionBlock {
    item: LoadedBlock,
    /// The connections of a block with `for_each`.
    elements: Option<Vec<Element>>,
}

impl ConnectionBlock {
    fn names(&self) -> impl Iterator<Item = &str> {
        let cached = (self.item.cached.as_ref()).map(|settled| settled.connection.name.as_str());
        let label = self.item.block().and_then(|block| block.labels.first());
        let own = cached.or(label.map(|label| &*label.text));
        let own = own.filter(|_| self.elements.is_none());
        let elements = self.elements.iter().flatten();
        own.into_iter()
            .chain(elements.map(|element| element.name.as_str()))
    }
}

/// A connection that is to be read.
struct Reading<'b> {
    item: &'b LoadedBlock,
    block: &'b Block,
    name: &'b str,
    /// Span of the name.
    span: Span,
    each: Option<&'b Arc<Value>>,
    key: Key,
    /// Problem of a name that is used more than once.
    twin: Option<Problem>,
}

/// What is to be reported of a connection.
struct Findings {
    /// Its name, if it is valid.
    connection: Option<String>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// Positions of a name that is used more than once, by block.
#[derive(Default)]
struct Twins {
    /// Indexes of the blocks, ascending.
    blocks: Vec<usize>,
    /// How often each of them gives the name.
    counts: Vec<usize>,
    places: Vec<String>,
}

impl Twins {
    fn problem(&self, name: &str, block: usize, span: Span) -> Option<Problem> {
        let position = self.blocks.binary_search(&block).ok()?;
        match self.counts.get(position) {
            Some(count) if *count > 1 => {
                let name: String = name.chars().filter(|c| !c.is_control()).collect();
                let message = format!("{count} elements of `for_each` give the name `{name}`");
                let hint = "let `name` differ for each element: use all of `each.key`";
                Some(Problem::new(span, message).hint(hint))
            }
            _ => Some(duplicate_problem(
                "connection",
                name,
                position,
                &self.places,
                span,
            )),
        }
    }
}

impl Loader<'_, '_> {
    pub(super) fn connections(&mut self, items: Vec<LoadedBlock>, cache: &mut Cache) {
        let blocks: Vec<ConnectionBlock> = items
            .into_iter()
            .map(|item| ConnectionBlock {
                elements: self.elements(&item),
                item,
            })
            .collect();
        let twins = self.twins(&blocks);
        let mut aggregators = Aggregators::new();
        for (index, block) in blocks.into_iter().enumerate() {
            let twin = |name: &str, span| twins.get(name)?.problem(name, index, span);
            let ConnectionBlock { item, elements } = block;
            match elements {
                None => self.single(item, &twin, &mut aggregators, cache),
                Some(elements) => self.repeated(&item, &elements, &twin, &mut aggregators, cache),
            }
        }
        self.aggregators(&aggregators);
    }

    /// Reads a block of one connection.
    fn single(
        &mut self,
        mut item: LoadedBlock,
        twin: &dyn Fn(&str, Span) -> Option<Problem>,
        aggregators: &mut Aggregators,
        cache: &mut Cache,
    ) {
        if let Some(settled) = item.cached.take() {
            let name = &settled.connection.name;
            // Plugin blocks and local values, which are read after this one, may have changed since.
            let holds = cache.connection(&item.key).is_some();
            if holds && twin(name, Span::default()).is_none() {
                return self.reuse_cached(&item, item.key, settled, cache);
            }
            let text = self.texts.get(item.file).map_or("", |text| text.text);
            item.parse(text, cache);
        }
        let Some(block) = item.block() else { return };
        let Some(label) = block.labels.first() else {
            return;
        };
        let reading = Reading {
            item: &item,
            block,
            name: &label.text,
            span: label.span,
            each: None,
            key: item.key,
            twin: twin(&label.text, label.span),
        };
        let found = self.read_connection(&reading, aggregators, cache);
        let name = found.connection.as_deref();
        self.report_all(&item, Severity::Error, &found.problems, name);
        self.report_all(&item, Severity::Warning, &found.warnings, name);
    }

    /// Reads the connections of a block with `for_each`.
    fn repeated(
        &mut self,
        item: &LoadedBlock,
        elements: &[Element],
        twin: &dyn Fn(&str, Span) -> Option<Problem>,
        aggregators: &mut Aggregators,
        cache: &mut Cache,
    ) {
        let Some(block) = item.block() else { return };
        let mut errors = Grouped::default();
        let mut warnings = Grouped::default();
        for element in elements {
            let twin = twin(&element.name, element.span);
            if let (Some(settled), None) = (cache.connection(&element.key), &twin) {
                self.reuse_cached(item, element.key, settled, cache);
                continue;
            }
            let reading = Reading {
                item,
                block,
                name: &element.name,
                span: element.span,
                each: Some(&element.each),
                key: element.key,
                twin,
            };
            let found = self.read_connection(&reading, aggregators, cache);
            let place = match &found.connection {
                Some(name) => format!("`{name}`"),
                None => element.place.clone(),
            };
            errors.add(found.problems, &place, found.connection.as_deref());
            warnings.add(found.warnings, &place, found.connection.as_deref());
        }
        let count = elements.len();
        for (severity, grouped) in [(Severity::Error, errors), (Severity::Warning, warnings)] {
            for (problem, connection) in grouped.problems(count) {
                self.report_all(item, severity, &[problem], connection.as_deref());
            }
        }
    }

    /// Reads a connection into the desired state. Its problems are not reported yet.
    fn read_connection(
        &mut self,
        reading: &Reading<'_>,
        aggregators: &mut Aggregators,
        cache: &mut Cache,
    ) -> Findings {
        let &Reading {
            item, block, name, ..
        } = reading;
        let mut problems: Vec<Problem> = item.own_problems().collect();
        let whole = problems.is_empty() && reading.twin.is_none();
        let invalid = invalid_name(name, reading.span);
        let is_valid = invalid.is_none();
        if let Some(first) = invalid.or_else(|| reading.twin.clone()) {
            problems.insert(0, first);
        }
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let before = self.budget.spent();
        let mut lookup =
            FileEnvironment::of(self.given, path, &mut self.budget).with_locals(&self.locals);
        if let Some(each) = reading.each {
            lookup.each = Each::Element(each.clone());
        }
        let mut read = connection::read(block, name, path, &self.instances, &mut lookup, whole);
        let (calls, uses_locals) = (lookup.calls, lookup.uses_locals);
        let lacks_each = lookup.lacks_each;
        let work = self.budget.spent() - before;
        problems.append(&mut read.problems);
        (read.connection.start_line, read.connection.end_line) = self.brace_lines(item, block);
        let error = self.error_of(item, &problems);
        // The block may have lost its `for_each` to a typing error, and an element its own name: the
        // connections that they gave stay.
        let is_nameless = !is_valid || reading.twin.is_some();
        let is_lost = lacks_each || (is_nameless && reading.each.is_some());
        if let (true, Some(error)) = (is_lost, &error) {
            self.mark_unknown_with(item.file, error.clone());
        }
        let warnings = std::mem::take(&mut read.warnings);
        let is_plain = !calls && error.is_none() && warnings.is_empty();
        if !is_valid {
            self.view(read, error);
        } else {
            let messages = warnings.iter().map(|warning| warning.message.clone());
            read.connection.warnings = messages.collect();
            if let Some(error) = &error {
                read.connection.target = Err(error.clone());
            }
            if matches!(read.connection.kind, ConnectionKind::Aggregator { .. }) {
                let place = (item.clone(), read.connections_span);
                aggregators.insert(name.to_owned(), place);
            }
            self.note_public(&read);
            let connection = Arc::new(self.view(read, error));
            if is_plain {
                self.keep(item, reading.key, &connection, work, uses_locals, cache);
            }
            let connections = &mut self.loaded.desired.connections;
            connections.entry(name.to_owned()).or_insert(connection);
        }
        Findings {
            connection: is_valid.then(|| name.to_owned()),
            problems,
            warnings,
        }
    }

    /// Keeps a connection without problems in the cache.
    fn keep(
        &mut self,
        item: &LoadedBlock,
        key: Key,
        connection: &Arc<Connection>,
        work: usize,
        uses_locals: bool,
        cache: &mut Cache,
    ) {
        let (ConnectionKind::Plugin, Some(line), None) =
            (&connection.kind, item.line, &self.inspection)
        else {
            return;
        };
        let public = self.loaded.public.get(&connection.plugin_instance);
        *cache.public(&connection.plugin_instance) = public.cloned().unwrap_or_default();
        let settled = CachedConnection {
            line,
            connection: connection.clone(),
            work,
            uses_locals,
        };
        cache.keep_connection(key, settled);
    }

    /// Records which attributes of a plugin instance may be shown.
    fn note_public(&mut self, read: &ParsedConnection) {
        let instance = &read.connection.plugin_instance;
        if !self.loaded.public.contains_key(instance) {
            let public = read.definition.as_ref().map(|d| d.public.clone());
            let public = public.unwrap_or_default();
            self.loaded.public.insert(instance.clone(), public);
        }
    }

    /// Reuses a cached connection.
    fn reuse_cached(
        &mut self,
        item: &LoadedBlock,
        key: Key,
        settled: CachedConnection,
        cache: &mut Cache,
    ) {
        // Spends the same work as when it was read, so that the budget does not depend on earlier
        // loads.
        self.budget.spend(settled.work);
        let before = settled.line;
        let settled = settled.at_line(item.line.unwrap_or(before));
        let connection = settled.connection.clone();
        if settled.line != before {
            cache.keep_connection(key, settled);
        }
        let (instance, public) = (&connection.plugin_instance, &mut self.loaded.public);
        if !public.contains_key(instance) {
            public.insert(instance.clone(), cache.public(instance).clone());
        }
        let connections = &mut self.loaded.desired.connections;
        connections.insert(connection.name.clone(), connection);
    }

    /// Returns the positions of each name that is used more than once, so that the problems can
    /// name each other.
    fn twins(&self, blocks: &[ConnectionBlock]) -> HashMap<String, Twins> {
        let mut named: HashMap<&str, Vec<usize>> = HashMap::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            for name in block.names() {
                named.entry(name).or_default().push(index);
            }
        }
        named.retain(|_, indexes| indexes.len() > 1);
        let twins = |indexes: Vec<usize>| {
            let mut twins = Twins::default();
            for index in indexes {
                match (twins.blocks.last(), twins.counts.last_mut()) {
                    (Some(last), Some(count)) if *last == index => *count += 1,
                    _ => {
                        twins.blocks.push(index);
                        twins.counts.push(1);
                        let block = blocks.get(index);
                        let place = block.map(|block| self.position_of(&block.item));
                        twins.places.push(place.unwrap_or_default());
                    }
                }
            }
            twins
        };
        let named = named.into_iter();
        named
            .map(|(name, indexes)| (name.to_owned(), twins(indexes)))
            .collect()
    }

    /// Returns file and line of a block.
    fn position_of(&self, item: &LoadedBlock) -> String {
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let line = match (&item.cached, item.block()) {
            (Some(settled), _) => {
                let moved = settled.clone().at_line(item.line.unwrap_or(settled.line));
                moved.connection.start_line
            }
            (None, Some(block)) => self.brace_lines(item, block).0,
            (None, None) => 0,
        };
        format!("{path}:{line}")
    }

    /// Keeps what `check` shows of a connection.
    fn view(&mut self, read: ParsedConnection, error: Option<String>) -> Connection {
        if let Some(inspection) = &mut self.inspection {
            let mut config = read.settings.object();
            for own in ["plugin", "type", "connections", "import_schema"] {
                config.remove(own);
            }
            inspection.connections.push(InspectedConnection {
                name: read.connection.name.clone(),
                connection: read.connection.clone(),
                config,
                error,
            });
        }
        read.connection
    }
}

/// Problem of connections of one block, and where it was found.
struct Group {
    problem: Problem,
    places: Vec<String>,
    /// The first of these connections with a valid name.
    connection: Option<String>,
}

/// Problems of all connections of a block. Equal ones are reported once.
#[derive(Default)]
struct Grouped {
    groups: Vec<Group>,
    indexes: HashMap<(u32, u32, String), usize>,
}

impl Grouped {
    fn add(&mut self, problems: Vec<Problem>, place: &str, connection: Option<&str>) {
        for problem in problems {
            let span = problem.span;
            let key = (span.start, span.end, problem.message.clone());
            let index = *self.indexes.entry(key).or_insert(self.groups.len());
            if index == self.groups.len() {
                self.groups.push(Group {
                    problem,
                    places: Vec::new(),
                    connection: connection.map(str::to_owned),
                });
            }
            if let Some(group) = self.groups.get_mut(index)
                && group.places.last().is_none_or(|last| last != place)
            {
                group.places.push(place.to_owned());
            }
        }
    }

    /// Returns the problems. One that not all of `count` connections have names them.
    fn problems(self, count: usize) -> impl Iterator<Item = (Problem, Option<String>)> {
        self.groups.into_iter().map(move |group| {
            let mut problem = group.problem;
            let is_named =
                (group.places.first()).is_some_and(|name| problem.message.contains(name));
            if group.places.len() < count && !is_named {
                problem.message = format!("{}, in {}", problem.message, listed(&group.places));
            }
            (problem, group.connection)
        })
    }
}
