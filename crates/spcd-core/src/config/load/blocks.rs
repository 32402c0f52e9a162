//! What each kind of block says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::cache::{Cache, Settled};
use super::{Asking, Item, Pass};
use crate::aggregate::{Candidate, Chosen, choose};
use crate::config::connection::{self, Read, View, refused};
use crate::config::{Connection, Kind, options, plugins};
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Block, Problem, Span};
use spcd_lang::value::Value;

impl Pass<'_, '_> {
    pub(super) fn plugin(
        &mut self,
        item: Item,
        block: &Block,
        label: &str,
        mut problems: Vec<Problem>,
    ) {
        let mut warnings = Vec::new();
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let span = block.labels.first().map_or(block.span, |label| label.span);
        if label.is_empty() || label.contains('\0') {
            problems.push(Problem::new(
                span,
                "a plugin block's label is some text without NUL",
            ));
        }
        let mut lookup = Asking::of(self.given, path, &mut self.budget);
        let mut instance =
            plugins::instance(block, label, &mut lookup, &mut problems, &mut warnings);
        instance.view.file = path.to_owned();
        (instance.view.start_line, instance.view.end_line) = self.lines(&item, block);
        instance.view.error = self.tell_all(&item, &problems, None);
        self.warn(&item, &warnings, None);
        self.instances.add(instance);
        self.instance_items.push((item, span));
    }

    /// Plugin blocks that share a label.
    pub(super) fn twins(&mut self) {
        let twins: Vec<Vec<usize>> = self.instances.twins().map(<[usize]>::to_vec).collect();
        for indexes in twins {
            let places: Vec<String> = indexes
                .iter()
                .filter_map(|index| self.instances.view(*index))
                .map(|view| format!("{}:{}", view.file, view.start_line))
                .collect();
            for (position, index) in indexes.iter().enumerate() {
                let Some((item, span)) = self.instance_items.get(*index).cloned() else {
                    continue;
                };
                let label = self.instances.view(*index).map_or("", |view| &view.label);
                let problem = twice("plugin", label, position, &places, span);
                if let Some(error) = self.tell_all(&item, &[problem], None) {
                    self.instances.spoil(*index, &error);
                }
            }
        }
        self.loaded.plugins = self.instances.views().cloned().collect();
    }

    pub(super) fn options(
        &mut self,
        item: &Item,
        block: &Block,
        label: &str,
        mut problems: Vec<Problem>,
        written: &mut BTreeMap<String, (usize, u32)>,
    ) {
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let mut lookup = Asking::of(self.given, path, &mut self.budget);
        let settings = Settings::of(&block.body, &[], &mut lookup, &mut problems);
        let mut warnings = Vec::new();
        let span = block.labels.first().map_or(block.span, |label| label.span);
        warnings.extend(options::without_effect(label, span));
        let database = (label == "database")
            .then(|| options::database(&settings, &mut problems, &mut warnings));
        match written.get(label) {
            None => {
                let place = (item.file, self.lines(item, block).0);
                written.insert(label.to_owned(), place);
                if let Some(mut database) = database {
                    database.file = Some(path.to_owned());
                    self.loaded.desired.database = database;
                }
            }
            Some((file, line)) => {
                let first = self.texts.get(*file).map_or("", |text| text.path);
                let label: String = label.chars().filter(|c| !c.is_control()).collect();
                let message =
                    format!("`options \"{label}\"` is written twice; {first}:{line} counts");
                problems.push(Problem::new(span, message).hint("join the two blocks"));
            }
        }
        if let Some(inspection) = &mut self.inspection {
            inspection
                .options
                .entry(label.to_owned())
                .or_insert_with(|| Value::Object(settings.object()));
        }
        self.tell_all(item, &problems, None);
        self.warn(item, &warnings, None);
    }

    pub(super) fn connections(&mut self, items: Vec<Item>, cache: &mut Cache) {
        let twins = self.places_of_twins(&items);
        let mut counted: HashMap<String, usize> = HashMap::new();
        let mut spans: BTreeMap<String, (Item, Span)> = BTreeMap::new();
        for mut item in items {
            if let Some(settled) = item.settled.take() {
                let connection = &settled.connection;
                // What it rests on may have changed since, and plugin blocks are read after it.
                let holds = cache.settled(&item.key).is_some();
                if holds && !twins.contains_key(&connection.name) {
                    self.settled(&item, settled, cache);
                    continue;
                }
                let text = self.texts.get(item.file).map_or("", |text| text.text);
                item.parse(text, cache);
            }
            let Some(block) = item.block() else { continue };
            let Some(label) = block.labels.first() else {
                continue;
            };
            let (name, span) = (label.text.to_string(), label.span);
            let mut problems: Vec<Problem> = item
                .parsed()
                .map(|parsed| parsed.problems.clone())
                .unwrap_or_default();
            problems.extend(item.extra.iter().cloned());
            let whole = problems.is_empty();
            if let Some(problem) = refused(&name, span) {
                problems.insert(0, problem);
                self.refused(&item, &name, problems, whole);
                continue;
            }
            if let Some(twins) = twins.get(&name) {
                let position = counted.entry(name.clone()).or_default();
                problems.insert(0, twice("connection", &name, *position, twins, span));
                *position += 1;
            }
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let before = self.budget.spent();
            let mut lookup = Asking::of(self.given, path, &mut self.budget);
            let whole = whole && problems.is_empty();
            let mut read =
                connection::read(block, &name, path, &self.instances, &mut lookup, whole);
            let calls = lookup.calls;
            let work = self.budget.spent() - before;
            problems.append(&mut read.problems);
            (read.connection.start_line, read.connection.end_line) = self.lines(&item, block);
            let error = self.tell_all(&item, &problems, Some(&name));
            read.connection.warnings = self.warn(&item, &read.warnings, Some(&name));
            if let Some(error) = &error {
                read.connection.target = Err(error.clone());
            }
            if matches!(read.connection.kind, Kind::Aggregator { .. }) {
                spans.insert(name.clone(), (item.clone(), read.connections_span));
            }
            self.note_public(&read);
            let plain = !calls && error.is_none() && read.warnings.is_empty();
            let connection = Arc::new(self.view(read, error));
            if let (true, Kind::Plugin, Some(line), None) =
                (plain, &connection.kind, item.line, &self.inspection)
            {
                let public = self.loaded.public.get(&connection.plugin_instance);
                *cache.public(&connection.plugin_instance) = public.cloned().unwrap_or_default();
                let connection = connection.clone();
                let settled = Settled {
                    line,
                    connection,
                    work,
                };
                cache.settle(item.key, settled);
            }
            let connections = &mut self.loaded.desired.connections;
            connections.entry(name).or_insert(connection);
        }
        self.aggregators(&spans);
    }

    /// Remembers which attributes of a plugin instance may be shown.
    fn note_public(&mut self, read: &Read) {
        let instance = &read.connection.plugin_instance;
        if !self.loaded.public.contains_key(instance) {
            let public = read.definition.as_ref().map(|d| d.public.clone());
            let public = public.unwrap_or_default();
            self.loaded.public.insert(instance.clone(), public);
        }
    }

    /// Tells what is wrong with a connection that cannot have its name; `check` lists it.
    fn refused(&mut self, item: &Item, name: &str, mut problems: Vec<Problem>, whole: bool) {
        let Some(block) = item.block() else { return };
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let mut lookup = Asking::of(self.given, path, &mut self.budget);
        let mut read = connection::read(block, name, path, &self.instances, &mut lookup, whole);
        problems.append(&mut read.problems);
        (read.connection.start_line, read.connection.end_line) = self.lines(item, block);
        let error = self.tell_all(item, &problems, None);
        self.warn(item, &read.warnings, None);
        self.view(read, error);
    }

    /// Takes a connection as it was read before.
    fn settled(&mut self, item: &Item, settled: Settled, cache: &mut Cache) {
        // As much as when it was read: what a load allows does not depend on those before it.
        self.budget.spend(settled.work);
        let before = settled.line;
        let settled = settled.moved(item.line.unwrap_or(before));
        let connection = settled.connection.clone();
        if settled.line != before {
            cache.settle(item.key, settled);
        }
        let (instance, public) = (&connection.plugin_instance, &mut self.loaded.public);
        if !public.contains_key(instance) {
            public.insert(instance.clone(), cache.public(instance).clone());
        }
        let connections = &mut self.loaded.desired.connections;
        connections.insert(connection.name.clone(), connection);
    }

    /// Where each of the names is written that is written more than once, so that they can name
    /// each other.
    fn places_of_twins(&self, items: &[Item]) -> HashMap<String, Vec<String>> {
        let mut named: HashMap<&str, Vec<&Item>> = HashMap::with_capacity(items.len());
        for item in items {
            let label = item.block().and_then(|block| block.labels.first());
            let settled = item.settled.as_ref();
            let name = settled.map(|settled| settled.connection.name.as_str());
            if let Some(name) = name.or(label.map(|label| &*label.text)) {
                named.entry(name).or_default().push(item);
            }
        }
        let place = |item: &&Item| {
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let line = match (&item.settled, item.block()) {
                (Some(settled), _) => {
                    let moved = settled.clone().moved(item.line.unwrap_or(settled.line));
                    moved.connection.start_line
                }
                (None, Some(block)) => self.lines(item, block).0,
                (None, None) => 0,
            };
            format!("{path}:{line}")
        };
        let twins = named.into_iter().filter(|(_, items)| items.len() > 1);
        twins
            .map(|(name, items)| (name.to_owned(), items.iter().map(place).collect()))
            .collect()
    }

    /// Keeps what `check` shows of a connection.
    fn view(&mut self, read: Read, error: Option<String>) -> Connection {
        if let Some(inspection) = &mut self.inspection {
            let mut config = read.settings.object();
            for own in ["plugin", "type", "connections", "import_schema"] {
                config.remove(own);
            }
            inspection.connections.push(View {
                name: read.connection.name.clone(),
                connection: read.connection.clone(),
                config,
                error,
            });
        }
        read.connection
    }

    fn aggregators(&mut self, spans: &BTreeMap<String, (Item, Span)>) {
        let chosen = {
            let candidates: BTreeMap<&str, Candidate> = self
                .loaded
                .desired
                .connections
                .iter()
                .map(|(name, connection)| {
                    let patterns = match &connection.kind {
                        Kind::Plugin => None,
                        Kind::Aggregator { patterns, .. } => Some(patterns.clone()),
                    };
                    let plugin_instance = connection.plugin_instance.clone();
                    (
                        name.as_str(),
                        Candidate {
                            plugin_instance,
                            patterns,
                        },
                    )
                })
                .collect();
            match spans.is_empty() {
                true => Chosen::default(),
                false => choose(&candidates, &mut |work| self.budget.spend(work)),
            }
        };
        let Chosen {
            members,
            circles,
            excessive,
        } = chosen;
        for (name, found) in members {
            let Some((item, span)) = spans.get(&name) else {
                continue;
            };
            let mut error = None;
            if let Some(circle) = circles.get(&name) {
                let problem = Problem::new(
                    *span,
                    format!("this aggregator is a member of itself: {circle}"),
                );
                let problem = problem.hint("leave out one of them");
                error = self.tell_all(item, &[problem], Some(&name));
            }
            let mut warnings = Vec::new();
            if excessive.contains(&name) {
                let message = "the aggregators of all files together show too many connections";
                let problem = Problem::new(*span, message);
                let problem = problem.hint("list fewer here or in the blocks before");
                error = self.tell_all(item, &[problem], Some(&name));
            } else if found.is_empty() && self.has_patterns(&name) {
                let problem = Problem::new(
                    *span,
                    "no connection matches: the schema is empty until one does",
                );
                warnings = self.warn(item, &[problem], Some(&name));
            }
            let Some(connection) = self.loaded.desired.connections.get_mut(&name) else {
                continue;
            };
            let connection = Arc::make_mut(connection);
            connection.warnings.append(&mut warnings);
            if let (Some(error), Ok(_)) = (&error, &connection.target) {
                connection.target = Err(error.clone());
            }
            if let Kind::Aggregator { members, .. } = &mut connection.kind {
                *members = found;
            }
            let connection = connection.clone();
            let views = self
                .inspection
                .iter_mut()
                .flat_map(|inspection| &mut inspection.connections);
            for view in views.filter(|view| view.name == name) {
                view.error = view.error.take().or_else(|| error.clone());
                view.connection.kind = connection.kind.clone();
            }
        }
    }

    /// Returns whether an aggregator's list of connections could be read and is not empty.
    fn has_patterns(&self, name: &str) -> bool {
        let connection = self.loaded.desired.connections.get(name);
        connection.is_some_and(|connection| match &connection.kind {
            Kind::Plugin => false,
            Kind::Aggregator { patterns, .. } => !patterns.is_empty(),
        })
    }
}

/// A block that is there more than once; names the others.
fn twice(kind: &str, name: &str, position: usize, places: &[String], span: Span) -> Problem {
    let others: Vec<&str> = places
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != position)
        .map(|(_, place)| place.as_str())
        .take(5)
        .collect();
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let message = format!("{kind} `{name}` is also written at {}", others.join(", "));
    Problem::new(span, message).hint("rename or remove one of them")
}
