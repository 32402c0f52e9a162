//! Reads each kind of block.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::cache::{Cache, CachedConnection};
use super::{FileEnvironment, LoadedBlock, Loader};
use crate::aggregator::{MemberCandidate, ResolvedMembers, resolve_members};
use crate::config::connection::{self, InspectedConnection, ParsedConnection, invalid_name};
use crate::config::{Connection, ConnectionKind, options, plugins};
use spcd_lang::settings::Settings;
use spcd_lang::syntax::{Block, Problem, Span};
use spcd_lang::value::Value;

impl Loader<'_, '_> {
    pub(super) fn plugin(
        &mut self,
        item: LoadedBlock,
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
        let mut lookup = FileEnvironment::of(self.given, path, &mut self.budget);
        let mut instance =
            plugins::instance(block, label, &mut lookup, &mut problems, &mut warnings);
        instance.view.file = path.to_owned();
        (instance.view.start_line, instance.view.end_line) = self.brace_lines(&item, block);
        instance.view.error = self.report_errors(&item, &problems, None);
        self.report_warnings(&item, &warnings, None);
        self.instances.add(instance);
        self.instance_items.push((item, span));
    }

    /// Reports plugin blocks that share a label.
    pub(super) fn report_duplicate_plugins(&mut self) {
        let twins: Vec<Vec<usize>> = self.instances.duplicates().map(<[usize]>::to_vec).collect();
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
                let problem = duplicate_problem("plugin", label, position, &places, span);
                if let Some(error) = self.report_errors(&item, &[problem], None) {
                    self.instances.mark_invalid(*index, &error);
                }
            }
        }
        self.loaded.plugins = self.instances.views().cloned().collect();
    }

    pub(super) fn options(
        &mut self,
        item: &LoadedBlock,
        block: &Block,
        label: &str,
        mut problems: Vec<Problem>,
        written: &mut BTreeMap<String, (usize, u32)>,
    ) {
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let mut lookup = FileEnvironment::of(self.given, path, &mut self.budget);
        let settings = Settings::of(&block.body, &[], &mut lookup, &mut problems);
        let mut warnings = Vec::new();
        let span = block.labels.first().map_or(block.span, |label| label.span);
        warnings.extend(options::no_effect_warning(label, span));
        let database = (label == "database")
            .then(|| options::database(&settings, &mut problems, &mut warnings));
        match written.get(label) {
            None => {
                let place = (item.file, self.brace_lines(item, block).0);
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
        self.report_errors(item, &problems, None);
        self.report_warnings(item, &warnings, None);
    }

    pub(super) fn connections(&mut self, items: Vec<LoadedBlock>, cache: &mut Cache) {
        let twins = self.duplicate_positions(&items);
        let mut counted: HashMap<String, usize> = HashMap::new();
        let mut spans: BTreeMap<String, (LoadedBlock, Span)> = BTreeMap::new();
        for mut item in items {
            if let Some(settled) = item.cached.take() {
                let connection = &settled.connection;
                // Plugin blocks, which are read after this one, may have changed since.
                let holds = cache.connection(&item.key).is_some();
                if holds && !twins.contains_key(&connection.name) {
                    self.reuse_cached(&item, settled, cache);
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
            if let Some(problem) = invalid_name(&name, span) {
                problems.insert(0, problem);
                self.read_invalid_name(&item, &name, problems, whole);
                continue;
            }
            if let Some(twins) = twins.get(&name) {
                let position = counted.entry(name.clone()).or_default();
                problems.insert(
                    0,
                    duplicate_problem("connection", &name, *position, twins, span),
                );
                *position += 1;
            }
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let before = self.budget.spent();
            let mut lookup = FileEnvironment::of(self.given, path, &mut self.budget);
            let whole = whole && problems.is_empty();
            let mut read =
                connection::read(block, &name, path, &self.instances, &mut lookup, whole);
            let calls = lookup.calls;
            let work = self.budget.spent() - before;
            problems.append(&mut read.problems);
            (read.connection.start_line, read.connection.end_line) = self.brace_lines(&item, block);
            let error = self.report_errors(&item, &problems, Some(&name));
            read.connection.warnings = self.report_warnings(&item, &read.warnings, Some(&name));
            if let Some(error) = &error {
                read.connection.target = Err(error.clone());
            }
            if matches!(read.connection.kind, ConnectionKind::Aggregator { .. }) {
                spans.insert(name.clone(), (item.clone(), read.connections_span));
            }
            self.note_public(&read);
            let plain = !calls && error.is_none() && read.warnings.is_empty();
            let connection = Arc::new(self.view(read, error));
            if let (true, ConnectionKind::Plugin, Some(line), None) =
                (plain, &connection.kind, item.line, &self.inspection)
            {
                let public = self.loaded.public.get(&connection.plugin_instance);
                *cache.public(&connection.plugin_instance) = public.cloned().unwrap_or_default();
                let connection = connection.clone();
                let settled = CachedConnection {
                    line,
                    connection,
                    work,
                };
                cache.keep_connection(item.key, settled);
            }
            let connections = &mut self.loaded.desired.connections;
            connections.entry(name).or_insert(connection);
        }
        self.aggregators(&spans);
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

    /// Reports the problems of a connection with an invalid name; `check` lists it.
    fn read_invalid_name(
        &mut self,
        item: &LoadedBlock,
        name: &str,
        mut problems: Vec<Problem>,
        whole: bool,
    ) {
        let Some(block) = item.block() else { return };
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let mut lookup = FileEnvironment::of(self.given, path, &mut self.budget);
        let mut read = connection::read(block, name, path, &self.instances, &mut lookup, whole);
        problems.append(&mut read.problems);
        (read.connection.start_line, read.connection.end_line) = self.brace_lines(item, block);
        let error = self.report_errors(item, &problems, None);
        self.report_warnings(item, &read.warnings, None);
        self.view(read, error);
    }

    /// Reuses a cached connection.
    fn reuse_cached(&mut self, item: &LoadedBlock, settled: CachedConnection, cache: &mut Cache) {
        // Spends the same work as when it was read, so that the budget does not depend on earlier
        // loads.
        self.budget.spend(settled.work);
        let before = settled.line;
        let settled = settled.at_line(item.line.unwrap_or(before));
        let connection = settled.connection.clone();
        if settled.line != before {
            cache.keep_connection(item.key, settled);
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
    fn duplicate_positions(&self, items: &[LoadedBlock]) -> HashMap<String, Vec<String>> {
        let mut named: HashMap<&str, Vec<&LoadedBlock>> = HashMap::with_capacity(items.len());
        for item in items {
            let label = item.block().and_then(|block| block.labels.first());
            let settled = item.cached.as_ref();
            let name = settled.map(|settled| settled.connection.name.as_str());
            if let Some(name) = name.or(label.map(|label| &*label.text)) {
                named.entry(name).or_default().push(item);
            }
        }
        let place = |item: &&LoadedBlock| {
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
        };
        let twins = named.into_iter().filter(|(_, items)| items.len() > 1);
        twins
            .map(|(name, items)| (name.to_owned(), items.iter().map(place).collect()))
            .collect()
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

    fn aggregators(&mut self, spans: &BTreeMap<String, (LoadedBlock, Span)>) {
        let chosen = {
            let candidates: BTreeMap<&str, MemberCandidate> = self
                .loaded
                .desired
                .connections
                .iter()
                .map(|(name, connection)| {
                    let patterns = match &connection.kind {
                        ConnectionKind::Plugin => None,
                        ConnectionKind::Aggregator { patterns, .. } => Some(patterns.clone()),
                    };
                    let plugin_instance = connection.plugin_instance.clone();
                    (
                        name.as_str(),
                        MemberCandidate {
                            plugin_instance,
                            patterns,
                        },
                    )
                })
                .collect();
            match spans.is_empty() {
                true => ResolvedMembers::default(),
                false => resolve_members(&candidates, &mut |work| self.budget.spend(work)),
            }
        };
        let ResolvedMembers {
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
                error = self.report_errors(item, &[problem], Some(&name));
            }
            let mut warnings = Vec::new();
            if excessive.contains(&name) {
                let message = "the aggregators of all files together show too many connections";
                let problem = Problem::new(*span, message);
                let problem = problem.hint("list fewer here or in the blocks before");
                error = self.report_errors(item, &[problem], Some(&name));
            } else if found.is_empty() && self.has_patterns(&name) {
                let problem = Problem::new(
                    *span,
                    "no connection matches: the schema is empty until one does",
                );
                warnings = self.report_warnings(item, &[problem], Some(&name));
            }
            let Some(connection) = self.loaded.desired.connections.get_mut(&name) else {
                continue;
            };
            let connection = Arc::make_mut(connection);
            connection.warnings.append(&mut warnings);
            if let (Some(error), Ok(_)) = (&error, &connection.target) {
                connection.target = Err(error.clone());
            }
            if let ConnectionKind::Aggregator { members, .. } = &mut connection.kind {
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
            ConnectionKind::Plugin => false,
            ConnectionKind::Aggregator { patterns, .. } => !patterns.is_empty(),
        })
    }
}

/// Returns the problem of a block that exists more than once; it names the others.
pub(super) fn duplicate_problem(
    kind: &str,
    name: &str,
    position: usize,
    places: &[String],
    span: Span,
) -> Problem {
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
