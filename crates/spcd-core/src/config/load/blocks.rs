//! What each kind of block says.

use std::collections::{BTreeMap, HashMap};

use super::{Given, Item, Pass};
use crate::aggregate::{Candidate, circles, members};
use crate::config::connection::{self, Read, View, refused};
use crate::config::{Connection, DatabaseOptions, Kind, options, plugins};
use crate::spc::evaluate::Function;
use crate::spc::settings::Settings;
use crate::spc::syntax::{Block, Problem, Span};
use crate::spc::value::Value;

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
        let given = &mut *self.given;
        let mut lookup = |function, argument: &str| look_up(given, path, function, argument);
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
                .filter_map(|index| self.instances.views().nth(*index))
                .map(|view| format!("{}:{}", view.file, view.start_line))
                .collect();
            for (position, index) in indexes.iter().enumerate() {
                let Some((item, span)) = self.instance_items.get(*index).cloned() else {
                    continue;
                };
                let label = self
                    .instances
                    .views()
                    .nth(*index)
                    .map_or("", |view| &view.label);
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
        database: &mut Option<(usize, u32)>,
    ) {
        let path = self.texts.get(item.file).map_or("", |text| text.path);
        let given = &mut *self.given;
        let mut lookup = |function, argument: &str| look_up(given, path, function, argument);
        let settings = Settings::of(&block.body, &[], &mut lookup, &mut problems);
        let mut warnings = Vec::new();
        let span = block.labels.first().map_or(block.span, |label| label.span);
        warnings.extend(options::unknown(label, span));
        if label == "database" {
            let read: DatabaseOptions = options::database(&settings, &mut problems, &mut warnings);
            match database {
                None => {
                    self.loaded.desired.database = read;
                    *database = Some((item.file, self.lines(item, block).0));
                }
                Some((file, line)) => {
                    let first = self.texts.get(*file).map_or("", |text| text.path);
                    let message =
                        format!("`options \"database\"` is written twice; {first}:{line} counts");
                    problems.push(Problem::new(span, message).hint("join the two blocks"));
                }
            }
        } else if label == "connection" {
            let problem = Problem::new(
                span,
                "`options \"connection\"` is deprecated and has no effect",
            );
            warnings.push(problem.hint("remove the block"));
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

    pub(super) fn connections(&mut self, items: Vec<Item>) {
        // Where each name is written, so that twins can name each other.
        let mut places: HashMap<String, Vec<String>> = HashMap::with_capacity(items.len());
        for item in &items {
            let Some(block) = item.block() else { continue };
            let Some(label) = block.labels.first() else {
                continue;
            };
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let place = format!("{path}:{}", self.lines(item, block).0);
            places
                .entry(label.text.to_string())
                .or_default()
                .push(place);
        }
        let mut counted: HashMap<String, usize> = HashMap::new();
        let mut spans: BTreeMap<String, (Item, Span)> = BTreeMap::new();
        for item in items {
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
            if let Some(problem) = refused(&name, span) {
                problems.insert(0, problem);
                self.tell_all(&item, &problems, None);
                continue;
            }
            if let Some(twins) = places.get(&name).filter(|twins| twins.len() > 1) {
                let position = counted.entry(name.clone()).or_default();
                problems.insert(0, twice("connection", &name, *position, twins, span));
                *position += 1;
            }
            let path = self.texts.get(item.file).map_or("", |text| text.path);
            let given = &mut *self.given;
            let mut lookup = |function, argument: &str| look_up(given, path, function, argument);
            let mut read = connection::read(block, &name, path, &self.instances, &mut lookup);
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
            let instance = &read.connection.plugin_instance;
            if !self.loaded.public.contains_key(instance) {
                let public = read.definition.as_ref().map(|d| d.public.clone());
                let public = public.unwrap_or_default();
                self.loaded.public.insert(instance.clone(), public);
            }
            let connection = self.view(read, error);
            self.loaded
                .desired
                .connections
                .entry(name)
                .or_insert(connection);
        }
        self.aggregators(&spans);
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
                public: read
                    .definition
                    .map(|d| d.public.clone())
                    .unwrap_or_default(),
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
            if spans.is_empty() {
                BTreeMap::new()
            } else {
                members(&candidates)
            }
        };
        let circles = circles(&chosen);
        for (name, found) in chosen {
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
            if found.is_empty() {
                let problem = Problem::new(
                    *span,
                    "no connection matches: the schema is empty until one does",
                );
                warnings = self.warn(item, &[problem], Some(&name));
            }
            let Some(connection) = self.loaded.desired.connections.get_mut(&name) else {
                continue;
            };
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
}

pub(in crate::config) fn look_up(
    given: &mut Given<'_>,
    file: &str,
    function: Function,
    argument: &str,
) -> Result<String, String> {
    let directory = match file.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((directory, _)) => directory,
        None => "",
    };
    (given.lookup)(function, directory, argument).map_err(|reason| {
        let what = match function {
            Function::Env => "the environment variable",
            Function::File => "the file",
            Function::Credential => "the credential",
        };
        // Where a secret lies is none; but somebody may have put the secret itself there.
        let is_name = argument.len() <= 200
            && argument
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        match is_name {
            true => format!("{what} `{argument}` cannot be had: {reason}"),
            false => format!("{what} cannot be had: {reason}"),
        }
    })
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
